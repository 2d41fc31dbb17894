"""Engines we launch and nodes beside engines, with llama.cpp's own HTTP server on a tiny model."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from steelyard.blobs import Blobs
from steelyard.engines.launched import LaunchedEngine
from steelyard.engines.launched import _environment as environment
from steelyard.engines.launched_command import COMMANDS, command_of
from steelyard.errors import Unavailable, Untrusted, WrongUsage
from steelyard.keys import generate
from steelyard.manifest import manifest_of
from steelyard.node import Node, Process, listeners_of
from steelyard.wire.call import Call

SERVER = Path(__file__).with_name("llama_listening.py")
COMMAND = f"{sys.executable} {SERVER} {{gguf}} {{port}}"
CHAT = {"model": "m", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}


def clock():
    return datetime.now(UTC)


@pytest.fixture
def kept(tiny_gguf, tmp_path):
    model = manifest_of(tiny_gguf.path)
    return model, Blobs(tmp_path / "store").keep(model, tiny_gguf.path)


def call(**fields):
    return Call("chat", "m", {**CHAT, **fields})


def has_ended(pid):
    """Whether it ends within a few seconds: the kernel may take its time on a busy machine."""
    for _ in range(100):
        if not is_alive(pid):
            return True
        time.sleep(0.05)
    return False


def is_alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


async def test_a_launched_server_answers_and_ends_with_the_engine(kept):
    engine = LaunchedEngine(*kept, command_of(COMMAND))
    await engine.start()
    pid = engine.pid
    try:
        answer = await engine.ask(call())
        assert 1 <= answer["usage"]["completion_tokens"] <= 4
        lists = [chunks async for chunks in engine.stream(call())]
        assert lists[-1][-1]["usage"]["prompt_tokens"] == answer["usage"]["prompt_tokens"]
        assert engine.identity == "launched"
        # The node beside it sees the file it has mapped.
        port = engine._engine._places[0].port
        found = await asyncio.to_thread(Node("n", kept[0], port, generate("ed25519"), clock=clock).look)
        assert (found.method, [sha for _, sha in found.hashed]) == ("mapped", [kept[0].files[0].sha256])
        assert found.process.pid != pid  # the server itself, not the process that watches it
    finally:
        await engine.close()
    assert has_ended(pid)
    assert has_ended(found.process.pid)
    with pytest.raises(Unavailable, match="closed"):
        await engine.ask(call())


async def test_a_server_that_dies_is_started_again(kept):
    engine = LaunchedEngine(*kept, command_of(COMMAND))
    await engine.start()
    try:
        first = engine.pid
        os.killpg(first, signal.SIGKILL)
        for _ in range(200):
            await asyncio.sleep(0.05)
            if engine.pid not in (None, first) and engine._engine is not None:
                break
        assert (await engine.ask(call()))["usage"]["prompt_tokens"] > 0
    finally:
        await engine.close()


async def test_changed_bytes_are_never_launched(kept, tmp_path):
    model, path = kept
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    (tmp_path / "other").mkdir()
    other = tmp_path / "other" / path.name
    other.write_bytes(data)
    engine = LaunchedEngine(model, other, command_of(f"touch {tmp_path}/ran {{path}} {{port}}"))
    with pytest.raises(Untrusted, match="is not"):
        await engine.start()
    assert not (tmp_path / "ran").exists()


async def test_a_server_that_cannot_start_says_why(kept):
    broken = command_of("sh -c 'echo no such device >&2; exit 3' {path} {port}")
    with pytest.raises(Unavailable, match="no such device"):
        await LaunchedEngine(*kept, broken).start()
    with pytest.raises(WrongUsage, match="not installed"):
        await LaunchedEngine(*kept, command_of("no-such-engine {path} {port}")).start()


async def test_a_stranger_on_the_port_is_not_taken_for_our_server(kept, tmp_path):
    # The command puts a server outside its own process tree: what answers is not what we started.
    escape = tmp_path / "escape.py"
    escape.write_text(
        "import os, sys, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        open(sys.argv[3], 'w').write(str(os.getpid()))\n"
        f"        os.execv(sys.executable, [sys.executable, {str(SERVER)!r}, *sys.argv[1:3]])\n"
        "    os._exit(0)\n"
        "time.sleep(8)\n"
    )
    note = tmp_path / "pid"
    engine = LaunchedEngine(*kept, command_of(f"{sys.executable} {escape} {{gguf}} {{port}} {note}"))
    try:
        with pytest.raises(Untrusted, match="not ours"):
            await engine.start()
    finally:
        os.kill(int(note.read_text()), signal.SIGKILL)


def test_the_server_dies_with_a_killed_parent():
    code = (
        "import subprocess, sys, time\n"
        "p = subprocess.Popen([sys.executable, '-I', '-m', 'steelyard.engines.launched_child', 'sleep', '60'],"
        " stdin=subprocess.PIPE, start_new_session=True)\n"
        "print(p.pid, flush=True)\n"
        "time.sleep(8)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(parent.stdout.readline())
    time.sleep(0.3)
    assert is_alive(pid)
    parent.kill()
    parent.wait()
    for _ in range(100):
        time.sleep(0.02)
        if not is_alive(pid):
            break
    assert has_ended(pid)


def test_the_environment_has_no_secrets_and_no_way_to_a_hub(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    found = environment("/f")
    assert "HF_TOKEN" not in found
    assert "HTTPS_PROXY" not in found
    assert (found["HF_HUB_OFFLINE"], found["HOME"], found["CUDA_VISIBLE_DEVICES"]) == ("1", "/f", "1")


def test_a_command_of_ones_own_names_path_and_port():
    assert command_of("vllm") is COMMANDS["vllm"]
    assert command_of("x --m {path} -p {port}").argv == ("x", "--m", "{path}", "-p", "{port}")
    for text in ("x {path}", "x {port}", "x '{path} {port}"):
        with pytest.raises(WrongUsage):
            command_of(text)


def test_every_known_command_listens_on_loopback():
    for command in COMMANDS.values():
        assert re.search(r"--host 127\.0\.0\.1 --port \{port\}", " ".join(command.argv))


def test_a_process_that_is_gone_is_unavailable():
    with pytest.raises(Unavailable):
        Process.of(2**22 + 1)
    assert listeners_of(1) == frozenset()
