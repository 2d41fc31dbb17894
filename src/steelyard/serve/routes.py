"""The addresses: which vendor's wire an address speaks, which methods it takes, who may use it.

Matched byte for byte, the query left out: no decoding, no dot segments.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from steelyard.wire import anthropic, openai
from steelyard.wire.call import Asked, Emitter, Problem, Reply

_READ = (b"GET", b"HEAD")
_POST = (b"POST",)


class Vendor(Protocol):
    """How a vendor says no and lists models."""

    def error(self, problem: Problem) -> bytes: ...

    def models(self, names: Iterable[str], created: int) -> bytes: ...

    def model(self, name: str, created: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Route:
    """One address. name: as logs and entries say it.  parse: for those that ask a model something.

    needs: what a caller's role must allow (auth.ROLES); absent where anybody may come.
    counts: the answer is the number of tokens, and nothing is generated.
    """

    name: str
    methods: tuple[bytes, ...]
    needs: str | None
    vendor: Vendor = openai
    parse: Callable[[bytes], Asked] | None = None
    counts: bool = False


def _parse_count(data: bytes) -> Asked:
    return Asked(anthropic.parse_count(data), _no_answer)


def _no_answer(_: Reply) -> Emitter:
    raise NotImplementedError("a count has no answer to write")


HEALTH = Route("/healthz", _READ, None)
READY = Route("/readyz", _READ, None)
METRICS = Route("/metrics", _READ, "metrics")
MODELS = Route("/v1/models", _READ, "list")
MODEL = Route("/v1/models/", _READ, "list")

ROUTES = {
    route.name.encode(): route
    for route in (
        HEALTH,
        READY,
        METRICS,
        MODELS,
        Route("/v1/chat/completions", _POST, "models", openai, openai.parse_chat),
        Route("/v1/completions", _POST, "models", openai, openai.parse_completion),
        Route("/v1/embeddings", _POST, "models", openai, openai.parse_embedding),
        Route("/v1/responses", _POST, "models", openai, openai.parse_response),
        Route("/v1/messages", _POST, "models", anthropic, anthropic.parse_messages),
        Route("/v1/messages/count_tokens", _POST, "models", anthropic, _parse_count, counts=True),
    )
}
_MODEL = MODEL.name.encode()


def route_of(path: bytes) -> Route | None:
    """The route of an address; absent when there is no such address here."""
    found = ROUTES.get(path)
    if found is None and path.startswith(_MODEL) and len(path) > len(_MODEL):
        return MODEL
    return found


def allowed(route: Route | None) -> bytes:
    """The value of the Allow field."""
    return b", ".join((*(route.methods if route else (*_READ, *_POST)), b"OPTIONS"))
