"""One confined process that weighs and parses files: opened once, hashed and read through the same descriptor.

It is forked, so that it starts in milliseconds with every parser loaded. Over a pipe come jobs, one JSON object a line;
back go {"hashed": bytes} as the hashing goes on, {"parsed": true} once the parser is done, and last
{"sha256", "report"} or {"error": [kind, rule, message]}. Nothing else crosses: nobody unpickles.
"""

import json
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from steelyard.admit.confinement import confine
from steelyard.errors import Malformed, SteelyardError, Unavailable
from steelyard.formats.base import Finding, Report
from steelyard.formats.registry import Registry
from steelyard.manifest import open_file, weigh

TOO_BIG = "file/too-big"
PROGRESS_BYTES = 16 << 20


def work(registry: Registry, jobs: int, answers: int) -> None:
    """Answer jobs until their pipe closes. Runs in the child; never returns."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    _say(answers, {"confinement": confine().to_json()})
    for line in _lines(jobs):
        job = json.loads(line)
        try:
            _answer(registry, job, answers)
        except SteelyardError as error:
            rule = error.rule if isinstance(error, Malformed) else None
            _say(answers, {"error": [type(error).__name__, rule, error.message]})
    os._exit(0)


def examine(
    registry: Registry,
    place: Path,
    name: str,
    size: int,
    *,
    is_root: bool,
    parsed: Callable[[], None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[str, Report]:
    """Parse and weigh one file of `size` bytes; its SHA-256 in hex and its report.

    name: what its format sees.  parsed: called between the two.  progress: bytes hashed since the last call.
    Raises Malformed tree/changed-while-reading, Unavailable.
    """
    with open_file(place, is_root=is_root) as descriptor:
        report = _parse(registry, descriptor, place, size, name)
        if parsed:
            parsed()
        _, sha256 = weigh(descriptor, place, size, progress)
    return sha256, report


def _answer(registry: Registry, job: Mapping[str, Any], answers: int) -> None:
    unsaid = 0

    def progress(count: int) -> None:
        nonlocal unsaid
        unsaid += count
        if unsaid >= PROGRESS_BYTES:
            _say(answers, {"hashed": unsaid})
            unsaid = 0

    is_root = job["path"] == "."
    place = Path(job["root"]) if is_root else Path(job["root"]) / job["path"]
    sha256, report = examine(
        registry,
        place,
        str(job["name"]),
        int(job["size"]),
        is_root=is_root,
        parsed=lambda: _say(answers, {"parsed": True}),
        progress=progress,
    )
    _say(answers, {"hashed": unsaid})
    _say(answers, {"sha256": sha256, "report": report.to_json()})


def _parse(registry: Registry, descriptor: int, place: Path, size: int, name: str) -> Report:
    try:
        return registry.read(FdSource(descriptor, place, size), name)
    except MemoryError:
        what = "the parser reached its memory limit"
        return Report("unknown", {}, (Finding(TOO_BIG, what),))


class FdSource:
    """A ByteSource over an open descriptor."""

    def __init__(self, descriptor: int, place: Path, size: int) -> None:
        self._descriptor = descriptor
        self._place = place
        self._size = size

    @property
    def size(self) -> int:
        return self._size

    def read(self, offset: int, size: int) -> bytes:
        if offset < 0 or size < 0 or offset + size > self._size:
            raise ValueError(f"read of {size} bytes at {offset} is outside {self._size} bytes")
        parts = []
        while size:
            try:
                part = os.pread(self._descriptor, size, offset)
            except OSError as error:
                raise Unavailable(f"{self._place}: {error.strerror}") from error
            if not part:
                raise Malformed(
                    f"{self._place}: became shorter while it was read", rule="tree/changed-while-reading"
                )
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _lines(descriptor: int) -> Iterator[bytes]:
    with open(descriptor, "rb", closefd=False) as stream:
        yield from stream


def _say(descriptor: int, message: Mapping[str, object]) -> None:
    data = json.dumps(message, separators=(",", ":")).encode() + b"\n"
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
