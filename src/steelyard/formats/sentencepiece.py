"""SentencePiece models (tokenizer.model): a bounded reader of one protocol buffer.

    ModelProto       1 pieces*  2 trainer  3 normaliser  4 self-test  5 denormaliser
    SentencePiece    1 text (string)  2 score (float)  3 kind (1 normal, 2 unknown, 3 control, 4 user,
                     5 unused, 6 byte)
    TrainerSpec      3 model type (1 unigram, 2 BPE, 3 word, 4 char)  4 vocabulary size  35 byte fallback
                     40-43 ids of unknown, begin, end, padding, and the settings of the training run
    NormalizerSpec   1 name  2 compiled map (bytes)  3-5 switches  6 rules
    a field          key varint (number << 3 | wire), then: wire 0 a varint, 2 a length and bytes, 5 four bytes

Source: `src/sentencepiece_model.proto` of github.com/google/sentencepiece and the protocol buffer encoding
guide. A field that is not in the schema, or not of its wire type, or twice, refuses: nothing hides in unknown fields.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from math import isfinite
from struct import Struct
from typing import NamedTuple, NoReturn

from steelyard.digest import JSON
from steelyard.errors import Malformed
from steelyard.formats.base import ByteSource, Report, Rule

MAX_BYTES = 64 << 20
MAX_PIECES = 1 << 20
MAX_PIECE_BYTES = 4096

_WRITE_AGAIN = "Train or export the model again with the sentencepiece library."

RULES: Mapping[str, Rule] = {
    "sentencepiece/size": Rule("A model so large that reading it exhausts memory.", _WRITE_AGAIN),
    "sentencepiece/truncated": Rule(
        "A length that runs past its message, so that a trusting reader leaves the buffer.", _WRITE_AGAIN
    ),
    "sentencepiece/varint": Rule(
        "A number of more than 64 bits, which readers cut differently.", _WRITE_AGAIN
    ),
    "sentencepiece/field": Rule(
        "A field outside the schema or of another wire type: bytes hidden from every loader.", _WRITE_AGAIN
    ),
    "sentencepiece/piece": Rule(
        "A piece without text, of unknown kind, or with a score that is not a number.", _WRITE_AGAIN
    ),
    "sentencepiece/encoding": Rule(
        "A piece that is not UTF-8, read differently by each reader.", _WRITE_AGAIN
    ),
    "sentencepiece/duplicate": Rule("A piece given twice: two ids for one text.", _WRITE_AGAIN),
    "sentencepiece/unknown-piece": Rule(
        "No unknown piece or several: the loader crashes or guesses.", _WRITE_AGAIN
    ),
    "sentencepiece/bytes": Rule("Byte pieces that do not cover all 256 bytes once.", _WRITE_AGAIN),
    "sentencepiece/id": Rule("An id of a special piece outside the vocabulary.", _WRITE_AGAIN),
    "sentencepiece/charsmap": Rule(
        "A compiled normaliser whose inner length leaves its buffer.", _WRITE_AGAIN
    ),
}

_VARINT, _BYTES, _FIXED32 = 0, 2, 5
_FLOAT = Struct("<f")


class _Schema(NamedTuple):
    """Field number -> wire type, and the numbers that may repeat."""

    wires: Mapping[int, int]
    repeated: frozenset[int]


def _schema(varint: str = "", text: str = "", fixed32: str = "", repeated: str = "") -> _Schema:
    kinds = ((varint, _VARINT), (text, _BYTES), (fixed32, _FIXED32))
    wires = {int(number): wire for numbers, wire in kinds for number in numbers.split()}
    return _Schema(wires, frozenset(map(int, repeated.split())))


_MODEL = _schema(text="1 2 3 4 5", repeated="1")
_PIECE = _schema(text="1", fixed32="2", varint="3")
_NORMALISER = _schema(text="1 2 6", varint="3 4 5")
_SELF_TEST = _schema(text="1", repeated="1")
_SAMPLE = _schema(text="1 2")
_TRAINER = _schema(
    varint="3 4 6 11 12 13 14 16 17 18 19 20 21 22 23 24 25 26 32 33 34 35 40 41 42 43 49 50 52",
    text="1 2 5 7 30 31 36 44 45 46 47 48 53 54",
    fixed32="10 15 51",
    repeated="1 5 30 31",
)
_MODEL_TYPES: Mapping[int, str] = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
_ID_FIELDS: Mapping[int, str] = {40: "unk_id", 41: "bos_id", 42: "eos_id", 43: "pad_id"}
_ID_DEFAULTS: Mapping[str, int] = {"unk_id": 0, "bos_id": 1, "eos_id": 2, "pad_id": -1}


class PieceKind(IntEnum):
    """SentencePiece.Type; the numbers are also GGUF's token types."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class Piece(NamedTuple):
    """One entry of the vocabulary; its id is its position. A named tuple, for there are up to a million."""

    text: str
    score: float
    kind: PieceKind


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """A validated model. `ids` holds unk_id, bos_id, eos_id and pad_id; -1 means there is none."""

    pieces: tuple[Piece, ...]
    model_type: str
    ids: Mapping[str, int]
    byte_fallback: bool
    normaliser: str
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool
    charsmap: bytes


class _Field(NamedTuple):
    number: int
    wire: int
    value: int  # of a varint
    begin: int
    end: int  # of the bytes


def pieces_of(data: bytes) -> SentencePieceModel:
    """The model in `data`. Raises Malformed."""
    if len(data) > MAX_BYTES:
        _refuse("size", f"{len(data)} bytes; at most {MAX_BYTES} are read", 0)
    pieces: list[Piece] = []
    trainer: dict[int, int] | None = None
    normaliser: _Normaliser | None = None
    for field in _fields(data, 0, len(data), _MODEL):
        if field.number == 1:
            if len(pieces) >= MAX_PIECES:
                _refuse("size", f"more than {MAX_PIECES} pieces", field.begin)
            pieces.append(_piece_of(data, field.begin, field.end))
        elif field.number == 2:
            fields = _fields(data, field.begin, field.end, _TRAINER)
            trainer = {each.number: each.value for each in fields if each.wire == _VARINT}
        elif field.number == 3:
            normaliser = _normaliser_of(data, field.begin, field.end)
        elif field.number == 4:
            for sample in _fields(data, field.begin, field.end, _SELF_TEST):
                for _ in _fields(data, sample.begin, sample.end, _SAMPLE):
                    pass  # reading it is the check
        else:
            _normaliser_of(data, field.begin, field.end)
    if trainer is None or normaliser is None:
        _refuse("truncated", "the model ends without its trainer's or its normaliser's settings", len(data))
    _check_pieces(pieces)
    return SentencePieceModel(
        pieces=tuple(pieces),
        model_type=_MODEL_TYPES.get(trainer.get(3, 1), "unknown"),
        ids=_ids_of(trainer, pieces),
        byte_fallback=bool(trainer.get(35, 0)),
        normaliser=normaliser.name,
        add_dummy_prefix=normaliser.add_dummy_prefix,
        remove_extra_whitespaces=normaliser.remove_extra_whitespaces,
        escape_whitespaces=normaliser.escape_whitespaces,
        charsmap=normaliser.charsmap,
    )


def _fields(data: bytes, begin: int, end: int, schema: _Schema) -> Iterator[_Field]:
    """The fields of one message, each checked against `schema`."""
    at = begin
    seen = 0
    while at < end:
        start = at
        key, at = _varint(data, at, end)
        number, wire = key >> 3, key & 7
        if schema.wires.get(number) != wire:
            _refuse("field", f"field {number} of wire type {wire} is not in the schema", start)
        if seen >> number & 1 and number not in schema.repeated:
            _refuse("field", f"field {number} stands twice in one message", start)
        seen |= 1 << number
        if wire == _VARINT:
            value, at = _varint(data, at, end)
            yield _Field(number, wire, value, at, at)
            continue
        if wire == _BYTES:
            size, at = _varint(data, at, end)
        else:
            size = 4
        if size > end - at:
            _refuse("truncated", f"field {number} of {size} bytes; {end - at} are left in its message", start)
        yield _Field(number, wire, 0, at, at + size)
        at += size


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    """The varint at `at` and the offset after it."""
    value = shift = 0
    start = at
    while at < end:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >= 1 << 64:
                break
            return value, at
        shift += 7
        if shift >= 70:
            break
    else:
        _refuse("truncated", "a number runs past its message", start)
    return _refuse("varint", "a number of more than 64 bits", start)


def _piece_of(data: bytes, begin: int, end: int) -> Piece:
    text, score, kind = "", 0.0, 1
    for field in _fields(data, begin, end, _PIECE):
        if field.number == 1:
            if field.end - field.begin > MAX_PIECE_BYTES:
                _refuse(
                    "piece",
                    f"a piece of {field.end - field.begin} bytes; at most {MAX_PIECE_BYTES}",
                    field.begin,
                )
            text = _text_of(data, field)
        elif field.number == 2:
            score = _FLOAT.unpack_from(data, field.begin)[0]
        else:
            kind = field.value
    if not text or not isfinite(score) or not 1 <= kind <= 6:
        _refuse("piece", f"a piece of text {text[:80]!a}, score {score} and kind {kind}", begin)
    return Piece(text, score, PieceKind(kind))


def _text_of(data: bytes, field: _Field) -> str:
    try:
        return data[field.begin : field.end].decode()
    except UnicodeDecodeError as error:
        raise Malformed("text is not UTF-8", rule="sentencepiece/encoding", offset=field.begin) from error


class _Normaliser(NamedTuple):
    name: str
    charsmap: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    escape_whitespaces: bool


def _normaliser_of(data: bytes, begin: int, end: int) -> _Normaliser:
    name, charsmap = "", b""
    switches = {3: True, 4: True, 5: True}
    for field in _fields(data, begin, end, _NORMALISER):
        if field.number == 1:
            name = _text_of(data, field)
        elif field.number == 2:
            charsmap = data[field.begin : field.end]
            # A length (u32) of the double-array trie, the trie, then zero-terminated replacements.
            trie_size = int.from_bytes(charsmap[:4], "little")
            if charsmap and (len(charsmap) < 4 or trie_size > len(charsmap) - 4 or trie_size % 4):
                _refuse("charsmap", f"a trie of {trie_size} bytes in a map of {len(charsmap)}", field.begin)
        elif field.wire == _VARINT:
            switches[field.number] = bool(field.value)
    return _Normaliser(name, charsmap, switches[3], switches[4], switches[5])


def _check_pieces(pieces: list[Piece]) -> None:
    """What the library's own loader demands of a vocabulary."""
    if len({piece.text for piece in pieces}) != len(pieces):
        seen: set[str] = set()
        for piece in pieces:
            if piece.text in seen:
                _refuse("duplicate", f"piece {piece.text[:80]!a} stands twice", None)
            seen.add(piece.text)
    unknown = sum(piece.kind is PieceKind.UNKNOWN for piece in pieces)
    if unknown != 1:
        _refuse("unknown-piece", f"{unknown} unknown pieces; expected one", None)
    found = {piece.text for piece in pieces if piece.kind is PieceKind.BYTE}
    if found and found != {f"<0x{byte:02X}>" for byte in range(256)}:
        _refuse("bytes", f"{len(found)} byte pieces; expected <0x00> to <0xFF>", None)


def _ids_of(trainer: Mapping[int, int], pieces: list[Piece]) -> dict[str, int]:
    ids = {}
    for number, name in _ID_FIELDS.items():
        value = trainer.get(number, _ID_DEFAULTS[name])
        signed = value - (1 << 64) if value >= 1 << 63 else value  # int32 -1 is written as ten bytes of ones
        if signed < -1 or (signed >= len(pieces) and number in trainer):
            _refuse("id", f"{name} is {signed}; there are {len(pieces)} pieces", None)
        ids[name] = signed if signed < len(pieces) else -1
    return ids


def _refuse(rule: str, message: str, offset: int | None) -> NoReturn:
    raise Malformed(message, rule=f"sentencepiece/{rule}", offset=offset)


def _starts_with_piece(head: bytes) -> bool:
    """Whether the first bytes are one whole SentencePiece: a line feed, lengths that agree, text."""
    if head[:1] != b"\x0a":
        return False
    try:
        size, at = _varint(head, 1, len(head))
        if size > len(head) - at:
            return False
        _piece_of(head, at, at + size)
    except Malformed:
        return False
    return True


class SentencePieceFormat:
    """The plug of `steelyard.formats`."""

    name = "sentencepiece"
    rules = RULES

    def sniff(self, head: bytes, path: str) -> bool:
        named = path.endswith(".model") and head[:1] == b"\x0a"
        return named or _starts_with_piece(head)

    def read(self, source: ByteSource, path: str) -> Report:  # noqa: ARG002 - the plug's signature
        if source.size > MAX_BYTES:
            _refuse("size", f"{source.size} bytes; at most {MAX_BYTES} are read", 0)
        model = pieces_of(source.read(0, source.size))
        facts: dict[str, JSON] = {
            "pieces": len(model.pieces),
            "model_type": model.model_type,
            "byte_fallback": model.byte_fallback,
            "normaliser": model.normaliser[:200],
            **model.ids,
        }
        return Report(self.name, facts)


FORMAT = SentencePieceFormat()
