"""What a trial cost and where it ran: the columns that may differ between equal runs."""

import os
import platform
import resource
import socket
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("llmkt_ray", "torch", "recbole", "numpy", "scipy")


class Measures:
    """Wall time, CPU time and peak memory of this process from its creation on.

    The peak is that of the trial where the kernel lets a process reset its mark (Linux); elsewhere that of the process.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._resets = _reset_peak()
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    @property
    def wall_s(self) -> float:
        """Seconds since the creation."""
        return time.perf_counter() - self._wall

    def finish(self, threads: int) -> dict[str, Any]:
        """Returns the measures: wall_s, cpu_s, peak_rss_bytes, host, device, threads, pid, versions."""
        return {
            "wall_s": self.wall_s,
            "cpu_s": time.process_time() - self._cpu,
            "peak_rss_bytes": _peak_rss(self._resets),
            "host": socket.gethostname(),
            "device": torch.cuda.get_device_name() if self._device == "cuda" else platform.machine(),
            "threads": threads,
            "pid": os.getpid(),
            "versions": {"python": platform.python_version()} | {name: version(name) for name in _PACKAGES},
        }


def _reset_peak() -> bool:
    """Resets the kernel's mark of the peak resident size; False where it does not let us."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _peak_rss(was_reset: bool) -> int:
    """Returns the peak resident size in bytes."""
    if was_reset:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if platform.system() == "Darwin" else peak * 1024)
