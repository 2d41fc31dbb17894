"""The objects of an HDF5 file: every group, dataset and attribute, each byte of it inside the file.

    superblock    v0/v1: 89 HDF 0D 0A 1A 0A, versions, K values, four addresses, the root's symbol table entry;
                  v2/v3: the same magic, four addresses, checksum
    object header v1: version, count, references, size, messages; v2: "OHDR", flags, messages, checksum.
                  A continuation message (0x10) names the next run of messages (v2: "OCHK").
    old group     message 0x11: B-tree v1 ("TREE") of symbol nodes ("SNOD") with names in a local heap ("HEAP")
    new group     one link message (0x06) for each entry, or dense: see hdf5_dense.py
    dataset       messages 0x01 dataspace, 0x03 datatype, 0x08 layout, 0x0B filters; 0x07 external files is refused
    attribute     message 0x0C: name, datatype, dataspace, value; texts may lie in a global heap ("GCOL")

Nothing here reads the numbers of a dataset; only where they lie. Base address 0, offsets of eight bytes.
Source: "HDF5 File Format Specification Version 3.0", sections II to IV.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from steelyard.formats.base import ByteSource
from steelyard.formats.hdf5_bytes import (
    STRING,
    UNDEFINED,
    VLEN,
    Bytes,
    Cursor,
    Datatype,
    dataspace,
    datatype,
    elements,
    refuse,
)
from steelyard.formats.hdf5_data import Filters, Layout, check_storage, filters_of, layout_of
from steelyard.formats.hdf5_dense import checksum, dense_records

MAGIC = b"\x89HDF\r\n\x1a\n"
MAX_OBJECTS = 20_000
MAX_DEPTH = 64
MAX_MESSAGES = 65_536
MAX_CONTINUATIONS = 4096
MAX_TREE_DEPTH = 12
MAX_ATTRIBUTE_ELEMENTS = 1 << 18
MAX_TEXT_BYTES = 16 << 20
MAX_TEXTS_TOTAL_BYTES = 32 << 20

# Messages that say nothing about content: null, fill values, group info, modification times, comment, K values,
# references, file space.
_QUIET = frozenset({0x00, 0x04, 0x05, 0x0A, 0x0D, 0x0E, 0x12, 0x13, 0x16, 0x17})
_KNOWN = _QUIET | {0x01, 0x02, 0x03, 0x06, 0x07, 0x08, 0x0B, 0x0C, 0x10, 0x11, 0x15}
_SINGLE = {0x01: "dataspace", 0x03: "datatype", 0x08: "layout", 0x0B: "filter", 0x11: "symbol table",
           0x02: "link info", 0x15: "attribute info"}  # fmt: skip


class _Message(NamedTuple):
    kind: int
    at: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Attribute:
    """texts: the values of a string attribute, None of any other kind."""

    texts: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Dataset:
    """shape is None for an empty dataspace; size_bytes is what the elements take unpacked."""

    type: Datatype
    shape: tuple[int, ...] | None
    size_bytes: int


@dataclass(slots=True)
class Hdf5:
    """What the file holds, by path; the root is ''. `gaps` are the runs of bytes nothing claims."""

    groups: dict[str, Mapping[str, Attribute]] = field(default_factory=dict)
    datasets: dict[str, Dataset] = field(default_factory=dict)
    attributes: dict[str, Mapping[str, Attribute]] = field(default_factory=dict)
    gaps: list[tuple[int, int]] = field(default_factory=list)

    def text(self, name: str) -> str | None:
        """The text of one attribute of the root, None when absent or no single text."""
        found = self.groups[""].get(name)
        return found.texts[0] if found and found.texts and len(found.texts) == 1 else None


@dataclass(frozen=True, slots=True)
class _Superblock:
    root: int
    leaf_k: int
    internal_k: int
    extension: int


def read_hdf5(source: ByteSource) -> Hdf5:
    """All objects of `source`. Raises Malformed with a rule of hdf5_bytes.RULES at the first thing amiss."""
    return _Reader(source).read()


@dataclass(slots=True)
class _Reader:
    source: ByteSource
    file_bytes: Bytes = field(init=False)
    file: Hdf5 = field(default_factory=Hdf5)
    super: _Superblock = field(init=False)
    seen: set[int] = field(default_factory=set)
    objects: int = 0
    links: int = 0
    heaps: dict[int, dict[int, bytes]] = field(default_factory=dict)
    text_bytes: int = 0

    def __post_init__(self) -> None:
        self.file_bytes = Bytes(self.source)

    def read(self) -> Hdf5:
        self.super = self._superblock()
        if self.super.extension != UNDEFINED:
            for message in self._header(self.super.extension):
                if message.kind not in _QUIET:
                    refuse("unsupported", f"message 0x{message.kind:02x} in the extension", message.at)
        waiting = [("", self.super.root, 0)]
        while waiting:
            path, address, depth = waiting.pop()
            if depth > MAX_DEPTH:
                refuse("limit", f"groups nest deeper than {MAX_DEPTH}", address)
            for name, child in self._object(path, address):
                waiting.append((f"{path}/{name}", child, depth + 1))
        self.file.gaps = self.file_bytes.gaps()
        return self.file

    # The superblock

    def _superblock(self) -> _Superblock:
        head = Cursor(self.file_bytes.block(0, min(self.source.size, 128)), 0)
        if head.take(8) != MAGIC:
            refuse("superblock", "the file does not begin with HDF5's magic", 0)
        version = head.number(1)
        if version in {0, 1}:
            head.zeros(4, "the superblock")
            widths, _ = head.take(2), head.take(1)
            leaf, internal = head.number(2), head.number(2)
            flags = head.number(4)
            if version == 1:
                head.take(4)
            base, free, end, driver = (head.number(8) for _ in range(4))
            head.take(8)
            root = head.number(8)
            head.take(24)
            extension = UNDEFINED
            if free != UNDEFINED or driver != UNDEFINED:
                refuse("unsupported", "a free-space index or a file driver", 8)
        elif version in {2, 3}:
            widths, flags = head.take(2), head.number(1)
            base, extension, end, root = (head.number(8) for _ in range(4))
            self._check_sum(head.data[: head.at], head.number(4), 0)
            leaf, internal = 4, 16
        else:
            refuse("superblock", f"version {version}; 0 to 3 are known", 8)
        if widths != b"\x08\x08" or base:
            refuse("superblock", f"offsets of {widths.hex()} bytes at base {base}; expected 8, 8 and 0", 8)
        if flags:
            refuse("superblock", "the file was not closed by its writer", 8)
        if end != self.source.size:
            refuse("size", f"the header says {end} bytes, the file has {self.source.size}", None)
        if not (0 < leaf <= 4096 and 0 < internal <= 4096):
            refuse("superblock", f"tree ranks {leaf} and {internal}", 8)
        self.file_bytes.claim(0, head.at)
        return _Superblock(root, leaf, internal, extension)

    def _check_sum(self, data: bytes, found: int, at: int) -> None:
        self.file_bytes.spend_hash(len(data))
        if checksum(data) != found:
            refuse("checksum", f"checksum {found:08x} does not fit its bytes", at)

    # Object headers

    def _header(self, address: int) -> list[_Message]:
        first = self.file_bytes.block(address, min(16, max(0, self.source.size - address)))
        runs = self._header_v2(address) if first[:4] == b"OHDR" else self._header_v1(address, first)
        messages: list[_Message] = []
        for message in runs:
            if message.kind not in _KNOWN:
                refuse("unsupported", f"header message 0x{message.kind:02x}", message.at)
            if message.kind in _SINGLE and any(other.kind == message.kind for other in messages):
                refuse("structure", f"two {_SINGLE[message.kind]} messages in one object", message.at)
            messages.append(message)
            if len(messages) > MAX_MESSAGES:
                refuse("limit", f"more than {MAX_MESSAGES} messages", address)
        return messages

    def _header_v1(self, address: int, first: bytes) -> Iterator[_Message]:
        cursor = Cursor(first, address)
        if cursor.number(1) != 1 or cursor.number(1):
            refuse("structure", "no object header there", address)
        count, _, size = cursor.number(2), cursor.number(4), cursor.number(4)
        self.file_bytes.claim(address, 16 + size)
        runs = [(address + 16, size)]
        used = 0
        for index in range(MAX_CONTINUATIONS):
            if index == len(runs):
                break
            at, length = runs[index]
            if index:
                self.file_bytes.claim(at, length)
            run = Cursor(self.file_bytes.block(at, length), at)
            while run.left >= 8 and used < count:
                kind, length, flags = run.number(2), run.number(2), run.number(1)
                run.take(3)
                message = _Message(kind, at + run.at, run.take(length))
                used += 1
                self._check_flags(message, flags)
                if kind == 0x10:
                    runs.append(self._continuation(message))
                else:
                    yield message
        if used != count or len(runs) > MAX_CONTINUATIONS:
            refuse("structure", f"{used} of {count} header messages are there", address)

    def _header_v2(self, address: int) -> Iterator[_Message]:
        prefix = Cursor(self.file_bytes.block(address, min(40, self.source.size - address)), address)
        prefix.take(4)
        version, flags = prefix.number(1), prefix.number(1)
        if version != 2 or flags & 0xC0:
            refuse("structure", f"object header version {version}, flags 0x{flags:02x}", address)
        prefix.take((16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0))
        size = prefix.number(1 << (flags & 3))
        runs = [(address, prefix.at + size + 4, prefix.at)]
        for index in range(MAX_CONTINUATIONS):
            if index == len(runs):
                return
            at, length, skip = runs[index]
            if length < skip + 4:
                refuse("structure", "a header continuation too short for its checksum", at)
            self.file_bytes.claim(at, length)
            data = self.file_bytes.block(at, length)
            if index and data[:4] != b"OCHK":
                refuse("structure", "no header continuation there", at)
            self._check_sum(data[:-4], int.from_bytes(data[-4:], "little"), at)
            run = Cursor(data[:-4], at)
            run.take(skip)
            head = 6 if flags & 4 else 4
            while run.left >= head:
                kind, length, message_flags = run.number(1), run.number(2), run.number(1)
                run.take(head - 4)
                message = _Message(kind, at + run.at, run.take(length))
                self._check_flags(message, message_flags)
                if kind == 0x10:
                    begin, size = self._continuation(message)
                    runs.append((begin, size, 4))
                else:
                    yield message
            run.zeros(run.left, "an object header")
        refuse("limit", f"more than {MAX_CONTINUATIONS} header continuations", address)

    def _check_flags(self, message: _Message, flags: int) -> None:
        if flags & 0x02:
            refuse("unsupported", f"a shared message 0x{message.kind:02x}: a committed datatype", message.at)

    def _continuation(self, message: _Message) -> tuple[int, int]:
        cursor = Cursor(message.data, message.at)
        return cursor.number(8), cursor.number(8)

    # Objects

    def _object(self, path: str, address: int) -> list[tuple[str, int]]:
        """Read one object; the links of a group, [] for a dataset."""
        if address in self.seen:
            refuse("cycle", f"{path[:80]!a} is an object the file already shows elsewhere", address)
        self.seen.add(address)
        self.objects += 1
        if self.objects > MAX_OBJECTS:
            refuse("limit", f"more than {MAX_OBJECTS} objects", address)
        messages = self._header(address)
        by_kind = {message.kind: message for message in messages}
        if 0x07 in by_kind:
            refuse("external", f"{path[:80]!a} keeps its data in other files", by_kind[0x07].at)
        attributes = self._attributes(messages, by_kind.get(0x15))
        is_dataset, is_group = 0x08 in by_kind, bool({0x02, 0x11} & by_kind.keys())
        if is_dataset == is_group:
            refuse("unsupported", f"{path[:80]!a} is neither a group nor a dataset", address)
        if is_dataset:
            self.file.attributes[path] = attributes
            self.file.datasets[path] = self._dataset(path, by_kind, address)
            return []
        self.file.groups[path] = attributes
        links = list(self._links(messages, by_kind))
        names = {name for name, _ in links}
        if len(names) != len(links) or any(name in {"", ".", ".."} or "/" in name for name in names):
            refuse("structure", f"links of {path[:80]!a} have the same name or none", address)
        return links

    def _links(self, messages: list[_Message], by_kind: Mapping[int, _Message]) -> Iterator[tuple[str, int]]:
        if 0x11 in by_kind:
            cursor = Cursor(by_kind[0x11].data, by_kind[0x11].at)
            tree, heap = cursor.number(8), cursor.number(8)
            names = self._local_heap(heap)
            yield from self._symbols(tree, names, MAX_TREE_DEPTH)
            return
        for message in messages:
            if message.kind == 0x06:
                yield _link(Cursor(message.data, message.at))
        info = Cursor(by_kind[0x02].data, by_kind[0x02].at)
        if info.number(1):
            refuse("structure", "an unknown version of link info", info.base)
        flags = info.number(1)
        info.take(8 if flags & 1 else 0)
        heap, tree = info.number(8), info.number(8)
        order = info.number(8) if flags & 2 else UNDEFINED
        for at, data in dense_records(self.file_bytes, heap, tree, order, kind="link"):
            yield _link(Cursor(data, at))

    def _local_heap(self, address: int) -> bytes:
        head = Cursor(self.file_bytes.block(address, 32), address)
        head.expect(b"HEAP\0\0\0\0", "a local heap")
        size, _, segment = head.number(8), head.number(8), head.number(8)
        self.file_bytes.claim(address, 32)
        self.file_bytes.claim(segment, size)
        return self.file_bytes.block(segment, size)

    def _symbols(self, address: int, names: bytes, depth: int) -> Iterator[tuple[str, int]]:
        """Entries below one node of a group's B-tree. Each node is claimed once, so a cycle is an overlap."""
        width = 24 + (4 * self.super.internal_k + 1) * 8
        cursor = Cursor(self.file_bytes.block(address, width), address)
        cursor.expect(b"TREE\0", "a node of a group's tree")
        level, used = cursor.number(1), cursor.number(2)
        cursor.take(16)
        if used > 2 * self.super.internal_k or level >= depth or address in self.seen:
            refuse("structure", f"a tree node of {used} entries at level {level}", address)
        self.seen.add(address)
        self.file_bytes.claim(address, width)
        for _ in range(used):
            cursor.take(8)
            child = cursor.number(8)
            if level:
                yield from self._symbols(child, names, level)
            else:
                yield from self._symbol_node(child, names)

    def _symbol_node(self, address: int, names: bytes) -> Iterator[tuple[str, int]]:
        width = 8 + 2 * self.super.leaf_k * 40
        cursor = Cursor(self.file_bytes.block(address, width), address)
        cursor.expect(b"SNOD\x01\0", "a symbol table node")
        used = cursor.number(2)
        if used > 2 * self.super.leaf_k or address in self.seen:
            refuse("structure", f"a symbol node of {used} entries", address)
        self.seen.add(address)
        self.file_bytes.claim(address, width)
        self.links += used
        if self.links > MAX_OBJECTS:
            refuse("limit", f"more than {MAX_OBJECTS} links", address)
        for _ in range(used):
            name_at, header, cache = cursor.number(8), cursor.number(8), cursor.number(4)
            cursor.take(20)
            end = names.find(b"\0", name_at) if name_at < len(names) else -1
            if end < 0:
                refuse("offset", "a link name outside its heap", address)
            name = names[name_at:end].decode("utf-8", "backslashreplace")
            if cache not in {0, 1}:
                refuse("link", f"{name[:80]!a} is a soft link", address)
            yield name, header

    # Datasets

    def _dataset(self, path: str, by_kind: Mapping[int, _Message], address: int) -> Dataset:
        if 0x01 not in by_kind or 0x03 not in by_kind:
            refuse("structure", f"the dataset {path[:80]!a} has no shape or no type", address)
        kind = datatype(Cursor(by_kind[0x03].data, by_kind[0x03].at))
        shape = dataspace(Cursor(by_kind[0x01].data, by_kind[0x01].at))
        size = elements(shape) * kind.size
        filters = Filters(())
        if 0x0B in by_kind:
            filters = filters_of(Cursor(by_kind[0x0B].data, by_kind[0x0B].at))
        layout = layout_of(Cursor(by_kind[0x08].data, by_kind[0x08].at))
        check_storage(self.file_bytes, path, layout, filters, shape, kind.size)
        if kind.has_heap():
            self._check_heap_data(path, kind, layout, elements(shape))
        return Dataset(kind, shape, size)

    def _check_heap_data(self, path: str, kind: Datatype, layout: Layout, count: int) -> None:
        """Variable-length elements: each reference must lead to a heap inside the file."""
        if count > MAX_ATTRIBUTE_ELEMENTS:
            refuse("limit", f"{path[:80]!a} holds {count} variable-length elements")
        if layout.kind == "chunked":
            refuse("unsupported", f"{path[:80]!a}: variable-length elements in chunks")
        if layout.address == UNDEFINED:
            return
        data = layout.data
        if layout.kind == "contiguous":
            data = self.file_bytes.block(layout.address, count * kind.size)
        for index in range(count):
            self._heap_values(data[index * kind.size : (index + 1) * kind.size], kind)

    # Attributes

    def _attributes(self, messages: list[_Message], info: _Message | None) -> dict[str, Attribute]:
        found: dict[str, Attribute] = {}
        blocks = [(m.at, m.data) for m in messages if m.kind == 0x0C]
        if info is not None:
            cursor = Cursor(info.data, info.at)
            version, flags = cursor.number(1), cursor.number(1)
            if version:
                refuse("structure", f"attribute info of version {version}", info.at)
            cursor.take(2 if flags & 1 else 0)
            heap, tree = cursor.number(8), cursor.number(8)
            order = cursor.number(8) if flags & 2 else UNDEFINED
            blocks += dense_records(self.file_bytes, heap, tree, order, kind="attribute")
        for at, data in blocks:
            name, value = self._attribute(Cursor(data, at))
            if name in found:
                refuse("structure", f"two attributes {name[:80]!a}", at)
            found[name] = value
        return found

    def _attribute(self, cursor: Cursor) -> tuple[str, Attribute]:
        version, flags = cursor.number(1), cursor.number(1)
        if version not in {1, 2, 3} or (version > 1 and flags):
            refuse("unsupported", f"attribute version {version} with a shared datatype", cursor.base)
        sizes = [cursor.number(2) for _ in range(3)]
        if version == 3:
            cursor.take(1)
        padded = [-(-size // 8) * 8 if version == 1 else size for size in sizes]
        raw_name = cursor.take(padded[0])[: sizes[0]]
        name = raw_name.partition(b"\0")[0].decode("utf-8", "backslashreplace")
        at = cursor.base + cursor.at
        kind = datatype(Cursor(cursor.take(padded[1]), at))
        shape = dataspace(Cursor(cursor.take(padded[2]), at + padded[1]))
        count = elements(shape)
        if count > MAX_ATTRIBUTE_ELEMENTS:
            refuse("limit", f"the attribute {name[:80]!a} holds {count} values", cursor.base)
        data = cursor.take(count * kind.size)
        values = [data[i * kind.size : (i + 1) * kind.size] for i in range(count)]
        if kind.kind == STRING:
            return name, Attribute(tuple(_text(value.partition(b"\0")[0]) for value in values))
        texts: list[str] = []
        if kind.has_heap():
            for value in values:
                texts += [_text(each) for each in self._heap_values(value, kind)]
        return name, Attribute(tuple(texts) if kind.is_text else None)

    # Global heaps

    def _heap_values(self, element: bytes, kind: Datatype) -> list[bytes]:
        """What the references inside one element lead to."""
        if kind.kind != VLEN or kind.base is None:
            parts = [(offset, part) for offset, part in kind.parts if part.has_heap()]
            return [v for at, part in parts for v in self._heap_values(element[at : at + part.size], part)]
        length = int.from_bytes(element[:4], "little")
        address = int.from_bytes(element[4:12], "little")
        index = int.from_bytes(element[12:16], "little")
        if index == 0 or address == 0:
            if length:
                refuse("offset", f"{length} variable-length elements at no place")
            return [b""]
        if address not in self.heaps:
            self.heaps[address] = self._collection(address)
        value = self.heaps[address].get(index)
        if value is None or len(value) < length * kind.base.size:
            refuse("offset", f"element {index} of {length} items is not in its heap", address)
        self.text_bytes += length * kind.base.size
        if self.text_bytes > MAX_TEXTS_TOTAL_BYTES:
            refuse("limit", f"more than {MAX_TEXTS_TOTAL_BYTES} bytes of variable-length values", address)
        return [value[: length * kind.base.size]]

    def _collection(self, address: int) -> dict[int, bytes]:
        head = Cursor(self.file_bytes.block(address, 16), address)
        head.expect(b"GCOL\x01\0\0\0", "a global heap")
        size = head.number(8)
        self.file_bytes.claim(address, size)
        cursor = Cursor(self.file_bytes.block(address, size), address)
        cursor.take(16)
        found: dict[int, bytes] = {}
        while cursor.left >= 16:
            index = cursor.number(2)
            cursor.take(6)
            length = cursor.number(8)
            if index == 0:
                break
            if index in found:
                refuse("structure", f"object {index} stands twice in a heap", address)
            self.text_bytes += length
            if length > MAX_TEXT_BYTES or self.text_bytes > MAX_TEXTS_TOTAL_BYTES:
                refuse("limit", f"an element of {length} bytes in a heap", address)
            found[index] = cursor.take(-(-length // 8) * 8)[:length]
        return found


def _text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")


def _link(cursor: Cursor) -> tuple[str, int]:
    """A link message. Raises Malformed for anything but a hard link."""
    version, flags = cursor.number(1), cursor.number(1)
    if version != 1 or flags & 0xE0:
        refuse("structure", f"a link of version {version}, flags 0x{flags:02x}", cursor.base)
    kind = cursor.number(1) if flags & 8 else 0
    cursor.take((8 if flags & 4 else 0) + (1 if flags & 16 else 0))
    name = cursor.take(cursor.number(1 << (flags & 3))).decode("utf-8", "backslashreplace")
    if kind == 64:
        refuse("external", f"{name[:80]!a} is a link into another file", cursor.base)
    if kind:
        refuse("link", f"{name[:80]!a} is a soft or user-defined link (type {kind})", cursor.base)
    return name, cursor.number(8)


def is_hdf5(head: bytes) -> bool:
    return head.startswith(MAGIC)
