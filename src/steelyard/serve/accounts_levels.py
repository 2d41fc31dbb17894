"""One caller's limits against the counters: how much room there is, and what to say when there is none."""

from steelyard.access import Budget
from steelyard.errors import Exhausted
from steelyard.serve.accounts_table import (
    BEFORE_REQUESTS,
    BEFORE_TOKENS,
    DAY_NANOS,
    DAY_REQUESTS,
    DAY_S,
    DAY_TOKENS,
    HELD_TOKENS,
    MONTH_NANOS,
    REQUESTS,
    SPAN_S,
    TOKENS,
    end_of_month,
    packed,
    roll,
)
from steelyard.serve.limits import INSTALLATION, Scope

Fields = tuple[tuple[bytes, bytes], ...]

_NO_LIMIT = 1 << 62
_WORDS = {
    "rpm": "requests per minute",
    "tpm": "tokens per minute",
    "rpd": "requests per day",
    "tpd": "tokens per day",
    "budget": "money",
}


class Level:
    """One scope of a caller and up to where its numbers may grow in the windows at `second`."""

    __slots__ = ("at", "base", "limits", "nanos", "requests", "scope", "second", "tokens")

    def __init__(self, scope: Scope, base: int) -> None:
        self.scope = scope
        self.limits = scope.limits
        self.base = base
        self.at = (base + REQUESTS) * 8  # bytes
        self.second = -1
        self.requests = self.tokens = self.nanos = _NO_LIMIT

    def move(self, cells: memoryview, second: int) -> None:
        """Windows to `second`; the lock is held."""
        limits, base = self.limits, self.base
        slot = roll(cells, base, second) % SPAN_S
        requests = tokens = nanos = _NO_LIMIT
        if limits.rpm is not None:
            requests = cells[base + BEFORE_REQUESTS + slot] + limits.rpm
        if limits.rpd is not None:
            requests = min(requests, cells[base + DAY_REQUESTS] + limits.rpd)
        if limits.tpm is not None:
            tokens = cells[base + BEFORE_TOKENS + slot] + limits.tpm
        if limits.tpd is not None:
            tokens = min(tokens, cells[base + DAY_TOKENS] + limits.tpd)
        if limits.budget is not None:
            nanos = cells[base + _spent_before(limits.budget)] + limits.budget.nanos
        self.requests, self.tokens, self.nanos = requests, tokens, nanos
        self.second = second


class Levels:
    """A caller's levels. second: where all their windows stand.  packed: their records in one number."""

    __slots__ = ("levels", "packed", "second")

    def __init__(self, levels: tuple[Level, ...]) -> None:
        self.levels = levels
        self.packed = packed([level.base for level in levels])
        self.second = -1

    def move(self, cells: memoryview, second: int) -> None:
        for level in self.levels:
            level.move(cells, second)
        self.second = second


def fields_of(cells: memoryview, levels: Levels) -> Fields:
    """OpenAI's fields for the level with the least room."""
    requests = _room(cells, levels, REQUESTS)
    tokens = _room(cells, levels, TOKENS)
    found: list[tuple[bytes, bytes]] = []
    for name, room in ((b"requests", requests), (b"tokens", tokens)):
        if room is not None:
            left, limit, reset_s = room
            found += [
                (b"x-ratelimit-limit-" + name, b"%d" % limit),
                (b"x-ratelimit-remaining-" + name, b"%d" % max(left, 0)),
                (b"x-ratelimit-reset-" + name, _duration(reset_s)),
            ]
    return tuple(found)


def exhausted(cells: memoryview, level: Level, levels: Levels, tokens: int, nanos: int) -> Exhausted:
    """The refusal of a request of so many tokens and nanos, for which `level` has no room."""
    limit, most, needed, wait_s = _reason(cells, level, tokens, nanos)
    whose = f"of the {level.scope.kind} {level.scope.name}" if level.scope.kind != INSTALLATION else "here"
    if needed > most:
        message = f"this request needs more {_WORDS[limit]} than the limit {whose} ever allows"
    else:
        message = f"the limit of {_WORDS[limit]} {whose} is reached"
    return Exhausted(message, limit=limit, retry_after_s=wait_s, fields=fields_of(cells, levels))


def _reason(cells: memoryview, level: Level, tokens: int, nanos: int) -> tuple[str, int, int, int | None]:
    """Which limit has no room, what it is, what the request needs, and the seconds until there may be room."""
    base, limits, second = level.base, level.limits, level.second
    midnight = DAY_S - second % DAY_S
    for minute, day, number, held, needed in (
        ("rpm", "rpd", REQUESTS, 0, 1),
        ("tpm", "tpd", TOKENS, cells[base + HELD_TOKENS], tokens),
    ):
        wanted = cells[base + number] + held + needed
        most: int | None = getattr(limits, day)
        before = cells[base + (DAY_REQUESTS if number == REQUESTS else DAY_TOKENS)]
        if most is not None and wanted > before + most:
            return day, most, needed, None if needed > most else midnight
        most = getattr(limits, minute)
        if most is not None:
            ring = base + (BEFORE_REQUESTS if number == REQUESTS else BEFORE_TOKENS)
            if wanted > cells[ring + second % SPAN_S] + most:
                wait_s = None if needed > most else _wait_s(cells, ring, second, wanted - most)
                return minute, most, needed, wait_s
    assert limits.budget is not None
    ends = midnight if limits.budget.period == "day" else end_of_month(second // DAY_S) - second
    too_much = nanos > limits.budget.nanos
    return "budget", limits.budget.nanos, nanos, None if too_much else ends


def _wait_s(cells: memoryview, ring: int, second: int, wanted: int) -> int:
    """Seconds until a window of a minute begins no earlier than when the number was `wanted`."""
    for wait_s in range(1, SPAN_S):
        if cells[ring + (second + wait_s) % SPAN_S] >= wanted:
            return wait_s
    return SPAN_S


def _room(cells: memoryview, levels: Levels, number: int) -> tuple[int, int, int] | None:
    """Of the tightest level: what is left, the limit, seconds until all of it is back."""
    found = None
    for level in levels.levels:
        limits, base, second = level.limits, level.base, level.second
        if number == REQUESTS:
            used, minute, day = cells[base + REQUESTS], limits.rpm, limits.rpd
            ceiling = level.requests
        else:
            used = cells[base + TOKENS] + cells[base + HELD_TOKENS]
            minute, day, ceiling = limits.tpm, limits.tpd, level.tokens
        most = minute if minute is not None else day
        if most is None:
            continue
        left = ceiling - used
        if found is None or left < found[0]:
            reset_s = SPAN_S if minute is not None else DAY_S - second % DAY_S
            found = (left, most, 0 if left >= most else reset_s)
    return found


def _spent_before(budget: Budget) -> int:
    return DAY_NANOS if budget.period == "day" else MONTH_NANOS


def _duration(seconds: int) -> bytes:
    """As OpenAI writes them: 0s, 1m1s, 6h0m20s."""
    hours, rest = divmod(seconds, 3600)
    minutes, seconds = divmod(rest, 60)
    if hours:
        return b"%dh%dm%ds" % (hours, minutes, seconds)
    return b"%dm%ds" % (minutes, seconds) if minutes else b"%ds" % seconds
