"""KAR's hybrid-expert adaptor (arXiv 2306.10933, section 4.3): knowledge vectors to vectors in the recommender's own space.

Two towers, one for the user's preference knowledge and one for the item's. Each tower sums, by a softmax gate that reads its own
input, the outputs of experts that both towers share and of experts of its own. Torch only; in `training.bridge.knowledge` the
two outputs become feature fields of a context-aware model.
"""

import torch
from torch import Tensor, nn


class HybridExpertAdaptor(nn.Module):
    """Preference and item knowledge to two vectors as wide as the model's feature embeddings.

    Args:
        dims: width of the knowledge vectors; both kinds come from one encoder.
        width: of the output: the model's embedding size.
        shared: number of experts that both towers share.
        own: number of experts of each tower alone.
        hidden: width of an expert's hidden layer.
    """

    def __init__(self, dims: int, width: int, *, shared: int, own: int, hidden: int) -> None:
        super().__init__()
        self.shared_experts = _experts(shared, dims, hidden, width)
        self.preference_experts = _experts(own, dims, hidden, width)
        self.item_experts = _experts(own, dims, hidden, width)
        self.preference_gate = nn.Linear(dims, shared + own)
        self.item_gate = nn.Linear(dims, shared + own)

    def preference(self, vectors: Tensor) -> Tensor:
        """Returns the augmented vectors `(batch, width)` of preference knowledge `(batch, dims)`."""
        return _mixed(vectors, self.preference_gate, [*self.shared_experts, *self.preference_experts])

    def item(self, vectors: Tensor) -> Tensor:
        """Returns the augmented vectors `(batch, width)` of item knowledge `(batch, dims)`."""
        return _mixed(vectors, self.item_gate, [*self.shared_experts, *self.item_experts])


def gates(vectors: Tensor, gate: nn.Linear) -> Tensor:
    """Returns the weight of each expert `(batch, experts)`, in [0, 1], summing to 1 over the experts."""
    return torch.softmax(gate(vectors), dim=-1)


def _experts(count: int, dims: int, hidden: int, width: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Sequential(nn.Linear(dims, hidden), nn.ReLU(), nn.Linear(hidden, width)) for _ in range(count))


def _mixed(vectors: Tensor, gate: nn.Linear, experts: list[nn.Module]) -> Tensor:
    outputs = torch.stack([expert(vectors) for expert in experts], dim=1)
    return torch.einsum("be,bew->bw", gates(vectors, gate), outputs)
