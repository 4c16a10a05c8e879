"""Seeds by name: the same on every machine, in every order, and apart from the global generators."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from holdfast.seeds import generator, numpy_generator, seed_of

words = st.text(st.characters(exclude_characters="\x1f", exclude_categories=["Cs"]), max_size=5)
names = st.lists(words | st.integers(), max_size=4)


def test_seeds_are_those_of_other_machines():
    # sha256("tsdf", unit separator, "0"): first 8 bytes, big end first, without the last bit.
    assert seed_of("tsdf", 0) == 0x1F177008972B2DC9
    assert seed_of("celeba") == 0x6A12CD5A25E36DE4


@given(names)
def test_a_seed_has_63_bits(given_names):
    assert 0 <= seed_of(*given_names) < 2**63


@given(names, names)
def test_other_names_give_another_seed(first, second):
    same = [str(name) for name in first] == [str(name) for name in second]
    # No name at all and one empty name are the only two lists with one text.
    if {len(first), len(second)} != {0, 1}:
        assert (seed_of(*first) == seed_of(*second)) == same


def test_neighbouring_names_do_not_run_together():
    assert len({seed_of("ab", "c"), seed_of("a", "bc"), seed_of("abc"), seed_of("c", "ab")}) == 4


def test_generators_do_not_depend_on_the_order_of_work_or_on_global_state():
    torch.manual_seed(1)
    np.random.seed(1)
    first, second = torch.rand(4, generator=generator("a", 0)), torch.rand(4, generator=generator("a", 1))
    kept = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(torch.rand(4, generator=generator("a", 1)), second)
    assert torch.equal(torch.rand(4, generator=generator("a", 0)), first)
    assert not torch.equal(first, second)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), kept)
    assert generator("a").device.type == "cpu"


def test_numpy_generators_are_seeded_by_the_same_names():
    first = numpy_generator("a", 0).integers(0, 2**62, 4)
    assert (numpy_generator("a", 0).integers(0, 2**62, 4) == first).all()
    assert (first == np.random.default_rng(seed_of("a", 0)).integers(0, 2**62, 4)).all()
    assert (numpy_generator("a", 1).integers(0, 2**62, 4) != first).any()
