"""Compressed files against the standard library's writers: what was packed is what is read."""

import bz2
import gzip
import lzma
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.errors import Malformed
from steelyard.formats import compressed
from steelyard.formats.base import BytesSource
from steelyard.formats.compressed import FORMAT

PACKERS = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "zlib": zlib.compress,
}
CODECS = pytest.mark.parametrize("codec", PACKERS)


def unpacked(data: bytes, path: str = "model.gz") -> tuple[str, bytes]:
    assert FORMAT.sniff(data[:4096], path)
    report = FORMAT.read(BytesSource(data), path)
    assert report.findings == ()
    (child,) = report.children()
    content = child.open()
    assert child.size == content.size
    return child.name, content.read(0, content.size)


@CODECS
@given(data=st.binary(max_size=3000))
def test_content_round_trips(codec, data):
    assert unpacked(PACKERS[codec](data))[1] == data


@pytest.mark.parametrize("codec", ["gzip", "bzip2", "xz"])
@given(parts=st.lists(st.binary(max_size=200), min_size=1, max_size=4))
def test_several_streams_follow_each_other(codec, parts):
    assert unpacked(b"".join(map(PACKERS[codec], parts)))[1] == b"".join(parts)


@CODECS
@given(data=st.data())
def test_every_truncation_is_refused(codec, data):
    whole = PACKERS[codec](b"some text, and more of it" * 4)
    cut = whole[: data.draw(st.integers(20, len(whole) - 1))]
    if FORMAT.sniff(cut, "x"):
        with pytest.raises(Malformed) as caught:
            unpacked(cut)
        assert caught.value.rule == "compressed/stream"


@pytest.mark.parametrize("codec", ["gzip", "bzip2", "xz", "zlib"])
@given(data=st.data())
def test_a_flipped_bit_never_gives_other_content(codec, data):
    content = b"some text, and more of it" * 4
    packed = bytearray(PACKERS[codec](content))
    place = data.draw(st.integers(0, len(packed) - 1))
    packed[place] ^= 1 << data.draw(st.integers(0, 7))
    if not FORMAT.sniff(bytes(packed), "x"):
        return
    try:
        result = unpacked(bytes(packed))[1]
    except (Malformed, AssertionError):
        return
    assert result == content  # a time, a level: bits that say nothing about the content


@pytest.mark.parametrize(
    ("path", "inner"),
    [("a/model.pkl.gz", "model.pkl"), ("x.tgz", "x.tar"), ("rf.joblib", "rf.joblib"), ("A.XZ", "A")],
)
def test_the_inner_file_is_named_by_the_outer_one(path, inner):
    assert unpacked(gzip.compress(b"x"), path)[0] == inner


def test_a_large_file_is_spooled():
    content = bytes(range(256)) * (40 << 10)
    assert unpacked(gzip.compress(content, 1))[1] == content


def test_ratio_at_the_limit_and_past_it():
    assert len(unpacked(zlib.compress(bytes(compressed.FREE_BYTES)))[1]) == compressed.FREE_BYTES
    with pytest.raises(Malformed) as caught:
        unpacked(zlib.compress(bytes(compressed.FREE_BYTES + compressed.CHUNK)))
    assert caught.value.rule == "compressed/bomb"


@pytest.mark.parametrize("head", [b"\x5d\0\0", b"xylophone", b"\x78\x9c", b"BZh9 is text", b"\x1f\x8b", b""])
def test_what_only_looks_alike_is_not_claimed(head):
    assert not FORMAT.sniff(head + b" and so on, with enough text to fill a header", "x")
