"""Knowledge as feature fields: every model that is offered, what it reads, and that evaluation serves the same numbers as training."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from llmkt_ray.embeddings.knowledge import Knowledge
from llmkt_ray.errors import TrainingError
from llmkt_ray.study import AdaptorConfig
from llmkt_ray.training.bridge.knowledge import TAKES_FIELDS, KnowledgeInput, knowledge_problem
from llmkt_ray.training.bridge.models import build_model
from llmkt_ray.training.inputs import knowledge_input
from llmkt_ray.training.layers import probe_split
from llmkt_ray.training.spec import TrialArtifacts
from tests.unit.training.conftest import make_spec

DIMS = 6


def built(model, arm="kar", seed=3, scale=1.0, **sizes):
    split = probe_split()
    generator = torch.Generator().manual_seed(5)
    tables = [torch.randn(n + 1, DIMS, generator=generator) * scale for n in (split.n_users, split.n_items)]
    given = KnowledgeInput(arm, *tables, AdaptorConfig(**sizes))
    return build_model(model, split, hyperparameters={"embedding_size": 8}, seed=seed, knowledge=given)


def batch_of(model):
    return model.labelled(torch.tensor([1, 2, 3, 4]), torch.tensor([4, 3, 2, 1]), torch.tensor([1.0, 0.0, 1.0, 0.0]))


@pytest.mark.parametrize("arm", ["static_profile", "kar"])
@pytest.mark.parametrize("name", TAKES_FIELDS)
def test_every_model_that_is_offered_learns_from_the_knowledge(name, arm):
    model = built(name, arm)
    model.module.train()
    model.loss(batch_of(model)).backward()
    knowledge = model.module.knowledge
    learnt = [parameter.grad is not None and bool(parameter.grad.abs().sum() > 0) for parameter in knowledge.parameters()]
    assert sum(learnt) > len(learnt) / 2, f"the knowledge of {name} takes no gradient"
    pairs = torch.arange(4), torch.arange(4)
    model.module.eval()
    before = model.probabilities(*pairs)
    knowledge.users[2] += 3.0  # RecBole's id of user index 1
    model.module.eval()
    changed = (model.probabilities(*pairs) != before).tolist()
    assert changed == [False, True, False, False]


@pytest.mark.parametrize("arm", ["static_profile", "kar", "kar_treated"])
@pytest.mark.parametrize("name", TAKES_FIELDS)
def test_an_arm_with_knowledge_starts_from_the_weights_of_its_twins(name, arm):
    """All but the layers that the further fields make wider."""
    plain = build_model(name, probe_split(), hyperparameters={"embedding_size": 8}, seed=3).module
    own, twins = dict(built(name, arm).module.named_parameters()), dict(plain.named_parameters())
    tables = [each for each in twins if "embedding_table" in each]
    shared = [each for each in twins if own[each].shape == twins[each].shape]
    assert tables
    assert set(tables) <= set(shared)
    assert all(torch.equal(own[each], twins[each]) for each in shared)
    assert len(own) > len(twins)


def test_kar_reads_the_item_too_and_the_static_profile_does_not():
    for arm, reads in (("kar", True), ("static_profile", False)):
        model = built("DeepFM", arm)
        model.module.eval()
        before = model.probabilities(torch.arange(4), torch.arange(4))
        model.module.knowledge.items[3] += 3.0
        model.module.eval()
        after = model.probabilities(torch.arange(4), torch.arange(4))
        assert bool((before != after)[2]) is reads
        assert not bool((before != after)[[0, 1, 3]].any())


def test_vectors_that_are_kept_for_serving_are_those_of_training_and_follow_the_weights():
    model = built("DCN")
    knowledge = model.module.knowledge
    users, items = torch.tensor([0, 3, 1, 3]), torch.tensor([2, 2, 0, 5])
    model.module.train()
    made = knowledge(users, items)
    model.module.eval()
    with torch.no_grad():
        torch.testing.assert_close(knowledge(users, items), made.detach())
        knowledge.adaptor.item_gate.bias += torch.tensor([3.0, 0.0, 0.0, -2.0])
        model.module.train()
        changed = knowledge(users, items)  # without gradients, still in training: nothing stale
        model.module.eval()
        torch.testing.assert_close(knowledge(users, items), changed)
    assert not torch.allclose(made.detach(), changed)


def test_a_tower_sums_its_experts_by_its_gates():
    knowledge = built("DeepFM", shared_experts=1, own_experts=2, hidden=5).module.knowledge
    vectors = torch.randn(7, DIMS)
    weights = torch.softmax(knowledge.adaptor.item_gate(vectors), dim=1)
    experts = [*knowledge.adaptor.shared_experts, *knowledge.adaptor.item_experts]
    expected = sum(weights[:, [n]] * expert(vectors) for n, expert in enumerate(experts))
    torch.testing.assert_close(knowledge.adaptor.item(vectors), expected)
    assert len(experts) == 3


def test_models_without_fields_are_refused_by_name():
    assert "impossible with BPR" in str(knowledge_problem("kar", "BPR"))
    assert knowledge_problem("kar", "Mine", ["Mine", "DeepFM"]) is None
    with pytest.raises(TrainingError, match=r"'kar' is impossible with LR: .*DeepFM"):
        built("LR")


def test_knowledge_of_other_users_or_in_another_order_is_refused(data):
    spec = make_spec(data, "DeepFM", "kar").model_copy(update={"knowledge_key": "k"})
    vectors = np.ones((data.n_users, 3), np.float32), np.ones((data.n_items, 3), np.float32)
    knowledge = Knowledge("k", *vectors, data.user_tokens, data.item_tokens)
    given = knowledge_input(spec, TrialArtifacts(data, knowledge=knowledge), "cpu")
    assert given is not None
    assert given.users[0].tolist() == [0, 0, 0]
    assert given.users.shape == (data.n_users + 1, 3)
    for wrong, message in (
        (None, "needs the vectors 'k', but was given none"),
        (replace(knowledge, key="other"), "needs the vectors 'k', but was given other"),
        (replace(knowledge, user_tokens=data.user_tokens[::-1]), "other users than split"),
        (replace(knowledge, item_tokens=data.item_tokens[::-1]), "other items than split"),
    ):
        with pytest.raises(TrainingError, match=message):
            knowledge_input(spec, TrialArtifacts(data, knowledge=wrong), "cpu")
