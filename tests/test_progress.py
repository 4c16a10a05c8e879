"""Progress: lines where nobody watches, a bar where somebody does."""

import io
import sys

import pytest

from holdfast import progress
from holdfast.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def lines(capsys):
    return capsys.readouterr().err.splitlines()


def test_a_log_gets_one_line_at_the_end_of_short_work(capsys):
    with Progress(50, "rendering") as bar:
        for _ in range(50):
            bar.advance({"loss": 0.5})
    (line,) = lines(capsys)
    assert line.startswith("rendering: 50 done in ")


def test_a_log_gets_a_line_now_and_then_with_the_time_left(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress(120, "training", start=20) as bar:
        for _ in range(100):
            now[0] += 1.0
            bar.advance({"d_adv": -1.23456, "g_rec": 0.00012345})
    found = lines(capsys)
    assert found[0] == "training: goes on from step 20 of 120"
    assert found[-1] == "training: 120 done in 100 s"
    # Every 31st second: one step a second, so the steps left are the seconds left.
    told = [line for line in found if " min left" in line]
    assert [line.split(",")[0] for line in told] == [f"training: {done}/120" for done in (51, 82, 113)]
    assert told[0].endswith(f"{69 / 60:.1f} min left  d_adv -1.23  g_rec 0.000123")


def test_steps_may_come_in_pieces(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Progress(30) as bar:
        now[0] = 60.0
        bar.advance(by=20)
    assert lines(capsys)[0] == "20/30, 0.5 min left  "


def test_failed_work_is_not_told_as_done(capsys):
    with pytest.raises(RuntimeError), Progress(5, "work") as bar:
        bar.advance()
        raise RuntimeError
    assert lines(capsys) == []


def test_a_terminal_gets_a_bar_that_starts_where_the_work_does(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(10, "training", start=4) as bar:
        bar.advance({"loss": 2.0}, by=6)
        assert (bar.bar.n, bar.bar.initial, bar.bar.total) == (10, 4, 10)
        assert bar.bar.postfix == "loss 2"
    assert "training:  40%" in terminal.getvalue() and "done in" not in terminal.getvalue()
