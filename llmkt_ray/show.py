"""Tables for the terminal."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from rich.cells import cell_len
from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from llmkt_ray.results.ledger import Ledger
from llmkt_ray.results.llm_texts import LlmTexts
from llmkt_ray.results.summary import summarise
from llmkt_ray.study import StudyConfig
from llmkt_ray.sweep.estimate import estimate_s
from llmkt_ray.sweep.llm_cost import LlmLine
from llmkt_ray.sweep.plan import Plan
from llmkt_ray.sweep.progress import duration, texts_line
from llmkt_ray.training.knowledge import Knowledge
from llmkt_ray.transfer.taps import Tap, candidates


def plan_tables(plan: Plan, ledger: Ledger, llms: Sequence[LlmLine] = ()) -> Iterator[RenderableType]:
    """Yields the plan: artifacts, cells, what language models take, trials by model and arm, and the time it may take."""
    artifacts = Table("artifact", "of", "there", title="artifacts", title_justify="left", box=None)
    for node in plan.artifacts:
        artifacts.add_row(node.kind, escape(node.label), "yes" if node.key in plan.there else "no")
    yield artifacts
    cells = Table("dataset", "model", "layer", "rows of", "profiles", "target", title="cells", title_justify="left", box=None)
    for cell in plan.cells:
        target = f"{cell.target.config.label} to {cell.target.dims}"
        names = (cell.split.label, cell.model.name, cell.tap.name, cell.tap.alignment, str(cell.factors["llm"]), target)
        cells.add_row(*map(escape, names))
    yield cells
    yield from _llm_cost(llms)
    done = ledger.done()
    trials = Table("model", "arm", "trials", "done", title="trials", title_justify="left", box=None)
    planned = Counter((spec.model, spec.arm) for spec in plan.trials)
    finished = Counter((spec.model, spec.arm) for spec in plan.trials if spec.key in done)
    for (model, arm), count in planned.items():
        trials.add_row(escape(model), arm, str(count), str(finished[model, arm]))
    yield trials
    todo = [spec for spec in plan.trials if spec.key not in done]
    if plan.searched_trials:
        yield f"a search adds {plan.searched_trials} trials of its own suggestions"
    seconds = estimate_s(plan, todo, ledger.trials())
    yield f"{len(plan.trials)} trials, {len(todo)} to do; about {duration(seconds)} of computing on one core for what is known in advance"
    yield from _cost(plan.study, seconds)


def _llm_cost(llms: Sequence[LlmLine]) -> Iterator[RenderableType]:
    """Yields what language models will take, what they took beside what was planned, and the sum of what is still to do."""
    if not llms:
        return
    table = Table(title="language models", title_justify="left", box=None, pad_edge=False)
    table.add_column("profiles")
    for name in ("prompts", "prompt tokens", "output tokens", "GPU hours", "money"):
        table.add_column(name, justify="right")
    notes = []
    for line in llms:
        plan = line.planned
        if plan is not None:
            tokens = f"{plan.prompt_tokens:,}", f"<= {plan.output_tokens:,}"
            table.add_row(f"{escape(line.label)}: planned", f"{plan.prompts:,}", *tokens, *_hours_and_money(plan.gpu_hours, plan.money))
            notes.append(f"  {escape(line.label)}: planned tokens by {escape(plan.counted_by)}; speed: {escape(str(plan.speed))}")
        if line.actual is not None:
            took = line.actual
            tokens = f"{took['prompt_tokens']:,}", f"{took['output_tokens']:,}"
            asked = f"{took['asked']:,}" if "asked" in took else "-"
            table.add_row(f"{escape(line.label)}: took", asked, *tokens, *_hours_and_money(took.get("gpu_hours"), took.get("cost")))
            if took.get("resumed_rows"):
                why = f"{took['resumed_rows']:,} texts were there from an earlier run, whose hours are not in these figures"
                notes.append(f"  {escape(line.label)}: {why}")
        elif plan is None:
            notes.append(f"  {escape(line.label)}: not known before a run: {escape(str(line.problem))}")
    yield table
    yield from notes
    todo = [line.planned for line in llms if line.planned is not None and line.actual is None]
    if todo:
        most = sum(plan.prompt_tokens + plan.output_tokens for plan in todo)
        known = [plan.money for plan in todo if plan.money is not None]
        money = f", at most {sum(known):.2f} in money for {len(known)} of {len(todo)} sets that have a price" if known else ""
        yield f"language models will take at most {most:,} tokens{money}; prices and speeds: `resources`"


def _hours_and_money(hours: float | None, money: float | None) -> tuple[str, str]:
    return "-" if hours is None else f"{hours:.2f}", "-" if money is None else f"{money:.2f}"


def llm_line(texts: LlmTexts) -> str:
    """Returns what language models took for the finished texts of a study, and what was planned for these, on one line."""
    taken, planned = texts.taken, texts.planned
    tokens = "an unknown number of" if taken.tokens is None else f"{taken.tokens:,}"
    most = "" if planned.tokens is None else f" of at most {planned.tokens:,} planned"
    money = "" if taken.money is None else f", {taken.money:.2f} in money"
    money += f" of at most {planned.money:.2f} planned" if money and planned.money is not None else ""
    return f"language models: {tokens} tokens{most}{money}, for {texts.sets} finished set{'s' if texts.sets != 1 else ''} of texts"


def _cost(study: StudyConfig, seconds: float) -> Iterator[str]:
    """Yields what the trials may cost, where there are prices, and what the budget allows, where there is one."""
    asked, budget = study.resources.trial, study.budget
    hour = asked.cpus * study.resources.cpu_hour + asked.gpus * study.resources.gpu_hour
    if hour:
        yield f"at the prices under `resources` about {seconds / 3600 * hour:.2f} for these trials (profiles apart)"
    if budget.is_set:
        caps = {"trials": budget.trials, "hours": budget.hours, "money": budget.money, "llm_tokens": budget.llm_tokens}
        allowed = ", ".join(f"{name} {value:g}" for name, value in caps.items() if value is not None)
        yield f"a pilot: the most telling trials first, until the budget is spent ({allowed})"


def quality_tables(sets: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[RenderableType]:
    """Yields for each set of profiles what the checks found, for all users and by type of user.

    Args:
        sets: label and notes of stored profiles.
    """
    for label, notes in sets:
        quality = notes["quality"]
        yield f"{escape(label)}: {notes['with_profile']} of {notes['users']} users have a profile ({notes['coverage']:.1%})"
        if quality["errors"]:
            yield "  without one: " + ", ".join(f"{escape(kind)} {count}" for kind, count in quality["errors"].items())
        measures: Mapping[str, Any] = quality.get("measures", {})
        if not measures:
            continue
        kinds = list(next(iter(measures.values()))["by"])
        table = Table(title="mean of all; low / middle / high third by", title_justify="left", box=None, pad_edge=False)
        table.add_column("measure", no_wrap=True)
        for kind in ("all", *kinds):
            table.add_column(kind, overflow="fold")  # a narrow terminal breaks a line, never a figure's end
        for name, measure in measures.items():
            thirds = (" / ".join(_figure(value) for value in measure["by"][kind].values()) for kind in kinds)
            table.add_row(name, _figure(measure["all"]), *thirds)
        yield table
        held = quality["held_out_titles"]
        yield f"  held-out titles named: {_figure(held['observed'])}, by popularity {_figure(held['expected'])} were to be expected"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}" if abs(value) < 10 else f"{value:.0f}"


def summary_tables(study: StudyConfig, trials: pd.DataFrame, width: int = 80) -> Iterator[RenderableType]:
    """Yields the summary of a run: a line a cell, or a column where lines are wider than `width`; then the references."""
    metric = study.evaluation.select_on
    lines, references = summarise(trials, metric, study.transfer.claim_alpha)
    if not lines:
        return
    arms = list(dict.fromkeys(arm for line in lines for arm in line.arms))
    telling = _telling([line.cell for line in lines])
    title = f"{metric} on test, mean over seeds; a number is treated at that alpha; gains of alpha {study.transfer.claim_alpha:g}"
    names = [arm.removeprefix("alpha ") for arm in (*arms, "vs alpha0", "vs shuffled")]
    rows = []
    for line in lines:
        values = [f"{line.arms[arm]:.4f}" if arm in line.arms else "" for arm in arms]
        gains = ["" if pd.isna(gain) else f"{gain:+.1%}" for gain in (line.gain, line.over_shuffled)]
        rows.append(([line.cell[name] for name in telling], [*values, *gains]))
    columns = zip([*telling, *names], *([*labels, *values] for labels, values in rows), strict=True)
    wanted = [max(map(cell_len, column)) for column in columns]
    if sum(wanted) + len(wanted) - 1 <= width:
        table = _plain_table(title)
        for name in telling:
            table.add_column(name, no_wrap=True)
        for name in names:
            table.add_column(name, justify="right", no_wrap=True)
        for labels, values in rows:
            table.add_row(*map(escape, labels), *values)
        yield table
    else:
        yield from _upright(title, telling, [*arms, *names[-2:]], rows, width)
    for dataset, values_of in references.items():
        yield f"reference lines on {escape(dataset)}: " + ", ".join(f"{name} {value:.4f}" for name, value in values_of.items())


def _upright(
    title: str, telling: Sequence[str], names: Sequence[str], rows: Sequence[tuple[list[str], list[str]]], width: int
) -> Iterator[Table]:
    """Yields tables of one column a cell and one row an arm, as many cells side by side as the width holds."""
    first = max(map(cell_len, (*telling, *names)))
    while rows:
        table, used = _plain_table(title), first
        table.add_column("\n".join(telling), no_wrap=True)
        taken: list[list[str]] = []
        for labels, values in rows:
            used += 1 + max(map(cell_len, (*labels, *values)))
            if taken and used > width:
                break
            taken.append(values)
            table.add_column("\n".join(map(escape, labels)), justify="right", overflow="fold")
        for name, of_cells in zip(names, zip(*taken, strict=True), strict=True):
            table.add_row(name, *of_cells)
        yield table
        rows, title = rows[len(taken) :], ""


def _plain_table(title: str) -> Table:
    return Table(title=title or None, title_justify="left", box=None, pad_edge=False, collapse_padding=True)


def _telling(cells: Sequence[Mapping[str, str]]) -> list[str]:
    """Returns the labels that tell the cells apart: not those that follow from the ones before (a model's only layer, its width)."""
    names = ["model"]
    for name in cells[0]:
        apart = len({tuple(cell[known] for known in names) for cell in cells})
        if len({tuple(cell[known] for known in (*names, name)) for cell in cells}) > apart:
            names.append(name)
    return names


def progress_lines(progress: Mapping[str, Any] | None) -> Iterator[str]:
    """Yields what a run that goes on said of itself last: the stage, the time left, the trials that run, the dashboard."""
    if progress is None:
        return
    left = "" if progress["left_s"] is None else f", about {duration(progress['left_s'])} left"
    failed = f", {progress['failed']} failed" if progress["failed"] else ""
    yield f"stage: {progress['stage']}, {progress['done']} of {progress['total']} done{failed}{left} (said {progress['updated']})"
    if progress.get("texts"):
        yield f"  {texts_line(progress['texts'])}"
    for trial in progress["running"]:
        yield f"  {trial['name']}: {duration(trial['seconds'])} so far (trial {trial['trial']})"
    if progress["dashboard"]:
        yield f"dashboard: {progress['dashboard']}"


def layer_table(model: str, taps: Sequence[Tap], known: Sequence[Knowledge] = ()) -> Iterator[Table | str]:
    """Yields the taps of a model, and below them a line for each note that some have; "layer k" of a study file is the number in the
    first column.

    Args:
        model: its name.
        taps: all of its taps.
        known: what some of them know about the profiles, as two more columns.
    """
    numbers = {tap.name: str(k) for k, tap in enumerate(candidates(taps), 1)}
    figures = {found.tap.name: (f"{found.cka:.2f}", f"{found.r2:.2f}") for found in known}
    table = Table("layer", title=escape(f"taps of {model}"), title_justify="left", box=None)
    table.add_column("name", no_wrap=True)  # it is what a study file needs, letter by letter
    table.add_column("shape", no_wrap=True)
    table.add_column("rows of", no_wrap=True)
    for name in ("CKA", "R2") if known else ():
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("note", no_wrap=True)
    notes: dict[str, str] = {"": ""}
    for tap in taps:
        note = tap.reason or (f"the same tensor as {tap.alias_of}" if tap.alias_of else "")
        table.add_row(
            numbers.get(tap.name, ""),
            escape(tap.name),
            "x".join(map(str, tap.shape)),
            tap.alignment if tap.usable else "unusable",
            *(figures.get(tap.name, ("", "")) if known else ()),
            notes.setdefault(note, f"({len(notes)})"),
        )
    yield table
    yield from (f"{mark} {escape(note)}" for note, mark in notes.items() if note)
