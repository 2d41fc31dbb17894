"""The converter against the libraries that wrote the models: transformers, tokenizers, sentencepiece, llama.cpp."""

import hashlib
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import unicodedata
import urllib.request
import weakref
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
import transformers
from gguf import GGUFReader, quants
from safetensors.numpy import load_file, save_file
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from steelyard.admit.lineage import lineage_predicate
from steelyard.admit.to_gguf import convert, quantise
from steelyard.admit.to_gguf_config import shape_of
from steelyard.admit.to_gguf_tensors import Weights, blocks, plan
from steelyard.admit.to_gguf_tokenizer import _LLAMA3, _QWEN2
from steelyard.errors import Malformed, Refused, SteelyardError, Unavailable, WrongUsage
from steelyard.manifest import manifest_of

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

HELPDESK = Path(__file__).parents[2] / "src" / "steelyard" / "data" / "helpdesk"


def _tiny_model():
    path = Path(__file__).parents[1] / "engines" / "tiny_model.py"
    spec = importlib.util.spec_from_file_location("tiny_model", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tiny_model = _tiny_model()


class LlamaCpp:
    """llama.cpp as the judge. `exact`: float32 attention, to see the converter's error and not the kernel's."""

    def __init__(self, gguf, *, exact=True):
        script = Path(__file__).with_name("llama_judge.py")
        self._process = subprocess.Popen(
            [sys.executable, script, str(gguf), str(int(exact))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        weakref.finalize(self, _end, self._process)
        self._address = json.loads(self._process.stdout.readline())

    def log_probs(self, ids, vocabulary):
        """(vocabulary,) natural log-probabilities of the token after `ids`. llama.cpp ignores `echo`, so one call
        answers for one position; the bias only picks a printable token, the raw probabilities do not see it."""
        body = {
            "prompt": ids,
            "max_tokens": 1,
            "logprobs": vocabulary,
            "temperature": 0.0,
            "logit_bias": [[35, 1e3]],
        }
        self._process.stdin.write(json.dumps(body) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        rows = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        out = np.full(vocabulary, np.nan)
        out[[row["id"] for row in rows]] = [row["logprob"] for row in rows]
        return out

    def tokens(self, text, **options):
        body = json.dumps({"content": text, "parse_special": True, "add_special": False, **options}).encode()
        request = urllib.request.Request(f"{self._address}/tokenize", body)
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["tokens"]


def _end(process):
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def worst_difference(model, gguf, length=100, step=7, *, exact=True):
    """Largest |log-probability difference| to transformers in float32, over every `step`-th position."""
    vocabulary = model.config.vocab_size
    ids = torch.randint(3, vocabulary, (length,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = torch.log_softmax(model(ids[None]).logits[0].float(), -1).numpy()
    judge = LlamaCpp(gguf, exact=exact)
    positions = sorted({*range(0, length, step), length - 1})
    found = [judge.log_probs(ids[: i + 1].tolist(), vocabulary) for i in positions]
    return max(np.abs(row - expected[i]).max() for i, row in zip(positions, found, strict=True))


def rope(kind, **fields):
    return {"rope_parameters": {"rope_theta": 10000.0, "rope_type": kind, **fields}}


SIZES = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2,
    "initializer_range": 0.15,
}  # fmt: skip
LLAMA3 = rope(
    "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32
)
YARN = rope("yarn", factor=4.0, original_max_position_embeddings=32)
FAMILIES = {
    "llama": ("Llama", {}),
    "llama-one-head-each": ("Llama", {"num_key_value_heads": 4}),
    "llama-3-rope-tied": ("Llama", {"tie_word_embeddings": True, **LLAMA3}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-linear-rope": ("Llama", rope("linear", factor=4.0)),
    "llama-yarn": ("Llama", YARN),
    "mistral-wide-heads": ("Mistral", {"head_dim": 32, "sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": 32}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen3-yarn": ("Qwen3", {"head_dim": 32, **YARN}),
}


def written(folder, family, **options):
    """A random model of that family, saved by transformers with a tokenizer beside it. Biases and norms differ
    from their start values, so that a tensor in the wrong place shows."""
    name, settings = FAMILIES[family]
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **settings})
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder, **options)
    tiny_model.write_tokenizer(folder)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_equal_transformers_in_float32(family, tmp_path):
    model = written(tmp_path / "source", family)
    convert(tmp_path / "source", tmp_path / "out.gguf", outtype="f32")
    length = 31 if family == "mistral-window" else 100
    assert worst_difference(model, tmp_path / "out.gguf", length) <= 1e-4


def test_a_sliding_window_caps_the_context(tmp_path):
    written(tmp_path / "source", "mistral-window")
    convert(tmp_path / "source", tmp_path / "out.gguf")
    assert GGUFReader(tmp_path / "out.gguf").fields["llama.context_length"].contents() == 32


@pytest.mark.parametrize("outtype", ["f16", "bf16"])
def test_half_precision_stays_near_the_model_rounded_to_it(outtype, tmp_path):
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16}[outtype]
    model = written(tmp_path / "source", "llama")
    convert(tmp_path / "source", tmp_path / "out.gguf", outtype=outtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.copy_(parameter.to(dtype).float())
    assert worst_difference(model, tmp_path / "out.gguf") <= (0.02 if outtype == "f16" else 0.1)
    stored = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "out.gguf").tensors}
    rounded = model.state_dict()["lm_head.weight"].to(dtype).view(torch.int16).numpy()
    assert np.array_equal(np.asarray(stored["output.weight"].data).view(np.int16), rounded)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_auto_keeps_matrices_as_stored_and_vectors_in_float32(dtype, tmp_path):
    model = written(tmp_path / "first", "llama")
    model.to(getattr(torch, dtype)).save_pretrained(tmp_path / "source")
    tiny_model.write_tokenizer(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "out.gguf")
    kinds = {(len(t.shape), t.tensor_type.name) for t in GGUFReader(tmp_path / "out.gguf").tensors}
    assert kinds == {(2, {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]), (1, "F32")}


def test_shards_give_the_same_bytes_as_one_file(tmp_path):
    written(tmp_path / "one", "llama")
    written(tmp_path / "many", "llama", max_shard_size="60KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 2
    digests = set()
    for name in ("one", "many", "one"):
        target = tmp_path / f"{len(list(tmp_path.glob('*.gguf')))}.gguf"
        convert(tmp_path / name, target)
        digests.add(hashlib.sha256(target.read_bytes()).hexdigest())
    assert len(digests) == 1


def test_the_block_size_changes_no_byte(tmp_path):
    source = tiny_model.write_tiny_model(tmp_path / "source")
    shape = shape_of(json.loads((source / "config.json").read_text()))
    with Weights(source) as weights:
        for entry in plan(shape, weights, "f16"):
            small = list(blocks(entry, weights, 4096))
            assert b"".join(small) == b"".join(blocks(entry, weights))
            assert max(map(len, small)) <= 4096


HARD_STRINGS = [
    "", " ", "hello world", " leading", "trailing ", "two  spaces   three    four", "tabs\tand\nnewlines\r\n\n\n x",
    "12345 3.14 1e9 ٣٤٥ ½ ①", "héllo cafe\u0301 ñ Å \u212b ﬁ", "👩‍👩‍👧‍👦 🇩🇪 👍🏽 \ufe0f", "日本語 漢字 한국어 ไทย",
    "مرحبا بالعالم עברית",
    "def f(x):\n    return x ** 2  # ok\n\n\n", "a\u200bb\ufeff\u00a0c\u2028d\u3000e", "x" * 300, "\x00\x01\x7f",
    "▁under▁score Ġ", "<|end|>", "a<|end|>b <|start|><|start|>", "</s> <s> [INST]",
    "I'm you'll THEY'RE it'S don\u2019t",
    "C++/C# $100.00 100% {}[]()!!!???", "\U0001d54f\U00010348", "e\u0301\u0302\u0303",
]  # fmt: skip
PRE_TOKENIZERS = {
    "gpt-2": (None, None, False),
    "smollm": (
        pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(False, use_regex=True)]
        ),
        None,
        False,
    ),
    "llama-bpe": (
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_LLAMA3), "isolated"),
                pre_tokenizers.ByteLevel(False, use_regex=False),
            ]
        ),
        None,
        True,
    ),
    "qwen2": (
        pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(_QWEN2), "isolated"),
                pre_tokenizers.ByteLevel(False, use_regex=False),
            ]
        ),
        normalizers.NFC(),
        False,
    ),
}


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_byte_level_bpe_gives_the_ids_of_the_tokenizers_library(pre, tmp_path):
    splitter, normalizer, ignore_merges = PRE_TOKENIZERS[pre]
    source = tiny_model.write_tiny_model(tmp_path / "source")
    oracle = tiny_model.write_tokenizer(source, splitter, normalizer=normalizer, ignore_merges=ignore_merges)
    convert(source, tmp_path / "out.gguf")
    assert GGUFReader(tmp_path / "out.gguf").fields["tokenizer.ggml.pre"].contents() == pre
    judge = LlamaCpp(tmp_path / "out.gguf")
    for text in HARD_STRINGS:
        # the engine normalises before llama.cpp sees the text, see NORMALISER_KEY there
        given = unicodedata.normalize("NFC", text) if normalizer else text
        assert judge.tokens(given) == oracle.encode(text, add_special_tokens=False).ids, repr(text)


def sentencepiece_model(**options):
    model = io.BytesIO()
    settings = {
        "model_type": "bpe", "vocab_size": 400, "byte_fallback": True, "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False, "split_digits": True, "allow_whitespace_only_pieces": True, "pad_id": -1,
        "unk_id": 0, "bos_id": 1, "eos_id": 2, "minloglevel": 2, "hard_vocab_limit": False, **options,
    }  # fmt: skip
    corpus = [*tiny_model.CORPUS, "日本語のテキスト, def f(x): return x + 1"] * 20
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(corpus), model_writer=model, **settings)
    return model.getvalue()


def with_sentencepiece(folder, data, **settings):
    """A transformers model of 410 tokens with that tokenizer.model: ten ids more than the model has pieces."""
    config = transformers.LlamaConfig(**{**SIZES, "vocab_size": 410})
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(data)
    named = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named | settings))
    return folder


def test_sentencepiece_gives_the_ids_of_the_sentencepiece_library(tmp_path):
    data = sentencepiece_model()
    added = {"400": {"content": "<|user|>", "special": True}, "401": {"content": "<tool>", "special": False}}
    source = with_sentencepiece(tmp_path / "source", data, added_tokens_decoder=added)
    convert(source, tmp_path / "out.gguf")
    oracle = sentencepiece.SentencePieceProcessor(model_proto=data)
    judge = LlamaCpp(tmp_path / "out.gguf")
    for text in HARD_STRINGS:
        assert judge.tokens(text, parse_special=False) == oracle.encode(text), repr(text)
    assert judge.tokens("hello", add_special=True) == [1, *oracle.encode("hello")]
    assert judge.tokens("<|user|>") == [400]


@pytest.mark.parametrize(
    "options",
    [{"model_type": "unigram"}, {"normalization_rule_name": "nmt_nfkc"}, {"remove_extra_whitespaces": True}],
    ids=str,
)
def test_a_sentencepiece_model_that_llama_cpp_splits_otherwise_is_refused(options, tmp_path):
    source = with_sentencepiece(tmp_path / "source", sentencepiece_model(**options))
    with pytest.raises(Refused, match=r"tokenizer\.model"):
        convert(source, tmp_path / "out.gguf")


# Hostile or unknown input: one change to a good directory, and the word the refusal must hold.
def _config(**changes):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        config.update(changes)
        (folder / "config.json").write_text(json.dumps(config))

    return change


def _tokenizer(edit):
    def change(folder):
        body = json.loads((folder / "tokenizer.json").read_text())
        edit(body)
        (folder / "tokenizer.json").write_text(json.dumps(body))

    return change


def _tensors(edit):
    def change(folder):
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors")

    return change


def _index(folder):
    os.rename(folder / "model.safetensors", folder / "part.safetensors")
    body = {"weight_map": {"model.norm.weight": "../part.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(body))


UPSET = {
    "unknown architecture": (_config(architectures=["GrokForCausalLM"]), Refused, "GrokForCausalLM"),
    "remote code": (_config(auto_map={"AutoModel": "evil.py"}), Refused, "auto_map"),
    "quantised": (_config(quantization_config={"bits": 4}), Refused, "quantization_config"),
    "unknown key": (_config(logit_scale=0.5), Refused, "logit_scale"),
    "other activation": (_config(hidden_act="gelu"), Refused, "hidden_act"),
    "dynamic rope": (_config(rope_scaling={"type": "dynamic", "factor": 2.0}), Refused, "dynamic"),
    "yarn with a factor": (
        _config(rope_scaling={"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 8, "mscale": 2}),
        Refused, "mscale"),
    "partial rotary": (_config(partial_rotary_factor=0.5), Refused, "partial_rotary_factor"),
    "absurd size": (_config(num_hidden_layers=10**9), Refused, "num_hidden_layers"),
    "heads do not divide": (_config(num_key_value_heads=3), Refused, "heads"),
    "vocabulary too small": (_config(vocab_size=100), Refused, "100"),
    "missing tensor": (_tensors(lambda t: t.pop("model.norm.weight")), Refused, "model.norm.weight"),
    "unexpected tensor": (_tensors(lambda t: t.update(extra=np.zeros(1, "f4"))), Refused, "extra"),
    "wrong shape": (_tensors(lambda t: t.update({"model.norm.weight": np.zeros(65, "f4")})), Refused, "65"),
    "integer weights": (_tensors(lambda t: t.update({"model.norm.weight": np.zeros(64, "i4")})), Refused, "I32"),
    "not a number": (_tensors(lambda t: t["model.norm.weight"].fill(np.nan)), Refused, "not finite"),
    "too large for f16": (_tensors(lambda t: t["lm_head.weight"].fill(1e5)), Refused, "65504"),
    "tied but different": (_config(tie_word_embeddings=True), Refused, "ties the embeddings"),
    "shard outside the folder": (_index, Malformed, "part.safetensors"),
    "truncated weights": (lambda d: os.truncate(d / "model.safetensors", 5000), SteelyardError, "the file at 5000"),
    "template no text": (lambda d: (d / "chat_template.jinja").write_bytes(b"\xff"), Malformed, "UTF-8"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), WrongUsage, "neither"),
    "no config": (lambda d: (d / "config.json").unlink(), WrongUsage, "config.json"),
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), WrongUsage, "tokenizer"),
    "config is a list": (lambda d: (d / "config.json").write_text("[]"), Malformed, "object"),
    "unknown splitter": (_tokenizer(lambda b: b.update(pre_tokenizer={"type": "Whitespace"})), Refused, "splits"),
    "unknown normaliser": (_tokenizer(lambda b: b.update(normalizer={"type": "Lowercase"})), Refused, "Lowercase"),
    "word-piece": (_tokenizer(lambda b: b["model"].update(type="WordPiece")), Refused, "BPE"),
    "ignore merges": (_tokenizer(lambda b: b["model"].update(ignore_merges=True)), Refused, "ignore_merges"),
    "stripping token": (_tokenizer(lambda b: b["added_tokens"][0].update(lstrip=True)), Refused, "lstrip"),
    "two tokens, one id": (_tokenizer(lambda b: b["model"]["vocab"].update(other=5)), Malformed, "5"),
    "no end token": (lambda d: [_config(eos_token_id=None)(d), (d / "tokenizer_config.json").unlink()], Refused, "end"),
}  # fmt: skip


@pytest.mark.parametrize("case", UPSET)
def test_what_the_converter_does_not_understand_refuses_and_leaves_no_file(case, tmp_path):
    change, error, word = UPSET[case]
    source = tiny_model.write_tiny_model(tmp_path / "source")
    change(source)
    (tmp_path / "out").mkdir()
    with pytest.raises(error, match=word):
        convert(source, tmp_path / "out" / "model.gguf", outtype="f16")
    assert not list((tmp_path / "out").iterdir())


def test_an_existing_target_is_wrong_usage_and_stays(tmp_path):
    source = tiny_model.write_tiny_model(tmp_path / "source")
    (tmp_path / "out.gguf").write_text("mine")
    with pytest.raises(WrongUsage, match="exists"):
        convert(source, tmp_path / "out.gguf")
    assert (tmp_path / "out.gguf").read_text() == "mine"


def test_an_unwritable_target_is_unavailable(tmp_path):
    source = tiny_model.write_tiny_model(tmp_path / "source")
    with pytest.raises(Unavailable):
        convert(source, tmp_path / "missing" / "out.gguf")


def test_ends_and_licence_and_template_are_carried_over(tmp_path):
    source = tiny_model.write_tiny_model(tmp_path / "source")
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 7]}))
    (source / "README.md").write_text("---\nlicense: apache-2.0\ntags: [x]\n---\n# Model\n")
    written_bytes = []
    convert(source, tmp_path / "out.gguf", progress=written_bytes.append)
    fields = GGUFReader(tmp_path / "out.gguf").fields
    found = {name: fields[name].contents() for name in fields}
    assert (found["tokenizer.ggml.eos_token_id"], found["tokenizer.ggml.eot_token_id"]) == (2, 7)
    assert found["general.license"] == "apache-2.0"
    assert found["tokenizer.chat_template"] == tiny_model.TEMPLATE
    assert found["llama.context_length"] == tiny_model.CONTEXT
    assert sum(written_bytes) == sum(tensor.n_bytes for tensor in GGUFReader(tmp_path / "out.gguf").tensors)


@pytest.mark.parametrize(("kind", "types"), [("q8_0", {"F32", "Q8_0"}), ("q4_k_m", {"F32", "Q4_K", "Q6_K"})])
def test_a_quantised_file_is_smaller_deterministic_and_close(kind, types, tmp_path):
    config = transformers.LlamaConfig(
        **{**SIZES, "hidden_size": 256, "intermediate_size": 512, "initializer_range": 0.05}
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    model.save_pretrained(tmp_path / "source")
    tiny_model.write_tokenizer(tmp_path / "source")
    convert(tmp_path / "source", tmp_path / "f16.gguf", outtype="f16")
    done = [quantise(tmp_path / "f16.gguf", tmp_path / f"{n}.gguf", kind) for n in range(2)]
    assert (tmp_path / "0.gguf").read_bytes() == (tmp_path / "1.gguf").read_bytes()
    assert set(done[0].parameters["types"]) == types
    assert (tmp_path / "0.gguf").stat().st_size < 0.62 * (tmp_path / "f16.gguf").stat().st_size
    _require_near_or_equal(tmp_path / "0.gguf", tmp_path / "f16.gguf")
    assert worst_difference(model, tmp_path / "0.gguf", step=20) < {"q8_0": 0.2, "q4_k_m": 1.5}[kind]
    with pytest.raises(Refused, match="quantise from"):
        quantise(tmp_path / "0.gguf", tmp_path / "again.gguf", kind)
    assert not (tmp_path / "again.gguf").exists()


def _require_near_or_equal(quantised, original):
    """gguf-py as the judge: Q8_0 equals its own quantiser byte for byte, Q4_K and Q6_K decode near the weights."""
    floats = {tensor.name: np.asarray(tensor.data, "f4") for tensor in GGUFReader(original).tensors}
    limits = {"Q4_K": 0.09, "Q6_K": 0.025}
    for tensor in GGUFReader(quantised).tensors:
        data, kind = np.asarray(tensor.data), tensor.tensor_type
        if kind.name == "Q8_0":
            assert np.array_equal(data, quants.quantize(floats[tensor.name], kind)), tensor.name
        elif kind.name in limits:
            error = quants.dequantize(data, kind) - floats[tensor.name]
            assert np.sqrt((error**2).mean() / (floats[tensor.name] ** 2).mean()) < limits[kind.name], (
                tensor.name
            )


def test_quantising_what_is_no_gguf_is_malformed(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"no gguf at all" * 9)
    with pytest.raises(Malformed):
        quantise(tmp_path / "x.gguf", tmp_path / "out.gguf", "q8_0")
    with pytest.raises(WrongUsage, match="q3"):
        quantise(tmp_path / "x.gguf", tmp_path / "out.gguf", "q3")


def test_the_lineage_names_source_digest_operation_and_tools(tmp_path):
    source = tiny_model.write_tiny_model(tmp_path / "source")
    conversion = convert(source, tmp_path / "out.gguf")
    model = manifest_of(source)
    predicate = lineage_predicate(conversion, model, datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    assert predicate["issued_at"] == "2026-01-02T03:04:05Z"
    assert predicate["operation"] == "convert"
    assert predicate["source"]["digest"] == {"sha256": model.digest.hex}
    assert predicate["parameters"]["tensors"] == 21
    assert {"steelyard", "gguf", "outtype"} <= predicate["parameters"].keys()
    json.dumps(predicate)


@pytest.mark.skipif(
    not (HELPDESK / "model.safetensors").exists(), reason="the demonstration model is not built yet"
)
def test_the_demonstration_model_keeps_its_log_probabilities_and_tokens(tmp_path):
    convert(HELPDESK, tmp_path / "f16.gguf")
    model = transformers.AutoModelForCausalLM.from_pretrained(HELPDESK, dtype=torch.float32).eval()
    assert worst_difference(model, tmp_path / "f16.gguf", 60) <= 0.02
    convert(HELPDESK, tmp_path / "f32.gguf", outtype="f32")
    assert worst_difference(model, tmp_path / "f32.gguf", 60) <= 5e-3
    oracle = Tokenizer.from_file(str(HELPDESK / "tokenizer.json"))
    judge = LlamaCpp(tmp_path / "f16.gguf")
    for text in HARD_STRINGS:
        assert judge.tokens(text) == oracle.encode(text, add_special_tokens=False).ids, repr(text)


def test_the_source_is_left_as_it_was(tmp_path):
    source = tiny_model.write_tiny_model(tmp_path / "source")
    shutil.copytree(source, tmp_path / "copy")
    convert(source, tmp_path / "out.gguf")
    assert manifest_of(source).digest == manifest_of(tmp_path / "copy").digest
