import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.digest import Digest
from steelyard.engines.fake import FakeEngine
from steelyard.wire.call import Call

DIGEST = Digest("sha256", "0" * 64)


def call(text="12345678", **fields):
    return Call("chat", "any", {"messages": [{"role": "user", "content": text}], **fields})


async def answer(engine, asked):
    await engine.start()
    return await engine.ask(asked)


def content(whole, index=0):
    return whole["choices"][index]["message"]["content"]


@given(text=st.text(max_size=60), size=st.integers(1, 9))
async def test_the_chunks_join_to_the_script(text, size):
    whole = await answer(FakeEngine(DIGEST, text, chunk_chars=size), call())
    assert content(whole) == text
    assert whole["usage"]["completion_tokens"] == -(-len(text) // size)


async def test_a_script_may_depend_on_the_request():
    engine = FakeEngine(DIGEST, lambda call: call.body["messages"][-1]["content"].upper() + "!")
    assert content(await answer(engine, call("abc"))) == "ABC!"


async def test_a_script_may_be_a_whole_message():
    tool = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    whole = await answer(FakeEngine(DIGEST, lambda _: {"content": "", "tool_calls": [tool]}), call())
    assert whole["choices"][0]["message"]["tool_calls"] == [tool]
    assert whole["choices"][0]["finish_reason"] == "tool_calls"


async def test_prompt_tokens_are_pieces_of_the_messages():
    whole = await answer(FakeEngine(DIGEST, "x", chunk_chars=3), call())
    assert whole["usage"]["prompt_tokens"] == 3


async def test_the_earliest_stop_wins():
    whole = await answer(FakeEngine(DIGEST, "one two three"), call(stop=["three", "two"]))
    assert content(whole) == "one "


async def test_n_answers_are_n_choices():
    whole = await answer(FakeEngine(DIGEST, "yes"), call(n=3))
    assert [content(whole, index) for index in range(3)] == ["yes"] * 3


async def test_equal_texts_have_equal_embeddings():
    engine = FakeEngine(DIGEST, "")
    await engine.start()
    found = await engine.ask(Call("embedding", "any", {"input": ["a", "b", "a"]}))
    a, b, again = (item["embedding"] for item in found["data"])
    assert a == again != b


async def test_an_abandoned_answer_is_counted():
    engine = FakeEngine(DIGEST, "a long answer")
    await engine.start()
    chunks = engine.stream(call())
    await anext(chunks)
    await chunks.aclose()
    assert (engine.started, engine.aborted) == (1, 1)


def test_a_chunk_of_no_characters_is_a_mistake():
    with pytest.raises(ValueError, match="chunk_chars"):
        FakeEngine(DIGEST, "x", chunk_chars=0)
