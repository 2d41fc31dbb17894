"""One writer for the ledger inside one process: entries of many requests in few writes, checkpoints behind them.

strict    an answer waits until its entry is on the disk: one sync for all that wait
relaxed   an answer waits until its entry is with the kernel, which a kill of the process cannot undo; a thread syncs
          within 50 ms. An answer is never given over writes older than LOSS_WINDOW_S that are not synced, so a power
          cut costs the entries of at most that much answering, however slow the disk is.
In both, entries that come in one turn of the event loop share one write, and nothing on the loop waits for a lock.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Literal, Protocol, TypeAlias, cast, runtime_checkable

from steelyard.digest import JSON, canonical_json
from steelyard.errors import SteelyardError, Unavailable
from steelyard.evidence import timestamp
from steelyard.ledger import MAX_ENTRY_BYTES

MAX_WAITING = 8192  # entries not yet written
MAX_WAITING_BYTES = 32 << 20
MAX_BATCH = 1000  # entries in one write; of the greatest length they fit one batch
PUBLISH_INTERVAL_S = 0.2
SYNC_INTERVAL_S = 0.04
HEAL_INTERVAL_S = 0.2
LOSS_WINDOW_S = 0.05
BUSY_RETRY_S = 0.0005
BUSY_RETRIES = 8  # then a thread waits for the lock
HEARTBEAT_S = 60.0
CLOCK_STEP_S = 0.5  # a wall clock this far off its own pace was set

Durability: TypeAlias = Literal["strict", "relaxed"]

_log = logging.getLogger(__name__)
_CLOSED = "the ledger is closed"
_REFUSED = "the ledger cannot be written, so nothing is answered"


class Log(Protocol):
    """What `strict` needs of the ledger; blocking, called in threads."""

    def append(self, _entries: Sequence[bytes], /) -> object: ...

    def publish(self) -> object: ...


@runtime_checkable
class SharedLog(Protocol):
    """What a ledger of several processes has besides."""

    def try_publish(self, _interval_s: float, /) -> bool: ...


class RelaxedLog(Log, Protocol):
    """What `relaxed` needs besides. Only `try_write` is called on the event loop."""

    def try_write(self, _entries: Sequence[bytes], /) -> bool: ...

    def write(self, _entries: Sequence[bytes], /) -> object: ...

    def sync(self) -> object: ...


class Sequencer:
    """Enters what many requests bring in few writes, and publishes checkpoints behind them.

    clock: aware; with it, heartbeats are entered at start, at close and after `heartbeat_s` without an entry, and a
    clock that was set shows as an entry. Without it, none.
    """

    def __init__(
        self,
        log: Log,
        publish_interval_s: float = PUBLISH_INTERVAL_S,
        *,
        durability: Durability = "strict",
        clock: Callable[[], datetime] | None = None,
        heartbeat_s: float = HEARTBEAT_S,
    ) -> None:
        self._log = log
        self._relaxed = cast("RelaxedLog", log) if durability == "relaxed" else None
        self._interval_s = publish_interval_s
        self._pulse = _Pulse(clock, heartbeat_s, self.note) if clock is not None else None
        self._threads = ThreadPoolExecutor(
            3, "ledger"
        )  # a write, a sync and a publish do not wait for each other
        self._loop: asyncio.AbstractEventLoop
        self._waiting: list[bytes] = []
        self._futures: list[asyncio.Future[None]] = []  # of _waiting, in order
        self._waiting_bytes = 0
        self._is_due = False  # a flush is scheduled, or a thread is writing and flushes when done
        self._retries = 0
        # Monotonic times of the first write since the last sync began, and of the first that this sync covers; 0: none.
        self._unsynced_s = 0.0
        self._syncing_s = 0.0
        self._sync_task: asyncio.Task[None] | None = None
        self._entered_s = 0.0
        self._is_dirty = False
        self._is_sick = False  # a sync failed and none has worked since
        self._closing = False
        self._fault: BaseException | None = None  # a defect of the log's; nothing is entered after it
        self._tasks: tuple[asyncio.Task[None], ...] = ()
        self._drained: asyncio.Event
        self.is_broken = False  # the last write or sync failed, and nothing was entered since

    @property
    def waiting(self) -> int:
        """Entries not yet written."""
        return len(self._waiting)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._drained = asyncio.Event()
        self._tasks = (asyncio.create_task(self._publish_often()),)
        if self._pulse is not None:
            self._pulse.begin()

    async def append(self, entry: bytes) -> None:
        """Return when `entry` is entered as durably as the mode says. Raises Unavailable when it will not be."""
        await self.put(entry)

    def put(self, entry: bytes) -> "asyncio.Future[None]":
        """Queue `entry`; the future ends when it is entered, or with Unavailable. Raises Unavailable when full."""
        if self._closing or not self._tasks or self._fault is not None:
            raise Unavailable(_CLOSED)
        if self._is_sick:
            raise Unavailable(_REFUSED)
        return self._put(entry)

    def note(self, entry: bytes) -> None:
        """Queue `entry` for a caller who has left; a failure is logged."""
        try:
            self.put(entry).add_done_callback(_complain)
        except Unavailable as error:
            _log.error("an entry was lost: %s", error.message)

    async def close(self) -> None:
        """Enter what waits, sync and publish it. Raises Unavailable when that fails."""
        if self._closing or not self._tasks:
            return
        if self._pulse is not None:
            self._pulse.end()
        self._closing = True
        while self._is_due:
            self._drained.clear()
            await self._drained.wait()
        self._tasks[0].cancel()
        with suppress(asyncio.CancelledError):
            await self._tasks[0]
        if self._sync_task is not None:
            await self._sync_task
        try:
            if self._fault is not None:
                raise self._fault
            await self._in_thread(self._log.publish)
        finally:
            self._threads.shutdown(wait=False)

    def _put(self, entry: bytes) -> "asyncio.Future[None]":
        size_bytes = len(entry)
        if size_bytes > MAX_ENTRY_BYTES:
            raise ValueError(f"an entry of {size_bytes} bytes, at most {MAX_ENTRY_BYTES} fit")
        if len(self._waiting) >= MAX_WAITING or self._waiting_bytes + size_bytes > MAX_WAITING_BYTES:
            raise Unavailable(f"{len(self._waiting)} entries wait for the ledger")
        future = self._loop.create_future()
        self._waiting.append(entry)
        self._futures.append(future)
        self._waiting_bytes += size_bytes
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._flush)
        return future

    # Writing. `_is_due` is true from the first entry that waits until none does; one flush is under way at a time.

    def _flush(self) -> None:
        if not self._waiting:
            self._is_due = False
            self._drained.set()
            return
        if self._relaxed is None:
            self._hand_over(self._log.append)
        elif self._is_late():
            self._loop.call_later(BUSY_RETRY_S, self._flush)  # the sync under way ends it
        else:
            self._try_write(self._relaxed)

    def _is_late(self) -> bool:
        oldest_s = self._syncing_s or self._unsynced_s
        return oldest_s > 0 and time.monotonic() - oldest_s > LOSS_WINDOW_S and not self._is_sick

    def _try_write(self, log: RelaxedLog) -> None:
        entries, futures = self._take()
        try:
            written = log.try_write(entries)
        except SteelyardError as error:
            self._refuse(futures, error)
        except BaseException as error:
            self._break(futures, error)
            raise
        else:
            if not written:
                self._wait_for_lock(log, entries, futures)
                return
            self._retries = 0
            self._entered(futures)
        self._again()

    def _wait_for_lock(
        self, log: RelaxedLog, entries: list[bytes], futures: "list[asyncio.Future[None]]"
    ) -> None:
        self._waiting[:0], self._futures[:0] = entries, futures
        self._waiting_bytes += sum(map(len, entries))
        self._retries += 1
        if self._retries <= BUSY_RETRIES:
            self._loop.call_later(BUSY_RETRY_S, self._flush)
        else:
            self._retries = 0
            self._hand_over(log.write)

    def _hand_over(self, write: Callable[[Sequence[bytes]], object]) -> None:
        """Let a thread write what waits; entries that come meanwhile share the next write."""
        entries, futures = self._take()
        task = self._threads.submit(write, entries)

        def done() -> None:
            error = task.exception()
            if error is None:
                self._entered(futures)
            elif isinstance(error, SteelyardError):
                self._refuse(futures, error)
            else:
                self._break(futures, error)
            self._again()

        task.add_done_callback(lambda _: self._loop.call_soon_threadsafe(done))

    def _take(self) -> "tuple[list[bytes], list[asyncio.Future[None]]]":
        entries, futures = self._waiting, self._futures
        if len(entries) > MAX_BATCH:
            self._waiting, self._futures = entries[MAX_BATCH:], futures[MAX_BATCH:]
            entries, futures = entries[:MAX_BATCH], futures[:MAX_BATCH]
            self._waiting_bytes -= sum(map(len, entries))
        else:
            self._waiting, self._futures, self._waiting_bytes = [], [], 0
        return entries, futures

    def _again(self) -> None:
        if self._waiting:
            self._loop.call_soon(self._flush)
        else:
            self._is_due = False
            self._drained.set()

    def _entered(self, futures: "list[asyncio.Future[None]]") -> None:
        self._is_dirty = True
        self.is_broken = self._is_sick
        now_s = self._entered_s = time.monotonic()
        if self._relaxed is not None and not self._unsynced_s:
            self._unsynced_s = now_s
            if self._sync_task is None:
                self._sync_task = self._loop.create_task(self._sync_often(self._relaxed))
        for future in futures:
            if not future.done():
                future.set_result(None)

    def _refuse(self, futures: "list[asyncio.Future[None]]", error: SteelyardError) -> None:
        _log.error("the ledger refused %d entries: %s", len(futures), error.message)
        self.is_broken = True
        for future in futures:
            _fail(future, Unavailable(_REFUSED))

    def _break(self, futures: "list[asyncio.Future[None]]", error: BaseException) -> None:
        self._fault = error
        self.is_broken = True
        for future in [*futures, *self._futures]:
            _fail(future, Unavailable("the ledger stopped"))
        self._waiting, self._futures, self._waiting_bytes = [], [], 0

    # Syncing and publishing.

    async def _sync_often(self, log: RelaxedLog) -> None:
        """Sync until nothing written is left without; a failure closes the ledger until a sync works."""
        while self._unsynced_s or self._is_sick:
            if not self._closing:
                await asyncio.sleep(HEAL_INTERVAL_S if self._is_sick else SYNC_INTERVAL_S)
            self._syncing_s, self._unsynced_s = self._syncing_s or self._unsynced_s, 0.0
            try:
                await self._in_thread(log.sync)
            except SteelyardError as error:
                if not self._is_sick:
                    _log.error("the ledger cannot be synced, so nothing is answered: %s", error.message)
                self._is_sick = self.is_broken = True
                if self._closing:
                    break
            else:
                self._syncing_s = 0.0
                self._is_sick = False
        self._sync_task = None

    async def _publish_often(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            if self._pulse is not None and not self._is_sick:
                self._pulse.beat(self._entered_s)
            if not self._is_dirty:
                continue
            self._is_dirty = False
            try:
                self._is_dirty |= not await self._in_thread(self._publish)
            except SteelyardError as error:
                self._is_dirty = True
                _log.error("no checkpoint could be published: %s", error.message)

    def _publish(self) -> bool:
        if isinstance(self._log, SharedLog):
            # Somebody else's checkpoint covers our entries too: who published last goes on doing it.
            return self._log.try_publish(1.5 * self._interval_s)
        self._log.publish()
        return True

    async def _in_thread(self, function: Callable[[], object]) -> object:
        return await self._loop.run_in_executor(self._threads, function)


class _Pulse:
    """Says in the ledger that somebody is there, and that a clock was set.

    Heartbeats make a cut tail visible: a ledger in use that ends long ago, or without a `stop`, was cut or killed.
    A wall clock that leaves the pace of the monotonic one was set; times around that entry do not follow its order,
    the sequence does.
    """

    def __init__(
        self, clock: Callable[[], datetime], heartbeat_s: float, note: Callable[[bytes], None]
    ) -> None:
        self._clock = clock
        self._heartbeat_s = heartbeat_s
        self._note = note
        self._seen: datetime
        self._seen_s = 0.0

    def begin(self) -> None:
        self._seen, self._seen_s = self._clock(), time.monotonic()
        self._say("start", self._seen)

    def end(self) -> None:
        self._say("stop", self._clock())

    def beat(self, entered_s: float) -> None:
        """Enter a heartbeat when the last entry, at monotonic `entered_s`, is long ago; a clock's step at once."""
        now, now_s = self._clock(), time.monotonic()
        expected = self._seen + timedelta(seconds=now_s - self._seen_s)
        self._seen, self._seen_s = now, now_s
        if abs((now - expected).total_seconds()) > CLOCK_STEP_S:
            record: dict[str, JSON] = {
                "kind": "clock",
                "at": timestamp(now),
                "expected": timestamp(expected),
                "pid": os.getpid(),
            }
            self._note(canonical_json(record))
        elif now_s - entered_s >= self._heartbeat_s:
            self._say("alive", now)

    def _say(self, state: str, now: datetime) -> None:
        record: dict[str, JSON] = {
            "kind": "heartbeat",
            "at": timestamp(now),
            "state": state,
            "pid": os.getpid(),
        }
        self._note(canonical_json(record))


def _fail(future: "asyncio.Future[None]", error: SteelyardError) -> None:
    if not future.done():
        future.set_exception(error)


def _complain(future: "asyncio.Future[None]") -> None:
    if not future.cancelled() and future.exception() is not None:
        _log.error("the entry of an unfinished answer was lost")
