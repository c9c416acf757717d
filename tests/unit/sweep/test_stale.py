"""Rows whose inputs have changed since: they are refused by what they were made from, and nothing that a study made itself is."""

import importlib
import io
import json
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from llmkt_ray.errors import StorageError
from llmkt_ray.results.folder import study_folder
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.study import PositiveRule, StudyConfig
from llmkt_ray.sweep.run import run_study
from llmkt_ray.training import spec as trials
from llmkt_ray.training.bridge.models import class_digest
from llmkt_ray.training.spec import TrialResult
from tests.tiny import USERS, tiny_study


def stub(spec, artifacts, **_):
    """Numbers that depend on the settings, so that tuning and searches have something to choose by."""
    value = round(0.5 + 0.1 * spec.alpha + spec.learning_rate + spec.hyperparameters.get("embedding_size", 0) / 1000, 6)
    epochs = tuple({"epoch": n, "phase": 1 + (n > 2), f"valid_{spec.select_on}": value} for n in range(1, spec.epochs + 1))
    values = dict.fromkeys(spec.metrics, value)
    return TrialResult(spec=spec, status="done", valid=values, test=values, best_epoch=3, epochs=epochs, facts={"device_type": "cpu"})


def failing(spec, artifacts, **_):
    return TrialResult(spec=spec, status="failed", error={"kind": "TrainingError", "message": "no", "traceback": ""})


def run(study, run_trial=stub, **settings):
    return run_study(study, executor="loop", console=Console(file=io.StringIO()), run_trial=run_trial, **settings)


def write_profiles(path, taste: str) -> None:
    words = np.array(["drama", "comedy", "horror", "western", "old", "new", "long", "short", "calm", "loud", "dark", "light"] * 4)
    rng = np.random.default_rng(0)
    texts = [f"{taste} {' '.join(rng.choice(words, 12))} x{user}" for user in range(USERS)]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"user_id": [f"u{user}" for user in range(USERS)], "profile": texts}), path)


def of_file(root, **changes) -> StudyConfig:
    return tiny_study(
        root, **{"profiles": [{"llm": "file", "path": str(root / "profiles.parquet")}], "transfer": {"alphas": [0.5]}, **changes}
    )


def test_a_profile_file_replaced_in_place_is_refused_and_its_return_goes_on(tmp_path):
    """The study's key knows the path, the trials' keys the content: without a refusal both kinds of rows stand in one table."""
    write_profiles(tmp_path / "profiles.parquet", "likes jazz")
    study = of_file(tmp_path)
    first = run(study)
    before = (tmp_path / "profiles.parquet").read_bytes()
    write_profiles(tmp_path / "profiles.parquet", "hates jazz")
    with pytest.raises(StorageError, match=r"2 of 5 trials in .*tiny were not made .*: 2 from other profiles .*another `name`"):
        run(study)
    (tmp_path / "profiles.parquet").write_bytes(before)
    assert (first.ran, run(study).ran) == (5, 0)


def test_rows_that_failed_with_other_profiles_keep_nobody_out(tmp_path):
    write_profiles(tmp_path / "profiles.parquet", "likes jazz")
    study = of_file(tmp_path)
    run(study, failing)
    write_profiles(tmp_path / "profiles.parquet", "hates jazz")
    assert run(study, retry_failed=True).failed == 0


def test_a_dataset_edited_in_place_is_refused(tmp_path):
    study = tiny_study(tmp_path)
    run(study)
    path = tmp_path / "toy" / "interactions.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(0, table.num_rows - 5), path)
    with pytest.raises(StorageError, match=r"6 of 6 trials .*: 6 from other data"):
        run(study)


def test_rows_of_another_version_are_refused(tmp_path, monkeypatch):
    """Of a later program, whose trials have other keys, and of one whose trials have other fields."""
    study = tiny_study(tmp_path)
    run(study)
    with monkeypatch.context() as later:
        later.setattr(trials, "TRIAL_VERSION", trials.TRIAL_VERSION + 1)
        with pytest.raises(StorageError, match=r"6 of 6 trials .*: 6 by another version of llmkt_ray, torch or recbole"):
            run(study)
    folder = tmp_path / "results" / "tiny" / "ledger" / "trials"
    for path in sorted(folder.iterdir())[:2]:
        table = pq.read_table(path)
        fields = {**json.loads(table.column("spec")[0].as_py()), "of_tomorrow": 1}
        at = table.column_names.index("spec")
        pq.write_table(table.set_column(at, "spec", pa.array([json.dumps(fields)])), path)
    with pytest.raises(StorageError, match=r"2 of 6 trials .*: 2 by another version"):
        run(study)


MINE = """
from recbole.model.general_recommender.bpr import BPR

class Mine(BPR):
    {line}
"""


def test_a_class_of_ones_own_is_part_of_its_trials_keys(tmp_path, monkeypatch):
    """Else an edited class finds its old rows, and nothing is run."""
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "mine_of_test_stale.py"

    def write(line: str) -> None:
        path.write_text(MINE.format(line=line))
        importlib.invalidate_caches()
        class_digest.cache_clear()
        sys.modules.pop(path.stem, None)

    model = {"name": "Mine", "class_path": f"{path.stem}:Mine", "epochs": 4, "hyperparameters": {"embedding_size": 8}}
    study = tiny_study(tmp_path, models=[model])
    write("margin = 1")
    assert (run(study).ran, run(study).ran) == (6, 0)
    write("margin = 20")
    with pytest.raises(StorageError, match=r"5 of 6 trials .*: 5 by other code of a model's own class"):
        run(study)
    write("margin = 1")
    assert run(study).ran == 0


def test_recboles_own_models_have_the_keys_that_they_had():
    spec = trials.TrialSpec(
        study_seed=1, dataset="d", split_key="s", model="BPR", epochs=4, batch_size=64, learning_rate=0.01, arm="alpha0",
        metrics=("NDCG@10",), select_on="NDCG@10", seed_index=0,
    )  # fmt: skip
    with_digest = spec.model_copy(update={"class_digest": "0" * 64})
    for name in ("key", "phase1_key", "stages_key"):
        assert getattr(spec, name) != getattr(with_digest, name)
    assert "class_digest" not in spec._numbers()


CONTEXT = [{"name": "DeepFM", "epochs": 4, "batch_size": 256, "hyperparameters": {"embedding_size": 8}}]
SEARCH = {"kind": "optuna", "trials": 6, "round_size": 2}
MIXED = [{"switch": 0.5}, {"kind": "joint"}, {"kind": "pretrain"}, {"kind": "reversed", "freeze": {"phase1": ["item_*"]}}]
NEUMF = {"name": "NeuMF", "epochs": 4, "hyperparameters": {"mf_embedding_size": 8, "mlp_embedding_size": 8, "mlp_hidden_size": [8]}}
BPR = {"name": "BPR", "epochs": 4, "hyperparameters": {"embedding_size": 8}}
KINDS = {
    "arms with targets of their own": {
        "controls": ["baseline", "alpha0", "shuffled", "gaussian", "template", "item_mean", "input_init", "input_concat"],
        "profiles": "file",
    },
    "leaked, refitted for each seed": {"controls": ["alpha0", "leaked"], "reduction": [{"method": "pca", "refit": True}], "seeds": 2},
    "schedules, losses and layers": {
        "models": [NEUMF],
        "transfer": {"alphas": [0.5], "schedule": MIXED, "loss": ["mse", "cosine"], "layers": "all"},
    },
    "shares of the data and dims": {
        "reduction": [{"method": "pca"}, {"method": "pca", "dims": 4}], "share": True,
        "transfer": {"alphas": [0.5], "projection": "student"},
    },
    "KAR": {
        "models": CONTEXT, "embedding": {"batch_size": 64}, "labelled": True,
        "controls": ["alpha0", "static_profile", "kar", "kar_treated"],
    },
    "tuning that changes the layer's width": {"tuning": {"trials": 4, "choices": {"embedding_size": [4, 16]}}},
    "a search with rungs": {"search": {**SEARCH, "early_stopping": {"grace_epochs": 1, "factor": 2}}},
    "a search of a model's settings": {
        "search": SEARCH, "seeds": 2,
        "models": [{**BPR, "search": {"ranges": {"learning_rate": [1e-4, 1e-2]}}}],
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_study_made_itself_is_never_refused(tmp_path, kind):
    """Run in two halves and once more: what is compared with the plan is there at the second and third run."""
    changes = dict(KINDS[kind])
    labelled, share = changes.pop("labelled", False), changes.pop("share", False)
    if changes.get("profiles") == "file":
        write_profiles(tmp_path / "profiles.parquet", "likes jazz")
        changes.pop("profiles")
        study = of_file(tmp_path, **changes)
    else:
        study = tiny_study(tmp_path, **changes)
    updates = {"positive": PositiveRule(rating_at_least=4)} if labelled else {}
    updates |= {"train_share": (0.7, 1.0)} if share else {}
    study = study.model_copy(update={"datasets": tuple(dataset.model_copy(update=updates) for dataset in study.datasets)})
    run(study, limit=4)
    assert run(study).ran > 0
    assert run(study).ran == 0
    rows = Ledger(study_folder(study)).trials()
    assert set(rows["status"]) <= {"done", "pruned"}
    if "tuning" in changes:
        assert set(rows["dims"].dropna()) == {16}, "not the width that the study's own settings have"
