"""Numbers as the page writes them."""

import math
from collections.abc import Iterable

from llmkt_ray.stats.interval import MIXED_FROM, Interval

MINUS = "\u2212"


def signed(value: float, digits: int = 4) -> str:
    """Returns `+0.0123`, with a typographic minus."""
    if not math.isfinite(value):
        return "n/a"
    return f"{value:+.{digits}f}".replace("-", MINUS)


def percent(value: float, digits: int = 1) -> str:
    """Returns `+5.4 %` of a share."""
    return f"{signed(value * 100, digits)}\u202f%" if math.isfinite(value) else "n/a"


def plain(value: float, digits: int = 4) -> str:
    """Returns `0.2123`."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "n/a"


def percent_interval(interval: Interval) -> str:
    """Returns `+5.4 % [+3.2, +7.6]`."""
    return f"{percent(interval.estimate)} [{signed(interval.low * 100, 1)}, {signed(interval.high * 100, 1)}]"


def value_interval(interval: Interval, digits: int = 4) -> str:
    """Returns `+0.0123 [+0.0020, +0.0226]`."""
    return f"{signed(interval.estimate, digits)} [{signed(interval.low, digits)}, {signed(interval.high, digits)}]"


def p_value(p: float) -> str:
    """Returns `.012`, `< .001`, or `n/a`."""
    if not math.isfinite(p):
        return "n/a"
    return "< .001" if p < 0.001 else f"{p:.3f}".removeprefix("0")


def count(n: int, singular: str, plural: str = "") -> str:
    """Returns `1 seed`, `3 seeds`, `10,000 trials`."""
    return f"{n:,} {singular if n == 1 else plural or singular + 's'}"


def seconds(value: float) -> str:
    """Returns `45 s`, `3 min 20 s`, `2 h 05 min`."""
    if not math.isfinite(value):
        return "n/a"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def gibibytes(value: float) -> str:
    """Returns `1.2 GiB` of bytes."""
    return f"{value / 2**30:.1f} GiB" if math.isfinite(value) else "n/a"


def listed(words: list[str], most: int | None = None) -> str:
    """Returns `a, b and c`; of more than `most` words `a, b and 3 more`."""
    if most is not None and len(words) > most:
        words = [*words[:most], f"{len(words) - most} more"]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""


def left_out(names: list[str]) -> str:
    """Returns the sentence that names what could not be chosen, with a space before it; empty where nothing is left out."""
    return f" Left out of the choice, because not all of its seeds and splits finished: {listed(names, 6)}." if names else ""


def enough(seeds: Iterable[int]) -> int:
    """Returns the seeds from which a contrast decides beside others: 3, or what the fullest has, all of which is then `hedged`."""
    return min(MIXED_FROM, max(seeds))


def hedged(said: str, seeds: int) -> str:
    """Returns what a comparison says, which is inconclusive below 3 seeds: its interval knows nothing of other seeds."""
    if seeds >= MIXED_FROM:
        return said
    rest = said.removeprefix("Inconclusive: ")
    return f"Inconclusive ({count(seeds, 'seed')}): {rest}"
