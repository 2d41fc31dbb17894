"""OpenAI's responses: the translation both ways, judged by the vendor's own types and accumulators."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from steelyard.digest import Digest
from steelyard.errors import Malformed
from steelyard.wire import openai
from steelyard.wire.call import Problem, Reply
from steelyard.wire.openai_responses import ResponseEmitter
from steelyard.wire.openai_responses_request import MAX_ITEMS, MAX_TOOLS

REPLY = Reply("1", 1_700_000_000, "gpt-4o", Digest("oms-sha256", "ab" * 32))
EVENT = TypeAdapter(ResponseStreamEvent)
TOOL = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": True}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def data_of(**fields):
    return json.dumps({"model": "m", "input": "Hi", **fields}).encode()


def chat(**fields):
    return openai.parse_response(data_of(**fields)).call.body


def refused(**fields):
    with pytest.raises(Malformed) as caught:
        openai.parse_response(data_of(**fields))
    return caught.value.rule.removeprefix("openai/")


def test_settings_become_those_of_a_chat():
    body = chat(
        instructions="Be brief.", max_output_tokens=9, temperature=0.5, top_p=0.9, reasoning={"effort": "low"},
        text={"verbosity": "low", "format": {"type": "json_schema", "name": "x", "schema": {"type": "array"}}},
        tools=[TOOL], tool_choice={"type": "function", "name": "look"}, parallel_tool_calls=False,
        include=["message.output_text.logprobs"], top_logprobs=2, metadata={"a": "b"}, future={"kept": 1},
    )  # fmt: skip
    assert body == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
        "max_completion_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "reasoning_effort": "low",
        "verbosity": "low",
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array"}}},
        "tools": [
            {
                "type": "function",
                "function": {"name": "look", "parameters": {"type": "object"}, "strict": True},
            }
        ],
        "tool_choice": {"type": "function", "function": {"name": "look"}},
        "parallel_tool_calls": False,
        "logprobs": True,
        "top_logprobs": 2,
        "metadata": {"a": "b"},
        "future": {"kept": 1},
    }


def test_items_become_messages():
    items = [
        {"role": "developer", "content": "d"},
        {"type": "message", "role": "user", "content": [
            {"type": "input_text", "text": "look"}, {"type": "input_image", "image_url": "data:x", "detail": "low"}]},
        {"type": "reasoning", "id": "rs", "summary": [], "encrypted_content": "zzz"},
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "look", "arguments": "[]"},
        {"type": "function_call_output", "call_id": "c1", "output": "one"},
        {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "two"}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "so"}]},
    ]  # fmt: skip

    def call(number, arguments):
        return {"id": f"c{number}", "type": "function", "function": {"name": "look", "arguments": arguments}}

    image = {"type": "image_url", "image_url": {"url": "data:x", "detail": "low"}}
    assert chat(input=items)["messages"] == [
        {"role": "developer", "content": "d"},
        {"role": "user", "content": [{"type": "text", "text": "look"}, image]},
        {"role": "assistant", "content": None, "tool_calls": [call(1, "{}"), call(2, "[]")]},
        {"role": "tool", "tool_call_id": "c1", "content": "one"},
        {"role": "tool", "tool_call_id": "c2", "content": [{"type": "text", "text": "two"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "so"}]},
    ]


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user", "content": "x"}] * (MAX_ITEMS + 1)}, "input"),
        ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user", "content": []}]}, "input[0].content"),
        ({"input": [{"role": "user", "content": [{"type": "video"}]}]}, "input[0].content[0].type"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type"),
        ({"input": [{"type": "function_call", "name": "x", "arguments": ""}]}, "input[0].call_id"),
        ({"previous_response_id": "r"}, "previous_response_id"),
        ({"conversation": "c"}, "conversation"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [TOOL] * (MAX_TOOLS + 1)}, "tools"),
        ({"tool_choice": {"type": "function", "name": "x"}}, "tool_choice"),
        ({"tool_choice": "sometimes"}, "tool_choice"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"text": {"format": {"type": "yaml"}}}, "text.format.type"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"include": "all"}, "include"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_by_name(fields, place):
    assert refused(**fields) == place


FIELDS = st.sampled_from(["input", "tools", "text", "tool_choice", "include", "reasoning", "instructions"])
NAMES = st.sampled_from(["type", "role", "content", "name", "x"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner),
    max_leaves=8,
)


@given(st.dictionaries(FIELDS, VALUES))
def test_any_json_parses_or_is_malformed(fields):
    with contextlib.suppress(Malformed):
        openai.parse_response(data_of(**fields))


def message_of(text, calls=(), reasoning=None):
    message = {"role": "assistant", "content": text}
    if calls:
        message["tool_calls"] = [
            {"id": f"c{i}", "type": "function", "function": {"name": "look", "arguments": arguments}}
            for i, arguments in enumerate(calls)
        ]
    return message | ({"reasoning_content": reasoning} if reasoning else {})


def chunks_of(message, finish):
    deltas = [{"role": "assistant", "content": ""}]
    deltas += [{"reasoning_content": char} for char in message.get("reasoning_content", "")]
    deltas += [{"content": char} for char in message["content"] or ""]
    for index, call in enumerate(message.get("tool_calls", ())):
        head = {"index": index, **call, "function": {**call["function"], "arguments": ""}}
        deltas.append({"tool_calls": [head]})
        arguments = call["function"]["arguments"]
        deltas += [{"tool_calls": [{"index": index, "function": {"arguments": char}}]} for char in arguments]
    chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]})
    return [*chunks, {"choices": [], "usage": USAGE}]


def events_of(stream):
    events = []
    for block in stream.decode().split("\n\n")[:-1]:
        name, data = block.split("\n", 1)
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


def emitter(**asked):
    return ResponseEmitter(REPLY, {"model": "gpt-4o", "input": "Hi", **asked})


ANSWERS = st.builds(
    message_of,
    st.text(max_size=8),
    st.lists(st.sampled_from(["{}", '{"a": "ü"}', ""]), max_size=2),
    st.sampled_from([None, "hmm"]),
)


@given(ANSWERS, st.sampled_from(["stop", "length", "tool_calls"]), st.data())
def test_a_stream_is_what_the_whole_is_however_it_is_cut(message, finish, data):
    answer = {"choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": USAGE}
    whole = json.loads(emitter().whole(json.loads(json.dumps(answer))))
    Response.model_validate(whole, strict=True)
    stream = emitter()
    sent, rest = stream.start(), chunks_of(message, finish)
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        sent += stream.chunks(rest[:size])
        rest = rest[size:]
    events = events_of(sent + stream.end())
    for event in events:
        EVENT.validate_python(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-1]["response"] == whole


def test_each_item_begins_grows_and_ends():
    stream = emitter()
    message = message_of("Hi", ["{}"], "h")
    events = events_of(stream.start() + stream.chunks(chunks_of(message, "tool_calls")) + stream.end())
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done",
        "content_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.delta", "output_text.done",
        "content_part.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.delta",
        "function_call_arguments.done", "output_item.done",
        "completed",
    ]  # fmt: skip


def test_an_answer_cut_by_its_limit_is_incomplete():
    answer = {
        "choices": [{"index": 0, "message": message_of("Hi"), "finish_reason": "length"}],
        "usage": USAGE,
    }
    told = json.loads(emitter().whole(answer))
    assert (told["status"], told["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})


def test_a_broken_stream_is_an_error_event():
    stream = emitter()
    stream.start()
    event, last = events_of(stream.broken(Problem(503, "no", "unavailable")))
    assert (event["type"], event["code"], event["sequence_number"]) == ("error", "unavailable", 2)
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    EVENT.validate_python(event)
    EVENT.validate_python(last)
