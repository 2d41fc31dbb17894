"""The gate: the only path from a caller's words to an engine's answer.

alias -> digest -> decision by policy -> protect -> engine -> restore -> emit -> ledger entry -> last byte. No allowed
decision, no engine. No ledger entry, no last byte: what ends an answer, from the first finish reason on, and with it
the whole of an answer that is not streamed, is held back until the ledger has the entry.

An alias stands for one digest. Others may stand in for it only where the operator named them, only when every engine
of the digest before is down and nothing was said yet, and only as far as policy admits them; the answer and the entry
name the digest that answered.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from steelyard.digest import Digest, canonical_json, sha256
from steelyard.engines.base import Counts, Engine
from steelyard.errors import Refused, Unavailable, WrongUsage
from steelyard.evidence import Evidence, PublicKey
from steelyard.policy import Decision, Policy, State
from steelyard.records import Begun, End, Form, Parties, decision_entry, resumed_entry
from steelyard.salts import Salts
from steelyard.sequencer import Sequencer
from steelyard.turn import Answer, Guarded, Question, Seat, Shield, Turn
from steelyard.wire.anthropic import counted

# A decision is weighed anew after this long even if nothing changed in the store: evidence dated ahead of the
# clock (policy.MAX_SKEW) comes into force without a change.
MAX_DECISION_AGE = timedelta(seconds=30)
MAX_PLANS = 100_000  # decisions kept; keys and aliases are the operator's, so this is a backstop

_log = logging.getLogger(__name__)


class StoreView(Protocol):
    """What the gate reads of the store. `head` is another number after every change by any process."""

    def head(self) -> int: ...

    def aliases(self) -> Mapping[str, Digest]: ...

    def evidence_for(self, sha256: str) -> Sequence[Evidence]: ...


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


class UnknownAlias(WrongUsage):
    """No model is served under the name that was asked for."""


class _Plan:
    """A decision in force: for one alias, caller and route, and the digest that is to answer."""

    __slots__ = ("_from", "_until", "allowed", "decision", "form", "id", "identity", "seat")

    def __init__(self, decision: Decision, seat: Seat | None, identity: str | None, now: datetime) -> None:
        self.decision = decision
        self.allowed = decision.allowed
        self.id = str(sha256(canonical_json(decision.to_json())))
        self.seat = seat
        self.identity = identity
        self._from = now
        self._until = now + MAX_DECISION_AGE
        if decision.valid_until is not None:
            self._until = min(self._until, decision.valid_until)
        self.form: Form

    def holds(self, now: datetime) -> bool:
        return self._from <= now <= self._until and (
            self.seat is None or self.seat.engine.identity == self.identity
        )


class Gate:
    """Answers callers from admitted engines only.

    keys: the trusted public keys.  engines: those known beforehand; `load` makes one for a digest that gets an alias
    later, or raises WrongUsage.  aliases: names on top of the store's, for this process.  stand_ins: digests that may
    answer for an alias when its own engines are down.  clock: timezone-aware now.  new_receipt: a fresh unguessable
    id.  build: what the entries say of this software.
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
        stand_ins: Mapping[str, Sequence[Digest]] | None = None,
        load: Callable[[Digest], Engine] | None = None,
        shield: Shield | None = None,
        build: str = "",
    ) -> None:
        self._policy = policy
        self._store = store
        self._keys = tuple(keys)
        self._seats = {engine.digest: Seat(engine) for engine in engines}
        self._ledger = ledger
        self._salts = salts
        self._clock = clock
        self._new_receipt = new_receipt
        self._own_aliases = dict(aliases or {})
        self._stand_ins = dict(stand_ins or {})
        self._load = load
        self._shield = shield
        self._build = build
        self._aliases: Mapping[str, Digest] = {}
        self._head: int | None = None
        self._plans: dict[tuple[str, str | None, str], _Plan] = {}
        self._entered: set[str] = set()  # decisions the ledger holds
        self._weighing = asyncio.Lock()
        self._starting = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()

    # The operator's side.

    async def start(self) -> dict[str, Decision]:
        """Begin the ledger's work and start the engines that may answer somebody. The decision of each alias."""
        self._ledger.start()
        decisions = {}
        for alias, digest in sorted(self.aliases().items()):
            seat = await self._seat(digest)
            plan = await self._weighed(digest, alias, None, self._clock(), seat)
            decisions[alias] = plan.decision
            if plan.allowed and seat is not None:
                await self._start(seat)
        return decisions

    async def close(self) -> None:
        """Stop the engines, then put every entry under a checkpoint."""
        for seat in self._seats.values():
            if seat.is_ready:
                seat.is_ready = False
                await seat.engine.close()
        await self._ledger.close()

    def replace(self, policy: Policy, keys: Iterable[PublicKey]) -> None:
        """Decide by this policy and these keys from the next request on."""
        self._policy = policy
        self._keys = tuple(keys)
        self._plans.clear()

    @property
    def head(self) -> int:
        """Another number after every change of the store. Raises Unavailable when it does not answer."""
        return self._store.head()

    def aliases(self) -> Mapping[str, Digest]:
        """The names that callers may ask for. Raises Unavailable when the store does not answer."""
        head = self._store.head()
        if head != self._head:
            self._plans.clear()
            self._aliases = {**self._store.aliases(), **self._own_aliases}
            self._retire()
            self._head = head  # last: after an error the next caller tries again
        return self._aliases

    # The caller's side.

    async def answer(self, question: Question) -> Answer | Refusal:
        """Decide, and answer if allowed.

        Raises UnknownAlias, WrongUsage for a request the engine cannot do, Refused for personal data that may
        not pass, Unavailable when store, ledger or engine does not answer.
        """
        now = self._clock()
        plan = await self._plan(question, now)
        begun = Begun(now, self._new_receipt(), *self._salts.current(now), question.body)
        if self._ledger.is_broken or plan.id not in self._entered:
            await self._prepare(plan, now)
        if not plan.allowed:
            await self._ledger.append(plan.form.refusal(begun))
            return Refusal(begun.receipt, plan.decision)
        guarded = None if self._shield is None else await self._guard(question, plan, begun)
        try:
            return await self._turn(question, guarded, begun, plan)
        except Unavailable as error:
            if question.asked.call.model not in self._stand_ins:
                raise
            _log.warning("an engine is down, its stand-ins are asked: %s", error.message)
            return await self._stand_in(question, guarded, begun, error)

    async def count(self, question: Question) -> Answer | Refusal:
        """The tokens that the request has at the engine, under the same decision. Raises as `answer` does."""
        now = self._clock()
        plan = await self._plan(question, now)
        begun = Begun(now, self._new_receipt(), *self._salts.current(now), question.body)
        if self._ledger.is_broken or plan.id not in self._entered:
            await self._prepare(plan, now)
        if not plan.allowed:
            await self._ledger.append(plan.form.refusal(begun))
            return Refusal(begun.receipt, plan.decision)
        guarded = None if self._shield is None else await self._guard(question, plan, begun)
        engine = plan.seat.engine if plan.seat else None
        if plan.seat is None or not isinstance(engine, Counts):
            raise WrongUsage("this model's engine cannot count tokens")
        await self._start(plan.seat)
        tokens = await engine.count(guarded.call if guarded else question.asked.call)
        body = counted(tokens)
        hashed = hashlib.sha256(begun.salt + body).hexdigest()
        end = End("complete", tokens, 0, None, guarded.counts if guarded else None)
        await self._ledger.append(plan.form.answer(begun, hashed, end))
        question.done(end)
        return Answer(begun.receipt, plan.seat.digest, body)

    async def may_go_on(self, question: Question, seat: Seat) -> bool:
        """Whether an answer under way is still allowed."""
        # An alias that now stands for other weights does not end answers under way; one that is gone does.
        if question.asked.call.model not in self.aliases():
            return False
        call, key = question.asked.call, question.caller.key
        return (await self._weighed(seat.engine.digest, call.model, key, self._clock(), seat)).allowed

    # Decisions.

    async def _plan(self, question: Question, now: datetime) -> _Plan:
        """The decision for a request, weighed anew when the store has changed or the last one is too old."""
        scope = (question.asked.call.model, question.caller.key, question.route)
        if self._store.head() == self._head:
            plan = self._plans.get(scope)
            if plan is not None and plan.holds(now):
                return plan
        async with self._weighing:
            digest = self.aliases().get(scope[0])
            if digest is None:
                raise UnknownAlias("no model of that name is served here")
            plan = self._plans.get(scope)
            if plan is None or not plan.holds(now):
                head = self._head
                plan = await self._planned(digest, question, now)
                if self._store.head() == head and len(self._plans) < MAX_PLANS:
                    self._plans[scope] = plan
            return plan

    async def _planned(self, digest: Digest, question: Question, now: datetime) -> _Plan:
        alias, key = question.asked.call.model, question.caller.key
        seat = await self._seat(digest)
        plan = await self._weighed(digest, alias, key, now, seat)
        parties = Parties(alias, question.route, key, question.caller.tenant)
        name = seat.engine.name if seat else "none"
        plan.form = Form(plan.decision, plan.id, parties, name, self._build)
        return plan

    async def _weighed(
        self, digest: Digest, alias: str, key: str | None, now: datetime, seat: Seat | None
    ) -> _Plan:
        identity = seat.engine.identity if seat else None

        def weigh() -> Decision:
            return self._policy.decide(
                digest,
                self._store.evidence_for(digest.hex),
                now,
                keys=self._keys,
                alias=alias,
                api_key=key,
                identity=identity,
            )

        return _Plan(await asyncio.to_thread(weigh), seat, identity, now)

    async def _prepare(self, plan: _Plan, now: datetime) -> None:
        if self._ledger.is_broken:
            # Nothing is generated that might have to go unlogged.
            await self._ledger.append(resumed_entry(now))
        if plan.id in self._entered:
            return

        def entered(entering: "asyncio.Future[None]") -> None:
            if not entering.cancelled() and entering.exception() is None:
                self._entered.add(plan.id)

        self._ledger.put(decision_entry(plan.decision, plan.id, now)).add_done_callback(entered)

    # One request.

    async def _guard(self, question: Question, plan: _Plan, begun: Begun) -> Guarded:
        assert self._shield is not None
        try:
            return self._shield.protect(question.asked.call, _conversation(question))
        except Refused as error:
            await self._ledger.append(plan.form.refusal(begun, error.rules))
            raise

    async def _turn(self, question: Question, guarded: Guarded | None, begun: Begun, plan: _Plan) -> Answer:
        seat = plan.seat
        if seat is None:
            raise Unavailable(f"{plan.decision.model} is admitted but no engine here can load it")
        if not seat.is_ready:
            await self._start(seat)
        return await Turn(question, guarded, begun, plan.form, seat, self._ledger, self).answer()

    async def _stand_in(
        self, question: Question, guarded: Guarded | None, begun: Begun, failure: Unavailable
    ) -> Answer:
        """An answer of whoever may stand in for the alias, is admitted and is up."""
        for digest in self._stand_ins[question.asked.call.model]:
            now = self._clock()
            plan = await self._planned(digest, question, now)
            if plan.allowed:
                await self._prepare(plan, now)
                try:
                    return await self._turn(question, guarded, begun, plan)
                except Unavailable as error:
                    failure = error
        raise failure

    # Engines.

    async def _seat(self, digest: Digest) -> Seat | None:
        """The engine of a digest, made now if it can be; absent when it cannot."""
        seat = self._seats.get(digest)
        if seat is None and self._load is not None:
            async with self._starting:
                seat = self._seats.get(digest)
                if seat is None:
                    try:
                        seat = Seat(await asyncio.to_thread(self._load, digest))
                    except WrongUsage as error:
                        _log.error("no engine for %s: %s", digest, error.message)
                        return None
                    self._seats[digest] = seat
        return seat

    async def _start(self, seat: Seat) -> None:
        async with self._starting:
            if not seat.is_ready:
                await seat.engine.start()
                seat.is_ready = True

    def _retire(self) -> None:
        """Close engines that no alias needs any more, once they are idle."""
        if self._load is None:
            return
        needed = {*self._aliases.values(), *(digest for some in self._stand_ins.values() for digest in some)}
        for digest in self._seats.keys() - needed:
            if not self._seats[digest].busy:
                task = asyncio.ensure_future(self._seats.pop(digest).engine.close())
                self._retiring.add(task)
                task.add_done_callback(self._retiring.discard)


def _conversation(question: Question) -> bytes:
    """What one conversation of one caller has and no other: the caller's word for it, else how it began."""
    named = question.conversation
    if not named:
        messages = question.asked.call.body.get("messages") or ()
        first = next((message for message in messages if message.get("role") == "user"), None)
        named = hashlib.sha256(canonical_json(first)).digest()
    caller = question.caller
    return canonical_json([caller.tenant, caller.key]) + named
