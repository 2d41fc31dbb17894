"""Changes of policy, keys, aliases, certificates and settings take effect without a restart.

What is watched is read anew when its files change (looked at each second) or on SIGHUP. It is parsed first and comes
into force only when it is sound; a broken file leaves the old one in force, is logged, and shows in /readyz.

Which policy and which aliases are in force is entered in the ledger, once for all workers, before or with the change:

    {"kind": "policy", "from": digest | null, "to": digest, "at"}
    {"kind": "alias", "alias", "from": digest | null, "to": digest | null, "at"}

What was entered last is kept in a file of the home, so a change made while no gateway ran is entered at the next
start. A kill between the entry and the file enters a change twice, never not at all.
"""

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from steelyard.digest import JSON, Digest, canonical_json
from steelyard.disk import Disk, FileLock, read_file
from steelyard.errors import Malformed, SteelyardError, Unavailable

INTERVAL_S = 1.0
LOCK_PAUSE_S = 0.02
MAX_STATE_BYTES = 4 << 20

Mark = tuple[tuple[str, int, int, int], ...]
_log = logging.getLogger(__name__)


class Watched(Protocol):
    """Something made from files. name: for the log and /readyz, public."""

    @property
    def name(self) -> str: ...

    def paths(self) -> Iterable[Path]:
        """The files it is made from, as they are now; folders where files may come and go."""

    def load(self) -> Callable[[], Awaitable[None] | None]:
        """Read and check, in a thread. What comes back puts it in force, on the event loop.

        Raises SteelyardError when it is not sound.
        """


@dataclass(frozen=True, slots=True)
class Files:
    """Something watched, put together of functions."""

    name: str
    where: Callable[[], Iterable[Path]]
    read: Callable[[], Callable[[], Awaitable[None] | None]]

    def paths(self) -> Iterable[Path]:
        return self.where()

    def load(self) -> Callable[[], Awaitable[None] | None]:
        return self.read()


class Reloader:
    """Looks after what is watched. broken: what is wrong now, by name; empty when all is in force."""

    def __init__(self, watched: Iterable[Watched], *, interval_s: float = INTERVAL_S) -> None:
        self._watched = tuple(watched)
        self._interval_s = interval_s
        # What is in force was read before this: a change in between is found by the first look.
        self._marks: dict[str, Mark | None] = {one.name: _mark(one.paths()) for one in self._watched}
        self._looking = asyncio.Lock()
        self._asked = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.broken: dict[str, str] = {}

    def start(self) -> None:
        self._task = asyncio.create_task(self._run())

    def ask(self) -> None:
        """Read all anew, changed or not. For SIGHUP."""
        self._marks = dict.fromkeys(self._marks)
        self._asked.set()

    async def look(self) -> None:
        """Put in force what has changed."""
        async with self._looking:
            for one in self._watched:
                mark = await asyncio.to_thread(_mark, one.paths())
                if mark != self._marks[one.name]:
                    self._marks[one.name] = mark
                    await self._renew(one)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            with suppress(TimeoutError):  # nobody asked: time to look
                await asyncio.wait_for(self._asked.wait(), self._interval_s)
            self._asked.clear()
            await self.look()

    async def _renew(self, one: Watched) -> None:
        try:
            into_force = await asyncio.to_thread(one.load)
            done = into_force()
            if done is not None:
                await done
        except SteelyardError as error:
            self.broken[one.name] = _word(error)
            if isinstance(error, Unavailable):  # the disk or the ledger, not what was written: try again
                self._marks[one.name] = None
            _log.error("%s cannot come into force, the old one stays: %s", one.name, error.message)
        else:
            self.broken.pop(one.name, None)
            _log.warning("%s was read anew and is in force", one.name)


class Announced:
    """What the ledger was told is in force; one file and one lock for all workers of a home."""

    def __init__(self, folder: Path, disk: Disk | None = None) -> None:
        self._disk = disk or Disk()
        self._disk.make_folder(folder)
        self._folder = folder
        self._path = folder / "announced.json"
        self._lock = FileLock(folder / "announced.lock")

    async def announce(
        self,
        policy: Digest,
        aliases: Mapping[str, Digest],
        enter: Callable[[bytes], Awaitable[None]],
        at: str,
    ) -> int:
        """Enter every difference from what was announced last. The number of entries.

        enter: returns when the ledger has the entry.  at: RFC 3339.  Raises Unavailable, Malformed.
        """
        # Held over the entry: one worker enters, the others find it done.
        while not self._lock.try_take():  # noqa: ASYNC110 - other processes set no event of ours
            await asyncio.sleep(LOCK_PAUSE_S)
        try:
            known = await asyncio.to_thread(self._read)
            named: dict[str, JSON] = {name: str(digest) for name, digest in aliases.items()}
            now: dict[str, JSON] = {"policy": str(policy), "aliases": named}
            entries = _differences(known, now, at)
            for entry in entries:
                await enter(entry)
            if entries:
                await asyncio.to_thread(self._disk.put, self._path, canonical_json(now), scratch=self._folder)
            return len(entries)
        finally:
            self._lock.release()

    def close(self) -> None:
        self._lock.close()

    def _read(self) -> Mapping[str, JSON]:
        if not self._path.exists():
            return {"policy": None, "aliases": {}}
        try:
            known: Mapping[str, JSON] = json.loads(read_file(self._path, MAX_STATE_BYTES))
        except (ValueError, OSError) as error:
            raise Malformed(f"{self._path} cannot be read", rule="announced/json") from error
        return known


def _differences(known: Mapping[str, JSON], now: Mapping[str, JSON], at: str) -> list[bytes]:
    entries: list[Mapping[str, JSON]] = []
    if known["policy"] != now["policy"]:
        entries.append({"kind": "policy", "from": known["policy"], "to": now["policy"], "at": at})
    old, new = known["aliases"], now["aliases"]
    assert isinstance(old, dict)
    assert isinstance(new, dict)
    entries.extend(
        {"kind": "alias", "alias": alias, "from": old.get(alias), "to": new.get(alias), "at": at}
        for alias in sorted({*old, *new})
        if old.get(alias) != new.get(alias)
    )
    return [canonical_json(entry) for entry in entries]


def _word(error: SteelyardError) -> str:
    # /readyz is read without a key: a word, and the log has the place.
    return "unreadable" if isinstance(error, Unavailable) else "not sound"


def _mark(paths: Iterable[Path]) -> Mark:
    """What tells a changed file: its number, size and time; those of a folder's files too."""
    mark = []
    for path in paths:
        for one in (path, *(sorted(path.iterdir()) if path.is_dir() else ())):
            try:
                found = os.stat(one)
            except OSError:
                mark.append((str(one), 0, -1, 0))
            else:
                mark.append((str(one), found.st_ino, found.st_size, found.st_mtime_ns))
    return tuple(mark)
