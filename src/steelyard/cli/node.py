"""`steelyard node`: beside an engine, tell a gateway which model the engine has loaded."""

import argparse
import asyncio
import contextlib
import json
import logging
import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from steelyard.cli.talk import Talk

if TYPE_CHECKING:
    from steelyard.node import Node

HELP = "Hash the files that an engine on this host has loaded, and sign their model identity for a gateway."
PORT = 8471
MAX_REQUEST_BYTES = 8192
READ_LIMIT_S = 5.0
MAX_CONNECTIONS = 32

_NONCE = re.compile(r"[0-9a-f]{16,64}")
_log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, help="a model of the home's store: name or digest")
    parser.add_argument(
        "--url", required=True, help="the engine on this host, for example http://127.0.0.1:8000"
    )
    parser.add_argument(
        "--key", required=True, type=Path, help="the node's own key; make it with: steelyard key new --out"
    )
    parser.add_argument(
        "--directory",
        type=Path,
        metavar="DIR",
        help="what the engine was started with, if it lets go of its files",
    )
    parser.add_argument("--name", default="node", help="what the gateway calls this node (default: node)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=PORT, help=f"default: {PORT}; 0 lets the system choose")
    parser.add_argument("--once", action="store_true", help="print one statement and end")


def run(args: argparse.Namespace, talk: Talk) -> int:
    from steelyard.cli.installation import Installation, clock, passphrase
    from steelyard.errors import WrongUsage
    from steelyard.keys import load_signer
    from steelyard.node import Node

    try:
        port = urlsplit(args.url).port or 80
    except ValueError as error:
        raise WrongUsage(f"--url {args.url!r} is not http://HOST:PORT") from error
    model = Installation.open(args.home).store.model(args.model)
    signer = load_signer(args.key, passphrase())
    node = Node(args.name, model, port, signer, clock=clock, directory=args.directory)
    found = node.look()
    talk.say(f"process {found.process.pid} has {model.name} {model.digest} ({found.method})")
    if args.once:
        text = node.state().to_json().decode()
        talk.data(text, json.loads(text))
        return 0
    asyncio.run(_serve(node, args.host, args.port, talk))
    return 0


async def _serve(node: "Node", host: str, port: int, talk: Talk) -> None:
    stop = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    server = Server(node)
    port = await server.start(host, port)
    talk.say(f"the gateway asks at http://{host}:{port}/identity")
    talk.data(f"http://{host}:{port}", {"url": f"http://{host}:{port}"})
    await stop.wait()
    await server.close()


class Server:
    """Answers POST /identity {"nonce": hex} with a signed statement, one request a connection."""

    def __init__(self, node: "Node") -> None:
        self._node = node
        self._looking = asyncio.Lock()
        self._connections = 0
        self._server: asyncio.Server

    async def start(self, host: str, port: int) -> int:
        """Returns the port."""
        from steelyard.errors import Unavailable

        try:
            self._server = await asyncio.start_server(self._answer, host, port, limit=MAX_REQUEST_BYTES)
        except OSError as error:
            raise Unavailable(f"cannot listen on {host}:{port}: {error.strerror}") from error
        found: int = self._server.sockets[0].getsockname()[1]
        return found

    async def close(self) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections += 1
        try:
            if self._connections <= MAX_CONNECTIONS:
                status, body = await self._judge(reader)
                head = (
                    f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
                )
                writer.write(head.encode() + b"connection: close\r\n\r\n" + body)
                await asyncio.wait_for(writer.drain(), READ_LIMIT_S)
        except (OSError, TimeoutError):
            _log.debug("who asked is gone")
        finally:
            self._connections -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _judge(self, reader: asyncio.StreamReader) -> tuple[str, bytes]:
        from steelyard.errors import SteelyardError

        try:
            nonce = await asyncio.wait_for(_nonce_of(reader), READ_LIMIT_S)
        except (ValueError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return (
                "400 Bad Request",
                b'{"error":"expected POST /identity with a nonce of 16 to 64 hex digits"}',
            )
        try:
            async with self._looking:
                evidence = await asyncio.to_thread(self._node.state, nonce)
        except SteelyardError as error:
            _log.warning("%s", error.message)
            return "503 Service Unavailable", json.dumps({"error": error.message}).encode()
        return "200 OK", evidence.to_json()


async def _nonce_of(reader: asyncio.StreamReader) -> str:
    """Raises ValueError when the request is not ours."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    first, *lines = head.split("\r\n")
    if first != "post /identity http/1.1":
        raise ValueError("another request")
    sizes = [line.partition(":")[2].strip() for line in lines if line.startswith("content-length:")]
    if len(sizes) != 1 or not sizes[0].isdecimal() or len(sizes[0]) > 4 or int(sizes[0]) > MAX_REQUEST_BYTES:
        raise ValueError("no length")
    body = json.loads(await reader.readexactly(int(sizes[0])))
    nonce = body.get("nonce") if isinstance(body, dict) else None
    if not isinstance(nonce, str) or not _NONCE.fullmatch(nonce):
        raise ValueError("no nonce")
    return nonce
