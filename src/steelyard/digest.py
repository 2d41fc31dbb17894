"""Digest and canonical bytes.

A digest's name carries every parameter that changes its value: `sha256` is the plain hash of some bytes,
`oms-sha256` is the root digest of a file manifest as OpenSSF model-signing v1.0 computes it (see `model.py`).
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

SHA256 = "sha256"
OMS_SHA256 = "oms-sha256"

JSON: TypeAlias = "str | int | float | bool | Sequence[JSON] | Mapping[str, JSON] | None"

_NAMES = (SHA256, OMS_SHA256)
_HEX_64 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A named SHA-256 value. `parse(str(d)) == d`; equal bytes give equal digests of the same name."""

    name: str
    hex: str

    def __post_init__(self) -> None:
        if self.name not in _NAMES:
            raise ValueError(f"digest name {self.name!r} is not one of {', '.join(_NAMES)}")
        if not _HEX_64.fullmatch(self.hex):
            raise ValueError(f"digest value {self.hex!r} is not 64 lower-case hexadecimal digits")

    @classmethod
    def parse(cls, text: str) -> "Digest":
        """`name:hex` -> Digest. Raises ValueError when either part is not in its form."""
        name, _, value = text.partition(":")
        return cls(name, value)

    def __str__(self) -> str:
        return f"{self.name}:{self.hex}"


def sha256(data: bytes) -> Digest:
    """Plain SHA-256 of `data`."""
    return Digest(SHA256, hashlib.sha256(data).hexdigest())


def canonical_json(value: JSON) -> bytes:
    """One byte string for one JSON value: sorted keys, no white space, UTF-8, no NaN.

    Used for what we sign and log. Verifiers hash the stored bytes and never re-serialise, so
    this needs to be stable, not equal to any standard's number format.
    """
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()
