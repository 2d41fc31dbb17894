"""What the HTTP layer hands to the application and what it gets back."""

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from steelyard.digest import JSON

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

    early: an answer decided on the head alone.  caller: the API key's name, set once the application has checked
    the head.  notes: what the access log may say about this request; never payload.
    """

    method: bytes = b""
    target: bytes = b""
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""
    is_http10: bool = False
    early: "Response | None" = None
    caller: str | None = None
    notes: dict[str, JSON] = field(default_factory=dict)

    @property
    def path(self) -> bytes:
        """The target up to its query. Matched byte for byte: no decoding, no dot segments."""
        return self.target.partition(b"?")[0]


@dataclass(frozen=True, slots=True)
class Response:
    """Status, headers and either the whole body or its parts as they come, `first` before them."""

    status: int
    body: bytes | AsyncGenerator[bytes, None] = b""
    headers: tuple[tuple[bytes, bytes], ...] = (JSON_TYPE,)
    first: bytes = b""


class Application(Protocol):
    """What answers requests."""

    def check_head(self, request: Request) -> Response | None:
        """An early no, before the body is read; None to go on."""

    async def answer(self, request: Request) -> Response: ...

    def malformed(self, status: int, message: str) -> Response:
        """The answer to bytes that are no request."""

    def failed(self) -> Response:
        """The answer when the application broke."""

    def log(self, entry: Mapping[str, JSON]) -> None:
        """One line for the access log."""

    def tick(self) -> None:
        """Called often, for what need not happen at once."""
