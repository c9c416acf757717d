"""The same as the command line, from Python: `Study.from_yaml("study.yaml").run()`."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from llmkt_ray.artifacts import FileStore, below
from llmkt_ray.data.split import prepare
from llmkt_ray.embeddings.forget import Forgotten, forget
from llmkt_ray.errors import ResourceError, StorageError
from llmkt_ray.profiles.preview import preview
from llmkt_ray.profiles.prompts import Prompt
from llmkt_ray.profiles.reading import rows_of
from llmkt_ray.profiles.table import Profiles
from llmkt_ray.results.card import read_card
from llmkt_ray.results.folder import holder, locked, owner_problem, results_folders, study_folder
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.results.llm_texts import LlmTexts, llm_texts, total
from llmkt_ray.results.transport import local_copy
from llmkt_ray.study import StudyConfig
from llmkt_ray.study_file import load_study
from llmkt_ray.sweep.check import check_study, not_at_hand
from llmkt_ray.sweep.cluster import given_address
from llmkt_ray.sweep.journal import read_progress
from llmkt_ray.sweep.llm_cost import LlmLine, llm_lines
from llmkt_ray.sweep.plan import Plan, make_plan
from llmkt_ray.sweep.run import ExecutorName, RunSummary, run_study, store_of
from llmkt_ray.sweep.smoke import smoke_study

PAGE = "report.html"


@dataclass(frozen=True)
class Status:
    """Where a study stands.

    Attributes:
        folder: its results folder.
        planned: trials in all, None before the first run has planned them.
        done, failed: trials with a row.
        holder: host, pid and start of the process that is running it, None if none is.
        report: path or URI of the report, None before there is one.
        progress: what the last run said of itself: stage, trials running, seconds left; None before the first.
        llm: what language models took for the finished texts beside what was planned, all choices together; None where none wrote.
        problem: why these are not this study's results (the folder is another one's), None if they are.
    """

    folder: str
    planned: int | None
    done: int
    failed: int
    holder: dict[str, Any] | None
    report: str | None
    progress: dict[str, Any] | None = None
    llm: LlmTexts | None = None
    problem: str | None = None


@dataclass(frozen=True)
class Study:
    """A study and what can be done with it.

    Attributes:
        config: the validated study file.
        allow_code: whether classes by import path may be loaded.
        notes: what a smoke run replaced, in sentences.
    """

    config: StudyConfig
    allow_code: bool = False
    notes: tuple[str, ...] = ()

    @staticmethod
    def from_yaml(path: str | Path, *, allow_code: bool = False) -> "Study":
        """Reads a study file.

        Raises:
            StudyError: the file is missing, is not YAML, or has errors of schema; all of them at once.
        """
        return Study(load_study(path), allow_code)

    def smoke(self) -> "Study":
        """Returns this study cut down to seconds, in a results folder of its own; `notes` say what was replaced."""
        config, notes = smoke_study(self.config)
        return replace(self, config=config, notes=notes)

    def as_job(self) -> "Study":
        """Returns this study as a submitted job runs it: a relative `storage` lies where it outlives the job."""
        from llmkt_ray.sweep.jobs import stored_for_job  # here, because the job client is heavy

        return replace(self, config=stored_for_job(self.config))

    def check(self, *, address: str | None = None, needs_all: bool = True) -> None:
        """Returns if the study can run.

        Args:
            address: of the cluster it would run on; None: `RAY_ADDRESS`, or this machine.
            needs_all: whether what is not at hand on this machine is a problem; see `not_at_hand`.

        Raises:
            StudyError: with every problem found.
        """
        local = (address or given_address()) is None
        try:
            store = store_of(self.config)
        except StorageError:  # told with the study's other problems
            store = None
        check_study(self.config, store, allow_code=self.allow_code, local=local, needs_all=needs_all)

    def not_at_hand(self) -> list[str]:
        """Returns what a run needs and this machine lacks (datasets to be got by hand, GPUs), as sentences."""
        return not_at_hand(self.config, local=given_address() is None)

    def plan(self) -> Plan:
        """Returns what the study needs and what is there; starts nothing.

        Raises:
            StudyError: the study cannot run.
        """
        self.check(needs_all=False)  # a plan may be for another machine
        return make_plan(self.config, store_of(self.config))

    def llm_costs(self, plan: Plan) -> list[LlmLine]:
        """Returns tokens, GPU hours and money of every set of profiles by a language model: planned, or as it was; asks no model."""
        return list(llm_lines(plan, store_of(self.config)))

    def prompts(self, users: int = 3) -> Iterator[tuple[str, list[Prompt]]]:
        """Yields, for each dataset and LLM choice, its label and the exact prompts of its first users; asks no model.

        Args:
            users: how many users of each.

        Raises:
            ProfileError: the prompts of a choice cannot be built.
            DatasetError: a dataset cannot be read.
        """
        store = store_of(self.config)
        for dataset in self.config.datasets:
            data = prepare(dataset, study_seed=self.config.seed, store=store)
            for profiles in self.config.profiles:
                if profiles.llm not in ("template", "file"):
                    yield f"{dataset.name}, {profiles.label}", preview(profiles, data, users)

    def profiles_of(self, user_id: str) -> Iterator[tuple[str, dict[str, Any], list[str]]]:
        """Yields, for each set of profiles that is there, its label, the user's row and the names of the flags of its text.

        Args:
            user_id: the raw id.

        Raises:
            ProfileError: no finished set of profiles of this study has such a user.
        """
        yield from rows_of(self._finished_profiles(), user_id)

    def profile_quality(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields, for each set of profiles that is there, its label and its notes: coverage, tokens and quality figures."""
        for label, profiles in self._finished_profiles():
            yield label, dict(profiles.notes)

    def forget(self, user_id: str) -> Forgotten:
        """Removes one user's profiles from the artifacts of this study, with all that was derived from them.

        The report pages of the storage go too, because they show texts, which studies may share; `report` makes them anew.

        Args:
            user_id: the raw id.

        Raises:
            ProfileError: no set of profiles of this study has such a user; nothing is deleted.
            StorageError: a run of this study goes on, or something cannot be written.
        """
        store, folder = store_of(self.config), study_folder(self.config)
        with locked(folder):
            done = forget(store, [node.key for node in make_plan(self.config, store).profiles], user_id)
            if not (done.texts or done.parts or done.embeddings or done.targets):
                # Forgotten before (an interruption may have left pages), or in no set: then this raises.
                list(rows_of(self._finished_profiles(), user_id))
            pages, left = [], []
            for folder in results_folders(self.config.storage):
                files = FileStore(folder)
                try:
                    if files.exists(PAGE):
                        files.delete(PAGE)
                        pages.append(below(folder, PAGE))
                except StorageError as error:
                    left.append(str(error))
        return replace(done, pages=tuple(pages), pages_left=tuple(left))

    def _finished_profiles(self) -> Iterator[tuple[str, Profiles]]:
        store = store_of(self.config)
        for node in make_plan(self.config, store).profiles:
            if store.find(node.kind, node.key) is not None:
                yield node.label, Profiles.load(store, node.key)

    def run(
        self,
        *,
        executor: ExecutorName = "ray",
        address: str | None = None,
        num_cpus: int | None = None,
        limit: int | None = None,
        retry_failed: bool = False,
        dashboard: bool = False,
        console: Console | None = None,
    ) -> RunSummary:
        """Checks the study, runs what is missing, and writes the report.

        Raises:
            StudyError: the study cannot run.
            ResourceError: a cluster's address, but an executor that uses none.
            LlmktError: something that can be mended came up on the way; what is done stays.
        """
        if executor == "loop" and address is not None:
            raise ResourceError(
                f"executor 'loop' runs trials in this process and uses no cluster, but an address was given ({address}); "
                "leave --address out, or choose executor 'ray'"
            )
        self.check(address=address)
        summary = run_study(
            self.config,
            executor=executor,
            address=address,
            num_cpus=num_cpus,
            limit=limit,
            retry_failed=retry_failed,
            dashboard=dashboard,
            console=console,
        )
        self.report()
        return summary

    def ledger(self) -> Ledger:
        """Returns the study's rows."""
        return Ledger(study_folder(self.config))

    def trials(self) -> pd.DataFrame:
        """Returns one row a trial; see `llmkt_ray.results.rows` for the columns."""
        return self.ledger().trials()

    def status(self) -> Status:
        """Returns where the study stands; it may be running in another process."""
        folder, rows, card = study_folder(self.config), self.trials(), read_card(study_folder(self.config))
        failed = int((rows["status"] == "failed").sum())
        texts = llm_texts(card or {})
        return Status(
            folder=folder,
            planned=card["planned_trials"] if card else None,
            done=len(rows) - failed,
            failed=failed,
            holder=holder(folder),
            report=below(folder, PAGE) if FileStore(folder).exists(PAGE) else None,
            progress=read_progress(folder),
            llm=total(texts) if texts else None,
            problem=owner_problem(self.config),
        )

    def report(self) -> str:
        """Writes the report from the rows and returns its path or URI.

        Raises:
            StorageError: there are no results yet, or they are another study's.
        """
        from llmkt_ray.report import build  # here, because figures and statistics are heavy and a run needs them last

        folder = study_folder(self.config)
        if read_card(folder) is None:
            raise StorageError(f"there are no results in {folder}; run: llmkt run STUDY")
        problem = owner_problem(self.config)
        if problem:
            raise StorageError(f"{problem}; for the report of the results that are there, run: llmkt report {folder}")
        with local_copy(folder) as here:
            build(here, store_of(self.config))
        return below(folder, PAGE)
