"""Several worker processes on one port, and a supervisor that holds none of their data.

Each worker has a listening socket of its own on the shared address (SO_REUSEPORT): the kernel spreads connections by
hash. One socket inherited by all was measured too: whoever wakes first takes a burst (benchmarks/worker_balance.py,
64 connections over four workers: 63/1/0/0 to 24/15/14/11, against 23/19/11/11 to 19/18/15/12). The supervisor keeps
every socket open, so that what waits at a dead worker's is answered by its successor; one that keeps dying gives its
socket up until it is back.

Workers are forked before anything is loaded or started: no thread, no event loop, no engine, no key in the parent.
An embedded engine holds gigabytes and its own threads, so it has exactly one owner: with one, there is one worker.
"""

import ctypes
import errno
import logging
import mmap
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from steelyard.errors import Unavailable, WrongUsage

MAX_WORKERS = 64
BACKLOG = 512
FIRST_BACKOFF_S = 0.1
MAX_BACKOFF_S = 30.0
STEADY_S = 60.0  # a worker that lived this long starts again at once
KILL_MARGIN_S = 5.0  # after the drain, before SIGKILL

DOWN, STARTING, READY = 0, 1, 2
_PR_SET_PDEATHSIG = 1
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)

_log = logging.getLogger(__name__)


class Fleet:
    """Which workers are ready, in memory that all share. Lock-free: one byte, one writer each."""

    def __init__(self, count: int) -> None:
        self._map = mmap.mmap(-1, count)
        self.count = count
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    def __getitem__(self, worker: int) -> int:
        return self._map[worker]

    @property
    def is_ready(self) -> bool:
        """Whether every worker is."""
        return all(self._map[worker] == READY for worker in range(self.count))

    def say(self, worker: int, state: int) -> None:
        """A worker's new state: READY by itself, the others by the supervisor too."""
        self._map[worker] = state
        with suppress(BlockingIOError):
            os.write(self._writer, b".")

    @property
    def descriptor(self) -> int:
        """Readable after something was said."""
        return self._reader

    def hear(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._reader, 4096)


class Listeners:
    """One listening socket for each worker, all on one address. Raises Unavailable when it is taken or not ours."""

    def __init__(self, host: str, port: int, count: int) -> None:
        self._family = socket.AF_INET6 if ":" in host else socket.AF_INET
        # A gateway of the same user that shares the port would be joined without a word: ask for it alone first.
        with self._bound((host, port), is_shared=False) as alone:
            self.address = alone.getsockname()
        self._sockets: list[socket.socket | None] = [self._open() for _ in range(count)]

    @property
    def port(self) -> int:
        return int(self.address[1])

    def take(self, worker: int) -> socket.socket:
        """The socket of a worker, opened again if it was given up."""
        found = self._sockets[worker]
        if found is None:
            found = self._sockets[worker] = self._open()
        return found

    def give_up(self, worker: int) -> None:
        """New connections go to the others."""
        found = self._sockets[worker]
        if found is not None:
            found.close()
            self._sockets[worker] = None

    def keep_only(self, worker: int) -> socket.socket:
        """In a worker: close those of the others, which would wait here for nobody."""
        kept = self.take(worker)
        for other in range(len(self._sockets)):
            if other != worker:
                self.give_up(other)
        return kept

    def close(self) -> None:
        for worker in range(len(self._sockets)):
            self.give_up(worker)

    def _open(self) -> socket.socket:
        one = self._bound(self.address, is_shared=True)
        one.listen(BACKLOG)
        one.setblocking(False)
        return one

    def _bound(self, address: tuple[str, int], *, is_shared: bool) -> socket.socket:
        one = socket.socket(self._family)
        try:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if is_shared:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            one.bind(address)
        except OSError as error:
            one.close()
            if error.errno == errno.EADDRINUSE:
                raise Unavailable(
                    f"port {address[1]} on {address[0]} is taken; stop the other program or choose another with --port"
                ) from error
            raise Unavailable(
                f"cannot listen on {address[0]} port {address[1]}: {error.strerror or error}"
            ) from error
        return one


def check_workers(count: int, *, has_embedded_engine: bool) -> None:
    """Raises WrongUsage for a number of workers that cannot be."""
    if not 1 <= count <= MAX_WORKERS:
        raise WrongUsage(f"--workers {count} is not between 1 and {MAX_WORKERS}")
    if count > 1 and has_embedded_engine:
        raise WrongUsage(
            "an embedded engine has one owner, so --workers is 1 with it; several workers are for upstream engines"
        )


def supervise(
    run_worker: Callable[[int, socket.socket, Fleet], int],
    listeners: Listeners,
    count: int,
    *,
    drain_s: float,
    on_ready: Callable[[], None] = lambda: None,
) -> int:
    """Run `count` workers until SIGTERM or SIGINT; the exit code. Call it last: `return supervise(...)`.

    run_worker: called in each forked worker with its number, its socket and the fleet, to which it says READY; what
    it returns or raises, `supervise` returns or raises in that worker.  It ends on SIGTERM after its drain, of at
    most drain_s, and reloads on SIGHUP.  on_ready: called in the supervisor, once, when all are ready.
    A worker that ends before all were ready once ends the others too, and its exit code is the answer. Later ones
    are started again: at once, then with a delay that doubles.
    """
    supervisor = _Supervisor(listeners, count, drain_s, on_ready)
    worker = supervisor.run()
    if worker is None:
        return supervisor.exit_code
    return run_worker(worker, listeners.keep_only(worker), supervisor.fleet)


class _Supervisor:
    """`run` returns in the parent with None when all is over, and in each worker with its number."""

    def __init__(
        self, listeners: Listeners, count: int, drain_s: float, on_ready: Callable[[], None]
    ) -> None:
        self.fleet = Fleet(count)
        self.exit_code = 0
        self._listeners = listeners
        self._drain_s = drain_s
        self._on_ready = on_ready
        self._pids: dict[int, int] = {}  # worker by process
        self._born: dict[int, float] = {}
        self._backoff_s = dict.fromkeys(range(count), 0.0)
        self._due: dict[int, float] = dict.fromkeys(range(count), 0.0)  # when a worker is to start
        self._was_ready = False
        self._stop_by: float | None = None
        self._caught: list[int] = []
        self._wakeup = os.pipe()
        for fd in self._wakeup:
            os.set_blocking(fd, False)

    def run(self) -> int | None:
        before = {name: signal.signal(name, self._catch) for name in _SIGNALS}
        woken = signal.set_wakeup_fd(self._wakeup[1])
        try:
            while self._pids or self._stop_by is None:
                worker = self._start_due()
                if worker is not None:
                    return worker
                self._wait()
                self._heed()
                self._bury()
                if not self._was_ready and self.fleet.is_ready:
                    self._was_ready = True
                    self._on_ready()
        finally:
            signal.set_wakeup_fd(woken)
            for name, handler in before.items():
                signal.signal(name, handler)
        self._listeners.close()
        return None

    def _catch(self, number: int, _frame: FrameType | None) -> None:
        self._caught.append(number)

    def _start_due(self) -> int | None:
        """In the parent absent; in a new worker its number."""
        now = time.monotonic()
        for worker in [one for one, at in self._due.items() if at <= now]:
            if self._stop_by is not None:
                self._due.clear()
                return None
            self._listeners.take(worker)
            self.fleet.say(worker, STARTING)
            sys.stdout.flush()
            sys.stderr.flush()
            parent = os.getpid()
            pid = os.fork()
            if pid == 0:
                _die_with(parent)
                for fd in self._wakeup:
                    os.close(fd)
                return worker
            del self._due[worker]
            self._pids[pid] = worker
            self._born[worker] = now
        return None

    def _wait(self) -> None:
        deadlines = [*self._due.values(), *([self._stop_by] if self._stop_by is not None else [])]
        timeout = max(0.0, min(deadlines) - time.monotonic()) if deadlines else None
        if not self._caught:
            select.select([self._wakeup[0], self.fleet.descriptor], [], [], timeout)
        with suppress(BlockingIOError):
            os.read(self._wakeup[0], 4096)
        self.fleet.hear()

    def _heed(self) -> None:
        while self._caught:
            number = self._caught.pop(0)
            if number == signal.SIGHUP:
                self._send(signal.SIGHUP)
            elif number in (signal.SIGTERM, signal.SIGINT):
                # Whoever asks twice does not want to wait.
                self._stop(0.0 if self._stop_by is not None else self._drain_s + KILL_MARGIN_S)
        if self._stop_by is not None and time.monotonic() >= self._stop_by and self._pids:
            _log.error("%d workers did not end in time and are killed", len(self._pids))
            self.exit_code = self.exit_code or 1
            self._send(signal.SIGKILL)
            self._stop_by = time.monotonic() + KILL_MARGIN_S

    def _stop(self, within_s: float) -> None:
        self._stop_by = time.monotonic() + within_s
        self._due.clear()
        self._send(signal.SIGTERM)

    def _send(self, number: int) -> None:
        for pid in self._pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _bury(self) -> None:
        for pid in list(self._pids):
            with suppress(ChildProcessError):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended == 0:
                    continue
                worker = self._pids.pop(pid)
                self.fleet.say(worker, DOWN)
                self._mourn(worker, os.waitstatus_to_exitcode(status))

    def _mourn(self, worker: int, code: int) -> None:
        if self._stop_by is not None:
            if code != 0:
                self.exit_code = self.exit_code or max(code, 1)
            return
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        if not self._was_ready:
            _log.error("worker %d ended with %s before all were ready", worker, how)
            self.exit_code = code if code > 0 else 3
            self._stop(self._drain_s + KILL_MARGIN_S)
            return
        now = time.monotonic()
        lived_long = now - self._born[worker] >= STEADY_S
        delay_s = 0.0 if lived_long else self._backoff_s[worker]
        self._backoff_s[worker] = min(MAX_BACKOFF_S, max(FIRST_BACKOFF_S, 2 * delay_s))
        _log.error("worker %d ended with %s; it starts again in %.1f s", worker, how, delay_s)
        if delay_s > FIRST_BACKOFF_S:
            self._listeners.give_up(worker)
        self._due[worker] = now + delay_s


def _die_with(parent: int) -> None:
    """Have the kernel send SIGTERM when the supervisor dies, so that a worker drains instead of being left over."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)
