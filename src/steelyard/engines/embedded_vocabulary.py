"""The tokens of a GGUF that a chat template writes as structure, read from the file's own vocabulary.

llama.cpp cuts a prompt at these strings before it tokenises the rest: control and unknown tokens where special
tokens are parsed, user-defined ones always. It also makes control tokens of some strings whatever the file says.
Source: `llama-vocab.cpp` of ggml-org/llama.cpp (`tokenizer_st_partition`, the lists of end-of-turn and infill names).
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from steelyard.formats.base import ByteSource

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # llama_token_type
TOKENS, TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"

_BLOCK_BYTES = 1 << 20
_STRING, _ARRAY = 8, 9
_WIDTHS: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_KEYS_AT = 24  # magic, version, counts of tensors and keys

# Names that llama.cpp turns into control tokens by their look alone: end of turn, end of text, infill.
_BY_NAME = frozenset({
    "</s>", "<EOT>", "_<EOT>", "<MID>", "<PAD>", "<PRE>", "<REPO>", "<SUF>", "<end_of_turn>", "<end_of_utterance>",
    "<eos>", "<fim-middle>", "<fim-pad>", "<fim-prefix>", "<fim-repo>", "<fim-suffix>", "<fim_middle>", "<fim_pad>",
    "<fim_prefix>", "<fim_suffix>", "<reponame>", "<turn|>", "[EOS]", "[EOT]", "[PAD]", "[e~[", "▁<MID>", "▁<PRE>",
    "▁<SUF>",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """size: number of tokens.  control: strings that become control tokens.  defined: user-defined tokens."""

    size: int
    control: frozenset[str]
    defined: frozenset[str]


def vocabulary_of(source: ByteSource) -> Vocabulary:
    """The special strings of a GGUF whose header was found valid (`formats.gguf_header.header_of`)."""
    walk = _Walk(source)
    tokens: list[bytes] = []
    types: tuple[int, ...] = ()
    for key, kind in walk.entries():
        if key == TOKENS.encode() and kind == _ARRAY:
            tokens = walk.strings()
        elif key == TYPES.encode() and kind == _ARRAY:
            types = walk.integers()
        else:
            walk.skip(kind)
    control, defined = set(), set()
    for index, token in enumerate(tokens):
        kind = types[index] if index < len(types) else 1
        text = token.decode(errors="replace")
        if kind in (UNKNOWN, CONTROL) or text in _BY_NAME or _looks_control(text):
            control.add(text)
        elif kind == USER_DEFINED:
            defined.add(text)
    return Vocabulary(len(tokens), frozenset(control - {""}), frozenset(defined - {""}))


def _looks_control(text: str) -> bool:
    # DeepSeek's bars are fullwidth.
    return len(text) > 4 and text[:2] in ("<|", "<\uff5c") and text[-2:] in ("|>", "\uff5c>")


class _Walk:
    """A forward reader with one block of look-ahead."""

    def __init__(self, source: ByteSource) -> None:
        self._source = source
        self._start = 0
        self._block = b""
        self._at = 0

    def entries(self) -> Iterator[tuple[bytes, int]]:
        """Key and type of value; the caller reads or skips the value before it goes on."""
        (count,) = struct.unpack("<Q", self._source.read(16, 8))
        self._start = _KEYS_AT
        for _ in range(count):
            key = self._string()
            yield key, self._u32()

    def strings(self) -> list[bytes]:
        kind, count = self._u32(), self._u64()
        read: Callable[[], bytes] = self._string if kind == _STRING else lambda: b""
        return [read() for _ in range(count)]

    def integers(self) -> tuple[int, ...]:
        kind, count = self._u32(), self._u64()
        letter = {4: "I", 5: "i"}.get(kind)
        data = self._take(_WIDTHS[kind] * count)
        return struct.unpack(f"<{count}{letter}", data) if letter else ()

    def skip(self, kind: int) -> None:
        if kind == _STRING:
            self._take(self._u64())
        elif kind == _ARRAY:
            inner, count = self._u32(), self._u64()
            if inner in _WIDTHS:
                self._leap(_WIDTHS[inner] * count)
            else:
                for _ in range(count):
                    self.skip(inner)
        else:
            self._leap(_WIDTHS[kind])

    def _string(self) -> bytes:
        return self._take(self._u64())

    def _u32(self) -> int:
        return int.from_bytes(self._take(4), "little")

    def _u64(self) -> int:
        return int.from_bytes(self._take(8), "little")

    def _leap(self, size: int) -> None:
        self._at += size
        if self._at > len(self._block):
            self._start += self._at
            self._block, self._at = b"", 0

    def _take(self, size: int) -> bytes:
        if self._at + size > len(self._block):
            self._start += self._at
            self._at = 0
            most = self._source.size - self._start
            self._block = self._source.read(self._start, min(most, max(size, _BLOCK_BYTES)))
        data = self._block[self._at : self._at + size]
        self._at += size
        return data
