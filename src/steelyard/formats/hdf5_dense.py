"""Links and attributes that HDF5 stores outside the object header, when there are more than a few.

    heap        "FRHP": widths, limits, counts, table of blocks, root; "FHIB" lists direct blocks "FHDB"
    free space  "FSHD" and its section list "FSSE", one for a heap
    tree        "BTHD": kind, node size, record size, depth, root; "BTIN" inner nodes, "BTLF" leaves;
                kinds 5 and 6 (links by name hash and by order), 8 and 9 (attributes by name hash and by order)
    heap id     flags (1), offset, length: where in the heap's space a message lies

Each metadata block ends with Bob Jenkins' lookup3 hash of what comes before it.
Source: "HDF5 File Format Specification Version 3.0", sections III.A.2, III.G and III.H.
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from struct import unpack
from typing import Literal

from steelyard.errors import Malformed
from steelyard.formats.hdf5_bytes import UNDEFINED, Bytes, Cursor, refuse

MAX_RECORDS = 20_000
MAX_MESSAGES_BYTES = 32 << 20
MAX_TREE_DEPTH = 6
_MASK = 0xFFFFFFFF
_LEAF_OVERHEAD = 10


def checksum(data: bytes) -> int:
    """lookup3's hashlittle with seed 0. Source: Bob Jenkins, lookup3.c, May 2006, public domain."""
    a = b = c = (0xDEADBEEF + len(data)) & _MASK
    whole = max(0, (len(data) - 1) // 12)
    words = unpack(f"<{3 * whole}I", data[: 12 * whole])
    for i in range(0, 3 * whole, 3):
        a, b, c = (a + words[i]) & _MASK, (b + words[i + 1]) & _MASK, (c + words[i + 2]) & _MASK
        a = ((a - c) ^ (c << 4 | c >> 28)) & _MASK
        c = (c + b) & _MASK
        b = ((b - a) ^ (a << 6 | a >> 26)) & _MASK
        a = (a + c) & _MASK
        c = ((c - b) ^ (b << 8 | b >> 24)) & _MASK
        b = (b + a) & _MASK
        a = ((a - c) ^ (c << 16 | c >> 16)) & _MASK
        c = (c + b) & _MASK
        b = ((b - a) ^ (a << 19 | a >> 13)) & _MASK
        a = (a + c) & _MASK
        c = ((c - b) ^ (b << 4 | b >> 28)) & _MASK
        b = (b + a) & _MASK
    tail = data[whole * 12 :]
    if not tail:
        return c
    tail = tail.ljust(12, b"\0")
    a = (a + int.from_bytes(tail[:4], "little")) & _MASK
    b = (b + int.from_bytes(tail[4:8], "little")) & _MASK
    c = (c + int.from_bytes(tail[8:], "little")) & _MASK
    c = _finish(c, b, 14)
    a = _finish(a, c, 11)
    b = _finish(b, a, 25)
    c = _finish(c, b, 16)
    a = _finish(a, c, 4)
    b = _finish(b, a, 14)
    return _finish(c, b, 24)


def _finish(changed: int, other: int, turn: int) -> int:
    return ((changed ^ other) - (other << turn & _MASK | other >> (32 - turn))) & _MASK


def dense_records(
    file: Bytes, heap: int, tree: int, order: int, kind: Literal["link", "attribute"]
) -> Iterator[tuple[int, bytes]]:
    """(absolute offset, message) of each link or attribute in dense storage; nothing when there is none.

    heap, tree, order: addresses of the heap, of the tree by name and of the tree by creation order.
    Raises Malformed.
    """
    if heap == UNDEFINED:
        if tree != UNDEFINED or order != UNDEFINED:
            refuse("structure", f"an index of {kind}s without a heap")
        return
    blocks = _Heap(file, heap)
    by_name, by_order = (5, 6) if kind == "link" else (8, 9)
    id_bytes = 7 if kind == "link" else 8
    skip = 4 if kind == "link" else 0
    ids = [record[skip : skip + id_bytes] for record in _records(file, tree, by_name)]
    if order != UNDEFINED:
        skip = 8 if kind == "link" else 0
        others = {record[skip : skip + id_bytes] for record in _records(file, order, by_order)}
        if others != set(ids):
            refuse("structure", f"the two indexes of the {kind}s name different ones", order)
    for heap_id in ids:
        yield blocks.message(heap_id)


def _records(file: Bytes, address: int, kind: int) -> list[bytes]:
    """The records of one version 2 B-tree. Raises Malformed."""
    if address == UNDEFINED:
        refuse("structure", "dense storage without an index")
    data = file.block(address, 38)
    head = Cursor(data, address)
    head.expect(b"BTHD\0" + bytes([kind]), "a version 2 tree")
    node, record, depth = head.number(4), head.number(2), head.number(2)
    head.take(2)
    root, used, total = head.number(8), head.number(2), head.number(8)
    _verify(file, data, address)
    if not (64 <= node <= 1 << 20 and 8 <= record <= 64 and depth <= MAX_TREE_DEPTH):
        refuse("structure", f"a tree of {node}-byte nodes, {record}-byte records, depth {depth}", address)
    file.claim(address, 38)
    walk = _TreeWalk(file, kind, node, record)
    if root != UNDEFINED:
        walk.node(root, used, depth)
    if len(walk.found) != total:
        refuse("structure", f"a tree of {total} records holds {len(walk.found)}", address)
    return walk.found


class _TreeWalk:
    """Collects the records of a tree; pointer widths follow from what a node can hold at each level."""

    def __init__(self, file: Bytes, kind: int, node: int, record: int) -> None:
        self.file, self.kind, self.width, self.record = file, kind, node, record
        self.found: list[bytes] = []
        self._seen: set[int] = set()
        capacity = (node - _LEAF_OVERHEAD) // record
        self._count_bytes = _width(capacity)
        self._total_bytes = [0]
        total = capacity
        for _ in range(MAX_TREE_DEPTH):
            pointer = 8 + self._count_bytes + self._total_bytes[-1]
            capacity = (node - _LEAF_OVERHEAD - pointer) // (record + pointer)
            total = (capacity + 1) * total + capacity
            self._total_bytes.append(_width(total))

    def node(self, address: int, used: int, level: int) -> None:
        if address in self._seen:
            refuse("cycle", "a tree node that is its own descendant", address)
        self._seen.add(address)
        size = 6 + used * self.record
        pointer = 8 + self._count_bytes + (self._total_bytes[level - 1] if level else 0)
        if level:
            size += (used + 1) * pointer
        if size + 4 > self.width:
            refuse("structure", f"{used} records in a node of {self.width} bytes", address)
        data = self.file.block(address, size + 4)
        _verify(self.file, data, address)
        self.file.claim(address, self.width)
        cursor = Cursor(data, address)
        cursor.expect((b"BTIN" if level else b"BTLF") + b"\0" + bytes([self.kind]), "a tree node")
        self.found += [cursor.take(self.record) for _ in range(used)]
        if len(self.found) > MAX_RECORDS:
            refuse("limit", f"more than {MAX_RECORDS} records", address)
        if not level:
            return
        for _ in range(used + 1):
            child, count = cursor.number(8), cursor.number(self._count_bytes)
            cursor.take(self._total_bytes[level - 1])
            self.node(child, count, level - 1)


def _width(limit: int) -> int:
    return max(limit.bit_length() - 1, 0) // 8 + 1


def _verify(file: Bytes, data: bytes, address: int) -> None:
    file.spend_hash(len(data))
    if checksum(data[:-4]) != int.from_bytes(data[-4:], "little"):
        refuse("checksum", "a checksum does not fit its block", address)


@dataclass(frozen=True, slots=True)
class _Block:
    """One direct block: where it starts in the heap's space and in the file."""

    begin: int
    at: int
    size: int


class _Heap:
    """The direct blocks of a fractal heap whose blocks all hang on one indirect block."""

    def __init__(self, file: Bytes, address: int) -> None:
        self._file = file
        start = Cursor(file.block(address, 142), address)
        start.expect(b"FRHP\0", "a fractal heap")
        start.take(2)
        filters, self._flags, longest = start.number(2), start.number(1), start.number(4)
        start.take(8)
        huge, _, manager = start.number(8), start.number(8), start.number(8)
        start.take(8 * 4)
        start.take(8 * 4)
        width, first, largest, bits = start.number(2), start.number(8), start.number(8), start.number(2)
        start.take(2)
        root, rows = start.number(8), start.number(2)
        if filters or huge != UNDEFINED:
            refuse("unsupported", "a heap with filters or with objects of its own", address)
        _verify(file, file.block(address, start.at + 4), address)
        bad = not (0 < width <= 64 and 0 < first <= largest <= 1 << 26 and 16 <= bits <= 64)
        if bad or first & (first - 1) or largest & (largest - 1):
            refuse("structure", f"a heap of {width} blocks of {first} to {largest} bytes", address)
        file.claim(address, start.at + 4)
        self._header, self._offset_bytes = address, -(-bits // 8)
        self._length_bytes = min(_width(largest), _width(longest))
        self._blocks = (
            self._direct(root, 0, first) if not rows else self._indirect(root, rows, width, first, largest)
        )
        self._begins = [block.begin for block in self._blocks]
        self._read_bytes = 0
        if manager != UNDEFINED:
            self._free_space(manager)

    def _direct(self, address: int, begin: int, size: int) -> list[_Block]:
        if address == UNDEFINED:
            return []
        head = Cursor(self._file.block(address, min(size, 32)), address)
        head.expect(b"FHDB\0", "a block of a heap")
        if head.number(8) != self._header or head.number(self._offset_bytes) != begin:
            refuse("structure", "a block of another heap", address)
        if self._flags & 2:
            block = self._file.block(address, size)
            self._file.spend_hash(size)
            found = int.from_bytes(block[head.at : head.at + 4], "little")
            if checksum(block[: head.at] + bytes(4) + block[head.at + 4 :]) != found:
                refuse("checksum", "a checksum does not fit its heap block", address)
        self._file.claim(address, size)
        return [_Block(begin, address, size)]

    def _indirect(self, address: int, rows: int, width: int, first: int, largest: int) -> list[_Block]:
        direct_rows = largest.bit_length() - first.bit_length() + 2
        if rows > direct_rows:
            refuse("unsupported", "a heap of indirect blocks inside indirect blocks", address)
        data = self._file.block(address, 13 + self._offset_bytes + rows * width * 8 + 4)
        _verify(self._file, data, address)
        self._file.claim(address, len(data))
        cursor = Cursor(data, address)
        cursor.expect(b"FHIB\0", "an indirect block of a heap")
        if cursor.number(8) != self._header or cursor.number(self._offset_bytes):
            refuse("structure", "an indirect block of another heap", address)
        blocks = []
        begin = 0
        for row in range(rows):
            size = first << max(0, row - 1)
            for _ in range(width):
                blocks += self._direct(cursor.number(8), begin, size)
                begin += size
        return blocks

    def _free_space(self, address: int) -> None:
        data = self._file.block(address, 82)
        _verify(self._file, data, address)
        cursor = Cursor(data, address)
        cursor.expect(b"FSHD\0\0", "the free space of a heap")
        cursor.take(32 + 8 + 8)
        sections, _, allocated = cursor.number(8), cursor.number(8), cursor.number(8)
        self._file.claim(address, 82)
        if sections != UNDEFINED:
            self._file.claim(sections, allocated)

    def message(self, heap_id: bytes) -> tuple[int, bytes]:
        """The object a heap id leads to, and its offset in the file."""
        if heap_id[0] & 0xF0:
            refuse("unsupported", f"an object of kind 0x{heap_id[0]:02x} in a heap", self._header)
        end = 1 + self._offset_bytes
        begin = int.from_bytes(heap_id[1:end], "little")
        size = int.from_bytes(heap_id[end : end + self._length_bytes], "little")
        self._read_bytes += size
        if self._read_bytes > MAX_MESSAGES_BYTES:
            refuse("limit", f"more than {MAX_MESSAGES_BYTES} bytes of messages in one heap", self._header)
        index = bisect_right(self._begins, begin) - 1
        for block in self._blocks[max(index, 0) : index + 1]:
            if begin + size <= block.begin + block.size:
                at = block.at + begin - block.begin
                return at, self._file.block(at, size)
        what = f"an object of {size} bytes at {begin} is in no block of its heap"
        raise Malformed(what, rule="hdf5/offset", offset=self._header)
