"""A Unix socket of a serving process on which its operator has it try its own ways out.

    one JSON line in     {"do": "egress-test", "goal": {tcp, tcp6, udp, unix}}
    one JSON line out    {"pid", "closed": {kernel, python}, "attempts": [{way, state, by, detail}]} or {"error"}

The file is the operator's alone (0600). Nothing else can be asked here.
"""

import asyncio
import json
import os
import socket
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from steelyard.errors import Unavailable
from steelyard.serve.egress import Closed
from steelyard.serve.egress_canary import Goal
from steelyard.serve.egress_probe import read_attempts
from steelyard.serve.egress_ways import Attempt, try_all

MAX_LINE_BYTES = 4096
ANSWER_LIMIT_S = 60.0


class Admin:
    """Listens at `path` until `close`. closed: which layers hold, absent before they do."""

    def __init__(self, path: Path, closed: Callable[[], Closed | None]) -> None:
        self._path = path
        self._closed = closed
        self._server: asyncio.Server

    async def start(self) -> None:
        """Before the doors close. Raises Unavailable."""
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._path.unlink(missing_ok=True)
            before = os.umask(0o177)
            try:
                self._server = await asyncio.start_unix_server(
                    self._answer, str(self._path), limit=MAX_LINE_BYTES
                )
            finally:
                os.umask(before)
        except OSError as error:
            raise Unavailable(f"cannot listen at {self._path}: {error.strerror or error}") from error

    async def close(self) -> None:
        self._server.close()
        with suppress(OSError):
            self._path.unlink(missing_ok=True)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, TimeoutError):
            try:
                order = json.loads(await asyncio.wait_for(reader.readline(), 5))
                reply = await self._done(order)
            except (ValueError, TypeError, KeyError):
                reply = {"error": "not an order known here"}
            writer.write(json.dumps(reply).encode() + b"\n")
            await writer.drain()
        writer.close()

    async def _done(self, order: dict[str, Any]) -> dict[str, Any]:
        if order["do"] != "egress-test":
            raise ValueError("unknown order")
        goal = Goal(**order["goal"])
        attempts = await asyncio.to_thread(try_all, goal, None, with_programs=False)
        closed = self._closed()
        return {
            "pid": os.getpid(),
            "closed": closed and closed.to_json(),
            "attempts": [one.to_json() for one in attempts],
        }


def ask(path: Path, goal: Goal) -> tuple[Closed | None, list[Attempt]]:
    """Have the process that listens at `path` try. Raises Unavailable."""
    order = {
        "do": "egress-test",
        "goal": {"tcp": goal.tcp, "tcp6": goal.tcp6, "udp": goal.udp, "unix": goal.unix},
    }
    try:
        with closing(socket.socket(socket.AF_UNIX)) as one:
            one.settimeout(ANSWER_LIMIT_S)
            one.connect(str(path))
            one.sendall(json.dumps(order).encode() + b"\n")
            with one.makefile("rb") as answer:
                reply = json.loads(answer.readline())
        closed = Closed(**reply["closed"]) if reply["closed"] else None
        return closed, read_attempts(reply["attempts"])
    except (OSError, ValueError, KeyError) as error:
        raise Unavailable(f"no gateway answers at {path} ({type(error).__name__}); is it running?") from error
