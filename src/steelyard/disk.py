"""Durable changes to files, and a place to make them fail.

Every change goes through one `Disk`, which announces it by name first. A test's Disk counts the changes, refuses
one as a full disk would, or kills the process before it; so crash safety is tested at each numbered step.
Folders are 0700 and files 0600: evidence and logs name what an organisation runs.
"""

import fcntl
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from steelyard.errors import Malformed, Unavailable

TEMPORARY = ".tmp"

_sync_data = getattr(os, "fdatasync", os.fsync)  # absent on macOS


class Disk:
    """Changes that are on the disk when they return (`write` excepted: `sync` follows it).

    Those on a path raise Unavailable, those on an open file OSError.
    """

    def step(self, name: str) -> None:
        """Called before each change. The shipped disk does nothing here."""

    def write(self, fd: int, data: bytes) -> None:
        """All of `data` at the end of `fd`; not yet durable."""
        self.step("write")
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]

    def sync(self, fd: int) -> None:
        self.step("sync")
        _sync_data(fd)

    def truncate(self, fd: int, size_bytes: int) -> None:
        self.step("truncate")
        os.ftruncate(fd, size_bytes)

    def put(self, path: Path, data: bytes, *, scratch: Path) -> None:
        """Create or replace `path` as a whole: a reader sees the old file or the new one, never a part.

        scratch: folder on the same file system where the new file grows, to be swept after a kill. The caller
        holds the lock of its writers.
        """
        self.put_all([(path, data)], scratch=scratch)

    def put_all(self, files: Sequence[tuple[Path, bytes]], *, scratch: Path) -> None:
        """`put` for several files, in any order: a kill may leave some of them new and some old."""
        for path, data in files:
            self.make_folder(path.parent)
            temporary = scratch / f".{path.name}{TEMPORARY}"
            with unavailable(f"cannot write {path}"):
                try:
                    self._replace(temporary, path, data)
                except OSError:
                    temporary.unlink(missing_ok=True)
                    raise
        for folder in {path.parent for path, _ in files}:
            self.sync_folder(folder)

    def lay_all(self, files: Sequence[tuple[Path, bytes]]) -> None:
        """Write files that nobody reads before they are announced, and leave them to `sync_all`.

        Cheaper than `put_all`: no second name and no sync. A kill may leave parts of them, a power cut anything.
        """
        for path, data in files:
            self.make_folder(path.parent)
            with unavailable(f"cannot write {path}"):
                self.step("create")
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
                try:
                    self.write(fd, data)
                finally:
                    os.close(fd)

    def sync_all(self, paths: Sequence[Path]) -> None:
        """Make files and their names durable, whoever wrote them."""
        for path in paths:
            with unavailable(f"cannot sync {path}"):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    self.sync(fd)
                finally:
                    os.close(fd)
        for folder in {path.parent for path in paths}:
            self.sync_folder(folder)

    def remove(self, path: Path) -> None:
        with unavailable(f"cannot remove {path}"):
            self.step("remove")
            path.unlink(missing_ok=True)

    def sync_folder(self, path: Path) -> None:
        """Make the names in it durable: what was made, renamed and removed."""
        with unavailable(f"cannot write {path}"):
            self.step("sync folder")
            _sync_folder(path)

    def make_folder(self, path: Path) -> None:
        """The folder and what is missing above it."""
        if path.is_dir():
            return
        with unavailable(f"cannot make folder {path}"):
            self.make_folder(path.parent)
            self.step("make folder")
            path.mkdir(mode=0o700, exist_ok=True)
            _sync_folder(path.parent)

    def _replace(self, temporary: Path, path: Path, data: bytes) -> None:
        self.step("create")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            self.write(fd, data)
            self.sync(fd)
        finally:
            os.close(fd)
        self.step("rename")
        os.replace(temporary, path)


class FileLock:
    """An advisory lock between processes, let go by the kernel when its holder dies."""

    def __init__(self, path: Path) -> None:
        self._fd = open_file(path, os.O_RDWR)

    @contextmanager
    def held(self) -> Iterator[None]:
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def try_take(self) -> bool:
        """Take it if it is free. Who got True calls `release`."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        os.close(self._fd)


@contextmanager
def unavailable(what: str) -> Iterator[None]:
    """Turn OSError into Unavailable that says what could not be done."""
    try:
        yield
    except OSError as error:
        raise Unavailable(f"{what}: {error.strerror or error}") from error


def open_file(path: Path, flags: int) -> int:
    """Open, creating it 0600. Raises Unavailable."""
    with unavailable(f"cannot open {path}"):
        return os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, 0o600)


def read_file(path: Path, limit_bytes: int) -> bytes:
    """All of a regular file. OSError when it cannot be read, Malformed when it is too long or no regular file.

    Stops: a pipe that never answers and a device that never ends, put where a file is expected.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise Malformed(f"{path} is not a regular file", rule="disk/not-a-file")
        data = file.read(limit_bytes + 1) if found.st_size <= limit_bytes else None
    if data is None or len(data) > limit_bytes:
        raise Malformed(
            f"{path} is longer than {limit_bytes} bytes", rule="disk/too-long", offset=limit_bytes
        )
    return data


def sweep(folder: Path) -> None:
    """Remove temporary files a killed process left in `folder`. The caller holds the lock of its writers."""
    for entry in os.scandir(folder):
        if entry.name.startswith(".") and entry.name.endswith(TEMPORARY):
            os.unlink(entry.path)


def _sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
