"""Every control arm of METHOD.md section 4 is a value of the study, through check, plan, run and row."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.embeddings.targets import Targets
from llmkt_ray.errors import StudyError
from llmkt_ray.profiles.table import Profiles
from llmkt_ray.report.cells import find_cells
from llmkt_ray.report.findings import find
from llmkt_ray.report.load import load
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.results.summary import summarise
from llmkt_ray.study import ARMS as EVERY_ARM
from llmkt_ray.study import KAR_ARMS
from llmkt_ray.sweep.check import check_study
from llmkt_ray.sweep.pipeline import embedding_nodes, profile_nodes, split_nodes, twin_embedding
from llmkt_ray.sweep.plan import make_plan
from llmkt_ray.sweep.run import run_study, store_of
from tests.tiny import USERS, tiny_study

ARMS = tuple(arm for arm in EVERY_ARM if arm not in KAR_ARMS)
"""The arms of ranking models; KAR's need a table of feature embeddings."""


def texts(folder):
    """A file of profiles that name the user's taste, as an LLM would have written them."""
    tastes = ["drama", "comedy", "horror", "western"]
    file = folder / "texts.parquet"
    profiles = [
        f"Reader {u} loves {tastes[u % 4]} and hates {tastes[(u + 1) % 4]}, mostly in {'winter' if u % 3 else 'may'}" for u in range(USERS)
    ]
    pq.write_table(pa.table({"user_id": [f"u{u}" for u in range(USERS)], "profile": profiles}), file)
    return {"llm": "file", "name": "llm", "path": str(file)}


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A study with every arm that a file of profiles allows, and one with `leaked`, which a file does not allow."""
    root = tmp_path_factory.mktemp("arms")
    common = {"transfer": {"alphas": (0.5,)}, "evaluation": {"references": ()}}
    whole = tiny_study(root, profiles=[texts(root)], controls=[a for a in ARMS if a != "leaked"], **common)
    leaking = tiny_study(root, name="leaking", controls=["leaked", "alpha0"], **common)
    for study in (whole, leaking):
        check_study(study, store_of(study))
        run_study(study, executor="loop", console=Console(file=io.StringIO()))
    return whole, leaking


def rows_of(study):
    return Ledger(f"{study.storage}/{study.name}").trials().set_index("arm")


def test_every_arm_has_its_row_and_none_failed(ran):
    whole, leaking = (rows_of(study) for study in ran)
    assert {*whole.index, *leaking.index} == {*ARMS, "treated"}
    assert (whole["status"] == "done").all()
    assert (leaking["status"] == "done").all()


def test_arms_with_targets_of_their_own_share_all_but_the_targets(ran):
    rows, specs = rows_of(ran[0]), {s.arm: s for s in make_plan(ran[0], store_of(ran[0])).trials}
    treated = specs["treated"]
    for arm in ("template", "item_mean"):
        changed = {name for name in type(treated).model_fields if getattr(specs[arm], name) != getattr(treated, name)}
        assert changed == {"arm", "targets_key", "twin_key"}
        assert specs[arm].twin_key == treated.targets_key
        assert rows.loc[arm, "facts"] != rows.loc["alpha0", "facts"]
    beta = {arm: json.loads(rows.loc[arm, "facts"])["beta"] for arm in ("treated", "template", "item_mean", "shuffled")}
    assert len(set(beta.values())) == 1, "control twins share the balance of the treated arm"


@pytest.mark.parametrize(("declares", "reads_all"), [("train_digest", True), ("column", True), (None, True), ("key", False)])
def test_where_the_data_are_thinned_twins_read_the_history_that_a_file_was_written_from(tmp_path, declares, reads_all):
    """A file's texts are of all train rows unless it names the thinned split; a template of fewer rows would be no twin."""
    study = tiny_study(
        tmp_path, profiles=[texts(tmp_path)], datasets=[{"name": "toy", "path": str(tmp_path / "toy"), "train_share": [1, 0.25]}]
    )
    whole, thin = split_nodes(study)
    named = {"key": thin.key, "train_digest": "0" * 20}.get(str(declares), declares)
    config = study.profiles[0].model_copy(update={"declares_split": named})

    def twins(split):
        (profiles,) = profile_nodes(study.model_copy(update={"profiles": (config,)}), split)
        (embedding,) = embedding_nodes(study, profiles)
        template, means = (twin_embedding(study, embedding, arm) for arm in ("template", "item_mean"))
        return template.profiles.config.full_history, means.full_history

    assert twins(thin) == (reads_all, reads_all)
    assert twins(whole) == (False, False), "there all of it is what models learn from: one template for all profiles"


def test_a_template_twin_says_what_the_prompt_says_of_a_user(tmp_path):
    study = tiny_study(tmp_path, profiles=[{"llm": "openai", "model": "m", "demographics": True}])
    (profiles,) = profile_nodes(study, split_nodes(study)[0])
    (embedding,) = embedding_nodes(study, profiles)
    assert twin_embedding(study, embedding, "template").profiles.config.demographics


def test_template_and_item_mean_refit_the_reducer_on_texts_of_their_own(ran):
    store, specs = store_of(ran[0]), {s.arm: s for s in make_plan(ran[0], store_of(ran[0])).trials}
    treated, template, means = (Targets.load(store, specs[arm].targets_key) for arm in ("treated", "template", "item_mean"))
    for other in (template, means):
        assert other.matrix.shape == treated.matrix.shape
        assert not np.allclose(other.matrix, treated.matrix)
        np.testing.assert_array_equal(other.present, treated.present)
        assert other.notes["trustworthiness"] > 0, "a reduction of its own, with figures of its own"


def test_leaked_profiles_are_written_from_all_ratings_and_certified_so(ran):
    plan = make_plan(ran[1], store_of(ran[1]))
    certificates = {node.source: Profiles.load(store_of(ran[1]), node.key).certificate for node in plan.profiles}
    assert certificates["template"].status == "verified"
    assert certificates["template (leaked)"].status == "leaked"
    assert certificates["template (leaked)"].leaks > 0
    assert not certificates["template (leaked)"].allows_verdict


def test_leaked_is_shown_and_takes_part_in_no_contrast_or_verdict(ran):
    (finding,) = find(load(f"{ran[1].storage}/{ran[1].name}"))
    assert "leaked" in finding.levels
    assert set(finding.contrasts) == set(finding.holm) == {"alpha0"}


def test_direct_input_transfers_nothing_and_is_alpha0s_twin(ran):
    specs, rows = {s.arm: s for s in make_plan(ran[0], store_of(ran[0])).trials}, rows_of(ran[0])
    for arm in ("input_init", "input_concat"):
        changed = {n for n in type(specs[arm]).model_fields if getattr(specs[arm], n) != getattr(specs["alpha0"], n)}
        assert changed == {"arm", "targets_key", "factors"}
        assert rows.loc[arm, "test_NDCG@10"] != rows.loc["alpha0", "test_NDCG@10"]


def test_the_report_and_the_summary_put_every_arm_into_its_cell(ran):
    results = load(f"{ran[0].storage}/{ran[0].name}")
    (cell,) = find_cells(results)
    assert set(cell.controls) == {a for a in ARMS if a != "leaked"}
    lines, _ = summarise(results.trials, "NDCG@10", 0.5)
    assert len(lines) == 1
    assert set(lines[0].arms) == {"alpha 0.5", *(a for a in ARMS if a != "leaked")}


REFUSED = {
    "a template of a template": ({"controls": ["template"]}, "control 'template' is impossible with profiles 'template'"),
    "a constant between users": (
        {"controls": ["constant"], "transfer": {"loss": ["mse", "infonce"]}},
        "control 'constant' is impossible with loss 'infonce'",
    ),
    "input without a user table": (
        {"models": [{"name": "MultiVAE", "epochs": 4}], "controls": ["input_init"], "reduction": {"method": "pca", "dims": 8}},
        "control 'input_init' is impossible with MultiVAE: it has no table with a row for each user",
    ),
    "input of another width": (
        {"controls": ["input_init"], "reduction": {"method": "pca", "dims": 5}, "transfer": {"projection": "student"}},
        r"'input_init' needs targets as wide as the user table of BPR \(user_embedding 8\), but they are 5 wide",
    ),
    "two tables of different width": (
        {
            "models": [{"name": "NeuMF", "hyperparameters": {"mf_embedding_size": 8, "mlp_embedding_size": 16, "mlp_hidden_size": [8]}}],
            "controls": ["input_init"],
        },
        r"its user tables differ in width \(user_mf_embedding 8, user_mlp_embedding 16\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_impossible_arm_is_refused_by_name(tmp_path, name):
    changes, message = REFUSED[name]
    study = tiny_study(tmp_path, **changes)
    with pytest.raises(StudyError, match=message):
        check_study(study, store_of(study))


def test_leaked_texts_of_a_file_are_refused(tmp_path):
    study = tiny_study(tmp_path, profiles=[texts(tmp_path)], controls=["leaked"])
    with pytest.raises(StudyError, match="control 'leaked' is impossible with profiles 'llm': texts of a file cannot be written again"):
        check_study(study, store_of(study))


def test_item_mean_without_item_texts_is_refused_before_training(tmp_path):
    study = tiny_study(tmp_path, profiles=[texts(tmp_path)], controls=["item_mean"])
    (tmp_path / "toy" / "items.parquet").unlink()
    with pytest.raises(StudyError, match="control 'item_mean' is impossible on 'toy': its items have no title"):
        run_study(study, executor="loop", console=Console(file=io.StringIO()))


def test_a_model_may_have_controls_of_its_own(tmp_path):
    models = [{"name": "BPR", "epochs": 4}, {"name": "MultiVAE", "epochs": 4, "controls": ["baseline", "alpha0"]}]
    study = tiny_study(
        tmp_path,
        models=models,
        controls=["alpha0", "input_init"],
        embedding={"encoder": "tfidf_svd", "dims": 50},
        reduction={"method": "pca", "dims": 16},
        transfer={"projection": "student", "alphas": (0.5,)},
    )
    study = study.model_copy(
        update={
            "models": tuple(
                m.model_copy(update={"hyperparameters": {"embedding_size": 16}}) if m.name == "BPR" else m for m in study.models
            )
        }
    )
    check_study(study, store_of(study))
    arms = {(s.model, s.arm) for s in make_plan(study, store_of(study)).trials if s.arm != "reference"}
    assert arms == {
        ("BPR", "alpha0"),
        ("BPR", "input_init"),
        ("BPR", "treated"),
        ("MultiVAE", "baseline"),
        ("MultiVAE", "alpha0"),
        ("MultiVAE", "treated"),
    }


def test_refused_controls_name_what_there_is(tmp_path):
    with pytest.raises(Exception, match="input_concat"):
        tiny_study(tmp_path, controls=["shuffle"])


def test_sparsity_is_a_factor_whose_achieved_value_is_in_the_row(tmp_path):
    """Shares thin what is learnt from, a user keeps at least 3 rows; validation, test and masks are those of the full split."""
    study = tiny_study(tmp_path, controls=["alpha0"], evaluation={"references": ()}, transfer={"alphas": (0.5,)})
    dataset = study.datasets[0].model_copy(update={"train_share": (1.0, 0.25, 0.05)})
    study = study.model_copy(update={"datasets": (dataset,)})
    run_study(study, executor="loop", console=Console(file=io.StringIO()))
    rows = Ledger(f"{study.storage}/{study.name}").trials()
    assert (rows["status"] == "done").all()
    achieved = {share: {json.loads(facts)["sparsity"] for facts in of["facts"]} for share, of in rows.groupby("train_share")}
    assert {len(values) for values in achieved.values()} == {1}, "one value for all arms of a share"
    full, quarter, least = (achieved[share].pop() for share in (1.0, 0.25, 0.05))
    assert full < quarter <= least
    splits = [PreparedData.load(store_of(study), node.key) for node in split_nodes(study)]
    for data in splits:
        kept = np.bincount(data.train.user, minlength=data.n_users)
        assert kept[kept > 0].min() >= min(3, np.bincount(data.train_full.user, minlength=data.n_users).min())
        np.testing.assert_array_equal(data.test.item, splits[0].test.item)
        np.testing.assert_array_equal(data.valid.item, splits[0].valid.item)
        np.testing.assert_array_equal(data.train_full.item, splits[0].train_full.item)
    assert least == 1 - len(splits[2].train.positives()) / (splits[2].n_users * splits[2].n_items)
