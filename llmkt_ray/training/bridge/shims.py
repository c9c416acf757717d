"""What RecBole 1.2.0 needs on current numpy and scipy: installed once, before recbole is imported.

Each shim first asserts the text of RecBole that makes it necessary, so that another RecBole fails here, by name,
instead of training something else.
"""

import importlib.util
import inspect
import sys
import types
import warnings
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from threadpoolctl import threadpool_limits

from llmkt_ray.errors import TrainingError

RECBOLE = "1.2.0"

_NUMPY_ALIASES: dict[str, Any] = {
    "float": np.float64, "int": np.int_, "bool": np.bool_, "object": np.object_, "str": np.str_, "complex": np.complex128,
    "float_": np.float64, "complex_": np.complex128, "unicode_": np.str_, "bool8": np.bool_,
}  # fmt: skip


@cache
def install() -> None:
    """Makes recbole importable and its models buildable in this process; a second call does nothing.

    Raises:
        TrainingError: the installed RecBole is another one than the shims were written for.
    """
    found = version("recbole")
    if found != RECBOLE:
        raise TrainingError(f"RecBole {found} is installed, but the bridge is written for {RECBOLE}; pip install recbole=={RECBOLE}")
    _alias_numpy()
    _stub_kmeans()
    _restore_dok_update()


def recbole_folder() -> Path:
    """Returns the folder of the installed recbole, which is not imported by this.

    Raises:
        TrainingError: RecBole is not installed.
    """
    spec = importlib.util.find_spec("recbole")
    if spec is None or spec.origin is None:
        raise TrainingError(f"RecBole is not installed; pip install recbole=={RECBOLE}")
    return Path(spec.origin).parent


def expect(module: str, text: str) -> None:
    """Asserts that `text` occurs in the source of recbole's `module`, for example "model.general_recommender.lightgcn".

    Raises:
        TrainingError: it does not: this RecBole is not the one that the shim replaces a part of.
    """
    path = recbole_folder().joinpath(*module.split(".")).with_suffix(".py")
    if text not in path.read_text(encoding="utf-8"):
        raise TrainingError(
            f"{path} is not that of RecBole {RECBOLE} (it has no {text!r}); pip install --force-reinstall recbole=={RECBOLE}"
        )


def _alias_numpy() -> None:
    """RecBole uses names that numpy 2 took away; they are set only where absent."""
    expect("data.interaction", "(float, int, np.float, np.int64)")
    expect("config.configurator", "np.float = np.float_")
    for name, value in _NUMPY_ALIASES.items():
        if name not in np.__dict__:
            setattr(np, name, value)


def _stub_kmeans() -> None:
    """`recbole.model.general_recommender` imports kmeans_pytorch, which only LDiffRec calls and nobody maintains."""
    expect("model.general_recommender.ldiffrec", "from kmeans_pytorch import kmeans")
    if importlib.util.find_spec("kmeans_pytorch") is not None:
        return
    stub = types.ModuleType("kmeans_pytorch")

    def kmeans(*_: object, **__: object) -> None:
        raise TrainingError("LDiffRec with more than one category needs the package kmeans_pytorch, which is not installed; set n_cate: 1")

    stub.kmeans = kmeans  # type: ignore[attr-defined]
    stub.__spec__ = importlib.util.spec_from_loader("kmeans_pytorch", loader=None)
    sys.modules["kmeans_pytorch"] = stub


def _restore_dok_update() -> None:
    """Current scipy has no `dok_matrix._update`, by which RecBole fills adjacency matrices from a dict of (row, column) pairs."""
    expect("model.general_recommender.lightgcn", "A._update(data_dict)")

    def update(self: Any, data: dict[tuple[int, int], float]) -> None:
        self._dict.update(data)

    sp.dok_matrix._update = update


@cache
def mend(model_class: Any) -> None:
    """Mends what RecBole's NGCF, DGCF, NAIS and FISM get wrong and what NCL lacks, in the class or in the one that it is derived from.

    Other classes stay as they are.

    Raises:
        TrainingError: the text that is mended is not there.
    """
    mends = {
        "ngcf.NGCF": _stop_ngcf_dropout_in_evaluation,
        "dgcf.DGCF": _bound_dgcf_sample,
        "ncl.NCL": _cluster_without_faiss,
        "nais.NAIS": _let_nais_score_without_history,
        "fism.FISM": _let_fism_score_without_history,
    }
    for base in model_class.__mro__:
        found = mends.get(f"{base.__module__}.{base.__name__}".removeprefix("recbole.model.general_recommender."))
        if found is not None:
            found(base)


@cache
def _stop_ngcf_dropout_in_evaluation(ngcf: Any) -> None:
    """NGCF makes an `nn.Dropout` anew in each forward pass: always in training mode, so it drops messages in evaluation too."""
    original = ngcf.forward
    text = "all_embeddings = nn.Dropout(self.message_dropout)(all_embeddings)"
    if text not in inspect.getsource(original):
        raise TrainingError(f"NGCF is not that of RecBole {RECBOLE} (no {text!r}); pip install --force-reinstall recbole=={RECBOLE}")

    def forward(self: Any) -> Any:
        if self.training:
            return original(self)
        rate, self.message_dropout = self.message_dropout, 0.0
        try:
            return original(self)
        finally:
            self.message_dropout = rate

    ngcf.forward = forward


@cache
def _bound_dgcf_sample(dgcf: Any) -> None:
    """DGCF draws max(users, items) / batches ids of each without replacement, which fails where there are fewer of one of them."""
    module = sys.modules[dgcf.__module__]
    original = module.__dict__["sample_cor_samples"]
    text = "cor_users = rd.sample(list(range(n_users)), cor_batch_size)"
    if text not in inspect.getsource(original):
        raise TrainingError(f"DGCF is not that of RecBole {RECBOLE} (no {text!r}); pip install --force-reinstall recbole=={RECBOLE}")

    def sample_cor_samples(n_users: int, n_items: int, cor_batch_size: int) -> Any:
        return original(n_users, n_items, min(cor_batch_size, n_users, n_items))

    module.__dict__["sample_cor_samples"] = sample_cor_samples


@cache
def _let_nais_score_without_history(nais: Any) -> None:
    """NAIS divides by the number of a user's items and by their attention: 0 / 0 for a user with none, who then gets the bias alone."""
    pairs, whole = nais.mask_softmax, nais.softmax

    def mask_softmax(self: Any, similarity: Any, logits: Any, bias: Any, item_num: Any, batch_mask_mat: Any) -> Any:
        empty = item_num == 0
        mask = batch_mask_mat.masked_fill(empty, 1.0)
        return pairs(self, similarity.masked_fill(empty, 0.0), logits, bias, item_num.clamp(min=1), mask)

    def softmax(self: Any, similarity: Any, logits: Any, item_num: Any, bias: Any) -> Any:
        return whole(self, similarity, logits, item_num.clamp(min=1), bias)

    nais.mask_softmax, nais.softmax = mask_softmax, softmax


@cache
def _let_fism_score_without_history(fism: Any) -> None:
    """FISM multiplies by the number of a user's items to the power -alpha: infinite for a user with none, who then gets biases alone."""
    pairs, whole = fism.inter_forward, fism.user_forward

    def inter_forward(self: Any, user: Any, item: Any) -> Any:
        lengths, self.history_lens = self.history_lens, self.history_lens.clamp(min=1)
        try:
            return pairs(self, user, item)
        finally:
            self.history_lens = lengths

    def user_forward(self: Any, user_input: Any, item_num: Any, *rest: Any, **more: Any) -> Any:
        return whole(self, user_input, item_num.clamp(min=1), *rest, **more)

    fism.inter_forward, fism.user_forward = inter_forward, user_forward


@cache
def _cluster_without_faiss(ncl: Any) -> None:
    """NCL clusters with faiss on a GPU, which is no dependency: here 25 rounds of k-means from random rows are scikit-learn's.

    A table with fewer rows than clusters, which faiss refuses, has as many clusters as rows: that is for probing on a few users.
    """
    text = "kmeans = faiss.Kmeans(d=self.latent_dim, k=self.k, gpu=True)"
    if text not in inspect.getsource(ncl.run_kmeans):
        raise TrainingError(f"NCL is not that of RecBole {RECBOLE} (no {text!r}); pip install --force-reinstall recbole=={RECBOLE}")

    def run_kmeans(self: Any, x: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        from sklearn.cluster import KMeans
        from sklearn.exceptions import ConvergenceWarning

        seed = int(torch.randint(2**31 - 1, ()))
        kmeans = KMeans(min(self.k, len(x)), init="random", n_init=1, max_iter=25, tol=0.0, random_state=seed)
        # How sums are cut over threads changes their last bits.
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            nearest = kmeans.fit_predict(x)
        centroids = torch.from_numpy(kmeans.cluster_centers_.astype(np.float32)).to(self.device)
        return F.normalize(centroids, dim=1), torch.from_numpy(nearest.astype(np.int64)).to(self.device)

    ncl.run_kmeans = run_kmeans
