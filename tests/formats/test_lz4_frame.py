"""LZ4 frames: what the LZ4 library writes is unpacked, and no change of a byte passes for it."""

import io
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.errors import Malformed
from steelyard.formats.base import BytesSource
from steelyard.formats.compressed import FORMAT as COMPRESSED
from steelyard.formats.lz4_frame import MAGIC, MAX_CONTENT_BYTES, unpack, xxhash32
from steelyard.formats.pickled import FORMAT as PICKLE
from steelyard.formats.registry import Registry

FIXTURE = Path(__file__).parents[1] / "data/pickles/sklearn-1.8.0-KernelCenterer.lz4.joblib"
REGISTRY = Registry((COMPRESSED, PICKLE))


def frame(*blocks: bytes, flags: int = 0x60, tail: bytes = b"") -> bytes:
    fields = bytes([flags, 0x70])
    head = MAGIC + fields + bytes([xxhash32(fields) >> 8 & 0xFF])
    return head + b"".join(struct.pack("<I", len(block)) + block for block in blocks) + bytes(4) + tail


def stored(data: bytes, flags: int = 0x64) -> bytes:
    """A frame of one block that is not compressed, with the checksum of its content."""
    whole = frame(flags=flags)
    block = struct.pack("<I", len(data) | 1 << 31) + data if data else b""
    return whole[:7] + block + bytes(4) + struct.pack("<I", xxhash32(data))


def unpacked(data: bytes) -> bytes:
    stream, parts = io.BytesIO(data), []

    def take(size: int) -> bytes:
        part = stream.read(size)
        if len(part) < size:
            raise EOFError
        return part

    unpack(take, parts.append)
    return b"".join(parts)


@pytest.mark.parametrize(  # known answers of the reference implementation
    ("data", "value"),
    [
        (b"", 0x02CC5D05),
        (b"a", 0x550D7456),
        (b"abc", 0x32D153FF),
        (b"Nobody inspects the spammish repetition", 0xE2293B2F),
    ],
)
def test_xxhash32_agrees_with_the_reference(data, value):
    assert xxhash32(data) == value


def test_a_joblib_file_that_the_lz4_library_wrote_is_read_to_its_pickle():
    report = REGISTRY.read(BytesSource(FIXTURE.read_bytes()), FIXTURE.name)
    assert report.findings == ()
    assert report.facts["members"] == {"joblib": 1}


def test_matches_overlap_and_reach_into_earlier_output():
    # 3 literals "abc", a match of 9 at distance 3; then the last literals "x".
    assert unpacked(frame(b"\x35abc\x03\x00\x10x")) == b"abcabcabcabcx"


@given(st.binary(max_size=400))
def test_stored_blocks_come_back(data):
    assert unpacked(stored(data)) == data


@given(st.data())
def test_no_changed_byte_is_silently_the_same_pickle(data):
    whole = bytearray(FIXTURE.read_bytes())
    place = data.draw(st.integers(0, 6))
    whole[place] ^= data.draw(st.integers(1, 255))
    assert REGISTRY.read(BytesSource(bytes(whole)), "x.lz4").findings


@pytest.mark.parametrize("cut", [1, 6, 7, 10, 40, -1, -4])
def test_a_cut_frame_is_refused(cut):
    assert REGISTRY.read(BytesSource(FIXTURE.read_bytes()[:cut]), "x.lz4").findings


@pytest.mark.parametrize(
    ("block", "rule"),
    [
        (b"\x15a\x00\x00\x10x", "compressed/stream"),  # distance 0
        (b"\x15a\x02\x00\x10x", "compressed/stream"),  # before the first byte
        (b"\xf0" + b"\xff" * 9, "compressed/stream"),  # a length without an end
        (b"\x50ab", "compressed/stream"),  # literals past the end
        (b"\x15a\x01\x00", "compressed/stream"),  # no last literals
        (
            b"\x1fa\x01\x00" + b"\xff" * 20_000 + b"\x00\x10x",
            "compressed/stream",
        ),  # more than the block's size
    ],
)
def test_broken_blocks_are_refused(block, rule):
    with pytest.raises(Malformed) as broken:
        unpacked(frame(block))
    assert broken.value.rule == rule


def test_more_content_than_the_limit_is_refused():
    full = b"\x1fa\x01\x00" + b"\xff" * 16_400 + b"\x00\x10x"  # 4.18 million bytes
    content = len(unpacked(frame(full)))
    within = MAX_CONTENT_BYTES // content
    assert len(unpacked(frame(*[full] * within))) == within * content
    with pytest.raises(Malformed) as refused:
        unpacked(frame(*[full] * (within + 1)))
    assert refused.value.rule == "compressed/unsupported"


def test_a_wrong_checksum_is_refused():
    data = bytearray(stored(b"abcdef"))
    data[-1] ^= 1
    with pytest.raises(Malformed) as wrong:
        unpacked(bytes(data))
    assert wrong.value.rule == "compressed/checksum"
