"""NumPy .npy files, versions 1 to 3.

    6   "\\x93NUMPY"
    2   version: major 1, 2 or 3, minor 0
    2/4 length of the header, little-endian; 4 bytes since version 2
    n   header: a Python dict literal with the keys descr, fortran_order and shape, in latin-1 (version 3: UTF-8),
        padded with spaces and ended by a newline
    ..  product(shape) * item size bytes; for dtypes that hold objects one pickle of the whole array instead

The literal is read by a parser of its own that knows text, numbers, True, False, None and brackets: numpy evaluates
it. The file must end where the array ends.

Source: numpy/lib/format.py of numpy 2.4 (NEP 1).
"""

import re
from collections.abc import Iterator, Mapping
from math import prod
from typing import Final, TypeAlias

from steelyard.digest import JSON
from steelyard.errors import Malformed
from steelyard.formats.base import ByteSource, Finding, Report, Rule
from steelyard.formats.pickle_machine import Slice, run
from steelyard.formats.pickle_values import Node
from steelyard.formats.pickled import RULES as PICKLE_RULES

MAGIC: Final = b"\x93NUMPY"
MAX_HEADER_BYTES = 1 << 16  # numpy refuses more than 10 000 characters unless told otherwise
MAX_TOKENS = 1 << 14
MAX_LITERAL_DEPTH = 12
MAX_DIMENSIONS = 64
MAX_ITEM_BYTES = 1 << 31
MAX_FIELDS = 1 << 10

_FETCH = "Fetch the file again, or write it again with numpy.save."
RULES: Final[Mapping[str, Rule]] = {
    **PICKLE_RULES,
    "npy/header": Rule("A header that is evaluated and is more than a description of an array.", _FETCH),
    "npy/dtype": Rule("A dtype whose bytes would be followed as pointers, or that nobody knows.", _FETCH),
    "npy/size": Rule("Bytes that no element of the array shows, or an array longer than its file.", _FETCH),
    "npy/object": Rule("A pickle in place of numbers.", "Save plain numbers, or the objects as JSON."),
}

Literal: TypeAlias = "bool | int | str | tuple[Literal, ...] | list[Literal] | dict[Literal, Literal] | None"

_TOKEN = re.compile(
    r"""[ \t\n]*(?:(?P<text>'[^'\\\n]*'|"[^"\\\n]*")|(?P<number>-?(?:0|[1-9][0-9]{0,19}))L?|"""
    r"""(?P<word>True|False|None)|(?P<sign>[][(){},:]))"""
)
_WORDS: Final[Mapping[str, bool | None]] = {"True": True, "False": False, "None": None}
_CODE = re.compile(r"[<>|=]?(?P<kind>[biufcmMSUVO?])(?P<size>[0-9]{0,9})(?:\[[0-9]{0,9}[A-Za-z]{1,2}\])?")
_SIZES: Final[Mapping[str, frozenset[int]]] = {
    "b": frozenset({1}), "?": frozenset({1}), "i": frozenset({1, 2, 4, 8}), "u": frozenset({1, 2, 4, 8}),
    "f": frozenset({2, 4, 8, 12, 16}), "c": frozenset({8, 16, 24, 32}), "m": frozenset({8}), "M": frozenset({8}),
}  # fmt: skip


class NpyFormat:
    """Claims files that begin with numpy's magic."""

    name = "npy"
    rules = RULES

    def sniff(self, head: bytes, path: str) -> bool:  # noqa: ARG002
        return head.startswith(MAGIC)

    def read(self, source: ByteSource, path: str) -> Report:  # noqa: ARG002
        version, header, start = _header(source)
        shape, item = _shape(header["shape"]), _item_bytes(header["descr"], 0)
        facts: dict[str, JSON] = {
            "version": version,
            "dtype": str(header["descr"])[:200],
            "shape": list[JSON](shape),
        }
        count = prod(shape)
        if item is None:
            return Report(self.name, facts, tuple(_objects(source, start, count)))
        left = source.size - start
        if count * item != left:
            what = f"an array of {count * item} bytes and {left} bytes behind the header"
            raise Malformed(what, rule="npy/size", offset=start)
        return Report(self.name, facts)


def _header(source: ByteSource) -> tuple[int, dict[str, Literal], int]:
    """Version, the three entries, and the offset of the data."""
    fixed = source.read(0, min(source.size, 12))
    version = fixed[6] if len(fixed) > 8 else 0
    if version not in {1, 2, 3} or fixed[7] != 0:
        raise Malformed(
            f"version {fixed[6:8].hex('.')}, expected 1.0, 2.0 or 3.0", rule="npy/header", offset=6
        )
    width = 2 if version == 1 else 4
    length = int.from_bytes(fixed[8 : 8 + width], "little")
    start = 8 + width + length
    if len(fixed) < 8 + width or start > source.size or not 0 < length <= MAX_HEADER_BYTES:
        raise Malformed(f"a header of {length} bytes", rule="npy/header", offset=8)
    raw = source.read(8 + width, length)
    try:
        text = raw.decode("utf-8" if version == 3 else "latin-1")
    except UnicodeDecodeError as bad:
        raise Malformed("the header is not UTF-8", rule="npy/header", offset=8 + width) from bad
    if not text.endswith("\n") or "\0" in text:
        raise Malformed("the header does not end with a newline", rule="npy/header", offset=8 + width)
    found = _Literals(text).value()
    if not isinstance(found, dict) or set(found) != {"descr", "fortran_order", "shape"}:
        raise Malformed("expected descr, fortran_order and shape", rule="npy/header", offset=8 + width)
    if type(found["fortran_order"]) is not bool:
        raise Malformed("fortran_order is not True or False", rule="npy/header", offset=8 + width)
    return version, {str(key): value for key, value in found.items()}, start


class _Literals:
    """A reader of one literal of text, numbers, True, False, None, tuples, lists and dicts. Raises Malformed."""

    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))
        self._at = 0

    def value(self) -> Literal:
        found = self._value(0)
        if self._at != len(self._tokens):
            raise self._odd("something behind the dict")
        return found

    def _odd(self, what: str) -> Malformed:
        return Malformed(f"the header is no plain literal: {what}", rule="npy/header", offset=10)

    def _next(self) -> tuple[str, str]:
        if self._at == len(self._tokens):
            raise self._odd("it breaks off")
        self._at += 1
        return self._tokens[self._at - 1]

    def _ahead(self) -> str:
        return self._tokens[self._at][1] if self._at < len(self._tokens) else ""

    def _value(self, depth: int) -> Literal:
        if depth > MAX_LITERAL_DEPTH:
            raise self._odd(f"deeper than {MAX_LITERAL_DEPTH}")
        kind, found = self._next()
        if kind == "text":
            return found[1:-1]
        if kind == "number":
            return int(found)
        if kind == "word":
            return _WORDS[found]
        if found == "{":
            return self._dict(depth)
        if found not in {"(", "["}:
            raise self._odd(f"{found!a}")
        close = ")" if found == "(" else "]"
        items: list[Literal] = []
        comma = False
        while self._ahead() != close:
            if items and not comma:
                raise self._odd("no comma")
            items.append(self._value(depth + 1))
            comma = self._ahead() == ","
            self._at += comma
        self._at += 1
        if found == "[":
            return items
        return items[0] if len(items) == 1 and not comma else tuple(items)

    def _dict(self, depth: int) -> Literal:
        found: dict[Literal, Literal] = {}
        while self._ahead() != "}":
            key = self._value(depth + 1)
            if not isinstance(key, str) or key in found or self._next()[1] != ":":
                raise self._odd("keys that are no text, or twice the same")
            found[key] = self._value(depth + 1)
            if self._ahead() == ",":
                self._at += 1
            elif self._ahead() != "}":
                raise self._odd("no comma")
        self._at += 1
        return found


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    at, count, end = 0, 0, len(text.rstrip(" \n"))
    while at < end:
        match = _TOKEN.match(text, at, end)
        count += 1
        if match is None or count > MAX_TOKENS:
            raise Malformed(
                f"the header is no plain literal at {text[at : at + 20]!a}", rule="npy/header", offset=10
            )
        at = match.end()
        kind = match.lastgroup or ""
        yield kind, match.group(kind)


def _shape(value: Literal) -> tuple[int, ...]:
    counts = (
        tuple(count for count in value if type(count) is int and 0 <= count < 1 << 48)
        if isinstance(value, tuple)
        else None
    )
    if (
        counts is None
        or not isinstance(value, tuple)
        or len(counts) != len(value)
        or len(counts) > MAX_DIMENSIONS
    ):
        raise Malformed(f"{str(value)[:80]!a} is no shape", rule="npy/header", offset=10)
    return counts


def _item_bytes(descr: Literal, depth: int) -> int | None:
    """Bytes of one element, None when it holds objects. Raises Malformed for what is no dtype."""
    if isinstance(descr, str):
        return _code_bytes(descr)
    if isinstance(descr, tuple) and len(descr) == 2:  # (dtype, shape)
        item = _item_bytes(descr[0], depth + 1)
        counts = _shape((descr[1],) if isinstance(descr[1], int) else descr[1])
        return None if item is None else _bounded(item * prod(counts))
    if not isinstance(descr, list) or len(descr) > MAX_FIELDS or depth > MAX_LITERAL_DEPTH:
        raise Malformed(f"{str(descr)[:80]!a} is no dtype", rule="npy/dtype", offset=10)
    total: int | None = 0
    names: list[Literal] = []
    for field in descr:
        if not isinstance(field, tuple) or len(field) not in {2, 3} or not _is_name(field[0]):
            raise Malformed(f"{str(field)[:80]!a} is no field", rule="npy/dtype", offset=10)
        names.extend(name for name in (field[0] if isinstance(field[0], tuple) else field[:1]) if name)
        item = _item_bytes(field[1] if len(field) == 2 else (field[1], field[2]), depth + 1)
        total = None if item is None or total is None else _bounded(total + item)
    if len(set(names)) != len(names):
        raise Malformed("a field's name or title stands there twice", rule="npy/dtype", offset=10)
    return total


def _is_name(value: Literal) -> bool:
    return isinstance(value, str) or (
        isinstance(value, tuple) and len(value) == 2 and all(isinstance(part, str) for part in value)
    )


def _code_bytes(code: str) -> int | None:
    match = _CODE.fullmatch(code)
    if match is None:
        raise Malformed(f"{code[:40]!a} is no dtype", rule="npy/dtype", offset=10)
    kind, size = match["kind"], int(match["size"] or 0)
    if kind == "O":
        return None
    if kind in _SIZES:
        size = size or (1 if kind == "?" else 0)
        if size not in _SIZES[kind]:
            raise Malformed(f"{code[:40]!a} is no dtype", rule="npy/dtype", offset=10)
        return size
    return _bounded(size * (4 if kind == "U" else 1))


def _bounded(size: int) -> int:
    if size > MAX_ITEM_BYTES:
        raise Malformed(f"elements of {size} bytes", rule="npy/dtype", offset=10)
    return size


def _objects(source: ByteSource, start: int, count: int) -> Iterator[Finding]:
    """What the pickle behind the header does. It must be one array of as many objects."""
    outcome = run(Slice(source, start, source.size - start))
    for finding in outcome.findings:
        yield Finding(finding.rule, finding.message, start + (finding.offset or 0))
    result = outcome.result
    if outcome.end is not None and not (isinstance(result, Node) and result.kind == "ndarray"):
        yield Finding("npy/object", f"the pickle holds no array of {count} objects", start)


FORMAT: Final = NpyFormat()
