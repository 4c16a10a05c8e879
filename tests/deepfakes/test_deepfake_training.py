"""Training of a deepfake model: its schedule, and that interruptions leave no trace."""

import pytest
import torch

from holdfast.deepfakes import training
from holdfast.deepfakes.training import train_deepfake
from holdfast.errors import HoldfastError

NAMES = ("test", 0)


def state(model):
    return {
        f"{part}.{key}": value.clone()
        for part, network in model.networks.items()
        for key, value in network.state_dict().items()
    }


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def settings(tiny_settings):
    return tiny_settings | {"generator_rate": 0.001, "discriminator_rate": 0.002}


class Killed(Exception):
    pass


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_interrupted_training_ends_like_uninterrupted(
    tiny, faces, settings, precision, tmp_path, monkeypatch
):
    settings = settings | {"precision": precision}
    whole = tiny()
    start = state(whole)
    log = train_deepfake(whole, faces, settings, NAMES)
    assert not same(start, state(whole))
    assert all(value.dtype == start[key].dtype for key, value in state(whole).items())
    run_steps = training.run_steps

    def dying_at(stop):
        def run(total, step_fn, *arguments, **more):
            def step(number):
                row = step_fn(number)
                if number == stop:
                    raise Killed
                return row

            return run_steps(total, step, *arguments, **more, save_seconds=-1.0)

        return run

    for stop in (1, 4):
        monkeypatch.setattr(training, "run_steps", dying_at(stop))
        with pytest.raises(Killed):
            train_deepfake(tiny(), faces, settings, NAMES, state_path=tmp_path / "state.pt")
    monkeypatch.setattr(training, "run_steps", run_steps)
    resumed = tiny()
    assert train_deepfake(resumed, faces, settings, NAMES, state_path=tmp_path / "state.pt") == log
    assert same(state(resumed), state(whole))


def test_the_generator_steps_once_in_critic_steps_iterations(tiny, faces, settings):
    log = train_deepfake(tiny(), faces, settings | {"critic_steps": 3, "iterations": 7}, NAMES)
    assert len(log) == 7
    assert [row["step"] for row in log if "g_adv" in row] == [2, 5]
    assert all({"d_adv", "d_gp", "d_cls"} <= row.keys() for row in log)
    model = tiny()
    before = state(model)
    train_deepfake(model, faces, settings | {"critic_steps": 9, "iterations": 2}, NAMES)
    after = state(model)
    assert all(torch.equal(after[key], before[key]) for key in before if key.startswith("generator"))


def test_rates_fall_linearly_over_the_second_half(tiny, faces, settings, monkeypatch):
    rates, step = [], torch.optim.Adam.step

    def recording(optimiser, *arguments):
        rates.append(optimiser.param_groups[0]["lr"])
        return step(optimiser, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", recording)
    once = settings | {"critic_steps": 99, "iterations": 8, "discriminator_rate": 0.01}
    train_deepfake(tiny(), faces, once, NAMES)
    assert rates == pytest.approx([0.01] * 5 + [0.0075, 0.005, 0.0025])


def test_names_decide_the_training(tiny, faces, settings):
    found = []
    for names in (NAMES, NAMES, ("test", 1)):
        model = tiny()
        train_deepfake(model, faces, settings | {"iterations": 2}, names)
        found.append(state(model))
    assert same(found[0], found[1]) and not same(found[0], found[2])


def test_losses_fall(tiny, faces, settings):
    longer = settings | {"iterations": 60, "critic_steps": 1, "batch": 8, "discriminator_rate": 0.01}
    log = train_deepfake(tiny(discriminator_channels=8), faces, longer, NAMES)
    for name in ("g_rec", "d_cls"):
        values = [row[name] for row in log]
        assert sum(values[-5:]) < 0.9 * sum(values[:5]), name


def test_samples_are_asked_for_ten_times(tiny, faces, settings):
    done = []
    train_deepfake(tiny(), faces, settings | {"iterations": 20}, NAMES, on_sample=done.append)
    assert done == pytest.approx([number / 10 for number in range(1, 11)])


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_faces(tiny, faces_of, settings, count):
    few = faces_of(train=count, unseen=4)
    with pytest.raises(HoldfastError, match="StarGAN cannot be trained on") as caught:
        train_deepfake(tiny(), few, settings, NAMES)
    assert caught.value.found == f"{count} training faces" and "attacker.threshold" in caught.value.repair


def test_two_faces_are_enough_for_a_batch_of_four(tiny, faces_of, settings):
    log = train_deepfake(tiny(), faces_of(train=2, unseen=4), settings | {"iterations": 2}, NAMES)
    assert len(log) == 2


def test_a_set_without_the_models_attributes(tiny, faces, settings):
    with pytest.raises(HoldfastError, match="no attribute Bald"):
        train_deepfake(tiny(attributes=["Male", "Bald"]), faces, settings, NAMES)


def test_a_frozen_model_can_be_trained_again(tiny, faces, settings):
    from holdfast.deepfakes.model import freeze

    fresh, thawed = tiny(), freeze(tiny())
    for model in (fresh, thawed):
        train_deepfake(model, faces, settings | {"iterations": 2}, NAMES)
    assert same(state(fresh), state(thawed))
