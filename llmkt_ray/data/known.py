"""Datasets known by name, with the counts of their public releases and of the paper (METHOD section 1, arXiv 2411.00556)."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from llmkt_ray.study import DatasetConfig, FilterRule


@dataclass(frozen=True)
class Counts:
    """Size of a dataset: users and items with at least one interaction, and interactions."""

    users: int
    items: int
    interactions: int

    def __str__(self) -> str:
        return f"{self.users:,} users, {self.items:,} items, {self.interactions:,} interactions"


@dataclass(frozen=True)
class KnownDataset:
    """What is known of a dataset that a study names.

    Attributes:
        domain: "movies", "music", "books" or "generic".
        releases: name of a public release to its raw counts.
        paper: counts after the filters of arXiv 2411.00556; None where it does not use the dataset.
        paper_filters: those filters; None where the paper does not state them.
        files: what a folder given as `path` should hold, for messages.
        origin: where a user gets it, for messages.
        bundled: it is in the wheel of RecBole and needs no path.
    """

    domain: str
    releases: dict[str, Counts]
    paper: Counts | None
    paper_filters: FilterRule | None
    files: str
    origin: str
    bundled: bool = False


KNOWN: dict[str, KnownDataset] = {
    "ml-100k": KnownDataset(
        domain="movies",
        releases={"RecBole's wheel": Counts(943, 1682, 100_000)},
        paper=None,
        paper_filters=None,
        files="ml-100k.inter, ml-100k.item, ml-100k.user",
        origin="the wheel of recbole 1.2.0",
        bundled=True,
    ),
    "ml-1m": KnownDataset(
        domain="movies",
        releases={"GroupLens 2003": Counts(6040, 3706, 1_000_209)},
        paper=Counts(6040, 3647, 1_000_125),
        paper_filters=None,
        files="ratings.dat, movies.dat, users.dat (or ml-1m.inter, ml-1m.item, ml-1m.user, or Parquet)",
        origin="https://grouplens.org/datasets/movielens/1m/",
    ),
    "amazon-cds": KnownDataset(
        domain="music",
        releases={
            "2014, all ratings": Counts(1_578_597, 486_360, 3_749_004),
            "2014, 5-core": Counts(75_258, 64_443, 1_097_592),
        },
        paper=Counts(4557, 7783, 194_242),
        paper_filters=FilterRule(user_min=20, user_max=500, item_min=10),
        files="reviews_CDs_and_Vinyl_5.json.gz (or the ratings .csv, with meta_CDs_and_Vinyl.json.gz for titles), atomic files or Parquet",
        origin="https://jmcauley.ucsd.edu/data/amazon/",
    ),
}
"""Datasets known by name; the counts of METHOD section 1."""


def counts(interactions: pa.Table) -> Counts:
    """Returns the size of a table of interactions."""
    return Counts(
        pc.count_distinct(interactions.column("user_id")).as_py(),
        pc.count_distinct(interactions.column("item_id")).as_py(),
        len(interactions),
    )


def count_warnings(config: DatasetConfig, raw: Counts, filtered: Counts) -> list[str]:
    """Returns warnings where a known dataset's counts, raw or after the paper's own filters, are not the known ones."""
    known = KNOWN.get(config.name)
    if known is None:
        return []
    warnings = []
    if raw not in known.releases.values():
        expected = "; ".join(f"{release}: {size}" for release, size in known.releases.items())
        warnings.append(
            f"dataset {config.name!r} has {raw}, but the known releases have {expected}; results are not comparable with published ones"
        )
    if known.paper is not None and known.paper_filters == config.filters and filtered != known.paper:
        warnings.append(f"dataset {config.name!r} has {filtered} after the paper's filters, but the paper has {known.paper}")
    return warnings
