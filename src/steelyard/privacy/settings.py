"""`[privacy]` of steelyard.toml. Without the table nothing is looked at.

[privacy]
regions = ["US", "GB", "DE"]       # telephone numbers known without a country code
allow = ["image"]                  # surfaces that cannot be read and may pass: image, audio, file, tokens
customers = "customers.txt"        # the firm's own names, one a line; kept as keyed hashes only
[privacy.actions]                  # class = allow | mask | pseudonymise | block
domain = "mask"
"""

import hmac
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from steelyard.disk import unavailable
from steelyard.errors import Malformed, WrongUsage
from steelyard.privacy.detect import DEFAULT_REGIONS, KINDS, Detector
from steelyard.privacy.dictionary import HEAD, Dictionary
from steelyard.privacy.shield import ALLOW, DEFAULTS, Shield
from steelyard.privacy.surfaces import UNREADABLE

KEY_BYTES = 32
MAX_CUSTOMERS = 2_000_000
MAX_WORDS = 6  # of one entry of the customers' list
MAX_CUSTOMERS_BYTES = 256 << 20

_KEYS = ("regions", "allow", "customers", "actions")
_TOKEN = re.compile(r"[\w.@+-]+")


def shield_of(table: Mapping[str, Any], folder: Path, key: bytes) -> Shield:
    """The shield that the table describes. folder: what paths stand below. Raises WrongUsage, Unavailable."""
    unknown = sorted(set(table) - set(_KEYS))
    if unknown:
        raise WrongUsage(f"[privacy]: unknown key {unknown[0]!r}; known keys are {', '.join(_KEYS)}")
    regions = _texts(table, "regions") or list(DEFAULT_REGIONS)
    if not all(re.fullmatch("[A-Z]{2}", region) for region in regions):
        raise WrongUsage('[privacy]: regions are countries of two capitals, such as "DE"')
    allowed = _texts(table, "allow")
    for surface in allowed:
        if surface not in UNREADABLE:
            raise WrongUsage(f"[privacy]: allow has {surface!r}, which is none of {', '.join(UNREADABLE)}")
    actions = table.get("actions", {})
    if not isinstance(actions, dict):
        raise WrongUsage("[privacy.actions] gives each class an action")
    customers = None
    if "customers" in table:
        if not isinstance(table["customers"], str):
            raise WrongUsage("[privacy]: customers is the path of a list")
        customers = _customers(folder / table["customers"], key)
    kinds = [kind for kind in KINDS if actions.get(kind, DEFAULTS[kind]) != ALLOW]
    detector = Detector(kinds, regions=regions, customers=customers)
    return Shield(key, actions, detector=detector, allowed=allowed)


def load_key(path: Path, random: Callable[[int], bytes] = os.urandom) -> bytes:
    """The key for stand-ins, made at first use, mode 0600. Raises Unavailable, WrongUsage."""
    with unavailable(f"cannot read {path}"):
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, random(KEY_BYTES))
                os.fsync(fd)
            finally:
                os.close(fd)
        if path.stat().st_mode & 0o077:
            raise WrongUsage(f"{path}: others may read the key; run chmod 600 on it")
        key = path.read_bytes()
    if len(key) != KEY_BYTES:
        raise WrongUsage(
            f"{path} has {len(key)} bytes, expected {KEY_BYTES}; remove it and a new one is made"
        )
    return key


class Customers:
    """The firm's own names and numbers, as keyed hashes of their words; the list itself is not kept."""

    def __init__(self, entries: Iterable[str], key: bytes) -> None:
        self._key = hmac.digest(key, b"customers", "sha256")
        self._whole: set[bytes] = set()
        self._begins: dict[bytes, int] = {}  # the first word -> the most words of an entry that begins so
        for entry in entries:
            words = [word.casefold() for word in _TOKEN.findall(entry)][:MAX_WORDS]
            if not words:
                continue
            if len(self._whole) >= MAX_CUSTOMERS:
                raise WrongUsage(f"the list of customers has more than {MAX_CUSTOMERS} entries")
            self._whole.add(self._hash(words))
            first = self._hash(words[:1])
            self._begins[first] = max(self._begins.get(first, 0), len(words))

    def find(self, text: str) -> Iterator[tuple[int, int]]:
        """Start and end of every entry in `text`, the longest at each place."""
        tokens = [(found.start(), found.end(), found.group().casefold()) for found in _TOKEN.finditer(text)]
        place = 0
        while place < len(tokens):
            most = self._begins.get(self._hash([tokens[place][2].rstrip(".")]), 0)
            for count in range(min(most, len(tokens) - place), 0, -1):
                words = [word.rstrip(".") if i == count - 1 else word
                         for i, (_, _, word) in enumerate(tokens[place : place + count])]  # fmt: skip
                if self._hash(words) in self._whole:
                    end = tokens[place + count - 1]
                    yield tokens[place][0], end[0] + len(words[-1])
                    place += count - 1
                    break
            place += 1

    def _hash(self, words: list[str]) -> bytes:
        return hmac.digest(self._key, " ".join(words).encode(), "sha256")[:16]


def _customers(path: Path, key: bytes) -> Callable[[str], Iterable[tuple[int, int]]]:
    """A plain list, or one that `steelyard privacy dictionary` has hashed with the same key."""
    with unavailable(f"cannot read {path}"), path.open("rb") as file:
        is_hashed = file.read(len(HEAD)) == HEAD.encode()
    if not is_hashed:
        return Customers(_lines(path), key).find
    try:
        return Dictionary.parse("\n".join(_lines(path)), key)
    except Malformed as error:
        raise WrongUsage(f"{path}: {error.message}; make it anew from the list") from error


def _texts(table: Mapping[str, Any], name: str) -> list[str]:
    value = table.get(name, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise WrongUsage(f"[privacy]: {name} is not a list of texts")
    return value


def _lines(path: Path) -> Iterator[str]:
    with unavailable(f"cannot read {path}"):
        if path.stat().st_size > MAX_CUSTOMERS_BYTES:
            raise WrongUsage(f"{path} has more than {MAX_CUSTOMERS_BYTES} bytes")
        with path.open(encoding="utf-8", errors="strict") as file:
            for line in file:
                if entry := line.strip():
                    yield entry
