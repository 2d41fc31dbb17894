"""One bounded reader of flat buffers: tables, vectors and strings at checked offsets, with a map of what was read.

    root      u32 at 0: offset of the root table; the four bytes behind it name the format
    table     i32: how far before it its field list lies; then the fields
    fields    u16 bytes of the list, u16 bytes of the table, then for each field u16: its offset in the table, 0 absent
    vector    u32 number, then the elements; a string is a vector of bytes with a zero byte behind it
    reference u32, counted from its own place; always forward

Source: "FlatBuffers internals" (flatbuffers.dev/internals). Numbers are little-endian.
"""

from array import array
from dataclasses import dataclass, field
from sys import byteorder
from typing import Final, NamedTuple, NoReturn

from steelyard.errors import Malformed
from steelyard.formats.base import ByteSource, Rule

MAX_TABLES = 1_000_000
MAX_VECTOR_BYTES = 32 << 20  # decoded over the whole file
MAX_TEXT_BYTES = 1 << 16
WINDOW = 1 << 16

_WRITE_AGAIN = "Convert the model again."
_CODES: Final = {1: "B", 4: "i", 8: "q"}


def rules_of(name: str) -> dict[str, Rule]:
    """The rules of this reader under a format's own name."""
    return {
        f"{name}/offset": Rule(
            "An offset or length that leaves the buffer, so that a trusting reader leaves it too.",
            _WRITE_AGAIN,
        ),
        f"{name}/table": Rule("A field list that does not fit its table.", _WRITE_AGAIN),
        f"{name}/shared": Rule(
            "One table in two places: a small file that unfolds without bound, or is two things at once.",
            _WRITE_AGAIN,
        ),
        f"{name}/limit": Rule("A file made to exhaust its reader.", "Split the model, or reduce it."),
        f"{name}/encoding": Rule("Text that is not UTF-8, read differently by each reader.", _WRITE_AGAIN),
    }


class Table(NamedTuple):
    """A table at `at`; `slots` are offsets of its fields within it, 0 when absent."""

    at: int
    slots: tuple[int, ...]

    def place(self, slot: int) -> int:
        """Where field `slot` stands in the file; 0 when it is absent."""
        return self.at + self.slots[slot] if slot < len(self.slots) and self.slots[slot] else 0


class Vector(NamedTuple):
    """`length` elements from `at`."""

    at: int
    length: int


@dataclass(slots=True)
class Flat:
    """Reads one buffer of `size` bytes from the beginning of `source`. Rules are `<name>/...`, see rules_of."""

    source: ByteSource
    name: str
    spans: list[tuple[int, int]] = field(default_factory=list)
    tables: int = 0
    spent: int = 0
    _seen: set[int] = field(default_factory=set)
    _lists: dict[int, tuple[int, tuple[int, ...]]] = field(default_factory=dict)
    _data: bytes = b""
    _base: int = 0

    def number(self, at: int, size: int, signed: bool = False) -> int:
        """A scalar of `size` bytes. Raises Malformed outside the file."""
        begin = at - self._base
        if begin < 0 or begin + size > len(self._data):
            if at < 0 or at + size > self.source.size:
                self.refuse("offset", f"a number at {at}; the file has {self.source.size} bytes", at)
            self._data = self.source.read(at, min(WINDOW, self.source.size - at))
            self._base, begin = at, 0
        return int.from_bytes(self._data[begin : begin + size], "little", signed=signed)

    def scalar(self, table: Table, slot: int, size: int, default: int = 0, signed: bool = False) -> int:
        place = table.place(slot)
        return self.number(place, size, signed) if place else default

    def table(self, at: int, may_share: bool = False) -> Table:
        """The table at `at`, each only once unless `may_share`. Raises Malformed."""
        self.tables += 1
        if self.tables > MAX_TABLES:
            self.refuse("limit", f"more than {MAX_TABLES} tables", at)
        if at in self._seen and not may_share:
            self.refuse("shared", "a table in two places", at)
        listed = at - self.number(at, 4, signed=True)
        if listed not in self._lists:
            self._lists[listed] = self._list(listed)
        size, slots = self._lists[listed]
        if at + size > self.source.size:
            self.refuse("table", f"a table of {size} bytes at {at}", at)
        if at not in self._seen:
            self._seen.add(at)
            self.spans.append((at, at + size))
        return Table(at, slots)

    def _list(self, at: int) -> tuple[int, tuple[int, ...]]:
        length, size = self.number(at, 2), self.number(at + 2, 2)
        if length < 4 or length % 2 or size < 4 or at + length > self.source.size:
            self.refuse("table", f"a field list of {length} bytes for a table of {size}", at)
        slots = tuple(self.number(at + place, 2) for place in range(4, length, 2))
        if any(slot and not 4 <= slot < size for slot in slots):
            self.refuse("table", f"a field outside its table of {size} bytes", at)
        self.spans.append((at, at + length))
        return size, slots

    def follow(self, place: int) -> int:
        """Where the reference at `place` leads."""
        distance = self.number(place, 4)
        if distance < 4 or place + distance + 4 > self.source.size:
            self.refuse("offset", f"a reference of {distance} bytes at {place}", place)
        return place + distance

    def child(self, table: Table, slot: int) -> Table | None:
        place = table.place(slot)
        return self.table(self.follow(place)) if place else None

    def vector(self, table: Table, slot: int, width: int, tail: int = 0) -> Vector:
        """A vector of elements of `width` bytes; empty when absent. tail: bytes behind it that belong to it."""
        place = table.place(slot)
        if not place:
            return Vector(0, 0)
        at = self.follow(place)
        count = self.number(at, 4)
        end = at + 4 + count * width + tail
        if end > self.source.size:
            self.refuse("offset", f"a vector of {count} elements of {width} bytes at {at}", at)
        self.spans.append((at, end))
        return Vector(at + 4, count)

    def tables_of(self, table: Table, slot: int, may_share: bool = False) -> "list[Table]":
        vector = self.vector(table, slot, 4)
        self._spend(vector.length * 4, vector.at)
        places = range(vector.at, vector.at + 4 * vector.length, 4)
        return [self.table(self.follow(place), may_share) for place in places]

    def numbers(self, table: Table, slot: int, width: int) -> "array[int]":
        """The signed numbers of a vector, of 1, 4 or 8 bytes each."""
        vector = self.vector(table, slot, width)
        self._spend(vector.length * width, vector.at)
        found = array(_CODES[width], self.source.read(vector.at, vector.length * width))
        if byteorder == "big":
            found.byteswap()
        return found

    def text(self, table: Table, slot: int) -> str:
        vector = self.vector(table, slot, 1, tail=1)
        if vector.length > MAX_TEXT_BYTES:
            self.refuse("limit", f"a text of {vector.length} bytes", vector.at)
        self._spend(vector.length, vector.at)
        try:
            return self.source.read(vector.at, vector.length).decode()
        except UnicodeDecodeError as error:
            raise Malformed(
                "a text that is not UTF-8", rule=f"{self.name}/encoding", offset=vector.at
            ) from error

    def refuse(self, rule: str, message: str, offset: int | None) -> NoReturn:
        raise Malformed(message, rule=f"{self.name}/{rule}", offset=offset)

    def _spend(self, size: int, offset: int) -> None:
        self.spent += size
        if self.spent > MAX_VECTOR_BYTES:
            self.refuse("limit", f"more than {MAX_VECTOR_BYTES} bytes of lists", offset)
