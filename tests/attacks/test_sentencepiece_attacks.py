"""Hostile SentencePiece models: each is a few hundred bytes, made here, and refused by the rule it breaks."""

from struct import pack

import pytest

from steelyard.errors import Malformed
from steelyard.formats.base import BytesSource
from steelyard.formats.sentencepiece import FORMAT, MAX_BYTES, MAX_PIECE_BYTES


def varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def block(field: int, data: bytes) -> bytes:
    return varint(field << 3 | 2) + varint(len(data)) + data


def piece(text: str | bytes, score: float = 0.0, kind: int = 1) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return block(1, block(1, data) + b"\x15" + pack("<f", score) + number(3, kind))


UNKNOWN = piece("<unk>", kind=2)
TRAINER = block(2, number(3, 1) + number(41, -1) + number(42, -1))
NORMALISER = block(3, block(1, b"identity"))


def model(*pieces: bytes, trainer: bytes = TRAINER, normaliser: bytes = NORMALISER) -> bytes:
    return UNKNOWN + b"".join(pieces) + trainer + normaliser


ATTACKS = {
    "piece_length_past_the_end": ("truncated", model() + b"\x0a\xff\xff\xff\x7f"),
    "piece_length_of_all_ones": ("truncated", model() + b"\x0a" + b"\xff" * 9 + b"\x01"),
    "text_length_leaves_its_piece": ("truncated", model(block(1, b"\x0a\x7fab"))),
    "score_cut_short": ("truncated", model(block(1, block(1, b"a") + b"\x15\0"))),
    "number_cut_short": ("truncated", model() + b"\x80"),
    "number_of_eleven_bytes": ("varint", model(trainer=block(2, b"\x18" + b"\x80" * 10 + b"\x01"))),
    "number_of_65_bits": ("varint", model(trainer=block(2, b"\x18" + b"\xff" * 9 + b"\x7f"))),
    "payload_in_an_unknown_field": ("field", model() + block(200, b"\x7fELF")),
    "payload_in_an_unknown_field_of_a_piece": ("field", model(block(1, block(1, b"a") + block(9, b"evil")))),
    "group": ("field", model() + b"\x0b\x0c"),
    "groups_nested_10000_deep": ("field", model() + b"\x0b" * 10_000),
    "field_zero": ("field", model() + b"\x02\x00"),
    "text_as_a_number": ("field", model(block(1, number(1, 5)))),
    "text_twice_in_a_piece": ("field", model(block(1, block(1, b"a") + block(1, b"b")))),
    "normaliser_twice": ("field", model() + NORMALISER),
    "piece_without_text": ("piece", model(piece(""))),
    "piece_of_unknown_kind": ("piece", model(piece("a", kind=7))),
    "piece_of_negative_kind": ("piece", model(piece("a", kind=-1))),
    "score_is_not_a_number": ("piece", model(piece("a", float("nan")))),
    "score_is_infinite": ("piece", model(piece("a", float("inf")))),
    "piece_one_past_the_limit": ("piece", model(piece("a" * (MAX_PIECE_BYTES + 1)))),
    "piece_not_utf8": ("encoding", model(piece(b"\xff"))),
    "piece_twice": ("duplicate", model(piece("a"), piece("a"))),
    "no_unknown_piece": ("unknown-piece", piece("a") + TRAINER + NORMALISER),
    "two_unknown_pieces": ("unknown-piece", model(piece("<other>", kind=2))),
    "one_byte_piece_of_256": ("bytes", model(piece("<0x00>", kind=6))),
    "byte_piece_of_another_name": ("bytes", model(*(piece(f"<0x{each:02x}>", kind=6) for each in range(256)))),
    "end_id_outside_the_vocabulary": ("id", model(trainer=block(2, number(42, 1)))),
    "id_below_minus_one": ("id", model(trainer=block(2, number(43, -2)))),
    "trie_leaves_its_map": ("charsmap", model(normaliser=block(3, block(2, pack("<I", 2**31) + bytes(8))))),
    "map_of_three_bytes": ("charsmap", model(normaliser=block(3, block(2, b"abc")))),
    "map_of_the_denormaliser_too": ("charsmap", model() + block(5, block(2, b"abc"))),
    "settings_missing": ("truncated", UNKNOWN + piece("a")),
    "bytes_after_the_model": ("field", model() + b"PK\x03\x04"),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_hostile_sentencepiece_is_refused_by_its_rule(name):
    rule, data = ATTACKS[name]
    assert FORMAT.sniff(data[:4096], "tokenizer.model")
    with pytest.raises(Malformed) as caught:
        FORMAT.read(BytesSource(data), "tokenizer.model")
    assert caught.value.rule == f"sentencepiece/{rule}"
    assert caught.value.rule in FORMAT.rules


def test_the_model_the_attacks_start_from_is_clean():
    report = FORMAT.read(BytesSource(model(piece("a" * MAX_PIECE_BYTES))), "tokenizer.model")
    assert report.findings == ()
    assert report.facts["pieces"] == 2


def test_model_over_the_limit_is_refused_unread():
    class Large:
        size = MAX_BYTES + 1

        def read(self, offset: int, size: int) -> bytes:
            raise AssertionError("a file over the limit is not read")

    with pytest.raises(Malformed) as caught:
        FORMAT.read(Large(), "tokenizer.model")
    assert caught.value.rule == "sentencepiece/size"
