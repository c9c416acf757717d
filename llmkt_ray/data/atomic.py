"""RecBole's atomic files: tab-separated text whose header names each column and its type (`user_id:token`)."""

from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv

from llmkt_ray.data.raw import Tables, shown
from llmkt_ray.errors import DatasetError


def atomic_files(folder: Path, name: str) -> dict[str, tuple[Path, ...]] | None:
    """Returns the files of an atomic dataset by role ("interactions", "items", "users"), or None where there is none.

    The dataset is `<name>.inter` where that is there, else the only `.inter` file of the folder.

    Raises:
        DatasetError: several `.inter` files and none is called `<name>.inter`.
    """
    found = sorted(folder.glob("*.inter"))
    if not found:
        return None
    stems = [path.name.removesuffix(".inter") for path in found]
    if len(found) > 1 and name not in stems:
        raise DatasetError(
            f"{folder} holds several atomic datasets ({shown(stems)}) and none is called {name!r}; name the dataset after one of them"
        )
    stem = name if name in stems else stems[0]
    roles = {"interactions": ".inter", "items": ".item", "users": ".user"}
    return {role: (path,) for role, suffix in roles.items() if (path := folder / f"{stem}{suffix}").is_file()}


def read_atomic(files: dict[str, tuple[Path, ...]]) -> Tables:
    """Reads atomic files; types in the header are taken off, every value is still text.

    Raises:
        DatasetError: a file is not tab-separated UTF-8 text with a header of `name:type`.
    """
    return Tables(
        interactions=_read(files["interactions"][0]),
        items=_read(files["items"][0]) if "items" in files else None,
        users=_read(files["users"][0]) if "users" in files else None,
    )


def _read(path: Path) -> pa.Table:
    try:
        with open(path, encoding="utf-8") as stream:
            header = stream.readline().rstrip("\r\n").split("\t")
        names = [column.partition(":")[0] for column in header]
        if len(set(names)) != len(names) or not all(names):
            raise DatasetError(
                f"{path} has a header with empty or repeated column names: {shown(header)}; expected `user_id:token<TAB>...`"
            )
        return pacsv.read_csv(
            path,
            read_options=pacsv.ReadOptions(column_names=names, skip_rows=1),
            parse_options=pacsv.ParseOptions(delimiter="\t", quote_char=False, escape_char=False),
            convert_options=pacsv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False),
        )
    except (OSError, UnicodeDecodeError, pa.ArrowInvalid) as error:
        raise DatasetError(
            f"{path} cannot be read as an atomic file (tab-separated UTF-8 text): {shown([error])}; write it anew"
        ) from error
