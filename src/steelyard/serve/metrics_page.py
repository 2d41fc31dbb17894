"""One worker's numbers in a mapped file, so that another worker can read them while they change.

    8 bytes   magic                      u64  bytes in use, this head included
    u64       process id of the writer   u64  not used
    then records:  u32 bytes of the key, u32 cells, the key (UTF-8, filled with zeros to a multiple of 8),
                   one float64 for each cell, in the machine's byte order

A record is complete before the bytes in use cover it, and a cell is one aligned word: a reader sees whole numbers
without a lock. One writer to a file. A writer that was killed loses nothing; its successor goes on counting.
"""

import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from steelyard.disk import open_file, unavailable
from steelyard.errors import Malformed

PAGE_BYTES = 2 << 20  # on disk; in memory only what is touched
MAX_KEY_BYTES = 1024
MAX_CELLS = 64

_MAGIC = b"SYMETR1\0"
_HEAD = struct.Struct("=8sQQQ")
_RECORD = struct.Struct("=II")


class Page:
    """The file of one worker, open for counting. cells: all of it as float64, addressed by what `allot` returns."""

    def __init__(self, path: Path, pid: int) -> None:
        fd = open_file(path, os.O_RDWR)
        try:
            with unavailable(f"cannot map {path}"):
                if os.fstat(fd).st_size != PAGE_BYTES:
                    os.ftruncate(fd, 0)
                    os.posix_fallocate(fd, 0, PAGE_BYTES)  # a full disk fails here, not as SIGBUS later
                self._map = mmap.mmap(fd, PAGE_BYTES)
        finally:
            os.close(fd)
        self.cells = memoryview(self._map).cast("d")
        self._places: dict[bytes, int] = {}
        try:
            for key, place, _ in _records(self._map):
                self._places[key] = place
            self._used = _HEAD.unpack_from(self._map)[1]
        except Malformed:  # not ours, or of another version: begin anew
            self._places.clear()
            self._used = _HEAD.size
        _HEAD.pack_into(self._map, 0, _MAGIC, self._used, pid, 0)

    def allot(self, key: bytes, cells: int) -> int | None:
        """The index of the first of a key's cells, zero at first; absent when there is no room."""
        place = self._places.get(key)
        if place is None:
            padded = -(-len(key) // 8) * 8
            end = self._used + _RECORD.size + padded + 8 * cells
            if len(key) > MAX_KEY_BYTES or end > PAGE_BYTES:
                return None
            _RECORD.pack_into(self._map, self._used, len(key), cells)
            begin = self._used + _RECORD.size
            self._map[begin : begin + padded] = key.ljust(padded, b"\0")
            place = self._places[key] = (begin + padded) // 8
            self._used = end
            struct.pack_into("=Q", self._map, 8, end)
        return place

    def keys(self) -> Iterator[tuple[bytes, int]]:
        """Every key with the index of its first cell."""
        yield from self._places.items()

    def close(self) -> None:
        self.cells.release()
        self._map.close()


def read_page(path: Path) -> tuple[int, dict[bytes, tuple[float, ...]]]:
    """The writer's process id, and the cells of each key as they are now. Raises Malformed, Unavailable."""
    with unavailable(f"cannot read {path}"):
        data = path.read_bytes()
    found = {key: struct.unpack_from(f"={count}d", data, 8 * place) for key, place, count in _records(data)}
    return _HEAD.unpack_from(data)[2], found


def _records(data: bytes | mmap.mmap) -> Iterator[tuple[bytes, int, int]]:
    """(key, index of the first cell, cells) of each record."""
    if len(data) < _HEAD.size:
        raise Malformed("a page of metrics is too short", rule="metrics/size")
    magic, used, _, _ = _HEAD.unpack_from(data)
    if magic != _MAGIC or not _HEAD.size <= used <= len(data):
        raise Malformed("not a page of metrics", rule="metrics/head")
    at = _HEAD.size
    while at < used:
        size, cells = _RECORD.unpack_from(data, at)
        begin = at + _RECORD.size
        place = begin + -(-size // 8) * 8
        at = place + 8 * cells
        if size > MAX_KEY_BYTES or cells > MAX_CELLS or at > used:
            raise Malformed("a record of metrics runs past its page", rule="metrics/record", offset=begin)
        yield bytes(data[begin : begin + size]), place // 8, cells
