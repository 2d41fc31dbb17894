"""The gate: no allowed decision, no engine; no durable entry, no last chunk."""

import asyncio
import hashlib
import json
import multiprocessing
import threading
import time
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest

from steelyard.digest import Digest, canonical_json, sha256
from steelyard.engines.fake import FakeEngine
from steelyard.errors import Refused, Unavailable, WrongUsage
from steelyard.evidence import Statement, Subject, attest, timestamp
from steelyard.gate import MAX_DECISION_AGE, Answer, Gate, Refusal
from steelyard.keys import generate, load_signer, new_key
from steelyard.policy import REVOCATION, Policy
from steelyard.salts import Salts
from steelyard.sequencer import MAX_WAITING, Sequencer
from steelyard.serve.auth import Caller
from steelyard.store import Store
from steelyard.turn import Question
from steelyard.wire.call import Call
from steelyard.wire.openai_chat import parse_chat

MODEL = Digest("oms-sha256", "5e" * 32)
SIGNER = generate("ed25519")
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
SCAN = "urn:steelyard:scan:v1"
CANARY = "canary-7f3a"
POLICY = Policy.parse("""
version = 1
name = "test"
[[rule]]
id = "scan-clean"
why = "nothing in it runs code"
predicate = "urn:steelyard:scan:v1"
max_age = "1d"
supply = "steelyard admit DIR"
require = [{ field = "verdict", op = "==", value = "admit" }]
[[rule]]
id = "licence-open"
why = "open"
predicate = "urn:steelyard:licence:v1"
api_keys = ["strict-*"]
supply = "add a LICENSE"
require = [{ field = "osi_approved", op = "==", value = true }]
""")


def statement(subject=MODEL.hex, kind=SCAN, signer=SIGNER, at=NOW, **predicate):
    body = {"issued_at": timestamp(at), **(predicate or {"verdict": "admit"})}
    return attest(Statement((Subject("m", subject),), kind, body), signer)


class MemoryStore:
    """The gate's view of a store, changed by hand."""

    def __init__(self, *evidence):
        self.number = 0
        self.names = {"gpt-4o": MODEL}
        self.kept = list(evidence)
        self.asked = 0
        self.fault = None

    def head(self):
        return self.number

    def aliases(self):
        if self.fault:
            raise self.fault
        return self.names

    def evidence_for(self, sha256):
        self.asked += 1
        if self.fault:
            raise self.fault
        return list(self.kept)

    def put(self, *evidence):
        self.kept += evidence
        self.number += 2


class MemoryLog:
    """A ledger whose disk can be full or slow."""

    def __init__(self):
        self.lines = []
        self.batches = []
        self.published = 0
        self.full = False
        self.gate = threading.Event()
        self.gate.set()

    def append(self, entries):
        self.gate.wait(5)
        if self.full:
            raise Unavailable("no space left on device")
        self.lines += [json.loads(entry) for entry in entries]
        self.batches.append(len(entries))

    def publish(self):
        if self.full:
            raise Unavailable("no space left on device")
        self.published = len(self.lines)

    def of(self, kind):
        return [line for line in self.lines if line["kind"] == kind]


class Clock:
    def __init__(self):
        self.now = NOW + timedelta(seconds=1)

    def __call__(self):
        return self.now


class World:
    def __init__(self, tmp_path, *evidence, engines=None, reply="Hello world.", **options):
        self.store = MemoryStore(*evidence)
        self.log = MemoryLog()
        self.clock = Clock()
        self.engine = FakeEngine(MODEL, reply)
        self.salts = tmp_path / "salts"
        numbers = iter(range(10**6))
        self.gate = Gate(
            POLICY,
            self.store,
            [SIGNER.public],
            [self.engine] if engines is None else engines,
            Sequencer(self.log, 0.01),
            Salts(self.salts, lambda size: b"s" * size),
            clock=self.clock,
            new_receipt=lambda: f"receipt-{next(numbers)}",
            **options,
        )


@asynccontextmanager
async def opened(tmp_path, *evidence, **options):
    world = World(tmp_path, *evidence, **options)
    await world.gate.start()
    try:
        yield world
    finally:
        world.log.full = False
        world.log.gate.set()
        await world.gate.close()


class Asking(Question):
    """A question that remembers how its answer ended."""

    __slots__ = ("ends",)

    def done(self, end):
        self.ends.append(end)


def request(text=CANARY, key="app", **fields):
    """A streamed question, so that a test can look between the chunks."""
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": text}], "stream": True, **fields}
    data = json.dumps(body).encode()
    asking = Asking(parse_chat(data), Caller(key, tenant="house"), "/v1/chat/completions", data)
    asking.ends = []
    return asking


def said(events):
    """The text of some events."""
    found = [json.loads(line[6:]) for line in events.decode().splitlines() if line.startswith("data: {")]
    return "".join(c["delta"].get("content", "") for chunk in found for c in chunk["choices"])


async def text_of(answer):
    if isinstance(answer.body, bytes):
        return json.loads(answer.body)["choices"][0]["message"]["content"]
    return said(b"".join([part async for part in answer.body]))


async def test_admitted_model_answers_and_the_answer_is_entered(tmp_path):
    async with opened(tmp_path, statement()) as world:
        answer = await world.gate.answer(request())
        assert isinstance(answer, Answer)
        assert (await text_of(answer), answer.digest, answer.receipt) == (
            "Hello world.",
            str(MODEL),
            "receipt-0",
        )
        (entry,) = world.log.of("answer")
    assert (entry["status"], entry["finish_reason"], entry["completion_tokens"]) == ("complete", "stop", 3)
    assert (entry["receipt"], entry["alias"], entry["model"]) == ("receipt-0", "gpt-4o", str(MODEL))
    assert (entry["key"], entry["tenant"], entry["policy"]) == ("app", "house", str(POLICY.digest))
    assert (entry["route"], entry["engine"]) == ("/v1/chat/completions", "fake")
    (decision,) = world.log.of("decision")
    told = {name: decision[name] for name in ("allowed", "model", "policy", "rules")}
    assert str(sha256(canonical_json(told))) == decision["decision"] == entry["decision"]


async def test_commitments_open_with_the_salt_and_hold_no_text(tmp_path):
    async with opened(tmp_path, statement()) as world:
        asked = request()
        sent = b"".join([part async for part in (await world.gate.answer(asked)).body])
        (entry,) = world.log.of("answer")
    secret = (world.salts / entry["salt"]).read_bytes()
    salt = hashlib.sha256(secret + entry["receipt"].encode()).digest()
    assert entry["request_sha256"] == hashlib.sha256(salt + asked.body).hexdigest()
    assert entry["response_sha256"] == hashlib.sha256(salt + sent).hexdigest()
    assert CANARY not in json.dumps(world.log.lines)
    assert "Hello" not in json.dumps(world.log.lines)


async def test_last_chunk_waits_for_the_durable_entry(tmp_path):
    async with opened(tmp_path, statement()) as world:
        answer = await world.gate.answer(request())
        world.log.gate.clear()
        parts = [await anext(answer.body) for _ in range(3)]
        last = asyncio.ensure_future(anext(answer.body))
        await asyncio.sleep(0.05)
        assert not last.done()
        assert b'"stop"' not in b"".join(parts)
        world.log.gate.set()
        assert b'"stop"' in await last
        assert world.log.of("answer")[0]["status"] == "complete"


async def test_full_disk_withholds_the_last_chunk(tmp_path):
    async with opened(tmp_path, statement()) as world:
        await text_of(await world.gate.answer(request()))
        world.log.full = True
        answer = await world.gate.answer(request())
        for text in ("Hell", "o wo", "rld."):
            assert said(await anext(answer.body)) == text
        last = await anext(answer.body)
        assert b"DONE" not in last
        assert json.loads(last[6:])["error"]["code"] == "unavailable"


async def test_nothing_is_generated_while_the_ledger_is_broken(tmp_path):
    async with opened(tmp_path, statement()) as world:
        world.log.full = True
        assert b'"error"' in b"".join([part async for part in (await world.gate.answer(request())).body])
        started = world.engine.started
        for _ in range(3):
            with pytest.raises(Unavailable):
                await world.gate.answer(request())
        assert world.engine.started == started
        world.log.full = False
        assert await text_of(await world.gate.answer(request())) == "Hello world."
        assert world.log.of("resumed")


async def test_no_evidence_refuses_with_the_rule_and_its_command(tmp_path):
    async with opened(tmp_path) as world:
        refusal = await world.gate.answer(request())
        assert isinstance(refusal, Refusal)
        assert "scan-clean is unknown" in refusal.message
        assert "steelyard admit DIR" in refusal.message
        assert world.engine.started == 0
        (entry,) = world.log.of("refusal")
        assert (entry["receipt"], entry["rules"]) == (refusal.receipt, ["scan-clean"])


async def test_engine_of_a_refused_model_is_never_started(tmp_path):
    async with opened(tmp_path) as world:
        await world.gate.answer(request())
        with pytest.raises(Unavailable):
            await anext(world.engine.stream(request().asked.call))


async def test_revoking_one_statement_makes_the_next_call_fail(tmp_path):
    scan = statement()
    async with opened(tmp_path, scan) as world:
        assert isinstance(await world.gate.answer(request()), Answer)
        world.store.put(statement(scan.id.hex, REVOCATION, reason="test"))
        assert isinstance(await world.gate.answer(request()), Refusal)


async def test_revoking_cuts_a_stream_under_way(tmp_path):
    scan = statement()
    async with opened(tmp_path, scan) as world:
        asked = request()
        answer = await world.gate.answer(asked)
        await anext(answer.body)
        world.store.put(statement(scan.id.hex, REVOCATION, reason="test"))
        rest = b"".join([part async for part in answer.body])
        assert json.loads(rest[6:])["error"]["code"] == "model_not_admitted"
        assert world.engine.aborted == 1
        await asyncio.sleep(0.05)
        assert [entry["status"] for entry in world.log.of("answer")] == ["revoked"]
        assert [end.status for end in asked.ends] == ["revoked"]


async def test_a_change_that_still_allows_lets_a_stream_end(tmp_path):
    async with opened(tmp_path, statement()) as world:
        answer = await world.gate.answer(request())
        first = said(await anext(answer.body))
        world.store.put(statement())
        assert first + await text_of(answer) == "Hello world."


async def test_an_answer_that_nobody_reads_is_aborted_by_closing_it(tmp_path):
    async with opened(tmp_path, statement()) as world:
        answer = await world.gate.answer(request())
        await answer.body.aclose()
        await asyncio.sleep(0.05)
        assert world.engine.aborted == 1
        assert [entry["status"] for entry in world.log.of("answer")] == ["aborted"]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stand_in_answers_under_its_own_digest_when_the_engine_is_down(tmp_path, stream):
    other = Digest("oms-sha256", "0a" * 32)
    down = FakeEngine(MODEL, lambda _: (_ for _ in ()).throw(Unavailable("down")))
    engines = [down, FakeEngine(other, "second")]
    async with opened(
        tmp_path, statement(), statement(other.hex), engines=engines, stand_ins={"gpt-4o": [other]}
    ) as world:
        answer = await world.gate.answer(request(stream=stream))
        assert (await text_of(answer), answer.digest) == ("second", str(other))
        assert [(e["model"], e["status"]) for e in world.log.of("answer")] == [
            (str(MODEL), "failed"),
            (str(other), "complete"),
        ]


async def test_a_stand_in_that_is_not_admitted_never_answers(tmp_path):
    other = Digest("oms-sha256", "0a" * 32)
    engines = [
        FakeEngine(MODEL, lambda _: (_ for _ in ()).throw(Unavailable("down"))),
        FakeEngine(other, "second"),
    ]
    async with opened(tmp_path, statement(), engines=engines, stand_ins={"gpt-4o": [other]}) as world:
        world.store.evidence_for = lambda sha256: [statement()] if sha256 == MODEL.hex else []
        with pytest.raises(Unavailable):
            await world.gate.answer(request())
        assert engines[1].started == 0


async def test_an_engine_that_is_only_asserted_is_refused_by_default(tmp_path):
    engine = FakeEngine(MODEL, "x")
    engine.identity = "asserted"
    async with opened(tmp_path, statement(), engines=[engine]) as world:
        refusal = await world.gate.answer(request())
        assert isinstance(refusal, Refusal)
        assert "identity: unverified" in refusal.message
        engine.identity = "hashed"
        assert isinstance(await world.gate.answer(request()), Answer)


async def test_an_alias_added_later_gets_an_engine_without_a_restart(tmp_path):
    other = Digest("oms-sha256", "0a" * 32)
    made = []

    def load(digest):
        made.append(FakeEngine(digest, "late"))
        return made[-1]

    async with opened(tmp_path, statement(), statement(other.hex), load=load) as world:
        with pytest.raises(WrongUsage):
            await world.gate.answer(request(model="new"))
        world.store.names = {**world.store.names, "new": other}
        world.store.number += 2
        assert await text_of(await world.gate.answer(request(model="new"))) == "late"
        world.store.names = {"gpt-4o": MODEL}
        world.store.number += 2
        await text_of(await world.gate.answer(request()))
        await asyncio.sleep(0.01)
        with pytest.raises(Unavailable):  # closed, as nobody needs it
            await made[0].ask(Call("chat", "new", request().asked.call.body))


class Shield:
    """Hides one word, refuses another."""

    def protect(self, call, conversation):
        text = call.body["messages"][0]["content"]
        if "secret" in text:
            raise Refused("a secret may not pass", ("privacy:secret",))
        return Hidden(call, text.count(CANARY))


class Hidden:
    def __init__(self, call, count):
        body = {**call.body, "messages": [{"role": "user", "content": "<1>"}]}
        self.call = Call(call.kind, call.model, body, call.stream)
        self.counts = {"canary": count}
        self.restorer = self

    def whole(self, answer):
        answer["choices"][0]["message"]["content"] = CANARY
        return answer

    def chunks(self, chunks):
        self.kept = [chunk for chunk in chunks if not chunk.get("usage")]
        return [chunk for chunk in chunks if chunk not in self.kept]

    def flush(self):
        return self.kept[:1]


async def test_what_was_hidden_is_restored_counted_and_never_reaches_the_engine(tmp_path):
    engine = FakeEngine(MODEL, lambda call: call.body["messages"][0]["content"])
    async with opened(tmp_path, statement(), engines=[engine], shield=Shield()) as world:
        asked = request(stream=False)
        assert await text_of(await world.gate.answer(asked)) == CANARY
        assert asked.ends[0].completion_tokens == 1  # of `<1>`
        assert world.log.of("answer")[0]["pii"] == {"canary": 1}


async def test_a_blocked_class_is_refused_and_entered_without_its_text(tmp_path):
    async with opened(tmp_path, statement(), shield=Shield()) as world:
        with pytest.raises(Refused):
            await world.gate.answer(request("a secret"))
        (entry,) = world.log.of("refusal")
        assert entry["rules"] == ["privacy:secret"]
        assert world.engine.started == 0


async def test_an_entry_is_canonical_json(tmp_path):
    async with opened(tmp_path, statement()) as world:
        world.log.append = (lambda append: lambda some: (seen.extend(some), append(some)))(world.log.append)
        seen = []
        await text_of(await world.gate.answer(request(key='k"%s\u00fc')))
        for entry in seen:
            assert canonical_json(json.loads(entry)) == entry


async def test_counting_tokens_is_decided_and_entered_like_an_answer(tmp_path):
    async with opened(tmp_path, statement()) as world:
        asked = request("12345678")
        answer = await world.gate.count(asked)
        assert answer.body == b'{"input_tokens":2}'
        (entry,) = world.log.of("answer")
        assert (entry["prompt_tokens"], entry["completion_tokens"]) == (2, 0)
        assert len(asked.ends) == 1
    async with opened(tmp_path / "none") as world:
        assert isinstance(await world.gate.count(request()), Refusal)


async def test_admitting_makes_the_next_call_succeed_without_a_restart(tmp_path):
    async with opened(tmp_path) as world:
        assert isinstance(await world.gate.answer(request()), Refusal)
        world.store.put(statement())
        assert await text_of(await world.gate.answer(request())) == "Hello world."


async def test_expired_evidence_refuses_though_nothing_changed(tmp_path):
    async with opened(tmp_path, statement()) as world:
        assert isinstance(await world.gate.answer(request()), Answer)
        world.clock.now = NOW + timedelta(days=1)
        assert isinstance(await world.gate.answer(request()), Answer)
        world.clock.now += timedelta(seconds=1)
        assert isinstance(await world.gate.answer(request()), Refusal)


async def test_revocation_dated_ahead_comes_into_force_without_a_change(tmp_path):
    scan = statement()
    later = statement(scan.id.hex, REVOCATION, at=NOW + timedelta(minutes=10), reason="test")
    async with opened(tmp_path, scan, later) as world:
        assert isinstance(await world.gate.answer(request()), Answer)
        world.clock.now = NOW + timedelta(minutes=9)
        assert isinstance(await world.gate.answer(request()), Refusal)


async def test_clock_going_backwards_decides_anew(tmp_path):
    async with opened(tmp_path, statement()) as world:
        await world.gate.answer(request())
        world.clock.now = NOW - timedelta(hours=1)
        assert isinstance(await world.gate.answer(request()), Refusal)


async def test_decision_is_weighed_once_while_nothing_changes(tmp_path):
    async with opened(tmp_path, statement()) as world:
        for _ in range(20):
            await world.gate.answer(request())
        assert world.store.asked == 2  # at the start for anybody, then for this key
        world.clock.now += MAX_DECISION_AGE + timedelta(seconds=1)
        await world.gate.answer(request())
        assert world.store.asked == 3


async def test_a_rule_for_some_keys_binds_only_them(tmp_path):
    async with opened(tmp_path, statement()) as world:
        assert isinstance(await world.gate.answer(request()), Answer)
        refusal = await world.gate.answer(request(key="strict-app"))
        assert isinstance(refusal, Refusal)
        assert isinstance(await world.gate.answer(request(key=None)), Refusal)


async def test_statement_of_a_stranger_is_no_evidence(tmp_path):
    async with opened(tmp_path, statement(signer=generate("ed25519"))) as world:
        assert isinstance(await world.gate.answer(request()), Refusal)


async def test_unknown_alias_is_wrong_usage(tmp_path):
    async with opened(tmp_path, statement()) as world:
        with pytest.raises(WrongUsage):
            await world.gate.answer(request(model="gpt-5"))


async def test_admitted_model_without_an_engine_is_unavailable(tmp_path):
    async with opened(tmp_path, statement(), engines=[]) as world:
        with pytest.raises(Unavailable):
            await world.gate.answer(request())


async def test_store_that_fails_refuses_and_recovers(tmp_path):
    async with opened(tmp_path, statement()) as world:
        world.store.number += 2
        world.store.fault = Unavailable("disk gone")
        for _ in range(2):
            with pytest.raises(Unavailable):
                await world.gate.answer(request())
        world.store.fault = None
        assert isinstance(await world.gate.answer(request()), Answer)


async def test_leaving_aborts_the_engine_and_is_entered(tmp_path):
    async with opened(tmp_path, statement()) as world:
        answer = await world.gate.answer(request())
        async with aclosing(answer.body):
            await anext(answer.body)
        assert world.engine.aborted == 1
        await asyncio.sleep(0.05)
        assert [entry["status"] for entry in world.log.of("answer")] == ["aborted"]


async def test_cancelled_while_the_entry_is_written_enters_one_record(tmp_path):
    async with opened(tmp_path, statement()) as world:
        answer = await world.gate.answer(request())
        world.log.gate.clear()
        task = asyncio.create_task(text_of(answer))
        await asyncio.sleep(0.05)
        task.cancel()
        world.log.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.05)
        assert [entry["status"] for entry in world.log.of("answer")] == ["complete"]


class BreakingEngine(FakeEngine):
    async def stream(self, call):
        yield [{"choices": [{"index": 0, "delta": {"content": "half of an ans"}, "finish_reason": None}]}]
        if call.body["seed"]:
            raise Unavailable("the child died")


@pytest.mark.parametrize("seed", [0, 1])
async def test_engine_that_breaks_off_is_entered_as_failed(tmp_path, seed):
    async with opened(tmp_path, statement(), engines=[BreakingEngine(MODEL, "x")]) as world:
        asked = request(seed=seed)
        answer = await world.gate.answer(asked)
        sent = b"".join([part async for part in answer.body])
        assert b"DONE" not in sent
        assert b'"code":"unavailable"' in sent
        await asyncio.sleep(0.05)
        assert [entry["status"] for entry in world.log.of("answer")] == ["failed"]
        assert len(asked.ends) == 1


async def test_concurrent_answers_share_appends(tmp_path):
    async with opened(tmp_path, statement()) as world:
        await text_of(await world.gate.answer(request()))
        world.log.gate.clear()
        tasks = [asyncio.create_task(text_of(await world.gate.answer(request()))) for _ in range(50)]
        await asyncio.sleep(0.1)
        world.log.gate.set()
        assert await asyncio.gather(*tasks) == ["Hello world."] * 50
        assert max(world.log.batches) >= 25
        assert len(world.log.of("answer")) == 51


async def test_checkpoints_follow_without_being_asked(tmp_path):
    async with opened(tmp_path, statement()) as world:
        await text_of(await world.gate.answer(request()))
        for _ in range(100):
            await asyncio.sleep(0.02)
            if world.log.published == 2:
                break
        assert world.log.published == len(world.log.lines) == 2


async def test_close_enters_and_publishes_what_waits(tmp_path):
    log = MemoryLog()
    sequencer = Sequencer(log, 60)
    sequencer.start()
    futures = [sequencer.put(canonical_json({"kind": "x", "n": n})) for n in range(5)]
    await sequencer.close()
    assert [future.result() for future in futures] == [None] * 5
    assert log.published == 5
    with pytest.raises(Unavailable):
        sequencer.put(b"{}")


async def test_full_queue_refuses_instead_of_hoarding():
    log = MemoryLog()
    log.gate.clear()
    sequencer = Sequencer(log, 60)
    sequencer.start()
    futures = [sequencer.put(b'{"kind":"x"}') for _ in range(MAX_WAITING)]
    with pytest.raises(Unavailable):
        sequencer.put(b"{}")
    log.gate.set()
    await asyncio.gather(*futures)
    await sequencer.close()


async def test_sequencer_that_breaks_fails_everybody_and_stays_closed():
    class BrokenLog(MemoryLog):
        def append(self, entries):
            raise ZeroDivisionError

    sequencer = Sequencer(BrokenLog(), 60)
    sequencer.start()
    with pytest.raises(Unavailable):
        await sequencer.put(b"{}")
    with pytest.raises(Unavailable):
        sequencer.put(b"{}")
    with pytest.raises(ZeroDivisionError):
        await sequencer.close()


def revoke_elsewhere(home, identity):
    signer = load_signer(home / "operator.pem")
    store = Store.open(home)
    body = {"issued_at": timestamp(datetime.now(UTC)), "reason": "test"}
    store.put_evidence(attest(Statement((Subject("s", identity),), REVOCATION, body), signer))
    store.close()


async def test_revocation_by_another_process_reaches_the_very_next_call(tmp_path):
    signer = new_key(tmp_path / "operator.pem")
    store = Store.open(tmp_path)
    scan = statement(signer=signer, at=datetime.now(UTC))
    store.put_evidence(scan)
    gate = Gate(
        POLICY,
        store,
        [signer.public],
        [FakeEngine(MODEL, "Hello world.")],
        Sequencer(MemoryLog()),
        Salts(tmp_path / "salts"),
        clock=lambda: datetime.now(UTC),
        new_receipt=lambda: "receipt",
        aliases={"gpt-4o": MODEL},
    )
    await gate.start()
    assert isinstance(await gate.answer(request()), Answer)
    other = multiprocessing.get_context("spawn").Process(
        target=revoke_elsewhere, args=(tmp_path, scan.id.hex)
    )
    other.start()
    await asyncio.to_thread(other.join)
    assert other.exitcode == 0
    assert isinstance(await gate.answer(request()), Refusal)
    await gate.close()
    store.close()


def test_salt_of_a_day_is_made_once_and_kept_private(tmp_path):
    first = Salts(tmp_path / "salts").current(NOW)
    assert Salts(tmp_path / "salts").current(NOW) == first
    assert first[0] == "2026-11-22"
    assert Salts(tmp_path / "salts").current(NOW + timedelta(days=1))[1] != first[1]
    assert [oct(path.stat().st_mode)[-3:] for path in (tmp_path / "salts").iterdir()] == ["600", "600"]


def test_salt_file_of_another_length_is_refused(tmp_path):
    (tmp_path / "2026-11-22").write_bytes(b"short")
    with pytest.raises(Exception, match="expected 32"):
        Salts(tmp_path).current(NOW)


def test_cached_answers_stay_fast_enough_to_notice(tmp_path):
    async def measure():
        async with opened(tmp_path, statement()) as world:
            await world.gate.answer(request())
            began = time.process_time()
            for _ in range(500):
                await world.gate.answer(request())
            return (time.process_time() - began) / 500

    assert asyncio.run(measure()) < 2e-3  # about 20 us; a signature check in it would be 100 us or more
