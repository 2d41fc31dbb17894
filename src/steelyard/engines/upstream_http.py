"""HTTP/1.1 to an upstream: one request at a time on each connection, kept alive, bounded, by raw callbacks.

httptools reads; this module limits and hands over. What comes in a body is passed on as it comes; a consumer that is
behind stops the reading. A connection is used again only after a complete answer with nothing behind it.

Attacks by an upstream: endless heads, bodies and lines, answers nobody asked for, lengths that lie, redirects (never
followed), compressed bodies (we ask for none and read none), silence. Source: RFC 9112.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import cast

import httptools

from steelyard.errors import Unavailable

MAX_HEAD_BYTES = 64 << 10
MAX_BODY_BYTES = 64 << 20  # of a whole answer
MAX_WAITING_BYTES = 1 << 20  # of a streamed one, not yet taken

_BODY_TYPES = (b"application/json", b"text/event-stream")


class Line(asyncio.Protocol):
    """A connection to an upstream. `status`, `content_type` and `retry_after` are those of the answer in work."""

    def __init__(self, on_free: Callable[["Line"], None], on_lost: Callable[["Line"], None]) -> None:
        self._on_free = on_free
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._parser: httptools.HttpResponseParser
        self._waiter: asyncio.Future[None] | None = None
        self._parts: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._total_bytes = 0
        self._head_bytes = 0
        self._is_paused = False
        self._is_streaming = False
        self._is_kept = False
        self._failure: str | None = None
        self._deadline = 0.0
        self.is_open = True
        self.is_busy = False
        self.is_complete = False
        self.has_head = False
        self.has_answered = False  # bytes of an answer have come
        self.status = 0
        self.content_type = b""
        self.retry_after = b""
        self.idle_since = 0.0
        self.limit_s = 0.0  # what the engine waits for an answer
        self.between_s = 0.0  # and between the parts of one
        self.was_used = False  # before the request in work
        self.is_late = False

    # What the engine does.

    def send(self, data: bytes, *, stream: bool) -> None:
        """Begin a request. The line must be free."""
        self._parser = httptools.HttpResponseParser(self)
        self._parts.clear()
        self._waiting_bytes = self._total_bytes = self._head_bytes = 0
        self.was_used = self.idle_since > 0
        self.is_busy = True
        self.is_complete = self.has_head = self.has_answered = self._is_kept = False
        self._is_streaming = stream
        self.status = 0
        self.content_type = self.retry_after = b""
        self._transport.write(data)

    async def head(self, limit_s: float) -> None:
        """Wait for the answer's head. Raises Unavailable."""
        deadline = self._loop.time() + limit_s
        while not self.has_head:
            await self._wait(deadline)

    async def whole(self, limit_s: float) -> bytes:
        """The whole body. Raises Unavailable when it does not come in time, or not whole."""
        deadline = self._loop.time() + limit_s
        while not self.is_complete:
            await self._wait(deadline)
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    async def part(self, limit_s: float) -> bytes:
        """What has come since the last time, at least one byte; empty at the end. Raises Unavailable."""
        if not self._parts and not self.is_complete:
            deadline = self._loop.time() + limit_s
            while not self._parts and not self.is_complete:
                await self._wait(deadline)
        data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._waiting_bytes = 0
        if self._is_paused:
            self._is_paused = False
            self._transport.resume_reading()
        return data

    def release(self) -> None:
        """Give the line back. It is closed unless its answer is complete."""
        if not self.is_busy:
            return
        self.is_busy = False
        if not self.is_complete or not self.is_open or not self._is_kept:
            self.close()
        else:
            self._on_free(self)

    def close(self) -> None:
        """Close at once: the upstream sees its client leave, and stops."""
        self.is_open = False
        self._transport.abort()

    # What the transport does.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, _exc: Exception | None) -> None:
        self.is_open = False
        self._on_lost(self)
        self._fail("the upstream closed the connection")

    def data_received(self, data: bytes) -> None:
        if not self.is_busy or self.is_complete:
            self.close()  # bytes nobody asked for: what they belong to cannot be told
            return
        self.has_answered = True
        if not self.has_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES + len(data):
                self._break(f"the upstream's head is longer than {MAX_HEAD_BYTES} bytes")
                return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._break(
                cause.message if isinstance(cause, Unavailable) else "the upstream's answer is not HTTP/1.1"
            )
        else:
            self._wake()

    def eof_received(self) -> bool:
        return False

    # What the parser finds.

    def on_message_begin(self) -> None:
        if self.is_complete:
            raise Unavailable("the upstream sent a second answer to one request")

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"content-type":
            self.content_type = value.partition(b";")[0].strip().lower()
        elif name == b"retry-after":
            self.retry_after = value
        elif name == b"content-encoding" and value.lower() != b"identity":
            raise Unavailable("the upstream compressed its answer, which it was asked not to")

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        self.has_head = self.status >= 200

    def on_body(self, data: bytes) -> None:
        self._parts.append(data)
        size = len(data)
        self._total_bytes += size
        if self._is_streaming and self.status == 200:
            self._waiting_bytes += size
            if self._waiting_bytes > MAX_WAITING_BYTES and not self._is_paused:
                self._is_paused = True
                self._transport.pause_reading()
        elif self._total_bytes > MAX_BODY_BYTES:
            raise Unavailable(f"the upstream's answer is longer than {MAX_BODY_BYTES} bytes")

    def on_message_complete(self) -> None:
        if self.has_head:  # else it was an interim answer, 100 or 103
            self.is_complete = True
            self._is_kept = self._parser.should_keep_alive()  # true only while the parser is here

    # Waiting.

    def check_deadline(self, now: float) -> None:
        """Break off what takes too long. One timer of the engine calls this for all its lines."""
        if self._waiter is not None and now > self._deadline:
            self.is_late = True
            self._break("the upstream does not answer in time")

    async def _wait(self, deadline: float) -> None:
        if self._failure is not None:
            raise Unavailable(self._failure)
        self._deadline = deadline
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
        if self._failure is not None and not self.is_complete:
            raise Unavailable(self._failure)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _break(self, reason: str) -> None:
        self._fail(reason)
        self.close()

    def _fail(self, reason: str) -> None:
        self._failure = self._failure or reason
        self._wake()
