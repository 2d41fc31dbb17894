"""Fields of OpenAI's requests: their types and ranges, and where in the body a wrong one stands."""

from collections.abc import Mapping, Sequence
from typing import Any

from steelyard.errors import Malformed

RULE = "openai/"
MAX_MODEL_CHARS = 256
MAX_STOPS = 4
MAX_STOP_CHARS = 256


def wrong(place: str, message: str) -> Malformed:
    return Malformed(message, rule=RULE + place)


def model_of(body: Mapping[str, Any]) -> str:
    name = body.get("model")
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_MODEL_CHARS:
        raise wrong("model", f"model is required: text of 1 to {MAX_MODEL_CHARS} characters")
    return name


def integer(body: Mapping[str, Any], name: str, least: int, most: int) -> int | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise wrong(name, f"{name} is not a whole number from {least} to {most}")
    return value


def number(body: Mapping[str, Any], name: str, least: float, most: float) -> float | None:
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        raise wrong(name, f"{name} is not a number from {least:g} to {most:g}")
    return float(value)


def flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise wrong(name, f"{name} is neither true nor false")
    return value


def text(body: Mapping[str, Any], name: str, place: str = "", *, required: bool = False) -> str | None:
    value = body.get(name)
    if isinstance(value, str) or (value is None and not required):
        return value
    where = f"{place}.{name}" if place else name
    raise wrong(where, f"{where} is not text" if value is not None else f"{where} is required")


def choice_of(body: Mapping[str, Any], name: str, options: Sequence[str], place: str) -> str:
    value = body.get(name)
    if value not in options:
        raise wrong(f"{place}.{name}", f"{place}.{name} is not one of {', '.join(options)}")
    return str(value)


def mapping(value: object, place: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise wrong(place, f"{place} is not an object")
    return value


def list_of(value: object, place: str, what: str) -> list[Any]:
    if not isinstance(value, list):
        raise wrong(place, f"{place} is not {what}")
    return value


def objects(value: object, place: str) -> list[Mapping[str, Any]]:
    """A list of objects; empty when absent."""
    if value is None:
        return []
    found = list_of(value, place, "a list")
    for index, item in enumerate(found):
        mapping(item, f"{place}[{index}]")
    return found


def stops(value: object) -> None:
    if value is None:
        return
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or len(found) > MAX_STOPS:
        raise wrong("stop", f"stop is neither text nor a list of at most {MAX_STOPS} texts")
    for stop in found:
        if not isinstance(stop, str) or not 1 <= len(stop) <= MAX_STOP_CHARS:
            raise wrong("stop", f"a stop text has 1 to {MAX_STOP_CHARS} characters")


def streaming(body: Mapping[str, Any]) -> tuple[bool, bool]:
    """`stream`, and whether its events end with the usage."""
    stream = flag(body, "stream")
    options = body.get("stream_options")
    if options is None:
        return stream, False
    if not stream:
        raise wrong("stream_options", "stream_options is only allowed when stream is true")
    return stream, flag(mapping(options, "stream_options"), "include_usage")
