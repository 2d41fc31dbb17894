"""The access log: one JSON line a request, never payload. Written in a thread, so a stuck reader stops nobody."""

import asyncio
import json
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime

from steelyard.digest import JSON

MAX_LINES = 10_000  # not yet written; the oldest go first and are counted


class AccessLog:
    """Collects lines; `flush` hands them to `write` in one piece."""

    def __init__(self, write: Callable[[str], object], clock: Callable[[], datetime]) -> None:
        self._write = write
        self._clock = clock
        self._lines: deque[str] = deque()
        self._dropped = 0
        self._writing: asyncio.Future[object] | None = None

    def add(self, entry: Mapping[str, JSON]) -> None:
        self._lines.append(json.dumps({"at": self._clock().isoformat(timespec="milliseconds"), **entry}))
        if len(self._lines) > MAX_LINES:
            self._lines.popleft()
            self._dropped += 1

    def flush(self) -> None:
        """Write what was collected, unless the last write is still under way."""
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
            self._lines.appendleft(json.dumps({"dropped_lines": self._dropped}))
            self._dropped = 0
        text = "\n".join(self._lines) + "\n"
        self._lines.clear()
        return text
