"""The ledger's write-ahead file: entries that are durable and not yet in a signed checkpoint.

file   = "SYWAL001" start:u64 *batch           start: index of the first entry the file holds
batch  = "SYB1" first:u64 count:u32 length:u32 crc:u32 payload
payload = the entries as in a C2SP entry bundle (uint16 length, bytes); crc = CRC-32 of first, count, length, payload
Integers are big-endian. A batch is one append: after kill -9 it is there as a whole or it is cut. A broken batch
with a sound one behind it cannot come from a kill and is Malformed; see docs/formats/ledger.md for a power cut.
"""

import logging
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from steelyard.cells import BOOT, END, GENERATION, NEXT, TURN, boot_number
from steelyard.disk import Disk, open_file, read_file, unavailable
from steelyard.errors import Malformed, Unavailable, Untrusted
from steelyard.ledger import decode_entries, encode_entries

MAX_BATCH_BYTES = 64 << 20
MAX_WAL_BYTES = 256 << 20

_MAGIC = b"SYWAL001"
_HEADER = struct.Struct(">8sQ")
_BATCH = struct.Struct(">4sQIII")
HEADER_BYTES = _HEADER.size
_BATCH_MAGIC = b"SYB1"
_RULE = "ledger/wal"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Tail:
    """What a write-ahead file holds: entries from index `first`, sound up to byte `end` of `size_bytes`."""

    first: int
    entries: list[bytes]
    end: int
    size_bytes: int


def encode_batch(first: int, entries: Sequence[bytes]) -> bytes:
    payload = encode_entries(entries)
    if len(payload) > MAX_BATCH_BYTES:
        raise ValueError(f"a batch of {len(payload)} bytes, at most {MAX_BATCH_BYTES} fit")
    crc = _crc(first, len(entries), payload)
    return _BATCH.pack(_BATCH_MAGIC, first, len(entries), len(payload), crc) + payload


def decode_wal(data: bytes, name: str, *, is_cut_allowed: bool = False) -> Tail:
    """Read a whole write-ahead file; `name` stands in errors. A torn last batch is left out, not refused.

    is_cut_allowed: what follows the first broken batch is left out too, as a power cut may leave it.
    """
    if len(data) < _HEADER.size or not data.startswith(_MAGIC):
        raise Malformed(f"{name}: not a write-ahead file", rule=_RULE, offset=0)
    start = int(_HEADER.unpack_from(data)[1])
    return decode_batches(data, _HEADER.size, start, name, is_cut_allowed=is_cut_allowed)


def decode_batches(data: bytes, offset: int, first: int, name: str, *, is_cut_allowed: bool = False) -> Tail:
    """Batches of `data` from byte `offset` on, the next of which must begin at entry `first`."""
    entries: list[bytes] = []
    while offset < len(data):
        batch = _batch_at(data, offset, first + len(entries))
        if batch is None:
            if not is_cut_allowed:
                _refuse_damage(data, offset, first + len(entries), name)
            break
        entries += batch
        offset += _BATCH.size + _BATCH.unpack_from(data, offset)[3]
    return Tail(first, entries, offset, len(data))


class Wal:
    """The open write-ahead file. The caller holds the ledger's lock where a method does not say otherwise.

    What other processes wrote and where the file ends stands in `cells`, so that a writer asks no file system.
    """

    def __init__(self, path: Path, disk: Disk, cells: memoryview) -> None:
        self._path = path
        self._disk = disk
        self._cells = cells
        self._fd = -1
        self._generation = -1
        self._is_suspect = False  # a sync failed: the kernel may have dropped what it could not write

    @property
    def end(self) -> int:
        return int(self._cells[END])

    @property
    def next(self) -> int:
        """Index the next entry gets."""
        return int(self._cells[NEXT])

    @property
    def is_ready(self) -> bool:
        """Whether `write` may be called: no writer died, nobody replaced the file, every sync worked."""
        cells = self._cells
        return not (cells[TURN] & 1 or self._is_suspect) and cells[GENERATION] == self._generation

    def create(self, start: int, batches: bytes, count: int) -> None:
        """Replace the file by one that begins at entry `start` and holds `count` entries in `batches`, durable."""
        data = _HEADER.pack(_MAGIC, start) + batches
        self._cells[TURN] |= 1  # who dies from here on leaves it odd, and the next one loads what there is
        self._disk.put(self._path, data, scratch=self._path.parent)
        self._cells[GENERATION] += 1
        self._open()
        self._settle(len(data), start + count)
        self._is_suspect = False

    def rest(self, offset: int) -> bytes:
        """Its bytes from `offset` to the end."""
        size = self.end - offset
        with unavailable(f"cannot read {self._path}"):
            data = os.pread(self._fd, size, offset) if size else b""
        if len(data) != size:
            raise Untrusted(f"{self._path} was cut short by {size - len(data)} bytes from outside")
        return data

    def load(self) -> Tail:
        """Read it all and cut a torn end. Raises Malformed; Unavailable when the file is missing."""
        with unavailable(f"cannot read {self._path}"):
            data = read_file(self._path, MAX_WAL_BYTES)
        # Pages not yet synced reach the disk in any order, so only a power cut can leave a sound batch behind a
        # broken one. What is cut then is put aside.
        is_after_boot = self.is_after_boot
        tail = decode_wal(data, str(self._path), is_cut_allowed=is_after_boot)
        if is_after_boot and any(data[tail.end :]):
            aside = self._path.with_name(f"{self._path.name}.cut-{tail.first + len(tail.entries)}")
            self._disk.put(aside, data[tail.end :], scratch=self._path.parent)
            _log.warning(
                "%s: %d unsound bytes were put into %s", self._path, len(data) - tail.end, aside.name
            )
        self._cells[TURN] |= 1
        self._cells[GENERATION] += 1  # whoever died may have put this file in place without saying so
        self._open()
        if tail.end < tail.size_bytes:
            with unavailable(f"cannot cut the torn end of {self._path}"):
                self._disk.truncate(self._fd, tail.end)
        self._settle(tail.end, tail.first + len(tail.entries))
        return tail

    def reopen(self) -> None:
        """Open the file another process put in place; it was synced as a whole. Raises Unavailable."""
        self._open()
        self._is_suspect = False

    def write(self, entries: Sequence[bytes]) -> int:
        """Hand `entries` to the kernel: they survive a kill, and a power cut once synced. The first one's index.

        On an error the file is as before. Raises Unavailable.
        """
        cells = self._cells
        first = cells[NEXT]
        batch = encode_batch(first, entries)
        cells[TURN] |= 1
        try:
            self._disk.write(self._fd, batch)
        except OSError as error:
            self._cut_back(error)
        cells[END] += len(batch)
        cells[NEXT] = first + len(entries)
        cells[TURN] += 1
        return int(first)

    def append(self, entries: Sequence[bytes]) -> int:
        """`write` and `sync` in one; when the sync fails, nothing is entered either."""
        end, first = self.end, self.write(entries)
        try:
            self._disk.sync(self._fd)
        except OSError as error:
            self._is_suspect = True
            self._cells[TURN] |= 1
            self._cells[END], self._cells[NEXT] = end, first
            self._cut_back(error)
        return first

    def duplicate(self) -> int:
        """A descriptor of the file of its own, for a sync without the lock. The caller closes it."""
        with unavailable(f"cannot sync {self._path}"):
            return os.dup(self._fd)

    def sync(self, fd: int) -> None:
        """Make durable what was written when `fd` was made by `duplicate`. Needs no lock. Raises Unavailable.

        After a failure the kernel may hold the data as clean and drop it, and a second sync would say yes: then only
        a new file with the same entries is durable. `is_ready` is false until `create`.
        """
        try:
            self._disk.sync(fd)
        except OSError as error:
            self._is_suspect = True
            raise Unavailable(f"cannot sync {self._path}: {error.strerror}") from error

    @property
    def is_suspect(self) -> bool:
        return self._is_suspect

    @property
    def is_torn(self) -> bool:
        """Whether a writer died at it, or could not undo what it began."""
        return bool(self._cells[TURN] & 1)

    @property
    def is_after_boot(self) -> bool:
        """Whether the machine started anew since somebody last said `recovered`: there may have been a power cut."""
        boot = boot_number()
        return not boot or self._cells[BOOT] != boot

    def recovered(self) -> None:
        self._cells[BOOT] = boot_number()

    @property
    def is_outdated(self) -> bool:
        """Whether another process put a new file in its place."""
        return bool(self._cells[GENERATION] != self._generation)

    @property
    def generation(self) -> int:
        return self._generation

    @property
    def is_foreign(self) -> bool:
        """Whether the file at its path is not the one open here, though no process of ours replaced it."""
        with unavailable(f"cannot read {self._path}"):
            return os.stat(self._path).st_ino != os.fstat(self._fd).st_ino

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        self.close()
        self._fd = open_file(self._path, os.O_RDWR | os.O_APPEND)
        self._generation = self._cells[GENERATION]

    def _settle(self, end: int, next_: int) -> None:
        cells = self._cells
        cells[END], cells[NEXT] = end, next_
        cells[TURN] = (cells[TURN] | 1) + 1

    def _cut_back(self, error: OSError) -> NoReturn:
        # Everything acknowledged lies before END, so cutting back loses nothing. Should the cut fail too, the turn
        # stays odd, and the next holder of the lock finds the torn batch and cuts it.
        try:
            os.ftruncate(self._fd, self.end)
        except OSError as second:
            raise Unavailable(f"cannot append to {self._path}, nor undo it: {second.strerror}") from error
        self._cells[TURN] += 1
        raise Unavailable(f"cannot append to {self._path}: {error.strerror}; nothing was entered") from error


def _crc(first: int, count: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(struct.pack(">QII", first, count, len(payload))))


def _batch_at(data: bytes, offset: int, first: int | None) -> list[bytes] | None:
    """The entries of a sound batch at `offset`, beginning at entry `first` if given; None when there is none."""
    if len(data) - offset < _BATCH.size:
        return None
    magic, begins, count, length, crc = _BATCH.unpack_from(data, offset)
    payload = data[offset + _BATCH.size : offset + _BATCH.size + length]
    if (
        magic != _BATCH_MAGIC
        or first not in (None, begins)
        or length > MAX_BATCH_BYTES
        or len(payload) != length
    ):
        return None
    if crc != _crc(begins, count, payload):
        return None
    entries = decode_entries(payload)
    return entries if len(entries) == count else None


def _refuse_damage(data: bytes, offset: int, first: int, name: str) -> None:
    later = data.find(_BATCH_MAGIC, offset + 1)
    while later >= 0:
        if _batch_at(data, later, None) is not None and _BATCH.unpack_from(data, later)[1] >= first:
            raise Malformed(
                f"{name}: the batch at byte {offset} (entry {first}) is damaged and a sound one follows at byte "
                f"{later}; restore the file from a backup",
                rule=_RULE,
                offset=offset,
            )
        later = data.find(_BATCH_MAGIC, later + 1)
