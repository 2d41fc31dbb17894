"""OpenAI's responses wire: POST /v1/responses. The request is translated in openai_responses_request.py.

A chat answer becomes a list of output items: reasoning (where the engine shows it), one message, function calls. A
stream tells of each item when it begins, grows and ends; every event is numbered.

Source: openai/openai-openapi, schemas Response, ResponseStreamEvent.
"""

from collections.abc import Mapping
from typing import Any

from steelyard.wire.body import dump, parse_object
from steelyard.wire.call import Asked, Call, Object, Problem, Reply
from steelyard.wire.openai_fields import RULE, flag, model_of
from steelyard.wire.openai_responses_request import chat_of

_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


def parse_response(data: bytes) -> Asked:
    """The body of POST /v1/responses. Raises Malformed with rule `openai/PLACE`."""
    body = parse_object(data, RULE)
    model = model_of(body)
    call = Call("chat", model, chat_of(body), flag(body, "stream"))
    return Asked(call, lambda reply: ResponseEmitter(reply, body))


class ResponseEmitter:
    """Writes one response. asked: the caller's request, whose settings every response repeats."""

    def __init__(self, reply: Reply, asked: Mapping[str, Any]) -> None:
        self._reply = reply
        self._asked = asked
        self._items: list[Object] = []  # finished ones, and the open one last
        self._open: str | None = None  # the type of the item under way
        self._text: list[str] = []
        self._logprobs: list[Object] = []
        self._tool: int | None = None  # the engine's index of the call under way
        self._finish: str | None = None
        self._usage: Object | None = None
        self._number = 0

    # A whole answer.

    def whole(self, answer: Object) -> bytes:
        choice = answer["choices"][0]
        message = choice["message"]
        self._finish, self._usage = choice.get("finish_reason"), answer.get("usage")
        if reasoning := message.get("reasoning_content") or message.get("reasoning"):
            self._items.append(self._reasoning(reasoning))
        logprobs = (choice.get("logprobs") or {}).get("content") or []
        content = []
        if message.get("content"):
            content.append(_output_text(message["content"], logprobs))
        if message.get("refusal"):
            content.append({"type": "refusal", "refusal": message["refusal"]})
        calls = message.get("tool_calls") or ()
        if not (content or calls or self._items):  # an empty answer is an empty message
            content.append(_output_text("", []))
        if content:
            self._items.append(self._message(content, "completed"))
        for call in calls:
            function = call["function"]
            self._items.append(self._call(call["id"], function["name"], function["arguments"], "completed"))
        if "status" in self._items[-1]:  # what a limit cut is the last item
            self._items[-1]["status"] = self._status()
        return dump(self._response(self._status(), self._items))

    # A stream.

    def start(self) -> bytes:
        response = self._response("in_progress", [])
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def chunks(self, chunks: list[Object]) -> bytes:
        events: list[bytes] = []
        for chunk in chunks:
            self._usage = chunk.get("usage") or self._usage
            for choice in chunk["choices"]:
                if choice.get("index", 0) == 0:
                    self._read(choice, events)
        return b"".join(events)

    def end(self) -> bytes:
        events: list[bytes] = []
        self._close(events)
        if not self._items:  # an empty answer is an empty message
            self._begin("message", self._message([], "in_progress"), events)
            self._close(events)
        status = self._status()
        events.append(self._event(f"response.{status}", response=self._response(status, self._items)))
        return b"".join(events)

    def broken(self, problem: Problem) -> bytes:
        first = self._event("error", code=problem.code, message=problem.message, param=problem.param)
        response = self._response("failed", self._items)
        # The codes of ResponseError are a closed list; ours stands in the event before.
        response["error"] = {"code": "server_error", "message": problem.message}
        return first + self._event("response.failed", response=response)

    def _read(self, choice: Mapping[str, Any], events: list[bytes]) -> None:
        delta = choice.get("delta") or {}
        if reasoning := delta.get("reasoning_content") or delta.get("reasoning"):
            if self._open != "reasoning":
                self._close(events)
                self._begin("reasoning", self._reasoning(None), events)
            self._grow("response.reasoning_text.delta", reasoning, events, content_index=0)
        if text := delta.get("content"):
            if self._open != "message":
                self._close(events)
                self._begin("message", self._message([], "in_progress"), events)
            logprobs = (choice.get("logprobs") or {}).get("content") or []
            self._logprobs += logprobs
            self._grow("response.output_text.delta", text, events, content_index=0, logprobs=logprobs)
        for tool in delta.get("tool_calls") or ():
            self._read_tool(tool, events)
        self._finish = choice.get("finish_reason") or self._finish

    def _read_tool(self, tool: Mapping[str, Any], events: list[bytes]) -> None:
        index, function = tool.get("index", 0), tool.get("function") or {}
        if self._open != "function_call" or index != self._tool:
            self._close(events)
            self._tool = index
            item = self._call(tool.get("id") or "", function.get("name") or "", "", "in_progress")
            self._begin("function_call", item, events)
        if arguments := function.get("arguments"):
            self._grow("response.function_call_arguments.delta", arguments, events)

    def _begin(self, kind: str, item: Object, events: list[bytes]) -> None:
        self._open = kind
        self._items.append(item)
        self._text, self._logprobs = [], []
        index = len(self._items) - 1
        events.append(self._event("response.output_item.added", output_index=index, item=item))
        if kind == "function_call":
            return
        part = _output_text("", []) if kind == "message" else {"type": "reasoning_text", "text": ""}
        events.append(self._event("response.content_part.added", **self._place(), content_index=0, part=part))

    def _grow(self, kind: str, delta: str, events: list[bytes], **fields: object) -> None:
        self._text.append(delta)
        events.append(self._event(kind, **self._place(), delta=delta, **fields))

    def _close(self, events: list[bytes]) -> None:
        kind, self._open = self._open, None
        if kind is None:
            return
        text, item, place = "".join(self._text), self._items[-1], self._place()
        if kind == "function_call":
            item["arguments"] = text
            events.append(
                self._event(
                    "response.function_call_arguments.done", **place, name=item["name"], arguments=text
                )
            )
        elif kind == "message":
            part = _output_text(text, self._logprobs)
            item["content"] = [part]
            events.append(
                self._event(
                    "response.output_text.done", **place, content_index=0, text=text, logprobs=self._logprobs
                )
            )
            events.append(self._event("response.content_part.done", **place, content_index=0, part=part))
        else:
            part = {"type": "reasoning_text", "text": text}
            item["content"] = [part]
            events.append(self._event("response.reasoning_text.done", **place, content_index=0, text=text))
            events.append(self._event("response.content_part.done", **place, content_index=0, part=part))
        if "status" in item:
            item["status"] = self._status()
        events.append(self._event("response.output_item.done", output_index=place["output_index"], item=item))

    def _place(self) -> Object:
        return {"item_id": self._items[-1]["id"], "output_index": len(self._items) - 1}

    def _event(self, kind: str, **fields: object) -> bytes:
        number, self._number = self._number, self._number + 1
        return b"event: %b\ndata: %b\n\n" % (
            kind.encode(),
            dump({"type": kind, "sequence_number": number, **fields}),
        )

    # Objects.

    def _id(self, prefix: str) -> str:
        return f"{prefix}_{self._reply.id}_{len(self._items)}"

    def _message(self, content: list[Object], status: str) -> Object:
        return {
            "id": self._id("msg"), "type": "message", "status": status, "role": "assistant", "content": content,
        }  # fmt: skip

    def _call(self, call_id: str, name: str, arguments: str, status: str) -> Object:
        return {
            "id": self._id("fc"), "type": "function_call", "status": status, "call_id": call_id, "name": name,
            "arguments": arguments,
        }  # fmt: skip

    def _reasoning(self, text: str | None) -> Object:
        content = [] if text is None else [{"type": "reasoning_text", "text": text}]
        return {"id": self._id("rs"), "type": "reasoning", "summary": [], "content": content}

    def _status(self) -> str:
        return "incomplete" if self._finish in _INCOMPLETE else "completed"

    def _response(self, status: str, output: list[Object]) -> Object:
        asked = self._asked
        reason = _INCOMPLETE.get(self._finish or "") if status == "incomplete" else None
        reasoning = asked.get("reasoning") or {}
        return {
            "id": f"resp_{self._reply.id}",
            "object": "response",
            "created_at": self._reply.created,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": reason} if reason else None,
            "instructions": asked.get("instructions"),
            "max_output_tokens": asked.get("max_output_tokens"),
            "max_tool_calls": asked.get("max_tool_calls"),
            "metadata": asked.get("metadata") or {},
            "model": self._reply.model,
            "output": output,
            "parallel_tool_calls": asked.get("parallel_tool_calls") is not False,
            "previous_response_id": None,
            "reasoning": {"effort": reasoning.get("effort"), "summary": None},
            "service_tier": "default",
            "store": False,
            "temperature": _or(asked.get("temperature"), 1.0),
            "text": asked.get("text") or {"format": {"type": "text"}},
            "tool_choice": asked.get("tool_choice") or "auto",
            "tools": [{"parameters": None, "strict": None, **tool} for tool in asked.get("tools") or ()],
            "top_logprobs": _or(asked.get("top_logprobs"), 0),
            "top_p": _or(asked.get("top_p"), 1.0),
            "truncation": "disabled",
            **_present(
                usage=_usage(self._usage) if status != "in_progress" else None, user=asked.get("user")
            ),
        }


def _output_text(text: str, logprobs: list[Object]) -> Object:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _present(**fields: object) -> Object:
    """The fields that have a value: of these the published schema allows no null."""
    return {name: value for name, value in fields.items() if value is not None}


def _usage(usage: Mapping[str, Any] | None) -> Object | None:
    if usage is None:
        return None
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    reasoned = (usage.get("completion_tokens_details") or {}).get("reasoning_tokens") or 0
    given, made = usage["prompt_tokens"], usage.get("completion_tokens", 0)
    return {
        "input_tokens": given,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": reasoned},
        "total_tokens": given + made,
    }


def _or(value: Any, default: float) -> Any:  # noqa: ANN401 - a number of the caller's
    return default if value is None else value
