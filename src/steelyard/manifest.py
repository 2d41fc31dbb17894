"""Walk and weigh: a directory or a single file -> Model.

Each byte is read once, files are hashed in parallel threads (hashlib releases the GIL), largest first.
Refused, each with a rule of its own: symbolic links (they leave the tree), sockets, pipes and devices, names
that are not UTF-8, trees deeper or larger than the limits, and files that change while they are read.
"""

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from steelyard.errors import Malformed, Unavailable, WrongUsage
from steelyard.model import IGNORED_ROOT_NAMES, MAX_FILES, File, Model, check_paths

MAX_DEPTH = 64
# Small enough to stay in the L2 cache between the read and the hash; larger buffers measured slower.
BUFFER_BYTES = 256 << 10
_OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


Identity: TypeAlias = tuple[int, int, int, int, int]  # device, inode, size, modified and changed (ns)


@dataclass(frozen=True, slots=True)
class Leaf:
    """A regular file found under a root: path relative to it ("." for the root itself), size in bytes."""

    path: str
    size: int


def leaves_of(root: Path) -> tuple[Leaf, ...]:
    """Every regular file below `root`, or `root` itself, with nothing opened.

    Raises WrongUsage when `root` is missing or empty, Malformed (rule tree/...) for what a model may not hold.
    """
    if not os.path.lexists(root):
        raise WrongUsage(f"{root}: no such file or directory")
    status = os.stat(root)
    if stat.S_ISREG(status.st_mode):
        return (Leaf(".", status.st_size),)
    if not stat.S_ISDIR(status.st_mode):
        raise Malformed(f"{root}: neither a regular file nor a directory", rule="tree/special-file")
    leaves: list[Leaf] = []
    for leaf in _walk(os.fspath(root), "", 0):
        leaves.append(leaf)
        if len(leaves) > MAX_FILES:
            raise Malformed(f"{root}: more than {MAX_FILES} files", rule="tree/too-many-files")
    if not leaves:
        raise WrongUsage(f"{root}: the directory holds no files, so there is nothing to weigh")
    check_paths(leaf.path for leaf in leaves)
    return tuple(leaves)


def manifest_of(
    root: Path, *, progress: Callable[[int], None] | None = None, threads: int | None = None
) -> Model:
    """Hash everything below `root` into a Model.

    progress: called with the number of bytes just hashed, from any thread.  threads: default, one a core.
    Raises as `leaves_of`; Malformed tree/changed-while-reading; Unavailable when a file cannot be read.
    """
    leaves = sorted(leaves_of(root), key=lambda leaf: leaf.size, reverse=True)
    workers = min(threads or os.cpu_count() or 1, len(leaves))
    with ThreadPoolExecutor(max_workers=workers) as pool:
        files = tuple(pool.map(lambda leaf: _weigh(root, leaf, progress), leaves))
    return Model(root.resolve().name, files)


def identities_of(root: Path) -> dict[str, Identity]:
    """What the file system knows each file below `root` by. Equal before and after: nobody wrote in between.

    The change time cannot be set by whoever owns the file, so this holds against one who restores size and dates.
    """
    return {
        leaf.path: _identity(_stat(root if leaf.path == "." else root / leaf.path))
        for leaf in leaves_of(root)
    }


def _stat(path: Path) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error


def _walk(top: str, prefix: str, depth: int) -> Iterator[Leaf]:
    if depth > MAX_DEPTH:
        raise Malformed(f"{prefix}: more than {MAX_DEPTH} directories deep", rule="tree/too-deep")
    try:
        entries = sorted(os.scandir(top), key=lambda entry: entry.name)
    except OSError as error:
        raise Unavailable(f"{top}: {error.strerror}") from error
    for entry in entries:
        if depth == 0 and entry.name in IGNORED_ROOT_NAMES:
            continue
        path = prefix + _utf8(entry.name)
        if entry.is_symlink():
            raise Malformed(
                f"{path}: a symbolic link to {os.readlink(entry.path)!r}; copy the tree with links resolved (cp -rL)",
                rule="tree/symlink",
            )
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path, path + "/", depth + 1)
        elif entry.is_file(follow_symlinks=False):
            yield Leaf(path, entry.stat(follow_symlinks=False).st_size)
        else:
            raise Malformed(f"{path}: a socket, pipe or device", rule="tree/special-file")


def _utf8(name: str) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise Malformed(f"file name {os.fsencode(name)!r} is not UTF-8", rule="tree/name-encoding") from None
    return name


def _weigh(root: Path, leaf: Leaf, progress: Callable[[int], None] | None) -> File:
    path = root if leaf.path == "." else root / leaf.path
    with open_file(path, is_root=leaf.path == ".") as descriptor:
        return File(leaf.path, *weigh(descriptor, path, leaf.size, progress))


@contextmanager
def open_file(path: Path, *, is_root: bool = False) -> Iterator[int]:
    """A descriptor of a regular file, never of what a link points to. is_root: the path itself may be a link.

    Raises Malformed tree/changed-while-reading when it is no regular file (any more), Unavailable.
    """
    # A single file may be named through a link; inside a tree every link has been refused.
    flags = _OPEN_FLAGS & ~os.O_NOFOLLOW if is_root else _OPEN_FLAGS
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Malformed(f"{path}: no longer a regular file", rule="tree/changed-while-reading")
        yield descriptor
    finally:
        os.close(descriptor)


def weigh(
    descriptor: int, path: Path, size: int, progress: Callable[[int], None] | None = None
) -> tuple[int, str]:
    """Size in bytes and SHA-256 in hex of an open file, from its start, which must be `size` bytes and hold still."""
    try:
        before = os.fstat(descriptor)
        found, value = _hash(descriptor, progress)
        after = os.fstat(descriptor)
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error
    if _identity(before) != _identity(after) or not found == before.st_size == size:
        raise Malformed(f"{path}: changed while it was read", rule="tree/changed-while-reading")
    return found, value


def _identity(status: os.stat_result) -> Identity:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _hash(descriptor: int, progress: Callable[[int], None] | None) -> tuple[int, str]:
    hasher = hashlib.sha256()
    buffer = bytearray(BUFFER_BYTES)
    view = memoryview(buffer)
    size = 0
    with open(descriptor, "rb", buffering=0, closefd=False) as stream:
        while count := stream.readinto(buffer):
            hasher.update(view[:count])
            size += count
            if progress:
                progress(count)
    return size, hasher.hexdigest()
