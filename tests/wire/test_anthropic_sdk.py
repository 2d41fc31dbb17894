"""Anthropic's own client reads what we write: bodies, streams, errors, lists. No network: the transport is ours."""

import json

import anthropic as vendor
import httpx2 as httpx
import pytest
from anthropic.types import Message, MessageTokensCount, ModelInfo, RawMessageStreamEvent
from anthropic.types.shared import ErrorResponse
from pydantic import TypeAdapter

from steelyard.digest import Digest
from steelyard.wire import anthropic
from steelyard.wire.call import Problem, Reply

REPLY = Reply("f00d", 1_700_000_000, "gpt-4o", Digest("sha256", "a" * 64))
USAGE = {"prompt_tokens": 5, "completion_tokens": 9, "total_tokens": 14}
TOOL = {"name": "look", "input_schema": {"type": "object", "properties": {"at": {"type": "string"}}}}
WHOLE = {
    "role": "assistant",
    "content": "I loo\u0308k \U0001f600.",
    "reasoning_content": "Let me think.",
    "tool_calls": [
        {
            "id": "c0",
            "type": "function",
            "function": {"name": "look", "arguments": '{"at": "B\\u00e9zi\\ners"}'},
        },
        {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}},
    ],
}
DELTAS = [
    {"role": "assistant", "content": None},
    {"reasoning_content": "Let me "},
    {"reasoning_content": "think."},
    {"content": "I loo\u0308k"},
    {"content": " \U0001f600."},
    {
        "tool_calls": [
            {"index": 0, "id": "c0", "type": "function", "function": {"name": "look", "arguments": ""}}
        ]
    },
    {"tool_calls": [{"index": 0, "function": {"arguments": '{"at": "B\\u00e9'}}]},
    {"tool_calls": [{"index": 0, "function": {"arguments": 'zi\\ners"}'}}]},
    {
        "tool_calls": [
            {"index": 1, "id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
        ]
    },
]


def client(respond):
    """The vendor's client. `respond` is given the request's body and answers with (status, type, body)."""

    def handle(request):
        status, kind, body = respond(request)
        return httpx.Response(status, headers={"content-type": kind, "request-id": "r1"}, content=body)

    transport = httpx.Client(transport=httpx.MockTransport(handle))
    return vendor.Anthropic(api_key="k", base_url="http://gateway", max_retries=0, http_client=transport)


def answering(request):
    asked = anthropic.parse_messages(request.content)
    emitter = asked.emitter(REPLY)
    if not asked.call.stream:
        choice = {"index": 0, "message": WHOLE, "finish_reason": "tool_calls"}
        return 200, "application/json", emitter.whole({"choices": [choice], "usage": USAGE})
    chunks = [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in DELTAS]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})
    chunks.append({"choices": [], "usage": USAGE})
    return 200, "text/event-stream", emitter.start() + emitter.chunks(chunks) + emitter.end()


ASK = {"model": "m", "max_tokens": 50, "messages": [{"role": "user", "content": "where?"}], "tools": [TOOL]}


def test_the_client_reads_a_whole_message():
    message = client(answering).messages.create(**ASK)
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert message.content[1].text == WHOLE["content"]
    assert message.content[2].input == {"at": "Bézi\ners"}
    assert (message.stop_reason, message.id, message.model) == ("tool_use", "msg_f00d", "gpt-4o")
    assert (message.usage.input_tokens, message.usage.output_tokens) == (5, 9)


def test_the_clients_accumulator_makes_the_whole_message_of_the_stream():
    with client(answering).messages.stream(**ASK) as stream:
        texts = list(stream.text_stream)
        final = stream.get_final_message()
    assert texts == ["I loo\u0308k", " \U0001f600."]
    whole = client(answering).messages.create(**ASK)
    assert _plain(final) == _plain(whole)


def _plain(message):
    return Message.model_validate(message.model_dump(mode="json")).model_dump(exclude_none=True)


def test_the_raw_events_come_as_the_vendor_types_them():
    kinds = [event.type for event in client(answering).messages.create(**ASK, stream=True)]
    blocks = ["content_block_start", "content_block_delta", "content_block_stop"]
    assert [kind for kind, last in zip(kinds, ["", *kinds], strict=False) if kind != last] == [
        "message_start", *blocks, *blocks, *blocks, *blocks, "message_delta", "message_stop"]  # fmt: skip


def test_every_body_and_event_validates_strictly():
    request = httpx.Request("POST", "http://gateway", content=json.dumps(ASK).encode())
    Message.model_validate_json(answering(request)[2], strict=False)
    streamed = httpx.Request("POST", "http://gateway", content=json.dumps({**ASK, "stream": True}).encode())
    events = [part.split("\n", 1) for part in answering(streamed)[2].decode().split("\n\n")[:-1]]
    adapter = TypeAdapter(RawMessageStreamEvent)
    checked = [
        adapter.validate_json(data.removeprefix("data: ")) for name, data in events if name != "event: ping"
    ]
    assert len(checked) == len(events) - 1
    error = ErrorResponse.model_validate_json(anthropic.error(Problem(403, "no", extra={"receipt": "r"})))
    assert (error.error.type, error.request_id) == ("permission_error", "r")
    assert ModelInfo.model_validate_json(anthropic.model("m", 0)).id == "m"
    assert MessageTokensCount.model_validate_json(anthropic.counted(3)).input_tokens == 3


def test_the_client_counts():
    def respond(request):
        call = anthropic.parse_count(request.content)
        return 200, "application/json", anthropic.counted(len(call.body["messages"]))

    found = client(respond).messages.count_tokens(
        model="m", system="s", messages=ASK["messages"], tools=[TOOL]
    )
    assert found.input_tokens == 2


def test_the_client_lists_models():
    names = ["a", "b"]

    def respond(request):
        if request.url.path == "/v1/models":
            return 200, "application/json", anthropic.models(names, 1_700_000_000)
        return 200, "application/json", anthropic.model(request.url.path.rpartition("/")[2], 1_700_000_000)

    assert [model.id for model in client(respond).models.list()] == names
    assert client(respond).models.retrieve("b").created_at.year == 2023


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, vendor.BadRequestError), (401, vendor.AuthenticationError), (403, vendor.PermissionDeniedError),
        (404, vendor.NotFoundError), (429, vendor.RateLimitError), (500, vendor.InternalServerError),
        (503, vendor.InternalServerError), (529, vendor.InternalServerError),
    ],
)  # fmt: skip
def test_the_client_raises_the_error_that_the_vendor_would_give(status, kind):
    def respond(_):
        return status, "application/json", anthropic.error(Problem(status, "why not"))

    with pytest.raises(kind, match="why not") as caught:
        client(respond).messages.create(**ASK)
    assert caught.value.body["type"] == "error"


def test_the_client_raises_when_a_stream_breaks_off():
    def respond(request):
        emitter = anthropic.parse_messages(request.content).emitter(REPLY)
        chunk = {"choices": [{"index": 0, "delta": {"content": "he"}, "finish_reason": None}]}
        return 200, "text/event-stream", emitter.chunks([chunk]) + emitter.broken(Problem(503, "engine died"))

    with (
        pytest.raises(vendor.APIStatusError, match="engine died"),
        client(respond).messages.stream(**ASK) as it,
    ):
        it.until_done()


def test_an_answer_of_the_client_goes_back_as_history():
    first = client(answering).messages.create(**ASK)
    result = {"type": "tool_result", "tool_use_id": "c0", "content": "here"}
    seen = []

    def respond(request):
        seen.append(anthropic.parse_messages(request.content).call.body["messages"])
        return answering(request)

    history = [
        *ASK["messages"],
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [result]},
    ]
    client(respond).messages.create(**{**ASK, "messages": history})
    calls = seen[0][1]["tool_calls"]
    assert [json.loads(call["function"]["arguments"]) for call in calls] == [{"at": "Bézi\ners"}, {}]
    assert seen[0][1]["reasoning_content"] == WHOLE["reasoning_content"]
    assert seen[0][2] == {"role": "tool", "tool_call_id": "c0", "content": "here"}
