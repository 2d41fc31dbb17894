"""OpenAI's chat wire: POST /v1/chat/completions.

Parsing checks the types and ranges of OpenAI's published schema; fields unknown to us stay in the request, for
upstreams that know more. What a particular engine cannot do is the engine's to refuse.

Source: openai/openai-openapi, schemas CreateChatCompletionRequest, CreateChatCompletionResponse,
CreateChatCompletionStreamResponse.
"""

from collections.abc import Callable, Mapping
from typing import Any

from steelyard.wire.body import dump, parse_object
from steelyard.wire.call import Asked, Call, Object, Problem, Reply
from steelyard.wire.openai_errors import error
from steelyard.wire.openai_fields import (
    RULE,
    choice_of,
    flag,
    integer,
    list_of,
    mapping,
    model_of,
    number,
    objects,
    stops,
    streaming,
    text,
    wrong,
)

MAX_MESSAGES = 4_096
MAX_TOOLS = 128
MAX_TOKENS = 1 << 24
MAX_CHOICES = 128
MAX_BIASES = 1_024

_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_CHOICES = ("none", "auto", "required")
_DONE = b"data: [DONE]\n\n"


def parse_chat(data: bytes) -> Asked:
    """The body of POST /v1/chat/completions. Raises Malformed with rule `openai/PLACE`."""
    body = parse_object(data, RULE)
    model = model_of(body)
    _check_messages(body.get("messages"))
    check_sampling(body)
    if body.keys() & _TOOL_FIELDS:
        _check_tools(body)
    if "response_format" in body:
        _check_format(body["response_format"])
    stream, include_usage = streaming(body)
    return Asked(
        Call("chat", model, body, stream), lambda reply: ChatEmitter(reply, include_usage=include_usage)
    )


class ChatEmitter:
    """Writes one chat answer. The fixed part of every event is encoded once."""

    def __init__(self, reply: Reply, *, include_usage: bool = False) -> None:
        self._reply = reply
        self._include_usage = include_usage
        self._usage: Object | None = None
        self._named: set[int] = set()  # choices whose role was said
        self._head = b""
        # With include_usage every event has the field; it is null until the last (ChatCompletionStreamOptions).
        self._tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"

    def whole(self, answer: Object) -> bytes:
        reply = self._reply
        for choice in answer["choices"]:
            choice.setdefault("logprobs", None)
            message = choice["message"]
            message.setdefault("content", None)
            message.setdefault("refusal", None)
        return dump(
            {
                **answer,
                "id": "chatcmpl-" + reply.id,
                "object": "chat.completion",
                "created": reply.created,
                "model": reply.model,
                "system_fingerprint": reply.fingerprint,
            }
        )

    def start(self) -> bytes:
        reply = self._reply
        fixed = {
            "id": "chatcmpl-" + reply.id,
            "object": "chat.completion.chunk",
            "created": reply.created,
            "model": reply.model,
            "system_fingerprint": reply.fingerprint,
        }
        self._head = b"data: " + dump(fixed)[:-1] + b',"choices":'
        return b""

    def chunks(self, chunks: list[Object]) -> bytes:
        events: list[bytes] = []
        for chunk in chunks:
            self._usage = chunk.get("usage") or self._usage
            choices = chunk["choices"]
            if not choices:
                continue
            for choice in choices:
                index = choice.setdefault("index", 0)
                choice.setdefault("finish_reason", None)
                if index not in self._named:
                    self._named.add(index)
                    choice["delta"] = {"role": "assistant", **choice.get("delta", {})}
            events += (self._head, dump(choices), self._tail)
        return b"".join(events)

    def end(self) -> bytes:
        if not self._include_usage:
            return _DONE
        return b'%b[],"usage":%b}\n\n%b' % (self._head, dump(self._usage), _DONE)

    def broken(self, problem: Problem) -> bytes:
        return b"data: %b\n\n" % error(problem)


def check_sampling(body: Mapping[str, Any]) -> None:
    """What chat and completion have in common. Raises Malformed."""
    for name in body:
        check = _SAMPLING.get(name)
        if check is not None:
            check(body, name)
    old, new = body.get("max_tokens"), body.get("max_completion_tokens")
    if old is not None and new is not None and old != new:
        raise wrong("max_tokens", "max_tokens and max_completion_tokens differ; send one of them")


def _between(least: float, most: float) -> Callable[[Mapping[str, Any], str], object]:
    return lambda body, name: number(body, name, least, most)


def _whole(least: int, most: int) -> Callable[[Mapping[str, Any], str], object]:
    return lambda body, name: integer(body, name, least, most)


def _check_bias(body: Mapping[str, Any], name: str) -> None:
    if body[name] is None:
        return
    biases = mapping(body[name], name)
    if len(biases) > MAX_BIASES:
        raise wrong(name, f"more than {MAX_BIASES} biases")
    for token, bias in biases.items():
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise wrong(f"{name}.{token}", "a bias is a number from -100 to 100")


def _check_top_logprobs(body: Mapping[str, Any], name: str) -> None:
    if integer(body, name, 0, 20) and body.get("logprobs") is not True:
        raise wrong(name, f"{name} needs logprobs to be true")


_SAMPLING: Mapping[str, Callable[[Mapping[str, Any], str], object]] = {
    "temperature": _between(0.0, 2.0),
    "top_p": _between(0.0, 1.0),
    "frequency_penalty": _between(-2.0, 2.0),
    "presence_penalty": _between(-2.0, 2.0),
    "max_tokens": _whole(1, MAX_TOKENS),
    "max_completion_tokens": _whole(1, MAX_TOKENS),
    "n": _whole(1, MAX_CHOICES),
    "seed": _whole(-(1 << 63), (1 << 63) - 1),
    "top_logprobs": _check_top_logprobs,
    "logit_bias": _check_bias,
    "parallel_tool_calls": flag,
    "store": flag,
    "stop": lambda body, name: stops(body[name]),
    **dict.fromkeys(
        ("user", "reasoning_effort", "verbosity", "service_tier", "safety_identifier", "prompt_cache_key"),
        text,
    ),
}
_TOOL_FIELDS = {"tools", "tool_choice", "functions", "function_call", "logprobs", "metadata", "modalities"}


def _check_messages(value: object) -> None:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_MESSAGES:
        raise wrong("messages", f"messages is required: a list of 1 to {MAX_MESSAGES} messages")
    for index, message in enumerate(value):
        if not isinstance(message, dict):
            raise wrong(f"messages[{index}]", f"messages[{index}] is not an object")
        role, content = message.get("role"), message.get("content")
        if role not in _ROLES:
            place = f"messages[{index}].role"
            raise wrong(place, f"{place} is not one of {', '.join(_ROLES)}")
        if type(content) is not str:
            _check_content(message, content, f"messages[{index}]")
        if len(message) > 2 or role == "tool":
            _check_extras(message, f"messages[{index}]")


def _check_content(message: Mapping[str, Any], content: object, place: str) -> None:
    if content is None and message["role"] == "assistant":
        if not any(message.get(name) for name in ("tool_calls", "function_call", "refusal", "audio")):
            raise wrong(f"{place}.content", f"{place} has neither content nor tool calls")
        return
    parts = list_of(content, f"{place}.content", "text or a list of parts")
    if not parts:
        raise wrong(f"{place}.content", f"{place}.content is an empty list")
    for index, part in enumerate(parts):
        where = f"{place}.content[{index}]"
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise wrong(where, f"{where} is not an object with a type")
        kind = part["type"]
        inner = part.get(kind)
        if kind in ("text", "refusal") and not isinstance(inner, str):
            raise wrong(f"{where}.{kind}", f"{where}.{kind} is not text")
        if kind in ("image_url", "input_audio", "file") and not isinstance(inner, dict):
            raise wrong(f"{where}.{kind}", f"{where}.{kind} is not an object")


def _check_extras(message: Mapping[str, Any], place: str) -> None:
    for index, call in enumerate(objects(message.get("tool_calls"), f"{place}.tool_calls")):
        where = f"{place}.tool_calls[{index}]"
        text(call, "id", where, required=True)
        function = mapping(call.get("function") or call.get("custom"), f"{where}.function")
        text(function, "name", f"{where}.function", required=True)
        text(function, "arguments" if call.get("function") else "input", f"{where}.function", required=True)
    for name in ("name", "tool_call_id", "refusal"):
        text(message, name, place)
    if message["role"] == "tool" and not isinstance(message.get("tool_call_id"), str):
        raise wrong(f"{place}.tool_call_id", f"{place}.tool_call_id is required: which call this answers")


def _check_tools(body: Mapping[str, Any]) -> None:
    flag(body, "logprobs")
    tools = objects(body.get("tools"), "tools")
    if len(tools) > MAX_TOOLS:
        raise wrong("tools", f"more than {MAX_TOOLS} tools")
    for index, tool in enumerate(tools):
        where = f"tools[{index}]"
        if tool.get("type") == "function":
            function = mapping(tool.get("function"), f"{where}.function")
            text(function, "name", f"{where}.function", required=True)
            text(function, "description", f"{where}.function")
            if function.get("parameters") is not None:
                mapping(function["parameters"], f"{where}.function.parameters")
        elif not isinstance(tool.get("type"), str):
            raise wrong(f"{where}.type", f"{where}.type is required")
    wanted = body.get("tool_choice")
    if wanted is not None and wanted not in _CHOICES and not isinstance(wanted, dict):
        raise wrong("tool_choice", f"tool_choice is neither one of {', '.join(_CHOICES)} nor an object")
    if isinstance(wanted, dict) and wanted.get("type") == "function":
        name = text(
            mapping(wanted.get("function"), "tool_choice.function"), "name", "tool_choice", required=True
        )
        if name not in {tool["function"]["name"] for tool in tools if tool["type"] == "function"}:
            raise wrong("tool_choice", f"tool_choice names {name!r}, which is not in tools")
    if wanted == "required" and not tools:
        raise wrong("tool_choice", "tool_choice is required, yet there are no tools")
    if body.get("metadata") is not None:
        mapping(body["metadata"], "metadata")
    if body.get("modalities") not in (None, ["text"]):
        raise wrong("modalities", "only text comes out of the models here")


def _check_format(value: object) -> None:
    if value is None:
        return
    wanted = mapping(value, "response_format")
    kind = choice_of(wanted, "type", ("text", "json_object", "json_schema"), "response_format")
    if kind == "json_schema":
        wrapper = mapping(wanted.get("json_schema"), "response_format.json_schema")
        text(wrapper, "name", "response_format.json_schema")
        mapping(wrapper.get("schema"), "response_format.json_schema.schema")
