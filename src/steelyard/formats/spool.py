"""Unpacked bytes that may be many: in memory while they are few, in an unlinked temporary file beyond.

The file has no name from the start, so nothing is left behind when the process dies.
"""

import os
import tempfile
from dataclasses import dataclass
from typing import IO

from steelyard.errors import Unavailable
from steelyard.formats.base import ByteSource, BytesSource

MAX_MEMORY_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class FileSource:
    """A ByteSource over an open file, which lives as long as the source does."""

    file: IO[bytes]
    size: int

    def read(self, offset: int, size: int) -> bytes:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ValueError(f"read of {size} bytes at {offset} is outside {self.size} bytes")
        parts = []
        while size:
            part = os.pread(self.file.fileno(), size, offset)
            if not part:
                raise Unavailable("the temporary file is shorter than what was written to it; check the disk")
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


class Spool:
    """Collects bytes by `write`; `source` gives them back. `size` is what was written so far."""

    def __init__(self) -> None:
        self.size = 0
        self._parts: list[bytes] = []
        self._file: IO[bytes] | None = None

    def write(self, data: bytes) -> None:
        """Raises Unavailable when the disk takes no more."""
        self.size += len(data)
        try:
            if self._file is None and self.size > MAX_MEMORY_BYTES:
                self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - its reader keeps it
                for part in self._parts:
                    _write_all(self._file, part)
                self._parts = []
            if self._file is None:
                self._parts.append(data)
            else:
                _write_all(self._file, data)
        except OSError as error:
            what = f"no room to unpack {self.size} bytes into {tempfile.gettempdir()}: {error.strerror}"
            raise Unavailable(what) from error

    def source(self) -> ByteSource:
        if self._file is None:
            return BytesSource(b"".join(self._parts))
        return FileSource(self._file, self.size)


def _write_all(file: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
