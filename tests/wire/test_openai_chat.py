"""OpenAI's wire: what is parsed, what refuses, and that what we write fits the published shapes."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from steelyard.digest import Digest
from steelyard.errors import Malformed
from steelyard.wire import openai
from steelyard.wire.body import MAX_CONTAINERS, MAX_DEPTH
from steelyard.wire.call import Problem, Reply
from steelyard.wire.openai_chat import MAX_CHOICES, MAX_MESSAGES, MAX_TOOLS, ChatEmitter
from steelyard.wire.openai_fields import MAX_MODEL_CHARS, MAX_STOP_CHARS, MAX_STOPS

USER = [{"role": "user", "content": "Hello"}]
REPLY = Reply("1", 1_700_000_000, "gpt-4o", Digest("oms-sha256", "ab" * 32))
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}

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
    return openai.parse_chat(json.dumps({"model": "gpt-4o", "messages": USER, **fields}).encode()).call


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
    assert openai.parse_chat(data).call.body == body


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
        "tools",
        "tool_choice",
        "logit_bias",
        "metadata",
    ):
        body = {"model": "m", "messages": USER, "stream": True, name: value}
        data = json.dumps(body).encode()
        try:
            call = openai.parse_chat(data).call
        except Malformed:
            continue
        assert call.body[name] == value


def test_what_the_wire_decides_is_read():
    call = parse(stream=True)
    assert (call.kind, call.model, call.stream) == ("chat", "gpt-4o", True)
    assert not parse().stream


def test_null_parameters_are_as_good_as_absent():
    names = (
        "max_tokens",
        "temperature",
        "top_p",
        "seed",
        "stop",
        "stream",
        "n",
        "tools",
        "logprobs",
        "tool_choice",
    )
    assert not parse(**dict.fromkeys(names)).stream


def test_unknown_fields_stay_in_the_body():
    assert parse(future_field={"deep": [1]}).body["future_field"] == {"deep": [1]}


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"model": ""}, "model"),
        ({"model": "x" * (MAX_MODEL_CHARS + 1)}, "model"),
        ({"model": 4}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": USER * (MAX_MESSAGES + 1)}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [*USER, {"role": "robot", "content": "x"}]}, "messages[1].role"),
        ({"messages": [*USER, {"role": "tool", "content": "x"}]}, "messages[1].tool_call_id"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{}]}]}, "messages[0].content[0]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            "messages[0].content[0].image_url",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
            "messages[0].content[0].text",
        ),
        (
            {"messages": [{"role": "assistant", "content": "", "tool_calls": [{}]}]},
            "messages[0].tool_calls[0].id",
        ),
        ({"n": 0}, "n"),
        ({"n": MAX_CHOICES + 1}, "n"),
        ({"n": True}, "n"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [TOOL] * (MAX_TOOLS + 1)}, "tools"),
        ({"tools": [TOOL], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"logprobs": "yes"}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"seed": 1 << 63}, "seed"),
        ({"stop": ["a"] * (MAX_STOPS + 1)}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": "x" * (MAX_STOP_CHARS + 1)}, "stop"),
        ({"stream": "yes"}, "stream"),
        (
            {
                "tools": [{"type": "custom", "function": {"name": []}}],
                "tool_choice": {"type": "function", "function": {"name": "look"}},
            },
            "tool_choice",
        ),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": 1}, "stream_options"),
        ({"response_format": {"type": "grammar"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    ],
    ids=str,
)
def test_wrong_parameter_is_named(fields, place):
    assert refused_fields(**fields) == place


@pytest.mark.parametrize(
    "fields",
    [
        {"n": MAX_CHOICES},
        {"tools": [TOOL] * MAX_TOOLS, "tool_choice": "required"},
        {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "look"}}},
        {"logprobs": True, "top_logprobs": 20},
        {"presence_penalty": -2},
        {"frequency_penalty": 2},
        {"logit_bias": {"1": -100, "2": 100}},
        {"modalities": ["text"]},
        {"tool_choice": "none"},
        {"temperature": 2},
        {"top_p": 0},
        {"stop": "x" * MAX_STOP_CHARS},
        {"stop": ["a"] * MAX_STOPS},
        {"seed": (1 << 63) - 1},
        {"max_tokens": 3, "max_completion_tokens": 3},
        {"model": "x" * MAX_MODEL_CHARS},
    ],
    ids=str,
)
def test_parameter_at_its_limit_or_without_effect_is_accepted(fields):
    assert parse(**fields).body.items() >= fields.items()


def nested(depth):
    # The body and `future` hold it: depth counts every object and array.
    inner = "[" * (depth - 1) + "]" * (depth - 1)
    return f'{{"model":"m","messages":[{{"role":"user","content":"x"}}],"future":{inner}}}'.encode()


def test_depth_at_the_limit_is_read_and_one_more_refuses():
    assert openai.parse_chat(nested(MAX_DEPTH)).call.model == "m"
    assert refused(nested(MAX_DEPTH + 1)) == "body"


def test_containers_at_the_limit_are_read_and_one_more_refuses():
    def body(count):  # three more: the body, messages and its one message; one for the list itself
        return nested(2)[:-3] + b"[" + b",".join([b"[]"] * (count - 4)) + b"]}"

    assert openai.parse_chat(body(MAX_CONTAINERS)).call.model == "m"
    assert refused(body(MAX_CONTAINERS + 1)) == "body"


def test_brackets_inside_text_are_no_depth():
    text = '[{"' * 500 + "\\"
    assert parse(messages=[{"role": "user", "content": text}]).body["messages"][0]["content"] == text


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
    assert openai.parse_chat(body).call.body["messages"][0]["content"] == "\N{SLIGHTLY SMILING FACE}"


def usage(prompt, completion):
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def chunk(delta=None, finish=None, index=0, **fields):
    choices = [] if delta is None else [{"index": index, "delta": delta, "finish_reason": finish}]
    return {"id": "engine", "model": "/path", "object": "x", "created": 0, "choices": choices, **fields}


@given(st.text(), st.sampled_from(["stop", "length"]), st.integers(0, 1 << 20), st.integers(0, 1 << 20))
def test_completion_has_the_published_shape_under_the_callers_name(text, finish, prompt, completion):
    message = {"role": "assistant", "content": text, "reasoning_content": "hm"}
    engine = {
        "id": "engine", "object": "x", "created": 0, "model": "/path", "usage": usage(prompt, completion),
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
    }  # fmt: skip
    answer = json.loads(ChatEmitter(REPLY).whole(engine))
    check(COMPLETION, answer)
    assert (answer["id"], answer["model"], answer["created"]) == ("chatcmpl-1", "gpt-4o", REPLY.created)
    assert answer["choices"][0]["message"] == {**message, "refusal": None}
    assert answer["usage"]["total_tokens"] == prompt + completion


@given(st.lists(st.text(min_size=1), max_size=5), st.booleans(), st.data())
def test_stream_has_the_published_shape_however_its_chunks_are_cut(texts, include_usage, data):
    chunks = [chunk({"content": text}) for text in texts]
    chunks += [chunk({}, "stop"), chunk(usage=usage(3, len(texts)))]
    streams = []
    for _ in range(2):
        emitter, rest = ChatEmitter(REPLY, include_usage=include_usage), json.loads(json.dumps(chunks))
        stream = emitter.start()
        while rest:
            size = data.draw(st.integers(1, len(rest)))
            stream += emitter.chunks(rest[:size])
            rest = rest[size:]
        streams.append(stream + emitter.end())
    assert streams[0] == streams[1]
    *events, end = events_of(streams[0])
    found = [json.loads(event) for event in events]
    for event in found:
        check(CHUNK, event)
    assert end == "[DONE]"
    deltas = [choice["delta"] for event in found for choice in event["choices"]]
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta.get("content", "") for delta in deltas) == "".join(texts)
    usages = [event["usage"] for event in found if event.get("usage")]
    assert usages == ([usage(3, len(texts))] if include_usage else [])
    assert all(("usage" in event) == include_usage for event in found)


@given(st.text())
def test_no_text_can_end_an_event(text):
    emitter = ChatEmitter(REPLY)
    (event,) = events_of(emitter.start() + emitter.chunks([chunk({"content": text})]))
    assert json.loads(event)["choices"][0]["delta"]["content"] == text


def test_each_choice_begins_with_its_role():
    emitter = ChatEmitter(REPLY)
    emitter.start()
    data = emitter.chunks([chunk({"content": "a"}, index=index) for index in (0, 1, 0)])
    roles = [json.loads(event)["choices"][0]["delta"].get("role") for event in events_of(data)]
    assert roles == ["assistant", "assistant", None]


def test_an_integer_beyond_64_bits_is_carried():
    emitter = ChatEmitter(REPLY)
    engine = {
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "x": 1 << 80}}]
    }
    assert json.loads(emitter.whole(engine))["choices"][0]["message"]["x"] == 1 << 80


def test_lists_and_errors_have_the_published_shape():
    check(MODELS, json.loads(openai.models(["b", "a"], 1)))
    check(MODEL, json.loads(openai.model("a", 1)))
    for status, kind in (
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (503, "server_error"),
    ):
        body = json.loads(openai.error(Problem(status, "no")))
        check(ERROR, body)
        assert body["error"]["type"] == kind
    error = json.loads(openai.error(Problem(403, "no", "c", "model", {"rules": []})))
    told = {"message": "no", "type": "permission_error", "param": "model", "code": "c", "rules": []}
    assert error["error"] == told
