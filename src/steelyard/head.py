"""Head: a number in shared memory that changes with every change of the store, read without a system call.

The file holds one unsigned 64-bit integer in the machine's byte order, mapped by every process. Odd: a writer is at
work or died at it. Even: settled. It only grows while the machine runs; it is no part of the store's truth.
"""

import mmap
import os
from pathlib import Path

from steelyard.disk import open_file, unavailable

_BYTES = 8


class Head:
    """The mapped counter. Writers hold the store's lock; readers need nothing."""

    def __init__(self, path: Path) -> None:
        fd = open_file(path, os.O_RDWR)
        try:
            with unavailable(f"cannot map {path}"):
                if os.fstat(fd).st_size < _BYTES:
                    os.posix_fallocate(
                        fd, 0, _BYTES
                    )  # a full disk must fail here, not as SIGBUS at the first write
                self._map = mmap.mmap(fd, _BYTES)
        finally:
            os.close(fd)
        self._cell = memoryview(self._map).cast("Q")

    @property
    def value(self) -> int:
        return self._cell[0]

    @property
    def is_odd(self) -> bool:
        return bool(self._cell[0] & 1)

    def begin(self) -> None:
        """Make it odd."""
        self._cell[0] |= 1

    def settle(self) -> None:
        """Move to the next even number."""
        self._cell[0] = (self._cell[0] | 1) + 1

    def close(self) -> None:
        self._cell.release()
        self._map.close()
