"""What we write fits OpenAI's published OpenAPI document. tests/data/openai/make.py says which version of it."""

import functools
import json
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from steelyard.digest import Digest
from steelyard.wire import openai
from steelyard.wire.call import Problem, Reply

PUBLISHED = json.loads((Path(__file__).parent.parent / "data" / "openai" / "answers.json").read_text())
REPLY = Reply("1", 1_700_000_000, "gpt-4o", Digest("oms-sha256", "ab" * 32))
USER = [{"role": "user", "content": "Hi"}]
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
FUNCTION = {"name": "look", "arguments": '{"at":1}'}
TOKEN = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": []}
DELTAS = [
    {"role": "assistant", "content": ""},
    {"reasoning_content": "hmm"},
    {"content": "Hel"},
    {"content": "lo"},
    {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {**FUNCTION, "arguments": ""}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": '{"at":1}'}}]},
]
PROBLEM = Problem(503, "no engine", "unavailable", extra={"receipt": "1"})


@functools.cache
def validator(name):
    return Draft202012Validator({"$ref": f"#/$defs/{name}", **PUBLISHED})


def check(name, value):
    validator(name).validate(value)


def emitter(parse, **fields):
    return parse(json.dumps({"model": "gpt-4o", **fields}).encode()).emitter(REPLY)


def chat_answer(finish):
    message = {"role": "assistant", "content": "Hello", "reasoning_content": "hmm"}
    if finish == "tool_calls":
        message |= {"content": None, "tool_calls": [{"id": "c", "type": "function", "function": FUNCTION}]}
    logprobs = {"content": [TOKEN], "refusal": None} if finish == "stop" else None
    return {
        "choices": [{"index": 0, "message": message, "finish_reason": finish, "logprobs": logprobs}],
        "usage": USAGE,
    }


def chunks(finish):
    choices = [{"index": 0, "delta": dict(delta)} for delta in DELTAS]
    choices.append({"index": 0, "delta": {}, "finish_reason": finish})
    return [*({"choices": [choice]} for choice in choices), {"choices": [], "usage": USAGE}]


def data_of(stream):
    lines = [
        line.removeprefix("data: ") for line in stream.decode().splitlines() if line.startswith("data: ")
    ]
    return [json.loads(line) for line in lines if line != "[DONE]"]


@pytest.mark.parametrize("finish", ["stop", "length", "tool_calls"])
def test_chat_answers(finish):
    body = emitter(openai.parse_chat, messages=USER).whole(chat_answer(finish))
    check("CreateChatCompletionResponse", json.loads(body))


@pytest.mark.parametrize("options", [{}, {"stream_options": {"include_usage": True}}])
def test_chat_chunks(options):
    writer = emitter(openai.parse_chat, messages=USER, stream=True, **options)
    events = data_of(writer.start() + writer.chunks(chunks("tool_calls")) + writer.end())
    assert len(events) == len(DELTAS) + 1 + bool(options)
    for event in events:
        if event.get("usage", 0) is None:
            del event[
                "usage"
            ]  # null until the last by the prose of ChatCompletionStreamOptions, not by its schema
        check("CreateChatCompletionStreamResponse", event)


def test_completions():
    writer = emitter(openai.parse_completion, prompt="a")
    choice = {"index": 0, "text": "Hello", "finish_reason": "stop"}
    check("CreateCompletionResponse", json.loads(writer.whole({"choices": [choice], "usage": USAGE})))


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_embeddings(encoding):
    writer = emitter(openai.parse_embedding, input="a", encoding_format=encoding)
    item = {"object": "embedding", "index": 0, "embedding": [0.5, -1.0]}
    body = json.loads(writer.whole({"data": [item], "usage": USAGE}))
    if encoding == "base64":  # the schema of an answer knows floats only
        assert isinstance(body["data"][0]["embedding"], str)
        body["data"][0]["embedding"] = []
    check("CreateEmbeddingResponse", body)


@pytest.mark.parametrize("finish", ["stop", "length", "tool_calls"])
def test_responses(finish):
    tool = {"type": "function", "name": "look"}
    body = emitter(openai.parse_response, input="Hi", tools=[tool]).whole(chat_answer(finish))
    check("Response", json.loads(body))


@pytest.mark.parametrize("finish", ["stop", "length"])
def test_response_events(finish):
    writer = emitter(openai.parse_response, input="Hi", stream=True)
    for event in data_of(writer.start() + writer.chunks(chunks(finish)) + writer.end()):
        check("ResponseStreamEvent", event)


def test_a_response_that_broke_off():
    writer = emitter(openai.parse_response, input="Hi", stream=True)
    events = data_of(writer.start() + writer.chunks(chunks("stop")[:3]) + writer.broken(PROBLEM))
    for event in events:
        check("ResponseStreamEvent", event)
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]


def test_models_and_errors():
    check("ListModelsResponse", json.loads(openai.models(["b", "a"], 1)))
    check("Model", json.loads(openai.model("a", 1)))
    check("ErrorResponse", json.loads(openai.error(PROBLEM)))
