"""Ledger: a Merkle log of entries as C2SP tiles, signed checkpoints and proofs that travel. Pure: no clock, no disk.

tile       1 to 256 hashes of 32 bytes, at tile/<level>/<index>; a tile of fewer has the suffix .p/<width>.
           Level 0 holds leaf hashes; level n + 1 holds the root of each full tile of level n.
entries    the same for entries: tile/entries/<index>, each entry after its length as a big-endian uint16
index      groups of three digits, all but the last begin with x: 1234067 is x001/x234/067
checkpoint a signed note of: origin, size, base64 root, extension lines
proof      "c2sp.org/tlog-proof@v1", "extra" with the entry, "index", the path's hashes, an empty line, a checkpoint

Sources: C2SP tlog-tiles.md, tlog-checkpoint.md, tlog-proof.md. Byte spec: docs/formats/ledger.md.
"""

import base64
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from steelyard.errors import Malformed, Untrusted
from steelyard.merkle import (
    HASH_BYTES,
    MAX_PATH,
    MAX_SIZE,
    Nodes,
    check_inclusion,
    complete_root,
    leaf_hash,
    ragged_root,
)
from steelyard.note import Note, NoteSignature, NoteSigner, VerifierKey, decode_base64

TILE_WIDTH = 256
TILE_HEIGHT = 8
ENTRIES = -1
MAX_ENTRY_BYTES = (1 << 16) - 1
MAX_BUNDLE_BYTES = TILE_WIDTH * (2 + MAX_ENTRY_BYTES)
MAX_PROOF_BYTES = 512 << 10

_PROOF_HEADER = "c2sp.org/tlog-proof@v1"
_LENGTH = struct.Struct(">H").pack
_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")


@dataclass(frozen=True, slots=True)
class Tile:
    """Which part of the tree a file holds. `level` 0 to 7, or ENTRIES for a bundle of entries."""

    level: int
    index: int
    width: int = TILE_WIDTH

    @property
    def path(self) -> str:
        """Path below the log's root, with "/" between components."""
        groups = [f"{self.index % 1000:03d}"]
        rest = self.index // 1000
        while rest:
            groups.insert(0, f"x{rest % 1000:03d}")
            rest //= 1000
        level = "entries" if self.level == ENTRIES else str(self.level)
        suffix = "" if self.width == TILE_WIDTH else f".p/{self.width}"
        return f"tile/{level}/{'/'.join(groups)}{suffix}"

    @property
    def full(self) -> "Tile":
        return Tile(self.level, self.index)


def tile_at(level: int, index: int, size: int) -> Tile:
    """The tile (level, index) as wide as a tree of `size` entries has it. ValueError when it has none."""
    hashes = size >> (TILE_HEIGHT * max(level, 0))
    width = min(TILE_WIDTH, hashes - index * TILE_WIDTH)
    if width < 1 or index < 0:
        raise ValueError(f"a tree of {size} has no tile {index} at level {level}")
    return Tile(level, index, width)


def edge_tiles(size: int) -> Iterator[Tile]:
    """The last tile of each level that is not full, lowest level first."""
    level = 0
    while hashes := size >> (TILE_HEIGHT * level):
        if hashes % TILE_WIDTH:
            yield Tile(level, hashes // TILE_WIDTH, hashes % TILE_WIDTH)
        level += 1


def nodes_of(read: Callable[[Tile], bytes], size: int) -> Nodes:
    """Hash reader over the tiles of a tree of `size` entries. `read` gives a tile's bytes, exactly its width."""
    cache: dict[Tile, bytes] = {}

    def node(height: int, index: int) -> bytes:
        level, above = divmod(height, TILE_HEIGHT)
        first = index << above
        tile = tile_at(level, first // TILE_WIDTH, size)
        data = cache.get(tile)
        if data is None:
            data = cache[tile] = read(tile)
        start = first % TILE_WIDTH
        return complete_root(split_hashes(data)[start : start + (1 << above)])

    return node


def split_hashes(data: bytes) -> list[bytes]:
    return [data[i : i + HASH_BYTES] for i in range(0, len(data), HASH_BYTES)]


def encode_entries(entries: Iterable[bytes]) -> bytes:
    """Bundle bytes. ValueError when an entry is longer than MAX_ENTRY_BYTES."""
    try:
        return b"".join([part for entry in entries for part in (_LENGTH(len(entry)), entry)])
    except struct.error as error:
        raise ValueError(f"an entry is longer than {MAX_ENTRY_BYTES} bytes") from error


def decode_entries(data: bytes) -> list[bytes]:
    """Entries of a bundle. Raises Malformed where a length runs past the end."""
    entries: list[bytes] = []
    offset = 0
    while offset < len(data):
        start = offset + 2
        stop = start + int.from_bytes(data[offset:start], "big")
        if stop > len(data) or start > len(data):
            raise Malformed(
                f"entry {len(entries)} runs past the bundle's end", rule="ledger/bundle", offset=offset
            )
        entries.append(data[start:stop])
        offset = stop
    return entries


class Edge:
    """The growing right-hand edge of a tree: for each tile level the hashes of its last, not yet full tile."""

    __slots__ = ("levels", "size")

    def __init__(self, size: int = 0, levels: Sequence[Sequence[bytes]] = ()) -> None:
        self.size = size
        self.levels = [list(hashes) for hashes in levels]

    @classmethod
    def of(cls, size: int, read: Callable[[Tile], bytes]) -> "Edge":
        """Edge of a tree of `size` entries, read from its partial tiles."""
        levels: list[list[bytes]] = []
        for tile in edge_tiles(size):
            levels += [[]] * (tile.level - len(levels))
            levels.append(split_hashes(read(tile)))
        return cls(size, levels)

    def copy(self) -> "Edge":
        return Edge(self.size, self.levels)

    def add(self, leaves: Sequence[bytes]) -> list[tuple[Tile, bytes]]:
        """Append leaf hashes. Returns the tiles this filled, with their bytes."""
        filled: list[tuple[Tile, bytes]] = []
        start = 0
        while start < len(leaves):
            taken = leaves[start : start + TILE_WIDTH - self.size % TILE_WIDTH]
            start += len(taken)
            self.size += len(taken)
            filled += self._carry(taken)
        return filled

    def _carry(self, hashes: Sequence[bytes]) -> Iterator[tuple[Tile, bytes]]:
        # `hashes` at most fill the tile they go to; a full tile sends its one root to the level above.
        level = 0
        while hashes:
            if level == len(self.levels):
                self.levels.append([])
            row = self.levels[level]
            row += hashes
            if len(row) < TILE_WIDTH:
                return
            yield Tile(level, (self.size >> (TILE_HEIGHT * (level + 1))) - 1), b"".join(row)
            hashes = [complete_root(row)]
            self.levels[level] = []
            level += 1

    def partial(self) -> Iterator[tuple[Tile, bytes]]:
        """The tiles that are not full, with their bytes."""
        for tile in edge_tiles(self.size):
            yield tile, b"".join(self.levels[tile.level])

    def root(self) -> bytes:
        """Tree head of everything added so far."""
        subtrees: list[bytes] = []
        for row in reversed(self.levels):
            start = 0
            for bit in reversed(range(TILE_HEIGHT)):
                if len(row) >> bit & 1:
                    subtrees.append(complete_root(row[start : start + (1 << bit)]))
                    start += 1 << bit
        return ragged_root(subtrees)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A tree head: `size` entries under `root` (32 bytes), said by the log named `origin`."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()
    signatures: tuple[NoteSignature, ...] = field(default=(), compare=False)

    @classmethod
    def parse(cls, data: bytes) -> "Checkpoint":
        """Read a signed checkpoint. Raises Malformed; checks no signature."""
        note = Note.parse(data)
        lines = note.text[:-1].split("\n")
        if len(lines) < 3 or not all(lines):
            raise Malformed(
                "a checkpoint is an origin, a size and a root, no empty lines", rule="ledger/checkpoint"
            )
        root = decode_base64(lines[2], "ledger/checkpoint")
        if len(root) != HASH_BYTES:
            raise Malformed(
                f"the checkpoint's root has {len(root)} bytes, expected 32", rule="ledger/checkpoint"
            )
        return cls(lines[0], _number(lines[1], "ledger/checkpoint"), root, tuple(lines[3:]), note.signatures)

    @property
    def text(self) -> str:
        """What is signed."""
        lines = (self.origin, str(self.size), base64.b64encode(self.root).decode(), *self.extensions)
        return "\n".join(lines) + "\n"

    def to_bytes(self) -> bytes:
        return Note(self.text, self.signatures).to_bytes()

    def signed(self, signer: NoteSigner) -> "Checkpoint":
        """The same tree head with one signature more."""
        signatures = (*self.signatures, signer.sign(self.text))
        return Checkpoint(self.origin, self.size, self.root, self.extensions, signatures)

    def check(self, key: VerifierKey) -> None:
        """Raise Untrusted unless `key` signed this and is the key of this origin."""
        if key.name != self.origin:
            raise Untrusted(f"the checkpoint is of log {self.origin!r}, the key is for {key.name!r}")
        Note(self.text, self.signatures).check([key])


@dataclass(frozen=True, slots=True)
class InclusionProof:
    """One entry, its place, the path to the root and the checkpoint that signs the root. Verifies offline."""

    index: int
    entry: bytes
    path: tuple[bytes, ...]
    checkpoint: Checkpoint

    def check(self, key: VerifierKey) -> None:
        """Raise Untrusted unless the log with `key` holds the entry at this index."""
        self.checkpoint.check(key)
        leaf = leaf_hash(self.entry)
        check_inclusion(leaf, self.index, self.checkpoint.size, self.checkpoint.root, self.path)

    def to_text(self) -> str:
        """C2SP tlog-proof with the entry as its extra data."""
        hashes = [base64.b64encode(item).decode() for item in self.path]
        entry = base64.b64encode(self.entry).decode()
        head = [_PROOF_HEADER, f"extra {entry}", f"index {self.index}", *hashes]
        return "\n".join(head) + "\n\n" + self.checkpoint.to_bytes().decode()

    @classmethod
    def parse(cls, data: bytes) -> "InclusionProof":
        """Read a tlog-proof that carries its entry. Raises Malformed; checks nothing."""
        rule = "ledger/proof"
        if len(data) > MAX_PROOF_BYTES:
            raise Malformed(f"{len(data)} bytes, at most {MAX_PROOF_BYTES} are read", rule=rule)
        head, gap, note = data.partition(b"\n\n")
        try:
            lines = head.decode("ascii").split("\n")
        except UnicodeDecodeError as error:
            raise Malformed("the proof is not ASCII", rule=rule, offset=error.start) from error
        if not gap or len(lines) < 3 or lines[0] != _PROOF_HEADER:
            raise Malformed(
                f"not a proof: expected {_PROOF_HEADER}, extra, index, hashes and a checkpoint", rule=rule
            )
        if not lines[1].startswith("extra ") or not lines[2].startswith("index "):
            raise Malformed("the proof's second line is extra, its third is index", rule=rule)
        path = tuple(decode_base64(line, rule) for line in lines[3:])
        if len(path) > MAX_PATH or any(len(item) != HASH_BYTES for item in path):
            raise Malformed(f"the path is not 0 to {MAX_PATH} hashes of 32 bytes", rule=rule)
        entry = decode_base64(lines[1].removeprefix("extra "), rule)
        index = _number(lines[2].removeprefix("index "), rule)
        return cls(index, entry, path, Checkpoint.parse(note))


def _number(text: str, rule: str) -> int:
    if not _NUMBER.fullmatch(text) or int(text) > MAX_SIZE:
        raise Malformed(f"{text[:40]!r} is not a decimal number below 2**63", rule=rule)
    return int(text)
