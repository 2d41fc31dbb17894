"""The gate: the only path from a caller's words to an engine's answer.

alias -> digest -> decision by policy -> engine -> ledger entry -> last chunk. No allowed decision, no engine. No
durable ledger entry, no last chunk: a stream's final chunk, and with it the whole of an answer that is not
streamed, is held back until the entry is on the disk.

Ledger entries are canonical JSON, never text of a caller or an engine:
    {kind: "answer", at, receipt, alias, model, policy, decision, key, salt, request_sha256,
     response_sha256, prompt_tokens, completion_tokens, finish_reason, status: complete | aborted | failed}
    {kind: "refusal", at, receipt, alias, model, policy, decision, key, salt, request_sha256, rules}
    {kind: "decision", at, model, policy, decision, allowed, rules}    before the first entry that names it
    {kind: "resumed", at}                       the first entry after the ledger refused one
request_sha256 = SHA-256(salt || canonical JSON of the request body); response_sha256 = SHA-256(salt || UTF-8 text).
The salt is SHA-256(secret || receipt) with the secret that `salt` names, kept outside the ledger; destroying the
secret makes both commitments unguessable while every proof still holds.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol, cast

from steelyard.digest import JSON, Digest, canonical_json, sha256
from steelyard.engines.base import Engine
from steelyard.errors import Unavailable, WrongUsage
from steelyard.evidence import Evidence, PublicKey
from steelyard.policy import Decision, Policy, State
from steelyard.salts import Salts
from steelyard.sequencer import Sequencer
from steelyard.wire.chat import ChatRequest, Chunk

# A decision is weighed anew after this long even if nothing changed in the store: evidence dated ahead of the
# clock (policy.MAX_SKEW) comes into force without a change.
MAX_DECISION_AGE = timedelta(seconds=30)
MAX_DECISION_BYTES = 32 << 10  # a longer decision is entered without its rules


class StoreView(Protocol):
    """What the gate reads of the store. `head` is another number after every change by any process."""

    def head(self) -> int: ...

    def aliases(self) -> Mapping[str, Digest]: ...

    def evidence_for(self, sha256: str) -> Sequence[Evidence]: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer on its way. Close `chunks` to abort it; its last chunk comes after the ledger entry is durable.

    Iterating raises WrongUsage when the engine cannot do what was asked, Unavailable when engine or ledger fails.
    """

    receipt: str
    digest: Digest
    chunks: AsyncGenerator[Chunk, None]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A decided no, entered in the ledger."""

    receipt: str
    decision: Decision

    @property
    def message(self) -> str:
        unmet = [rule for rule in self.decision.rules if rule.state is not State.MET]
        listed = "; ".join(
            f"{rule.id} is {rule.state.value}: {rule.reason} -> {rule.supply}" for rule in unmet
        )
        return (
            f"policy does not let {self.decision.model} answer. {listed or 'no rule applies to this caller'}"
        )


@dataclass(frozen=True, slots=True)
class _Weighed:
    decision: Decision
    id: str  # sha256:hex of the decision's canonical JSON
    from_: datetime
    until: datetime


class Gate:
    """Answers callers from admitted engines only.

    aliases: names on top of the store's, for this process.  keys: the trusted public keys.  engines: by model
    digest.  clock: timezone-aware now.  new_receipt: a fresh unguessable id.
    """

    def __init__(
        self,
        policy: Policy,
        store: StoreView,
        keys: Iterable[PublicKey],
        engines: Iterable[Engine],
        ledger: Sequencer,
        salts: Salts,
        *,
        clock: Callable[[], datetime],
        new_receipt: Callable[[], str],
        aliases: Mapping[str, Digest] | None = None,
    ) -> None:
        self._policy = policy
        self._store = store
        self._keys = tuple(keys)
        self._engines = {engine.digest: engine for engine in engines}
        self._ledger = ledger
        self._salts = salts
        self._clock = clock
        self._new_receipt = new_receipt
        self._own_aliases = dict(aliases or {})
        self._aliases: Mapping[str, Digest] = {}
        self._head: int | None = None
        self._weighed: dict[tuple[Digest, str, str | None], _Weighed] = {}
        self._entered: set[str] = set()  # decisions the ledger holds
        self._ready: set[Digest] = set()
        self._weighing = asyncio.Lock()
        self._starting = asyncio.Lock()

    async def start(self) -> dict[str, Decision]:
        """Begin the ledger's work and start the engines that may answer somebody. The decision of each alias."""
        self._ledger.start()
        decisions = {}
        for alias, digest in sorted(self.aliases().items()):
            decision = (await self._decide(digest, alias, None)).decision
            decisions[alias] = decision
            if decision.allowed and digest in self._engines:
                await self._engine(digest)
        return decisions

    async def close(self) -> None:
        """Stop the engines, then put every entry under a checkpoint."""
        for digest in tuple(self._ready):
            self._ready.discard(digest)
            await self._engines[digest].close()
        await self._ledger.close()

    def aliases(self) -> Mapping[str, Digest]:
        """The names that callers may ask for. Raises Unavailable when the store does not answer."""
        head = self._store.head()
        if head != self._head:
            self._weighed.clear()
            self._aliases = {**self._store.aliases(), **self._own_aliases}
            self._head = head  # last: after an error the next caller tries again
        return self._aliases

    async def answer(self, key: str | None, request: ChatRequest) -> Answer | Refusal:
        """Decide, and answer if allowed. key: the name of the caller's API key, absent without one.

        Raises WrongUsage for an unknown alias, Unavailable when store, ledger or engine does not answer.
        """
        digest = self.aliases().get(request.model)
        if digest is None:
            raise WrongUsage("no model of that name is served here")
        weighed = await self._decide(digest, request.model, key)
        if self._ledger.is_broken:
            # Nothing is generated that might have to go unlogged.
            await self._ledger.append(canonical_json({"kind": "resumed", "at": self._now()}))
        receipt = self._new_receipt()
        entry, salt = self._entry(receipt, weighed, key, request)
        self._enter_decision(weighed)
        if not weighed.decision.allowed:
            unmet: JSON = [rule.id for rule in weighed.decision.rules if rule.state is not State.MET]
            await self._ledger.append(canonical_json({**entry, "kind": "refusal", "rules": unmet}))
            return Refusal(receipt, weighed.decision)
        engine = await self._engine(digest)
        return Answer(receipt, digest, self._chunks(engine, request, entry, salt))

    async def _chunks(
        self, engine: Engine, request: ChatRequest, entry: Mapping[str, JSON], salt: bytes
    ) -> AsyncGenerator[Chunk, None]:
        hashed = hashlib.sha256(salt)
        last: Chunk | None = None
        status, entered = "failed", False

        def closing(status: str) -> bytes:
            usage = last.usage if last else None
            return canonical_json(
                {
                    **entry,
                    "kind": "answer",
                    "response_sha256": hashed.hexdigest(),
                    "prompt_tokens": usage.prompt_tokens if usage else None,
                    "completion_tokens": usage.completion_tokens if usage else None,
                    "finish_reason": last.finish_reason if last else None,
                    "status": status,
                }
            )

        try:
            # Engines are asynchronous generators: closing one aborts its generation.
            async with aclosing(cast("AsyncGenerator[Chunk, None]", engine.generate(request))) as chunks:
                async for chunk in chunks:
                    hashed.update(chunk.text.encode())
                    if chunk.finish_reason is not None:
                        last = chunk
                        break
                    yield chunk
            if last is None:
                raise Unavailable("the engine stopped before its answer was complete")
            entering = self._ledger.put(closing("complete"))
            entered = True
            try:
                await entering
            except Unavailable:
                entered = False
                raise
        except (asyncio.CancelledError, GeneratorExit):
            status = "aborted"
            raise
        finally:
            if not entered:
                self._ledger.note(closing(status))
        yield last

    async def _decide(self, digest: Digest, alias: str, key: str | None) -> _Weighed:
        scope = (digest, alias, key)
        now = self._clock()
        found = self._weighed.get(scope)
        if found is not None and found.from_ <= now <= found.until:
            return found
        async with self._weighing:
            self.aliases()  # a change while we waited empties the cache
            found = self._weighed.get(scope)
            if found is None or not found.from_ <= now <= found.until:
                head = self._head
                found = await asyncio.to_thread(self._weigh, digest, alias, key, now)
                if self._store.head() == head:
                    self._weighed[scope] = found
            return found

    def _weigh(self, digest: Digest, alias: str, key: str | None, now: datetime) -> _Weighed:
        evidence = self._store.evidence_for(digest.hex)
        decision = self._policy.decide(digest, evidence, now, keys=self._keys, alias=alias, api_key=key)
        until = now + MAX_DECISION_AGE
        if decision.valid_until is not None:
            until = min(until, decision.valid_until)
        return _Weighed(decision, str(sha256(canonical_json(decision.to_json()))), now, until)

    async def _engine(self, digest: Digest) -> Engine:
        engine = self._engines.get(digest)
        if engine is None:
            raise Unavailable(f"{digest} is admitted but not loaded here; restart steelyard serve")
        if digest not in self._ready:
            async with self._starting:
                if digest not in self._ready:
                    await engine.start()
                    self._ready.add(digest)
        return engine

    def _entry(
        self, receipt: str, weighed: _Weighed, key: str | None, request: ChatRequest
    ) -> tuple[dict[str, JSON], bytes]:
        now = self._clock()
        name, secret = self._salts.current(now)
        salt = hashlib.sha256(secret + receipt.encode()).digest()
        entry: dict[str, JSON] = {
            "at": _text(now),
            "receipt": receipt,
            "alias": request.model,
            "model": str(weighed.decision.model),
            "policy": str(weighed.decision.policy),
            "decision": weighed.id,
            "key": key,
            "salt": name,
            "request_sha256": hashlib.sha256(salt + canonical_json(request.body)).hexdigest(),
        }
        return entry, salt

    def _enter_decision(self, weighed: _Weighed) -> None:
        name = weighed.id
        if name in self._entered:
            return
        entry: dict[str, JSON] = {
            **weighed.decision.to_json(),
            "kind": "decision",
            "at": self._now(),
            "decision": name,
        }
        if len(canonical_json(entry)) > MAX_DECISION_BYTES:
            entry["rules"] = None

        def entered(entering: "asyncio.Future[None]") -> None:
            if not entering.cancelled() and entering.exception() is None:
                self._entered.add(name)

        self._ledger.put(canonical_json(entry)).add_done_callback(entered)

    def _now(self) -> str:
        return _text(self._clock())


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
