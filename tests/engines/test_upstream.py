"""The upstream engine against real sockets: a server of the test's own that answers as it is told, byte for byte."""

import asyncio
import contextlib
import json
import ssl

import pytest
import trustme

from steelyard.digest import Digest
from steelyard.engines.upstream import UpstreamEngine
from steelyard.engines.upstream_http import MAX_HEAD_BYTES
from steelyard.engines.upstream_member import FAILURES, Place
from steelyard.errors import Unavailable, WrongUsage
from steelyard.wire.call import Call

DIGEST = Digest("oms-sha256", "5e" * 32)
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}], "future": {"kept": True}}


def whole(text="Hello.", **fields):
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return {"id": "u", "object": "chat.completion", "choices": [choice], "usage": USAGE, **fields}


def events(*texts, end=b"data: [DONE]\n\n"):
    def event(value):
        return b"data: " + json.dumps(value).encode() + b"\n\n"

    parts = [
        event({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})
        for text in texts
    ]
    parts.append(event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}))
    return b"".join([*parts, event({"choices": [], "usage": USAGE}), end])


def reply(body, status="200 OK", kind="application/json", extra=""):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(data)}\r\n{extra}\r\n"
    return head.encode() + data


def stream(data, extra=""):
    head = f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n{extra}\r\n"
    return head.encode() + b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data)


class Server:
    """Answers each POST with the next of `answers` (the last one again and again); GET with an empty list of models.

    An answer is bytes, or a coroutine function that is given the writer.
    """

    def __init__(self, *answers):
        self.answers = list(answers)
        self.requests = []
        self.connections = 0
        self.gone = 0
        self.is_up = True

    async def serve(self, reader, writer):
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                fields = {
                    k.lower(): v.strip()
                    for k, _, v in (line.partition(":") for line in head.splitlines()[1:])
                }
                body = await reader.readexactly(int(fields.get("content-length", 0)))
                if head.startswith("GET"):
                    writer.write(reply({"data": []}) if self.is_up else reply({}, "500 No"))
                    continue
                self.requests.append((head.split(" ")[1], fields, json.loads(body)))
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                if callable(answer):
                    await answer(writer)
                else:
                    writer.write(answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            self.gone += 1
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def serving(*servers, tls=None, **fields):
    listeners = [await asyncio.start_server(s.serve, "127.0.0.1", 0, ssl=tls, limit=1 << 20) for s in servers]
    ports = [listener.sockets[0].getsockname()[1] for listener in listeners]
    places = [Place("m", "localhost" if tls else "127.0.0.1", port, "there", **fields) for port in ports]
    engine = UpstreamEngine(DIGEST, places)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.close()
        for listener in listeners:
            listener.close()


def call(kind="chat", **fields):
    return Call(kind, "gpt-4o", {**CHAT, **fields}, bool(fields.get("stream")))


async def said(engine, **fields):
    texts, usage = [], None
    async for chunks in engine.stream(call(**fields)):
        for chunk in chunks:
            texts += [choice["delta"].get("content", "") for choice in chunk["choices"]]
            usage = chunk.get("usage") or usage
    return "".join(texts), usage


async def test_a_whole_answer_and_what_the_server_was_asked():
    server = Server(reply(whole()))
    async with serving(server, api_key="theirs", prefix="/base") as engine:
        answer = await engine.ask(call(stream_options={"include_usage": True}))
    assert answer["choices"][0]["message"]["content"] == "Hello."
    path, fields, body = server.requests[0]
    assert path == "/base/v1/chat/completions"
    assert (body["model"], body["stream"], body["future"]) == ("there", False, {"kept": True})
    assert "stream_options" not in body
    assert (fields["authorization"], fields["accept-encoding"]) == ("Bearer theirs", "identity")


async def test_a_streamed_answer_asks_for_its_usage():
    server = Server(stream(events("Hel", "lo.")))
    async with serving(server) as engine:
        assert await said(engine) == ("Hello.", USAGE)
        assert await said(engine) == ("Hello.", USAGE)
    assert server.requests[0][2]["stream_options"] == {"include_usage": True}
    assert server.connections == 1  # for the check at the start and both answers


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
async def test_a_stream_cut_anywhere_is_the_same(size, newline):
    data = b": a comment\n\nevent: x\nid: 4\n" + events("Grüße", " 世界")
    data = data.replace(b"\n", newline)

    async def drip(writer):
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        for start in range(0, len(data), size):
            part = data[start : start + size]
            writer.write(b"%x\r\n%b\r\n" % (len(part), part))
            await asyncio.sleep(0)
        writer.write(b"0\r\n\r\n")

    async with serving(Server(drip)) as engine:
        assert await said(engine) == ("Grüße 世界", USAGE)


@pytest.mark.parametrize("where", ["each", "last", "behind"])
async def test_the_count_comes_once_and_last_wherever_the_server_puts_it(where):
    def chunk(text, is_last=False):
        choice = {"index": 0, "delta": {"content": text}, "finish_reason": "stop" if is_last else None}
        counts = where == "each" or (where == "last" and is_last)
        usage = {**USAGE, "completion_tokens": 2 if is_last else 1} if counts else None
        return b"data: " + json.dumps({"choices": [choice], "usage": usage}).encode() + b"\n\n"

    data = chunk("Hel") + chunk("lo.", is_last=True)
    if where == "behind":
        data += b"data: " + json.dumps({"choices": [], "usage": USAGE}).encode() + b"\n\n"
    async with serving(Server(stream(data + b"data: [DONE]\n\n"))) as engine:
        lists = [chunks async for chunks in engine.stream(call())]
    said_ = [chunk for chunks in lists for chunk in chunks]
    assert [bool(chunk.get("usage")) for chunk in said_] == [False] * (len(said_) - 1) + [True]
    assert said_[-1]["usage"] == USAGE
    assert "".join(c["delta"]["content"] for chunk in said_ for c in chunk["choices"]) == "Hello."


async def test_a_stream_without_a_count_is_no_whole_answer():
    data = events("Hel", "lo.").replace(b'"usage"', b'"other"')
    async with serving(Server(stream(data))) as engine:
        with pytest.raises(Unavailable, match="usage"):
            await said(engine)


async def test_a_stream_that_stalls_ends_after_its_own_limit():
    async def stalls(writer):
        part = events("Hel").split(b"\n\n")[0] + b"\n\n"
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        writer.write(head + b"%x\r\n%b\r\n" % (len(part), part))
        await asyncio.sleep(30)

    async with serving(Server(stalls), chunk_s=0.2) as engine:
        chunks = engine.stream(call())
        await anext(chunks)
        with pytest.raises(Unavailable, match="in time"):
            await asyncio.wait_for(anext(chunks), 3)


async def test_leaving_a_stream_closes_the_connection_so_the_server_stops():
    async def slow(writer):
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        for _ in range(1000):
            part = events("x").split(b"\n\n")[0] + b"\n\n"
            writer.write(b"%x\r\n%b\r\n" % (len(part), part))
            await writer.drain()
            await asyncio.sleep(0.01)

    server = Server(slow)
    async with serving(server) as engine:
        chunks = engine.stream(call())
        await anext(chunks)
        await chunks.aclose()
        for _ in range(50):
            await asyncio.sleep(0.02)
            if server.gone:
                break
        assert server.gone == 1


async def test_cancelling_a_whole_answer_closes_the_connection():
    async def never(writer):
        await asyncio.sleep(30)

    server = Server(never)
    async with serving(server) as engine:
        task = asyncio.create_task(engine.ask(call()))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not engine._members[0].busy


@pytest.mark.parametrize("status", ["400 Bad", "404 No", "422 What"])
async def test_the_callers_fault_is_told_in_the_servers_words(status):
    async with serving(Server(reply({"error": {"message": "the prompt is too long"}}, status))) as engine:
        with pytest.raises(WrongUsage, match="the prompt is too long"):
            await engine.ask(call())
        with pytest.raises(WrongUsage, match="too long"):
            await said(engine)


@pytest.mark.parametrize("status", ["401 No", "403 No", "500 Oops", "302 Found"])
async def test_the_servers_fault_is_unavailable_and_its_words_are_kept_back(status):
    async with serving(Server(reply({"error": {"message": "secret path"}}, status))) as engine:
        with pytest.raises(Unavailable) as caught:
            await engine.ask(call())
        assert "secret" not in caught.value.message


async def test_a_busy_server_is_asked_again_when_it_says_so():
    server = Server(reply({}, "429 Slow down", extra="retry-after: 0.05\r\n"), reply(whole()))
    async with serving(server) as engine:
        assert (await engine.ask(call()))["usage"] == USAGE
    server = Server(reply({}, "503 Later", extra="retry-after: 3600\r\n"))
    async with serving(server) as engine:
        with pytest.raises(Unavailable):
            await engine.ask(call())
    assert len(server.requests) == 1


async def test_another_member_answers_when_one_fails_before_the_first_chunk():
    bad, good = Server(reply({}, "500 Oops")), Server(reply(whole()))
    async with serving(bad, good) as engine:
        for _ in range(6):
            assert (await engine.ask(call()))["usage"] == USAGE
    assert len(good.requests) == 6


async def test_nobody_else_is_asked_after_the_first_chunk():
    async def breaks(writer):
        part = events("Hel").split(b"\n\n")[0] + b"\n\n"
        head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        writer.write(head + b"%x\r\n%b\r\n" % (len(part), part))
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.transport.abort()

    servers = Server(breaks), Server(breaks)
    async with serving(*servers) as engine:
        chunks = engine.stream(call())
        await anext(chunks)
        with pytest.raises(Unavailable):
            await anext(chunks)
        assert sum(len(server.requests) for server in servers) == 1


async def test_a_member_that_keeps_failing_is_left_alone():
    bad, good = Server(reply({}, "500 Oops")), Server(reply(whole()))
    async with serving(bad, good) as engine:
        for _ in range(10 * FAILURES):
            await engine.ask(call())
    assert len(bad.requests) <= FAILURES + 1


async def test_a_kept_line_that_the_server_closed_is_no_failure():
    async def once(writer):
        writer.write(reply(whole()))
        await writer.drain()
        writer.close()

    server = Server(once)
    async with serving(server) as engine:
        for _ in range(5):
            assert (await engine.ask(call()))["usage"] == USAGE
            await asyncio.sleep(0.01)


async def test_work_goes_to_the_member_with_the_least():
    async def slow(writer):
        await asyncio.sleep(0.2)
        writer.write(reply(whole()))

    servers = Server(slow), Server(slow)
    async with serving(*servers) as engine:
        await asyncio.gather(*[engine.ask(call()) for _ in range(8)])
    assert [len(server.requests) for server in servers] == [4, 4]


async def test_an_engine_without_any_server_does_not_start():
    engine = UpstreamEngine(DIGEST, [Place("m", "127.0.0.1", 9, "there")])
    with pytest.raises(Unavailable):
        await engine.start()


async def test_tls_is_checked_against_the_given_authority(tmp_path):
    authority, stranger = trustme.CA(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    stranger.cert_pem.write_to_path(tmp_path / "other.pem")
    async with serving(
        Server(reply(whole())), tls=context, is_tls=True, ca_file=tmp_path / "ca.pem"
    ) as engine:
        assert (await engine.ask(call()))["usage"] == USAGE
    with pytest.raises(Unavailable):
        async with serving(Server(reply(whole())), tls=context, is_tls=True, ca_file=tmp_path / "other.pem"):
            pass


async def test_embeddings_and_texts():
    vector = {"object": "list", "data": [{"index": 0, "embedding": [0.5]}], "usage": {"prompt_tokens": 1}}
    async with serving(Server(reply(vector))) as engine:
        assert (await engine.ask(Call("embedding", "m", {"input": "a"})))["data"][0]["embedding"] == [0.5]
    text = {"choices": [{"index": 0, "text": "t", "finish_reason": "stop"}], "usage": USAGE}
    server = Server(reply(text))
    async with serving(server) as engine:
        assert (await engine.ask(Call("completion", "m", {"prompt": "a"})))["choices"][0]["text"] == "t"
    assert server.requests[0][0] == "/v1/completions"


async def test_tokens_are_counted_by_the_server_that_can():
    async with serving(Server(reply({"count": 7, "tokens": []}))) as engine:
        assert await engine.count(call()) == 7
    async with serving(Server(reply({"tokens": [1]}))) as engine:
        with pytest.raises(WrongUsage):
            await engine.count(call())


# Attacks by a server.


@pytest.mark.parametrize(
    "answer",
    [
        reply(b"<html>hello</html>", kind="text/html"),
        reply(b'{"choices": []}'),
        reply(whole(usage=None)),
        reply({"choices": [{"index": 0}], "usage": USAGE}),
        reply({"choices": [3], "usage": USAGE}),
        reply([1]),
        reply(b"\xff\xfe"),
        reply(b"\x1f\x8b" + bytes(50), extra="content-encoding: gzip\r\n"),
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\ncontent-length: 20\r\n\r\n" + bytes(20),
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\nx",
        b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999999\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * (2 * MAX_HEAD_BYTES + (1 << 20)),
        b"HTTP/1.1 100 Continue\r\n\r\n" * 60_000,
        reply({}, "301 Moved", extra="location: http://127.0.0.1:1/\r\n"),
    ],
    ids=lambda answer: answer[:60].decode("latin-1"),
)
async def test_what_is_no_answer_is_unavailable(answer):
    async with serving(Server(answer), answer_s=0.5) as engine:
        with pytest.raises(Unavailable):
            await asyncio.wait_for(engine.ask(call()), 5)


async def test_a_second_answer_to_one_request_never_reaches_the_next():
    smuggled = reply(whole("smuggled"))
    async with serving(Server(reply(whole("first")) + smuggled, reply(whole("second")))) as engine:
        for _ in range(2):
            with contextlib.suppress(Unavailable):
                answer = await engine.ask(call())
                assert answer["choices"][0]["message"]["content"] != "smuggled"


@pytest.mark.parametrize(
    "data",
    [
        b"data: {}\n\n",
        b"data: [1]\n\n",
        b"data: nonsense\n\n",
        b'data: {"choices": 3}\n\n',
        b'data: {"choices": [{"index": 0, "delta": 3}]}\n\n',
        b'data: {"choices": [], "usage": {"prompt_tokens": "many"}}\n\n',
        b'data: {"error": {"message": "secret"}}\n\n',
        b"data: " + b"x" * (2 << 20) + b"\n\n",
    ],
    ids=lambda data: data[:40].decode(),
)
async def test_an_event_that_is_no_chunk_breaks_the_stream(data):
    async with serving(Server(stream(data))) as engine:
        with pytest.raises(Unavailable) as caught:
            await said(engine)
        assert "secret" not in caught.value.message


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_body_shorter_than_it_says_is_no_answer(is_streamed):
    async def short(writer):
        kind, data = ("text/event-stream", events("Hel")) if is_streamed else ("application/json", b"{}")
        head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(data) + 9}\r\n\r\n"
        writer.write(head.encode() + data.replace(b"data: [DONE]\n\n", b""))
        await writer.drain()
        writer.close()

    async with serving(Server(short)) as engine:
        with pytest.raises(Unavailable, match="closed"):
            await (said(engine) if is_streamed else engine.ask(call()))


async def test_a_body_without_a_length_is_never_known_to_be_whole():
    async def until_close(writer):
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n" + json.dumps(whole()).encode()
        )
        await writer.drain()
        writer.close()

    async with serving(Server(until_close)) as engine:
        with pytest.raises(Unavailable):
            await engine.ask(call())


async def test_an_answer_in_drips_ends_after_its_limit():
    async def drips(writer):
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")
        for _ in range(1000):
            writer.write(b" ")
            await asyncio.sleep(0.02)

    async with serving(Server(drips), answer_s=0.3) as engine:
        with pytest.raises(Unavailable, match="in time"):
            await asyncio.wait_for(engine.ask(call()), 3)


async def test_silence_ends_after_its_limit():
    async def silent(writer):
        await asyncio.sleep(30)

    async with serving(Server(silent), answer_s=0.3) as engine:
        with pytest.raises(Unavailable):
            await asyncio.wait_for(engine.ask(call()), 3)


async def test_a_consumer_that_is_behind_stops_the_reading():
    async def flood(writer):
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        part = b"".join([events("x" * 50).split(b"\n\n")[0] + b"\n\n"] * 1000)
        for _ in range(400):
            writer.write(b"%x\r\n%b\r\n" % (len(part), part))
            await writer.drain()

    async with serving(Server(flood)) as engine:
        chunks = engine.stream(call())
        await anext(chunks)
        await asyncio.sleep(0.5)
        (line,) = [line for line in engine._members[0]._lines if line.is_busy]
        assert line._waiting_bytes < 4 << 20
        await chunks.aclose()
