"""One file, compressed: gzip, bzip2, xz, lzma, zlib, lz4 (see `lz4_frame`).

It is unpacked within limits and read as what it holds.

gzip (RFC 1952): 1F 8B 08, flags, time, two bytes, then optional extra field, name, comment and header checksum; a
deflate stream; CRC-32 and length. bzip2: "BZh" and a digit, then a block or the end mark. xz: FD "7zXZ" 00. lzma
alone: properties 5D, dictionary size, length or -1. zlib (RFC 1950): two bytes divisible by 31.
Several streams may follow each other where the format allows it (gzip, bzip2, xz); any other byte is refused.
A name in a gzip header is ignored: it is the writer's claim and no loader reads it.
"""

import bz2
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Final

from steelyard.errors import Malformed
from steelyard.formats import lz4_frame
from steelyard.formats.base import ByteSource, Child, Finding, Report, Rule
from steelyard.formats.pickled import is_pickle_like
from steelyard.formats.spool import Spool

CHUNK = 1 << 18
# What unpacks to less than this is read whatever its ratio.
FREE_BYTES = 1 << 24
MAX_RATIO = 20  # beyond FREE_BYTES, unpacked against packed bytes read so far
MAX_PICKLE_BYTES = 1 << 21  # of a pickle that is packed more than MAX_RATIO: each byte is an instruction
MAX_UNPACKED_BYTES = 8 << 30
MAX_STREAMS = 10_000
MAX_DICTIONARY_BYTES = 1 << 26  # xz -9; what an lzma decoder may allocate before the first byte
MAX_GZIP_HEADER = 1 << 16

_REPACK = "Unpack the file and scan what was inside."

RULES: Final[Mapping[str, Rule]] = {
    "compressed/stream": Rule("A broken stream, which two readers end in different places.", _REPACK),
    "compressed/trailing": Rule("A second file behind the compressed one.", _REPACK),
    "compressed/checksum": Rule("Content that is not what was compressed.", _REPACK),
    "compressed/bomb": Rule("A decompression bomb.", _REPACK),
    "compressed/header": Rule("A header with flags or sizes that no ordinary tool writes.", _REPACK),
    "compressed/unsupported": Rule("A compression that is not read here hides its content.", _REPACK),
}

_BZ2 = re.compile(rb"BZh[1-9](1AY&SY|\x17\x72\x45\x38\x50\x90)")
_ZLIB = frozenset({b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda"})
_REFUSED: Mapping[bytes, str] = {b"\x28\xb5\x2f\xfd": "zstd", b"\x1f\x9d": "compress", b"Rar!\x1a\x07": "rar"}
_SUFFIXES = frozenset({".gz", ".bz2", ".xz", ".lzma", ".z", ".zlib", ".lz4"})


class CompressedFormat:
    """Claims single compressed files by their first bytes."""

    name = "compressed"
    rules = RULES

    def sniff(self, head: bytes, path: str) -> bool:  # noqa: ARG002 - the content decides
        return _codec_of(head) is not None

    def read(self, source: ByteSource, path: str) -> Report:
        codec = _codec_of(source.read(0, min(source.size, 4096)))
        if codec is None:
            raise Malformed("no compressed file", rule="compressed/header", offset=0)
        if codec in _REFUSED.values():
            what = f"a file compressed by {codec}, which is not read here"
            return Report(codec, {"codec": codec}, (Finding("compressed/unsupported", what, 0),))
        name = _inner_name(path)
        return Report(self.name, {"codec": codec}, (), lambda: _children(source, codec, name))


def _codec_of(head: bytes) -> str | None:
    if head[:3] == b"\x1f\x8b\x08":
        return "gzip"
    if _BZ2.match(head):
        return "bzip2"
    if head[:6] == b"\xfd7zXZ\x00":
        return "xz"
    if head.startswith(lz4_frame.MAGIC):
        return "lz4"
    for magic, name in _REFUSED.items():
        if head.startswith(magic):
            return name
    if head[:2] in _ZLIB and _begins(zlib.decompressobj(), head):
        return "zlib"
    if _is_lzma(head):
        return "lzma"
    return None


def _begins(inflater: "zlib._Decompress", head: bytes) -> bool:
    try:
        return bool(inflater.decompress(head, 1 << 16)) or inflater.eof
    except zlib.error:
        return False


def _is_lzma(head: bytes) -> bool:
    """Properties byte 0x5D (the default of every tool), a dictionary of 2^n or 3*2^n bytes, a credible length."""
    if len(head) < 14 or head[0] != 0x5D or head[13] != 0:
        return False
    dictionary, length = int.from_bytes(head[1:5], "little"), int.from_bytes(head[5:13], "little")
    plain = any(dictionary == times << shift for times in (2, 3) for shift in range(11, 31))
    return dictionary >= 4096 and plain and (length == (1 << 64) - 1 or length < 1 << 40)


def _inner_name(path: str) -> str:
    name = PurePosixPath(path).name
    stem = PurePosixPath(name)
    if stem.suffix == ".tgz":
        return stem.stem + ".tar"
    return stem.stem if stem.suffix.lower() in _SUFFIXES and stem.stem else name


def _children(source: ByteSource, codec: str, name: str) -> Iterator[Child]:
    spool = _unpack(source, codec)
    content = spool.source()
    dense = content.size > MAX_PICKLE_BYTES and content.size > MAX_RATIO * source.size
    if dense and is_pickle_like(content.read(0, 2), name):
        what = f"{source.size} bytes unpack to a pickle of {content.size}"
        raise Malformed(what, rule="compressed/bomb", offset=0)
    yield Child(name, content.size, lambda: content)


def _unpack(source: ByteSource, codec: str) -> Spool:
    """All streams of the file, one after another, into one spool. Raises Malformed."""
    reader = _Reader(source)
    streams = 0
    while reader.at < source.size or streams == 0:
        streams += 1
        if streams > MAX_STREAMS:
            raise Malformed(f"more than {MAX_STREAMS} streams", rule="compressed/bomb", offset=reader.at)
        if streams > 1 and not _follows(reader, codec):
            left = source.size - reader.at
            raise Malformed(f"{left} bytes follow the stream", rule="compressed/trailing", offset=reader.at)
        start = reader.at
        try:
            _STREAMS[codec](reader)
        except (zlib.error, lzma.LZMAError, OSError, EOFError) as bad:
            what = f"the {codec} stream at {start} is broken: {bad}"
            raise Malformed(what, rule="compressed/stream", offset=start) from bad
    return reader.spool


def _follows(reader: "_Reader", codec: str) -> bool:
    magic = {"gzip": b"\x1f\x8b\x08", "bzip2": b"BZh", "xz": b"\xfd7zXZ\x00"}.get(codec)
    return magic is not None and reader.peek(len(magic)) == magic


class _Reader:
    """The packed bytes from `at` on, and the spool of the unpacked ones."""

    def __init__(self, source: ByteSource) -> None:
        self.source = source
        self.at = 0
        self.spool = Spool()
        self.crc = 0

    def peek(self, size: int) -> bytes:
        return self.source.read(self.at, min(size, self.source.size - self.at))

    def take(self, size: int) -> bytes:
        data = self.peek(size)
        if len(data) < size:
            raise EOFError("it ends too early")
        self.at += size
        return data

    def keep(self, part: bytes) -> None:
        self.spool.write(part)
        self.crc = zlib.crc32(part, self.crc)
        size = self.spool.size
        if size > FREE_BYTES and (size > MAX_RATIO * self.at or size > MAX_UNPACKED_BYTES):
            what = f"{self.at} bytes unpack to more than {size}"
            raise Malformed(what, rule="compressed/bomb", offset=self.at)


def _inflate(reader: _Reader, inflater: "zlib._Decompress") -> None:
    while not inflater.eof:
        pending = inflater.unconsumed_tail
        if not pending:
            pending = reader.peek(CHUNK)
            reader.at += len(pending)
        part = inflater.decompress(pending, CHUNK)
        if not part and not pending:
            raise EOFError("it ends too early")
        reader.keep(part)
    reader.at -= len(inflater.unused_data)


def _gzip(reader: _Reader) -> None:
    header = reader.take(10)
    flags = header[3]
    if flags & ~0x1F:
        raise Malformed(f"gzip flags {flags:#x}", rule="compressed/header", offset=reader.at - 7)
    raw = header
    if flags & 4:
        raw += (length := reader.take(2)) + reader.take(int.from_bytes(length, "little"))
    for bit in (8, 16):
        if flags & bit:
            text, end, _ = reader.peek(MAX_GZIP_HEADER).partition(b"\0")
            if not end:
                raise Malformed("a gzip name without an end", rule="compressed/header", offset=reader.at)
            raw += reader.take(len(text) + 1)
    if flags & 2 and int.from_bytes(reader.take(2), "little") != zlib.crc32(raw) & 0xFFFF:
        raise Malformed("the header's checksum is wrong", rule="compressed/checksum", offset=reader.at)
    before, reader.crc = reader.spool.size, 0
    _inflate(reader, zlib.decompressobj(-15))
    crc, size = int.from_bytes(reader.take(4), "little"), int.from_bytes(reader.take(4), "little")
    if crc != reader.crc or size != (reader.spool.size - before) & 0xFFFFFFFF:
        what = (
            f"checksum {reader.crc:08x} and {reader.spool.size - before} bytes, expected {crc:08x} and {size}"
        )
        raise Malformed(what, rule="compressed/checksum", offset=reader.at - 8)


def _zlib(reader: _Reader) -> None:
    _inflate(reader, zlib.decompressobj())


def _bzip2(reader: _Reader) -> None:
    _feed(reader, bz2.BZ2Decompressor())


def _xz(reader: _Reader) -> None:
    # The decoder allocates the dictionary the header asks for, so its memory is limited beforehand.
    _feed(reader, lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=2 * MAX_DICTIONARY_BYTES))


def _lzma(reader: _Reader) -> None:
    _feed(reader, lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=2 * MAX_DICTIONARY_BYTES))


def _lz4(reader: _Reader) -> None:
    lz4_frame.unpack(reader.take, reader.keep)


def _feed(reader: _Reader, inflater: "bz2.BZ2Decompressor | lzma.LZMADecompressor") -> None:
    while not inflater.eof:
        pending = b""
        if inflater.needs_input:
            pending = reader.peek(CHUNK)
            reader.at += len(pending)
            if not pending:
                raise EOFError("it ends too early")
        reader.keep(inflater.decompress(pending, CHUNK))
    reader.at -= len(inflater.unused_data)


_STREAMS: Final[Mapping[str, Callable[[_Reader], None]]] = {
    "gzip": _gzip, "zlib": _zlib, "bzip2": _bzip2, "xz": _xz, "lzma": _lzma, "lz4": _lz4,
}  # fmt: skip

FORMAT: Final = CompressedFormat()
