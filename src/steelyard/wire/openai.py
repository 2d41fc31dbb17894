"""OpenAI's chat wire: parse a request body, write completions, stream events, model lists and errors.

Parsing is the one border for a caller's JSON. It raises Malformed with rule `openai/PLACE`, where PLACE is the
parameter that is wrong (`messages[2].content`) or `body`. What no engine here can do (images, tools, n > 1,
log-probabilities, penalties) refuses by name: a parameter silently ignored is a wrong answer. Fields unknown to
us stay in `ChatRequest.body`.

Source: openai/openai-openapi, schemas CreateChatCompletionRequest, CreateChatCompletionResponse,
CreateChatCompletionStreamResponse, Model, Error.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from steelyard.digest import JSON, Digest
from steelyard.errors import Malformed
from steelyard.wire.chat import ChatRequest, Message, Usage

MAX_DEPTH = 64  # nested objects and arrays
MAX_CONTAINERS = 20_000  # objects and arrays in one body: each costs about 100 bytes of memory
MAX_MESSAGES = 4_096
MAX_MODEL_CHARS = 256
MAX_STOPS = 4
MAX_STOP_CHARS = 256
MAX_TOKENS = 1 << 20
MAX_TEMPERATURE = 2.0

RULE = "openai/"
DONE = b"data: [DONE]\n\n"

_ROLES = ("system", "developer", "user", "assistant")
_STRINGS = re.compile(r'(?s)"[^"\\]*+(?:\\.[^"\\]*+)*+"')
_BRACKETS = re.compile(r"[\[\]{}]")
_SURROGATE = re.compile(r"\\u[dD]")
# Parameters of the wire that would change the answer and that no engine here understands, with the values that
# change nothing.
_UNSUPPORTED: tuple[tuple[str, tuple[JSON, ...]], ...] = (
    ("n", (None, 1)),
    ("tools", (None, [])),
    ("tool_choice", (None, "none", "auto")),
    ("functions", (None, [])),
    ("function_call", (None, "none", "auto")),
    ("logprobs", (None, False)),
    ("top_logprobs", (None, 0)),
    ("logit_bias", (None, {})),
    ("frequency_penalty", (None, 0)),
    ("presence_penalty", (None, 0)),
    ("modalities", (None, ["text"])),
    ("audio", (None,)),
    ("web_search_options", (None,)),
    ("prediction", (None,)),
)


def parse_chat(data: bytes) -> ChatRequest:
    """The body of POST /v1/chat/completions -> ChatRequest. Raises Malformed."""
    body = _object(data)
    for name, harmless in _UNSUPPORTED:
        if name in body and not any(_same(body[name], value) for value in harmless):
            raise _wrong(name, f"{name} with this value is not supported by this gateway's engines")
    stream = _flag(body, "stream")
    return ChatRequest(
        model=_model(body),
        messages=_messages(body.get("messages")),
        max_tokens=_max_tokens(body),
        temperature=_number(body, "temperature", MAX_TEMPERATURE),
        top_p=_number(body, "top_p", 1.0),
        seed=_integer(body, "seed", -(1 << 63), (1 << 63) - 1),
        stop=_stop(body.get("stop")),
        json_schema=_json_schema(body.get("response_format")),
        stream=stream,
        include_usage=_include_usage(body.get("stream_options"), stream),
        body=body,
    )


@dataclass(frozen=True, slots=True)
class Reply:
    """What every part of one answer shares. `id` is unique; created: seconds since 1970."""

    id: str
    created: int
    model: str
    digest: Digest

    @property
    def fingerprint(self) -> str:
        """`system_fingerprint`: names the weights, so a client sees when they change."""
        return f"fp_{self.digest.hex[:16]}"

    def completion(self, text: str, finish_reason: str, usage: Usage) -> bytes:
        """The body of an answer that is not streamed."""
        message: JSON = {"role": "assistant", "content": text, "refusal": None}
        return _dump(
            {
                "id": self.id,
                "object": "chat.completion",
                "created": self.created,
                "model": self.model,
                "choices": [
                    {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
                ],
                "usage": _usage(usage),
                "system_fingerprint": self.fingerprint,
            }
        )


class Stream:
    """Writes one answer as server-sent events. The fixed part of every event is encoded once."""

    def __init__(self, reply: Reply, include_usage: bool) -> None:
        fixed: JSON = {
            "id": reply.id,
            "object": "chat.completion.chunk",
            "created": reply.created,
            "model": reply.model,
            "system_fingerprint": reply.fingerprint,
        }
        self._head = b"data: " + _dump(fixed)[:-1]
        self._include_usage = include_usage
        # With include_usage every event has the field; it is null until the last (ChatCompletionStreamOptions).
        self._tail = b',"usage":null}\n\n' if include_usage else b"}\n\n"

    def start(self) -> bytes:
        """The event that names the role."""
        return self._event({"role": "assistant", "content": "", "refusal": None}, None)

    def text(self, text: str) -> bytes:
        return self._event({"content": text}, None)

    def finish(self, finish_reason: str, usage: Usage) -> bytes:
        """The event with the finish reason, the usage if it was asked for, and the end mark."""
        events = self._event({}, finish_reason)
        if self._include_usage:
            events += self._head + b',"choices":[],"usage":' + _dump(_usage(usage)) + b"}\n\n"
        return events + DONE

    def _event(self, delta: Mapping[str, JSON], finish_reason: str | None) -> bytes:
        choice: JSON = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._head + b',"choices":[' + _dump(choice) + b"]" + self._tail


def models(names: Iterable[str], created: int) -> bytes:
    """The body of GET /v1/models. created: seconds since 1970."""
    return _dump({"object": "list", "data": [_card(name, created) for name in sorted(names)]})


def model(name: str, created: int) -> bytes:
    """The body of GET /v1/models/{id}."""
    return _dump(_card(name, created))


def error(
    message: str,
    kind: str,
    *,
    param: str | None = None,
    code: str | None = None,
    extra: Mapping[str, JSON] | None = None,
) -> bytes:
    """OpenAI's error body. `extra` adds fields of ours beside the four that clients know."""
    fields: dict[str, JSON] = {"message": message, "type": kind, "param": param, "code": code}
    return _dump({"error": {**fields, **(extra or {})}})


def error_event(body: bytes) -> bytes:
    """An error body as a stream event; no end mark follows it."""
    return b"data: " + body + b"\n\n"


def _card(name: str, created: int) -> JSON:
    return {"id": name, "object": "model", "created": created, "owned_by": "steelyard"}


def _usage(usage: Usage) -> JSON:
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


# json.dumps with arguments builds an encoder each time; this one is built once.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def _dump(value: JSON) -> bytes:
    return _encode(value).encode()


def _object(data: bytes) -> dict[str, Any]:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise Malformed("the body is not UTF-8", rule=RULE + "body", offset=error.start) from error
    _check_depth(text)
    try:
        value = _decode(text)
        if _SURROGATE.search(text):
            _dump(value)  # half a surrogate pair decodes, yet has no UTF-8: nothing downstream could carry it
    except UnicodeEncodeError as error:
        raise _wrong("body", "the body has an unpaired surrogate escape") from error
    except (ValueError, RecursionError) as error:
        raise _wrong("body", f"the body is not one JSON value: {_cause(error)}") from error
    if not isinstance(value, dict):
        raise _wrong("body", "the body is not a JSON object")
    return value


def _cause(error: Exception) -> str:
    # A decoder's own message has a position and no text of the caller's; others may quote what they read.
    return f"{error.msg} at character {error.pos}" if isinstance(error, json.JSONDecodeError) else "bad value"


def _check_depth(text: str) -> None:
    opened = text.count("{") + text.count("[")
    if opened <= MAX_DEPTH:
        return
    depth = containers = 0
    for bracket in _BRACKETS.finditer(_STRINGS.sub("", text)):
        if bracket.group() in "]}":
            depth -= 1
            continue
        depth += 1
        containers += 1
        if depth > MAX_DEPTH:
            raise _wrong("body", f"the body nests deeper than {MAX_DEPTH} levels")
        if containers > MAX_CONTAINERS:
            raise _wrong("body", f"the body has more than {MAX_CONTAINERS} objects and arrays")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Two readers of `{"model": "a", "model": "b"}` may see two requests.
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("an object repeats a key")
    return result


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError("a number is too large")
    return value


_decode: Callable[[str], Any] = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite
).decode


def _wrong(place: str, message: str) -> Malformed:
    return Malformed(message, rule=RULE + place)


def _same(found: object, wanted: object) -> bool:
    return found == wanted and isinstance(found, bool) == isinstance(wanted, bool)


def _model(body: Mapping[str, Any]) -> str:
    name = body.get("model")
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_MODEL_CHARS:
        raise _wrong("model", f"model is required: text of 1 to {MAX_MODEL_CHARS} characters")
    return name


def _messages(value: object) -> tuple[Message, ...]:
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_MESSAGES:
        raise _wrong("messages", f"messages is required: a list of 1 to {MAX_MESSAGES} messages")
    return tuple(_message(entry, f"messages[{index}]") for index, entry in enumerate(value))


def _message(entry: object, place: str) -> Message:
    if not isinstance(entry, dict):
        raise _wrong(place, f"{place} is not an object")
    role = entry.get("role")
    if role not in _ROLES:
        raise _wrong(f"{place}.role", f"{place}.role is not one of {', '.join(_ROLES)}")
    for name in ("tool_calls", "function_call", "audio"):
        if entry.get(name):
            raise _wrong(f"{place}.{name}", f"{place}.{name} is not supported by this gateway's engines")
    return Message(role, _content(entry.get("content"), f"{place}.content"))


def _content(value: object, place: str) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise _wrong(place, f"{place} is neither text nor a list of text parts")
    return "".join(_part(part, f"{place}[{index}]") for index, part in enumerate(value))


def _part(part: object, place: str) -> str:
    if not isinstance(part, dict):
        raise _wrong(place, f"{place} is not an object")
    kind, text = part.get("type"), part.get("text")
    if kind != "text":
        raise _wrong(
            f"{place}.type", f"{place}: only parts of type text are supported, no images, audio or files"
        )
    if not isinstance(text, str):
        raise _wrong(f"{place}.text", f"{place}.text is not text")
    return text


def _max_tokens(body: Mapping[str, Any]) -> int | None:
    old = _integer(body, "max_tokens", 1, MAX_TOKENS)
    new = _integer(body, "max_completion_tokens", 1, MAX_TOKENS)
    if old is not None and new is not None and old != new:
        raise _wrong("max_tokens", "max_tokens and max_completion_tokens differ; send one of them")
    return old if new is None else new


def _integer(body: Mapping[str, Any], name: str, least: int, most: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise _wrong(name, f"{name} is not a whole number from {least} to {most}")
    return value


def _number(body: Mapping[str, Any], name: str, most: float) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= most:
        raise _wrong(name, f"{name} is not a number from 0 to {most:g}")
    return float(value)


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise _wrong(name, f"{name} is neither true nor false")
    return value


def _stop(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MAX_STOPS:
        raise _wrong("stop", f"stop is neither text nor a list of at most {MAX_STOPS} texts")
    for stop in stops:
        if not isinstance(stop, str) or not 1 <= len(stop) <= MAX_STOP_CHARS:
            raise _wrong("stop", f"a stop text has 1 to {MAX_STOP_CHARS} characters")
    return tuple(stops)


def _include_usage(options: object, stream: bool) -> bool:
    if options is None:
        return False
    if not stream:
        raise _wrong("stream_options", "stream_options is only allowed when stream is true")
    if not isinstance(options, dict):
        raise _wrong("stream_options", "stream_options is not an object")
    return _flag(options, "include_usage")


def _json_schema(value: object) -> Mapping[str, Any] | None:
    """`response_format` -> the schema the answer must fit; absent for plain text."""
    if value is None:
        return None
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(value, dict) or kind not in ("text", "json_object", "json_schema"):
        raise _wrong("response_format", "response_format.type is not one of text, json_object, json_schema")
    if kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    wrapper = value.get("json_schema")
    schema = wrapper.get("schema") if isinstance(wrapper, dict) else None
    if not isinstance(schema, dict):
        raise _wrong(
            "response_format.json_schema", "response_format.json_schema.schema is not a JSON schema object"
        )
    return schema
