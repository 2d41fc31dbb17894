"""Which payloads of a pickle are worth reading as a pickle: bytes, or text that spells bytes.

A pickle kept as data does nothing until somebody loads it, and then it runs. The machine reads each candidate to its
STOP and refuses one that imports what is not listed; these functions only say what is a candidate. Bytes: PROTO with a
known version, or a protocol 0 or 1 stream that ends with STOP and spells an import (GLOBAL or INST: two lines that are
names). Text: the same as latin-1 (how protocols 0 to 2 write bytes), and behind base64 or hexadecimal digits.
"""

import base64
import binascii
import re
from collections.abc import Iterator

from steelyard.formats.base import ByteSource

MAX_PLAIN_BYTES = 1 << 20  # of a protocol 0 or 1 candidate, and of a decoded one
MIN_ENCODED = 28  # letters of base64 for the shortest pickle that calls something
TEXT_BEGINS = frozenset(bytes([letter]) for letter in range(0x30, 0x7B))
_IMPORT = re.compile(rb"[ci][A-Za-z_][\w.]{0,250}\r?\n[A-Za-z_][\w.]{0,250}\r?\n")
_FIRST = frozenset(b"c(]}NIKJMFGLSTUVXBC)\x80")
_HEX = re.compile(r"(?:0x)?((?:[0-9a-fA-F]{2})+)\s*")
_HEX_BYTES = re.compile(r"(?:\\x[0-9a-fA-F]{2}){3,}")
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]+={0,2}\s*")


def may_be_pickle(inner: ByteSource) -> bool:
    """Whether `inner` begins, and where it has no PROTO also ends, like a pickle that imports something."""
    if inner.size < 4:
        return False
    first, second = inner.read(0, 2)
    if first == 0x80:
        return 2 <= second <= 5
    if first not in _FIRST or inner.size > MAX_PLAIN_BYTES or inner.read(inner.size - 1, 1) != b".":
        return False
    return _IMPORT.search(inner.read(0, inner.size)) is not None


def begins_plain(raw: bytes) -> bool:
    """Whether `raw` may be a protocol 0 or 1 stream that imports something, whatever stands behind its STOP."""
    return raw[:1] != b"" and raw[0] in _FIRST and _IMPORT.search(raw) is not None


def pickles_in_text(text: str) -> Iterator[bytes]:
    """The candidates that `text` spells: as latin-1, in hexadecimal, in base64."""
    if text[:1] == "\x80" or text[-1:] == ".":
        try:
            raw = text.encode("latin1")
        except UnicodeEncodeError:
            return
        if _candidate(raw):
            yield raw
        return
    if not MIN_ENCODED <= len(text) <= 2 * MAX_PLAIN_BYTES:
        return
    for decoded in (_from_hex(text), _from_base64(text)):
        if decoded is not None and _candidate(decoded):
            yield decoded


def _candidate(raw: bytes) -> bool:
    if len(raw) > 3 and raw[0] == 0x80:
        return 2 <= raw[1] <= 5
    return len(raw) > 3 and raw[-1:] == b"." and raw[0] in _FIRST and _IMPORT.search(raw) is not None


def _from_hex(text: str) -> bytes | None:
    if _HEX_BYTES.fullmatch(text):
        return bytes.fromhex(text.replace("\\x", ""))
    found = _HEX.fullmatch(text)
    return bytes.fromhex(found[1]) if found else None


def _from_base64(text: str) -> bytes | None:
    if not _BASE64.fullmatch(text):
        return None
    letters = text.strip().rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return base64.b64decode(letters + "=" * (-len(letters) % 4), validate=True)
    except binascii.Error:
        return None
