"""The training loop: killed wherever one likes, it ends with the same bits."""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import holdfast
from holdfast.errors import HoldfastError
from holdfast.seeds import generator
from holdfast.training import loop
from holdfast.training.loop import batch_positions, linear_decay, run_steps

STEPS = 40


class Toy:
    """A network with running statistics, momentum and a schedule: all that a state has to hold."""

    def __init__(self, width=8):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network = torch.nn.Sequential(
                torch.nn.Linear(4, width), torch.nn.BatchNorm1d(width), torch.nn.Linear(width, 1)
            )
        self.optimiser = torch.optim.Adam(self.network.parameters(), 0.01)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimiser, 0.02, 100)
        self.state = {"network": self.network, "optimiser": self.optimiser, "schedule": self.schedule}

    def step(self, number):
        x = torch.randn(16, 4, generator=generator("toy", number))
        loss = (self.network(x) - x.sum(1, keepdim=True)).square().mean()
        self.optimiser.zero_grad()
        loss.backward()
        self.optimiser.step()
        self.schedule.step()
        return {"loss": loss.item(), "x": x.mean().item()}


class Killed(Exception):
    pass


def weights(toy):
    return {name: value.clone() for name, value in toy.network.state_dict().items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def uninterrupted():
    toy = Toy()
    log = run_steps(STEPS, toy.step, toy.state, None)
    assert [row["step"] for row in log] == list(range(STEPS))
    assert log[-1]["loss"] < log[0]["loss"]
    return weights(toy), log


def run_until_killed(stop, path, *, after_update, save_seconds=-1.0):
    """One process's life: it goes on from the state and dies in step `stop`, before or after updating."""
    toy = Toy()

    def step(number):
        if number == stop and not after_update:
            raise Killed
        row = toy.step(number)
        if number == stop:
            raise Killed
        return row

    with pytest.raises(Killed):
        run_steps(STEPS, step, toy.state, path, save_seconds=save_seconds)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stops=st.lists(st.integers(0, STEPS - 1), max_size=4, unique=True).map(sorted), after=st.booleans())
def test_interruptions_leave_no_trace(uninterrupted, tmp_path, stops, after):
    path = tmp_path / "state.pt"
    path.unlink(missing_ok=True)
    for stop in stops:
        run_until_killed(stop, path, after_update=after)
    toy = Toy()
    log = run_steps(STEPS, toy.step, toy.state, path)
    assert same(weights(toy), uninterrupted[0]) and log == uninterrupted[1]


def test_steps_since_the_last_save_are_repeated(uninterrupted, tmp_path):
    path = tmp_path / "state.pt"
    run_until_killed(10, path, after_update=True)
    written = path.read_bytes()
    run_until_killed(25, path, after_update=True, save_seconds=1e9)
    assert path.read_bytes() == written
    toy, steps = Toy(), []
    log = run_steps(STEPS, lambda n: steps.append(n) or toy.step(n), toy.state, path)
    assert steps == list(range(10, STEPS))
    assert same(weights(toy), uninterrupted[0]) and log == uninterrupted[1]


def test_a_finished_training_is_not_repeated(uninterrupted, tmp_path):
    path = tmp_path / "state.pt"
    toy = Toy()
    run_steps(STEPS, toy.step, toy.state, path)
    (tmp_path / ".state.12345678.pt").touch()
    again = Toy()

    def never(step):
        raise AssertionError(f"step {step} was done again")

    assert run_steps(STEPS, never, again.state, path) == uninterrupted[1]
    assert same(weights(again), uninterrupted[0])
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]


# Runs the training above in a process of its own, which is killed.
KILLED = """
import os, signal, sys, time
import torch
from test_loop import STEPS, Toy
from holdfast.training.loop import run_steps

torch.set_num_threads(1)
path, how = sys.argv[1:]
toy = Toy()


class Murderous:
    '''A part of the state whose third writing is the process's last deed: the file is half written.'''
    written = 0

    def state_dict(self):
        self.written += 1
        if how == "writing" and self.written == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return {}

    def load_state_dict(self, state):
        pass


def step(number):
    time.sleep(0.1 if how == "outside" else 0)
    return toy.step(number)


run_steps(STEPS, step, {**toy.state, "last": Murderous()}, path, save_seconds=-1.0)
"""


def test_a_killed_process_goes_on_with_the_same_bits(uninterrupted, tmp_path):
    path = tmp_path / "state.pt"
    folders = [Path(holdfast.__file__).parents[1], Path(__file__).parent]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, folders)), "OMP_NUM_THREADS": "1"}

    def start(how):
        return subprocess.Popen([sys.executable, "-c", KILLED, path, how], env=env, stderr=subprocess.PIPE)

    # First from outside at no particular moment, then by itself while it writes its state.
    with start("outside") as process:
        deadline = time.monotonic() + 60
        while not path.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, process.stderr.read()
    before = len(torch.load(path, weights_only=True)["log"])
    assert 0 < before < STEPS - 2
    with start("writing") as process:
        assert process.wait(60) == -signal.SIGKILL, process.stderr.read()
    assert len(torch.load(path, weights_only=True)["log"]) == before + 2
    assert len(list(tmp_path.glob(".state.*.pt"))) == 1
    (tmp_path / ".other.abc.pt").touch()
    (tmp_path / "state.csv").touch()
    toy = Toy()
    log = run_steps(STEPS, toy.step, toy.state, path)
    assert same(weights(toy), uninterrupted[0]) and log == uninterrupted[1]
    assert sorted(p.name for p in tmp_path.iterdir()) == [".other.abc.pt", "state.csv", "state.pt"]


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def damaged(name, path, tmp_path):
    if name == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif name == "empty":
        path.write_bytes(b"")
    elif name == "text":
        path.write_text("no state")
    elif name == "code":
        path.write_bytes(pickle.dumps({"network": Harmful(tmp_path / "ran")}, protocol=2))
    elif name == "zipped code":
        torch.save({"log": [], "network": Harmful(tmp_path / "ran")}, path)
    elif name == "part missing":
        saved = torch.load(path, weights_only=True)
        del saved["optimiser"]
        torch.save(saved, path)
    elif name == "log missing":
        saved = torch.load(path, weights_only=True)
        del saved["log"]
        torch.save(saved, path)


@pytest.mark.parametrize(
    "name",
    ["truncated", "empty", "text", "code", "zipped code", "part missing", "log missing", "architecture"],
)
def test_a_damaged_state_is_refused_with_what_to_do(tmp_path, name):
    path = tmp_path / "state.pt"
    toy = Toy()
    run_steps(2, toy.step, toy.state, path)
    damaged(name, path, tmp_path)
    toy = Toy(width=9 if name == "architecture" else 8)
    with pytest.raises(HoldfastError, match="cannot go on from the training state") as caught:
        run_steps(STEPS, toy.step, toy.state, path)
    assert str(path) in str(caught.value) and "remove that file" in caught.value.repair
    assert not (tmp_path / "ran").exists() and path.exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_diverged_training_stops_and_keeps_the_last_good_state(tmp_path, value):
    path = tmp_path / "state.pt"
    toy = Toy()

    def step(number):
        return toy.step(number) | ({"d_gp": value} if number == 3 else {})

    with pytest.raises(HoldfastError, match="toy diverged at step 3") as caught:
        run_steps(STEPS, step, toy.state, path, description="toy", save_seconds=-1.0)
    assert caught.value.found == f"d_gp = {value}" and "learning rate" in caught.value.repair
    assert len(torch.load(path, weights_only=True)["log"]) == 3


def test_after_step_sees_the_log_and_the_state_is_written_now_and_then(tmp_path, monkeypatch):
    path, seen, saved = tmp_path / "state.pt", [], []
    save = loop._save
    monkeypatch.setattr(
        loop, "_save", lambda state, log, path: saved.append(len(log)) or save(state, log, path)
    )
    now = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    toy = Toy()

    def step(number):
        now[0] += 1.0
        return toy.step(number)

    run_steps(
        10, step, toy.state, path, save_seconds=3.0, after_step=lambda n, log: seen.append((n, len(log)))
    )
    assert seen == [(n, n + 1) for n in range(10)]
    assert saved == [4, 8, 10]


def test_nothing_is_drawn_from_the_global_generators(tmp_path):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    toy = Toy()
    run_steps(3, toy.step, toy.state, tmp_path / "state.pt")
    batch_positions(np.arange(5), 3, 0, "a")
    assert torch.equal(torch.get_rng_state(), before)


# ---- batches and rates -------------------------------------------------------------------------------


@given(st.integers(1, 30), st.integers(1, 40), st.integers(1, 4), st.integers(0, 99))
def test_every_epoch_has_every_position_once(count, batch, epochs, seed):
    positions = np.arange(count) * 7 + 3
    steps = -(-epochs * count // batch)
    drawn = [batch_positions(positions, batch, step, "seed", seed) for step in range(steps)]
    assert all(len(part) == batch for part in drawn)
    stream = np.concatenate(drawn)
    for epoch in range(epochs):
        assert sorted(stream[epoch * count : (epoch + 1) * count]) == sorted(positions)
    # Any step alone, in any order, gives what it gave in turn.
    assert (batch_positions(positions, batch, steps - 1, "seed", seed) == drawn[-1]).all()


def test_epochs_and_names_have_their_own_orders():
    positions = np.arange(50)
    orders = [tuple(batch_positions(positions, 50, step, "a", name)) for step in (0, 1) for name in (0, 1)]
    assert len(set(orders)) == 4
    firsts = Counter(int(batch_positions(np.arange(4), 1, 0, "x", seed)[0]) for seed in range(400))
    assert min(firsts.values()) > 60  # of 100: 4.6 standard deviations


@given(st.integers(1, 500), st.data())
def test_the_rate_is_one_and_then_falls_to_nothing(total, data):
    step = data.draw(st.integers(0, total))
    expected = 1.0 if step <= total / 2 else 2 * (1 - step / total)
    assert linear_decay(step, total) == pytest.approx(expected, abs=1e-12)
    assert linear_decay(total, total) == 0 and linear_decay(total - 1, total) > 0


@given(st.integers(1, 500), st.floats(0, 0.99), st.data())
def test_the_rate_may_fall_later(total, after, data):
    step = data.draw(st.integers(0, total))
    expected = 1.0 if step <= after * total else (1 - step / total) / (1 - after)
    assert linear_decay(step, total, after) == pytest.approx(expected, abs=1e-9)
    assert linear_decay(step, total, 1) == 1  # never


def test_a_full_disk_is_told(tmp_path, full_disk):
    state = {"net": torch.nn.Linear(100, 100)}
    with pytest.raises(HoldfastError, match="no space left"):
        run_steps(1, lambda step: {}, state, tmp_path / "state.pt")
    assert not list(tmp_path.iterdir())
