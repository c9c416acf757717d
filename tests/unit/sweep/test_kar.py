"""KAR and the labelled protocol as parts of a study: what is planned, what is made, what a row holds, what is refused."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmkt_ray.data.split import prepare
from llmkt_ray.embeddings.knowledge import Knowledge
from llmkt_ray.errors import StudyError
from llmkt_ray.profiles.items import ItemTexts
from llmkt_ray.results.folder import study_folder
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.sweep.check import check_study
from llmkt_ray.sweep.plan import make_plan
from llmkt_ray.sweep.run import run_study, store_of
from tests.tiny import ITEMS, USERS, tiny_study

LABELLED = {
    "models": [{"name": "DeepFM", "epochs": 4, "batch_size": 256, "hyperparameters": {"embedding_size": 8}}],
    "evaluation": {"protocol": "labelled"},
}
KAR = {**LABELLED, "embedding": {"batch_size": 64}, "controls": ["alpha0", "static_profile", "kar", "kar_treated"]}
LIKED = {"positive": {"rating_at_least": 4}}


def labelled_study(root, **more):
    study = tiny_study(root, **{**LABELLED, **more})
    return study.model_copy(update={"datasets": tuple(d.model_copy(update={"positive": _rule()}) for d in study.datasets)})


def _rule():
    from llmkt_ray.study import PositiveRule

    return PositiveRule(rating_at_least=4)


def test_a_study_with_kar_runs_from_texts_to_rows(tmp_path):
    study = labelled_study(tmp_path, **KAR, transfer={"alphas": (0.5,)})
    store = store_of(study)
    check_study(study, store)
    run_study(study, executor="loop")
    rows = Ledger(study_folder(study)).trials()
    assert set(rows["status"]) == {"done"}, rows["error_message"].dropna().tolist()
    assert sorted(rows["arm"]) == ["alpha0", "kar", "kar_treated", "static_profile", "treated"]
    by_arm = rows.set_index("arm")
    for metric in ("AUC", "LogLoss", "GAUC"):
        assert np.isfinite(by_arm[f"test_{metric}"]).all()
    parameters = {arm: json.loads(facts)["n_parameters"] for arm, facts in by_arm["facts"].items()}
    assert parameters["alpha0"] == parameters["treated"] < parameters["static_profile"] < parameters["kar"] == parameters["kar_treated"]
    for timings in by_arm["timings"]:
        assert json.loads(timings)["serving_1000_pairs_s"] > 0
    plan = make_plan(study, store)
    (node,) = plan.knowledge
    knowledge = Knowledge.load(store, node.key)
    assert knowledge.users.shape == (USERS, 384)
    assert knowledge.items.shape == (ITEMS, 384)
    kept = knowledge.items[:, knowledge.items.std(axis=0) > 0]
    np.testing.assert_allclose(kept.std(axis=0), 1, atol=1e-3)
    texts = ItemTexts.load(store, node.items.key)
    assert texts.table.column("item_id").to_pylist() == [str(token) for token in prepare_again(study, store).item_tokens]
    assert texts.texts()[1][0].startswith('"Title i')
    assert "kinds are" in texts.texts()[1][0]


def prepare_again(study, store):
    return prepare(study.datasets[0], study_seed=study.seed, store=store)


def test_kar_changes_no_key_of_a_study_without_it(tmp_path):
    plain = tiny_study(tmp_path)
    other = plain.model_copy(update={"kar": plain.kar.model_copy(update={"adaptor": plain.kar.adaptor.model_copy(update={"hidden": 7})})})
    assert other.key == plain.key
    assert [s.key for s in make_plan(other, store_of(other)).trials] == [s.key for s in make_plan(plain, store_of(plain)).trials]
    with_kar = labelled_study(tmp_path, **KAR)
    wider = with_kar.model_copy(update={"kar": other.kar})
    assert wider.key != with_kar.key
    keys = [{spec.arm: spec.key for spec in make_plan(study, store_of(study)).trials} for study in (with_kar, wider)]
    assert {arm for arm in keys[0] if keys[0][arm] != keys[1][arm]} == {"kar", "kar_treated"}


def test_item_texts_of_a_file_are_read_and_bad_ones_refused(tmp_path):
    path = tmp_path / "items.parquet"
    ids = [f"i{item}" for item in range(ITEMS)]
    pq.write_table(pa.table({"item_id": ids, "text": [f"about {name}" for name in ids]}), path)
    study = labelled_study(tmp_path, **KAR, kar={"items": {"llm": "file", "path": str(path)}})
    store = store_of(study)
    data = prepare_again(study, store)
    (node,) = make_plan(study, store).knowledge
    node.items.compute(store)
    texts = dict(zip(*ItemTexts.load(store, node.items.key).texts(), strict=True))
    assert texts == {str(token): f"about {token}" for token in data.item_tokens}
    frame = pq.read_table(path)
    pq.write_table(frame.set_column(1, "text", frame.column("text").cast(pa.large_string())), path)  # as pandas 3 writes strings
    (node,) = make_plan(study, store).knowledge
    node.items.compute(store)
    assert dict(zip(*ItemTexts.load(store, node.items.key).texts(), strict=True)) == texts
    for table, message in (
        (pa.table({"item": ids}), "it needs `item_id` and `text`"),
        (pa.table({"item_id": [*ids, ids[0]], "text": ["x"] * (ITEMS + 1)}), "more than one row for 1 values of `item_id`"),
        # Of many ids each twice, and one of them null: an error in words, and soon.
        (pa.table({"item_id": [*range(100_000), *range(99_999), None], "text": ["x"] * 200_000}), "1 rows without a value in `item_id`"),
        (pa.table({"item_id": [*range(100_000), *range(100_000)], "text": ["x"] * 200_000}), "more than one row for 100,000 values"),
        (pa.table({"item_id": ids, "text": range(ITEMS)}), "int64 in `text`; ids must be"),
        (pa.table({"item_id": ids[:3], "text": ["a", " ", None]}), r"a text for 2\.5% of the 40 items"),
    ):
        pq.write_table(table, path)
        (node,) = make_plan(study, store).knowledge
        with pytest.raises(Exception, match=message):
            node.items.compute(store)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": [{"name": "BPR", "epochs": 4}]}, r"'BPR' cannot be measured under protocol 'labelled': it learns from pairwise"),
        ({"evaluation": {"protocol": "labelled", "references": ["Pop"]}}, r"reference 'Pop' ranks and gives no probabilities"),
        (
            {"evaluation": {"protocol": "labelled", "metrics": ["NDCG@10"], "select_on": "NDCG@10"}},
            r"does not measure NDCG@10; it measures AUC",
        ),
        ({"evaluation": {"protocol": "full", "metrics": ["AUC"], "select_on": "AUC"}}, r"protocol 'full' does not measure AUC"),
        ({**KAR, "kar": {"items": {"llm": "file", "path": "/no/such.parquet"}}}, r"item texts '/no/such.parquet' cannot be read"),
    ],
)
def test_what_cannot_be_measured_or_read_is_refused(tmp_path, changes, message):
    study = labelled_study(tmp_path, **changes)
    with pytest.raises(StudyError, match=message):
        check_study(study, store_of(study))


def test_labels_of_one_kind_and_a_search_for_less_loss_are_refused(tmp_path):
    study = tiny_study(tmp_path, **LABELLED)
    with pytest.raises(StudyError, match=r"every row|all of 'toy' are positives; set positive.rating_at_least"):
        check_study(study, store_of(study))
    with pytest.raises(ValueError, match=r"of LogLoss less is better"):
        tiny_study(tmp_path, **{**LABELLED, "evaluation": {"protocol": "labelled", "select_on": "LogLoss"}, "search": {"kind": "optuna"}})
