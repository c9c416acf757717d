"""What the documents promise is there: links, the study in the README, the study reference, the shipped studies."""

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from llmkt_ray.study_file import parse_study

ROOT = Path(__file__).parents[3]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("cluster/*.md"), *ROOT.glob("sweeps/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_relative_link_of_a_page_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_study_reference_is_what_the_models_say() -> None:
    spec = importlib.util.spec_from_file_location("make_study_reference", ROOT / "docs" / "make_study_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "study-file.md").read_text(encoding="utf-8") == module.render(), "run: python docs/make_study_reference.py"


def test_the_first_study_of_the_readme_is_a_study_of_ten_lines() -> None:
    text = re.search(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert text is not None
    assert len(text[1].strip().splitlines()) == 10
    study = parse_study(text[1], "README.md")
    assert [model.name for model in study.models] == ["MultiVAE"]


def test_the_python_of_the_readme_runs_the_readme_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmkt_ray.api import Study

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    python, study = re.search(r"```python\n(.*?)```", text, re.DOTALL), re.search(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert python is not None
    assert study is not None
    ran: list[str] = []
    monkeypatch.setattr(Study, "run", lambda self: ran.append(self.config.name))
    monkeypatch.chdir(tmp_path)
    Path("my-first-study.yaml").write_text(study[1], encoding="utf-8")
    exec(compile(python[1], "README.md", "exec"), {})
    assert ran == ["my-first-study"]


def test_the_quickstart_is_the_study_that_the_readme_describes() -> None:
    study = parse_study((ROOT / "sweeps" / "quickstart.yaml").read_text(encoding="utf-8"))
    assert [dataset.name for dataset in study.datasets] == ["ml-100k"]
    assert study.datasets[0].positive.rating_at_least == 4
    assert study.datasets[0].split.ratios == (0.7, 0.1, 0.2)
    assert [profile.llm for profile in study.profiles] == ["template"]
    assert [model.name for model in study.models] == ["NeuMF", "SimpleX", "MultiVAE"]
    assert study.transfer.alphas == (0.3, 0.5, 0.7)
    assert study.controls == ("baseline", "alpha0", "shuffled")
    assert study.seeds == 2
    assert study.evaluation.references == ("Pop", "ItemKNN", "EASE")


@pytest.mark.parametrize("path", sorted(ROOT.glob("sweeps/*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_study_reads_and_is_named_after_its_file(path: Path) -> None:
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["name"] == path.stem.replace("_", "-")
    parse_study(path.read_text(encoding="utf-8"), path.name)


def test_the_two_commands_of_the_readme_are_targets_of_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in ("quickstart", "test"):
        assert f"make {command}" in (ROOT / "README.md").read_text(encoding="utf-8")
        assert re.search(rf"^{command}:", makefile, re.MULTILINE)


def test_every_trap_of_the_published_code_is_told_with_a_test_of_its_own() -> None:
    rows = re.findall(
        r"^\| (\d+) \| .* \| `(test_trap_\w+)` \|$", (ROOT / "docs" / "transfer.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    tests = {
        name for file in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"^def (test_trap_\w+)", file.read_text(), re.MULTILINE)
    }
    assert [int(number) for number, _ in rows] == list(range(1, 19))
    assert {name for _, name in rows} <= tests
    assert all(name.startswith(f"test_trap_{int(number):02}_") for number, name in rows)
