"""`steelyard serve`: the gateway. Starts the workers, each of which `cli/worker.py` builds from one home."""

import argparse
import ipaddress
import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from steelyard.cli.talk import Talk

if TYPE_CHECKING:
    from steelyard.cli.installation import Installation
    from steelyard.digest import Digest
    from steelyard.policy import Decision
    from steelyard.serve.workers import Listeners

MAX_PORT = 65535
DRAIN_S = 30.0
DURABILITIES = ("relaxed", "strict")
HELP = (
    "Answer OpenAI's and Anthropic's clients on loopback, from models that policy allows, and enter each answer in "
    "the ledger."
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
    parser.add_argument(
        "--launch",
        action="append",
        nargs=2,
        default=[],
        metavar=("ENGINE", "MODEL"),
        help="start this server on a model's verified files: vllm, sglang, llama-server, transformers, or a command "
        "with {path} and {port}; may be repeated",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="worker processes on this port (default: 1)")
    parser.add_argument(
        "--durability",
        choices=DURABILITIES,
        default="relaxed",
        help="relaxed: an answer is in the kernel before it leaves and on the disk within 50 ms; strict: on the disk",
    )
    parser.add_argument("--no-auth", action="store_true", help="no API keys; on loopback only")
    parser.add_argument(
        "--expose", action="store_true", help="allow a --host that other machines can reach; use TLS with it"
    )
    parser.add_argument("--tls-cert", metavar="FILE", help="certificate chain, PEM")
    parser.add_argument("--tls-key", metavar="FILE", help="its private key, PEM")
    parser.add_argument(
        "--tls-client-ca", metavar="FILE", help="callers need a certificate of this authority"
    )
    parser.add_argument(
        "--open-doors", action="store_true", help="do not deny the process its way out; for debugging only"
    )


def run(args: argparse.Namespace, talk: Talk) -> int:
    from steelyard.cli.installation import Installation
    from steelyard.cli.worker import Worker, has_embedded_engine, tls_files
    from steelyard.errors import WrongUsage
    from steelyard.serve import json_log
    from steelyard.serve.metrics import clear
    from steelyard.serve.workers import Fleet, Listeners, check_workers, supervise

    home = Installation.open(args.home)
    config = home.config
    host = args.host or config.host
    port = config.port if args.port is None else args.port
    if not 0 <= port <= MAX_PORT:
        raise WrongUsage(f"port {port} is not between 0 and {MAX_PORT}")
    tls_files(config, args)  # refuses half a pair before anything starts
    _check_exposure(home, host, args)
    own = own_aliases(home, args.alias)
    count = config.operations.workers if args.workers is None else args.workers
    check_workers(count, has_embedded_engine=has_embedded_engine(home, args, own))
    home.store.close()  # each worker opens its own
    json_log.set_up(config.operations.log_level)
    listeners = Listeners(host, port, count)
    clear(config.home / "run" / "metrics")
    worker = Worker(args, talk, own, host, listeners.port, count, DRAIN_S)
    if count == 1:
        return worker.run(0, listeners.take(0), Fleet(1))
    return supervise(
        worker.run,
        listeners,
        count,
        drain_s=DRAIN_S,
        on_ready=lambda: _announce_many(host, listeners, count, talk),
    )


def own_aliases(home: "Installation", pairs: list[str]) -> "dict[str, Digest]":
    """The names of --alias NAME=MODEL. Raises WrongUsage."""
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


def announce(
    url: str, decisions: "Mapping[str, Decision]", home: "Installation", args: argparse.Namespace, talk: Talk
) -> None:
    """Say where the gateway is and what it answers."""
    if talk.json:  # one line, so that a program that started us can wait for it
        models = {alias: {"model": str(d.model), "allowed": d.allowed} for alias, d in decisions.items()}
        sys.stdout.write(json.dumps({"url": url, "models": models}) + "\n")
        sys.stdout.flush()
    talk.say(f"Steelyard listens at {url}/v1")
    for alias, decision in decisions.items():
        state = "allowed" if decision.allowed else "refused, see: steelyard policy explain"
        talk.say(f"  {alias:<20} {decision.model.hex[:12]}  {state}")
    if not decisions:
        talk.say("  no model has an alias yet; run: steelyard model alias NAME MODEL")
    if not args.no_auth and not home.store.api_keys():
        talk.say("  no API key yet; run: steelyard key new --api NAME")
    key = "any" if args.no_auth else "KEY"
    example = f"openai.OpenAI(base_url='{url}/v1', api_key='{key}')"
    talk.say(f"Call it: {example}\nStop it: Ctrl-C")


def _announce_many(host: str, listeners: "Listeners", count: int, talk: Talk) -> None:
    url = url_of(host, listeners.port, tls=False)
    if talk.json:
        sys.stdout.write(json.dumps({"url": url, "workers": count}) + "\n")
        sys.stdout.flush()
    talk.say(f"Steelyard listens at {url}/v1 with {count} workers\nStop it: Ctrl-C")


def url_of(host: str, port: int, *, tls: bool) -> str:
    return f"http{'s' if tls else ''}://{f'[{host}]' if ':' in host else host}:{port}"
