"""One bounded reader of protocol buffers, driven by a table of messages. Payloads are offsets until asked for.

    a message   fields end to end
    a field     key varint (number << 3 | wire), then: wire 0 a varint, 1 eight bytes, 2 a length and bytes,
                5 four bytes.  Wires 3 and 4 (groups) are refused, 6 and 7 do not exist.
    repeated    numbers stand one by one, each with its key, or packed: one field of wire 2

Source: the protocol buffer encoding guide (protobuf.dev/programming-guides/encoding).

Loaders keep fields they do not know, so bytes hide there: a field outside the table refuses. They take the last of
a single field given twice and merge messages, so a scanner and a loader may see two things: twice refuses too.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple, NoReturn

from steelyard.errors import Malformed
from steelyard.formats.base import ByteSource, Rule

MAX_DEPTH = 100  # messages in messages; the C++ library stops there too
MAX_FIELDS = 12_000_000  # of one file; a run of numbers counts as one
MAX_TEXT_BYTES = 1 << 20
MAX_NUMBERS = 1 << 16  # decoded from one field
WINDOW = 1 << 16

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
SINGLE, PACKED, RUN = 0, 1, 2
_PAD = b"\0" * 20
_CONTINUES = bytes(range(128, 256))
_WIRES: Final = {"varint": VARINT, "fixed64": FIXED64, "fixed32": FIXED32}
_WRITE_AGAIN = "Export the model again with the library that made it."


def rules_of(name: str) -> dict[str, Rule]:
    """The rules of this reader under a format's own name."""
    return {
        f"{name}/truncated": Rule(
            "A length that runs past its message, so that a trusting reader leaves the buffer.", _WRITE_AGAIN
        ),
        f"{name}/varint": Rule("A number of more than 64 bits, which readers cut differently.", _WRITE_AGAIN),
        f"{name}/field": Rule(
            "A field outside the schema, of another wire type or given twice: bytes that one reader sees and "
            "another does not, such as a second file behind the first.",
            _WRITE_AGAIN,
        ),
        f"{name}/depth": Rule("Messages nested so deep that a recursive reader overflows.", _WRITE_AGAIN),
        f"{name}/limit": Rule("A file made to exhaust its reader.", "Split the model, or reduce it."),
        f"{name}/encoding": Rule("Text that is not UTF-8, read differently by each reader.", _WRITE_AGAIN),
    }


class Spec(NamedTuple):
    """One field of a message. kind: text, bytes, varint, fixed32, fixed64 or the name of a message."""

    number: int
    name: str
    kind: str
    repeated: bool
    run: "re.Pattern[bytes] | None"  # matches numbers that follow one another, each with its key


@dataclass(frozen=True, slots=True)
class Message:
    """Fields by their key (number << 3 | wire)."""

    name: str
    keys: Mapping[int, Spec]


class Part(NamedTuple):
    """One field, or a run of one repeated number field.

    value: the number of a single varint, or the raw bits of a fixed field.  begin, end: bytes of the payload in the
    file; of a run, the fields with their keys.  form: SINGLE, PACKED or RUN.
    """

    spec: Spec
    value: int
    begin: int
    end: int
    form: int

    @property
    def size(self) -> int:
        return self.end - self.begin


def schema(text: str) -> dict[str, Message]:
    """Messages from lines of `message NAME` followed by `NUMBER NAME KIND[*]` separated by semicolons."""
    messages = {}
    for block in text.split("message ")[1:]:
        name, _, body = block.partition("\n")
        keys: dict[int, Spec] = {}
        for entry in filter(None, (part.strip() for part in body.split(";"))):
            number_text, label, kind = entry.split()
            repeated = kind.endswith("*")
            _add(keys, int(number_text), label, kind.removesuffix("*"), repeated)
        messages[name.strip()] = Message(name.strip(), keys)
    return messages


def _add(keys: dict[int, Spec], number: int, label: str, kind: str, repeated: bool) -> None:
    wire = _WIRES.get(kind, LENGTH)
    run = None
    if repeated and wire != LENGTH:
        key = re.escape(_encoded(number << 3 | wire))
        body = {VARINT: rb"[\x80-\xff]{0,9}[\0-\x7f]", FIXED32: rb".{4}", FIXED64: rb".{8}"}[wire]
        run = re.compile(rb"(?:" + key + body + rb")++", re.DOTALL)
    spec = Spec(number, label, kind, repeated, run)
    keys[number << 3 | wire] = spec
    if run is not None:
        keys[number << 3 | LENGTH] = spec  # packed


def _encoded(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def signed(value: int) -> int:
    """An int32 or int64 as written: negative numbers are ten bytes of two's complement."""
    return value - (1 << 64) if value >= 1 << 63 else value


@dataclass(slots=True)
class Reader:
    """Walks the messages of one file. Rules are `<name>/...`, see rules_of."""

    source: ByteSource
    messages: Mapping[str, Message]
    name: str
    fields: int = 0
    _data: bytes = _PAD
    _base: int = 0

    def parts(self, message: str, begin: int, end: int, depth: int) -> Iterator[Part]:  # noqa: C901, PLR0912, PLR0915 - the hot loop
        """The fields of one message, checked against the table. Raises Malformed."""
        if depth > MAX_DEPTH:
            self.refuse("depth", f"more than {MAX_DEPTH} messages deep", begin)
        keys = self.messages[message].keys
        data, base = self._window(begin)
        at, limit, safe = begin - base, end - base, len(data) - 40
        seen = 0
        count = 0
        while at < limit:
            if at > safe and base + len(data) - 20 < end:
                data, base = self._window(base + at, fresh=True)
                at, limit, safe = 0, end - base, len(data) - 40
            start = at
            key = data[at]
            at += 1
            if key > 127:
                key, at = self._varint(data, start, base)
            spec = keys.get(key)
            if spec is None:
                self._unknown(message, key, base + start)
            count += 1
            if count == 4096:
                self._spend(count, base + start)
                count = 0
            if spec.repeated:
                if spec.run is not None and key & 7 != LENGTH:
                    match = spec.run.match(data, start, min(limit, len(data) - 20))
                    if match is None:
                        self.refuse("truncated", f"{spec.name} runs past its message", base + start)
                    at = match.end()
                    yield Part(spec, 0, base + start, base + at, RUN)
                    continue
            elif seen >> spec.number & 1:
                self.refuse("field", f"{message}.{spec.name} stands twice", base + start)
            else:
                seen |= 1 << spec.number
            wire = key & 7
            if wire == LENGTH:
                size = data[at]
                at += 1
                if size > 127:
                    size, at = self._varint(data, at - 1, base)
                if size > limit - at:
                    what = (
                        f"{message}.{spec.name} of {size} bytes; {max(0, limit - at)} are left in its message"
                    )
                    self.refuse("truncated", what, base + start)
                yield Part(spec, 0, base + at, base + at + size, PACKED if spec.run else SINGLE)
                at += size
                continue
            if wire == VARINT:
                value = data[at]
                at += 1
                if value > 127:
                    value, at = self._varint(data, at - 1, base)
                yield Part(spec, value, base + at, base + at, SINGLE)
            else:
                size = 4 if wire == FIXED32 else 8
                yield Part(
                    spec, int.from_bytes(data[at : at + size], "little"), base + at, base + at + size, SINGLE
                )
                at += size
            if at > limit:
                self.refuse("truncated", f"{message}.{spec.name} runs past its message", base + start)
        self._spend(count, end)

    def plain(self, begin: int, end: int, keys: frozenset[int]) -> list[tuple[int, bytes]] | None:
        """Key and payload of each field of a small message that has nothing but short fields of `keys`, else None.

        Several times faster than `parts`, for the nodes of large graphs; says nothing about fields given twice.
        """
        data, base = self._window(begin)
        at, stop = begin - base, end - base
        if stop > len(data) - 20:
            return None
        found = []
        while at < stop:
            key, size = data[at], data[at + 1]
            if size > 127 or key not in keys:
                return None
            at += 2 + size
            found.append((key, data[at - size : at]))
        self.fields += len(found)
        return found if at == stop else None

    def skim(self, message: str, begin: int, end: int, depth: int) -> None:
        """Check a message and everything in it against the table, and keep nothing."""
        known = self.messages
        for part in self.parts(message, begin, end, depth):
            if part.spec.kind in known:
                self.skim(part.spec.kind, part.begin, part.end, depth + 1)
            elif part.form != SINGLE:
                self.count(part)

    def skim_part(self, part: Part, depth: int) -> None:
        """The same for one field of a message at `depth`."""
        if part.spec.kind in self.messages:
            self.skim(part.spec.kind, part.begin, part.end, depth + 1)
        elif part.form != SINGLE:
            self.count(part)

    def raw(self, part: Part, limit: int = MAX_TEXT_BYTES) -> bytes:
        """The payload. Raises Malformed above `limit` bytes."""
        if part.end - part.begin > limit:
            self.refuse("limit", f"{part.spec.name} of {part.size} bytes; at most {limit}", part.begin)
        at = part.begin - self._base
        if at >= 0 and part.end <= self._base + len(self._data) - 20:
            return self._data[at : part.end - self._base]
        return self.source.read(part.begin, part.end - part.begin)

    def text(self, part: Part, limit: int = MAX_TEXT_BYTES) -> str:
        try:
            return self.raw(part, limit).decode()
        except UnicodeDecodeError as error:
            raise Malformed(
                f"{part.spec.name} is not UTF-8", rule=f"{self.name}/encoding", offset=part.begin
            ) from error

    def pair(self, message: str, part: Part, depth: int) -> tuple[str, Part | None]:
        """Key and value of one entry of a map."""
        key, value = "", None
        for entry in self.parts(message, part.begin, part.end, depth):
            if entry.spec.number == 1:
                key = self.text(entry, 4096)
            else:
                value = entry
        return key, value

    def count(self, part: Part) -> int:
        """How many numbers a run or packed field holds. Raises Malformed when its last one is cut."""
        wire = _WIRES[part.spec.kind]
        packed = part.form == PACKED
        if wire != VARINT:
            width = (4 if wire == FIXED32 else 8) + (0 if packed else len(_key(part.spec)))
            if part.size % width:
                self.refuse("truncated", f"{part.spec.name} ends within a number", part.begin)
            return part.size // width
        ends = 0
        for at in range(part.begin, part.end, 1 << 20):
            block = self.source.read(at, min(1 << 20, part.end - at))
            ends += len(block.translate(None, _CONTINUES))
            if at + len(block) == part.end and block[-1] > 127:
                self.refuse("truncated", f"{part.spec.name} ends within a number", part.begin)
        return ends if packed else ends // 2  # the last byte of each key is below 128 as well

    def numbers(self, part: Part) -> list[int]:
        """The varints of a run or packed field. Raises Malformed above MAX_NUMBERS."""
        if part.form == SINGLE:
            return [part.value]
        if part.size > MAX_NUMBERS:
            self.refuse("limit", f"{part.spec.name} of {part.size} bytes", part.begin)
        data = self.source.read(part.begin, part.size) + _PAD
        step = 0 if part.form == PACKED else len(_key(part.spec))
        at, found = 0, []
        while at < part.size:
            value, at = self._varint(data, at + step, part.begin)
            found.append(value)
        if at != part.size:
            self.refuse("truncated", f"{part.spec.name} ends within a number", part.begin)
        return found

    def refuse(self, rule: str, message: str, offset: int | None) -> NoReturn:
        raise Malformed(message, rule=f"{self.name}/{rule}", offset=offset)

    def _window(self, at: int, fresh: bool = False) -> tuple[bytes, int]:
        """Bytes around `at` with twenty zero bytes behind them, and the offset where they begin."""
        if fresh or not self._base <= at < self._base + len(self._data) - 60:
            size = min(WINDOW, self.source.size - at)
            self._data = self.source.read(at, size) + _PAD
            self._base = at
        return self._data, self._base

    def _varint(self, data: bytes, at: int, base: int) -> tuple[int, int]:
        value = shift = 0
        start = at
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 63:
                self.refuse("varint", "a number of more than 64 bits", base + start)
        if value >= 1 << 64:
            self.refuse("varint", "a number of more than 64 bits", base + start)
        return value, at

    def _spend(self, count: int, offset: int) -> None:
        self.fields += count
        if self.fields > MAX_FIELDS:
            self.refuse("limit", f"more than {MAX_FIELDS} fields", offset)

    def _unknown(self, message: str, key: int, offset: int) -> NoReturn:
        what = f"field {key >> 3} of wire type {key & 7} is not in {message}"
        self.refuse("field", what, offset)


def _key(spec: Spec) -> bytes:
    return _encoded(spec.number << 3 | _WIRES[spec.kind])


class Outline(NamedTuple):
    """One field seen by a sniff: `body` is what of its payload lies in the head."""

    number: int
    wire: int
    value: int
    body: bytes
    whole: bool


def outline(head: bytes, most: int = 64) -> list[Outline]:
    """The first fields of a message, as far as `head` shows them and they are fields."""
    found: list[Outline] = []
    at = 0
    padded = head + _PAD
    while at < len(head) and len(found) < most:
        key, at = _peek(padded, at)
        number, wire = key >> 3, key & 7
        if number == 0 or wire not in {VARINT, FIXED64, LENGTH, FIXED32}:
            break
        value, size = 0, {FIXED64: 8, FIXED32: 4}.get(wire, 0)
        if wire in {VARINT, LENGTH}:
            value, at = _peek(padded, at)
            size = value if wire == LENGTH else 0
        found.append(Outline(number, wire, value, head[at : at + size], at + size <= len(head)))
        at += size
    return found


def _peek(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
    return value, at
