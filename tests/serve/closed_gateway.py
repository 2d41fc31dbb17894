"""A gateway behind closed doors, as a process: python closed_gateway.py HOME ADMIN_SOCKET MEMBER_PORT

Prints one JSON line: its port, which layers hold, and what came from MEMBER_PORT over the dialler.
"""

import asyncio
import json
import signal
import sys
from pathlib import Path

import uvloop

from gateway import running
from steelyard.serve import egress
from steelyard.serve.egress_admin import Admin
from steelyard.serve.egress_dialler import Dialler, tcp


async def main(home, admin_socket, member_port):
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    dialler = await Dialler.start({"member": tcp("127.0.0.1", int(member_port))})
    closed = None
    admin = Admin(Path(admin_socket), lambda: closed)
    await admin.start()
    async with running(Path(home)) as gateway:
        closed = egress.close_doors([sys.executable])
        member = await dialler.dial("member")
        await loop.sock_sendall(member, b"GET / HTTP/1.1\r\n\r\n")
        came = await loop.sock_recv(member, 100)
        line = {"port": gateway.port, "closed": closed.to_json(), "came": came.decode()}
        print(json.dumps(line), flush=True)
        await stop.wait()
    await admin.close()
    await dialler.close()


if __name__ == "__main__":
    egress.prepare()
    with asyncio.Runner(loop_factory=egress.closed_loop(uvloop.Loop)) as runner:
        runner.run(main(*sys.argv[1:]))
