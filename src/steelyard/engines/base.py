"""The Engine protocol. `tests/conformance/test_engines.py` is the contract in executable form."""

from collections.abc import AsyncIterator
from typing import Protocol

from steelyard.digest import Digest
from steelyard.wire.chat import ChatRequest, Chunk


class Engine(Protocol):
    """Answers for exactly one digest: that of the bytes it loaded.

    `generate` yields chunks; the last has `finish_reason` and `usage`. Closing the iterator early
    aborts the generation. Raises Unavailable when the engine is down, WrongUsage when the request
    asks for what this engine cannot do (a prompt longer than its context, a schema it cannot compile).
    """

    @property
    def digest(self) -> Digest: ...

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    def generate(self, request: ChatRequest) -> AsyncIterator[Chunk]: ...
