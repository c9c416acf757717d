"""The benchmark's last lines say for every target whether it is met, and later runs add to earlier ones."""

from benchmarks.speed.figures import Figure, save

SLOW = Figure("epoch, 1m, BPR", 1.3, 1.15, True, "x", 5, (1.3, 1.0))
FAST = Figure("trial, 1m, BPR", 4.5, 4.0, False, "x", 5, (45.0, 10.0))
OPEN = Figure("growth, 1000 users", 0.2, None, True, "s", 1)


def test_a_line_says_name_figure_target_and_whether_it_is_met():
    assert SLOW.line().split("(")[0].split() == ["epoch,", "1m,", "BPR", "1.300", "x", "at", "most", "1.15", "x:", "NOT", "MET"]
    assert FAST.line().split("(")[0].split() == ["trial,", "1m,", "BPR", "4.500", "x", "at", "least", "4", "x:", "met"]
    assert (SLOW.met, FAST.met, OPEN.met) == (False, True, None)


def test_figures_are_kept_and_replaced_by_name(tmp_path):
    save([SLOW, OPEN], tmp_path)
    better = Figure("epoch, 1m, BPR", 1.1, 1.15, True, "x", 5, (1.1, 1.0))
    assert save([better, FAST], tmp_path) == [better, OPEN, FAST]
    table, picture = (tmp_path / "table.md").read_text(), (tmp_path / "figures.svg").read_text()
    assert table.count("\n") == 5
    assert "NOT MET" not in table
    assert picture.count("<rect") == 3, "the background and one bar a target"
