"""An upstream that we start ourselves, on bytes that we hashed right before: `steelyard serve --launch NAME MODEL`.

The server listens on a loopback port of ours, with a key that only it and we have, in an environment without proxies,
tokens or caches, with the hubs' offline switches on. It ends with us, and is started again when it ends before us.
Its log is read for the reason of a failed start and then thrown away: later lines may hold prompts.

What this does not stop: a server that runs as our user can reach what we can, and could change its own files. The
copies in the store are read-only, and the server is not let in again after a file changed.
"""

import asyncio
import contextlib
import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
from collections import deque
from dataclasses import dataclass
from pathlib import Path

from steelyard.digest import Digest
from steelyard.engines.launched_command import Command, filled, gguf_of
from steelyard.engines.upstream import UpstreamChunks, UpstreamEngine
from steelyard.engines.upstream_member import HEALTH_LIMIT_S, Dial, Dialler, Member, Place
from steelyard.errors import SteelyardError, Unavailable, Untrusted, WrongUsage
from steelyard.manifest import Identity, identities_of, manifest_of
from steelyard.model import Model
from steelyard.node import descendants_of, listeners_of
from steelyard.wire.call import Call, Object

START_LIMIT_S = 1800.0  # a large model on a slow disk, and its kernels compiled
TRY_S = 0.25
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0
CLOSE_LIMIT_S = 5.0
LOG_LINES = 20
LOG_LINE_CHARS = 300

_KEPT = ("PATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "CUDA_HOME", "LANG")
_KEPT_PREFIXES = ("CUDA_", "NVIDIA_", "ROCR_", "HIP_", "NCCL_", "OMP_")
_OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "LLAMA_OFFLINE": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
}
_log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Run:
    """One run of the server."""

    process: asyncio.subprocess.Process
    folder: "tempfile.TemporaryDirectory[str]"
    log: "_Log"


class LaunchedEngine:
    """An Engine whose server we start. path: where the store keeps the model, a folder or its one file.

    port: where the server is to listen; absent takes a free one.  dial: opens a socket to it.
    """

    def __init__(
        self, model: Model, path: Path, command: Command, *, port: int | None = None, dial: Dial | None = None
    ) -> None:
        self._port = port
        self._dial = dial
        self._model = model
        self._path = path
        self._command = command
        self._hashed: dict[str, Identity] | None = None
        self._run: _Run | None = None
        self._engine: UpstreamEngine | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._reason = "the engine is not started"

    @property
    def digest(self) -> Digest:
        return self._model.digest

    @property
    def name(self) -> str:
        return "launched"

    @property
    def identity(self) -> str:
        return "launched"

    @property
    def pid(self) -> int | None:
        """Of the process that leads the server's group; absent while there is none."""
        return self._run.process.pid if self._run else None

    async def start(self) -> None:
        """Hash, launch, wait for the first answer.

        Raises Untrusted when a file is not the model's, WrongUsage when the program is not here, Unavailable.
        """
        if self._keeper is not None:
            return
        await self._launch()
        self._keeper = asyncio.create_task(self._keep())

    async def close(self) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
            self._keeper = None
        self._reason = "the engine was closed"
        await self._end()

    async def ask(self, call: Call) -> Object:
        return await self._up().ask(call)

    def stream(self, call: Call) -> UpstreamChunks:
        return self._up().stream(call)

    async def count(self, call: Call) -> int:
        return await self._up().count(call)

    def _up(self) -> UpstreamEngine:
        if self._engine is None:
            raise Unavailable(f"the model's server is not up: {self._reason}")
        return self._engine

    def _verify(self) -> None:
        """Every byte the first time; after that only when the file system knows a file as another."""
        before = identities_of(self._path)
        if before == self._hashed:
            return
        found = manifest_of(self._path)
        if found.digest != self._model.digest or identities_of(self._path) != before:
            raise Untrusted(
                f"{self._path} is not {self._model.name}; run: steelyard admit on its source again"
            )
        self._hashed = before

    async def _launch(self) -> None:
        await asyncio.to_thread(self._verify)
        port, key = self._port or free_port(), secrets.token_hex(16)
        values = {"path": str(self._path), "port": str(port), "name": self._model.name}
        if any("{gguf}" in word for word in self._command.argv):
            values["gguf"] = str(gguf_of(self._path))
        argv = [filled(word, values) for word in self._command.argv]
        program = shutil.which(argv[0])
        if program is None:
            raise WrongUsage(f"{argv[0]} is not installed here, or not on PATH")
        variable = self._command.key_variable
        folder = tempfile.TemporaryDirectory(prefix="steelyard-launched-")
        log, writing = await _Log.open()
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-I", "-m", "steelyard.engines.launched_child", program, *argv[1:],
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=writing,
                env=_environment(folder.name) | ({variable: key} if variable else {}),
                cwd=folder.name,
                start_new_session=True,  # Ctrl-C reaches us, and we let answers finish
            )  # fmt: skip
        except OSError as error:
            log.close()
            folder.cleanup()
            raise Unavailable(f"cannot start {argv[0]}: {error.strerror}") from error
        finally:
            os.close(writing)
        run = self._run = _Run(process, folder, log)
        place = Place(
            "launched", "127.0.0.1", port, filled(self._command.asks_for, values),
            api_key=key if variable else None, identity="launched",
        )  # fmt: skip
        try:
            self._engine = await asyncio.wait_for(self._answering(run, place), START_LIMIT_S)
        except TimeoutError as error:
            await self._end()
            raise Unavailable(f"{argv[0]} did not answer in {START_LIMIT_S:.0f} s") from error
        except BaseException:
            await self._end()
            raise
        run.log.stop()

    async def _answering(self, run: _Run, place: Place) -> UpstreamEngine:
        """The engine, once the server answers and is known to be ours."""
        while True:
            if run.process.returncode is not None:
                await asyncio.sleep(TRY_S)  # for the last lines
                log = "; ".join(run.log.lines) or "empty"
                raise Unavailable(f"the model's server ended before it answered. Its log: {log}")
            if not await _is_answering(place, self._dial or Dialler()):
                await asyncio.sleep(TRY_S)
                continue
            # Somebody else may have taken the port between our choice and the server's start.
            strangers = await asyncio.to_thread(_strangers, place.port, run.process.pid)
            if strangers:
                raise Untrusted(f"a process that is not ours listens on port {place.port}")
            engine = UpstreamEngine(self._model.digest, [place], dial=self._dial)
            await engine.start()
            return engine

    async def _keep(self) -> None:
        """Start the server again when it ends, after pauses that grow while it does not stay up."""
        loop = asyncio.get_running_loop()
        pause_s, began_s = FIRST_PAUSE_S, loop.time()
        while True:
            if self._run is not None:
                await self._run.process.wait()
                self._reason = "it ended by itself"
                if loop.time() - began_s > LONGEST_PAUSE_S:
                    pause_s = FIRST_PAUSE_S
                _log.error("the server of %s ended; it is started again in %.0f s", self._model.name, pause_s)
                await self._end()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            try:
                await self._launch()
            except SteelyardError as error:
                self._reason = error.message
                _log.error("the server of %s: %s", self._model.name, error.message)
            began_s = loop.time()

    async def _end(self) -> None:
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.close()
        run, self._run = self._run, None
        if run is None:
            return
        assert run.process.stdin
        run.process.stdin.close()
        try:
            await asyncio.wait_for(run.process.wait(), CLOSE_LIMIT_S)
        except TimeoutError:
            run.process.kill()
            await run.process.wait()
        run.log.close()
        run.folder.cleanup()


async def _is_answering(place: Place, dial: Dial) -> bool:
    member = Member(place, dial)
    try:
        await asyncio.wait_for(member.check_health(), HEALTH_LIMIT_S)
    except (Unavailable, TimeoutError):
        return False
    finally:
        await member.close()
    return True


def _strangers(port: int, pid: int) -> frozenset[int]:
    if sys.platform != "linux":
        return frozenset()
    found = listeners_of(port)
    return frozenset({0}) if not found else found - descendants_of([pid])


def free_port() -> int:
    """A port of loopback that nobody has now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _environment(folder: str) -> dict[str, str]:
    """No proxies, no tokens, no caches of the user's: what the accelerator needs, and switches against the net."""
    kept = {
        name: value for name, value in os.environ.items() if name in _KEPT or name.startswith(_KEPT_PREFIXES)
    }
    return kept | _OFFLINE | {"HOME": folder, "TMPDIR": folder, "HF_HOME": folder, "XDG_CACHE_HOME": folder}


class _Log(asyncio.Protocol):
    """The last lines of a starting server. Not a pipe of the process's: one that slips away may hold it open."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=LOG_LINES)
        self._rest = b""
        self._is_on = True
        self._transport: asyncio.BaseTransport | None = None

    @classmethod
    async def open(cls) -> "tuple[_Log, int]":
        """A log and the descriptor that writes to it, which the caller closes."""
        reading, writing = os.pipe()
        loop = asyncio.get_running_loop()
        _, log = await loop.connect_read_pipe(cls, os.fdopen(reading, "rb", 0))
        return log, writing

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if not self._is_on:
            return
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[-LOG_LINE_CHARS:]
        self.lines += [
            line[:LOG_LINE_CHARS].decode(errors="replace").strip() for line in lines if line.strip()
        ]

    def stop(self) -> None:
        """Read on, so that the server does not block, and keep nothing."""
        self._is_on = False
        self._rest = b""
        self.lines.clear()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()
