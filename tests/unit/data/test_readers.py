"""Every format gives the same typed tables, from real files."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmkt_ray.data.catalog import KNOWN, load_raw
from llmkt_ray.data.fields import ITEM_FIELDS, domain_fields, standard_features
from llmkt_ray.data.known import Counts, count_warnings
from llmkt_ray.data.raw import RawDataset
from llmkt_ray.errors import DatasetError
from llmkt_ray.study import DatasetConfig


def read(folder: Path, name: str = "any") -> RawDataset:
    return load_raw(DatasetConfig(name=name, path=str(folder)))


def test_atomic_files(tmp_path: Path) -> None:
    (tmp_path / "a.inter").write_bytes(
        b"user_id:token\titem_id:token\trating:float\ttimestamp:float\r\n7\t08\t3.5\t881250949\r\n8\tx y\t1\t2\r\n"
    )
    (tmp_path / "a.item").write_text(
        'item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n08\t"Quoted" Title\t1995\tA B-C\nx y\t\t\t\n'
    )
    (tmp_path / "a.user").write_text("user_id:token\tage:token\tzip:token\n7\t24\t01002\n")
    raw = read(tmp_path)
    assert raw.interactions.to_pydict() == {
        "user_id": ["7", "8"],
        "item_id": ["08", "x y"],
        "rating": [3.5, 1.0],
        "timestamp": [881250949.0, 2.0],
    }
    assert raw.items.to_pylist() == [
        {"item_id": "08", "title": '"Quoted" Title', "year": "1995", "genres": ["A", "B-C"]},
        {"item_id": "x y", "title": None, "year": None, "genres": None},
    ]
    assert raw.users.to_pylist() == [{"user_id": "7", "age": "24", "zip": "01002"}]


def test_of_several_atomic_datasets_the_name_chooses(tmp_path: Path) -> None:
    for name, item in (("one", "1"), ("two", "2")):
        (tmp_path / f"{name}.inter").write_text(f"user_id:token\titem_id:token\nu\t{item}\n")
    assert read(tmp_path, "two").interactions["item_id"].to_pylist() == ["2"]
    with pytest.raises(DatasetError, match=r"several atomic datasets .'one', 'two'. and none is called 'three'"):
        read(tmp_path, "three")


@pytest.mark.parametrize("row", ["u\tv\t1", "u"])
def test_an_atomic_row_of_another_width_is_refused(row: str, tmp_path: Path) -> None:
    (tmp_path / "a.inter").write_text(f"user_id:token\titem_id:token\nu\ti\n{row}\n")
    with pytest.raises(DatasetError, match=r"a\.inter cannot be read as an atomic file.*Expected 2 columns"):
        read(tmp_path)


def test_parquet_ids_of_any_plain_type_become_strings(tmp_path: Path) -> None:
    table = pa.table(
        {
            "user_id": pa.array([1, 2]),
            "item_id": pa.array(["a", "b"], pa.large_string()).dictionary_encode(),
            "rating": pa.array([4, 5], pa.int8()),
        }
    )
    pq.write_table(table, tmp_path / "interactions.parquet")
    raw = read(tmp_path)
    assert raw.interactions.to_pydict() == {"user_id": ["1", "2"], "item_id": ["a", "b"], "rating": [4.0, 5.0]}
    assert (raw.items.num_rows, raw.items.column_names, raw.users.column_names) == (0, ["item_id"], ["user_id"])


def test_parquet_dates_become_seconds(tmp_path: Path) -> None:
    when = pa.array([np.datetime64("1970-01-02T00:00:01.5", "ns")])
    pq.write_table(pa.table({"user_id": ["u"], "item_id": ["i"], "timestamp": when}), tmp_path / "interactions.parquet")
    assert read(tmp_path).interactions["timestamp"].to_pylist() == [86401.5]


@pytest.mark.parametrize(
    "names", [("interactions_0", "interactions_1"), ("interactions-a", "interactions-b"), ("interactions/p0", "interactions/p1")]
)
def test_parquet_parts_make_one_table(names: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "interactions").mkdir()
    for k, name in enumerate(names):
        pq.write_table(pa.table({"user_id": [f"u{k}"], "item_id": ["i"]}), tmp_path / f"{name}.parquet")
    assert read(tmp_path).interactions["user_id"].to_pylist() == ["u0", "u1"]


def test_movielens_as_grouplens_ships_it(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_bytes(b"1::1193::5::978300760\n2::661::3::978302109\n")
    (tmp_path / "movies.dat").write_bytes(
        "1193::Mis\xe9rables, Les (1995)::Drama|Musical\n661::James (and) (1996)::Animation\n".encode("latin-1")
    )
    (tmp_path / "users.dat").write_bytes(b"1::F::1::10::48067\n2::M::56::16::70072\n")
    raw = read(tmp_path, "ml-1m")
    assert raw.interactions.to_pylist()[0] == {"user_id": "1", "item_id": "1193", "rating": 5.0, "timestamp": 978300760.0}
    assert raw.items.to_pylist() == [
        {"item_id": "1193", "title": "Misérables, Les", "year": "1995", "genres": ["Drama", "Musical"]},
        {"item_id": "661", "title": "James (and)", "year": "1996", "genres": ["Animation"]},
    ]
    assert raw.users.select(["age", "gender", "occupation"]).to_pylist()[0] == {
        "age": "under 18",
        "gender": "F",
        "occupation": "K-12 student",
    }
    assert raw.domain == "movies"


REVIEWS = [
    {"reviewerID": "A1", "asin": "B000000001", "overall": 5.0, "unixReviewTime": 100, "reviewText": "x", "helpful": [0, 1]},
    {"reviewerID": "A1", "asin": "B000000002", "overall": 3.0, "unixReviewTime": 200, "reviewText": None},
    {"reviewerID": "A2", "asin": "0000000003", "overall": 4.0, "unixReviewTime": 300},
    {"reviewerID": "A1", "asin": "B000000001", "overall": 1.0, "unixReviewTime": 400},
]


def test_amazon_reviews_with_python_and_json_metadata(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "reviews_CDs_and_Vinyl_5.json.gz", "wt") as stream:
        stream.write("\n".join(json.dumps(review) for review in REVIEWS))
    meta = [
        "{'asin': 'B000000001', 'title': \"It's\", 'brand': 'Ann', 'categories': [['CDs & Vinyl', 'Pop'], ['CDs & Vinyl', 'Rock', 'Pop']]}",
        json.dumps({"category": ["CDs", "Jazz"], "description": ["One.", "Two."], "title": "T", "brand": "", "asin": "B000000002"}),
        "{'asin': '0000000003', 'title': __import__('os').system('false')}",
        json.dumps({"asin": "B0NOTHERE0", "title": "never reviewed"}),
    ]
    (tmp_path / "meta_CDs_and_Vinyl.json").write_text("\n".join(meta))
    raw = read(tmp_path, "amazon-cds")
    rows = [("A1", "B000000002", 3.0, 200.0), ("A2", "0000000003", 4.0, 300.0), ("A1", "B000000001", 1.0, 400.0)]
    assert [tuple(row.values()) for row in raw.interactions.to_pylist()] == rows
    assert raw.items.to_pylist() == [
        {"item_id": "B000000001", "title": "It's", "creator": "Ann", "category": ["Pop", "Rock"], "description": None},
        {"item_id": "B000000002", "title": "T", "creator": None, "category": ["Jazz"], "description": "One. Two."},
    ]
    assert "1 reviews of an item that the same user reviewed again were left out" in raw.warnings[0]
    assert raw.domain == "music"


@pytest.mark.parametrize(
    "text",
    [
        "A1,B000000001,5.0,1588615855\nA2,B000000001,4.0,1588615856\n",
        "B000000001,A1,5.0,1588615855\nB000000001,A2,4.0,1588615856\n",
        "user_id,parent_asin,rating,timestamp\nA1,B000000001,5.0,1588615855070\nA2,B000000001,4.0,1588615856070\n",
    ],
    ids=["2014", "2018", "2023"],
)
def test_amazon_rating_tables_of_every_release(text: str, tmp_path: Path) -> None:
    (tmp_path / "ratings_CDs_and_Vinyl.csv").write_text(text)
    table = read(tmp_path).interactions
    assert (table["user_id"].to_pylist(), table["item_id"].to_pylist(), table["rating"].to_pylist()) == (
        ["A1", "A2"],
        ["B000000001"] * 2,
        [5.0, 4.0],
    )
    assert [int(seconds) for seconds in table["timestamp"].to_pylist()] == [1588615855, 1588615856]


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    digests = []
    for folder, item in (("a", "i"), ("b", "i"), ("c", "j")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.inter").write_text(f"user_id:token\titem_id:token\nu\t{item}\n")
        digests.append(read(tmp_path / folder).digest)
    assert digests[0] == digests[1] != digests[2]
    (tmp_path / "b" / "x.item").write_text("item_id:token\ttitle:token\ni\tt\n")
    assert read(tmp_path / "b").digest != digests[1], "a features file belongs to the content"
    (tmp_path / "a" / "x.inter").write_text("user_id:token\titem_id:token\nu\tk\n")
    assert read(tmp_path / "a").digest != digests[0], "a changed file is read again"


def test_lists_of_features_by_separator() -> None:
    def genres(*values: object, spaced: bool = False) -> list[object]:
        table = pa.table({"item_id": [str(k) for k in range(len(values))], "genres": pa.array(values)})
        return list(standard_features(table, "item_id", ITEM_FIELDS, spaced_lists=spaced)[0]["genres"].to_pylist())

    assert genres("Sci-Fi|Film Noir", "Drama", None, "") == [["Sci-Fi", "Film Noir"], ["Drama"], None, None]
    assert genres("['CDs & Vinyl', 'Pop']", "Jazz") == [["CDs & Vinyl", "Pop"], ["Jazz"]]
    assert genres("Sci-Fi Drama", spaced=True) == [["Sci-Fi", "Drama"]]
    assert genres("Film Noir") == [["Film Noir"]]
    assert genres(["a", "b"], []) == [["a", "b"], None]


def test_features_described_twice_are_told_and_the_first_is_used() -> None:
    table = pa.table({"item_id": ["1", "2", "1"], "title": ["first", "x", "second"], "year": [1995.0, None, 1.0]})
    features, problems, warnings = standard_features(table, "item_id", ITEM_FIELDS, spaced_lists=False)
    assert features.to_pydict() == {"item_id": ["1", "2"], "title": ["first", "x"], "year": ["1995", None]}
    assert (problems, len(warnings)) == ([], 1)


def test_domain_fields_are_those_with_values() -> None:
    items = pa.table(
        {"item_id": ["1", "2"], "title": ["a", None], "genres": pa.array([None, None], pa.list_(pa.string())), "price": ["1", "2"]}
    )
    assert [(field.name, field.coverage) for field in domain_fields("movies", items)] == [("title", 0.5)]
    assert domain_fields("music", items.slice(0, 0)) == ()


def test_counts_of_known_datasets_are_compared() -> None:
    paper = KNOWN["amazon-cds"].paper_filters
    assert paper is not None
    config = DatasetConfig(name="amazon-cds", filters=paper)
    raw, filtered = Counts(75_258, 64_443, 1_097_592), Counts(4557, 7783, 194_242)
    assert count_warnings(config, raw, filtered) == []
    (other,) = count_warnings(config, raw, Counts(4557, 7783, 194_241))
    assert "194,241 interactions after the paper's filters, but the paper has 4,557 users, 7,783 items, 194,242 interactions" in other
    assert count_warnings(DatasetConfig(name="amazon-cds"), raw, Counts(1, 1, 1)) == [], "other filters are not the paper's"
    (release,) = count_warnings(DatasetConfig(name="ml-1m"), Counts(6040, 3706, 1), Counts(6040, 3706, 1))
    assert "known releases" in release
    assert count_warnings(DatasetConfig(name="mine"), raw, filtered) == []
    assert 1 - filtered.interactions / (filtered.users * filtered.items) == pytest.approx(0.9945, abs=5e-5), (
        "the sparsity of METHOD section 1"
    )
