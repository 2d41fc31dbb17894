"""One upstream server: where it is, its connections, and whether it is up.

A member that failed FAILURES times in a row is left alone for a pause that doubles (a circuit breaker); then one
request tries it. Its addresses are looked up once, when the engine starts: what a name means later changes nothing.
"""

import asyncio
import contextlib
import logging
import random
import socket
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from steelyard.engines.upstream_http import Line
from steelyard.errors import SteelyardError, Unavailable

FAILURES = 5
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
HEALTH_S = 5.0
HEALTH_LIMIT_S = 3.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a member is and how it is spoken to.

    url parts: `host`, `port`, `prefix` (what stands before /v1), `is_tls`.  model: its own name for the weights.
    api_key: sent as a bearer token, never the caller's.  ca_file: trusted instead of the system's.  identity: what is
    known of its weights without a node's word (policy.IDENTITIES).
    """

    name: str
    host: str
    port: int
    model: str
    prefix: str = ""
    is_tls: bool = False
    api_key: str | None = None
    ca_file: Path | None = None
    identity: str = "asserted"
    max_connections: int = 256
    connect_s: float = 3.0
    answer_s: float = 600.0  # to the end of a whole answer, and to a stream's first byte
    chunk_s: float = 120.0  # between the chunks of a stream
    idle_s: float = 30.0  # an unused connection is closed after this
    node: "Place | None" = None  # the agent on its host, `steelyard node`

    @property
    def origin(self) -> str:
        return f"http{'s' if self.is_tls else ''}://{self.authority}"

    @property
    def authority(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


Dial = Callable[[Place], Awaitable[socket.socket]]


class Dialler:
    """Opens sockets to addresses looked up at most once for each place."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, int], list[tuple[int, tuple[str, int]]]] = {}

    async def __call__(self, place: Place) -> socket.socket:
        """A connected socket. Raises Unavailable."""
        loop = asyncio.get_running_loop()
        key = (place.host, place.port)
        failure = "no address"
        try:
            if key not in self._found:
                found = await loop.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
                self._found[key] = [
                    (family, (str(address[0]), int(address[1]))) for family, _, _, _, address in found
                ]
            for family, address in self._found[key]:
                sock = socket.socket(family, socket.SOCK_STREAM)
                sock.setblocking(False)
                try:
                    await asyncio.wait_for(loop.sock_connect(sock, address), place.connect_s)
                except (OSError, TimeoutError) as error:
                    sock.close()
                    failure = getattr(error, "strerror", None) or "no answer in time"
                except BaseException:
                    sock.close()
                    raise
                else:
                    return sock
        except OSError as error:
            failure = error.strerror or str(error)
        raise Unavailable(f"cannot connect to {place.origin}: {failure}")


class Member:
    """A place, its lines and its health."""

    def __init__(self, place: Place, dial: Dial) -> None:
        self.place = place
        self.busy = 0
        self.identity = place.identity
        self._dial = dial
        self._free: deque[Line] = deque()
        self._lines: set[Line] = set()
        self._tls = _tls_of(place) if place.is_tls else None
        self._failures = 0
        self._pause_s = FIRST_PAUSE_S
        self._shut_until = 0.0
        self._loop = asyncio.get_running_loop()
        self._watch: asyncio.Task[None] | None = None
        fields = [f"host: {place.authority}", "accept-encoding: identity", "user-agent: steelyard"]
        if place.api_key is not None:
            fields.append(f"authorization: Bearer {place.api_key}")
        self._fields = "\r\n".join(fields)
        self._heads: dict[str, bytes] = {}

    # Requests.

    async def send(self, path: str, body: bytes, *, stream: bool = False, method: str = "POST") -> Line:
        """Begin a request on a line, which is to be released afterwards. Raises Unavailable."""
        head = self._heads.get(method + path)
        if head is None:
            target = f"{method} {self.place.prefix}{path} HTTP/1.1\r\n{self._fields}\r\n"
            head = self._heads[method + path] = f"{target}content-type: application/json\r\n".encode()
        line = self._taken() or await self._dialled()
        line.send(b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body), stream=stream)
        return line

    def succeeded(self) -> None:
        self._failures = 0
        self._pause_s = FIRST_PAUSE_S
        self._shut_until = 0.0

    def failed(self) -> None:
        """Another failure in a row."""
        self._failures += 1
        if self._failures >= FAILURES:
            self._shut_until = self._loop.time() + self._pause_s
            self._pause_s = min(LONGEST_PAUSE_S, 2 * self._pause_s)

    @property
    def is_shut(self) -> bool:
        """Left alone for now. When the pause is over one request may try."""
        if self._failures < FAILURES:
            return False
        now = self._loop.time()
        if now < self._shut_until:
            return True
        self._shut_until = now + self._pause_s  # this one tries; the others wait for it
        return False

    def _taken(self) -> Line | None:
        while self._free:
            line = self._free.pop()
            if line.is_open:
                return line
        return None

    async def _dialled(self) -> Line:
        if len(self._lines) >= self.place.max_connections:
            raise Unavailable(f"{self.place.origin} has {self.place.max_connections} requests in work")
        sock = await self._dial(self.place)
        line = Line(self._freed, self._lines.discard)
        self._lines.add(line)
        try:
            connecting = self._loop.create_connection(
                lambda: line,
                sock=sock,
                ssl=self._tls,
                server_hostname=self.place.host if self._tls else None,
            )
            await asyncio.wait_for(connecting, self.place.connect_s)
        except (OSError, TimeoutError) as error:
            self._lines.discard(line)
            sock.close()
            reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or "no answer in time"
            raise Unavailable(f"cannot speak to {self.place.origin}: {reason}") from error
        except BaseException:
            self._lines.discard(line)
            sock.close()
            raise
        return line

    def _freed(self, line: Line) -> None:
        line.idle_since = self._loop.time()
        self._free.append(line)

    # Watch.

    def start(self) -> None:
        if self._watch is None:
            self._watch = asyncio.create_task(self._watching())

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watch
            self._watch = None
        for line in tuple(self._lines):
            line.close()
        self._free.clear()

    def tick(self, now: float) -> None:
        """End what takes too long and close lines that nobody used for a while."""
        for line in tuple(self._lines):
            line.check_deadline(now)
        while self._free and now - self._free[0].idle_since > self.place.idle_s:
            self._free.popleft().close()

    async def _watching(self) -> None:
        while True:
            await asyncio.sleep(HEALTH_S * random.uniform(0.8, 1.2))  # noqa: S311 - spreads the load
            try:
                await self.check_health()
            except SteelyardError as error:
                if not self._failures:
                    _log.warning("%s: %s", self.place.origin, error.message)
                self.failed()
            else:
                if self._failures >= FAILURES:
                    _log.warning("%s is back", self.place.origin)
                self.succeeded()

    async def check_health(self) -> None:
        """Raises Unavailable unless it answers."""
        line = await self.send("/v1/models", b"", method="GET")
        try:
            await line.whole(HEALTH_LIMIT_S)
            if line.status >= 500 or line.status in (401, 403):
                raise Unavailable(f"the upstream answers /v1/models with {line.status}")
        finally:
            line.release()


def _tls_of(place: Place) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=place.ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
