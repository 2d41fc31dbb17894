"""The process that holds llama.cpp. Started by `embedded_process.py`; a crash here takes nobody down with it.

Frames both ways: 4 bytes big-endian length, then one JSON object. The first frame in is the settings, then
{"id", "body"} asks and {"cancel"} stops. Out: {"ready": true} or {"failed"} once, then for each id {"id", "text"}...
and one {"id", "end", "prompt", "completion"} or {"id", "error", "usage"}. End of input ends the process.

llama.cpp's server insists on listening; it gets a Unix socket in the private folder, removed before the first
request, so that no address leads here.
"""

import json
import os
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

MAX_FRAME_BYTES = 64 << 20
LOG_WARNINGS = 2

Frame = Mapping[str, Any]


class Outlet:
    """Writes frames from many threads, one at a time."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lock = threading.Lock()

    def send(self, frame: Frame) -> None:
        data = json.dumps(frame).encode()
        with self._lock:
            self._file.write(len(data).to_bytes(4, "big") + data)
            self._file.flush()


class Answer:
    """One generation: turns llama.cpp's stream events into frames. `cancelled` stops it at the next event."""

    def __init__(self, number: int, outlet: Outlet) -> None:
        self._number = number
        self._outlet = outlet
        self.cancelled = False
        self._finish_reason: str | None = None
        self._usage: Frame | None = None
        self._failed = False

    def on_event(self, text: str) -> bool:
        """llama.cpp calls this with each event; True aborts the generation and frees its slot."""
        if text != "[DONE]":
            self._read(json.loads(text))
        return self.cancelled

    def _read(self, event: Frame) -> None:
        error = event.get("error", event if "code" in event else None)
        if error is not None:
            self.fail(error)
            return
        for choice in event.get("choices", ()):
            piece = choice.get("delta", {}).get("content")
            if piece:
                self._outlet.send({"id": self._number, "text": piece})
            self._finish_reason = choice.get("finish_reason") or self._finish_reason
        self._usage = event.get("usage") or self._usage

    def fail(self, error: Frame) -> None:
        self._failed = True
        is_callers = 400 <= int(error.get("code", 500)) < 500
        message = str(error.get("message", "llama.cpp gave no reason"))
        if error.get("type") == "exceed_context_size_error":
            tokens, room = error.get("n_prompt_tokens"), error.get("n_ctx")
            message = f"the prompt has {tokens} tokens, the context of this model holds {room}"
        self._outlet.send({"id": self._number, "error": message[:500], "usage": is_callers})

    def finish(self) -> None:
        if self._failed or self.cancelled:
            return
        if self._finish_reason is None or self._usage is None:
            self.fail({"code": 500, "message": "the answer ended without a finish reason"})
            return
        counts = {"prompt": self._usage["prompt_tokens"], "completion": self._usage["completion_tokens"]}
        self._outlet.send({"id": self._number, "end": self._finish_reason, **counts})


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
    answers: dict[int, Answer] = {}

    def run(answer: Answer, number: int, body: str) -> None:
        try:
            if not answer.cancelled:
                server.handle_chat_completions(body, answer.on_event)
            answer.finish()
        except ValueError as error:  # a template or a schema that refuses this request
            answer.fail({"code": 400, "message": str(error)})
        except RuntimeError as error:
            answer.fail({"code": 500, "message": str(error)})
        finally:
            answers.pop(number, None)

    with ThreadPoolExecutor(slots, thread_name_prefix="slot") as pool:
        while (frame := _next_frame(source)) is not None:
            if "cancel" in frame:
                if answer := answers.get(frame["cancel"]):
                    answer.cancelled = True
                continue
            answer = answers[frame["id"]] = Answer(frame["id"], outlet)
            pool.submit(run, answer, frame["id"], json.dumps(frame["body"]))
        os._exit(0)


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
    params.reasoning_format = xllamacpp.common_reasoning_format.COMMON_REASONING_FORMAT_NONE
    if settings["threads"]:
        params.cpuparams.n_threads = settings["threads"]
        params.cpuparams_batch.n_threads = settings["threads"]
    server = xllamacpp.Server(params)
    socket_path.unlink(missing_ok=True)
    return server


if __name__ == "__main__":
    main()
    sys.stdout.flush()
