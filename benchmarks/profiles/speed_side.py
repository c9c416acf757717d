"""One side of `benchmarks.profiles.speed`, in a process of its own: writes its figures into the folder.

A module apart, so that the processes an engine spawns import it without starting another benchmark.
"""

import json
import sys
from pathlib import Path

from benchmarks.profiles.speed import work

if __name__ == "__main__":
    place, name = Path(sys.argv[1]), sys.argv[2]
    (place / f"{name}.json").write_text(json.dumps(work(place, name)))
