"""MessagePack as Flax writes it (*.msgpack, Orbax's `checkpoint`): a tree of named arrays, no code.

    80-8f de df   map; keys are texts          90-9f dc dd   array
    a0-bf d9-db   text                         c4-c6         bytes
    c0 c2 c3 ca-d3 00-7f e0-ff                 null, bools, floats, integers
    d4-d8 c7-c9   extension: 1 array and 3 scalar, both (shape, dtype name, bytes); 2 complex number, (real, imaginary)

The format has no magic. A file is claimed by its name and a map with a text as first key at its start. Every byte is
read; counts are compared with the bytes left before anything is stored, so a map that claims 2^32 entries ends at once.
Source: MessagePack specification (github.com/msgpack/msgpack/blob/master/spec.md); flax 0.12, flax/serialization.py.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple, NoReturn

from steelyard.digest import JSON
from steelyard.errors import Malformed
from steelyard.formats.base import ByteSource, Report, Rule
from steelyard.formats.jsonfile import base_name

MAX_DEPTH = 64
MAX_VALUES = 300_000
MAX_KEY_BYTES = 4096
_WINDOW = 1 << 20
_MAX_RANK = 32

_SAVE = "Save the parameters again with flax.serialization.to_bytes, or as safetensors."
RULES: Final[Mapping[str, Rule]] = {
    "msgpack/truncated": Rule("A length or count that runs past the file.", _SAVE),
    "msgpack/limit": Rule("So many or so deeply nested values that reading them exhausts memory.", _SAVE),
    "msgpack/trailing": Rule("A second file behind the tree: a pickle is one.", _SAVE),
    "msgpack/key": Rule("A key that is no text, or twice: each reader picks its own.", _SAVE),
    "msgpack/extension": Rule("An extension whose reader is unknown and may be anything.", _SAVE),
    "msgpack/array": Rule("An array whose bytes are not what its shape says.", _SAVE),
    "msgpack/marker": Rule("A marker the format never uses.", _SAVE),
}
_ITEM_BYTES: Final[Mapping[str, int]] = {
    "bool": 1, "int8": 1, "uint8": 1, "int16": 2, "uint16": 2, "float16": 2, "bfloat16": 2, "int32": 4, "uint32": 4,
    "float32": 4, "int64": 8, "uint64": 8, "float64": 8, "complex64": 8, "complex128": 16, "float8_e4m3fn": 1,
    "float8_e5m2": 1, "float8_e4m3b11fnuz": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "int4": 1, "uint4": 1,
}  # fmt: skip
_FIXED: Final = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8, 0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
_NDARRAY, _COMPLEX, _SCALAR = 1, 2, 3


class _Head(NamedTuple):
    """kind: map, array, text, bytes, extension, number, or plain (null, bool).  size: entries or bytes."""

    kind: str
    size: int
    extension: int = 0


class MsgpackFormat:
    """*.msgpack and files named `checkpoint` that begin with a map of texts."""

    name = "msgpack"
    rules = RULES

    def sniff(self, head: bytes, path: str) -> bool:
        base = base_name(path)
        return (base.endswith(".msgpack") or base == "checkpoint") and _begins_as_tree(head)

    def read(self, source: ByteSource, path: str) -> Report:  # noqa: ARG002 - the plug's signature
        reader = _Reader(source)
        reader.whole()
        facts: dict[str, JSON] = {
            "arrays": reader.arrays,
            "values": reader.values,
            "data_bytes": reader.data_bytes,
        }
        return Report(self.name, facts)


def _begins_as_tree(head: bytes) -> bool:
    """A non-empty map whose first key is a text; an empty map is one byte long."""
    if head[:1] == b"\x80":
        return len(head) == 1
    skip = {0xDE: 3, 0xDF: 5}.get(head[0], 1 if 0x81 <= head[0] <= 0x8F else 0)
    return skip > 0 and len(head) > skip and (0xA0 <= head[skip] <= 0xBF or head[skip] in {0xD9, 0xDA, 0xDB})


class _Reader:
    """One value over the whole file; array contents are skipped by their length."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._at = 0
        self._end = source.size
        self._window, self._window_at = b"", 0
        self.values = self.arrays = self.data_bytes = 0

    def _refuse(self, rule: str, message: str) -> NoReturn:
        raise Malformed(message, rule=f"msgpack/{rule}", offset=self._at)

    def _take(self, size: int) -> bytes:
        self._room(size)
        begin = self._at - self._window_at
        if begin < 0 or begin + size > len(self._window):
            self._window_at, begin = self._at, 0
            self._window = self._source.read(self._at, min(max(_WINDOW, size), self._source.size - self._at))
        self._at += size
        return self._window[begin : begin + size]

    def _room(self, size: int) -> None:
        if self._at + size > self._end:
            self._refuse("truncated", f"{size} bytes wanted, {self._end - self._at} left")

    def _skip(self, size: int) -> None:
        self._room(size)
        self._at += size

    def _number(self, size: int) -> int:
        return int.from_bytes(self._take(size), "big")

    def whole(self) -> None:
        self._value(0)
        if self._at != self._source.size:
            self._refuse("trailing", f"{self._source.size - self._at} bytes follow the tree")

    def _head(self) -> _Head:
        marker = self._take(1)[0]
        if marker < 0x80 or marker >= 0xE0 or marker in {0xC0, 0xC2, 0xC3}:
            return _Head("plain", marker)
        if marker < 0x90:
            return _Head("map", marker & 15)
        if marker < 0xA0:
            return _Head("array", marker & 15)
        if marker < 0xC0:
            return _Head("text", marker & 31)
        if marker in _FIXED:
            return _Head("number", _FIXED[marker])
        if marker in {0xC4, 0xC5, 0xC6}:
            return _Head("bytes", self._number(1 << (marker - 0xC4)))
        if marker in {0xD9, 0xDA, 0xDB}:
            return _Head("text", self._number(1 << (marker - 0xD9)))
        if marker in {0xDC, 0xDD}:
            return _Head("array", self._number(2 << (marker - 0xDC)))
        if marker in {0xDE, 0xDF}:
            return _Head("map", self._number(2 << (marker - 0xDE)))
        if marker in {0xC7, 0xC8, 0xC9}:
            size = self._number(1 << (marker - 0xC7))
            return _Head("extension", size, self._number(1))
        if 0xD4 <= marker <= 0xD8:
            return _Head("extension", 1 << (marker - 0xD4), self._number(1))
        raise Malformed(f"the marker 0x{marker:02x}", rule="msgpack/marker", offset=self._at)

    def _value(self, depth: int) -> None:
        head = self._head()
        self.values += 1
        if self.values > MAX_VALUES or depth > MAX_DEPTH:
            self._refuse("limit", f"more than {MAX_VALUES} values or {MAX_DEPTH} levels")
        if head.kind == "map":
            self._map(head.size, depth)
        elif head.kind == "array":
            self._room(head.size)
            for _ in range(head.size):
                self._value(depth + 1)
        elif head.kind == "extension":
            self._extension(head)
        elif head.kind == "text":
            self._text(head.size)
        elif head.kind != "plain":
            self._skip(head.size)

    def _map(self, count: int, depth: int) -> None:
        self._room(2 * count)
        seen: set[str] = set()
        for _ in range(count):
            key = self._head()
            if key.kind != "text" or key.size > MAX_KEY_BYTES:
                self._refuse("key", f"a key of kind {key.kind}, {key.size} bytes")
            name = self._text(key.size)
            if name in seen:
                self._refuse("key", f"the key {name[:80]!a} stands twice")
            seen.add(name)
            self._value(depth + 1)

    def _text(self, size: int) -> str:
        """The text when it is as short as a key, else ''; longer ones are skipped."""
        if size > MAX_KEY_BYTES:
            self._skip(size)
            return ""
        try:
            return self._take(size).decode()
        except UnicodeDecodeError:
            self._refuse("key", "a text that is not UTF-8")

    def _extension(self, head: _Head) -> None:
        self._room(head.size)
        end, outer = self._at + head.size, self._end
        self._end = end
        if head.extension in {_NDARRAY, _SCALAR}:
            self._array()
        elif head.extension == _COMPLEX:
            if self._head() != _Head("array", 2) or {self._head_skip(), self._head_skip()} - {
                "plain",
                "number",
            }:
                self._refuse("extension", "a complex number of other than two numbers")
        else:
            self._refuse("extension", f"extension {head.extension}; 1 to 3 are Flax's")
        if self._at != end:
            self._refuse("trailing", f"{end - self._at} bytes follow the value inside an extension")
        self._end = outer

    def _head_skip(self) -> str:
        head = self._head()
        if head.kind == "number":
            self._skip(head.size)
        return head.kind

    def _array(self) -> None:
        shape, items = self._head(), 1
        if shape != _Head("array", 3):
            self._refuse("array", "an array of other than shape, dtype and bytes")
        axes = self._head()
        if axes.kind != "array" or axes.size > _MAX_RANK:
            self._refuse("array", f"a shape of kind {axes.kind} with {axes.size} axes")
        for _ in range(axes.size):
            axis = self._head()
            if axis.kind == "plain" and axis.size < 0x80:
                items *= axis.size
            elif axis.kind == "number":
                items *= self._number(axis.size)
            else:
                self._refuse("array", "an axis that is no size")
        name = self._head()
        dtype = self._text(name.size) if name.kind == "text" else ""
        data = self._head()
        if dtype not in _ITEM_BYTES or data.kind != "bytes":
            self._refuse("array", f"an array of {dtype[:40]!a}")
        if data.size != items * _ITEM_BYTES[dtype]:
            self._refuse("array", f"{data.size} bytes for {items} items of {dtype}")
        self._skip(data.size)
        self.arrays += 1
        self.data_bytes += data.size


FORMAT: Final = MsgpackFormat()
