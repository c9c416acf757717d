"""Rows that were made from other inputs than a study reads now: a study's key knows the path of a file, a trial's key its content."""

from collections import Counter
from collections.abc import Mapping
from itertools import product

import pandas as pd
from pydantic import ValidationError

from llmkt_ray.errors import StorageError
from llmkt_ray.results.ledger import Ledger
from llmkt_ray.sweep.pipeline import target_node
from llmkt_ray.sweep.plan import Plan
from llmkt_ray.training.bridge.models import class_digest
from llmkt_ray.training.spec import TrialSpec

PROGRAM = "by another version of llmkt_ray, torch or recbole"
CODE = "by other code of a model's own class"
DATA = "from other data (the files of a dataset)"
TEXTS = "from other profiles (their files or prompts, the encoder, or the libraries that make targets)"


def refuse_stale_rows(plan: Plan, ledger: Ledger) -> None:
    """Returns if all numbers in the ledger come from what the study reads now: the report would take old and new ones for one cell.

    Failed trials have no numbers.

    Raises:
        StorageError: some come from other inputs, in words: how many from which.
    """
    rows = ledger.trials()
    rows = rows[rows["status"] != "failed"]
    if rows.empty:
        return
    splits, texts = {node.key for node in plan.splits}, _targets(plan, rows) | {node.key for node in plan.knowledge} | {None}
    digests = {model.class_path: class_digest(model.class_path) for model in plan.study.models}
    pairs = zip(rows["trial_key"], rows["spec"], strict=True)
    stale = Counter(why for key, spec in pairs if (why := _why_stale(key, spec, splits, texts, digests)))
    if stale:
        causes = "; ".join(f"{number} {why}" for why, number in stale.items())
        raise StorageError(
            f"{stale.total()} of {len(rows)} trials in {ledger.files.root} were not made from what this study reads now: {causes}. New "
            "ones beside them would be taken for the same cells. Give the study another `name`, or move the folder away "
            "(`llmkt report FOLDER` still reads it); or put back what was there, then this goes on"
        )


def _why_stale(key: str, text: str, splits: set[str], texts: set[str | None], digests: Mapping[str | None, str | None]) -> str | None:
    """Returns what a row was made from that is not there now, or None."""
    try:
        spec = TrialSpec.model_validate_json(text)
    except ValidationError:  # fields of another version
        return PROGRAM
    if spec.key != key:
        return PROGRAM
    if spec.class_digest != digests.get(spec.class_path):
        return CODE
    if spec.split_key not in splits:
        return DATA
    return None if {spec.targets_key, spec.twin_key, spec.knowledge_key} <= texts else TEXTS


def _targets(plan: Plan, rows: pd.DataFrame) -> set[str | None]:
    """Returns the keys of all targets that trials of the study may have read.

    Tuning may have changed the width of a layer, so widths are those of the rows, not of the plan alone.
    """
    widths = {1, *rows["dims"].dropna().astype(int)}
    every = product(plan.embeddings, plan.study.reduction, sorted(widths), range(plan.study.seeds))
    return {target_node(plan.study, node, reduction, width).for_seed(seed).key for node, reduction, width, seed in every}
