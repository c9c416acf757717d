"""A metric of which less is better (LogLoss): verdict, choice, colours and captions turn with it."""

import pytest

from llmkt_ray.report import build
from llmkt_ray.report.answers import choose_alpha
from llmkt_ray.report.context import Context
from llmkt_ray.report.evidence import evidence_of
from llmkt_ray.report.findings import find
from llmkt_ray.report.frames import gain_rows
from llmkt_ray.report.load import load
from llmkt_ray.report.sections.alpha import alpha_curves
from llmkt_ray.report.sections.base import around
from llmkt_ray.report.sections.quality import quality_section
from tests.unit.report.synthetic import World, write, write_artifacts

WORLD = World(
    models={"MultiVAE": 0.2}, n_users=400, seed_sd=0.001, treated=lambda model, alpha, layer: {0.3: 0.1, 0.5: 0.2, 0.7: 0.15}[alpha],
    references={"EASE": 0.3},
)  # fmt: skip
"""The metric is 20 % higher at the claim's alpha than at alpha0, 10 % at 0.3 and 15 % at 0.7."""


@pytest.fixture
def lower(monkeypatch):
    """The planted metric counts as one of which less is better, as LogLoss does: the same rows then say the opposite."""
    monkeypatch.setattr("llmkt_ray.report.load.LOWER_IS_BETTER", ("NDCG@10",))


def test_what_helps_where_more_is_better_hurts_where_less_is(tmp_path, monkeypatch):
    results = load(write(tmp_path, WORLD))
    assert find(results)[0].claim.outcome in ("works", "worth it")
    assert choose_alpha(results, find(results)[0].cell).best == 0.5
    assert any("below EASE" in flag for flag in find(results)[0].flags)
    monkeypatch.setattr("llmkt_ray.report.load.LOWER_IS_BETTER", ("NDCG@10",))
    (finding,) = find(results)
    assert finding.claim.outcome == "hurts"
    assert finding.contrasts["alpha0"].relative.estimate == pytest.approx(-0.2, abs=0.03)
    assert choose_alpha(results, finding.cell).best == 0.3
    assert gain_rows(results, [finding]).query("alpha == 0.5")["test"].mean() == pytest.approx(-0.2, abs=0.03)
    assert not any("below EASE" in flag for flag in finding.flags)


def test_a_decrease_is_a_gain_on_the_whole_page(tmp_path, lower):
    world = World(models={"MultiVAE": 0.2}, n_users=400, seed_sd=0.001, treated=lambda model, alpha, layer: -0.2,
                  effects={"baseline": 0.0, "alpha0": 0.0, "shuffled": 0.0, "template": 0.0})  # fmt: skip
    folder = write(tmp_path, world)
    results = load(folder)
    (finding,) = find(results)
    assert finding.claim.outcome == "worth it"
    page = build(folder).read_text()
    assert "lower is better" in page
    assert "NDCG@10, higher is better" not in page
    assert "NDCG@10 (higher is better)" not in page
    section = alpha_curves(results, [finding])
    assert section is not None
    assert "lower is better" in section.caption
    treated = next(c for a, c in finding.grid.items() if a == 0.5)
    low, high = around(results, treated.mean_arm, treated)
    assert low < treated.mean_arm < high < treated.mean_control, "drawn on the metric's own axis, below the control"


def test_users_who_gain_by_a_decrease_are_those_who_gain(tmp_path, monkeypatch):
    """Every second user has 30 % more of the metric and a longer text: where less is better, longer texts go with losses."""
    world = World(models={"MultiVAE": 0.2}, n_users=200, epochs=4, gainers=lambda user: user % 2 == 0, treated=lambda m, a, la: 0.3)
    write_artifacts(tmp_path / "artifacts", world, lambda item: f"Film {item}", lambda user: "Likes drama. " * (2 - user % 2))
    results = load(write(tmp_path / "study", world))

    def rho() -> float:
        section = quality_section(Context(results), find(results))
        assert section is not None
        row = next(row for row in section.tables[0].rows if row[1] == "length")
        return float(row[4].split(" ")[0].replace("\u2212", "-"))

    assert rho() > 0.3
    monkeypatch.setattr("llmkt_ray.report.load.LOWER_IS_BETTER", ("NDCG@10",))
    assert rho() < -0.3


def test_speed_is_counted_downwards(tmp_path, lower):
    """Validation falls from 1 to 0.5 in the first epochs; treated is there at once, alpha0 at the fourth."""
    falls = World(
        models={"MultiVAE": 0.2}, n_users=40, epochs=8,
        curve=lambda spec, epoch, value: 0.5 if spec.arm == "treated" or epoch >= 4 else 1.0,
    )  # fmt: skip
    results = load(write(tmp_path, falls))
    (finding,) = find(results)
    found = evidence_of(results, finding.cell)
    assert found is not None
    assert found.speed["treated"].mean == 1
    assert found.speed["alpha0"].mean == 4
