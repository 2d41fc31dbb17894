"""TensorFlow checkpoints: the index (a sorted table) against the shapes and the data files it cuts up.

    blocks end to end, then a footer of 48 bytes at the very end
    footer     two handles (varint offset, varint size: the table of meta blocks, the table of data blocks), zeros up to
               40, then 57 fb 80 8b 24 75 47 db
    block      entries, restart offsets (u32 each), their number (u32); behind it one byte (0: not compressed) and a
               checksum (u32)
    entry      varints: bytes shared with the key before, other bytes of the key, bytes of the value; then both
    value      of the empty key BundleHeaderProto, of others BundleEntryProto: 1 type  2 shape  3 file  4 offset  5 size

Sources: `table_format.md` of github.com/google/leveldb and `tensorflow/core/util/tensor_bundle/`,
`tensorflow/core/protobuf/tensor_bundle.proto` of github.com/tensorflow/tensorflow. The data files have no magic: the
index names them and the scan of the tree compares their sizes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn

from steelyard.digest import JSON
from steelyard.errors import Malformed
from steelyard.formats.base import ByteSource, BytesSource, Finding, Reference, Report, Rule
from steelyard.formats.protobuf import LENGTH, Reader, outline, rules_of, signed
from steelyard.formats.tf_graph import TYPE_BYTES, elements_of
from steelyard.formats.tf_schema import MESSAGES

MAX_BYTES = 64 << 20
MAX_ENTRIES = 200_000
MAX_KEY_BYTES = 4096
MAX_FILES = 10_000
MAX_GAP_BYTES = 64  # a writer may align tensors

_MAGIC = bytes.fromhex("57fb808b247547db")
_FOOTER_BYTES = 48
_TRAILER_BYTES = 5

_SAVE_AGAIN = "Save the checkpoint again."
RULES: Mapping[str, Rule] = {
    **rules_of("tf-checkpoint"),
    "tf-checkpoint/table": Rule(
        "A table whose blocks overlap, leave gaps or point outside, so that two readers find different entries.",
        _SAVE_AGAIN,
    ),
    "tf-checkpoint/compressed": Rule("A compressed block: a few bytes that unpack to many.", _SAVE_AGAIN),
    "tf-checkpoint/order": Rule("A key twice or out of order: each reader finds another entry.", _SAVE_AGAIN),
    "tf-checkpoint/header": Rule(
        "A checkpoint without its header, or one of foreign byte order.", _SAVE_AGAIN
    ),
    "tf-checkpoint/size": Rule(
        "A shape that claims more or fewer bytes than the tensor has, so that reading it leaves the buffer.",
        _SAVE_AGAIN,
    ),
    "tf-checkpoint/overlap": Rule(
        "Two tensors over the same bytes, or bytes that belong to none.", _SAVE_AGAIN
    ),
    "tf-checkpoint/name": Rule(
        "An index under a name from which its data files cannot be derived.",
        "Keep the names that TensorFlow gave: NAME.index beside NAME.data-00000-of-00001.",
    ),
}


class _Handle(NamedTuple):
    offset: int
    size: int


@dataclass(slots=True)
class _Table:
    """The whole index in memory; bounded by MAX_BYTES."""

    data: bytes
    reader: Reader
    findings: list[Finding]
    blocks: list[_Handle] = field(default_factory=list)

    def entries(self) -> Iterator[tuple[bytes, int, int]]:
        """Key, begin and end of each value of the data blocks, in order. Raises Malformed."""
        at = len(self.data) - _FOOTER_BYTES
        meta, position = self._handle(at, at + 40)
        index, position = self._handle(position, at + 40)
        if any(self.data[position : at + 40]):
            _refuse("table", "the footer holds more than two handles", position)
        listed = list(self._block(index))
        for _, begin, end in self._block(meta):
            _refuse("table", f"a meta block of {end - begin} bytes", begin)
        last: bytes | None = None
        count = 0
        for _, begin, end in listed:
            handle, stop = self._handle(begin, end)
            if stop != end:
                _refuse("table", "a handle with bytes behind it", stop)
            for key, first, after in self._block(handle):
                if last is not None and key <= last:
                    _refuse("order", f"key {key[:80]!a} follows {last[:80]!a}", first)
                last = key
                count += 1
                if count > MAX_ENTRIES:
                    _refuse("limit", f"more than {MAX_ENTRIES} entries", first)
                yield key, first, after
        self._check_tiling(at)

    def _check_tiling(self, end: int) -> None:
        at = 0
        for block in sorted(self.blocks):
            if block.offset != at:
                _refuse("table", f"a block begins at {block.offset}; expected {at}", at)
            at = block.offset + block.size + _TRAILER_BYTES
        if at != end:
            _refuse("table", f"the blocks end at {at}, the footer begins at {end}", at)

    def _handle(self, at: int, end: int) -> tuple[_Handle, int]:
        offset, at = self._varint(at, end)
        size, at = self._varint(at, end)
        if offset + size + _TRAILER_BYTES > len(self.data) - _FOOTER_BYTES:
            _refuse("table", f"a block of {size} bytes at {offset}", at)
        return _Handle(offset, size), at

    def _block(self, handle: _Handle) -> Iterator[tuple[bytes, int, int]]:
        self.blocks.append(handle)
        if len(self.blocks) > MAX_ENTRIES:
            _refuse("limit", f"more than {MAX_ENTRIES} blocks", handle.offset)
        end = handle.offset + handle.size
        if self.data[end]:
            _refuse("compressed", f"compression {self.data[end]}", end)
        restarts = int.from_bytes(self.data[end - 4 : end], "little") if handle.size >= 4 else 0
        stop = end - 4 - 4 * restarts
        if not restarts or stop < handle.offset:
            _refuse("table", f"{restarts} restarts in a block of {handle.size} bytes", handle.offset)
        at, key = handle.offset, b""
        while at < stop:
            start = at
            shared, at = self._varint(at, stop)
            other, at = self._varint(at, stop)
            size, at = self._varint(at, stop)
            if shared > len(key) or other + size > stop - at or shared + other > MAX_KEY_BYTES:
                _refuse("table", f"an entry of {shared} + {other} key bytes and {size} value bytes", start)
            key = key[:shared] + self.data[at : at + other]
            at += other
            yield key, at, at + size
            at += size

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        value = shift = 0
        start = at
        while at < end and shift < 63:
            byte = self.data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, at
            shift += 7
        return _refuse("table", "a number runs past its place", start)


class _Tensor(NamedTuple):
    file: int
    begin: int
    end: int
    key: bytes


@dataclass(slots=True)
class _Bundle:
    table: _Table
    files: int = 0
    tensors: list[_Tensor] = field(default_factory=list)
    parameters: int = 0

    def header(self, begin: int, end: int) -> None:
        foreign = 0
        for part in self.table.reader.parts("BundleHeaderProto", begin, end, 0):
            if part.spec.name == "num_shards":
                self.files = part.value
            elif part.spec.name == "endianness":
                foreign = part.value
            else:
                self.table.reader.skim_part(part, 0)
        if foreign or not 1 <= self.files <= MAX_FILES:
            _refuse("header", f"{self.files} data files, byte order {foreign}", begin)

    def entry(self, key: bytes, begin: int, end: int) -> None:
        reader = self.table.reader
        kind = shard = offset = size = slices = 0
        elements = 1
        for part in reader.parts("BundleEntryProto", begin, end, 0):
            label = part.spec.name
            if label == "dtype":
                kind = part.value
            elif label == "shape":
                elements = elements_of(reader, part, 1)
            elif label == "shard_id":
                shard = signed(part.value)
            elif label == "offset":
                offset = signed(part.value)
            elif label == "size":
                size = signed(part.value)
            else:
                slices += label == "slices"
                reader.skim_part(part, 0)
        if slices and not size:
            return  # a partitioned variable: its slices stand under keys of their own
        if elements < 0 or offset < 0 or size < 0 or not 0 <= shard < self.files:
            what = f"{key[:80]!a}: {elements} elements, {size} bytes at {offset} of file {shard}"
            _refuse("size", what, begin)
        if kind in TYPE_BYTES and elements * TYPE_BYTES[kind] != size:
            what = f"{key[:80]!a}: {elements} elements of type {kind} in {size} bytes"
            self.table.findings.append(Finding("tf-checkpoint/size", what, begin))
        elif kind not in TYPE_BYTES and kind not in {7, 20, 21}:
            self.table.findings.append(Finding("tf-checkpoint/size", f"{key[:80]!a} has type {kind}", begin))
        self.parameters += elements
        self.tensors.append(_Tensor(shard, offset, offset + size, key))

    def ends(self) -> dict[int, int]:
        """How long each data file is. Tensors lie end to end, up to an alignment."""
        ends: dict[int, int] = dict.fromkeys(range(self.files), 0)
        for tensor in sorted(self.tensors):
            at = ends[tensor.file]
            if tensor.begin < at or tensor.begin - at >= MAX_GAP_BYTES:
                what = f"{tensor.key[:80]!a} begins at {tensor.begin}; the one before ends at {at}"
                _refuse("overlap", what, None)
            ends[tensor.file] = tensor.end
        return ends


def _refuse(rule: str, message: str, offset: int | None) -> NoReturn:
    raise Malformed(message, rule=f"tf-checkpoint/{rule}", offset=offset)


class CheckpointFormat:
    """The plug of `steelyard.formats`."""

    name = "tf-checkpoint"
    rules = RULES

    def sniff(self, head: bytes, path: str) -> bool:  # noqa: ARG002 - content alone decides
        """The first entry has the empty key and a header as its value."""
        if head[:2] != b"\0\0" or len(head) < 8 or not 2 <= head[2] < 64:
            return False
        found = outline(head[3 : 3 + head[2]])
        return bool(found) and found[0].number == 1 and found[-1].number == 3 and found[-1].wire == LENGTH

    def read(self, source: ByteSource, path: str) -> Report:
        if not _FOOTER_BYTES < source.size <= MAX_BYTES:
            _refuse("limit", f"{source.size} bytes; at most {MAX_BYTES} are read", 0)
        data = source.read(0, source.size)
        if data[-8:] != _MAGIC:
            _refuse("table", f"the file ends with {data[-8:].hex(' ')}", len(data) - 8)
        findings: list[Finding] = []
        bundle = _Bundle(_Table(data, Reader(BytesSource(data), MESSAGES, "tf-checkpoint"), findings))
        for key, begin, end in bundle.table.entries():
            if not bundle.files:
                if key:
                    _refuse("header", f"the first key is {key[:80]!a}", begin)
                bundle.header(begin, end)
            else:
                bundle.entry(key, begin, end)
        if not bundle.files:
            _refuse("header", "no entries", 0)
        ends = bundle.ends()
        stem = path.rpartition("/")[2]
        if not stem.endswith(".index"):
            findings.append(Finding("tf-checkpoint/name", f"{stem[:80]!a} does not end in .index", None))
        stem = stem.removesuffix(".index")
        references = tuple(
            Reference(f"{stem}.data-{file:05d}-of-{bundle.files:05d}", end) for file, end in ends.items()
        )
        facts: dict[str, JSON] = {
            "tensors": len(bundle.tensors),
            "parameters": bundle.parameters,
            "data_files": bundle.files,
        }
        return Report(self.name, facts, tuple(findings), references=references)


FORMAT = CheckpointFormat()
