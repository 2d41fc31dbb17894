"""What the connections of one server share: limits, clocks, and the watch over deadlines."""

import asyncio
import email.utils
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from steelyard.serve.message import Application


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on one connection. Sizes in bytes, times in seconds."""

    head_bytes: int = 32 << 10
    headers: int = 64
    target_bytes: int = 2 << 10
    body_bytes: int = 4 << 20
    pipeline: int = 16  # requests waiting behind the one in work
    connections: int = 1024
    head_s: float = 10.0  # from the first byte of a request (or the connection) to the end of its head
    body_s: float = 60.0
    idle_s: float = 75.0  # between requests
    write_s: float = 60.0  # a client that does not read
    ignored_body_bytes: int = 64 << 10  # read and dropped after an early no, to keep the connection
    linger_s: float = 2.0  # how long an unread body is thrown away after an early no


class Watched(Protocol):
    """A connection as the hub sees it."""

    def check_deadlines(self, now: float) -> None: ...

    def drain(self) -> None:
        """Finish what is in work, then close."""

    def abort(self) -> None: ...


class Hub:
    """now: monotonic seconds.  date: the value of the Date field."""

    def __init__(self, app: Application, limits: Limits, clock: Callable[[], datetime]) -> None:
        self.app = app
        self.limits = limits
        self.loop = asyncio.get_running_loop()
        self.now = self.loop.time
        self.connections: set[Watched] = set()
        self.is_empty = asyncio.Event()
        self.is_empty.set()
        self._clock = clock
        self._date = b""
        self.tick()

    def admit(self, connection: Watched) -> bool:
        """Keep watch over `connection`; whether there was room for it."""
        has_room = len(self.connections) < self.limits.connections
        self.connections.add(connection)
        self.is_empty.clear()
        return has_room

    def forget(self, connection: Watched) -> None:
        self.connections.discard(connection)
        if not self.connections:
            self.is_empty.set()

    def date(self) -> bytes:
        return self._date

    def tick(self) -> None:
        """End connections past a deadline. One timer for all: a timer for each request would cost more."""
        self._date = email.utils.format_datetime(self._clock(), usegmt=True).encode()
        now = self.now()
        for connection in tuple(self.connections):
            connection.check_deadlines(now)
