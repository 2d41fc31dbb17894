"""A plan of tensors -> sharded safetensors, streamed, hashed on the way, and resumable shard by shard.

Nothing is loaded: the input is read as byte ranges that a parser of `formats` has named. Each output shard is written
beside its place, synced, renamed, and entered in a journal with its digest; a run that is killed goes on with the
shard it was at, after the finished ones have been weighed again. The same input gives the same bytes.
Memory: a few blocks of BLOCK_BYTES, whatever the size of a tensor.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from steelyard.admit.to_safetensors_plan import Plan, Range, Shard, Source
from steelyard.digest import JSON, canonical_json
from steelyard.errors import Malformed, Unavailable, Untrusted, WrongUsage
from steelyard.model import File

BLOCK_BYTES = 1 << 20
IN_FLIGHT = 4  # blocks a digest may lag behind the copy
MAX_JOURNAL_BYTES = 64 << 20
SPARE_BYTES = 64 << 20  # left free on the disk beside what is written

JOURNAL = ".steelyard-conversion.jsonl"
INDEX = "model.safetensors.index.json"
RECORD = "conversion.json"

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Written:
    """The files of the result, and the input files as they were when they were copied (those read whole)."""

    files: tuple[File, ...]
    consumed: tuple[File, ...]
    resumed: int


def write(
    plan: Plan,
    target: Path,
    *,
    extras: Callable[[tuple[File, ...]], Mapping[str, bytes]] = lambda _: {},
    progress: Progress = lambda _: None,
    digests: bool = True,
    begun_from: str = "",
) -> Written:
    """Write the plan's shards, an index when there are several, then `extras`, into the folder `target`.

    extras: (input files as consumed) -> file name -> content, written last.  progress: bytes written since the
    last call.  digests: False copies inside the kernel and hashes nothing (a measurement: it leaves no journal).
    begun_from: names the state of the input files; work begun from another state is not taken up.
    Raises WrongUsage (the folder holds something else), Unavailable (disk), Untrusted (the input changed).
    """
    with _workplace(target, {"plan": plan.digest, "begun_from": begun_from}) as journal:
        done = journal.finished(plan, progress)
        _check_room(target, sum(shard.size for shard in plan.shards if shard.name not in done))
        for shard in plan.shards:
            if shard.name not in done:
                done[shard.name] = _write_shard(target, shard, progress, digests=digests)
                if digests:
                    journal.enter(done[shard.name])
        consumed = tuple(file for name in sorted(done) for file in done[name].consumed)
        files = [done[shard.name].file for shard in plan.shards]
        more = dict(extras(consumed))
        if len(plan.shards) > 1:
            more[INDEX] = _index(plan)
        files += [write_small(target / name, content) for name, content in sorted(more.items())]
        journal.remove()
    return Written(tuple(files), consumed, journal.resumed)


def _index(plan: Plan) -> bytes:
    weight_map: dict[str, JSON] = {
        tensor.name: shard.name
        for shard in plan.shards
        for source in shard.sources
        for tensor in source.tensors
    }
    total = sum(tensor.size for tensor in plan.tensors)
    body: JSON = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return json.dumps(body, indent=2, ensure_ascii=False).encode() + b"\n"


def write_small(path: Path, content: bytes) -> File:
    """`content` whole or not at all."""
    temporary = path.with_name(f".{path.name}.part")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644)
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        _place(temporary, path)
    except OSError as error:
        raise Unavailable(f"cannot write {path}: {error.strerror}") from error
    return File(path.name, len(content), hashlib.sha256(content).hexdigest())


def _place(temporary: Path, path: Path) -> None:
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _check_room(target: Path, needed: int) -> None:
    free = shutil.disk_usage(target).free
    if needed and free < needed + SPARE_BYTES:
        raise Unavailable(
            f"{target}: {needed:,} bytes are to be written and {free:,} are free; name a folder on a larger disk"
        )


@dataclass(frozen=True, slots=True)
class _Done:
    """A finished shard: the file, and the input files read whole for it."""

    file: File
    consumed: tuple[File, ...]

    def to_json(self) -> JSON:
        return {"file": _row(self.file), "consumed": [_row(file) for file in self.consumed]}


def _row(file: File) -> JSON:
    return [file.path, file.size, file.sha256]


class _Digest:
    """A SHA-256 on a thread of its own, at most IN_FLIGHT blocks behind. hashlib lets go of the interpreter."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._hasher = hashlib.sha256()
        self._pool = pool
        self._pending: deque[Future[None]] = deque()

    def feed(self, block: bytes) -> None:
        if len(self._pending) >= IN_FLIGHT:
            self._pending.popleft().result()
        self._pending.append(self._pool.submit(self._hasher.update, block))

    def hex(self) -> str:
        while self._pending:
            self._pending.popleft().result()
        return self._hasher.hexdigest()


def _write_shard(target: Path, shard: Shard, progress: Progress, *, digests: bool) -> _Done:
    path = target / shard.name
    temporary = path.with_name(f".{shard.name}.part")
    try:
        with ExitStack() as stack:
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o644)
            stack.callback(os.close, descriptor)
            if digests:
                # One thread for each digest, so that each sees its blocks in order.
                inner, outer = (stack.enter_context(ThreadPoolExecutor(1)) for _ in range(2))
                done = _copy_hashed(descriptor, shard, progress, inner, outer)
            else:
                done = _copy_plain(descriptor, shard, progress)
            os.fsync(descriptor)
        _place(temporary, path)
    except OSError as error:
        raise Unavailable(f"cannot write {path}: {error.strerror}") from error
    return done


def _copy_hashed(
    descriptor: int, shard: Shard, progress: Progress, inner: ThreadPoolExecutor, outer: ThreadPoolExecutor
) -> _Done:
    digest = _Digest(outer)
    consumed = []

    def put(block: bytes) -> None:
        digest.feed(block)
        _write_all(descriptor, block)
        progress(len(block))

    put(shard.header)
    for source in shard.sources:
        read = _Digest(inner)
        written = 0
        with _opened(source) as opened:
            for block in source.blocks(opened, read.feed):
                put(block)
                written += len(block)
        if written != sum(tensor.size for tensor in source.tensors):
            raise Untrusted(
                f"{source.path} gave {written} bytes, not those of the plan; it changed meanwhile"
            )
        if source.whole:
            consumed.append(File(source.path, source.reads, read.hex()))
    return _Done(File(shard.name, shard.size, digest.hex()), tuple(consumed))


def _copy_plain(descriptor: int, shard: Shard, progress: Progress) -> _Done:
    _write_all(descriptor, shard.header)
    for source in shard.sources:
        with _opened(source) as opened:
            if source.ranges:
                for part in source.ranges:
                    _copy_range(opened, part, descriptor, progress)
            else:
                for block in source.blocks(opened, lambda _: None):
                    _write_all(descriptor, block)
                    progress(len(block))
    return _Done(File(shard.name, shard.size, "0" * 64), ())


@contextmanager
def _opened(source: Source) -> Iterator[int]:
    descriptor = source.open()
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, block: bytes) -> None:
    left = memoryview(block)
    while left:
        left = left[os.write(descriptor, left) :]


_STEP = 64 << 20
_NOT_HERE = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM})


def _copy_range(source: int, part: Range, target: int, progress: Progress) -> None:
    """Bytes from file to file without a stop in this process, where the kernel can."""
    at, end = part.offset, part.offset + part.size
    while at < end:
        count = min(_STEP, end - at)
        try:
            moved = os.copy_file_range(source, target, count, at)
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
            block = os.pread(source, min(count, BLOCK_BYTES), at)
            _write_all(target, block)
            moved = len(block)
        if not moved:
            raise Untrusted("an input file became shorter while it was copied")
        at += moved
        progress(moved)


def pieces(descriptor: int, offset: int, size: int, block_bytes: int = BLOCK_BYTES) -> Iterator[bytes]:
    """The bytes [offset, offset + size) of an open file in blocks. Raises Untrusted when the file ends before."""
    end = offset + size
    while offset < end:
        block = os.pread(descriptor, min(block_bytes, end - offset), offset)
        if not block:
            raise Untrusted("an input file became shorter while it was copied")
        offset += len(block)
        yield block


def open_input(path: Path, size: int) -> int:
    """A descriptor of a regular file that still has `size` bytes. Raises Unavailable, Untrusted."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise Unavailable(f"cannot read {path}: {error.strerror}") from error
    if os.fstat(descriptor).st_size != size:
        os.close(descriptor)
        raise Untrusted(f"{path} no longer has {size} bytes; it changed since the plan was made")
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    return descriptor


# The journal


class _Journal:
    """One line for the plan, then one for each finished shard. Only whole lines count."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self._path = path
        self._descriptor = descriptor
        self.resumed = 0

    def begin(self, line: JSON) -> None:
        """Durable with the first finished shard; before that there is nothing to take up."""
        _write_all(self._descriptor, canonical_json(line) + b"\n")

    def enter(self, done: _Done) -> None:
        _write_all(self._descriptor, canonical_json(done.to_json()) + b"\n")
        os.fsync(self._descriptor)

    def remove(self) -> None:
        self._path.unlink()

    def lines(self) -> list[JSON]:
        size = os.fstat(self._descriptor).st_size
        if size > MAX_JOURNAL_BYTES:
            raise Malformed(f"{self._path} has {size} bytes", rule="conversion/journal")
        data = os.pread(self._descriptor, size, 0)
        whole = data[: data.rfind(b"\n") + 1]
        os.ftruncate(self._descriptor, len(whole))
        try:
            return [json.loads(line) for line in whole.splitlines()]
        except ValueError as error:
            raise Malformed(f"{self._path} is no journal: {error}", rule="conversion/journal") from error

    def finished(self, plan: Plan, progress: Progress) -> dict[str, _Done]:
        """The shards of an earlier run that are still what it wrote; each is weighed again."""
        found = {}
        for line in self.lines()[1:]:
            done = _done_of(line, self._path)
            path = self._path.parent / done.file.path
            if any(shard.name == done.file.path for shard in plan.shards) and _weighs(
                path, done.file, progress
            ):
                found[done.file.path] = done
        self.resumed = len(found)
        return found


def _done_of(line: JSON, path: Path) -> _Done:
    match line:
        case {"file": [str(name), int(size), str(digest)], "consumed": list(rows)}:
            files = []
            for row in rows:
                match row:
                    case [str(a), int(b), str(c)]:
                        files.append(File(a, b, c))
            if len(files) == len(rows):
                return _Done(File(name, size, digest), tuple(files))
    raise Malformed(f"{path} has a line that is no finished shard", rule="conversion/journal")


def _weighs(path: Path, file: File, progress: Progress) -> bool:
    hasher = hashlib.sha256()
    try:
        descriptor = open_input(path, file.size)
    except (Unavailable, Untrusted):
        return False  # it is written again
    try:
        for block in pieces(descriptor, 0, file.size):
            hasher.update(block)
            progress(len(block))
    finally:
        os.close(descriptor)
    return hasher.hexdigest() == file.sha256


@contextmanager
def _workplace(target: Path, first: JSON) -> Iterator[_Journal]:
    """The target folder, locked, with its journal: new, or begun with the same `first` line."""
    path = target / JOURNAL
    try:
        target.mkdir(parents=True, exist_ok=True)
        if not path.exists() and any(not entry.name.endswith(".part") for entry in target.iterdir()):
            raise WrongUsage(f"{target} is not empty and holds no begun conversion; name a new folder")
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise Unavailable(f"cannot write {target}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise WrongUsage(f"another process is converting into {target}") from error
        journal = _Journal(path, descriptor)
        lines = journal.lines()
        if not lines:
            journal.begin(first)
        elif lines[0] != first:
            raise WrongUsage(
                f"{target} was begun with another plan or from other files; name a new folder or remove it"
            )
        yield journal
    finally:
        os.close(descriptor)
