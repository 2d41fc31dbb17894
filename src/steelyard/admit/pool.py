"""Workers for a scan: as many confined processes as there are cores, a new one for each that dies.

A worker that dies, takes too long or runs out of memory costs its file a refusal with the reason, and nothing else.
One thread watches them all, so that forking a new one is safe at any time.
"""

import json
import os
import selectors
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self

from steelyard.admit import worker
from steelyard.admit.confinement import EXIT_BREACH
from steelyard.digest import JSON
from steelyard.errors import Malformed, SteelyardError, Unavailable
from steelyard.formats.base import Finding, Report
from steelyard.formats.registry import Registry

DIED = "file/worker-died"
SLOW = "file/too-slow"
# A parser gets this long, and a second more for each of so many bytes: an honest op-dense pickle takes its time.
PARSE_S = 60.0
BYTES_A_SECOND = 1_000_000
MAX_PARSE_S = 900.0
MAX_ANSWER_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Job:
    """One file: the root of its tree, its path there ("." for the root), the name its format sees, its size."""

    root: str
    path: str
    name: str
    size: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a job. sha256 is absent when the worker was lost before it could weigh the file."""

    job: Job
    sha256: str | None
    report: Report


@dataclass(slots=True)
class _Worker:
    pid: int
    jobs: int
    answers: int
    job: Job | None = None
    deadline: float | None = None
    buffer: bytearray = field(default_factory=bytearray)


class Pool:
    """Use as a context manager; `run` may be called more than once."""

    def __init__(self, registry: Registry, size: int | None = None, *, parse_s: float = PARSE_S) -> None:
        """size: workers; default, one a core.  parse_s: what a parser may take, before its file's size is counted."""
        self._registry = registry
        self._parse_s = parse_s
        self._size = size or os.cpu_count() or 1
        self._selector = selectors.DefaultSelector()
        self._workers: list[_Worker] = []
        self.confinement: Mapping[str, JSON] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for one in list(self._workers):
            self._end(one)
        self._selector.close()

    def run(self, jobs: Iterable[Job], progress: Callable[[int], None] | None = None) -> list[Answer]:
        """Every job's answer, in no order. progress: bytes hashed since the last call.

        Raises what a worker raised on a file that cannot be read or was changed meanwhile.
        """
        waiting = deque(jobs)
        done: list[Answer] = []
        while len(self._workers) < min(self._size, len(waiting)):
            self._start()
        busy = 0
        for one in self._workers:
            busy += self._give(one, waiting)
        while busy:
            for one, answer in self._next(progress):
                done.append(answer)
                busy -= 1
                if one not in self._workers and waiting:
                    one = self._start()  # noqa: PLW2901 - the dead one's place is taken
                if one in self._workers:
                    busy += self._give(one, waiting)
        return done

    def _start(self) -> _Worker:
        job_reader, job_writer = os.pipe()
        answer_reader, answer_writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                for descriptor in (job_writer, answer_reader, *self._descriptors()):
                    os.close(descriptor)
                worker.work(self._registry, job_reader, answer_writer)
            finally:
                os._exit(1)  # whatever went wrong in the child, it must not become a second parent
        os.close(job_reader)
        os.close(answer_writer)
        one = _Worker(pid, job_writer, answer_reader)
        self._workers.append(one)
        self._selector.register(answer_reader, selectors.EVENT_READ, one)
        return one

    def _descriptors(self) -> list[int]:
        return [descriptor for one in self._workers for descriptor in (one.jobs, one.answers)]

    def _give(self, one: _Worker, waiting: deque[Job]) -> int:
        if not waiting:
            return 0
        one.job = job = waiting.popleft()
        limit = min(self._parse_s + job.size / BYTES_A_SECOND, MAX_PARSE_S)
        one.deadline = time.monotonic() + limit
        body = {"root": job.root, "path": job.path, "name": job.name, "size": job.size}
        # If it died while idle, its closed pipe says so, and the job is answered there.
        with suppress(BrokenPipeError):
            os.write(one.jobs, json.dumps(body).encode() + b"\n")
        return 1

    def _next(self, progress: Callable[[int], None] | None) -> list[tuple[_Worker, Answer]]:
        """Wait for something to happen and return the answers it brought."""
        now = time.monotonic()
        deadlines = [one.deadline for one in self._workers if one.deadline is not None]
        timeout = max(0.0, min(deadlines) - now) if deadlines else None
        answers = []
        for key, _ in self._selector.select(timeout):
            one: _Worker = key.data
            data = os.read(one.answers, 1 << 16)
            one.buffer += data
            if not data or len(one.buffer) > MAX_ANSWER_BYTES:
                answers += self._lost(one, None)
                continue
            while (end := one.buffer.find(b"\n")) >= 0:
                message = json.loads(one.buffer[:end])
                del one.buffer[: end + 1]
                answer = self._heard(one, message, progress)
                if answer:
                    answers.append((one, answer))
        now = time.monotonic()
        for one in [w for w in self._workers if w.deadline is not None and w.deadline <= now]:
            answers += self._lost(one, SLOW)
        return answers

    def _heard(
        self, one: _Worker, message: Mapping[str, Any], progress: Callable[[int], None] | None
    ) -> Answer | None:
        if "confinement" in message:
            self.confinement = message["confinement"]
        elif "parsed" in message:
            one.deadline = None  # hashing takes as long as the disk does
        elif "hashed" in message:
            if progress:
                progress(int(message["hashed"]))
        elif "error" in message:
            raise _error(*message["error"])
        else:
            job, one.job, one.deadline = one.job, None, None
            assert job is not None
            return Answer(job, message["sha256"], Report.from_json(message["report"]))
        return None

    def _lost(self, one: _Worker, rule: str | None) -> list[tuple[_Worker, Answer]]:
        """End a worker; what it was working on is refused."""
        job = one.job
        how = self._end(one)
        if job is None:
            return []
        what = "the parser ended without an answer" if how is None else how
        if rule == SLOW:
            what = "the parser was stopped: it took longer than any honest file of this size"
        report = Report("unknown", {}, (Finding(rule or DIED, what),))
        return [(one, Answer(job, None, report))]

    def _end(self, one: _Worker) -> str | None:
        """Kill and bury a worker; how it died, if it did so by itself."""
        self._workers.remove(one)
        self._selector.unregister(one.answers)
        os.close(one.jobs)
        os.close(one.answers)
        pid, status = os.waitpid(one.pid, os.WNOHANG)
        if pid == 0:
            os.kill(one.pid, signal.SIGKILL)
            _, status = os.waitpid(one.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == EXIT_BREACH:
            return "the parser was ended: it tried to open a socket, run a program or change files"
        return f"the parser was ended by {signal.Signals(-code).name}" if code < 0 else None


def _error(kind: str, rule: str | None, message: str) -> SteelyardError:
    return Malformed(message, rule=rule) if kind == "Malformed" and rule else Unavailable(message)
