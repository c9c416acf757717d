"""What models lack in the study's datasets is told by the check, in the trial's words, with everything else and before anything is made."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmkt_ray.api import Study
from llmkt_ray.data.catalog import load_raw
from llmkt_ray.data.split import prepare, unstored
from llmkt_ray.errors import StudyError, TrainingError
from llmkt_ray.sweep import needs as module
from llmkt_ray.sweep.check import check_study
from llmkt_ray.sweep.pipeline import split_nodes
from llmkt_ray.sweep.plan import base_spec
from llmkt_ray.sweep.run import store_of
from llmkt_ray.training.layers import probe_layers
from llmkt_ray.training.spec import TrialArtifacts
from llmkt_ray.training.trial import run_trial
from tests.tiny import ITEMS, USERS, tiny_study, write_dataset

NCL = {"name": "NCL", "epochs": 2, "batch_size": 256, "hyperparameters": {"embedding_size": 8, "num_clusters": 4}}
RACT = {"name": "RaCT", "epochs": 2, "batch_size": 16, "hyperparameters": {"latent_dimension": 32, "metrics_k": 10, "pretrain_epochs": 1}}
S3REC = {"name": "S3Rec", "epochs": 2, "hyperparameters": {"hidden_size": 8, "inner_size": 8, "n_layers": 1, "pretrain_epochs": 1}}


def changed(model, batch_size=None, **hyperparameters):
    given = {**model, "hyperparameters": {**model["hyperparameters"], **hyperparameters}}
    return given if batch_size is None else given | {"batch_size": batch_size}


def study_of(tmp_path, *models, split=None, **changes):
    dataset = {"name": "toy", "path": str(tmp_path / "toy"), "split": split or {"kind": "leave_one_out"}}
    return tiny_study(tmp_path, **{"datasets": [dataset], "models": list(models)} | changes)


def told(study):
    with pytest.raises(StudyError) as caught:
        check_study(study, store_of(study))
    return str(caught.value)


IMPOSSIBLE = {
    f"NCL makes 1000 clusters of {USERS} users and of {ITEMS} items; set its hyper-parameter num_clusters to 1 to 41": changed(
        NCL, num_clusters=1000
    ),
    "NCL makes 0 clusters of": changed(NCL, num_clusters=0),
    f"RaCT's critic learns NDCG@100, but there are {ITEMS} items; set its hyper-parameter metrics_k to 1 to 41": changed(
        RACT, metrics_k=100
    ),
    "RaCT's critic normalises over the users of a batch, but the last batch holds one user alone; set another batch_size": changed(
        RACT, 59
    ),
    "those of 'toy' have no field 'class'; set its hyper-parameter item_attribute to one of: genres": changed(
        S3REC, item_attribute="class"
    ),
}


@pytest.mark.parametrize(("problem", "model"), IMPOSSIBLE.items())
def test_the_check_tells_what_the_trial_would(tmp_path, problem, model):
    study = study_of(tmp_path, model)
    text = told(study)
    assert problem in text
    assert f"(model '{model['name']}' on 'toy')" in text
    assert not (tmp_path / "results").exists(), "nothing is made for a look"
    spec = base_spec(study, split_nodes(study)[0], study.models[0], 0, arm="baseline")
    data = prepare(study.datasets[0], study_seed=study.seed, store=store_of(study))
    with pytest.raises(TrainingError) as caught:
        run_trial(spec, TrialArtifacts(data))
    assert str(caught.value) in text


def test_all_of_it_is_told_together_and_with_what_else_is_wrong(tmp_path):
    models = [changed(NCL, num_clusters=1000), changed(RACT, metrics_k=100), changed(S3REC, item_attribute="class"), "BPR"]
    text = told(study_of(tmp_path, *models, transfer={"alphas": (0.5,), "layers": {"BPR": ("mlp.3",)}}))
    for part in ("NCL makes 1000 clusters", "learns NDCG@100", "have no field 'class'", "'mlp.3' is not known"):
        assert part in text


def test_a_run_is_refused_before_anything_is_made(tmp_path):
    study = study_of(tmp_path, changed(S3REC, item_attribute="class"))
    with pytest.raises(StudyError, match="have no field 'class'"):
        Study(study).run(executor="loop")
    assert not (tmp_path / "results").exists()


def test_the_last_setting_that_is_possible_is_not_refused(tmp_path):
    fitting = [changed(NCL, num_clusters=ITEMS + 1), changed(RACT, 58, metrics_k=ITEMS + 1), S3REC]
    study = study_of(tmp_path, *fitting)
    check_study(study, store_of(study))
    data = prepare(study.datasets[0], study_seed=study.seed, store=store_of(study))
    for model in study.models:
        spec = base_spec(study, split_nodes(study)[0], model, 0, arm="baseline")
        assert run_trial(spec, TrialArtifacts(data)).status == "done"
    check_study(study, store_of(study))


def test_a_dataset_without_features_of_items_says_so(tmp_path):
    write_dataset(tmp_path / "bare")
    names = [f"i{item}" for item in range(ITEMS)]
    pq.write_table(pa.table({"item_id": names, "title": names}), tmp_path / "bare" / "items.parquet")
    dataset = {"name": "bare", "path": str(tmp_path / "bare"), "split": {"kind": "leave_one_out"}}
    text = told(study_of(tmp_path, S3REC, datasets=[dataset]))
    assert "those of 'bare' have no field 'genres'; give the dataset an items table with one (model 'S3Rec' on 'bare')" in text


def test_every_setting_that_is_tried_counts(tmp_path):
    searched = changed(NCL) | {"search": {"choices": {"num_clusters": [4, 50]}}}
    text = told(study_of(tmp_path, searched, search={"kind": "optuna", "trials": 2}))
    assert "NCL makes 50 clusters" in text
    assert "(search of model 'NCL' on 'toy', which tries num_clusters 50)" in text
    tuning = {"trials": 8, "ranges": {}, "choices": {"num_clusters": [4, 60]}}
    text = told(study_of(tmp_path, NCL, tuning=tuning))
    assert text.count("NCL makes 60 clusters") == 1
    assert "(tuning of model 'NCL' on 'toy')" in text


def test_who_is_alone_in_a_batch_is_asked_of_every_split(tmp_path):
    """Thinned and divided by chance, splits have other users with a train positive; those that are stored are read."""
    rule = {"kind": "random", "ratios": [0.1, 0.1, 0.8], "repetitions": 3}
    dataset = {"name": "toy", "path": str(tmp_path / "toy"), "split": rule, "positive": {"rating_at_least": 5}}
    plain = study_of(tmp_path, RACT, datasets=[dataset])
    raw, config = load_raw(plain.datasets[0]), plain.datasets[0]
    sizes = [len(set(unstored(raw, config, study_seed=11, repetition=n).train.positives().user.tolist())) for n in range(3)]
    assert len(set(sizes)) == 3
    for size in sizes:
        study = study_of(tmp_path, changed(RACT, size - 1), datasets=[dataset])
        assert told(study).count("one user alone") == 1
    for repetition in range(3):
        prepare(config, study_seed=11, repetition=repetition, store=store_of(plain))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "load_raw", lambda _: pytest.fail("a stored split was computed again"))
        assert "one user alone" in told(study)


def test_other_models_cost_no_split(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "unstored", lambda *_, **__: pytest.fail("a split was computed"))
    small = [("BPR", {"embedding_size": 8}), ("SASRec", {"hidden_size": 8}), ("RecVAE", {"hidden_dimension": 16, "latent_dimension": 8})]
    study = study_of(tmp_path, *({"name": name, "hyperparameters": given} for name, given in small))
    check_study(study, store_of(study))


def test_one_split_tells_of_users_and_items(tmp_path, monkeypatch):
    made, original = [], module.unstored
    monkeypatch.setattr(module, "unstored", lambda *given, **more: made.append(more["repetition"]) or original(*given, **more))
    for model, expected in ((NCL, [0]), (RACT, [0, 1, 2])):
        made.clear()
        study = study_of(tmp_path, model, split={"kind": "random", "ratios": [0.6, 0.2, 0.2], "repetitions": 3})
        check_study(study, store_of(study))
        assert made == expected


def test_a_class_of_ones_own_needs_what_the_one_needs_that_it_is_derived_from(tmp_path):
    given = {
        "embedding_size": 8, "n_layers": 1, "reg_weight": 1e-4, "ssl_temp": 0.1, "ssl_reg": 1e-7, "hyper_layers": 1, "alpha": 1.0,
        "proto_reg": 8e-8, "num_clusters": 42, "m_step": 1, "warm_up_step": 1,
    }  # fmt: skip
    own = {"name": "Mine", "class_path": "recbole.model.general_recommender.ncl:NCL", "hyperparameters": given}
    study = study_of(tmp_path, own)
    with pytest.raises(StudyError, match=r"NCL makes 42 clusters.*num_clusters to 1 to 41 \(model 'Mine' on 'toy'\)"):
        check_study(study, store_of(study), allow_code=True)


def test_a_class_that_asserts_something_of_its_settings_is_told_with_them():
    given = {"mlp_hidden_size": [16], "latent_dimension": 16, "critic_layers": [8]}
    with pytest.raises(TrainingError, match=r"Mine cannot be built with .*AssertionError"):
        probe_layers("Mine", None, given, "recbole.model.general_recommender.ract:RaCT")
