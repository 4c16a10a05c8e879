"""Files of tensors: ours, whose bytes depend on their content only, and those of others, read with care."""

import json
import pickle
import re

import torch
from safetensors.torch import load_file, save

from holdfast.errors import HoldfastError
from holdfast.files import writing


def write_tensors(path, tensors, about):
    """Write {name: tensor} and {key: text} as safetensors.

    The safetensors library writes the metadata in an order that changes from one process to the next;
    then a run done again would not give files with the same sha256. Here they are sorted.

    Raises:
        HoldfastError: no space, or no permission.
    """
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # Not an empty dictionary: with no tensor either, the library (0.8.0) writes a broken header.
    content = save(whole, about or None)
    with writing(path) as temporary:
        temporary.write_bytes(_with_sorted_metadata(content) if about else content)


def _with_sorted_metadata(content):
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    # The tensors begin behind the header, which may end in spaces but not grow.
    if len(text) > length:
        raise ValueError(f"the safetensors header grew from {length} to {len(text)} bytes")
    return content[:8] + text.ljust(length) + content[8 + length :]


def read_checkpoint(path, repair):
    """{name: tensor, or dictionary of them} of a public checkpoint: safetensors, or PyTorch's own format.

    No code of the file is run.

    Args:
        path: a Path.
        repair: that of the error's message.

    Raises:
        HoldfastError: it is missing, damaged, holds more than tensors, or is no state dictionary.
    """
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything, AssertionError and TypeError included
        found = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        if "TorchScript" in found:
            found = "a TorchScript archive, which is a program"
        elif isinstance(error, pickle.UnpicklingError):
            # The message of PyTorch advises to load the file all the same.
            foreign = re.search(r"GLOBAL (\S+)", str(error))
            found = "no tensors that can be read"
            if foreign:
                found = f"the pickled object {foreign[1]}, which is more than tensors"
        raise HoldfastError(
            f"cannot read the checkpoint {path}",
            found=found,
            expected="a whole file of tensors by name; nothing else is loaded, and no code of it was run",
            repair=f"fetch it again; {repair}",
        ) from error
    if not isinstance(content, dict) or not content:
        raise HoldfastError(
            f"the checkpoint {path} is no state dictionary",
            found=type(content).__name__,
            expected="tensors by name, or dictionaries of them",
            repair=repair,
        )
    return {str(name): value for name, value in content.items()}


def check_values(given, own, file, repair):
    """Refuse values that a network with the state `own` cannot take over; names and shapes are equal.

    Raises:
        HoldfastError: one is no tensor, is of another kind of numbers, or has NaN or infinity; names the
            first that is wrong.
    """
    for name, tensor in own.items():
        found, expected = _kind(given[name]), _kind(tensor)
        # As the network will have it: a number may be too large for its precision.
        if found == expected and not given[name].to(tensor.dtype).isfinite().all():
            found, expected = "NaN or infinity", "finite numbers"
        if found != expected:
            raise HoldfastError(
                f"the checkpoint {file} has weights that cannot be used",
                found=f"{name}: {found}",
                expected=f"{name}: {expected}",
                repair=repair,
            )


def _kind(value):
    if not isinstance(value, torch.Tensor):
        return f"{type(value).__name__}, which is no tensor"
    if value.layout != torch.strided or value.is_meta or value.is_quantized:
        return "a tensor whose numbers are not stored one by one"
    if value.is_complex():
        return "complex numbers"
    return "floating-point numbers" if value.is_floating_point() else "integers"
