"""The page as a file: whole and partial studies."""

import html
import json
import re

import pytest

from llmkt_ray.errors import StorageError
from llmkt_ray.report import build
from llmkt_ray.report.findings import find
from llmkt_ray.report.load import load
from llmkt_ray.report.page import brief_flags
from llmkt_ray.report.run_facts import run_sentences
from llmkt_ray.results.card import CARD
from tests.unit.report import synthetic
from tests.unit.report.synthetic import World, change_a_bit, write, write_artifacts

SMALL = World(seeds=3, n_users=60, epochs=8)


def _text(folder, world=SMALL, **more):
    page = build(write(folder, world, **more)).read_text()
    body = page[page.index("<body>") : page.index('<script type="application/json"')]
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", body)))


def test_a_whole_study(tmp_path):
    text = _text(tmp_path)
    wanted = (
        "45 of 45", "Gains over each control", "Where the gain comes from", "by an LLM (gpt-4o-mini), leak certificate verified",
        "rating of at least 4", "random 0.7/0.1/0.2", "No trial failed", "llmkt run synthetic.yaml", "conditional on one split",
    )  # fmt: skip
    for words in wanted:
        assert words in text, words


def test_every_figure_says_its_unit_direction_n_and_band(tmp_path):
    page = build(write(tmp_path, SMALL)).read_text()
    captions = [re.sub(r"<[^>]+>", "", c) for c in re.findall(r'<p class="caption">(.*?)</p>', page, re.S)]
    assert len(captions) >= 6
    for caption in captions:
        assert "better" in caption or "closer" in caption
        assert "NDCG@10" in caption
    (training,) = (caption for caption in captions if "transfer loss" in caption)
    for caption in captions[:3]:  # gains, attribution, alpha
        assert "n = 60 users, 3 seeds" in caption
        assert "95 % interval" in caption
        assert "conditional on one split" in caption
    assert "n = 3 seeds" in training
    assert "from the lowest to the highest seed" in training


def test_no_figure_of_a_full_page_lacks_its_unit_direction_n_or_band(tmp_path):
    world = World(**{**SMALL.__dict__, "layers": ("encoder.0", "encoder.1"), "datasets": ("ml-100k", "ml-1m")})
    write_artifacts(tmp_path / "artifacts", world, lambda item: f"Film {item}", lambda user: f"Likes drama and {user} films.")
    page = build(write(tmp_path / "study", world)).read_text()
    drawn = {}
    for section in re.findall(r"<section id=.*?</section>", page, re.S):
        if "<figure>" in section:
            (caption,) = re.findall(r'<p class="caption">(.*?)</p>', section, re.S)
            drawn[re.search(r'id="([^"]+)"', section)[1]] = html.unescape(re.sub(r"<[^>]+>", "", caption))
    assert set(drawn) >= {"gains", "attribution", "alpha", "heat", "training", "references", "beyond", "types", "demographics", "quality"}
    for section, caption in drawn.items():
        assert re.search(r"\bn = \d", caption), section
        assert re.search(r"[Bb]etter|lower is closer|neither direction", caption), section
        assert re.search(r"%|NDCG@10|from 0 to 1|from \u22121 to 1|seconds", caption), section
        assert re.search(r"[Mm]arker|[Bb]and|[Bb]ar|[Ll]ine|colour|no interval", caption), section


def test_profiles_that_no_llm_wrote_are_said_so_at_the_top(tmp_path):
    text = _text(tmp_path, World(**{**SMALL.__dict__, "is_llm": False, "engine": "template", "llms": ("template",)}))
    assert text.index("No verdict: no LLM wrote these profiles") < text.index("What was run")


@pytest.mark.parametrize(
    "keep",
    [
        lambda s: s.arm != "alpha0", lambda s: s.arm in ("treated", "alpha0") and s.seed_index == 0, lambda s: s.arm == "baseline",
        lambda s: s.seed_index == 0 or s.arm == "treated", lambda s: s.arm != "treated" or s.alpha == 0.3, lambda s: s.key[0] in "0123456",
    ],
)  # fmt: skip
def test_what_is_missing_of_a_study_never_stops_the_page(tmp_path, keep):
    world = World(**{**SMALL.__dict__, "layers": ("a", "b"), "fails": lambda s: "killed" if s.key[1] in "01" else None})
    write_artifacts(tmp_path / "artifacts", world, lambda item: f"Film {item}", lambda user: f"Likes drama and {user} films.")
    text = _text(tmp_path / "study", world, keep=keep)
    assert re.search(r"[Nn]o verdict|[Ii]nconclusive|makes no difference|works|does harm", text)
    assert "planned trials have a row" in text


def test_users_without_a_value_are_left_out_on_both_sides(tmp_path):
    """AUC by user is not defined for users with one kind of rows only."""
    world = World(**{**SMALL.__dict__, "missing": lambda user: user % 7 == 0})
    write_artifacts(tmp_path / "artifacts", world, lambda item: f"Film {item}", lambda user: f"Likes drama and {user} films.")
    assert "n = 51 users, 3 seeds" in _text(tmp_path / "study", world)


def test_an_interrupted_study_says_how_much_is_missing(tmp_path):
    text = _text(tmp_path, keep=lambda spec: spec.model == "MultiVAE" and spec.arm in ("treated", "alpha0"))
    assert "12 of 45" in text
    assert "planned trials have a row" in text
    assert "no references" in text
    assert "not yet" in text
    assert "the control 'shuffled' was not run or did not finish" in text


def test_baselines_that_have_not_converged_are_told_before_any_treated_trial_has_finished(tmp_path):
    late = World(**{**SMALL.__dict__, "converged": lambda model, arm, seed: model != "SimpleX"})
    text = _text(tmp_path, late, keep=lambda spec: spec.arm in ("baseline", "alpha0", "reference"))
    assert "No verdict: no trial with transfer has finished yet." in text
    assert "SimpleX on ml-1m: alpha0, best epoch at the end in 3 of 3 trials" in text
    assert "MultiVAE on ml-1m: alpha0, best epoch" not in text
    assert re.search(r"Seeds\s*3\b", text), "trained seeds count where nothing treated has finished"


@pytest.mark.parametrize(
    ("protocol", "words"),
    [("full", "with full ranking"), ("paper_2024", "ranking positives among sampled items"), ("labelled", "by telling")],
)
def test_the_page_says_how_test_was_measured(tmp_path, protocol, words):
    folder = write(tmp_path, SMALL)
    card = json.loads((folder / CARD).read_text())
    card["study"]["evaluation"]["protocol"] = protocol
    (folder / CARD).write_text(json.dumps(card))
    results = load(folder)
    assert f"test was opened once a trial, {words}" in run_sentences(results, ())[0]


def test_failures_are_shown_with_their_reason(tmp_path):
    text = _text(tmp_path, World(**{**SMALL.__dict__, "fails": lambda s: "loss became nan in epoch 3" if s.arm == "shuffled" else None}))
    assert "6 trials failed" in text
    assert "loss became nan in epoch 3" in text


def test_a_study_in_which_everything_failed(tmp_path):
    text = _text(tmp_path, World(**{**SMALL.__dict__, "fails": lambda spec: "no such file"}))
    assert "No verdict" in text
    assert "0 of 45" in text


def test_one_seed_is_conditional_on_it(tmp_path):
    text = _text(tmp_path, World(**{**SMALL.__dict__, "seeds": 1}))
    assert "Inconclusive: 1 seed: the intervals are conditional on these seeds" in text
    assert "few seeds" in text


@pytest.mark.parametrize(("splits", "over"), [(1, "users only"), (3, "splits")])
def test_few_seeds_say_what_the_intervals_are_over(tmp_path, splits, over):
    text = _text(tmp_path, World(**{**SMALL.__dict__, "seeds": 2, "splits": splits}))
    assert f"2 seeds: intervals are over {over}, conditional on these seeds." in text


@pytest.mark.parametrize(
    "arms", [("baseline", "alpha0", "shuffled", "template", "treated", "reference"), ("alpha0", "shuffled", "template")]
)
def test_arms_that_hit_nothing_at_all_still_make_a_page(tmp_path, monkeypatch, arms):
    """A model that never ranks a liked item in the first ten has NDCG 0 for everyone: nothing is relative to it."""
    usual = synthetic._user_values
    monkeypatch.setattr(
        synthetic, "_user_values",
        lambda world, spec, mean: {m: v * (spec.arm not in arms) for m, v in usual(world, spec, mean).items()},
    )  # fmt: skip
    world = World(**{**SMALL.__dict__, "models": {"MultiVAE": 0.2, "SimpleX": 0.2, "BPR": 0.2}})
    text = _text(tmp_path, world)
    assert "below EASE" not in text or "reference" not in arms
    assert "nan" not in text.lower().split()


def test_an_arm_that_has_seen_test_is_told(tmp_path):
    effects = {"baseline": 0.0, "alpha0": 0.0, "shuffled": 0.0, "template": 0.0, "leaked": 0.5}
    world = World(**{**SMALL.__dict__, "arms": tuple(effects), "effects": effects})
    findings = find(load(write(tmp_path, world)))
    assert all("leaked" in f.levels and "leaked" not in f.contrasts for f in findings)
    text = re.sub(r"<[^>]+>", " ", build(tmp_path).read_text())
    assert "The arm leaked learns from profiles written from all ratings, those of test included, on purpose" in text
    assert "The arm leaked" not in _text(tmp_path / "without")


def test_a_dataset_with_one_split_beside_one_with_three_is_named(tmp_path):
    world = World(**{**SMALL.__dict__, "models": {"MultiVAE": 0.2}, "datasets": ("ml-100k", "ml-1m"), "splits": 3})
    text = _text(tmp_path, world, keep=lambda spec: spec.dataset == "ml-100k" or spec.factors.get("split_repetition") == 0)
    assert "Every number of ml-1m is conditional on one split" in text


def test_before_the_first_trial(tmp_path):
    assert "No verdict: nothing has finished yet." in _text(tmp_path, keep=lambda spec: False)


def test_references_alone(tmp_path):
    assert "No verdict: no trial with transfer has finished yet." in _text(tmp_path, keep=lambda spec: spec.arm == "reference")


def test_without_a_card_nothing_is_claimed(tmp_path):
    (write(tmp_path, SMALL) / CARD).unlink()
    text = re.sub(r"<[^>]+>", " ", build(tmp_path).read_text())
    assert "No verdict: nothing is known of who wrote the profiles" in text


def test_a_damaged_row_is_reported_and_left_out(tmp_path):
    write(tmp_path, SMALL, single=True)
    path = next((tmp_path / "ledger/trials").iterdir())
    path.write_bytes(b"PAR1 half a file")
    assert f"1 file of the ledger cannot be read as it was written: ledger/trials/{path.name}" in build(tmp_path).read_text()


@pytest.mark.parametrize("column", ["user:NDCG@10", "epoch:loss_model", "recommended"])
def test_a_changed_bit_never_becomes_another_number_on_the_page(tmp_path, column):
    """Users, epochs and lists are read after the scalars: a page that did not check them drew what a bit had made of them."""
    write_artifacts(tmp_path / "artifacts", SMALL, lambda item: f"Film {item}", lambda user: f"Likes film number {user}.")
    folder = write(tmp_path / "study", SMALL, keep=lambda spec: spec.arm != "reference", single=True)
    (key,) = (spec.key for spec in synthetic.specs(SMALL, synthetic.study_of(SMALL)) if is_first_treated(spec))
    change_a_bit(folder / f"ledger/trials/{key}.parquet", column)
    text = build(folder).read_text()
    assert f"1 file of the ledger cannot be read as it was written: ledger/trials/{key}.parquet" in text
    results = load(folder)
    kept = results.user_values("NDCG@10").keys()
    assert (key in kept) == (column != "user:NDCG@10")
    assert (key in results.epochs_by_trial) == (column != "epoch:loss_model")
    assert len(kept) == len(results.trials) - (column == "user:NDCG@10")


def is_first_treated(spec):
    return (spec.arm, spec.alpha, spec.seed_index) == ("treated", 0.5, 0) and spec.model == next(iter(SMALL.models))


def test_of_a_part_with_a_changed_bit_the_other_groups_are_read(tmp_path):
    folder = write(tmp_path, World(seeds=6, n_users=20))
    (path,) = (folder / "ledger/parts").iterdir()
    change_a_bit(path, "user:NDCG@10")
    results = load(folder)
    assert len(results.user_values("NDCG@10")) == len(results.trials) - synthetic.ROWS_A_GROUP > 0
    assert results.damaged == {f"ledger/parts/{path.name}"}


def test_users_who_moved_are_shown_with_their_text_and_items(tmp_path):
    write_artifacts(tmp_path / "artifacts", SMALL, lambda item: f"Film {item}", lambda user: f"Likes film number {user}.")
    text = _text(tmp_path / "study")
    assert "Users who gained and users who lost" in text
    assert re.search(r"u000(\d\d) \+0\.\d+ .*?Likes film number \d+\.", text)
    assert "Film 3" in text  # entered the list
    assert "Film 8" in text  # left it
    assert "Film 5" not in text  # stayed


def test_without_the_artifacts_there_are_no_texts(tmp_path):
    assert "Users who gained" not in _text(tmp_path / "study")


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(StorageError, match="there are no results in"):
        build(tmp_path)


def test_compacted_rows_give_the_same_page(tmp_path):
    from llmkt_ray.results.ledger import Ledger

    write(tmp_path, SMALL, single=True)
    before = build(tmp_path).read_text()
    assert Ledger(tmp_path).compact(at_least=1) == 45
    assert build(tmp_path).read_text() == before


def test_a_card_with_unknown_facts_still_makes_a_page(tmp_path):
    write(tmp_path, SMALL)
    card = json.loads((tmp_path / CARD).read_text())
    card["datasets"] = [{"name": "ml-1m"}]
    card["targets"] = [{}]
    card["hardware"] = None
    (tmp_path / CARD).write_text(json.dumps(card))
    assert build(tmp_path).exists()


def test_what_an_encoder_does_not_read_stands_among_the_flags_beside_the_targets_and_beside_profile_quality(tmp_path):
    write_artifacts(tmp_path / "artifacts", SMALL, lambda item: f"Film {item}", lambda user: f"Likes drama and {user} films.")
    folder = write(tmp_path / "study", SMALL)
    card = json.loads((folder / CARD).read_text())
    notes = {"tokens_read": 256, "tokens_possible": 512, "texts_cut": 0.995, "tokens_cut": 0.433}
    card["embeddings"] = [{**entry, "notes": notes} for entry in card["embeddings"]]
    (folder / CARD).write_text(json.dumps(card))
    page = html.unescape(build(folder).read_text())
    said = "99.5% of the texts of gpt-4o-mini (ml-1m) are longer than the 256 tokens that all-MiniLM-L6-v2 reads"
    assert said in page[: page.index("What was run")]
    assert said in re.search(r'<section id="quality".*?</section>', page, re.S)[0]
    row = re.search(r"texts cut by it.*?</tbody>", page, re.S)[0]
    assert "99.5%" in row
    assert "43.3%" in row


def test_a_flag_that_holds_everywhere_is_said_once():
    flags = [("one split", "a"), ("not converged", "x: baseline"), ("not converged", "y: baseline"), ("not converged", "z: alpha0")]
    assert brief_flags(flags) == [("one split", "a"), ("not converged", "x: baseline; and 2 more of this kind, in the table below")]
    assert brief_flags(flags[:2]) == flags[:2]
