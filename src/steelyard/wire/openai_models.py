"""OpenAI's model list. Source: openai/openai-openapi, schemas Model, ListModelsResponse."""

from collections.abc import Iterable

from steelyard.wire.body import dump
from steelyard.wire.call import Object


def models(names: Iterable[str], created: int) -> bytes:
    """The body of GET /v1/models. created: seconds since 1970."""
    return dump({"object": "list", "data": [_card(name, created) for name in sorted(names)]})


def model(name: str, created: int) -> bytes:
    """The body of GET /v1/models/{id}."""
    return dump(_card(name, created))


def _card(name: str, created: int) -> Object:
    return {"id": name, "object": "model", "created": created, "owned_by": "steelyard"}
