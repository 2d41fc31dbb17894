"""Secrets that salt the ledger's commitments, one a day, in files outside the ledger.

    <folder>/2026-11-22          32 random bytes, mode 0600
    <folder>/2026-11-22.hold     why this day must not be erased
    <folder>/2026-11-22.erased   empty: it was

While a day's file exists, its holder can show that a text is the one an entry commits to, and could also test
guesses. Deleting the file ends both for that day's entries; the ledger's proofs do not change.
"""

import hashlib
import os
import re
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, date, datetime
from pathlib import Path

from steelyard.disk import Disk, FileLock, read_file, unavailable
from steelyard.errors import Malformed, Refused, Unavailable, WrongUsage

SECRET_BYTES = 32
MAX_REASON_BYTES = 4096

_DAY = re.compile(r"\d{4}-\d\d-\d\d")


class Salts:
    """The secrets in `folder`, made when a day begins. random: cryptographic bytes of a length."""

    def __init__(self, folder: Path, random: Callable[[int], bytes] = os.urandom) -> None:
        self._folder = folder
        self._random = random
        self._name = ""
        self._secret = b""
        self._day: date | None = None

    def current(self, now: datetime) -> tuple[str, bytes]:
        """Name and secret of the day of `now` (UTC). Raises Unavailable, Malformed."""
        day = (now if now.tzinfo is UTC else now.astimezone(UTC)).date()
        if day != self._day:
            name = day.isoformat()
            if (self._folder / f"{name}.erased").exists():
                # A clock set back must not begin a second secret under the name of a destroyed one.
                raise Unavailable(f"the salts of {name} were erased; is the clock right?")
            self._secret = self._load_or_make(self._folder / name)
            self._name = name
            self._day = day  # last: after an error the next caller tries again
        return self._name, self._secret

    def reveal(self, name: str, receipt: str) -> bytes:
        """The salt of one receipt of day `name`, and of no other. Raises WrongUsage when the day was erased."""
        path = self._folder / day_of(name)
        if not path.exists():
            raise WrongUsage(f"there is no secret for {name}: it was erased, or is of another installation")
        return salt_of(self._load(path), receipt)

    def days(self) -> list[str]:
        """Days that have a secret, oldest first."""
        if not self._folder.is_dir():
            return []
        return sorted(path.name for path in self._folder.iterdir() if _DAY.fullmatch(path.name))

    def holds(self) -> dict[str, str]:
        """Days that are held and why."""
        if not self._folder.is_dir():
            return {}
        days = sorted(path.stem for path in self._folder.glob("*.hold"))
        return {day: self.hold_of(day) or "" for day in days if _DAY.fullmatch(day)}

    def hold_of(self, name: str) -> str | None:
        """Why the day is held; None when it is not."""
        try:
            return read_file(self._folder / f"{day_of(name)}.hold", MAX_REASON_BYTES).decode(
                "utf-8", "replace"
            )
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Unavailable(f"cannot tell whether {name} is held: {error.strerror}") from error

    def hold(self, name: str, reason: str) -> None:
        """From now on `erase` refuses the day."""
        data = reason.encode()
        if not data.strip() or len(data) > MAX_REASON_BYTES:
            raise WrongUsage(f"a hold needs a reason of 1 to {MAX_REASON_BYTES} bytes")
        disk = Disk()
        disk.make_folder(self._folder)
        with self._locked().held():
            disk.put(self._folder / f"{day_of(name)}.hold", data, scratch=self._folder)

    def release(self, name: str) -> None:
        with self._locked().held():
            Disk().remove(self._folder / f"{day_of(name)}.hold")

    def check_erasable(self, name: str, today: date) -> None:
        """Raise Refused when the day is held, WrongUsage when it is not over or has no secret."""
        reason = self.hold_of(name)
        if reason is not None:
            raise Refused(f"{name} is held: {reason}", ("salts/hold",))
        if day_of(name) >= today.isoformat():
            # Gateways keep the day's secret in memory and would go on using it.
            raise WrongUsage(f"{name} is not over; a day can be erased from the next one (UTC) on")
        if not (self._folder / name).exists():
            raise WrongUsage(f"there is no secret for {name}")

    def erase(self, name: str, today: date) -> None:
        """Destroy the day's secret. Raises as `check_erasable`; Unavailable when the disk refuses."""
        path = self._folder / day_of(name)
        with self._locked().held():
            self.check_erasable(name, today)
            disk = Disk()
            disk.put(path.with_name(f"{name}.erased"), b"", scratch=self._folder)
            with unavailable(f"cannot overwrite {path}"):
                fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
                try:
                    os.write(fd, bytes(SECRET_BYTES))
                    os.fsync(fd)
                finally:
                    os.close(fd)
            disk.remove(path)
            disk.sync_folder(self._folder)

    def _locked(self) -> FileLock:
        if not self._folder.is_dir():
            raise WrongUsage(f"there are no salts at {self._folder}")
        return FileLock(self._folder / ".lock")

    def _load_or_make(self, path: Path) -> bytes:
        with unavailable(f"cannot make {path}"):
            if not path.exists():
                self._make(path)
        return self._load(path)

    def _load(self, path: Path) -> bytes:
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


def salt_of(secret: bytes, receipt: str) -> bytes:
    """The salt of one receipt's commitments."""
    return hashlib.sha256(secret + receipt.encode()).digest()


def day_of(text: str) -> str:
    """`text` if it is a day as the files are named. Raises WrongUsage: a name never leaves the folder."""
    try:
        if _DAY.fullmatch(text):
            return date.fromisoformat(text).isoformat()
    except ValueError:
        pass
    raise WrongUsage(f"{text!r} is not a day, YYYY-MM-DD")
