"""What the counters were, for the day after a power cut: one file, replaced as a whole.

"steelyard accounts 1\n"; entries of the ledger it covers, records (64-bit, little-endian); for each record its
tag (16 bytes), second, requests, tokens, nanos, requests and tokens of the last minute, day, requests, tokens and
nanos before that day, month, nanos before that month (64-bit each); SHA-256 of all before.
"""

import hashlib
import struct
from dataclasses import dataclass
from pathlib import Path

from steelyard.disk import read_file, unavailable
from steelyard.errors import Malformed
from steelyard.serve.accounts_table import (
    BEFORE_REQUESTS,
    BEFORE_TOKENS,
    DAY,
    DAY_NANOS,
    DAY_REQUESTS,
    DAY_TOKENS,
    MAX_RECORDS,
    MONTH,
    MONTH_NANOS,
    NANOS,
    REQUESTS,
    SECOND,
    SPAN_S,
    TOKENS,
    Table,
)

_MAGIC = b"steelyard accounts 1\n"
_HEAD = struct.Struct("<qq")
_RECORD = struct.Struct("<16s12q")
_HASH_BYTES = 32
_MAX_BYTES = len(_MAGIC) + _HEAD.size + MAX_RECORDS * _RECORD.size + _HASH_BYTES
_AT_ONCE = 16
_COPIED = (SECOND, REQUESTS, TOKENS, NANOS)
_SINCE = (DAY, DAY_REQUESTS, DAY_TOKENS, DAY_NANOS, MONTH, MONTH_NANOS)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Records by tag. covered: entries of the ledger that they include."""

    covered: int
    records: tuple[tuple[bytes, tuple[int, ...]], ...] = ()

    @classmethod
    def read(cls, path: Path) -> "Snapshot":
        """That in `path`; the empty one when there is none. Raises Malformed, Unavailable."""
        with unavailable(f"cannot read {path}"):
            try:
                data = read_file(path, _MAX_BYTES)
            except FileNotFoundError:
                return cls(0)
        body, hashed = data[:-_HASH_BYTES], data[-_HASH_BYTES:]
        if hashlib.sha256(body).digest() != hashed or not body.startswith(_MAGIC):
            raise Malformed(
                f"{path} is damaged; delete it, then the counters are made anew from the ledger",
                rule="accounts/snapshot",
            )
        covered, count = _HEAD.unpack_from(body, len(_MAGIC))
        at = len(_MAGIC) + _HEAD.size
        rows = (_RECORD.unpack_from(body, at + i * _RECORD.size) for i in range(count))
        return cls(covered, tuple((row[0], row[1:]) for row in rows))

    def to_bytes(self) -> bytes:
        rows = b"".join(_RECORD.pack(tag, *values) for tag, values in self.records)
        body = _MAGIC + _HEAD.pack(self.covered, len(self.records)) + rows
        return body + hashlib.sha256(body).digest()

    @classmethod
    def of(cls, table: Table, covered: int) -> "Snapshot":
        """What is counted now; what requests in work hold is not. The lock is taken for a few records at a time.

        Settled tickets are read first: one that is folded while the records are copied counts twice, none is missed.
        """
        settled: dict[int, tuple[int, int]] = {}
        for base, tokens, nanos in table.settled():
            had = settled.get(base, (0, 0))
            settled[base] = (had[0] + tokens, had[1] + nanos)
        bases, records = list(table.bases()), []
        for begin in range(0, len(bases), _AT_ONCE):
            with table.locked_beside():
                records += [
                    _record(table.cells, base, settled.get(base, (0, 0)))
                    for base in bases[begin : begin + _AT_ONCE]
                ]
        return cls(covered, tuple(records))

    def restore(self, table: Table) -> None:
        """Put it into an empty table; the lock is held.

        What the last minute held counts as asked in its last second.
        """
        cells = table.cells
        for tag, (second, requests, tokens, nanos, minute_requests, minute_tokens, *since) in self.records:
            base = table.base_of_tag(tag)
            cells[base + REQUESTS], cells[base + TOKENS], cells[base + NANOS] = requests, tokens, nanos
            for at in range(SPAN_S):
                cells[base + BEFORE_REQUESTS + at] = requests - minute_requests
                cells[base + BEFORE_TOKENS + at] = tokens - minute_tokens
            for name, value in zip(_SINCE, since, strict=True):
                cells[base + name] = value
            cells[base + SECOND] = second


def _record(cells: memoryview, base: int, settled: tuple[int, int]) -> tuple[bytes, tuple[int, ...]]:
    tokens, nanos = settled
    second, requests, counted, spent = (cells[base + name] for name in _COPIED)
    minute = (
        requests - cells[base + BEFORE_REQUESTS + second % SPAN_S],
        counted - cells[base + BEFORE_TOKENS + second % SPAN_S] + tokens,
    )
    since = (cells[base + name] for name in _SINCE)
    values = (second, requests, counted + tokens, spent + nanos, *minute, *since)
    return cells[base : base + 2].tobytes(), values
