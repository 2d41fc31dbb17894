"""HTTP/1.1 on an asyncio transport: llhttp (through httptools) reads, this module limits, orders and answers.

One Connection per client. Requests of a pipeline are answered in order, one at a time. Every way to send bytes has
a bound in size and in time (`Limits`). llhttp runs strict; what it lets pass and we do not: HTTP other than 1.0 and
1.1, no or two Host fields, transfer codings besides `chunked`, chunked in HTTP/1.0, trailers, a target that is not
a path. A client that closes its side has left: its request is cancelled and the engine stops.

Attacks: request smuggling (RFC 9112 sections 6.1, 6.3, 11.2), slow head or body, unread answers, floods of heads,
chunk extensions and pipelined requests. Source: RFC 9110, RFC 9112.
"""

import asyncio
import logging
import math
import traceback
from collections import deque
from typing import cast

import httptools

from steelyard.errors import Malformed
from steelyard.serve.hub import Hub, Limits
from steelyard.serve.message import REASONS, Request, Response

_log = logging.getLogger(__name__)


_STATUS = {
    "http/head-size": 431,
    "http/header-count": 431,
    "http/target-size": 414,
    "http/body-size": 413,
    "http/expect": 417,
    "http/transfer-encoding": 501,
    "http/version": 505,
}
_SINGLE = frozenset((b"host", b"authorization", b"content-type", b"expect", b"origin", b"transfer-encoding"))
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_LINGER_BYTES = 16 << 20


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._limits = hub.limits
        self._transport: asyncio.Transport
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[tuple[Request, bool] | Response] = deque()
        self._task: asyncio.Task[None] | None = None
        self._peer = ""
        self._request = Request()
        self._fields: list[tuple[bytes, bytes]] = []
        self._parts: list[bytes] = []
        self._body_size = self._wire_size = 0
        self._in_head = self._in_body = False
        self._reading_paused = False
        self._deaf = False  # nothing more is parsed: the connection ends after the queue
        self._writable = asyncio.Event()
        self._writable.set()
        self._read_by = hub.now() + self._limits.head_s
        self._write_by: float | None = None
        self._linger_by: float | None = None

    # Transport events.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self._peer = str(peer[0]) if isinstance(peer, tuple) else ""
        if not self._hub.admit(self):
            self._refuse(
                self._hub.app.malformed(503, "the gateway has too many connections; try again later")
            )

    def connection_lost(self, _exc: Exception | None) -> None:
        self._hub.forget(self)
        self._deaf = True
        self._queue.clear()
        if self._task is not None:
            self._task.cancel()

    def eof_received(self) -> bool:
        return False  # closes the transport: half-closed clients are gone clients

    def pause_writing(self) -> None:
        self._writable.clear()
        self._write_by = self._hub.now() + self._limits.write_s

    def resume_writing(self) -> None:
        self._write_by = None
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self._wire_size += len(data)
        if self._deaf:
            if self._wire_size > _LINGER_BYTES:
                self._transport.abort()
            return
        try:
            self._parser.feed_data(data)
            self._check_sizes()
        except httptools.HttpParserUpgrade:
            self._deaf = True  # the request before the upgrade is answered as plain HTTP/1.1
        except Malformed as error:
            self._refuse_malformed(error)
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            if isinstance(cause, Malformed):
                self._refuse_malformed(cause)
            else:
                _log.error("request head failed: %s", _where(cause or error))
                self._refuse(self._hub.app.failed())
        except httptools.HttpParserError as error:
            self._refuse_malformed(Malformed(f"not HTTP/1.1: {error}", rule="http/syntax"))
        self._advance()

    # Parser events. Raising Malformed stops the parser.

    def on_message_begin(self) -> None:
        self._request = Request(peer=self._peer)
        self._fields = []
        self._parts = []
        self._body_size = self._wire_size = 0
        self._in_head = True
        self._read_by = self._hub.now() + self._limits.head_s

    def on_url(self, target: bytes) -> None:
        self._request.target += target
        if len(self._request.target) > self._limits.target_bytes:
            raise Malformed(
                f"the target is longer than {self._limits.target_bytes} bytes", rule="http/target-size"
            )

    def on_header(self, name: bytes, value: bytes) -> None:
        # Looked at together at the head's end; `_check_sizes` bounds what comes before it.
        if not self._in_head:
            raise Malformed("trailers are not accepted", rule="http/trailer")
        self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._in_body = True
        request = self._request
        request.method = self._parser.get_method()
        request.headers = headers = _headers(self._fields, self._limits)
        size = _check_head(request, self._parser.get_http_version(), self._limits)
        self._read_by = self._hub.now() + self._limits.body_s
        request.early = self._hub.app.check_head(request)
        expects = headers.get(b"expect")
        if request.early is not None and (size > self._limits.ignored_body_bytes or expects is not None):
            self._queue.append(request.early)
            raise Malformed("answered before the body", rule="http/early")
        if expects is not None:
            if expects.lower() != b"100-continue":
                raise Malformed("the only expectation known is 100-continue", rule="http/expect")
            if self._task is None and not self._queue:
                self._transport.write(_CONTINUE)

    def on_body(self, part: bytes) -> None:
        self._body_size += len(part)
        if self._body_size > self._limits.body_bytes:
            raise Malformed(f"the body is longer than {self._limits.body_bytes} bytes", rule="http/body-size")
        self._parts.append(part)

    def on_message_complete(self) -> None:
        self._in_body = False
        parts = self._parts
        self._request.body = parts[0] if len(parts) == 1 else b"".join(parts)
        keep_alive = self._parser.should_keep_alive()
        self._queue.append((self._request, keep_alive))
        self._parts = []
        self._read_by = self._hub.now() + self._limits.idle_s
        if len(self._queue) > 4 * self._limits.pipeline:
            raise Malformed("too many requests in a pipeline", rule="http/pipeline")

    # Deadlines: the hub calls this every tick.

    def check_deadlines(self, now: float) -> None:
        if _is_past(self._linger_by, now) or _is_past(self._write_by, now):
            self._transport.abort()
        elif not self._deaf and self._task is None and now > self._read_by:
            if self._in_head or self._in_body:
                self._refuse(self._hub.app.malformed(408, "the request took too long to arrive"))
            else:
                self._transport.close()

    def drain(self) -> None:
        """Finish what is in work, then close."""
        if self._task is None and not self._queue:
            self._transport.close()
        self._deaf = True

    def abort(self) -> None:
        self._transport.abort()

    def _check_sizes(self) -> None:
        # Bytes that cause no event: an endless field, chunk headers and extensions.
        limits = self._limits
        if self._in_head and self._wire_size > limits.head_bytes + limits.target_bytes:
            raise Malformed(f"the head is longer than {limits.head_bytes} bytes", rule="http/head-size")
        if self._in_body and self._wire_size > limits.head_bytes + 2 * limits.body_bytes:
            raise Malformed("the body has more framing than content", rule="http/body-size")

    def _refuse_malformed(self, error: Malformed) -> None:
        if error.rule == "http/early":
            self._deaf = True
        else:
            self._refuse(self._hub.app.malformed(_STATUS.get(error.rule, 400), error.message))

    def _refuse(self, response: Response) -> None:
        # In its turn: requests before the broken one are still answered.
        self._deaf = True
        self._queue.append(response)
        self._advance()

    def _advance(self) -> None:
        if self._linger_by is not None:
            return
        if self._task is not None:
            if len(self._queue) >= self._limits.pipeline and not self._reading_paused:
                self._reading_paused = True
                self._transport.pause_reading()
            return
        if not self._queue:
            if self._deaf:
                self._transport.close()
            return
        item = self._queue.popleft()
        if isinstance(item, Response):
            self._last_word(item)
            return
        request, keep_alive = item
        if not keep_alive:
            self._deaf = True
            self._queue.clear()
        self._task = self._hub.loop.create_task(self._respond(request, keep_alive))

    async def _respond(self, request: Request, keep_alive: bool) -> None:
        """The outermost middleware: whatever breaks below is logged without payload and answered with 500."""
        request.began_at = self._hub.now()
        sending = _Sending(self._transport, self._writable, request, self._hub)
        try:
            response = request.early or await self._hub.app.answer(request)
            keep_alive = keep_alive and not (self._deaf and not self._queue)
            await sending.send(response, keep_alive)
        except asyncio.CancelledError:
            request.has_left = True
            raise
        except Exception as error:  # noqa: BLE001 - fails closed; the only such place of the server
            _log.error("request failed: %s", _where(error))
            keep_alive = False
            if sending.status:
                self._transport.abort()  # the client sees a broken body, never a complete one
            else:
                await sending.send(self._hub.app.failed(), keep_alive)
        finally:
            self._task = None
            self._report(request, sending)
        if not keep_alive:
            self._deaf = True
            self._queue.clear()
        self._resume_reading()
        wait_s = self._limits.body_s if self._in_head or self._in_body else self._limits.idle_s
        self._read_by = self._hub.now() + wait_s
        self._advance()

    def _resume_reading(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()

    def _last_word(self, response: Response) -> None:
        # Closing with unread bytes would reset the connection and may destroy the answer on its way
        # (RFC 9112, section 9.6): stop writing, throw away what still comes, then close.
        sending = _Sending(self._transport, self._writable, Request(), self._hub)
        sending.send_whole(response, keep_alive=False)
        self._request.began_at = self._hub.now()
        self._report(self._request, sending)
        self._queue.clear()
        self._wire_size = 0
        self._linger_by = self._hub.now() + self._limits.linger_s
        self._resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def _report(self, request: Request, sending: "_Sending") -> None:
        self._hub.app.log(request, sending.status, sending.sent_bytes, self._hub.now() - request.began_at)


class _Sending:
    """Writes one response. `status` is 0 until its first byte is written."""

    def __init__(
        self,
        transport: asyncio.WriteTransport,
        writable: asyncio.Event,
        request: Request,
        hub: Hub,
    ) -> None:
        self._transport = transport
        self._writable = writable
        self._request = request
        self._hub = hub
        self.status = 0
        self.sent_bytes = 0

    async def send(self, response: Response, keep_alive: bool) -> None:
        if isinstance(response.body, bytes):
            self.send_whole(response, keep_alive)
            return
        # HTTP/1.0 knows no chunks: the body ends with the connection.
        chunked = not self._request.is_http10
        head = self._head(
            response, b"transfer-encoding: chunked\r\n" if chunked else b"", keep_alive and chunked
        )
        parts = response.body
        self.status = response.status
        try:
            async for part in parts:
                if not self._writable.is_set():
                    await self._writable.wait()
                if head:
                    self._request.first_chunk_s = self._hub.now() - self._request.began_at
                self._write(head + self._part(part, chunked))
                head = b""
        finally:
            await parts.aclose()
        self._write(head + b"0\r\n\r\n" if chunked else head)

    def send_whole(self, response: Response, keep_alive: bool) -> None:
        body = cast(bytes, response.body)
        head = self._head(response, b"content-length: %d\r\n" % len(body), keep_alive)
        self.status = response.status
        self._write(head if self._request.method == b"HEAD" else head + body)

    @staticmethod
    def _part(part: bytes, chunked: bool) -> bytes:
        return b"%x\r\n%b\r\n" % (len(part), part) if chunked and part else part

    def _head(self, response: Response, framing: bytes, keep_alive: bool) -> bytes:
        status = response.status
        fields = b"".join([b"%b: %b\r\n" % field for field in response.headers])
        alive = b"keep-alive" if keep_alive else b"close"
        return b"HTTP/1.1 %d %b\r\ndate: %b\r\n%b%bconnection: %b\r\n\r\n" % (
            status, REASONS[status], self._hub.date(), fields, framing, alive
        )  # fmt: skip

    def _write(self, data: bytes) -> None:
        self.sent_bytes += len(data)
        self._transport.write(data)


def _is_past(deadline: float | None, now: float) -> bool:
    return deadline is not None and now > deadline


def _headers(fields: list[tuple[bytes, bytes]], limits: Limits) -> dict[bytes, bytes]:
    """Fields by lower-case name, each with its first value."""
    headers: dict[bytes, bytes] = {}
    size = 0
    for written, value in fields:
        size += len(written) + len(value) + 4
        name = written.lower()
        if name not in headers:
            headers[name] = value
        elif name in _SINGLE:
            raise Malformed(f"two {name.decode()} fields", rule="http/repeated-field")
    if size > limits.head_bytes:
        raise Malformed(f"the head is longer than {limits.head_bytes} bytes", rule="http/head-size")
    if len(fields) > limits.headers:
        raise Malformed(f"more than {limits.headers} header fields", rule="http/header-count")
    return headers


def _check_head(request: Request, version: str, limits: Limits) -> float:
    """The bytes of body that a sound head announces; infinite for a chunked one."""
    headers = request.headers
    if version != "1.1":
        request.is_http10 = version == "1.0"
        if not request.is_http10:
            raise Malformed("only HTTP/1.1 and HTTP/1.0 are spoken here", rule="http/version")
    elif b"host" not in headers:
        raise Malformed("no Host field", rule="http/host")
    if not request.target.startswith(b"/") and (request.method, request.target) != (b"OPTIONS", b"*"):
        raise Malformed("the target is not a path", rule="http/target")
    coding = headers.get(b"transfer-encoding")
    if coding is not None:
        if request.is_http10:
            raise Malformed("HTTP/1.0 has no transfer codings", rule="http/transfer-encoding-1.0")
        if coding.lower() != b"chunked":
            raise Malformed("the only transfer coding known is chunked", rule="http/transfer-encoding")
        return math.inf
    size = int(headers.get(b"content-length", b"0"))  # llhttp has checked that it is a number
    if size > limits.body_bytes:
        raise Malformed(f"the body is longer than {limits.body_bytes} bytes", rule="http/body-size")
    return size


def _where(error: BaseException) -> str:
    # The message may quote a payload, so only the type and the places are logged.
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    places = " < ".join(f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in reversed(frames))
    return f"{type(error).__name__} at {places}"
