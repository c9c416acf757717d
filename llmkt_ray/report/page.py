"""The page: one HTML file without a single reference outside itself, and a policy that lets nothing else run."""

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from llmkt_ray import __version__
from llmkt_ray.embeddings.limits import cut_sentences
from llmkt_ray.report import reproducibility, run_facts
from llmkt_ray.report.cells import claimed_at
from llmkt_ray.report.drill import Drill
from llmkt_ray.report.figures.canvas import Canvas
from llmkt_ray.report.figures.style import css_colours, css_rules, series
from llmkt_ray.report.figures.svg import inline_svg
from llmkt_ray.report.findings import Finding
from llmkt_ray.report.load import Results
from llmkt_ray.report.sections.base import Section, Table
from llmkt_ray.report.text import count, listed, plain, seconds
from llmkt_ray.report.verdict import Verdict
from llmkt_ray.stats.interval import BOOTSTRAP_FROM, MIXED_FROM, SPLITS_FROM
from llmkt_ray.study import PLAIN_ARMS

GLYPHS = {"good": "\u2713", "bad": "\u2717", "calm": "\u2248", "blocked": "\u2298"}
MOST_PANELS_OPEN = 6
"""Panels of a section that are seen at once; more are a click away, so that a phone's reader comes to the end."""
TRIAL_COLUMNS = ("trial_key", "cell", "dataset", "model", "arm", "alpha", "layer", "llm", "seed_index")
EXTRA_COLUMNS = (
    "split_key", "split_repetition", "train_share", "encoder", "reduction", "dims", "loss", "projection", "balance", "schedule",
    "switch", "handover", "optimizer", "alpha_schedule", "epochs", "batch_size", "learning_rate", "weight_decay", "hyperparameters",
    "targets_key", "peak_rss_bytes", "host", "device", "finished_at", "error_kind", "error_message",
)  # fmt: skip


def render(results: Results, findings: Sequence[Finding], verdict: Verdict, sections: Sequence[Section], users: Drill) -> str:
    """Returns the page. All text from data is escaped by Jinja2, by the SVG writer, or written as text by the script."""
    style, script = _asset("style.css"), _asset("page.js")
    style = style.replace("/*LIGHT*/", css_colours("light")).replace("/*DARK*/", css_colours("dark")) + css_rules()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_asset("report.html.j2"))
    return template.render(
        page=_page(results, findings, sections),
        verdict=verdict,
        sections=sections,
        glyphs=GLYPHS,
        most_panels=MOST_PANELS_OPEN,
        keys={arm: _key(arm) for section in sections for arm in section.legend},
        svg=_svg,
        policy=_policy(style, script),
        style=Markup(style),  # noqa: S704 - our own asset
        script=Markup(script),  # noqa: S704 - our own asset
        data=_json(_trials(results, findings, users)),
    )


def _page(results: Results, findings: Sequence[Finding], sections: Sequence[Section]) -> dict[str, Any]:
    flags = study_flags(results, findings)
    failures = _failures(results.trials)
    contents = [("verdict", "Verdict"), *([("flags", "Flags")] if flags else []), ("run", "Run")]
    contents += [(s.key, s.short) for s in sections]
    contents += [("failures", f"Failures ({len(failures)})" if failures else "Failures"), ("trials", "Trials")]
    contents += [("card", "Reproducibility"), ("reading", "How to read")]
    brief = brief_flags(flags)
    more = Table("All flags", ("kind", "what"), (False, False), tuple(flags)) if brief != flags else None
    return {
        "name": results.study.get("name") or results.folder.name,
        "description": results.study.get("description", ""),
        "metric": results.metric,
        "claimed_at": claimed_at(results, (f.cell for f in findings)),
        "tiles": _tiles(results, findings),
        "contents": contents,
        "flags": brief,
        "more_flags": more,
        "run_sentences": run_facts.run_sentences(results, tuple(f.cell for f in findings)),
        "run_tables": run_facts.run_tables(results),
        "failures": failures,
        "card": reproducibility.card_entries(results),
        "card_tables": reproducibility.card_tables(results),
        "command": reproducibility.commands(results),
        "study_yaml": reproducibility.study_yaml(results),
        "version": __version__,
        "n_rows": f"{len(results.trials):,}",
    }


def study_flags(results: Results, findings: Sequence[Finding]) -> list[tuple[str, str]]:
    """Returns (kind, sentence) of everything a reader should know before trusting a number."""
    trials, flags = results.trials, []
    planned = results.card.get("planned_trials")
    failed = int((trials["status"] == "failed").sum())
    if not results.card:
        flags.append(("no card", "The study's card is missing: who wrote the profiles, and from what, is not known."))
    if planned and len(trials) < planned:
        flags.append(
            ("unfinished", f"{len(trials):,} of {planned:,} planned trials have a row; the numbers will change when the rest has run.")
        )
    if results.study.get("compat", "paper") != "paper":
        flags.append(
            ("compat", f"compat {results.study['compat']}: what the published code does, its errors included; not the method of the paper.")
        )
    if (results.study.get("evaluation") or {}).get("protocol") == "paper_2024":
        flags.append(
            (
                "sampled metrics",
                "protocol paper_2024: positives are ranked among sampled items (20 by popularity to select, 100 uniform for the result), "
                "not among all; such figures are higher than those of a full ranking and can order models differently.",
            )
        )
    if results.compares:
        flags.append(("two measures", results.compares.strip()))
    if failed:
        flags.append(("failures", f"{count(failed, 'trial')} failed and {'is' if failed == 1 else 'are'} left out of every number."))
    if results.damaged:
        flags.append(
            (
                "damaged",
                f"{count(len(results.damaged), 'file')} of the ledger cannot be read as it was written: "
                f"{listed(sorted(results.damaged)[:5])}. What is damaged there is left out here; delete such files and run the study "
                "again, then their trials run anew.",
            )
        )
    seeds = max((runs.seeds for f in findings for runs in f.cell.treated.values()), default=0)
    if 0 < seeds < MIXED_FROM:
        units = {"splits" if c.n_splits >= SPLITS_FROM else "users" for f in findings for c in f.contrasts.values()}
        over = "splits" if units == {"splits"} else "users only" if units <= {"users"} else "users only, or over splits"
        flags.append(
            (
                "few seeds",
                f"{count(seeds, 'seed')}: intervals are over {over}, conditional on these seeds. From {MIXED_FROM} seeds they "
                f"speak of new ones, from {BOOTSTRAP_FROM} by a crossed bootstrap.",
            )
        )
    splits = (
        trials.dropna(subset=["split_repetition"]).groupby("dataset")["split_repetition"].nunique()
        if "split_repetition" in trials
        else pd.Series(dtype=int)
    )
    once = [str(dataset) for dataset, n in splits.items() if n == 1]
    if once:
        where = "Every number" if len(once) == len(splits) else f"Every number of {listed(once)}"
        flags.append(
            (
                "one split",
                f"{where} is conditional on one split: the choice of split alone can move results by several percent (in the study "
                "file, repetitions of the split measure that).",
            )
        )
    if "arm" in trials and ((trials["arm"] == "leaked") & (trials["status"] == "done")).any():
        flags.append(
            (
                "leaked",
                "The arm leaked learns from profiles written from all ratings, those of test included, on purpose: it shows what a leak is "
                "worth, and takes part in no choice and no verdict.",
            )
        )
    if len(findings) and not any(name in f.levels for f in findings for name in ("Pop", "ItemKNN", "EASE")):
        flags.append(("no references", "Pop, ItemKNN and EASE were not run: nothing says whether the models are good ones."))
    for finding in findings:
        for words in finding.flags:
            kind, colon, rest = words.partition(": ")
            # What holds for all cells of a model on a dataset is said once.
            where = finding.cell.title if kind == "below EASE" else finding.cell.label
            flags.append((kind, f"{where}: {rest}") if colon else ("note", f"{where}: {words}"))
    flags += [("not converged", words) for words in _waiting_unconverged(results, findings)]
    flags += [("cut texts", f"{sentence}.") for sentence in cut_sentences(results.card.get("embeddings", []))]
    for entry in results.card.get("datasets", []):
        flags += [("data", f"{entry.get('name')}: {warning}") for warning in (entry.get("notes") or {}).get("warnings", [])]
    return list(dict.fromkeys(flags))


def _waiting_unconverged(results: Results, findings: Sequence[Finding]) -> Iterator[str]:
    """Yields a sentence for every baseline or alpha0 that has not converged and belongs to no cell yet: no treated trial has finished."""
    trials = results.trials
    if "converged" not in trials or "arm" not in trials:
        return
    of_cells = {row for f in findings for row in f.cell.rows}
    mine = trials[trials["arm"].isin(PLAIN_ARMS) & (trials["status"] == "done") & ~trials.index.isin(list(of_cells))]
    for (dataset, model, arm), part in mine.groupby(["dataset", "model", "arm"]):
        late = int((part["converged"].astype(object) == False).sum())  # noqa: E712 - None means that it does not apply
        if late:
            yield f"{model} on {dataset}: {arm}, best epoch at the end in {late} of {count(len(part), 'trial')}"


def brief_flags(flags: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Returns one flag a kind, those of a kind with several counted: what is wrong everywhere is said once."""
    kinds: dict[str, list[str]] = {}
    for kind, words in flags:
        kinds.setdefault(kind, []).append(words)
    return [
        (kind, said[0] if len(said) == 1 else f"{said[0]}; and {count(len(said) - 1, 'more', 'more')} of this kind, in the table below")
        for kind, said in kinds.items()
    ]


def _tiles(results: Results, findings: Sequence[Finding]) -> list[tuple[str, str, str]]:
    trials = results.trials
    done, failed = int((trials["status"] == "done").sum()), int((trials["status"] == "failed").sum())
    ended = int((trials["status"] == "pruned").sum())
    planned = results.card.get("planned_trials") or len(trials)
    trained = trials[(trials["arm"] != "reference") & (trials["status"] == "done")]
    seeds = max(
        (runs.seeds for f in findings for runs in f.cell.treated.values()), default=trained["seed_index"].nunique() if len(trained) else 0
    )
    datasets = sorted({str(d) for d in trials["dataset"].dropna()})
    models = sorted({str(m) for m in trials.loc[trials["arm"] != "reference", "model"].dropna()})
    profiles = results.card.get("profiles", [])
    writers = sorted({str(p.get("llm")) for p in profiles})
    wrote = (
        "an LLM wrote them"
        if profiles and all(p.get("is_llm") for p in profiles)
        else "no LLM wrote these profiles"
        if profiles
        else "unknown"
    )
    if profiles and any(p.get("is_llm") for p in profiles) and not all(p.get("is_llm") for p in profiles):
        wrote = "written with and without an LLM"
    wall = float(trials["wall_s"].sum()) if "wall_s" in trials else 0.0
    return [
        ("Datasets", _few(datasets), ""),
        ("Models", _few(models), ""),
        ("Profiles", _few(writers), wrote),
        (
            "Trials",
            f"{done:,} of {planned:,}",
            (f"{failed} failed" if failed else "none failed") + (f", {ended} ended early" if ended else ""),
        ),
        ("Seeds", str(seeds), "conditional on these seeds" if 0 < seeds < MIXED_FROM else ""),
        ("Time of trials", seconds(wall), ""),
    ]


def _few(names: Sequence[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") if names else "\u2013"


def _failures(trials: pd.DataFrame) -> list[dict[str, str]]:
    failed = trials[trials["status"] == "failed"]
    return [
        {
            "kind": str(row.get("error_kind") or "error"),
            "label": f"{row['model']} on {row['dataset']}, {row['arm']}, alpha {row['alpha']:g}, seed {row['seed_index']}",
            "message": str(row.get("error_message") or "no message"),
            "traceback": str(row.get("error_traceback") or ""),
        }
        for row in failed.to_dict("records")
    ]


def _trials(results: Results, findings: Sequence[Finding], users: Drill) -> dict[str, Any]:
    """Returns the rows for the page's list of trials, every value as text, and the users behind them."""
    cells: dict[int, list[str]] = {}
    for finding in findings:
        for row in finding.cell.rows:
            cells.setdefault(row, []).append(str(finding.cell.number))
    trials = results.trials.assign(cell=[" ".join(cells.get(row, ())) for row in results.trials.index])
    order = [c for c in ("dataset", "model", "arm", "alpha", "seed_index") if c in trials]
    trials = trials.sort_values(order, kind="stable") if len(trials) else trials
    columns = [c for c in TRIAL_COLUMNS if c in trials]
    extra = [c for c in EXTRA_COLUMNS if c in trials]
    numbers = {f"test {results.metric}": f"test_{results.metric}", f"valid {results.metric}": f"valid_{results.metric}"}
    numbers |= {name: name for name in ("best_epoch", "wall_s") if name in trials}
    shown = {c: [_cell(v) for v in trials[c]] for c in columns}
    for name, column in numbers.items():
        digits = 4 if column.startswith(("valid_", "test_")) else 0 if column == "best_epoch" else 1
        shown[name] = ["" if pd.isna(v) else plain(float(v), digits) for v in trials[column]]
    shown["status"] = [_cell(v) for v in trials["status"]] if "status" in trials else []
    details = {c: [_cell(v) for v in trials[c]] for c in extra}
    place = {row: at for at, row in enumerate(trials.index)}
    drilled = users.document()
    numeric = [name in numbers or name in ("alpha", "seed_index") for name in shown]
    return {
        "columns": [name.replace("_index", "").replace("_", " ") for name in shown],
        "numeric": numeric,
        "values": [_coded(values) for values in shown.values()],
        "extra_columns": [name.replace("_", " ") for name in extra],
        "extra_values": [_coded(values) for values in details.values()],
        "metric": results.metric,
        **drilled,
        "moves": {place[row]: moves for row, moves in drilled["moves"].items()},
    }


def _coded(values: list[str]) -> list[Any]:
    """Returns [distinct values, index of each]: most columns of a large study hold few values, many times."""
    distinct = {value: place for place, value in enumerate(dict.fromkeys(values))}
    return [list(distinct), [distinct[value] for value in values]]


def _cell(value: Any) -> str:
    if value is None or (not isinstance(value, str) and pd.isna(value)):
        return ""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _svg(canvas: Canvas) -> Markup:
    return Markup(inline_svg(canvas))  # noqa: S704 - the SVG writer escapes every text


def _key(arm: str) -> Markup:
    """Returns an arm's key of the legend: its line and its marker."""
    colour, shape, _ = series(arm)
    canvas = Canvas(26, 12, arm, arm)
    canvas.line((0, 6), (26, 6), style=f"line-{colour}")
    canvas.marker(shape, 13, 6, f"mark-{colour}", r=4.2)
    return Markup(inline_svg(canvas).replace('class="fig"', 'class="key" aria-hidden="true"'))  # noqa: S704 - arms are escaped by the writer


def _json(value: Any) -> Markup:
    """Returns JSON that cannot end its script element: every <, > and & is an escape."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=True)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))  # noqa: S704 - escaped just here


def _policy(style: str, script: str) -> str:
    return f"default-src 'none'; style-src {_digest(style)}; script-src {_digest(script)}; base-uri 'none'; form-action 'none'"


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _asset(name: str) -> str:
    return resources.files("llmkt_ray.report").joinpath("templates", name).read_text(encoding="utf-8")
