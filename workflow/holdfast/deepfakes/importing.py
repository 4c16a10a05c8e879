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


def import_weights(name, model, files):
    """Fill `model` from public checkpoints.

    Args:
        name: what the config calls the model: messages name its settings.
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
    where = f"deepfakes.{name}"
    found = {}
    for file in files:
        path = Path(file["path"])
        if file.get("sha256"):
            _check_sha256(where, path, file["sha256"])
        parts = _parts(where, model, read_checkpoint(path, _repair(where)), path)
        for network, part in parts.items():
            if network in found:
                raise HoldfastError(
                    f"two checkpoints hold the {network} of {model.title}",
                    found=f"{found[network][0]} and {path}",
                    expected="one file for each network",
                    repair=f"leave one of them out of {where}.weights",
                )
            _check_count(where, model, network, part, path)
            found[network] = path, part
        _check_order(where, model, path, file.get("attributes"))
    networks = _networks(model)
    missing = [network for network in networks if network not in found]
    if set(missing) - {"discriminator"}:
        raise HoldfastError(
            f"the checkpoints of {model.title} lack its {missing[0]}",
            found=", ".join(str(file["path"]) for file in files),
            expected=" and ".join(network for network in networks if network != "discriminator"),
            repair=_repair(where),
        )
    for network, (path, part) in found.items():
        _check_architecture(where, model, network, part, path)
    for network, (_, part) in found.items():
        networks[network].load_state_dict(part, strict=True)
    return missing


def _networks(model):
    """Those with weights: HiSD's reference faces are no network of the public checkpoint."""
    return {
        network: thing
        for network, thing in model.networks.items()
        if next(thing.parameters(), None) is not None
    }


def _repair(where):
    return f"name the model's own public checkpoint in {where}.weights, or write `weights: train`"


def _check_sha256(where, path, wanted):
    try:
        actual = sha256_of(path)
    except OSError as error:
        raise HoldfastError(
            f"cannot read the checkpoint {path}", found=str(error), expected="a file", repair=_repair(where)
        ) from error
    if actual != wanted.lower():
        raise HoldfastError(
            f"the checkpoint {path} is not the one that the config means",
            found=f"sha256 {actual}",
            expected=f"sha256 {wanted.lower()}",
            repair=f"fetch it again, or correct {where}.weights.sha256",
        )


def _check_count(where, model, network, part, path):
    """Tell another number of attributes from another architecture, where the model can."""
    try:
        found = model.labels_in(network, _shapes(part))
    except (KeyError, IndexError, ValueError):
        return  # of another model: _check_architecture says so
    expected = model.labels_in(network, _shapes(model.networks[network].state_dict()))
    if found is not None and found != expected:
        raise HoldfastError(
            f"the checkpoint {path} ({network} of {model.title}) is for other attributes than {where} lists",
            found=f"the file is for {found}",
            expected=f"the config lists {expected}",
            repair=f"write the file's, in its order, as {where}.attributes (and tags, where it has any)",
        )


def _check_order(where, model, path, declared):
    """A public checkpoint does not say what its labels mean: the config does, or they are as published."""
    found, expected = declared or model.public_order, model.label_order
    if list(found) != expected:
        raise HoldfastError(
            f"the checkpoint {path} has other attributes, or another order of them, than {model.title} here",
            found=", ".join(found),
            expected=", ".join(expected),
            repair=f"write the file's order as {where}.attributes (and tags, where it has any); if it is not "
            f"the public checkpoint, say its own as {where}.weights.attributes",
        )


def _parts(where, model, content, path):
    """{network: state dictionary without wrapper prefix} of what a file holds."""
    if not any(isinstance(value, dict) for value in content.values()):
        part = _unwrapped(content)
        shared = {
            network: len(part.keys() & thing.state_dict().keys())
            for network, thing in _networks(model).items()
        }
        return {max(shared, key=shared.get): part}
    parts = {
        network: _unwrapped(content[public])
        for network, public in model.public_parts.items()
        if isinstance(content.get(public), dict)
    }
    if not parts:
        raise HoldfastError(
            f"the checkpoint {path} has no part that {model.title} knows",
            found=", ".join(content),
            expected=", ".join(model.public_parts.values()) or "the state dictionary of one network",
            repair=_repair(where),
        )
    return parts


def _unwrapped(part):
    part = {str(key): value for key, value in part.items()}
    if all(key.startswith(WRAPPER) for key in part):
        part = {key.removeprefix(WRAPPER): value for key, value in part.items()}
    return part


def _shapes(part):
    return {key: tuple(getattr(value, "shape", ())) for key, value in part.items()}


def _check_architecture(where, model, network, part, path):
    wanted = model.networks[network].state_dict()
    for key, value in wanted.items():
        # Files of before PyTorch 0.4.1 do not count the batches of a normalisation; nothing reads it.
        if key.endswith(".num_batches_tracked"):
            part.setdefault(key, value)
    file = f"{path} ({network} of {model.title})"
    repair = _repair(where)
    if part.keys() == wanted.keys():
        repair = f"give {where} the file's widths and layers, and image_size its own; or {repair}"
    deepfake_model.check_shapes(_shapes(part), _shapes(wanted), file, repair)
    check_values(part, wanted, file, _repair(where))
