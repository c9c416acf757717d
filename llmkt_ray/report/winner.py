"""The winner leaves: one trial of a study as RecBole's weights and config, checked by RecBole itself."""

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.errors import StorageError, StudyError, TrainingError
from llmkt_ray.results.folder import beside
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.seeds import canonical_json
from llmkt_ray.stats.selection import choose
from llmkt_ray.study import KAR_ARMS
from llmkt_ray.sweep.execute import load_artifacts
from llmkt_ray.training.bridge.export import write_export
from llmkt_ray.training.bridge.models import BuiltModel
from llmkt_ray.training.metrics import LOWER_IS_BETTER
from llmkt_ray.training.spec import TrialSpec
from llmkt_ray.training.trial import run_trial

BEST = "best"
SAME = 1e-4
"""Largest difference of a metric between a trial's row and its repetition: other hardware or versions round differently."""
EQUAL = 1e-2
"""Largest difference between our evaluation and RecBole's of the same weights: equal but for the order of exactly equal scores, which
dead units and counts give (DMF, Pop)."""

_SHOWN = 8


@dataclass(frozen=True)
class Exported:
    """What was exported.

    Attributes:
        folder: where.
        trial_key: the trial.
        ours: metric name to test value, of the exported weights.
        recboles: the same as RecBole's own evaluation of the files gives it, in a process without llmkt_ray.
    """

    folder: Path
    trial_key: str
    ours: Mapping[str, float]
    recboles: Mapping[str, float]


def folder_of(trial: str, root: Path) -> Path:
    """Returns the results folder below `root` that holds a trial.

    Raises:
        StorageError: none does, or several do.
    """
    folders = sorted(path.parent for path in root.glob("*/ledger"))
    found = [f for f in folders if trial == BEST or Ledger(f).trials()["trial_key"].str.startswith(trial).any()]
    if len(found) != 1:
        where = ", ".join(map(str, found)) or f"none of the {len(folders)} results folders below {root.absolute()}"
        raise StorageError(f"trial {trial!r} is in {where}; name the results folder of its study with --results")
    return found[0]


def find_trial(trial: str, folder: str | Path) -> tuple[TrialSpec, pd.Series]:
    """Returns a trial of a results folder, and its row.

    Args:
        trial: its key or the key's beginning, or "best": the treated configuration with the best mean of the selecting metric on
            validation, over the seeds and splits that the fullest configuration has, and of its seeds the best; see `choose`.
        folder: the results folder, or its URI.

    Raises:
        StorageError: there are no results, no such trial or several, or it has failed.
    """
    rows = Ledger(folder).trials()
    if rows.empty:
        raise StorageError(f"there are no trials in {folder}; give the results folder of a study with --results")
    if trial == BEST:
        return _best(rows, folder)
    found = rows[rows["trial_key"].str.startswith(trial)]
    if len(found) != 1:
        if len(found) > 1:
            some = ", ".join(found["trial_key"].head(_SHOWN)) + (", ..." if len(found) > _SHOWN else "")
            raise StorageError(f"the keys of {len(found)} trials in {folder} begin with {trial!r}; give more of one of these: {some}")
        some = ", ".join(rows.loc[rows["status"] == "done", "trial_key"].head(3))
        raise StorageError(f"there is no trial {trial!r} in {folder}; keys are in the report and in tables/trials.csv, for example {some}")
    row = found.iloc[0]
    if row["status"] != "done":
        raise StorageError(f"trial {row['trial_key']} failed ({row['error_message']}), so there is nothing to export")
    return TrialSpec.model_validate_json(row["spec"]), row


def _best(rows: pd.DataFrame, folder: str | Path) -> tuple[TrialSpec, pd.Series]:
    treated = rows[(rows["arm"] == "treated") & (rows["status"] == "done")]
    if treated.empty:
        raise StorageError(f"no treated trial has finished in {folder}")
    names = sorted(treated["dataset"].unique())
    if len(names) > 1:
        raise StorageError(f"{folder} has trials on {', '.join(names)}: there is a best one for each; give the key of one (see the report)")
    specs = {key: TrialSpec.model_validate_json(text) for key, text in zip(treated["trial_key"], treated["spec"], strict=True)}
    metric = next(iter(specs.values())).select_on
    # A configuration is what its seeds and splits share; its targets differ by split, so that its labels say who wrote and encoded them.
    of_seed: dict[str, bool | set[str]] = {
        "seed_index": True,
        "split_key": True,
        "targets_key": True,
        "knowledge_key": True,
        "factors": {"split_repetition"},
    }
    same = {key: canonical_json(spec.model_dump(mode="json", exclude=of_seed)) for key, spec in specs.items()}
    values: dict[str, dict[tuple[object, int], float]] = {}
    for key, value in zip(treated["trial_key"], treated[f"valid_{metric}"], strict=True):
        at = specs[key].factors.get("split_repetition") or 0, specs[key].seed_index
        values.setdefault(same[key], {})[at] = float(value)
    lower = metric in LOWER_IS_BETTER
    choice = choose(values, lower_is_better=lower)
    if choice is None:
        raise StorageError(f"no treated trial in {folder} has a value of {metric} on validation")
    mine = treated[[same[key] == choice.best for key in treated["trial_key"]]]
    first = mine.sort_values([f"valid_{metric}", "trial_key"], ascending=[lower, True]).iloc[0]
    return specs[str(first["trial_key"])], first


def export_trial(
    trial: str,
    folder: str | Path,
    target: Path | None = None,
    *,
    artifacts: str | Path | None = None,
    device: str = "cpu",
    allow_code: bool = False,
) -> Exported:
    """Trains a trial again from its row, and writes it as RecBole's weights and config once its numbers are the row's.

    The weights of a sweep's trials are not kept: a trial is a function of its spec, so they are made again. RecBole then evaluates
    the files in a process of its own, in which llmkt_ray cannot be imported.

    Args:
        trial: see `find_trial`.
        folder: the results folder, or its URI.
        target: a new or empty folder; `exported/<trial key>` if not given.
        artifacts: the artifact store; `artifacts` beside the results folder if not given.
        device: "cpu" or "cuda"; the same kind as in the study gives the same weights.
        allow_code: whether a model class of the user's own may be imported.

    Raises:
        StorageError: there is no such trial, the target is not empty, or the artifacts are not there.
        StudyError: the model is a class of the user's own and `allow_code` is not set.
        TrainingError: the repeated trial, or RecBole's evaluation of the files, has other numbers.
    """
    spec, row = find_trial(trial, folder)
    key = str(row["trial_key"])
    target = target or Path("exported") / key
    if target.exists() and not target.is_dir():
        raise StorageError(f"{target} is a file, not a folder; give a new folder with --to")
    if target.exists() and any(target.iterdir()):
        raise StorageError(f"{target} is not empty; give a new folder with --to")
    if spec.class_path is not None and not allow_code:
        raise StudyError(f"trial {key} is of the model class {spec.class_path}; give --allow-code to import it, which runs its code")
    if spec.protocol == "paper_2024":
        raise StorageError(
            f"trial {key} was tested on sampled items (protocol paper_2024), which RecBole alone would draw anew: its files could not be "
            "verified; export a trial of a study with protocol 'full'"
        )
    if spec.arm in KAR_ARMS:
        raise StorageError(
            f"trial {key} is of arm {spec.arm!r}, whose knowledge fields RecBole's {spec.model} lacks: RecBole alone could not load "
            "it; export a treated trial, which is the plain model"
        )
    before = {name: float(row[f"test_{name}"]) for name in spec.metrics}
    root = str(artifacts or beside(folder, "artifacts"))
    if not ArtifactStore(root).find("split", spec.split_key):
        raise StorageError(f"the study's artifacts are not in {root}; give their folder with --artifacts: the split and targets are needed")
    with TemporaryDirectory() as scratch:
        loaded = load_artifacts(spec, root, scratch)

        def write(model: BuiltModel, tested: dict[str, float]) -> None:
            far = {name: (before[name], value) for name, value in tested.items() if abs(before[name] - value) > SAME}
            if far:
                words = "; ".join(f"{name} {now:.6f} instead of {then:.6f}" for name, (then, now) in far.items())
                raise TrainingError(
                    f"trial {key}, trained again, has other numbers than its row: {words}; export it with the versions and the kind of "
                    "device of the study (see the report's reproducibility card)"
                )
            write_export(target, model, spec, loaded.data, tested)

        result = run_trial(spec, loaded, device=device, on_tested=write)
    recboles = evaluate_alone(target)
    most = SAME if spec.protocol == "labelled" else EQUAL  # no order of equal scores changes AUC, LogLoss or GAUC
    far = {name: value for name, value in recboles.items() if abs(result.test[name] - value) > most}
    if far or not recboles:
        raise TrainingError(f"RecBole's evaluation of {target} gives {far or 'nothing'}, but ours {dict(result.test)}; please report this")
    return Exported(target, key, dict(result.test), recboles)


def evaluate_alone(folder: Path) -> dict[str, float]:
    """Returns the metrics that RecBole gives an export, in a process in which llmkt_ray cannot be imported; by our names.

    Raises:
        TrainingError: it fails.
    """
    blocked = (
        "import sys, runpy; sys.modules['llmkt_ray'] = None; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", blocked, str((folder / "recommend.py").absolute()), "evaluate"]
    with TemporaryDirectory() as scratch:
        done = subprocess.run(command, capture_output=True, text=True, cwd=scratch, check=False)  # noqa: S603 - our own script
    if done.returncode:
        raise TrainingError(f"RecBole cannot evaluate {folder}: {done.stderr.strip()[-800:]}")
    names = json.loads((folder / "export.json").read_text(encoding="utf-8"))["test"]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return {name: float(found[name.lower()]) for name in names if name.lower() in found}
