"""Keys with roles, lists and limits, metrics and readiness: through HTTP, as callers meet them."""

import asyncio
import hashlib
import http.client
import importlib.util
import json
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from steelyard.access import ApiKey, Limits, Price
from steelyard.privacy.shield import Shield

SPEC = importlib.util.spec_from_file_location("gateway", Path(__file__).with_name("gateway.py"))
world = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(world)

CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 10}
CANARY = "canary-7f3a"


@pytest.fixture
def home(tmp_path):
    world.furnish(tmp_path)
    return tmp_path


def add(gateway, name, **fields):
    secret = f"sk-{name}"
    created = world.timestamp(world.now())
    gateway.store.add_api_key(ApiKey(name, hashlib.sha256(secret.encode()).hexdigest(), created, **fields))
    return {"Authorization": f"Bearer {secret}"}


async def call(gateway, method, path, body=None, headers=None):
    def ask():
        connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=10)
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None, headers or {})
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    return await asyncio.to_thread(ask)


async def test_a_limit_of_requests_is_429_with_when_to_come_back(home):
    async with world.running(home) as gateway:
        key = add(gateway, "few", limits=Limits(rpm=2))
        for left in (1, 0):
            status, headers, _ = await call(gateway, "POST", "/v1/chat/completions", CHAT, key)
            assert (status, headers["x-ratelimit-remaining-requests"]) == (200, str(left))
        status, headers, body = await call(gateway, "POST", "/v1/chat/completions", CHAT, key)
        assert (status, json.loads(body)["error"]["code"]) == (429, "rate_limit_exceeded")
        assert 0 < int(headers["retry-after"]) <= 61
        assert gateway.engine.started == 2
        status, _, body = await call(gateway, "POST", "/v1/messages", {**CHAT, "max_tokens": 5}, key)
        assert (status, json.loads(body)["error"]["type"]) == (429, "rate_limit_error")


async def test_a_spent_budget_is_insufficient_quota(home):
    prices = (Price.parse("gpt-4o", {"prompt": "1000", "completion": "1000"}),)
    async with world.running(home, prices=prices) as gateway:
        key = add(gateway, "poor", limits=Limits.parse({"budget": "0.04/day"}, "test"))
        statuses = [(await call(gateway, "POST", "/v1/chat/completions", CHAT, key)) for _ in range(3)]
        assert [status for status, _, _ in statuses] == [200, 429, 429]
        assert json.loads(statuses[-1][2])["error"]["code"] == "insufficient_quota"


async def test_a_stream_that_is_left_costs_what_was_sent_not_its_bound(home):
    async with world.running(home, reply="word " * 200, delay_s=0.004) as gateway:
        key = add(gateway, "leaver", limits=Limits(tpm=2000))
        body = json.dumps({**CHAT, "max_tokens": 1900, "stream": True})

        def leave():
            connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=10)
            connection.request("POST", "/v1/chat/completions", body, key)
            connection.getresponse().read(10)
            connection.sock.close()
            connection.close()

        await asyncio.to_thread(leave)
        await asyncio.sleep(0.3)
        assert (await call(gateway, "POST", "/v1/chat/completions", {**CHAT, "max_tokens": 1500}, key))[
            0
        ] == 200


async def test_a_key_for_other_models_may_not_ask_this_one(home):
    async with world.running(home) as gateway:
        key = add(gateway, "other", models=("claude-*",))
        status, _, body = await call(gateway, "POST", "/v1/chat/completions", CHAT, key)
        assert (status, json.loads(body)["error"]["code"]) == (403, "model_not_allowed")
        assert json.loads((await call(gateway, "GET", "/v1/models", headers=key))[2])["data"] == []


async def test_an_auditor_reads_metrics_and_asks_nothing(home):
    async with world.running(home) as gateway:
        key = add(gateway, "auditor", role="auditor")
        status, _, body = await call(gateway, "POST", "/v1/chat/completions", CHAT, key)
        assert (status, json.loads(body)["error"]["code"]) == (403, "role_not_allowed")
        assert (await call(gateway, "GET", "/metrics", headers=key))[0] == 200
        app = {"Authorization": f"Bearer {world.SECRET}"}
        assert (await call(gateway, "GET", "/metrics", headers=app))[0] == 403
        assert (await call(gateway, "GET", "/metrics"))[0] == 401


async def test_metrics_count_what_was_answered_and_hold_no_text(home):
    async with world.running(home) as gateway:
        app = {"Authorization": f"Bearer {world.SECRET}"}
        asked = {**CHAT, "messages": [{"role": "user", "content": CANARY}]}
        for stream in (False, True):
            await call(gateway, "POST", "/v1/chat/completions", {**asked, "stream": stream}, app)
        await call(gateway, "POST", "/v1/chat/completions", {**asked, "model": CANARY}, app)
        key = add(gateway, "auditor", role="auditor")
        text = (await call(gateway, "GET", "/metrics", headers=key))[2].decode()
    assert CANARY not in text
    samples = {
        (sample.name, sample.labels.get("route"), sample.labels.get("status")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert samples["steelyard_requests_total", "/v1/chat/completions", "200"] == 2
    assert samples["steelyard_requests_total", "/v1/chat/completions", "404"] == 1


async def test_readyz_says_what_is_looked_at(home):
    async with world.running(home) as gateway:
        status, _, body = await call(gateway, "GET", "/readyz")
        assert (status, json.loads(body)) == (200, {"ready": True, "checks": {"ledger": "ok"}})


@pytest.mark.parametrize("stream", [False, True])
async def test_personal_data_never_reaches_engine_log_ledger_or_metrics(home, stream):
    seen = []

    def echo(call):
        seen.append(json.dumps(call.body))
        return f"You are {call.body['messages'][0]['content']}"

    async with world.running(home, reply=echo, shield=Shield(b"k" * 32)) as gateway:
        app = {"Authorization": f"Bearer {world.SECRET}"}
        asked = {
            "model": "gpt-4o",
            "stream": stream,
            "messages": [{"role": "user", "content": "jane.roe@acme.com"}],
        }
        status, _, body = await call(gateway, "POST", "/v1/chat/completions", asked, app)
        (entry,) = gateway.entries("answer")
    text = body.decode()
    if stream:
        chunks = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
        text = "".join(c["delta"].get("content", "") for chunk in chunks for c in chunk["choices"])
    assert status == 200
    assert "You are jane.roe@acme.com" in text
    assert "jane" not in "".join([*seen, *gateway.lines, json.dumps(entry)])
    assert entry["pii"] == {"email": 1}
