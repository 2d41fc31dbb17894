"""The routes, over a real socket, store and ledger: statuses, headers, who gets in, what is logged."""

import asyncio
import hashlib
import http.client
import importlib.util
import json
from pathlib import Path

import pytest

from steelyard.access import ApiKey
from steelyard.disk import Disk
from steelyard.errors import Unavailable, WrongUsage
from steelyard.serve.access_log import MAX_LINES, AccessLog
from steelyard.serve.message import Request

SPEC = importlib.util.spec_from_file_location("gateway", Path(__file__).parent / "gateway.py")
world = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(world)

CANARY = "canary-91bc"
CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": CANARY}]}
KEY = {"Authorization": f"Bearer {world.SECRET}"}


@pytest.fixture
def home(tmp_path):
    world.furnish(tmp_path)
    return tmp_path


async def call(gateway, method, path, body=None, headers=KEY):
    """One request by the standard library's client: status, headers, decoded body."""

    def ask():
        connection = http.client.HTTPConnection("127.0.0.1", gateway.port, timeout=10)
        try:
            connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    return await asyncio.to_thread(ask)


async def error_of(gateway, *args, **options):
    status, headers, body = await call(gateway, *args, **options)
    error = json.loads(body)["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    assert headers["content-type"] == "application/json"
    return status, headers, error


async def test_answer_carries_digest_and_receipt_of_its_ledger_entry(home):
    async with world.running(home) as gateway:
        status, headers, body = await call(gateway, "POST", "/v1/chat/completions", CHAT)
        (entry,) = gateway.entries("answer")
    assert status == 200
    assert json.loads(body)["choices"][0]["message"]["content"] == world.REPLY
    assert headers["x-steelyard-model-digest"] == str(world.MODEL) == entry["model"]
    assert headers["x-steelyard-receipt"] == entry["receipt"]
    assert entry["key"] == "app"


async def test_stream_carries_the_same_headers_and_ends_with_done(home):
    async with world.running(home) as gateway:
        status, headers, body = await call(gateway, "POST", "/v1/chat/completions", {**CHAT, "stream": True})
        (entry,) = gateway.entries("answer")
    assert status == 200
    assert headers["content-type"].startswith("text/event-stream")
    assert headers["x-steelyard-receipt"] == entry["receipt"]
    assert body.endswith(b"data: [DONE]\n\n")


async def test_refusal_names_each_rule_and_the_command_that_supplies_it(home):
    async with world.running(home) as gateway:
        (scan,) = gateway.store.list_evidence(predicate_type=world.SCAN)
        world.revoke(home, scan)
        status, headers, error = await error_of(gateway, "POST", "/v1/chat/completions", CHAT)
        (entry,) = gateway.entries("refusal")
    assert (status, error["code"], error["param"]) == (403, "model_not_admitted", "model")
    assert [(rule["id"], rule["state"]) for rule in error["rules"]] == [("scan-clean", "unmet")]
    assert error["rules"][0]["supply"] == "steelyard admit DIR"
    assert headers["x-steelyard-receipt"] == error["receipt"] == entry["receipt"]
    assert gateway.engine.started == 0


async def test_unknown_alias_is_404_and_not_in_the_ledger(home):
    async with world.running(home) as gateway:
        status, _, error = await error_of(gateway, "POST", "/v1/chat/completions", {**CHAT, "model": "gpt-5"})
        assert (status, error["code"], error["param"]) == (404, "model_not_found", "model")
        assert gateway.entries() == []


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer wrong"},
        {"Authorization": world.SECRET},
        {"Authorization": f"Basic {world.SECRET}"},
        {"x-api-key": "wrong"},
        {"x-api-key": world.SECRET, "Authorization": "Bearer another"},
    ],
)
async def test_wrong_key_is_401_before_anything_else(home, headers):
    async with world.running(home) as gateway:
        for method, path in (
            ("POST", "/v1/chat/completions"),
            ("GET", "/v1/models"),
            ("GET", "/v1/models/gpt-4o"),
        ):
            status, answered, error = await error_of(
                gateway, method, path, CHAT if method == "POST" else None, headers=headers
            )
            assert (status, error["code"]) == (401, "invalid_api_key")
            assert answered["www-authenticate"] == "Bearer"
        assert gateway.engine.started == 0


async def test_new_and_removed_keys_count_at_once(home):
    async with world.running(home) as gateway:
        fresh = {"Authorization": "Bearer sk-fresh"}
        assert (await call(gateway, "GET", "/v1/models", headers=fresh))[0] == 401
        gateway.store.add_api_key(
            ApiKey("fresh", hashlib.sha256(b"sk-fresh").hexdigest(), world.timestamp(world.now()))
        )
        assert (await call(gateway, "GET", "/v1/models", headers=fresh))[0] == 200
        gateway.store.remove_api_key("fresh")
        assert (await call(gateway, "GET", "/v1/models", headers=fresh))[0] == 401


async def test_open_door_lets_local_programs_in_and_web_pages_out(home):
    async with world.running(home, keyed=False) as gateway:
        assert (await call(gateway, "POST", "/v1/chat/completions", CHAT, headers={}))[0] == 200
        assert (await call(gateway, "GET", "/v1/models", headers={"Host": "localhost:8470"}))[0] == 200
        for headers in (
            {"Origin": "https://evil.example"},
            {"Host": "evil.example:8470"},
            {"Host": "127.0.0.1.evil.example"},
        ):
            assert (await call(gateway, "GET", "/v1/models", headers=headers))[0] == 403


async def test_models_are_listed_and_shown(home):
    async with world.running(home) as gateway:
        gateway_models = json.loads((await call(gateway, "GET", "/v1/models"))[2])
        assert [model["id"] for model in gateway_models["data"]] == ["gpt-4o"]
        assert json.loads((await call(gateway, "GET", "/v1/models/gpt%2D4o"))[2])["id"] == "gpt-4o"
        assert (await call(gateway, "GET", "/v1/models/gpt%252D4o"))[0] == 404
        assert (await call(gateway, "GET", "/v1/models/%FF"))[0] == 404


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405), ("DELETE", "/v1/models", 405), ("PUT", "/healthz", 405),
        ("GET", "/", 404), ("GET", "/v1/models/", 404), ("GET", "//v1/models", 404),
        ("GET", "/v1/../v1/models", 404), ("GET", "/V1/models", 404), ("GET", "/v1/%6dodels", 404),
        ("GET", "/healthz/", 404), ("POST", "/v1/embedding", 404), ("TRACE", "/healthz", 405),
    ],
)  # fmt: skip
async def test_other_methods_and_addresses(home, method, path, status):
    async with world.running(home) as gateway:
        found, headers, _ = await error_of(gateway, method, path)
        assert found == status
        assert ("allow" in headers) == (status == 405)


async def test_healthz_head_and_options_need_no_key(home):
    async with world.running(home) as gateway:
        assert (await call(gateway, "GET", "/healthz", headers={}))[2] == b'{"status":"ok"}'
        status, headers, body = await call(gateway, "HEAD", "/healthz", headers={})
        assert (status, headers["content-length"], body) == (200, "15", b"")
        status, headers, _ = await call(gateway, "OPTIONS", "/v1/chat/completions", headers={})
        assert (status, headers["allow"]) == (204, "POST, OPTIONS")
        assert "access-control-allow-origin" not in headers


async def test_wrong_parameter_is_400_and_named(home):
    async with world.running(home) as gateway:
        status, _, error = await error_of(gateway, "POST", "/v1/chat/completions", {**CHAT, "n": 0})
        assert (status, error["param"], error["type"]) == (400, "n", "invalid_request_error")


def cannot(chat):
    raise WrongUsage("the prompt is longer than the context")


@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_engine_cannot_do_is_400_even_for_a_stream(home, stream):
    async with world.running(home, reply=cannot) as gateway:
        status, _, error = await error_of(gateway, "POST", "/v1/chat/completions", {**CHAT, "stream": stream})
        assert (status, error["message"]) == (400, "the prompt is longer than the context")


def down(chat):
    raise Unavailable("/secret/path is gone")


@pytest.mark.parametrize("stream", [False, True])
async def test_engine_that_is_down_is_503_without_its_reason(home, stream, caplog):
    async with world.running(home, reply=down) as gateway:
        status, headers, error = await error_of(
            gateway, "POST", "/v1/chat/completions", {**CHAT, "stream": stream}
        )
    assert (status, headers["retry-after"]) == (503, "1")
    assert "/secret/path" not in error["message"]
    assert "/secret/path" in caplog.text


def broken(chat):
    raise ZeroDivisionError(chat.body["messages"][0]["content"])


@pytest.mark.parametrize("stream", [False, True])
async def test_defect_is_500_in_shape_and_no_payload_is_logged(home, stream, caplog):
    async with world.running(home, reply=broken) as gateway:
        status, _, error = await error_of(gateway, "POST", "/v1/chat/completions", {**CHAT, "stream": stream})
        assert (await call(gateway, "GET", "/healthz"))[0] == 200
    assert (status, error["type"]) == (500, "server_error")
    assert "ZeroDivisionError at test_app.py" in caplog.text
    assert CANARY not in caplog.text + "".join(gateway.lines) + error["message"]


async def test_more_requests_than_allowed_are_429(home):
    async with world.running(home, delay_s=0.2, max_in_flight=1) as gateway:
        first = asyncio.create_task(call(gateway, "POST", "/v1/chat/completions", CHAT))
        await asyncio.sleep(0.1)
        status, headers, error = await error_of(gateway, "POST", "/v1/chat/completions", CHAT)
        assert (status, headers["retry-after"], error["code"]) == (429, "1", "rate_limit_exceeded")
        first.cancel()


async def test_access_log_has_the_facts_and_no_payload(home):
    async with world.running(home) as gateway:
        await call(gateway, "POST", "/v1/chat/completions", CHAT)
        await call(gateway, "POST", "/v1/chat/completions", {**CHAT, "model": CANARY})
        await call(gateway, "GET", f"/{CANARY}?{CANARY}")
        await call(gateway, "GET", "/healthz", headers={**KEY, CANARY: CANARY})
    text = "".join(gateway.lines)
    lines = [json.loads(line) for line in text.splitlines()]
    assert CANARY not in text
    assert world.SECRET not in text
    assert [line["status"] for line in lines] == [200, 404, 404, 200]
    assert (lines[0]["key"], lines[0]["alias"], lines[0]["model"]) == ("app", "gpt-4o", str(world.MODEL))
    assert lines[0]["receipt"]


async def test_stuck_reader_of_the_log_costs_lines_not_answers():
    written = []
    log = AccessLog(written.append, world.now)
    for number in range(MAX_LINES + 3):
        log.add(Request(receipt=str(number)), 200, 0, 0.0)
    await log.close()
    lines = [json.loads(line) for line in written[0].splitlines()]
    assert (lines[0]["event"], lines[0]["lines"]) == ("dropped", 3)
    assert lines[1]["receipt"] == "3"


class FullDisk(Disk):
    """A disk that can be filled."""

    full = False

    def step(self, name):
        if self.full:
            raise Unavailable("no space left on device")


async def test_full_disk_answers_nobody(home):
    disk = FullDisk()
    async with world.running(home, disk=disk) as gateway:
        assert (await call(gateway, "POST", "/v1/chat/completions", CHAT))[0] == 200
        disk.full = True
        for _ in range(2):
            status, _, error = await error_of(gateway, "POST", "/v1/chat/completions", CHAT)
            assert (status, error["code"]) == (503, "unavailable")
        disk.full = False
        assert (await call(gateway, "POST", "/v1/chat/completions", CHAT))[0] == 200


async def test_disk_that_fills_during_a_stream_ends_it_with_an_error_and_no_end_mark(home):
    disk = FullDisk()
    async with world.running(home, disk=disk, delay_s=0.02) as gateway:
        await call(gateway, "POST", "/v1/chat/completions", CHAT)
        task = asyncio.create_task(call(gateway, "POST", "/v1/chat/completions", {**CHAT, "stream": True}))
        await asyncio.sleep(0.1)
        disk.full = True
        status, _, body = await task
        disk.full = False
    assert status == 200
    assert b"[DONE]" not in body
    assert b'"finish_reason":"stop"' not in body
    last = body.decode().strip().split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "unavailable"


async def test_client_that_leaves_frees_the_engine_and_is_entered(home):
    async with world.running(home, delay_s=0.05) as gateway:
        reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
        body = json.dumps({**CHAT, "stream": True}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {world.SECRET}\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await reader.readuntil(b"delta")
        writer.close()
        await asyncio.sleep(0.2)
        assert (gateway.engine.started, gateway.engine.aborted) == (1, 1)
        assert [entry["status"] for entry in gateway.entries("answer")] == ["aborted"]
    assert json.loads("".join(gateway.lines))["left"] is True


async def test_answer_under_way_survives_the_drain(home):
    async with world.running(home, delay_s=0.02) as gateway:
        task = asyncio.create_task(call(gateway, "POST", "/v1/chat/completions", CHAT))
        await asyncio.sleep(0.1)
        await gateway.server.stop(drain_s=5)
        status, headers, _ = await task
        assert (status, headers["connection"]) == (200, "close")
        with pytest.raises(ConnectionRefusedError):
            await call(gateway, "GET", "/healthz")
