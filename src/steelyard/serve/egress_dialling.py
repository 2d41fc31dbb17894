"""The dialler: a process of its own that connects to a fixed list of addresses, for a process that may not.

python -m steelyard.serve.egress_dialling FD    FD: one end of a pair of Unix sockets that keep message borders

    first in     {"targets": {name: ["tcp", host, port] | ["unix", path]}, "timeout_s": s}
    first out    {"ready": {name: [address, ...]}} or {"failed": reason}; names are looked up once, now, never again
    then in      u32 number, name in UTF-8
    then out     u32 number and the connected socket (SCM_RIGHTS), or u32 number and a reason in UTF-8

It ends when the other end closes. It reads nothing of what goes over the connections. After the look-up it keeps
only what connecting takes: no other program, no file, no listening, and nobody of the same user reads its memory.

Attack: a gateway made to speak to an attacker. It can ask for a name on the list, and for nothing else; a host name
that later points elsewhere (DNS rebinding) is not asked for again.
"""

import ctypes
import errno
import json
import os
import selectors
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

from steelyard.seccomp import install, refused

MAX_MESSAGE_BYTES = 64 << 10
MAX_NAME_BYTES = 512
MAX_PENDING = 512  # below the usual limit of descriptors
NUMBER = struct.Struct("=I")

_PR_SET_DUMPABLE = 4
# What connecting does not take. Memory, threads and the look-up's files are behind us.
_REFUSED = (
    "execve", "execveat", "fork", "vfork", "ptrace", "process_vm_readv", "process_vm_writev", "pidfd_getfd", "bind",
    "listen", "accept", "accept4", "open", "openat", "openat2", "creat", "rename", "renameat", "renameat2", "link",
    "linkat", "symlink", "symlinkat", "unlink", "unlinkat", "mkdir", "mkdirat", "mount", "setns", "unshare", "bpf",
    "init_module", "finit_module", "kexec_load", "perf_event_open", "keyctl", "add_key", "request_key",
    "userfaultfd", "io_uring_setup", "io_uring_enter", "io_uring_register", "open_by_handle_at",
)  # fmt: skip

Address = tuple[int, Any]  # family, what connect takes


class Dialling:
    """Connections being made, and the pipe to who asked."""

    def __init__(self, pipe: socket.socket, addresses: Mapping[str, list[Address]], timeout_s: float) -> None:
        self._pipe = pipe
        self._addresses = addresses
        self._timeout_s = timeout_s
        self._selector = selectors.DefaultSelector()
        self._selector.register(pipe, selectors.EVENT_READ)
        self._pending: dict[socket.socket, tuple[int, list[Address], float]] = {}

    def run(self) -> None:
        """Until the other end closes."""
        while True:
            for key, _ in self._selector.select(0.5 if self._pending else None):
                if key.fileobj is not self._pipe:
                    assert isinstance(key.fileobj, socket.socket)
                    self._settle(key.fileobj)
                elif not self._take():
                    return
            now = time.monotonic()
            for connection in [one for one, (_, _, by) in self._pending.items() if now > by]:
                self._give_up(connection, errno.ETIMEDOUT)

    def _take(self) -> bool:
        message = self._pipe.recv(NUMBER.size + MAX_NAME_BYTES + 1)
        if not message:
            return False
        (number,) = NUMBER.unpack_from(message)
        addresses = self._addresses.get(message[NUMBER.size :].decode(errors="replace"))
        if addresses is None:
            self._say(number, "that name is not on the list of addresses this gateway may reach")
        elif len(self._pending) >= MAX_PENDING:
            self._say(number, "too many connections are being made")
        else:
            self._begin(number, addresses, errno.EHOSTUNREACH)
        return True

    def _begin(self, number: int, addresses: list[Address], failure: int) -> None:
        """Try the first address; the others are for later."""
        while addresses:
            (family, address), *addresses = addresses
            try:
                connection = socket.socket(family, socket.SOCK_STREAM)
            except OSError as error:  # no descriptor left, or no such family here
                failure = error.errno or failure
                continue
            connection.setblocking(False)
            if family != socket.AF_UNIX:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            failure = connection.connect_ex(address)
            if failure in (0, errno.EINPROGRESS):
                self._pending[connection] = (number, addresses, time.monotonic() + self._timeout_s)
                self._selector.register(connection, selectors.EVENT_WRITE)
                return
            connection.close()
        self._say(number, os.strerror(failure))

    def _settle(self, connection: socket.socket) -> None:
        failure = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if failure:
            self._give_up(connection, failure)
            return
        number, _, _ = self._pending.pop(connection)
        self._selector.unregister(connection)
        socket.send_fds(self._pipe, [NUMBER.pack(number)], [connection.fileno()])
        connection.close()

    def _give_up(self, connection: socket.socket, failure: int) -> None:
        number, rest, _ = self._pending.pop(connection)
        self._selector.unregister(connection)
        connection.close()
        self._begin(number, rest, failure)

    def _say(self, number: int, reason: str) -> None:
        self._pipe.send(NUMBER.pack(number) + reason.encode())


def looked_up(targets: Mapping[str, list[Any]]) -> dict[str, list[Address]]:
    """The literal addresses of each target. Raises OSError for a name that cannot be looked up."""
    found: dict[str, list[Address]] = {}
    for name, (kind, *place) in targets.items():
        if kind == "unix":
            found[name] = [(socket.AF_UNIX, place[0])]
        else:
            host, port = place
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found[name] = list(dict.fromkeys((int(family), address) for family, _, _, _, address in infos))
    return found


def _close_in(libc: ctypes.CDLL) -> None:
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    install(libc, lambda machine: refused(machine, _REFUSED), every_thread=True)


def _shown(addresses: Iterable[Address]) -> list[str]:
    return [
        address if family == socket.AF_UNIX else f"{address[0]} port {address[1]}"
        for family, address in addresses
    ]


def main(fd: int) -> None:
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)  # it lasts as long as who asks
    pipe = socket.socket(fileno=fd)
    settings = json.loads(pipe.recv(MAX_MESSAGE_BYTES))
    libc = ctypes.CDLL(None, use_errno=True)
    try:
        addresses = looked_up(settings["targets"])
    except OSError as error:
        pipe.send(json.dumps({"failed": error.strerror or str(error)}).encode())
        return
    _close_in(libc)
    pipe.send(json.dumps({"ready": {name: _shown(some) for name, some in addresses.items()}}).encode())
    try:
        Dialling(pipe, addresses, settings["timeout_s"]).run()
    except (BrokenPipeError, ConnectionResetError):
        return


if __name__ == "__main__":
    main(int(sys.argv[1]))
