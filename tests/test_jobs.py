"""A job: its log, its threads, and errors told without a traceback."""

import copy
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from holdfast import jobs
from holdfast.errors import HoldfastError

ERROR = HoldfastError("row 3 of index.csv is odd", found="x", expected="0 or 1", repair="mend it")


@pytest.fixture(autouse=True)
def as_before(monkeypatch):
    """The switches that a job sets are the process's: put them back."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    threads, benchmark = torch.get_num_threads(), torch.backends.cudnn.benchmark
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    yield
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = benchmark
    torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


def test_a_wrong_input_ends_the_process_with_its_message_only(tmp_path):
    log = tmp_path / "logs" / "rule" / "a.log"
    script = (
        "import sys\n"
        "from holdfast.errors import HoldfastError\n"
        "from holdfast.jobs import job\n"
        "with job(sys.argv[1]):\n"
        "    print('started', file=sys.stderr)\n"
        "    raise HoldfastError('row 3 is odd', found='x', expected='0 or 1', repair='mend it')\n"
        "print('went on')\n"
    )
    env = os.environ | {"PYTHONPATH": str(Path(jobs.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", script, log], capture_output=True, text=True, env=env)
    assert done.returncode == 1 and done.stdout == ""
    told = "row 3 is odd\n  found:    x\n  expected: 0 or 1\n  repair:   mend it\n"
    assert f"Error: {told}" in done.stderr and "Traceback" not in done.stderr
    assert log.read_text() == f"started\n\nError: {told}\n"


def test_another_exception_passes_and_its_traceback_is_in_the_log(tmp_path):
    with pytest.raises(ZeroDivisionError), jobs.job(tmp_path / "a.log"):
        1 / 0  # noqa: B018
    assert "Traceback" in (tmp_path / "a.log").read_text()
    assert "ZeroDivisionError: division by zero" in (tmp_path / "a.log").read_text()


def test_the_log_begins_anew_and_stderr_is_given_back(tmp_path, capsys):
    log, stderr = tmp_path / "a.log", sys.stderr
    for text in ("first", "second"):
        with jobs.job(log):
            print(text, file=sys.stderr)
    assert sys.stderr is stderr and log.read_text() == "second\n"
    assert capsys.readouterr().err == "first\nsecond\n"


def test_redrawn_lines_of_a_bar_stay_out_of_the_log(tmp_path, capsys):
    with jobs.job(tmp_path / "a.log"):
        sys.stderr.write("\r 50%|####   |")
        sys.stderr.write("line\n")
        assert sys.stderr.isatty() is False
    assert (tmp_path / "a.log").read_text() == "line\n"
    assert "50%" in capsys.readouterr().err


def test_a_terminal_stays_one(monkeypatch, tmp_path):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with jobs.job(tmp_path / "a.log"):
        assert sys.stderr.isatty()


def test_threads_and_determinism_are_set():
    with jobs.job(threads=2):
        assert torch.get_num_threads() == 2
        assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_the_device_of_the_config(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert jobs.device_of({"device": "auto"}) == jobs.device_of({"device": "cpu"}) == "cpu"
    with pytest.raises(HoldfastError, match="config key device: no GPU"):
        jobs.device_of({"device": "cuda:1"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert jobs.device_of({"device": "auto"}) == "cuda"
    assert jobs.device_of({"device": "cuda:1"}) == "cuda:1"
    assert jobs.device_of({"device": "cpu"}) == "cpu"


def test_an_error_survives_the_way_between_processes():
    copied = copy.copy(ERROR)  # by __reduce__, as between processes
    assert str(copied) == str(ERROR) and copied.repair == "mend it"
    assert str(HoldfastError("only this")) == "only this"
