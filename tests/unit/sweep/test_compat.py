"""`compat: upstream_2024` does what the published code does, and `paper` does not (METHOD.md, section 2)."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from llmkt_ray.embeddings.targets import Targets
from llmkt_ray.errors import StudyError
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.study_file import parse_study
from llmkt_ray.sweep.check import check_study
from llmkt_ray.sweep.plan import make_plan
from llmkt_ray.sweep.run import run_study, store_of
from llmkt_ray.transfer.loss import LossManager
from tests.tiny import study_text


def text(root, reduction="{method: umap, dims: 8}"):
    changed = study_text(root).replace("{method: pca}", reduction).replace("seeds: 1", "seeds: 2")
    return changed.replace("alphas: [0.3, 0.5]", "alphas: 0.5").replace("seed: 11", "seed: 11\ncompat: upstream_2024")


@pytest.fixture(scope="module")
def upstream(tmp_path_factory):
    study = parse_study(text(tmp_path_factory.mktemp("compat")))
    check_study(study, store_of(study))
    run_study(study, executor="loop", console=Console(file=io.StringIO()))
    return study


def test_upstream_targets_are_two_raw_dims_of_a_umap_with_64_neighbours_fitted_anew_for_every_seed(upstream):
    treated = [spec for spec in make_plan(upstream, store_of(upstream)).trials if spec.arm == "treated"]
    targets = [Targets.load(store_of(upstream), spec.targets_key) for spec in treated]
    assert len({t.key for t in targets}) == 2, "a fit a seed"
    assert {t.dims for t in targets} == {2}
    manifests = [store_of(upstream).manifest("targets", t.key).inputs["reduction"] for t in targets]
    assert {m["n_neighbors"] for m in manifests} == {8}, "the wanted width became the number of neighbours"
    for one in targets:
        assert not np.allclose(one.matrix[one.present].mean(axis=0), 0, atol=0.1), "not standardised"
    shuffled = {s.seed_index: s.targets_key for s in make_plan(upstream, store_of(upstream)).trials if s.arm == "shuffled"}
    assert shuffled == {s.seed_index: s.targets_key for s in treated}, "twins read the same fit"


def test_upstream_trials_say_what_they_do_and_run(upstream):
    (schedule,) = upstream.transfer.schedule
    assert (schedule.handover, schedule.optimizer) == ("best_valid", "reset")
    rows = Ledger(f"{upstream.storage}/{upstream.name}").trials()
    assert (rows["status"] == "done").all()
    treated = rows[rows["arm"] == "treated"].iloc[0]
    assert (treated["loss"], treated["projection"], treated["balance"], treated["dims"]) == ("rmse_plain", "legacy_slice", "none", 2)
    assert '"weights":"row"' in treated["spec"]
    plain = parse_study(text(Path(upstream.storage)).replace("compat: upstream_2024", "compat: paper"))
    assert (plain.transfer.loss, plain.transfer.weights, plain.reduction[0].refit) == (("mse",), "user", False)


def test_the_upstream_loss_is_nan_at_an_exact_match_and_does_not_know_how_far_it_is():
    table, weight = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.ones(4)
    manager = LossManager("rmse_plain", table, weight)

    def gradient(distance):
        h = (table + distance).requires_grad_()
        manager.transfer(h, torch.arange(4)).backward()
        return h.grad

    assert torch.isnan(gradient(0.0)).all()
    assert float(gradient(1.0).norm()) == pytest.approx(float(gradient(0.001).norm()), rel=1e-3)


def test_layer_width_stands_for_the_64_of_the_published_configs(tmp_path):
    (reduction,) = parse_study(text(tmp_path, "{method: umap}")).reduction
    assert (reduction.dims, reduction.n_neighbors) == (2, 64)
    (other,) = parse_study(text(tmp_path, "{method: pca, dims: 4}")).reduction
    assert (other.dims, other.standardize, other.refit) == (4, False, True), "only umap's call has the positional width"


def test_reading_a_study_again_changes_nothing(tmp_path):
    study = parse_study(text(tmp_path))
    assert type(study).model_validate(study.model_dump()) == study


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ("transfer: {loss: cosine}", r"compat 'upstream_2024' sets transfer\.loss to 'rmse_plain', but the study says 'cosine'"),
        ("transfer: {weights: user}", r"sets transfer\.weights to 'row'"),
        ("transfer: {schedule: {handover: last}}", r"sets transfer\.schedule\.handover to 'best_valid'"),
        ("reduction: {standardize: true}", r"sets reduction\.standardize to False"),
    ],
)
def test_a_setting_that_contradicts_compat_is_refused_by_name(tmp_path, section, message):
    name = section.partition(":")[0]
    lines = [line for line in text(tmp_path).splitlines() if not line.startswith(f"{name}:")]
    with pytest.raises(StudyError, match=message):
        parse_study("\n".join([*lines, section]))
