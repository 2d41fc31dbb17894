"""What the gateway counts, for Prometheus. Figures of several workers are summed by whoever answers /metrics.

Each worker counts in a page of its own (`metrics_page`). Labels come from the operator's names (aliases, teams,
rules, limits, members) and from fixed words, never from what a caller sent; each family has at most MAX_SERIES of
them, and the rest is counted under "other". No value holds payload.
"""

import json
import logging
import os
import resource
import sys
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from pathlib import Path

from steelyard.errors import Malformed, Unavailable
from steelyard.serve.metrics_page import Page, read_page
from steelyard.serve.metrics_text import OPEN_METRICS, TEXT, Family, Labels, exposed

MAX_SERIES = 1000  # of one family in one worker
MAX_LABEL_CHARS = 80
OTHER = "other"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)

REQUESTS = Family(
    "steelyard_requests_total", "counter", "Requests answered, by HTTP status.", ("route", "alias", "status")
)
DURATION = Family(
    "steelyard_request_duration_seconds",
    "histogram",
    "From the end of a request's head to the last byte of its answer.",
    ("route", "alias"),
    SECONDS,
)
FIRST_CHUNK = Family(
    "steelyard_first_chunk_seconds",
    "histogram",
    "From the end of a request's head to the first byte of a streamed answer.",
    ("route", "alias"),
    SECONDS,
)
TOKENS = Family(
    "steelyard_tokens_total", "counter", "Tokens the engines counted.", ("alias", "team", "direction")
)
REFUSALS = Family("steelyard_refusals_total", "counter", "Requests refused, by the rule not met.", ("rule",))
PII = Family("steelyard_pii_hits_total", "counter", "Personal data found in requests, by class.", ("class",))
EXHAUSTED = Family(
    "steelyard_budget_exhausted_total", "counter", "Requests over a limit, by limit.", ("limit",)
)
IN_FLIGHT = Family("steelyard_in_flight", "gauge", "Requests in work.")
LEDGER_ENTRIES = Family(
    "steelyard_ledger_entries", "gauge", "Entries of the ledger, as a worker last saw it.", merge="max"
)
LEDGER_WAITING = Family("steelyard_ledger_waiting", "gauge", "Entries that wait to be written.")
LEDGER_BROKEN = Family(
    "steelyard_ledger_broken", "gauge", "1 while a worker cannot write the ledger.", merge="max"
)
UPSTREAM_DOWN = Family(
    "steelyard_upstream_down", "gauge", "1 while a worker holds a member for down.", ("member",), merge="max"
)
RELOAD_FAILED = Family(
    "steelyard_reload_failed", "gauge", "1 while a changed file is broken.", ("file",), merge="max"
)
TELEMETRY_DROPPED = Family(
    "steelyard_telemetry_dropped_total", "counter", "Spans dropped because the receiver is too slow or away."
)
BUILD = Family(
    "steelyard_build_info", "gauge", "1, labelled with what runs.", ("version", "build"), merge="max"
)
_WORKER = ("worker",)
RESIDENT = Family("process_resident_memory_bytes", "gauge", "Resident memory.", _WORKER)
CPU = Family("process_cpu_seconds_total", "counter", "Processor time, user and system.", _WORKER)
OPEN_FDS = Family("process_open_fds", "gauge", "Open file descriptors.", _WORKER)
MAX_FDS = Family("process_max_fds", "gauge", "File descriptors it may open.", _WORKER)

FAMILIES = (
    REQUESTS, DURATION, FIRST_CHUNK, TOKENS, REFUSALS, PII, EXHAUSTED, IN_FLIGHT, LEDGER_ENTRIES, LEDGER_WAITING,
    LEDGER_BROKEN, UPSTREAM_DOWN, RELOAD_FAILED, TELEMETRY_DROPPED, BUILD, RESIDENT, CPU, OPEN_FDS, MAX_FDS,
)  # fmt: skip
_BY_NAME = {family.name: family for family in FAMILIES}
# What a worker's death ends: everything that is not a count of events.
_OF_THE_LIVING = {family.name for family in FAMILIES if family.kind == "gauge"} | {CPU.name}
_SUM = len(SECONDS) + 1  # the cell of a histogram's sum

_Row = tuple[int, int, int, int, int]
_log = logging.getLogger(__name__)


class Metrics:
    """One worker's counters in `folder`. build: what runs, for steelyard_build_info."""

    def __init__(self, folder: Path, worker: int = 0, *, version: str = "", build: str = "") -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        self._worker = str(worker)
        self._page = Page(folder / f"{worker}.metrics", os.getpid())
        self._cells = self._page.cells
        self._rows: dict[tuple[str, str, str, int], _Row] = {}
        self._series: dict[tuple[str, Labels], int] = {}
        self._counts = dict.fromkeys(_BY_NAME, 0)
        for key, place in self._page.keys():  # noqa: SIM118 - not a mapping
            name, labels = _name_of(key)
            if name in _OF_THE_LIVING:
                self._cells[place] = 0.0
            if name in _BY_NAME:
                self._series[name, labels] = place
                self._counts[name] += 1
        self._others = {
            family.name: self._place(family, (OTHER,) * len(family.labels)) for family in FAMILIES
        }
        self.set(BUILD, 1, version, build)

    # Per request.

    def observe(
        self,
        route: str,
        alias: str,
        team: str,
        status: int,
        duration_s: float,
        first_chunk_s: float | None = None,
        prompt_tokens: int | None = None,
        completion_tokens: int | None = None,
    ) -> None:
        """Count one answered request. alias, team: names the operator gave, empty where there are none."""
        row = self._rows.get((route, alias, team, status))
        if row is None:
            row = self._row(route, alias, team, status)
        requests, duration, first_chunk, tokens_in, tokens_out = row
        cells = self._cells
        cells[requests] += 1.0
        cells[duration + bisect_left(SECONDS, duration_s)] += 1.0
        cells[duration + _SUM] += duration_s
        if first_chunk_s is not None:
            cells[first_chunk + bisect_left(SECONDS, first_chunk_s)] += 1.0
            cells[first_chunk + _SUM] += first_chunk_s
        if prompt_tokens:
            cells[tokens_in] += prompt_tokens
        if completion_tokens:
            cells[tokens_out] += completion_tokens

    def refused(self, rules: Iterable[str]) -> None:
        for rule in rules:
            self.add(REFUSALS, 1, rule)

    def found(self, counts: Mapping[str, int]) -> None:
        """Personal data by class."""
        for name, count in counts.items():
            self.add(PII, count, name)

    def exhausted(self, limit: str) -> None:
        self.add(EXHAUSTED, 1, limit)

    # Any series.

    def add(self, family: Family, count: float, *labels: str) -> None:
        """Count events of a counter's series."""
        self._cells[self._of(family, labels)] += count

    def set(self, family: Family, value: float, *labels: str) -> None:
        """The present value of a gauge's series."""
        self._cells[self._of(family, labels)] = value

    def tick(self, *, in_flight: int, ledger_waiting: int = 0, ledger_broken: bool = False) -> None:
        """Now and then: what is not counted by events, and what the process takes."""
        self.set(IN_FLIGHT, in_flight)
        self.set(LEDGER_WAITING, ledger_waiting)
        self.set(LEDGER_BROKEN, ledger_broken)
        times = os.times()
        self.set(CPU, times.user + times.system, self._worker)
        self.set(RESIDENT, _resident_bytes(), self._worker)
        self.set(MAX_FDS, resource.getrlimit(resource.RLIMIT_NOFILE)[0], self._worker)
        self.set(OPEN_FDS, len(os.listdir("/dev/fd")) - 1, self._worker)

    # The answer to /metrics.

    def render(self, accept: bytes = b"") -> tuple[bytes, bytes]:
        """(content type, body) with the figures of all workers, for what the client says it accepts."""
        open_metrics = b"application/openmetrics-text" in accept
        series = gathered(self._folder)
        return (OPEN_METRICS if open_metrics else TEXT), exposed(FAMILIES, series, open_metrics=open_metrics)

    def close(self) -> None:
        self._page.close()

    # Series and their places.

    def _row(self, route: str, alias: str, team: str, status: int) -> _Row:
        row = (
            self._of(REQUESTS, (route, alias, str(status))),
            self._of(DURATION, (route, alias)),
            self._of(FIRST_CHUNK, (route, alias)),
            self._of(TOKENS, (alias, team, "in")),
            self._of(TOKENS, (alias, team, "out")),
        )
        if len(self._rows) < 4 * MAX_SERIES:
            self._rows[route, alias, team, status] = row
        return row

    def _of(self, family: Family, labels: Labels) -> int:
        place = self._series.get((family.name, labels))
        if place is not None:
            return place
        if self._counts[family.name] >= MAX_SERIES:
            return self._others[family.name]
        return self._place(family, tuple(label[:MAX_LABEL_CHARS] for label in labels), known_as=labels)

    def _place(self, family: Family, labels: Labels, known_as: Labels | None = None) -> int:
        place = self._page.allot(json.dumps([family.name, *labels]).encode(), family.cells)
        if place is None:
            return self._others[family.name]
        self._counts[family.name] += 1
        self._series[family.name, known_as or labels] = place
        return place


def clear(folder: Path) -> None:
    """Forget what workers of an earlier run counted. Before the first worker of this run starts."""
    for path in folder.glob("*.metrics"):
        path.unlink()


def gathered(folder: Path) -> dict[str, dict[Labels, tuple[float, ...]]]:
    """The figures of all workers together, by family and labels."""
    series: dict[str, dict[Labels, tuple[float, ...]]] = {}
    for path in sorted(folder.glob("*.metrics")):
        try:
            pid, page = read_page(path)
        except (Malformed, Unavailable) as error:
            _log.warning("a worker's figures are left out: %s", error.message)
            continue
        is_alive = _is_alive(pid)
        for key, cells in page.items():
            name, labels = _name_of(key)
            family = _BY_NAME.get(name)
            if family is None or len(cells) != family.cells or len(labels) != len(family.labels):
                continue  # of another version
            unused = bool(labels) and set(labels) == {OTHER} and not any(cells)
            if unused or (name in _OF_THE_LIVING and not is_alive):
                continue
            known = series.setdefault(name, {}).get(labels)
            series[name][labels] = cells if known is None else _merged(family, known, cells)
    return series


def _merged(family: Family, one: tuple[float, ...], other: tuple[float, ...]) -> tuple[float, ...]:
    if family.merge == "max":
        return tuple(map(max, one, other))
    return tuple(a + b for a, b in zip(one, other, strict=True))


def _name_of(key: bytes) -> tuple[str, Labels]:
    try:
        name, *labels = json.loads(key)
    except (ValueError, TypeError):
        return "", ()  # not of our making
    return str(name), tuple(map(str, labels))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _resident_bytes() -> int:
    try:
        with open("/proc/self/statm", "rb") as stream:
            return int(stream.read().split()[1]) * resource.getpagesize()
    except OSError:  # not Linux: the largest it ever was
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
