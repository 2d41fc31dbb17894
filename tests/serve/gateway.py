"""A gateway on a real store and ledger with the scripted engine: inside the test, or as a process to be killed.

python gateway.py HOME REPLY CHUNK_CHARS DELAY_S    prints its port, serves until SIGTERM
"""

import asyncio
import contextlib
import hashlib
import json
import secrets
import signal
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from steelyard.access import ApiKey
from steelyard.digest import Digest
from steelyard.engines.fake import FakeEngine
from steelyard.evidence import Statement, Subject, attest, timestamp
from steelyard.gate import Gate
from steelyard.keys import load_signer, new_key
from steelyard.policy import REVOCATION, Policy
from steelyard.salts import Salts
from steelyard.sequencer import Sequencer
from steelyard.serve.access_log import AccessLog
from steelyard.serve.accounts import Accounts
from steelyard.serve.app import App
from steelyard.serve.auth import KeyedDoor, OpenDoor
from steelyard.serve.hub import Limits
from steelyard.serve.metrics import Metrics
from steelyard.serve.prices import Prices
from steelyard.serve.server import Server
from steelyard.serve.watch import Watch
from steelyard.store import Store
from steelyard.tiles import TileLog

MODEL = Digest("oms-sha256", "5e" * 32)
SECRET = "sk-steelyard-test"
REPLY = "The claim was filed on Monday; grüße, 世界 🙂."
SCAN = "urn:steelyard:scan:v1"
POLICY = """
version = 1
name = "test"
[[rule]]
id = "scan-clean"
why = "nothing in it runs code"
predicate = "urn:steelyard:scan:v1"
supply = "steelyard admit DIR"
require = [{ field = "verdict", op = "==", value = "admit" }]
"""


def now():
    return datetime.now(UTC)


def sign(home, subject, predicate_type, predicate):
    """Attest with the home's key and keep it."""
    signer = load_signer(home / "operator.pem")
    evidence = attest(Statement((Subject("m", subject),), predicate_type, predicate), signer)
    store = Store.open(home)
    store.put_evidence(evidence)
    store.close()
    return evidence


def furnish(home):
    """Keys, a statement that admits MODEL, an API key. Returns the statement."""
    new_key(home / "operator.pem")
    new_key(home / "ledger.pem")
    store = Store.open(home)
    store.add_api_key(ApiKey("app", hashlib.sha256(SECRET.encode()).hexdigest(), timestamp(now())))
    store.close()
    return sign(home, MODEL.hex, SCAN, {"issued_at": timestamp(now()), "verdict": "admit"})


def revoke(home, evidence):
    sign(home, evidence.id.hex, REVOCATION, {"issued_at": timestamp(now()), "reason": "test"})


def ledger_entries(home):
    log = TileLog.open(home / "ledger", origin="steelyard/test", signer=load_signer(home / "ledger.pem"))
    try:
        return [json.loads(entry) for entry in log.entries()]
    finally:
        log.close()


@dataclass
class Gateway:
    home: Path
    port: int
    engine: FakeEngine
    store: Store
    log: TileLog
    server: Server
    gate: Gate
    lines: list[str] = field(default_factory=list)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}/v1"

    def entries(self, kind=None):
        found = [json.loads(entry) for entry in self.log.entries()]
        return [entry for entry in found if kind in (None, entry["kind"])]


@contextlib.asynccontextmanager
async def running(
    home,
    *,
    reply=REPLY,
    chunk_chars=4,
    delay_s=0.0,
    limits=None,
    disk=None,
    keyed=True,
    max_in_flight=256,
    shield=None,
    prices=(),
):
    """Everything a worker has but the closed doors: accounts and metrics in the home, a shield if one is given."""
    store = Store.open(home)
    log = TileLog.open(
        home / "ledger", origin="steelyard/test", signer=load_signer(home / "ledger.pem"), disk=disk
    )
    engine = FakeEngine(MODEL, reply, chunk_chars, delay_s)
    gate = Gate(
        Policy.parse(POLICY),
        store,
        [load_signer(home / "operator.pem").public],
        [engine],
        Sequencer(log),
        Salts(home / "salts"),
        clock=now,
        new_receipt=lambda: secrets.token_hex(16),
        aliases={"gpt-4o": MODEL},
        shield=shield,
    )
    lines = []
    access_log = AccessLog(lines.append, now)
    door = KeyedDoor(store) if keyed else OpenDoor()
    accounts = Accounts(
        home / "accounts", Prices(prices), clock=lambda: now().timestamp(), boot="test", is_alone=True
    )
    accounts.replay(())
    metrics = Metrics(home / "metrics")
    app = App(
        gate,
        door,
        access_log,
        clock=now,
        max_in_flight=max_in_flight,
        accounts=accounts,
        metrics=metrics,
        watch=Watch(metrics),
        checks={"ledger": lambda: None},
    )
    server = Server(app, limits=limits or Limits(), clock=now, tick_s=0.02)
    port = await server.bind("127.0.0.1", 0)
    await gate.start()
    await server.start()
    try:
        yield Gateway(home, port, engine, store, log, server, gate, lines)
    finally:
        await server.stop(drain_s=0.2)
        with contextlib.suppress(Exception):
            await gate.close()
        await access_log.close()
        accounts.close()
        metrics.close()
        with contextlib.suppress(Exception):
            log.close()
        store.close()


async def _main(home, reply, chunk_chars, delay_s):
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with running(
        Path(home), reply=reply, chunk_chars=int(chunk_chars), delay_s=float(delay_s)
    ) as gateway:
        print(gateway.port, flush=True)
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
