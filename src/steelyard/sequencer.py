"""One writer for the ledger inside one process: entries of many requests in few appends, checkpoints behind them."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Protocol

from steelyard.errors import SteelyardError, Unavailable

MAX_WAITING = 8192  # entries not yet durable
MAX_BATCH = 1024  # entries in one append
PUBLISH_INTERVAL_S = 0.1

_log = logging.getLogger(__name__)


class Log(Protocol):
    """What is needed of the ledger; blocking, called in threads."""

    def append(self, _entries: Sequence[bytes], /) -> object: ...

    def publish(self) -> object: ...


class Sequencer:
    """Enters what many requests bring in few appends, and publishes checkpoints behind them.

    One append is under way at a time; entries that arrive meanwhile share the next one, and so its sync.
    """

    def __init__(self, log: Log, publish_interval_s: float = PUBLISH_INTERVAL_S) -> None:
        self._log = log
        self._interval_s = publish_interval_s
        self._threads = ThreadPoolExecutor(2, "ledger")  # an append does not wait for a publish
        self._waiting: list[tuple[bytes, asyncio.Future[None]]] = []
        self._arrived = asyncio.Event()
        self._is_dirty = False
        self._closing = False
        self._tasks: tuple[asyncio.Task[None], ...] = ()
        self.is_broken = False  # the last append failed

    def start(self) -> None:
        self._tasks = (asyncio.create_task(self._commit()), asyncio.create_task(self._publish_often()))

    async def append(self, entry: bytes) -> None:
        """Return when `entry` is durable. Raises Unavailable when it will not be."""
        await self.put(entry)

    def put(self, entry: bytes) -> "asyncio.Future[None]":
        """Queue `entry`; the future ends when it is durable, or with Unavailable. Raises Unavailable when full."""
        if self._closing or not self._tasks or self._tasks[0].done():
            raise Unavailable("the ledger is closed")
        if len(self._waiting) >= MAX_WAITING:
            raise Unavailable(f"{MAX_WAITING} entries wait for the ledger")
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((entry, future))
        self._arrived.set()
        return future

    def note(self, entry: bytes) -> None:
        """Queue `entry` for a caller who has left; a failure is logged."""
        try:
            self.put(entry).add_done_callback(_complain)
        except Unavailable as error:
            _log.error("an entry was lost: %s", error.message)

    async def close(self) -> None:
        """Enter what waits and publish it. Raises Unavailable when that fails."""
        if self._closing or not self._tasks:
            return
        self._closing = True
        self._arrived.set()
        commit, publish = self._tasks
        await commit
        publish.cancel()
        with suppress(asyncio.CancelledError):
            await publish
        await self._in_thread(self._log.publish)
        self._threads.shutdown()

    async def _commit(self) -> None:
        try:
            while self._waiting or not self._closing:
                await self._arrived.wait()
                self._arrived.clear()
                while self._waiting:
                    batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
                    await self._enter(batch)
        finally:
            for _, future in self._waiting:
                _fail(future, Unavailable("the ledger stopped"))

    async def _enter(self, batch: list[tuple[bytes, "asyncio.Future[None]"]]) -> None:
        failure: SteelyardError | None = Unavailable("the ledger was interrupted")
        try:
            await self._in_thread(self._log.append, [entry for entry, _ in batch])
            failure = None
        except SteelyardError as error:
            _log.error("the ledger refused %d entries: %s", len(batch), error.message)
            failure = Unavailable("the ledger cannot be written, so nothing is answered")
        finally:
            self.is_broken = failure is not None
            for _, future in batch:
                if failure is not None:
                    _fail(future, failure)
                elif not future.done():
                    future.set_result(None)
        self._is_dirty = True

    async def _publish_often(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            if not self._is_dirty:
                continue
            self._is_dirty = False
            try:
                await self._in_thread(self._log.publish)
            except SteelyardError as error:
                self._is_dirty = True
                _log.error("no checkpoint could be published: %s", error.message)

    async def _in_thread(self, function: Callable[..., object], *args: object) -> None:
        await asyncio.get_running_loop().run_in_executor(self._threads, function, *args)


def _fail(future: "asyncio.Future[None]", error: SteelyardError) -> None:
    if not future.done():
        future.set_exception(error)


def _complain(future: "asyncio.Future[None]") -> None:
    if not future.cancelled() and future.exception() is not None:
        _log.error("the entry of an unfinished answer was lost")
