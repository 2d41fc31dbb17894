"""`steelyard serve`: the gateway. Builds engines, gate and server from one home, runs until SIGTERM or Ctrl-C."""

import argparse
import asyncio
import contextlib
import ipaddress
import json
import logging
import secrets
import signal
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from steelyard.cli.talk import Talk

if TYPE_CHECKING:
    from steelyard.cli.installation import Installation
    from steelyard.digest import Digest
    from steelyard.engines.base import Engine
    from steelyard.policy import Decision

MAX_PORT = 65535
SLOTS = 4  # requests that one embedded engine answers at once; each holds a context of its own
HELP = (
    "Answer OpenAI clients on loopback, from models that policy allows, and enter each answer in the ledger."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, help="default: 8470; 0 lets the system choose")
    parser.add_argument(
        "--alias",
        action="append",
        default=[],
        metavar="NAME=MODEL",
        help="answer as NAME from MODEL (name or digest) while this runs; may be repeated",
    )
    parser.add_argument("--no-auth", action="store_true", help="no API keys; on loopback only")
    parser.add_argument(
        "--expose",
        action="store_true",
        help="allow a --host other machines can reach; traffic is not encrypted",
    )


def run(args: argparse.Namespace, talk: Talk) -> int:
    from steelyard.cli.installation import Installation
    from steelyard.errors import WrongUsage

    home = Installation.open(args.home)
    host = args.host or home.config.host
    port = home.config.port if args.port is None else args.port
    if not 0 <= port <= MAX_PORT:
        raise WrongUsage(f"port {port} is not between 0 and {MAX_PORT}")
    _check_exposure(home, host, args)
    logging.basicConfig(
        level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr
    )
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(_serve(home, host, port, args, talk))
    return 0


async def _serve(home: "Installation", host: str, port: int, args: argparse.Namespace, talk: Talk) -> None:
    from steelyard.cli.installation import clock
    from steelyard.gate import Gate
    from steelyard.salts import Salts
    from steelyard.sequencer import Sequencer
    from steelyard.serve.access_log import AccessLog
    from steelyard.serve.app import App
    from steelyard.serve.auth import KeyedDoor, OpenDoor
    from steelyard.serve.server import Server

    own = _own_aliases(home, args.alias)
    aliases = {**home.store.aliases(), **own}
    engines = [_engine_of(home, digest) for digest in sorted(set(aliases.values()))]
    stop = asyncio.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(name, stop.set)
    with contextlib.closing(home.ledger()) as ledger:
        gate = Gate(
            home.config.policy(),
            home.store,
            home.config.trusted_keys(),
            engines,
            Sequencer(ledger),
            Salts(home.config.home / "salts"),
            clock=clock,
            new_receipt=lambda: secrets.token_hex(16),
            aliases=own,
        )
        log = AccessLog(_nowhere if talk.quiet else sys.stderr.write, clock)
        door = OpenDoor() if args.no_auth else KeyedDoor(home.store)
        server = Server(App(gate, door, log, clock=clock), clock=clock)
        port = await server.bind(host, port)
        try:
            decisions = await gate.start()
            await server.start()
            _announce(f"http://{_bracketed(host)}:{port}", decisions, home, args, talk)
            await stop.wait()
            talk.say("stopping: requests in work may finish")
            await server.stop()
        finally:
            await gate.close()
            await log.close()
    talk.say("stopped; the ledger is under a checkpoint")


def _engine_of(home: "Installation", digest: "Digest") -> "Engine":
    """An embedded engine for an admitted GGUF, not started. Raises WrongUsage when the model is no GGUF."""
    from steelyard.engines.embedded import EmbeddedEngine
    from steelyard.errors import WrongUsage

    model = home.store.model(str(digest))
    source = Path(home.store.source(digest))
    # A model that is one file has one resource, named "." as model-signing names it.
    files = [f for f in model.files if (source.name if f.path == "." else f.path).endswith(".gguf")]
    if len(files) != 1:
        raise WrongUsage(
            f"{model.name} has {len(files)} GGUF files and the embedded engine loads exactly one; "
            f"run: steelyard model convert {model.name}, then: steelyard model alias NAME {model.name}-gguf"
        )
    path = source / files[0].path if source.is_dir() else source
    return EmbeddedEngine(path, digest, file_sha256=files[0].sha256, slots=SLOTS)


def _own_aliases(home: "Installation", pairs: Iterable[str]) -> "dict[str, Digest]":
    from steelyard.errors import WrongUsage

    own = {}
    for pair in pairs:
        name, equals, model = pair.partition("=")
        if not name or not equals or not model:
            raise WrongUsage(f"--alias {pair!r} is not NAME=MODEL")
        own[name] = home.store.model(model).digest
    return own


def _check_exposure(home: "Installation", host: str, args: argparse.Namespace) -> None:
    from steelyard.errors import WrongUsage

    if _is_loopback(host):
        return
    if not args.expose:
        raise WrongUsage(f"{host} can be reached from other machines; if that is meant, add --expose")
    if args.no_auth:
        raise WrongUsage("--no-auth is for loopback only")
    if not home.store.api_keys():
        raise WrongUsage(
            "a gateway that others can reach needs API keys first; run: steelyard key new --api NAME"
        )


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _announce(
    url: str, decisions: "Mapping[str, Decision]", home: "Installation", args: argparse.Namespace, talk: Talk
) -> None:
    if talk.json:  # one line, so that a program that started us can wait for it
        models = {alias: {"model": str(d.model), "allowed": d.allowed} for alias, d in decisions.items()}
        sys.stdout.write(json.dumps({"url": url, "models": models}) + "\n")
        sys.stdout.flush()
    talk.say(f"Steelyard listens at {url}/v1")
    for alias, decision in decisions.items():
        state = "allowed" if decision.allowed else "refused, see: steelyard policy explain"
        talk.say(f"  {alias:<20} {decision.model.hex[:12]}  {state}")
    if not decisions:
        talk.say("  no model has an alias yet; run: steelyard model alias NAME MODEL, then start again")
    if not args.no_auth and not home.store.api_keys():
        talk.say("  no API key yet; run: steelyard key new --api NAME")
    key = "any" if args.no_auth else "KEY"
    example = f"openai.OpenAI(base_url='{url}/v1', api_key='{key}')"
    talk.say(f"Call it: {example}\nStop it: Ctrl-C")


def _loop_factory() -> "type[asyncio.AbstractEventLoop] | None":
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.Loop


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _nowhere(text: str) -> None:
    """--quiet: no access log."""
