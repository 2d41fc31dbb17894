"""The ledger on disk: appends that outlive the process or the machine, tiles and signed checkpoints behind them.

    <root>/checkpoint           signed tree head            <root>/wal           entries since then (see wal.py)
    <root>/tile/...             tiles and entry bundles     <root>/lock, publish.lock   between processes

Two sides that wait for each other as little as can be. Writers take `lock`, put one batch behind the write-ahead file
and let go; `append` syncs it too. One publisher at a time takes `publish.lock`, reads what the writers wrote, syncs
that, writes tiles, then replaces the checkpoint. Tiles are synced when the write-ahead file is renewed: until then it
holds all entries from the last renewal's last full bundle on, and after a power cut the tiles are made from them again.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from steelyard.cells import PUBLISHED_NS, Cells
from steelyard.disk import Disk, FileLock, read_file, sweep, unavailable
from steelyard.errors import Malformed, SteelyardError, Unavailable, Untrusted
from steelyard.evidence import Signer
from steelyard.ledger import (
    ENTRIES,
    MAX_ENTRY_BYTES,
    TILE_WIDTH,
    Checkpoint,
    Edge,
    InclusionProof,
    Tile,
    edge_tiles,
    encode_entries,
    split_hashes,
    tile_at,
)
from steelyard.merkle import complete_root, leaf_hashes
from steelyard.note import NoteSigner, VerifierKey
from steelyard.tile_reader import CHECKPOINT, WAL, TileReader
from steelyard.wal import HEADER_BYTES, MAX_BATCH_BYTES, Tail, Wal, decode_batches, decode_wal, encode_batch

WAL_RENEW_BYTES = 4 << 20  # above this a publish starts a new write-ahead file
TILE_LEVELS = 8
MAX_UNPUBLISHED_BYTES = 64 << 20  # above this nobody writes before a publish

_log = logging.getLogger(__name__)

__all__ = ["CHECKPOINT", "WAL", "TileLog", "TileReader"]


@dataclass(slots=True)
class _Waiting:
    """Entries one caller wants in, then where they are or why not."""

    entries: Sequence[bytes]
    size_bytes: int
    first: int = -1
    error: SteelyardError | None = None


@dataclass(slots=True)
class _Published:
    """What the last checkpoint covers, what appending past it needs, and what was read of the entries behind it."""

    checkpoint: Checkpoint
    edge: Edge
    bundle: list[bytes]  # entries of the last, not yet full bundle
    settled: int  # first entry of the write-ahead file: every full tile of the entries before it is synced
    mark: tuple[int, int]  # inode and time of the checkpoint file this was read from
    pending: list[bytes] = field(default_factory=list)
    generation: int = -1  # of the write-ahead file that `pending` was read from
    read_to: int = 0  # its byte up to which


@dataclass(slots=True)
class _Files:
    """What a new checkpoint needs written, and the state behind it."""

    tiles: list[tuple[Tile, bytes]]
    edge: Edge
    bundle: list[bytes]


class TileLog:
    """An open ledger. Safe in threads and between processes that each opened it; not across a fork.

    Blocking, so call it in a thread from asyncio; `try_write` alone never waits for another process or a disk.
    """

    def __init__(self, root: Path, signer: NoteSigner, disk: Disk, renew_bytes: int) -> None:
        self._reader = TileReader(root)
        self._signer = signer
        self._disk = disk
        self._renew_bytes = renew_bytes
        self._lock = FileLock(root / "lock")
        self._cells = Cells(root / "lock")
        self._wal = Wal(root / WAL, disk, self._cells.values)
        self._publish_lock = FileLock(root / "publish.lock")
        self._mutex = threading.Lock()  # held by the thread that may hold `lock`
        self._publish_mutex = threading.Lock()  # the same for `publish.lock`; guards _published
        self._queue: deque[_Waiting] = deque()
        self._published: _Published
        self._published_ns = -1  # when this process last published
        self._pid = os.getpid()

    @classmethod
    def open(
        cls,
        root: Path,
        *,
        origin: str,
        signer: Signer,
        disk: Disk | None = None,
        renew_bytes: int = WAL_RENEW_BYTES,
    ) -> "TileLog":
        """Open the ledger `origin` in folder `root`, or begin one there. `signer` is an Ed25519 key.

        Recovers from a kill at any point: a torn append is cut, what was acknowledged is kept.
        Raises Untrusted when the folder's checkpoint is not this log's, Malformed when a file is damaged,
        Unavailable when the disk does not answer.
        """
        disk = disk or Disk()
        disk.make_folder(root)
        log = cls(root, NoteSigner(origin, signer), disk, renew_bytes)
        with log._publishing():
            sweep(root)
            with log._locked():
                if not (root / CHECKPOINT).exists():
                    log._begin()
                elif not (root / WAL).exists():
                    log._wal.create(log._reader.checkpoint().size, b"", 0)
                log._wal.load()
            log._catch_up()
            log._wal.recovered()
        return log

    @property
    def root(self) -> Path:
        return self._reader.root

    @property
    def key(self) -> VerifierKey:
        """Who checks this ledger needs `str(log.key)` and the folder."""
        return self._signer.key

    @property
    def size(self) -> int:
        """Entries there are, unpublished ones included."""
        return self._wal.next

    def append(self, entries: Sequence[bytes]) -> range:
        """Enter `entries` in order and return their indices. They survive a power cut once this returns.

        Threads that call at the same time share one sync. ValueError when an entry is longer than
        MAX_ENTRY_BYTES; Unavailable when the disk refuses, and then none of them is entered.
        """
        if not entries:
            return range(self.size, self.size)
        waiting = _Waiting(entries, _batch_bytes(entries))
        self._make_room()
        self._queue.append(waiting)
        with self._mutex:
            while waiting.first < 0 and waiting.error is None:
                self._commit()
        if waiting.error is not None:
            raise waiting.error
        return range(waiting.first, waiting.first + len(entries))

    def write(self, entries: Sequence[bytes]) -> None:
        """Enter `entries` as `append` does, but leave the sync to `sync`: they survive a kill, not yet a power cut."""
        self._make_room()
        with self._locked():
            self._get_ready()
            self._wal.write(entries)

    def try_write(self, entries: Sequence[bytes]) -> bool:
        """`write` without waiting: False when another writer is at work or died at it, or room must be made first.

        Raises Unavailable when the disk refuses, and then none of them is entered.
        """
        if not self._mutex.acquire(blocking=False):
            return False
        try:
            if not self._lock.try_take():
                return False
            try:
                if not self._wal.is_ready or self._wal.end > MAX_UNPUBLISHED_BYTES or self._is_forked():
                    return False
                self._wal.write(entries)
                return True
            finally:
                self._lock.release()
        finally:
            self._mutex.release()

    def sync(self) -> None:
        """Make durable what `write` entered before this call. Raises Unavailable: it may not be, until a sync works."""
        if self._wal.is_suspect:
            with self._publishing():
                self._heal()
        else:
            self._sync()

    def publish(self) -> Checkpoint:
        """Put every entry under a signed checkpoint and return it.

        Raises Unavailable when the disk refuses: the old checkpoint then stands, and every entry stays.
        """
        with self._publishing():
            return self._publish()

    def try_publish(self, interval_s: float) -> bool:
        """`publish` unless another process is at it or did it within `interval_s`; whether every entry is published."""
        last_ns = self._cells.values[PUBLISHED_NS]
        if last_ns != self._published_ns and 0 <= time.monotonic_ns() - last_ns < interval_s * 1e9:
            return False
        if not self._publish_mutex.acquire(blocking=False):
            return False
        try:
            if not self._publish_lock.try_take():
                return False
            try:
                self._publish()
            finally:
                self._publish_lock.release()
        finally:
            self._publish_mutex.release()
        return True

    def checkpoint(self) -> Checkpoint:
        """The last published tree head."""
        return self._reader.checkpoint()

    def read(self, index: int) -> bytes:
        """Entry `index`, published or not. ValueError when there is none."""
        for entry in self.entries(index, index + 1):
            return entry
        raise ValueError(f"the ledger has no entry {index}")

    def entries(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Entries start to stop (all when None), the last excluded, published or not."""
        with self._publishing():
            self._catch_up()
            size, pending = self._published.checkpoint.size, self._published.pending[:]
        stop = size + len(pending) if stop is None else min(stop, size + len(pending))
        if start < min(stop, size):
            yield from self._reader.entries(start, min(stop, size), size)
        yield from pending[max(0, start - size) : max(0, stop - size)]

    def prove_inclusion(self, index: int) -> InclusionProof:
        """Proof for one entry, published first when it is not yet. ValueError when there is none."""
        if index >= self._published.checkpoint.size:
            self.publish()
        return self._reader.prove_inclusion(index)

    def prove_consistency(self, old_size: int) -> tuple[bytes, ...]:
        """Proof that the last checkpoint continues the tree of `old_size` entries."""
        return self._reader.prove_consistency(old_size)

    def close(self) -> None:
        """Publish what is left and let go of the files."""
        try:
            self.publish()
        finally:
            self._wal.close()
            self._lock.close()
            self._publish_lock.close()
            # The mapping goes with the object: a metrics page may still ask for the size.

    @contextmanager
    def _locked(self) -> Iterator[None]:
        if self._is_forked():
            raise ValueError("a ledger is opened by the process that uses it, after the fork")
        with self._mutex, self._lock.held():
            yield

    @contextmanager
    def _publishing(self) -> Iterator[None]:
        with self._publish_mutex, self._publish_lock.held():
            yield

    def _is_forked(self) -> bool:
        # A forked child shares the description that is locked, so both would hold the lock at once.
        return os.getpid() != self._pid

    def _make_room(self) -> None:
        if self._wal.end > MAX_UNPUBLISHED_BYTES:
            self.publish()
        if self._wal.is_suspect:
            self.sync()

    def _get_ready(self) -> None:
        # Locked. After this the write-ahead file is open, sound to its end and may be written to.
        wal = self._wal
        if wal.is_ready:
            return
        if wal.is_outdated:
            wal.reopen()
        if wal.is_suspect:
            raise Unavailable(f"{self.root}: a sync failed; what was written may not be durable")
        if wal.is_torn:
            wal.load()

    def _sync(self) -> None:
        with self._mutex:
            fd = self._wal.duplicate()
        try:
            self._wal.sync(fd)
        finally:
            os.close(fd)

    def _commit(self) -> None:
        # Called with the mutex: whoever gets it first writes for everybody who queued meanwhile.
        batch = [self._queue.popleft()]
        room = MAX_BATCH_BYTES - batch[0].size_bytes
        while self._queue and self._queue[0].size_bytes <= room:
            batch.append(self._queue.popleft())
            room -= batch[-1].size_bytes
        entries = [entry for waiting in batch for entry in waiting.entries]
        failure: SteelyardError | None = Unavailable(
            "the append was interrupted; nothing is promised about it"
        )
        first = -1
        try:
            with self._lock.held():
                self._get_ready()
                first = self._wal.append(entries)
            failure = None
        except SteelyardError as error:
            failure = error
        finally:  # whatever happened, nobody in this batch waits for ever
            for waiting in batch:
                waiting.error = failure
                waiting.first = first
                first += len(waiting.entries)

    # What follows holds the publish lock.

    def _catch_up(self) -> None:
        """Read what the writers, and other publishers, did."""
        with self._locked():
            if self._wal.is_outdated or not self._wal.is_suspect:
                self._get_ready()
            if self._wal.is_foreign:
                raise Untrusted(f"{self.root}: the write-ahead file was replaced from outside")
            generation, end = self._wal.generation, self._wal.end
            known: _Published | None = getattr(self, "_published", None)
            if known is None or known.generation != generation or known.mark != self._mark():
                known = None
            offset = known.read_to if known else 0
            data = self._wal.rest(offset)
        if known is None:
            self._published = self._load(data, generation)
            return
        first = known.checkpoint.size + len(known.pending)
        known.pending += decode_batches(data, 0, first, str(self.root / WAL)).entries
        known.read_to = end

    def _load(self, wal: bytes, generation: int) -> _Published:
        mark = self._mark()
        checkpoint = self._reader.checkpoint()
        checkpoint.check(self.key)
        tail = decode_wal(wal, str(self.root / WAL))
        if tail.first > checkpoint.size:
            raise Untrusted(
                f"{self.root}: the checkpoint covers {checkpoint.size} entries, the write-ahead file begins at "
                f"{tail.first}: the ledger was set back to an earlier state"
            )
        is_whole = tail.first + len(tail.entries) >= checkpoint.size
        if is_whole and self._wal.is_after_boot:
            self._mend(checkpoint, tail)
        edge = Edge.of(checkpoint.size, self._reader.tile)
        if edge.root() != checkpoint.root:
            raise Untrusted(
                f"{self.root}: the tiles do not give the root of the checkpoint of {checkpoint.size}"
            )
        count = checkpoint.size % TILE_WIDTH
        bundle = self._reader.bundle(checkpoint.size // TILE_WIDTH, checkpoint.size) if count else []
        if leaf_hashes(bundle) != (edge.levels[0] if bundle else []):
            raise Untrusted(f"{self.root}: the last entry bundle does not give the hashes of its tile")
        published = _Published(checkpoint, edge, bundle, tail.first, mark, [], generation, len(wal))
        published.pending = tail.entries[checkpoint.size - tail.first :]
        if not is_whole:
            with self._locked():
                if self._wal.next < checkpoint.size:
                    self._wal.create(checkpoint.size, b"", 0)
            published.generation = -1
        return published

    def _mend(self, checkpoint: Checkpoint, tail: Tail) -> None:
        """Write again what a power cut may have taken of the tiles that are made from the write-ahead file."""
        try:
            edge = Edge.of(tail.first, self._settled_row)
            bundle = (
                self._reader.bundle(tail.first // TILE_WIDTH, tail.first) if tail.first % TILE_WIDTH else []
            )
        except Malformed:
            return  # not these tiles are missing but settled ones: the caller says so
        files = _files_after(edge, bundle, tail.entries[: checkpoint.size - tail.first])
        if files.edge.root() != checkpoint.root:
            return
        paths = [(self.root / tile.path, data) for tile, data in files.tiles]
        lost = [(path, data) for path, data in paths if not _holds(path, data)]
        if lost:
            _log.warning("%s: %d tiles are made again after a power cut", self.root, len(lost))
            self._disk.put_all(lost, scratch=self.root)

    def _settled_row(self, tile: Tile) -> bytes:
        # A partial tile above the leaves may be gone for a full one that was lost; the full ones below it stand.
        if tile.level == 0:
            return self._reader.tile(tile)
        below = [Tile(tile.level - 1, tile.index * TILE_WIDTH + i) for i in range(tile.width)]
        return b"".join(complete_root(split_hashes(self._reader.tile(item))) for item in below)

    def _publish(self) -> Checkpoint:
        if self._wal.is_suspect:
            self._heal()
        self._catch_up()
        published = self._published
        if published.pending:
            self._sync()  # another process may have died between its write and its sync
            published = self._published = self._put_files(published)
            # What came meanwhile must be copied with the lock held, so wait for a moment with little of it.
            end = self._wal.end
            behind = end - published.read_to
            if end > self._renew_bytes and (behind < self._renew_bytes // 4 or end > 4 * self._renew_bytes):
                self._settle(published)
                self._renew()
        self._published_ns = self._cells.values[PUBLISHED_NS] = time.monotonic_ns()
        return published.checkpoint

    def _put_files(self, published: _Published) -> _Published:
        files = _files_after(published.edge, published.bundle, published.pending)
        # Never a file that an earlier checkpoint covers: those have other names, or are the same and left out.
        self._disk.lay_all([(self.root / tile.path, data) for tile, data in files.tiles])
        checkpoint = Checkpoint(self.key.name, files.edge.size, files.edge.root()).signed(self._signer)
        self._disk.put(self.root / CHECKPOINT, checkpoint.to_bytes(), scratch=self.root)
        self._remove_partial(files.tiles)
        return replace(
            published,
            checkpoint=checkpoint,
            edge=files.edge,
            bundle=files.bundle,
            mark=self._mark(),
            pending=[],
        )

    def _settle(self, published: _Published) -> None:
        """Sync every tile made since the write-ahead file began, by whichever process."""
        first, size = published.settled, published.checkpoint.size
        tiles = list(edge_tiles(size))
        for level in range(TILE_LEVELS):
            width = TILE_WIDTH ** (level + 1)
            tiles += [Tile(level, index) for index in range(first // width, size // width)]
        tiles += [Tile(ENTRIES, tile.index, tile.width) for tile in tiles if tile.level == 0]
        self._disk.sync_all([self.root / tile.path for tile in tiles])

    def _heal(self) -> None:
        """After a failed sync: the same entries in a new file that is synced as a whole."""
        self._catch_up()
        self._settle(self._published)
        self._renew()

    def _renew(self) -> None:
        """Put a new write-ahead file in place, from the last full bundle on if what is before it was settled."""
        published = self._published
        kept = [*published.bundle, *published.pending]
        start = published.checkpoint.size - len(published.bundle)
        batches = _batches(start, kept)
        with self._locked():
            if self._wal.generation != published.generation:
                return  # a writer recovered it meanwhile; the next publish renews it
            count = self._wal.next - start
            # What writers did since it was read goes over as it stands, to be read by the next publish.
            self._wal.create(start, batches + self._wal.rest(published.read_to), count)
            published.generation, published.read_to = self._wal.generation, HEADER_BYTES + len(batches)
            published.settled = start

    def _begin(self) -> None:
        if (self.root / "tile").exists() or (self.root / WAL).exists():
            raise Untrusted(
                f"{self.root} holds a ledger whose checkpoint is missing; restore it from a backup"
            )
        empty = Checkpoint(self.key.name, 0, Edge().root()).signed(self._signer)
        self._disk.put(self.root / CHECKPOINT, empty.to_bytes(), scratch=self.root)
        self._wal.create(0, b"", 0)

    def _mark(self) -> tuple[int, int]:
        with unavailable(f"{self.root}: the checkpoint is gone"):
            found = os.stat(self.root / CHECKPOINT)
        return found.st_ino, found.st_mtime_ns

    def _remove_partial(self, tiles: list[tuple[Tile, bytes]]) -> None:
        # A full tile serves every width, so C2SP lets its partial ones go. They are sound: should that fail, they
        # only stay, and the checkpoint is out already.
        for tile, _ in tiles:
            folder = self.root / f"{tile.full.path}.p"
            if tile.width == TILE_WIDTH and folder.is_dir():
                with suppress(Unavailable), unavailable(f"cannot remove {folder}"):
                    for path in folder.iterdir():
                        self._disk.remove(path)
                    folder.rmdir()


def _batch_bytes(entries: Sequence[bytes]) -> int:
    if max(map(len, entries)) > MAX_ENTRY_BYTES:
        raise ValueError(f"an entry is longer than {MAX_ENTRY_BYTES} bytes")
    size_bytes = sum(map(len, entries)) + 2 * len(entries)
    if size_bytes > MAX_BATCH_BYTES:
        raise ValueError(
            f"{len(entries)} entries of {size_bytes} bytes in one append, at most {MAX_BATCH_BYTES} fit"
        )
    return size_bytes


def _files_after(before: Edge, bundle: Sequence[bytes], pending: Sequence[bytes]) -> _Files:
    """What `pending` adds to a tree with edge `before` whose last entries, short of a full bundle, are `bundle`."""
    edge = before.copy()
    tiles = edge.add(leaf_hashes(pending))
    known = set(edge_tiles(before.size))
    tiles += [(tile, data) for tile, data in edge.partial() if tile not in known]
    unsettled = [*bundle, *pending]
    first = edge.size - len(unsettled)
    for start in range(0, len(unsettled), TILE_WIDTH):
        entries = unsettled[start : start + TILE_WIDTH]
        tiles.append((tile_at(ENTRIES, (first + start) // TILE_WIDTH, edge.size), encode_entries(entries)))
    return _Files(tiles, edge, unsettled[len(unsettled) - edge.size % TILE_WIDTH :])


def _holds(path: Path, data: bytes) -> bool:
    try:
        return read_file(path, len(data)) == data
    except (OSError, Malformed):
        return False


def _batches(start: int, entries: Sequence[bytes]) -> bytes:
    # A thousand entries of the greatest length fit one batch.
    step = MAX_BATCH_BYTES // (MAX_ENTRY_BYTES + 2)
    return b"".join(encode_batch(start + i, entries[i : i + step]) for i in range(0, len(entries), step))
