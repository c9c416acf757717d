"""A smoke run is seconds on ml-100k, and says every replacement that it makes."""

import pytest

from llmkt_ray.study import StudyConfig
from llmkt_ray.study_file import parse_study
from llmkt_ray.sweep.check import check_study, not_at_hand
from llmkt_ray.sweep.run import store_of
from llmkt_ray.sweep.smoke import smoke_study

FAR = """
name: far
datasets:
  - {name: ml-1m, positive: {rating_at_least: 3}, split: {kind: random, repetitions: 5}}
  - {name: amazon-cds}
profiles:
  - {llm: openai, model: gpt-4}
  - {llm: vllm, model: some/Llama}
embedding:
  - {encoder: text-embedding-ada-002, via: openai}
models: [BPR]
transfer: {alphas: [0.5], schedule: [{switch: 0.2}, {switch: 0.8}, {kind: joint}]}
training: {epochs: 10}
seeds: 9
resources: {trial: {cpus: 4, gpus: 0.25}, profiles: {gpus: 1}}
"""


@pytest.mark.parametrize("name", ["a" * 74, "a" * 75, "a" * 80, "a" * 74 + "-smoke"])
def test_a_smoke_run_of_a_long_name_is_not_the_study_itself(name):
    """It would claim the study's own folder."""
    study = parse_study(FAR.replace("name: far", f"name: {name}"))
    smoke, _ = smoke_study(study)
    assert smoke.name != study.name
    assert smoke.name.endswith("-smoke")
    assert StudyConfig.model_validate(smoke.model_dump()).name == smoke.name, "a name that no study may have"
    other, _ = smoke_study(parse_study(FAR.replace("name: far", f"name: {name[:-1]}b")))
    assert other.name != smoke.name


def test_what_is_not_at_hand_is_replaced_and_said(tmp_path):
    study, said = smoke_study(parse_study(FAR))
    assert [d.name for d in study.datasets] == ["ml-100k"]
    assert study.datasets[0].positive.rating_at_least == 3
    assert study.datasets[0].split.repetitions == 1
    assert [p.llm for p in study.profiles] == ["template"]
    assert [e.via for e in study.embedding] == ["local"]
    assert [s.kind for s in study.transfer.schedule] == ["two_phase", "joint"]
    assert (study.seeds, study.training.epochs, study.name) == (1, 2, "far-smoke")
    assert study.resources.trial.gpus == study.resources.profiles.gpus == 0
    assert said == (
        "dataset 'ml-1m', 'amazon-cds' replaced by 'ml-100k'",
        "profiles 'openai:gpt-4', 'vllm:some/Llama' replaced by 'template': a smoke run asks no LLM",
        "encoder 'text-embedding-ada-002' replaced by 'sentence-transformers/all-MiniLM-L6-v2': not at hand on this machine",
        "every switch is 0.5: two epochs have no other",
        "trials and profile workers run on one CPU each",
    )


def test_what_outlasts_two_epochs_or_does_not_fit_ml_100k_is_replaced_too(tmp_path):
    text = (
        "name: own\ndatasets: [{name: ml-100k, split: {kind: time}}]\nembedding: {encoder: tfidf_svd}\nreduction: {method: pca, dims: 8}\n"
        "transfer: {projection: student}\ncontrols: [baseline, alpha0, shuffled]\n"
        "models: [NCL, RaCT, {name: S3Rec, hyperparameters: {pretrain_epochs: 2}}]\n"
    )
    fitting = text.replace("NCL", "{name: NCL, hyperparameters: {num_clusters: 9}}")
    assert smoke_study(parse_study(fitting))[1] == ("model 'RaCT' has pretrain_epochs 2",)
    text = text.replace("{pretrain_epochs: 2}", "{item_attribute: creator, pretrain_epochs: 2, n_layers: 1}")
    study, said = smoke_study(parse_study(text).model_copy(update={"storage": str(tmp_path)}))
    assert said == (
        "model 'NCL' has num_clusters 100", "model 'RaCT' has pretrain_epochs 2", "model 'S3Rec' has item_attribute 'genres'",
    )  # fmt: skip
    assert study.models[2].hyperparameters == {"item_attribute": "genres", "pretrain_epochs": 2, "n_layers": 1}
    assert [model.epochs for model in study.models] == [2, 2, 2]
    check_study(study, store_of(study))


def test_a_study_that_needs_nothing_replaced_is_only_cut_down():
    study, said = smoke_study(parse_study("name: near\ndatasets: [{name: ml-100k, split: {kind: time}}]\nmodels: [BPR]\n"))
    assert said == ()
    assert study.datasets[0].split.kind == "time"


def test_a_look_at_a_study_for_another_machine_finds_it_sound_and_says_what_is_lacking(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    text = "name: far\ndatasets: [ml-1m]\nmodels: [BPR]\nresources: {trial: {gpus: 0.5}}\n"
    study = parse_study(text).model_copy(update={"storage": str(tmp_path)})
    check_study(study, store_of(study), needs_all=False)
    lacks = not_at_hand(study)
    assert len(lacks) == 2
    assert "get it from https://grouplens.org" in lacks[0]
    assert "resources.trial asks for 0.5 GPU" in lacks[1]
    assert not_at_hand(study, local=False) == lacks[:1], "the GPUs of a cluster are not this machine's"
