"""The bytes CPython's protocol-4 pickler gives for a Grok-1 shard, payloads left out.

Framing rules (PEP 3154 and Modules/_pickle.c): a frame is closed before an object is saved once it holds 64 KiB; a
payload of 64 KiB or more stands outside, with its opcode and length; a frame shorter than 4 bytes is not announced.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Final

FRAME_TARGET = 64 << 10
FRAME_MINIMUM = 4

MODULE, PAIR = "__main__", "QuantizedWeight8bit"
CORES: Final = ("numpy.core.multiarray", "numpy._core.multiarray")
ITEM_BYTES: Final[Mapping[str, int]] = {"F32": 4, "I8": 1, "BF16": 2}


@dataclass(frozen=True, slots=True)
class Sentence:
    """What may differ between two shards: numpy's core, pair or array, shapes, flags of the bfloat16 type."""

    core: str
    is_pair: bool
    shapes: tuple[tuple[int, ...], ...]
    flags: int = 0


@dataclass(frozen=True, slots=True)
class Stretch:
    """Framing bytes, and the payload after them (absent at the end)."""

    framing: bytes
    dtype: str = ""
    shape: tuple[int, ...] = ()
    payload_bytes: int | None = None


def framing_of(sentence: Sentence) -> tuple[Stretch, ...]:
    """Every byte of the file but the payloads."""
    pickler = _Pickler()
    if sentence.is_pair:
        _pair(pickler, sentence)
    else:
        _array(pickler, sentence.core, "F32", sentence.shapes[0], 0)
    return pickler.finish()


@dataclass(slots=True)
class _Payload:
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(slots=True)
class _Pickler:
    """Opcodes in frames. Memo numbers count up; `memo` finds what is written a second time."""

    memo: dict[object, int] = field(default_factory=dict)
    written: int = 0
    parts: list[bytes | _Payload] = field(default_factory=lambda: [b"\x80\x04"])
    frame: list[bytes | _Payload] = field(default_factory=list)

    def save(self) -> None:
        """An object is about to be saved: the moment a full frame is closed."""
        if self._frame_bytes() >= FRAME_TARGET:
            self.close()

    def op(self, data: bytes) -> None:
        self.frame.append(data)

    def memoize(self, key: object) -> None:
        self.memo[key] = self.written
        self.written += 1
        self.op(b"\x94")

    def again(self, key: object) -> bool:
        """Writes a BINGET if `key` was written before."""
        if key not in self.memo:
            return False
        self.op(b"h" + bytes([self.memo[key]]))
        return True

    def close(self) -> None:
        size = self._frame_bytes()
        if size >= FRAME_MINIMUM:
            self.parts.append(b"\x95" + size.to_bytes(8, "little"))
        self.parts += self.frame
        self.frame = []

    def payload(self, payload: _Payload) -> None:
        size = payload.size
        if size < 1 << 8:
            head = b"C" + bytes([size])
        elif size < 1 << 32:
            head = b"B" + size.to_bytes(4, "little")
        else:
            head = b"\x8e" + size.to_bytes(8, "little")
        if size >= FRAME_TARGET:
            self.close()
            self.parts += [head, payload]
        else:
            self.frame += [head, payload]

    def finish(self) -> tuple[Stretch, ...]:
        self.op(b".")
        self.close()
        stretches, framing = [], b""
        for part in self.parts:
            if isinstance(part, bytes):
                framing += part
            else:
                stretches.append(Stretch(framing, part.dtype, part.shape, part.size))
                framing = b""
        return (*stretches, Stretch(framing))

    def _frame_bytes(self) -> int:
        return sum(len(part) if isinstance(part, bytes) else part.size for part in self.frame)


def _text(pickler: _Pickler, text: str) -> None:
    pickler.save()
    if not pickler.again(text):
        pickler.op(b"\x8c" + bytes([len(text)]) + text.encode())
        pickler.memoize(text)


def _global(pickler: _Pickler, module: str, name: str) -> None:
    pickler.save()
    if not pickler.again((module, name)):
        _text(pickler, module)
        _text(pickler, name)
        pickler.op(b"\x93")
        pickler.memoize((module, name))


def _integer(pickler: _Pickler, value: int) -> None:
    pickler.save()
    if 0 <= value < 1 << 8:
        pickler.op(b"K" + bytes([value]))
    elif 0 <= value < 1 << 16:
        pickler.op(b"M" + value.to_bytes(2, "little"))
    else:
        pickler.op(b"J" + value.to_bytes(4, "little", signed=True))


def _bare(pickler: _Pickler, opcode: bytes) -> None:
    pickler.save()
    pickler.op(opcode)


def _end(pickler: _Pickler, opcode: bytes) -> None:
    """The end of a new tuple or call, which is always remembered."""
    pickler.op(opcode)
    pickler.memoize(object())


def _short_tuple(pickler: _Pickler, values: Sequence[int]) -> None:
    pickler.save()
    for value in values:
        _integer(pickler, value)
    _end(pickler, bytes([0x84 + len(values)]))


def _pair(pickler: _Pickler, sentence: Sentence) -> None:
    """A dataclass instance: NEWOBJ without arguments, then its two attributes as a dict."""
    pickler.save()
    _global(pickler, MODULE, PAIR)
    _bare(pickler, b")")
    _end(pickler, b"\x81")
    pickler.save()
    _end(pickler, b"}")
    pickler.op(b"(")
    for name, dtype, shape in zip(("weight", "scales"), ("I8", "BF16"), sentence.shapes, strict=True):
        _text(pickler, name)
        _array(pickler, sentence.core, dtype, shape, sentence.flags)
    pickler.op(b"u")
    pickler.op(b"b")


def _array(pickler: _Pickler, core: str, dtype: str, shape: tuple[int, ...], flags: int) -> None:
    pickler.save()
    _global(pickler, core, "_reconstruct")
    pickler.save()
    _global(pickler, "numpy", "ndarray")
    _short_tuple(pickler, [0])
    pickler.save()
    if not pickler.again(b"b"):  # CPython keeps one object for each bytes of length one
        pickler.op(b"C\x01b")
        pickler.memoize(b"b")
    _end(pickler, b"\x87")
    _end(pickler, b"R")
    pickler.save()
    pickler.op(b"(")
    _integer(pickler, 1)
    _short_tuple(pickler, shape)
    _type(pickler, dtype, flags)
    _bare(pickler, b"\x89")
    pickler.save()
    pickler.payload(_Payload(dtype, shape))
    pickler.memoize(object())
    _end(pickler, b"t")
    pickler.op(b"b")


def _type(pickler: _Pickler, dtype: str, flags: int) -> None:
    """numpy.dtype(code, False, True) and its state (3, order, None, None, None, item size, alignment, flags)."""
    pickler.save()
    _global(pickler, "numpy", "dtype")
    pickler.save()
    if dtype == "BF16":
        _global(pickler, "ml_dtypes", "bfloat16")
    else:
        _text(pickler, "f4" if dtype == "F32" else "i1")
    _bare(pickler, b"\x89")
    _bare(pickler, b"\x88")
    _end(pickler, b"\x87")
    _end(pickler, b"R")
    pickler.save()
    pickler.op(b"(")
    _integer(pickler, 3)
    _text(pickler, "|" if dtype == "I8" else "<")
    for _ in range(3):
        _bare(pickler, b"N")
    width = 2 if dtype == "BF16" else -1  # numpy states size and alignment of types that are not its own
    for value in (width, width, flags if dtype == "BF16" else 0):
        _integer(pickler, value)
    _end(pickler, b"t")
    pickler.op(b"b")
