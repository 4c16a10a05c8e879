"""Tensors in safetensors files whose bytes depend on their content only."""

import json

from safetensors.torch import save_file

from holdfast.files import writing


def write_tensors(path, tensors, about):
    """Write {name: tensor} and {key: text} as safetensors.

    The safetensors library writes the metadata in an order that changes from one process to the next;
    then a run done again would not give files with the same sha256. Here they are sorted.

    Raises:
        HoldfastError: no space, or no permission.
    """
    with writing(path) as temporary:
        whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        # Not an empty dictionary: with no tensor either, the library (0.8.0) writes a broken header.
        save_file(whole, temporary, about or None)
        if about:
            _sort_metadata(temporary)


def _sort_metadata(path):
    with open(path, "rb+") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        # The tensors begin behind the header, which may end in spaces but not grow.
        if len(text) > length:
            raise ValueError(f"the safetensors header of {path} grew from {length} to {len(text)} bytes")
        file.seek(8)
        file.write(text.ljust(length))
