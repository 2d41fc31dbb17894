"""Listeners on this machine that every way out is tried against: what reaches one got out, network or none."""

import os
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

WORD = b"steelyard-canary"
_ANSWER = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (len(WORD), WORD)


@dataclass(frozen=True, slots=True)
class Goal:
    """Where the listeners are. tcp6 is absent where there is no IPv6 loopback."""

    tcp: int
    tcp6: int | None
    udp: int
    unix: str


class Canary:
    """The listeners, answering until `close`. folder: for the Unix socket."""

    def __init__(self, folder: Path) -> None:
        path = str(folder / "canary.sock")
        self._streams = [socket.create_server(("127.0.0.1", 0)), _unix(path)]
        tcp6 = None
        with suppress(OSError):
            self._streams.append(socket.create_server(("::1", 0), family=socket.AF_INET6))
            tcp6 = self._streams[-1].getsockname()[1]
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind(("127.0.0.1", 0))
        self.goal = Goal(self._streams[0].getsockname()[1], tcp6, self._udp.getsockname()[1], path)
        for stream in self._streams:
            threading.Thread(target=_answer_streams, args=(stream,), daemon=True).start()
        threading.Thread(target=_answer_datagrams, args=(self._udp,), daemon=True).start()

    def close(self) -> None:
        for one in (*self._streams, self._udp):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        os.unlink(self.goal.unix)


def _unix(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    return listener


def _answer_streams(listener: socket.socket) -> None:
    with suppress(OSError):  # closed
        while True:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                connection.settimeout(2)
                connection.recv(4096)
                connection.sendall(_ANSWER)


def _answer_datagrams(one: socket.socket) -> None:
    with suppress(OSError):
        while True:
            _, peer = one.recvfrom(4096)
            if peer is None:  # shut down
                return
            one.sendto(WORD, peer)
