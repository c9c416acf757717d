"""One recommended default over all datasets and models, its regret, and the study file's words for it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llmkt_ray.report.cells import SHOWN, Cell, planned_layers
from llmkt_ray.report.findings import Finding, of_contexts
from llmkt_ray.report.frames import gain_rows
from llmkt_ray.report.levels import FAMILIES, follows, words_of
from llmkt_ray.report.load import Results
from llmkt_ray.stats.selection import Default, LeftOut, recommended_default
from llmkt_ray.study import EmbeddingConfig, ReductionConfig

NOT_CHOSEN = ("train_share", *FAMILIES["training"])
"""What a study varies as a condition, not as something that a default sets."""


def default_of(results: Results, findings: Sequence[Finding]) -> tuple[Default, dict[str, Any]] | None:
    """Returns the default and its settings (alpha, layer position, and what else the study varied), None where there is none.

    Layers of different models have different names, so a layer counts by its place among the study's layers of its model,
    in the order of the plan, forward for `layers: all`: "layer 2" is the second (METHOD.md, section 1).
    """
    rows = gain_rows(results, findings)
    if rows.empty:
        return None
    cells = {f.cell.number: f.cell for f in findings}
    places = layer_places(results, [f.cell for f in findings])
    tied = all(follows([f.cell for f in mine], "dims", "layer") for mine in of_contexts(findings).values())
    settings = {
        at: _settings(cells[at[0]], at[1], places, tied)
        for at in {(int(c), float(a)) for c, a in zip(rows["cell"], rows["alpha"], strict=True)}
    }
    names = {at: words(found) for at, found in settings.items()}
    at = list(zip(rows["cell"].astype(int), rows["alpha"].astype(float), strict=True))
    rows = rows.assign(
        dataset=[str(cells[c].factors["dataset"]) for c, _ in at],
        model=[str(cells[c].factors["model"]) for c, _ in at],
        config=[names[one] for one in at],
    )
    means = rows.groupby(["dataset", "model", "config"], as_index=False)[["valid", "test"]].mean()
    found = recommended_default(means, results.sign(results.metric))
    if found is None:
        return None
    return found, next(settings[one] for one in at if names[one] == found.config)


def layer_places(results: Results, cells: Sequence[Cell]) -> dict[tuple[str, str, str], int]:
    """Returns (dataset, model, layer) to the layer's place in the plan, from 1; empty where no model has two."""
    planned, layers = planned_layers(results), dict[tuple[str, str], dict[str, None]]()
    for cell in cells:
        dataset, model, layer = (str(cell.factors[name]) for name in ("dataset", "model", "layer"))
        layers.setdefault((dataset, model), dict.fromkeys(planned.get((dataset, model), [])))[layer] = None
    places = {(*at, layer): place for at, mine in layers.items() for place, layer in enumerate(mine, 1)}
    return places if any(place > 1 for place in places.values()) else {}


def words(settings: Mapping[str, Any]) -> str:
    """Returns settings in words, for example "alpha 0.5, layer 2, two-phase at 0.5"."""
    parts = [f"alpha {settings['alpha']:g}"]
    if "layer" in settings:
        parts.append(f"layer {settings['layer']}")
    for family, columns in FAMILIES.items():
        mine = {name: settings[name] for name in columns if name in settings}
        if mine and family != "layer":
            parts.append(words_of(mine) if family == "schedule" and len(mine) > 1 else _named(mine))
    return ", ".join(parts)


def document(results: Results, findings: Sequence[Finding]) -> dict[str, Any] | None:
    """Returns the default as JSON values: its settings, what of a study file sets them, and its regret; None where there is none."""
    found = default_of(results, findings)
    if found is None:
        return None
    default, settings = found

    def judged(parts: Sequence[LeftOut]) -> list[dict[str, Any]]:
        return [
            {"left_out": p.what, "dataset": p.dataset, "model": p.model, "chosen_without_it": p.chosen, "own_choice": p.own,
             "test_regret": round(p.regret, 5)}
            for p in parts
        ]  # fmt: skip

    worst = default.worst
    return {
        "default": settings,
        "study": fragment(results, findings, settings),
        "chosen_on": f"mean validation gain in {results.metric} over alpha0, {default.contexts} datasets x models, "
        f"{default.shared} configurations that ran in all of them",
        "recommended": default.is_better,
        "mean_gain": {"valid": round(default.valid, 5), "test": round(default.test, 5)},
        "worst_test_regret": round(worst.regret, 5) if worst is not None else None,
        "leaving_out_a_dataset": judged(default.by_dataset),
        "leaving_out_a_model": judged(default.by_model),
    }


def fragment(results: Results, findings: Sequence[Finding], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys of a study file that set the default: to be laid over a study's own."""
    transfer: dict[str, Any] = {"alphas": [settings["alpha"]], "claim_alpha": settings["alpha"]}
    if settings.get("schedule") == "pretrain":  # its alpha is 1 whatever is listed
        transfer = {"alphas": [results.claim_alpha], "claim_alpha": results.claim_alpha}
    places = layer_places(results, [f.cell for f in findings])
    if "layer" in settings:
        transfer["layers"] = {model: [layer] for (_, model, layer), place in places.items() if place == settings["layer"]}
    schedule = {{"schedule": "kind", "alpha_schedule": "alpha"}.get(n, n): settings[n] for n in FAMILIES["schedule"] if n in settings}
    if schedule:
        frozen = {"freeze": json.loads(schedule["freeze"])} if "freeze" in schedule else {}
        transfer["schedule"] = schedule | frozen
    transfer |= {name: settings[name] for name in FAMILIES["loss"] if name in settings}
    made: dict[str, Any] = {"transfer": transfer}
    reduction = _labelled(ReductionConfig, results.study.get("reduction", []), str(settings.get("reduction", "")))
    if "reduction" in settings or "dims" in settings:
        width = {"dims": settings["dims"]} if "dims" in settings else {}
        made["reduction"] = (reduction or {"method": settings["reduction"]}) | width
    if "encoder" in settings:
        embedding = _labelled(EmbeddingConfig, results.study.get("embedding", []), str(settings["encoder"]))
        made["embedding"] = embedding or {"encoder": settings["encoder"]}
    return made


def _labelled(
    kind: type[ReductionConfig] | type[EmbeddingConfig], sections: Sequence[Mapping[str, Any]], label: str
) -> dict[str, Any] | None:
    """Returns what a study file says of the section with a label, its dims and its defaults left out; None where none has it."""
    for one in sections:
        section = kind.model_validate(one)
        if section.label == label:
            name, not_its = ("method", {"dims"}) if isinstance(section, ReductionConfig) else ("encoder", set())
            return {name: section.model_dump()[name], **section.model_dump(mode="json", exclude_defaults=True, exclude=not_its)}
    return None


def _settings(cell: Cell, alpha: float, places: Mapping[tuple[str, str, str], int], tied: bool) -> dict[str, Any]:
    found: dict[str, Any] = {"alpha": alpha}
    where = (str(cell.factors["dataset"]), str(cell.factors["model"]), str(cell.factors["layer"]))
    if where in places:
        found["layer"] = places[where]
    varied = [name for name in cell.varied if name not in (*NOT_CHOSEN, "layer")]
    if set(varied) & set(FAMILIES["schedule"]):
        varied = [*dict.fromkeys(["schedule", *varied])]
    if tied and "dims" in varied:  # the width of the layer
        varied.remove("dims")
    if "dims" in varied and "reduction" not in varied:
        varied.append("reduction")
    found |= {name: cell.factors[name] for name in varied}
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in found.items() if value != "-"}
    return {name: int(value) if name == "dims" else value for name, value in plain.items()}


def _named(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{SHOWN[name]} {value:g}" if isinstance(value, float) else f"{SHOWN[name]} {value}" for name, value in values.items())
