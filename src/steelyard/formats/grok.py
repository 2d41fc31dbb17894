"""The shards of Grok-1: one pickle each, and that pickle is one of two sentences or it is refused.

    shard      = array of float32 | quantised
    quantised  = __main__.QuantizedWeight8bit { weight: array of int8, scales: array of ml_dtypes bfloat16 }
    array      = numpy(._core|.core).multiarray._reconstruct(numpy.ndarray, (0,), b'b'), then its state
                 (1, shape, dtype, False, little-endian bytes in C order)

Written by CPython's pickler at protocol 4, frames included. `shard_of` reads off what may vary (shapes, the name of
numpy's core, three flag bits of the bfloat16 type), writes the pickle those values would give (`grok_pickle`), and
compares every byte outside the payloads. So there is no other opcode, no other import, no spare byte, and nothing to
interpret: the file is the sentence, or it is refused. Payloads are named by offset and length, never read.
Source: checkpoint.py and model.py of github.com/xai-org/grok-1; files written with numpy 1.26 and 2.4.

FORMAT claims quantised shards. A shard of one float32 array is an ordinary numpy pickle, which `pickled` reads.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Final, NoReturn

from steelyard.digest import JSON
from steelyard.errors import Malformed
from steelyard.formats.base import ByteSource, Report, Rule
from steelyard.formats.grok_pickle import (
    CORES,
    ITEM_BYTES,
    MODULE,
    PAIR,
    Sentence,
    Stretch,
    framing_of,
)

MAX_TOKENS = 256  # the longer sentence has 131
MAX_DIMENSIONS = 3
MAX_DIMENSION = 1 << 31
MAX_SCALES_BYTES = 1 << 26
PLAIN_FLAGS = 0x70  # NEEDS_PYAPI, USE_GETITEM, USE_SETITEM: how numpy calls the type, not what its bytes are

_SAVE_AGAIN = "Take the shard from the publisher's release again and compare its digest."

RULES: Final[Mapping[str, Rule]] = {
    "grok/grammar": Rule("A shard that is not the sentence Grok-1's loader expects.", _SAVE_AGAIN),
    "grok/opcode": Rule("An instruction that no Grok-1 shard holds, run while it is loaded.", _SAVE_AGAIN),
    "grok/global": Rule("Importing anything beyond an array, its type and the pair class.", _SAVE_AGAIN),
    "grok/order": Rule("Numbers in an order that transposes the weights unseen.", _SAVE_AGAIN),
    "grok/size": Rule("A shape that claims more or fewer bytes than the shard holds.", _SAVE_AGAIN),
    "grok/scales": Rule("Scales that do not divide the weights, or are not finite.", _SAVE_AGAIN),
    "grok/truncated": Rule("A shard cut short.", _SAVE_AGAIN),
    "grok/trailing": Rule("A second payload behind the first.", _SAVE_AGAIN),
}

_HEAD = re.compile(
    rb"\x80\x04\x95.{8}\x8c" + bytes([len(MODULE)]) + MODULE.encode()
    + rb"\x94\x8c" + bytes([len(PAIR)]) + PAIR.encode() + rb"\x94\x93",
    re.DOTALL,
)  # fmt: skip
# Argument bytes of every opcode a shard may hold; absent: refused.
_FIXED: Final[Mapping[int, int]] = {
    0x80: 1, 0x95: 8, 0x94: 0, 0x93: 0, 0x29: 0, 0x81: 0, 0x7D: 0, 0x28: 0, 0x4B: 1, 0x4D: 2, 0x4A: 4,
    0x85: 0, 0x86: 0, 0x87: 0, 0x52: 0, 0x68: 1, 0x88: 0, 0x89: 0, 0x4E: 0, 0x74: 0, 0x62: 0, 0x75: 0, 0x2E: 0,
}  # fmt: skip
_COUNTED: Final[Mapping[int, int]] = {0x8C: 1, 0x43: 1, 0x42: 4, 0x8E: 8}
_WORDS = frozenset(
    {MODULE, PAIR, "weight", "scales", "_reconstruct", "numpy", "ndarray", "dtype", "i1", "f4", "|", "<",
     "ml_dtypes", "bfloat16", *CORES}
)  # fmt: skip
_MARK, _STOP, _TEXT, _BYTES = 0x28, 0x2E, 0x8C, frozenset({0x43, 0x42, 0x8E})
_INTEGERS = frozenset({0x4B, 0x4D, 0x4A})
_TUPLES = frozenset({0x85, 0x86, 0x87})


@dataclass(frozen=True, slots=True)
class Array:
    """One array of a shard. `dtype` is F32, I8 or BF16; `offset` and `size` in bytes in the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Shard:
    """What one file holds: a float32 array, or int8 weights with their scales. `sentence` rebuilds its framing."""

    sentence: Sentence
    weight: Array
    scales: Array | None
    size: int

    @property
    def arrays(self) -> tuple[Array, ...]:
        """In file order."""
        return (self.weight,) if self.scales is None else (self.weight, self.scales)


@dataclass(frozen=True, slots=True)
class _Token:
    at: int
    op: int
    argument: int  # a number, or the length of what follows
    text: str = ""


def shard_of(source: ByteSource) -> Shard:
    """The shard in `source`, every byte outside its payloads compared. Raises Malformed with one of RULES."""
    tokens = _tokens(source)
    sentence = _sentence_of(tokens)
    if any(prod(shape) > source.size for shape in sentence.shapes):
        _refuse("size", f"shapes {sentence.shapes} ask for more than the {source.size} bytes there are", 0)
    stretches = framing_of(sentence)
    _check_sizes(tokens, stretches)
    arrays = _compare(source, stretches, sentence)
    scales = arrays[1] if sentence.is_pair else None
    if scales is not None:
        _check_pair(arrays[0], scales)
    return Shard(sentence, arrays[0], scales, source.size)


def _tokens(source: ByteSource) -> list[_Token]:
    """The opcodes up to STOP, which must be the last byte; payloads are stepped over."""
    found: list[_Token] = []
    at = 0
    while not found or found[-1].op != _STOP:
        if len(found) == MAX_TOKENS:
            _refuse("grammar", f"more than {MAX_TOKENS} opcodes", at)
        token, at = _token_at(source, at)
        found.append(token)
    if at != source.size:
        _refuse("trailing", f"{source.size - at} bytes follow STOP", at)
    return found


def _token_at(source: ByteSource, at: int) -> tuple[_Token, int]:
    """The opcode at `at`, and the offset behind its argument."""
    head = source.read(at, min(16, source.size - at)) if at < source.size else b""
    if not head:
        _refuse("truncated", f"the shard ends at {at} without STOP", at)
    op = head[0]
    width = _FIXED.get(op, _COUNTED.get(op))
    if width is None:
        _refuse("opcode", f"byte 0x{op:02x} at {at} is no opcode of a Grok-1 shard", at)
    after = at + 1 + width
    if after > source.size:
        _refuse("truncated", f"the shard ends inside the opcode at {at}", at)
    number = int.from_bytes(head[1 : 1 + width], "little")
    if op not in _COUNTED:
        return _Token(at, op, number), after
    if after + number > source.size:
        _refuse("truncated", f"{number} bytes are declared at {at}, {source.size - after} are left", at)
    text = source.read(after, number).decode("ascii", "replace") if op == _TEXT else ""
    if op == _TEXT and text not in _WORDS:
        _refuse("global", f"the text {text!a} at {at} is none that a Grok-1 shard holds", at)
    return _Token(at, op, number, text), after + number


def _sentence_of(tokens: list[_Token]) -> Sentence:
    """What may vary. It is only read off here; the comparison afterwards decides."""
    texts = [token.text for token in tokens if token.text]
    core = next((text for text in texts if text in CORES), None)
    if core is None:
        _refuse("grammar", "no array is built", 0)
    shapes = []
    for here, start in enumerate(tokens):
        if start.op == _MARK and tokens[here + 1 : here + 2] and tokens[here + 1].argument == 1:
            shape = _shape_at(tokens, here + 2)
            if shape is not None:
                shapes.append(shape)
    is_pair = texts[0] == MODULE
    if len(shapes) != (2 if is_pair else 1):
        _refuse("grammar", f"{len(shapes)} arrays, expected {2 if is_pair else 1}", 0)
    flags = _flags_of(tokens) if is_pair else 0
    for before, payload in pairwise(tokens):
        if payload.op in _BYTES and before.op == 0x88:
            _refuse("order", f"the array before {payload.at} is in Fortran order", before.at)
    return Sentence(core, is_pair, tuple(shapes), flags)


def _shape_at(tokens: list[_Token], here: int) -> tuple[int, ...] | None:
    """Integers up to a TUPLE1, TUPLE2 or TUPLE3; None for anything else."""
    sizes: list[int] = []
    for token in tokens[here : here + MAX_DIMENSIONS + 1]:
        if token.op in _TUPLES:
            return tuple(sizes) if len(sizes) == token.op - 0x84 else None
        if token.op not in _INTEGERS or not 0 < token.argument < MAX_DIMENSION:
            return None
        sizes.append(token.argument)
    return None


def _flags_of(tokens: list[_Token]) -> int:
    """The flags of the bfloat16 type: the last number before the TUPLE that ends its state."""
    order = max((here for here, token in enumerate(tokens) if token.text == "<"), default=0)
    end = next((here for here in range(order, len(tokens)) if tokens[here].op == 0x74), 0)
    if not order or not end:
        _refuse("grammar", "no bfloat16 type is built", 0)
    last = tokens[end - 1]
    if last.argument & ~PLAIN_FLAGS:
        what = (
            f"the bfloat16 type has the flags 0x{last.argument:x}, of which only 0x{PLAIN_FLAGS:x} are plain"
        )
        _refuse("grammar", what, last.at)
    return last.argument


def _check_sizes(tokens: list[_Token], stretches: tuple[Stretch, ...]) -> None:
    """Each payload is as long as its shape says. One byte is numpy's own b'b'."""
    payloads = [token for token in tokens if token.op in _BYTES and token.argument != 1]
    for token, stretch in zip(payloads, stretches, strict=False):
        if token.argument != stretch.payload_bytes:
            what = f"{stretch.dtype} {stretch.shape} takes {stretch.payload_bytes} bytes, {token.argument} are stored"
            _refuse("size", what, token.at)


def _compare(source: ByteSource, stretches: tuple[Stretch, ...], sentence: Sentence) -> tuple[Array, ...]:
    arrays = []
    at = 0
    for stretch in stretches:
        expected = stretch.framing
        found = source.read(at, min(len(expected), source.size - at)) if at < source.size else b""
        if found != expected:
            _differ(at, found, expected, sentence)
        at += len(expected)
        if stretch.payload_bytes is not None:
            if stretch.payload_bytes > source.size - at:
                _refuse("size", f"the shape asks for {stretch.payload_bytes} bytes at {at}", at)
            arrays.append(Array(stretch.dtype, stretch.shape, at, stretch.payload_bytes))
            at += stretch.payload_bytes
    if at != source.size:
        _refuse("trailing", f"{source.size - at} bytes follow the shard", at)
    return tuple(arrays)


def _differ(at: int, found: bytes, expected: bytes, sentence: Sentence) -> NoReturn:
    same = next(
        (i for i, (one, other) in enumerate(zip(found, expected, strict=False)) if one != other), len(found)
    )
    where = at + same
    shown, wanted = found[same : same + 8].hex(" "), expected[same : same + 8].hex(" ")
    shapes = " and ".join(str(shape) for shape in sentence.shapes)
    what = f"found {shown} at {where}, arrays of shape {shapes} give {wanted}"
    _refuse("grammar", what, where)


def _check_pair(weight: Array, scales: Array) -> None:
    """Scales (.., groups, N) for weights (.., K, N): groups divide K, along the contracting axis."""
    *batch, rows, columns = weight.shape
    *scale_batch, groups, scale_columns = scales.shape
    if scale_batch != batch or scale_columns != columns or rows % groups:
        what = f"scales of shape {scales.shape} do not divide weights of shape {weight.shape}"
        _refuse("scales", what, scales.offset)
    if scales.size > MAX_SCALES_BYTES:
        _refuse("scales", f"{scales.size} bytes of scales", scales.offset)


def _refuse(rule: str, message: str, offset: int) -> NoReturn:
    raise Malformed(message, rule=f"grok/{rule}", offset=offset)


_BF16_HIGH = bytes(1 if value & 0x7F == 0x7F else 0 for value in range(256))
_BF16_LOW = bytes(value >> 7 for value in range(256))


def is_finite_bf16(data: bytes) -> bool:
    """Whether no little-endian bfloat16 in `data` is infinite or not a number."""
    high, low = data[1::2].translate(_BF16_HIGH), data[0::2].translate(_BF16_LOW)
    return int.from_bytes(high, "little") & int.from_bytes(low, "little") == 0


class GrokFormat:
    """The plug of `steelyard.formats`: quantised shards."""

    name = "grok"
    rules = RULES

    def sniff(self, head: bytes, path: str) -> bool:  # noqa: ARG002 - the content decides
        return is_quantised(head)

    def read(self, source: ByteSource, path: str) -> Report:  # noqa: ARG002
        shard = shard_of(source)
        assert shard.scales is not None  # is_quantised
        if not is_finite_bf16(source.read(shard.scales.offset, shard.scales.size)):
            _refuse("scales", "a scale is infinite or not a number", shard.scales.offset)
        facts: dict[str, JSON] = {
            "shape": list(shard.weight.shape),
            "scales": list(shard.scales.shape),
            "parameters": prod(shard.weight.shape),
            "dtypes": {"I8": 1, "BF16": 1},
        }
        return Report(self.name, facts)


def is_quantised(head: bytes) -> bool:
    """Whether a file begins as a quantised Grok-1 shard does."""
    return _HEAD.match(head) is not None


FORMAT: Final = GrokFormat()

assert set(ITEM_BYTES) == {"F32", "I8", "BF16"}
