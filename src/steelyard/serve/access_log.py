"""The access log: one JSON line a request, never payload. Written in a thread, so a stuck reader stops nobody.

    {"at", "level": "info", "event": "request", "receipt", "status", "sent_bytes", "ms", "prompt_tokens",
     "completion_tokens", "left", "method", "route", "key", "alias", "model"}

`json_log.py` gives the process' other lines the same first fields. What is the same for many requests is encoded
once; what differs is numbers, a time and a receipt of our own making, which need no escaping.
"""

import asyncio
import json
import time
from collections import deque
from collections.abc import Callable
from datetime import datetime

from steelyard.records import text_of
from steelyard.serve.message import Request

MAX_LINES = 10_000  # not yet written; the oldest go first and are counted
MAX_KNOWN = 4096  # combinations of method, route, key, alias and model kept encoded

_LINE = (
    '{"at":"%s.%03dZ","level":"info","event":"request","receipt":"%s","status":%d,"sent_bytes":%d,"ms":%.2f,'
    '"prompt_tokens":%s,"completion_tokens":%s,"left":%s,%s}'
)


class AccessLog:
    """Collects lines; `flush` hands them to `write` in one piece."""

    def __init__(self, write: Callable[[str], object], clock: Callable[[], datetime]) -> None:
        self._write = write
        self._clock = clock
        self._lines: deque[str] = deque()
        self._known: dict[tuple[bytes, str | None, str | None, str | None, str | None], str] = {}
        self._dropped = 0
        self._writing: asyncio.Future[object] | None = None
        self._set_clock()

    def add(self, request: Request, status: int, sent_bytes: int, seconds: float) -> None:
        caller, end, route = request.caller, request.end, request.route
        who = (
            request.method,
            route.name if route is not None else None,
            caller.key if caller is not None else None,
            request.alias,
            request.digest,
        )
        fixed = self._known.get(who)
        if fixed is None:
            fixed = self._encoded(who)
        prompt = completion = None
        if end is not None:
            prompt, completion = end.prompt_tokens, end.completion_tokens
        passed_ms = int((time.monotonic() - self._at) * 1e3) + self._ms
        if passed_ms > 999:
            self._set_clock()
            passed_ms = self._ms
        self._lines.append(
            _LINE % (self._second, passed_ms, request.receipt, status, sent_bytes, seconds * 1e3,
                     "null" if prompt is None else prompt, "null" if completion is None else completion,
                     "true" if request.has_left else "false", fixed)
        )  # fmt: skip
        if len(self._lines) > MAX_LINES:
            self._lines.popleft()
            self._dropped += 1

    def flush(self) -> None:
        """Write what was collected, unless the last write is still under way."""
        self._set_clock()
        if self._lines and (self._writing is None or self._writing.done()):
            self._writing = asyncio.get_running_loop().run_in_executor(None, self._write, self._taken())

    async def close(self) -> None:
        """Write the rest."""
        if self._writing is not None:
            await self._writing
        if self._lines:
            self._write(self._taken())

    def _taken(self) -> str:
        if self._dropped:
            lost = {
                "at": text_of(self._clock()),
                "level": "warning",
                "event": "dropped",
                "lines": self._dropped,
            }
            self._lines.appendleft(json.dumps(lost))
            self._dropped = 0
        text = "\n".join(self._lines) + "\n"
        self._lines.clear()
        return text

    def _set_clock(self) -> None:
        # A date costs more to make and write than the rest of a line: it is asked for at each flush and second.
        self._at = time.monotonic()
        now = self._clock()
        self._second = text_of(now)[:19]
        self._ms = now.microsecond // 1000

    def _encoded(self, who: tuple[bytes, str | None, str | None, str | None, str | None]) -> str:
        method, route, key, alias, model = who
        values = {
            "method": method.decode("ascii", "replace"),
            "route": route,
            "key": key,
            "alias": alias,
            "model": model,
        }
        if len(self._known) >= MAX_KNOWN:
            self._known.clear()
        fixed = self._known[who] = json.dumps(values, separators=(",", ":"))[1:-1]
        return fixed
