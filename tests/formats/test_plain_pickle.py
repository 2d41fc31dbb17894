"""What the standard library pickles as plain data is read back; everything else is refused."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.errors import Malformed
from steelyard.formats.base import BytesSource
from steelyard.formats.plain_pickle import read_plain

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 31), (1 << 31) - 1) | TEXT,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXT, inner, max_size=5),
    max_leaves=20,
)
PROTOCOLS = pytest.mark.parametrize("protocol", [2, 3, 4, 5])


@PROTOCOLS
@given(value=PLAIN, behind=st.binary(max_size=9))
def test_plain_data_round_trips(protocol, value, behind):
    data = pickle.dumps(value, protocol)
    assert read_plain(BytesSource(b"ab" + data + behind), 2, 1 << 20) == (value, 2 + len(data))


@PROTOCOLS
@given(value=PLAIN, data=st.data())
def test_every_truncation_is_refused(protocol, value, data):
    whole = pickle.dumps(value, protocol)
    with pytest.raises(Malformed):
        read_plain(BytesSource(whole[: data.draw(st.integers(0, len(whole) - 1))]), 0, 1 << 20)


@pytest.mark.parametrize("value", [1.5, (1,), {1: 2}, {1, 2}, b"x", 1 << 40, range(3), complex])
def test_anything_else_is_refused(value):
    with pytest.raises(Malformed):
        read_plain(BytesSource(pickle.dumps(value, 2)), 0, 1 << 20)


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(data):
    try:
        read_plain(BytesSource(b"\x80\x02" + data), 0, 1 << 20)
    except Malformed as bad:
        assert bad.rule.startswith("pickle/")  # noqa: PT017


def test_the_limit_of_bytes_and_one_past_it():
    data = pickle.dumps(["a" * 50], 2)
    assert read_plain(BytesSource(data), 0, len(data)) == (["a" * 50], len(data))
    with pytest.raises(Malformed):
        read_plain(BytesSource(data), 0, len(data) - 1)
