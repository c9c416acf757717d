import pytest

from llmkt_ray.errors import StudyError
from llmkt_ray.results.folder import claim, locked, study_folder
from llmkt_ray.study import StudyConfig
from llmkt_ray.sweep.check import check_study
from llmkt_ray.sweep.run import store_of
from llmkt_ray.sweep.search import is_relative_file
from tests.tiny import tiny_study


def problems(study: StudyConfig, **settings) -> str:
    with pytest.raises(StudyError) as caught:
        check_study(study, store_of(study), **settings)
    return str(caught.value)


def test_a_good_study_has_no_problems_and_nothing_is_left(tmp_path):
    study = tiny_study(tmp_path)
    check_study(study, store_of(study))
    assert not (tmp_path / "results").exists()


def test_every_wrong_name_is_told_at_once_with_the_closest(tmp_path):
    study = tiny_study(
        tmp_path,
        models=["NeuMFF", "EASE"],
        evaluation={"metrics": ["NDGC@10", "Hit"], "select_on": "Hit", "references": ["Popp", "BPR"]},
        transfer={"alphas": (0.5,), "loss": ("mze",), "layers": {"NeuMF": "auto"}},
        reduction={"method": "umapp"},
        embedding={"encoder": "tfidf_svdd"},
    )
    text = problems(study)
    for part in (
        "model 'NeuMFF' is not known; did you mean 'NeuMF'",
        "model 'EASE' has no layer to transfer to; list it under `evaluation.references`",
        "metric 'NDGC@10' is not known; did you mean 'NDCG@10'",
        "'Hit' needs a depth of at least 1, for example Hit@10",
        "reference 'Popp' is not known; did you mean 'Pop'",
        "reference 'BPR' is a model that is trained in steps",
        "loss 'mze' is not known; did you mean 'mse'",
        "reduction method 'umapp' is not known; did you mean 'umap'",
        "transfer.layers: model 'NeuMF' is not known",
        "tfidf_svdd",
    ):
        assert part in text


def test_datasets_are_told_beside_names(tmp_path):
    study = tiny_study(tmp_path, models=["BRP"])
    (tmp_path / "toy" / "interactions.parquet").unlink()
    text = problems(study)
    assert "model 'BRP' is not known; did you mean 'BPR'" in text
    assert "toy" in text.split("BRP", 1)[1]


def test_a_class_by_import_path_needs_permission(tmp_path):
    study = tiny_study(tmp_path, models=[{"name": "Mine", "class_path": "os:system"}])
    assert "run again with --allow-code" in problems(study)


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("os:system", "'os:system' is not a RecBole model class; it must be a subclass of recbole's GeneralRecommender"),
        ("torch.nn:Linear", "'torch.nn:Linear' is not a RecBole model class"),
        ("no.such:Thing", "cannot be imported (No module named 'no'); the form is package.module:Class"),
        ("recbole.model.abstract_recommender:AbstractRecommender", "is of type None, which is not supported; supported: ['context'"),
        ("recbole.model.abstract_recommender:GeneralRecommender", "set its input_type to InputType.PAIRWISE, InputType.POINTWISE"),
        ("recbole.model.knowledge_aware_recommender:CKE", "is of type ModelType.KNOWLEDGE, which is not supported"),
    ],
)
def test_a_class_that_is_no_model_is_told_with_what_it_must_be(tmp_path, path, told):
    study = tiny_study(tmp_path, models=[{"name": "Mine", "class_path": path}])
    assert told in problems(study, allow_code=True)


def test_a_sequential_class_of_ones_own_on_a_random_split(tmp_path):
    path = "recbole.model.sequential_recommender.gru4rec:GRU4Rec"
    sizes = {"embedding_size": 8, "hidden_size": 8, "num_layers": 1, "dropout_prob": 0.1, "loss_type": "CE", "MAX_ITEM_LIST_LENGTH": 5}
    study = tiny_study(tmp_path, models=[{"name": "Mine", "class_path": path, "hyperparameters": sizes}])
    text = problems(study, allow_code=True)
    assert "model 'Mine' predicts what comes next, but the split of 'toy' is random" in text
    assert "set split.kind to leave_one_out or time" in text


def test_a_layer_that_does_not_exist(tmp_path):
    study = tiny_study(tmp_path, transfer={"alphas": (0.5,), "layers": ("mlp.3",)})
    assert "'mlp.3' is not known" in problems(study)
    assert "llmkt layers BPR" in problems(study)


def test_a_target_of_another_width_than_the_layer(tmp_path):
    study = tiny_study(tmp_path, reduction={"method": "pca", "dims": 5})
    assert "is 8 wide and the target 5" in problems(study)
    student = tiny_study(tmp_path, reduction={"method": "pca", "dims": 5}, transfer={"alphas": (0.5,), "projection": "student"})
    check_study(student, store_of(student))


def test_targets_wider_than_what_they_are_made_of(tmp_path):
    wide = [{"name": "BPR", "epochs": 4, "hyperparameters": {"embedding_size": 64}}]
    text = problems(tiny_study(tmp_path, models=wide))
    assert "64" in text
    assert "toy" in text or "tfidf_svd" in text


def test_a_gpu_where_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    study = tiny_study(tmp_path, resources={"trial": {"cpus": 1, "gpus": 0.5}})
    assert "resources.trial asks for 0.5 GPU" in problems(study)
    check_study(study, store_of(study), local=False)


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "plain-file").write_text("")
    assert "plain-file" in problems(tiny_study(tmp_path, storage=str(tmp_path / "plain-file")))


def test_the_folder_of_another_study(tmp_path):
    claim(tiny_study(tmp_path))
    assert "belongs to another study" in problems(tiny_study(tmp_path, seeds=5))


def test_a_study_that_is_running(tmp_path):
    study = tiny_study(tmp_path)
    with locked(study_folder(study)):
        assert "is being run already" in problems(study)


def test_the_name_of_the_artifacts_folder_is_taken(tmp_path):
    assert "cannot be named 'artifacts'" in problems(tiny_study(tmp_path, name="artifacts"))


def test_profiles_that_cannot_be_read(tmp_path):
    study = tiny_study(tmp_path, profiles=[{"llm": "file", "path": str(tmp_path / "nowhere.parquet")}])
    assert "nowhere.parquet" in problems(study)


@pytest.mark.parametrize("url", ["no url at all", "nosuchdatabase://host/optuna"])
def test_a_database_of_a_search_that_cannot_be_opened(tmp_path, url):
    assert "search.storage is no URL of a database" in problems(tiny_study(tmp_path, search={"kind": "optuna", "storage": url}))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://me:open-sesame@host/optuna",
        "postgresql://me:open/sesame@host/optuna",
        "postgresql://me:open?sesame@host/optuna",
        "postgresql://me@host/optuna?sslmode=require&password=open-sesame",
    ],
)
def test_a_password_in_the_address_of_a_search_s_database(tmp_path, url):
    with pytest.raises(ValueError, match=r"search\.storage carries a password") as caught:
        tiny_study(tmp_path, search={"kind": "optuna", "storage": url})
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["postgresql://me@host:5432/optuna", "sqlite:////data/a:b@c.db", "postgresql+psycopg://host/optuna?user=me"]
)
def test_an_address_without_a_password_is_none_with_one(tmp_path, url):
    assert tiny_study(tmp_path, search={"kind": "optuna", "storage": url}).search.storage == url


def test_a_database_that_would_stay_on_one_machine_is_refused_with_an_object_store(tmp_path):
    def of(url: str, storage: str = "mock://bucket/results") -> StudyConfig:
        return tiny_study(tmp_path, storage=storage, search={"kind": "optuna", "storage": url})

    assert "search.storage 'sqlite:///x.db' is a file in the folder that the run is started in" in problems(of("sqlite:///x.db"))
    assert "search.storage" not in problems(of(f"sqlite:///{tmp_path}/x.db"))
    check_study(study := of("sqlite:///x.db", str(tmp_path)), store_of(study))
    for url in ("sqlite://", "sqlite:///:memory:", "postgresql://host/optuna", "no url", None):
        assert not is_relative_file(url)


def test_settings_that_tuning_would_try_and_a_model_refuses_are_told(tmp_path):
    tuning = {"trials": 3, "ranges": {"embedding_size": [8, 16]}, "choices": {"mlp_hidden_size": [[8], [16]]}}
    text = problems(tiny_study(tmp_path, tuning=tuning))
    assert "tuning of model 'BPR' tries embedding_size 8.0 (a range holds fractions; list whole numbers in `choices`): BPR cannot" in text
    assert "tuning of model 'BPR' tries mlp_hidden_size [8]: " in text
    good = tiny_study(tmp_path, tuning={"trials": 3, "choices": {"embedding_size": [8, 16]}})
    check_study(good, store_of(good))


def test_what_a_class_of_ones_own_cannot_do_is_told_too(tmp_path):
    own = {"name": "Mine", "class_path": "recbole.model.general_recommender.bpr:BPR", "hyperparameters": {"embedding_size": 8}}
    labelled = {"metrics": ["AUC"], "select_on": "AUC", "protocol": "labelled", "references": []}
    study = tiny_study(tmp_path, models=[own], controls=["alpha0", "kar"], evaluation=labelled)
    text = problems(study, allow_code=True)
    assert "control 'kar' is impossible with Mine: it has no table of feature embeddings" in text
    assert "model 'Mine' cannot be measured under protocol 'labelled': it learns from pairwise" in text
    assert "Mine: it has no table" not in problems(study)  # unread, unless its code may run


def test_a_module_that_fails_when_it_is_imported_is_one_message(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "failing_module.py").write_text("raise ValueError('no such mode')")
    study = tiny_study(tmp_path, models=[{"name": "Mine", "class_path": "failing_module:Mine"}])
    assert "'failing_module:Mine' cannot be imported (ValueError: no such mode)" in problems(study, allow_code=True)
