"""Numbers in shared memory beside a ledger's lock: what its writers would otherwise ask the file system for.

    turn:u64 generation:u64 end:u64 next:u64 published_ns:u64 boot:u64,
    in the machine's byte order, mapped by every process

turn          odd while a writer changes the write-ahead file, or when it died at it; then nothing below is trusted
generation    changes when another file takes the place of the write-ahead file
end, next     its length in bytes, and the index the next entry gets
published_ns  CLOCK_MONOTONIC of the last checkpoint
boot          says which run of the machine wrote the numbers; another one may have ended in a power cut
Writers hold the lock on the same file. The numbers save system calls; the truth is in the write-ahead file.
"""

import mmap
import os
from pathlib import Path

from steelyard.disk import open_file, unavailable

TURN, GENERATION, END, NEXT, PUBLISHED_NS, BOOT = range(6)
_BYTES = 8 * 6
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Cells:
    """`cells[NAME]` of one ledger; all zero in a new file."""

    def __init__(self, path: Path) -> None:
        fd = open_file(path, os.O_RDWR)
        try:
            with unavailable(f"cannot map {path}"):
                if os.fstat(fd).st_size < _BYTES:
                    # A full disk must fail here, not as SIGBUS at the first write.
                    os.posix_fallocate(fd, 0, _BYTES)
                self._map = mmap.mmap(fd, _BYTES)
        finally:
            os.close(fd)
        self.values = memoryview(self._map).cast("Q")


def boot_number() -> int:
    """A number that differs between two runs of the machine; 0 where the system does not tell."""
    try:
        return int.from_bytes(_BOOT_ID.read_bytes()[:8], "big")
    except OSError:
        return 0
