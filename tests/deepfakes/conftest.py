"""Tiny sets of faces, tiny models of every kind, and what several tests look at models with."""

import numpy as np
import pytest
import torch
from torch import nn

from holdfast.data.faceset import write_faceset
from holdfast.deepfakes import DEEPFAKES, training
from holdfast.deepfakes.model import build
from holdfast.modules import registered
from holdfast.seeds import numpy_generator

DEFAULTS = {
    name: {key: setting["default"] for key, setting in settings.items()}
    for name, settings in registered("deepfakes").items()
}
TINY_STARGAN = {
    "attributes": ["Male", "Young"],
    "generator_channels": 4,
    "discriminator_channels": 4,
    "discriminator_layers": 3,
    "iterations": 6,
    "batch": 4,
    "critic_steps": 2,
}
TINY = {
    "stargan": TINY_STARGAN,
    "attentiongan": TINY_STARGAN,
    "attgan": {
        "attributes": ["Male", "Young"],
        "channels": 4,
        "layers": 3,
        "discriminator_channels": 4,
        "discriminator_layers": 2,
        "hidden": 8,
        "iterations": 6,
        "batch": 4,
        "critic_steps": 2,
    },
    "hisd": {
        "channels": 4,
        "translator_channels": 4,
        "discriminator_channels": 4,
        "discriminator_layers": 2,
        "mapper_channels": 5,
        "style": 6,
        "noise": 3,
        "iterations": 6,
        "batch": 4,
    },
}


@pytest.fixture(scope="session")
def tiny_of():
    """tiny_of(name) -> make(size=16, **settings) -> a model with weights that are always the same."""

    def of(name):
        def make(size=16, **settings):
            return build(DEEPFAKES, name, DEFAULTS[name] | TINY[name] | settings, size, ("tiny", name))

        return make

    return of


@pytest.fixture(scope="session")
def tiny(tiny_of):
    """A tiny StarGAN; the tests of another model put that in its place."""
    return tiny_of("stargan")


@pytest.fixture(scope="session")
def tiny_settings():
    return DEFAULTS["stargan"] | TINY["stargan"]


@pytest.fixture(scope="session")
def published():
    """published(name, size, **settings) -> the published model without memory: shapes only."""

    def make(name, size, **settings):
        with torch.device("meta"):
            return build(DEEPFAKES, name, DEFAULTS[name] | settings, size)

    return make


@pytest.fixture(scope="session")
def faces_of(tmp_path_factory):
    """faces_of(train, unseen, size): noise; Male: the left half is bright, Young: it is red."""

    def make(train=24, unseen=16, size=16):
        random = numpy_generator("tiny faces", train, unseen)

        def rows():
            for number in range(train + unseen):
                male, young = random.integers(0, 2, 2)
                pixels = random.integers(40, 120, (size, size, 3), dtype=np.uint8)
                pixels[:, : size // 2] += np.uint8(90 * male)
                pixels[..., 0] += np.uint8(40 * young)
                split = "train" if number < train else "test"
                yield pixels, f"{number}.png", split, None, (male, young)

        folder = tmp_path_factory.mktemp("faces") / "set"
        return write_faceset(folder, size, rows(), ["Male", "Young"], {"dataset": "tiny"})

    return make


@pytest.fixture(scope="session")
def faces(faces_of):
    return faces_of()


@pytest.fixture(scope="session")
def labelled_faces(tmp_path_factory):
    """labelled_faces(rows, size): noise, with HiSD's attributes; rows: (split, names that a face has)."""

    def make(rows, size=16):
        random, attributes = numpy_generator("labelled faces"), DEFAULTS["hisd"]["attributes"]
        written = (
            (
                random.integers(0, 256, (size, size, 3), dtype=np.uint8),
                f"{number}.png",
                split,
                None,
                [name in names for name in attributes],
            )
            for number, (split, names) in enumerate(rows)
        )
        folder = tmp_path_factory.mktemp("labelled") / "set"
        return write_faceset(folder, size, written, attributes, {"dataset": "labelled"})

    return make


@pytest.fixture(scope="session")
def tagged_faces(labelled_faces):
    """24 training and 12 other faces: fringe, glasses, hair, conditions vary independently."""
    hair, rows = ["Black_Hair", "Blond_Hair", "Brown_Hair"], []
    for number in range(36):
        names = [hair[number % 3]]
        names += ["Bangs"] * (number // 3 % 2) + ["Eyeglasses"] * (number // 6 % 2)
        names += ["Male"] * (number // 2 % 2) + ["Young"] * (number % 5 > 1)
        rows.append(("train" if number < 24 else "val", names))
    return labelled_faces(rows)


@pytest.fixture(scope="session")
def state():
    """state(model) -> a copy of everything its networks hold."""

    def of(model):
        return {
            f"{part}.{key}": value.clone()
            for part, network in model.networks.items()
            for key, value in network.state_dict().items()
        }

    return of


@pytest.fixture(scope="session")
def same():
    """same(state, state): equal to the bit."""

    def compare(first, second):
        return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)

    return compare


@pytest.fixture(scope="session")
def randomised():
    """randomised(network): all parameters and running statistics are drawn, so that each one matters."""

    def draw(network, seed=0):
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, value in [*network.named_parameters(), *network.named_buffers()]:
                if key.endswith("running_var"):
                    value.uniform_(0.5, 2, generator=random)
                elif value.is_floating_point():
                    value.normal_(0, 0.3, generator=random)
        return network

    return draw


@pytest.fixture(scope="session")
def count():
    """count(network) -> how many parameters it has."""
    return lambda network: sum(p.numel() for p in network.parameters())


@pytest.fixture(scope="session")
def shapes():
    """shapes(network) -> {key of its state: shape}."""
    return lambda network: {key: tuple(value.shape) for key, value in network.state_dict().items()}


@pytest.fixture(scope="session")
def norm_shapes():
    """norm_shapes(layer, channels): entries of a normalisation with running statistics."""

    def of(layer, channels):
        vectors = ("weight", "bias", "running_mean", "running_var")
        return {f"{layer}.{name}": (channels,) for name in vectors} | {f"{layer}.num_batches_tracked": ()}

    return of


class LinearCritic(nn.Module):
    """A critic whose gradient is its weight, whatever the image: the penalty is (|w| - 1)^2."""

    def __init__(self, norm, size=16):
        super().__init__()
        direction = torch.randn(1, 3 * size * size, generator=torch.Generator().manual_seed(1))
        self.weight = nn.Parameter(norm * direction / direction.norm())

    def forward(self, x):
        score = x.flatten(1) @ self.weight.T
        return score[:, :, None, None], score.expand(-1, 2) * 0


@pytest.fixture(scope="session")
def linear_critic():
    return LinearCritic


class Killed(Exception):
    pass


@pytest.fixture
def interrupted(monkeypatch):
    """interrupted(module, train, stops) -> what train() gives when nothing stops it any more.

    Before that it dies in each of the steps `stops`; `module` is the one that calls run_steps.
    """

    def go_on(module, train, stops):
        run_steps = module.run_steps

        def dying_at(stop):
            def run(total, step_fn, *arguments, **more):
                def step(number):
                    row = step_fn(number)
                    if number == stop:
                        raise Killed
                    return row

                return run_steps(total, step, *arguments, **more, save_seconds=-1.0)

            return run

        for stop in stops:
            monkeypatch.setattr(module, "run_steps", dying_at(stop))
            with pytest.raises(Killed):
                train()
        monkeypatch.setattr(module, "run_steps", run_steps)
        return train()

    return go_on


@pytest.fixture
def train_interrupted(interrupted, tmp_path):
    """train_interrupted(make, faces, settings, names, stops) -> (model, log).

    The training dies in each of the steps `stops`, and then goes on with a model made anew.
    """

    def train_interrupted(make, faces, settings, names, stops):
        def train():
            model = make()
            state = tmp_path / "state.pt"
            return model, training.train_deepfake(model, faces, settings, names, state_path=state)

        return interrupted(training, train, stops)

    return train_interrupted


@pytest.fixture
def adam_steps(monkeypatch):
    """A list that gets a row for every step of Adam: rates by group, and the norm of all gradients."""
    rows, step = [], torch.optim.Adam.step

    def recording(optimiser, *arguments):
        groups = optimiser.param_groups
        gradients = [p.grad for group in groups for p in group["params"] if p.grad is not None]
        rows.append(
            {
                "rates": [group["lr"] for group in groups],
                "norm": sum(gradient.square().sum().item() for gradient in gradients) ** 0.5,
            }
        )
        return step(optimiser, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", recording)
    return rows
