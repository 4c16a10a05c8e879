"""The interface of a deepfake model, in words, and what is common to all of them.

A model is a class with

- ``title``: its name in the tables; ``paper``, ``licence``: where it comes from, and the terms of its
  public weights; ``attributes``: the attributes it knows, in the order of its labels;
- ``networks``: {name: nn.Module}, what a checkpoint holds (``generator``, ``discriminator`` …);
  ``public_parts``, ``public_order``: under which names the public checkpoints have them, and the order
  of their labels (deepfakes/importing.py);
- ``features(x, attributes)``: (N, C, h, w), the encoder that the paper attacks; no decoder is run;
- ``target_names``, ``targets(attributes)``: (T, N, A), the labels of every edit of the tables, each named
  by the attribute it changes; NaN: the edit leaves this attribute alone;
- ``edit(x, target)``: (N, 3, S, S); ``edits(x, attributes)``: (N, T, 3, S, S);
- ``discriminator_loss``, ``generator_loss``: its own losses; or a ``training_step`` of its own, where it does
  not train by critic steps (training: deepfakes/training.py).

x is float32 (N, 3, S, S), RGB in [-1, 1]; attributes are float32 (N, A) of 0 and 1.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from holdfast.errors import HoldfastError
from holdfast.seeds import seed_of
from holdfast.tensors import write_tensors
from holdfast.training.loop import linear_decay


class DeepfakeModel:
    """What most models have in common; one overrides what its paper does otherwise."""

    clip_norm = None  # largest norm of a network's gradient in training

    @property
    def label_order(self):
        """What the labels mean, in order: a checkpoint of another order is another model."""
        return list(self.attributes)

    def edits(self, x, attributes):
        """(N, T, 3, S, S): every edit of ``target_names``, side by side."""
        return torch.stack([self.edit(x, target) for target in self.targets(attributes)], dim=1)

    def optimisers(self, settings):
        """{network: optimiser}: Adam(0.5, 0.999), with the rates of the settings."""
        return {
            name: torch.optim.Adam(
                self.networks[name].parameters(), settings[f"{name}_rate"], (0.5, 0.999), fused=True
            )
            for name in ("generator", "discriminator")
        }

    def rate_factor(self, step, iterations):
        """What the learning rates of step `step` are multiplied by: StarGAN's linear decay."""
        return linear_decay(step, iterations)

    def training_step(self, batches, step, random, settings):
        """A critic step, and a generator step every `critic_steps`-th time, as StarGAN and AttGAN do.

        Targets are the batch's own labels in another order.
        """
        x, attributes = batches.at(step)
        target = attributes[torch.randperm(len(x), generator=random)]
        mix = torch.rand(len(x), 1, 1, 1, generator=random).to(x.device)
        self.discriminator.requires_grad_(True)
        yield "discriminator", *self.discriminator_loss(x, attributes, target, mix)
        if (step + 1) % settings["critic_steps"] == 0:
            # The generator's loss flows through the discriminator; its own gradients are not needed.
            self.discriminator.requires_grad_(False)
            yield "generator", *self.generator_loss(x, attributes, target)

    def labels_in(self, network, shapes):
        """What labels `network` would be for if its state had these {key: shape}, in words ("5 attributes").

        None: the model cannot tell. A KeyError, IndexError or ValueError: they are another model's.
        """

    def obstacle(self, labels):
        """What keeps the model from learning of faces with these labels (n, A), in words; None: nothing."""

    def prepare(self, faces):
        """Take from the training set what the model needs of it beyond training; most need nothing."""


def build(registry, name, settings, image_size, seed_names=None):
    """A model of the registry; `seed_names` seed its initial weights.

    Raises:
        HoldfastError: nobody registered `name`.
    """
    if name not in registry:
        raise HoldfastError(
            f"there is no deepfake model '{name}'",
            expected=", ".join(registry),
            repair="mend `deepfakes` in the config",
        )
    with torch.random.fork_rng(devices=[]):
        if seed_names is not None:
            torch.manual_seed(seed_of(*seed_names, "weights"))
        return registry[name](settings, image_size)


# How weights came about, as the metadata of their file say it: {key of save's: how the text is read}.
HISTORY = {"fresh": lambda text: text.split(","), "imported": json.loads, "remark": str}


def save(model, path, *, fresh=(), imported=(), remark=None):
    """All networks of a model in one safetensors file, keys prefixed with the network's name.

    Args:
        fresh: networks that no checkpoint brought: initialised here, and trained in retraining only.
        imported: [{"file", "sha256"}], the public checkpoints that the others come from.
        remark: how these weights came about, for whoever reads a number that they give.
    """
    tensors = {
        f"{part}.{key}": value
        for part, network in model.networks.items()
        for key, value in network.state_dict().items()
    }
    about = {"model": type(model).__name__, "attributes": ",".join(model.label_order)}
    history = {"fresh": ",".join(fresh), "imported": imported and json.dumps(imported), "remark": remark}
    write_tensors(path, tensors, about | {key: text for key, text in history.items() if text})


def history_of(path):
    """{fresh, imported, remark} as :func:`save` was given them, without what there is none of.

    It goes with the weights: into those that are retrained from them, and into the extra of every record
    that they give.
    """
    with safe_open(path, "pt") as file:
        about = file.metadata() or {}
    return {key: read(about[key]) for key, read in HISTORY.items() if key in about}


def load(model, path):
    """Load a file of :func:`save` strictly.

    Raises:
        HoldfastError: missing or damaged file, other attributes, or another architecture.
    """
    expected = {
        f"{part}.{key}": tuple(value.shape)
        for part, network in model.networks.items()
        for key, value in network.state_dict().items()
    }
    repair = "use the checkpoint of a model with the same settings, or remove it and train again"
    try:
        with safe_open(path, "pt") as file:
            about = file.metadata() or {}
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise HoldfastError(
            f"cannot read the checkpoint {Path(path)}",
            found=str(error),
            expected="a safetensors file",
            repair=repair,
        ) from error
    if about.get("attributes") != ",".join(model.label_order):
        raise HoldfastError(
            f"the checkpoint {Path(path)} knows other attributes",
            found=about.get("attributes", "none"),
            expected=",".join(model.label_order),
            repair=repair,
        )
    check_shapes({key: tuple(value.shape) for key, value in tensors.items()}, expected, Path(path), repair)
    for part, network in model.networks.items():
        own = {k.removeprefix(part + "."): v for k, v in tensors.items() if k.startswith(part + ".")}
        network.load_state_dict(own, strict=True)
    return model


def check_shapes(found, expected, file, repair):
    """Compare {key: shape} of a checkpoint with those of a network.

    Raises:
        HoldfastError: they differ; names the first key that does.
    """
    if found != expected:
        differing = sorted(
            key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)
        )
        key = differing[0]
        raise HoldfastError(
            f"the checkpoint {file} is of another architecture ({len(differing)} entries differ)",
            found=f"{key}: {found.get(key, 'missing')}",
            expected=f"{key}: {expected.get(key, 'nothing of this name')}",
            repair=repair,
        )


def freeze(model, device="cpu"):
    """The model as an attacked one: no gradient to its weights, weights on `device`."""
    for network in model.networks.values():
        network.to(device).eval().requires_grad_(False)
    return model
