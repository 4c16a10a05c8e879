"""Training of a deepfake model: its schedule, and that interruptions leave no trace."""

import math

import pytest
import torch

from holdfast.deepfakes import DEEPFAKES, training
from holdfast.deepfakes.training import Batches, memory_format, precision_of, train_deepfake
from holdfast.errors import HoldfastError

NAMES = ("test", 0)


@pytest.fixture(scope="module")
def settings(tiny_settings):
    return tiny_settings | {"generator_rate": 0.001, "discriminator_rate": 0.002}


@pytest.mark.parametrize(
    "name, precision",
    [
        ("stargan", "float32"),
        ("stargan", "bfloat16"),
        ("attgan", "float32"),
        ("attentiongan", "float32"),
        ("hisd", "float32"),
        ("hisd", "bfloat16"),
    ],
)
def test_interrupted_training_ends_like_uninterrupted(
    tiny_of, tagged_faces, name, precision, train_interrupted, state, same
):
    tiny = tiny_of(name)
    whole = tiny()
    settings = whole.settings | {"precision": precision, "generator_rate": 0.001, "discriminator_rate": 0.002}
    start = state(whole)
    log = train_deepfake(whole, tagged_faces, settings, NAMES)
    assert [row["step"] for row in log] == list(range(settings["iterations"]))
    assert all(math.isfinite(value) for row in log for value in row.values())
    end = state(whole)
    assert all(value.dtype == start[key].dtype for key, value in end.items())
    trained = [f"{part}.{key}" for part, net in whole.networks.items() for key, _ in net.named_parameters()]
    untouched = [key for key in trained if torch.equal(start[key], end[key])]
    # The constant of AttGAN's critic cancels out; six steps of HiSD do not draw each tag and value.
    expected = {"attgan": ("fc_adv.1.layers.0.bias",), "hisd": ("translators", "mappers", "fcs")}
    assert [key for key in untouched if not key.partition(".")[2].startswith(expected.get(name, ()))] == []
    resumed, resumed_log = train_interrupted(tiny, tagged_faces, settings, NAMES, stops=(1, 4))
    assert resumed_log == log and same(state(resumed), end)


def test_an_interrupted_running_average_ends_like_an_uninterrupted_one(
    tiny, faces, settings, train_interrupted, state, same
):
    settings, whole = settings | {"average": 0.5}, tiny()
    log = train_deepfake(whole, faces, settings, NAMES)
    resumed, resumed_log = train_interrupted(tiny, faces, settings, NAMES, stops=(1, 4))
    assert resumed_log == log and same(state(resumed), state(whole))


@pytest.mark.parametrize(
    "able, expected",
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, "float32"),
        ({"avx512_bf16": True}, "bfloat16"),
        ({"amx_bf16": True}, "bfloat16"),
        ({"bf16": True}, "bfloat16"),
        ({}, "float32"),
    ],
)
def test_the_automatic_precision_is_what_the_processor_computes_in(monkeypatch, able, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert precision_of({"precision": "auto"}, "cpu") == expected
    assert precision_of({"precision": "bfloat16"}, "cpu") == "bfloat16"
    assert precision_of({"precision": "float32"}, "cpu") == "float32"


def test_only_float32_on_a_cpu_is_not_channels_last():
    for precision, device, expected in (
        ("float32", "cpu", torch.contiguous_format),
        ("bfloat16", "cpu", torch.channels_last),
        ("float32", "cuda", torch.channels_last),
    ):
        assert memory_format({"precision": precision}, device) is expected


@pytest.mark.parametrize("able", [True, False])
def test_the_automatic_precision_trains_as_the_one_that_it_names(monkeypatch, tiny, faces, settings, able):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": able})
    logs = [
        train_deepfake(tiny(), faces, settings | {"precision": precision, "iterations": 2}, NAMES)
        for precision in ("auto", "bfloat16" if able else "float32")
    ]
    assert logs[0] == logs[1]


def test_the_generator_steps_once_in_critic_steps_iterations(tiny, faces, settings, state):
    log = train_deepfake(tiny(), faces, settings | {"critic_steps": 3, "iterations": 7}, NAMES)
    assert len(log) == 7
    assert [row["step"] for row in log if "g_adv" in row] == [2, 5]
    assert all({"d_adv", "d_gp", "d_cls"} <= row.keys() for row in log)
    model = tiny()
    before = state(model)
    train_deepfake(model, faces, settings | {"critic_steps": 9, "iterations": 2}, NAMES)
    after = state(model)
    assert all(torch.equal(after[key], before[key]) for key in before if key.startswith("generator"))


def test_rates_fall_linearly_over_the_second_half(tiny, faces, settings, adam_steps):
    once = settings | {"critic_steps": 99, "iterations": 8, "discriminator_rate": 0.01}
    train_deepfake(tiny(), faces, once, NAMES)
    rates = [rate for row in adam_steps for rate in row["rates"]]
    assert rates == pytest.approx([0.01] * 5 + [0.0075, 0.005, 0.0025])


@pytest.mark.parametrize("name", ["stargan", "attgan", "attentiongan"])
def test_the_running_average_is_what_training_gives(tiny_of, faces, state, monkeypatch, name):
    """Against the recursion, on the weights that trainings of 1 to 4 iterations end with."""
    tiny = tiny_of(name)
    monkeypatch.setattr(type(tiny()), "rate_factor", lambda model, step, iterations: 1.0)
    settings = tiny().settings | {"critic_steps": 1, "generator_rate": 0.01}
    lasts, sheets = [], []
    for iterations in (1, 2, 3, 4):
        model = tiny()
        log = train_deepfake(model, faces, settings | {"iterations": iterations}, NAMES)
        lasts.append(state(model))
    expected = lasts[0]
    for last in lasts[1:]:
        expected = {
            key: 0.75 * expected[key] + 0.25 * value if key.startswith("generator.") else value
            for key, value in last.items()
        }
    model = tiny()
    averaged_log = train_deepfake(
        model,
        faces,
        settings | {"iterations": 4, "average": 0.75},
        NAMES,
        on_sample=lambda done: sheets.append(state(model)),
    )
    assert averaged_log == log
    found = state(model)
    for key, value in expected.items():
        if found[key].is_floating_point():
            torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(found[key], lasts[-1][key]) for key in found if key.startswith("generator."))
    assert all(torch.equal(sheets[-1][key], value) for key, value in found.items())


def test_faces_are_mirrored_at_random_where_that_is_asked_for(tiny, faces, settings):
    positions = faces.positions("train")

    def batches(mirror):
        drawn = Batches(faces, positions, tiny(), settings | {"mirror": mirror}, NAMES, "cpu")
        return [drawn.at(step) for step in range(12)]

    turned = []
    for (plain, labels), (x, same_labels) in zip(batches(False), batches(True), strict=True):
        assert torch.equal(labels, same_labels)
        for image, drawn in zip(plain, x, strict=True):
            assert torch.equal(drawn, image) or torch.equal(drawn, image.flip(2))
            turned.append(not torch.equal(drawn, image))
    assert 0.25 * len(turned) < sum(turned) < 0.75 * len(turned)


def test_names_decide_the_training(tiny, faces, settings, state, same):
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


@pytest.mark.parametrize(
    ("iterations", "steps"),
    [
        (3, [1, 2, 3]),
        (10, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        (19, [2, 4, 6, 8, 10, 12, 14, 16, 18, 19]),
        (20, [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]),
        (25, [3, 5, 8, 10, 13, 15, 18, 20, 23, 25]),
    ],
)
def test_samples_are_asked_for_at_every_tenth_and_at_the_end(tiny, faces, settings, iterations, steps):
    done = []
    train_deepfake(tiny(), faces, settings | {"iterations": iterations}, NAMES, on_sample=done.append)
    assert [round(iterations * fraction) for fraction in done] == steps and done[-1] == 1


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_faces(tiny, faces_of, settings, count):
    few = faces_of(train=count, unseen=4)
    with pytest.raises(HoldfastError, match="StarGAN cannot be trained on") as caught:
        train_deepfake(tiny(), few, settings, NAMES)
    assert caught.value.found == f"{count} training faces" and "at least 2" in caught.value.expected


def test_two_faces_are_enough_for_a_batch_of_four(tiny, faces_of, settings):
    log = train_deepfake(tiny(), faces_of(train=2, unseen=4), settings | {"iterations": 2}, NAMES)
    assert len(log) == 2


def test_a_set_without_the_models_attributes(tiny, faces, settings):
    with pytest.raises(HoldfastError, match="no attribute Bald"):
        train_deepfake(tiny(attributes=["Male", "Bald"]), faces, settings, NAMES)


def test_a_frozen_model_can_be_trained_again(tiny, faces, settings, state, same):
    from holdfast.deepfakes.model import freeze

    fresh, thawed = tiny(), freeze(tiny())
    for model in (fresh, thawed):
        train_deepfake(model, faces, settings | {"iterations": 2}, NAMES)
    assert same(state(fresh), state(thawed))


@pytest.mark.parametrize("name", DEEPFAKES)
def test_training_on_a_gpu_computes_what_it_does_on_the_cpu(
    tiny_of, tagged_faces, name, state, same, tmp_path, gpu, monkeypatch
):
    # Another layout in memory sums up in another order: with one for both, they agree bit for bit.
    monkeypatch.setattr(training, "memory_format", lambda settings, device: torch.channels_last)
    found = []
    for device in ("cpu", "cuda"):
        model = tiny_of(name)()
        settings = model.settings | {"generator_rate": 0.001, "discriminator_rate": 0.002, "iterations": 4}
        path = tmp_path / f"{device}.pt"
        log = train_deepfake(model, tagged_faces, settings, NAMES, state_path=path, device=device)
        assert all(p.device.type == device for net in model.networks.values() for p in net.parameters())
        found.append((log, {key: value.cpu() for key, value in state(model).items()}))
    assert found[0][0] == found[1][0] and same(found[0][1], found[1][1])
