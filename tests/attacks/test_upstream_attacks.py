"""Attacks on model identity: engines that are not what a URL says, and words about them that do not hold."""

import asyncio
import contextlib
import json
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest

from steelyard.cli.node import Server as NodeServer
from steelyard.digest import Digest
from steelyard.engines.upstream import UpstreamEngine
from steelyard.engines.upstream_identity import Trust
from steelyard.engines.upstream_member import Dialler, Place
from steelyard.errors import Malformed, Unavailable, Untrusted
from steelyard.evidence import Evidence, Statement, Subject, attest
from steelyard.keys import generate
from steelyard.manifest import manifest_of
from steelyard.node import MAX_AGE, MAX_SKEW, Node, check

NODE, STRANGER = generate("ed25519"), generate("ed25519")
NONCE = "0123456789abcdef" * 2
# An engine as far as a node can see one: it listens, and has its arguments' files open.
ENGINE = """
import socket, sys
files = [open(path, "rb") for path in sys.argv[1:]]
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
while True:
    peer, _ = listener.accept()
    peer.recv(65536)
    body = b'{"data": []}'
    peer.sendall(b"HTTP/1.1 200 OK\\r\\nconnection: close\\r\\ncontent-length: %d\\r\\n\\r\\n%b" % (len(body), body))
    peer.close()
"""


def clock():
    return datetime.now(UTC)


def new_nonce():
    return NONCE


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """For tests that only read it."""
    return model_in(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def own(tmp_path):
    return model_in(tmp_path)


def model_in(parent):
    folder = parent / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    time.sleep(1.1)  # the kernel tells a process's start to the second
    return folder


@contextlib.contextmanager
def engine_with(*paths):
    process = subprocess.Popen(
        [sys.executable, "-c", ENGINE, *map(str, paths)], stdout=subprocess.PIPE, text=True
    )
    try:
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def node_of(folder, port, signer=NODE, **fields):
    return Node("gpu-1", manifest_of(folder), port, signer, clock=clock, **fields)


def checked(evidence, folder, port, *, keys=(NODE.public,), nonce=NONCE, after=timedelta()):
    return check(evidence, keys, str(manifest_of(folder).digest), port, nonce, clock() + after)


def test_what_holds(weights):
    with engine_with(weights / "model.safetensors") as port:
        evidence = node_of(weights, port).state(NONCE)
        process = checked(Evidence.parse(evidence.to_json()), weights, port)
    assert evidence.statement.predicate["method"] == "mapped"
    assert process.pid > 1


def test_an_engine_with_other_weights(weights, tmp_path):
    (tmp_path / "other.safetensors").write_bytes(b"poisoned")
    with engine_with(tmp_path / "other.safetensors") as port, pytest.raises(Untrusted, match="not of model"):
        node_of(weights, port, directory=weights).look()


def test_an_adapter_beside_the_right_weights(weights, tmp_path):
    (tmp_path / "adapter.safetensors").write_bytes(b"lora")
    with (
        engine_with(weights / "model.safetensors", tmp_path / "adapter.safetensors") as port,
        pytest.raises(Untrusted, match=r"adapter\.safetensors"),
    ):
        node_of(weights, port).look()


def test_weights_replaced_after_the_engine_began(own):
    with engine_with(own / "model.safetensors") as port:
        node = node_of(own, port)
        node.look()
        time.sleep(1.1)
        (own / "model.safetensors").chmod(0o600)  # any change of the file moves its change time
        with pytest.raises(Untrusted, match="changed after the engine began"):
            node.look()


def test_weights_under_a_name_that_is_none(weights, tmp_path):
    (tmp_path / "poisoned").write_bytes(b"poisoned")
    with engine_with(tmp_path / "poisoned") as port, pytest.raises(Unavailable, match="says too little"):
        node_of(weights, port).look()


def test_weights_unlinked_while_open(weights, tmp_path):
    poisoned = tmp_path / "model.safetensors"
    poisoned.write_bytes(b"poisoned")
    with engine_with(poisoned) as port:
        poisoned.unlink()
        with pytest.raises(Untrusted, match="not of model"):
            node_of(weights, port).look()


def test_an_engine_that_holds_nothing_needs_its_directory(own, tmp_path):
    with engine_with() as port:
        with pytest.raises(Unavailable, match="--directory"):
            node_of(own, port).look()
        assert node_of(own, port, directory=own).look().method == "directory"
        model = manifest_of(own)
        (own / "config.json").write_text('{"a": 1}')
        with pytest.raises(Untrusted, match=r"config\.json"):
            Node("n", model, port, NODE, clock=clock, directory=own).look()


def test_a_port_where_nobody_listens(weights):
    with engine_with() as port:
        pass
    with pytest.raises(Unavailable, match="listens"):
        node_of(weights, port).look()


def test_words_that_do_not_hold(weights, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.safetensors").write_bytes(b"other")
    with engine_with(weights / "model.safetensors") as port:
        good = node_of(weights, port).state(NONCE)
        forged = node_of(weights, port, signer=STRANGER).state(NONCE)
    with pytest.raises(Untrusted, match="no signature"):
        checked(forged, weights, port)
    with pytest.raises(Untrusted, match="another model"):
        checked(good, other, port)
    with pytest.raises(Untrusted, match="port"):
        checked(good, weights, port + 1)
    with pytest.raises(Untrusted, match="not the answer"):  # replayed, for example after a restart
        checked(good, weights, port, nonce="f" * 32)
    checked(good, weights, port, after=MAX_AGE - timedelta(seconds=2))
    for after in (MAX_AGE + timedelta(seconds=2), -MAX_SKEW - timedelta(seconds=2)):
        with pytest.raises(Untrusted, match="age"):
            checked(good, weights, port, after=after)


@pytest.mark.parametrize("field", ["pid", "started", "issued_at", "boot"])
@pytest.mark.parametrize("value", [None, "x", [], {}])
def test_a_signed_word_with_a_broken_field(field, value, weights):
    with engine_with(weights / "model.safetensors") as port:
        said = dict(node_of(weights, port).state(NONCE).statement.predicate)
    del said["boot"]
    if field != "boot":
        said |= {"boot": "b", field: value}
    digest = manifest_of(weights).digest
    evidence = attest(Statement((Subject("m", digest.hex),), "urn:steelyard:node:v1", said), NODE)
    with pytest.raises(Malformed):
        checked(evidence, weights, port)


def test_another_kind_of_statement_by_a_nodes_key(weights):
    digest = manifest_of(weights).digest
    said = {"model": str(digest), "port": 1, "nonce": NONCE}
    evidence = attest(Statement((Subject("m", digest.hex),), "urn:steelyard:scan:v1", said), NODE)
    with pytest.raises(Untrusted, match="not a node"):
        checked(evidence, weights, 1)


# The whole way: an engine, its node, and the gateway's engine that asks it.


@contextlib.asynccontextmanager
async def watched(folder, port, *, signer=NODE, keys=(NODE.public,), digest=None):
    server = NodeServer(node_of(folder, port, signer=signer))
    node_port = await server.start("127.0.0.1", 0)
    node = Place("n", "127.0.0.1", node_port, "")
    place = Place("u", "127.0.0.1", port, "m", node=node)
    counter = iter(range(1 << 20))
    trust = Trust(lambda: keys, clock, lambda: f"{next(counter):032x}")
    engine = UpstreamEngine(digest or manifest_of(folder).digest, [place], trust=trust)
    try:
        yield engine
    finally:
        await engine.close()
        await server.close()


async def test_an_engine_is_asserted_until_its_node_has_spoken(weights):
    with engine_with(weights / "model.safetensors") as port:
        async with watched(weights, port) as engine:
            assert engine.identity == "asserted"
            await engine.learn()
            assert engine.identity == "hashed"


async def test_asking_for_the_identity_is_enough_to_learn_it(weights):
    with engine_with(weights / "model.safetensors") as port:
        async with watched(weights, port) as engine:
            for _ in range(100):
                if engine.identity == "hashed":
                    break
                await asyncio.sleep(0.02)
            assert engine.identity == "hashed"


async def test_weights_touched_under_a_serving_engine_end_its_identity(own):
    with engine_with(own / "model.safetensors") as port:
        async with watched(own, port) as engine:
            await engine.learn()
            assert engine.identity == "hashed"
            own.joinpath("model.safetensors").chmod(0o640)
            await asyncio.sleep(1.1)
            own.joinpath("model.safetensors").chmod(0o600)
            await engine.learn()
            assert engine.identity == "asserted"


async def test_a_strangers_word_is_not_believed(weights):
    with engine_with(weights / "model.safetensors") as port:
        async with watched(weights, port, signer=STRANGER) as engine:
            await engine.learn()
            assert engine.identity == "asserted"
        async with watched(weights, port, digest=Digest("oms-sha256", "ab" * 32)) as engine:
            await engine.learn()
            assert engine.identity == "asserted"


async def test_a_recorded_word_is_not_believed(weights):
    with engine_with(weights / "model.safetensors") as port:
        recorded = node_of(weights, port).state(NONCE).to_json()

    async def replay(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(recorded), recorded))
        writer.close()

    async with await asyncio.start_server(replay, "127.0.0.1", 0) as server:
        node = Place("n", "127.0.0.1", server.sockets[0].getsockname()[1], "")
        place = Place("u", "127.0.0.1", port, "m", node=node)
        engine = UpstreamEngine(
            manifest_of(weights).digest, [place], trust=Trust(lambda: [NODE.public], clock, lambda: "f" * 32)
        )
        await engine.learn()
        assert engine.identity == "asserted"
        await engine.close()


@pytest.mark.parametrize(
    "request_",
    [
        b"GET /identity HTTP/1.1\r\n\r\n",
        b"POST /identity HTTP/1.1\r\n\r\n",
        b"POST /identity HTTP/1.1\r\ncontent-length: 99999999\r\n\r\n",
        b"POST /identity HTTP/1.1\r\ncontent-length: 2\r\n\r\n{}",
        b"POST /identity HTTP/1.1\r\ncontent-length: 8\r\ncontent-length: 8\r\n\r\n{}      ",
        b'POST /identity HTTP/1.1\r\ncontent-length: 13\r\n\r\n{"nonce":"1"}',
        b"POST /identity HTTP/1.1\r\nx: " + b"y" * 20_000 + b"\r\n\r\n",
        b"\x16\x03\x01\x00",
    ],
)
async def test_a_request_that_is_none_gets_no_signature(weights, request_):
    with engine_with(weights / "model.safetensors") as port:
        server = NodeServer(node_of(weights, port))
        node_port = await server.start("127.0.0.1", 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", node_port)
        writer.write(request_)
        writer.write_eof()
        with contextlib.suppress(ConnectionError):
            data = await asyncio.wait_for(reader.read(), 10)
            assert data.startswith(b"HTTP/1.1 400 ")
            assert b"signatures" not in data
        writer.close()
        await server.close()


async def test_a_name_that_later_means_another_address(monkeypatch):
    asked = []
    loop = asyncio.get_running_loop()

    async def getaddrinfo(host, port, **_):
        asked.append(host)
        address = "127.0.0.1" if len(asked) == 1 else "127.0.0.2"
        return [(2, 1, 6, "", (address, port))]

    monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo, raising=False)
    async with await asyncio.start_server(lambda _, w: w.close(), "127.0.0.1", 0) as server:
        dial = Dialler()
        place = Place("u", "rebound.test", server.sockets[0].getsockname()[1], "m")
        for _ in range(3):
            with await dial(place) as sock:
                assert sock.getpeername()[0] == "127.0.0.1"
    assert asked == ["rebound.test"]


async def test_a_node_that_says_no_ends_the_word_of_before(weights):
    answers = []

    async def answer(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        nonce = json.loads(await reader.readexactly(size))["nonce"]
        status, body = answers.pop(0)(nonce)
        writer.write(b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))
        writer.close()

    with engine_with(weights / "model.safetensors") as port:
        real = node_of(weights, port)
        good = lambda nonce: (b"200 OK", real.state(nonce).to_json())  # noqa: E731
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            node = Place("n", "127.0.0.1", server.sockets[0].getsockname()[1], "")
            place = Place("u", "127.0.0.1", port, "m", node=node)
            trust = Trust(lambda: [NODE.public], clock, new_nonce)
            engine = UpstreamEngine(manifest_of(weights).digest, [place], trust=trust)
            answers += [good, lambda _: (b"503 No", b"{}"), good, lambda _: (b"200 OK", b"<html>")]
            for expected in ("hashed", "asserted", "hashed", "asserted"):
                await engine.learn()
                assert engine.identity == expected
            await engine.close()
