"""The study file: every mistake at once, in words that say what to write instead; keys that know what matters."""

import contextlib
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from llmkt_ray.errors import StudyError
from llmkt_ray.study import EmbeddingConfig, KarConfig, ProfileConfig, SearchConfig, StudyConfig
from llmkt_ray.study_file import load_study, parse_study

MINIMAL = {"name": "small", "datasets": [{"name": "ml-100k"}], "models": ["BPR"]}


def study(**changes: object) -> StudyConfig:
    return parse_study(yaml.safe_dump({**MINIMAL, **changes}))


def problems(text: str) -> tuple[str, ...]:
    with pytest.raises(StudyError) as caught:
        parse_study(text, "s.yaml")
    assert str(caught.value).startswith(f"s.yaml has {len(caught.value.problems)} error")
    return caught.value.problems


def problems_of(**changes: object) -> tuple[str, ...]:
    return problems(yaml.safe_dump({**MINIMAL, **changes}))


def test_the_quickstart_study_is_valid() -> None:
    assert load_study(Path(__file__).parents[3] / "sweeps" / "quickstart.yaml").name == "quickstart"


def test_every_mistake_is_reported_at_once_and_nothing_else() -> None:
    found = problems("""
name: x
datasets: [{name: ml-100k, split: {kind: randm}, train_shar: 0.5}]
models: [NeuMF, {nam: BPR}]
transfer: {alphas: [0.5, 1.5], los: mse, schedule: {swich: 0.4}}
resources: {profiles: {cpu: 1}, trial: {gpu: 2}}
reduction: {method: umap, dims: 0}
controls: [baselin]
seeds: two
embeding: {}
""")
    places = [problem.split(":")[0] for problem in found]
    assert sorted(places) == sorted([
        "datasets.0.split.kind", "datasets.0", "models.1.name", "models.1", "transfer.alphas.1", "transfer", "transfer.schedule.0",
        "resources.profiles", "resources.trial", "reduction.0.dims", "controls.0", "seeds", "study",
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "place", "wrong", "meant"),
    [
        ({"transfer": {"aplhas": [0.5]}}, "transfer", "aplhas", "alphas"),
        ({"resources": {"profiles": {"gpu": 1}}}, "resources.profiles", "gpu", "gpus"),
        ({"datasets": [{"name": "a", "split": {"ratio": [0.8, 0.1, 0.1]}}]}, "datasets.0.split", "ratio", "ratios"),
        ({"models": [{"name": "BPR", "epoch": 3}]}, "models.0", "epoch", "epochs"),
        ({"transfer": {"schedule": [{"swich": 0.5}]}}, "transfer.schedule.0", "swich", "switch"),
        ({"embeding": {}}, "study", "embeding", "embedding"),
    ],
)
def test_an_unknown_key_is_named_with_its_place_and_the_closest_key_of_that_section(changes, place, wrong, meant) -> None:
    (found,) = problems_of(**changes)
    assert found.startswith(f"{place}: key {wrong!r} is not known; did you mean {meant!r}")


def test_unknown_keys_that_look_like_pydantic_s_own_words_are_named() -> None:
    found = problems_of(int=3, **{"a[0]": 1})
    assert sorted(problem.split(" is not")[0] for problem in found) == ["study: key 'a[0]'", "study: key 'int'"]


def test_a_wrong_item_does_not_also_count_as_an_empty_list() -> None:
    (found,) = problems_of(datasets=[{"name": "a", "domain": "film"}])
    assert found.startswith("datasets.0.domain: must be 'movies'")


@pytest.mark.parametrize("where", ["datasets", "models", "profiles"])
def test_an_empty_list_is_refused(where: str) -> None:
    assert problems_of(**{where: []}) == (f"{where}: list should have at least 1 item, not 0",)


@pytest.mark.parametrize("changes", [{"transfer": {"loss": []}}, {"transfer": {"schedule": []}}, {"embedding": []}, {"reduction": []}])
def test_a_factor_without_levels_is_refused(changes: dict) -> None:
    assert "at least 1 item" in problems_of(**changes)[0]


def test_the_alternatives_of_a_setting_are_one_problem() -> None:
    (found,) = problems_of(transfer={"layers": "mlp.1"})
    assert found == "transfer.layers: must be 'auto' or 'all', or a list, or a mapping, but got 'mlp.1'"


@pytest.mark.parametrize("alpha", [-0.1, 1.0001, 7])
def test_alpha_outside_0_1_is_refused_with_its_value(alpha: float) -> None:
    (found,) = problems_of(transfer={"alphas": [0.5, alpha]})
    assert found.startswith("transfer.alphas.1: must be")
    assert found.endswith(f"but got {alpha}")


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
def test_no_number_is_nan_or_infinite(value: str) -> None:
    text = f"name: x\ndatasets: [a]\nmodels: [{{name: BPR, hyperparameters: {{reg: {value}}}}}]\ntransfer: {{alphas: [{value}]}}\n"
    assert [("finite" in p or "equal to 0" in p) for p in problems(text)] == [True, True]


def test_alpha_0_is_a_control_not_a_treatment() -> None:
    assert "list it under `controls`" in problems_of(transfer={"alphas": [0, 0.5]})[0]


def test_the_claim_s_alpha_must_be_run() -> None:
    assert "claim_alpha 0.5 must be one of the alphas [0.3]" in problems_of(transfer={"alphas": [0.3]})[0]


@pytest.mark.parametrize("ratios", [[0.7, 0.2, 0.2], [1.0, 0.0, 0.0], [0.9, 0.2, -0.1], [0.5, 0.2, 0.2]])
def test_split_ratios_lie_between_0_and_1_and_sum_to_1(ratios: list[float]) -> None:
    (found,) = problems_of(datasets=[{"name": "a", "split": {"ratios": ratios}}])
    assert found.startswith("datasets.0.split: split ratios must")
    assert "(sum " in found


@pytest.mark.parametrize("ratios", [[0.7, 0.3], [0.25, 0.25, 0.25, 0.25], "0.7/0.1/0.2"])
def test_split_ratios_are_three(ratios: object) -> None:
    assert all(p.startswith("datasets.0.split.ratios") for p in problems_of(datasets=[{"name": "a", "split": {"ratios": ratios}}]))


@pytest.mark.parametrize("share", [0, -0.5, 1.5])
def test_a_train_share_lies_in_0_1(share: float) -> None:
    assert f"train_share must lie in (0, 1], but got {share:g}" in problems_of(datasets=[{"name": "a", "train_share": [1.0, share]}])[0]


def test_a_user_filter_that_keeps_nobody_is_refused() -> None:
    assert "no user would stay" in problems_of(datasets=[{"name": "a", "filters": {"user_min": 20, "user_max": 20}}])[0]
    assert study(datasets=[{"name": "a", "filters": {"user_min": 20, "user_max": 500}}]).datasets[0].filters.user_max == 500


@pytest.mark.parametrize("changes", [{"training": {"epochs": 1}}, {"models": [{"name": "BPR", "epochs": 1}]}])
def test_two_phases_need_two_epochs(changes: dict) -> None:
    assert "model 'BPR' has 1 epoch, but two phases need at least 2 epochs" in problems_of(**changes)[0]


def test_one_epoch_is_enough_for_joint_training() -> None:
    assert study(training={"epochs": 1}, transfer={"schedule": {"kind": "joint"}}).training.epochs == 1


@pytest.mark.parametrize("switch", [0, 0.09])
def test_a_switch_that_leaves_no_phase_1_is_refused(switch: float) -> None:
    (found,) = problems_of(training={"epochs": 10}, transfer={"schedule": {"switch": switch}})
    assert "without phase 1; switch must be at least 0.1" in found


@pytest.mark.parametrize("bounds", [[0.9, 0.1], [-1, 0.5], [0.2, 2]])
def test_the_searched_range_of_alpha_is_a_range(bounds: list[float]) -> None:
    assert "0 <= low < high <= 1" in problems_of(search={"alpha": bounds})[0]


@pytest.mark.parametrize(
    ("changes", "twice"),
    [
        ({"datasets": [{"name": "a"}, {"name": "a", "path": "x"}]}, "'a'"),
        ({"models": ["BPR", {"name": "BPR", "epochs": 3}]}, "'BPR'"),
        ({"profiles": [{"llm": "template"}, {"llm": "template"}]}, "'template'"),
        ({"controls": ["alpha0", "alpha0"]}, "'alpha0'"),
    ],
)
def test_names_given_twice_are_refused(changes: dict, twice: str) -> None:
    assert f"{twice} appear more than once" in problems_of(**changes)[0]


@pytest.mark.parametrize(
    ("profile", "message"), [({"llm": "file"}, "need a `path`"), ({"llm": "template", "path": "p"}, "`path` belongs to")]
)
def test_a_path_belongs_to_profiles_from_a_file(profile: dict, message: str) -> None:
    assert message in problems_of(profiles=[profile])[0]


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"trust_remote_code": True}, "trust_remote_code lets vLLM run code"),
        ({"worker_cls": "evil.Worker"}, "worker_cls lets vLLM run code"),
        ({"scheduler_cls": "evil.Scheduler"}, "scheduler_cls lets vLLM run code"),
        ({"reasoning_parser_plugin": "/tmp/evil.py"}, "reasoning_parser_plugin lets vLLM run code"),
        ({"distributed_executor_backend": "evil.Executor"}, "must be one of ray, mp, uni, external_launcher, but got 'evil.Executor'"),
        ({"model": "another"}, "model cannot be set here: it is the key `model`"),
        ({"seed": 3}, "seed cannot be set here: it is derived from the study's seed"),
        ({"revision": "main"}, "revision cannot be set here"),
        ({"runner": "generate"}, "runner cannot be set here"),
    ],
)
def test_an_engine_takes_no_code_and_nothing_that_is_set_elsewhere(engine: dict, message: str) -> None:
    [problem] = problems_of(profiles=[{"llm": "vllm", "model": "m", "engine": engine}])
    assert problem.startswith("profiles.0.engine: ")
    assert message in problem
    [problem] = problems_of(embedding={"via": "vllm", "engine": engine})
    assert message in problem


def test_an_engine_takes_vllm_s_own_settings() -> None:
    engine = {"tensor_parallel_size": 2, "dtype": "bfloat16", "enforce_eager": True, "distributed_executor_backend": "ray"}
    text = yaml.safe_dump(MINIMAL | {"profiles": [{"llm": "vllm", "model": "m", "engine": engine}]})
    assert parse_study(text).profiles[0].engine == engine


def test_the_selection_metric_must_be_measured() -> None:
    assert "select_on 'NDCG@20' must be one of the metrics" in problems_of(evaluation={"select_on": "NDCG@20"})[0]


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "", ".hidden", "x" * 81])
def test_a_study_s_name_is_a_plain_folder_name(name: str) -> None:
    assert problems_of(name=name)[0].startswith("name: ")


def test_an_empty_storage_is_refused() -> None:
    assert problems_of(storage="")[0].startswith("storage: ")


@pytest.mark.parametrize("text", ["name: x\nseeds: 1\nname: y\n", "name: x\ntransfer: {loss: mse, loss: rmse}\n"])
def test_a_key_given_twice_is_refused(text: str) -> None:
    assert "is given twice" in problems(text)[0]
    assert "line" in problems(text)[0]


@pytest.mark.parametrize("text", ["a: [", "\tname: x", "name: x\x00", "a: !!python/object/apply:os.system [true]", "? [a]\n: 1"])
def test_what_is_not_yaml_is_one_error(text: str) -> None:
    (found,) = problems(text)
    assert found.startswith("malformed YAML: ")


@pytest.mark.parametrize(("text", "kind"), [("", "NoneType"), ("[1, 2]", "list"), ("just text", "str")])
def test_a_file_that_is_no_mapping_says_what_a_study_is(text: str, kind: str) -> None:
    assert problems(text) == (f"a study is a mapping with `name`, `datasets` and `models`, but got {kind}",)


def test_keys_that_are_no_text_are_refused() -> None:
    assert "should be strings" in problems(yaml.safe_dump({**MINIMAL, 1: 2}))[0]


def test_yaml_merge_keys_work_and_explicit_keys_win() -> None:
    text = "name: x\ndatasets:\n- &a {name: a, domain: music}\n- {<<: *a, name: b}\nmodels: [BPR]\n"
    assert [(d.name, d.domain) for d in parse_study(text).datasets] == [("a", "music"), ("b", "music")]


@given(st.text(max_size=200))
def test_no_text_makes_anything_but_a_study_or_a_study_error(text: str) -> None:
    with contextlib.suppress(StudyError):
        parse_study(text)


@given(st.dictionaries(st.sampled_from(sorted(StudyConfig.model_fields)), st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "kind", "trial", "x"]), inner, max_size=3),
    max_leaves=8,
), max_size=4))  # fmt: skip
def test_no_content_makes_anything_but_a_study_or_a_study_error(content: dict) -> None:
    with contextlib.suppress(StudyError):
        parse_study(yaml.safe_dump(content))


def test_a_missing_file_names_the_studies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "alpha.yaml").write_text("name: x")
    with pytest.raises(StudyError, match=r"there is no file .*alfa.yaml.*study files there: .*alpha.yaml"):
        load_study(tmp_path / "alfa.yaml")


def test_a_folder_and_a_binary_file_are_study_errors(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x9f")
    for path in (tmp_path, tmp_path / "binary.yaml"):
        with pytest.raises(StudyError, match="cannot be read"):
            load_study(path)


def test_a_study_is_frozen() -> None:
    with pytest.raises(ValidationError):
        study().seeds = 3  # type: ignore[misc]


def test_short_forms_mean_their_long_forms() -> None:
    short = study(datasets=["ml-100k"], models=["BPR"], transfer={"alphas": 0.5, "loss": "mse", "schedule": {"switch": 0.5}})
    long = study(
        datasets=[{"name": "ml-100k"}],
        models=[{"name": "BPR"}],
        transfer={"alphas": [0.5], "loss": ["mse"], "schedule": [{"switch": 0.5}]},
    )
    assert short == long
    assert short.key == long.key


def test_a_study_survives_a_round_trip_with_its_key() -> None:
    before = study(seeds=5, models=[{"name": "MultiVAE", "hyperparameters": {"latent_dimension": 64, "mlp_hidden_size": [600]}}])
    after = StudyConfig.model_validate(yaml.safe_load(yaml.safe_dump(before.model_dump(mode="json"))))
    assert after == before
    assert after.key == before.key


@pytest.mark.parametrize(
    "changes",
    [
        {"storage": "s3://bucket/elsewhere"},
        {"resources": {"trial": {"cpus": 4, "gpus": 1}, "concurrency": 3}},
        {"description": "another"},
        {"name": "renamed"},
    ],
)
def test_the_key_does_not_depend_on_where_and_on_what_it_runs(changes: dict) -> None:
    assert study(**changes).key == study().key


LLM = {"llm": "openai", "model": "m"}
ENDPOINT = {"encoder": "e", "via": "openai"}
PACED = {"requests_per_minute": 20, "concurrency": 2, "timeout_s": 300, "workers": [1, 2], "api_key_env": "ANOTHER_KEY"}


@pytest.mark.parametrize(
    ("plain", "paced"),
    [
        ({"profiles": [LLM]}, {"profiles": [{**LLM, **PACED}]}),
        ({"embedding": ENDPOINT}, {"embedding": {**ENDPOINT, "requests_per_minute": 20, "api_key_env": "ANOTHER_KEY"}}),
        ({"controls": ["kar"], "kar": {"items": LLM}}, {"controls": ["kar"], "kar": {"items": {**LLM, **PACED}}}),
        ({"search": {"kind": "optuna"}}, {"search": {"kind": "optuna", "storage": "sqlite:///copy.db"}}),
    ],
)
def test_the_key_does_not_depend_on_the_pace_and_on_where_a_copy_goes(plain: dict, paced: dict) -> None:
    """Else a rate limit that was set lower in the middle of a study made its folder another study's."""
    assert study(**paced).key == study(**plain).key != study().key


def test_two_equal_choices_of_an_encoder_or_a_reduction_are_refused() -> None:
    (said,) = problems_of(reduction=[{"method": "pca", "dims": 8}, {"method": "pca", "dims": 8, "n_neighbors": 30}])
    assert said == "study: reductions must have different names, but 'pca to 8' appear more than once"
    (said,) = problems_of(embedding=[{"encoder": "tfidf_svd"}, {"encoder": "tfidf_svd"}])
    assert said == "study: embeddings must have different names, but 'tfidf_svd' appear more than once"


def test_two_reducers_that_make_the_same_target_are_refused() -> None:
    """Standardised principal components are whitened ones: a level of the factor would be there twice under two names."""
    both = [{"method": "pca", "dims": 8}, {"method": "pca_whiten", "dims": 8}]
    (said,) = problems_of(reduction=both)
    assert "'pca' and 'pca_whiten' to 8 are the same target once each dimension is standardised" in said
    for fine in ([both[0], {**both[1], "dims": 9}], [{**both[0], "standardize": False}, both[1]]):
        assert len(study(reduction=fine).reduction) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"seeds": 3},
        {"datasets": [{"name": "ml-1m"}]},
        {"datasets": [{"name": "ml-100k", "positive": {"rating_at_least": 4}}]},
        {"datasets": [{"name": "ml-100k", "split": {"ratios": [0.8, 0.1, 0.1]}}]},
        {"datasets": [{"name": "ml-100k", "filters": {"user_min": 5}}]},
        {"datasets": [{"name": "ml-100k", "train_share": 0.5}]},
        {"profiles": [{"llm": "file", "path": "profiles.parquet"}]},
        {"embedding": {"encoder": "tfidf_svd"}},
        {"reduction": {"method": "pca"}},
        {"models": ["NeuMF"]},
        {"models": [{"name": "BPR", "hyperparameters": {"embedding_size": 32}}]},
        {"transfer": {"alphas": [0.5]}},
        {"transfer": {"loss": "cosine"}},
        {"transfer": {"schedule": {"switch": 0.4}}},
        {"controls": ["baseline"]},
        {"training": {"epochs": 21}},
        {"evaluation": {"metrics": ["NDCG@10"]}},
        {"search": {"kind": "optuna"}},
    ],
)
def test_the_key_depends_on_everything_else(changes: dict) -> None:
    assert study(**changes).key != study().key


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_only_these_fields_of_a_study_are_left_out_of_its_key() -> None:
    """A section added later is part of the key unless somebody decides otherwise here."""
    fields = set(StudyConfig.model_fields)
    items = ProfileConfig(llm="file", path="texts.parquet")
    others = {
        "profiles": (items,), "kar": KarConfig(items=items), "embedding": (EmbeddingConfig(encoder="other"),),
        "search": SearchConfig(trials=7),
    }  # fmt: skip
    with_kar = study(controls=["kar"])
    for base, more in ((study(), {"kar"}), (with_kar, set())):
        changed = set()
        for name in fields - {"models"}:
            changed |= {name} if base.model_copy(update={name: others.get(name, "changed")}).key != base.key else set()
        assert fields - changed - {"models"} == {"storage", "resources", "budget", "tracking", "description", "name"} | more
    assert study(models=["SimpleX"]).key != study().key


def test_a_storage_below_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    study = parse_study(yaml.safe_dump({**MINIMAL, "storage": "~/res"}))
    assert study.storage == f"{tmp_path}/res"
    assert problems_of(storage="~nobody-here/res")[0].startswith("storage: there is no such home folder")


@pytest.mark.parametrize("storage", ["s3:/bucket/prefix", "gs:/bucket"])
def test_a_storage_with_one_slash_is_no_folder(storage: str) -> None:
    assert problems_of(storage=storage) == (f"storage: a URI has two slashes (s3://bucket/prefix), but got {storage!r}",)


@pytest.mark.parametrize(
    ("place", "changes"),
    [
        ("models.0.name", {"models": [{"name": "a\x1b[2J"}]}),
        ("profiles.0.name", {"profiles": [{"llm": "template", "name": "a\nb"}]}),
        ("profiles.0.model", {"profiles": [{"llm": "openai", "model": "a\x9b"}]}),
        ("embedding.0.encoder", {"embedding": {"encoder": "a\tb"}}),
    ],
)
def test_names_have_no_control_characters(place: str, changes: dict[str, object]) -> None:
    (found,) = problems_of(**changes)
    assert found.startswith(f"{place}: must have no control characters")


@pytest.mark.parametrize("path", [":X", ".x:Y", "x:", "x", "x:Y:Z", "recbole.model.abstract_recommender"])
def test_the_place_of_a_class_has_its_form(path: str) -> None:
    (found,) = problems_of(models=[{"name": "Mine", "class_path": path}])
    assert found.startswith(f"models.0.class_path: model class {path!r} cannot be imported; the form is package.module:Class")
