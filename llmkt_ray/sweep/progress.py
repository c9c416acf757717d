"""Live progress of a run: the stage, trials done, running and failed, and the time left.

On a terminal one line that is redrawn; elsewhere (a log file, CI) a plain line every ten seconds and at each stage's end.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from llmkt_ray.results.folder import Hold
from llmkt_ray.study import BudgetConfig, ResourcesConfig
from llmkt_ray.sweep.journal import Journal
from llmkt_ray.sweep.names import describe
from llmkt_ray.sweep.pilot import Meter
from llmkt_ray.training.spec import TrialResult, TrialSpec

INTERVAL_S = 10.0


def duration(seconds: float) -> str:
    """Returns a duration as people write it: `45 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def texts_line(texts: Mapping[str, Any]) -> str:
    """Returns how far the texts are that are being written, in words."""
    left = "" if texts["left_s"] is None else f", about {duration(texts['left_s'])} left"
    return f"{texts['done']:,} of {texts['total']:,} texts of {texts['label']}{left}"


class Progress:
    """What a run shows while it lasts.

    Args:
        console: where it is shown.
        workers: trials that run at once, for the time left.

    Attributes:
        meter: what the run spends; asked before a trial starts.
        journal: the run's log; None: none is kept.
        hold: the run's hold of the results folder; asked before a trial starts.
    """

    def __init__(self, console: Console, workers: int = 1) -> None:
        self.console = console
        self.hold = Hold()
        self.journal: Journal | None = None
        self.workers = workers
        self._lock = threading.RLock()
        self._stage, self._total, self._done, self._failed = "", 0, 0, 0
        self._running: dict[str, float] = {}
        self._names: dict[str, str] = {}
        self._expected: dict[str, float] = {}
        self._seen: dict[tuple[str, str], list[float]] = {}
        self._specs: dict[str, TrialSpec] = {}
        self._started = self._printed = time.monotonic()
        self._bar: Bar | None = None
        self._dashboard: str | None = None
        self._texts: dict[str, Any] | None = None
        """How far the texts are that are being written: whose, done, total, seconds left."""
        self.meter = Meter(BudgetConfig(), ResourcesConfig())

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[None]:
        """Shows a stage of `total` steps for as long as the block lasts."""
        with self._lock:
            self._stage, self._total, self._done, self._failed = name, total, 0, 0
            self._texts = None
            self._running.clear()
            self._names.clear()
            self._started = self._printed = time.monotonic()
        self._log("stage_started", stage=name, total=total)
        stop = threading.Event()
        if self.console.is_terminal:
            bar = Bar(
                TextColumn("[bold]{task.fields[stage]}"),
                BarColumn(),
                TextColumn("{task.description}"),
                console=self.console,
                transient=True,
            )
            bar.add_task("", total=max(total, 1), stage=name)
            bar.start()
            self._bar = bar
        ticker = threading.Thread(target=self._tick, args=(stop,), name="llmkt-progress", daemon=True)
        ticker.start()
        try:
            yield
        finally:
            stop.set()
            ticker.join()
            if self._bar is not None:
                self._bar.stop()
                self._bar = None
            spent = duration(time.monotonic() - self._started)
            failed = f", {self._failed} failed" if self._failed else ""
            self.console.print(f"{name}: {self._done} of {total} in {spent}{failed}", highlight=False)
            seconds = round(time.monotonic() - self._started, 3)
            self._log("stage_ended", stage=name, total=total, done=self._done, failed=self._failed, seconds=seconds)
            self._snapshot(now=True)

    def link(self, dashboard: str) -> None:
        """Shows where Ray's dashboard is."""
        self._dashboard = dashboard
        self.console.print(f"Ray's dashboard: {dashboard} (sign in with the cluster's token)", highlight=False, soft_wrap=True)
        self._log("dashboard", url=dashboard)

    def warn(self, sentence: str) -> None:
        """Shows a sentence about something that does not end the run."""
        self.console.print(sentence, style="yellow", markup=False, highlight=False, soft_wrap=True)
        self._log("warning", "warning", message=sentence)

    def texts(self, label: str) -> Callable[[int, int], None]:
        """Returns what the writing of one set of texts calls with (texts done, texts in all)."""
        first: list[float] = []

        def told(done: int, total: int) -> None:
            now = time.monotonic()
            if not first:
                first.extend((now, done))  # texts of an interrupted run are there at once and say nothing of the speed
            since, before = first
            left = (now - since) / (done - before) * (total - done) if before < done < total else None  # at the end texts are measured
            with self._lock:
                self._texts = {"label": label, "done": done, "total": total, "left_s": None if left is None else round(left)}

        return told

    def artifact_made(self, label: str) -> None:
        """Counts an artifact."""
        with self._lock:
            self._done += 1
            self._texts = None
        self._log("artifact_made", artifact=label)
        self._show(label)

    def expect(self, specs: list[TrialSpec]) -> None:
        """Tells which trials are still to come, for the time left."""
        with self._lock:
            self._specs.update({spec.key: spec for spec in specs})

    def trial_started(self, spec: TrialSpec) -> None:
        """Counts a trial as running."""
        self.meter.started(spec.key)
        with self._lock:
            self._running[spec.key] = time.monotonic()
            self._names[spec.key] = describe(spec)
        self._log("trial_started", trial=spec.key, name=describe(spec))
        self._snapshot()
        self._show()

    def trial_interrupted(self, spec: TrialSpec) -> None:
        """Counts a trial whose worker was lost as waiting again."""
        self.meter.ended(spec.key)
        with self._lock:
            self._running.pop(spec.key, None)
            self._names.pop(spec.key, None)
        self._log("trial_interrupted", "warning", trial=spec.key, name=describe(spec))
        self._show()

    def trial_ended(self, spec: TrialSpec, result: TrialResult | None) -> None:
        """Counts a trial as done or failed; None: its worker was lost for good."""
        self.meter.ended(spec.key)
        with self._lock:
            begun = self._running.pop(spec.key, None)
            self._names.pop(spec.key, None)
            self._specs.pop(spec.key, None)
            self._done += 1
            if result is None or result.status == "failed":
                self._failed += 1
                error = (result.error if result else None) or {"kind": "WorkerLost", "message": "killed or out of memory"}
                text = f"failed: {describe(spec)}: {error['kind']}: {error['message']}"
                self.console.print(text.splitlines()[0][:400], style="red", markup=False, highlight=False)
            elif begun is not None and spec.arm != "reference":  # computed at once: it tells nothing of the others
                self._seen.setdefault((spec.dataset, spec.model), []).append(time.monotonic() - begun)
        seconds = None if begun is None else round(time.monotonic() - begun, 3)
        status = result.status if result else "failed"
        told = {"error": dict(result.error)} if result and result.error else {}
        level = "error" if status == "failed" else "info"
        self._log("trial_ended", level, trial=spec.key, name=describe(spec), status=status, seconds=seconds, **told)
        self._snapshot()
        self._show()

    def left_s(self) -> float | None:
        """Returns the seconds left by the trials seen so far, or None before the first that trains in epochs has ended."""
        with self._lock:
            everything = [seconds for seen in self._seen.values() for seconds in seen]
            if not everything:
                return None
            overall = sum(everything) / len(everything)
            means = {key: sum(seen) / len(seen) for key, seen in self._seen.items()}
            now = time.monotonic()
            left = 0.0
            for key, spec in self._specs.items():
                ran = now - self._running.get(key, now)
                left += max(means.get((spec.dataset, spec.model), max(overall, ran)) - ran, 0.0)
            return left / max(1, self.workers, len(self._running))  # a cluster may have grown

    def _log(self, event: str, level: str = "info", **fields: Any) -> None:
        if self.journal is not None:
            self.journal.event(event, level, **fields)

    def _snapshot(self, *, now: bool = False) -> None:
        """Writes where the run stands, for `llmkt status` in another terminal."""
        if self.journal is None:
            return
        with self._lock:
            at, left = time.monotonic(), self.left_s()
            state = {
                "stage": self._stage,
                "total": self._total,
                "done": self._done,
                "failed": self._failed,
                "texts": self._texts,
                "running": [{"trial": key, "name": name, "seconds": round(at - self._running[key])} for key, name in self._names.items()],
                "dashboard": self._dashboard,
                "left_s": None if left is None else round(left),
            }
        self.journal.snapshot(state, now=now)

    def _line(self) -> str:
        left = self.left_s()
        parts = [f"{self._done} of {self._total} done"]
        if self._texts is not None:
            parts.append(texts_line(self._texts))
        if self._running:
            parts.append(f"{len(self._running)} running")
        if self._failed:
            parts.append(f"{self._failed} failed")
        parts.append(f"{duration(time.monotonic() - self._started)} so far")
        if left is not None and self._done < self._total:
            parts.append(f"about {duration(left)} left")
        return ", ".join(parts)

    def _show(self, label: str = "") -> None:
        with self._lock:
            if self._bar is not None:
                self._bar.update(
                    self._bar.task_ids[0], completed=self._done, description=escape(self._line() + (f" ({label})" if label else ""))
                )

    def _tick(self, stop: threading.Event) -> None:
        while not stop.wait(0.5):
            self._show()
            self._snapshot()
            now = time.monotonic()
            if self._bar is None and now - self._printed >= INTERVAL_S:
                self._printed = now
                self.console.print(f"{self._stage}: {self._line()}", markup=False, highlight=False)
