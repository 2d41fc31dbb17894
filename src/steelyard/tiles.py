"""The ledger on disk: appends that are durable on return, tiles and signed checkpoints published behind them.

    <root>/checkpoint           signed tree head            <root>/wal           entries since then (see wal.py)
    <root>/tile/...             tiles and entry bundles     <root>/lock, publish.lock   between processes

Append writes one batch to the write-ahead file and syncs it once, for all threads that wait. Publish writes
tiles, syncs them, then replaces the checkpoint, so a checkpoint never promises what is not there. Several processes
may append and publish: each takes the lock and first reads what the others did.
"""

import os
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from steelyard.disk import Disk, FileLock, read_file, sweep, unavailable
from steelyard.errors import Malformed, SteelyardError, Unavailable, Untrusted
from steelyard.evidence import Signer
from steelyard.ledger import (
    ENTRIES,
    MAX_BUNDLE_BYTES,
    MAX_ENTRY_BYTES,
    TILE_WIDTH,
    Checkpoint,
    Edge,
    InclusionProof,
    Tile,
    decode_entries,
    encode_entries,
    nodes_of,
    tile_at,
)
from steelyard.merkle import HASH_BYTES, consistency_path, inclusion_path, leaf_hashes
from steelyard.note import MAX_NOTE_BYTES, NoteSigner, VerifierKey
from steelyard.wal import MAX_BATCH_BYTES, MAX_WAL_BYTES, Tail, Wal, decode_wal

CHECKPOINT = "checkpoint"
WAL = "wal"
WAL_RENEW_BYTES = 1 << 20  # above this a publish starts a new write-ahead file
MAX_UNPUBLISHED_BYTES = 64 << 20  # above this an append publishes first


class TileReader:
    """Reads a ledger folder. Needs no key and changes nothing; proofs are made here and checked elsewhere."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def checkpoint(self) -> Checkpoint:
        """The last signed tree head, its signature not checked. Raises Malformed, Unavailable."""
        with unavailable(f"no ledger at {self.root}: cannot read its checkpoint"):
            return Checkpoint.parse(read_file(self.root / CHECKPOINT, MAX_NOTE_BYTES))

    def tail(self) -> Tail:
        """Entries of the write-ahead file, published ones among them. Raises Malformed, Unavailable."""
        path = self.root / WAL
        with unavailable(f"cannot read {path}"):
            return decode_wal(read_file(path, MAX_WAL_BYTES), str(path))

    def tile(self, tile: Tile) -> bytes:
        """Bytes of a tile of hashes, cut from the full tile where the partial one is gone."""
        data = self._tile_bytes(tile, HASH_BYTES * TILE_WIDTH)
        if len(data) not in (HASH_BYTES * tile.width, HASH_BYTES * TILE_WIDTH):
            wanted = HASH_BYTES * tile.width
            raise Malformed(f"{tile.path} has {len(data)} bytes, expected {wanted}", rule="ledger/tile")
        return data[: HASH_BYTES * tile.width]

    def bundle(self, index: int, size: int) -> list[bytes]:
        """Entries of bundle `index` in a log of `size` entries."""
        tile = tile_at(ENTRIES, index, size)
        entries = decode_entries(self._tile_bytes(tile, MAX_BUNDLE_BYTES))
        if len(entries) not in (tile.width, TILE_WIDTH):
            raise Malformed(
                f"{tile.path} has {len(entries)} entries, expected {tile.width}", rule="ledger/bundle"
            )
        return entries[: tile.width]

    def entries(self, start: int, stop: int, size: int) -> Iterator[bytes]:
        """Entries start to stop, the last excluded, of a log of `size`; one bundle in memory at a time."""
        for index in range(start // TILE_WIDTH, -(-stop // TILE_WIDTH)):
            first = index * TILE_WIDTH
            yield from self.bundle(index, size)[max(0, start - first) : stop - first]

    def prove_inclusion(self, index: int) -> InclusionProof:
        """Proof that entry `index` is under the last checkpoint. ValueError when it is not published."""
        checkpoint = self.checkpoint()
        path = inclusion_path(nodes_of(self.tile, checkpoint.size), index, checkpoint.size)
        (entry,) = self.entries(index, index + 1, checkpoint.size)
        return InclusionProof(index, entry, path, checkpoint)

    def prove_consistency(self, old_size: int) -> tuple[bytes, ...]:
        """Proof that the last checkpoint continues the tree of `old_size` entries."""
        size = self.checkpoint().size
        return consistency_path(nodes_of(self.tile, size), old_size, size)

    def _tile_bytes(self, tile: Tile, limit: int) -> bytes:
        with unavailable(f"cannot read {tile.path}"):
            try:
                return read_file(self.root / tile.path, limit)
            except FileNotFoundError:
                if tile.width == TILE_WIDTH:
                    raise Malformed(f"{tile.path} is missing", rule="ledger/missing") from None
                return self._tile_bytes(tile.full, limit)


@dataclass(slots=True)
class _Waiting:
    """Entries one caller wants in, then where they are or why not."""

    entries: Sequence[bytes]
    size_bytes: int
    first: int = -1
    error: SteelyardError | None = None


@dataclass(slots=True)
class _Published:
    """What the last checkpoint covers, and what appending past it needs."""

    checkpoint: Checkpoint
    edge: Edge
    bundle: list[bytes]  # entries of the last, not yet full bundle
    mark: tuple[int, int] = (0, 0)  # inode and time of the checkpoint file this was read from


@dataclass(slots=True)
class _Files:
    """What a new checkpoint needs written, and the state behind it."""

    tiles: list[tuple[Tile, bytes]]
    edge: Edge
    bundle: list[bytes]


class TileLog:
    """An open ledger. Safe in threads and across processes; blocking, so call it in a thread from asyncio."""

    def __init__(self, root: Path, signer: NoteSigner, disk: Disk) -> None:
        self._reader = TileReader(root)
        self._signer = signer
        self._disk = disk
        self._wal = Wal(root / WAL, disk)
        self._lock = FileLock(root / "lock")
        self._publish_lock = FileLock(root / "publish.lock")
        self._mutex = (
            threading.Lock()
        )  # guards the fields below and the write-ahead file; the queue guards itself
        self._publish_mutex = threading.Lock()
        self._queue: deque[_Waiting] = deque()
        self._publishing = False
        self._pending: list[bytes] = []  # durable and not yet published
        self._pending_bytes = 0
        self._published: _Published

    @classmethod
    def open(cls, root: Path, *, origin: str, signer: Signer, disk: Disk | None = None) -> "TileLog":
        """Open the ledger `origin` in folder `root`, or begin one there. `signer` is an Ed25519 key.

        Recovers from a kill at any point: a torn append is cut, what was acknowledged is kept.
        Raises Untrusted when the folder's checkpoint is not this log's, Malformed when a file is damaged,
        Unavailable when the disk does not answer.
        """
        disk = disk or Disk()
        disk.make_folder(root)
        log = cls(root, NoteSigner(origin, signer), disk)
        with log._publish_mutex, log._publish_lock.held(), log._locked():
            sweep(root)
            if not (root / CHECKPOINT).exists():
                log._begin()
            elif not (root / WAL).exists():
                log._wal.create(log._reader.checkpoint().size, [])
            log._load()
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
        """Entries this process knows of, unpublished ones included."""
        return self._published.checkpoint.size + len(self._pending)

    def append(self, entries: Sequence[bytes]) -> range:
        """Enter `entries` in order and return their indices. They survive a power cut once this returns.

        Threads that call at the same time share one sync. ValueError when an entry is longer than
        MAX_ENTRY_BYTES; Unavailable when the disk refuses, and then none of them is entered.
        """
        if not entries:
            return range(self.size, self.size)
        waiting = _Waiting(entries, _batch_bytes(entries))
        if self._pending_bytes > MAX_UNPUBLISHED_BYTES:
            self.publish()
        self._queue.append(waiting)
        with self._mutex:
            while waiting.first < 0 and waiting.error is None:
                self._commit()
        if waiting.error is not None:
            raise waiting.error
        return range(waiting.first, waiting.first + len(entries))

    def publish(self) -> Checkpoint:
        """Put every durable entry under a signed checkpoint and return it.

        Raises Unavailable when the disk refuses: the old checkpoint then stands, the entries stay durable.
        """
        with self._publish_mutex, self._publish_lock.held():
            with self._locked():
                self._refresh()
                published, pending = self._published, self._pending[:]
                if not pending:
                    return published.checkpoint
                self._wal.sync()  # another process may have died between its write and its sync
                self._publishing = True
            try:
                return self._publish(published, pending)
            finally:
                self._publishing = False

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
        with self._locked():
            self._refresh()
            size, pending = self._published.checkpoint.size, self._pending[:]
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
        self.publish()
        self._wal.close()
        self._lock.close()
        self._publish_lock.close()

    def _publish(self, published: _Published, pending: Sequence[bytes]) -> Checkpoint:
        files = _files_after(published, pending)
        self._disk.put_all([(self.root / tile.path, data) for tile, data in files.tiles], scratch=self.root)
        checkpoint = Checkpoint(self.key.name, files.edge.size, files.edge.root()).signed(self._signer)
        self._disk.put(self.root / CHECKPOINT, checkpoint.to_bytes(), scratch=self.root)
        with self._locked():
            later = self._pending[checkpoint.size - self._published.checkpoint.size :]
            self._published = _Published(checkpoint, files.edge, files.bundle, self._mark())
            self._pending, self._pending_bytes = [], 0
            self._extend(later)
            if self._wal.end > WAL_RENEW_BYTES and not self._wal.is_replaced():
                self._extend(self._wal.catch_up())
                self._wal.create(checkpoint.size, self._pending)
        self._remove_partial(files.tiles)
        return checkpoint

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._mutex, self._lock.held():
            yield

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
        try:
            with self._lock.held():
                self._refresh()
                first = self.size
                self._wal.append(entries)
            failure = None
        except SteelyardError as error:
            failure = error
        finally:  # whatever happened, nobody in this batch waits for ever
            for waiting in batch:
                waiting.error = failure
        if failure is None:
            self._extend(entries)
            for waiting in batch:
                waiting.first = first
                first += len(waiting.entries)

    def _refresh(self) -> None:
        # Both locks held. Cheap when no other process did anything: two stat calls. While this process publishes
        # no other can, so a new checkpoint is then its own.
        if self._wal.is_replaced() or (not self._publishing and self._mark() != self._published.mark):
            self._load()
        else:
            self._extend(self._wal.catch_up())

    def _load(self) -> None:
        mark = self._mark()
        checkpoint = self._reader.checkpoint()
        checkpoint.check(self.key)
        edge = Edge.of(checkpoint.size, self._reader.tile)
        if edge.root() != checkpoint.root:
            raise Untrusted(
                f"{self.root}: the tiles do not give the root of the checkpoint of {checkpoint.size}"
            )
        count = checkpoint.size % TILE_WIDTH
        bundle = self._reader.bundle(checkpoint.size // TILE_WIDTH, checkpoint.size) if count else []
        if leaf_hashes(bundle) != (edge.levels[0] if bundle else []):
            raise Untrusted(f"{self.root}: the last entry bundle does not give the hashes of its tile")
        tail = self._wal.load()
        if tail.first > checkpoint.size:
            raise Untrusted(
                f"{self.root}: the checkpoint covers {checkpoint.size} entries, the write-ahead file begins at "
                f"{tail.first}: the ledger was set back to an earlier state"
            )
        self._published = _Published(checkpoint, edge, bundle, mark)
        self._pending, self._pending_bytes = [], 0
        self._extend(tail.entries[checkpoint.size - tail.first :])
        if tail.first + len(tail.entries) < checkpoint.size:
            self._wal.create(checkpoint.size, [])

    def _begin(self) -> None:
        if (self.root / "tile").exists() or (self.root / WAL).exists():
            raise Untrusted(
                f"{self.root} holds a ledger whose checkpoint is missing; restore it from a backup"
            )
        empty = Checkpoint(self.key.name, 0, Edge().root()).signed(self._signer)
        self._disk.put(self.root / CHECKPOINT, empty.to_bytes(), scratch=self.root)
        self._wal.create(0, [])

    def _mark(self) -> tuple[int, int]:
        with unavailable(f"{self.root}: the checkpoint is gone"):
            found = os.stat(self.root / CHECKPOINT)
        return found.st_ino, found.st_mtime_ns

    def _extend(self, entries: Sequence[bytes]) -> None:
        self._pending += entries
        self._pending_bytes += sum(map(len, entries))

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


def _files_after(published: _Published, pending: Sequence[bytes]) -> _Files:
    edge = published.edge.copy()
    tiles = edge.add(leaf_hashes(pending))
    tiles += edge.partial()
    unsettled = [*published.bundle, *pending]
    first = edge.size - len(unsettled)
    for start in range(0, len(unsettled), TILE_WIDTH):
        bundle = unsettled[start : start + TILE_WIDTH]
        tiles.append((tile_at(ENTRIES, (first + start) // TILE_WIDTH, edge.size), encode_entries(bundle)))
    return _Files(tiles, edge, unsettled[len(unsettled) - edge.size % TILE_WIDTH :])
