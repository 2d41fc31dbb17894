"""R's serialised objects (.rds, .RData): plain data only. The gzip around them is opened by compressed.py.

    .rds      "X\\n", version, R version, oldest R version, [version 3: length and name of the encoding], object
    .RData    "RDX2\\n" or "RDX3\\n", then the same; the object is a pairlist of names and values
    object    flags (type, 0x100 class, 0x200 attributes, 0x400 tag), then by type; big-endian

Reading an object may run code long after it was loaded: a promise is evaluated when its name is first used
(CVE-2024-27322), a closure or byte code when it is called. Vectors, lists, names and attributes are let through;
promises, functions, calls, environments and pointers are refused.
Source: R Internals, section 1.8 "Serialization Formats"; R 4.4 src/main/serialize.c.
"""

from collections.abc import Mapping
from struct import Struct
from typing import Final, NoReturn

from steelyard.digest import JSON
from steelyard.errors import Malformed
from steelyard.formats.base import ByteSource, Report, Rule

MAX_DEPTH = 64
MAX_OBJECTS = 300_000
MAX_NAME_BYTES = 1 << 16
_WINDOW = 1 << 20

_PLAIN = "Save data alone (vectors, lists, data frames), or export the model as PMML or ONNX."
RULES: Final[Mapping[str, Rule]] = {
    "r/promise": Rule("A promise: code that runs when the object is first touched (CVE-2024-27322).", _PLAIN),
    "r/code": Rule("A function, a call, byte code or an environment: R runs it when it is used.", _PLAIN),
    "r/pointer": Rule("A pointer or a hook that the loading session fills in.", _PLAIN),
    "r/form": Rule(
        "A form of serialisation that is not read: text, native binary, or an unknown version.", _PLAIN
    ),
    "r/truncated": Rule("A length that runs past the file.", _PLAIN),
    "r/trailing": Rule("A second file behind the object.", _PLAIN),
    "r/limit": Rule("So many or so deeply nested objects that reading them exhausts memory.", _PLAIN),
    "r/structure": Rule("A structure that R does not write.", _PLAIN),
}
_INT = Struct(">i")
_STARTS: Final = (
    b"X\n\0\0\0",
    b"RDX2\n",
    b"RDX3\n",
    b"RDA2\n",
    b"RDA3\n",
    b"RDB2\n",
    b"RDB3\n",
    b"A\n2\n",
    b"A\n3\n",
)
# nil, global, base, empty, unbound, missing, base namespace
_CONSTANTS: Final = frozenset({254, 253, 241, 242, 252, 251, 247})
_WIDTHS: Final = {10: 4, 13: 4, 14: 8, 15: 16, 24: 1}
_CODE: Final = {
    3: "a closure", 4: "an environment", 6: "a call", 7: "a special function", 8: "a built-in function", 17: "dots",
    20: "an expression", 21: "byte code", 240: "a call", 249: "a namespace", 250: "a package",
}  # fmt: skip
_POINTERS: Final = {22: "an external pointer", 23: "a weak reference", 248: "a persistent reference"}
_ALTREP: Final = frozenset({"compact_intseq", "compact_realseq", "deferred_string", "wrap_real", "wrap_integer",
                            "wrap_string", "wrap_logical", "wrap_complex", "wrap_raw", "wrap_list"})  # fmt: skip
SYMBOL, PAIRLIST, PROMISE, CHARS, TEXTS, LIST, S4, REFERENCE, ALTREP, ATTRIBUTES = (
    1,
    2,
    5,
    9,
    16,
    19,
    25,
    255,
    238,
    239,
)


class RDataFormat:
    """Claims by the first bytes; text and native binary forms are claimed to be refused by name."""

    name = "r-data"
    rules = RULES

    def sniff(self, head: bytes, path: str) -> bool:  # noqa: ARG002 - the plug's signature
        return head.startswith(_STARTS)

    def read(self, source: ByteSource, path: str) -> Report:  # noqa: ARG002 - the plug's signature
        reader = _Reader(source)
        reader.read()
        facts: dict[str, JSON] = {"objects": reader.objects, "serialisation": reader.version}
        return Report(self.name, facts)


class _Reader:
    """One serialised object over the whole file. Vectors are skipped by their length."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._at = 0
        self._window, self._window_at = b"", 0
        self._references = 0
        self.objects = 0
        self.version = 0

    def _refuse(self, rule: str, message: str) -> NoReturn:
        raise Malformed(message, rule=f"r/{rule}", offset=self._at)

    def _take(self, size: int) -> bytes:
        self._room(size)
        begin = self._at - self._window_at
        if begin < 0 or begin + size > len(self._window):
            self._window_at, begin = self._at, 0
            self._window = self._source.read(self._at, min(max(_WINDOW, size), self._source.size - self._at))
        self._at += size
        return self._window[begin : begin + size]

    def _room(self, size: int) -> None:
        if size < 0 or self._at + size > self._source.size:
            self._refuse("truncated", f"{size} bytes wanted, {self._source.size - self._at} left")

    def _skip(self, size: int) -> None:
        self._room(size)
        self._at += size

    def _int(self) -> int:
        value: int = _INT.unpack(self._take(4))[0]
        return value

    def read(self) -> None:
        start = self._take(min(7, self._source.size))
        is_image = start.startswith((b"RDX2\n", b"RDX3\n"))
        form = start[5:7] if is_image else start[:2]
        if form != b"X\n":
            self._refuse("form", f"the form {start[:7]!a}; expected big-endian binary")
        self._at = 7 if is_image else 2
        self.version = self._int()
        if self.version not in {2, 3}:
            self._refuse("form", f"version {self.version}; 2 and 3 are known")
        self._skip(8)
        if self.version == 3:
            size = self._int()
            if not 0 < size <= 64:
                self._refuse("structure", f"an encoding's name of {size} bytes")
            self._skip(size)
        self._object(0)
        if self._at != self._source.size:
            self._refuse("trailing", f"{self._source.size - self._at} bytes follow the object")

    def _length(self) -> int:
        size = self._int()
        if size == -1:  # more than 2^31 elements: two halves follow
            size = (self._int() << 32) + (self._int() & 0xFFFFFFFF)
        if size < 0:
            self._refuse("truncated", f"a length of {size}")
        return size

    def _object(self, depth: int) -> str | None:
        """Read one object; the text of a symbol, else None."""
        return self._flagged(self._int(), depth)

    def _flagged(self, flags: int, depth: int) -> str | None:
        kind = flags & 0xFF
        self.objects += 1
        if self.objects > MAX_OBJECTS or depth > MAX_DEPTH:
            self._refuse("limit", f"more than {MAX_OBJECTS} objects or {MAX_DEPTH} levels")
        self._check(kind)
        if kind == SYMBOL:
            self._references += 1
            return self._chars(self._int())
        if kind == REFERENCE:
            index = flags >> 8 or self._int()
            if not 0 < index <= self._references:
                self._refuse("structure", f"a reference to object {index} of {self._references}")
        elif kind in {PAIRLIST, ATTRIBUTES}:
            self._pairlist(flags, depth)
        elif kind == ALTREP:
            self._alternative(depth)
        elif kind == CHARS:
            self._chars(flags)
        elif kind not in _CONSTANTS:
            self._vector(kind, depth)
            if flags & 0x200:
                self._object(depth + 1)
        return None

    def _check(self, kind: int) -> None:
        if kind == PROMISE:
            self._refuse("promise", "a promise")
        if kind in _CODE:
            self._refuse("code", _CODE[kind])
        if kind in _POINTERS:
            self._refuse("pointer", _POINTERS[kind])
        known = (
            {SYMBOL, PAIRLIST, CHARS, TEXTS, LIST, REFERENCE, ALTREP, ATTRIBUTES}
            | _CONSTANTS
            | _WIDTHS.keys()
        )
        if kind not in known:
            self._refuse("structure", f"an object of type {kind}")

    def _pairlist(self, flags: int, depth: int) -> None:
        """A pairlist is read along its tail in a loop: a long one is no deep one."""
        while True:
            if flags & 0x200:
                self._object(depth + 1)
            if flags & 0x400:
                self._object(depth + 1)
            self._object(depth + 1)
            tail = self._int()
            if tail & 0xFF != PAIRLIST:
                self._flagged(tail, depth + 1)  # the end, or the second half of a dotted pair
                return
            flags = tail
            self.objects += 1
            if self.objects > MAX_OBJECTS:
                self._refuse("limit", f"more than {MAX_OBJECTS} objects")

    def _alternative(self, depth: int) -> None:
        """ALTREP: (class, package, type), state, attributes. Only R's own compact forms are known."""
        flags = self._int()
        if flags & 0xFF != PAIRLIST or flags & 0x600:
            self._refuse("structure", "an alternative form without its class")
        name = self._object(depth + 1)
        if name not in _ALTREP:
            self._refuse("pointer", f"the alternative form {str(name)[:60]!a}, which a package fills in")
        rest = self._int()
        if rest & 0xFF != PAIRLIST:
            self._refuse("structure", "an alternative form without its package")
        self._pairlist(rest, depth)
        self._object(depth + 1)
        self._object(depth + 1)

    def _chars(self, flags: int) -> str:
        if flags & 0xFF != CHARS:
            self._refuse("structure", "a name that is no text")
        size = self._int()
        if size == -1:
            return "NA"
        if size > MAX_NAME_BYTES:
            self._skip(size)
            return ""
        return self._take(size).decode("utf-8", "backslashreplace")

    def _vector(self, kind: int, depth: int) -> None:
        count = self._length()
        if kind in _WIDTHS:
            self._skip(count * _WIDTHS[kind])
            return
        self._room(4 * count)  # each element takes at least its flags
        for _ in range(count):
            if kind == TEXTS:
                self.objects += 1
                self._chars(self._int())
            else:
                self._object(depth + 1)
        if self.objects > MAX_OBJECTS:
            self._refuse("limit", f"more than {MAX_OBJECTS} objects")


FORMAT: Final = RDataFormat()
