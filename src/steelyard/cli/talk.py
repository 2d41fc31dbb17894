"""How commands speak: data to stdout (text or JSON), talk and progress bars to stderr, colour on a terminal only."""

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from steelyard.digest import JSON

_STYLES = {"good": "32", "bad": "31", "warn": "33", "dim": "2", "bold": "1"}
_REDRAW_S = 0.1
_BAR_CHARS = 30


class Talk:
    """One command's voice. `json` is the --json flag, `quiet` silences talk and bars (never errors)."""

    def __init__(
        self, *, json: bool = False, quiet: bool = False, out: TextIO | None = None, err: TextIO | None = None
    ) -> None:
        self.json = json
        self.quiet = quiet
        self._out = out or sys.stdout
        self._err = err or sys.stderr

    def data(self, text: str, value: JSON) -> None:
        """The command's result: `value` with --json, `text` without."""
        print(json.dumps(value, indent=2, ensure_ascii=False) if self.json else text, file=self._out)

    def say(self, text: str) -> None:
        """A remark for the person at the terminal."""
        if not self.quiet:
            print(text, file=self._err, flush=True)

    def complain(self, text: str) -> None:
        """An error: said even when quiet."""
        print(text, file=self._err, flush=True)

    def paint(self, text: str, style: str) -> str:
        """`text` in a style (good, bad, warn, dim, bold) if stdout is a terminal and NO_COLOR is unset."""
        if self.json or not self._out.isatty() or "NO_COLOR" in os.environ:
            return text
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m"

    @contextmanager
    def bar(self, label: str, total: int) -> Iterator["Bar"]:
        """A progress bar over `total` bytes on a terminal; nothing elsewhere."""
        bar = Bar(label, total, None if self.quiet or not self._err.isatty() else self._err)
        try:
            yield bar
        finally:
            bar.clear()


class Bar:
    """Drawn at most ten times a second; `advance` may be called from any thread."""

    def __init__(self, label: str, total: int, err: TextIO | None) -> None:
        self._label = label
        self._total = max(total, 1)
        self._err = err
        self._done = 0
        self._drawn_at = self._began_at = time.monotonic()
        self._lock = threading.Lock()

    def advance(self, count: int) -> None:
        if self._err is None:
            return
        with self._lock:
            self._done += count
            now = time.monotonic()
            if now - self._drawn_at >= _REDRAW_S:
                self._drawn_at = now
                self._draw(now - self._began_at)

    def _draw(self, elapsed_s: float) -> None:
        share = min(self._done / self._total, 1.0)
        filled = int(share * _BAR_CHARS)
        rate = self._done / elapsed_s / 1e9
        line = f"{self._label} [{'#' * filled}{'.' * (_BAR_CHARS - filled)}] {share:4.0%}  {rate:.2f} GB/s"
        print(f"\r{line}\x1b[K", end="", file=self._err, flush=True)

    def clear(self) -> None:
        if self._err is not None:
            print("\r\x1b[K", end="", file=self._err, flush=True)
