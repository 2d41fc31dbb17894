import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.digest import Digest
from steelyard.engines.fake import FakeEngine
from steelyard.wire.chat import ChatRequest, Message

DIGEST = Digest("sha256", "0" * 64)


async def chunks_of(engine, **fields):
    await engine.start()
    request = ChatRequest("any", (Message("user", "12345678"),), **fields)
    return [chunk async for chunk in engine.generate(request)]


@given(text=st.text(max_size=60), size=st.integers(1, 9))
async def test_the_chunks_join_to_the_script(text, size):
    chunks = await chunks_of(FakeEngine(DIGEST, text, chunk_chars=size))
    assert "".join(chunk.text for chunk in chunks) == text
    assert chunks[-1].usage.completion_tokens == -(-len(text) // size)


async def test_a_script_may_depend_on_the_request():
    engine = FakeEngine(DIGEST, lambda request: request.messages[-1].content.upper() + "!", chunk_chars=100)
    assert (await chunks_of(engine))[0].text == "12345678!"


async def test_prompt_tokens_are_pieces_of_the_messages():
    chunks = await chunks_of(FakeEngine(DIGEST, "x", chunk_chars=3))
    assert chunks[-1].usage.prompt_tokens == 3


async def test_the_earliest_stop_wins():
    chunks = await chunks_of(FakeEngine(DIGEST, "one two three"), stop=("three", "two"))
    assert "".join(chunk.text for chunk in chunks) == "one "


async def test_an_abandoned_answer_is_counted():
    engine = FakeEngine(DIGEST, "a long answer")
    await engine.start()
    chunks = engine.generate(ChatRequest("any", ()))
    await anext(chunks)
    await chunks.aclose()
    assert (engine.started, engine.aborted) == (1, 1)


def test_a_chunk_of_no_characters_is_a_mistake():
    with pytest.raises(ValueError, match="chunk_chars"):
        FakeEngine(DIGEST, "x", chunk_chars=0)
