"""How evenly connections spread over workers: a socket each (SO_REUSEPORT) against one socket that all inherit.

python benchmarks/worker_balance.py    prints the connections of each worker, smallest first, for each way in turn
"""

import asyncio
import os
import platform
import signal
import socket
import time
from collections import Counter

import uvloop

WORKERS, CONNECTIONS, ROUNDS = 4, 64, 4


class Named(asyncio.Protocol):
    """Says which worker took the connection."""

    def __init__(self, worker: int) -> None:
        self._worker = worker

    def connection_made(self, transport) -> None:
        transport.write(b"%d" % self._worker)


def shares(listeners):
    pids = [worker(number, listener) for number, listener in enumerate(listeners)]
    time.sleep(1.0)
    address = listeners[0].getsockname()
    connections = [socket.create_connection(address) for _ in range(CONNECTIONS)]
    found = Counter(one.recv(1) for one in connections)
    for one in connections:
        one.close()
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return sorted(found[b"%d" % number] for number in range(WORKERS))


def worker(number, listener):
    pid = os.fork()
    if pid == 0:

        async def serve():
            await asyncio.get_running_loop().create_server(lambda: Named(number), sock=listener)
            await asyncio.sleep(60)

        with asyncio.Runner(loop_factory=uvloop.Loop) as runner:
            runner.run(serve())
        os._exit(0)
    return pid


def own_sockets():
    listeners, address = [], ("127.0.0.1", 0)
    for _ in range(WORKERS):
        one = socket.socket()
        one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        one.bind(address)
        one.listen(512)
        address = one.getsockname()
        listeners.append(one)
    return listeners


def main():
    print(f"{platform.platform()}, uvloop {uvloop.__version__}: {CONNECTIONS} connections, {WORKERS} workers")
    for _ in range(ROUNDS):
        with socket.create_server(("127.0.0.1", 0), backlog=512) as shared:
            inherited = shares([shared] * WORKERS)
        listeners = own_sockets()
        own = shares(listeners)
        for one in listeners:
            one.close()
        print(f"one socket inherited {inherited}    a socket each {own}")


if __name__ == "__main__":
    main()
