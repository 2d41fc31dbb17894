"""The listening socket: start, deadlines, drain, stop."""

import asyncio
import errno
import logging
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any

from steelyard.errors import Unavailable
from steelyard.serve.http import Connection
from steelyard.serve.hub import Hub, Limits
from steelyard.serve.message import Application

TICK_S = 0.1
BACKLOG = 512
DRAIN_S = 30.0

_log = logging.getLogger(__name__)


class Server:
    """Serves one application until `stop`."""

    def __init__(
        self,
        app: Application,
        *,
        limits: Limits | None = None,
        clock: Callable[[], datetime],
        tick_s: float = TICK_S,
    ) -> None:
        self._app = app
        self._limits = limits or Limits()
        self._clock = clock
        self._tick_s = tick_s
        self._hub: Hub
        self._listener: asyncio.Server
        self._ticking: asyncio.Task[None]

    async def bind(self, host: str, port: int) -> int:
        """Take the port (one chosen by the system when `port` is 0) and return it; nothing is accepted yet.

        Raises Unavailable when it is taken or not ours.
        """
        try:
            await self._listen(host=host, port=port, backlog=BACKLOG)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise Unavailable(
                    f"port {port} on {host} is taken; stop the other program or choose another with --port"
                ) from error
            raise Unavailable(f"cannot listen on {host} port {port}: {error.strerror or error}") from error
        return int(self._listener.sockets[0].getsockname()[1])

    async def listen(self, listener: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Take a socket that listens already; nothing is accepted yet."""
        await self._listen(sock=listener, ssl=tls, backlog=BACKLOG)

    async def _listen(self, **where: Any) -> None:  # noqa: ANN401 - create_server's own
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_complain)
        self._hub = Hub(self._app, self._limits, self._clock)
        self._listener = await loop.create_server(lambda: Connection(self._hub), start_serving=False, **where)

    async def start(self) -> None:
        """Accept connections."""
        await self._listener.start_serving()
        self._ticking = asyncio.create_task(self._tick())

    async def stop(self, drain_s: float = DRAIN_S) -> None:
        """Take no new connections, let requests in work finish for `drain_s`, then cut them off."""
        self._listener.close()
        for connection in tuple(self._hub.connections):
            connection.drain()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._hub.is_empty.wait(), drain_s)
        for connection in tuple(self._hub.connections):
            connection.abort()
        await self._hub.is_empty.wait()
        await self._listener.wait_closed()
        self._ticking.cancel()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(self._tick_s)
            self._hub.tick()
            self._app.tick()


def _complain(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    # asyncio's own handler prints the exception, whose text may quote a payload.
    _log.error("%s (%s)", context["message"], type(context.get("exception")).__name__)
