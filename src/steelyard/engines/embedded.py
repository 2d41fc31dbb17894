"""llama.cpp in a child process, on a GGUF whose bytes were hashed through the descriptor it is loaded from.

The child takes its own copy of the weights into memory. The parent hashes the open file, hands that same open file
over, and looks afterwards whether it changed in between; so what was hashed is what answers, until the kernel
itself lies. When the child dies, requests in flight get Unavailable and a new one is started after a pause that
doubles with each failure.
"""

import asyncio
import contextlib
import os
from pathlib import Path

from steelyard.digest import Digest
from steelyard.engines.embedded_process import STALL_LIMIT_S, ChildProcess, Running
from steelyard.engines.embedded_prompt import Traits
from steelyard.engines.embedded_request import count_of, task_of
from steelyard.engines.embedded_weights import Stamp, Verified, verified
from steelyard.errors import SteelyardError, Unavailable, Untrusted, WrongUsage
from steelyard.wire.call import Call, Object

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 30.0
RESTART_WAIT_S = 20.0  # how long a request waits for a child to come back


class EmbeddedEngine:
    """An Engine on one GGUF file.

    digest: what the engine answers for (the model's root digest). file_sha256: the file's own hash, hex.
    context: tokens of prompt and answer for each of `slots` requests at once; absent means what the model was
    trained for, at most DEFAULT_CONTEXT. threads: absent leaves it to llama.cpp. stall_s: llama.cpp is started anew
    when it gives no sign for so long.
    """

    def __init__(
        self,
        gguf: Path,
        digest: Digest,
        *,
        file_sha256: str,
        context: int | None = None,
        slots: int = 1,
        threads: int | None = None,
        stall_s: float = STALL_LIMIT_S,
    ) -> None:
        if slots < 1 or (context is not None and context < 1) or (threads is not None and threads < 1):
            raise ValueError("slots, context and threads are at least 1")
        self._path = gguf
        self._digest = digest
        self._file_sha256 = file_sha256
        self._context = context
        self._slots = slots
        self._threads = threads
        self._stall_s = stall_s
        self._fd: int | None = None
        self._verified: Verified | None = None
        self._child: ChildProcess | None = None
        self._failures = 0
        self._last_reason = "the engine is not started; call start() first"
        self._up = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def digest(self) -> Digest:
        return self._digest

    @property
    def name(self) -> str:
        return "embedded"

    @property
    def identity(self) -> str:
        """We load the bytes that we hashed."""
        return "launched"

    @property
    def pid(self) -> int | None:
        """Process id of the child, absent while there is none."""
        return self._child.pid if self._child and not self._child.died.is_set() else None

    async def start(self) -> None:
        """Verify and load.

        Raises Untrusted when the bytes are not those of `file_sha256`, Malformed when they are no GGUF, WrongUsage
        when the model was not trained for `context` tokens, Unavailable when the file cannot be opened or loaded.
        """
        if self._keeper:
            return
        try:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise Unavailable(f"cannot open {self._path}: {error.strerror}") from error
        try:
            self._child = await self._launch(self._fd)
        except BaseException:
            os.close(self._fd)
            self._fd = None
            raise
        self._up.set()
        self._keeper = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """End the child. Requests in flight and later ones get Unavailable."""
        self._last_reason = "the engine was closed"
        self._up.clear()
        if self._keeper:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None
        if self._child:
            await self._child.close()
            self._child = None
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    async def ask(self, call: Call) -> Object:
        """The whole answer; see the Engine protocol. For a kind it cannot do, and for what it would silently not
        do, WrongUsage."""
        running = await self._begin(call, whole=True)
        try:
            answer = await running.whole()
        finally:
            running.leave()
        self._failures = 0
        return answer

    def stream(self, call: Call) -> "_Stream":
        return _Stream(self, call)

    async def count(self, call: Call) -> int:
        """Tokens of the prompt as the model would read it. Waits for a slot when all are busy."""
        child = await self._running_child()
        running = await child.begin(count_of(call, self._traits()), whole=True)
        try:
            answer = await running.whole()
        finally:
            running.leave()
        tokens: int = answer["tokens"]
        return tokens

    async def _begin(self, call: Call, *, whole: bool) -> Running:
        child = await self._running_child()
        return await child.begin(task_of(call, self._traits()), whole=whole)

    def _traits(self) -> Traits:
        assert self._verified
        return self._verified.traits

    async def _running_child(self) -> ChildProcess:
        if self._keeper and not self._up.is_set():
            up = asyncio.create_task(self._up.wait())
            # the keeper ends for good when the bytes on disk are wrong: nothing is left to wait for then
            await asyncio.wait(
                (up, self._keeper), timeout=RESTART_WAIT_S, return_when=asyncio.FIRST_COMPLETED
            )
            up.cancel()
        if not self._child or not self._up.is_set():
            raise Unavailable(f"the embedded engine does not answer: {self._last_reason}")
        return self._child

    async def _keep(self) -> None:
        """Wait for the child's death, pause, start the next; for ever, or until the bytes on disk are wrong."""
        while self._child:
            await self._child.died.wait()
            self._up.clear()
            self._last_reason = self._child.reason
            await self._child.close()
            self._child = None
            while not self._child:
                await asyncio.sleep(min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**self._failures))
                self._failures += 1
                try:
                    self._child = await self._relaunch()
                except Untrusted as error:
                    self._last_reason = error.message
                    return
                except SteelyardError as error:
                    self._last_reason = error.message
            self._up.set()

    async def _relaunch(self) -> ChildProcess:
        assert self._fd is not None
        return await self._launch(self._fd)

    async def _launch(self, fd: int) -> ChildProcess:
        known = self._verified
        if known is None or known.stamp != Stamp.of(fd):
            known = self._verified = await asyncio.to_thread(self._verify, fd)
        traits = known.traits
        if traits.context > known.context:
            raise WrongUsage(
                f"context is {traits.context} tokens, {self._path.name} was made for {known.context}"
            )
        child = await ChildProcess.launch(
            fd,
            context=traits.context,
            slots=self._slots,
            threads=self._threads,
            embeds=traits.embeds,
            stall_s=self._stall_s,
        )
        if Stamp.of(fd) != known.stamp:
            await child.close()
            self._verified = None
            raise Untrusted(f"{self._path} changed while it was loaded")
        return child

    def _verify(self, fd: int) -> Verified:
        return verified(fd, self._path, self._file_sha256, context=self._context, slots=self._slots)


class _Stream:
    """An answer as it comes: lists of chunks."""

    __slots__ = ("_call", "_engine", "_is_over", "_running")

    def __init__(self, engine: EmbeddedEngine, call: Call) -> None:
        self._engine = engine
        self._call = call
        self._running: Running | None = None
        self._is_over = False

    def __aiter__(self) -> "_Stream":
        return self

    async def __anext__(self) -> list[Object]:
        if self._is_over:
            raise StopAsyncIteration
        try:
            if self._running is None:
                self._running = await self._engine._begin(self._call, whole=False)
            chunks = await self._running.chunks()
        except BaseException:
            self._leave()
            raise
        if self._running.is_finished:
            self._leave()
            self._engine._failures = 0
        return chunks

    async def aclose(self) -> None:
        self._leave()

    def _leave(self) -> None:
        self._is_over = True
        if self._running is not None:
            self._running.leave()
