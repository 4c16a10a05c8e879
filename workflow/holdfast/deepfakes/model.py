"""The interface of a deepfake model, in words, and what is common to all of them.

A model is a class with

- ``title``: its name in the tables; ``attributes``: the attributes it knows, in the order of its labels;
- ``networks``: {name: nn.Module}, what a checkpoint holds (``generator``, ``discriminator`` …);
- ``features(x, attributes)``: (N, C, h, w), the encoder that the paper attacks; no decoder is run;
- ``target_names``, ``targets(attributes)``: (T, N, A), the labels of every edit of the tables;
- ``edit(x, target)``: (N, 3, S, S); ``edits(x, attributes)``: (N, T, 3, S, S);
- ``discriminator_loss``, ``generator_loss``: its own training losses (training: deepfakes/training.py).

x is float32 (N, 3, S, S), RGB in [-1, 1]; attributes are float32 (N, A) of 0 and 1.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from holdfast.errors import HoldfastError
from holdfast.seeds import seed_of
from holdfast.tensors import write_tensors


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


def save(model, path):
    """All networks of a model in one safetensors file, keys prefixed with the network's name."""
    tensors = {
        f"{part}.{key}": value
        for part, network in model.networks.items()
        for key, value in network.state_dict().items()
    }
    about = {"model": type(model).__name__, "attributes": ",".join(model.attributes)}
    write_tensors(path, tensors, about)


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
    if about.get("attributes") != ",".join(model.attributes):
        raise HoldfastError(
            f"the checkpoint {Path(path)} knows other attributes",
            found=about.get("attributes", "none"),
            expected=",".join(model.attributes),
            repair=repair,
        )
    found = {key: tuple(value.shape) for key, value in tensors.items()}
    if found != expected:
        differing = sorted(
            key for key in found.keys() | expected.keys() if found.get(key) != expected.get(key)
        )
        key = differing[0]
        raise HoldfastError(
            f"the checkpoint {Path(path)} is of another architecture ({len(differing)} entries differ)",
            found=f"{key}: {found.get(key, 'missing')}",
            expected=f"{key}: {expected.get(key, 'nothing of this name')}",
            repair=repair,
        )
    for part, network in model.networks.items():
        own = {k.removeprefix(part + "."): v for k, v in tensors.items() if k.startswith(part + ".")}
        network.load_state_dict(own, strict=True)
    return model


def freeze(model, device="cpu"):
    """The model as an attacked one: no gradient to its weights, weights on `device`."""
    for network in model.networks.values():
        network.to(device).eval().requires_grad_(False)
    return model
