"""Pictures are walked to their last byte; what follows, and what an SVG does, is found."""

import struct
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.errors import Malformed
from steelyard.formats.base import BytesSource
from steelyard.formats.image_file import FORMAT


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


PNG = (
    b"\x89PNG\r\n\x1a\n"
    + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    + chunk(b"IDAT", zlib.compress(b"\0\0"))
    + chunk(b"IEND", b"")
)
JPEG = b"\xff\xd8\xff\xe0\x00\x04ab\xff\xda\x00\x04\x01\x02data\xff\x00more\xff\xd3x\xff\xd9"
GIF = b"GIF89a\x01\x00\x01\x00\x80\x00\x00" + bytes(6) + b"\x2c" + bytes(8) + b"\x00\x02\x02\x4c\x01\x00\x3b"
WEBP = b"RIFF" + struct.pack("<I", 4 + 8 + 4) + b"WEBPVP8 " + struct.pack("<I", 3) + b"abc\0"
PICTURES = {"a.png": PNG, "a.jpg": JPEG, "a.gif": GIF, "a.webp": WEBP}


def rules_of(data, path):
    assert FORMAT.sniff(data[:4096], path)
    try:
        return {finding.rule for finding in FORMAT.read(BytesSource(data), path).findings}
    except Malformed as error:
        return {error.rule}


@pytest.mark.parametrize("path", PICTURES)
def test_picture_is_clean(path):
    assert rules_of(PICTURES[path], path) == set()


@pytest.mark.parametrize("path", PICTURES)
@given(tail=st.binary(min_size=1, max_size=30))
def test_anything_behind_the_end_is_found(path, tail):
    assert rules_of(PICTURES[path] + tail, path) == {"image/trailing"}


@pytest.mark.parametrize("path", PICTURES)
def test_every_truncation_is_refused(path):
    whole = PICTURES[path]
    for length in range(16, len(whole)):
        assert rules_of(whole[:length], path) & {"image/structure", "image/trailing"}


def test_flipped_bit_in_a_png_chunk_is_refused():
    data = bytearray(PNG)
    data[20] ^= 1
    assert rules_of(bytes(data), "a.png") == {"image/structure"}


SVG = '<svg xmlns="http://www.w3.org/2000/svg"><path d="M0 0"/>%s</svg>'


def test_plain_svg_is_clean():
    assert rules_of((SVG % '<use href="#a"/><a href="https://x.example">b</a>').encode(), "a.svg") == set()


@pytest.mark.parametrize(
    "inside",
    [
        "<script>x</script>",
        '<path onload="x"/>',
        '<image href="https://x.example/a.png"/>',
        '<a href="java\nscript:x">b</a>',
        "<foreignObject/>",
        "<style>@import 'x'</style>",
        '<path style="fill:url(https://x.example)"/>',
        '<use href="https://x.example/a.svg#a"/>',
        "<?xml-stylesheet href='x'?>",
    ],
)
def test_active_svg_is_refused(inside):
    assert rules_of((SVG % inside).encode(), "a.svg") == {"image/active"}


def test_svg_with_entities_is_refused_before_they_expand():
    bomb = '<!DOCTYPE svg [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>' + SVG % "&b;"
    assert rules_of(bomb.encode(), "a.svg") == {"image/active"}


def test_svg_that_is_another_document_is_refused():
    assert rules_of(b"<html><body/></html>", "a.svg") == {"image/structure"}
