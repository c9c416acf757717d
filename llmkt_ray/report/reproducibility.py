"""The reproducibility card: what makes the study again, and what it took."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

import pandas as pd
import yaml

from llmkt_ray.report.findings import certificate
from llmkt_ray.report.load import Results
from llmkt_ray.report.sections.base import Table
from llmkt_ray.report.text import count, gibibytes, listed, seconds
from llmkt_ray.results.llm_texts import Figures, llm_texts, total
from llmkt_ray.seeds import training_seed

STAGES = (("profiles", "profiles"), ("item texts", "item_texts"), ("embeddings", "embeddings"), ("targets", "targets"))
"""What a stage is called, and its key in the card."""
NEEDED = ("llmkt_ray", "torch", "recbole", "ray", "numpy", "sentence-transformers", "umap-learn", "scikit-learn")
"""Packages that an installation is pinned to; pip brings the others, and the versions table holds all."""


def card_entries(results: Results) -> list[tuple[str, str]]:
    """Returns the entries of the card: short facts, by name."""
    card, trials = results.card, results.trials
    hardware = card.get("hardware") or {}
    entries = [
        ("study key", str(card.get("key", "unknown"))),
        ("seed of the study", str(results.study.get("seed", "unknown"))),
        ("leak certificate", _certificates(results)),
        ("started", str(card.get("started", "unknown"))),
        ("finished", str(card.get("finished") or "not yet")),
        (
            "driver",
            f"{hardware.get('platform', 'unknown')}, {count(hardware.get('cpus') or 0, 'CPU')}, "
            f"{gibibytes(hardware.get('memory_bytes') or 0)}",
        ),
    ]
    if len(trials):
        hosts, devices = (sorted({str(h) for h in trials[name].dropna()}) for name in ("host", "device"))
        more = " and others" if len(hosts) > 4 else ""
        entries += [
            ("trials ran on", f"{listed(hosts[:4]) or 'unknown'}{more} ({listed(devices) or 'unknown'})"),
            ("time of all trials", f"{seconds(trials['wall_s'].sum())} wall, {seconds(trials['cpu_s'].sum())} CPU"),
            ("largest memory of a trial", gibibytes(float(trials["peak_rss_bytes"].max()))),
        ]
    entries.append(("tokens of language models", _all_tokens(card)))
    return entries


def card_tables(results: Results) -> list[Table]:
    """Returns the tables of the card; those without a row are left out."""
    tables = [_leaks(results), _llms(results), _spent(results), _seeds(results), _places(results), _keys(results), _versions(results)]
    return [table for table in tables if table.rows]


def commands(results: Results) -> str:
    """Returns the commands that make the study again from nothing: install, save the study file, run."""
    versions = results.card.get("versions") or {}
    name = f"{results.study.get('name') or 'study'}.yaml"
    pins = " ".join(shlex.quote(f"{package}=={str(versions[package]).partition('+')[0]}") for package in NEEDED if package in versions)
    lines = [f"# Python {versions['python']}"] if "python" in versions else []
    lines += [f"pip install {pins}"] if pins else []
    lines += [f"# the study file below, saved as {name}; ran here as: {results.card.get('command') or 'unknown'}", f"llmkt run {name}"]
    return "\n".join(line.replace("\n", " ") for line in lines)


def study_yaml(results: Results) -> str:
    """Returns the study file, complete with defaults."""
    return yaml.safe_dump(results.study, sort_keys=False, allow_unicode=True) if results.study else "The study file is not in the card."


def _all_tokens(card: Mapping[str, Any]) -> str:
    texts = llm_texts(card)
    if not texts:
        return "none: no model was asked in this study"
    every = total(texts)
    planned = "" if every.planned.tokens is None else f" (planned: at most {every.planned.tokens:,})"
    return ("not known" if every.taken.tokens is None else f"{every.taken.tokens:,}") + planned


def _certificates(results: Results) -> str:
    found: dict[str, list[str]] = {}
    for entry in results.card.get("profiles", []):
        found.setdefault(certificate(entry)[0], []).append(str(entry.get("llm")))
    return (
        "; ".join(f"{status} ({listed(sorted(set(llms))[:4])})" for status, llms in sorted(found.items())) or "unknown: no profiles named"
    )


def _leaks(results: Results) -> Table:
    rows = []
    for entry in results.card.get("profiles", []):
        status, reason = certificate(entry)
        known: Mapping[str, Any] = value if isinstance(value := entry.get("certificate"), Mapping) else {}
        counts = [f"{known[name]:,}" if isinstance(known.get(name), int) else "\u2013" for name in ("pairs", "leaks", "foreign")]
        rows.append((_text(entry.get("llm")), _text(entry.get("dataset")), status, *counts, reason, _text(entry.get("split_key"))))
    columns = ("profiles", "dataset", "status", "pairs checked", "in validation or test", "of no part", "why", "split")
    return Table("Leak certificates", columns, (False, False, False, True, True, True, False, False), tuple(rows))


def _llms(results: Results) -> Table:
    """Returns what language models took of prompts, tokens, hours and money, below what was planned, by LLM choice and dataset."""
    rows = []
    for texts in llm_texts(results.card):
        for what, side, most in (("planned", texts.planned, "\u2264 "), ("taken", texts.taken, "")):
            rows.append((texts.llm, texts.dataset, f"{texts.sets:,}", what, *_llm_figures(side, most)))
    columns = ("texts by", "dataset", "sets", "", "prompts", "prompt tokens", "output tokens", "GPU, h", "money")
    return Table("Language models: planned and taken", columns, (False, False, True, False, *(True,) * 5), tuple(rows))


def _llm_figures(side: Figures, most: str) -> tuple[str, ...]:
    """Returns one side as text.

    Args:
        side: planned or taken.
        most: put before the output tokens, which are planned as the most that may be written.
    """
    counts = ["\u2013" if value is None else f"{value:,}" for value in (side.prompts, side.prompt_tokens)]
    output = "\u2013" if side.output_tokens is None else f"{most}{side.output_tokens:,}"
    return (*counts, output, *("\u2013" if value is None else f"{value:.2f}" for value in (side.gpu_hours, side.money)))


def _spent(results: Results) -> Table:
    """Returns hours and tokens by stage; what was computed by an earlier study of the same storage counts with the time it took then."""
    rows = []
    for stage, name in STAGES:
        entries = list({str(e.get("key")): e.get("notes") or {} for e in results.card.get(name, [])}.values())
        wall = sum(float(n["wall_s"]) for n in entries if isinstance(n.get("wall_s"), int | float))
        read, written = (sum(_tokens(n)[at] for n in entries) for at in (0, 1))
        if entries:
            rows.append((stage, f"{len(entries):,}", _hours(wall), "\u2013", "\u2013", f"{read:,}", f"{written:,}"))
    trials = results.trials
    if len(trials) and "wall_s" in trials:
        graphics = [_on_gpu(facts) for facts in trials["facts"]] if "facts" in trials else [False] * len(trials)
        share = float(((results.study.get("resources") or {}).get("trial") or {}).get("gpus") or 1)
        gpu = float(trials["wall_s"].fillna(0)[graphics].sum()) * share
        rows.append(
            ("trials", f"{len(trials):,}", _hours(trials["wall_s"].sum()), _hours(trials["cpu_s"].sum()), _hours(gpu), "\u2013", "\u2013")
        )
    columns = ("stage", "artifacts or trials", "wall, h", "CPU, h", "GPU, h", "tokens read", "tokens written")
    return Table("Hours and tokens spent", columns, (False, True, True, True, True, True, True), tuple(rows))


def _seeds(results: Results) -> Table:
    """Returns the training seed of every dataset, model and seed index: a function of these and the study's seed, equal for all arms."""
    root, trials = results.study.get("seed"), results.trials
    if root is None or not len(trials):
        return Table("Seeds", (), (), ())
    mine = (
        trials[trials["arm"] != "reference"][["dataset", "model", "seed_index"]]
        .drop_duplicates()
        .sort_values(["dataset", "model", "seed_index"])
    )
    rows = tuple(
        (str(dataset), str(model), str(int(index)), str(training_seed(int(root), str(dataset), str(model), int(index))))
        for dataset, model, index in mine.itertuples(index=False)
    )
    return Table("Training seeds, shared by all arms", ("dataset", "model", "seed", "training seed"), (False, False, True, True), rows)


def _places(results: Results) -> Table:
    trials = results.trials
    if not len(trials) or "host" not in trials:
        return Table("Places", (), (), ())
    rows = tuple(
        (str(host), str(device), f"{len(of):,}", _hours(of["wall_s"].sum()), gibibytes(float(of["peak_rss_bytes"].max())))
        for (host, device), of in trials.groupby([trials["host"].fillna("unknown"), trials["device"].fillna("unknown")])
    )
    return Table("Where trials ran", ("host", "device", "trials", "wall, h", "largest memory"), (False, False, True, True, True), rows)


def _keys(results: Results) -> Table:
    keys = [
        (kind, _text(entry.get("dataset") or entry.get("name")), _text(entry.get("llm")), str(entry.get("key") or entry.get("split_key")))
        for kind, name in (("split", "datasets"), *STAGES)
        for entry in results.card.get(name, [])
    ]
    return Table("Artifact keys", ("artifact", "dataset", "profiles", "key"), (False,) * 4, tuple(keys))


def _versions(results: Results) -> Table:
    """Returns the driver's versions, and those of the trials where they are others."""
    driver = {str(name): str(version) for name, version in (results.card.get("versions") or {}).items()}
    workers: dict[str, set[str]] = {}
    for text in results.trials["versions"].dropna().unique() if "versions" in results.trials else ():
        for name, version in json.loads(text).items():
            workers.setdefault(str(name), set()).add(str(version))
    rows = tuple(
        (name, driver.get(name, "\u2013"), ", ".join(sorted(workers.get(name, ()))) or "\u2013") for name in sorted({*driver, *workers})
    )
    return Table("Versions", ("package", "driver", "trials"), (False,) * 3, rows)


def _on_gpu(facts: Any) -> bool:
    return isinstance(facts, str) and json.loads(facts).get("device_type") == "cuda"


def _tokens(notes: Mapping[str, Any]) -> tuple[int, int]:
    """Returns (read, written) tokens of a set of profiles, 0 where nothing was counted."""
    read, written = (int(notes[name]) if isinstance(notes.get(name), int) else 0 for name in ("prompt_tokens", "output_tokens"))
    return read, written


def _hours(wall_s: float) -> str:
    return f"{float(wall_s) / 3600:.2f}"


def _text(value: Any) -> str:
    return "\u2013" if value is None or (isinstance(value, float) and pd.isna(value)) else str(value)
