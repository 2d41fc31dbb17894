"""The ledger's write-ahead file: entries that are durable and not yet in a signed checkpoint.

file   = "SYWAL001" start:u64 *batch           start: index of the first entry the file holds
batch  = "SYB1" first:u64 count:u32 length:u32 crc:u32 payload
payload = the entries as in a C2SP entry bundle (uint16 length, bytes); crc = CRC-32 of first, count, length, payload
Integers are big-endian. A batch is one append: after kill -9 it is there as a whole or it is cut. A broken batch
with a sound one behind it cannot come from a crash (each append is synced before the next begins) and is Malformed.
"""

import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from steelyard.disk import Disk, open_file, read_file, unavailable
from steelyard.errors import Malformed, Unavailable
from steelyard.ledger import decode_entries, encode_entries

MAX_BATCH_BYTES = 64 << 20
MAX_WAL_BYTES = 256 << 20

_MAGIC = b"SYWAL001"
_HEADER = struct.Struct(">8sQ")
_BATCH = struct.Struct(">4sQIII")
_BATCH_MAGIC = b"SYB1"
_RULE = "ledger/wal"


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


def decode_wal(data: bytes, name: str) -> Tail:
    """Read a whole write-ahead file; `name` stands in errors. A torn last batch is left out, not refused."""
    if len(data) < _HEADER.size or not data.startswith(_MAGIC):
        raise Malformed(f"{name}: not a write-ahead file", rule=_RULE, offset=0)
    start = int(_HEADER.unpack_from(data)[1])
    return decode_batches(data, _HEADER.size, start, name)


def decode_batches(data: bytes, offset: int, first: int, name: str) -> Tail:
    """Batches of `data` from byte `offset` on, the next of which must begin at entry `first`."""
    entries: list[bytes] = []
    while offset < len(data):
        batch = _batch_at(data, offset, first + len(entries))
        if batch is None:
            _refuse_damage(data, offset, first + len(entries), name)
            break
        entries += batch
        offset += _BATCH.size + _BATCH.unpack_from(data, offset)[3]
    return Tail(first, entries, offset, len(data))


class Wal:
    """The open write-ahead file. The caller holds the ledger's lock in every method."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self._path = path
        self._disk = disk
        self._fd = -1
        self._inode = -1
        self.end = 0
        self._next = 0

    def create(self, start: int, entries: Sequence[bytes]) -> None:
        """Replace the file by one that begins at entry `start` and holds `entries`."""
        batch = encode_batch(start, entries) if entries else b""
        self._disk.put(self._path, _HEADER.pack(_MAGIC, start) + batch, scratch=self._path.parent)
        self._open()
        self.end = self._size()
        self._next = start + len(entries)

    def load(self) -> Tail:
        """Read it all and cut a torn end. Raises Malformed; Unavailable when the file is missing."""
        with unavailable(f"cannot read {self._path}"):
            data = read_file(self._path, MAX_WAL_BYTES)
        tail = decode_wal(data, str(self._path))
        self._open()
        self._settle(tail)
        return tail

    def is_replaced(self) -> bool:
        """Whether another process put a new file in place of the one open here."""
        with unavailable(f"cannot read {self._path}"):
            return os.stat(self._path).st_ino != self._inode

    def catch_up(self) -> list[bytes]:
        """Entries other processes appended since this one last looked."""
        size = self._size()
        if size == self.end:
            return []
        with unavailable(f"cannot read {self._path}"):
            data = os.pread(self._fd, size - self.end, self.end)
        tail = decode_batches(data, 0, self._next, str(self._path))
        self._settle(Tail(tail.first, tail.entries, self.end + tail.end, size))
        return tail.entries

    def append(self, entries: Sequence[bytes]) -> None:
        """Durable on return; on an error the file is as before. Raises Unavailable."""
        batch = encode_batch(self._next, entries)
        try:
            self._disk.write(self._fd, batch)
            self._disk.sync(self._fd)
        except OSError as error:
            # What was acknowledged before is already synced, so cutting back loses nothing. Should the cut fail
            # too, the next holder of the lock finds the torn batch and cuts it.
            try:
                os.ftruncate(self._fd, self.end)
            except OSError as second:
                raise Unavailable(f"cannot append to {self._path}, nor undo it: {second.strerror}") from error
            raise Unavailable(
                f"cannot append to {self._path}: {error.strerror}; nothing was entered"
            ) from error
        self.end += len(batch)
        self._next += len(entries)

    def sync(self) -> None:
        with unavailable(f"cannot sync {self._path}"):
            self._disk.sync(self._fd)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        self.close()
        self._fd = open_file(self._path, os.O_RDWR | os.O_APPEND)
        self._inode = os.fstat(self._fd).st_ino

    def _settle(self, tail: Tail) -> None:
        if tail.end < tail.size_bytes:
            with unavailable(f"cannot cut the torn end of {self._path}"):
                self._disk.truncate(self._fd, tail.end)
        self.end = tail.end
        self._next = tail.first + len(tail.entries)

    def _size(self) -> int:
        return os.fstat(self._fd).st_size


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
