import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.errors import Malformed
from steelyard.formats.base import BytesSource
from steelyard.formats.sentencepiece import FORMAT, RULES, pieces_of

TEXT = [
    "the quick brown fox jumps over the lazy dog",
    "pack my box with five dozen liquor jugs",
    "Grüße aus Köln",
]


def train(**settings: object) -> bytes:
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 30),
        model_writer=model,
        minloglevel=2,
        hard_vocab_limit=False,
        **settings,
    )
    return model.getvalue()


BPE = train(vocab_size=330, model_type="bpe", byte_fallback=True, user_defined_symbols=["<sep>"], pad_id=3)
UNIGRAM = train(vocab_size=60, model_type="unigram", normalization_rule_name="nmt_nfkc_cf")


def rule_broken_by(data: bytes) -> str | None:
    try:
        FORMAT.read(BytesSource(data), "tokenizer.model")
    except Malformed as error:
        return error.rule
    return None


@pytest.mark.parametrize("data", [BPE, UNIGRAM], ids=["bpe", "unigram"])
def test_pieces_scores_and_kinds_agree_with_the_library(data):
    import sentencepiece

    library = sentencepiece.SentencePieceProcessor(model_proto=data)
    model = pieces_of(data)
    assert len(model.pieces) == library.vocab_size()
    for number, piece in enumerate(model.pieces):
        assert piece.text == library.id_to_piece(number)
        assert piece.score == library.get_score(number)
        kind = (
            library.is_unknown(number),
            library.is_control(number),
            library.is_byte(number),
            library.is_unused(number),
        )
        assert kind == tuple(piece.kind.name == name for name in ("UNKNOWN", "CONTROL", "BYTE", "UNUSED"))
    ids = {
        "unk_id": library.unk_id(),
        "bos_id": library.bos_id(),
        "eos_id": library.eos_id(),
        "pad_id": library.pad_id(),
    }
    assert model.ids == ids


def test_settings_of_the_training_run_are_read():
    model = pieces_of(BPE)
    assert (model.model_type, model.byte_fallback, model.add_dummy_prefix) == ("bpe", True, True)
    assert pieces_of(UNIGRAM).normaliser == "nmt_nfkc_cf"
    assert pieces_of(UNIGRAM).charsmap[:4] != b""
    assert [piece.text for piece in model.pieces if piece.kind.name == "USER_DEFINED"] == ["<sep>"]
    assert pieces_of(train(vocab_size=60, add_dummy_prefix=False)).add_dummy_prefix is False


def test_facts_and_claim():
    assert FORMAT.sniff(BPE[:4096], "tokenizer.model")
    assert FORMAT.sniff(BPE[:4096], "spiece.bin")
    facts = FORMAT.read(BytesSource(BPE), "tokenizer.model").facts
    assert facts["pieces"] == len(pieces_of(BPE).pieces)
    assert facts["pad_id"] == 3


@pytest.mark.parametrize(
    "head", [b"\n\n\n\n\nA heading\n", b"\n# notes\n", b"", b"\x08\x07\x12\x07pytorch", b"\x80\x04."]
)
def test_other_files_are_not_claimed(head):
    assert not FORMAT.sniff(head, "README.md")


@settings(deadline=None)
@given(st.integers(0, len(UNIGRAM) - 1), st.integers(0, 255))
def test_a_changed_byte_is_refused_or_read_and_never_crashes(at, value):
    assert rule_broken_by(UNIGRAM[:at] + bytes([value]) + UNIGRAM[at + 1 :]) in {None, *RULES}


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data):
    with pytest.raises(Malformed) as caught:
        pieces_of(data)
    assert caught.value.rule in RULES


def test_truncation_at_any_byte_refuses():
    for size in [*range(1200), *range(len(UNIGRAM) - 300, len(UNIGRAM))]:
        with pytest.raises(Malformed) as caught:
            pieces_of(UNIGRAM[:size])
        assert caught.value.rule in RULES
