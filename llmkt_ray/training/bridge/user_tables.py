"""The tables in which a RecBole model keeps what it learns of each user: where direct input goes in."""

from dataclasses import dataclass

from torch import nn

from llmkt_ray.training.bridge.models import BuiltModel

_MIN_WIDTH = 2
"""A table of one number a user is a bias (first-order terms of context models), not a representation."""


@dataclass(frozen=True)
class UserTable:
    """Rows of one embedding table that stand for users.

    Attributes:
        name: dotted name of the `nn.Embedding`.
        first: its row of user id 0 (padding); the users' rows follow in the order of their ids.
        width: values a user.
    """

    name: str
    first: int
    width: int


def user_tables(model: BuiltModel) -> tuple[UserTable, ...]:
    """Returns the user tables of a built model, in the order of its modules; none for models that compute the user from the history.

    A general model's is an embedding with one row a user; where there are as many users as items, one with "user" in its name. A
    context model has one table for all token fields, in which the users' rows begin at the field's offset.
    """
    module = model.module
    ids = model.dataset.user_num
    if model.entry.family == "context":
        fields, sizes = list(vars(module)["token_field_names"]), list(vars(module)["token_field_dims"])
        place = fields.index(model.dataset.uid_field)
        first, total = sum(sizes[:place]), sum(sizes)
        found = [(name, part, first) for name, part in module.named_modules() if _is_table(part, total)]
    else:
        same = ids == model.dataset.item_num
        found = [
            (name, part, 0) for name, part in module.named_modules() if _is_table(part, ids) and (not same or "user" in name.casefold())
        ]
    return tuple(UserTable(name, first, part.weight.shape[1]) for name, part, first in found if part.weight.shape[1] >= _MIN_WIDTH)


def _is_table(part: nn.Module, rows: int) -> bool:
    return isinstance(part, nn.Embedding) and part.num_embeddings == rows
