"""Where the numbers of an HDF5 dataset lie, and whether that is what its shape says.

    layout v3    1 class; 0 compact: size 2, data; 1 contiguous: address 8, size 8;
                 2 chunked: rank+1 (1), B-tree address 8, edge of a chunk for each axis 4, element size 4
    layout v4-5  chunked: flags, rank+1, width, edges, index kind 1 single, 2 implicit, 3 fixed array
    filters      version, count, then for each: number, [name length], flags, count of values, name, values
    chunk tree   "TREE" 01, level, used, siblings; keys: stored bytes 4, skipped filters 4, offsets 8 each, 0

Contiguous data must fill its block exactly. A chunk must lie on the grid of its dataset, once. Nothing is unpacked:
a dataset that would unpack to more than MAX_RATIO of its stored bytes is refused from its header.
Source: "HDF5 File Format Specification Version 3.0", sections III.A, IV.A.2.i, IV.A.2.l and VII.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from steelyard.errors import Malformed
from steelyard.formats.hdf5_bytes import MAX_RANK, UNDEFINED, Bytes, Cursor, elements, refuse
from steelyard.formats.hdf5_dense import checksum

DEFLATE, SHUFFLE, FLETCHER32 = 1, 2, 3
FILTERS = frozenset({DEFLATE, SHUFFLE, FLETCHER32})
MAX_FILTERS = 8
MAX_CHUNKS = 1 << 17
CHUNK_TREE_RANK = 32
MAX_RATIO = 1032  # the most that deflate can do
MAX_UNWRITTEN_BYTES = 16 << 20  # a dataset that says "all fill values" and stores nothing
_TREE_DEPTH = 8
_SINGLE, _IMPLICIT, _FIXED = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Filters:
    """Filter numbers in the order a writer applies them."""

    numbers: tuple[int, ...]

    @property
    def checksum_bytes(self) -> int:
        return 4 * self.numbers.count(FLETCHER32)


@dataclass(frozen=True, slots=True)
class Layout:
    """kind: compact, contiguous or chunked. address: of the data or of the chunk index.

    chunk: edges, for chunked ones.  index: 0 for the version 1 tree, else the kind of index.
    """

    kind: str
    address: int = UNDEFINED
    size: int = 0
    data: bytes = b""
    chunk: tuple[int, ...] = ()
    index: int = 0
    single: tuple[int, int] | None = None


def filters_of(cursor: Cursor) -> Filters:
    """The filter message at the cursor. Raises Malformed for a filter outside FILTERS."""
    version, count = cursor.number(1), cursor.number(1)
    if version not in {1, 2} or count > MAX_FILTERS:
        refuse("structure", f"{count} filters, version {version}", cursor.base)
    if version == 1:
        cursor.take(6)
    numbers = []
    for _ in range(count):
        number = cursor.number(2)
        if number not in FILTERS:
            refuse("filter", f"filter {number}; 1 deflate, 2 shuffle and 3 fletcher32 are known", cursor.base)
        name_size = cursor.number(2) if version == 1 else 0
        cursor.take(2)
        values = cursor.number(2)
        cursor.take(-(-name_size // 8) * 8 + 4 * values)
        if version == 1 and values % 2:
            cursor.take(4)
        numbers.append(number)
    return Filters(tuple(numbers))


def layout_of(cursor: Cursor) -> Layout:
    """The layout message at the cursor. Raises Malformed; virtual datasets read other files."""
    version, kind = cursor.number(1), cursor.number(1)
    if version not in {3, 4, 5}:
        refuse("unsupported", f"version {version} of a data layout", cursor.base)
    if kind == 0:
        return Layout("compact", data=cursor.take(cursor.number(2)))
    if kind == 1:
        return Layout("contiguous", cursor.number(8), cursor.number(8))
    if kind == 2:
        return _chunked_v3(cursor) if version == 3 else _chunked_v4(cursor)
    if kind == 3:
        refuse("external", "a virtual dataset, which maps data of other files", cursor.base)
    raise Malformed(f"data layout {kind}", rule="hdf5/unsupported", offset=cursor.base)


def _chunked_v3(cursor: Cursor) -> Layout:
    rank = cursor.number(1)
    if not 1 < rank <= MAX_RANK + 1:
        refuse("structure", f"a chunk of {rank} axes", cursor.base)
    address = cursor.number(8)
    return Layout("chunked", address, chunk=tuple(cursor.number(4) for _ in range(rank)))


def _chunked_v4(cursor: Cursor) -> Layout:
    flags, rank, width = cursor.number(1), cursor.number(1), cursor.number(1)
    if not 1 < rank <= MAX_RANK + 1 or not 0 < width <= 8:
        refuse("structure", f"a chunk of {rank} axes in {width} bytes", cursor.base)
    chunk = tuple(cursor.number(width) for _ in range(rank))
    index = cursor.number(1)
    single = None
    if index == _SINGLE and flags & 2:
        single = cursor.number(8), cursor.number(4)
    elif index == _FIXED:
        cursor.take(1)
    elif index not in {_SINGLE, _IMPLICIT}:
        refuse(
            "unsupported", f"chunk index {index} (4 extensible array, 5 tree) of libver 'latest'", cursor.base
        )
    return Layout("chunked", cursor.number(8), chunk=chunk, index=index, single=single)


def check_storage(
    file: Bytes, path: str, layout: Layout, filters: Filters, shape: tuple[int, ...] | None, item: int
) -> None:
    """Claim the stored bytes of a dataset. Raises Malformed when they are not what its shape needs.

    shape: sizes of the axes, None for no element.  item: bytes of one element.
    """
    size = elements(shape) * item
    if filters.numbers and layout.kind != "chunked":
        refuse("structure", f"{path[:80]!a}: filters without chunks")
    if layout.kind == "compact":
        stored = len(layout.data)
        if stored != size:
            refuse("storage", f"{path[:80]!a} needs {size} bytes and stores {stored}")
    elif layout.kind == "contiguous":
        if layout.address == UNDEFINED:
            _check_unwritten(path, size)
        elif layout.size != size:
            refuse("storage", f"{path[:80]!a} needs {size} bytes and stores {layout.size}", layout.address)
        else:
            file.claim(layout.address, layout.size)
    else:
        _check_chunks(file, path, layout, filters, shape or (), item)


def _check_unwritten(path: str, size: int) -> None:
    if size > MAX_UNWRITTEN_BYTES:
        refuse("storage", f"{path[:80]!a} stores nothing and reads as {size} bytes")


def _check_chunks(
    file: Bytes, path: str, layout: Layout, filters: Filters, shape: tuple[int, ...], item: int
) -> None:
    edges, size = layout.chunk[:-1], elements(shape) * item
    if len(edges) != len(shape) or layout.chunk[-1] != item or not all(layout.chunk):
        refuse("structure", f"{path[:80]!a}: chunks {layout.chunk} in a shape of {len(shape)} axes")
    chunk_bytes = elements(layout.chunk)
    if layout.address == UNDEFINED:
        _check_unwritten(path, size)
        return
    stored = 0
    seen: set[tuple[int, ...]] = set()
    for place, at, length, skipped in _chunks(file, layout, filters, shape, chunk_bytes):
        plain = not filters.numbers or skipped
        if skipped >> len(filters.numbers):
            refuse("structure", f"a chunk skips filters it has not: mask 0x{skipped:x}", at)
        if plain and length > chunk_bytes + filters.checksum_bytes:
            refuse("storage", f"a chunk of {length} bytes; {chunk_bytes} expected", at)
        if not filters.numbers and length != chunk_bytes:
            refuse("storage", f"a chunk of {length} bytes; {chunk_bytes} expected", at)
        if chunk_bytes > MAX_RATIO * length + 64:
            refuse("storage", f"a chunk of {length} bytes would unpack to {chunk_bytes}", at)
        on_grid = all(o % e == 0 and o < s for o, e, s in zip(place, edges, shape, strict=True))
        if not on_grid or place in seen:
            refuse("structure", f"a chunk at {place} is twice there or outside the shape", at)
        seen.add(place)
        if len(seen) > MAX_CHUNKS:
            refuse("limit", f"more than {MAX_CHUNKS} chunks", at)
        file.claim(at, length)
        stored += length
    if size > MAX_RATIO * stored + MAX_UNWRITTEN_BYTES:
        refuse("storage", f"{path[:80]!a} reads as {size} bytes and stores {stored}")


_Chunk = tuple[tuple[int, ...], int, int, int]


def _chunks(
    file: Bytes, layout: Layout, filters: Filters, shape: tuple[int, ...], chunk_bytes: int
) -> Iterator[_Chunk]:
    """Every stored chunk as (first element, address, stored bytes, mask of skipped filters)."""
    edges = layout.chunk[:-1]
    if layout.index == 0:
        yield from _tree(file, layout.address, len(layout.chunk), _TREE_DEPTH, set())
    elif layout.index == _SINGLE:
        length, mask = layout.single or (chunk_bytes, 0)
        yield (0,) * len(shape), layout.address, length, mask
    else:
        counts = [-(-s // e) for s, e in zip(shape, edges, strict=True)]
        total = elements(tuple(counts))
        if total > MAX_CHUNKS:
            refuse("limit", f"{total} chunks; at most {MAX_CHUNKS} are read", layout.address)
        places = (_place(index, counts, edges) for index in range(total))
        if layout.index == _IMPLICIT:
            for index, place in enumerate(places):
                yield place, layout.address + index * chunk_bytes, chunk_bytes, 0
        else:
            stored = _fixed_array(file, layout.address, total, bool(filters.numbers), chunk_bytes)
            for place, (at, length, mask) in zip(places, stored, strict=True):
                if at != UNDEFINED:
                    yield place, at, length, mask


def _place(index: int, counts: list[int], edges: tuple[int, ...]) -> tuple[int, ...]:
    place = []
    for count, edge in zip(reversed(counts), reversed(edges), strict=True):
        index, step = divmod(index, count)
        place.append(step * edge)
    return tuple(reversed(place))


def _tree(file: Bytes, address: int, rank: int, depth: int, seen: set[int]) -> Iterator[_Chunk]:
    key = 8 + 8 * rank
    width = 24 + (2 * CHUNK_TREE_RANK + 1) * key + 2 * CHUNK_TREE_RANK * 8
    cursor = Cursor(file.block(address, width), address)
    cursor.expect(b"TREE\x01", "a node of a chunk tree")
    level, used = cursor.number(1), cursor.number(2)
    cursor.take(16)
    if used > 2 * CHUNK_TREE_RANK or level >= depth or address in seen:
        refuse("structure", f"a chunk tree node of {used} entries at level {level}", address)
    seen.add(address)
    file.claim(address, width)
    for _ in range(used):
        length, mask = cursor.number(4), cursor.number(4)
        place = tuple(cursor.number(8) for _ in range(rank))
        child = cursor.number(8)
        if level:
            yield from _tree(file, child, rank, level, seen)
        else:
            yield place[:-1], child, length, mask


def _fixed_array(
    file: Bytes, address: int, total: int, filtered: bool, chunk_bytes: int
) -> Iterator[tuple[int, int, int]]:
    data = file.block(address, 28)
    head = Cursor(data, address)
    head.expect(b"FAHD\0", "a fixed array")
    client, entry, page_bits = head.number(1), head.number(1), head.number(1)
    count, block = head.number(8), head.number(8)
    file.spend_hash(len(data))
    if checksum(data[:-4]) != head.number(4):
        refuse("checksum", "the checksum of a fixed array does not fit", address)
    if count != total or client != filtered or (not filtered and entry != 8) or not 8 <= entry <= 20:
        refuse("structure", f"a fixed array of {count} entries of {entry} bytes", address)
    if count > 1 << page_bits:
        refuse("unsupported", f"a fixed array of {count} chunks in pages", address)
    file.claim(address, 28)
    size = 14 + count * entry + 4
    data = file.block(block, size)
    body = Cursor(data, block)
    body.expect(b"FADB\0", "the block of a fixed array")
    body.take(9)
    file.spend_hash(len(data))
    if checksum(data[:-4]) != int.from_bytes(data[-4:], "little"):
        refuse("checksum", "the checksum of a fixed array does not fit", block)
    file.claim(block, size)
    for _ in range(count):
        at = body.number(8)
        yield (at, body.number(entry - 12), body.number(4)) if filtered else (at, chunk_bytes, 0)
