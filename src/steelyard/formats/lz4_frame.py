"""LZ4 frames: how joblib writes `compress="lz4"`. A reader in Python, since the content is small or refused.

    4   04 22 4D 18
    1   flags: bits 7-6 version 01, 5 independent blocks, 4 block checksums, 3 content size,
        2 content checksum, 0 dictionary
    1   bits 6-4 the largest block: 4 = 64 KiB, 5 = 256 KiB, 6 = 1 MiB, 7 = 4 MiB
    8   content size, if flagged
    1   second byte of the xxHash-32 of these fields
    ..  blocks: length (the top bit says: not compressed), data, checksum if flagged; a length of 0 ends them
    4   xxHash-32 of the content, if flagged

A block is a row of sequences: a token (literal length, match length), the literals, and a copy of bytes already
written, named by a 16-bit distance back; in linked blocks the distance may reach 64 KiB into the blocks before.

Source: LZ4 frame format 1.6.4, LZ4 block format and xxHash specification 0.1.1 (github.com/lz4/lz4/doc).
"""

import struct
from collections.abc import Callable

from steelyard.errors import Malformed

MAGIC = b"\x04\x22\x4d\x18"
MAX_CONTENT_BYTES = 1 << 24  # about ten seconds of work at worst
WINDOW_BYTES = 1 << 16
_BLOCK_BYTES = {4: 1 << 16, 5: 1 << 18, 6: 1 << 20, 7: 1 << 22}
_P1, _P2, _P3, _P4, _P5 = 2654435761, 2246822519, 3266489917, 668265263, 374761393
_MASK = 0xFFFFFFFF


def unpack(take: Callable[[int], bytes], keep: Callable[[bytes], None]) -> None:
    """Unpack one frame: `take(n)` gives the next n packed bytes or raises EOFError, `keep` gets unpacked ones.

    Raises Malformed, and EOFError where the frame ends too early.
    """
    if take(4) != MAGIC:
        raise _broken("no LZ4 frame")
    fields = take(2)
    flags, largest = fields[0], _BLOCK_BYTES.get(fields[1] >> 4)
    if flags >> 6 != 1 or flags & 0x03 or fields[1] & 0x8F or largest is None:
        raise Malformed(f"LZ4 flags {fields.hex()}", rule="compressed/header", offset=4)
    fields += take(8) if flags & 8 else b""
    if take(1)[0] != xxhash32(fields) >> 8 & 0xFF:
        raise Malformed("the header's checksum is wrong", rule="compressed/checksum", offset=4)
    content = bytearray()
    while size := int.from_bytes(take(4), "little"):
        packed = take(size & 0x7FFFFFFF) if size & 0x7FFFFFFF <= largest else b""
        if not packed:
            raise _broken(f"a block of {size & 0x7FFFFFFF} bytes")
        if flags & 0x10 and take(4) != xxhash32(packed).to_bytes(4, "little"):
            raise Malformed("a block's checksum is wrong", rule="compressed/checksum")
        before = len(content)
        if size >> 31:
            content += packed
        else:
            _block(
                packed, content, before if flags & 0x20 else max(0, before - WINDOW_BYTES), before + largest
            )
        if len(content) > MAX_CONTENT_BYTES:
            what = f"more than {MAX_CONTENT_BYTES} bytes in LZ4, which are not unpacked here"
            raise Malformed(what, rule="compressed/unsupported")
        keep(bytes(content[before:]))
    if flags & 8 and int.from_bytes(fields[2:10], "little") != len(content):
        raise Malformed(f"{len(content)} bytes, the header says otherwise", rule="compressed/checksum")
    if flags & 4 and take(4) != xxhash32(bytes(content)).to_bytes(4, "little"):
        raise Malformed("the content's checksum is wrong", rule="compressed/checksum")


def _broken(what: str) -> Malformed:
    return Malformed(f"the lz4 stream is broken: {what}", rule="compressed/stream")


def _block(packed: bytes, out: bytearray, first: int, limit: int) -> None:
    """Append the content of one block to `out`; matches reach back to `first`, and `out` stays within `limit`."""
    at, end = 0, len(packed)
    while at < end:
        token = packed[at]
        count, at = _length(packed, at + 1, token >> 4)
        if at + count > end or len(out) + count > limit:
            raise _broken("literals past the end of their block")
        out += packed[at : at + count]
        at += count
        if at == end:  # the last sequence has no match
            return
        distance = int.from_bytes(packed[at : at + 2], "little")
        count, at = _length(packed, at + 2, token & 15)
        count += 4
        start = len(out) - distance
        if distance == 0 or start < first or len(out) + count > limit:
            raise _broken("a match outside what was written")
        out += (
            out[start : start + count]
            if distance >= count
            else (out[start:] * (count // distance + 1))[:count]
        )
    raise _broken("a block without its last literals")


def _length(packed: bytes, at: int, nibble: int) -> tuple[int, int]:
    """A length whose first part is `nibble`: 15 says that bytes are added until one is not 255."""
    length = nibble
    if nibble == 15:
        while True:
            if at >= len(packed):
                raise _broken("a length past the end of its block")
            length += packed[at]
            at += 1
            if packed[at - 1] != 255:
                break
    return length, at


def _rotated(value: int, bits: int) -> int:
    value &= _MASK
    return (value << bits | value >> (32 - bits)) & _MASK


def xxhash32(data: bytes) -> int:
    """xxHash-32 with seed 0."""
    whole = len(data) & ~15
    if whole:
        a, b, c, d = (_P1 + _P2) & _MASK, _P2, 0, -_P1 & _MASK
        for w, x, y, z in struct.iter_unpack("<4I", data[:whole]):
            a = _rotated(a + w * _P2, 13) * _P1 & _MASK
            b = _rotated(b + x * _P2, 13) * _P1 & _MASK
            c = _rotated(c + y * _P2, 13) * _P1 & _MASK
            d = _rotated(d + z * _P2, 13) * _P1 & _MASK
        mixed = _rotated(a, 1) + _rotated(b, 7) + _rotated(c, 12) + _rotated(d, 18)
    else:
        mixed = _P5
    mixed += len(data)
    words = whole + (len(data) - whole & ~3)
    for (word,) in struct.iter_unpack("<I", data[whole:words]):
        mixed = _rotated(mixed + word * _P3, 17) * _P4
    for byte in data[words:]:
        mixed = _rotated(mixed + byte * _P5, 11) * _P1
    mixed &= _MASK
    mixed = (mixed ^ mixed >> 15) * _P2 & _MASK
    mixed = (mixed ^ mixed >> 13) * _P3 & _MASK
    return mixed ^ mixed >> 16
