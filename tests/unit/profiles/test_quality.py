from typing import Any

import pyarrow as pa
import pytest

from llmkt_ray.artifacts import ArtifactStore
from llmkt_ray.data.history import histories
from llmkt_ray.data.prepared import PreparedData
from llmkt_ray.errors import ProfileError
from llmkt_ray.profiles.engines.file import FileManifest, write_folder
from llmkt_ray.profiles.generate import generate
from llmkt_ray.profiles.kinds import KindIndex
from llmkt_ray.profiles.quality import distinct, flags, near_duplicates, quality
from llmkt_ray.profiles.table import ProfileRow, as_table
from llmkt_ray.profiles.text_measures import kind_agreement
from llmkt_ray.study import ProfileConfig
from tests.films import GENRES

GOOD = "This viewer favours slow dramas and bleak westerns of the seventies, dislikes loud comedies and rarely rates anything at all."


def _row(profile: str | None, **values: Any) -> ProfileRow:
    return ProfileRow(**({"user_id": "u", "profile": profile, "llm": "x", "prompt_version": "1", "history_size": 9} | values))


@pytest.mark.parametrize(
    ("profile", "values", "flag"),
    [
        (GOOD, {}, None),
        ("I'm sorry, but I cannot describe a person from such data, as that would not be right at all to do here.", {}, "refused"),
        (GOOD, {"finish_reason": "length"}, "truncated"),
        (GOOD * 20, {}, "over_long"),
        ("Likes films.", {}, "too_short"),
        ("Rated films, most telling first (12 of 30): " + GOOD, {}, "echo"),
        ("<|assistant|> " + GOOD, {}, "echo"),
        (
            "Зритель предпочитает медленные драмы и мрачные вестерны семидесятых и не любит шумные комедии совсем никогда ни за что",
            {},
            "other_script",
        ),
        (
            "Ce spectateur aime les drames lents et les westerns sombres des années soixante-dix, et il déteste les comédies.",
            {},
            "other_language",
        ),
        (
            "Dieser Zuschauer mag langsame Dramen und düstere Western der siebziger Jahre und lehnt laute Komödien ganz ab.",
            {},
            "other_language",
        ),
        (
            "Este espectador prefiere dramas lentos y westerns sombríos de los años setenta, y no soporta las comedias.",
            {},
            "other_language",
        ),
    ],
)
def test_each_failure_has_its_flag(profile: str, values: dict[str, Any], flag: str | None) -> None:
    rows = as_table([_row(profile, **values), _row(GOOD + " Alone.")]).to_pylist()
    found = [name for name, marks in flags(rows).items() if marks[0]]
    assert found == ([flag] if flag else [])
    assert not any(marks[1] for marks in flags(rows).values())


def test_duplicates_and_diversity_by_hand() -> None:
    rows = as_table([_row(GOOD), _row(GOOD), _row(GOOD + " x")]).to_pylist()
    assert flags(rows)["duplicate"].tolist() == [True, True, False]
    assert distinct(["a b a", "a b"], 1) == 2 / 5
    assert distinct(["a b a", "a b"], 2) == 2 / 3
    assert near_duplicates(["one two three", "one two three", "four five six"]).tolist() == [True, True, False]
    assert near_duplicates(["alone"]).tolist() == [False]


def test_kinds_named_against_kinds_chosen(data: PreparedData) -> None:
    history = histories(data).of(0)
    known = KindIndex(GENRES)
    chosen = [genre for genre in GENRES if any(genre in entry.item.genres for entry in history)]
    precision, recall = kind_agreement(f"likes {chosen[0]} and {chosen[1].upper()}", history, known) or (0, 0)
    assert (precision, recall) == (1.0, pytest.approx(2 / min(5, len(chosen))))
    assert kind_agreement("likes melodramas", history, known) == (0.0, 0.0)
    assert kind_agreement("likes", (), known) is None


def test_template_profiles_agree_with_their_histories(data: PreparedData, store: ArtifactStore) -> None:
    figures = generate(ProfileConfig(llm="template"), data, store, study_seed=1).notes["quality"]
    assert figures["texts"] == 40
    assert figures["flagged"] == 0
    assert figures["kinds"]["precision"] == 1
    assert figures["foreign_titles"] == 0
    assert set(figures["by_activity"]) == {"least_active", "middle", "most_active"}


def test_profiles_of_other_users_are_less_faithful_and_foreign_titles_are_found(data: PreparedData, store: ArtifactStore) -> None:
    table = generate(ProfileConfig(llm="template"), data, store, study_seed=1).table
    texts = table.column("profile").to_pylist()
    swapped = table.set_column(1, "profile", pa.array(texts[3:] + texts[:3], pa.string()))
    before, after = quality(table, data), quality(swapped, data)
    assert after["kinds"]["f1"] < before["kinds"]["f1"]
    assert after["foreign_titles"] > 0.9


def test_too_many_flags_stop_the_study(tmp_path: Any, data: PreparedData, store: ArtifactStore) -> None:
    texts = [GOOD if user % 2 else "Likes films." for user in range(40)]
    write_folder(tmp_path / "p", pa.table({"user_id": data.user_tokens.tolist(), "profile": texts}), FileManifest(llm="x"))
    with pytest.raises(ProfileError, match=r"100\.0% of the profiles of 'file' have a flag \(too_short 50\.0%, duplicate 100\.0%\)"):
        generate(ProfileConfig(llm="file", path=str(tmp_path / "p"), max_flagged=0.2), data, store, study_seed=1)


def test_nothing_but_errors(data: PreparedData) -> None:
    assert quality(as_table([_row(None, error="timeout: 60 s")]), data) == {"texts": 0, "errors": {"timeout": 1}}


def test_texts_without_one_word_are_a_figure_and_no_error(data: PreparedData) -> None:
    rows = [ProfileRow(str(user), "***", "x", "v", 1) for user in data.user_tokens]
    found = quality(as_table(rows), data)
    assert (found["texts"], found["near_duplicates"], found["flags"]["too_short"]) == (data.n_users, 0.0, 1.0)
