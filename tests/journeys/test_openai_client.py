"""An application changes base_url and nothing else: the official client, kill -9 under load, and the ledger after."""

import asyncio
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from steelyard.ledger_check import verify_log

GATEWAY = Path(__file__).parents[1] / "serve" / "gateway.py"
SPEC = importlib.util.spec_from_file_location("gateway", GATEWAY)
world = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(world)

ASK = {"model": "gpt-4o", "messages": [{"role": "user", "content": "When was the claim filed?"}]}


@pytest.fixture
def home(tmp_path):
    world.furnish(tmp_path)
    return tmp_path


def client(gateway, secret=world.SECRET):
    return openai.OpenAI(base_url=gateway.url, api_key=secret, max_retries=0)


def async_client(port):
    return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=world.SECRET, max_retries=0)


async def test_sync_client_asks_lists_and_retrieves(home):
    async with world.running(home) as gateway:

        def talk():
            with client(gateway) as api:
                answer = api.chat.completions.create(**ASK, max_tokens=1000, temperature=0)
                return answer, [model.id for model in api.models.list()], api.models.retrieve("gpt-4o").id

        answer, listed, retrieved = await asyncio.to_thread(talk)
    assert answer.choices[0].message.content == world.REPLY
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens > 0
    assert (listed, retrieved) == (["gpt-4o"], "gpt-4o")


async def test_sync_client_streams_with_usage(home):
    async with world.running(home) as gateway:

        def talk():
            with client(gateway) as api:
                return list(
                    api.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True})
                )

        events = await asyncio.to_thread(talk)
        (entry,) = gateway.entries("answer")
    text = "".join(event.choices[0].delta.content or "" for event in events if event.choices)
    assert text == world.REPLY
    assert [event.choices[0].finish_reason for event in events if event.choices][-1] == "stop"
    assert events[-1].usage.completion_tokens == entry["completion_tokens"]


async def test_async_client_asks_and_streams(home):
    async with world.running(home) as gateway, async_client(gateway.port) as api:
        answer = await api.chat.completions.create(**ASK)
        assert answer.choices[0].message.content == world.REPLY
        parts = [
            event.choices[0].delta.content or ""
            async for event in await api.chat.completions.create(**ASK, stream=True)
        ]
        assert "".join(parts) == world.REPLY


async def test_async_client_that_stops_early_frees_the_engine(home):
    async with world.running(home, delay_s=0.02) as gateway, async_client(gateway.port) as api:
        stream = await api.chat.completions.create(**ASK, stream=True)
        await anext(aiter(stream))
        await stream.close()
        await asyncio.sleep(0.2)
        assert gateway.engine.aborted == 1


async def test_errors_arrive_as_the_clients_own_exceptions(home):
    async with world.running(home) as gateway:
        (scan,) = gateway.store.list_evidence(predicate_type=world.SCAN)

        def fails(error, secret=world.SECRET, **fields):
            with client(gateway, secret) as api, pytest.raises(error) as caught:
                api.chat.completions.create(**{**ASK, **fields})
            return caught.value

        assert (await asyncio.to_thread(fails, openai.AuthenticationError, "wrong")).code == "invalid_api_key"
        assert (await asyncio.to_thread(fails, openai.NotFoundError, model="gpt-5")).code == "model_not_found"
        assert (await asyncio.to_thread(fails, openai.BadRequestError, n=0)).param == "n"
        world.revoke(home, scan)
        denied = await asyncio.to_thread(fails, openai.PermissionDeniedError)
        assert "scan-clean is unmet: the evidence was revoked" in denied.message
        assert denied.response.headers["x-steelyard-receipt"] == gateway.entries("refusal")[-1]["receipt"]


async def keep_asking(api, stream, receipts):
    """Note the receipt of each answer received to its last byte, until the gateway is gone."""
    while True:
        try:
            raw = await api.chat.completions.with_raw_response.create(**ASK, stream=stream)
            if stream:
                events = [event async for event in raw.parse()]
                if not events or events[-1].choices[0].finish_reason is None:
                    return
        except Exception as error:  # noqa: BLE001 - httpx's own, when the connection dies in the middle
            assert type(error).__module__.partition(".")[0] in {"openai", "httpx", "httpcore"}  # noqa: PT017
            return
        receipts.add(raw.headers["x-steelyard-receipt"])


def launch(home, delay_s):
    argv = [sys.executable, str(GATEWAY), str(home), "A short answer.", "4", delay_s]
    return subprocess.Popen(argv, stdout=subprocess.PIPE)


@pytest.mark.parametrize("answers", [15, 90])
async def test_kill_9_under_load_loses_no_answer_that_was_given(home, answers):
    process, receipts = launch(home, "0.001"), set()
    try:
        port = int(await asyncio.to_thread(process.stdout.readline))
        async with async_client(port) as api, asyncio.timeout(60):
            clients = [asyncio.create_task(keep_asking(api, n % 2 == 0, receipts)) for n in range(8)]
            while len(receipts) < answers:  # noqa: ASYNC110 - polls what eight clients count
                await asyncio.sleep(0.002)
            os.kill(process.pid, signal.SIGKILL)
            await asyncio.gather(*clients)
    finally:
        process.kill()
        process.stdout.close()
        process.wait()
    assert len(receipts) >= answers
    # Durable entries not yet under a checkpoint get one when the ledger is opened next.
    entered = {entry["receipt"] for entry in world.ledger_entries(home) if entry["kind"] == "answer"}
    assert receipts <= entered
    report = verify_log(home / "ledger", ledger_key(home))
    assert (report.is_intact, report.unpublished) == (True, 0)


def ledger_key(home):
    log = world.TileLog.open(
        home / "ledger", origin="steelyard/test", signer=world.load_signer(home / "ledger.pem")
    )
    key = str(log.key)
    log.close()
    return key


async def test_sigterm_publishes_the_checkpoint(home):
    process = launch(home, "0")
    try:
        port = int(await asyncio.to_thread(process.stdout.readline))
        async with async_client(port) as api:
            await api.chat.completions.create(**ASK)
        process.terminate()
        assert await asyncio.to_thread(process.wait, 20) == 0
    finally:
        process.kill()
        process.stdout.close()
        process.wait()
    report = verify_log(home / "ledger", ledger_key(home))
    assert (report.is_intact, report.size, report.unpublished) == (True, 2, 0)  # the decision and the answer
