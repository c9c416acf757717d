"""From a heat-map cell to the trial, to a user, to the profile text and the items that moved: with the mouse, by keys, by address."""

import json
import re

import pytest

from llmkt_ray.report import build
from tests.report.hostile import HOSTILE
from tests.unit.report.synthetic import World, write, write_artifacts

pytestmark = pytest.mark.browser

WORLD = World(models={"MultiVAE": 0.2}, seeds=2, n_users=40, epochs=4, layers=("encoder.0", "encoder.1"))
FOUND = "document.querySelector('#found').textContent"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root = tmp_path_factory.mktemp("drill")
    write_artifacts(root / "artifacts", WORLD, lambda item: f"Film {item}", lambda user: f"Likes film number {user}.")
    return build(write(root / "study", WORLD))


def square(layer, alpha):
    """The place of a heat map's square among its links: rows are layers, columns alphas."""
    return f"#heat a.to:nth-of-type({('encoder.0', 'encoder.1').index(layer) * 3 + (0.3, 0.5, 0.7).index(alpha) + 1})"


def test_from_a_square_to_the_items_that_moved(study, browse):
    page = browse(study)
    page.click(square("encoder.1", 0.7))
    page.wait(f"{FOUND} === '2 of 27 trials'")  # both seeds, and nothing else
    rows = page.js("[...document.querySelectorAll('#trial-table tbody tr')].map(r => r.innerText)")
    assert all("encoder.1" in row and "0.7" in row and "treated" in row for row in rows)
    page.click("#trial-table tbody button")
    page.wait("document.querySelectorAll('#trial table tbody tr').length === 8")
    page.click("#trial table tbody button")
    page.wait("document.querySelector('#trial blockquote')")
    text = page.js("document.querySelector('#trial').innerText")
    user = re.search(r"User u000(\d\d)", text)[1]
    assert f"Likes film number {int(user)}." in text
    assert re.search(r"Entered the list\s+Film 3.?liked in test", text, re.IGNORECASE)  # what the planted lists say
    assert re.search(r"Left the list\s+Film 8.?liked in test", text, re.IGNORECASE)
    assert "llmkt export " in text
    page.js("history.back()")
    page.wait("!document.querySelector('#trial blockquote')")  # the way back works
    assert (page.console, [url for url in page.requests if not url.startswith("file:")]) == ([], [])


def test_the_same_by_keys_alone(study, browse):
    page = browse(study)
    page.js("document.querySelector('#heat').scrollIntoView(); document.querySelector('#heat h2').tabIndex = -1")
    page.js("document.querySelector('#heat h2').focus()")
    page.key("Tab")
    assert page.js("document.activeElement.getAttribute('data-filter')") == "cell:1 alpha:0.3 arm:treated"
    assert page.js("!document.querySelector('#tip').hidden")  # what the mouse shows, focus shows
    page.key("ArrowDown")
    page.key("ArrowRight")
    assert page.js("document.activeElement.getAttribute('data-filter')") == "cell:2 alpha:0.5 arm:treated"
    assert page.js("document.activeElement.getAttribute('aria-label')").endswith("show its trials")
    assert page.js("document.querySelectorAll('#heat a.to[tabindex=\"0\"]').length") == 1
    page.key("Enter")
    page.wait(f"{FOUND} === '2 of 27 trials'")
    page.js("document.querySelector('#trial-table tbody button').focus()")
    page.key("Enter")
    page.wait("document.activeElement.textContent.startsWith('Trial ')")  # focus follows, so a screen reader reads what opened


def test_an_address_opens_a_trial_and_a_user(study, browse):
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', study.read_text())[1])
    row = next(iter(data["moves"]))
    key, user = data["values"][0][0][data["values"][0][1][int(row)]], data["users"][data["moves"][row][0][0]][0]
    page = browse(study, f"#trial={key}&user={user}")
    page.wait("document.querySelector('#trial blockquote')")
    assert f"User {user}" in page.js("document.querySelector('#trial').innerText")
    assert browse(study, "#trial=%3Cscript%3E&user=x").js("document.querySelector('#trial').innerText") == ""


def test_the_filter_asks_one_column_or_all(study, browse):
    page = browse(study)

    def found(words):
        page.js(f"document.querySelector('#filter').value = {json.dumps(words)}")
        page.js("document.querySelector('#filter').dispatchEvent(new Event('input'))")
        return int(page.js(FOUND).split()[0])

    assert found("") == 27
    assert found("alpha:0.3") == 4
    assert found("cell:1 arm:alpha0") == found("cell:2 arm:alpha0") == 2  # shared twins belong to both cells
    assert found("cell:1 treated") == 6
    assert found("model:multivae seed:0") == 12
    assert found("nosuch:0.3") == found("alpha:0") - found("alpha:0") == 0


def test_hostile_texts_titles_and_ids_stay_text_all_the_way_down(tmp_path, browse):
    world = World(models={"MultiVAE": 0.2}, seeds=1, n_users=8, epochs=4, layers=("a", "b"))
    text, title = (lambda k: "\n".join(HOSTILE[k % 8 :: 8])), (lambda k: " ".join(HOSTILE[k::10]))
    token = lambda k: f"{k} {HOSTILE[k]}"  # noqa: E731
    write_artifacts(tmp_path / "artifacts", world, title, text, token)
    page = browse(build(write(tmp_path / "study", world)))
    data = page.js("JSON.parse(document.querySelector('#data').textContent)")
    opened = set()
    for row, moves in data["moves"].items():
        key = data["values"][0][0][data["values"][0][1][int(row)]]
        for place in range(len(moves)):
            page.js(f"location.hash = 'trial=' + encodeURIComponent({json.dumps(key)})")
            page.wait(f"document.querySelector('#trial h3').textContent === 'Trial ' + {json.dumps(key)}")
            page.wait("!document.querySelector('#trial blockquote')")
            page.js(f"document.querySelectorAll('#trial table tbody button')[{place}].click()")
            page.wait("document.querySelector('#trial blockquote')")
            user = data["users"][moves[place][0]][0]
            assert page.js("document.querySelector('#trial blockquote').textContent") == text(int(user.split()[0]))
            opened.add(user)
    assert opened == {token(k) for k in range(8)}
    assert set(data["titles"]) <= {title(k) for k in range(10)}
    assert not page.js("document.documentElement.hasAttribute('data-pwned')")
    assert page.js("document.querySelectorAll('#trial script, #trial img, #trial iframe, #trial svg, #trial style').length") == 0
    assert (page.console, [url for url in page.requests if not url.startswith("file:")]) == ([], [])
