"""Headless Chromium for the tests that open the page. Without it they fail: a page that was never opened is not tested."""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.report.devtools import Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--disable-component-update",
    "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--enable-logging=stderr", "--virtual-time-budget=4000",
)  # fmt: skip


@dataclass(frozen=True)
class Seen:
    """What the browser made of a page: its DOM after scripts ran, and what it wrote to the console."""

    dom: str
    console: tuple[str, ...]


@pytest.fixture(scope="session")
def chromium() -> str:
    for name in NAMES:
        path = shutil.which(name)
        if path:
            return path
    pytest.fail(f"none of {', '.join(NAMES)} is installed, but the report's tests need one: sh tests/install-browser.sh")


@pytest.fixture
def open_page(chromium: str, tmp_path: Path) -> Callable[..., Seen]:
    def open_(page: Path, width: int = 1280, height: int = 1000, *extra: str) -> Seen:
        profile = tmp_path / f"profile-{len(list(tmp_path.glob('profile-*')))}"
        command = [
            chromium, *FLAGS, *extra, f"--user-data-dir={profile}", f"--window-size={width},{height}", "--dump-dom",
            page.absolute().as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        console = tuple(line for line in done.stderr.splitlines() if re.search(r":(CONSOLE|ERROR:CONSOLE|INFO:CONSOLE)", line))
        assert "<html" in done.stdout, done.stderr[-2000:]
        return Seen(done.stdout, console)

    return open_


@pytest.fixture
def browse(chromium: str, tmp_path: Path) -> Iterator[Callable[..., Page]]:
    """Opens pages in a browser that can be clicked, typed into and photographed."""
    with ExitStack() as stack:

        def open_(page: Path, hash: str = "", width: int = 1280, height: int = 1000, dark: bool = False) -> Page:
            profile = tmp_path / f"tab-{len(list(tmp_path.glob('tab-*')))}"
            profile.mkdir()
            return stack.enter_context(Page(chromium, profile, width, height, dark)).open(page, hash)

        yield open_
