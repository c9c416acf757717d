from collections import Counter

import pytest

from llmkt_ray.errors import LayerError
from llmkt_ray.sweep.pilot import telling_first
from llmkt_ray.sweep.plan import make_plan
from llmkt_ray.sweep.run import store_of
from tests.tiny import tiny_study


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("plan")


def plan_of(root, **changes):
    study = tiny_study(root, **changes)
    return make_plan(study, store_of(study))


def arms(plan) -> Counter:
    return Counter(spec.arm for spec in plan.trials)


def test_a_grid_has_its_arms_once_and_the_reference_once(root):
    plan = plan_of(root)
    assert arms(plan) == {"reference": 1, "baseline": 1, "alpha0": 1, "treated": 2, "shuffled": 1}
    (cell,) = plan.cells
    assert (cell.tap.name, cell.target.dims) == ("user_embedding", 8), "dims: layer is the width of the tapped layer"
    assert plan.there == frozenset(), "nothing is computed by planning"


def test_planning_leaves_nothing_on_disk(root):
    plan_of(root)
    assert not (root / "results").exists()


def test_the_quickstart_has_36_trials_and_3_reference_lines():
    from pathlib import Path

    from llmkt_ray.study_file import load_study

    study = load_study(Path(__file__).parents[3] / "sweeps" / "quickstart.yaml")
    counts = arms(make_plan(study, store_of(study)))
    assert counts == {"reference": 3, "baseline": 6, "alpha0": 6, "treated": 18, "shuffled": 6}


def test_controls_are_not_repeated_over_factors_that_they_do_not_depend_on(root):
    reductions = [{"method": "pca", "dims": "layer"}, {"method": "umap", "dims": "layer"}]
    plan = plan_of(root, reduction=reductions, seeds=2)
    assert len(plan.cells) == 2
    assert arms(plan) == {"reference": 1, "baseline": 2, "alpha0": 2, "treated": 8, "shuffled": 4}
    assert len({spec.key for spec in plan.trials}) == len(plan.trials)


def test_reductions_and_encoders_that_differ_in_a_setting_only_have_labels_of_their_own(root):
    """The report matches trials by labels: two reductions of one method must not fall into one cell."""
    reductions = [{"method": "umap"}, {"method": "umap", "n_neighbors": 30}, {"method": "umap", "n_neighbors": 30, "standardize": False}]
    encoders = [{"encoder": "tfidf_svd", "dims": 20}, {"encoder": "tfidf_svd", "dims": 16}]
    plan = plan_of(root, reduction=reductions, embedding=encoders)
    treated = [spec for spec in plan.trials if spec.arm == "treated"]
    labels = {(spec.factors["encoder"], spec.factors["reduction"]): spec.targets_key for spec in treated}
    assert {reduction for _, reduction in labels} == {"umap", "umap (n_neighbors 30)", "umap (standardize false, n_neighbors 30)"}
    assert len(labels) == len(set(labels.values())) == len({spec.targets_key for spec in treated}) == 6


def test_alpha0_follows_the_schedule_and_the_baseline_its_window_of_epochs(root):
    schedules = [{"switch": 0.5}, {"switch": 0.75}, {"switch": 0.5, "alpha": "linear"}]
    plan = plan_of(root, transfer={"alphas": (0.5,), "schedule": schedules})
    assert arms(plan) == {"reference": 1, "baseline": 2, "alpha0": 2, "treated": 3, "shuffled": 3}
    assert {spec.schedule.alpha for spec in plan.trials if spec.arm == "alpha0"} == {"constant"}


def test_everything_repeats_over_splits_and_train_shares(root):
    study = tiny_study(root)
    dataset = study.datasets[0].model_dump() | {"train_share": (1.0, 0.5)}
    dataset["split"] = dataset["split"] | {"repetitions": 2}
    plan = plan_of(root, datasets=[dataset])
    assert len(plan.splits) == 4
    assert arms(plan) == {"reference": 4, "baseline": 4, "alpha0": 4, "treated": 8, "shuffled": 4}
    shares = {(spec.factors["train_share"], spec.factors["split_repetition"]) for spec in plan.trials}
    assert shares == {(1.0, 0), (0.5, 0), (1.0, 1), (0.5, 1)}


def test_a_language_model_is_asked_once_for_all_shares_of_the_train_rows(root):
    study = tiny_study(root)
    dataset = study.datasets[0].model_dump() | {"train_share": (1.0, 0.5)}
    dataset["split"] = dataset["split"] | {"repetitions": 2}
    asked = {"llm": "openai", "model": "m", "base_url": "http://127.0.0.1:1/v1"}
    full = plan_of(root, datasets=[dataset], profiles=[asked | {"full_history": True}])
    assert len(full.splits) == 4
    assert len(full.profiles) == 2, "one for each repetition: of the full history, which the shares have in common"
    thinned = plan_of(root, datasets=[dataset], profiles=[asked])
    assert len(thinned.profiles) == 4
    kar = {"models": [{"name": "DeepFM", "epochs": 4}], "controls": ["baseline", "alpha0", "kar"]}
    items = {node.items.key for node in plan_of(root, datasets=[dataset], kar={"items": asked}, **kar).knowledge}
    assert len(items) == 1, "the splits of a dataset have the same items"


def test_twins_of_one_seed_index_share_their_seed(root):
    plan = plan_of(root, seeds=2)
    seeds = {(spec.arm, spec.seed_index): spec.seed for spec in plan.trials if spec.model == "BPR"}
    for index in (0, 1):
        assert len({seed for (_, at), seed in seeds.items() if at == index}) == 1
    assert seeds["treated", 0] != seeds["treated", 1]


def test_layers_by_number_and_name_resolve_to_the_same_tap(root):
    by_number = plan_of(root, transfer={"alphas": (0.5,), "layers": ("1",)})
    by_name = plan_of(root, transfer={"alphas": (0.5,), "layers": {"BPR": ("user_embedding",)}})
    assert [cell.tap.name for cell in by_number.cells] == [cell.tap.name for cell in by_name.cells] == ["user_embedding"]
    with pytest.raises(LayerError, match="layer 9 of BPR does not exist"):
        plan_of(root, transfer={"alphas": (0.5,), "layers": ("layer 9",)})


def test_a_limit_spreads_over_the_arms(root):
    plan = plan_of(root, seeds=3)
    few = telling_first(plan.trials, plan.study.transfer)[:4]
    assert [spec.arm for spec in few] == ["treated", "alpha0", "shuffled", "baseline"]
    assert len({spec.seed_index for spec in few}) == 1
    assert [spec.alpha for spec in few] == [0.5, 0, 0.5, 0], "gains are stated at the claim's alpha, and need its treated trial"


def test_a_model_may_be_evaluated_in_other_epochs_than_the_study_says(root):
    models = [
        {"name": "BPR", "epochs": 4, "hyperparameters": {"embedding_size": 8}},
        {"name": "MultiVAE", "epochs": 4, "evaluate_every": 2, "hyperparameters": {"mlp_hidden_size": [8], "latent_dimension": 8}},
    ]
    study = tiny_study(root, models=models)
    trials = [spec for spec in make_plan(study, store_of(study)).trials if spec.arm != "reference"]
    assert {(spec.model, spec.evaluate_every) for spec in trials} == {("BPR", 1), ("MultiVAE", 2)}
    with pytest.raises(ValueError, match="grace_epochs 1 must be at least evaluate_every 2: before that nothing is known"):
        tiny_study(root, models=models, search={"kind": "optuna", "early_stopping": {"grace_epochs": 1}})


def test_a_grace_that_outlasts_phase_2_is_refused(root):
    """Nothing would ever be stopped, and the study would not say so."""
    stopped = lambda grace: {"kind": "optuna", "early_stopping": {"grace_epochs": grace}}  # noqa: E731
    models = [{"name": "BPR", "epochs": 6, "hyperparameters": {"embedding_size": 8}}]
    with pytest.raises(ValueError, match="grace_epochs 3 leaves nothing to stop: phase 2 of BPR has 3 of 6 epochs; give it less than 3"):
        tiny_study(root, models=models, search=stopped(3), seeds=1)
    tiny_study(root, models=models, search=stopped(2), seeds=1)
