"""OpenAI's completions and embeddings."""

import base64
import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.digest import Digest
from steelyard.errors import Malformed
from steelyard.wire import openai
from steelyard.wire.call import Problem, Reply
from steelyard.wire.openai_completions import MAX_PROMPTS, CompletionEmitter
from steelyard.wire.openai_embeddings import MAX_INPUTS, EmbeddingEmitter

REPLY = Reply("1", 1_700_000_000, "gpt-4o", Digest("oms-sha256", "ab" * 32))


def data_of(**fields):
    return json.dumps({"model": "m", **fields}).encode()


def refused(parse, **fields):
    with pytest.raises(Malformed) as caught:
        parse(data_of(**fields))
    return caught.value.rule.removeprefix("openai/")


@pytest.mark.parametrize("value", ["a", ["a", "b"], [1, 2, 3], [[1, 2], [3]], ["a"] * MAX_PROMPTS], ids=str)
def test_a_prompt_is_text_or_tokens_or_lists_of_them(value):
    call = openai.parse_completion(data_of(prompt=value, logprobs=5)).call
    assert (call.kind, call.body["prompt"]) == ("completion", value)


@pytest.mark.parametrize(
    "value",
    [None, [], {}, 1, [1, "a"], ["a", [1]], [[]], [[-1]], [-1], [True], ["a"] * (MAX_PROMPTS + 1)],
    ids=str,
)
def test_what_is_no_prompt_is_refused(value):
    assert refused(openai.parse_completion, prompt=value) == "prompt"


@pytest.mark.parametrize(
    ("fields", "place"),
    [({"logprobs": 6}, "logprobs"), ({"best_of": 0}, "best_of"), ({"best_of": 2, "stream": True}, "best_of"),
     ({"best_of": 2, "n": 3}, "best_of"), ({"echo": 1}, "echo"), ({"temperature": 3}, "temperature")],
)  # fmt: skip
def test_a_wrong_parameter_of_a_completion_is_named(fields, place):
    assert refused(openai.parse_completion, prompt="x", **fields) == place


@given(st.lists(st.text(min_size=1), max_size=5), st.booleans())
def test_a_streamed_completion_joins_to_its_text(texts, include_usage):
    emitter = CompletionEmitter(REPLY, include_usage=include_usage)
    used = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
    chunks = [{"choices": [{"index": 0, "text": text}]} for text in texts]
    chunks += [
        {"choices": [{"index": 0, "text": "", "finish_reason": "stop"}]},
        {"choices": [], "usage": used},
    ]
    stream = (emitter.start() + emitter.chunks(chunks) + emitter.end()).decode()
    *events, end = [part.removeprefix("data: ") for part in stream.split("\n\n") if part]
    found = [json.loads(event) for event in events]
    assert end == "[DONE]"
    assert "".join(choice["text"] for event in found for choice in event["choices"]) == "".join(texts)
    assert {event["object"] for event in found} == {"text_completion"}
    assert [event["usage"] for event in found if event.get("usage")] == ([used] if include_usage else [])


def test_a_whole_completion_is_under_the_callers_name():
    answer = {"id": "x", "model": "/path", "choices": [{"index": 0, "text": "t", "finish_reason": "stop"}]}
    told = json.loads(CompletionEmitter(REPLY).whole(answer))
    assert (told["id"], told["model"], told["object"]) == ("cmpl-1", "gpt-4o", "text_completion")
    assert told["choices"] == [{"index": 0, "text": "t", "finish_reason": "stop", "logprobs": None}]


def test_a_broken_completion_says_so():
    assert b'"server_error"' in CompletionEmitter(REPLY).broken(Problem(503, "no"))


@pytest.mark.parametrize("value", ["a", ["a", "b"], [1, 2], [[1], [2]]], ids=str)
def test_an_input_is_text_or_tokens_or_lists_of_them(value):
    call = openai.parse_embedding(data_of(input=value)).call
    assert (call.kind, call.stream, call.body["input"]) == ("embedding", False, value)


@pytest.mark.parametrize("value", [None, "", [], ["a", ""], [1, "a"], ["a"] * (MAX_INPUTS + 1)], ids=str)
def test_what_is_no_input_is_refused(value):
    assert refused(openai.parse_embedding, input=value) == "input"


def test_a_wrong_parameter_of_an_embedding_is_named():
    assert refused(openai.parse_embedding, input="a", encoding_format="hex") == "encoding_format"
    assert refused(openai.parse_embedding, input="a", dimensions=0) == "dimensions"


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=5))
def test_base64_is_little_endian_float32(vector):
    asked = openai.parse_embedding(data_of(input="a", encoding_format="base64"))
    assert asked.call.body["encoding_format"] == "float"
    answer = {
        "data": [{"object": "embedding", "index": 0, "embedding": vector}],
        "usage": {"prompt_tokens": 1, "total_tokens": 1},
    }
    told = json.loads(asked.emitter(REPLY).whole(answer))
    raw = base64.b64decode(told["data"][0]["embedding"])
    assert list(struct.unpack(f"<{len(vector)}f", raw)) == vector
    assert (told["model"], told["object"]) == ("gpt-4o", "list")
    plain = json.loads(EmbeddingEmitter(REPLY).whole(answer))
    assert plain["data"][0]["embedding"] == vector
