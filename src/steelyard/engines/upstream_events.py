"""Server-sent events of an upstream: bytes, cut anywhere, to OpenAI's chunk objects.

Source: WHATWG HTML, section 9.2 (event streams), of which OpenAI's servers use `data` alone.
"""

from steelyard.errors import Unavailable, WrongUsage
from steelyard.wire.body import load
from steelyard.wire.call import Object

MAX_EVENT_BYTES = 1 << 20

_DATA = b"data:"


class Events:
    """Collects bytes and gives the chunks that are whole. `is_done`: the end mark was seen."""

    def __init__(self) -> None:
        self._rest = b""
        self.is_done = False

    def feed(self, data: bytes) -> list[Object]:
        """The chunks completed by `data`. Raises Unavailable for what is no chunk, WrongUsage for a caller's error."""
        rest = self._rest + data if self._rest else data
        if b"\r" in rest:
            # A line ends with LF, CRLF or CR; a CR at the very end may be half of a CRLF.
            tail = rest[-1:] if rest.endswith(b"\r") else b""
            rest = rest[: len(rest) - len(tail)].replace(b"\r\n", b"\n").replace(b"\r", b"\n") + tail
        end = rest.rfind(b"\n\n")
        if end < 0:
            self._keep(rest)
            return []
        self._keep(rest[end + 2 :])
        chunks = []
        for event in rest[:end].split(b"\n\n"):
            payload = _payload(event)
            if payload == b"[DONE]":
                self.is_done = True
                break
            if payload:
                chunks.append(_chunk(payload))
        return chunks

    def _keep(self, rest: bytes) -> None:
        if len(rest) > MAX_EVENT_BYTES:
            raise Unavailable(f"the upstream sent an event of more than {MAX_EVENT_BYTES} bytes")
        self._rest = rest


def _payload(event: bytes) -> bytes:
    if event.startswith(_DATA) and b"\n" not in event:
        return event[5:].strip()
    lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(_DATA)]
    return b"\n".join(lines)


def _chunk(payload: bytes) -> Object:
    try:
        chunk = load(payload)
    except ValueError as error:
        raise Unavailable("the upstream sent an event that is not JSON") from error
    if not isinstance(chunk, dict):
        raise Unavailable("the upstream sent an event that is no object")
    if chunk.get("error"):
        raise failure_of(chunk)
    choices = chunk.get("choices")
    if not isinstance(choices, list) or not all(map(_is_choice, choices)):
        raise Unavailable("the upstream sent an event that is no chunk")
    usage = chunk.get("usage")
    if usage is not None and not is_usage(usage):
        raise Unavailable("the upstream sent a usage without counts")
    return chunk


def _is_choice(choice: object) -> bool:
    return isinstance(choice, dict) and (
        isinstance(choice.get("delta"), dict) or isinstance(choice.get("text"), str)
    )


def is_usage(usage: object) -> bool:
    return (
        isinstance(usage, dict)
        and type(usage.get("prompt_tokens")) is int
        and type(usage.get("completion_tokens", 0)) is int
    )


def failure_of(body: Object) -> Unavailable | WrongUsage:
    """The error in an error body or event: the caller's when its code is 4xx, else the upstream's."""
    error = body.get("error")
    told = error.get("message") if isinstance(error, dict) else error
    code = error.get("code") if isinstance(error, dict) else body.get("code")
    if isinstance(code, int) and code in (400, 404, 413, 422):
        return WrongUsage(str(told)[:500])
    return Unavailable("the upstream failed while it answered")
