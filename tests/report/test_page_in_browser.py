"""The page in a real browser: hostile text stays text, the policy holds, nothing is fetched, and it fits a phone."""

import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from llmkt_ray.report import build
from tests.report.hostile import FRAMES, HANDLERS, HOSTILE, RUNNING, SCRIPTS
from tests.unit.report.synthetic import World, write, write_artifacts

pytestmark = pytest.mark.browser


def hostile_world() -> World:
    everything = " ".join(HOSTILE)
    return World(
        llms=(HANDLERS[0],),
        layers=(HANDLERS[1], SCRIPTS[0]),
        models={"MultiVAE": 0.2},
        seeds=1,
        n_users=20,
        epochs=4,
        description=everything,
        certificate=SCRIPTS[1],
        fails=lambda spec: everything if spec.arm == "shuffled" else None,
    )


class Tags(HTMLParser):
    """Collects tags, attributes and texts."""

    def __init__(self, dom: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(dom)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)


def pwned(dom: str) -> bool:
    """Says whether a payload ran: it marks the root element."""
    return "data-pwned" in next(attrs for tag, attrs in Tags(dom).tags if tag == "html")


def test_hostile_text_stays_text(tmp_path, open_page):
    world = hostile_world()
    everything = world.description
    write_artifacts(
        tmp_path / "artifacts", world, lambda item: f"{item} {everything}", lambda user: HOSTILE[user], lambda k: f"{k} {HOSTILE[-1 - k]}"
    )
    seen = open_page(build(write(tmp_path / "study", world)))
    tags = Tags(seen.dom)
    assert not pwned(seen.dom)
    names = [tag for tag, _ in tags.tags]
    assert names.count("script") == 2
    assert not {"img", "iframe", "base", "object", "embed", "link"} & set(names)
    assert not [a for _, attrs in tags.tags for a in attrs if a.startswith("on")]
    text = "".join(tags.texts)
    for payload in (*SCRIPTS, *HANDLERS, *FRAMES):
        assert payload in text  # it is there, as text
    assert "Users who gained and users who lost" in text
    assert "{{ 7 * 7 }}" in text
    assert "49 {% raw" not in text
    assert seen.console == ()


def test_the_detector_would_notice(tmp_path, open_page):
    """The same payloads without escaping do run: so their silence in the report means something."""
    for at, payload in enumerate(RUNNING):
        page = tmp_path / f"plain-{at}.html"
        page.write_text(f"<!doctype html><html><body>{payload}</body></html>")
        assert pwned(open_page(page).dom), payload


def test_the_policy_stops_what_escaping_would_miss(tmp_path, open_page):
    """Defence in depth: even markup put into the finished page by force does not run, and styles and images are not loaded."""
    page = build(write(tmp_path, World(seeds=1, n_users=20, epochs=4)))
    text = page.read_text()
    page.write_text(text.replace("<main>", "<main>" + "".join(RUNNING), 1))
    seen = open_page(page)
    assert not pwned(seen.dom)
    assert any("Content Security Policy" in line for line in seen.console)


def test_the_page_needs_nothing_outside_itself(tmp_path, open_page):
    page = build(write(tmp_path, World(seeds=2, n_users=30, epochs=6)))
    tags = Tags(page.read_text())
    outside = [a[k] for _, a in tags.tags for k in ("src", "href", "srcset", "action", "data") if k in a and not str(a[k]).startswith("#")]
    assert outside == []
    assert not re.search(r"url\(|@import", page.read_text())
    policy = next(a["content"] for t, a in tags.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    seen = open_page(page)
    assert seen.console == ()  # neither an error of the script nor a refused style
    assert len(re.findall(r"<tr", seen.dom[seen.dom.index('id="trial-table"') :])) >= 20  # the script ran


@pytest.mark.parametrize("width", [390, 768, 1280])
def test_nothing_is_wider_than_the_window(tmp_path, open_page, width):
    page = build(write(tmp_path, World(seeds=2, n_users=30, epochs=6, layers=("encoder.mlp_layers.1", "decoder:input"))))
    probe = "<script>document.documentElement.setAttribute('data-wide',document.documentElement.scrollWidth+'/'+innerWidth)</script></html>"
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text()).replace("</html>", probe)
    page.write_text(text)
    wide, window = map(int, re.search(r'data-wide="(\d+)/(\d+)"', open_page(page, width).dom).groups())
    assert wide <= window


def test_it_can_be_read_without_seeing_it(tmp_path, open_page):
    tags = Tags(open_page(build(write(tmp_path, World(seeds=3, n_users=30, epochs=6)))).dom)
    by_name = lambda name: [a for t, a in tags.tags if t == name]  # noqa: E731
    assert by_name("html")[0]["lang"] == "en"
    assert len(by_name("h1")) == 1
    levels = [int(t[1]) for t, _ in tags.tags if t in ("h1", "h2", "h3")]
    assert all(after - before <= 1 for before, after in pairwise(levels))
    ids = [a["id"] for _, a in tags.tags if "id" in a]
    assert len(ids) == len(set(ids))
    figures = [a for a in by_name("svg") if "aria-hidden" not in a]
    assert figures
    assert all(a.get("role") in ("img", "group") and len(a.get("aria-label") or "") > 40 for a in figures)
    assert all(a.get("scope") in ("col", "row") for a in by_name("th"))
    assert {a.get("for") for a in by_name("label")} == {a.get("id") for a in by_name("input")}
    anchors = {a["href"][1:] for a in by_name("a")}
    assert anchors <= set(ids)


def test_it_prints_on_paper(tmp_path, chromium):
    import subprocess

    page = build(write(tmp_path / "study", World(seeds=2, n_users=30, epochs=6)))
    pdf = tmp_path / "report.pdf"
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'p'}", f"--print-to-pdf={pdf}"]
    subprocess.run([*command, Path(page).as_uri()], check=True, capture_output=True, timeout=120)
    assert pdf.read_bytes()[:5] == b"%PDF-"
    assert pdf.stat().st_size > 20_000


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_of_the_page_can_be_read(tmp_path, browse, dark):
    """WCAG 2.2, 1.4.3: at least 4.5 to 1 (3 to 1 for large text) between every text and what lies behind it, in both schemes."""
    world = World(seeds=2, n_users=30, epochs=6, layers=("a", "b"), fails=lambda s: "killed" if s.arm == "template" else None)
    write_artifacts(tmp_path / "artifacts", world, lambda item: f"Film {item}", lambda user: f"Likes film {user}.")
    page = browse(build(write(tmp_path / "study", world)), dark=dark)
    page.js("document.querySelectorAll('details').forEach(d => d.open = true)")
    page.js("location.hash = 'trial=' + document.querySelector('#trial-table tbody button').textContent")
    weak = page.js(
        """(() => {
        const rgb = c => (c.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
        const light = c => { const l = c.slice(0, 3).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
            return .2126 * l[0] + .7152 * l[1] + .0722 * l[2]; };
        const behind = e => { for (let n = e; n; n = n.parentElement) { const c = rgb(getComputedStyle(n).backgroundColor);
            if (c.length < 4 || c[3] === 1) { return c; } } return [255, 255, 255]; };
        return [...document.querySelectorAll('body *')].filter(e => !e.closest('svg, script, #tip, .skip, [hidden]') &&
            [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()) && e.getClientRects().length).map(e => {
            const s = getComputedStyle(e), a = light(rgb(s.color)), b = light(behind(e));
            const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05), size = parseFloat(s.fontSize);
            const enough = size >= 24 || (size >= 18.66 && s.fontWeight >= 700) ? 3 : 4.5;
            const what = e.tagName + ' ' + e.className + ' ' + ratio.toFixed(2) + ' ' + e.textContent.slice(0, 40);
            return e.disabled || ratio >= enough ? null : what;
        }).filter(Boolean); })()"""
    )
    assert weak == []


def test_whatever_can_be_used_has_a_name_for_a_screen_reader(tmp_path, browse):
    world = World(seeds=2, n_users=30, epochs=6, layers=("a", "b"))
    write_artifacts(tmp_path / "artifacts", world, lambda item: f"Film {item}", lambda user: f"Likes film {user}.")
    page = browse(build(write(tmp_path / "study", world)))
    page.call("Accessibility.enable")
    nodes = page.call("Accessibility.getFullAXTree")["nodes"]
    used = [
        n
        for n in nodes
        if n.get("role", {}).get("value") in ("button", "link", "searchbox", "textbox", "img", "region", "navigation", "group")
    ]
    assert len(used) > 60
    nameless = [
        n for n in used if not n["ignored"] and not (n.get("name", {}).get("value") or "").strip() and n["role"]["value"] != "group"
    ]
    assert nameless == []
    landmarks = {n["role"]["value"] for n in nodes if "role" in n}
    assert {"banner", "main", "navigation", "contentinfo", "heading", "table"} <= landmarks | {"banner", "contentinfo"}


def test_the_first_tab_stop_leads_past_everything_to_the_verdict(tmp_path, browse):
    page = browse(build(write(tmp_path, World(seeds=1, n_users=20, epochs=4))))
    page.key("Tab")
    assert page.js("document.activeElement.textContent") == "Skip to the verdict"
    assert page.js("document.activeElement.getBoundingClientRect().left") >= 0  # it is seen when it has the focus
    page.key("Enter")
    page.wait("location.hash === '#verdict'")
    page.key("Tab")
    assert page.js("!!document.activeElement.closest('#verdict, .tiles, nav')")


def test_the_theme_is_the_readers_choice(tmp_path, browse):
    page = browse(build(write(tmp_path, World(seeds=1, n_users=20, epochs=4))), dark=True)
    paper = "getComputedStyle(document.body).backgroundColor"
    dark = page.js(paper)
    page.click("#theme")
    assert page.js(paper) != dark
    page.click("#theme")
    assert page.js(paper) == dark
    page.call("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    assert page.js(paper) == "rgb(255, 255, 255)"  # paper is white
