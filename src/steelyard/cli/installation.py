"""One Steelyard home, opened for a command: its store, its keys and its ledger."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steelyard.config import Config, load_config
from steelyard.digest import JSON, Digest, canonical_json, sha256
from steelyard.evidence import PREDICATE_PREFIX, Evidence, Statement, Subject, attest, timestamp
from steelyard.keys import LocalSigner, load_signer, new_key
from steelyard.model import Model
from steelyard.policy import Decision, Policy
from steelyard.store import Store
from steelyard.tiles import TileLog

if TYPE_CHECKING:
    from steelyard.store_postgres import PostgresStore

DECISION = PREDICATE_PREFIX + "decision:v1"


def clock() -> datetime:
    """Now, in UTC: the command line is where the clock enters."""
    return datetime.now(UTC)


def passphrase() -> bytes | None:
    """$STEELYARD_PASSPHRASE, absent when unset or empty."""
    return os.environb.get(b"STEELYARD_PASSPHRASE") or None


@dataclass(frozen=True, slots=True)
class Installation:
    """The home's configuration and its open store."""

    config: Config
    store: "Store | PostgresStore"

    @classmethod
    def open(cls, home: Path | None) -> "Installation":
        config = load_config(home)
        return cls(config, _store(config))

    def signer(self) -> LocalSigner:
        """The operator's key. Raises WrongUsage when there is none yet."""
        return load_signer(self.config.operator_key, passphrase())

    def ledger(self) -> TileLog:
        """The ledger, begun (with a key of its own) at first use."""
        return open_ledger(self.config)

    def attest(
        self, subjects: Iterable[Subject], predicate_type: str, predicate: Mapping[str, Any]
    ) -> Evidence:
        """Sign a statement with the operator's key and keep it."""
        evidence = attest(Statement(tuple(subjects), predicate_type, predicate), self.signer())
        self.store.put_evidence(evidence)
        return evidence

    def decide(self, model: Digest, policy: Policy, now: datetime, *, alias: str | None = None) -> Decision:
        """What `policy` says of `model` from the evidence in the store."""
        evidence = self.store.evidence_for(model.hex)
        return policy.decide(model, evidence, now, keys=self.config.trusted_keys(), alias=alias)

    def record(self, kind: str, now: datetime, **fields: JSON) -> int:
        """Enter an event of the operator's in the ledger, publish it, and return its index."""
        log = self.ledger()
        try:
            (index,) = log.append([canonical_json({"kind": kind, "at": timestamp(now), **fields})])
        finally:
            log.close()
        return index

    def conclude(self, model: Model, policy: Policy, now: datetime, evidence: Iterable[Evidence]) -> Decision:
        """Decide, attest the decision, and enter it in the ledger with the evidence just made."""
        decision = self.decide(model.digest, policy, now)
        body = {"issued_at": timestamp(now), **decision.to_json()}
        self.attest([subject_of(model)], DECISION, body)
        self.record(
            "decision",
            now,
            model=str(model.digest),
            allowed=decision.allowed,
            policy=str(policy.digest),
            decision=str(sha256(canonical_json(decision.to_json()))),
            evidence=[str(item.id) for item in evidence],
        )
        return decision


def _store(config: Config) -> "Store | PostgresStore":
    if config.store_url is None:
        return Store.open(config.home)
    from steelyard.store_postgres import PostgresStore

    return PostgresStore.open(config.store_url, config.home)


def subject_of(model: Model) -> Subject:
    """The subject of every statement about `model`."""
    return Subject(model.name, model.digest.hex)


def open_ledger(config: Config) -> TileLog:
    """Open or begin the ledger in the home. Its verifier key is written to keys/ledger.vkey for auditors."""
    if config.ledger_key.exists():
        signer = load_signer(config.ledger_key, passphrase())
    else:
        signer = new_key(config.ledger_key, "ed25519", passphrase())
    log = TileLog.open(config.ledger, origin=f"steelyard/{signer.public.keyid[:16]}", signer=signer)
    vkey = config.ledger_key.with_suffix(".vkey")
    if not vkey.exists():
        vkey.write_text(f"{log.key}\n")
    return log
