"""One run of `embedded_child.py`, seen from the parent: start it, ask it, notice its death."""

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
from collections import deque
from collections.abc import Mapping
from typing import Any

from steelyard.engines.embedded_child import MAX_FRAME_BYTES
from steelyard.errors import Unavailable, WrongUsage
from steelyard.wire.body import dump, load
from steelyard.wire.call import Object

START_LIMIT_S = 600.0  # a large model on a slow disk
CLOSE_LIMIT_S = 5.0
STALL_LIMIT_S = 300.0  # a batch of a large model's prompt on a slow machine takes a minute
LOG_LINES = 20
READ_BYTES = 1 << 18
OPEN_FILES = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"
LOG_LINE_CHARS = 300
KEPT_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "LD_LIBRARY_PATH",
)  # GPU wheels need them; everything else is dropped


class ChildProcess:
    """A running child. After `died` is set, every method raises Unavailable with `reason`."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        folder: tempfile.TemporaryDirectory[str],
        stall_s: float = STALL_LIMIT_S,
    ) -> None:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        self._process = process
        self._folder = folder
        self._stdin, self._stdout, self._stderr = process.stdin, process.stdout, process.stderr
        self._answers: dict[int, asyncio.Queue[Mapping[str, Any] | None]] = {}
        self._silent: set[int] = set()  # tasks that give no sign before their end
        self._stall_s = stall_s
        self._last_sign = 0.0
        self._next_id = 0
        self._log: deque[str] = deque(maxlen=LOG_LINES)
        self._is_ready = False
        self._tasks: list[asyncio.Task[None]] = []
        self.died = asyncio.Event()
        self.reason = "the engine process is starting"

    @property
    def pid(self) -> int:
        return self._process.pid

    @classmethod
    async def launch(
        cls,
        model_fd: int,
        *,
        context: int,
        slots: int,
        threads: int | None,
        embeds: bool,
        stall_s: float = STALL_LIMIT_S,
    ) -> "ChildProcess":
        """Start a child on an open GGUF and wait until the model is loaded. Raises Unavailable with its log.

        stall_s: a child that gives no sign for so long although it has work is killed.
        """
        folder = tempfile.TemporaryDirectory(prefix="steelyard-engine-")
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                "-m",
                "steelyard.engines.embedded_child",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                env=_environment(folder.name),
                cwd=folder.name,
                pass_fds=(model_fd,),
                start_new_session=True,  # Ctrl-C reaches the parent, which lets answers finish
            )
        except OSError as error:
            folder.cleanup()
            raise Unavailable(f"cannot start the engine process: {error.strerror}") from error
        child = cls(process, folder, stall_s)
        settings = {
            "model": f"{OPEN_FILES}/{model_fd}",
            "folder": folder.name,
            "context": context,
            "slots": slots,
            "threads": threads,
            "embeds": embeds,
        }
        try:
            await asyncio.wait_for(child._greet(settings), START_LIMIT_S)
        except TimeoutError as error:
            await child.close()
            raise Unavailable(
                f"the engine process did not load the model in {START_LIMIT_S:.0f} s"
            ) from error
        except BaseException:
            await child.close()
            raise
        return child

    async def _greet(self, settings: Mapping[str, Any]) -> None:
        self._tasks.append(asyncio.create_task(self._read_log()))
        try:
            await self._send(settings)
            frame = await self._next_frame()
        except (OSError, asyncio.IncompleteReadError):
            frame = {"failed": await self._death()}
        if "failed" in frame:
            await asyncio.wait(self._tasks, timeout=1)
            log = "; ".join(self._log)
            raise Unavailable(
                f"llama.cpp cannot load this model: {frame['failed']}. Its log: {log or 'empty'}"
            )
        self._is_ready = True
        self.reason = ""
        self._tasks += [asyncio.create_task(self._read_answers()), asyncio.create_task(self._watch())]

    async def begin(self, task: Mapping[str, Any], *, whole: bool) -> "Running":
        """Have a task done; embedded_child.py has its fields. Raises Unavailable, WrongUsage if it is too large."""
        self._require_alive()
        self._next_id += 1
        number = self._next_id
        if not self._answers:
            self._last_sign = asyncio.get_running_loop().time()
        if is_silent(task):
            self._silent.add(number)
        frames = self._answers[number] = asyncio.Queue()
        running = Running(self, number, frames)
        try:
            await self._send({**task, "id": number, "whole": whole})
        except OSError as error:
            running.leave()
            raise Unavailable(f"the engine process died: {self.reason or await self._death()}") from error
        except BaseException:
            running.leave()
            raise
        return running

    def forget(self, number: int, *, finished: bool) -> None:
        """Frames of this task have no reader any more; an unfinished one is aborted."""
        self._silent.discard(number)
        if self._answers.pop(number, None) is not None and not finished:
            self._cancel(number)

    async def close(self) -> None:
        """End the child: end of input first, SIGKILL after CLOSE_LIMIT_S."""
        self.reason = self.reason or "the engine was closed"
        self._stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), CLOSE_LIMIT_S)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._end_answers()
        self._folder.cleanup()

    def _require_alive(self) -> None:
        if self.died.is_set():
            raise Unavailable(f"the engine process is not running: {self.reason}")

    async def _send(self, frame: Mapping[str, Any]) -> None:
        data = dump(frame)
        if len(data) > MAX_FRAME_BYTES:
            raise WrongUsage(f"the request has {len(data)} bytes, the engine takes {MAX_FRAME_BYTES}")
        self._stdin.write(len(data).to_bytes(4, "big") + data)
        await self._stdin.drain()

    def _cancel(self, number: int) -> None:
        if not self.died.is_set() and not self._stdin.is_closing():
            data = dump({"cancel": number})
            self._stdin.write(len(data).to_bytes(4, "big") + data)

    async def _next_frame(self) -> Mapping[str, Any]:
        size = int.from_bytes(await self._stdout.readexactly(4), "big")
        frame: Mapping[str, Any] = load(await self._stdout.readexactly(size))
        return frame

    async def _watch(self) -> None:
        """Kill a child that hangs: nothing else frees its slots."""
        clock = asyncio.get_running_loop().time
        while not self.died.is_set():
            await asyncio.sleep(self._stall_s / 10)
            is_late = clock() - self._last_sign > self._stall_s
            if is_late and self._answers and not self._silent:
                self.reason = f"llama.cpp gave no sign for {self._stall_s:.0f} s"
                self._process.kill()
                return

    async def _read_answers(self) -> None:
        """Hand out frames, all that one read brings: a waiter for each frame costs more than the frame."""
        clock = asyncio.get_running_loop().time
        data = b""
        with contextlib.suppress(OSError):
            while more := await self._stdout.read(READ_BYTES):
                self._last_sign = clock()
                data += more
                at = 0
                while len(data) - at >= 4:
                    end = at + 4 + int.from_bytes(data[at : at + 4], "big")
                    if len(data) < end:
                        break
                    self._hand_out(load(data[at + 4 : end]))
                    at = end
                data = data[at:]
        self.reason = self.reason or await self._death()
        self._end_answers()

    def _hand_out(self, frame: Mapping[str, Any]) -> None:
        queue = self._answers.get(frame["id"])
        if queue and "alive" not in frame:
            queue.put_nowait(frame)

    def _end_answers(self) -> None:
        self.died.set()
        for queue in self._answers.values():
            queue.put_nowait(None)

    async def _death(self) -> str:
        code = await self._process.wait()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        asserts = [line for line in self._log if "GGML_ASSERT" in line]
        return f"{how}{': ' + asserts[-1] if asserts else ''}"

    async def _read_log(self) -> None:
        """Keep the last lines of start-up. Later lines may hold prompt text: only assertions are kept then."""
        rest = b""
        with contextlib.suppress(OSError):
            while data := await self._stderr.read(4096):
                *lines, rest = (rest + data).split(b"\n")
                rest = rest[-LOG_LINE_CHARS:]
                for line in lines:
                    text = line[:LOG_LINE_CHARS].decode(errors="replace").strip()
                    if text and (not self._is_ready or "GGML_ASSERT" in text):
                        self._log.append(text)


class Running:
    """A task in the child. `leave` it whatever happens: leaving early frees the slot."""

    __slots__ = ("_child", "_finished", "_frames", "_number")

    def __init__(
        self, child: ChildProcess, number: int, frames: "asyncio.Queue[Mapping[str, Any] | None]"
    ) -> None:
        self._child = child
        self._number = number
        self._frames = frames
        self._finished = False

    @property
    def is_finished(self) -> bool:
        return self._finished

    async def whole(self) -> Object:
        """The answer in one piece. Raises WrongUsage, Unavailable."""
        frame = self._checked(await self._frames.get())
        self._finished = True
        answer: Object = frame["whole"]
        return answer

    async def chunks(self) -> list[Object]:
        """All chunks that came since the last call, at least one. Raises WrongUsage, Unavailable."""
        frame = self._checked(await self._frames.get())
        chunks: list[Object] = frame["chunks"]
        while not frame["end"] and not self._frames.empty():
            frame = self._frames.get_nowait() or {}
            if "chunks" not in frame:  # the failure is for the next call
                self._frames.put_nowait(frame or None)
                return chunks
            chunks += frame["chunks"]
        self._finished = frame["end"]
        return chunks

    def leave(self) -> None:
        self._child.forget(self._number, finished=self._finished)

    def _checked(self, frame: Mapping[str, Any] | None) -> Mapping[str, Any]:
        if frame is None:
            self._finished = True
            raise Unavailable(f"the engine process died during the answer: {self._child.reason}")
        if "error" in frame:
            self._finished = True
            raise (WrongUsage if frame["usage"] else Unavailable)(frame["error"])
        return frame


def is_silent(task: Mapping[str, Any]) -> bool:
    """Whether llama.cpp tells nothing of a task before its end: what it does in one piece."""
    bodies = [turn["body"] for turn in task["rounds"]]
    return task["kind"] == "embedding" or any(body.get("stream") is False for body in bodies)


def _environment(folder: str) -> dict[str, str]:
    """Nothing of the parent's environment but KEPT_VARIABLES: no proxies, no tokens, no caches, no net."""
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    return kept | {
        "PATH": os.defpath,
        "LC_ALL": "C.UTF-8",
        "HOME": folder,
        "TMPDIR": folder,
        "HF_HOME": folder,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "LLAMA_CACHE": folder,
        "OMP_WAIT_POLICY": "passive",  # spinning threads starve each other on a busy machine: 10 times slower
    }
