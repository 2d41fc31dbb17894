"""JSON at the border: one object, bounded, unambiguous; and our own compact output.

Attacks: nesting that exhausts the stack, floods of tiny containers, keys that repeat (two readers see two requests),
half surrogate pairs, numbers that are not JSON's.
"""

import json
import re
from collections.abc import Callable
from math import isfinite
from typing import Any

import orjson

from steelyard.errors import Malformed

MAX_DEPTH = 64  # nested objects and arrays
MAX_CONTAINERS = 20_000  # objects and arrays in one body: each costs about 100 bytes of memory

_STRINGS = re.compile(r'(?s)"[^"\\]*+(?:\\.[^"\\]*+)*+"')
_BRACKETS = re.compile(r"[\[\]{}]")
_SURROGATE = re.compile(r"\\u[dD]")
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode


def dump(value: Any) -> bytes:  # noqa: ANN401 - anything JSON has
    """Compact UTF-8 JSON. ValueError where there is none: half a surrogate pair."""
    try:
        return orjson.dumps(value)
    except TypeError:  # an integer beyond 64 bits, which JSON has and orjson has not
        return _encode(value).encode()


def load(data: bytes | str) -> Any:  # noqa: ANN401 - anything JSON has
    """Any JSON of an engine's. ValueError when it is none. Of a repeated key the last stands."""
    return orjson.loads(data)


def parse_object(data: bytes, prefix: str) -> dict[str, Any]:
    """The one JSON object in `data`. Raises Malformed with rule `<prefix>body`."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise Malformed("the body is not UTF-8", rule=prefix + "body", offset=error.start) from error
    if text.count("{") + text.count("[") > MAX_DEPTH:
        _check_depth(text, prefix)
    try:
        value = _decode(text)
        if "\\u" in text and _SURROGATE.search(text):
            dump(value)  # half a surrogate pair decodes, yet has no UTF-8: nothing downstream could carry it
    except UnicodeEncodeError as error:
        raise Malformed("the body has an unpaired surrogate escape", rule=prefix + "body") from error
    except (ValueError, RecursionError) as error:
        raise Malformed(f"the body is not one JSON value: {_cause(error)}", rule=prefix + "body") from error
    if not isinstance(value, dict):
        raise Malformed("the body is not a JSON object", rule=prefix + "body")
    return value


def _cause(error: Exception) -> str:
    # A decoder's own message has a position and no text of the caller's; others may quote what they read.
    return f"{error.msg} at character {error.pos}" if isinstance(error, json.JSONDecodeError) else "bad value"


def _check_depth(text: str, prefix: str) -> None:
    depth = containers = 0
    for bracket in _BRACKETS.finditer(_STRINGS.sub("", text)):
        if bracket.group() in "]}":
            depth -= 1
            continue
        depth += 1
        containers += 1
        if depth > MAX_DEPTH:
            raise Malformed(f"the body nests deeper than {MAX_DEPTH} levels", rule=prefix + "body")
        if containers > MAX_CONTAINERS:
            raise Malformed(
                f"the body has more than {MAX_CONTAINERS} objects and arrays", rule=prefix + "body"
            )


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


_scan: Callable[[str, int], tuple[Any, int]] = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite
).scan_once  # type: ignore[attr-defined]  # what `decode` itself calls
_WHITE = " \t\n\r"


def _decode(text: str) -> Any:  # noqa: ANN401 - anything JSON has
    # JSONDecoder.decode without its two regular expressions for white space.
    start = 0 if text[:1] == "{" else len(text) - len(text.lstrip(_WHITE))
    try:
        value, end = _scan(text, start)
    except StopIteration as error:
        raise json.JSONDecodeError("Expecting value", text, int(error.value)) from None
    if end != len(text) and text[end:].strip(_WHITE):
        raise json.JSONDecodeError("Extra data", text, end)
    return value
