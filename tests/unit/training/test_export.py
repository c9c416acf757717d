"""An exported trial is RecBole's alone: loaded, tested and asked in one process in which llmkt_ray cannot be imported."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import yaml

from llmkt_ray.training.bridge.export import write_export
from llmkt_ray.training.layers import probe_split
from llmkt_ray.training.spec import TrialArtifacts, TrialSpec
from llmkt_ray.training.trial import run_trial
from tests.unit.training.conftest import HYPERPARAMETERS, make_data

RANKING = ("NDCG@10", "Recall@10", "Hit@10", "MRR@10", "NDCG@5", "MAP@5")
GENERAL = {**HYPERPARAMETERS, "NGCF": {"embedding_size": 16, "hidden_size_list": [16]}, "ENMF": {}, "RecVAE": {}, "EASE": {}}
GENERAL["NCL"] = {"embedding_size": 16, "num_clusters": 6, "warm_up_step": 1}
GENERAL["RaCT"] = {"mlp_hidden_size": [32], "latent_dimension": 32, "metrics_k": 10, "critic_layers": [8], "pretrain_epochs": 20}
GENERAL["NNCF"] = {"ui_embedding_size": 8, "neigh_embedding_size": 8, "num_conv_kernel": 4}  # its neighbours are drawn
GENERAL["SimpleX"] = {**HYPERPARAMETERS["SimpleX"], "history_len": 3}  # a random part of each history: weights alone do not say which
CONTEXT, SEQUENTIAL = ("DeepFM", "AutoInt"), ("SASRec", "FPMC", "BERT4Rec", "CORE", "TransRec")
HIDDEN = {"user_embedding_size": 16, "item_embedding_size": 16, "user_hidden_size_list": [16], "item_hidden_size_list": [16]}
S3REC = {"hidden_size": 16, "inner_size": 16, "n_layers": 1, "pretrain_epochs": 1}
ATTRIBUTES = {"S3Rec": S3REC, "S3Rec-year": S3REC | {"item_attribute": "year"}}
ALONE = """
import importlib.util, json, sys
sys.modules["llmkt_ray"] = None
found = {}
for folder in sys.argv[1:]:
    spec = importlib.util.spec_from_file_location("recommend", folder + "/recommend.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    best = module.recommend(["u003", "u007"], 5) if "labelled" not in folder else {}
    found[folder] = {"metrics": module.evaluate(), "best": best}
assert sys.modules["llmkt_ray"] is None and not [m for m in sys.modules if m.startswith("llmkt_ray.")]
print(json.dumps(found))
"""


def spec_of(model, data, **more):
    given = {
        "study_seed": 5, "dataset": data.name, "split_key": data.key, "model": model, "hyperparameters": GENERAL.get(model, {}),
        "epochs": 2, "batch_size": 64, "learning_rate": 0.01, "arm": "baseline", "metrics": RANKING, "select_on": "NDCG@10",
        "seed_index": 0,
    }  # fmt: skip
    return TrialSpec(**(given | more))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Trains one trial of each kind, exports it, and has RecBole evaluate all of them; folder name to (ours, RecBole's, lists)."""
    root, ours, lists = tmp_path_factory.mktemp("exports"), {}, {}
    data = make_data()
    thinned = np.ones(len(data.train_full), dtype=bool)
    thinned[::4] = False  # what is masked is more than what was learnt from
    general = replace(data, train=data.train_full.where(thinned))
    ordered = replace(probe_split(), notes={"split": {"kind": "leave_one_out"}})
    rated = replace(ordered, test=replace(ordered.test, positive=np.arange(len(ordered.test)) % 2 == 0))
    rated = replace(rated, valid=replace(rated.valid, positive=np.arange(len(rated.valid)) % 3 > 0))
    genres = [[f"g{i % 7}", f"g{i % 3}"][: i % 3] for i in range(data.n_items)]  # some items have none
    items = pa.table({"item_id": data.item_tokens.tolist(), "genres": genres, "year": [str(1990 + i % 9) for i in range(data.n_items)]})
    described = replace(data, items=items, notes={"split": {"kind": "time"}})
    jobs = {name: (spec_of(name, general, arm="reference" if name == "EASE" else "baseline"), general) for name in GENERAL}
    jobs |= {name: (spec_of(name, ordered), ordered) for name in (*CONTEXT, *SEQUENTIAL)}
    jobs |= {name: (spec_of("S3Rec", described, hyperparameters=given, epochs=4), described) for name, given in ATTRIBUTES.items()}
    labels = {"protocol": "labelled", "metrics": ("AUC", "LogLoss"), "select_on": "AUC"}
    jobs["labelled"] = (spec_of("DeepFM", rated, **labels), rated)
    # The metrics that `labelled` has by default, of a model that keeps histories of positives.
    dmf = {**labels, "metrics": ("AUC", "LogLoss", "GAUC"), "select_on": "GAUC"}
    jobs["labelled-DMF"] = (spec_of("DMF", general, **dmf, hyperparameters=HIDDEN), general)
    for name, (spec, split) in jobs.items():
        result = run_trial(spec, TrialArtifacts(split), on_tested=lambda m, t, s=spec, d=split, n=name: write_export(root / n, m, s, d, t))
        ours[name], lists[name] = dict(result.test), (result, split)
    done = subprocess.run([sys.executable, "-c", ALONE, *(str(root / n) for n in jobs)], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return root, {n: (ours[n], found[str(root / n)]["metrics"], found[str(root / n)]["best"], *lists[n]) for n in jobs}


@pytest.mark.parametrize("name", [*GENERAL, *CONTEXT, *SEQUENTIAL, *ATTRIBUTES, "labelled", "labelled-DMF"])
def test_recbole_gives_the_same_metrics(exported, name):
    """RecBole takes no GAUC beside AUC and LogLoss: of three, these two are compared."""
    ours, theirs, *_ = exported[1][name]
    known = {k: v for k, v in ours.items() if k != "GAUC"}
    assert {k.lower() for k in known} <= set(theirs)
    for metric, value in known.items():
        assert theirs[metric.lower()] == pytest.approx(value, abs=1e-6), metric


@pytest.mark.parametrize("name", ["NCL", "RaCT", *ATTRIBUTES])
def test_what_pre_training_and_clusters_gave_is_in_the_file(exported, name):
    """They rank above chance, so that equal metrics are no equality of zeros, and RecBole is told what it would look for otherwise."""
    root, found = exported
    assert found[name][0]["NDCG@10"] > 0.1
    config = yaml.safe_load((root / name / "config.yaml").read_text())
    assert config.get("item_attribute") == {"S3Rec": "genres", "S3Rec-year": "year"}.get(name)


@pytest.mark.parametrize("name", [*GENERAL, *CONTEXT, *SEQUENTIAL, *ATTRIBUTES])
def test_it_recommends_what_the_trial_recommended(exported, name):
    _, _, best, result, data = exported[1][name]
    user = int(np.flatnonzero(data.user_tokens == "u003")[0])
    row = result.recommended[np.flatnonzero(result.users["user"] == user)[0]]
    assert [item for item, _ in best["u003"]] == [str(token) for token in data.item_tokens[row[:5]]]


@pytest.mark.parametrize("name", [*GENERAL, *CONTEXT, *SEQUENTIAL, *ATTRIBUTES])
def test_a_user_without_a_test_row_is_served_too(exported, name):
    _, _, best, _, data = exported[1][name]
    user = int(np.flatnonzero(data.user_tokens == "u007")[0])
    seen = {str(data.item_tokens[i]) for rows in (data.train_full, data.valid) for i in rows.item[rows.user == user]}
    items = [item for item, _ in best["u007"]]
    assert len(set(items)) == 5
    assert not seen & set(items)
    scores = [score for _, score in best["u007"]]
    assert scores == sorted(scores, reverse=True)


def test_the_weights_are_no_pickle_and_the_config_names_no_path(exported):
    import torch

    folder = exported[0] / "MultiVAE"
    saved = torch.load(folder / "model.pth", weights_only=True)
    assert all(isinstance(v, torch.Tensor) for v in saved["state_dict"].values())
    assert str(folder) not in (folder / "config.yaml").read_text()
    assert "| NDCG@10 | " in (folder / "README.md").read_text()


def test_raw_ids_of_any_kind_survive(tmp_path):
    """Tabs, quotes, line ends, "NA": the files hold internal ids, so no raw id can break them."""
    data = make_data()
    odd = np.asarray(['a\tb"c\n', "NA", "", "1e5", "[PAD]x", *data.user_tokens[5:]])
    data = replace(data, user_tokens=odd)
    spec = spec_of("BPR", data)
    result = run_trial(spec, TrialArtifacts(data), on_tested=lambda m, t: write_export(tmp_path / "odd", m, spec, data, t))
    from llmkt_ray.report.winner import evaluate_alone

    assert evaluate_alone(tmp_path / "odd") == pytest.approx(dict(result.test), abs=1e-6)
    assert json.loads((tmp_path / "odd/tokens.json").read_text())["user_id"][:2] == odd[:2].tolist()
