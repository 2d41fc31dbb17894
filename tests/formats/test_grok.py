"""Grok-1's shards: held against CPython's pickler and files of numpy and ml_dtypes, byte by byte."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.admit.rules import registry
from steelyard.errors import Malformed
from steelyard.formats.base import BytesSource, Severity
from steelyard.formats.grok import FORMAT, RULES, is_finite_bf16, shard_of
from steelyard.formats.grok_pickle import CORES, Sentence, framing_of


def _miniature():
    path = Path(__file__).parents[1] / "admit" / "grok_miniature.py"
    spec = importlib.util.spec_from_file_location("grok_miniature", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


mini = _miniature()
DATA = Path(__file__).parents[1] / "data" / "grok"


def example(shape=(2, 8, 6), groups=2):
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, size=shape, dtype=np.int8)
    return mini.pair(weight, rng.normal(size=(*shape[:-2], groups, shape[-1])))


def payload(data, array):
    return data[array.offset : array.offset + array.size]


@given(
    st.lists(st.integers(1, 4), max_size=1),
    st.integers(1, 5),
    st.integers(1, 400),
    st.integers(1, 300),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_every_pair_the_pickler_writes_is_read_back(batch, groups, share, columns, seed):
    rng = np.random.default_rng(seed)
    weight = rng.integers(-128, 128, size=(*batch, groups * share, columns), dtype=np.int8)
    scales = mini.from_bf16(mini.to_bf16(rng.normal(size=(*batch, groups, columns))))
    if weight.size == 1 or scales.size == 0:
        return  # CPython writes the one byte b"b" by reference; no shard is that small
    data = mini.pair(weight, scales)
    shard = shard_of(BytesSource(data))
    assert np.array_equal(
        np.frombuffer(payload(data, shard.weight), "i1").reshape(shard.weight.shape), weight
    )
    bits = np.frombuffer(payload(data, shard.scales), "<u2").reshape(shard.scales.shape)
    assert np.array_equal(mini.from_bf16(bits), scales)


@pytest.mark.parametrize("columns", [255, 256, 16_300, 16_384, 16_400, 65_000, 65_535, 65_536, 70_000])
def test_frames_break_where_the_pickler_breaks_them(columns):
    for data in (
        mini.dumped(np.ones(columns, "f4")),
        mini.pair(np.ones((1, columns), "i1"), np.ones((1, columns))),
    ):
        shard = shard_of(BytesSource(data))
        sizes = sum(len(stretch.framing) for stretch in framing_of(shard.sentence))
        assert sizes + sum(array.size for array in shard.arrays) == len(data)


@pytest.mark.parametrize("name", ["numpy1", "numpy2"])
def test_files_of_the_real_libraries_are_read(name):
    """What tests/data/grok/make.py put into them, drawn again."""
    rng = np.random.default_rng(0)
    data = (DATA / f"{name}_pair").read_bytes()
    shard = shard_of(BytesSource(data))
    weight = rng.integers(-127, 128, size=(2, 16, 24), dtype=np.int8)
    scales = mini.to_bf16(rng.normal(size=(2, 4, 24)))
    assert np.array_equal(np.frombuffer(payload(data, shard.weight), "i1").reshape(2, 16, 24), weight)
    assert np.array_equal(np.frombuffer(payload(data, shard.scales), "<u2").reshape(2, 4, 24), scales)
    data = (DATA / f"{name}_array").read_bytes()
    shard = shard_of(BytesSource(data))
    assert (shard.weight.dtype, shard.weight.shape, shard.scales) == ("F32", (300,), None)
    assert payload(data, shard.weight) == np.arange(300, dtype="<f4").tobytes()


@pytest.mark.parametrize(
    ("weight", "scales", "published_bytes"),
    [
        ((8, 6144, 32768), (8, 1, 32768), 1_611_137_347),
        ((8, 32768, 6144), (8, 8, 6144), 1_611_399_491),
    ],
)
def test_the_framing_gives_the_published_file_sizes(weight, scales, published_bytes):
    stretches = framing_of(Sentence(CORES[0], True, (weight, scales), 0x50))
    assert sum(len(s.framing) + (s.payload_bytes or 0) for s in stretches) == published_bytes


def flipped(data, at, change):
    return data[:at] + bytes([data[at] ^ change]) + data[at + 1 :]


def rule_of(data):
    """The rule a shard breaks, None if it is read."""
    try:
        shard_of(BytesSource(data))
    except Malformed as error:
        return error.rule
    return None


def test_each_changed_framing_byte_is_refused():
    data = example()
    shard = shard_of(BytesSource(data))
    framing = set(range(len(data)))
    for array in shard.arrays:
        framing -= set(range(array.offset, array.offset + array.size))
    changes = [(at, change) for at in sorted(framing) for change in (0x01, 0x10, 0x80, 0xFF)]
    rules = {place: rule_of(flipped(data, *place)) for place in changes}
    survivors = [place for place, rule in rules.items() if rule is None]
    assert {rule for rule in rules.values() if rule} <= RULES.keys()
    # One bit of the type's flags differs between releases of ml_dtypes, and means nothing to the bytes.
    assert len(survivors) == 1
    assert data[survivors[0][0]] == 0x40
    assert survivors[0][1] == 0x10


@given(st.binary(max_size=300), st.integers(0, 120), st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_bytes_give_a_shard_or_a_rule(noise, kept, at_the_end):
    data = example()
    tried = (
        data[: len(data) - kept] + noise if at_the_end else data[:kept] + noise + data[kept + len(noise) :]
    )
    rule = rule_of(tried)
    assert rule in RULES or (rule is None and len(tried) == len(data))


def test_each_truncation_is_refused():
    data = example()
    for size in range(len(data)):
        with pytest.raises(Malformed) as caught:
            shard_of(BytesSource(data[:size]))
        assert caught.value.rule in {"grok/truncated", "grok/grammar"}


def test_exactly_one_format_claims_a_shard():
    formats = registry(())
    pair = formats.read(BytesSource(example()), "ckpt-0/tensor00002_000")
    assert (pair.format, pair.findings) == ("grok", ())
    assert pair.facts["parameters"] == 96
    array = formats.read(BytesSource(mini.dumped(np.ones((4, 4), "f4"))), "ckpt-0/tensor00000_000")
    assert array.format == "pickle"
    assert not any(array.findings)


def test_every_rule_rejects():
    assert {rule.severity for rule in FORMAT.rules.values()} == {Severity.REJECT}


@given(st.lists(st.integers(0, 0xFFFF), max_size=40))
def test_finite_means_what_numpy_means(bits):
    values = np.array(bits, dtype="<u2")
    assert is_finite_bf16(values.tobytes()) == bool(np.isfinite(mini.from_bf16(values)).all())
