"""Files of tensors: ours have the same bytes for the same content; others' are read with care."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from holdfast.errors import HoldfastError
from holdfast.tensors import check_values, read_checkpoint, write_tensors

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


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_damaged_bit_never_escapes_as_an_exception_of_pytorch(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.arange(4.0)}, path, _use_new_zipfile_serialization=False)
    whole, causes = path.read_bytes(), set()
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            read_checkpoint(path, "ask its author")
        except HoldfastError as error:
            causes.add(type(error.__cause__).__name__)
            assert str(path) in error.what and error.repair.endswith("ask its author")
    assert {"UnpicklingError", "RuntimeError", "AssertionError", "TypeError"} <= causes


@pytest.mark.parametrize(
    ("value", "found"),
    [
        (3, "int, which is no tensor"),
        (torch.ones(2, dtype=torch.int32), "integers"),
        (torch.ones(2, dtype=torch.complex64), "complex"),
        (torch.ones(2).to_sparse(), "not stored one by one"),
        (torch.ones(2, device="meta"), "not stored one by one"),
        (torch.tensor([1.0, torch.nan]), "NaN"),
        (torch.tensor([-torch.inf, 1.0]), "infinity"),
        (torch.tensor([1.0, 1e300], dtype=torch.float64), "infinity"),
    ],
)
def test_values_that_a_network_cannot_take_over(value, found):
    own = {"fine": torch.zeros(2), "wrong": torch.zeros(2)}
    with pytest.raises(HoldfastError) as caught:
        check_values({"fine": torch.zeros(2), "wrong": value}, own, "a.pth", "repair")
    assert caught.value.found.startswith("wrong: ") and found in caught.value.found
    check_values({"fine": torch.zeros(2).half(), "wrong": torch.zeros(2).double()}, own, "a.pth", "repair")


def test_a_count_has_to_be_whole():
    own = {"num_batches_tracked": torch.tensor(0)}
    check_values({"num_batches_tracked": torch.tensor(7, dtype=torch.int32)}, own, "a.pth", "repair")
    with pytest.raises(HoldfastError, match="(?s)floating-point numbers.*expected: .*integers"):
        check_values({"num_batches_tracked": torch.tensor(7.0)}, own, "a.pth", "repair")


def test_a_full_disk_is_told(tmp_path, full_disk):
    with pytest.raises(HoldfastError, match="no space left"):
        write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(100, 100)}, {"b": "c"})
    assert not list(tmp_path.iterdir())


def test_a_torchscript_archive_is_no_checkpoint(tmp_path):
    path = tmp_path / "a.pt"
    torch.jit.save(torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)), path)
    with pytest.raises(HoldfastError, match="a TorchScript archive, which is a program") as caught:
        read_checkpoint(path, "take another")
    assert "weights_only" not in str(caught.value)
