"""Digest and canonical bytes."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.digest import OMS_SHA256, SHA256, Digest, canonical_json, sha256

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.sampled_from([SHA256, OMS_SHA256]), st.binary())
def test_parse_undoes_str(name, data):
    digest = Digest(name, hashlib.sha256(data).hexdigest())
    assert Digest.parse(str(digest)) == digest


@given(st.binary(), st.binary())
def test_equal_bytes_exactly_when_equal_digests(one, other):
    assert (sha256(one) == sha256(other)) == (one == other)


def test_sha256_of_abc_is_the_vector_of_fips_180_4():
    assert str(sha256(b"abc")) == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256",
        "sha256:",
        "md5:" + "0" * 64,
        "sha256:" + "A" * 64,
        "sha256:" + "0" * 63,
        "sha256:" + "0" * 64 + "\n",
    ],
)
def test_anything_else_is_no_digest(text):
    with pytest.raises(ValueError, match="digest"):
        Digest.parse(text)


@given(JSON_VALUES)
def test_canonical_json_does_not_depend_on_key_order(value):
    def reverse(node):
        if isinstance(node, dict):
            return {key: reverse(node[key]) for key in reversed(list(node))}
        return [reverse(item) for item in node] if isinstance(node, list) else node

    # Lone surrogates have no UTF-8: they must be an error, never two spellings of one value.
    try:
        first = canonical_json(value)
    except UnicodeEncodeError:
        return
    assert canonical_json(reverse(value)) == first


def test_canonical_json_refuses_nan():
    with pytest.raises(ValueError, match="JSON"):
        canonical_json({"x": float("nan")})
