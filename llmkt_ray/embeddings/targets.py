"""Targets: the reduced, standardised profile embeddings that a tapped layer learns to reconstruct."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Targets:
    """What the tapped layer learns to reconstruct (artifact kind "targets").

    Attributes:
        key: the artifact's key.
        matrix: float32 `(n_users, d)`, in the index order of `PreparedData.user_tokens`; zeros where absent.
        present: bool `(n_users,)`; False: this user has no profile and stays out of the loss.
        user_tokens: raw user ids `(n_users,)`, compared with the split's before use.
    """

    key: str
    matrix: np.ndarray
    present: np.ndarray
    user_tokens: np.ndarray
