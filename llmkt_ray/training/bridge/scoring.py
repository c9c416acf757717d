"""Full rankings for models that RecBole can only ask pair by pair.

`predict` on users x items pairs repeats for every pair what depends on the user or the item alone. Here the same formula is
arranged so that those parts are computed once; scores differ from `predict` by rounding only.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def neumf_scores(model: Any, users: torch.Tensor) -> torch.Tensor:
    """Scores of all items by NeuMF (He et al. 2017), sigmoid of GMF + MLP, as `NeuMF.predict` gives them.

    The first layer of the MLP is linear in (user, item), so its two halves are multiplied once a user and once an item; the
    output layer's GMF half is one matrix product.

    Args:
        model: RecBole's NeuMF in evaluation mode.
        users: RecBole ids, int64 `(block,)`.

    Returns:
        float32 `(block, n_items)` without the padding item.
    """
    out_weight, out_bias = model.predict_layer.weight[0], model.predict_layer.bias
    width = model.mf_embedding_size if model.mf_train else 0
    logits = out_bias.expand(len(users), model.n_items - 1).clone()
    if model.mf_train:
        logits += (model.user_mf_embedding(users) * out_weight[:width]) @ model.item_mf_embedding.weight[1:].T
    if model.mlp_train:
        first, *rest = [layer for layer in model.mlp_layers.mlp_layers if isinstance(layer, nn.Linear)]
        size = model.mlp_embedding_size
        of_users = nn.functional.linear(model.user_mlp_embedding(users), first.weight[:, :size], first.bias)
        of_items = model.item_mlp_embedding.weight[1:] @ first.weight[:, size:].T
        for row, of_user in zip(logits, of_users, strict=True):
            hidden = torch.relu_(of_items + of_user)
            for layer in rest:
                hidden = torch.relu_(layer(hidden))
            row += hidden @ out_weight[width:]
    return torch.sigmoid_(logits)


PAIR_SCORES: dict[str, Callable[[Any, torch.Tensor], torch.Tensor]] = {"NeuMF": neumf_scores}
"""By RecBole's class name, for exactly that class."""
