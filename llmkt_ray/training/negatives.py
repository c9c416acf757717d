"""Uniform negative items, drawn for many rows at once: RecBole's distribution without its Python loop."""

import numpy as np

from llmkt_ray.errors import TrainingError

_BITS_AT_MOST = 1 << 31
"""Largest users x items table kept as bits (256 MiB); above it positives are looked up in a sorted list."""


def sorted_unique(keys: np.ndarray) -> np.ndarray:
    """Returns the different values of `keys` `(n,)` in ascending order; much faster than `np.unique` on nearly sorted keys."""
    ordered = np.sort(keys, kind="stable")
    first = np.concatenate([np.ones(min(len(ordered), 1), dtype=bool), ordered[1:] != ordered[:-1]])
    return np.asarray(ordered[first])


class OtherItems:
    """Draws items uniformly from all but the row's own: RecBole's distribution for sequential models (`RepeatableSampler`).

    What a user took before may come again, so it may be a negative too.

    Args:
        n_items: size of the index space.

    Raises:
        TrainingError: there is one item only.
    """

    def __init__(self, n_items: int) -> None:
        if n_items < 2:
            raise TrainingError("there is one item only, so no negative can be drawn; check the dataset's filters")
        self._n_items = n_items

    def draw(self, items: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Returns one other item for each row, int64 `(n,)`.

        Args:
            items: the row's own item, integer `(n,)`.
            generator: the generator of negatives; it alone decides the outcome.
        """
        drawn = generator.integers(0, self._n_items - 1, size=len(items))
        return drawn + (drawn >= items)


class UniformNegatives:
    """Draws items uniformly from those that are not a train positive of the row's user.

    This is the distribution of RecBole's `Sampler` in the train phase: uniform over all items, drawn again while the item
    is used. Indices are those of the split.

    Args:
        users, items: the train positives, integer `(n,)`.
        n_users, n_items: sizes of the index spaces.

    Raises:
        TrainingError: a user has every item as a positive, so nothing is left to draw.
    """

    def __init__(self, users: np.ndarray, items: np.ndarray, n_users: int, n_items: int) -> None:
        self.n_items = n_items
        keys = sorted_unique(users.astype(np.int64) * n_items + items)
        full = np.flatnonzero(np.bincount(keys // n_items, minlength=n_users) >= n_items)
        if len(full):
            raise TrainingError(
                f"{len(full)} users (the first has index {full[0]}) have all {n_items} items as train positives: "
                "no negative is left for them; filter them with `filters.user_max` or raise `positive.rating_at_least`"
            )
        self._keys = keys
        self._bits: np.ndarray | None = None
        if n_users * n_items <= _BITS_AT_MOST:
            self._bits = np.zeros(n_users * n_items // 8 + 1, dtype=np.uint8)
            np.bitwise_or.at(self._bits, keys >> 3, np.left_shift(1, keys & 7).astype(np.uint8))

    def used(self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
        """Says for each pair, integer `(n,)` each, whether the item is a train positive of the user."""
        keys = users.astype(np.int64) * self.n_items + items
        if self._bits is not None:
            return np.asarray(self._bits[keys >> 3] >> (keys & 7).astype(np.uint8) & 1, dtype=bool)
        place = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.asarray(self._keys[place] == keys)

    def draw(self, users: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Returns one negative item for each row, int64 `(n,)`.

        Args:
            users: the user of each row, integer `(n,)`; a user may come many times.
            generator: the generator of negatives; it alone decides the outcome.
        """
        drawn = generator.integers(0, self.n_items, size=len(users))
        open_rows = np.flatnonzero(self.used(users, drawn))
        while len(open_rows):
            again = generator.integers(0, self.n_items, size=len(open_rows))
            drawn[open_rows] = again
            open_rows = open_rows[self.used(users[open_rows], again)]
        return drawn
