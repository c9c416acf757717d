"""`compat: upstream_2024`: what the code published with LLM-KT does where it differs from the paper, on purpose.

Each difference is a setting of its own (METHOD.md, section 2; the traps' numbers in brackets), so that a report can show what each was
worth; this module is the bundle of them. Test stays shut all the same, and users are joined by token.
"""

from collections.abc import Mapping
from typing import Any

UMAP_DIMS = 2
"""[1] `umap.UMAP(64)` sets `n_neighbors`; the width stays UMAP's default."""
NOMINAL_DIMS = 64
"""The width that the published configs ask for."""
TRANSFER: dict[str, Any] = {
    "loss": ("rmse_plain",),  # [10]
    "projection": "legacy_slice",  # [1]
    "balance": "none",
    "weights": "row",  # [11]
}
SCHEDULE: dict[str, Any] = {"handover": "best_valid", "optimizer": "reset"}  # [12]
REDUCTION: dict[str, Any] = {"standardize": False, "refit": True}  # [3], [2]


def as_upstream(study: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content of a study file with the published code's settings filled in.

    Args:
        study: what the file says, before it is validated.

    Raises:
        ValueError: the file sets one of these settings to something else.
    """
    problems: list[str] = []
    transfer = _filled("transfer", study.get("transfer") or {}, TRANSFER, problems)
    schedules = [_filled("transfer.schedule", each, SCHEDULE, problems) for each in _several(transfer.get("schedule") or {})]
    reductions = [_reduction(each, problems) for each in _several(study.get("reduction") or {})]
    if problems:
        raise ValueError("; ".join(dict.fromkeys(problems)))
    return {**study, "transfer": {**transfer, "schedule": schedules}, "reduction": reductions}


def _reduction(given: Any, problems: list[str]) -> Any:
    filled = _filled("reduction", given, REDUCTION, problems)
    if isinstance(filled, dict) and filled.get("method", "umap") == "umap":
        nominal = filled.get("dims", "layer")
        if not (nominal == UMAP_DIMS and "n_neighbors" in filled):
            filled |= {"dims": UMAP_DIMS, "n_neighbors": NOMINAL_DIMS if nominal == "layer" else nominal}
    return filled


def _filled(where: str, given: Any, wanted: Mapping[str, Any], problems: list[str]) -> Any:
    """Returns a section with the wanted settings; what is no mapping is left to the schema to refuse."""
    if not isinstance(given, Mapping):
        return given
    for name, value in wanted.items():
        if name in given and _plain(given[name]) != _plain(value):
            problems.append(
                f"compat 'upstream_2024' sets {where}.{name} to {_shown(value)}, but the study says {_shown(given[name])}; "
                "leave it out, or set compat to 'paper'"
            )
    return {**given, **wanted}


def _several(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def _shown(value: Any) -> str:
    values = _plain(value)
    return repr(values[0]) if len(values) == 1 else str(list(values))
