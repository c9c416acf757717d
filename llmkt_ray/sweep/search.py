"""Search inside a cell with Optuna, in rounds, so that it is as reproducible as a grid.

A round's suggestions are in the ledger before its trials start, every suggestion is run over all seeds, and its outcome is
told in order of its number: so neither the order in which a cluster finishes nor a crash changes what is suggested next.
What the sampler sees is rebuilt from the ledger; nothing of Optuna's own state is read back.
"""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import optuna
import pandas as pd
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import create_engine, make_url
from sqlalchemy.exc import SQLAlchemyError

from llmkt_ray.artifacts import FileStore, storage_problem
from llmkt_ray.errors import SweepError
from llmkt_ray.results.ledger import SUGGESTIONS, Ledger
from llmkt_ray.seeds import derive_seed
from llmkt_ray.study import SearchConfig, StudyConfig
from llmkt_ray.sweep.objective import directions, outcome
from llmkt_ray.sweep.space import Params, Rungs, SearchCell
from llmkt_ray.training.rungs import best_by

DIGITS = 4
"""Suggested numbers are rounded to so many digits, so that they read the same everywhere."""
ParamValue = str | float | int | bool | None


def rounds(search: SearchConfig) -> list[tuple[int, int]]:
    """Returns (number of the first suggestion, how many) for each round."""
    return [(first, min(search.round_size, search.trials - first)) for first in range(0, search.trials, search.round_size)]


@dataclass(frozen=True)
class Round:
    """What one round of a search runs, and what its rungs ask for: both are fixed before its first trial starts.

    The rungs are kept, not worked out again: a failed trial of an earlier round that is run again would change them, and with
    them the keys of trials that are finished.
    """

    suggestions: list[Params]
    rungs: Rungs = ()


def planned_round(files: FileStore, study: StudyConfig, cell: SearchCell, first: int, count: int, history: Sequence[FrozenTrial]) -> Round:
    """Returns a round: the one in the ledger, or a new one, which is in the ledger when this returns.

    Raises:
        StorageError: it cannot be written.
        SweepError: what is in the ledger is damaged.
    """
    name, space = f"{SUGGESTIONS}/{cell.key}-{first:05d}.json", cell.space(study)
    data = files.read_bytes(name)
    if data is None:
        made = Round(suggest(space, study, history, first, count, cell.default(study), cell.key), cell.rungs(study, history))
        files.write_bytes(name, json.dumps({"cell": cell.name, "first": first, **asdict(made)}, indent=1).encode())
        return made
    try:
        content = json.loads(data)
        kept = content.get("rungs", cell.rungs(study, history))  # a round of an earlier version has none
        found = Round(list(content["suggestions"]), tuple((int(epoch), float(asked)) for epoch, asked in kept))
        for params in found.suggestions:
            create_trial(state=TrialState.FAIL, params=dict(params), distributions=space)  # raises if it is not of this space
        if len(found.suggestions) != count:
            raise ValueError(f"{len(found.suggestions)} suggestions instead of {count}")
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise SweepError(f"{files.path(name)} is damaged ({error}); delete it and run again: its suggestions are made anew") from error
    return found


def suggest(
    space: Mapping[str, BaseDistribution],
    study: StudyConfig,
    history: Sequence[FrozenTrial],
    first: int,
    count: int,
    default: Params,
    cell: str,
) -> list[Params]:
    """Returns `count` suggestions: a pure function of the space, the history and the seeds.

    Args:
        space: the parameters.
        study: for the sampler, its seed and the directions.
        history: every earlier suggestion with its outcome, in order.
        first: number of the first suggestion of this round; number 0 is the default.
        count: how many.
        default: the settings that are tried first.
        cell: key of the search, part of the seed.
    """
    search = study.search
    is_sequence = search.sampler == "qmc"  # knows no history: its n-th point is a function of n
    seed = derive_seed(study.seed, "search", cell, 0 if is_sequence else first)
    startup = min(10, max(2, search.trials // 3))
    samplers = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup, multivariate=True, constant_liar=True),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
        "qmc": lambda: optuna.samplers.QMCSampler(seed=seed, scramble=True, warn_asynchronous_seeding=False),
    }
    with _quiet():
        optuna_study = optuna.create_study(directions=directions(search), sampler=samplers[search.sampler]())
        if not is_sequence:
            optuna_study.add_trials(history)
        asked = [optuna_study.ask(dict(space)).params for _ in range(first + count if is_sequence else count)]
    made = [{name: _rounded(value, space[name]) for name, value in params.items()} for params in asked[-count:]]
    return [default, *made[1:]] if first == 0 else made


def _rounded(value: ParamValue, space: BaseDistribution) -> ParamValue:
    if not isinstance(value, float) or not isinstance(space, FloatDistribution):
        return value
    return float(min(max(float(f"{value:.{DIGITS}g}"), space.low), space.high))


def told(
    study: StudyConfig, cell: SearchCell, made: Sequence[Params], rows: pd.DataFrame, ledger: Ledger, rungs: Rungs = ()
) -> list[FrozenTrial]:
    """Returns suggestions with their outcome, as Optuna keeps them; states are true (failed and NaN are FAIL, stopped is PRUNED).

    Args:
        study: the study.
        cell: the search.
        made: suggestions in order.
        rows: the ledger's trials by trial key, read once for all searches: the driver's time must not grow with their number too.
        ledger: for the curves of trials that have rungs.
        rungs: what their rungs asked for.
    """
    frozen = []
    for params in made:
        keys = [spec.key for spec in cell.specs(study, params, rungs)]
        state, values = outcome(study, rows.reindex(keys))
        frozen.append(
            create_trial(
                state=state,
                values=values if state == TrialState.COMPLETE else None,
                params=dict(params),
                distributions=cell.space(study),
                intermediate_values=_at_rungs(study, cell, keys, ledger) if state in (TrialState.COMPLETE, TrialState.PRUNED) else None,
                user_attrs={"trial_keys": keys},
            )
        )
    return frozen


def _at_rungs(study: StudyConfig, cell: SearchCell, keys: Sequence[str], ledger: Ledger) -> dict[int, float]:
    """Returns epoch of phase 2 to the best on validation so far, at the rungs that a suggestion of one seed has reached."""
    epochs = cell.rung_epochs(study)
    if not epochs:
        return {}
    (key,) = keys
    rows = ledger.curve(key).to_dict("records")
    reached = {epoch: best_by(rows, epoch, study.evaluation.select_on) for epoch in epochs}
    return {epoch: value for epoch, value in reached.items() if value is not None}


def mirror(url: str | None, folder: str, study: StudyConfig, histories: Mapping[str, Sequence[FrozenTrial]]) -> str | None:
    """Copies the histories into Optuna storage, for optuna-dashboard and optuna.importance; what is there already stays if it is true.

    A finished trial of Optuna cannot be changed. So where a failed suggestion was run again and is none now, the copy is made anew.

    Raises:
        StorageError: the results folder cannot be written.

    Returns:
        Why a database could not be written, or None: it is a copy, so the search goes on, and the next call copies what is missing.

    Args:
        url: an RDB URL; None: a journal file in the results folder, which must be local.
        folder: the results folder.
        study: the study.
        histories: name of each search to every suggestion told so far, in order.
    """
    whose = f" {study.key}" if url else ""  # a database may hold other studies of this name
    try:
        with _quiet(), nullcontext(optuna.storages.RDBStorage(url)) if url else _journal(folder) as storage:
            for name, history in histories.items():
                _copy(storage, f"{study.name} {name}{whose}", study.search, history)
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError) as error:  # the last: of another version of Optuna
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        return f"search.storage cannot be written: {reason}; the search goes on, and the next round or run copies what is missing"
    return None


def _copy(storage: optuna.storages.BaseStorage, name: str, search: SearchConfig, history: Sequence[FrozenTrial]) -> None:
    copy = optuna.create_study(storage=storage, study_name=name, directions=directions(search), load_if_exists=True)
    if any(there.state != now.state for there, now in zip(copy.trials, history, strict=False)):
        optuna.delete_study(study_name=name, storage=storage)
        copy = optuna.create_study(storage=storage, study_name=name, directions=directions(search))
    copy.set_metric_names(list(search.objectives))
    copy.add_trials(history[len(copy.trials) :])


def storage_url_problem(url: str) -> str | None:
    """Returns why this cannot be the URL of a database (its form, or no driver for it), or None; connects to nothing."""
    try:
        create_engine(url)
    except (SQLAlchemyError, ImportError, ValueError) as error:
        return f"search.storage is no URL of a database that this environment can open: {str(error).splitlines()[0]}"
    return None


def is_relative_file(url: str | None) -> bool:
    """Says whether this is the URL of a SQLite file in whatever folder the run is started in."""
    if url is None or storage_url_problem(url):
        return False
    parts = make_url(url)
    file = parts.database or ""
    return parts.get_backend_name() == "sqlite" and bool(file) and not file.startswith((":", "file:")) and not Path(file).is_absolute()


@contextmanager
def _journal(folder: str) -> Iterator[optuna.storages.BaseStorage]:
    """Opens the journal file; a damaged one (a kill or a full disk cut its last line) is set aside, and the copy begins anew.

    Raises:
        StorageError: it cannot be written.
    """
    FileStore(folder).write_bytes("search/README.txt", b"Open with: optuna-dashboard journal.log\n")
    path = Path(folder) / "search" / "journal.log"
    try:
        journal = _opened(path)
        if journal is None:
            path.replace(path.with_name("journal.damaged.log"))
            journal = _opened(path)
        assert journal is not None, "a new journal is whole"
        yield journal
    except OSError as error:
        raise storage_problem(error, str(path)) from error


def _opened(path: Path) -> optuna.storages.BaseStorage | None:
    """Returns the journal, all of it read, or None if it is damaged."""
    data = path.read_bytes() if path.exists() else b""
    if data and not data.endswith(b"\n"):  # Optuna would write its next line behind the half one, and then read neither
        return None
    try:
        return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    except (ValueError, LookupError, TypeError):
        return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences Optuna's own log, and its remark that the QMC sampler is young, for as long as the block lasts."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield
    finally:
        optuna.logging.set_verbosity(before)
