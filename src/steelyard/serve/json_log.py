"""What the process says besides the access log, in the same form: one JSON line, never payload.

    {"at", "level", "event": the logger's last name, "message"}

An exception's text may quote what a caller sent, so of an exception only its type and the place are written.
"""

import json
import logging
import sys
from datetime import UTC, datetime
from pathlib import PurePath
from typing import TextIO

from steelyard.records import text_of

MAX_MESSAGE_CHARS = 4000


class JsonLines(logging.Formatter):
    """Formats records as one schema."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, str] = {
            "at": text_of(datetime.fromtimestamp(record.created, UTC)),
            "level": record.levelname.lower(),
            "event": record.name.rpartition(".")[2],
            "message": record.getMessage()[:MAX_MESSAGE_CHARS],
        }
        kind, _, trace = record.exc_info or (None, None, None)
        if kind is not None:
            line["exception"] = kind.__name__
            while trace is not None and trace.tb_next is not None:
                trace = trace.tb_next
            if trace is not None:
                line["place"] = f"{PurePath(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        return json.dumps(line, separators=(",", ":"))


def set_up(level: str, stream: TextIO | None = None) -> None:
    """Have every logger of this process write JSON lines from `level` on (debug, info, warning, error)."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
