"""The internal chat request and answer that every wire parses into and every engine speaks."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `role` is system, developer, user, assistant or tool; `content` is plain text."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """What the caller asked, already checked against the wire's limits.

    `model` is the alias the caller named. `body` is the caller's whole JSON object, unknown fields
    included, for upstreams that understand more than we do. Absent sampling fields are None.
    """

    model: str
    messages: tuple[Message, ...]
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    json_schema: Mapping[str, Any] | None = None
    stream: bool = False
    include_usage: bool = False
    body: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts as the engine counted them."""

    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an answer. The last one carries `finish_reason` (stop or length) and `usage`."""

    text: str
    finish_reason: str | None = None
    usage: Usage | None = None
