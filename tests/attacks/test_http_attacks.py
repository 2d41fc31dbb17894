"""Bytes no honest client sends: each is refused or bounded, starts no engine, and leaves the gateway healthy."""

import asyncio
import contextlib
import importlib.util
import json
import random
import re
import socket
import time
from pathlib import Path

import pytest

from steelyard.serve.hub import Limits

SPEC = importlib.util.spec_from_file_location("gateway", Path(__file__).parents[1] / "serve" / "gateway.py")
world = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(world)

BODY = json.dumps({"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}).encode()
KEY = f"Authorization: Bearer {world.SECRET}\r\n".encode()
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n" + KEY
GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
SMUGGLED = b"GET /v1/models HTTP/1.1\r\nHost: x\r\n" + KEY + b"\r\n"
WHOLE = (b"%x" % len(BODY), BODY)
CODED = b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
SMALL = Limits(
    head_bytes=4096, headers=20, target_bytes=512, body_bytes=8192, pipeline=4, connections=8,
    head_s=1.5, body_s=1.5, idle_s=2.0, write_s=1.5, linger_s=0.1, ignored_body_bytes=1024,
)  # fmt: skip


@pytest.fixture
def home(tmp_path):
    world.furnish(tmp_path)
    return tmp_path


def sized(body=BODY):
    return POST + b"Content-Length: %d\r\n\r\n" % len(body) + body


def chunked(*lines):
    return POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"\r\n".join(lines)


async def exchange(gateway, *parts, pause_s=0.0, eof=False, limit_s=3.0):
    """Send `parts`, read until the server closes (or nothing comes any more); everything that came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", gateway.port)
    received = bytearray()

    async def send():
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_s)
        if eof:
            writer.write_eof()

    sending = asyncio.create_task(send())
    try:
        async with asyncio.timeout(limit_s):
            while data := await reader.read(65536):
                received += data
    except (TimeoutError, ConnectionError):
        pass
    finally:
        sending.cancel()
        with contextlib.suppress(asyncio.CancelledError, ConnectionError):
            await sending
        writer.close()
    return bytes(received)


def statuses(received):
    return [int(code) for code in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)]


async def is_healthy(gateway):
    received = await exchange(gateway, GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    return statuses(received) == [200] and not gateway.engine.started


ATTACKS = {
    "smuggling: length before coding": (POST + b"Content-Length: 4\r\n" + CODED + SMUGGLED, 400),
    "smuggling: coding before length": (POST + CODED[:28] + b"Content-Length: 4\r\n\r\n0\r\n\r\n" + SMUGGLED, 400),
    "smuggling: two lengths": (POST + b"Content-Length: 4\r\nContent-Length: 200\r\n\r\nabcd" + SMUGGLED, 400),
    "smuggling: two equal lengths": (POST + b"Content-Length: 4\r\nContent-Length: 4\r\n\r\nabcd", 400),
    "smuggling: list of lengths": (POST + b"Content-Length: 4, 4\r\n\r\nabcd", 400),
    "smuggling: signed length": (POST + b"Content-Length: +4\r\n\r\nabcd", 400),
    "smuggling: hexadecimal length": (POST + b"Content-Length: 0x4\r\n\r\nabcd", 400),
    "smuggling: coding with a vertical tab": (POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n" + SMUGGLED, 400),
    "smuggling: space before the colon": (POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + SMUGGLED, 400),
    "smuggling: unknown coding": (POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", (400, 501)),
    "smuggling: gzip, chunked": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    "smuggling: chunked twice": (POST + b"Transfer-Encoding: chunked\r\n" * 2 + b"\r\n0\r\n\r\n", 400),
    "smuggling: chunked in HTTP/1.0": (chunked(*WHOLE, b"0", b"", b"").replace(b"HTTP/1.1", b"HTTP/1.0", 1), 400),
    "smuggling: folded header": (POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n", 400),
    "smuggling: bare LF in the head": (POST.replace(b"\r\n", b"\n") + b"Content-Length: 0\n\n", 400),
    "smuggling: bare CR in a value": (POST + b"X: a\rContent-Length: 4\r\n\r\n", 400),
    "smuggling: bare LF between chunks": (POST + b"Transfer-Encoding: chunked\r\n\r\n2\nab\n0\n\n", 400),
    "chunk size: not hexadecimal": (chunked(b"zz", b"ab", b"0", b"", b""), 400),
    "chunk size: negative": (chunked(b"-1", b"ab", b"0", b"", b""), 400),
    "chunk size: overflow": (chunked(b"f" * 17, b"ab"), 400),
    "chunk size: space after it": (chunked(b"2 ", b"ab", b"0", b"", b""), 400),
    "chunk: longer than its size": (chunked(b"2", b"abcdef", b"0", b"", b""), 400),
    "chunk: trailers": (chunked(*WHOLE, b"0", b"X-Trailer: x", b"", b""), 400),
    "chunk: body too long": (chunked(b"1000", b"x" * 4096, b"1001", b"x" * 4097), 413),
    "length: huge and nothing sent": (POST + b"Content-Length: 99999999\r\n\r\n", 413),
    "length: overflow": (POST + b"Content-Length: 99999999999999999999999\r\n\r\n", 400),
    "length: one past the limit": (POST + b"Content-Length: 8193\r\n\r\n", 413),
    "host: none": (b"GET /healthz HTTP/1.1\r\n\r\n", 400),
    "host: two": (b"GET /healthz HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    "key: two": (POST + b"Authorization: Bearer other\r\nContent-Length: 2\r\n\r\n{}", 400),
    "head: value too long": (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 5000 + b"\r\n\r\n", 431),
    "head: value without end": (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 600_000, 431),
    "head: too many fields": (GET[:-2] + b"".join(b"X%d: a\r\n" % n for n in range(20)) + b"\r\n", 431),
    "head: null in a value": (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: a\x00b\r\n\r\n", 400),
    "head: null in a name": (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX\x00: a\r\n\r\n", 400),
    "head: empty name": (b"GET /healthz HTTP/1.1\r\nHost: x\r\n: a\r\n\r\n", 400),
    "target: too long": (b"GET /" + b"a" * 600 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
    "target: absolute": (b"GET http://other/healthz HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "target: not ASCII": (b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "target: null": (b"GET /healthz\x00 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "target: encoded slash and dots": (b"GET /v1%2f..%2fhealthz HTTP/1.1\r\nHost: x\r\n\r\n", 404),
    "method: CONNECT": (b"CONNECT other:443 HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "method: null": (b"G\x00T / HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "version: HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "version: HTTP/2.0": (b"GET /healthz HTTP/2.0\r\nHost: x\r\n\r\n", 505),
    "version: TLS": (bytes.fromhex("160301020001000001fc0303") + b"\0" * 64, 400),
    "expect: unknown": (POST + b"Expect: magic\r\nContent-Length: 2\r\n\r\n{}", 417),
    "body: not UTF-8": (sized(b'{"model":"\xff\xfe"}'), 400),
    "body: deep JSON": (sized(b"[" * 8000), 400),
    "body: deep JSON inside": (sized(BODY[:-1] + b',"x":' + b'{"a":' * 900 + b"1" + b"}" * 900 + b"}"), 400),
    "body: null bytes": (sized(b"\x00" * 64), 400),
    "body: repeated key": (sized(BODY[:-1] + b',"model":"gpt-5"}'), 400),
    "body: gzip": (sized(bytes.fromhex("1f8b08000000000000ff") + b"\0" * 32), 400),
    "body: empty": (sized(b""), 400),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
async def test_attack_gets_its_status_and_nothing_behind_it_is_answered(home, name):
    data, status = ATTACKS[name]
    async with world.running(home, limits=SMALL) as gateway:
        received = await exchange(gateway, data)
        assert len(statuses(received)) == 1
        assert statuses(received)[0] in (status if isinstance(status, tuple) else (status,))
        _, _, body = received.partition(b"\r\n\r\n")
        assert json.loads(body)["error"]["message"]
        assert b"Traceback" not in received
        assert await is_healthy(gateway)


@pytest.mark.parametrize("name", [name for name in ATTACKS if "smuggling" in name])
async def test_smuggled_request_split_at_every_read_is_not_answered(home, name):
    data, _ = ATTACKS[name]
    async with world.running(home, limits=SMALL) as gateway:
        middle = len(data) // 2
        received = await exchange(
            gateway, data[:middle], data[middle : middle + 1], data[middle + 1 :], pause_s=0.01
        )
        assert len(statuses(received)) == 1
        assert statuses(received)[0] >= 400
        assert await is_healthy(gateway)


async def test_sizes_at_their_limits_are_accepted(home):
    padding = BODY[:-1] + b',"x":"' + b"a" * (8192 - len(BODY) - 7) + b'"}'
    many = b"".join(b"X%d: a\r\n" % n for n in range(16))
    async with world.running(home, limits=SMALL) as gateway:
        assert len(padding) == 8192
        received = await exchange(
            gateway, POST + many + b"Connection: close\r\n" + sized(padding)[len(POST) :]
        )
        assert statuses(received) == [200]


async def test_pipeline_is_answered_in_order_even_where_one_is_broken(home):
    post = sized()
    async with world.running(home, limits=SMALL, delay_s=0.01) as gateway:
        received = await exchange(gateway, GET + post + SMUGGLED + b"BROKEN\r\n\r\n" + GET)
        assert statuses(received) == [200, 200, 200, 400]
        assert (
            received.index(b'"status":"ok"')
            < received.index(b"chat.completion")
            < received.index(b'"object":"list"')
        )


async def test_flood_in_a_pipeline_is_cut_off(home):
    async with world.running(home, limits=SMALL, delay_s=0.05) as gateway:
        received = await exchange(gateway, sized() + GET * 500)
        assert statuses(received)[0] == 200
        assert statuses(received)[-1] == 400
        assert len(statuses(received)) <= 2 + 4 * SMALL.pipeline


async def test_request_after_connection_close_is_not_answered(home):
    async with world.running(home, limits=SMALL) as gateway:
        first = GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
        assert statuses(await exchange(gateway, first + GET)) == [200]


async def test_upgrade_is_ignored_and_what_follows_is_not_parsed(home):
    async with world.running(home, limits=SMALL) as gateway:
        asks = b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
        assert statuses(await exchange(gateway, asks + SMUGGLED)) == [200]


async def test_no_key_no_body_read(home):
    async with world.running(home, limits=SMALL) as gateway:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 8000\r\n\r\n"
        assert statuses(await exchange(gateway, head)) == [401]
        small = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}"
        assert statuses(await exchange(gateway, small + GET)) == [401, 200]


async def test_answer_before_the_body_reaches_a_client_that_sends_first_and_reads_later(home):
    async with world.running(home, limits=SMALL) as gateway:

        def talk():
            received = b""
            with socket.create_connection(("127.0.0.1", gateway.port), timeout=5) as sock:
                sock.sendall(POST + b"Content-Length: 9999999\r\n\r\n")
                for _ in range(8):
                    time.sleep(0.005)
                    sock.sendall(b"x" * 65536)
                while data := sock.recv(65536):  # a reset connection raises here
                    received += data
            return received

        assert statuses(await asyncio.to_thread(talk)) == [413]


async def test_expect_100_continue_is_answered_only_when_the_body_is_wanted(home):
    async with world.running(home, limits=SMALL) as gateway:
        head = POST + b"Expect: 100-continue\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(BODY)
        assert statuses(await exchange(gateway, head, BODY, pause_s=0.05)) == [100, 200]
        stranger = head.replace(world.SECRET.encode(), b"wrong").replace(b"Length: ", b"Length: 9")
        assert statuses(await exchange(gateway, stranger)) == [401]


@pytest.mark.parametrize(
    ("first", "rest", "status"),
    [
        (b"", b"", None),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: ", b"a", 408),
        (POST + b"Content-Length: 60\r\n\r\n", b"x", 408),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", 408),
        (b"", b"\r\n", None),
    ],
    ids=["silence", "slow head", "slow body", "slow chunks", "empty lines"],
)
async def test_slow_sender_is_cut_off(home, first, rest, status):
    async with world.running(home, limits=SMALL) as gateway:
        async with asyncio.timeout(2.5):
            received = await exchange(gateway, first, *[rest] * 12, pause_s=0.08)
        assert statuses(received) == ([status] if status else [])
        assert await is_healthy(gateway)


async def test_idle_connection_is_closed_after_its_time(home):
    async with world.running(home, limits=SMALL) as gateway:
        async with asyncio.timeout(2.5):
            assert statuses(await exchange(gateway, GET)) == [200]


async def test_long_answer_does_not_count_as_idle(home):
    async with world.running(home, limits=SMALL, delay_s=0.07) as gateway:
        assert statuses(await exchange(gateway, sized(), GET, limit_s=5)) == [200, 200]


async def test_client_that_does_not_read_stops_the_engine(home):
    long = "x" * 4_000_000
    async with world.running(home, limits=SMALL, reply=long, chunk_chars=4000) as gateway:
        body = BODY[:-1] + b',"stream":true}'
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, ("127.0.0.1", gateway.port))
        await loop.sock_sendall(sock, sized(body))
        async with asyncio.timeout(5):
            while not gateway.engine.aborted:  # noqa: ASYNC110 - the engine counts, it does not signal
                await asyncio.sleep(0.05)
        sock.close()
        assert [entry["status"] for entry in gateway.entries("answer")] == ["aborted"]


async def test_more_connections_than_allowed_are_told_and_closed(home):
    async with world.running(home, limits=SMALL) as gateway:
        held = [await asyncio.open_connection("127.0.0.1", gateway.port) for _ in range(SMALL.connections)]
        assert statuses(await exchange(gateway, GET)) == [503]
        for _, writer in held:
            writer.close()
        await asyncio.sleep(0.1)
        assert await is_healthy(gateway)


async def test_half_closed_client_has_left(home):
    async with world.running(home, limits=SMALL, delay_s=0.05) as gateway:
        assert statuses(await exchange(gateway, sized(), pause_s=0.1, eof=True)) == []
        await asyncio.sleep(0.1)
        assert gateway.engine.aborted == 1


async def test_mutated_requests_never_break_the_server(home, caplog):
    rng = random.Random(20261122)
    samples = [sized(), chunked(b"%x" % len(BODY), BODY, b"0", b"", b""), GET * 3, SMUGGLED]
    async with world.running(home, limits=SMALL) as gateway:
        for _ in range(300):
            data = bytearray(rng.choice(samples))
            for _ in range(rng.randrange(1, 4)):
                place = rng.randrange(len(data))
                data[place : place + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
            received = await exchange(gateway, bytes(data), eof=True, limit_s=1)
            assert 500 not in statuses(received)
    assert "failed" not in caplog.text


async def test_header_injection_through_the_model_name_is_impossible(home):
    body = json.dumps(
        {"model": "x\r\nSet-Cookie: a=b", "messages": [{"role": "user", "content": "hi"}]}
    ).encode()
    async with world.running(home, limits=SMALL) as gateway:
        received = await exchange(gateway, sized(body))
        head, _, _ = received.partition(b"\r\n\r\n")
        assert statuses(received) == [404]
        assert b"set-cookie" not in head.lower()
