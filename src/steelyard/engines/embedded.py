"""llama.cpp in a child process, on a GGUF whose bytes were hashed through the descriptor it is loaded from.

The child takes its own copy of the weights into memory. The parent hashes the open file, hands that same open file
over, and looks afterwards whether it changed in between; so what was hashed is what answers, until the kernel
itself lies. When the child dies, requests in flight get Unavailable and a new one is started after a pause that
doubles with each failure.
"""

import asyncio
import contextlib
import hashlib
import os
import unicodedata
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steelyard.digest import Digest
from steelyard.engines.embedded_process import ChildProcess
from steelyard.engines.embedded_schema import require_enforceable
from steelyard.errors import Malformed, SteelyardError, Unavailable, Untrusted, WrongUsage
from steelyard.formats.gguf import metadata_of
from steelyard.wire.chat import ChatRequest, Chunk

DEFAULT_CONTEXT = 4096
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 30.0
RESTART_WAIT_S = 20.0  # how long a request waits for a child to come back
BLOCK_BYTES = 1 << 20
NORMALISER_KEY = "steelyard.tokenizer.normaliser"  # written by our converter; llama.cpp does not normalise


@dataclass(frozen=True, slots=True)
class _Stamp:
    """What the kernel changes when a file's bytes or name change."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, fd: int) -> "_Stamp":
        stat = os.fstat(fd)
        return cls(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class _OpenFile:
    """A ByteSource over the descriptor that is hashed and loaded."""

    fd: int

    @property
    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def read(self, offset: int, size: int) -> bytes:
        data = os.pread(self.fd, size, offset)
        if len(data) != size:
            raise ValueError(f"read of {size} bytes at {offset} found {len(data)}")
        return data


@dataclass(frozen=True, slots=True)
class _Verified:
    """A file whose hash was right, and what its header says. `composes`: prompts must be normalised to NFC."""

    stamp: _Stamp
    context: int
    composes: bool


class EmbeddedEngine:
    """An Engine on one GGUF file.

    digest: what the engine answers for (the model's root digest). file_sha256: the file's own hash, hex.
    context: tokens of prompt and answer for each of `slots` requests at once; absent means what the model was
    trained for, at most DEFAULT_CONTEXT. threads: absent leaves it to llama.cpp.
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
    ) -> None:
        if slots < 1 or (context is not None and context < 1) or (threads is not None and threads < 1):
            raise ValueError("slots, context and threads are at least 1")
        self._path = gguf
        self._digest = digest
        self._file_sha256 = file_sha256
        self._context = context
        self._slots = slots
        self._threads = threads
        self._fd: int | None = None
        self._verified: _Verified | None = None
        self._child: ChildProcess | None = None
        self._failures = 0
        self._last_reason = "the engine is not started; call start() first"
        self._up = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def digest(self) -> Digest:
        return self._digest

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

    async def generate(self, request: ChatRequest) -> AsyncIterator[Chunk]:
        """Yield the answer as llama.cpp produces it; see the Engine protocol."""
        child = await self._running_child()
        composes = self._verified is not None and self._verified.composes
        chunks = child.ask(_body(request, composes=composes))
        try:
            async for chunk in chunks:
                if chunk.finish_reason:
                    self._failures = 0
                yield chunk
        finally:
            await chunks.aclose()

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
        verified = self._verified
        if verified is None or verified.stamp != _Stamp.of(fd):
            verified = self._verified = await asyncio.to_thread(self._verify, fd)
        context = self._context or min(verified.context, DEFAULT_CONTEXT)
        if context > verified.context:
            raise WrongUsage(
                f"context is {context} tokens, {self._path.name} was made for {verified.context}"
            )
        child = await ChildProcess.launch(fd, context=context, slots=self._slots, threads=self._threads)
        if _Stamp.of(fd) != verified.stamp:
            await child.close()
            self._verified = None
            raise Untrusted(f"{self._path} changed while it was loaded")
        return child

    def _verify(self, fd: int) -> _Verified:
        stamp = _Stamp.of(fd)
        hasher = hashlib.sha256()
        offset = 0
        while block := os.pread(fd, BLOCK_BYTES, offset):
            hasher.update(block)
            offset += len(block)
        if hasher.hexdigest() != self._file_sha256:
            raise Untrusted(
                f"{self._path} has sha256 {hasher.hexdigest()}, expected {self._file_sha256}: admit the file again"
            )
        metadata = metadata_of(_OpenFile(fd))
        context = metadata.get(f"{metadata.get('general.architecture')}.context_length")
        if not isinstance(context, int) or context < 1:
            raise Malformed(f"{self._path} names no context length", rule="gguf/context")
        return _Verified(stamp, context, metadata.get(NORMALISER_KEY) == "NFC")


def _body(request: ChatRequest, *, composes: bool) -> Mapping[str, Any]:
    """The llama.cpp request. What the caller left open is left to the model's own sampling defaults; as soon as
    the caller sets temperature or top_p, nothing else cuts the distribution."""
    if not request.messages:
        raise WrongUsage("the request has no messages")
    body: dict[str, Any] = {
        "messages": [
            {
                "role": "system" if message.role == "developer" else message.role,
                "content": unicodedata.normalize("NFC", message.content) if composes else message.content,
            }
            for message in request.messages
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_progress": True,  # an event per prompt batch: a long prompt can be aborted
        "stop": list(request.stop),
    }
    chosen = {
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "top_p": request.top_p,
        "seed": request.seed,
    }
    body |= {name: value for name, value in chosen.items() if value is not None}
    if request.temperature is not None or request.top_p is not None:
        body |= {"top_k": 0, "min_p": 0.0, "top_p": request.top_p if request.top_p is not None else 1.0}
    if request.seed is not None:
        body["cache_prompt"] = False  # a reused prefix changes the last bits of the logits
    if request.json_schema is not None:
        require_enforceable(request.json_schema)
        body["response_format"] = {"type": "json_schema", "json_schema": {"schema": request.json_schema}}
    return body
