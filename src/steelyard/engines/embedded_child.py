"""The process that holds llama.cpp. Started by `embedded_process.py`; a crash here takes nobody down with it.

Frames both ways: 4 bytes big-endian length, then one JSON object. The first frame in is the settings, then tasks and
{"cancel"} stops. Out: {"ready": true} or {"failed"} once, then for each task's id

    {"id", "chunks": [...]}...   OpenAI's chunk objects, all that came since the last frame; the last frame has "end"
    {"id", "whole": {...}}       OpenAI's answer object, or {"tokens": n} for a count
    {"id", "error", "usage"}     instead; usage: the request is at fault
    {"id", "alive"}              something happened that nobody waits for

End of input ends the process.

A task: {"id", "kind", "rounds", "whole", "top", "stops"}.  kind: chat, completion, embedding or count.
rounds: [{"first", "body", "again"}], llama.cpp requests made one after the other; `first` is the index of its first
answer among all, `again` says that its prompt was read by the round before.  whole: give the answer in one piece.
top: how many alternatives each token's log-probability shall have.  stops: the caller's stop texts.

llama.cpp's server insists on listening; it gets a Unix socket in the private folder, removed before the first
request, so that no address leads here.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from steelyard.engines.embedded_answer import Failed, Gathered, failure, without_text

MAX_FRAME_BYTES = 64 << 20
LOG_WARNINGS = 2
SIGN_S = 1.0  # at most so often
BUG_STATUS = 70

Frame = Mapping[str, Any]


class Outlet:
    """Writes frames from many threads. Chunks wait while a frame is being written, and then go together."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._waiting = threading.Condition()
        self._chunks: dict[int, list[str]] = {}
        self._last_sign = 0.0

    def start(self) -> None:
        threading.Thread(target=self._forward, name="chunks", daemon=True).start()

    def put(self, number: int, chunk: str) -> None:
        """Send a chunk, given as JSON, as soon as the pipe takes it."""
        with self._waiting:
            self._chunks.setdefault(number, []).append(chunk)
            self._waiting.notify()

    def send(self, frame: Frame) -> None:
        with self._lock:
            self._put(json.dumps(frame))

    def sign(self, number: int) -> None:
        """Tell the parent, now and then, that llama.cpp works."""
        now = time.monotonic()
        if now - self._last_sign > SIGN_S:
            self._last_sign = now
            self.send({"id": number, "alive": True})

    def end(self, number: int, closing: Frame) -> None:
        """The last frame of a stream, with the chunks that still wait."""
        with self._lock:  # after a frame that is being written
            with self._waiting:
                chunks = [*self._chunks.pop(number, ()), json.dumps(closing)]
            self._put(_chunks_frame(number, chunks, "true"))

    def drop(self, number: int) -> None:
        """Forget the chunks that still wait."""
        with self._waiting:
            self._chunks.pop(number, None)

    def _forward(self) -> None:
        while True:
            with self._waiting:
                while not self._chunks:
                    self._waiting.wait()
            with self._lock:
                with self._waiting:
                    waiting, self._chunks = self._chunks, {}
                for number, chunks in waiting.items():
                    self._put(_chunks_frame(number, chunks, "false"))

    def _put(self, text: str) -> None:
        data = text.encode()
        self._file.write(len(data).to_bytes(4, "big") + data)
        self._file.flush()


def _chunks_frame(number: int, chunks: list[str], end: str) -> str:
    return f'{{"id":{number},"end":{end},"chunks":[{",".join(chunks)}]}}'


class Generation:
    """The doing of one task. `cancelled` stops it at llama.cpp's next event and frees its slot."""

    def __init__(self, task: Frame, outlet: Outlet) -> None:
        self._task = task
        self._number: int = task["id"]
        self._outlet = outlet
        self.cancelled = False

    def run(self, server: Any) -> None:  # noqa: ANN401 (untyped library)
        try:
            self._run(server)
        except Failed as error:
            self._fail(error)
        except ValueError as error:  # a template or a schema that refuses this request
            self._fail(Failed(str(error), usage=True))
        except RuntimeError as error:
            self._fail(Failed(without_text(str(error)), usage=False))
        finally:
            self._outlet.drop(self._number)

    def _run(self, server: Any) -> None:  # noqa: ANN401 (untyped library)
        kind = self._task["kind"]
        if kind == "embedding":
            self._whole(self._embed(server))
        elif kind == "count":
            self._whole({"tokens": self._count(server)})
        else:
            self._generate(server.handle_chat_completions if kind == "chat" else server.handle_completions)

    def _generate(self, handle: Any) -> None:  # noqa: ANN401 (untyped library)
        is_whole = self._task["whole"]
        gathered = Gathered(
            self._task, None if is_whole else lambda chunk: self._outlet.put(self._number, chunk)
        )
        for turn in self._task["rounds"]:
            gathered.begin(turn)
            self._handle(handle, turn["body"], gathered.read)
            if self.cancelled:
                return
            gathered.end_round()
        if is_whole:
            self._whole(gathered.whole())
        else:
            self._outlet.end(self._number, gathered.closing())

    def _handle(self, handle: Any, body: Frame, read: Callable[[str], object]) -> None:  # noqa: ANN401
        """Give every event to `read`. What it raises is raised here: llama.cpp's callback would swallow it."""
        caught: list[Exception] = []

        def on_event(text: str) -> bool:
            if self.cancelled or text == "[DONE]":
                return self.cancelled
            self._outlet.sign(self._number)
            try:
                read(text)
            except (Failed, _Enough, ValueError, KeyError, TypeError) as error:
                caught.append(error)
            return bool(caught)

        if not self.cancelled:
            handle(json.dumps(body), on_event)
        if caught:
            if isinstance(caught[0], Failed | _Enough):
                raise caught[0]
            raise Failed(f"llama.cpp's event is not as expected ({type(caught[0]).__name__})", usage=False)

    def _count(self, server: Any) -> int:  # noqa: ANN401 (untyped library)
        """Tokens of the prompts. llama.cpp tells a prompt's length before it reads any of it; that is enough."""
        counts: list[int] = []

        def read(text: str) -> None:
            event = json.loads(text)
            if error := event.get("error", event if "code" in event else None):
                if error.get("type") != "exceed_context_size_error":
                    raise failure(error)
                counts.append(int(error["n_prompt_tokens"]))
                raise _Enough
            if "prompt_progress" in event:
                counts.append(int(event["prompt_progress"]["total"]))
                raise _Enough

        is_chat = "messages" in self._task["rounds"][0]["body"]
        handle = server.handle_chat_completions if is_chat else server.handle_completions
        for turn in self._task["rounds"]:
            try:
                self._handle(handle, turn["body"], read)
            except _Enough:
                continue
        return sum(counts)

    def _embed(self, server: Any) -> Frame:  # noqa: ANN401 (untyped library)
        found: Frame = json.loads(server.handle_embeddings(json.dumps(self._task["rounds"][0]["body"])))
        error = found.get("error", found if "code" in found else None)
        if error is not None:
            raise failure(error)
        return found

    def _whole(self, answer: Frame) -> None:
        if not self.cancelled:
            self._outlet.send({"id": self._number, "whole": answer})

    def _fail(self, error: Failed) -> None:
        if not self.cancelled:
            self._outlet.drop(self._number)
            self._outlet.send({"id": self._number, "error": error.message, "usage": error.usage})


class _Enough(Exception):
    """What was asked is known; the generation need not go on."""


def main() -> None:
    """Serve frames on what was standard input and output until the input ends."""
    outlet = Outlet(os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)  # llama.cpp may print; only frames may reach the parent's pipe
    source = os.fdopen(0, "rb")
    settings = _next_frame(source)
    if settings is None:
        return
    try:
        server = _server(settings)
    except (RuntimeError, ImportError) as error:
        outlet.send({"failed": str(error)})
        return
    outlet.send({"ready": True})
    _serve(server, source, outlet, settings["slots"])
    os._exit(0)  # the parent has gone: running generations have no reader


def _serve(server: Any, source: BinaryIO, outlet: Outlet, slots: int) -> None:  # noqa: ANN401 (untyped library)
    running: dict[int, Generation] = {}

    def run(generation: Generation, number: int) -> None:
        try:
            generation.run(server)
        finally:
            running.pop(number, None)

    outlet.start()
    with ThreadPoolExecutor(slots, thread_name_prefix="slot") as pool:
        while (frame := _next_frame(source)) is not None:
            if "cancel" in frame:
                if generation := running.get(frame["cancel"]):
                    generation.cancelled = True
                continue
            generation = running[frame["id"]] = Generation(frame, outlet)
            pool.submit(run, generation, frame["id"]).add_done_callback(_end_with_bug)
        os._exit(0)


def _end_with_bug(done: "Future[None]") -> None:
    """An error nobody expected ends the process: the parent sees that, and would wait for an answer for ever."""
    error = done.exception()
    if error is not None:
        sys.stderr.write(f"unexpected {type(error).__name__}\n")
        sys.stderr.flush()
        os._exit(BUG_STATUS)


def _next_frame(source: BinaryIO) -> Frame | None:
    head = source.read(4)
    size = int.from_bytes(head, "big")
    data = source.read(size) if len(head) == 4 and size <= MAX_FRAME_BYTES else b""
    if len(head) < 4 or len(data) < size:
        return None
    frame: Frame = json.loads(data)
    return frame


def _server(settings: Frame) -> Any:  # noqa: ANN401 (untyped library)
    import xllamacpp  # noqa: PLC0415 (a missing library is reported to the parent, not a traceback)

    socket_path = Path(settings["folder"], "llama.sock")
    params = xllamacpp.CommonParams()
    params.hostnames = [str(socket_path)]
    params.model.path = settings["model"]
    params.load_mode = (
        xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_NONE
    )  # a copy in memory: later edits never reach it
    params.n_ctx = settings["context"] * settings["slots"]
    params.n_parallel = settings["slots"]
    params.kv_unified = False
    params.fit_params = False
    params.verbosity = LOG_WARNINGS
    params.cache_ram_mib = 0
    params.ui = False
    params.endpoint_slots = False
    params.offline = True
    params.use_jinja = True
    params.reasoning_format = xllamacpp.common_reasoning_format.COMMON_REASONING_FORMAT_AUTO
    if settings["embeds"]:
        params.embedding = True
        params.n_batch = params.n_ubatch = settings[
            "context"
        ]  # a text is embedded in one batch or not at all
    if settings["threads"]:
        params.cpuparams.n_threads = settings["threads"]
        params.cpuparams_batch.n_threads = settings["threads"]
    server = xllamacpp.Server(params)
    socket_path.unlink(missing_ok=True)
    return server


if __name__ == "__main__":
    main()
    sys.stdout.flush()
