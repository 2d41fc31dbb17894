"""GGUF, versions 2 and 3, little-endian: metadata, tensor table, aligned tensor data.

    0   4   "GGUF"
    4   4   version, u32
    8   8   number of tensors, u64
    16  8   number of keys, u64
    24      keys: string, type u32, value; then tensors: name string, n u32, n dimensions u64, type u32,
            offset u64; then zeros up to a multiple of general.alignment (32 if absent); then tensor data

A string is a length (u64) and UTF-8. An array is an element type (u32), a count (u64) and the elements.
Source: docs/gguf.md of github.com/ggml-org/ggml and its reader `ggml/src/gguf.cpp`. We refuse what that
reader refuses and also: nested arrays, non-zero padding, bytes that belong to no tensor, big-endian files.
Arrays are skipped with every bound checked, never kept: a vocabulary costs time, not memory.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from struct import Struct
from typing import NamedTuple, NoReturn

from steelyard.digest import JSON
from steelyard.errors import Malformed
from steelyard.formats.base import ByteSource, Rule

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_KEYS = 1 << 16
MAX_TENSORS = 1 << 20
MAX_KEY_BYTES = 65_535
MAX_NAME_BYTES = 63
MAX_STRING_BYTES = 16 << 20
MAX_STRINGS_BYTES = 64 << 20
MAX_ELEMENT_BYTES = 1 << 20
MAX_ARRAY_ELEMENTS = 1 << 24
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 16
DEFAULT_ALIGNMENT = 32

_I64_MAX = 2**63 - 1
_HEAD_BYTES = 24
_MIN_KEY_ENTRY = 8 + 1 + 4 + 1
_MIN_TENSOR_ENTRY = 8 + 1 + 4 + 8 + 4 + 8
_CHUNK = 1 << 20
_KEY = re.compile(r"[A-Za-z0-9_.:/+-]+")

_U32 = Struct("<I")
_U64 = Struct("<Q")
_STRING, _ARRAY, _BOOL = 8, 9, 7
_SCALARS: Mapping[int, Struct] = {
    0: Struct("<B"), 1: Struct("<b"), 2: Struct("<H"), 3: Struct("<h"), 4: _U32, 5: Struct("<i"),
    6: Struct("<f"), _BOOL: Struct("<B"), 10: _U64, 11: Struct("<q"), 12: Struct("<d"),
}  # fmt: skip
_VALUE_NAMES = (
    "u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64",
)  # fmt: skip


class TensorType(NamedTuple):
    """`block` elements take `size` bytes."""

    name: str
    block: int
    size: int


TENSOR_TYPES: Mapping[int, TensorType] = {
    0: TensorType("F32", 1, 4), 1: TensorType("F16", 1, 2),
    2: TensorType("Q4_0", 32, 18), 3: TensorType("Q4_1", 32, 20),
    6: TensorType("Q5_0", 32, 22), 7: TensorType("Q5_1", 32, 24),
    8: TensorType("Q8_0", 32, 34), 9: TensorType("Q8_1", 32, 40),
    10: TensorType("Q2_K", 256, 84), 11: TensorType("Q3_K", 256, 110), 12: TensorType("Q4_K", 256, 144),
    13: TensorType("Q5_K", 256, 176), 14: TensorType("Q6_K", 256, 210), 15: TensorType("Q8_K", 256, 292),
    16: TensorType("IQ2_XXS", 256, 66), 17: TensorType("IQ2_XS", 256, 74), 18: TensorType("IQ3_XXS", 256, 98),
    19: TensorType("IQ1_S", 256, 50), 20: TensorType("IQ4_NL", 32, 18), 21: TensorType("IQ3_S", 256, 110),
    22: TensorType("IQ2_S", 256, 82), 23: TensorType("IQ4_XS", 256, 136),
    24: TensorType("I8", 1, 1), 25: TensorType("I16", 1, 2), 26: TensorType("I32", 1, 4),
    27: TensorType("I64", 1, 8), 28: TensorType("F64", 1, 8), 29: TensorType("IQ1_M", 256, 56),
    30: TensorType("BF16", 1, 2), 34: TensorType("TQ1_0", 256, 54), 35: TensorType("TQ2_0", 256, 66),
    39: TensorType("MXFP4", 32, 17), 40: TensorType("NVFP4", 64, 36), 41: TensorType("Q1_0", 128, 18),
}  # fmt: skip

_COPY_AGAIN = "Download or copy the file again and compare its digest."
WRITE_AGAIN = "Convert the model again with a current converter."

STRUCTURE_RULES: Mapping[str, Rule] = {
    "gguf/truncated": Rule("A file cut short, so that a trusting reader runs past the end.", _COPY_AGAIN),
    "gguf/version": Rule(
        "A version whose layout readers guess: version 1 has 32-bit lengths, later ones are unknown.",
        WRITE_AGAIN,
    ),
    "gguf/big-endian": Rule(
        "A big-endian file, read as nonsense lengths by little-endian readers.",
        "Convert for little-endian machines.",
    ),
    "gguf/key-count": Rule("A count of keys that exhausts memory before one is read.", WRITE_AGAIN),
    "gguf/tensor-count": Rule(
        "A count of tensors whose table overflows its allocation (CVE-2026-27940).", WRITE_AGAIN
    ),
    "gguf/string-length": Rule(
        "A string length beyond the file or the limit, overflowing length + 1.", WRITE_AGAIN
    ),
    "gguf/encoding": Rule("Text that is not UTF-8, read differently by each reader.", WRITE_AGAIN),
    "gguf/key-name": Rule("A key of characters that break logs, paths or parsers.", WRITE_AGAIN),
    "gguf/duplicate-key": Rule("A key given twice: the scanner sees one, the loader the other.", WRITE_AGAIN),
    "gguf/value-type": Rule("A value of unknown type, whose length is anybody's guess.", WRITE_AGAIN),
    "gguf/bool": Rule("A boolean that is neither 0 nor 1: undefined behaviour in C++.", WRITE_AGAIN),
    "gguf/nested-array": Rule(
        "Arrays in arrays, which overflow the stack of recursive readers.", WRITE_AGAIN
    ),
    "gguf/array-length": Rule(
        "An array count that wraps when multiplied by the element size, or leaves the file.", WRITE_AGAIN
    ),
    "gguf/alignment": Rule(
        "An alignment that is zero or no power of two, which breaks the rounding of offsets.",
        "Use a power of two from 8 to 65,536; 32 is customary.",
    ),
    "gguf/architecture": Rule("A file that does not say what it is.", "Set general.architecture."),
    "gguf/tensor-name": Rule("A tensor name longer than its fixed buffer, or unprintable.", WRITE_AGAIN),
    "gguf/duplicate-tensor": Rule("A tensor given twice: one checked, the other served.", WRITE_AGAIN),
    "gguf/dimensions": Rule(
        "More dimensions than the reader's array of four holds (CVE-2024-21802), or an empty one.",
        WRITE_AGAIN,
    ),
    "gguf/shape-overflow": Rule(
        "Dimensions whose product wraps to a small buffer (CVE-2025-53630, CVE-2026-33298).", WRITE_AGAIN
    ),
    "gguf/tensor-type": Rule("A tensor type that is unknown or was removed.", WRITE_AGAIN),
    "gguf/block-size": Rule("A row that does not fill whole quantisation blocks.", WRITE_AGAIN),
    "gguf/offset-alignment": Rule("A tensor at an unaligned offset.", WRITE_AGAIN),
    "gguf/overlap": Rule("Two tensors over the same bytes: one checked, the other served.", WRITE_AGAIN),
    "gguf/gap": Rule("Bytes between tensors that belong to none, where a payload hides.", WRITE_AGAIN),
    "gguf/padding": Rule("Padding that is not zero: bytes hidden between tensors.", WRITE_AGAIN),
    "gguf/out-of-file": Rule(
        "A tensor that ends after the file does; reading it leaks memory (CVE-2026-7482).", _COPY_AGAIN
    ),
    "gguf/trailing": Rule("Bytes after the last tensor: a second file riding along.", WRITE_AGAIN),
}


class TensorInfo(NamedTuple):
    """One tensor. `shape` is fastest dimension first; `offset` (bytes) counts from GgufHeader.data_start."""

    name: str
    type: TensorType
    shape: tuple[int, ...]
    offset: int
    size: int
    elements: int


class ArrayInfo(NamedTuple):
    """What is known of an array that was skipped."""

    element: str
    length: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """A validated header. `metadata` holds scalars and strings; a float that is not finite is None."""

    version: int
    metadata: Mapping[str, JSON]
    kinds: Mapping[str, str]
    arrays: Mapping[str, ArrayInfo]
    tensors: tuple[TensorInfo, ...]
    alignment: int
    data_start: int


def header_of(source: ByteSource) -> GgufHeader:
    """The header, checked against the whole file; of tensor data only padding is read. Raises Malformed."""
    version, tensor_count, key_count = _counts_of(source)
    cursor = _Cursor(source, _HEAD_BYTES)
    keys = _Keys({}, {}, {})
    for _ in range(key_count):
        _read_key(cursor, keys)
    alignment = _alignment_of(keys)
    if not isinstance(architecture := keys.metadata.get("general.architecture"), str) or not architecture:
        _refuse("architecture", "general.architecture is missing or not text", _HEAD_BYTES)
    tensors = _read_tensors(cursor, tensor_count, alignment)
    data_start = _aligned(cursor.at, alignment)
    _check_layout(source, tensors, cursor.at, data_start, alignment)
    return GgufHeader(version, keys.metadata, keys.kinds, keys.arrays, tensors, alignment, data_start)


class _Counts(NamedTuple):
    version: int
    tensors: int
    keys: int


def _counts_of(source: ByteSource) -> _Counts:
    if source.size < _HEAD_BYTES:
        _refuse("truncated", f"{source.size} bytes; the head alone takes {_HEAD_BYTES}", 0)
    head = source.read(0, _HEAD_BYTES)
    if head[:4] != MAGIC:
        _refuse("version", f"magic {head[:4]!a}; expected {MAGIC!a}", 0)
    version = _U32.unpack_from(head, 4)[0]
    if int.from_bytes(head[4:8], "big") in VERSIONS:
        _refuse("big-endian", "the version is stored big-endian", 4)
    if version not in VERSIONS:
        _refuse("version", f"version {version}; expected 2 or 3", 4)
    tensors, keys = _U64.unpack_from(head, 8)[0], _U64.unpack_from(head, 16)[0]
    room = source.size - _HEAD_BYTES
    if keys > min(MAX_KEYS, room // _MIN_KEY_ENTRY):
        _refuse("key-count", f"{keys} keys; at most {MAX_KEYS}, and {room} bytes remain", 16)
    if tensors > min(MAX_TENSORS, room // _MIN_TENSOR_ENTRY):
        _refuse("tensor-count", f"{tensors} tensors; at most {MAX_TENSORS}, and {room} bytes remain", 8)
    return _Counts(version, tensors, keys)


class _Cursor:
    """Forward reads in chunks. `at` is the offset of the next byte, `left` what the file still holds."""

    def __init__(self, source: ByteSource, at: int) -> None:
        self._source = source
        self._chunk = b""
        self._chunk_at = at
        self.at = at
        self.kept = 0  # bytes of the strings in metadata

    @property
    def left(self) -> int:
        return self._source.size - self.at

    def take(self, size: int) -> bytes:
        start = self.at - self._chunk_at
        if start < 0 or start + size > len(self._chunk):
            if size > self.left:
                _refuse("truncated", f"{size} bytes wanted, {self.left} left", self.at)
            self._chunk = self._source.read(self.at, min(max(_CHUNK, size), self.left))
            self._chunk_at, start = self.at, 0
        self.at += size
        return self._chunk[start : start + size]

    def u32(self) -> int:
        value: int = _U32.unpack(self.take(4))[0]
        return value

    def u64(self) -> int:
        value: int = _U64.unpack(self.take(8))[0]
        return value

    def skip(self, size: int) -> None:
        self.at += size

    def text(self, limit: int, rule: str = "string-length") -> str:
        """A string of at most `limit` bytes."""
        start = self.at
        size = self.u64()
        if size > limit or size > self.left:
            _refuse(rule, f"a string of {size} bytes; at most {limit}, and {self.left} are left", start)
        try:
            return self.take(size).decode()
        except UnicodeDecodeError as error:
            message = f"a string at byte {start} is not UTF-8"
            raise Malformed(message, rule="gguf/encoding", offset=start + 8 + error.start) from error

    def skip_strings(self, count: int, limit: int) -> None:
        """`count` strings, each checked as `text` does. ASCII within the chunk, the common case, costs least."""
        chunk, at = self._chunk, self.at - self._chunk_at
        for _ in range(count):
            begin = at + 8
            if begin <= len(chunk):
                end = begin + _U64.unpack_from(chunk, at)[0]
                if end <= len(chunk) and end - begin <= limit and chunk[begin:end].isascii():
                    at = end
                    continue
            self.at = self._chunk_at + at
            self.text(limit)
            chunk, at = self._chunk, self.at - self._chunk_at
        self.at = self._chunk_at + at


class _Keys(NamedTuple):
    metadata: dict[str, JSON]
    kinds: dict[str, str]
    arrays: dict[str, ArrayInfo]


def _read_key(cursor: _Cursor, keys: _Keys) -> None:
    start = cursor.at
    key = cursor.text(MAX_KEY_BYTES)
    if not _KEY.fullmatch(key):
        _refuse("key-name", f"key {clip(key)} is empty or holds other than letters, digits and _.:/+-", start)
    if key in keys.kinds:
        _refuse("duplicate-key", f"key {clip(key)} stands twice", start)
    kind_at = cursor.at
    kind = cursor.u32()
    if kind >= len(_VALUE_NAMES):
        _refuse("value-type", f"key {clip(key)} has value type {kind}", kind_at)
    keys.kinds[key] = _VALUE_NAMES[kind]
    if kind == _ARRAY:
        keys.arrays[key] = _skip_array(cursor, key)
    elif kind == _STRING:
        start = cursor.at
        keys.metadata[key] = cursor.text(min(MAX_STRING_BYTES, MAX_STRINGS_BYTES - cursor.kept))
        cursor.kept += cursor.at - start
    else:
        keys.metadata[key] = _scalar(cursor, key, kind)


def _scalar(cursor: _Cursor, key: str, kind: int) -> JSON:
    start = cursor.at
    layout = _SCALARS[kind]
    value: int | float = layout.unpack(cursor.take(layout.size))[0]
    if kind == _BOOL:
        if value > 1:
            _refuse("bool", f"key {clip(key)} is a boolean of value {value}", start)
        return bool(value)
    if isinstance(value, float) and not isfinite(value):
        return None
    return value


def _skip_array(cursor: _Cursor, key: str) -> ArrayInfo:
    start = cursor.at
    kind, count = cursor.u32(), cursor.u64()
    if kind >= len(_VALUE_NAMES):
        _refuse("value-type", f"array {clip(key)} has element type {kind}", start)
    if kind == _ARRAY:
        _refuse("nested-array", f"array {clip(key)} holds arrays", start)
    smallest = 8 if kind == _STRING else _SCALARS[kind].size
    if count > min(MAX_ARRAY_ELEMENTS, cursor.left // smallest):
        _refuse(
            "array-length",
            f"array {clip(key)} of {count} elements; at most {MAX_ARRAY_ELEMENTS}, {cursor.left} bytes are left",
            start + 4,
        )
    if kind == _STRING:
        cursor.skip_strings(count, MAX_ELEMENT_BYTES)
    elif kind == _BOOL:
        if cursor.take(count).strip(b"\0\1"):
            _refuse("bool", f"array {clip(key)} holds a boolean that is neither 0 nor 1", start)
    else:
        cursor.skip(count * smallest)
    return ArrayInfo(_VALUE_NAMES[kind], count)


def _alignment_of(keys: _Keys) -> int:
    kind = keys.kinds.get("general.alignment")
    if kind is None:
        return DEFAULT_ALIGNMENT
    value = keys.metadata.get("general.alignment")
    if kind != "u32" or not isinstance(value, int):
        _refuse("alignment", f"general.alignment is of type {kind}; expected u32", _HEAD_BYTES)
    if not 8 <= value <= MAX_ALIGNMENT or value & (value - 1):
        _refuse(
            "alignment",
            f"general.alignment {value}; expected a power of two, 8 to {MAX_ALIGNMENT}",
            _HEAD_BYTES,
        )
    return value


def _read_tensors(cursor: _Cursor, count: int, alignment: int) -> tuple[TensorInfo, ...]:
    tensors = []
    names: set[str] = set()
    for _ in range(count):
        start = cursor.at
        tensor = _read_tensor(cursor)
        if tensor.name in names:
            _refuse("duplicate-tensor", f"tensor {clip(tensor.name)} stands twice", start)
        if tensor.offset % alignment:
            message = (
                f"tensor {clip(tensor.name)} at offset {tensor.offset}; expected a multiple of {alignment}"
            )
            _refuse("offset-alignment", message, start)
        names.add(tensor.name)
        tensors.append(tensor)
    return tuple(tensors)


def _read_tensor(cursor: _Cursor) -> TensorInfo:
    start = cursor.at
    name = cursor.text(MAX_NAME_BYTES, "tensor-name")
    if not name or not name.isprintable():
        _refuse("tensor-name", f"tensor name {clip(name)} is empty or unprintable", start)
    dimensions = cursor.u32()
    if not 1 <= dimensions <= MAX_DIMENSIONS:
        _refuse(
            "dimensions", f"tensor {clip(name)} of {dimensions} dimensions; expected 1 to 4", cursor.at - 4
        )
    shape = tuple(cursor.u64() for _ in range(dimensions))
    elements = 1
    for dimension in shape:
        if dimension == 0:
            _refuse("dimensions", f"tensor {clip(name)} has an empty dimension", start)
        elements *= dimension
    if elements > _I64_MAX:
        _refuse("shape-overflow", f"tensor {clip(name)}: the product of its dimensions overflows", start)
    code = cursor.u32()
    kind = TENSOR_TYPES.get(code)
    if kind is None:
        _refuse("tensor-type", f"tensor {clip(name)} of type {code}", cursor.at - 4)
    if shape[0] % kind.block:
        message = f"tensor {clip(name)}: rows of {shape[0]} elements in {kind.name} blocks of {kind.block}"
        _refuse("block-size", message, start)
    size = elements // kind.block * kind.size
    offset = cursor.u64()
    if offset + size > _I64_MAX:
        _refuse("shape-overflow", f"tensor {clip(name)}: offset {offset} plus {size} bytes overflows", start)
    return TensorInfo(name, kind, shape, offset, size, elements)


def _aligned(at: int, alignment: int) -> int:
    return -(-at // alignment) * alignment


def _check_layout(
    source: ByteSource, tensors: tuple[TensorInfo, ...], table_end: int, data_start: int, alignment: int
) -> None:
    """Tensors in order of offset tile the data up to padding; padding is zero; the file ends there."""
    at, due = table_end, data_start
    for tensor in sorted(tensors, key=lambda tensor: tensor.offset):
        begin = data_start + tensor.offset
        if begin < due:
            _refuse("overlap", f"tensor {clip(tensor.name)} begins at {begin}, before {due}", begin)
        if begin > due:
            _refuse("gap", f"tensor {clip(tensor.name)} begins at {begin}; the one before ends at {at}", at)
        if begin + tensor.size > source.size:
            message = f"tensor {clip(tensor.name)} ends at {begin + tensor.size}, the file at {source.size}"
            _refuse("out-of-file", message, source.size)
        _check_padding(source, at, begin)
        at = begin + tensor.size
        due = _aligned(at, alignment)
    if source.size > due:
        _refuse("trailing", f"{source.size - due} bytes follow the last tensor", due)
    _check_padding(source, at, source.size)


def _check_padding(source: ByteSource, begin: int, end: int) -> None:
    if begin < end and source.read(begin, end - begin).strip(b"\0"):
        _refuse("padding", f"padding from {begin} to {end} is not zero", begin)


def clip(text: str, limit: int = 80) -> str:
    return ascii(text if len(text) <= limit else text[:limit] + "...")


def _refuse(rule: str, message: str, offset: int) -> NoReturn:
    raise Malformed(message, rule=f"gguf/{rule}", offset=offset)
