"""Traps of the published code that concern whole studies (METHOD.md, section 2), and that every one of the eighteen has a test."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from llmkt_ray.data.prepared import Rows
from llmkt_ray.data.split import prepare
from llmkt_ray.embeddings import targets as module
from llmkt_ray.profiles.generate import generate
from llmkt_ray.profiles.prompts import EstimatedTokens, PromptBuilder, PromptTemplate
from llmkt_ray.study import ARMS, KAR_ARMS, AdaptorConfig, ProfileConfig
from llmkt_ray.sweep.check import check_study
from llmkt_ray.sweep.plan import make_plan
from llmkt_ray.sweep.run import run_study, store_of
from llmkt_ray.training.bridge.knowledge import KnowledgeInput
from llmkt_ray.training.bridge.models import build_model
from llmkt_ray.training.bridge.user_tables import user_tables
from llmkt_ray.transfer.kar import gates
from tests.tiny import tiny_study

TESTS = Path(__file__).parents[2]


def test_every_trap_has_a_test_of_its_name():
    named = {int(n) for file in TESTS.rglob("test_*.py") for n in re.findall(r"^def test_trap_(\d\d)_", file.read_text(), re.MULTILINE)}
    assert named == set(range(1, 19))


def test_trap_02_the_reducer_is_fitted_once_for_all_arms_alphas_and_seeds(tmp_path, monkeypatch):
    """The published code fits UMAP, unseeded, in every run: two runs of one setting then have different targets."""
    fits = []
    original = module.reduce
    monkeypatch.setattr(module, "reduce", lambda *args: fits.append(1) or original(*args))
    study = tiny_study(tmp_path, seeds=3, transfer={"alphas": (0.3, 0.5, 0.7)})
    assert len({spec.targets_key for spec in make_plan(study, store_of(study)).trials if spec.layer}) == 1
    run_study(study, executor="loop")
    assert len(fits) == 1


@pytest.mark.parametrize("llm", ["template", "prompts"])
def test_trap_04_what_is_written_about_a_user_does_not_depend_on_held_out_rows(tmp_path, llm):
    """The published prompts hold all ratings: there, other test rows are other texts. The arm `leaked` is such a text."""
    study = tiny_study(tmp_path)
    store = store_of(study)
    data = prepare(study.datasets[0], study_seed=study.seed, store=store)

    def other(rows: Rows) -> Rows:
        return Rows(rows.user, ((rows.item + 7) % data.n_items).astype(rows.item.dtype), rows.rating, rows.timestamp, rows.positive)

    changed = replace(data, key="changed", valid=other(data.valid), test=other(data.test))

    def texts(of, leaked=False):
        if llm == "template":
            return generate(ProfileConfig(llm="template"), of, store, study_seed=1, leaked=leaked).texts()[1]
        read = of.with_held_out_as_train() if leaked else of
        return [p.messages for p in PromptBuilder(PromptTemplate("movies"), EstimatedTokens(), budget=2048).build(read)]

    assert texts(data) == texts(changed)
    assert texts(data, leaked=True) != texts(changed, leaked=True)
    assert texts(data, leaked=True) != texts(data)


def test_trap_16_and_17_no_arm_has_settings_or_epochs_of_its_own(tmp_path):
    arms = [arm for arm in ARMS if arm not in ("template", "constant")]
    study = tiny_study(tmp_path, controls=arms, seeds=2)
    trials = [spec for spec in make_plan(study, store_of(study)).trials if spec.arm != "reference"]
    assert {spec.arm for spec in trials} == {*arms, "treated"}
    for name in ("hyperparameters", "epochs", "batch_size", "learning_rate", "weight_decay", "evaluate_every", "select_on", "metrics"):
        assert len({str(getattr(spec, name)) for spec in trials}) == 1, name
    assert all({spec.seed_index for spec in trials if spec.arm == arm} == {0, 1} for arm in {*arms, "treated"})


def test_trap_17_a_rival_that_reads_the_profile_has_the_embedding_sizes_of_the_others(tmp_path):
    """The published rival has embeddings of 32 against 96. Here input arms train the very tables of alpha0, plus a projection."""
    study = tiny_study(tmp_path, controls=["alpha0", "input_init", "input_concat"])
    data = prepare(study.datasets[0], study_seed=study.seed, store=store_of(study))
    sizes = {}
    for spec in make_plan(study, store_of(study)).trials:
        if spec.arm != "reference":
            model = build_model(spec.model, data, hyperparameters=spec.hyperparameters, seed=1)
            sizes[spec.arm] = [table.width for table in user_tables(model)]
    assert len(sizes) == 4
    assert set(map(tuple, sizes.values())) == {(8,)}
    assert np.all(np.array([spec.epochs for spec in make_plan(study, store_of(study)).trials if spec.arm != "reference"]) == 4)


def test_trap_17_kar_is_the_whole_adaptor_at_the_sizes_of_the_others(tmp_path):
    """The published rival is one small network at embeddings of 32 against 96: no shared and own experts, no gates, other sizes."""
    changes = {"models": [{"name": "DeepFM", "epochs": 4, "hyperparameters": {"embedding_size": 8}}], "embedding": {"dims": 20}}
    study = tiny_study(tmp_path, **changes, controls=["alpha0", "static_profile", "kar", "kar_treated"])
    store = store_of(study)
    data = prepare(study.datasets[0], study_seed=study.seed, store=store)
    specs = {spec.arm: spec for spec in make_plan(study, store).trials if spec.arm != "reference"}
    assert set(specs) == {"alpha0", "static_profile", "kar", "kar_treated", "treated"}
    for name in ("hyperparameters", "epochs", "batch_size", "learning_rate", "weight_decay", "seed", "evaluate_every"):
        assert len({str(getattr(spec, name)) for spec in specs.values()}) == 1, name
    vectors = torch.randn(data.n_users + 1, 12), torch.randn(data.n_items + 1, 12)
    for arm, spec in specs.items():
        knowledge = KnowledgeInput(arm, *vectors, spec.adaptor or AdaptorConfig()) if spec.knowledge_key else None
        assert (knowledge is not None) == (arm in KAR_ARMS)
        module = build_model(spec.model, data, hyperparameters=spec.hyperparameters, seed=1, knowledge=knowledge).module
        assert module.embedding_size == 8
        if arm in ("kar", "kar_treated"):
            adaptor = module.knowledge.adaptor
            assert len(adaptor.shared_experts) == len(adaptor.preference_experts) == len(adaptor.item_experts) == 2
            both = adaptor.preference(vectors[0][:5]), adaptor.item(vectors[1][:5])
            assert [tuple(part.shape) for part in both] == [(5, 8), (5, 8)]
            for gate in (adaptor.preference_gate, adaptor.item_gate):
                torch.testing.assert_close(gates(vectors[0], gate).sum(dim=1), torch.ones(data.n_users + 1))
            of_shared = [*adaptor.shared_experts.parameters()]
            for part in both:
                found = torch.autograd.grad(part.sum(), of_shared, retain_graph=True)
                assert all(gradient.abs().sum() > 0 for gradient in found), "both towers read the shared experts"


WIDE = {"embedding": {"encoder": "tfidf_svd", "dims": 100}}
REFUSED = {
    "KAR without features": (
        {"controls": ["alpha0", "kar"], "embedding": {"dims": 20}},
        "'kar' is impossible with BPR: it has no table of feature embeddings.*AutoInt, DCN, DCNV2, DeepFM.*leave 'kar' out of `controls`",
    ),
    "KAR in two spaces": ({"models": [{"name": "DeepFM"}], "controls": ["kar"]}, "one space, but encoder 'tfidf_svd' is fitted.*MiniLM"),
    "incompatible widths": ({"reduction": {"method": "pca", "dims": 5}}, r"is 8 wide and the target 5.*transfer\.projection to 'student'"),
    "t-SNE at 64": (
        {"reduction": {"method": "tsne", "dims": 64}, "transfer": {"projection": "student"}, **WIDE},
        "tsne makes 2 or 3 dims, but 64 are wanted",
    ),
    "an integer-valued tap": ({"transfer": {"layers": ("user_embedding:input",)}}, "integer-valued.*user-aligned layers: 'user_embedding'"),
    "a projection on the target": ({"transfer": {"projection": "target"}}, "none.*student.*legacy_slice"),
    "a random split with a sequential model": (
        {"models": [{"name": "SASRec", "epochs": 4}], **WIDE},
        "'SASRec' predicts what comes next, but the split of 'toy' is random.*leave_one_out or time",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_wrong_use_is_refused_with_the_reason_and_what_is_allowed(tmp_path, name):
    changes, message = REFUSED[name]

    def use():
        study = tiny_study(tmp_path, **changes)
        check_study(study, store_of(study))

    with pytest.raises(Exception, match=f"(?s){message}"):
        use()
