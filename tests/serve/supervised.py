"""A small gateway under the supervisor, for tests to kill: python supervised.py COUNT [MODE]

Each worker answers HTTP on the shared port with its number and process id. MODE fragile: worker 1 ends at once with
exit status 2. MODE stubborn: workers ignore SIGTERM. MODE closed: behind closed doors, on uvloop, with a dialler.
"""

import asyncio
import json
import os
import signal
import sys

import uvloop

from steelyard.serve import egress
from steelyard.serve.egress_dialler import Dialler, tcp
from steelyard.serve.workers import READY, Listeners, supervise


def run_worker(worker, listener, fleet, mode):
    if mode == "fragile" and worker == 1:
        return 2
    if mode == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if mode == "closed":
        egress.prepare()
        loop_factory = egress.closed_loop(uvloop.Loop)
    else:
        loop_factory = asyncio.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(serve(worker, listener, fleet, mode))
    return 0


async def serve(worker, listener, fleet, mode):
    reloads = 0
    closed = None
    stop = asyncio.Event()

    def reload():
        nonlocal reloads
        reloads += 1

    async def answer(reader, writer):
        await reader.readline()
        body = json.dumps(
            {
                "worker": worker,
                "pid": os.getpid(),
                "ready": fleet.is_ready,
                "reloads": reloads,
                "closed": closed,
            }
        )
        writer.write(body.encode() + b"\n")
        await writer.drain()
        writer.close()

    loop = asyncio.get_running_loop()
    if mode != "stubborn":
        loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGHUP, reload)
    server = await asyncio.start_server(answer, sock=listener, start_serving=False)
    if mode == "closed":
        dialler = await Dialler.start({"itself": tcp("127.0.0.1", listener.getsockname()[1])})
        closed = egress.close_doors().to_json()
        (await dialler.dial("itself")).close()
    await server.start_serving()
    fleet.say(worker, READY)
    await stop.wait()
    server.close()


def main(count, mode=""):
    listeners = Listeners("127.0.0.1", 0, int(count))
    return supervise(
        lambda worker, listener, fleet: run_worker(worker, listener, fleet, mode),
        listeners,
        int(count),
        drain_s=0.5,
        on_ready=lambda: print(listeners.port, flush=True),
    )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
