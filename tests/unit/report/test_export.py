import csv
import io
import json
import re
import shutil
import xml.etree.ElementTree as ET

import pytest
import yaml

from llmkt_ray.report import build
from llmkt_ray.report.export import as_csv, as_latex, as_markdown, slug, write_files
from llmkt_ray.report.figures.canvas import Canvas
from llmkt_ray.report.figures.pdf import pdf_file, text_width
from llmkt_ray.report.figures.svg import inline_svg, svg_file
from llmkt_ray.report.load import load
from llmkt_ray.report.sections.base import Figure, Section, Table
from llmkt_ray.results.transport import local_copy
from tests.report.hostile import HOSTILE as HOSTILE_TEXTS
from tests.unit.report.synthetic import World, write

HOSTILE = Table("t", ("cell", "value"), (False, True), (("=cmd|' /C calc'!A0 <b>|`x`[y](z)", "\u22120.1"), ("50 % of $x_1$ & {y}", "2")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    build(write(folder, World(seeds=3, n_users=60, epochs=8, datasets=("ml-100k", "ml-1m"), layers=("encoder.0", "encoder.1"))))
    return folder


def test_the_verdict_is_json_and_agrees_with_the_page(folder):
    said = json.loads((folder / "verdict.json").read_text())
    assert said["headline"] in (folder / "report.html").read_text()
    assert len(said["cells"]) == 8
    contrast = said["cells"][0]["contrasts"]["alpha0"]
    assert contrast["difference"]["low"] < contrast["difference"]["estimate"] < contrast["difference"]["high"]
    assert contrast["conditions"] == ["conditional on one split"]
    assert all(part["p_holm"] >= part["p"] for cell in said["cells"] for part in cell["attribution"].values())


def test_every_table_is_written_in_three_formats(folder):
    names = {path.stem for path in (folder / "tables").iterdir()} - {"trials"}
    assert len(names) >= 5
    for name in names:
        assert all((folder / "tables" / f"{name}.{kind}").stat().st_size for kind in ("csv", "tex", "md"))


def test_labels_that_would_share_a_file_get_one_each(tmp_path):
    long = "SimpleX on amazon-cds-and-vinyl (layer encoder.mlp_layers.1, profiles meta-llama/Llama-3.1-8B-Instruct, encoder "
    tables = tuple(Table(long + name, ("cell",), (False,), ((name,),)) for name in ("one", "two", "three"))
    figures = tuple(Figure(name, name, "", Canvas(10, 10, name, name)) for name in ("a.b", "a_b"))
    results = load(write(tmp_path, World(models={"MultiVAE": 0.2}, seeds=1, n_users=20, epochs=4)))
    write_files(tmp_path, results, [Section("users", "Users", "Users", "", figures=figures, tables=tables)])
    written = {path.read_text().split()[1] for path in (tmp_path / "tables").glob("users-*.csv")}
    assert written == {"one", "two", "three"}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"a-b.svg", "a-b.pdf", "a-b-2.svg", "a-b-2.pdf"}


def test_what_an_earlier_page_had_and_this_one_has_not_is_gone(tmp_path):
    """A default that more rows took back, and tables of sections that are no more, must not stand beside the new page."""
    world = World(models={"MultiVAE": 0.2}, datasets=("ml-100k", "ml-1m"), seeds=3, n_users=60, epochs=4)
    folder = tmp_path / "study"
    build(write(folder, world))
    before = {path.name for path in (folder / "tables").iterdir()}
    assert (folder / "default.yaml").exists()
    assert "default-every-context.csv" in before
    (folder / "tables/mine.xlsx").touch()
    shutil.rmtree(folder / "ledger")
    write(tmp_path / "half", world, keep=lambda spec: spec.dataset == "ml-1m")
    shutil.copytree(tmp_path / "half/ledger", folder / "ledger")
    build(folder)
    assert not (folder / "default.yaml").exists()
    after = {path.name for path in (folder / "tables").iterdir()}
    assert "default-every-context.csv" not in after
    assert {"trials.csv", "mine.xlsx"} <= after


def test_so_it_is_where_the_results_are_a_uri(tmp_path):
    (tmp_path / "study").mkdir()
    for name in ("kept", "gone"):
        (tmp_path / "study" / name).touch()
    with local_copy(f"file://{tmp_path}/study") as here:
        (here / "gone").unlink()
        (here / "new").touch()
    assert {path.name for path in (tmp_path / "study").iterdir()} == {"kept", "new"}


def test_the_trials_are_written(folder):
    rows = list(csv.DictReader(io.StringIO((folder / "tables/trials.csv").read_text())))
    card = json.loads((folder / "card.json").read_text())
    assert len(rows) == card["planned_trials"]
    assert {row["status"] for row in rows} == {"done"}


def test_every_figure_is_written_as_svg_and_pdf(folder):
    svgs = sorted((folder / "figures").glob("*.svg"))
    assert len(svgs) >= 20
    for path in svgs:
        assert ET.fromstring(path.read_text().partition("\n")[2]).tag.endswith("svg")
        assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF-1.4")


def test_the_default_is_yaml_with_its_regret(folder):
    found = yaml.safe_load((folder / "default.yaml").read_text())
    assert {one["left_out"] for one in found["leaving_out_a_dataset"]} == {"ml-100k", "ml-1m"}
    assert found["study"]["transfer"]["alphas"] == [found["default"]["alpha"]]


def test_a_pdf_is_what_its_own_table_says():
    canvas = Canvas(100, 60, "a (title) \\ with \u2212 and \u4e2d", "s")
    canvas.rect(1, 1, 5, 5, "band-treated")
    canvas.marker("circle", 20, 20, "mark-treated")
    canvas.line((0, 0), (9, 9), style="line-shuffled")
    data = pdf_file(canvas)
    start = int(data.rpartition(b"startxref\n")[2].split()[0])
    assert data[start : start + 4] == b"xref"
    for number, offset in enumerate(re.findall(rb"(\d{10}) 00000 n", data), 1):
        assert data[int(offset) :].startswith(b"%d 0 obj" % number)
    length = int(re.search(rb"/Length (\d+)", data)[1])
    stream = data[data.index(b"stream\n") + 7 : data.index(b"\nendstream")]
    assert len(stream) == length
    assert stream.count(b"q ") == stream.count(b" Q") == 3
    assert rb"a \(title\) \\ with" in stream


def test_the_width_of_a_text_is_helveticas():
    assert text_width("Hamburg", 10) == pytest.approx(41.12)  # 722 + 556 + 833 + 556 + 556 + 333 + 556 thousandths


def test_a_spreadsheet_takes_no_text_for_a_formula():
    rows = list(csv.reader(io.StringIO(as_csv(HOSTILE))))
    assert rows[1][0].startswith("'=cmd")
    assert rows[1][1] == "-0.1"


def test_latex_is_escaped():
    assert r"50 \% of \$x\_1\$ \& \{y\} & 2 \\" in as_latex(HOSTILE)


def test_markdown_is_escaped():
    line = as_markdown(HOSTILE).splitlines()[2]
    assert line == r"| =cmd\|' /C calc'\!A0 &lt;b&gt;\|\`x\`\[y\](z) | −0.1 |"


@pytest.mark.parametrize("payload", HOSTILE_TEXTS)
def test_a_figure_holds_any_text(payload):
    """Control characters, markup and brackets: the SVG stays XML with the text as text, the PDF a stream of the length it says."""
    canvas = Canvas(100, 60, payload, payload)
    canvas.text(5, 5, payload)
    canvas.rect(1, 1, 5, 5, "heat-3", payload, "cell:1")
    root = ET.fromstring(svg_file(canvas).partition("\n")[2])
    assert not {e.tag.rpartition("}")[2] for e in root.iter()} - {"svg", "desc", "style", "text", "polygon"}
    ET.fromstring(inline_svg(canvas))
    data = pdf_file(canvas)
    assert len(data[data.index(b"stream\n") + 7 : data.index(b"\nendstream")]) == int(re.search(rb"/Length (\d+)", data)[1])


@pytest.mark.parametrize("payload", HOSTILE_TEXTS)
def test_a_table_holds_any_text(payload):
    table = Table("t", ("cell", payload), (False, False), ((payload, "x"), ("y", payload)))
    assert as_latex(table).count("\n") == 8
    assert "\\input" not in as_latex(table)
    assert as_markdown(table).count("\n") == 4
    assert not re.search(r"<(?!br)", as_markdown(table))
    rows = list(csv.reader(io.StringIO(as_csv(table))))
    assert len(rows) == 3
    assert not rows[1][0].startswith(("=", "+", "-", "@"))


def test_a_file_name_is_plain():
    assert slug("../../etc/passwd Ü 0.5") == "etc-passwd-0-5"
