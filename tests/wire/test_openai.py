"""OpenAI's wire: what is parsed, what refuses, and that what we write fits the published shapes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from steelyard.digest import Digest
from steelyard.errors import Malformed
from steelyard.wire import openai
from steelyard.wire.chat import Message, Usage

USER = [{"role": "user", "content": "Hello"}]
REPLY = openai.Reply("chatcmpl-1", 1_700_000_000, "gpt-4o", Digest("oms-sha256", "ab" * 32))

# Written from OpenAI's published OpenAPI document: required fields and their types; null where it says nullable.
USAGE = {
    "type": "object",
    "required": ["prompt_tokens", "completion_tokens", "total_tokens"],
    "properties": {
        name: {"type": "integer"} for name in ("prompt_tokens", "completion_tokens", "total_tokens")
    },
}
FINISH = ["stop", "length", "tool_calls", "content_filter", "function_call"]


def object_of(**properties):
    required = [name for name in properties if not name.endswith("_")]
    return {
        "type": "object",
        "required": required,
        "properties": {name.rstrip("_"): value for name, value in properties.items()},
    }


COMPLETION = object_of(
    id={"type": "string"},
    object={"const": "chat.completion"},
    created={"type": "integer"},
    model={"type": "string"},
    choices={
        "type": "array",
        "minItems": 1,
        "items": object_of(
            index={"type": "integer"},
            finish_reason={"enum": FINISH},
            logprobs={"type": ["object", "null"]},
            message=object_of(
                role={"const": "assistant"},
                content={"type": ["string", "null"]},
                refusal={"type": ["string", "null"]},
            ),
        ),
    },
    usage_=USAGE,
    system_fingerprint_={"type": "string"},
)
CHUNK = object_of(
    id={"type": "string"},
    object={"const": "chat.completion.chunk"},
    created={"type": "integer"},
    model={"type": "string"},
    choices={
        "type": "array",
        "items": object_of(
            index={"type": "integer"},
            finish_reason={"enum": [*FINISH, None]},
            delta=object_of(
                role_={"enum": ["developer", "system", "user", "assistant", "tool"]},
                content_={"type": ["string", "null"]},
            ),
        ),
    },
    usage_={"anyOf": [USAGE, {"type": "null"}]},
)
MODEL = object_of(
    id={"type": "string"},
    object={"const": "model"},
    created={"type": "integer"},
    owned_by={"type": "string"},
)
MODELS = object_of(object={"const": "list"}, data={"type": "array", "items": MODEL})
NULLABLE = {"type": ["string", "null"]}
ERROR = object_of(
    error=object_of(message={"type": "string"}, type={"type": "string"}, param=NULLABLE, code=NULLABLE)
)


def check(schema, data):
    Draft202012Validator(schema).validate(data)


def parse(**fields):
    return openai.parse_chat(json.dumps({"model": "gpt-4o", "messages": USER, **fields}).encode())


def refused(data):
    with pytest.raises(Malformed) as caught:
        openai.parse_chat(data)
    return caught.value.rule.removeprefix("openai/")


def refused_fields(**fields):
    return refused(json.dumps({"model": "gpt-4o", "messages": USER, **fields}).encode())


def events_of(data):
    return [part.removeprefix("data: ") for part in data.decode().split("\n\n") if part]


@given(
    st.lists(st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text()), min_size=1, max_size=5)
)
def test_messages_arrive_as_sent(turns):
    body = {"model": "m", "messages": [{"role": role, "content": text} for role, text in turns]}
    data = json.dumps(body, ensure_ascii=False).encode("utf-8", "surrogatepass")
    try:
        data.decode()
    except UnicodeDecodeError:
        assert refused(data) == "body"
        return
    assert openai.parse_chat(data).messages == tuple(Message(role, text) for role, text in turns)


@given(st.binary(max_size=200))
def test_any_bytes_parse_or_are_malformed(data):
    with pytest.raises(Malformed):
        openai.parse_chat(data)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=3),
        lambda x: st.lists(x) | st.dictionaries(st.text(max_size=9), x),
        max_leaves=8,
    )
)
def test_any_json_in_any_parameter_parses_or_is_malformed(value):
    for name in (
        "model",
        "messages",
        "stop",
        "seed",
        "temperature",
        "response_format",
        "stream_options",
        "n",
    ):
        body = {"model": "m", "messages": USER, "stream": True, name: value}
        data = json.dumps(body).encode()
        try:
            chat = openai.parse_chat(data)
        except Malformed:
            continue
        assert chat.body[name] == value


def test_all_parameters_are_read():
    chat = parse(
        max_completion_tokens=7,
        temperature=0.5,
        top_p=1,
        seed=-3,
        stop=["a", "b"],
        stream=True,
        stream_options={"include_usage": True},
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array"}}},
    )
    assert (chat.max_tokens, chat.temperature, chat.top_p, chat.seed) == (7, 0.5, 1.0, -3)
    assert (chat.stop, chat.stream, chat.include_usage) == (("a", "b"), True, True)
    assert chat.json_schema == {"type": "array"}


def test_absent_and_null_parameters_are_absent():
    nulls = dict.fromkeys(
        ("max_tokens", "temperature", "top_p", "seed", "stop", "stream", "n", "tools", "logprobs")
    )
    for chat in (parse(), parse(**nulls)):
        assert (chat.max_tokens, chat.temperature, chat.seed, chat.stop, chat.stream) == (
            None,
            None,
            None,
            (),
            False,
        )


def test_unknown_fields_stay_in_the_body():
    assert parse(future_field={"deep": [1]}).body["future_field"] == {"deep": [1]}


def test_text_parts_are_joined():
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    assert parse(messages=[{"role": "user", "content": parts}]).messages[0].content == "Hello"


def test_json_object_asks_for_any_object():
    assert parse(response_format={"type": "json_object"}).json_schema == {"type": "object"}
    assert parse(response_format={"type": "text"}).json_schema is None


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"model": ""}, "model"),
        ({"model": "x" * (openai.MAX_MODEL_CHARS + 1)}, "model"),
        ({"model": 4}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": USER * (openai.MAX_MESSAGES + 1)}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [*USER, {"role": "tool", "content": "x"}]}, "messages[1].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        (
            {
                "messages": [
                    {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}
                ]
            },
            "messages[0].content[0].type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
            "messages[0].content[0].text",
        ),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]}, "messages[0].tool_calls"),
        ({"n": 2}, "n"),
        ({"n": True}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"logprobs": True}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logit_bias": {"1": 2}}, "logit_bias"),
        ({"presence_penalty": 0.1}, "presence_penalty"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"seed": 1 << 63}, "seed"),
        ({"stop": ["a"] * (openai.MAX_STOPS + 1)}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": "x" * (openai.MAX_STOP_CHARS + 1)}, "stop"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": 1}, "stream_options"),
        ({"response_format": {"type": "grammar"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ],
    ids=str,
)
def test_wrong_parameter_is_named(fields, place):
    assert refused_fields(**fields) == place


@pytest.mark.parametrize(
    "fields",
    [
        {"n": 1},
        {"tools": []},
        {"logprobs": False},
        {"presence_penalty": 0.0},
        {"frequency_penalty": 0},
        {"logit_bias": {}},
        {"modalities": ["text"]},
        {"tool_choice": "none"},
        {"temperature": 2},
        {"top_p": 0},
        {"stop": "x" * openai.MAX_STOP_CHARS},
        {"stop": ["a"] * openai.MAX_STOPS},
        {"seed": (1 << 63) - 1},
        {"max_tokens": 3, "max_completion_tokens": 3},
        {"model": "x" * openai.MAX_MODEL_CHARS},
    ],
    ids=str,
)
def test_parameter_at_its_limit_or_without_effect_is_accepted(fields):
    assert parse(**fields).body.items() >= fields.items()


def nested(depth):
    # The body and `metadata` hold it: depth counts every object and array.
    inner = "[" * (depth - 1) + "]" * (depth - 1)
    return f'{{"model":"m","messages":[{{"role":"user","content":"x"}}],"metadata":{inner}}}'.encode()


def test_depth_at_the_limit_is_read_and_one_more_refuses():
    assert openai.parse_chat(nested(openai.MAX_DEPTH)).model == "m"
    assert refused(nested(openai.MAX_DEPTH + 1)) == "body"


def test_containers_at_the_limit_are_read_and_one_more_refuses():
    def body(count):  # three more: the body, messages and its one message; one for the list itself
        return nested(2)[:-3] + b"[" + b",".join([b"[]"] * (count - 4)) + b"]}"

    assert openai.parse_chat(body(openai.MAX_CONTAINERS)).model == "m"
    assert refused(body(openai.MAX_CONTAINERS + 1)) == "body"


def test_brackets_inside_text_are_no_depth():
    text = '[{"' * 500 + "\\"
    assert parse(messages=[{"role": "user", "content": text}]).messages[0].content == text


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b'{"model":"m"} {}',
        b"\xff\xfe",
        b'{"model":"\xc3\x28"}',
        b"\x00",
        b'{"model":"a","model":"b","messages":[{"role":"user","content":"x"}]}',
        b'{"model":"m","messages":[{"role":"user","content":"x"}],"temperature":NaN}',
        b'{"model":"m","messages":[{"role":"user","content":"x"}],"x":1e999}',
        b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"model":"m","messages":[{"role":"user","content":"x"}],"x":' + b"9" * 5000 + b"}",
        b'{"model":"m","messages":[{"role":"user","content":"a\x00b"}]}',
    ],
    ids=lambda data: data[:40].hex(),
)
def test_bytes_that_are_no_json_object_refuse(data):
    assert refused(data) == "body"


def test_surrogate_pair_is_one_character():
    body = b'{"model":"m","messages":[{"role":"user","content":"\\ud83d\\ude42"}]}'
    assert openai.parse_chat(body).messages[0].content == "\N{SLIGHTLY SMILING FACE}"


@given(st.text(), st.sampled_from(["stop", "length"]), st.integers(0, 1 << 20), st.integers(0, 1 << 20))
def test_completion_has_the_published_shape(text, finish_reason, prompt, completion):
    answer = json.loads(REPLY.completion(text, finish_reason, Usage(prompt, completion)))
    check(COMPLETION, answer)
    assert answer["choices"][0]["message"]["content"] == text
    assert answer["usage"]["total_tokens"] == prompt + completion


@given(st.lists(st.text(min_size=1), max_size=5), st.booleans())
def test_stream_has_the_published_shape_and_the_whole_text(texts, include_usage):
    stream = openai.Stream(REPLY, include_usage)
    data = stream.start() + b"".join(map(stream.text, texts)) + stream.finish("stop", Usage(3, len(texts)))
    *events, end = events_of(data)
    chunks = [json.loads(event) for event in events]
    for chunk in chunks:
        check(CHUNK, chunk)
    assert end == "[DONE]"
    deltas = [choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"]]
    assert "".join(deltas) == "".join(texts)
    usages = [chunk["usage"] for chunk in chunks if chunk.get("usage")]
    total = [{"prompt_tokens": 3, "completion_tokens": len(texts), "total_tokens": 3 + len(texts)}]
    assert usages == (total if include_usage else [])
    assert all(("usage" in chunk) == include_usage for chunk in chunks)


@given(st.text())
def test_no_text_can_end_an_event(text):
    (event,) = events_of(openai.Stream(REPLY, False).text(text))
    assert json.loads(event)["choices"][0]["delta"]["content"] == text


def test_lists_and_errors_have_the_published_shape():
    check(MODELS, json.loads(openai.models(["b", "a"], 1)))
    check(MODEL, json.loads(openai.model("a", 1)))
    check(ERROR, json.loads(openai.error("no", "invalid_request_error")))
    error = json.loads(openai.error("no", "permission_error", param="model", code="c", extra={"rules": []}))
    assert error["error"] == {
        "message": "no",
        "type": "permission_error",
        "param": "model",
        "code": "c",
        "rules": [],
    }
