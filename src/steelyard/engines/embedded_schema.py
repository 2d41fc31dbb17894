"""Which JSON schemas llama.cpp enforces. It silently drops keywords it does not know, so the rest refuse here.

Attack or accident stopped: a caller believes that an answer obeys a rule which the grammar never held; and a schema
with so many ways to begin a value that llama.cpp, which follows them all in the one thread of all slots, hangs.
Source: ggml-org/llama.cpp common/json-schema-to-grammar.cpp (keywords visited by the converter).
"""

from collections.abc import Mapping
from typing import Any

from steelyard.errors import WrongUsage

MAX_DEPTH = 32
MAX_SCHEMAS = 2048
MAX_WAYS = 1000  # to begin one value: alternatives, counted through references; OpenAI's limit for an enum
MAX_CHAIN = 64  # references and alternatives within one another before a value begins

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
    require_bounded(schema)
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


def require_bounded(schema: Mapping[str, Any]) -> None:
    """Raises WrongUsage when a value in `schema` may begin in more than MAX_WAYS ways."""
    ways = _Ways(schema)
    waiting: list[Any] = [schema]
    while waiting:
        part = waiting.pop()
        if isinstance(part, Mapping):
            ways.of(part)
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part


class _Ways:
    """Counts the ways in which values begin; each part of the schema once."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self._root = root
        self._known: dict[int, int] = {}

    def of(self, part: object, depth: int = 0) -> int:
        if not isinstance(part, Mapping):
            return 1
        known = self._known.get(id(part))
        if known is None:
            if depth > MAX_CHAIN:
                raise WrongUsage(f"a schema refers {MAX_CHAIN} times before a value begins")
            known = self._known[id(part)] = self._count(part, depth)
        if known > MAX_WAYS:
            raise WrongUsage(f"a schema has more than {MAX_WAYS} alternatives in one place")
        return known

    def _count(self, part: Mapping[str, Any], depth: int) -> int:
        count = 1
        for name in ("anyOf", "oneOf", "allOf"):
            if isinstance(part.get(name), list):
                count += sum(self.of(option, depth + 1) for option in part[name])
        for name in ("enum", "type"):
            if isinstance(part.get(name), list):
                count += len(part[name])
        if isinstance(part.get("$ref"), str):
            count += self.of(self._resolved(part["$ref"]), depth + 1)
        return count

    def _resolved(self, pointer: str) -> object:
        """What a reference leads to; nothing when it leads nowhere, which llama.cpp refuses."""
        found: object = self._root
        for step in pointer.removeprefix("#").split("/")[1:]:
            if isinstance(found, list) and step.isascii() and step.isdigit() and int(step) < len(found):
                found = found[int(step)]
            else:
                found = found.get(step) if isinstance(found, Mapping) else None
        return found


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
