"""A trained model as files that RecBole alone can load: weights, config, and the split in RecBole's atomic format.

The files of the dataset hold RecBole's internal ids (those of the weights' rows) in place of raw ids, which may be any text;
`tokens.json` says what they stand for. `recommend.py` beside them (see `standalone`) needs RecBole and torch, not llmkt_ray.
"""

import io
import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from llmkt_ray.artifacts import FileStore
from llmkt_ray.data.prepared import PreparedData, Rows
from llmkt_ray.training.bridge.dataset import PADDING
from llmkt_ray.training.bridge.features import FeatureField
from llmkt_ray.training.bridge.models import BuiltModel
from llmkt_ray.training.bridge.sequences import SequenceTable
from llmkt_ray.training.bridge.shims import RECBOLE
from llmkt_ray.training.bridge.standalone import NAME
from llmkt_ray.training.metrics import parse_metrics
from llmkt_ray.training.spec import TrialSpec

_HISTORY = ("history_item_id", "history_item_value", "history_item_len")
"""What some models keep of the users' histories; a random part of it where histories are cut (SimpleX)."""
_NEIGHBOURS = ("u_neigh", "i_neigh")
"""What NNCF draws of the neighbours of users and items and reads in every score."""
_PARTS = ("train", "known", "test")
_OF_SCORES = {"AUC", "LogLoss"}
"""Metrics of scores in RecBole's words, not of rankings."""


def write_export(folder: Path, model: BuiltModel, spec: TrialSpec, data: PreparedData, tested: dict[str, float]) -> None:
    """Writes a trained model into a folder, with everything that RecBole needs to load it, recommend and test it.

    Args:
        folder: where; existing files of the same names are replaced.
        model: the model with the tested weights.
        spec: the trial.
        data: its split.
        tested: metric name to value on test, as in the trial's row.

    Raises:
        StorageError: the files cannot be written.
    """
    files = FileStore(folder)
    _write_dataset(files, model, spec, data)
    tokens = {model.dataset.uid_field: data.user_tokens, model.dataset.iid_field: data.item_tokens}
    tokens |= {f.name: f.tokens[1:] for f in (*model.dataset.user_fields, *model.dataset.item_fields)}
    _write_json(files, "tokens.json", {name: np.asarray(values).tolist() for name, values in tokens.items()})
    files.write_bytes("config.yaml", yaml.safe_dump(recbole_config(model, spec), sort_keys=False, allow_unicode=True).encode())
    sink = io.BytesIO()
    torch.save({"state_dict": model.module.state_dict(), "other_parameter": _other(model)}, sink)
    files.write_bytes("model.pth", sink.getvalue())
    about = {
        "trial_key": spec.key, "model": spec.model, "class_path": spec.class_path, "family": model.entry.family, "dataset": spec.dataset,
        "arm": spec.arm, "alpha": spec.alpha, "layer": spec.layer, "seed_index": spec.seed_index, "recbole": RECBOLE,
        "torch": torch.__version__, "test": tested, "spec": spec.model_dump(mode="json"),
    }  # fmt: skip
    _write_json(files, "export.json", about)
    script = resources.files("llmkt_ray.training.bridge").joinpath("standalone.py").read_text(encoding="utf-8")
    files.write_bytes("recommend.py", script.encode())
    files.write_bytes("README.md", _readme(spec, tested, [str(t) for t in data.user_tokens[:1]]).encode())


def recbole_config(model: BuiltModel, spec: TrialSpec) -> dict[str, Any]:
    """Returns the trial as RecBole's settings."""
    metrics = parse_metrics(spec.metrics)
    labelled = spec.protocol == "labelled"
    fields = [model.dataset.uid_field, model.dataset.iid_field]
    if labelled:
        fields.append(model.dataset.label_field)
    elif model.entry.family == "sequential":
        fields.append(model.dataset.iid_field + model.settings["LIST_SUFFIX"])
    elif model.entry.family == "general":
        fields.append(model.settings["RATING_FIELD"])
    load = {"inter": fields}
    for name, of, id_field in (("user", model.dataset.user_fields, fields[0]), ("item", model.dataset.item_fields, fields[1])):
        if of:
            load[name] = [id_field, *(field.name for field in of)]
    own = {name: value for name, value in spec.hyperparameters.items() if name != "train_neg_sample_args"}
    if model.settings["item_attribute"]:
        own["item_attribute"] = model.settings["item_attribute"]  # RecBole's default for S3Rec names a field of its own files
    if "message_dropout" in model.settings:
        own["message_dropout"] = 0.0  # RecBole's NGCF drops messages in evaluation too
    evaluated = list(dict.fromkeys(m.family for m in metrics))
    if set(evaluated) & _OF_SCORES:  # RecBole takes no metric of a ranking beside them
        evaluated = [name for name in evaluated if name in _OF_SCORES]
    select_on = spec.select_on if not labelled or spec.select_on in evaluated else evaluated[0]
    return {
        "model": spec.model,
        "dataset": NAME,
        "benchmark_filename": list(_PARTS),
        "load_col": load,
        **own,
        "train_neg_sample_args": dict(model.settings["train_neg_sample_args"]) if model.negatives_per_row else None,
        "learning_rate": spec.learning_rate,
        "weight_decay": spec.weight_decay,
        "train_batch_size": spec.batch_size,
        "epochs": spec.epochs,
        "metrics": evaluated,
        **({} if labelled else {"topk": sorted({m.k for m in metrics})}),
        "valid_metric": select_on,
        "metric_decimal_place": 12,
        "eval_batch_size": 1 << 17,
        "eval_args": {
            "split": {"RS": [0.8, 0.1, 0.1]},
            "order": "TO" if model.entry.family == "sequential" else "RO",
            "group_by": "none" if labelled else "user",
            "mode": "labeled" if labelled else "full",
        },
        "show_progress": False,
        "save_dataset": False,
        "save_dataloaders": False,
    }


def _write_dataset(files: FileStore, model: BuiltModel, spec: TrialSpec, data: PreparedData) -> None:
    """Writes the parts: train (what the model learnt from), known (the rest of what is masked), test."""
    uid, iid = model.dataset.uid_field, model.dataset.iid_field
    if spec.protocol == "labelled":
        # What models keep of histories is of positives, here as in training; the other rows are read by none.
        others = Rows.chained(data.train.where(~data.train.positive), data.valid)
        parts = dict(zip(_PARTS, (data.train.positives(), others, data.test), strict=True))
        header = [f"{uid}:token", f"{iid}:token", f"{model.dataset.label_field}:float"]
        for part, rows in parts.items():
            _write_rows(files, part, header, [rows.user + PADDING, rows.item + PADDING, rows.positive.astype(np.int8)])
    elif model.entry.family == "sequential":
        _write_sequences(files, model, data)
    else:
        learnt, known, test = data.train.positives(), _known(data), data.test.positives()
        columns = [f"{uid}:token", f"{iid}:token"]
        with_rating = model.entry.family == "general"
        header = [*columns, f"{model.settings['RATING_FIELD']}:float"] if with_rating else columns
        for part, rows in zip(_PARTS, (learnt, known, test), strict=True):
            values = [rows.user + PADDING, rows.item + PADDING, *([rows.rating] if with_rating else [])]
            _write_rows(files, part, header, values)
    for kind, id_field, fields, count in (
        ("user", uid, model.dataset.user_fields, data.n_users),
        ("item", iid, model.dataset.item_fields, data.n_items),
    ):
        if fields:
            _write_features(files, kind, id_field, fields, count)


def _known(data: PreparedData) -> Rows:
    """Returns what is masked beside the positives that were learnt from: other train rows, those of the full split, validation."""
    both = Rows.chained(data.train_full, data.valid)
    learnt = data.train.positives()
    seen = np.unique(learnt.user.astype(np.int64) * data.n_items + learnt.item)
    return both.where(~np.isin(both.user.astype(np.int64) * data.n_items + both.item, seen))


def _write_sequences(files: FileStore, model: BuiltModel, data: PreparedData) -> None:
    """Writes one row a user and part: the history and what came after it; and what is masked and liked, by user."""
    longest = int(model.settings["MAX_ITEM_LIST_LENGTH"])
    learnt = SequenceTable.of([data.train], longest)
    whole = SequenceTable.of([data.train, data.valid], longest)
    test = data.test.positives()
    evaluated, first = np.unique(test.user, return_index=True)
    iid = model.dataset.iid_field
    header = [f"{model.dataset.uid_field}:token", f"{iid}:token", f"{iid}{model.settings['LIST_SUFFIX']}:token_seq"]

    def write(part: str, users: np.ndarray, items: np.ndarray, sequences: torch.Tensor, lengths: torch.Tensor) -> None:
        lists = [" ".join(map(str, row[:n].tolist())) for row, n in zip(sequences, lengths, strict=True)]
        _write_rows(files, part, header, [users + PADDING, items + PADDING, np.asarray(lists, dtype=object)])

    last = np.flatnonzero(np.r_[learnt.users[1:] != learnt.users[:-1], True])
    last = last[learnt.before[last] > 0]
    before = learnt.sequences(last, learnt.before[last])
    write("train", learnt.users[last], learnt.items[last], *before)
    write("known", learnt.users[last], learnt.items[last], *before)
    write("test", evaluated, test.item[first], *whole.whole(evaluated))
    known = [np.concatenate([part.user for part in (data.train_full, data.valid)]), np.concatenate([data.train_full.item, data.valid.item])]
    held: dict[str, dict[str, list[int]]] = {
        str(user + PADDING): {"known": [], "positives": [], "history": []} for user in range(data.n_users)
    }
    for name, users, items in (("known", *known), ("positives", test.user, test.item), ("history", whole.users, whole.items)):
        for user, item in zip((users + PADDING).tolist(), (items + PADDING).tolist(), strict=True):
            held[str(user)][name].append(item)
    _write_json(files, "held_out.json", held)


def _write_rows(files: FileStore, part: str, header: Sequence[str], columns: Sequence[np.ndarray]) -> None:
    lines = ["\t".join(header), *("\t".join(map(str, row)) for row in zip(*(column.tolist() for column in columns), strict=True))]
    files.write_bytes(f"dataset/{NAME}/{NAME}.{part}.inter", ("\n".join(lines) + "\n").encode())


def _write_features(files: FileStore, kind: str, id_field: str, fields: Sequence[FeatureField], count: int) -> None:
    header = [f"{id_field}:token", *(f"{field.name}:token{'_seq' if field.is_sequence else ''}" for field in fields)]
    columns: list[list[str]] = [[str(k + PADDING) for k in range(count)]]
    for field in fields:
        rows = field.values[PADDING:].tolist()
        columns.append([" ".join(str(v) for v in row if v) or "0" for row in rows] if field.is_sequence else [str(v) for v in rows])
    lines = ["\t".join(header), *("\t".join(row) for row in zip(*columns, strict=True))]
    files.write_bytes(f"dataset/{NAME}/{NAME}.{kind}", ("\n".join(lines) + "\n").encode())


def _other(model: BuiltModel) -> dict[str, torch.Tensor]:
    """Returns attributes that RecBole would draw or count otherwise: histories that were cut, neighbours, Pop's counts."""
    kept = {}
    lengths = model.module.__dict__.get("history_item_len")
    if isinstance(lengths, torch.Tensor) and int(lengths.sum()) < model.dataset.inter_num:
        kept = {name: model.module.__dict__[name].cpu() for name in _HISTORY if isinstance(model.module.__dict__.get(name), torch.Tensor)}
    kept |= {name: value.cpu() for name in _NEIGHBOURS if isinstance(value := model.module.__dict__.get(name), torch.Tensor)}
    if model.entry.name == "Pop":
        kept |= {name: model.module.__dict__[name].cpu() for name in ("item_cnt", "max_cnt")}
    return kept


def _readme(spec: TrialSpec, tested: dict[str, float], example: list[str]) -> str:
    numbers = "\n".join(f"| {name} | {value:.6f} |" for name, value in tested.items())
    user = f"'{example[0]}'" if example and example[0].isalnum() else "USER"
    transfer = f"arm {spec.arm}, alpha {spec.alpha:g}" if spec.layer else f"arm {spec.arm}"
    return (
        f"# {spec.model}, trained by llmkt_ray ({transfer}, trial {spec.key})\n\n"
        f"RecBole {RECBOLE} and torch load it; llmkt_ray is not needed:\n\n"
        f"    python recommend.py evaluate\n    python recommend.py users {user} --k 10\n\n"
        f"| test metric | value in the study |\n|---|--:|\n{numbers}\n\n"
        "`config.yaml`: RecBole's settings. `model.pth`: weights (a state dict; `torch.load(..., weights_only=True)`). `dataset/`: the "
        "split, with RecBole's internal ids; part `known` holds what is masked in the test beside the train part. `tokens.json`: raw ids "
        "in the order of the internal ones, from 1. `export.json`: the trial.\n\n"
        "The dataset's terms of use hold for `dataset/` and `tokens.json` too.\n"
    )


def _write_json(files: FileStore, name: str, value: Any) -> None:
    files.write_bytes(name, json.dumps(value, ensure_ascii=False).encode())
