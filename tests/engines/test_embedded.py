"""What only the embedded engine promises: verified bytes, a child process, enforced schemas."""

# ruff: noqa: ASYNC110, ASYNC221, ASYNC240 (the tests look at files and processes while nothing else runs)

import asyncio
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from steelyard.digest import Digest
from steelyard.engines.embedded import EmbeddedEngine
from steelyard.errors import Malformed, Unavailable, Untrusted, WrongUsage
from steelyard.wire.call import Call

CANARY = "xyzzy canary 4711"
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def ask(text="hello", **fields):
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 8, **fields}
    return Call("chat", "any", body)


def schema(given):
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": given}}


async def answer(engine, call):
    """Text, finish reason and usage."""
    whole = await engine.ask(call)
    choice = whole["choices"][0]
    return choice["message"]["content"], choice["finish_reason"], whole["usage"]


@pytest.fixture
async def engine(tiny_gguf):
    made = tiny_gguf.engine()
    await made.start()
    yield made
    await made.close()


def engine_on(path: Path, sha256: str | None = None, **settings) -> EmbeddedEngine:
    sha256 = sha256 or hashlib.sha256(path.read_bytes()).hexdigest()
    return EmbeddedEngine(path, Digest("sha256", sha256), file_sha256=sha256, **{"threads": 1, **settings})


SCHEMAS = [
    {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "additionalProperties": False,
    },
    {"type": "array", "items": {"enum": ["red", "green"]}, "minItems": 1, "maxItems": 3},
    {"type": "integer", "minimum": 5, "maximum": 7},
    {
        "anyOf": [{"type": "null"}, {"$ref": "#/$defs/word"}],
        "$defs": {"word": {"type": "string", "maxLength": 5}},
    },
    {"const": "yes"},
    {
        "type": "object",
        "properties": {
            "kind": {"enum": ["a", "b"]},
            "deep": {"type": "object", "properties": {}, "additionalProperties": False},
        },
        "required": ["kind", "deep"],
        "additionalProperties": False,
    },
]


@pytest.mark.parametrize("given", SCHEMAS, ids=range(len(SCHEMAS)))
async def test_an_answer_to_a_schema_is_valid_even_from_random_weights(engine, given):
    for seed in (1, 2):
        call = ask(response_format=schema(given), max_tokens=200, seed=seed, temperature=1.0)
        text, finish_reason, _ = await answer(engine, call)
        assert finish_reason == "stop"
        jsonschema.validate(json.loads(text), given)


@pytest.mark.parametrize(
    "given",
    [
        {"type": "nonsense"},
        {"not": {"type": "string"}},
        {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
        {"type": "string", "pattern": "a+"},
        {"type": "number", "minimum": 0},
        {"type": "object", "properties": {"a": {"oneOf": []}}},
        {"type": "object", "properties": {}, "required": ["a"]},
        {"anyOf": [{"type": "string"}], "maxLength": 3},
        {"$ref": "https://example.org/schema"},
        {"$ref": "#/$defs/missing"},
        {"type": "array", "items": [{"type": "string"}]},
    ],
    ids=str,
)
async def test_a_schema_that_would_not_be_enforced_is_wrong_usage(engine, given):
    with pytest.raises(WrongUsage):
        await answer(engine, ask(response_format=schema(given)))
    assert (await answer(engine, ask()))[2]["completion_tokens"]


async def test_a_schema_nested_beyond_the_limit_is_wrong_usage(engine):
    given = {"type": "string"}
    for _ in range(33):
        given = {"type": "array", "items": given}
    with pytest.raises(WrongUsage, match="deeper than 32"):
        await answer(engine, ask(response_format=schema(given)))
    await answer(engine, ask(response_format=schema(given["items"])))


async def test_a_prompt_longer_than_the_context_is_wrong_usage_naming_both_counts(engine):
    with pytest.raises(WrongUsage, match=r"the prompt has \d+ tokens, the context of this model holds 256"):
        await answer(engine, ask("a b c d " * 200))


async def test_an_answer_stops_with_length_when_the_context_is_full(engine):
    _, finish_reason, usage = await answer(engine, ask(max_tokens=None, temperature=0.0, seed=2))
    assert (finish_reason, usage["total_tokens"]) == ("length", 256)


async def test_a_flipped_bit_in_the_weights_is_untrusted(tiny_gguf, tmp_path):
    data = bytearray(tiny_gguf.path.read_bytes())
    data[-1] ^= 1
    path = tmp_path / "flipped.gguf"
    path.write_bytes(data)
    with pytest.raises(Untrusted, match="admit the file again"):
        await engine_on(path, tiny_gguf.sha256).start()


async def test_a_missing_file_is_unavailable(tmp_path):
    with pytest.raises(Unavailable, match="No such file"):
        await engine_on(tmp_path / "none.gguf", "0" * 64).start()


async def test_a_file_that_is_no_gguf_is_malformed(tmp_path):
    path = tmp_path / "text.gguf"
    path.write_bytes(b"this is text" * 100)
    with pytest.raises(Malformed):
        await engine_on(path).start()


async def test_a_truncated_gguf_does_not_start(tiny_gguf, tmp_path):
    path = tmp_path / "short.gguf"
    path.write_bytes(tiny_gguf.path.read_bytes()[:-4096])
    with pytest.raises((Malformed, Unavailable)):
        await engine_on(path).start()


async def test_a_context_beyond_the_models_own_is_wrong_usage(tiny_gguf):
    await engine_on(tiny_gguf.path, context=512).close()
    with pytest.raises(WrongUsage, match="was made for 512"):
        await engine_on(tiny_gguf.path, context=513).start()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
async def test_a_crash_of_the_child_fails_the_answer_and_the_next_request_is_served(engine, number):
    chunks = engine.stream(ask(CANARY, max_tokens=200))
    await anext(chunks)
    os.kill(engine.pid, number)
    with pytest.raises(Unavailable, match=number.name) as caught:
        async for _ in chunks:
            pass
    assert "xyzzy" not in caught.value.message
    _, _, usage = await answer(engine, ask(max_tokens=3))
    assert usage["completion_tokens"] <= 3


async def test_a_child_that_hangs_is_ended_and_the_next_request_is_served(tiny_gguf):
    engine = engine_on(tiny_gguf.path, context=256, stall_s=0.3)
    await engine.start()
    chunks = engine.stream(ask(max_tokens=200))
    await anext(chunks)
    os.kill(engine.pid, signal.SIGSTOP)
    with pytest.raises(Unavailable, match="no sign"):
        async for _ in chunks:
            pass
    _, _, usage = await answer(engine, ask(max_tokens=3))
    await engine.close()
    assert usage["completion_tokens"] <= 3


async def test_an_idle_child_is_left_alone(tiny_gguf):
    engine = engine_on(tiny_gguf.path, context=256, stall_s=0.1)
    await engine.start()
    pid = engine.pid
    await asyncio.sleep(0.4)
    assert engine.pid == pid
    await engine.close()


async def crash(engine):
    """Kill the child and wait until the engine has noticed."""
    pid = engine.pid
    os.kill(pid, signal.SIGKILL)
    while engine.pid == pid:
        await asyncio.sleep(0.01)


async def test_a_file_replaced_after_start_does_not_reach_the_engine(tiny_gguf, tmp_path):
    path = tmp_path / "model.gguf"
    shutil.copy(tiny_gguf.path, path)
    engine = engine_on(path, context=256)
    await engine.start()
    before = await answer(engine, ask(temperature=0.0, seed=1))
    (tmp_path / "other").write_bytes(b"poison")
    os.replace(tmp_path / "other", path)
    try:
        await crash(engine)
        assert await answer(engine, ask(temperature=0.0, seed=1)) == before
    finally:
        await engine.close()


async def test_weights_edited_in_place_neither_reach_the_engine_nor_survive_its_restart(tiny_gguf, tmp_path):
    path = tmp_path / "model.gguf"
    shutil.copy(tiny_gguf.path, path)
    engine = engine_on(path, context=256)
    await engine.start()
    before = await answer(engine, ask(temperature=0.0, seed=1))
    with path.open("r+b") as file:
        file.seek(-100_000, os.SEEK_END)
        file.write(bytes(100_000))
    try:
        assert await answer(engine, ask(temperature=0.0, seed=1)) == before
        await crash(engine)
        for _ in range(2):  # the request that waited for the restart, and a later one
            with pytest.raises(Unavailable, match="admit the file again"):
                await answer(engine, ask())
    finally:
        await engine.close()


@on_linux
async def test_the_child_listens_on_no_port_and_has_no_address_left(engine):
    inodes = {os.readlink(link) for link in Path(f"/proc/{engine.pid}/fd").iterdir()}
    for table in ("tcp", "tcp6", "udp", "udp6"):
        rows = Path(f"/proc/{engine.pid}/net/{table}").read_text().splitlines()[1:]
        assert not inodes & {f"socket:[{row.split()[9]}]" for row in rows}
    folder = dict(
        entry.split("=", 1) for entry in Path(f"/proc/{engine.pid}/environ").read_text().split("\0") if entry
    )["HOME"]
    assert not list(Path(folder).rglob("*.sock"))


@on_linux
async def test_the_environment_of_the_child_is_clean(tiny_gguf, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    engine = tiny_gguf.engine()
    await engine.start()
    entries = Path(f"/proc/{engine.pid}/environ").read_text().split("\0")
    variables = dict(entry.split("=", 1) for entry in entries if entry)
    await engine.close()
    assert "HF_TOKEN" not in variables
    assert "HTTPS_PROXY" not in variables
    assert (variables["HF_HUB_OFFLINE"], variables["TRANSFORMERS_OFFLINE"]) == ("1", "1")
    assert not Path(variables["HF_HOME"]).exists()  # removed with the engine


@on_linux
async def test_neither_numpy_nor_torch_is_mapped_into_the_child(engine):
    maps = Path(f"/proc/{engine.pid}/maps").read_text()
    assert "xllamacpp" in maps
    assert "numpy" not in maps
    assert "torch" not in maps


def test_importing_the_engine_loads_no_native_library():
    names = "('numpy', 'torch', 'xllamacpp', 'gguf')"
    code = f"import sys, steelyard.engines.embedded; print([n for n in {names} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@on_linux
async def test_the_child_ends_with_its_parent(tiny_gguf):
    code = f"""
import asyncio, os, pathlib
from steelyard.digest import Digest
from steelyard.engines.embedded import EmbeddedEngine
async def main():
    engine = EmbeddedEngine(pathlib.Path({str(tiny_gguf.path)!r}), Digest("sha256", {tiny_gguf.sha256!r}),
                            file_sha256={tiny_gguf.sha256!r}, context=64, threads=1)
    await engine.start()
    print(engine.pid, flush=True)
    os.kill(os.getpid(), 9)
asyncio.run(main())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    child = int(done.stdout)
    for _ in range(100):
        if not _is_running(child):
            return
        await asyncio.sleep(0.05)
    pytest.fail(f"process {child} outlived its parent")


def _is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


async def test_a_request_before_start_is_unavailable(tiny_gguf):
    with pytest.raises(Unavailable, match="call start"):
        await answer(tiny_gguf.engine(), ask())


async def test_the_developer_role_is_the_system_role(engine):
    def told(role):
        messages = [{"role": role, "content": "be brief"}, {"role": "user", "content": "hi"}]
        return Call("chat", "any", {"messages": messages, "max_tokens": 8, "temperature": 0.0, "seed": 1})

    assert await answer(engine, told("developer")) == await answer(engine, told("system"))
