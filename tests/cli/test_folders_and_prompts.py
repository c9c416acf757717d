"""`llmkt diff`, `merge` and `profiles preview` as a user meets them."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from llmkt_ray import cli
from llmkt_ray.api import Study
from llmkt_ray.results.ledger import Ledger
from tests.tiny import study_text

Llmkt = Callable[..., tuple[int, str, str]]


@pytest.fixture
def llmkt(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Llmkt:
    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["llmkt", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return ended.value.code or 0, said.out, said.err  # type: ignore[return-value]

    return run


def test_two_parts_of_a_study_are_compared_and_merged(tmp_path: Path, llmkt: Llmkt) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(study_text(tmp_path))
    Study.from_yaml(path).run(executor="loop")
    whole, first, second = tmp_path / "results" / "tiny", tmp_path / "first", tmp_path / "second"
    for part, dropped in ((first, 1), (second, 0)):
        shutil.copytree(whole, part)
        for row in sorted((part / "ledger" / "trials").iterdir())[dropped::2]:
            row.unlink()
    assert llmkt("diff", whole, whole)[0] == 0
    code, out, _ = llmkt("diff", whole, first)
    assert code == 1
    assert "3 only in the first, 0 only in the second" in out
    code, out, _ = llmkt("merge", first, second, "--into", tmp_path / "merged")
    assert (code, "6 trials in" in out) == (0, True)
    assert Ledger(tmp_path / "merged").done() == Ledger(whole).done()
    assert (tmp_path / "merged" / "report.html").exists()
    shutil.move(tmp_path / "results" / "artifacts", tmp_path / "artifacts")  # a part's own, as on its cluster
    assert llmkt("merge", first, second, "--into", tmp_path / "elsewhere" / "whole")[0] == 0
    page = tmp_path / "elsewhere" / "whole" / "report.html"
    assert "Title i" in page.read_text()  # splits came along, so that items have names
    page.unlink()
    assert llmkt("report", page.parent) == (0, f"{page}\n", "")  # a folder alone is enough
    assert "Title i" in page.read_text()
    code, _, err = llmkt("merge", first, second, "--into", tmp_path / "merged")
    assert code == 2
    assert "is not empty" in err


def test_the_prompts_of_a_study_are_shown_and_no_model_is_asked(tmp_path: Path, llmkt: Llmkt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    path = tmp_path / "study.yaml"
    path.write_text(study_text(tmp_path))
    assert "no language model is asked in this study" in llmkt("profiles", "preview", path)[1]
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"profiles": [{"llm": "openai", "model": "gpt-4o"}]}))
    code, out, _ = llmkt("profiles", "preview", path, "--users", 2)
    assert code == 0
    assert out.count("--- toy, openai:gpt-4o: user u") == 2
    assert "[system]" in out
    assert "Title " in out
    assert "tokens" in out


def test_a_title_in_a_prompt_does_not_steer_the_terminal(tmp_path: Path, llmkt: Llmkt) -> None:
    content = yaml.safe_load(study_text(tmp_path)) | {"profiles": [{"llm": "openai", "model": "gpt-4o"}]}
    items = Path(content["datasets"][0]["path"]) / "items.parquet"
    table = pq.read_table(items)
    titles = [f"{title}\x1b[2J\x9b31m" for title in table.column("title").to_pylist()]
    pq.write_table(table.set_column(table.column_names.index("title"), "title", pa.array(titles)), items)
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(content))
    code, out, _ = llmkt("profiles", "preview", path, "--users", 1)
    assert code == 0
    assert "[2J" in out
    assert not set(out) & {"\x1b", "\x9b"}


def test_one_users_profiles_are_shown_and_forgotten(tmp_path: Path, llmkt: Llmkt) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(study_text(tmp_path))
    assert llmkt("profiles", "show", path)[1] == "no profiles have been made yet; run the study first\n"
    Study.from_yaml(path).run(executor="loop")
    assert llmkt("report", path)[0] == 0
    code, out, _ = llmkt("profiles", "show", path)
    assert (code, "60 of 60 users have a profile (100.0%)" in out, "genre precision" in out) == (0, True, True)
    code, out, _ = llmkt("profiles", "show", path, "--user", "u7")
    assert code == 0
    assert "--- toy, template: user u7, llm template" in out
    assert "no profile" not in out
    code, _, err = llmkt("profiles", "show", path, "--user", "u777")
    assert (code, "no profiles of this study are of a user 'u777': users are for example 'u0'" in err) == (2, True)
    code, out, _ = llmkt("profiles", "forget", path, "--user", "u7")
    assert code == 0
    assert out.startswith("user u7: removed 1 profiles, 0 texts of unfinished profiles, 1 embeddings and 1 targets")
    assert "not removed: interactions" in out
    assert not (tmp_path / "results" / "tiny" / "report.html").exists()
    assert "no profile: forgotten: removed on request" in llmkt("profiles", "show", path, "--user", "u7")[1]
    assert Study.from_yaml(path).run(executor="loop").ran == 0
