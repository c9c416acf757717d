"""Three real studies, each with a planted cause of failure: trained from profiles to rows, and diagnosed from what they left."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmkt_ray.api import Study
from llmkt_ray.report.diagnosis import diagnose
from llmkt_ray.report.findings import find
from llmkt_ray.report.load import load
from llmkt_ray.results.folder import study_folder
from llmkt_ray.study import StudyConfig
from tests.tiny import TASTES, USERS, tiny_study

GENRES = ["drama", "comedy", "horror", "western"]


def _diagnosed(root, texts, epochs, **transfer):
    """Runs a study of BPR with these profiles, arms alpha0, shuffled and treated, three seeds, and returns signature to diagnosis."""
    profiles = root / "profiles.parquet"
    pq.write_table(pa.table({"user_id": [f"u{user}" for user in range(USERS)], "profile": texts}), profiles)
    model = {"name": "BPR", "epochs": epochs, "batch_size": 128, "learning_rate": 0.01, "hyperparameters": {"embedding_size": 8}}
    changes = {
        "profiles": [{"llm": "file", "name": "planted", "path": str(profiles)}],
        "models": [model],
        "transfer": transfer,
        "controls": ["alpha0", "shuffled"],
        "seeds": 3,
        "evaluation": {"references": []},
    }
    study = StudyConfig.model_validate({**tiny_study(root).model_dump(), **changes})
    Study(study).run(executor="loop")
    results = load(Path(study_folder(study)))
    return {one.signature: one for one in diagnose(results, find(results))}


def _of_the_wrong_user():
    """Texts that say what somebody likes, but not the user whom they are joined to."""
    tastes = np.random.default_rng(0).permutation([user % TASTES for user in range(USERS)])
    return [
        f"This user likes {GENRES[taste]} films above all, and has seen many of them more than once; now and then there is a "
        f"{GENRES[(taste + 1) % TASTES]}, number {place}."
        for place, taste in enumerate(tastes)
    ]


def test_texts_that_say_nothing_of_the_user_are_no_gain_from_profile_quality(tmp_path):
    empty = "This user enjoys good films of many kinds, looks for a story well told, and gladly sees again what was good before"
    found = _diagnosed(tmp_path, [f"{empty}; number {user}." for user in range(USERS)], 30, alphas=[0.5])["no gain"]
    assert found.cause == "profile quality: profiles name 0% of what their users watch most"
    assert "genre recall of the profiles 0.00" in found.evidence
    assert found.remedy.startswith("another prompt or LLM")


def test_a_transfer_that_runs_the_model_is_a_degraded_baseline(tmp_path):
    """Alpha .98 for nine tenths of the epochs, towards the wrong users' profiles: the pretext task is learnt, ranking is not."""
    found = _diagnosed(tmp_path, _of_the_wrong_user(), 30, alphas=[0.98], claim_alpha=0.98, schedule={"switch": 0.9})
    degraded = found["degraded baseline"]
    assert degraded.cause == "overfitting to the pretext task: the transfer's gradient outweighs the model's"
    assert "end of phase 1 \u2212" in degraded.evidence
    assert "smaller alpha" in degraded.remedy


def test_misaligned_embeddings_are_slow_convergence(tmp_path):
    """A phase 1 towards the wrong users' profiles, then time to recover: as good in the end, but later."""
    found = _diagnosed(tmp_path, _of_the_wrong_user(), 60, alphas=[0.5], schedule={"switch": 0.3})
    assert "degraded baseline" not in found
    slow = found["slow convergence"]
    assert slow.cause.startswith("noisy or misaligned embeddings")
    assert "epochs to 95%" in slow.evidence
