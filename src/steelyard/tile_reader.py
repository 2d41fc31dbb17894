"""Reading a ledger folder: tiles, entries, the checkpoint and proofs, with no key, no lock and no write."""

from collections.abc import Iterator
from pathlib import Path

from steelyard.disk import read_file, unavailable
from steelyard.errors import Malformed
from steelyard.ledger import (
    ENTRIES,
    MAX_BUNDLE_BYTES,
    TILE_WIDTH,
    Checkpoint,
    InclusionProof,
    Tile,
    decode_entries,
    nodes_of,
    tile_at,
)
from steelyard.merkle import HASH_BYTES, consistency_path, inclusion_path
from steelyard.note import MAX_NOTE_BYTES
from steelyard.wal import MAX_WAL_BYTES, Tail, decode_wal

CHECKPOINT = "checkpoint"
WAL = "wal"


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
