"""One suite for every engine: what gate.py relies on, whichever engine answers."""

import asyncio
import hashlib
import importlib.util
from pathlib import Path

import pytest

from steelyard.admit.to_gguf import convert
from steelyard.digest import Digest
from steelyard.engines.embedded import EmbeddedEngine
from steelyard.engines.fake import FakeEngine
from steelyard.errors import Unavailable
from steelyard.wire.chat import ChatRequest, Message

SCRIPT = "one two three four five six seven eight nine ten, and so on until the script ends."


@pytest.fixture(scope="session")
def gguf(tmp_path_factory) -> Path:
    path = Path(__file__).parents[1] / "engines" / "tiny_model.py"
    spec = importlib.util.spec_from_file_location("tiny_model", path)
    tiny_model = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tiny_model)
    folder = tmp_path_factory.mktemp("conformance")
    convert(tiny_model.write_tiny_model(folder / "source"), folder / "tiny.gguf", outtype="f16")
    return folder / "tiny.gguf"


@pytest.fixture(params=["fake", "embedded"])
async def engine(request):
    if request.param == "fake":
        made = FakeEngine(Digest("sha256", "0" * 64), SCRIPT)
    else:
        path = request.getfixturevalue("gguf")
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        made = EmbeddedEngine(
            path, Digest("sha256", sha256), file_sha256=sha256, context=256, slots=2, threads=1
        )
    await made.start()
    yield made
    await made.close()


def ask(text: str = "count for me", **fields) -> ChatRequest:
    fields.setdefault("max_tokens", 12)
    return ChatRequest("any", (Message("user", text),), **fields)


async def answer(engine, request):
    chunks = [chunk async for chunk in engine.generate(request)]
    return "".join(chunk.text for chunk in chunks), chunks


async def test_only_the_last_chunk_has_a_finish_reason_and_usage(engine):
    _, chunks = await answer(engine, ask())
    assert len(chunks) > 2
    assert {(chunk.finish_reason, chunk.usage) for chunk in chunks[:-1]} == {(None, None)}
    assert chunks[-1].finish_reason in ("stop", "length")
    assert chunks[-1].usage.prompt_tokens > 0


async def test_max_tokens_ends_with_length_and_that_many_tokens(engine):
    _, chunks = await answer(engine, ask(max_tokens=5, seed=3))
    assert (chunks[-1].finish_reason, chunks[-1].usage.completion_tokens) == ("length", 5)


async def test_a_longer_prompt_counts_more_tokens(engine):
    counts = [(await answer(engine, ask("word " * n)))[1][-1].usage.prompt_tokens for n in (1, 10)]
    assert counts[0] < counts[1]


async def test_same_seed_gives_the_same_answer(engine):
    texts = {(await answer(engine, ask(seed=7, temperature=1.0)))[0] for _ in range(3)}
    assert len(texts) == 1


async def test_a_stop_sequence_ends_the_answer_before_it(engine):
    whole, _ = await answer(engine, ask(seed=11, temperature=0.0))
    stop = next(c for c in whole[4:] if c.isascii() and c.isprintable() and c != "\ufffd")
    text, chunks = await answer(engine, ask(seed=11, temperature=0.0, stop=(stop,)))
    assert text == whole[: whole.index(stop)]
    assert chunks[-1].finish_reason == "stop"


async def test_leaving_early_frees_the_engine_for_the_next_request(engine):
    for _ in range(5):  # more than there are slots
        chunks = engine.generate(ask(max_tokens=200))
        assert (await anext(chunks)).finish_reason is None
        await chunks.aclose()
    text, _ = await asyncio.wait_for(answer(engine, ask()), 10)
    assert text


async def test_concurrent_requests_each_get_their_own_answer(engine):
    alone = [(await answer(engine, ask(f"q{n}", temperature=0.0)))[1][-1] for n in range(4)]
    together = await asyncio.gather(*[answer(engine, ask(f"q{n}", temperature=0.0)) for n in range(4)])
    assert [chunks[-1] for _, chunks in together] == alone


async def test_generate_raises_unavailable_after_close(engine):
    await engine.close()
    with pytest.raises(Unavailable):
        await answer(engine, ask())


async def test_close_ends_an_answer_in_flight_with_unavailable(engine):
    chunks = engine.generate(ask(max_tokens=200))
    await anext(chunks)
    await engine.close()
    with pytest.raises(Unavailable):
        async for _ in chunks:
            pass


async def test_the_digest_is_the_one_given(engine):
    assert engine.digest.name == "sha256"
    assert len(engine.digest.hex) == 64


async def test_start_after_close_answers_again(engine):
    await engine.close()
    await engine.start()
    assert (await answer(engine, ask()))[0]
