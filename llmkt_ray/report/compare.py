"""Two results folders: what differs between them, and one folder from several clusters' parts of one study."""

import io
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from llmkt_ray.artifacts import MANIFEST, FileStore
from llmkt_ray.errors import StorageError
from llmkt_ray.report.findings import find
from llmkt_ray.report.load import load, row_files
from llmkt_ray.report.text import count, percent_interval
from llmkt_ray.results.card import CARD, read_card
from llmkt_ray.results.folder import OWNER, beside
from llmkt_ray.results.ledger import SUGGESTIONS, TRIALS, Ledger
from llmkt_ray.results.rows import MEASUREMENT_COLUMNS
from llmkt_ray.results.transport import local_copy
from llmkt_ray.seeds import content_key

WORTH = ("failed", "pruned", "done")
"""Status of a trial: where parts differ in it, the later of these stands; only a trial that is done has a test."""
TEXTS = {"profiles": ("user_id", "profile", "profiles.parquet"), "item_texts": ("item_id", "text", "items.parquet")}
"""Kinds of artifacts that hold texts: whose, which column, and in which file."""
_NOT_COMPARED = {*MEASUREMENT_COLUMNS, "epoch:duration_s", "study_key", "error_traceback"}


@dataclass(frozen=True)
class Diff:
    """How two results folders differ.

    Attributes:
        study: names of the study's sections that differ.
        only_a, only_b: trials that only one has.
        changed: trials that both have, with other numbers.
        same: number of trials that are equal, measurements apart.
        cells: one sentence a cell whose outcome or gain differs, or that only one has.
    """

    study: tuple[str, ...]
    only_a: tuple[str, ...]
    only_b: tuple[str, ...]
    changed: tuple[str, ...]
    same: int
    cells: tuple[str, ...]

    def lines(self) -> list[str]:
        """Returns the difference as lines of text."""
        lines = [f"study: {', '.join(self.study)} differ" if self.study else "study: the same"]
        lines.append(
            f"trials: {self.same:,} equal, {len(self.changed):,} with other numbers, {len(self.only_a):,} only in the first, "
            f"{len(self.only_b):,} only in the second"
        )
        lines += [f"  other numbers: {key}" for key in self.changed[:20]]
        return lines + [f"cell: {words}" for words in self.cells]


def diff(a: str | Path, b: str | Path) -> Diff:
    """Returns how two results folders, or URIs of them, differ.

    Raises:
        StorageError: one of them holds no results, or a file of it is damaged.
    """
    with local_copy(str(a)) as here, local_copy(str(b)) as there:
        return _diff(here, there)


def _diff(a: Path, b: Path) -> Diff:
    one, two = load(a), load(b)
    rows = [dict(_fingerprints(folder)) for folder in (a, b)]
    shared = rows[0].keys() & rows[1].keys()
    changed = tuple(sorted(key for key in shared if rows[0][key] != rows[1][key]))
    cells: list[dict[str, str]] = []
    for results in (one, two):
        said = {}
        for finding in find(results):
            gain = finding.contrasts.get("alpha0")
            words = percent_interval(gain.relative) if gain is not None and gain.relative is not None else "not known"
            said[finding.cell.label] = f"{finding.claim.outcome}, over alpha0 {words}"
        cells.append(said)
    sentences = []
    for label in dict.fromkeys([*cells[0], *cells[1]]):
        before, after = cells[0].get(label, "not there"), cells[1].get(label, "not there")
        if before != after:
            sentences.append(f"{label}: {before} \u2192 {after}")
    studies = one.study, two.study
    return Diff(
        study=tuple(name for name in dict.fromkeys([*studies[0], *studies[1]]) if studies[0].get(name) != studies[1].get(name)),
        only_a=tuple(sorted(rows[0].keys() - shared)),
        only_b=tuple(sorted(rows[1].keys() - shared)),
        changed=changed,
        same=len(shared) - len(changed),
        cells=tuple(sentences),
    )


def merge(sources: Sequence[str | Path], target: str | Path) -> int:
    """Makes one results folder of several parts of one study, folders or URIs, and returns the number of its trials.

    A trial that finished in one part, and failed or was ended early in another, counts as finished. Nothing is written if there is a
    conflict. The rounds of searches, and splits and profiles that lie beside a part, come along.

    Raises:
        StorageError: the parts belong to different studies or ran on different kinds of devices, a trial has other numbers, a search other
            suggestions or a set other texts in two of them, a file of a part is damaged, the target is not empty, or a folder holds no
            results.
    """
    target_files = FileStore(target)
    if target_files.list("", recursive=True):
        raise StorageError(f"{target} is not empty; merge into a new folder, so that no result is overwritten")
    cards = [read_card(source) for source in sources]
    missing = [str(source) for source, card in zip(sources, cards, strict=True) if card is None]
    if missing or not sources:
        raise StorageError(f"there is no {CARD} in {', '.join(missing) or 'nothing: no folder was given'}; only results can be merged")
    keys = {str(source): str((card or {})["key"]) for source, card in zip(sources, cards, strict=True)}
    if len(set(keys.values())) > 1:
        named = "; ".join(f"{source} has key {key}" for source, key in keys.items())
        raise StorageError(f"only parts of one study can be merged, but {named}; use `llmkt diff` to see what differs")
    rows: dict[str, tuple[str, pa.Table]] = {}
    conflicts = []
    for source in sources:
        for key, table in _rows(source):
            mark = _fingerprint(table)
            before = rows.get(key)
            if before is not None and _status(before[1]) == _status(table) == "done" and before[0] != mark:
                conflicts.append(key)
            if before is None or WORTH.index(_status(table)) > WORTH.index(_status(before[1])):
                rows[key] = (mark, table)
    if conflicts:
        raise StorageError(
            f"{count(len(conflicts), 'trial')} finished with other numbers in two folders: {', '.join(sorted(conflicts)[:5])}; "
            "they ran on different code or versions: run one of the parts again"
        )
    _refuse_two_devices([table for _, table in rows.values()])
    _refuse_other_texts(sources, [card or {} for card in cards])
    suggestions = _suggestions(sources)
    for key, (_, table) in rows.items():
        sink = io.BytesIO()
        pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
        target_files.write_bytes(f"{TRIALS}/{key}.parquet", sink.getvalue())
    for name, data in suggestions.items():
        target_files.write_bytes(name, data)
    owner = FileStore(sources[0]).read_bytes(OWNER)
    if owner is not None:
        target_files.write_bytes(OWNER, owner)
    merged = _merged_card([card or {} for card in cards], sources)
    target_files.write_bytes(CARD, json.dumps(merged, indent=1, sort_keys=True).encode())
    _bring_artifacts(sources, target, merged)
    Ledger(target).compact()
    return len(rows)


def _refuse_two_devices(rows: Sequence[pa.Table]) -> None:
    """Arms of one study must share the kind of device, and a run refuses a folder in which they do not.

    Raises:
        StorageError: trials finished on two kinds of devices.
    """
    on = Counter(json.loads(row.column("facts")[0].as_py()).get("device_type") for row in rows if _status(row) == "done")
    kinds = {kind: number for kind, number in on.items() if kind}
    if len(kinds) > 1:
        said = ", ".join(f"{count(number, 'trial')} on {kind!r}" for kind, number in sorted(kinds.items()))
        raise StorageError(
            f"the parts ran on different kinds of devices ({said}), and arms of one study must share it: numbers differ by the device; "
            "run one of the parts again with the other's resources.trial.gpus"
        )


def _suggestions(sources: Sequence[str | Path]) -> dict[str, bytes]:
    """Returns the rounds of all searches, name to content: without them a search that goes on would draw them anew.

    Raises:
        StorageError: two parts have drawn one round differently.
    """
    found: dict[str, tuple[bytes, str | Path]] = {}
    for source in sources:
        files = FileStore(source)
        for name in filter(lambda name: name.endswith(".json"), files.list(SUGGESTIONS)):
            data = files.read_bytes(name)
            if data is None:
                continue
            before, at = found.setdefault(name, (data, source))
            if before != data:
                raise StorageError(
                    f"{name} is another round of the search in {source} than in {at}: the parts saw other results before it; "
                    "let one of them go on alone, or run one again"
                )
    return {name: data for name, (data, _) in found.items()}


def _refuse_other_texts(sources: Sequence[str | Path], cards: Sequence[dict[str, Any]]) -> None:
    """A language model asked twice may write other texts under one key: then trials of one study were given different knowledge.

    Raises:
        StorageError: the texts of a set differ beside two parts.
    """
    before: dict[tuple[str, str], tuple[str, str | Path]] = {}
    for source, card in zip(sources, cards, strict=True):
        store = FileStore(beside(source, "artifacts"))
        for kind, (owner, text, file) in TEXTS.items():
            for key in dict.fromkeys(str(entry.get("key")) for entry in card.get(kind, [])):
                data = store.read_bytes(f"{kind}/{key}/{file}") if _is_key(key) else None
                if data is None:
                    continue
                try:
                    texts = pq.read_table(io.BytesIO(data), columns=[owner, text]).sort_by(owner).to_pydict()
                except (pa.ArrowInvalid, OSError):
                    continue  # damaged: what reads the artifact says so
                mine = content_key(texts)
                mark, at = before.setdefault((kind, key), (mine, source))
                if mine != mark:
                    raise StorageError(
                        f"{kind} {key} have other texts beside {source} than beside {at}: the language model wrote them twice, and trials "
                        "of the two parts learned from different ones; copy the artifacts of one part to the other and run that again"
                    )


def _is_key(key: object) -> bool:
    """Returns whether something that a card names as a key may be part of a path."""
    return re.fullmatch(r"[0-9a-f]{8,64}", str(key)) is not None


def _bring_artifacts(sources: Sequence[str | Path], target: str | Path, card: dict[str, Any]) -> None:
    """Copies splits and profiles from beside the parts to beside the whole, where they are not there: the page names users and items."""
    stores = [FileStore(beside(folder, "artifacts")) for folder in (target, *sources)]
    wanted = [("split", entry.get("split_key")) for entry in card.get("datasets", [])]
    wanted += [("profiles", entry.get("key")) for entry in card.get("profiles", [])]
    for kind, key in dict.fromkeys(wanted):
        name = f"{kind}/{key}"
        if not _is_key(key) or stores[0].exists(f"{name}/{MANIFEST}"):
            continue
        source = next((store for store in stores[1:] if store.exists(f"{name}/{MANIFEST}")), None)
        files = sorted(source.list(name, recursive=True), key=lambda file: file.endswith(MANIFEST)) if source is not None else []
        for file in files:  # the manifest last: it is what makes an artifact whole
            data = source.read_bytes(file) if source is not None else None
            if data is not None:
                stores[0].write_bytes(file, data)


def _merged_card(cards: Sequence[dict[str, Any]], sources: Sequence[str | Path]) -> dict[str, Any]:
    merged = dict(cards[0])
    for name in ("datasets", "profiles", "item_texts", "embeddings", "targets", "cells"):
        entries = [entry for card in cards for entry in card.get(name, [])]
        merged[name] = list({json.dumps(entry, sort_keys=True): entry for entry in entries}.values())
    finished = [card.get("finished") for card in cards]
    return {
        **merged,
        "started": min(str(card.get("started")) for card in cards),
        "finished": max(map(str, finished)) if all(finished) else None,
        "merged_from": [str(source) for source in sources],
    }


def _rows(folder: str | Path) -> Iterator[tuple[str, pa.Table]]:
    """Yields every trial's key and row.

    Raises:
        StorageError: a file of the folder is damaged: what it held is not known.
    """
    damaged: set[str] = set()
    for file in row_files(Ledger(folder), damaged):
        for table in file.read():
            for at, key in enumerate(table.column("trial_key").to_pylist()):
                row = table.slice(at, 1)
                # What other trials of the same part have, and this one does not, is no part of it.
                empty = [name for name in row.column_names if ":" in name and not row.column(name)[0].is_valid]
                yield str(key), row.drop_columns(empty).replace_schema_metadata(table.schema.metadata)
    if damaged:
        raise StorageError(
            f"{count(len(damaged), 'file')} of {folder} cannot be read: {', '.join(sorted(damaged)[:5])}; bring the folder here again, or "
            "delete them and run the study there again: their trials run anew"
        )


def _fingerprints(folder: Path) -> Iterator[tuple[str, str]]:
    for key, table in _rows(folder):
        yield key, _fingerprint(table)


def _fingerprint(row: pa.Table) -> str:
    """Returns a digest of everything in a row that equal trials share."""
    content = {name: _finite(row.column(name)[0].as_py()) for name in sorted(row.column_names) if name not in _NOT_COMPARED}
    return content_key({name: value for name, value in content.items() if value is not None})


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return "nan" if isinstance(value, float) and not math.isfinite(value) else value


def _status(row: pa.Table) -> str:
    return str(row.column("status")[0].as_py())
