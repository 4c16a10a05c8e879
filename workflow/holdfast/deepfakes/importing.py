"""Public checkpoints of deepfake models, checked and taken over instead of pretraining.

A file is a state dictionary of one network (StarGAN's and AttentionGAN's `…-G.ckpt`, `…-D.ckpt`), or a
dictionary of several under the names of the model's `public_parts` (AttGAN's `G`; HiSD's `gen`, `gen_test`
and `dis`). It is read without running any code in it, and must fit the network key by key.
"""

from pathlib import Path

from holdfast.deepfakes import model as deepfake_model
from holdfast.errors import HoldfastError
from holdfast.files import sha256_of
from holdfast.tensors import check_values, read_checkpoint

WRAPPER = "module."  # what torch.nn.DataParallel puts before every key
REPAIR = "name the model's own public checkpoint in deepfakes.<name>.weights, or write `weights: train`"


def import_weights(model, files):
    """Fill `model` from public checkpoints.

    Args:
        model: a deepfake model with settings of the published architecture (or of the files').
        files: list of {"path", optional "sha256", optional "attributes"}; `attributes` is what the file's
            labels mean (`label_order`: HiSD's tags included), where it is not what the public ones mean.

    Returns:
        Names of the networks that no file has; they are as they were. Only the discriminator may lack.

    Raises:
        HoldfastError: a file is missing, damaged, holds more than finite tensors, has another sha256, other
            attributes or another architecture; there is no generator, or a network twice. The model is then
            as it was.
    """
    found = {}
    for file in files:
        path = Path(file["path"])
        if file.get("sha256"):
            _check_sha256(path, file["sha256"])
        content = read_checkpoint(path, REPAIR)
        _check_labels(model, path, file.get("attributes"))
        for name, part in _parts(model, content, path).items():
            if name in found:
                raise HoldfastError(
                    f"two checkpoints hold the {name} of {model.title}",
                    found=f"{found[name][0]} and {path}",
                    expected="one file for each network",
                    repair="leave one of them out of deepfakes.<name>.weights",
                )
            found[name] = path, part
    # HiSD's reference faces are no network of the public checkpoint.
    networks = {
        name: thing for name, thing in model.networks.items() if next(thing.parameters(), None) is not None
    }
    missing = [name for name in networks if name not in found]
    if set(missing) - {"discriminator"}:
        raise HoldfastError(
            f"the checkpoints of {model.title} lack its {missing[0]}",
            found=", ".join(str(file["path"]) for file in files),
            expected=" and ".join(name for name in networks if name != "discriminator"),
            repair=REPAIR,
        )
    for name, (path, part) in found.items():
        _check_architecture(model, name, part, path)
    for name, (_, part) in found.items():
        networks[name].load_state_dict(part, strict=True)
    return missing


def _check_sha256(path, wanted):
    try:
        actual = sha256_of(path)
    except OSError as error:
        raise HoldfastError(
            f"cannot read the checkpoint {path}", found=str(error), expected="a file", repair=REPAIR
        ) from error
    if actual != wanted.lower():
        raise HoldfastError(
            f"the checkpoint {path} is not the one that the config means",
            found=f"sha256 {actual}",
            expected=f"sha256 {wanted.lower()}",
            repair="fetch it again, or correct deepfakes.<name>.weights.sha256",
        )


def _check_labels(model, path, declared):
    """A public checkpoint does not say what its labels mean: the config does, or they are as published."""
    found, expected = declared or model.public_order, model.label_order
    if list(found) != expected:
        raise HoldfastError(
            f"the checkpoint {path} has other attributes, or another order of them, than {model.title} here",
            found=", ".join(found),
            expected=", ".join(expected),
            repair="write the file's order as deepfakes.<name>.attributes (and tags, where it has any); if "
            "it is not the public checkpoint, say its own as deepfakes.<name>.weights.attributes",
        )


def _parts(model, content, path):
    """{network: state dictionary without wrapper prefix} of what a file holds."""
    if not any(isinstance(value, dict) for value in content.values()):
        part = _unwrapped(content)
        shared = {
            name: len(part.keys() & network.state_dict().keys()) for name, network in model.networks.items()
        }
        return {max(shared, key=shared.get): part}
    parts = {
        name: _unwrapped(content[public])
        for name, public in model.public_parts.items()
        if isinstance(content.get(public), dict)
    }
    if not parts:
        raise HoldfastError(
            f"the checkpoint {path} has no part that {model.title} knows",
            found=", ".join(map(str, content)),
            expected=", ".join(model.public_parts.values()) or "the state dictionary of one network",
            repair=REPAIR,
        )
    return parts


def _unwrapped(part):
    part = {str(key): value for key, value in part.items()}
    if all(key.startswith(WRAPPER) for key in part):
        part = {key.removeprefix(WRAPPER): value for key, value in part.items()}
    return part


def _check_architecture(model, name, part, path):
    wanted = model.networks[name].state_dict()
    for key, value in wanted.items():
        # Files of before PyTorch 0.4.1 do not count the batches of a normalisation; nothing reads it.
        if key.endswith(".num_batches_tracked"):
            part.setdefault(key, value)
    deepfake_model.check_shapes(
        {key: tuple(getattr(value, "shape", ())) for key, value in part.items()},
        {key: tuple(value.shape) for key, value in wanted.items()},
        f"{path} ({name} of {model.title})",
        REPAIR,
    )
    check_values(part, wanted, f"{path} ({name} of {model.title})", REPAIR)
