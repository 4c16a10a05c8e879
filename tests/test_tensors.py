"""Our safetensors files: the same content gives the same bytes, in any process."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from holdfast.tensors import write_tensors

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@given(
    about=st.dictionaries(words, words, max_size=5),
    names=st.lists(words.filter(lambda name: name != "__metadata__"), max_size=4, unique=True),
)
def test_what_is_written_is_read_whatever_the_order(tmp_path_factory, about, names):
    first, second = (tmp_path_factory.getbasetemp() / f"{name}.safetensors" for name in "ab")
    tensors = {name: torch.arange(3.0 + number) for number, name in enumerate(names)}
    write_tensors(first, tensors, about)
    write_tensors(second, dict(reversed(tensors.items())), dict(reversed(about.items())))
    assert first.read_bytes() == second.read_bytes()
    found = load_file(first)
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)
    with safe_open(first, "pt") as file:
        assert (file.metadata() or {}) == about


def test_metadata_are_sorted_however_often_it_is_written(tmp_path):
    path = tmp_path / "a.safetensors"
    about = {letter: letter for letter in "qwertyuiop"}
    for _ in range(5):  # the library alone gives these in another order each time
        write_tensors(path, {"x": torch.zeros(2)}, about)
        content = path.read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        assert list(header["__metadata__"]) == sorted(about)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_layout_and_gradients_do_not_matter(tmp_path, dtype):
    plain = torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4).to(dtype)
    laid = plain.to(memory_format=torch.channels_last)
    laid = laid.requires_grad_(True) if dtype.is_floating_point else laid
    for name, tensor in (("a", plain), ("b", laid)):
        write_tensors(tmp_path / f"{name}.safetensors", {"x": tensor, "empty": torch.zeros(0)}, {})
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert torch.equal(load_file(tmp_path / "b.safetensors")["x"], plain)
