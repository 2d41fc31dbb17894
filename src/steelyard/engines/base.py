"""The Engine protocol. `tests/conformance/test_engines.py` is the contract in executable form."""

from collections.abc import Awaitable
from typing import Protocol, runtime_checkable

from steelyard.digest import Digest
from steelyard.wire.call import Call, Object


class Chunks(Protocol):
    """A stream of an answer: lists of OpenAI chunk objects, each list what had come since the last.

    Exactly one chunk, in the last list, has `usage`. `aclose` aborts the generation; so does cancelling `__anext__`.
    """

    def __aiter__(self) -> "Chunks": ...

    def __anext__(self) -> Awaitable[list[Object]]: ...

    def aclose(self) -> Awaitable[None]: ...


class Engine(Protocol):
    """Answers for exactly one digest: that of the bytes it loaded.

    `ask` and `stream` raise Unavailable when the engine is down, WrongUsage when the request asks for what this
    engine cannot do (a prompt longer than its context, a schema it cannot compile, another kind of call).
    Another engine may be tried after Unavailable only if no chunk came before it.

    name: what the ledger calls it.  identity: how it is known that these bytes were loaded (policy.IDENTITIES).
    """

    @property
    def digest(self) -> Digest: ...

    @property
    def name(self) -> str: ...

    @property
    def identity(self) -> str: ...

    async def start(self) -> None: ...

    async def close(self) -> None: ...

    async def ask(self, call: Call) -> Object:
        """The whole answer, `usage` included. Cancelling the caller aborts the generation."""

    def stream(self, call: Call) -> Chunks:
        """The answer as it comes."""


@runtime_checkable
class Counts(Protocol):
    """An engine that can tell how many tokens a request would have, template and tools included."""

    async def count(self, call: Call) -> int: ...
