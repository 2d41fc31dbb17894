import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.errors import Malformed
from steelyard.formats.base import BytesSource
from steelyard.formats.tokenizer import FORMAT, MAX_LINE_BYTES, RULES

TEXT = ["the quick brown fox jumps over the lazy dog", "pack my box with five dozen liquor jugs"] * 20
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def trained(kind: str):
    from tokenizers import (
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )

    special = ["<unk>", "<s>"]
    if kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(LLAMA_3), "isolated"), pre_tokenizers.ByteLevel(use_regex=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special)
    elif kind == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" ", "▁")])
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=80, special_tokens=special, unk_token="<unk>")
    elif kind == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(vocab_size=120, special_tokens=special)
    else:
        tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(special_tokens=special)
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


@pytest.mark.parametrize(
    ("kind", "model"),
    [("bpe", "BPE"), ("unigram", "Unigram"), ("wordpiece", "WordPiece"), ("words", "WordLevel")],
)
def test_trained_tokenizer_is_clean_and_its_facts_agree_with_the_library(kind, model):
    tokenizer = trained(kind)
    report = FORMAT.read(BytesSource(tokenizer.to_str().encode()), "tokenizer.json")
    assert report.findings == ()
    assert report.facts["model"] == model
    assert report.facts["tokens"] == tokenizer.get_vocab_size(with_added_tokens=False)
    assert report.facts["largest_id"] == max(tokenizer.get_vocab().values())


def test_tokenizer_saved_by_transformers_is_clean_in_every_file(tmp_path):
    from transformers import PreTrainedTokenizerFast

    from steelyard.formats import hf_config

    fast = PreTrainedTokenizerFast(tokenizer_object=trained("bpe"), unk_token="<unk>", bos_token="<s>")
    fast.add_tokens(["<|extra|>"])
    fast.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    fast.save_pretrained(tmp_path)
    names = {file.name for file in tmp_path.iterdir()} - {"chat_template.jinja"}
    assert {"tokenizer.json", "tokenizer_config.json"} <= names
    for name in names:
        format_ = FORMAT if name == "tokenizer.json" else hf_config.FORMAT
        data = (tmp_path / name).read_bytes()
        assert format_.sniff(data[:64], name)
        assert format_.read(BytesSource(data), name).findings == ()


def test_word_lists_of_the_bpe_model_are_clean(tmp_path):
    from steelyard.formats import hf_config

    trained("bpe").model.save(str(tmp_path))
    merges, vocab = (tmp_path / "merges.txt").read_bytes(), (tmp_path / "vocab.json").read_bytes()
    assert FORMAT.sniff(merges[:64], "merges.txt")
    assert FORMAT.read(BytesSource(merges), "merges.txt").findings == ()
    assert hf_config.FORMAT.read(BytesSource(vocab), "vocab.json").findings == ()


def test_merges_in_the_old_form_are_read():
    value = {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"]}}
    assert FORMAT.read(BytesSource(json.dumps(value).encode()), "tokenizer.json").findings == ()


def split_by(pattern: str) -> bytes:
    splitter = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return json.dumps({"pre_tokenizer": splitter, "model": {"type": "WordLevel", "vocab": {"a": 0}}}).encode()


@pytest.mark.parametrize(
    "pattern", [GPT_2, LLAMA_3, O200K, r"[(a+)]+", r"\(a+\)+", "(ab|c)+", "(a+){3}", "(a+)?"]
)
def test_patterns_of_known_models_are_clean(pattern):
    assert FORMAT.read(BytesSource(split_by(pattern)), "tokenizer.json").findings == ()


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "((a|b)*c*)*", "(?:x+y?){2,}", "(a{1,})*", "([a-z]+)*!", "(?:(a+))+"]
)
def test_nested_repetition_is_a_finding(pattern):
    findings = FORMAT.read(BytesSource(split_by(pattern)), "tokenizer.json").findings
    assert [finding.rule for finding in findings] == ["tokenizer/regex"]


@settings(deadline=None)
@given(st.text(alphabet="()[]{}*+?\\a,2|^", max_size=30))
def test_any_pattern_is_read_without_a_crash(pattern):
    FORMAT.read(BytesSource(split_by(pattern)), "tokenizer.json")


def test_vocabulary_of_bert_is_read():
    report = FORMAT.read(BytesSource("[PAD]\n[UNK]\n##é\n\u2028\n".encode()), "vocab.txt")
    assert report.findings == ()
    assert report.facts == {"kind": "vocab.txt", "lines": 4}


@pytest.mark.parametrize(("length", "clean"), [(MAX_LINE_BYTES, True), (MAX_LINE_BYTES + 1, False)])
def test_line_at_the_limit_is_read_and_one_past_it_refused(length, clean):
    source = BytesSource(b"a" * length)
    if clean:
        assert FORMAT.read(source, "vocab.txt").findings == ()
    else:
        with pytest.raises(Malformed) as caught:
            FORMAT.read(source, "vocab.txt")
        assert caught.value.rule == "tokenizer/text"


KEYS = st.sampled_from(
    ["model", "type", "vocab", "merges", "added_tokens", "id", "content", "normalizer", "a"]
)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**70) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["model", "added_tokens", "normalizer", "decoder"]), JSON_VALUES))
def test_any_structure_is_reported_and_never_crashes(value):
    value.setdefault("model", {"type": "BPE", "vocab": {}, "merges": []})
    report = FORMAT.read(BytesSource(json.dumps(value).encode()), "tokenizer.json")
    assert {finding.rule for finding in report.findings} <= set(RULES)


def test_large_vocabulary_with_merges_is_clean():
    vocab = {f"t{number}": number for number in range(50_000)}
    vocab |= {f"t{number}t{number + 1}": 50_000 + number for number in range(40_000)}
    merges = [[f"t{number}", f"t{number + 1}"] for number in range(40_000)]
    data = json.dumps({"model": {"type": "BPE", "vocab": vocab, "merges": merges}}).encode()
    report = FORMAT.read(BytesSource(data), "tokenizer.json")
    assert report.findings == ()
    assert (report.facts["tokens"], report.facts["merges"]) == (90_000, 40_000)
