"""Secrets that salt the ledger's commitments, one a day, in files outside the ledger.

    <folder>/2026-11-22     32 random bytes, mode 0600

While a day's file exists, its holder can show that a text is the one an entry commits to, and could also test
guesses. Deleting the file ends both for that day's entries; the ledger's proofs do not change.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from steelyard.disk import unavailable
from steelyard.errors import Malformed

SECRET_BYTES = 32


class Salts:
    """The secrets in `folder`, made when a day begins. random: cryptographic bytes of a length."""

    def __init__(self, folder: Path, random: Callable[[int], bytes] = os.urandom) -> None:
        self._folder = folder
        self._random = random
        self._name = ""
        self._secret = b""

    def current(self, now: datetime) -> tuple[str, bytes]:
        """Name and secret of the day of `now` (UTC). Raises Unavailable, Malformed."""
        name = f"{now.astimezone(UTC):%Y-%m-%d}"
        if name != self._name:
            self._secret = self._load_or_make(self._folder / name)
            self._name = name
        return name, self._secret

    def _load_or_make(self, path: Path) -> bytes:
        with unavailable(f"cannot make {path}"):
            if not path.exists():
                self._make(path)
        with unavailable(f"cannot read {path}"):
            secret = path.read_bytes()
        if len(secret) != SECRET_BYTES:
            raise Malformed(f"{path} has {len(secret)} bytes, expected {SECRET_BYTES}", rule="salts/size")
        return secret

    def _make(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, self._random(SECRET_BYTES))
            os.fsync(fd)
            # Linked, not renamed: where two gateways begin a day together, the first one's secret stands.
            with suppress(FileExistsError):
                os.link(temporary, path)
        finally:
            os.close(fd)
            temporary.unlink()
