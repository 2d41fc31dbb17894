"""One worker of the gateway: builds store, ledger, engines, gate and server from a home, and runs them until SIGTERM.

Everything is opened here, after the fork; then the process closes its own ways out (serve/egress.py) and accepts.
"""

import argparse
import asyncio
import contextlib
import gc
import hashlib
import json
import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import steelyard
from steelyard.cli.installation import Installation, clock, open_ledger
from steelyard.cli.serve import announce, url_of
from steelyard.cli.talk import Talk
from steelyard.config import Config
from steelyard.digest import Digest
from steelyard.engines.base import Engine
from steelyard.engines.embedded import EmbeddedEngine
from steelyard.engines.launched import LaunchedEngine, free_port
from steelyard.engines.launched_command import command_of
from steelyard.engines.upstream import UpstreamEngine
from steelyard.engines.upstream_config import node_keys, parse_upstream
from steelyard.engines.upstream_identity import Trust
from steelyard.engines.upstream_member import Place
from steelyard.errors import SteelyardError, WrongUsage
from steelyard.gate import Gate
from steelyard.records import text_of
from steelyard.salts import Salts
from steelyard.sequencer import Sequencer
from steelyard.serve import egress
from steelyard.serve.access_log import AccessLog
from steelyard.serve.accounts import Accounts
from steelyard.serve.accounts_table import boot_id
from steelyard.serve.app import App
from steelyard.serve.auth import Door, KeyedDoor, OpenDoor
from steelyard.serve.egress_admin import Admin
from steelyard.serve.egress_dialler import Dialler, Target, tcp
from steelyard.serve.metrics import Metrics
from steelyard.serve.oidc import Oidc, check_key_set
from steelyard.serve.prices import Prices
from steelyard.serve.readiness import Check
from steelyard.serve.reload import Announced, Files, Reloader
from steelyard.serve.server import Server
from steelyard.serve.telemetry import TARGET, Telemetry, TelemetryConfig
from steelyard.serve.tls import Tls, TlsFiles
from steelyard.serve.watch import Watch
from steelyard.serve.workers import READY, Fleet
from steelyard.tiles import TileLog
from steelyard.turn import Shield

SLOTS = 4  # requests that one embedded engine answers at once; each holds a context of its own
SECOND_S = 1.0
YOUNG_OBJECTS = 20_000  # before the collector looks: requests make few cycles
SWITCH_S = 0.0005  # how long a thread of the ledger may keep the event loop from running

_log = logging.getLogger(__name__)


def tls_files(config: Config, args: argparse.Namespace) -> TlsFiles | None:
    """Certificate and key from the options, else the configuration. Raises WrongUsage for half a pair."""
    if args.tls_cert or args.tls_key:
        if not (args.tls_cert and args.tls_key):
            raise WrongUsage("--tls-cert and --tls-key belong together")
        authority = Path(args.tls_client_ca) if args.tls_client_ca else None
        return TlsFiles(Path(args.tls_cert), Path(args.tls_key), authority)
    table = config.operations.tls
    return TlsFiles(table.cert, table.key, table.client_ca) if table else None


def has_embedded_engine(home: Installation, args: argparse.Namespace, own: Mapping[str, Digest]) -> bool:
    """Whether some alias would be answered in a process of our own, which has one owner."""
    if args.launch:
        return True
    served = {home.store.model(str(table.get("serves"))).digest for table in home.config.upstreams}
    return bool({*home.store.aliases().values(), *own.values()} - served)


class Worker:
    """What every worker is told before the fork; `run` is one of them."""

    def __init__(
        self,
        args: argparse.Namespace,
        talk: Talk,
        own: Mapping[str, Digest],
        host: str,
        port: int,
        count: int,
        drain_s: float,
    ) -> None:
        self._args = args
        self._talk = talk
        self._own = own
        self._host = host
        self._port = port
        self._count = count
        self._drain_s = drain_s

    def run(self, number: int, listener: socket.socket, fleet: Fleet) -> int:
        """Serve until SIGTERM or Ctrl-C. The exit code."""
        if not self._args.open_doors:
            egress.prepare()
        sys.setswitchinterval(SWITCH_S)
        home = Installation.open(self._args.home)
        with asyncio.Runner(loop_factory=_loop_factory(is_open=self._args.open_doors)) as runner:
            return runner.run(_Serving(self, home, number, fleet).serve(listener))


class _Serving:
    """One worker's parts while it runs."""

    def __init__(self, worker: Worker, home: Installation, number: int, fleet: Fleet) -> None:
        self._worker = worker
        self._args: argparse.Namespace = worker._args
        self._home = home
        self._number = number
        self._fleet = fleet
        self._stop = asyncio.Event()
        self._exit_code = 0
        self._places = _places(home)
        self._dialler: Dialler | None = None
        self._trust = Trust(lambda: node_keys(home.config.home), clock, lambda: secrets.token_hex(16))
        self._announced = Announced(home.config.home / "run")
        self._ledger: TileLog
        self._sequencer: Sequencer
        self._gate: Gate
        self._accounts: Accounts
        self._ports = [free_port() for _ in self._args.launch]
        self._launched: list[LaunchedEngine] = []
        self._running: set[LaunchedEngine] = set()
        self._head: int | None = None

    async def serve(self, listener: socket.socket) -> int:
        loop = asyncio.get_running_loop()
        for name in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(name, self._stop.set)
        async with contextlib.AsyncExitStack() as stack:
            await self._open(stack, listener)
            if self._worker._count == 1:
                url = url_of(self._worker._host, self._worker._port, tls=self._tls is not None)
                announce(url, self._decisions, self._home, self._args, self._worker._talk)
            gc.collect()
            gc.freeze()  # what is here stays; the collector need not look at it again
            gc.set_threshold(YOUNG_OBJECTS)
            self._fleet.say(self._number, READY)
            await self._stop.wait()
            self._worker._talk.say("stopping: requests in work may finish")
            await self._server.stop(self._worker._drain_s)
        self._worker._talk.say("stopped; the ledger is under a checkpoint")
        return self._exit_code

    async def _open(self, stack: contextlib.AsyncExitStack, listener: socket.socket) -> None:
        home, config = self._home, self._home.config
        stack.callback(home.store.close)
        self._ledger = open_ledger(config)
        stack.callback(self._ledger.close)
        await self._open_dialler()
        self._sequencer = Sequencer(self._ledger, durability=self._args.durability, clock=clock)
        engines = [self._engine_of(digest) for digest in sorted({*self._aliases().values()})]
        self._launched = [self._launch(number, *pair) for number, pair in enumerate(self._args.launch)]
        taken = {engine.digest for engine in self._launched}
        others = (engine for engine in engines if engine.digest not in taken)
        self._gate = self._gate_of([*self._launched, *others])
        self._accounts = self._accounts_of()
        stack.callback(self._accounts.close)
        metrics = Metrics(
            config.home / "run" / "metrics", self._number, version=version("steelyard"), build=build()
        )
        stack.callback(metrics.close)
        watch = self._watch(metrics, stack)
        reloader = self._reloader()
        talk = self._worker._talk
        log = AccessLog(_nowhere if talk.quiet else sys.stderr.write, clock)
        app = App(
            self._gate,
            self._door(),
            log,
            clock=clock,
            accounts=self._accounts,
            reserve_tokens=config.access.reserve_tokens,
            metrics=metrics,
            watch=watch,
            checks=self._checks(reloader),
        )
        self._server = Server(app, clock=clock)
        self._admin = Admin(config.home / "run" / f"admin-{self._number}.sock", lambda: self._closed)
        self._closed: egress.Closed | None = None
        await self._server.listen(listener, self._tls.context if self._tls else None)
        stack.push_async_callback(log.close)
        for engine in engines:
            if isinstance(engine, UpstreamEngine):
                await engine.learn()
        self._decisions = await self._gate.start()
        stack.push_async_callback(self._gate.close)
        await self._admin.start()
        stack.push_async_callback(self._admin.close)
        if not self._args.open_doors:
            self._closed = egress.close_doors([sys.executable])
            if not self._closed.kernel:
                _log.warning("this kernel does not deny ways out; only Python code is kept from them")
        await self._announce()
        await self._server.start()
        reloader.start()
        stack.push_async_callback(reloader.close)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reloader.ask)
        task = asyncio.create_task(self._each_second(app, watch))
        stack.callback(task.cancel)

    # Parts.

    def _aliases(self) -> dict[str, Digest]:
        return {**self._home.store.aliases(), **self._worker._own}

    async def _open_dialler(self) -> None:
        """The one way out: a process that connects to the configured addresses and nothing else."""
        telemetry = self._home.config.operations.telemetry
        targets: dict[str, Target] = {}
        for place in (place for places in self._places.values() for place in places):
            targets[place.name] = tcp(place.host, place.port)
            if place.node is not None:
                targets[place.node.name] = tcp(place.node.host, place.node.port)
        for number in range(len(self._args.launch)):
            targets[_launch_name(number)] = tcp("127.0.0.1", self._ports[number])
        if telemetry is not None:
            targets[TARGET] = TelemetryConfig(telemetry.url).target
        if targets and not self._args.open_doors:
            self._dialler = await Dialler.start(targets)

    def _gate_of(self, engines: Sequence[Engine]) -> Gate:
        home = self._home
        stand_ins = {
            alias: [home.store.model(name).digest for name in names]
            for alias, names in home.config.stand_ins.items()
        }
        return Gate(
            home.config.policy(),
            home.store,
            home.config.trusted_keys(),
            engines,
            self._sequencer,
            Salts(home.config.home / "salts"),
            clock=clock,
            new_receipt=lambda: os.urandom(16).hex(),
            aliases=self._worker._own,
            stand_ins=stand_ins,
            load=self._engine_of,
            shield=_shield(home.config),
            build=build(),
        )

    def _engine_of(self, digest: Digest) -> Engine:
        """The engine of a model, not started: the upstreams that serve it, else the embedded one if it is a GGUF.

        Raises WrongUsage when it is neither.
        """
        places = self._places.get(digest)
        if places is None:
            return _embedded(self._home, digest)
        dialler = self._dialler
        if dialler is None:
            return UpstreamEngine(digest, places, trust=self._trust)
        return UpstreamEngine(digest, places, dial=lambda place: dialler.dial(place.name), trust=self._trust)

    def _launch(self, number: int, command: str, name: str) -> LaunchedEngine:
        model, dialler = self._home.store.model(name), self._dialler
        path = Path(self._home.store.source(model.digest))
        port, target = self._ports[number], _launch_name(number)
        if dialler is None:
            return LaunchedEngine(model, path, command_of(command), port=port)
        return LaunchedEngine(
            model, path, command_of(command), port=port, dial=lambda _: dialler.dial(target)
        )

    def _accounts_of(self) -> Accounts:
        access = self._home.config.access
        accounts = Accounts(
            self._home.config.accounts,
            Prices(access.prices),
            clock=lambda: clock().timestamp(),
            boot=boot_id(),
            is_alone=self._worker._count == 1,
        )
        if accounts.replay_from is not None:  # after a reboot: the ledger has what the last snapshot had not
            teams = {key.name: key.team for key in self._home.store.api_keys() if key.team}
            accounts.replay(map(json.loads, self._ledger.entries(accounts.replay_from)), teams)
        return accounts

    def _door(self) -> Door:
        access = self._home.config.access
        if self._args.no_auth:
            return OpenDoor(access.limits)
        oidc = None
        if access.oidc is not None:
            check_key_set(access.oidc.key_set)
            oidc = Oidc(access.oidc)
        return KeyedDoor(self._home.store, oidc, limits=access.limits, clock=clock)

    def _watch(self, metrics: Metrics, stack: contextlib.AsyncExitStack) -> Watch:
        table = self._home.config.operations.telemetry
        if table is None:
            return Watch(metrics)
        loop, dialler = asyncio.get_running_loop(), self._dialler
        if dialler is None:
            raise WrongUsage("telemetry is sent through the dialler, which --open-doors leaves out")
        telemetry = Telemetry(
            TelemetryConfig(table.url, table.conventions, table.headers, table.ca_file),
            lambda: asyncio.run_coroutine_threadsafe(dialler.dial(TARGET), loop).result(10),
            clock_ns=time.time_ns,
            version=version("steelyard"),
            instance=f"{socket.gethostname()}-{self._number}",
        )
        telemetry.start()
        stack.callback(telemetry.close)
        return Watch(metrics, telemetry, time.time_ns)

    def _reloader(self) -> Reloader:
        config = self._home.config
        policy = Files(
            "policy", lambda: [config.home / "policy.toml", config.home / "trust"], self._read_policy
        )
        files = tls_files(config, self._args)
        self._tls = Tls(files) if files else None
        return Reloader([policy, self._tls] if self._tls else [policy])

    def _read_policy(self) -> Callable[[], Awaitable[None]]:
        config = self._home.config
        policy, keys = config.policy(), config.trusted_keys()

        async def put_in_force() -> None:
            now = text_of(clock())
            await self._announced.announce(policy.digest, self._aliases(), self._sequencer.append, now)
            self._gate.replace(policy, keys)

        return put_in_force

    async def _announce(self) -> None:
        """Enter which policy and aliases are in force, where the ledger does not have them yet."""
        self._head = self._home.store.head()
        digest = self._home.config.policy().digest
        await self._announced.announce(digest, self._aliases(), self._sequencer.append, text_of(clock()))

    def _checks(self, reloader: Reloader) -> dict[str, Check]:
        store = self._home.store
        return {
            "store": lambda: None if store.head() >= 0 else "does not answer",
            "ledger": lambda: "broken" if self._sequencer.is_broken else None,
            "models": lambda: None if self._aliases() else "none has an alias",
            "keys": lambda: None if self._args.no_auth or store.api_keys() else "none",
            "workers": lambda: None if self._fleet.is_ready else "starting",
            "settings": lambda: ", ".join(f"{name} {word}" for name, word in reloader.broken.items()) or None,
        }

    async def _each_second(self, app: App, watch: Watch) -> None:
        while True:
            await asyncio.sleep(SECOND_S)
            size = self._ledger.size
            await asyncio.to_thread(self._accounts.snapshot, size)
            watch.tick(
                in_flight=app.in_flight,
                ledger_waiting=self._sequencer.waiting,
                ledger_broken=self._sequencer.is_broken,
            )
            try:
                if self._home.store.head() != self._head:
                    await self._announce()
            except SteelyardError as error:
                _log.error("aliases could not be announced: %s", error.message)
            if self._dialler is not None and self._dialler.died.is_set():
                _log.error("the dialler is gone; this worker ends, as nothing can be reached without it")
                self._end()
            self._running |= {engine for engine in self._launched if engine.pid is not None}
            if self._closed is not None and any(engine.pid is None for engine in self._running):
                # Behind closed doors a new one could not listen.
                _log.error("a launched engine is gone; this process ends, to be started again")
                self._end()

    def _end(self) -> None:
        self._exit_code = 3
        self._stop.set()


def build() -> str:
    """What entries say of this software: its version and the start of a digest of its code."""
    hashed = hashlib.sha256()
    root = Path(steelyard.__file__).parent
    for path in sorted(root.rglob("*.py")):
        hashed.update(f"{path.relative_to(root)}\0".encode() + hashlib.sha256(path.read_bytes()).digest())
    return f"steelyard {version('steelyard')} {hashed.hexdigest()[:12]}"


def _places(home: Installation) -> dict[Digest, list[Place]]:
    """The servers of the configuration, by the model that each serves."""
    found: dict[Digest, list[Place]] = {}
    for table in home.config.upstreams:
        upstream = parse_upstream(table, home.config.home)
        found.setdefault(home.store.model(upstream.serves).digest, []).append(upstream.place)
    return found


def _launch_name(number: int) -> str:
    """What the dialler calls the server of the n-th --launch."""
    return f"launched {number}"


def _embedded(home: Installation, digest: Digest) -> EmbeddedEngine:
    model = home.store.model(str(digest))
    source = Path(home.store.source(digest))
    # A model that is one file has one resource, named "." as model-signing names it.
    files = [f for f in model.files if (source.name if f.path == "." else f.path).endswith(".gguf")]
    if len(files) != 1:
        raise WrongUsage(
            f"{model.name} has {len(files)} GGUF files and the embedded engine loads exactly one; "
            f"run: steelyard model convert {model.name}, then: steelyard model alias NAME {model.name}-gguf; "
            f"or name a server that has it loaded, in [[serve.upstream]] of steelyard.toml"
        )
    path = source / files[0].path if source.is_dir() else source
    return EmbeddedEngine(path, digest, file_sha256=files[0].sha256, slots=SLOTS)


def _shield(config: Config) -> Shield | None:
    """What hides personal data, if the configuration has a [privacy] table."""
    if config.privacy is None:
        return None
    from steelyard.privacy.settings import load_key, shield_of

    return shield_of(config.privacy, config.home, load_key(config.home / "keys" / "privacy.key"))


def _loop_factory(*, is_open: bool) -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        base: type[asyncio.AbstractEventLoop] = asyncio.SelectorEventLoop
    else:
        base = uvloop.Loop
    return base if is_open else egress.closed_loop(base)


def _nowhere(_: str) -> Any:  # noqa: ANN401 - what `write` gives is not looked at
    """--quiet: no access log."""
