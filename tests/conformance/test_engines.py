"""One suite for every engine: what gate.py relies on, whichever engine answers."""

import asyncio
import hashlib
import importlib.util
import json
from pathlib import Path

import pytest

from steelyard.admit.to_gguf import convert
from steelyard.digest import Digest
from steelyard.engines.base import Counts
from steelyard.engines.embedded import EmbeddedEngine
from steelyard.engines.fake import FakeEngine
from steelyard.errors import Unavailable, WrongUsage
from steelyard.wire.call import Call

SCRIPT = "one two three four five six seven eight nine ten, and so on until the script ends."


def beside_engines(name: str):
    path = Path(__file__).parents[1] / "engines" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def converted(folder: Path, **settings) -> Path:
    source = beside_engines("tiny_model").write_tiny_model(folder / "source", **settings)
    convert(source, folder / "tiny.gguf", outtype="f16")
    return folder / "tiny.gguf"


def embedded(path: Path, context: int) -> EmbeddedEngine:
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    digest = Digest("sha256", sha256)
    return EmbeddedEngine(path, digest, file_sha256=sha256, context=context, slots=2, threads=1)


@pytest.fixture(scope="session")
def gguf(tmp_path_factory) -> Path:
    return converted(tmp_path_factory.mktemp("conformance"))


@pytest.fixture(scope="session")
def tool_gguf(tmp_path_factory) -> Path:
    form = beside_engines("tool_template")
    folder = tmp_path_factory.mktemp("conformance-tools")
    return converted(folder, template=form.TEMPLATE, context=2048, specials=form.SPECIALS)


@pytest.fixture(params=["fake", "embedded"])
async def engine(request):
    if request.param == "fake":
        made = FakeEngine(Digest("sha256", "0" * 64), SCRIPT)
    else:
        made = embedded(request.getfixturevalue("gguf"), 256)
    await made.start()
    yield made
    await made.close()


LOOK = {"name": "look", "parameters": {"type": "object", "properties": {"at": {"enum": ["a", "b"]}},
                                       "required": ["at"], "additionalProperties": False}}  # fmt: skip


@pytest.fixture(params=["fake", "embedded"])
async def tool_call(request):
    """An engine, and a request to which it answers with a call of LOOK."""
    asked = {
        "tools": [{"type": "function", "function": LOOK}],
        "tool_choice": "required",
        "max_tokens": 150,
        "seed": 1,
    }
    if request.param == "fake":
        tool = {"id": "c0", "type": "function", "function": {"name": "look", "arguments": '{"at": "a"}'}}
        made = FakeEngine(Digest("sha256", "0" * 64), lambda _: {"content": None, "tool_calls": [tool]})
    else:
        path = request.getfixturevalue("tool_gguf")
        made = embedded(path, 1024)
        form = beside_engines("tool_template")
        words = json.loads((path.parent / "source" / "tokenizer.json").read_text())["model"]["vocab"]
        opening = form.FIRST_SPECIAL + form.SPECIALS.index("<tool_call>")
        # Random weights say `<tool_call>` and a new line sooner or later; then the grammar takes over.
        asked |= {"logit_bias": {str(opening): 20, str(words["Ċ"]): 20}, "temperature": 1.0}
    await made.start()
    yield made, chat(**asked)
    await made.close()


def chat(text: str = "count for me", **fields) -> Call:
    return Call("chat", "any", {"messages": [{"role": "user", "content": text}], "max_tokens": 12, **fields})


def completion(prompt: str = "count for me", **fields) -> Call:
    return Call("completion", "any", {"prompt": prompt, "max_tokens": 12, **fields})


KINDS = pytest.mark.parametrize("asked", [chat, completion])


async def listed(engine, call):
    return [chunks async for chunks in engine.stream(call)]


def said(lists, index=0):
    """The text of one answer out of a stream's chunks."""
    text = ""
    for chunks in lists:
        for chunk in chunks:
            for choice in chunk["choices"]:
                if choice["index"] == index:
                    text += choice["text"] if "text" in choice else choice["delta"].get("content") or ""
    return text


def text_of(choice):
    return choice["text"] if "text" in choice else choice["message"]["content"]


def ends_of(lists):
    choices = [choice for chunks in lists for chunk in chunks for choice in chunk["choices"]]
    return [(choice["index"], choice["finish_reason"]) for choice in choices if choice["finish_reason"]]


@KINDS
async def test_only_one_chunk_and_that_in_the_last_list_has_usage(engine, asked):
    lists = await listed(engine, asked())
    usages = [[chunk["usage"] for chunk in chunks if chunk.get("usage")] for chunks in lists]
    assert [len(found) for found in usages] == [0] * (len(lists) - 1) + [1]
    usage = usages[-1][0]
    assert usage["prompt_tokens"] > 0
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]


@KINDS
async def test_a_stream_comes_in_several_lists_and_ends_once(engine, asked):
    for seed in range(10):  # an answer may be a word or two, and those may come together
        lists = await listed(engine, asked(max_tokens=200, seed=seed))
        if len(lists) > 1:
            break
    assert len(lists) > 1
    assert all(lists)
    assert [index for index, _ in ends_of(lists)] == [0]


@KINDS
async def test_the_stream_adds_up_to_the_whole_answer(engine, asked):
    call = asked(seed=5, temperature=1.0)
    whole = await engine.ask(call)
    lists = await listed(engine, call)
    assert said(lists) == text_of(whole["choices"][0])
    assert ends_of(lists) == [(0, whole["choices"][0]["finish_reason"])]
    assert next(c["usage"] for c in lists[-1] if c.get("usage")) == whole["usage"]


@KINDS
async def test_objects_are_named_as_openai_names_them(engine, asked):
    kind = asked().kind
    whole, part = {
        "chat": ("chat.completion", "chat.completion.chunk"),
        "completion": ("text_completion", "text_completion"),
    }[kind]
    assert (await engine.ask(asked()))["object"] == whole
    assert {chunk["object"] for chunks in await listed(engine, asked()) for chunk in chunks} == {part}


@KINDS
async def test_max_tokens_ends_with_length_and_that_many_tokens(engine, asked):
    whole = await engine.ask(asked(max_tokens=5, seed=3))
    assert whole["choices"][0]["finish_reason"] == "length"
    assert whole["usage"]["completion_tokens"] == 5


@KINDS
async def test_a_longer_prompt_counts_more_tokens(engine, asked):
    counts = [(await engine.ask(asked("word " * n)))["usage"]["prompt_tokens"] for n in (1, 10)]
    assert counts[0] < counts[1]


@KINDS
async def test_same_seed_gives_the_same_answer(engine, asked):
    texts = {text_of((await engine.ask(asked(seed=7, temperature=1.0)))["choices"][0]) for _ in range(3)}
    assert len(texts) == 1


@KINDS
@pytest.mark.parametrize("several", [False, True])
async def test_a_stop_sequence_ends_the_answer_before_it(engine, asked, several):
    whole = text_of((await engine.ask(asked(seed=11, temperature=0.0)))["choices"][0])
    stop = next(c for c in whole[4:] if c.isascii() and c.isprintable())
    stops = ["\x00never", stop] if several else stop
    choice = (await engine.ask(asked(seed=11, temperature=0.0, stop=stops)))["choices"][0]
    assert text_of(choice) == whole[: whole.index(stop)]
    assert choice["finish_reason"] == "stop"


@KINDS
async def test_n_answers_have_their_own_index_and_share_one_prompt(engine, asked):
    one = (await engine.ask(asked(seed=1)))["usage"]
    whole = await engine.ask(asked(seed=1, n=3))
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
    assert all(text_of(choice) for choice in whole["choices"])
    assert whole["usage"]["prompt_tokens"] == one["prompt_tokens"]
    assert whole["usage"]["completion_tokens"] > one["completion_tokens"]


@KINDS
async def test_n_answers_are_streamed_side_by_side(engine, asked):
    call = asked(seed=1, n=3, temperature=1.0)
    whole = await engine.ask(call)
    lists = await listed(engine, call)
    assert sorted(index for index, _ in ends_of(lists)) == [0, 1, 2]
    assert [said(lists, index) for index in range(3)] == [text_of(choice) for choice in whole["choices"]]
    assert [sum("usage" in chunk and bool(chunk["usage"]) for chunk in chunks) for chunks in lists][-1] == 1


async def test_a_tool_call_is_whole_and_streamed_alike(tool_call):
    engine, call = tool_call
    choice = (await engine.ask(call))["choices"][0]
    assert not choice["message"]["content"]
    tool = choice["message"]["tool_calls"][0]
    assert (tool["type"], tool["function"]["name"]) == ("function", "look")
    assert json.loads(tool["function"]["arguments"])["at"] in ("a", "b")
    lists = await listed(engine, call)
    deltas = [c["delta"] for chunks in lists for chunk in chunks for c in chunk["choices"]]
    parts = [part for delta in deltas for part in delta.get("tool_calls") or ()]
    assert (parts[0]["index"], parts[0]["function"]["name"]) == (0, "look")
    assert parts[0]["id"]
    said = "".join(part["function"].get("arguments", "") for part in parts if part["index"] == 0)
    assert json.loads(said) == json.loads(tool["function"]["arguments"])
    assert ends_of(lists) == [(0, choice["finish_reason"])]


async def test_log_probabilities_come_with_their_tokens(engine):
    if isinstance(engine, FakeEngine):
        pytest.skip("a script has no probabilities")
    call = chat(seed=1, logprobs=True, top_logprobs=2)
    content = (await engine.ask(call))["choices"][0]["logprobs"]["content"]
    assert content
    assert {len(token["top_logprobs"]) for token in content} == {2}
    choices = [c for chunks in await listed(engine, call) for chunk in chunks for c in chunk["choices"]]
    streamed = [token for c in choices if c.get("logprobs") for token in c["logprobs"]["content"]]
    assert streamed == content


@pytest.mark.parametrize("whole", [False, True])
async def test_leaving_early_frees_the_engine_for_the_next_request(engine, whole):
    for _ in range(5):  # more than there are slots
        if whole:
            asking = asyncio.ensure_future(engine.ask(chat(max_tokens=200)))
            await asyncio.sleep(0.005)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        else:
            chunks = engine.stream(chat(max_tokens=200))
            assert await anext(chunks)
            await chunks.aclose()
    assert (await asyncio.wait_for(engine.ask(chat()), 10))["choices"]


async def test_a_stream_left_before_its_first_chunk_is_over(engine):
    chunks = engine.stream(chat())
    await chunks.aclose()
    assert [listed async for listed in chunks] == []


async def test_concurrent_requests_each_get_their_own_answer(engine):
    calls = [chat(f"q{n}", temperature=0.0, seed=1) for n in range(4)]
    alone = [(await engine.ask(call))["choices"] for call in calls]
    together = await asyncio.gather(*[engine.ask(call) for call in calls])
    assert [whole["choices"] for whole in together] == alone


@pytest.mark.parametrize("whole", [False, True])
async def test_a_closed_engine_is_unavailable(engine, whole):
    await engine.close()
    with pytest.raises(Unavailable):
        await (engine.ask(chat()) if whole else listed(engine, chat()))


async def test_close_ends_an_answer_in_flight_with_unavailable(engine):
    chunks = engine.stream(chat(max_tokens=200))
    await anext(chunks)
    await engine.close()
    with pytest.raises(Unavailable):
        async for _ in chunks:
            pass


async def test_the_digest_is_the_one_given(engine):
    assert engine.digest.name == "sha256"
    assert len(engine.digest.hex) == 64


async def test_the_ledger_can_name_the_engine_and_its_level_of_identity(engine):
    assert engine.name
    assert engine.identity in ("asserted", "hashed", "launched")


async def test_start_after_close_answers_again(engine):
    await engine.close()
    await engine.start()
    assert text_of((await engine.ask(chat()))["choices"][0])


async def test_text_parts_are_one_text(engine):
    parts = [{"type": "text", "text": "count "}, {"type": "text", "text": "for me"}]
    split = await engine.ask(Call("chat", "any", {**chat(seed=1).body, "messages": [
        {"role": "user", "content": parts}]}))  # fmt: skip
    assert split["choices"] == (await engine.ask(chat(seed=1)))["choices"]


async def test_a_count_is_the_prompt_tokens_of_the_answer(engine):
    if not isinstance(engine, Counts):
        pytest.skip("this engine does not count")
    for call in (chat("word " * 20), completion("one two three")):
        assert await engine.count(call) == (await engine.ask(call))["usage"]["prompt_tokens"]


async def test_what_an_engine_cannot_do_is_wrong_usage_before_the_first_chunk(engine):
    if isinstance(engine, FakeEngine):
        pytest.skip("the scripted engine does everything")
    call = Call("embedding", "any", {"input": "a"})
    for asking in (engine.ask(call), listed(engine, call)):
        with pytest.raises(WrongUsage):
            await asking
