"""Beyond accuracy: what lists of recommended items are like, whatever they hit.

Lists are int `(users, k)`, item indices, best first. Popularity is the share of train users who like an item, float64 `(n_items,)`, in
[0, 1]. Each measure gives one value a user, so that arms are compared user by user, paired, as accuracy is.
"""

import numpy as np
from scipy.sparse import coo_array, csr_array, diags_array

HEAD = 0.2
"""Share of the items, the most popular ones, that is the head; the rest is the long tail."""


def novelty(lists: np.ndarray, popularity: np.ndarray, n_users: int) -> np.ndarray:
    """Returns the mean self-information of each list, bits `(users,)`: -log2 of an item's popularity; higher: less known items.

    An item that nobody likes in train counts as liked by one user. Zhou et al. (2010), PNAS 107, 4511-4515.

    Args:
        lists: int `(users, k)`.
        popularity: float64 `(n_items,)`.
        n_users: train users that the popularity is a share of.
    """
    return np.asarray(-np.log2(np.maximum(popularity, 1 / n_users))[lists].mean(axis=1))


def list_popularity(lists: np.ndarray, popularity: np.ndarray) -> np.ndarray:
    """Returns the mean popularity of each list's items, `(users,)`, in [0, 1]."""
    return np.asarray(popularity[lists].mean(axis=1), dtype=np.float64)


def popularity_lift(lists: np.ndarray, popularity: np.ndarray, liked: np.ndarray) -> np.ndarray:
    """Returns values `(users,)` whose mean is the popularity lift: how much more popular lists are than what the users like, relative.

    0: as popular as the users' own train items; 1: twice as popular. Abdollahpouri et al. (2020), RecSys, "The connection between
    popularity bias, calibration, and fairness in recommendation".

    Args:
        lists: int `(users, k)`.
        popularity: float64 `(n_items,)`.
        liked: mean popularity of each of these users' train positives, `(users,)`; NaN where there are none.
    """
    return np.asarray(list_popularity(lists, popularity) / np.nanmean(liked) - 1)


def diversity(lists: np.ndarray, kinds: csr_array) -> np.ndarray:
    """Returns the intra-list diversity, `(users,)`, in [0, 1]: mean of 1 - cosine of the kinds of two items of a list.

    Items without a kind are left out; NaN where fewer than two have one. Ziegler et al. (2005), WWW.

    Args:
        lists: int `(users, k)`.
        kinds: sparse 0 or 1 `(n_items, kinds)`.
    """
    norms = np.sqrt(kinds.sum(axis=1))
    unit = diags_array(1 / np.maximum(norms, 1)) @ kinds
    has = norms > 0
    known = has[lists].sum(axis=1)
    users, k = lists.shape
    of_lists = coo_array((np.ones(users * k), (np.repeat(np.arange(users), k), lists.ravel())), shape=(users, kinds.shape[0])).tocsr()
    # |sum of unit vectors|^2 holds every pair's cosine twice, and 1 an item: no pair is looked at.
    squares = (of_lists @ unit).power(2).sum(axis=1)
    pairs = known * (known - 1)
    cosine = (squares - known) / np.maximum(pairs, 1)
    return np.asarray(np.where(pairs > 0, 1 - cosine, np.nan))


def tail_of(popularity: np.ndarray) -> np.ndarray:
    """Returns which items are the long tail, bool `(n_items,)`: all but the 20 % that are most popular (equal ones by index)."""
    tail = np.ones(len(popularity), dtype=bool)
    tail[np.argsort(-popularity, kind="stable")[: max(1, round(HEAD * len(popularity)))]] = False
    return tail


def tail_recall(lists: np.ndarray, users: np.ndarray, test_user: np.ndarray, test_item: np.ndarray, tail: np.ndarray) -> np.ndarray:
    """Returns the share of each user's test positives in the long tail that are in their list, `(users,)`; NaN where there are none.

    Args:
        lists: int `(users, k)`.
        users: indices of the users of the rows, int `(users,)`.
        test_user: users of the test positives, int `(n,)`.
        test_item: their items, int `(n,)`.
        tail: see `tail_of`.
    """
    wanted = tail[test_item]
    keys = np.unique(test_user[wanted].astype(np.int64) * len(tail) + test_item[wanted])
    counts = np.bincount(keys // len(tail), minlength=int(users.max()) + 1)[users]
    hits = np.isin(users.astype(np.int64)[:, None] * len(tail) + lists, keys).sum(axis=1)
    return np.where(counts > 0, hits / np.maximum(counts, 1), np.nan)


def covered(lists: np.ndarray, n_items: int) -> np.ndarray:
    """Returns which items are in at least one list, float64 `(n_items,)`, 0 or 1: its mean is the catalogue coverage."""
    return (np.bincount(lists.ravel(), minlength=n_items) > 0).astype(np.float64)
