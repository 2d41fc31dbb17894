"""OpenAI's answers and chunks as Anthropic's message and stream events.

    event                  what it says
    message_start          the empty message; usage as far as it is known (engines tell it last)
    ping
    content_block_start    index, and an empty block of type thinking, text or tool_use
    content_block_delta    thinking_delta, signature_delta, text_delta or input_json_delta
    content_block_stop
    message_delta          stop_reason, stop_sequence, usage
    message_stop

One block is open at a time. Source: the types of anthropic-sdk-python 2.12 (raw_message_stream_event, message).
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from steelyard.wire.body import dump
from steelyard.wire.call import Object, Problem, Reply

_STOP_REASONS = {"tool_calls": "tool_use", "function_call": "tool_use", "content_filter": "refusal"}
_ERROR_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_STOPPED = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
_PING = b'event: ping\ndata: {"type":"ping"}\n\n'


class Terms(NamedTuple):
    """What of the request the answer depends on.

    stops: the caller's.  max_tokens: absent when none was set.
    thinks: the model's reasoning is part of the answer; shows: with its text.
    """

    stops: tuple[str, ...] = ()
    max_tokens: int | None = None
    thinks: bool = True
    shows: bool = True


def error(problem: Problem) -> bytes:
    """Anthropic's error body. `extra` stands beside type and message; a receipt in it is also the request_id."""
    status = problem.status
    kind = _ERROR_TYPES.get(status, "invalid_request_error" if status < 500 else "api_error")
    fields = {**problem.extra, "type": kind, "message": problem.message}
    return dump({"type": "error", "error": fields, "request_id": problem.extra.get("receipt")})


class MessageEmitter:
    """Writes one answer. Of several choices, which this wire cannot ask for, the first is written."""

    __slots__ = (
        "_block", "_blocks", "_finish", "_head", "_is_begun", "_open", "_reply", "_stop", "_terms", "_tools", "_usage",
    )  # fmt: skip

    def __init__(self, reply: Reply, terms: Terms) -> None:
        self._reply = reply
        self._terms = terms
        self._is_begun = False
        self._blocks = 0  # begun so far
        self._open: str | None = None  # type of the open block
        self._block = -1  # the tool, by OpenAI's index, whose block is open
        self._tools: dict[int, int] = {}  # OpenAI's index of a tool call -> index of its block
        self._head = b""  # of the deltas of the open block
        self._usage: Mapping[str, Any] | None = None
        self._finish: str | None = None
        self._stop: object = None

    def whole(self, answer: Object) -> bytes:
        choice = answer["choices"][0]
        message = choice["message"]
        blocks: list[Object] = []
        thought = message.get("reasoning_content") or message.get("reasoning")
        if thought and self._terms.thinks:
            text = thought if self._terms.shows else ""
            blocks.append({"type": "thinking", "thinking": text, "signature": self._reply.id})
        texts = (message.get(name) for name in ("content", "refusal"))
        blocks += [{"type": "text", "text": text} for text in texts if text]
        blocks += [_tool_use(tool) for tool in message.get("tool_calls") or ()]
        self._usage = answer.get("usage")
        self._finish, self._stop = choice.get("finish_reason"), choice.get("stop_reason")
        return dump(self._message(blocks, **self._ending()))

    def start(self) -> bytes:
        return b""  # the first chunk may bring the usage that message_start shall show

    def chunks(self, chunks: list[Object]) -> bytes:
        events: list[bytes] = []
        for chunk in chunks:
            usage = chunk.get("usage")
            if usage:
                self._usage = usage
            if not self._is_begun:
                events.append(self._begin())
            for choice in chunk["choices"]:
                if choice.get("index"):
                    continue
                delta = choice.get("delta")
                if delta:
                    self._read(delta, events)
                if choice.get("finish_reason"):
                    self._finish, self._stop = choice["finish_reason"], choice.get("stop_reason")
        return b"".join(events)

    def end(self) -> bytes:
        events = [] if self._is_begun else [self._begin()]
        self._close(events)
        delta = {"type": "message_delta", "delta": self._ending(), "usage": self._tokens()}
        events += [_event("message_delta", delta), _STOPPED]
        return b"".join(events)

    def broken(self, problem: Problem) -> bytes:
        return b"event: error\ndata: %b\n\n" % error(problem)

    # Parts of a stream.

    def _begin(self) -> bytes:
        self._is_begun = True
        message = self._message([], stop_reason=None, stop_sequence=None)
        return _event("message_start", {"type": "message_start", "message": message}) + _PING

    def _read(self, delta: Mapping[str, Any], events: list[bytes]) -> None:
        text = delta.get("content")
        if text:
            if self._open != "text":
                self._begin_block("text", {"type": "text", "text": ""}, events)
            events.append(b"%b%b}}\n\n" % (self._head, dump(text)))
        thought = delta.get("reasoning_content") or delta.get("reasoning")
        if thought and self._terms.thinks:
            if self._open != "thinking":
                empty = {"type": "thinking", "thinking": "", "signature": ""}
                self._begin_block("thinking", empty, events)
            if self._terms.shows:
                events.append(b"%b%b}}\n\n" % (self._head, dump(thought)))
        if delta.get("refusal"):
            self._read({"content": delta["refusal"]}, events)
        for tool in delta.get("tool_calls") or ():
            self._read_tool(tool, events)

    def _read_tool(self, tool: Mapping[str, Any], events: list[bytes]) -> None:
        index, function = tool.get("index", 0), tool.get("function") or {}
        if index not in self._tools:
            self._tools[index] = self._blocks
            block: Object = {"type": "tool_use", "id": tool.get("id") or f"toolu_{self._reply.id}_{index}",
                     "name": function.get("name") or "", "input": {}}  # fmt: skip
            self._begin_block("tool_use", block, events)
            self._block = index
        if function.get("arguments"):
            # Should an engine go back to an earlier call, its index says where the rest belongs.
            is_open = self._open == "tool_use" and self._block == index
            head = self._head if is_open else _delta_head("input_json_delta", self._tools[index])
            events.append(b"%b%b}}\n\n" % (head, dump(function["arguments"])))

    def _begin_block(self, kind: str, block: Object, events: list[bytes]) -> None:
        self._close(events)
        index = self._blocks
        self._blocks += 1
        self._open = kind
        delta = {"text": "text_delta", "thinking": "thinking_delta", "tool_use": "input_json_delta"}[kind]
        self._head = _delta_head(delta, index)
        started = {"type": "content_block_start", "index": index, "content_block": block}
        events.append(_event("content_block_start", started))

    def _close(self, events: list[bytes]) -> None:
        if self._open is None:
            return
        index = self._blocks - 1
        if self._open == "thinking":
            events.append(b"%b%b}}\n\n" % (_delta_head("signature_delta", index), dump(self._reply.id)))
        events.append(_event("content_block_stop", {"type": "content_block_stop", "index": index}))

    # What a stream and a whole answer share.

    def _message(self, content: list[Object], **ending: str | None) -> Object:
        return {
            "id": f"msg_{self._reply.id}",
            "type": "message",
            "role": "assistant",
            "model": self._reply.model,
            "content": content,
            **ending,
            "usage": self._tokens(),
        }

    def _tokens(self) -> Object:
        """Anthropic counts what came from the cache apart from what was read anew; OpenAI counts it twice."""
        usage = self._usage or {}
        cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
        return {
            "input_tokens": max(0, usage.get("prompt_tokens", 0) - cached),
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": cached,
            "output_tokens": usage.get("completion_tokens") or 0,
        }

    def _ending(self) -> dict[str, str | None]:
        if self._finish == "length":
            told, most = (self._usage or {}).get("completion_tokens"), self._terms.max_tokens
            is_full = told is not None and most is not None and told < most
            return {
                "stop_reason": "model_context_window_exceeded" if is_full else "max_tokens",
                "stop_sequence": None,
            }
        if self._finish == "stop" and isinstance(self._stop, str) and self._stop in self._terms.stops:
            return {"stop_reason": "stop_sequence", "stop_sequence": self._stop}
        return {"stop_reason": _STOP_REASONS.get(self._finish or "", "end_turn"), "stop_sequence": None}


def _event(name: str, data: Object) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), dump(data))


def _delta_head(kind: str, index: int) -> bytes:
    field = {"input_json_delta": "partial_json"}.get(kind, kind.removesuffix("_delta"))
    start = {"type": "content_block_delta", "index": index, "delta": {"type": kind, field: ""}}
    return b"event: content_block_delta\ndata: " + dump(start).removesuffix(b'""}}')


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _tool_use(tool: Mapping[str, Any]) -> Object:
    """Arguments that are no JSON object, as when max_tokens cut them off, leave the input empty."""
    function = tool["function"]
    try:
        given = json.loads(function.get("arguments") or "{}", parse_constant=_no_constant)
        dump(given)  # half a surrogate pair decodes and cannot be written
    except (ValueError, RecursionError):
        given = {}
    arguments = given if isinstance(given, dict) else {}
    return {"type": "tool_use", "id": tool["id"], "name": function["name"], "input": arguments}
