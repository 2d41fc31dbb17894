"""Which JSON schemas llama.cpp enforces. It silently drops keywords it does not know, so the rest refuse here.

Attack or accident stopped: a caller believes that an answer obeys a rule which the grammar never held.
Source: ggml-org/llama.cpp common/json-schema-to-grammar.cpp (keywords visited by the converter).
"""

from collections.abc import Mapping
from typing import Any

from steelyard.errors import WrongUsage

MAX_DEPTH = 32
MAX_SCHEMAS = 2048

_TYPES = frozenset({"array", "boolean", "integer", "null", "number", "object", "string"})
_REMARKS = frozenset(
    {"$comment", "$id", "$schema", "default", "deprecated", "description", "examples", "title"}
)
_ENFORCED = frozenset({
    "$defs", "$ref", "additionalProperties", "anyOf", "const", "definitions", "enum", "items", "maxItems", "maxLength",
    "maximum", "minItems", "minLength", "minimum", "properties", "required", "type",
})  # fmt: skip
_BY_NAME = ("$defs", "definitions", "properties")
_COUNTS = ("maxItems", "maxLength", "minItems", "minLength")


def require_enforceable(schema: Mapping[str, Any]) -> None:
    """Raises WrongUsage, naming the place, when a keyword of `schema` would not be enforced."""
    waiting: list[tuple[str, Any, int]] = [("#", schema, 0)]
    seen = 0
    while waiting:
        place, part, depth = waiting.pop()
        seen += 1
        if depth > MAX_DEPTH or seen > MAX_SCHEMAS:
            raise WrongUsage(f"json_schema is deeper than {MAX_DEPTH} or has more than {MAX_SCHEMAS} parts")
        if isinstance(part, bool) and place.endswith("/additionalProperties"):
            continue
        if not isinstance(part, Mapping):
            raise WrongUsage(f"json_schema {place} is not an object")
        _require_keywords(place, part)
        for name in _BY_NAME:
            inner = part.get(name, {})
            if not isinstance(inner, Mapping):
                raise WrongUsage(f"json_schema {place}/{name} is not an object")
            waiting += [(f"{place}/{name}/{key}", value, depth + 1) for key, value in inner.items()]
        options = part.get("anyOf", [])
        if not isinstance(options, list):
            raise WrongUsage(f"json_schema {place}/anyOf is not a list")
        waiting += [(f"{place}/anyOf/{i}", value, depth + 1) for i, value in enumerate(options)]
        waiting += [
            (f"{place}/{name}", part[name], depth + 1)
            for name in ("items", "additionalProperties")
            if name in part
        ]


def _require_keywords(place: str, part: Mapping[str, Any]) -> None:
    unknown = sorted(part.keys() - _ENFORCED - _REMARKS)
    if unknown:
        raise WrongUsage(f"json_schema {place}: {', '.join(unknown)} cannot be enforced by this engine")
    kind = part.get("type")
    kinds = kind if isinstance(kind, list) else [] if kind is None else [kind]
    if not all(isinstance(name, str) and name in _TYPES for name in kinds):
        raise WrongUsage(f"json_schema {place}: type {kind!r} is unknown")
    if ("minimum" in part or "maximum" in part) and kinds != ["integer"]:
        raise WrongUsage(f"json_schema {place}: minimum and maximum are enforced for integers only")
    for name in _COUNTS:
        if name in part and (
            isinstance(part[name], bool) or not isinstance(part[name], int) or part[name] < 0
        ):
            raise WrongUsage(f"json_schema {place}: {name} is not a count")
    exclusive = [name for name in ("$ref", "anyOf", "const", "enum") if name in part]
    if len(exclusive) > 1 or (
        exclusive and part.keys() - _REMARKS - {exclusive[0], "type", "$defs", "definitions"}
    ):
        raise WrongUsage(
            f"json_schema {place}: {exclusive[0]} beside other rules cannot be enforced by this engine"
        )
    missing = set(part.get("required", ())) - set(part.get("properties", ()))
    if missing:
        raise WrongUsage(f"json_schema {place}: required names {min(missing)!r}, which properties lacks")
