"""Where a request holds text: every string in it, except the few that are the wire's own words.

The default is to look. Arguments of tool calls are JSON inside a string; they are opened, so that nothing hides behind
an escape. What cannot be read (pictures, sound, files, tokens) is refused unless the firm allows it by name.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from steelyard.errors import Refused
from steelyard.wire.call import Call

UNREADABLE = ("image", "audio", "file", "tokens")

# Words of the wire, never text of anybody: roles, types, names of models, numbers of calls.
_STRUCTURE = frozenset({
    "role", "type", "model", "id", "tool_call_id", "call_id", "detail", "encoding_format", "reasoning_effort", "effort",
    "verbosity", "service_tier", "tool_choice", "finish_reason", "object", "format", "$schema", "$ref", "required",
})  # fmt: skip
_NAMED = frozenset({"function", "json_schema", "custom"})  # objects whose `name` is the wire's, too
# Passed over only while it is a plain word: nobody's number or address may pose as one.
_PLAIN = re.compile(r"[A-Za-z#$][\w#$./:-]{0,127}\Z", re.ASCII)
_PARTS = {"image_url": "image", "input_audio": "audio", "file": "file"}


@dataclass(slots=True)
class Leaf:
    """A text and the way to put another in its place."""

    text: str
    put: Callable[[str], None]


def leaves(call: Call, allowed: frozenset[str]) -> Iterator[Leaf]:
    """Every text of a request, to be replaced in place. Raises Refused for what cannot be read."""
    if call.kind != "chat":
        _check_tokens(call.body.get("prompt" if call.kind == "completion" else "input"), allowed)
    yield from _walk(call.body, None, allowed)


def _walk(value: Any, parent: str | None, allowed: frozenset[str]) -> Iterator[Leaf]:  # noqa: ANN401 - JSON
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(inner, str):
            if (key in _STRUCTURE or (key == "name" and parent in _NAMED)) and _PLAIN.match(inner):
                continue
            if key == "arguments" or ("\\" in inner and inner.lstrip()[:1] in ("{", "[")):
                yield from _arguments(value, key, inner)
            else:
                yield Leaf(inner, _putter(value, key))
        elif isinstance(inner, dict | list):
            if key in _PARTS and isinstance(value, dict) and value.get("type") == key:
                _require(_PARTS[key], allowed)
                continue
            yield from _walk(inner, key if isinstance(key, str) else parent, allowed)


def _arguments(holder: Any, key: Any, text: str) -> Iterator[Leaf]:  # noqa: ANN401 - JSON
    """The texts inside a JSON text; the text itself when it is none, or when its keys would be looked at too."""
    try:
        opened = json.loads(text)
    except (ValueError, RecursionError):
        yield Leaf(text, _putter(holder, key))
        return
    if not isinstance(opened, dict | list):
        yield Leaf(text, _putter(holder, key))
        return
    for leaf in _plain(opened):

        def put(new: str, leaf: Leaf = leaf) -> None:
            leaf.put(new)
            holder[key] = json.dumps(opened, ensure_ascii=False)

        yield Leaf(leaf.text, put)


def _plain(value: Any) -> Iterator[Leaf]:  # noqa: ANN401 - JSON
    """Every text of a value that is a caller's through and through; keys are texts as well."""
    for key, inner in list(value.items()) if isinstance(value, dict) else list(enumerate(value)):
        if isinstance(key, str):

            def rename(new: str, holder: dict[str, Any] = value, old: str = key) -> None:
                holder[new] = holder.pop(old)

            yield Leaf(key, rename)
        if isinstance(inner, str):
            yield Leaf(inner, _putter(value, key))
        elif isinstance(inner, dict | list):
            yield from _plain(inner)


def _putter(holder: Any, key: Any) -> Callable[[str], None]:  # noqa: ANN401 - JSON
    def put(new: str) -> None:
        holder[key] = new

    return put


def _check_tokens(value: object, allowed: frozenset[str]) -> None:
    if isinstance(value, list) and any(not isinstance(item, str) for item in value):
        _require("tokens", allowed)


def _require(surface: str, allowed: frozenset[str]) -> None:
    if surface not in allowed:
        raise Refused(
            f"{surface} cannot be looked through for personal data and is not allowed here",
            (f"privacy:{surface}",),
        )
