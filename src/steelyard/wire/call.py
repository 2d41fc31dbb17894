"""What callers ask and engines answer, whatever wire it came by.

One internal language: OpenAI's objects as parsed JSON. Other wires translate to it and from it, so that any wire
reaches any engine, and what none of us knows passes through untouched.

    Call.kind    request, answer and stream chunk
    chat         CreateChatCompletionRequest, CreateChatCompletionResponse, CreateChatCompletionStreamResponse
    completion   CreateCompletionRequest, CreateCompletionResponse (also as chunk)
    embedding    CreateEmbeddingRequest, CreateEmbeddingResponse (never streamed)

Source: openai/openai-openapi.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from steelyard.digest import JSON, Digest

Object = dict[str, Any]
Kind = Literal["chat", "completion", "embedding"]


@dataclass(slots=True)
class Call:
    """A checked request. `model` is the alias the caller named.

    body: OpenAI's request of this kind, unknown fields included. What an engine is sent differs from it in `model`,
    `stream` and `stream_options`, which are the engine's to set.  stream: whether the caller wants events.
    """

    kind: Kind
    model: str
    body: Object
    stream: bool = False


@dataclass(slots=True)
class Reply:
    """What every part of one answer shares. id: the receipt, unguessable.  created: seconds since 1970."""

    id: str
    created: int
    model: str
    digest: Digest

    @property
    def fingerprint(self) -> str:
        """`system_fingerprint`: names the weights, so a client sees when they change."""
        return f"fp_{self.digest.hex[:16]}"


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a request gets no answer, before a vendor's shape is given to it.

    status: HTTP's.  code: a stable short word.  param: the parameter that is wrong.  extra: fields of ours beside
    the vendor's.  retry_after_s: when asking again may help; absent when it will not.
    """

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    extra: Mapping[str, JSON] = field(default_factory=dict)
    retry_after_s: int | None = None


class Emitter(Protocol):
    """Writes one answer in one wire. Either `whole`, or `start`, `chunks` as often as needed, and `end`."""

    def whole(self, answer: Object) -> bytes:
        """The body of an answer that is not streamed."""

    def start(self) -> bytes:
        """What precedes the first chunk; may be empty."""

    def chunks(self, chunks: list[Object]) -> bytes:
        """The events for some chunks; may be empty."""

    def end(self) -> bytes:
        """The last events."""

    def broken(self, problem: Problem) -> bytes:
        """The event that says the stream broke off; no `end` follows."""


@dataclass(slots=True)
class Asked:
    """A parsed request and the way its answer is written."""

    call: Call
    emitter: Callable[[Reply], Emitter]
