"""Accounts: what callers have used of their limits, exact over all workers of this machine.

A request counts when it comes in. Its tokens and money are held, at an upper bound, from then until its answer ends,
and then count at what was used. A request goes on only if used + held + its own bound stays within every limit of
its key, its team and the installation; so no window ever holds more than its limit, unless an answer used more than
its bound, which the next requests then wait for.

    requests, tokens per minute    any 60 seconds: sliding, because a fixed minute lets twice the limit through around
                                   its border, and a weighted estimate of a sliding one is only right on average
    requests, tokens per day       the calendar day, UTC; money: the calendar day or month, UTC, as bills have it

What a settled request gives back is seen by this worker's next request at once, by other workers after its next
request or `flush` (to be called about every 100 ms). Until then they are too strict, never too lax.
"""

import fcntl
import os
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from struct import Struct
from types import MappingProxyType

from steelyard.digest import JSON
from steelyard.disk import Disk, open_file
from steelyard.errors import Refused, Unavailable
from steelyard.serve.accounts_levels import Fields, Level, Levels, exhausted, fields_of
from steelyard.serve.accounts_snapshot import Snapshot
from steelyard.serve.accounts_table import (
    DAY_S,
    HELD_NANOS,
    HELD_TOKENS,
    REQUESTS,
    SNAPSHOT,
    STATE,
    TICKET_CELLS,
    TICKETS,
    USED,
    Table,
    add_past,
)
from steelyard.serve.auth import Caller
from steelyard.serve.limits import INSTALLATION, KEY, TEAM, Allowance
from steelyard.serve.prices import Prices, Rate

MAX_ALLOWANCES = 50_000  # looked up by this worker; then it looks them up anew
MAX_WAITING = 64  # settled tickets, before they are folded without a next request
MAX_TOKENS = 10**8  # in one request

_FREE = Rate(0, 0)
_five, _put_five, _put_two = Struct("=5q").unpack_from, Struct("=5q").pack_into, Struct("=2q").pack_into
_flock, _EX, _UN = fcntl.flock, fcntl.LOCK_EX, fcntl.LOCK_UN


class Ticket:
    """Leave for one request. Settled once, however the request ends."""

    __slots__ = ("_accounts", "_is_open", "at", "levels", "nanos", "rate", "spent", "tokens", "used")

    def __init__(
        self, accounts: "Accounts", levels: Levels, at: int, tokens: int, nanos: int, rate: Rate
    ) -> None:
        self._accounts = accounts
        self.levels = levels
        self.at = at
        self.tokens = tokens
        self.nanos = nanos
        self.rate = rate
        self._is_open = True
        self.used: int
        self.spent: int

    def settle(self, prompt_tokens: int | None, completion_tokens: int | None) -> None:
        """The answer used so much; both absent: nobody knows, what was held counts as used. Later calls do nothing.

        To be called before the ledger has the entry: then a count never misses what the ledger holds.
        """
        if not self._is_open:
            return
        self._is_open = False
        if prompt_tokens is None and completion_tokens is None:
            self.used, self.spent = self.tokens, self.nanos
        else:
            # An upstream's own numbers: whatever they are, they neither give tokens back nor break the counters.
            prompt, completion = prompt_tokens or 0, completion_tokens or 0
            if not 0 <= prompt <= MAX_TOKENS or not 0 <= completion <= MAX_TOKENS:
                prompt, completion = (min(max(number, 0), MAX_TOKENS) for number in (prompt, completion))
            self.used = prompt + completion
            self.spent = prompt * self.rate.prompt + completion * self.rate.completion
        self._accounts.settled(self)

    def release(self) -> None:
        """The request never reached an engine: it used nothing."""
        self.settle(0, 0)

    def headers(self) -> Fields:
        """OpenAI's x-ratelimit-* fields; none where nothing is limited."""
        return self._accounts.fields(self.levels)


class _Unlimited(Ticket):
    """Leave for one whom nothing limits and nobody counts."""

    __slots__ = ()

    def settle(self, prompt_tokens: int | None, completion_tokens: int | None) -> None:
        pass


class Accounts:
    """This worker's door to the counters in `folder`.

    clock: seconds since 1970.  boot: names this run of the kernel (see Table).  is_alone: no other worker counts in
    this folder, nor can one come; saves the lock.  replay_from: the entry of the ledger
    from which `replay` must be given entries before the counts are whole; absent when they are.
    """

    def __init__(
        self,
        folder: Path,
        prices: Prices,
        *,
        clock: Callable[[], float],
        boot: str,
        is_alone: bool = False,
        disk: Disk | None = None,
    ) -> None:
        self._path = folder / "snapshot"
        self.replay_from: int | None = None
        self._table = Table(folder, boot, self._restore, is_alone=is_alone)
        self._is_alone = is_alone
        self._cells = self._table.cells
        self._memory = self._table.memory
        self._lock = self._table.lock
        self._prices = prices
        self._clock = clock
        self._disk = disk or Disk()
        self._last: Snapshot | None = None
        self._levels: dict[Allowance, Levels] = {}
        self._free = [self._table.tickets_at + i * TICKET_CELLS for i in range(TICKETS)]
        self._waiting: list[Ticket] = []
        self._unlimited = _Unlimited(self, Levels(()), 0, 0, 0, _FREE)

    def close(self) -> None:
        self.flush()
        self._table.close()

    def replace(self, prices: Prices) -> None:
        """Charge by these prices from the next request on."""
        self._prices = prices

    def take(self, caller: Caller, alias: str, tokens: int) -> Ticket:
        """Leave for a request that uses at most `tokens`, prompt included.

        Raises Exhausted when a limit has no room, Refused when money is limited and the alias has no price,
        Unavailable when the counters are full.
        """
        levels = self._levels.get(caller.limits) or self._found(caller.limits)
        if not levels.packed:
            return self._unlimited
        second = int(self._clock())
        rate = self._prices.rate(alias, second // DAY_S) or _unpriced(levels, alias)
        if tokens > MAX_TOKENS:
            tokens = MAX_TOKENS
        nanos = tokens * rate.highest
        if self._is_alone:
            at = self._counted(levels, second, tokens, nanos)
        else:
            _flock(self._lock, _EX)
            try:
                at = self._counted(levels, second, tokens, nanos)
            finally:
                _flock(self._lock, _UN)
        return Ticket(self, levels, at, tokens, nanos, rate)

    def settled(self, ticket: Ticket) -> None:
        """Written where a kill leaves it, folded into the counts a little later."""
        _put_two(self._memory, (ticket.at + USED) * 8, ticket.used, ticket.spent)
        self._waiting.append(ticket)
        if len(self._waiting) >= MAX_WAITING:
            self.flush()

    def flush(self) -> None:
        """Let other workers see what settled tickets gave back. Cheap when there are none."""
        if self._waiting:
            with self._table.locked():
                self._fold(int(self._clock()))

    def fields(self, levels: Levels) -> Fields:
        return fields_of(self._cells, levels)

    # After a power cut.

    def snapshot(self, covered: int) -> None:
        """Write what is counted, durable on return: for a thread, about once a second, by any worker.

        covered: the ledger's size, read before this call. One worker a second does it, the others return.
        """
        second = int(self._clock())
        if not self._table.is_whole or self._cells[SNAPSHOT] == second:
            return
        writing = open_file(self._path.with_suffix(".lock"), os.O_RDWR)
        try:
            _flock(writing, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._cells[SNAPSHOT] = second
            snapshot = Snapshot.of(self._table, covered)
            if snapshot != self._last:
                self._disk.put(self._path, snapshot.to_bytes(), scratch=self._table.folder)
                self._last = snapshot
        except BlockingIOError:
            pass  # another worker is still writing its own
        finally:
            os.close(writing)

    def replay(
        self, entries: Iterable[Mapping[str, JSON]], teams: Mapping[str, str] = MappingProxyType({})
    ) -> int:
        """Count entries of the ledger, in its order, from `replay_from` on. How many there were of requests.

        teams: by API key, for entries that do not name the team.
        """
        count = 0
        for entry in entries:
            if entry.get("kind", "answer") in ("answer", "refusal"):
                self._replay(entry, teams)
                count += 1
        self._table.replayed()
        self.replay_from = None
        return count

    def _replay(self, entry: Mapping[str, JSON], teams: Mapping[str, str]) -> None:
        second = int(datetime.fromisoformat(str(entry["at"])).timestamp())
        prompt, completion = (_whole(entry.get(name)) for name in ("prompt_tokens", "completion_tokens"))
        tokens = _whole(entry.get("tokens")) or prompt + completion
        rate = self._prices.rate(str(entry.get("alias")), second // DAY_S) or _FREE
        labels = [f"{INSTALLATION}:all"]
        key = entry.get("key")
        team = entry.get("team") or teams.get(str(key))
        labels += [f"{kind}:{name}" for kind, name in ((KEY, key), (TEAM, team)) if name is not None]
        counted = (1, tokens, rate.nanos(prompt, completion))
        with self._table.locked():
            for label in labels:
                add_past(self._cells, self._table.base_of(label), second, counted)

    def _restore(self, table: Table) -> None:
        snapshot = Snapshot.read(self._path)
        snapshot.restore(table)
        self.replay_from = snapshot.covered

    # Under the lock.

    def _found(self, allowance: Allowance) -> Levels:
        if len(self._levels) >= MAX_ALLOWANCES:
            self._levels.clear()
        with self._table.locked():
            levels = Levels(
                tuple(Level(scope, self._table.base_of(scope.label)) for scope in allowance.scopes)
            )
        self._levels[allowance] = levels
        return levels

    def _counted(self, levels: Levels, second: int, tokens: int, nanos: int) -> int:
        """Count a request at all levels, or at none. Where its ticket is."""
        if self._waiting:
            self._fold(second)
        if levels.second != second:
            levels.move(self._cells, second)
        memory = self._memory
        for level in levels.levels:
            requests, used, spent, held, held_nanos = _five(memory, level.at)
            held += tokens
            held_nanos += nanos
            if (
                requests >= level.requests
                or used + held > level.tokens
                or (nanos and spent + held_nanos > level.nanos)
            ):
                self._undo(level, levels, tokens, nanos)
                raise exhausted(self._cells, level, levels, tokens, nanos)
            _put_five(memory, level.at, requests + 1, used, spent, held, held_nanos)
        if not self._free:
            self._undo(None, levels, tokens, nanos)
            raise Unavailable(f"more than {TICKETS} requests are in work")
        at = self._free.pop()
        _put_five(memory, at * 8, tokens, nanos, -1, 0, levels.packed)  # from here on it counts as held
        return at

    def _undo(self, refusing: Level | None, levels: Levels, tokens: int, nanos: int) -> None:
        """Take back what the levels before `refusing` counted."""
        cells = self._cells
        for level in levels.levels:
            if level is refusing:
                return
            cells[level.base + REQUESTS] -= 1
            cells[level.base + HELD_TOKENS] -= tokens
            cells[level.base + HELD_NANOS] -= nanos

    def _fold(self, second: int) -> None:
        cells = self._cells
        for ticket in self._waiting:
            levels = ticket.levels
            if levels.second != second:
                levels.move(cells, second)  # first, or the tokens would count in a second long past
            for level in levels.levels:
                requests, used, spent, held, held_nanos = _five(self._memory, level.at)
                _put_five(
                    self._memory,
                    level.at,
                    requests,
                    used + ticket.used,
                    spent + ticket.spent,
                    held - ticket.tokens,
                    held_nanos - ticket.nanos,
                )
            cells[ticket.at + STATE] = 0
            self._free.append(ticket.at)
        self._waiting.clear()


def _unpriced(levels: Levels, alias: str) -> Rate:
    if any(level.limits.budget is not None for level in levels.levels):
        raise Refused(
            f"money is limited for this caller and {alias!r} has no price; the operator adds one to [prices]"
        )
    return _FREE


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
