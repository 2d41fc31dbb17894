import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.errors import Malformed
from steelyard.formats.base import BytesSource
from steelyard.formats.jsonfile import FORMAT, MAX_BYTES, MAX_DEPTH, MAX_VALUES, RULES, examine, parse


def refusal_of(data: bytes) -> str | None:
    """The rule a text breaks, None if it is read."""
    try:
        parse(data)
    except Malformed as error:
        return error.rule
    return None


TEXTS = st.text(st.characters(codec="utf-8"), max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)


@settings(deadline=None)
@given(VALUES, st.booleans(), st.sampled_from([None, 1]))
def test_any_json_value_reads_as_the_standard_library_wrote_it(value, ascii_only, indent):
    assert parse(json.dumps(value, ensure_ascii=ascii_only, indent=indent).encode()) == value


@settings(deadline=None)
@given(st.text(alphabet='[]{}",:\\ abu0d8123e-+.\n', max_size=40))
def test_text_the_standard_library_refuses_we_refuse(text):
    try:
        json.loads(text)
    except ValueError:
        with pytest.raises(Malformed):
            parse(text.encode())


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_read_and_never_crash(data):
    assert refusal_of(data) in {None, *RULES}


@settings(deadline=None)
@given(st.integers(0, 12), st.text(alphabet='[]{}"\\', max_size=12))
def test_depth_counts_brackets_outside_strings_only(depth, noise):
    text = "[" * depth + json.dumps(noise) + "]" * depth
    assert parse(text.encode(), max_depth=depth) == json.loads(text)
    with pytest.raises(Malformed) as caught:
        parse(f"[{text}]".encode(), max_depth=depth)
    assert caught.value.rule == "json/depth"


def test_depth_at_the_limit_is_read_and_one_past_it_refused():
    assert parse(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    with pytest.raises(Malformed) as caught:
        parse(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1))
    assert caught.value.rule == "json/depth"


def test_size_at_the_limit_is_read_and_one_past_it_refused():
    assert parse(b"[1, 2]", max_bytes=6) == [1, 2]
    with pytest.raises(Malformed) as caught:
        parse(b"[1, 2]", max_bytes=5)
    assert caught.value.rule == "json/size"


def test_more_values_than_the_limit_refuse_before_they_are_built():
    with pytest.raises(Malformed) as caught:
        parse(b"[" + b"0," * MAX_VALUES + b"0]")
    assert caught.value.rule == "json/size"


def test_more_strings_than_the_limit_refuse_before_they_are_built():
    with pytest.raises(Malformed) as caught:
        parse(b'""' * (MAX_VALUES + 1))
    assert caught.value.rule == "json/size"


@pytest.mark.parametrize("start", range(5))
def test_strings_across_the_steps_of_the_reader_are_told_from_brackets(start):
    inner = '\\" [ { \\ ' * 8000
    text = json.dumps([" " * start, [inner, [inner, {inner: [[inner] * 9]}]]])
    assert len(text) > 3 << 18
    assert parse(text.encode(), max_depth=6) == json.loads(text)
    with pytest.raises(Malformed) as caught:
        parse(text.encode(), max_depth=5)
    assert caught.value.rule == "json/depth"


def test_file_over_the_limit_is_refused_unread():
    class Large:
        size = MAX_BYTES + 1

        def read(self, offset: int, size: int) -> bytes:
            raise AssertionError("a file over the limit is not read")

    with pytest.raises(Malformed) as caught:
        FORMAT.read(Large(), "x.json")
    assert caught.value.rule == "json/size"


def test_syntax_error_names_its_byte():
    with pytest.raises(Malformed) as caught:
        parse('{"é": ?}'.encode())
    assert caught.value.offset == 7


def test_plain_file_of_unknown_name_is_clean():
    report = FORMAT.read(BytesSource(b'{"a": [1, {"b": null}]}'), "notes.json")
    assert report.findings == ()
    assert report.facts == {"type": "object", "entries": 1}


@pytest.mark.parametrize(
    "value",
    [
        {"auto_map": None},
        {"auto_map": {}},
        {"trust_remote_code": False},
        {"custom_generate": ""},
        {"_attn_implementation": "sdpa"},
        {
            "auto_mapping": {
                "base_model_class": "LlamaModel",
                "parent_library": "transformers.models.llama.modeling_llama",
            }
        },
        {"activation_function": "gelu_new"},
        {"activation_function": "torch.nn.modules.activation.Tanh"},
        {"megatron_core": "megatron.core", "auto_mapping": None},
        {"vocab": {"auto_map": 17, "__class__": 18, "_target_": 19}},
        {"_type": "prompt", "template": "{x}", "template_format": "f-string"},
        {"_type": "table-file", "path": "media/table/predictions.json"},
        {"text": "auto_map _target_ __reduce__ os.system"},
    ],
)
def test_words_that_run_nothing_are_clean(value):
    assert examine(value) == ()


@pytest.mark.parametrize(
    ("head", "path", "claimed"),
    [
        (b'  {"a": 1}', "any.json", True),
        (b"[1]", "any.json", True),
        (b'{"a": 1}', "any.txt", False),
        (b'{"a": 1}', "config.json", False),
        (b'{"a": 1}', "model.safetensors.index.json", False),
        (b'{"a": 1}', "tokenizer.json", False),
        (b"\x80\x04.", "any.json", False),
    ],
)
def test_name_and_content_decide_the_claim(head, path, claimed):
    assert FORMAT.sniff(head, path) is claimed


def test_settings_of_an_editor_without_commands_are_clean():
    data = b'{"editor.tabSize": 4, "command": ""}'
    assert FORMAT.read(BytesSource(data), ".vscode/settings.json").findings == ()
