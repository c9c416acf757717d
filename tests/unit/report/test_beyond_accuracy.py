"""Beyond accuracy, user types, demographic groups, profile quality: sections from real artifacts with planted truths."""

import dataclasses

import numpy as np
import pytest

from llmkt_ray.data.user_types import THIRDS
from llmkt_ray.report.context import Context
from llmkt_ray.report.findings import find
from llmkt_ray.report.load import load
from llmkt_ray.report.sections.beyond import beyond_section
from llmkt_ray.report.sections.groups import demographics_section, user_types_section
from llmkt_ray.report.sections.quality import quality_section
from llmkt_ray.report.sections.types import Group, differs_most, profile_types_section
from llmkt_ray.report.sections.users import users_section
from llmkt_ray.stats.interval import interval
from tests.unit.report.synthetic import World, write, write_artifacts

N = 120
WORLD = World(
    models={"MultiVAE": 0.3}, seeds=4, n_users=N, epochs=4, alphas=(0.5,), seed_sd=0.002, gainers=lambda user: user < N // 2,
    treated=lambda model, alpha, layer: 0.3, effects={"baseline": 0.0, "alpha0": 0.0, "shuffled": 0.0, "template": 0.0},
)  # fmt: skip


def made(root, world=WORLD, text=lambda user: "Loves drama and comedy, horror too." if user < N // 2 else "Likes films."):
    write_artifacts(root / "artifacts", world, lambda item: f"Film {item}", text)
    results = load(write(root / "study", world))
    return Context(results), find(results)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return made(tmp_path_factory.mktemp("study"))


def rows_of(section, title):
    table = next(t for t in section.tables if t.title == title)
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def test_measures_of_the_lists_are_those_of_the_planted_lists(study):
    section = beyond_section(*study)
    arms = {row["arm"]: row for row in rows_of(section, "Arm by arm")}
    assert set(arms) >= {"treated", "alpha0", "baseline", "shuffled", "template", "EASE", "ItemKNN", "Pop"}
    # Everyone gets items 3 to 7 when treated, 4 to 8 without: half the catalogue; item 3 is a hit and popular, item 8 a hit and rare.
    assert arms["treated"]["catalogue coverage"] == "0.500"
    assert arms["treated"]["long-tail recall"] == arms["alpha0"]["long-tail recall"] == "0.500"
    assert float(arms["treated"]["novelty"]) < float(arms["alpha0"]["novelty"])
    assert float(arms["treated"]["list popularity"]) > float(arms["alpha0"]["list popularity"])
    assert 0 < float(arms["treated"]["intra-list diversity"]) < 1


def test_the_change_is_paired_and_has_an_interval(study):
    section = beyond_section(*study)
    change = {row["measure"]: row for row in rows_of(section, "Treated over alpha0")}
    assert change["catalogue coverage"]["difference [95 %]"].startswith("+0.000 [")
    assert change["list popularity"]["relative [95 %]"].startswith("+")
    assert len(section.figures) == 1
    for words in ("right is more", "Line: 95 % interval", "n = ", "users", "alpha0", "Better is right"):
        assert words in section.caption + section.figures[0].canvas.summary + str(section.figures[0].canvas.marks), words


def test_active_users_gain_and_the_others_do_not(study):
    section = user_types_section(*study)
    rows = {(row["by"], row["group"]): row for row in rows_of(section, "Every group")}
    assert {kind for kind, _ in rows} == {"activity", "popularity affinity", "genre entropy", "recency"}
    relative = {
        group: float(rows["activity", group]["relative [95 %]"].split("\u202f")[0])
        for group in ("low", "high")
        if ("activity", group) in rows
    }
    assert relative["high"] > 20
    early = rows["recency", "low"], rows["recency", "high"]  # the first half of the users has the earlier rows
    gains = [float(row["relative [95 %]"].split("\u202f")[0].replace("\u2212", "-")) for row in early]
    assert gains[0] > 20
    assert abs(gains[1]) < 10
    assert "Thirds of the evaluated users" in section.caption


def test_demographic_groups_are_shown_where_there_are_any(study, tmp_path):
    section = demographics_section(*study)
    assert [(row["by"], row["group"], row["users"]) for row in rows_of(section, "Every group")] == [
        ("gender", "F", "60"),
        ("gender", "M", "60"),
    ]
    assert "n = 60 users" in section.caption


def test_better_profiles_go_with_larger_gains_where_they_do(study):
    rows = {row["measure of the profile"]: row for row in rows_of(quality_section(*study), "Every measure")}
    assert set(rows) == {"length", "distinctiveness", "genre precision", "genre recall"}
    low = float(rows["genre recall"]["Spearman's rho [95 %]"].split("[")[1].split(",")[0].replace("\u2212", "-"))
    assert low > 0.3


def test_profiles_are_described_by_type_of_user(study):
    """The first half of the users are the more active ones, and their texts name more of their genres."""
    section = profile_types_section(*study)
    rows = {(row["measure"], row["by"], row["third"]): row["against all users [95 %]"] for row in rows_of(section, "Every type")}
    assert {by for _, by, _ in rows} == {"activity", "popularity affinity", "genre entropy", "recency"}
    assert {measure for measure, _, _ in rows} == {"length", "distinctiveness", "genre precision", "genre recall"}
    assert rows["genre recall", "recency", "low"].startswith("+")
    assert rows["genre recall", "recency", "high"].startswith("\u2212")
    assert "Quality and diversity of the profiles" in section.lead
    assert "n = " in section.caption


def test_profiles_that_differ_by_chance_only_are_inconclusive():
    """Of 48 groups without any difference some interval leaves out 0: what is said rests on p corrected for all of them."""
    rng = np.random.default_rng(5)
    groups = [
        Group(
            "ml-1m", "gpt-4o-mini", f"measure {k // 12}", "", f"kind {k // 3 % 4}", THIRDS[k % 3], 1.0, interval(rng.normal(size=(1, 40)))
        )
        for k in range(48)
    ]
    assert any(g.relative.low > 0 or g.relative.high < 0 for g in groups)
    assert differs_most(groups).startswith("Inconclusive: ")
    planted = dataclasses.replace(groups[20], relative=interval(rng.normal(2, 1, size=(1, 40))))
    assert differs_most([*groups, planted]).startswith(f"They differ most for users of {planted.third} {planted.kind}: {planted.measure} +")


def test_profiles_that_say_nothing_about_the_gain_are_not_credited(tmp_path):
    section = quality_section(*made(tmp_path, text=lambda user: "Loves drama. " * (1 + user % 7)))
    row = next(row for row in rows_of(section, "Every measure") if row["measure of the profile"] == "length")
    low, high = (float(part.replace("\u2212", "-").strip(" ]")) for part in row["Spearman's rho [95 %]"].split("[")[1].split(","))
    assert low < 0 < high


def test_several_splits_are_taken_together(tmp_path):
    context, findings = made(tmp_path, dataclasses.replace(WORLD, splits=3, seeds=1))
    assert "(t over splits); conditional on these seeds." in beyond_section(context, findings).caption
    assert user_types_section(context, findings) is not None


def test_a_split_that_only_one_arm_has_moves_no_user_to_another_group(tmp_path):
    """The first split has no seed that both arms finished: groups and users are those of the second."""
    world = dataclasses.replace(WORLD, splits=2, seeds=2)
    write_artifacts(tmp_path / "artifacts", world, lambda item: f"Film {item}", lambda user: "Loves drama and horror. " * (1 + user % 3))
    seed_of = {"treated": 0, "shuffled": 0, "alpha0": 1}
    is_run = lambda spec: spec.factors["split_repetition"] == 1 or seed_of.get(spec.arm) in (None, spec.seed_index)  # noqa: E731
    results = load(write(tmp_path / "study", world, keep=is_run))
    context, findings = Context(results), find(results)
    asked: list[int] = []
    found = context.split_of
    context.split_of = lambda runs, repetition=0: asked.append(repetition) or found(runs, repetition)  # type: ignore[method-assign]
    assert user_types_section(context, findings) is not None
    assert users_section(context, findings) is not None
    assert set(asked) == {1}


def test_profile_quality_is_read_on_a_split_that_both_arms_have(tmp_path):
    world = dataclasses.replace(WORLD, splits=2, seeds=2)
    write_artifacts(tmp_path / "artifacts", world, lambda item: f"Film {item}", lambda user: "Loves drama and horror. " * (1 + user % 3))
    keep = lambda spec: spec.arm != "shuffled" or spec.factors["split_repetition"] == 1  # noqa: E731
    results = load(write(tmp_path / "study", world, keep=keep))
    context = Context(results)
    asked: list[int] = []
    found = context.split_of
    context.split_of = lambda runs, repetition=0: asked.append(repetition) or found(runs, repetition)  # type: ignore[method-assign]
    quality_section(context, find(results))
    assert asked == [1]


def test_without_artifacts_the_sections_stay_away(tmp_path):
    results = load(write(tmp_path / "study", WORLD))
    context, findings = Context(results), find(results)
    assert [make(context, findings) for make in (beyond_section, user_types_section, demographics_section, quality_section)] == [None] * 4
