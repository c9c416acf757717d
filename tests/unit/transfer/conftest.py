"""Small models that imitate every way in which an activation can belong to users, and a probe batch for them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

N_USERS, N_ITEMS, WIDTH, HISTORY = 17, 29, 8, 5


class Toy(nn.Module):
    """Users and items with ids; `calculate_loss` calls `self.forward` directly, as RecBole's models do."""

    positions = "history"

    def __init__(self, n_users: int = N_USERS, n_items: int = N_ITEMS) -> None:
        super().__init__()
        self.n_users, self.n_items = n_users, n_items
        self.user_embedding = nn.Embedding(n_users, WIDTH)
        self.item_embedding = nn.Embedding(n_items, WIDTH)

    def history(self, users: Tensor) -> Tensor:
        """Five items of each user, int64 `(batch, 5)`."""
        return (users.unsqueeze(1) * 7 + torch.arange(HISTORY) * 3) % self.n_items


class Rows(Toy):
    """BPR: rows aligned with the batch; the item embedding fires twice; one module never fires."""

    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.unused = nn.Linear(3, 3)

    def forward(self, users: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        return self.user_embedding(users), self.item_embedding(items)

    def calculate_loss(self, users: Tensor, items: Tensor, negatives: Tensor) -> Tensor:
        user, item = self.forward(users, items)
        other = self.item_embedding(negatives)
        return -nn.functional.logsigmoid((user * (item - other)).sum(1)).mean()


class Prefix(Rows):
    """SimpleX: only the first third of the batch's rows is used."""

    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.dropout = nn.Dropout(0.5)

    def calculate_loss(self, users: Tensor, items: Tensor, negatives: Tensor) -> Tensor:
        count = len(users) // 3
        user, item = self.forward(users[:count], items[:count])
        other = self.item_embedding(negatives).view(3, count, -1).mean(0)
        return (self.dropout(user) * (other - item)).sum(1).mean()


class Graph(Toy):
    """LightGCN and NGCF: a propagated table of users and items that a module holds, and one that only forward has."""

    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.layer = nn.Linear(WIDTH, WIDTH)
        total = self.n_users + self.n_items
        self.register_buffer("mixing", torch.rand(total, total, generator=torch.Generator().manual_seed(3)))

    def ego(self) -> Tensor:
        return torch.cat([self.user_embedding.weight, self.item_embedding.weight])

    def forward(self) -> tuple[Tensor, Tensor]:
        table = self.mixing @ self.layer(self.ego()) / len(self.mixing)
        return table[: self.n_users], table[self.n_users :]

    def calculate_loss(self, users: Tensor, items: Tensor, negatives: Tensor) -> Tensor:
        user, item = self.forward()
        return (user[users] * (item[negatives] - item[items])).sum(1).mean()


class ItemsFirst(Graph):
    """The same with the items before the users."""

    def ego(self) -> Tensor:
        return torch.cat([self.item_embedding.weight, self.user_embedding.weight])

    def forward(self) -> tuple[Tensor, Tensor]:
        table = self.layer(self.ego())
        return table[self.n_items :], table[: self.n_items]


class Encoder(Toy):
    """MultiVAE: user rows in an encoder, a noisy code that is only an input, elements of a tuple, and a step counter."""

    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.encoder = nn.Sequential(nn.Linear(self.n_items, 10), nn.Tanh(), nn.Linear(10, 2 * WIDTH))
        self.decoder = nn.Sequential(nn.Linear(WIDTH, 10), nn.Tanh(), nn.Linear(10, self.n_items))
        self.norm = nn.BatchNorm1d(WIDTH)
        self.update = 0

    def forward(self, rating: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        code = self.encoder(nn.functional.dropout(rating, 0.2, self.training))
        mean, variance = self.norm(code[:, :WIDTH]), code[:, WIDTH:]
        noisy = mean + torch.randn_like(mean) * variance if self.training else mean
        return self.decoder(noisy), mean, variance

    def calculate_loss(self, users: Tensor, items: Tensor, negatives: Tensor) -> Tensor:
        self.update += 1
        rating = torch.zeros(len(users), self.n_items).scatter(1, self.history(users), 1.0)
        scores, mean, _ = self.forward(rating)
        return -(scores.log_softmax(1) * rating).sum(1).mean() + mean.square().mean() * min(1.0, self.update / 100)


class Pair(Toy):
    """NeuMF and context models: fields of user and item, and a network over both."""

    positions = "fields"

    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.fields = nn.Identity()
        self.attention = nn.Identity()
        self.network = nn.Sequential(nn.Linear(2 * WIDTH, 4), nn.ReLU(), nn.Linear(4, 1))

    def calculate_loss(self, users: Tensor, items: Tensor, negatives: Tensor) -> Tensor:
        fields = self.fields(torch.stack([self.user_embedding(users), self.item_embedding(items)], dim=1))
        crossed = self.attention(fields.transpose(0, 1))
        return self.network(crossed.transpose(0, 1).flatten(1)).square().mean()


class Sequence(Toy):
    """SASRec and GRU4Rec: the user is the history; one position of it is the user's."""

    positions = "sequence"

    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.recurrent = nn.GRU(WIDTH, WIDTH, batch_first=True)

    def forward(self, sequence: Tensor) -> Tensor:
        states, _ = self.recurrent(self.item_embedding(sequence))
        return states[:, -1]

    def calculate_loss(self, users: Tensor, items: Tensor, negatives: Tensor) -> Tensor:
        return -(self.forward(self.history(users)) * self.item_embedding.weight[items]).sum(1).mean()


class Mixing(Toy):
    """Rows that depend on the whole batch, constants, and a user feature that not everybody has of their own."""

    def __init__(self, **sizes: int) -> None:
        super().__init__(**sizes)
        self.mixed, self.constant, self.gender = nn.Identity(), nn.Identity(), nn.Embedding(3, WIDTH)

    def calculate_loss(self, users: Tensor, items: Tensor, negatives: Tensor) -> Tensor:
        user = self.user_embedding(users)
        mixed = self.mixed(user - user.mean(0))
        constant = self.constant(torch.ones(len(users), WIDTH))
        return (mixed + constant + self.gender((users > 2).long())).square().mean()


class ToyBatch:
    """Rows of a toy: odd in number, every user in one row, or in `tiles` of them."""

    def __init__(self, model: Toy, count: int = 9, tiles: int = 1) -> None:
        self.model, self.positions, self.longest = model, model.positions, HISTORY
        self.n_users, self.n_items = model.n_users, model.n_items
        self.users = torch.arange(1, count + 1).repeat(tiles)
        self._items = torch.arange(len(self.users))

    def loss(self, users: Tensor, other_items: bool) -> Tensor:
        items = (self._items * 3 + (1 if other_items else 0)) % self.n_items
        return self.model.calculate_loss(users, items, (items + 11) % self.n_items)


KINDS: dict[str, Callable[..., Toy]] = {
    "rows": Rows, "prefix": Prefix, "graph": Graph, "items_first": ItemsFirst, "encoder": Encoder, "pair": Pair,
    "sequence": Sequence, "mixing": Mixing,
}  # fmt: skip


@pytest.fixture(scope="session")
def toy() -> Callable[..., tuple[Toy, ToyBatch]]:
    """Makes a toy model by kind, with a probe batch of it."""

    def make(kind: str, count: int = 9, **sizes: int) -> tuple[Toy, ToyBatch]:
        torch.manual_seed(5)
        model = KINDS[kind](**sizes)
        return model, ToyBatch(model, count, tiles=3 if kind == "prefix" else 1)

    return make
