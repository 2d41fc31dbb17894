"""What the HTTP layer hands to the application and what it gets back."""

from dataclasses import dataclass, field
from typing import Protocol

from steelyard.records import End
from steelyard.serve.auth import Caller
from steelyard.serve.routes import Route
from steelyard.serve.trace import Trace
from steelyard.turn import Parts

REASONS = {
    200: b"OK",
    204: b"No Content",
    400: b"Bad Request",
    401: b"Unauthorized",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    413: b"Content Too Large",
    414: b"URI Too Long",
    415: b"Unsupported Media Type",
    417: b"Expectation Failed",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    501: b"Not Implemented",
    503: b"Service Unavailable",
    505: b"HTTP Version Not Supported",
}
JSON_TYPE = (b"content-type", b"application/json")


@dataclass(slots=True)
class Request:
    """One HTTP request. Header names are lower case; a name sent twice keeps its first value.

    early: an answer decided on the head alone.  caller: who asks, set once the application has checked the head.
    peer: the caller's address.  began_at: monotonic seconds.  first_chunk_s: from then to a stream's first bytes.
    trace: its place in a trace, if traces are told.
    route: where it goes, absent when there is no such address.  alias, receipt, digest, end, has_left: what the
    access log says about it.
    """

    method: bytes = b""
    target: bytes = b""
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""
    is_http10: bool = False
    early: "Response | None" = None
    caller: Caller | None = None
    route: Route | None = None
    alias: str | None = None
    receipt: str = ""
    digest: str | None = None
    end: End | None = None
    has_left: bool = False
    peer: str = ""
    began_at: float = 0.0
    first_chunk_s: float | None = None
    trace: Trace | None = None

    @property
    def path(self) -> bytes:
        """The target up to its query. Matched byte for byte: no decoding, no dot segments."""
        return self.target.partition(b"?")[0]


@dataclass(slots=True)
class Response:
    """Status, headers and either the whole body or its parts as they come."""

    status: int
    body: bytes | Parts = b""
    headers: tuple[tuple[bytes, bytes], ...] = (JSON_TYPE,)


class Application(Protocol):
    """What answers requests."""

    def check_head(self, request: Request) -> Response | None:
        """An early no, before the body is read; None to go on."""

    async def answer(self, request: Request) -> Response: ...

    def malformed(self, status: int, message: str) -> Response:
        """The answer to bytes that are no request."""

    def failed(self) -> Response:
        """The answer when the application broke."""

    def log(self, request: Request, status: int, sent_bytes: int, seconds: float) -> None:
        """One line for the access log."""

    def tick(self) -> None:
        """Called often, for what need not happen at once."""
