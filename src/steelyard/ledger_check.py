"""Check a ledger as an outsider: its folder and its verifier key, nothing of ours running, no lock, no write.

Every entry is hashed, every tile is compared with the hashes it should hold, the root with the signed checkpoint.
What was signed but is missing, added, changed or moved shows as the first file or entry that is wrong. A whole
folder set back to an earlier signed state is consistent in itself: give `since`, a checkpoint kept elsewhere, to
find that too. The write-ahead file is not signed yet: its sound entries are counted, not vouched for.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from steelyard.digest import JSON
from steelyard.errors import Malformed, Untrusted
from steelyard.ledger import ENTRIES, TILE_WIDTH, Checkpoint, Edge, Tile, split_hashes, tile_at
from steelyard.merkle import HASH_BYTES, leaf_hashes
from steelyard.note import VerifierKey
from steelyard.tile_reader import TileReader
from steelyard.wal import Tail


@dataclass(frozen=True, slots=True)
class Fault:
    """The first thing wrong: `place` is a file below the ledger's folder, `index` the entry where one is known."""

    place: str
    reason: str
    index: int | None = None

    def to_json(self) -> dict[str, JSON]:
        return {"place": self.place, "reason": self.reason, "index": self.index}


@dataclass(frozen=True, slots=True)
class LogReport:
    """What was found. `size`, `root`: what the checkpoint says. `unpublished`: entries durable but not yet signed."""

    origin: str
    size: int
    root: bytes
    unpublished: int
    fault: Fault | None

    @property
    def is_intact(self) -> bool:
        return self.fault is None

    def to_json(self) -> dict[str, JSON]:
        return {
            "intact": self.is_intact,
            "origin": self.origin,
            "size": self.size,
            "root": self.root.hex(),
            "unpublished": self.unpublished,
            "fault": self.fault.to_json() if self.fault else None,
        }


def verify_log(
    root: Path,
    vkey: str,
    *,
    since: Checkpoint | Sequence[Checkpoint] = (),
    progress: Callable[[int], None] | None = None,
) -> LogReport:
    """Recompute the ledger in folder `root` and compare it with what the owner of `vkey` signed.

    since: earlier checkpoints of the same log, signed by the same key, that must be prefixes of this one.
    progress: called with the number of entries checked since the last call.
    Raises Malformed when the key or checkpoint cannot be parsed, Unavailable when the folder cannot be read.
    """
    key = VerifierKey.parse(vkey)
    reader = TileReader(root)
    earlier = [since] if isinstance(since, Checkpoint) else list(since)
    tail, tail_fault = _tail(reader)  # before the checkpoint: a live log may publish between the two
    if tail is None and not (root / "checkpoint").exists() and (root / "tile").is_dir():
        raise Malformed(
            f"{root} has tiles and no checkpoint: nothing says what they should hold",
            rule="ledger/checkpoint",
        )
    checkpoint = reader.checkpoint()
    unpublished = 0
    fault = _signature_fault(checkpoint, key) or _since_fault(checkpoint, key, earlier) or tail_fault
    if tail is not None:
        unpublished = max(0, tail.first + len(tail.entries) - checkpoint.size)
        if tail.first > checkpoint.size:
            reason = (
                f"begins at entry {tail.first}, the checkpoint ends at {checkpoint.size}: it was set back"
            )
            fault = fault or Fault("wal", reason, checkpoint.size)
    if fault is None:
        fault = _Walk(reader, checkpoint, earlier, progress or (lambda _: None)).fault()
    return LogReport(checkpoint.origin, checkpoint.size, checkpoint.root, unpublished, fault)


def _tail(reader: TileReader) -> tuple[Tail | None, Fault | None]:
    if not (reader.root / "wal").exists():
        return None, None  # a published copy has none
    try:
        return reader.tail(), None
    except Malformed as error:
        return None, Fault("wal", error.message)


def _signature_fault(checkpoint: Checkpoint, key: VerifierKey) -> Fault | None:
    try:
        checkpoint.check(key)
    except Untrusted as error:
        return Fault("checkpoint", error.message)
    return None


def _since_fault(checkpoint: Checkpoint, key: VerifierKey, earlier: Sequence[Checkpoint]) -> Fault | None:
    for item in earlier:
        item.check(key)
    size = max([item.size for item in earlier], default=0)
    if size > checkpoint.size:
        reason = (
            f"covers {checkpoint.size} entries, an earlier checkpoint covers {size}: entries were cut off"
        )
        return Fault("checkpoint", reason, checkpoint.size)
    return None


class _Walk:
    """One pass over the bundles, building the tree beside the tiles that claim to hold it."""

    def __init__(
        self,
        reader: TileReader,
        checkpoint: Checkpoint,
        earlier: Sequence[Checkpoint],
        progress: Callable[[int], None],
    ) -> None:
        self._reader = reader
        self._checkpoint = checkpoint
        self._roots: dict[int, set[bytes]] = {}  # what earlier checkpoints signed, by size
        for item in earlier:
            self._roots.setdefault(item.size, set()).add(item.root)
        self._progress = progress
        self._edge = Edge()

    def fault(self) -> Fault | None:
        size = self._checkpoint.size
        found = self._since_fault()
        if found is not None:
            return found
        for index in range(-(-size // TILE_WIDTH)):
            found = self._bundle_fault(index)
            if found is not None:
                return found
        for tile, data in self._edge.partial():
            found = self._tile_fault(tile, data)
            if found is not None:
                return found
        if self._edge.root() != self._checkpoint.root:
            # Entries and tiles agree with each other, so both were rewritten; no file of its own is at fault.
            reason = (
                f"the entries give root {self._edge.root().hex()}, signed is {self._checkpoint.root.hex()}"
            )
            return Fault("tile", reason)
        return None

    def _bundle_fault(self, index: int) -> Fault | None:
        size = self._checkpoint.size
        tile = tile_at(ENTRIES, index, size)
        try:
            entries = self._reader.bundle(index, size)
        except Malformed as error:
            return Fault(tile.path, error.message, index * TILE_WIDTH)
        leaves = leaf_hashes(entries)
        found = self._leaf_fault(tile_at(0, index, size), leaves)
        if found is not None:
            return found
        filled: list[tuple[Tile, bytes]] = []
        start = self._edge.size
        stops = [size for size in sorted(self._roots) if start < size <= start + len(leaves)]
        for stop in [*stops, start + len(leaves)]:  # where an earlier tree ends, its root is compared
            filled += self._edge.add(leaves[self._edge.size - start : stop - start])
            found = found or self._since_fault()
        for full, data in filled:
            found = found or self._tile_fault(full, data)
        self._progress(len(entries))
        return found

    def _leaf_fault(self, tile: Tile, leaves: list[bytes]) -> Fault | None:
        try:
            hashes = split_hashes(self._reader.tile(tile))
        except Malformed as error:
            return Fault(tile.path, error.message, tile.index * TILE_WIDTH)
        for offset, (stored, computed) in enumerate(zip(hashes, leaves, strict=True)):
            if stored != computed:
                index = tile.index * TILE_WIDTH + offset
                bundle = tile_at(ENTRIES, tile.index, self._checkpoint.size)
                return Fault(
                    bundle.path, f"entry {index} does not hash to what {tile.path} holds for it", index
                )
        return None

    def _tile_fault(self, tile: Tile, data: bytes) -> Fault | None:
        try:
            stored = self._reader.tile(tile)
        except Malformed as error:
            return Fault(tile.path, error.message)
        if stored == data:
            return None
        wrong = next(
            i
            for i in range(tile.width)
            if stored[i * HASH_BYTES :][:HASH_BYTES] != data[i * HASH_BYTES :][:HASH_BYTES]
        )
        return Fault(tile.path, f"hash {wrong} is not that of the entries below it")

    def _since_fault(self) -> Fault | None:
        roots = self._roots.get(self._edge.size)
        if roots is None or roots == {self._edge.root()}:
            return None
        reason = f"the first {self._edge.size} entries are not those of the earlier checkpoint: the past was rewritten"
        return Fault("checkpoint", reason)
