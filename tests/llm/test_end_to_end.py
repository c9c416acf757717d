"""ml-100k from the prompts of a real (tiny) Llama to trial rows and a report: every stage, nothing replaced."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from llmkt_ray.api import Study
from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.profiles.table import Profiles
from llmkt_ray.results.card import read_card
from tests.llm.conftest import ENGINE, engines_left

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("cluster")]

STUDY = """
name: tiny-llama
seed: 5
datasets:
  - name: ml-100k
    positive: {{rating_at_least: 4}}
    filters: {{user_min: 250}}
profiles:
  - {{llm: vllm-sync, name: Llama, model: {model}, prompt_budget: 600, max_tokens: 24, temperature: 1.0, attempts: 3, engine: {engine}}}
embedding: {{encoder: tfidf_svd, dims: 20}}
reduction: {{method: pca}}
models:
  - {{name: BPR, epochs: 4, batch_size: 2048, hyperparameters: {{embedding_size: 16}}}}
transfer: {{alphas: [0.5]}}
controls: [baseline, alpha0, shuffled]
seeds: 1
evaluation: {{references: [Pop]}}
storage: {storage}
"""


def test_profiles_to_trial_rows(llama: Path, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(STUDY.format(model=llama, engine=json.dumps(ENGINE), storage=tmp_path / "results"))
    study = Study.from_yaml(file)
    summary = study.run(console=Console(file=io.StringIO()))
    assert (summary.done, summary.failed) == (5, 0)
    assert engines_left() == set()

    store = ArtifactStore(tmp_path / "results" / "artifacts")
    [key] = {name.split("/")[1] for name in store.files.list("profiles", recursive=True)}
    profiles = Profiles.load(store, key)
    users = profiles.table.column("user_id").to_pylist()
    assert len(users) == len(set(users)) > 50
    assert profiles.is_llm
    assert profiles.coverage >= 0.9
    assert profiles.certificate.status == "verified"
    assert profiles.notes["prompt_tokens"] > 300 * len(users)

    rows = study.trials().set_index("arm")
    assert set(rows.index) == {"treated", "baseline", "alpha0", "shuffled", "reference"}
    [targets] = {name.split("/")[1] for name in store.files.list("targets", recursive=True)}
    assert set(rows.loc[["treated", "shuffled"], "targets_key"]) == {targets}
    assert rows.loc["treated", "llm"] == "Llama"
    assert read_card(summary.folder) is not None
    assert Path(str(study.status().report)).exists()
    assert study.run(console=Console(file=io.StringIO())).ran == 0
