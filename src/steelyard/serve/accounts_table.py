"""The counters of all workers: one file, mapped by each of them, changed under a lock.

    64-bit signed integers in the machine's byte order:
    head       magic, boot, records in use, second of the last snapshot, replay pending, 11 spare
    tickets    for each worker TICKETS of them: tokens and nanos held, tokens and nanos used (tokens -1: not settled
               yet), the records it counts in (index + 1, three of 20 bits; 0: free)
    records    tag (128 bits of SHA-256 of the label), second, requests, tokens, nanos, tokens held, nanos held,
               day, requests, tokens and nanos before that day, month, nanos before that month, 2 spare;
               requests and tokens before each of the last SPAN_S seconds

requests, tokens and nanos only grow. A window's count is what they grew by since the window began, so that a request
changes one number, however many windows it counts in. Windows move when the second does (`roll`).

Killed workers: the file lies in the page cache and survives them; the kernel frees their locks. Each change is one
that can be done again: what a killed worker held is summed anew from the tickets of those alive (`_sweep`).
A power cut may tear the file: after a boot the numbers come from the last snapshot and the ledger's tail.
"""

import fcntl
import hashlib
import mmap
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from time import gmtime

from steelyard.disk import Disk, open_file, unavailable
from steelyard.errors import Unavailable

MAX_WORKERS = 32
TICKETS = 4096  # requests in work in one worker
MAX_RECORDS = 16_384  # keys, users with limits of their own, and teams
SPAN_S = 61  # a window of so many whole seconds covers any 60 seconds
DAY_S = 86_400

TICKET_CELLS = 5
USED, STATE = 2, 4  # of a ticket
HEAD_CELLS = 16
TAG, SECOND, REQUESTS, TOKENS, NANOS, HELD_TOKENS, HELD_NANOS = 0, 2, 3, 4, 5, 6, 7
DAY, DAY_REQUESTS, DAY_TOKENS, DAY_NANOS, MONTH, MONTH_NANOS = 8, 9, 10, 11, 12, 13
BEFORE_REQUESTS = 16
BEFORE_TOKENS = BEFORE_REQUESTS + SPAN_S
RECORD_CELLS = BEFORE_TOKENS + SPAN_S

_MAGIC = int.from_bytes(b"steelya1", "little")
_BOOT, _USED, SNAPSHOT, _PENDING = 1, 2, 3, 4
_RECORDS_AT = HEAD_CELLS + MAX_WORKERS * TICKETS * TICKET_CELLS
_SIZE_BYTES = 8 * (_RECORDS_AT + MAX_RECORDS * RECORD_CELLS)
_INDEX_BITS = 20


class Table:
    """The mapped file and this process's place among the workers. Not for two threads at once, and not to be used
    on both sides of a fork.

    boot: names this run of the machine's kernel; empty when unknown, then only workers alive keep the numbers.
    is_alone: this worker is the only one, others are kept out.
    restore: called when the numbers were lost (first start, another boot, a replay that was not finished), to put
    in what a snapshot has; the ledger's tail is then to be replayed.
    """

    def __init__(
        self, folder: Path, boot: str, restore: Callable[["Table"], None], *, is_alone: bool
    ) -> None:
        Disk().make_folder(folder)
        self.folder = folder
        self._is_alone = is_alone
        self._files: list[int] = []
        try:
            self._come_in(folder / "workers")
            self._lock = open_file(folder / "lock", os.O_RDWR)
            self._files.append(self._lock)
            with self.locked():
                self.worker, dead = self._take_place()
                self._map = self._mapped(folder / "counters")
                self.cells = memoryview(self._map).cast("q")
                self._indices: dict[bytes, int] = {}
                if self._holds(boot, is_last=len(dead) == MAX_WORKERS - 1):
                    self._sweep(dead)
                else:
                    self._begin(boot, restore)
        except BaseException:
            self._let_go()
            raise
        self.tickets_at = HEAD_CELLS + self.worker * TICKETS * TICKET_CELLS

    def close(self) -> None:
        self.cells.release()
        self._map.close()
        self._let_go()

    def _let_go(self) -> None:
        while self._files:
            os.close(self._files.pop())

    @contextmanager
    def locked_beside(self) -> Iterator[None]:
        """The lock by a handle of its own, for a thread beside the one that answers."""
        if self._is_alone:
            yield
            return
        fd = open_file(self.folder / "lock", os.O_RDWR)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    @property
    def memory(self) -> mmap.mmap:
        """The file's bytes."""
        return self._map

    @property
    def lock(self) -> int:
        """A file to take with flock, which workers hold for microseconds only."""
        return self._lock

    @contextmanager
    def locked(self) -> Iterator[None]:
        if self._is_alone:
            yield
            return
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def bases(self) -> Iterator[int]:
        """Where each record begins."""
        for index in range(self.cells[_USED]):
            yield _RECORDS_AT + index * RECORD_CELLS

    def base_of(self, label: str) -> int:
        """Where the record of `label` begins, made when missing; the lock is held. Raises Unavailable when full."""
        return self.base_of_tag(hashlib.sha256(label.encode()).digest()[:16])

    def base_of_tag(self, tag: bytes) -> int:
        index = self.find(tag)
        if index is None:
            index = self.cells[_USED]
            if index >= MAX_RECORDS:
                raise Unavailable(f"{self.folder}: more than {MAX_RECORDS} keys, users and teams are counted")
            base = _RECORDS_AT + index * RECORD_CELLS
            self.cells[base : base + RECORD_CELLS] = memoryview(array("q", bytes(8 * RECORD_CELLS)))
            self.cells[base : base + 2] = memoryview(tag).cast("q")
            self.cells[_USED] = index + 1  # last: a record is in use when it is whole
            self._indices[tag] = index
        return _RECORDS_AT + index * RECORD_CELLS

    def find(self, tag: bytes) -> int | None:
        """The index of a record."""
        for index in range(len(self._indices), self.cells[_USED]):  # what others made
            base = _RECORDS_AT + index * RECORD_CELLS
            self._indices[self.cells[base : base + 2].tobytes()] = index
        return self._indices.get(tag)

    def settled(self) -> Iterator[tuple[int, int, int]]:
        """Of each ticket settled but not yet folded: a record's base, tokens and nanos used."""
        for worker in self._ever():
            for at in self._tickets(worker):
                if self.cells[at + USED] >= 0:
                    for base in bases_in(self.cells[at + STATE]):
                        yield base, self.cells[at + USED], self.cells[at + USED + 1]

    @property
    def is_whole(self) -> bool:
        """Whether the ledger's tail has been replayed."""
        return not self.cells[_PENDING]

    def replayed(self) -> None:
        self.cells[_PENDING] = 0

    def _come_in(self, path: Path) -> None:
        fd = open_file(path, os.O_RDWR)
        self._files.append(fd)
        try:
            fcntl.flock(fd, (fcntl.LOCK_EX if self._is_alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Unavailable(f"{self.folder}: another gateway counts here already") from error

    def _take_place(self) -> tuple[int, list[int]]:
        """This worker's number, and those of the workers that are not alive."""
        mine, dead = None, []
        for worker in range(MAX_WORKERS):
            path = self._place_of(worker)
            if mine is not None and not path.exists():
                dead.append(worker)
                continue
            fd = open_file(path, os.O_RDWR)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                continue
            if mine is None:
                mine = worker
                self._files.append(fd)
            else:
                dead.append(worker)
                os.close(fd)
        if mine is None:
            raise Unavailable(f"{self.folder}: {MAX_WORKERS} workers count here already")
        return mine, dead

    def _mapped(self, path: Path) -> mmap.mmap:
        fd = open_file(path, os.O_RDWR)
        try:
            with unavailable(f"cannot map {path}"):
                if os.fstat(fd).st_size != _SIZE_BYTES:
                    os.ftruncate(fd, 0)
                    os.posix_fallocate(fd, 0, _SIZE_BYTES)  # a full disk must fail here, not as SIGBUS later
                return mmap.mmap(fd, _SIZE_BYTES)
        finally:
            os.close(fd)

    def _holds(self, boot: str, *, is_last: bool) -> bool:
        """Whether the numbers in the file are good. Raises Unavailable when not and others use them."""
        valid = self.cells[0] == _MAGIC and 0 <= self.cells[_USED] <= MAX_RECORDS
        same = valid and self.cells[_BOOT] == _number_of(boot)
        if is_last:  # the only one alive
            return bool(same and boot and not self.cells[_PENDING])
        if not same:
            raise Unavailable(f"{self.folder}: the counters are of another boot, yet workers use them")
        return True

    def _begin(self, boot: str, restore: Callable[["Table"], None]) -> None:
        self.cells[0] = 0
        self.cells[_USED] = self.cells[SNAPSHOT] = 0
        for worker in self._ever():
            for at in self._tickets(worker):
                self.cells[at + STATE] = 0
        restore(self)
        self.cells[_BOOT], self.cells[_PENDING] = _number_of(boot), 1
        self.cells[0] = _MAGIC  # last: killed before this, the whole is done again

    def _ever(self) -> list[int]:
        """Workers whose place was ever taken: the tickets of the others are not touched, so cost no memory."""
        return [worker for worker in range(MAX_WORKERS) if self._place_of(worker).exists()]

    def _place_of(self, worker: int) -> Path:
        return self.folder / f"worker-{worker}.lock"

    def _tickets(self, worker: int) -> Iterator[int]:
        begin = HEAD_CELLS + worker * TICKETS * TICKET_CELLS
        states = self.cells[begin : begin + TICKETS * TICKET_CELLS].tolist()
        return (begin + i * TICKET_CELLS for i, state in enumerate(states[STATE::TICKET_CELLS]) if state)

    def _sweep(self, dead: list[int]) -> None:
        """Count what workers that died had settled, and let go what they held; the lock is held."""
        cells = self.cells
        ever = self._ever()
        gone = [at for worker in ever if worker in {*dead, self.worker} for at in self._tickets(worker)]
        for at in gone:
            if cells[at + USED] >= 0:
                for base in bases_in(cells[at + STATE]):
                    cells[base + TOKENS] += cells[at + USED]
                    cells[base + NANOS] += cells[at + USED + 1]
            cells[at + STATE] = 0
        for base in self.bases():
            cells[base + HELD_TOKENS] = cells[base + HELD_NANOS] = 0
        for worker in ever:
            for at in self._tickets(worker):
                for base in bases_in(cells[at + STATE]):
                    cells[base + HELD_TOKENS] += cells[at]
                    cells[base + HELD_NANOS] += cells[at + 1]


def _number_of(boot: str) -> int:
    return int.from_bytes(hashlib.sha256(boot.encode()).digest()[:8], "little", signed=True)


def boot_id() -> str:
    """Names this run of the machine's kernel; empty where it has no name."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return ""


def packed(bases: list[int]) -> int:
    """Up to three records in one cell."""
    value = 0
    for base in bases:
        value = value << _INDEX_BITS | ((base - _RECORDS_AT) // RECORD_CELLS + 1)
    return value


def bases_in(value: int) -> Iterator[int]:
    while value:
        yield _RECORDS_AT + ((value & ((1 << _INDEX_BITS) - 1)) - 1) * RECORD_CELLS
        value >>= _INDEX_BITS


def roll(cells: memoryview, base: int, second: int) -> int:
    """Move a record's windows to `second` (since 1970), and return the second they stand at; the lock is held.

    They never forget early. A clock that goes back by up to SPAN_S is waited for; by more, all that the minute holds
    counts as asked now, and day and month stay where they were as long as the clock is not a whole one behind.
    """
    last = cells[base + SECOND]
    if second <= last and last - second <= SPAN_S:
        return last
    if second < last:
        for before in (base + BEFORE_REQUESTS, base + BEFORE_TOKENS):
            _fill(cells, before, cells[before + last % SPAN_S])
    elif second - last >= SPAN_S:
        _fill(cells, base + BEFORE_REQUESTS, cells[base + REQUESTS])
        _fill(cells, base + BEFORE_TOKENS, cells[base + TOKENS])
    else:
        for at in range(last, second):
            cells[base + BEFORE_REQUESTS + at % SPAN_S] = cells[base + REQUESTS]
            cells[base + BEFORE_TOKENS + at % SPAN_S] = cells[base + TOKENS]
    day = second // DAY_S
    if day != cells[base + DAY]:
        _roll_day(cells, base, day)
    cells[base + SECOND] = second  # last: killed before this, the whole is done again
    return second


def add_past(cells: memoryview, base: int, second: int, counted: tuple[int, int, int]) -> None:
    """Count requests, tokens and nanos of `second` in the windows that hold it; the lock is held."""
    requests, tokens, nanos = counted
    if second > cells[base + SECOND]:
        roll(cells, base, second)
    cells[base + REQUESTS] += requests
    cells[base + TOKENS] += tokens
    cells[base + NANOS] += nanos
    # What began after it must not hold it.
    if cells[base + SECOND] - second >= SPAN_S:
        for at in range(SPAN_S):
            cells[base + BEFORE_REQUESTS + at] += requests
            cells[base + BEFORE_TOKENS + at] += tokens
    day = second // DAY_S
    if day < cells[base + DAY]:
        cells[base + DAY_REQUESTS] += requests
        cells[base + DAY_TOKENS] += tokens
        cells[base + DAY_NANOS] += nanos
    if month_of(day) < cells[base + MONTH]:
        cells[base + MONTH_NANOS] += nanos


def usage_in(folder: Path, labels: Iterable[str], second: int) -> dict[str, tuple[int, ...]]:
    """What labels used in the windows at `second`: requests and tokens in the minute, requests, tokens and nanos in
    the day, nanos in the month. Read beside the workers; labels never counted are left out. Raises Unavailable.
    """
    path = folder / "counters"
    found: dict[str, tuple[int, ...]] = {}
    if not path.exists():
        return found
    with unavailable(f"cannot read {path}"), path.open("rb") as file:
        cells = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)).cast("q")
    if len(cells) * 8 != _SIZE_BYTES or cells[0] != _MAGIC:
        return found
    wanted = {hashlib.sha256(label.encode()).digest()[:16]: label for label in labels}
    for base in range(_RECORDS_AT, _RECORDS_AT + cells[_USED] * RECORD_CELLS, RECORD_CELLS):
        label = wanted.get(cells[base : base + 2].tobytes())
        if label is not None:
            record = memoryview(array("q", cells[base : base + RECORD_CELLS].tolist()))
            found[label] = _used(record, second)
    return found


def _used(record: memoryview, second: int) -> tuple[int, ...]:
    slot = roll(record, 0, max(second, record[SECOND])) % SPAN_S
    return (
        record[REQUESTS] - record[BEFORE_REQUESTS + slot],
        record[TOKENS] - record[BEFORE_TOKENS + slot],
        record[REQUESTS] - record[DAY_REQUESTS],
        record[TOKENS] - record[DAY_TOKENS],
        record[NANOS] - record[DAY_NANOS],
        record[NANOS] - record[MONTH_NANOS],
    )


def _roll_day(cells: memoryview, base: int, day: int) -> None:
    if day > cells[base + DAY]:
        cells[base + DAY_REQUESTS] = cells[base + REQUESTS]
        cells[base + DAY_TOKENS] = cells[base + TOKENS]
        cells[base + DAY_NANOS] = cells[base + NANOS]
    if not 0 < cells[base + DAY] - day <= 1:
        cells[base + DAY] = day
    month = month_of(day)
    if month > cells[base + MONTH]:
        cells[base + MONTH_NANOS] = cells[base + NANOS]
    if not 0 < cells[base + MONTH] - month <= 1:
        cells[base + MONTH] = month


def _fill(cells: memoryview, at: int, value: int) -> None:
    cells[at : at + SPAN_S] = memoryview(array("q", [value]) * SPAN_S)


@lru_cache(maxsize=64)
def month_of(day: int) -> int:
    """Months since year 0 of a day since 1970."""
    moment = gmtime(day * DAY_S)
    return moment.tm_year * 12 + moment.tm_mon - 1


@lru_cache(maxsize=64)
def end_of_month(day: int) -> int:
    """Seconds since 1970 at which the month of `day` ends."""
    month = month_of(day)
    while month_of(day) == month:
        day += 1
    return day * DAY_S
