"""Anthropic's wire: POST /v1/messages, POST /v1/messages/count_tokens, GET /v1/models.

The request becomes OpenAI's chat request (anthropic_request.py) and the answer Anthropic's message (anthropic_emit.py),
so that a client of either vendor reaches any engine.
"""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from steelyard.wire.anthropic_content import RULE, wrong
from steelyard.wire.anthropic_emit import MessageEmitter, Terms, error
from steelyard.wire.anthropic_request import chat_of
from steelyard.wire.body import dump, parse_object
from steelyard.wire.call import Asked, Call, Object

__all__ = ["counted", "error", "model", "models", "parse_count", "parse_messages"]


def parse_messages(data: bytes) -> Asked:
    """The body of POST /v1/messages. Raises Malformed with rule `anthropic/PLACE`."""
    body = parse_object(data, RULE)
    asked = chat_of(body)
    terms = _terms(body)
    call = Call("chat", asked["model"], asked, _stream(body))
    return Asked(call, lambda reply: MessageEmitter(reply, terms))


def parse_count(data: bytes) -> Call:
    """The body of POST /v1/messages/count_tokens. Raises Malformed with rule `anthropic/PLACE`."""
    asked = chat_of(parse_object(data, RULE), counts_only=True)
    return Call("chat", asked["model"], asked)


def counted(tokens: int) -> bytes:
    """The body that answers a count."""
    return dump({"input_tokens": tokens})


def models(names: Iterable[str], created: int) -> bytes:
    """The body of GET /v1/models, in one page. created: seconds since 1970."""
    cards = [_card(name, created) for name in sorted(names)]
    ends = (cards[0]["id"], cards[-1]["id"]) if cards else (None, None)
    return dump({"data": cards, "has_more": False, "first_id": ends[0], "last_id": ends[1]})


def model(name: str, created: int) -> bytes:
    """The body of GET /v1/models/{id}."""
    return dump(_card(name, created))


def _card(name: str, created: int) -> Object:
    moment = datetime.fromtimestamp(created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "type": "model",
        "id": name,
        "display_name": name,
        "created_at": moment,
        "lifecycle": "active",
    }


def _terms(body: Mapping[str, Any]) -> Terms:
    thinking = body.get("thinking") or {}
    return Terms(
        tuple(body.get("stop_sequences") or ()),
        body["max_tokens"],
        thinks=thinking.get("type") != "disabled",
        shows=thinking.get("display") != "omitted",
    )


def _stream(body: Mapping[str, Any]) -> bool:
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise wrong("stream", "stream is neither true nor false")
    return stream is True
