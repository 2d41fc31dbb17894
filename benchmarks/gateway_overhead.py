"""CPU time of one answered request: our whole gateway against a bare HTTP server on the same parser and loop.

Both run uvloop and httptools in a process of their own. The bare one parses HTTP and sends back a fixed answer; ours
checks the key, parses the JSON, decides, streams from a scripted engine in one piece, commits request and answer to
a ledger on disk (synced before the last byte) and writes the access log. Rounds alternate. Figures are on-CPU
microseconds a request from /proc/PID/task/*/schedstat, all threads, so they hold on a busy machine.

python benchmarks/gateway_overhead.py [--rounds 5] [--requests 4000] [--connections 16]
"""

import argparse
import asyncio
import hashlib
import json
import platform
import secrets
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import cast

import httptools
import uvloop

from steelyard.digest import Digest
from steelyard.engines.fake import FakeEngine
from steelyard.evidence import Statement, Subject, attest, timestamp
from steelyard.gate import Gate
from steelyard.keys import generate
from steelyard.policy import Policy
from steelyard.salts import Salts
from steelyard.sequencer import Sequencer
from steelyard.serve.access_log import AccessLog
from steelyard.serve.app import App
from steelyard.serve.auth import KeyedDoor
from steelyard.serve.server import Server
from steelyard.store import Store
from steelyard.tiles import TileLog

MODEL = Digest("oms-sha256", "5e" * 32)
KEY = "sk-steelyard-benchmark"
PROMPT = "The policy holder reports water damage in the kitchen. " * 12
REPLY = "The claim is covered under section four. " * 8
POLICY = """
version = 1
name = "benchmark"
[[rule]]
id = "scan-clean"
why = "nothing in it runs code"
predicate = "urn:steelyard:scan:v1"
supply = "steelyard admit DIR"
require = [{ field = "verdict", op = "==", value = "admit" }]
"""
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 600\r\n\r\n" + b"x" * 600


class Bare(asyncio.Protocol):
    """The least a server can do with this parser: one fixed answer a request."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        self.transport.write(ANSWER)


async def serve_bare() -> None:
    server = await asyncio.get_running_loop().create_server(Bare, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


async def serve_ours() -> None:
    home = Path(tempfile.mkdtemp(prefix="steelyard-bench-"))

    def now() -> datetime:
        return datetime.now(UTC)

    store, signer = Store.open(home), generate("ed25519")
    scan = {"issued_at": timestamp(now()), "verdict": "admit"}
    store.put_evidence(attest(Statement((Subject("m", MODEL.hex),), "urn:steelyard:scan:v1", scan), signer))
    store.add_api_key("bench", hashlib.sha256(KEY.encode()).hexdigest(), timestamp(now()))
    log = TileLog.open(home / "ledger", origin="steelyard/benchmark", signer=generate("ed25519"))
    gate = Gate(
        Policy.parse(POLICY),
        store,
        [signer.public],
        [FakeEngine(MODEL, REPLY, chunk_chars=10_000)],
        Sequencer(log),
        Salts(home / "salts"),
        clock=now,
        new_receipt=lambda: secrets.token_hex(16),
        aliases={"gpt-4o": MODEL},
    )
    server = Server(App(gate, KeyedDoor(store), AccessLog(len, now), clock=now), clock=now)
    port = await server.bind("127.0.0.1", 0)
    await gate.start()
    await server.start()
    print(port, flush=True)
    await asyncio.Event().wait()


class Asker(asyncio.Protocol):
    """One connection that asks, waits for the answer, and asks again."""

    def __init__(self, request: bytes, count: int, done: Callable[[], None]) -> None:
        self.request, self.left, self.done = request, count, done

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.parser = httptools.HttpResponseParser(self)
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        if self.parser.get_status_code() != 200:
            raise SystemExit(f"the server answered {self.parser.get_status_code()}")
        self.left -= 1
        if self.left:
            self.parser = httptools.HttpResponseParser(self)
            self.transport.write(self.request)
        else:
            self.transport.close()
            self.done()


async def load(port: int, requests: int, connections: int) -> None:
    body = json.dumps(
        {"model": "gpt-4o", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": 256}
    ).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    request = f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    loop, finished = asyncio.get_running_loop(), asyncio.Semaphore(0)
    for _ in range(connections):
        await loop.create_connection(
            lambda: Asker(request, requests // connections, finished.release), "127.0.0.1", port
        )
    for _ in range(connections):
        await finished.acquire()


def cpu_us(pid: int) -> float:
    """On-CPU time of all threads of a process."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e3


def measure(process: "subprocess.Popen[bytes]", port: int, requests: int, connections: int) -> float:
    before = cpu_us(process.pid)
    uvloop.run(load(port, requests, connections))
    return (cpu_us(process.pid) - before) / requests


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=4000)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--serve", choices=("bare", "ours"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        uvloop.run(serve_bare() if args.serve == "bare" else serve_ours())
        return
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    print(f"commit {commit.stdout.strip() or '?'}, Python {platform.python_version()}, uvloop {version('uvloop')}, "
          f"httptools {version('httptools')}, {args.connections} connections")  # fmt: skip
    servers = {}
    for name in ("bare", "ours"):
        process = subprocess.Popen([sys.executable, __file__, "--serve", name], stdout=subprocess.PIPE)
        assert process.stdout is not None
        servers[name] = (process, int(process.stdout.readline()))
    figures: dict[str, list[float]] = {name: [] for name in servers}
    try:
        for process, port in servers.values():
            measure(process, port, 500, args.connections)
        for _ in range(args.rounds):
            for name, (process, port) in servers.items():
                figures[name].append(measure(process, port, args.requests, args.connections))
    finally:
        for process, _ in servers.values():
            process.kill()
            process.wait()
    for name, found in figures.items():
        print(
            f"{name:<5} {statistics.median(found):7.1f} us CPU/request  ({min(found):.1f} to {max(found):.1f})"
        )
    ratios = [ours / bare for ours, bare in zip(figures["ours"], figures["bare"], strict=True)]
    print(f"ratio {statistics.median(ratios):7.2f}  ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
