"""7z archives are refused, with what they hold where that can be read.

Start header: 37 7A BC AF 27 1C, version 2, CRC-32 of the next 20 bytes, offset, size and CRC-32 of the header at
the end. That header is plain (first byte 01) or packed (17); names are listed from a plain one only.
Source: 7zFormat.txt of the LZMA SDK.

Members are not unpacked: the format has a dozen methods and filters, and no loader of weights reads it.
"""

import struct
import zlib
from collections.abc import Mapping
from typing import Final

from steelyard.errors import Malformed
from steelyard.formats.base import ByteSource, Finding, Report, Rule

MAGIC = b"7z\xbc\xaf\x27\x1c"
MAX_HEADER_BYTES = 1 << 20
MAX_LISTED = 50
PLAIN, NAMES = 0x01, 0x11  # of the header and of one property in it
_START = struct.Struct("<6s2sIQQI")

_UNPACK = "Unpack it yourself and scan the folder."

RULES: Final[Mapping[str, Rule]] = {
    "7z/header": Rule("A header that is not where the archive says.", _UNPACK),
    "7z/checksum": Rule("A header that was changed after it was written.", _UNPACK),
    "7z/trailing": Rule("A second file behind the archive.", _UNPACK),
    "7z/unread": Rule("An archive that model scanners skip and a loader's unpacking step does not.", _UNPACK),
}


class SevenZipFormat:
    """Claims 7z archives, and refuses each of them with its listing."""

    name = "7z"
    rules = RULES

    def sniff(self, head: bytes, path: str) -> bool:  # noqa: ARG002 - the content decides
        return head.startswith(MAGIC)

    def read(self, source: ByteSource, path: str) -> Report:  # noqa: ARG002
        names = _names_in(_header_of(source))
        listed = (
            "a packed header, so no listing" if names is None else f"members {', '.join(map(ascii, names))}"
        )
        facts = {} if names is None else {"names": list(names)}
        return Report(self.name, facts, (Finding("7z/unread", f"7z archives are not unpacked: {listed}", 0),))


def _header_of(source: ByteSource) -> bytes:
    if source.size < _START.size:
        raise Malformed("the archive is shorter than its start", rule="7z/header", offset=0)
    start = source.read(0, _START.size)
    _, _, start_crc, offset, size, crc = _START.unpack(start)
    if zlib.crc32(start[12:]) != start_crc:
        raise Malformed("the start header's checksum is wrong", rule="7z/checksum", offset=8)
    at = _START.size + offset
    if at + size > source.size or size > MAX_HEADER_BYTES:
        raise Malformed(f"a header of {size} bytes at {at}", rule="7z/header", offset=12)
    if at + size < source.size:
        what = f"{source.size - at - size} bytes follow the header"
        raise Malformed(what, rule="7z/trailing", offset=at + size)
    header = source.read(at, size)
    if zlib.crc32(header) != crc:
        raise Malformed("the header's checksum is wrong", rule="7z/checksum", offset=at)
    return header


def _names_in(header: bytes) -> tuple[str, ...] | None:
    """The names property: 11, size, 00, then UTF-16 names each ended by a zero. None when the header is packed."""
    if not header:
        return ()
    if header[0] != PLAIN:
        return None
    for at in range(len(header) - 3):
        if header[at] != NAMES or header[at + 1] & 0x80 or header[at + 2] != 0:
            continue
        text = header[at + 3 : at + 2 + header[at + 1]]
        if len(text) % 2 == 0 and text.endswith(b"\0\0"):
            names = text.decode("utf-16-le", "replace").split("\0")[:-1]
            return tuple(name[:80] for name in names[:MAX_LISTED])
    return None


FORMAT: Final = SevenZipFormat()
