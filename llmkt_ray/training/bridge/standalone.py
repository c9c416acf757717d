"""A model trained by llmkt_ray, loaded, evaluated and asked with RecBole alone: nothing of llmkt_ray is needed or imported.

    python recommend.py evaluate              metrics on the test part, by RecBole's Trainer and Evaluator
    python recommend.py users TOKEN...        the best items of users
    python recommend.py users TOKEN... --k 5

This file lies beside config.yaml, model.pth, tokens.json and dataset/. It needs recbole 1.2.0 and torch. The dataset's
files hold RecBole's internal ids, so that the weights' rows are theirs; tokens.json says what each id stands for.
"""

import argparse
import importlib
import importlib.util
import json
import logging
import os
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
import yaml

HERE = Path(__file__).resolve().parent
NAME = "split"
"""The dataset's name for RecBole: "ml-100k" would make it read a file of its own."""


def compat() -> None:
    """Gives RecBole 1.2.0 the names that current numpy and scipy took away; on the versions of its time this does nothing."""
    aliases: dict[str, Any] = {
        "float": np.float64, "int": np.int_, "bool": np.bool_, "object": np.object_, "str": np.str_, "complex": np.complex128,
        "float_": np.float64, "complex_": np.complex128, "unicode_": np.str_, "bool8": np.bool_,
    }  # fmt: skip
    for name, value in aliases.items():
        if name not in np.__dict__:
            setattr(np, name, value)
    if "kmeans_pytorch" not in sys.modules and importlib.util.find_spec("kmeans_pytorch") is None:
        stub = types.ModuleType("kmeans_pytorch")
        stub.kmeans = None  # type: ignore[attr-defined]
        sys.modules["kmeans_pytorch"] = stub  # all general models import it, LDiffRec alone calls it
    if not hasattr(sp.dok_matrix, "_update"):
        sp.dok_matrix._update = lambda self, data: self._dict.update(data)


def load(folder: Path = HERE, device: str = "cpu") -> tuple[Any, Any, Any]:
    """Returns (config, trainer, test data): RecBole's objects, `trainer.model` with the exported weights.

    `trainer.known` is what was known of each user before the test: RecBole's user id to item ids.

    Args:
        folder: the export.
        device: "cpu" or "cuda".
    """
    compat()
    from recbole.config import Config
    from recbole.data import data_preparation
    from recbole.utils import get_model, get_trainer, init_seed

    about = json.loads((folder / "export.json").read_text(encoding="utf-8"))
    settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    arguments, visible = sys.argv, os.environ.get("CUDA_VISIBLE_DEVICES")
    sys.argv = arguments[:1]  # Config reads the command line
    try:
        model: Any = _own_class(about["class_path"]) if about["class_path"] else settings["model"]
        values = {"data_path": str(folder / "dataset"), "use_gpu": device == "cuda"}
        config = Config(model=model, dataset=NAME, config_file_list=[str(folder / "config.yaml")], config_dict=values)
    finally:
        sys.argv = arguments
        os.environ.pop("CUDA_VISIBLE_DEVICES", None) if visible is None else os.environ.update(CUDA_VISIBLE_DEVICES=visible)
    logging.getLogger().setLevel(logging.ERROR)
    init_seed(config["seed"], config["reproducibility"])
    config["checkpoint_dir"] = str(folder)  # read only: data_preparation looks for stored loaders there, and finds none
    tokens = json.loads((folder / "tokens.json").read_text(encoding="utf-8"))
    dataset = _dataset_class(config)(config, tokens)
    train, known, test = data_preparation(config, dataset)
    if about["family"] == "sequential":
        test = _with_history(test, folder)
    built = (model if about["class_path"] else get_model(config["model"]))(config, train._dataset).to(config["device"])
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, built)
    saved = torch.load(folder / "model.pth", map_location=config["device"], weights_only=True)
    built.load_state_dict(saved["state_dict"])
    built.load_other_parameter(saved["other_parameter"])
    built.eval()
    trainer.known = _known(folder, about, (train, known))
    return config, trainer, test


def evaluate(folder: Path = HERE, device: str = "cpu") -> dict[str, float]:
    """Returns RecBole's metrics on the test part, by RecBole's names ("ndcg@10")."""
    _, trainer, test = load(folder, device)
    found = trainer.evaluate(test, load_best_model=True, model_file=str(folder / "model.pth"), show_progress=False)
    return {name: float(value) for name, value in found.items()}


def recommend(users: list[str], k: int = 10, folder: Path = HERE, device: str = "cpu") -> dict[str, list[tuple[str, float]]]:
    """Returns for each user the `k` best items that are new to them, with scores, best first.

    Args:
        users: raw ids.
        k: items a user.
        folder: the export.
        device: "cpu" or "cuda".

    Raises:
        ValueError: a user is unknown.
    """
    config, trainer, test = load(folder, device)
    dataset = test._dataset
    ids = dataset.field2token_id[dataset.uid_field]
    unknown = [user for user in users if user not in ids or user == "[PAD]"]
    if unknown:
        raise ValueError(f"unknown users: {', '.join(map(repr, unknown))}; they are listed in {folder / 'tokens.json'}")
    trainer.tot_item_num = dataset.item_num
    trainer.item_tensor = dataset.get_item_feature().to(trainer.device)
    found = {}
    for user in dict.fromkeys(users):
        batch, known = _asked(config, dataset, ids[user]), trainer.known.get(ids[user], [])
        seen = (torch.zeros(len(known), dtype=torch.int64), torch.tensor(known, dtype=torch.int64))
        with torch.no_grad():
            _, scores, _, _ = trainer._full_sort_batch_eval((batch, seen, None, None))
        best = torch.topk(scores[0], min(k, dataset.item_num - 1))
        names = dataset.field2id_token[dataset.iid_field][best.indices.cpu().numpy()]
        found[user] = [(str(name), float(score)) for name, score in zip(names, best.values, strict=True) if np.isfinite(float(score))]
    return found


def _asked(config: Any, dataset: Any, user: int) -> Any:
    """Returns a batch of one user, with their features, or their history for a sequential model."""
    from recbole.data.interaction import Interaction
    from recbole.utils import ModelType

    asked = {dataset.uid_field: torch.tensor([user])}
    if config["MODEL_TYPE"] != ModelType.SEQUENTIAL:
        return dataset.join(Interaction(asked))
    longest = config["MAX_ITEM_LIST_LENGTH"]
    recent = dataset.history.get(str(user), [])[-longest:]
    items = torch.zeros(1, longest, dtype=torch.int64)
    items[0, : len(recent)] = torch.tensor(recent, dtype=torch.int64)
    field = dataset.iid_field + config["LIST_SUFFIX"]
    return Interaction(asked | {field: items, config["ITEM_LIST_LENGTH_FIELD"]: torch.tensor([max(len(recent), 1)])})


def _known(folder: Path, about: dict[str, Any], parts: tuple[Any, ...]) -> dict[int, list[int]]:
    """Returns RecBole's user id to the items that are not recommended to them: everything before the test."""
    if about["family"] == "sequential":
        held = json.loads((folder / "held_out.json").read_text(encoding="utf-8"))
        return {int(user): of_user["known"] for user, of_user in held.items()}
    found: dict[int, list[int]] = {}
    for part in parts:
        rows, data = part._dataset.inter_feat, part._dataset
        for user, item in zip(rows[data.uid_field].tolist(), rows[data.iid_field].tolist(), strict=True):
            found.setdefault(user, []).append(item)
    return found


def _dataset_class(config: Any) -> Any:
    """Returns RecBole's dataset for the model's family, with ids taken from the files instead of drawn up anew."""
    import recbole.data.dataset as datasets
    from recbole.utils import FeatureType, ModelType

    base: Any = datasets.SequentialDataset if config["MODEL_TYPE"] == ModelType.SEQUENTIAL else datasets.Dataset

    class FrozenDataset(base):  # type: ignore[misc]
        def __init__(self, config: Any, tokens: dict[str, list[str]]) -> None:
            self._tokens = {field: np.asarray(["[PAD]", *names]) for field, names in tokens.items()}
            super().__init__(config)

        def _remap(self, remap_list: list[tuple[Any, str, Any]]) -> None:
            for feat, field, kind in remap_list:
                names = self._tokens[field.removesuffix(self.config["LIST_SUFFIX"])]
                self.field2id_token[field] = names
                self.field2token_id[field] = {name: place for place, name in enumerate(names.tolist())}
                if kind == FeatureType.TOKEN:
                    feat[field] = pd.to_numeric(feat[field]).fillna(0).astype(np.int64)
                else:
                    feat[field] = pd.Series([np.asarray(ids, dtype=np.int64) for ids in feat[field]], dtype=object)

        def _fill_nan(self) -> None:
            """RecBole's own relies on in-place filling, which pandas 3 ignores in silence."""
            for name in self.feat_name_list:
                feat = getattr(self, name)
                for field in feat:
                    kind = self.field2type[field]
                    if kind == FeatureType.TOKEN:
                        feat[field] = feat[field].fillna(0).astype(np.int64)
                    elif kind == FeatureType.FLOAT:
                        feat[field] = feat[field].fillna(feat[field].mean())
                    else:
                        filled = [np.array([], dtype=np.int64) if isinstance(ids, float) else ids for ids in feat[field]]
                        feat[field] = pd.Series(filled, dtype=object)

        def _benchmark_presets(self) -> None:
            """RecBole's own counts a history's items by `agg(len)`, which in pandas 3 counts the rows."""
            self.item_id_list_field = self.iid_field + self.config["LIST_SUFFIX"]
            self.set_field_property(self.item_list_length_field, FeatureType.TOKEN, "interaction", 1)
            self.field2seqlen[self.item_id_list_field] = self.config["MAX_ITEM_LIST_LENGTH"]  # CORE sizes a table by it
            self.inter_feat[self.item_list_length_field] = [len(ids) for ids in self.inter_feat[self.item_id_list_field]]

    return FrozenDataset


def _with_history(test: Any, folder: Path) -> Any:
    """Masks what a user knows, and counts all their positives: RecBole does both for other models, but not for sequential ones."""
    held = json.loads((folder / "held_out.json").read_text(encoding="utf-8"))
    test._dataset.history = {user: of_user["history"] for user, of_user in held.items()}
    collate = test.collate_fn

    def masked(index: Any) -> Any:
        batch, _, _, _ = collate(index)
        users = batch[test.uid_field].tolist()
        known = [(row, item) for row, user in enumerate(users) for item in held[str(user)]["known"]]
        liked = [(row, item) for row, user in enumerate(users) for item in held[str(user)]["positives"]]
        columns = [torch.tensor([pair[side] for pair in pairs], dtype=torch.int64) for pairs in (known, liked) for side in (0, 1)]
        return batch, (columns[0], columns[1]), columns[2], columns[3]

    test.collate_fn = masked
    return test


def _own_class(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("evaluate", "users"))
    parser.add_argument("users", nargs="*")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    given = parser.parse_args()
    if given.what == "evaluate":
        print(json.dumps(evaluate(device=given.device)))
    else:
        print(json.dumps(recommend(given.users, given.k, device=given.device), ensure_ascii=False, indent=1))


if __name__ == "__main__":
    main()
