"""The normalised user-item graph of graph models, in array operations.

RecBole fills a dict with one Python tuple for each edge, which takes seconds at a million interactions; the matrix here is
the same, D^-1/2 A D^-1/2 with A = [[0, R], [R^T, 0]].
"""

import inspect
import warnings
from functools import cache
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch

from llmkt_ray.errors import TrainingError
from llmkt_ray.training.bridge.shims import RECBOLE

_REPLACED = ("A._update(data_dict)", "diag = np.power(diag, -0.5)", "+ 1e-7")
_PRODUCTS = ("L = D * A * D", "L = D @ A @ D")
_LAYOUTS = {"LightGCN": torch.sparse_csr, "NCL": torch.sparse_csr, "NGCF": torch.sparse_coo}
"""The models whose graph is replaced. LightGCN and NCL only multiply by it, which is faster by rows (CSR); NGCF drops single edges."""


def normalised_adjacency(interactions: sp.coo_matrix, n_users: int, n_items: int) -> torch.Tensor:
    """Returns D^-1/2 A D^-1/2 as a coalesced sparse COO tensor, float32 `(n_users + n_items, n_users + n_items)`.

    Args:
        interactions: `(n_users, n_items)`; every stored entry is one edge, whatever its value.
        n_users: number of user ids, padding included.
        n_items: number of item ids, padding included.
    """
    size = n_users + n_items
    rows = np.concatenate([interactions.row, interactions.col + n_users])
    columns = np.concatenate([interactions.col + n_users, interactions.row])
    graph = sp.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(size, size))
    graph.sum_duplicates()
    scale = np.power(np.diff(graph.indptr) + 1e-7, -0.5)
    values = np.repeat(scale, np.diff(graph.indptr)) * scale[graph.indices]
    made = graph.tocoo()
    indices = torch.from_numpy(np.stack([made.row, made.col]).astype(np.int64))
    return torch.sparse_coo_tensor(
        indices, torch.from_numpy(values.astype(np.float32)), (size, size), is_coalesced=True, check_invariants=False
    )


@cache
def install(model_class: Any) -> None:
    """Replaces `get_norm_adj_mat` of a RecBole model class that is known to build this very graph; others stay as they are.

    Raises:
        TrainingError: the method is not the one that was replaced.
    """
    if model_class.__name__ not in _LAYOUTS or not model_class.__module__.startswith("recbole."):
        return
    source = inspect.getsource(model_class.get_norm_adj_mat)
    if any(text not in source for text in _REPLACED) or not any(text in source for text in _PRODUCTS):
        raise TrainingError(f"{model_class.__name__} is not that of RecBole {RECBOLE}; pip install --force-reinstall recbole=={RECBOLE}")
    layout = _LAYOUTS[model_class.__name__]

    def get_norm_adj_mat(self: Any) -> torch.Tensor:
        graph = normalised_adjacency(self.interaction_matrix, self.n_users, self.n_items)
        if layout is not torch.sparse_csr:
            return graph
        with warnings.catch_warnings():
            # torch calls its CSR support beta, once a process; what is used of it here is tested against RecBole's own graph.
            warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
            return graph.to_sparse_csr()

    model_class.get_norm_adj_mat = get_norm_adj_mat
