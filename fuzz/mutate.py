"""Damage that knows the file's structure: opcode borders, tokens, members with their checksums, integers."""

import bz2
import gzip
import io
import lzma
import pickletools
import random
import re
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Literal

MAX_BYTES = 64 << 10
MAX_ROUNDS = 4

BOUNDARIES = (
    0,
    1,
    2,
    7,
    8,
    0x7F,
    0x80,
    0xFF,
    0x100,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x7FFFFFFF,
    0x80000000,
    0xFFFFFFFF,
)
WIDE = (0x100000000, 0x7FFFFFFFFFFFFFFF, 0x8000000000000000, 0xFFFFFFFFFFFFFFFF, 1 << 40)
TOKENS = re.compile(rb"[A-Za-z_0-9.]+|\s+|[^A-Za-z_0-9.\s]")
ODD_TOKENS = (
    b"null", b"NaN", b"-0", b"1e999", b"9" * 400, b'"\\ud800"', b'"__reduce__"', b"[" * 300, b"{}", b"\xff", b"\0",
    b"\xef\xbb\xbf", b"&a", b"*a", b"!!python/object", b"{{", b"%}", b"{% set", b"__class__", b"../", b"0x7f", b"\t",
    b"<!DOCTYPE", b"\xe2\x80\xae", b"eval(", b"1.5", b"-1", b'""', b"\n", b",", b":", b'"',
)  # fmt: skip
OPCODES = (
    b"0", b"1", b"2", b"(", b".", b"N", b"R", b"b", b"\x81", b"\x85", b"\x94", b"\x93", b"]", b"}", b")", b"t",
    b"h\x00", b"q\x00", b"h\xff", b"cos\nsystem\n", b"\x8c\x02os\x8c\x06system\x93", b"\x80\x04", b"\x82\x01",
    b"\x8a\x01\x7f", b"X\x02\x00\x00\x00ab", b"C\x01a", b"\x95" + bytes(8), b"K\x01", b"Vabc\n", b"I01\n", b"p0\n",
)  # fmt: skip

# What zipfile raises for a damaged archive; RuntimeError (and NotImplementedError below it) for an encrypted one.
_ZIP_BREAKS = (
    zipfile.BadZipFile, ValueError, OSError, EOFError, KeyError, RuntimeError, zlib.error, lzma.LZMAError, struct.error
)  # fmt: skip

Mutation = Callable[[bytes, random.Random, Sequence[bytes]], bytes]


def mutant(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """A damaged copy of `data`; `others` lend it parts. The same arguments give the same bytes."""
    for _ in range(rng.randint(1, MAX_ROUNDS)):
        data = rng.choice(_fitting(data))(data, rng, others)
        if rng.random() < 0.5:
            break
    return data[:MAX_BYTES]


def _fitting(data: bytes) -> Sequence[Mutation]:
    """What makes sense on these bytes; the structural kinds twice as often as the blind ones."""
    if data.startswith(b"PK\x03\x04"):
        return (*BLIND, *(_zip_member, _zip_patch) * 4)
    if data[:2] in {b"\x1f\x8b", b"BZ", b"\xfd7"} or data[:1] == b"\x78":
        return (*BLIND, *(_unpacked,) * 8)
    if data[257:262] == b"ustar":
        return (*BLIND, *(_tar_member,) * 8)
    if data[:1] in {b"\x80", b"(", b"]", b"}"} and data[-1:] == b".":
        return (*BLIND, *(_opcode,) * 12)
    if b"\0" not in data[:512] and len(data) >= 2:
        return (*BLIND, *(_token,) * 12)
    return BLIND


# Blind damage: any bytes


def _flip_bit(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    return _changed(data, rng, lambda byte: byte ^ 1 << rng.randrange(8))


def _set_byte(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    return _changed(
        data, rng, lambda byte: rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256), byte ^ 0x20))
    )


def _changed(data: bytes, rng: random.Random, change: Callable[[int], int]) -> bytes:
    if not data:
        return b"\0"
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = _place(len(data) - 1, rng)
        changed[at] = change(changed[at])
    return bytes(changed)


def _place(last: int, rng: random.Random) -> int:
    """An offset up to `last`; the first kilobyte, where headers are, half of the time."""
    return rng.randint(0, min(last, 1024) if rng.random() < 0.5 else last)


def _splice(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    other = rng.choice(others)
    return data[: _place(len(data), rng)] + other[_place(len(other), rng) :]


def _truncate(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    return data[: rng.choice((_place(len(data), rng), max(len(data) - rng.randint(1, 9), 0)))]


def _insert(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    at, other = _place(len(data), rng), rng.choice(others)
    start = _place(len(other), rng)
    piece = rng.choice(
        (rng.randbytes(rng.randint(1, 16)), bytes(rng.randint(1, 64)), other[start : start + 32])
    )
    return data[:at] + piece + data[at:]


def _duplicate(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    start, size = _place(len(data), rng), rng.choice((1, 4, 8, 16, 64, 512))
    block = data[start : start + size] * rng.choice((1, 1, 1, 2, 64))
    at = rng.choice((start, _place(len(data), rng)))
    return data[:at] + block + data[at:]


def _delete(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    start = _place(len(data), rng)
    return data[:start] + data[start + rng.choice((1, 2, 4, 8, 32)) :]


def _integer(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    width = rng.choice((1, 2, 4, 8))
    if len(data) < width:
        return data + b"\0"
    at = _place(len(data) - width, rng)
    order: Literal["little", "big"] = "little" if rng.random() < 0.5 else "big"
    old = int.from_bytes(data[at : at + width], order)
    value = rng.choice(
        (rng.choice(BOUNDARIES), rng.choice(WIDE), old + 1, old - 1, old * 2, len(data), len(data) - at)
    )
    return data[:at] + (value % (1 << 8 * width)).to_bytes(width, order) + data[at + width :]


def _swap(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Exchange two fields of the same width: lengths, offsets, tags."""
    width = rng.choice((1, 2, 4, 8))
    if len(data) < 2 * width:
        return data + data
    one, two = sorted((_place(len(data) - width, rng), _place(len(data) - width, rng)))
    if two - one < width:
        return data
    middle = data[one + width : two]
    return data[:one] + data[two : two + width] + middle + data[one : one + width] + data[two + width :]


BLIND: tuple[Mutation, ...] = (
    _flip_bit, _set_byte, _splice, _truncate, _insert, _duplicate, _delete, _integer, _integer, _swap
)  # fmt: skip


# Damage at borders


def _parts_changed(
    parts: list[bytes], rng: random.Random, odd: Sequence[bytes], foreign: Sequence[bytes]
) -> bytes:
    """Drop, repeat, exchange, replace or add whole parts."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        if not parts:
            break
        at = rng.randrange(len(parts))
        kind = rng.randrange(6)
        if kind == 0:
            del parts[at]
        elif kind == 1:
            parts.insert(at, parts[at])
        elif kind == 2:
            other = rng.randrange(len(parts))
            parts[at], parts[other] = parts[other], parts[at]
        elif kind == 3:
            parts[at] = rng.choice(odd)
        elif kind == 4:
            parts.insert(at, rng.choice(odd))
        else:
            parts.insert(at, rng.choice(foreign or parts))
    return b"".join(parts)


def _token(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    return _parts_changed(TOKENS.findall(data), rng, ODD_TOKENS, TOKENS.findall(rng.choice(others)[:2000]))


def _opcode(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    parts = opcodes_of(data)
    if len(parts) < 2:
        return _integer(data, rng, others)
    at = rng.randrange(len(parts))
    if rng.random() < 0.3 and len(parts[at]) > 1:  # another argument of the same opcode
        parts[at] = parts[at][:1] + BLIND[rng.randrange(len(BLIND))](parts[at][1:], rng, others)
        return b"".join(parts)
    return _parts_changed(parts, rng, OPCODES, opcodes_of(rng.choice(others)[:4000]))


def opcodes_of(data: bytes) -> list[bytes]:
    """The pickle cut at its opcodes; what cannot be followed is the last part."""
    cuts = [0]
    with suppress(Exception):  # pickletools raises ValueError, IndexError, struct.error, UnicodeError ...
        cuts.extend(at for _, _, at in pickletools.genops(data) if at)
    return [data[start:end] for start, end in zip(cuts, [*cuts[1:], len(data)], strict=True)]


# Damage inside a container, whose checksums stay right


def _unpacked(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    try:
        if data[:2] == b"\x1f\x8b":
            return gzip.compress(_inner(gzip.decompress(data), rng, others), mtime=0)
        if data[:2] == b"BZ":
            return bz2.compress(_inner(bz2.decompress(data), rng, others))
        if data[:2] == b"\xfd7":
            return lzma.compress(_inner(lzma.decompress(data), rng, others))
        return zlib.compress(_inner(zlib.decompress(data), rng, others))
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError):
        return _flip_bit(data, rng, others)


def _inner(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    if len(data) > MAX_BYTES:
        return data[:MAX_BYTES]
    return rng.choice(_fitting(data))(data, rng, others)


def _tar_member(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    out = io.BytesIO()
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            files = [(info, archive.extractfile(info)) for info in archive]
            chosen = rng.randrange(len(files))
            with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as written:
                for number, (info, file) in enumerate(files):
                    body = file.read() if file else b""
                    if number == chosen and rng.random() < 0.7:
                        body = _inner(body, rng, others)
                    elif number == chosen:
                        info.name = rng.choice(
                            (info.name + "/x", "../x", files[0][0].name, "/x", "a.pkl", "é")
                        )
                        info.type = rng.choice(
                            (tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE, b"L", b"x")
                        )
                    info.size = len(body)
                    written.addfile(info, io.BytesIO(body))
    except (tarfile.TarError, ValueError, OSError, EOFError, KeyError):
        return _integer(data, rng, others)
    return out.getvalue()


def _zip_member(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Write the archive anew with one member damaged, renamed, repeated or left out."""
    out = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(out, "w") as written:
            infos = archive.infolist()
            chosen = rng.randrange(len(infos))
            kind = rng.randrange(8)
            for number, info in enumerate(infos):
                if info.file_size > MAX_BYTES:
                    return _flip_bit(data, rng, others)
                body = archive.read(info)
                name = info.filename
                if number == chosen:
                    if kind == 0:
                        continue
                    if kind == 1:
                        name = rng.choice(
                            (name + "x", "../x", infos[0].filename, "a.pkl", name.upper(), "x/" + name)
                        )
                    elif kind != 2:
                        body = _inner(body, rng, others)
                fresh = zipfile.ZipInfo(name, info.date_time)
                fresh.compress_type = info.compress_type
                with warnings.catch_warnings(action="ignore"):  # a name twice is what we want
                    written.writestr(fresh, body)
    except _ZIP_BREAKS:
        return _integer(data, rng, others)
    return out.getvalue()


def _zip_patch(data: bytes, rng: random.Random, others: Sequence[bytes]) -> bytes:
    """Damage a stored member in its place and mend its CRC wherever the archive names it: all offsets stay."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            stored = [info for info in archive.infolist() if info.compress_type == 0 and info.file_size]
    except _ZIP_BREAKS:
        return _integer(data, rng, others)
    if not stored:
        return _zip_member(data, rng, others)
    info = rng.choice(stored)
    lengths = data[info.header_offset + 26 : info.header_offset + 30]
    if len(lengths) < 4:
        return _integer(data, rng, others)
    start = info.header_offset + 30 + sum(struct.unpack("<HH", lengths))
    body = data[start : start + info.file_size]
    fresh = rng.choice(_fitting(body))(body, rng, others)[: len(body)].ljust(len(body), b".")
    patched = data[:start] + fresh + data[start + len(body) :]
    return patched.replace(struct.pack("<I", info.CRC), struct.pack("<I", zlib.crc32(fresh)))
