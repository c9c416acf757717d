"""What holds for every recipe: shell scripts, image, dashboards, tokens, and what the README promises."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from ray._private.runtime_env.packaging import create_package

ROOT = Path(__file__).parents[3]
CLUSTER = ROOT / "cluster"
DOCKERFILE = CLUSTER / "Dockerfile"
RECIPES = [*CLUSTER.glob("kuberay/ray*.yaml"), *CLUSTER.glob("launcher/*.yaml"), CLUSTER / "slurm.sh"]


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, comments dropped and continued lines joined."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split(maxsplit=1)[0], line.split(maxsplit=1)[1]) for line in joined.splitlines()]


@pytest.mark.parametrize(
    "script", [CLUSTER / "slurm.sh", ROOT / "tests" / "install-browser.sh", ROOT / ".ci" / "run"], ids=lambda path: path.name
)
def test_shellcheck_finds_nothing(script: Path) -> None:
    # The test extra brings it: beside the interpreter, not on the path of everybody who runs the tests.
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
    assert shellcheck is not None, "shellcheck is not installed: pip install '.[test]'"
    done = subprocess.run([shellcheck, "--enable=all", "--exclude=SC2250,SC2312", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_what_the_image_copies_exists_and_reaches_the_builder() -> None:
    sent = {line.removeprefix("!") for line in (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = set()
    for name, value in instructions():
        if name in ("COPY", "ADD"):
            *sources, _ = [part for part in value.split() if not part.startswith("--")]
            copied |= {source.removeprefix("./") for source in sources}
    assert copied == sent
    for source in copied:
        assert (ROOT / source).exists(), source


def test_every_install_of_the_image_uses_the_constraints() -> None:
    installs = [command for name, value in instructions() if name == "RUN" for command in re.findall(r"pip install[^&]*", value)]
    assert len(installs) == 2
    assert all("--constraint constraints.txt" in command for command in installs)


def test_the_image_runs_as_a_user_without_rights() -> None:
    users = [value for name, value in instructions() if name == "USER"]
    assert users == ["1000:1000"]
    names = [name for name, _ in instructions()]
    assert all(name in ("FROM", "ARG", "ENV", "RUN") for name in names[: names.index("USER")])
    assert all("apt-get" in value or "useradd" in value for name, value in instructions()[: names.index("USER")] if name == "RUN")


def test_a_login_shell_of_the_image_finds_the_venv() -> None:
    """The cluster launcher runs `bash --login -c -i`, and Debian's /etc/profile replaces the PATH of the image by its own."""
    (venv,) = re.findall(r"VIRTUAL_ENV=(\S+)", DOCKERFILE.read_text())
    runs = [value for name, value in instructions() if name == "RUN"]
    assert any(f"echo 'export PATH={venv}/bin:$PATH' > /etc/profile.d/llmkt.sh" in command for command in runs)


def test_a_job_from_this_folder_carries_the_whole_package(tmp_path: Path) -> None:
    """`ray job submit --working-dir .`, as Ray packs it: what .rayignore leaves at home is nothing that runs."""
    package = tmp_path / "package.zip"
    create_package(str(ROOT), package, include_gitignore=True)
    sent = set(zipfile.ZipFile(package).namelist())
    needed = {
        path.relative_to(ROOT).as_posix()
        for folder in ("llmkt_ray", "sweeps")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert needed - sent == set()
    assert not any(name.startswith(("tests/", "docs/", ".git/")) for name in sent)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_results_outlive_the_cluster(recipe: Path) -> None:
    """The shipped studies have a relative storage, which lies below LLMKT_HOME: on one marked line of every recipe."""
    (line,) = [line for line in recipe.read_text().splitlines() if re.search(r"LLMKT_HOME(, value: |=)", line)]
    assert re.search(r"(s3|gs)://your-bucket/llmkt|/shared/llmkt|\$HOME/llmkt", line)
    marked = recipe.read_text().splitlines()
    assert "EDIT:" in line + marked[marked.index(line) - 1]


def test_images_have_fixed_tags_and_short_names() -> None:
    text = "".join(path.read_text() for path in [DOCKERFILE, *RECIPES])
    images = re.findall(r"^ARG PYTHON_IMAGE=(\S+)", text, re.MULTILINE) + re.findall(r"\bimage: (\S+)", text)
    assert len(images) == 1 + 4 + 3 + 3  # the Dockerfile; job with its submitter; cluster; launcher files
    for image in images:
        assert re.fullmatch(r"([a-z-]+/)?[a-z-]+:\d+\.\d+\.\d+[a-z-]*", image), image


def test_the_image_s_python_is_one_the_project_supports() -> None:
    version = re.search(r"python:(\d+)\.(\d+)", DOCKERFILE.read_text())
    assert version
    assert version.groups() in {("3", "11"), ("3", "12")}


@pytest.mark.parametrize("recipe", [*RECIPES, DOCKERFILE], ids=lambda path: path.name)
def test_token_authentication_is_on_in_every_recipe(recipe: Path) -> None:
    text = recipe.read_text()
    assert "RAY_AUTH_MODE=token" in text or re.search(r"authOptions:\n\s+mode: token", text)
    assert "disabled" not in text


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_dashboards_are_on_loopback_or_inside_the_network_policy(recipe: Path) -> None:
    hosts = re.findall(r"dashboard-host[=:]\s*\"?([\w.:]+)\"?(.*)", recipe.read_text())
    assert hosts
    for host, rest in hosts:
        assert host == "127.0.0.1" or (recipe.parent.name == "kuberay" and "networkpolicy.yaml" in rest), host


def test_no_recipe_carries_a_secret() -> None:
    for path in CLUSTER.rglob("*"):
        if path.is_file():
            assert not re.search(r"\b[0-9a-f]{32,}\b|AKIA[0-9A-Z]{16}|BEGIN [A-Z ]*PRIVATE KEY", path.read_text()), path


def test_the_readme_s_files_exist_and_every_recipe_is_in_it() -> None:
    text = (CLUSTER / "README.md").read_text()
    named = set(re.findall(r"cluster/([\w./-]+\w)", text))
    assert all((CLUSTER / name).exists() for name in named)
    assert {path.name for path in RECIPES} <= {Path(name).name for name in named} | set(re.findall(r"launcher/(\w+\.yaml)", text))


@pytest.mark.parametrize("section", ["Kubernetes, one job", "Kubernetes, a cluster that stays", "AWS, GCP", "Slurm"])
def test_each_way_is_three_lines(section: str) -> None:
    part = (CLUSTER / "README.md").read_text().split(f"## {section}")[1].split("\n## ")[0]
    start, middle, end = part.split("```")[1].strip().splitlines()
    assert "# start" in start
    assert "submit" in start + middle
    assert "# tear down" in end


def test_the_readme_says_what_has_not_been_run() -> None:
    assert "Nothing here has been run on a real cluster" in (CLUSTER / "README.md").read_text()
