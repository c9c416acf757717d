"""The same as the command line, from Python: `Study.from_yaml("study.yaml").run()`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from llmkt_ray.data.split import prepare
from llmkt_ray.errors import StorageError
from llmkt_ray.profiles.preview import preview
from llmkt_ray.profiles.prompts import Prompt
from llmkt_ray.results.card import read_card
from llmkt_ray.results.folder import holder, study_folder
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.study import DatasetConfig, StudyConfig, TrainingConfig
from llmkt_ray.study_file import load_study
from llmkt_ray.sweep.check import check_study
from llmkt_ray.sweep.cluster import given_address
from llmkt_ray.sweep.plan import Plan, make_plan
from llmkt_ray.sweep.run import ExecutorName, RunSummary, run_study, store_of

SMOKE_TRIALS = 4


@dataclass(frozen=True)
class Status:
    """Where a study stands.

    Attributes:
        folder: its results folder.
        planned: trials in all, None before the first run has planned them.
        done, failed: trials with a row.
        holder: host, pid and start of the process that is running it, None if none is.
        report: path of the report, None before there is one.
    """

    folder: str
    planned: int | None
    done: int
    failed: int
    holder: dict[str, Any] | None
    report: str | None


@dataclass(frozen=True)
class Study:
    """A study and what can be done with it.

    Attributes:
        config: the validated study file.
        allow_code: whether classes by import path may be loaded.
    """

    config: StudyConfig
    allow_code: bool = False

    @staticmethod
    def from_yaml(path: str | Path, *, allow_code: bool = False) -> "Study":
        """Reads a study file.

        Raises:
            StudyError: the file is missing, is not YAML, or has errors of schema; all of them at once.
        """
        return Study(load_study(path), allow_code)

    def smoke(self) -> "Study":
        """Returns this study cut down to seconds: ml-100k, 2 epochs, 1 seed, in a results folder of its own."""
        config = self.config
        known = next((d for d in config.datasets if d.name == "ml-100k" and d.path is None), None)
        dataset = known or DatasetConfig.model_validate({"name": "ml-100k", "positive": {"rating_at_least": 4}})
        return Study(
            config.model_copy(
                update={
                    "name": f"{config.name}-smoke",
                    "datasets": (dataset.model_copy(update={"train_share": dataset.train_share[:1]}),),
                    "models": tuple(model.model_copy(update={"epochs": 2}) for model in config.models),
                    "training": TrainingConfig(**{**config.training.model_dump(), "epochs": 2, "evaluate_every": 1}),
                    "seeds": 1,
                    "search": config.search.model_copy(update={"trials": 1, "round_size": 1, "objectives": ("mean",)}),
                }
            ),
            self.allow_code,
        )

    def as_job(self) -> "Study":
        """Returns this study as a submitted job runs it: a relative `storage` lies where it outlives the job."""
        from llmkt_ray.sweep.jobs import stored_for_job  # here, because the job client is heavy

        return Study(stored_for_job(self.config), self.allow_code)

    def check(self, *, address: str | None = None) -> None:
        """Returns if the study can run.

        Raises:
            StudyError: with every problem found.
        """
        check_study(self.config, store_of(self.config), allow_code=self.allow_code, local=(address or given_address()) is None)

    def plan(self) -> Plan:
        """Returns what the study needs and what is there; starts nothing.

        Raises:
            StudyError: the study cannot run.
        """
        self.check()
        return make_plan(self.config, store_of(self.config))

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

    def run(
        self,
        *,
        executor: ExecutorName = "ray",
        address: str | None = None,
        num_cpus: int | None = None,
        limit: int | None = None,
        retry_failed: bool = False,
        console: Console | None = None,
    ) -> RunSummary:
        """Checks the study, runs what is missing, and writes the report.

        Raises:
            StudyError: the study cannot run.
            LlmktError: something that can be mended came up on the way; what is done stays.
        """
        self.check(address=address)
        summary = run_study(
            self.config, executor=executor, address=address, num_cpus=num_cpus, limit=limit, retry_failed=retry_failed, console=console
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
        page = Path(folder) / "report.html"
        return Status(
            folder=folder,
            planned=card["planned_trials"] if card else None,
            done=len(rows) - failed,
            failed=failed,
            holder=holder(folder),
            report=str(page) if page.exists() else None,
        )

    def report(self) -> Path:
        """Writes the report from the rows and returns its path.

        Raises:
            StorageError: there are no results yet.
        """
        from llmkt_ray.report import build  # here, because figures and statistics are heavy and a run needs them last

        folder = study_folder(self.config)
        if read_card(folder) is None:
            raise StorageError(f"there are no results in {folder}; run: llmkt run STUDY")
        return build(Path(folder))
