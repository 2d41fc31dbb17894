"""Hostile JSON around a model: configurations, indexes, tokenizers. Each is made here; none is loaded."""

import json

import pytest

from steelyard.errors import Malformed
from steelyard.formats import hf_config, jsonfile, tokenizer
from steelyard.formats.base import BytesSource, Finding

FORMATS = (jsonfile.FORMAT, hf_config.FORMAT, tokenizer.FORMAT)


def read(path: str, data: bytes) -> tuple[Finding, ...]:
    """The findings of the one format that claims the file."""
    (claims,) = [each for each in FORMATS if each.sniff(data[:4096], path)]
    report = claims.read(BytesSource(data), path)
    assert {finding.rule for finding in report.findings} <= set(claims.rules)
    return report.findings


BROKEN = {
    "brackets_100000_deep": ("json/depth", b"[" * 100_000 + b"]" * 100_000),
    "objects_100000_deep": ("json/depth", b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "brackets_never_closed": ("json/depth", b"[" * 100_000),
    "few_brackets_never_closed": ("json/syntax", b"[[["),
    "strings_never_closed": ("json/syntax", b'["' + b'\\"' * 100_000),
    "depth_hidden_behind_quotes": ("json/depth", b'["\\"",' * 100_000 + b"1" + b"]" * 100_000),
    "duplicate_auto_map_after_null": (
        "json/duplicate-key",
        b'{"auto_map": {"A": "evil.B"}, "auto_map": null}',
    ),
    "duplicate_by_an_escape": ("json/duplicate-key", b'{"auto_map": 1, "auto\\u005fmap": {}}'),
    "not_a_number": ("json/number", b'{"a": NaN}'),
    "minus_infinity": ("json/number", b'{"a": [-Infinity]}'),
    "beyond_a_double": ("json/number", b'{"a": 1e999}'),
    "a_million_digits": ("json/number", b'{"a": ' + b"7" * 10**6 + b"}"),
    "invalid_utf8": ("json/encoding", b'{"a": "\xc3\x28"}'),
    "overlong_utf8": ("json/encoding", b'{"a": "\xc0\xaf"}'),
    "byte_order_mark": ("json/encoding", b'\xef\xbb\xbf{"a": 1}'),
    "utf16": ("json/encoding", b"{" + '"a": 1}'.encode("utf-16")),
    "lone_surrogate": ("json/surrogate", b'{"a": "\\udc00"}'),
    "lone_surrogate_as_key": ("json/surrogate", b'{"\\ud83d": 1}'),
    "two_values": ("json/syntax", b'{"a": 1}{"auto_map": 2}'),
    "comment": ("json/syntax", b'{"a": 1 /* auto_map */}'),
    "trailing_comma": ("json/syntax", b'{"a": [1,]}'),
    "single_quotes": ("json/syntax", b"{'a': 1}"),
    "control_character_in_a_string": ("json/syntax", b'{"a": "\x00"}'),
    "pickle_after_the_object": ("json/encoding", b'{"a": 1}\x80\x04.'),
}


@pytest.mark.parametrize(
    "path", ["config.json", "any.json", "tokenizer.json", "model.safetensors.index.json"]
)
@pytest.mark.parametrize("name", BROKEN)
def test_broken_json_is_refused_under_every_name(name, path):
    rule, data = BROKEN[name]
    with pytest.raises(Malformed) as caught:
        read(path, data)
    assert caught.value.rule == rule


REMOTE_CODE = {
    "auto_map_of_a_local_module": ("config.json", {"auto_map": {"AutoModel": "modeling_evil.EvilModel"}}),
    "auto_map_of_another_repository": (
        "config.json",
        {"auto_map": {"AutoModel": "attacker/repo--modeling.Evil"}},
    ),
    "auto_map_of_a_tokenizer": ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["tok.Tok", None]}}),
    "auto_map_of_a_processor": ("preprocessor_config.json", {"auto_map": {"AutoImageProcessor": "evil.P"}}),
    "auto_map_nested_in_a_vision_config": (
        "config.json",
        {"vision_config": {"auto_map": {"AutoConfig": "evil.C"}}},
    ),
    "auto_map_deep_in_lists": ("notes.json", {"a": [[{"b": [{"auto_map": {"AutoModel": "evil.M"}}]}]]}),
    "auto_map_in_a_file_of_any_name": ("backup.json", {"auto_map": {"AutoModel": "evil.M"}}),
    "auto_map_is_a_string": ("config.json", {"auto_map": "evil.M"}),
    "custom_pipelines": (
        "config.json",
        {"custom_pipelines": {"x": {"impl": "evil.Pipeline", "pt": ["AutoModel"]}}},
    ),
    "custom_generate": ("generation_config.json", {"custom_generate": "attacker/generate"}),
    "trust_remote_code": ("tokenizer_config.json", {"trust_remote_code": True}),
    "trust_remote_code_as_text": ("config.json", {"trust_remote_code": "yes"}),
    "hydra_target": ("config.json", {"model": {"_target_": "os.system", "command": "true"}}),
    "jsonpickle_reduce": (
        "state.json",
        {"py/reduce": [{"py/function": "os.system"}, {"py/tuple": ["true"]}]},
    ),
    "reduce_key": ("config.json", {"__reduce__": ["os.system", "true"]}),
    "langchain_constructor": (
        "chain.json",
        {"lc": 1, "type": "constructor", "id": ["langchain", "x"], "kwargs": {}},
    ),
    "langchain_shell_chain_of_the_older_form": (
        "prompt.json",
        {"_type": "llm_bash_chain", "llm": {"_type": "openai"}},
    ),
    "langchain_prompt_rendered_by_jinja": (
        "prompt.json",
        {"_type": "prompt", "template_format": "jinja2", "template": "{{ x }}", "input_variables": ["x"]},
    ),
    "task_an_editor_runs_on_opening_the_folder": (
        ".vscode/tasks.json",
        {"tasks": [{"type": "shell", "command": "true", "runOptions": {"runOn": "folderOpen"}}]},
    ),
    "command_after_a_container_is_made": (".devcontainer/devcontainer.json", {"postCreateCommand": "true"}),
    "kernel_from_the_hub": ("config.json", {"_attn_implementation": "attacker/flash-attn"}),
    "adapter_imports_any_library": (
        "adapter_config.json",
        {"peft_type": "LORA", "auto_mapping": {"base_model_class": "popen", "parent_library": "os"}},
    ),
    "adapter_imports_any_module": ("adapter_config.json", {"peft_type": "LORA", "megatron_core": "evil"}),
    "activation_is_any_function": ("2_Dense/config.json", {"activation_function": "os.getcwd"}),
    "activation_reaches_through_torch": ("2_Dense/config.json", {"activation_function": "torch.nn.os.abort"}),
    "module_type_of_the_repository": (
        "modules.json",
        [{"idx": 0, "name": "0", "path": "", "type": "evil_mod.Evil"}],
    ),
    "auto_map_in_a_tokenizer": (
        "tokenizer.json",
        {"auto_map": {"a": "evil.T"}, "model": {"type": "WordLevel", "vocab": {}}},
    ),
}


@pytest.mark.parametrize("name", REMOTE_CODE)
def test_configuration_that_runs_code_is_found(name):
    path, value = REMOTE_CODE[name]
    assert "config/remote-code" in {finding.rule for finding in read(path, json.dumps(value).encode())}


def test_remote_code_spelled_with_escapes_is_found():
    data = b'{"\\u0061uto_m\\u0061p": {"AutoModel": "evil.M"}}'
    assert [finding.rule for finding in read("config.json", data)] == ["config/remote-code"]


def test_message_names_the_other_repository():
    (finding,) = read("config.json", b'{"auto_map": {"AutoModel": "attacker/repo--modeling.Evil"}}')
    assert "'attacker/repo'" in finding.message
    assert "'modeling.Evil'" in finding.message


PATHS = [
    ".git/x.safetensors", ".GitHub/x.safetensors",
    "../../../../etc/passwd", "/etc/passwd", "a/../../b", "..", ".", "", "sub//model", "C:\\windows\\x", "c:evil",
    "a\\..\\b", "https://example.org/x", "file:///etc/passwd", "a\0b", "a\nb", "./x", "x/.",
]  # fmt: skip


@pytest.mark.parametrize("shard", PATHS)
def test_index_that_leaves_its_folder_is_found(shard):
    data = json.dumps({"metadata": {}, "weight_map": {"a": shard}}).encode()
    assert [finding.rule for finding in read("model.safetensors.index.json", data)] == ["config/index-path"]


def test_module_folder_outside_the_model_is_found():
    modules = [{"idx": 0, "name": "0", "path": "../x", "type": "sentence_transformers.models.Pooling"}]
    assert [finding.rule for finding in read("modules.json", json.dumps(modules).encode())] == [
        "config/index-path"
    ]


BPE = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]]}
TOKEN = {"id": 3, "content": "<s>", "special": True}

SHAPES = {
    "config_is_a_list": ("config/shape", "config.json", []),
    "index_without_a_map": ("config/shape", "model.safetensors.index.json", {"metadata": {}}),
    "index_of_numbers": ("config/shape", "model.safetensors.index.json", {"weight_map": {"a": 1}}),
    "modules_are_an_object": ("config/shape", "modules.json", {"a": 1}),
    "a_trillion_layers": ("config/dimensions", "config.json", {"num_hidden_layers": 10**12}),
    "negative_width": ("config/dimensions", "config.json", {"text_config": {"hidden_size": -1}}),
    "vocabulary_size_as_text": ("config/dimensions", "config.json", {"vocab_size": "__import__('os')"}),
    "two_tokens_of_one_id": ("config/vocabulary", "vocab.json", {"a": 0, "b": 0}),
    "token_id_negative": ("config/vocabulary", "added_tokens.json", {"a": -1}),
    "token_id_beyond_any_embedding": ("config/vocabulary", "vocab.json", {"a": 2**31}),
    "added_token_id_is_no_number": (
        "config/vocabulary",
        "tokenizer_config.json",
        {"added_tokens_decoder": {"x": {}}},
    ),
    "chat_template_is_a_number": (
        "config/chat-template-shape",
        "tokenizer_config.json",
        {"chat_template": 1},
    ),
    "named_template_without_text": (
        "config/chat-template-shape",
        "tokenizer_config.json",
        {"chat_template": [{"name": "default"}]},
    ),
    "tokenizer_without_a_model": ("tokenizer/structure", "tokenizer.json", {"version": "1.0"}),
    "tokenizer_with_a_further_key": ("tokenizer/structure", "tokenizer.json", {"model": BPE, "plugin": {}}),
    "model_of_unknown_type": (
        "tokenizer/structure",
        "tokenizer.json",
        {"model": {"type": "Python", "vocab": {}}},
    ),
    "model_type_is_a_list": (
        "tokenizer/structure",
        "tokenizer.json",
        {"model": {"type": ["BPE"], "vocab": {}}},
    ),
    "normaliser_of_unknown_type": (
        "tokenizer/component",
        "tokenizer.json",
        {"normalizer": {"type": "Custom"}, "model": BPE},
    ),
    "decoder_hidden_in_a_sequence": (
        "tokenizer/component",
        "tokenizer.json",
        {"decoder": {"type": "Sequence", "decoders": [{"type": "os.system"}]}, "model": BPE},
    ),
    "exponential_pattern": (
        "tokenizer/regex",
        "tokenizer.json",
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(a+)+$"}}, "model": BPE},
    ),
    "vocabulary_of_lists": (
        "tokenizer/vocabulary",
        "tokenizer.json",
        {"model": {**BPE, "vocab": {"a": [0]}, "merges": []}},
    ),
    "unigram_unknown_outside": (
        "tokenizer/vocabulary",
        "tokenizer.json",
        {"model": {"type": "Unigram", "unk_id": 5, "vocab": [["a", 0.0]]}},
    ),
    "unigram_score_is_text": (
        "tokenizer/vocabulary",
        "tokenizer.json",
        {"model": {"type": "Unigram", "vocab": [["a", "0"]]}},
    ),
    "bpe_ids_twice": (
        "tokenizer/duplicate-id",
        "tokenizer.json",
        {"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": []}},
    ),
    "unigram_piece_twice": (
        "tokenizer/duplicate-id",
        "tokenizer.json",
        {"model": {"type": "Unigram", "vocab": [["a", 0.0], ["a", 1.0]]}},
    ),
    "added_token_takes_the_id_of_another": (
        "tokenizer/duplicate-id",
        "tokenizer.json",
        {"model": BPE, "added_tokens": [{"id": 0, "content": "<s>"}]},
    ),
    "added_token_twice": (
        "tokenizer/duplicate-id",
        "tokenizer.json",
        {"model": BPE, "added_tokens": [TOKEN, {**TOKEN, "id": 4}]},
    ),
    "merge_of_a_token_that_is_none": (
        "tokenizer/merges",
        "tokenizer.json",
        {"model": {**BPE, "merges": [["a", "x"]]}},
    ),
    "merge_of_three": ("tokenizer/merges", "tokenizer.json", {"model": {**BPE, "merges": ["a b a"]}}),
}


@pytest.mark.parametrize("name", SHAPES)
def test_hostile_shape_is_found_by_its_rule(name):
    rule, path, value = SHAPES[name]
    assert [finding.rule for finding in read(path, json.dumps(value).encode())] == [rule]


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        [{"name": "default", "template": "ok"}, {"name": "tool_use", "template": "{{ ''.__class__ }}"}],
        {"default": "{{ cycler.__init__.__globals__ }}"},
    ],
)
@pytest.mark.parametrize(
    "path", ["tokenizer_config.json", "chat_template.json", "processor_config.json", "x.json"]
)
def test_hostile_chat_template_is_found_wherever_it_stands(path, template):
    findings = read(path, json.dumps({"chat_template": template}).encode())
    assert findings
    assert {finding.member for finding in findings} == {"chat_template"}


def test_findings_are_bounded():
    value = {str(number): {"auto_map": {"A": "evil.M"}} for number in range(10_000)}
    assert len(read("any.json", json.dumps(value).encode())) == jsonfile.MAX_FINDINGS


@pytest.mark.parametrize(
    ("path", "data"),
    [
        ("merges.txt", b"#version: 0.2\na b c\n"),
        ("merges.txt", b"#version: 0.2\nimport-os\n"),
    ],
)
def test_lines_that_are_no_merges_are_found(path, data):
    assert [finding.rule for finding in read(path, data)] == ["tokenizer/text"]


@pytest.mark.parametrize("data", [b"a\nb\0\n", b"a\n\xff\xfe\n", b"a" * 5000])
def test_token_list_that_is_no_text_is_refused(data):
    with pytest.raises(Malformed) as caught:
        tokenizer.FORMAT.read(BytesSource(data), "vocab.txt")
    assert caught.value.rule == "tokenizer/text"
