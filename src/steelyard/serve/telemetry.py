"""OpenTelemetry for requests: spans and metrics to one OTLP/HTTP receiver. Off unless the configuration names it.

A request costs the hot path one append to a bounded queue. A thread encodes and sends; when the receiver is slow or
away the oldest requests are dropped and counted. Nothing is kept on disk and nothing waits for it.
"""

import http.client
import logging
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from steelyard.errors import SteelyardError, WrongUsage
from steelyard.serve.egress_dialler import Target, tcp
from steelyard.serve.message import Request
from steelyard.serve.telemetry_otlp import CONVENTIONS, Encoder, Finished
from steelyard.serve.trace import Trace
from steelyard.serve.watch import Times

MAX_WAITING = 8192  # requests not yet sent
MAX_BATCH = 512
INTERVAL_S = 1.0
METRICS_INTERVAL_S = 10.0
SEND_LIMIT_S = 10.0
TARGET = "telemetry"  # its name on the list of addresses
_RETRIED = frozenset({408, 429, 500, 502, 503, 504})

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TelemetryConfig:
    """url: of the receiver, http or https, such as http://127.0.0.1:4318.  headers: sent with every message.

    ca_file: the receiver's own CA, instead of the system's.  Raises WrongUsage.
    """

    url: str
    conventions: str = "latest"
    headers: Mapping[str, str] = field(default_factory=dict)
    ca_file: Path | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            raise WrongUsage(f"telemetry.url {self.url!r} is not an http or https address")
        if self.conventions not in CONVENTIONS:
            raise WrongUsage(
                f"telemetry.conventions {self.conventions!r} is not one of {', '.join(CONVENTIONS)}"
            )

    @property
    def target(self) -> Target:
        """What joins the list of addresses that may be reached, under the name TARGET."""
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        return tcp(parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))


class Telemetry:
    """Sends what `finished` is told.

    dial: a connected socket to TARGET, asked for in the sender's thread; raises SteelyardError or OSError.
    clock_ns: nanoseconds since 1970.  instance: what tells this worker from others.
    """

    def __init__(
        self,
        config: TelemetryConfig,
        dial: Callable[[], socket.socket],
        *,
        clock_ns: Callable[[], int],
        version: str,
        instance: str,
        interval_s: float = INTERVAL_S,
        metrics_interval_s: float = METRICS_INTERVAL_S,
    ) -> None:
        self._config = config
        self._path = urlsplit(config.url).path.rstrip("/")
        self._dial = dial
        self._clock_ns = clock_ns
        self._interval_s = interval_s
        self._metrics_every = max(1, round(metrics_interval_s / interval_s))
        resource = {"service.name": "steelyard", "service.version": version, "service.instance.id": instance}
        self._encoder = Encoder(CONVENTIONS[config.conventions], resource, clock_ns())
        # Read before the doors close: later it may not be there.
        self._tls = ssl.create_default_context(cafile=config.ca_file) if config.url[:5] == "https" else None
        self._waiting: deque[Finished] = deque()
        self._closing = threading.Event()
        self._is_up = True
        self.dropped = 0
        self._thread = threading.Thread(target=self._run, name="telemetry", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def finished(self, request: Finished) -> None:
        """Tell of a request. Never waits, never fails."""
        self._waiting.append(request)
        if len(self._waiting) > MAX_WAITING:
            self._waiting.popleft()
            self.dropped += 1

    def tell(self, request: Request, operation: str, trace: Trace, status: int, times: Times) -> None:
        """As `watch.Teller` wants it."""
        end, route = request.end, request.route
        self.finished(
            Finished(
                trace=trace,
                operation=operation,
                route=route.name if route is not None else "",
                alias=request.alias or "",
                status=status,
                end_ns=times.end_ns,
                duration_s=times.seconds,
                first_chunk_s=times.first_chunk_s,
                prompt_tokens=end.prompt_tokens if end is not None else None,
                completion_tokens=end.completion_tokens if end is not None else None,
                finish_reason=end.finish_reason if end is not None else None,
                digest=request.digest or "",
                receipt=request.receipt,
            )
        )

    def close(self, limit_s: float = SEND_LIMIT_S) -> None:
        """Send what waits, if that can be done in time."""
        self._closing.set()
        self._thread.join(limit_s)

    # In the thread.

    def _run(self) -> None:
        turn, is_last = 0, False
        while not is_last:
            is_last = self._closing.wait(self._interval_s)
            turn += 1
            self._send_waiting()
            if is_last or turn % self._metrics_every == 0:
                self._post("/v1/metrics", self._encoder.metrics(self._clock_ns()))

    def _send_waiting(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(MAX_BATCH, len(self._waiting)))]
            for request in batch:
                self._encoder.count(request)
            if not self._post("/v1/traces", self._encoder.spans(batch)):
                self.dropped += len(batch)
                return  # what still waits may go with the next turn

    def _post(self, path: str, body: bytes) -> bool:
        try:
            self._deliver(self._path + path, body)
        except (OSError, http.client.HTTPException, SteelyardError) as error:
            if self._is_up:
                _log.warning("telemetry is not received: %s", error)
            self._is_up = False
            return False
        self._is_up = True
        return True

    def _deliver(self, path: str, body: bytes) -> None:
        headers = {"content-type": "application/x-protobuf", **self._config.headers}
        with closing(_Connection(self._config.url, self._dial, self._tls)) as connection:
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            answer.read(1 << 16)
            if answer.status != 200:
                word = "try later" if answer.status in _RETRIED else "not taken"
                raise http.client.HTTPException(f"the receiver says {answer.status} ({word})")


class _Connection(http.client.HTTPConnection):
    """One connection over a socket from the dialler."""

    def __init__(self, url: str, dial: Callable[[], socket.socket], tls: ssl.SSLContext | None) -> None:
        super().__init__(urlsplit(url).netloc.rpartition("@")[2], timeout=SEND_LIMIT_S)
        self._dial = dial
        self._tls = tls

    def connect(self) -> None:
        found = self._dial()
        found.settimeout(SEND_LIMIT_S)
        self.sock = self._tls.wrap_socket(found, server_hostname=self.host) if self._tls else found
