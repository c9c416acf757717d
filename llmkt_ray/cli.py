"""The `llmkt` command: thin, everything goes through public functions.

Exit codes: 0 all well, 1 the study ran and some trials failed, 2 something to mend (said in one message), 130 interrupted.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from llmkt_ray.errors import LlmktError

app = typer.Typer(
    help="LLM-KT sweeps on Ray: does LLM knowledge about users make a recommender better, and with which settings?",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
out, err = Console(), Console(stderr=True)

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY", help="The study file (YAML).")]
AllowCode = Annotated[bool, typer.Option("--allow-code", help="Load classes that the study names by import path: runs their code.")]
Address = Annotated[str | None, typer.Option(help="A Ray cluster; default: RAY_ADDRESS, or a new one on this machine.")]


Dashboard = Annotated[str | None, typer.Option(help="A cluster's dashboard, http://host:8265.")]


def _say(text: str) -> None:
    """Prints a line as it is: no markup from data, no wrapping."""
    out.print(text, highlight=False, markup=False, soft_wrap=True)


@app.command()
def check(study: StudyFile, allow_code: AllowCode = False) -> None:
    """Say what is wrong with a study, and what a run would still need on this machine; start nothing.

    First every error of the file itself (unknown keys, types, ranges, contradictions) at once; when it has none, every other one at once:
    names, datasets, texts, encoders, storage, and, when the names are right, layers and widths.
    """
    from llmkt_ray.api import Study

    opened = Study.from_yaml(study, allow_code=allow_code)
    opened.check(needs_all=False)
    lacks = opened.not_at_hand()
    _say(f"{study}: no problems found" + (", but a run on this machine would lack:" if lacks else ""))
    for sentence in lacks:
        _say(f"  - {sentence}")


@app.command()
def plan(study: StudyFile, allow_code: AllowCode = False) -> None:
    """Show cells, trials, artifacts that are there, what language models will take (or took), the estimated time; start nothing."""
    from llmkt_ray.api import Study
    from llmkt_ray.show import plan_tables

    opened = Study.from_yaml(study, allow_code=allow_code)
    planned = opened.plan()
    for part in plan_tables(planned, opened.ledger(), opened.llm_costs(planned)):
        out.print(part)


@app.command()
def run(
    study: StudyFile,
    smoke: Annotated[bool, typer.Option("--smoke", help="ml-100k, 2 epochs, 1 seed, at most 4 trials, in a folder of its own.")] = False,
    executor: Annotated[Literal["ray", "loop"], typer.Option(help="Ray Tune, or one trial after the other in this process.")] = "ray",
    address: Address = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Logical CPUs of the cluster made on this machine; default: all.")] = None,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Run failed trials again.")] = False,
    dashboard: Annotated[bool, typer.Option("--dashboard", help="Ray's dashboard beside the cluster made on this machine.")] = False,
    allow_code: AllowCode = False,
    as_job: Annotated[bool, typer.Option("--as-job", hidden=True)] = False,
) -> None:
    """Do what is missing of a study, then write its report. Run again it goes on; when all is there it does nothing."""
    from llmkt_ray.api import Study
    from llmkt_ray.show import summary_tables
    from llmkt_ray.sweep import smoke as smoke_run

    opened = Study.from_yaml(study, allow_code=allow_code)
    opened = opened.smoke() if smoke else opened
    opened = opened.as_job() if as_job else opened
    limit = smoke_run.TRIALS if smoke else None
    for note in opened.notes:
        err.print(f"smoke: {note}", highlight=False, markup=False, soft_wrap=True)
    try:
        summary = opened.run(
            executor=executor,
            address=address,
            num_cpus=workers,
            limit=limit,
            retry_failed=retry_failed,
            dashboard=dashboard,
            console=err,
        )
    except KeyboardInterrupt:
        now = opened.status()
        told = f"{now.done + now.failed} of {now.planned or 'an unknown number of'} trials done"
        err.print(f"llmkt: interrupted, {told}; run the same command again to go on", style="yellow", highlight=False, soft_wrap=True)
        raise typer.Exit(130) from None
    for part in summary_tables(opened.config, opened.trials(), out.width):
        out.print(part)
    told = f"{summary.ran} trials run now, {summary.done} done and {summary.failed} failed in all" if summary.ran else "nothing was missing"
    _say(f"{told}; report: {opened.status().report}")
    if summary.left_out:
        why = f"{summary.stopped} is spent" if summary.stopped else "the budget is spent"
        _say(f"{why}: {summary.left_out} trials wait; raise `budget` and run the same command again to go on")
    if summary.failed:
        raise typer.Exit(1)


@app.command()
def status(study: StudyFile, address: Dashboard = None) -> None:
    """Show where a study stands, also while it runs elsewhere; with --address, its jobs on that cluster."""
    from llmkt_ray.api import Study
    from llmkt_ray.show import llm_line, progress_lines

    if address is not None:
        from llmkt_ray.sweep.jobs import Jobs

        client = Jobs(study, address)
        jobs = [*client.attempts(smoke=True), *client.attempts()]
        for job in jobs:
            _say(f"{job.id}: {job.status}" + ("" if job.ended else f": {client.last_words(job)}"))
        if not jobs:
            _say(f"no job of this study at {address}")
        return
    now = Study.from_yaml(study).status()
    total = "unknown: not planned yet" if now.planned is None else str(now.planned)
    busy = "nobody" if now.holder is None else f"process {now.holder['pid']} on {now.holder['host']} since {now.holder['started']}"
    _say(f"folder: {now.folder}")
    if now.problem is not None:
        _say(f"NOT this study's: {now.problem}")
    _say(f"trials: {now.done} done, {now.failed} failed, planned {total}")
    if now.llm is not None:
        _say(llm_line(now.llm))
    _say(f"running: {busy}")
    if now.holder is not None:
        for line in progress_lines(now.progress):
            _say(line)
    _say(f"report: {now.report or 'none yet'}")


@app.command()
def submit(
    study: StudyFile,
    address: Annotated[str, typer.Option(help="The cluster's dashboard, http://host:8265.")],
    smoke: Annotated[bool, typer.Option("--smoke", help="As `llmkt run --smoke`.")] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="As `llmkt run --retry-failed`.")] = False,
    follow: Annotated[bool, typer.Option(help="Show the log until the job ends.")] = True,
) -> None:
    """Run a study as a job on a cluster; if it is running there, attach to it; if it ended, go on with the next attempt."""
    from llmkt_ray.sweep.jobs import Jobs

    jobs = Jobs(study, address)
    options = [name for name, is_given in (("--smoke", smoke), ("--retry-failed", retry_failed)) if is_given]
    job, is_new = jobs.submit(*options)
    _say(f"{'submitted' if is_new else 'running already, attached to'} {job.id}")
    if follow:
        ended = jobs.follow(job, lambda text: out.print(text, end="", highlight=False, markup=False, soft_wrap=True))
        _say(f"{ended.id}: {ended.status}")
        if ended.status != "SUCCEEDED":
            raise typer.Exit(1)


@app.command()
def stop(study: StudyFile, address: Annotated[str, typer.Option(help="The cluster's dashboard, http://host:8265.")]) -> None:
    """Stop a study's job on a cluster; what is done stays."""
    from llmkt_ray.sweep.jobs import Jobs

    job = Jobs(study, address).stop()
    _say(f"no job of this study is running at {address}" if job is None else f"stopped {job.id}")


@app.command()
def fetch(
    study: StudyFile,
    address: Annotated[str, typer.Option(help="The cluster's dashboard, http://host:8265.")],
    to: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("results"),
) -> None:
    """Bring a study's results and report from a cluster to this machine."""
    from llmkt_ray.sweep.jobs import Jobs

    _say(str(Jobs(study, address).fetch(to)))


@app.command()
def report(
    study: Annotated[str, typer.Argument(metavar="STUDY", help="The study file (YAML), or a results folder or its URI (s3://...).")],
) -> None:
    """Write the report again from the rows that are there: page, verdict.json, tables, figures."""
    if "://" in study or Path(study).is_dir():
        from llmkt_ray.report import build_there

        _say(build_there(study))
        return
    from llmkt_ray.api import Study

    _say(str(Study.from_yaml(study).report()))


@app.command()
def diff(
    first: Annotated[str, typer.Argument(metavar="A", help="A results folder, for example results/quickstart, or its URI (s3://...).")],
    second: Annotated[str, typer.Argument(metavar="B", help="Another one.")],
) -> None:
    """Say how two results folders differ: study, trials, outcomes; exit code 1 if they do."""
    from llmkt_ray.report import diff as compare

    found = compare(first, second)
    for line in found.lines():
        _say(line)
    if found.study or found.only_a or found.only_b or found.changed:
        raise typer.Exit(1)


@app.command()
def merge(
    parts: Annotated[
        list[str], typer.Argument(metavar="PART...", help="Results folders of one study, or URIs of them, from several clusters.")
    ],
    into: Annotated[Path, typer.Option(help="A new folder for the whole.")],
) -> None:
    """Make one results folder of the parts of a study that ran in several places; conflicts are errors."""
    from llmkt_ray.report import build
    from llmkt_ray.report import merge as gather

    trials = gather([*parts], into)
    _say(f"{trials} trials in {into}; report: {build(into)}")


@app.command()
def export(
    trial: Annotated[str, typer.Argument(metavar="TRIAL", help="A trial's key (see the report), its beginning, or: best.")],
    results: Annotated[
        str | None, typer.Option(help="Results folder of its study, or its URI; default: the one below ./results that has it.")
    ] = None,
    to: Annotated[Path | None, typer.Option(help="A new folder; default: exported/ and the trial's key.")] = None,
    artifacts: Annotated[
        str | None, typer.Option(help="The study's artifacts (folder or URI), if they are not beside its results folder.")
    ] = None,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="What the study trained on.")] = "cpu",
    allow_code: AllowCode = False,
) -> None:
    """Make RecBole weights and config of one trial, that load and recommend without llmkt_ray; RecBole checks the metrics."""
    from llmkt_ray.report.winner import export_trial, folder_of

    made = export_trial(trial, results or folder_of(trial, Path("results")), to, artifacts=artifacts, device=device, allow_code=allow_code)
    _say(f"trial {made.trial_key} in {made.folder}")
    for name, value in made.ours.items():
        _say(f"  {name}: {value:.6f} in the study, {made.recboles[name]:.6f} by RecBole alone")
    _say(f"next: python {made.folder / 'recommend.py'} --help")


profiles_app = typer.Typer(help="Look at the profiles of a study.", no_args_is_help=True)
app.add_typer(profiles_app, name="profiles")


@profiles_app.command()
def preview(
    study: StudyFile,
    users: Annotated[int, typer.Option(min=1, help="Users of each dataset and LLM choice.")] = 3,
) -> None:
    """Print the exact prompts of a few users and their token counts; no model is asked."""
    from llmkt_ray.api import Study
    from llmkt_ray.profiles.engines.llm import clean

    shown = 0
    for label, prompts in Study.from_yaml(study).prompts(users):
        for prompt in prompts:
            shown += 1
            part = "" if prompt.is_last else f"part {prompt.part[0] + 1} of {prompt.part[1]}, "
            rows = f"{len(prompt.items)} of {prompt.history_size} train rows"
            # Ids and titles are untrusted, as texts are: whatever could steer a terminal is taken out.
            _say(clean(f"--- {label}: user {prompt.user_id}, {part}{prompt.tokens} tokens, {rows}"))
            for message in prompt.messages:
                _say(f"[{message['role']}]\n{clean(message['content'])}")
    if not shown:
        _say("no language model is asked in this study: its profiles come from a template or a file")


@profiles_app.command()
def show(
    study: StudyFile,
    user: Annotated[str | None, typer.Option(help="Raw id of a user; without it the quality of every set is shown.")] = None,
) -> None:
    """Print what the profiles of a study are like, or one user's profiles with their counts and flags."""
    from llmkt_ray.api import Study
    from llmkt_ray.profiles.engines.llm import clean
    from llmkt_ray.show import quality_tables

    if user is None:
        shown = list(quality_tables(Study.from_yaml(study).profile_quality()))
        for part in shown:
            out.print(part)
        if not shown:
            _say("no profiles have been made yet; run the study first")
        return
    for label, row, flags in Study.from_yaml(study).profiles_of(user):
        counts = ", ".join(
            f"{name} {value}" for name, value in row.items() if name not in ("user_id", "profile", "error") and value is not None
        )
        # Untrusted, what a file says of its texts too: whatever could steer a terminal is taken out.
        _say(clean(f"--- {label}: user {user}, {counts}; flags: {', '.join(flags) or 'none'}"))
        _say(clean(row["profile"]) if row["profile"] is not None else f"no profile: {clean(str(row['error']))}")


@profiles_app.command()
def forget(study: StudyFile, user: Annotated[str, typer.Option(help="Raw id of the user.")]) -> None:
    """Remove one user's profiles from the artifacts of a study, and what was derived from them; say what was not removed."""
    from llmkt_ray.api import Study

    done = Study.from_yaml(study).forget(user)
    _say(
        f"user {user}: removed {done.texts} profiles, {done.parts} texts of unfinished profiles, {done.embeddings} embeddings and "
        f"{done.targets} targets; report pages, which show texts, that are deleted (llmkt report makes them anew): "
        f"{', '.join(done.pages) or 'none were there'}"
    )
    for sentence in done.pages_left:
        _say(f"not deleted: {sentence}")
    _say(
        "not removed: interactions of the dataset and per-user metrics, which hold no text; other users' targets, which a reducer made "
        "knowing this user's vector; trained models and checkpoints; copies made elsewhere (other storages, exported reports and models, "
        "MLflow, caches of other machines, the operator of a hosted model, the file that `llm: file` reads)"
    )
    _say("another set of profiles (new model, prompt or split) would be written for the user again: take the user out of the dataset first")


@app.command()
def layers(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="RecBole's name of a model, or package.module:Class of your own.")],
    probe: Annotated[
        str | None,
        typer.Option(metavar="DATASET", help="Train it plainly and say what each layer then knows of the profiles: name, folder or study."),
    ] = None,
    allow_code: AllowCode = False,
) -> None:
    """List the places of a model where knowledge can be transferred: names, widths, whose rows they hold."""
    from llmkt_ray.show import layer_table
    from llmkt_ray.sweep.probe import named_model, probe_knowledge, probe_study
    from llmkt_ray.training.layers import probe_layers

    given = named_model(model, allow_code=allow_code)
    if probe is None:
        for part in layer_table(given.name, probe_layers(given.name, None, {}, given.class_path)):
            out.print(part, highlight=False)
        return
    study = probe_study(probe, given)
    taps, known = probe_knowledge(study, err, allow_code=allow_code)
    for part in layer_table(given.name, taps, known):
        out.print(part, highlight=False)
    _say(
        f"after plain training on {study.datasets[0].name}, {known[0].n_users} users, profiles of {study.profiles[0].label}: "
        "CKA in [0, 1] and R2 of a ridge regression on held-out users, higher is more; R2 at or below 0 is nothing"
    )


@app.command()
def doctor(storage: Annotated[str, typer.Option(help="Folder or URI to try writing to.")] = "results") -> None:
    """Look at the installation: versions, Ray, GPU, vLLM, text encoder, whether results can be written."""
    from llmkt_ray.doctor import examine

    findings = examine(storage)
    table = Table("", "what", "found", box=None)
    for finding in findings:
        table.add_row(
            "[green]ok[/]" if finding.ok else "[red]no[/]" if finding.needed else "[yellow]--[/]", finding.what, escape(finding.found)
        )
    out.print(table)
    if any(finding.needed and not finding.ok for finding in findings):
        raise typer.Exit(1)


def main() -> None:
    """Runs the command; an error that the user can mend is one message on stderr and exit code 2."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        app()
    except LlmktError as error:
        err.print(f"llmkt: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
