"""The lowest floor of the HDF5 reader: bounded reads, the map of what was read, and datatypes.

    offset, length   eight bytes each, little-endian; an offset of all ones means "nothing there"
    datatype         class and version (1), class bits (3), element size (4), properties of the class
    dataspace        version, rank, flags, then `rank` sizes of eight bytes and, with flag 1, as many maxima

Source: "HDF5 File Format Specification Version 3.0", sections III and IV.A.2.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from steelyard.errors import Malformed
from steelyard.formats.base import ByteSource, Rule

UNDEFINED = (1 << 64) - 1
MAX_BLOCK_BYTES = 16 << 20  # one piece of metadata
MAX_EXTENTS = 400_000
MAX_HASHED_BYTES = 6 << 20  # in one file; the hash is plain Python
MAX_RANK = 32
MAX_MEMBERS = 1024
MAX_TYPE_DEPTH = 8

_WRITE_AGAIN = "Write the file again with h5py's defaults, or save the weights as safetensors."
RULES: Mapping[str, Rule] = {
    "hdf5/superblock": Rule("A header that two readers find or follow differently.", _WRITE_AGAIN),
    "hdf5/size": Rule("A second file behind this one, or a file that is cut.", _WRITE_AGAIN),
    "hdf5/offset": Rule("An offset or length that makes a reader leave the file.", _WRITE_AGAIN),
    "hdf5/overlap": Rule("Bytes that two structures claim: changing one changes the other.", _WRITE_AGAIN),
    "hdf5/checksum": Rule("Metadata that was changed after it was written.", _WRITE_AGAIN),
    "hdf5/structure": Rule("A structure that is not what the format allows there.", _WRITE_AGAIN),
    "hdf5/limit": Rule("So many objects that reading them exhausts memory or time.", _WRITE_AGAIN),
    "hdf5/cycle": Rule("A group that contains itself, so that walking the file never ends.", _WRITE_AGAIN),
    "hdf5/external": Rule(
        "A link or a dataset whose content is read from another file of the machine (CVE-2026-1669).",
        "Store the data inside the file.",
    ),
    "hdf5/link": Rule("A soft or user-defined link, which means what the reader makes of it.", _WRITE_AGAIN),
    "hdf5/filter": Rule(
        "A filter outside the library: reading the data loads a shared library by its number.",
        "Use gzip, shuffle and fletcher32 only.",
    ),
    "hdf5/storage": Rule(
        "A dataset whose stored bytes are not what its shape says: over-read, hidden bytes or a bomb.",
        _WRITE_AGAIN,
    ),
    "hdf5/unsupported": Rule("A part of the format that is not read, hence not checked.", _WRITE_AGAIN),
    "hdf5/pytables": Rule(
        "PyTables unpickles attributes and object arrays when the file is read.",
        "Store the table as Parquet, or the arrays with h5py.",
    ),
    "hdf5/hidden": Rule("Bytes between the structures that no reader shows.", "Run h5repack on the file."),
}


def refuse(rule: str, message: str, offset: int | None = None) -> NoReturn:
    raise Malformed(message, rule=f"hdf5/{rule}", offset=offset)


@dataclass(slots=True)
class Bytes:
    """The file, and which of its bytes have been explained by which structure."""

    source: ByteSource
    extents: list[tuple[int, int]] = field(default_factory=list)
    claimed: int = 0
    hashed: int = 0

    def block(self, offset: int, size: int) -> bytes:
        """Metadata at `offset`. Raises Malformed when it is outside the file or over the limit."""
        self.check(offset, size)
        if size > MAX_BLOCK_BYTES:
            refuse("limit", f"{size} bytes of metadata in one piece", offset)
        return self.source.read(offset, size)

    def check(self, offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > self.source.size:
            refuse("offset", f"{size} bytes at {offset} are outside the {self.source.size} bytes", None)

    def claim(self, offset: int, size: int) -> None:
        """Note that a structure owns these bytes; overlaps are found once all are known."""
        self.check(offset, size)
        if len(self.extents) >= MAX_EXTENTS:
            refuse("limit", f"more than {MAX_EXTENTS} structures", offset)
        self.claimed += size
        if self.claimed > self.source.size:  # said now, before the same bytes are read a thousand times
            refuse(
                "overlap", f"the structures claim more than the {self.source.size} bytes of the file", offset
            )
        if size:
            self.extents.append((offset, offset + size))

    def spend_hash(self, size: int) -> None:
        """Count bytes that are about to be hashed."""
        self.hashed += size
        if self.hashed > MAX_HASHED_BYTES:
            refuse("limit", f"more than {MAX_HASHED_BYTES} bytes of metadata with checksums")

    def gaps(self) -> list[tuple[int, int]]:
        """What nothing claims, as (begin, end). Raises Malformed when two claims overlap."""
        self.extents.sort()
        gaps = []
        at = 0
        for begin, end in self.extents:
            if begin < at:
                refuse("overlap", f"{min(at, end) - begin} bytes belong to two structures", begin)
            if begin > at:
                gaps.append((at, begin))
            at = end
        if at < self.source.size:
            gaps.append((at, self.source.size))
        return gaps


class Cursor:
    """Little-endian fields of one block, in order. Raises Malformed past its end."""

    __slots__ = ("at", "base", "data")

    def __init__(self, data: bytes, base: int) -> None:
        self.data, self.base, self.at = data, base, 0

    def take(self, size: int) -> bytes:
        if size < 0 or self.at + size > len(self.data):
            refuse("offset", f"a field of {size} bytes runs past its structure", self.base + self.at)
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def zeros(self, size: int, what: str) -> None:
        if any(self.take(size)):
            refuse("structure", f"reserved bytes of {what} are not zero", self.base + self.at - size)

    def expect(self, wanted: bytes, what: str) -> None:
        found = self.take(len(wanted))
        if found != wanted:
            refuse("structure", f"{what}: found {found!r}, expected {wanted!r}", self.base)

    def name(self, padded: bool) -> str:
        """A zero-terminated text, padded to eight bytes where `padded`."""
        end = self.data.find(b"\0", self.at)
        if end < 0:
            refuse("offset", "a name without an end", self.base + self.at)
        size = end - self.at + 1
        text = self.take(-(-size // 8) * 8 if padded else size)[: size - 1]
        return text.decode("utf-8", "backslashreplace")

    @property
    def left(self) -> int:
        return len(self.data) - self.at


INTEGER, FLOAT, STRING, BITS, OPAQUE, COMPOUND, ENUM, VLEN, ARRAY = 0, 1, 3, 4, 5, 6, 8, 9, 10
_FIXED_PROPERTIES: Mapping[int, int] = {INTEGER: 4, FLOAT: 12, STRING: 0, BITS: 4}


@dataclass(frozen=True, slots=True)
class Datatype:
    """kind: the datatype class. size: bytes of one element as stored. is_text: a variable-length string.

    parts: offsets and types of what lies inside one element (compound members, the array's base).
    """

    kind: int
    size: int
    is_text: bool = False
    base: "Datatype | None" = None
    parts: tuple[tuple[int, "Datatype"], ...] = ()

    def has_heap(self) -> bool:
        """Whether elements point into a global heap."""
        return self.kind == VLEN or any(part.has_heap() for _, part in self.parts)


def datatype(cursor: Cursor, depth: int = 0) -> Datatype:
    """The datatype at the cursor. Raises Malformed; references, times and unknown classes are refused by name."""
    if depth > MAX_TYPE_DEPTH:
        refuse("limit", f"datatypes nest deeper than {MAX_TYPE_DEPTH}", cursor.base + cursor.at)
    at = cursor.base + cursor.at
    first, bits, size = cursor.number(1), cursor.number(3), cursor.number(4)
    kind, version = first & 15, first >> 4
    if not 1 <= version <= 5:  # 4 and 5 changed references and added complex numbers only
        refuse("unsupported", f"version {version} of a datatype", at)
    if not 0 < size <= MAX_BLOCK_BYTES:
        refuse("structure", f"an element of {size} bytes", at)
    if kind in _FIXED_PROPERTIES:
        cursor.take(_FIXED_PROPERTIES[kind])
        return Datatype(kind, size)
    if kind == OPAQUE:
        cursor.take(bits & 0xFF)
        return Datatype(kind, size)
    if kind == COMPOUND:
        return Datatype(kind, size, parts=_members(cursor, bits & 0xFFFF, version, size, depth))
    if kind == ENUM:
        return _enumeration(cursor, bits & 0xFFFF, version, size, depth)
    if kind == VLEN:
        base = datatype(cursor, depth + 1)
        if base.has_heap() or size != 16:
            refuse("unsupported", "variable-length data inside variable-length data", at)
        return Datatype(kind, size, is_text=bits & 15 == 1, base=base)
    if kind == ARRAY:
        return _array(cursor, version, size, depth, at)
    refuse("unsupported", f"datatype class {kind} (2 time, 7 reference)", at)


def _members(
    cursor: Cursor, count: int, version: int, size: int, depth: int
) -> tuple[tuple[int, Datatype], ...]:
    if not 0 < count <= MAX_MEMBERS:
        refuse("limit", f"a compound of {count} members", cursor.base + cursor.at)
    members = []
    width = 4 if version < 3 else max(1, (size.bit_length() + 7) // 8)
    for _ in range(count):
        cursor.name(padded=version < 3)
        offset = cursor.number(width)
        if version == 1:
            rank = cursor.number(1)
            cursor.take(3 + 4 + 4 + 16)
            if rank:
                refuse("unsupported", "an array inside a version 1 compound", cursor.base + cursor.at)
        members.append((offset, datatype(cursor, depth + 1)))
    end = 0
    for offset, member in sorted(members, key=lambda pair: pair[0]):
        if offset < end or offset + member.size > size:
            refuse("structure", "compound members overlap or leave the element", cursor.base + cursor.at)
        end = offset + member.size
    return tuple(members)


def _enumeration(cursor: Cursor, count: int, version: int, size: int, depth: int) -> Datatype:
    base = datatype(cursor, depth + 1)
    if base.kind != INTEGER or base.size != size:
        refuse("structure", "an enumeration whose base is not its integer", cursor.base + cursor.at)
    for _ in range(count):
        cursor.name(padded=version < 3)
    cursor.take(size * count)
    return Datatype(ENUM, size, base=base)


def _array(cursor: Cursor, version: int, size: int, depth: int, at: int) -> Datatype:
    rank = cursor.number(1)
    if not 0 < rank <= MAX_RANK or version < 2:
        refuse("structure", f"an array of rank {rank}", at)
    if version == 2:
        cursor.take(3)
    count = 1
    for _ in range(rank):
        count *= cursor.number(4)
    if version == 2:
        cursor.take(4 * rank)
    base = datatype(cursor, depth + 1)
    if count * base.size != size:
        refuse("structure", f"an array of {count} times {base.size} bytes in {size}", at)
    if base.has_heap():
        refuse("unsupported", "an array of variable-length data", at)
    return Datatype(ARRAY, size, base=base)


def dataspace(cursor: Cursor) -> tuple[int, ...] | None:
    """Sizes of each axis; () is one element, None is no element at all. Raises Malformed."""
    at = cursor.base + cursor.at
    version, rank, flags = cursor.number(1), cursor.number(1), cursor.number(1)
    if version not in {1, 2} or rank > MAX_RANK or flags & ~1:
        refuse("structure", f"a dataspace of version {version}, rank {rank}, flags {flags}", at)
    kind = cursor.number(1)
    if version == 1:
        cursor.take(4)
    elif kind == 2 and rank == 0:
        return None
    elif kind > 2 or (kind == 0) != (rank == 0):
        refuse("structure", f"a dataspace of kind {kind} and rank {rank}", at)
    shape = tuple(cursor.number(8) for _ in range(rank))
    if flags & 1:
        maxima = tuple(cursor.number(8) for _ in range(rank))
        if any(most < now for now, most in zip(shape, maxima, strict=True)):
            refuse("structure", "an axis longer than its maximum", at)
    return shape


def elements(shape: tuple[int, ...] | None) -> int:
    """How many elements; checked against 63 bits so that no reader's product wraps."""
    if shape is None:
        return 0
    count = 1
    for size in shape:
        count *= size
        if count >= 1 << 63:
            refuse("storage", f"a shape of {len(shape)} axes holds more than 2^63 elements")
    # A zero elsewhere must not hide an axis that overflows on its own.
    if any(size >= 1 << 63 for size in shape):
        refuse("storage", "an axis of more than 2^63 elements")
    return count
