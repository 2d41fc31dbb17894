"""Connections by name, from the dialler (`egress_dialling.py`): the only way out of a serving process."""

import asyncio
import json
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress

from steelyard.errors import Unavailable, WrongUsage
from steelyard.serve.egress_dialling import MAX_MESSAGE_BYTES, MAX_NAME_BYTES, NUMBER

CONNECT_LIMIT_S = 5.0
START_LIMIT_S = 30.0  # names are looked up, perhaps by a resolver that does not answer
MAX_ADDRESSES = 16  # of one name, each tried for CONNECT_LIMIT_S

# Both keep message borders; only Linux has the first for Unix sockets.
_KIND = socket.SOCK_SEQPACKET if sys.platform == "linux" else socket.SOCK_DGRAM

Target = tuple[str, str] | tuple[str, str, int]


def tcp(host: str, port: int) -> Target:
    """A target by host name or address."""
    return ("tcp", host, port)


def unix(path: str) -> Target:
    """A target by the path of its socket."""
    return ("unix", path)


class Dialler:
    """A running dialler. addresses: what each name stood for at the start, for the operator to read.

    died: set when it is gone. It cannot be replaced from inside a closed process, so the process should end and be
    started anew.
    """

    def __init__(
        self, process: subprocess.Popen[bytes], pipe: socket.socket, addresses: Mapping[str, Sequence[str]]
    ) -> None:
        self._process = process
        self._pipe = pipe
        self._loop = asyncio.get_running_loop()
        self._number = 0
        self._waiting: dict[int, asyncio.Future[socket.socket]] = {}
        self.addresses = addresses
        self.died = asyncio.Event()
        self._loop.add_reader(pipe.fileno(), self._receive)

    @classmethod
    async def start(
        cls, targets: Mapping[str, Target], *, connect_limit_s: float = CONNECT_LIMIT_S
    ) -> "Dialler":
        """Before the process closes its own doors. Raises Unavailable when a name cannot be looked up."""
        for name in targets:
            if len(name.encode()) > MAX_NAME_BYTES:
                raise WrongUsage(f"the name {name[:40]!r}... of an address is too long")
        settings = json.dumps({"targets": targets, "timeout_s": connect_limit_s}).encode()
        if len(settings) > MAX_MESSAGE_BYTES:
            raise WrongUsage("the list of addresses is too long")
        ours, theirs = socket.socketpair(socket.AF_UNIX, _KIND)
        with theirs:
            process = subprocess.Popen(  # noqa: ASYNC220 - once, before anything is served
                [sys.executable, "-I", "-m", "steelyard.serve.egress_dialling", str(theirs.fileno())],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        ours.settimeout(START_LIMIT_S)
        try:
            ours.send(settings)
            answer = json.loads(await asyncio.to_thread(ours.recv, MAX_MESSAGE_BYTES) or b"{}")
        except OSError as error:
            answer = {"failed": f"the dialler did not start ({error})"}
        if "ready" not in answer:
            ours.close()
            process.kill()
            process.wait()
            raise Unavailable(
                f"the addresses this gateway may reach cannot be looked up: {answer.get('failed', 'it ended')}"
            )
        ours.setblocking(False)
        return cls(process, ours, answer["ready"])

    @property
    def pid(self) -> int:
        return self._process.pid

    async def dial(self, name: str) -> socket.socket:
        """A connected, non-blocking socket to the target `name`.

        Raises Unavailable with the reason; also for a name that is not on the list.
        """
        if self.died.is_set():
            raise Unavailable("the dialler is gone, so nothing outside can be reached")
        self._number = number = (self._number + 1) & 0xFFFFFFFF
        future: asyncio.Future[socket.socket] = self._loop.create_future()
        self._waiting[number] = future
        try:
            self._pipe.send(NUMBER.pack(number) + name.encode())
            return await asyncio.wait_for(future, CONNECT_LIMIT_S * MAX_ADDRESSES)
        except BlockingIOError as error:
            raise Unavailable(f"no connection to {name}: too many are being made") from error
        except (OSError, TimeoutError) as error:
            raise Unavailable(f"no connection to {name}: {error}") from error
        finally:
            del self._waiting[number]

    async def close(self) -> None:
        """End it. Sockets it gave stay connected."""
        self._loop.remove_reader(self._pipe.fileno())
        self._pipe.close()
        self._fail()
        try:
            await asyncio.to_thread(self._process.wait, 5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)

    def _receive(self) -> None:
        while True:
            try:
                message, fds, _, _ = socket.recv_fds(self._pipe, NUMBER.size + MAX_NAME_BYTES, 1)
            except BlockingIOError:
                return
            except OSError:
                message, fds = b"", []
            if not message:
                self._loop.remove_reader(self._pipe.fileno())
                self._fail()
                return
            self._deliver(message, fds)

    def _deliver(self, message: bytes, fds: Sequence[int]) -> None:
        sockets = [socket.socket(fileno=fd) for fd in fds]
        with suppress(struct.error):
            future = self._waiting.get(NUMBER.unpack_from(message)[0])
            if future is not None and not future.done():
                if sockets:
                    sockets[0].setblocking(False)
                    future.set_result(sockets.pop())
                else:
                    future.set_exception(OSError(message[NUMBER.size :].decode(errors="replace")))
        for unclaimed in sockets:  # who asked has left
            unclaimed.close()

    def _fail(self) -> None:
        self.died.set()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(OSError("the dialler is gone"))
