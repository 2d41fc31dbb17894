"""One admitted request: engine -> restore -> emit -> ledger entry -> last byte.

What ends an answer, from the last finish reason on, and with it the whole of an answer that is not streamed, is held
back until the ledger has the entry.
"""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Protocol

from steelyard.engines.base import Chunks, Engine
from steelyard.errors import SteelyardError, Unavailable
from steelyard.records import Begun, End, Form
from steelyard.sequencer import Sequencer
from steelyard.wire.call import Asked, Call, Object, Problem, Reply

TRY_LATER = Problem(
    503,
    "the gateway cannot answer now (engine, store or ledger); try again later",
    "unavailable",
    retry_after_s=1,
)
REVOKED = Problem(403, "the evidence on this model no longer satisfies the policy", "model_not_admitted")

_log = logging.getLogger(__name__)


class Caller(Protocol):
    """Who asks. key: the name of the API key, absent without one."""

    @property
    def key(self) -> str | None: ...

    @property
    def tenant(self) -> str | None: ...


class Restorer(Protocol):
    """Puts back what one request hid, in its own answer."""

    def whole(self, answer: Object) -> Object: ...

    def chunks(self, chunks: list[Object]) -> list[Object]: ...

    def flush(self) -> list[Object]: ...


class Guarded(Protocol):
    """A request that may go to an engine. counts: what was found, by class."""

    @property
    def call(self) -> Call: ...

    @property
    def counts(self) -> Mapping[str, int]: ...

    @property
    def restorer(self) -> Restorer | None: ...


class Shield(Protocol):
    """Hides personal data. Raises Refused for a blocked class, Unavailable when it cannot tell."""

    def protect(self, call: Call, conversation: bytes) -> Guarded: ...


class Parts(Protocol):
    """A body in parts. `aclose` aborts what is not finished, also when nothing was read yet."""

    def __aiter__(self) -> "Parts": ...

    def __anext__(self) -> Awaitable[bytes]: ...

    def aclose(self) -> Awaitable[None]: ...


@dataclass(slots=True)
class Question:
    """One request at the gate. body: as received.  conversation: the caller's word for one, may be empty."""

    asked: Asked
    caller: Caller
    route: str
    body: bytes
    conversation: bytes = b""

    def done(self, end: End) -> None:
        """Told how the answer ended, once, if there was an Answer. For who asks to override."""


@dataclass(slots=True)
class Answer:
    """An answer, whole or in parts. The ledger's entry precedes the last byte. digest: of the model, `name:hex`."""

    receipt: str
    digest: str
    body: bytes | Parts


class Seat:
    """The place of an engine. busy: turns in work.  is_ready: it was started."""

    __slots__ = ("busy", "digest", "engine", "is_ready")

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.digest = str(engine.digest)
        self.busy = 0
        self.is_ready = False


class Judge(Protocol):
    """Says whether a stream may go on, asked when the store has changed since `head`."""

    @property
    def head(self) -> int: ...

    async def may_go_on(self, question: Question, seat: Seat) -> bool: ...


class Turn:
    """The answering of one request by one engine, entered on `form`. A streamed one iterates over its bytes."""

    __slots__ = (
        "_batch", "_begun", "_call", "_chunks", "_emitter", "_end", "_form", "_hashed", "_head", "_is_entered",
        "_is_over", "_is_said", "_judge", "_ledger", "_open_choices", "_question", "_restorer", "_seat",
    )  # fmt: skip

    def __init__(
        self,
        question: Question,
        guarded: Guarded | None,
        begun: Begun,
        form: Form,
        seat: Seat,
        ledger: Sequencer,
        judge: Judge,
    ) -> None:
        asked = question.asked
        self._question = question
        self._begun = begun
        self._form = form
        self._seat = seat
        self._ledger = ledger
        self._judge = judge
        self._head = judge.head
        self._emitter = asked.emitter(
            Reply(begun.receipt, begun.created, asked.call.model, seat.engine.digest)
        )
        self._hashed = hashlib.sha256(begun.salt)
        self._end = End()
        self._call = asked.call
        self._restorer: Restorer | None = None
        if guarded is not None:
            self._call = guarded.call
            self._restorer = guarded.restorer
            self._end.pii = guarded.counts
        self._is_entered = False
        self._is_over = False
        self._is_said = False  # there is an Answer, so somebody waits for `done`

    async def answer(self) -> Answer:
        """The whole answer, or a stream with its first chunk at hand.

        Raises Unavailable before anything was said, and WrongUsage, after entering that the attempt failed.
        """
        self._seat.busy += 1
        try:
            body = await self._begin() if self._call.stream else await self._whole()
        except BaseException as error:
            self._fail(error)
            raise
        return Answer(self._begun.receipt, self._seat.digest, body)

    async def _whole(self) -> bytes:
        whole = await self._seat.engine.ask(self._call)
        usage = whole.get("usage")
        if not usage:
            raise Unavailable("the engine's answer has no usage")
        self._read_usage(usage)
        if choices := whole.get("choices"):
            self._end.finish_reason = choices[0].get("finish_reason")
        if self._restorer is not None:
            whole = self._restorer.whole(whole)
        body = self._emitter.whole(whole)
        self._hashed.update(body)
        await self._enter(self._hashed)
        self._is_said = True
        self._close()
        return body

    async def _begin(self) -> Parts:
        self._open_choices = _choices(self._call)
        self._chunks: Chunks = self._seat.engine.stream(self._call)
        self._batch: list[Object] | None
        try:
            self._batch = await anext(self._chunks, None)
            if self._batch is None:
                raise Unavailable("the engine ended without a word")
        except BaseException:
            await self._chunks.aclose()
            raise
        self._is_said = True
        return self

    # A stream.

    def __aiter__(self) -> "Turn":
        return self

    async def __anext__(self) -> bytes:
        if self._is_over:
            raise StopAsyncIteration
        try:
            return await self._next()
        except SteelyardError as error:
            _log.error("a stream broke off: %s", error.message)
            return await self._break_off("failed", TRY_LATER)
        except BaseException as error:
            self._fail(error)
            await self._chunks.aclose()
            raise

    async def aclose(self) -> None:
        """Abort what is not finished."""
        if not self._is_over:
            self._fail(GeneratorExit())
            await self._chunks.aclose()

    async def _next(self) -> bytes:
        batch, self._batch = self._batch, None
        data = b"" if batch is None else self._emitter.start()
        while True:
            if batch is None:
                if self._judge.head != self._head and not await self._judge.may_go_on(
                    self._question, self._seat
                ):
                    return await self._break_off("revoked", REVOKED)
                batch = await anext(self._chunks, None)
                if batch is None:
                    return await self._last(data)
            data += self._emitted(batch)
            if data and self._open_choices > 0:
                self._hashed.update(data)
                return data
            batch = None

    async def _last(self, data: bytes) -> bytes:
        if self._end.prompt_tokens is None or self._open_choices > 0:
            raise Unavailable("the engine stopped before its answer was complete")
        if self._restorer is not None and (rest := self._restorer.flush()):
            data += self._emitter.chunks(rest)
        data += self._emitter.end()
        hashed = self._hashed.copy()  # should the ledger fail, the entry of what was sent is another
        hashed.update(data)
        await self._enter(hashed)
        self._close()
        await self._chunks.aclose()
        return data

    async def _break_off(self, status: str, problem: Problem) -> bytes:
        data = self._emitter.broken(problem)
        self._hashed.update(data)
        self._end.status = status
        self._ledger.note(self._entry())
        self._close()
        await self._chunks.aclose()
        return data

    def _emitted(self, batch: list[Object]) -> bytes:
        self._end.chunks += len(batch)
        for chunk in batch:
            if usage := chunk.get("usage"):
                self._read_usage(usage)
            for choice in chunk["choices"]:
                if finish_reason := choice.get("finish_reason"):
                    self._end.finish_reason = finish_reason
                    self._open_choices -= 1
        if self._restorer is not None:
            batch = self._restorer.chunks(batch)
        return self._emitter.chunks(batch)

    # What the entry says.

    def _read_usage(self, usage: Object) -> None:
        self._end.prompt_tokens = usage["prompt_tokens"]
        self._end.completion_tokens = usage.get("completion_tokens", 0)

    async def _enter(self, hashed: "hashlib._Hash") -> None:
        """Enter a complete answer. Raises Unavailable when the ledger does not take it."""
        self._end.status = "complete"
        entering = self._ledger.put(self._form.answer(self._begun, hashed.hexdigest(), self._end))
        self._is_entered = True  # whoever leaves while it is written leaves a complete answer
        try:
            await entering
        except Unavailable:
            self._is_entered = False
            raise

    def _entry(self) -> bytes:
        return self._form.answer(self._begun, self._hashed.hexdigest(), self._end)

    def _fail(self, error: BaseException) -> None:
        """Enter that there was no answer, or no whole one."""
        if not self._is_over:
            left = isinstance(error, asyncio.CancelledError | GeneratorExit)
            if not self._is_entered:
                self._end.status = "aborted" if left else "failed"
                self._ledger.note(self._entry())
            self._close()

    def _close(self) -> None:
        self._is_over = True
        self._seat.busy -= 1
        if self._is_said:
            self._question.done(self._end)


def _choices(call: Call) -> int:
    prompts = call.body.get("prompt")
    several = isinstance(prompts, list) and prompts and not isinstance(prompts[0], int)
    return (call.body.get("n") or 1) * (len(prompts) if isinstance(prompts, list) and several else 1)
