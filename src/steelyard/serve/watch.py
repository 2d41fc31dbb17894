"""What is told of each answered request: to the metrics always, to the telemetry if it is on. Never payload."""

from collections.abc import Callable
from typing import Protocol

from steelyard.serve.message import Request
from steelyard.serve.metrics import TELEMETRY_DROPPED, Metrics
from steelyard.serve.trace import Trace, begun

_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}


class Teller(Protocol):
    """Telemetry, as `Watch` needs it: see telemetry.Telemetry."""

    dropped: int

    def tell(self, request: Request, operation: str, trace: Trace, status: int, times: "Times") -> None: ...


class Times:
    """When an answer ended (nanoseconds since 1970), how long it took, and when its first chunk went out."""

    __slots__ = ("end_ns", "first_chunk_s", "seconds")

    def __init__(self, end_ns: int, seconds: float, first_chunk_s: float | None) -> None:
        self.end_ns = end_ns
        self.seconds = seconds
        self.first_chunk_s = first_chunk_s


class Watch:
    """clock_ns: nanoseconds since 1970, asked only for telemetry."""

    def __init__(
        self, metrics: Metrics, telemetry: Teller | None = None, clock_ns: Callable[[], int] = lambda: 0
    ) -> None:
        self._metrics = metrics
        self._telemetry = telemetry
        self._clock_ns = clock_ns
        self._dropped = 0

    def trace(self, request: Request) -> Trace | None:
        """The request's place in a trace, when it begins; its `traceparent` is for upstreams. Absent when it is off."""
        return None if self._telemetry is None else begun(request.headers.get(b"traceparent"))

    def answered(
        self,
        request: Request,
        status: int,
        seconds: float,
        first_chunk_s: float | None = None,
        trace: Trace | None = None,
    ) -> None:
        """Once for each request, when its answer ended. status: 0 when there was none."""
        route, caller, end = request.route, request.caller, request.end
        name = route.name if route is not None else ""
        self._metrics.observe(
            name,
            request.alias or "",
            (caller.team or "") if caller is not None else "",
            status,
            seconds,
            first_chunk_s,
            end.prompt_tokens if end is not None else None,
            end.completion_tokens if end is not None else None,
        )
        if end is not None and end.pii:
            self._metrics.found(end.pii)
        if trace is not None and self._telemetry is not None and name in _OPERATIONS:
            times = Times(self._clock_ns(), seconds, first_chunk_s)
            self._telemetry.tell(request, _OPERATIONS[name], trace, status, times)

    def tick(self, *, in_flight: int, ledger_waiting: int = 0, ledger_broken: bool = False) -> None:
        """Each second or so."""
        self._metrics.tick(in_flight=in_flight, ledger_waiting=ledger_waiting, ledger_broken=ledger_broken)
        if self._telemetry is not None and self._telemetry.dropped != self._dropped:
            self._metrics.add(TELEMETRY_DROPPED, self._telemetry.dropped - self._dropped)
            self._dropped = self._telemetry.dropped
