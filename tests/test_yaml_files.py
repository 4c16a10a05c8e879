"""YAML files laid over each other; what is refused of them is in test_config.py."""

import copy

from hypothesis import given
from hypothesis import strategies as st

from holdfast.yaml_files import merge

trees = st.recursive(
    st.integers() | st.none() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
)


@given(st.dictionaries(st.sampled_from("abc"), trees), st.dictionaries(st.sampled_from("abc"), trees))
def test_merge_laws(base, change):
    before = copy.deepcopy((base, change))
    merged = merge(base, change)
    assert (base, change) == before
    assert merge(base, {}) == base and merge({}, change) == change
    assert merge(merged, change) == merged
    assert set(merged) == set(base) | set(change)
