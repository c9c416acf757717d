"""MovieLens 1M as GroupLens ships it: `::`-separated Latin-1 text (Harper and Konstan, 2015, doi 10.1145/2827872)."""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from llmkt_ray.data.raw import Tables, shown
from llmkt_ray.errors import DatasetError

_COLUMNS = {
    "interactions": ("ratings.dat", ("user_id", "item_id", "rating", "timestamp")),
    "items": ("movies.dat", ("item_id", "title", "genres")),
    "users": ("users.dat", ("user_id", "gender", "age", "occupation", "zip_code")),
}

AGES = {
    "1": "under 18", "18": "18 to 24", "25": "25 to 34", "35": "35 to 44", "45": "45 to 49", "50": "50 to 55", "56": "56 or older",
}  # fmt: skip
"""The age codes of ml-1m's own README."""

OCCUPATIONS = dict(
    enumerate(
        (
            "other", "academic or educator", "artist", "clerical or admin", "college or graduate student", "customer service",
            "doctor or health care", "executive or managerial", "farmer", "homemaker", "K-12 student", "lawyer", "programmer", "retired",
            "sales or marketing", "scientist", "self-employed", "technician or engineer", "tradesman or craftsman", "unemployed", "writer",
        )
    )
)  # fmt: skip
"""The occupation codes of ml-1m's own README."""


def movielens_files(folder: Path) -> dict[str, tuple[Path, ...]] | None:
    """Returns the `.dat` files of a folder by role, or None where there is no `ratings.dat`."""
    found: dict[str, tuple[Path, ...]] = {role: (folder / name,) for role, (name, _) in _COLUMNS.items() if (folder / name).is_file()}
    return found if "interactions" in found else None


def read_movielens(files: dict[str, tuple[Path, ...]]) -> Tables:
    """Reads the `.dat` files; every value is still text.

    Raises:
        DatasetError: a file is not what ml-1m ships.
    """
    tables = {role: _read(paths[0], _COLUMNS[role][1]) for role, paths in files.items()}
    return Tables(interactions=tables["interactions"], items=tables.get("items"), users=tables.get("users"))


def spell_out_codes(users: pa.Table) -> pa.Table:
    """Returns ml-1m's users with age and occupation codes as words; a column that holds anything else stays as it is."""
    codes = {"age": AGES, "occupation": {str(code): word for code, word in OCCUPATIONS.items()}}
    for name, words in codes.items():
        if name in users.column_names:
            column = users.column(name)
            index = pc.index_in(column, pa.array(list(words), pa.string()))
            if index.null_count == column.null_count:
                users = users.set_column(users.column_names.index(name), name, pc.take(pa.array(list(words.values()), pa.string()), index))
    return users


def _read(path: Path, names: tuple[str, ...]) -> pa.Table:
    # One byte that the files do not use stands for "::", because a CSV separator is a single byte.
    try:
        data = path.read_bytes().replace(b"::", b"\x1f").decode("latin-1").encode()
        return pacsv.read_csv(
            pa.BufferReader(data),
            read_options=pacsv.ReadOptions(column_names=list(names)),
            parse_options=pacsv.ParseOptions(delimiter="\x1f", quote_char=False, escape_char=False),
            convert_options=pacsv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False),
        )
    except (OSError, pa.ArrowInvalid) as error:
        raise DatasetError(f"{path} cannot be read as a MovieLens file of {'::'.join(names)}: {shown([error])}; unpack it anew") from error
