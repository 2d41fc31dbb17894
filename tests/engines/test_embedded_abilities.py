"""Tools, reasoning, log-probabilities, several answers, older completions, embeddings: what llama.cpp makes of them."""

import asyncio
import base64
import json
import math
import struct

import pytest

from steelyard.errors import WrongUsage
from steelyard.wire.call import Call

ZONES = {"type": "object", "properties": {"zone": {"enum": ["a", "b"]}}, "required": ["zone"],
         "additionalProperties": False}  # fmt: skip
TIME = {"type": "function", "function": {"name": "time", "parameters": ZONES}}
MOON = {"type": "function", "function": {"name": "moon", "parameters": {"type": "object", "properties": {}}}}


def chat(**fields):
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 8, "seed": 1, **fields}
    return Call("chat", "any", body)


def completion(**fields):
    return Call("completion", "any", {"prompt": "hello", "max_tokens": 8, "seed": 1, **fields})


@pytest.fixture
async def engine(tiny_gguf):
    made = tiny_gguf.engine(slots=2)
    await made.start()
    yield made
    await made.close()


@pytest.fixture
async def tool_engine(tool_gguf):
    made = tool_gguf.engine(context=1024)
    await made.start()
    yield made
    await made.close()


@pytest.fixture
def towards_tools(tool_gguf, tool_template):
    """A bias under which random weights say `<tool_call>` and a new line until the grammar takes over."""
    tokenizer = json.loads((tool_gguf.path.parent / "source" / "tokenizer.json").read_text())
    first = tool_template.FIRST_SPECIAL + tool_template.SPECIALS.index("<tool_call>")
    return {str(first): 20, str(tokenizer["model"]["vocab"]["Ċ"]): 20}


async def chunks_of(engine, call):
    return [chunk async for chunks in engine.stream(call) for chunk in chunks]


@pytest.mark.parametrize("choice", ["auto", "required", {"type": "function", "function": {"name": "time"}}])
async def test_a_tool_call_is_parsed_and_its_arguments_obey_their_schema(tool_engine, towards_tools, choice):
    tools = [TIME] if choice != "auto" and isinstance(choice, str) else [TIME, MOON]
    bias = {"logit_bias": towards_tools, "temperature": 1.0, "max_tokens": 150}
    whole = await tool_engine.ask(chat(tools=tools, tool_choice=choice, **bias))
    message = whole["choices"][0]["message"]
    assert message["content"] is None
    tool = message["tool_calls"][0]
    assert tool["type"] == "function"
    assert tool["id"]
    if tool["function"]["name"] == "time":
        assert json.loads(tool["function"]["arguments"]).keys() == {"zone"}
    else:
        assert choice == "auto"
    chunks = await chunks_of(tool_engine, chat(tools=tools, tool_choice=choice, **bias))
    deltas = [c["delta"] for chunk in chunks for c in chunk["choices"] if c["delta"].get("tool_calls")]
    assert deltas[0]["tool_calls"][0]["function"]["name"] == tool["function"]["name"]
    said = "".join(d["function"].get("arguments", "") for delta in deltas for d in delta["tool_calls"])
    assert said == "".join(tool["function"]["arguments"] for tool in message["tool_calls"])


async def test_without_a_choice_of_tools_none_is_called(tool_engine, towards_tools):
    bias = {"logit_bias": towards_tools, "temperature": 1.0}
    whole = await tool_engine.ask(chat(tools=[TIME], tool_choice="none", **bias))
    assert "tool_calls" not in whole["choices"][0]["message"]


async def test_a_tools_result_reaches_the_model(tool_engine):
    def after(result):
        tool = {"id": "c1", "type": "function", "function": {"name": "time", "arguments": '{"zone":"a"}'}}
        return chat(
            tools=[TIME],
            messages=[
                {"role": "user", "content": "hello"},
                {"role": "assistant", "content": None, "tool_calls": [tool]},
                {"role": "tool", "tool_call_id": "c1", "content": result},
            ],
        )

    assert await tool_engine.count(after("noon" * 10)) > await tool_engine.count(after("noon"))
    assert (await tool_engine.ask(after("noon")))["choices"] != (await tool_engine.ask(after("one")))[
        "choices"
    ]


async def test_reasoning_comes_apart_from_content(tool_engine, tool_template):
    think = tool_template.FIRST_SPECIAL + tool_template.SPECIALS.index("<think>")
    opened = {"logit_bias": {str(think): 100}, "temperature": 0.0, "max_tokens": 20}
    message = (await tool_engine.ask(chat(**opened)))["choices"][0]["message"]
    assert message["reasoning_content"]
    bias = {**opened, "thinking_budget_tokens": 3}
    message = (await tool_engine.ask(chat(**bias)))["choices"][0]["message"]
    assert message["content"]
    inline = (await tool_engine.ask(chat(**bias, reasoning_format="none")))["choices"][0]["message"]
    assert "reasoning_content" not in inline
    assert inline["content"].startswith("<think>")


async def test_reasoning_can_be_switched_off(tool_engine):
    on, *off = [
        await tool_engine.count(call)
        for call in (chat(), chat(reasoning_effort="none"), chat(chat_template_kwargs={"enable_thinking": False}))
    ]  # fmt: skip
    assert off[0] == off[1] != on


@pytest.mark.parametrize("top", [0, 3])
async def test_every_token_of_an_answer_has_its_log_probability(engine, top):
    words = {"type": "json_schema", "json_schema": {"schema": {"enum": ["red green", "blue red blue"]}}}
    call = chat(logprobs=True, top_logprobs=top, max_tokens=40, n=2, response_format=words, temperature=1.0)
    whole = await engine.ask(call)
    for choice in whole["choices"]:
        tokens = choice["logprobs"]["content"]
        said = b"".join(bytes(token["bytes"]) for token in tokens).decode()
        assert choice["message"]["content"] in said  # llama.cpp may put space or a fence around it
        assert {len(token["top_logprobs"]) for token in tokens} == {top}
        assert all(token["logprob"] <= 0 for token in tokens)
        others = [other for token in tokens for other in token["top_logprobs"]]
        assert all(set(other) == {"token", "logprob", "bytes"} for other in others)
    counts = [len(choice["logprobs"]["content"]) for choice in whole["choices"]]
    assert sum(counts) in (whole["usage"]["completion_tokens"], whole["usage"]["completion_tokens"] - 2)
    parts = [c for chunk in await chunks_of(engine, call) for c in chunk["choices"] if c.get("logprobs")]
    assert [len(part["logprobs"]["content"]) for part in parts] == counts


async def test_the_top_log_probabilities_of_a_token_sum_to_at_most_one(engine):
    whole = await engine.ask(chat(logprobs=True, top_logprobs=20, max_tokens=3, temperature=0.0))
    for token in whole["choices"][0]["logprobs"]["content"]:
        assert token["token"] == token["top_logprobs"][0]["token"]  # the greedy choice is the likeliest
        assert 0 < sum(math.exp(other["logprob"]) for other in token["top_logprobs"]) <= 1.000001


async def test_completions_give_log_probabilities_in_their_older_form(engine):
    plain = {str(token): 20 for token in range(35, 90)}  # letters: a token each
    whole = await engine.ask(completion(logprobs=2, max_tokens=12, logit_bias=plain))
    found = whole["choices"][0]["logprobs"]
    assert {len(values) for values in found.values()} == {12}
    assert "".join(found["tokens"]) == whole["choices"][0]["text"]
    assert set(found) == {"tokens", "token_logprobs", "top_logprobs", "text_offset"}
    assert found["text_offset"][0] == 0
    assert (await engine.ask(completion(logprobs=0)))["choices"][0]["logprobs"]["top_logprobs"] is None


@pytest.mark.parametrize("make", [chat, completion])
async def test_the_stop_text_that_was_met_is_named(engine, make):
    whole = await engine.ask(make(temperature=0.0, max_tokens=30))
    choice = whole["choices"][0]
    text = choice["text"] if "text" in choice else choice["message"]["content"]
    stop = next(c for c in text[3:] if c.isascii() and c.isprintable())
    call = make(temperature=0.0, max_tokens=30, stop=["\x01\x02never", stop])
    choice = (await engine.ask(call))["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", stop)
    chunks = await chunks_of(engine, call)
    ends = [c.get("stop_reason") for chunk in chunks for c in chunk["choices"] if c["finish_reason"]]
    assert ends == [stop]
    assert "__verbose" not in json.dumps(chunks)  # it holds the prompt


async def test_more_answers_than_slots_come_in_rounds(engine):
    whole = await engine.ask(chat(n=5, temperature=1.0))
    assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2, 3, 4]
    assert len({choice["message"]["content"] for choice in whole["choices"]}) == 5


async def test_a_list_of_prompts_gives_n_answers_to_each(engine):
    whole = await engine.ask(completion(prompt=["hello", "what is"], n=3, temperature=0.0))
    texts = [choice["text"] for choice in whole["choices"]]
    assert len(texts) == 6
    assert len(set(texts[:3])) == 1  # greedy
    assert texts[0] != texts[3]
    one = [await engine.ask(completion(prompt=prompt)) for prompt in ("hello", "what is")]
    assert whole["usage"]["prompt_tokens"] == sum(each["usage"]["prompt_tokens"] for each in one)


async def test_a_prompt_may_be_tokens(engine):
    whole = await engine.ask(completion(prompt=[40, 41, 42]))
    assert whole["usage"]["prompt_tokens"] == 3


async def test_a_bias_decides_the_token(engine):
    tokens = (await engine.ask(completion(logit_bias={"45": 100}, max_tokens=5)))["choices"][0]["text"]
    assert len(set(tokens)) == 1
    assert tokens != (await engine.ask(completion(max_tokens=5)))["choices"][0]["text"]


async def test_a_presence_penalty_reaches_over_the_whole_answer(engine):
    bias = {"logit_bias": {"45": 30}, "temperature": 0.0, "max_tokens": 100}
    plain = (await engine.ask(completion(**bias)))["choices"][0]["text"]
    varied = (await engine.ask(completion(**bias, frequency_penalty=2.0)))["choices"][0]["text"]
    assert len(set(plain)) == 1
    assert len(set(varied)) > 1


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (chat(messages=[{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]), "image_url"),
        (chat(messages=[{"role": "function", "name": "f", "content": "x"}]), "role function"),
        (chat(modalities=["audio"]), "text only"),
        (chat(audio={"voice": "x"}), "audio"),
        (chat(functions=[{"name": "f"}]), "functions"),
        (chat(web_search_options={"search_context_size": "low"}), "web_search_options"),
        (chat(tools=[TIME]), "no place for tools"),
        (chat(messages=[{"role": "tool", "tool_call_id": "x", "content": "x"}]), "no place for tools"),
        (chat(logit_bias={"300": 1}), "not one of this model's 300"),
        (chat(logit_bias={"hello": 1}), "not one of"),
        (chat(top_k="many"), "top_k"),
        (chat(chat_template_kwargs={"messages": "x"}), "true or false"),
        (chat(reasoning_effort="<|end|>"), "reasoning_effort"),
        (chat(messages=[]), "no messages"),
        (completion(echo=True), "echo"),
        (completion(suffix="x"), "suffix"),
        (completion(best_of=3), "best_of"),
        (completion(prompt=[1, 300]), "below 300"),
        (completion(prompt=[[1], [-1]]), "below 300"),
        (completion(prompt=None), "no prompt"),
        (Call("embedding", "any", {"input": "x"}), "gives no embeddings"),
    ],
)  # fmt: skip
async def test_what_the_engine_would_not_do_is_wrong_usage(engine, call, reason):
    for asking in (engine.ask(call), chunks_of(engine, call)):
        with pytest.raises(WrongUsage, match=reason):
            await asking


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"tools": [TIME], "tool_choice": {"type": "function", "function": {"name": "sun"}}}, "does not bring"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "type custom"),
        ({"tools": [TIME], "response_format": {"type": "json_object"}}, "not both"),
        ({"tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": {
            "type": "string", "format": "date"}}}]}, "cannot be enforced"),
    ],
)  # fmt: skip
async def test_tools_that_could_not_be_held_to_are_wrong_usage(tool_engine, fields, reason):
    with pytest.raises(WrongUsage, match=reason):
        await tool_engine.ask(chat(**fields))


async def test_a_count_reads_nothing_and_knows_no_limit(engine):
    long = chat(messages=[{"role": "user", "content": "a b c d " * 400}])
    assert await engine.count(long) > 256  # the context
    assert await engine.count(completion(prompt=["hello", "what is"], n=4)) == (
        await engine.ask(completion(prompt=["hello", "what is"])))["usage"]["prompt_tokens"]  # fmt: skip


async def test_a_count_is_the_same_whatever_the_answer_would_be(engine):
    plain = await engine.count(chat())
    assert await engine.count(chat(logprobs=True, n=3, stop=["x"], stream=True)) == plain
    assert await engine.count(completion(logprobs=2, n=3)) == await engine.count(completion())


@pytest.mark.parametrize("whole", [False, True])
async def test_an_abort_ends_the_generation_long_before_its_end(tool_gguf, whole):
    engine = tool_gguf.engine(context=2048)
    await engine.start()
    no_end = {str(token): -100 for token in range(9)}
    long = chat(max_tokens=2000, logit_bias=no_end, temperature=1.0)
    clock = asyncio.get_running_loop().time
    began = clock()
    assert (await engine.ask(long))["usage"]["completion_tokens"] > 1500
    full_s = clock() - began
    began = clock()
    if whole:
        asking = asyncio.ensure_future(engine.ask(long))
        await asyncio.sleep(0.05)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
    else:
        chunks = engine.stream(long)
        await anext(chunks)
        await chunks.aclose()
    await engine.ask(chat())  # the only slot is free
    assert clock() - began < full_s / 2
    await engine.close()


async def test_an_embedding_model_gives_unit_vectors_in_both_encodings(embedding_gguf):
    engine = embedding_gguf.engine()
    await engine.start()
    texts = ["hello", "what is the capital", "hello"]
    floats = await engine.ask(Call("embedding", "any", {"input": texts}))
    packed = await engine.ask(Call("embedding", "any", {"input": texts, "encoding_format": "base64"}))
    with pytest.raises(WrongUsage, match="embeddings only"):
        await engine.ask(chat())
    with pytest.raises(WrongUsage, match="dimensions"):
        await engine.ask(Call("embedding", "any", {"input": "x", "dimensions": 2}))
    with pytest.raises(WrongUsage):
        await engine.ask(Call("embedding", "any", {"input": "a b c " * 300}))
    await engine.close()
    vectors = [entry["embedding"] for entry in floats["data"]]
    assert [entry["index"] for entry in floats["data"]] == [0, 1, 2]
    assert vectors[0] == pytest.approx(vectors[2], abs=1e-5)
    assert vectors[0] != pytest.approx(vectors[1], abs=1e-2)
    assert [math.hypot(*vector) for vector in vectors] == pytest.approx([1, 1, 1], abs=1e-5)
    data = base64.b64decode(packed["data"][1]["embedding"])
    assert list(struct.unpack(f"<{len(data) // 4}f", data)) == pytest.approx(vectors[1], abs=1e-6)
    assert floats["usage"]["prompt_tokens"] == floats["usage"]["total_tokens"] > 3


@pytest.mark.parametrize("place", ["properties", "$defs"])
async def test_a_pattern_whose_grammar_would_explode_does_not_hang_the_engine(
    tool_engine, towards_tools, place
):
    evil = {"type": "string", "pattern": "^(a?){200}$"}
    schema = {"type": "object", "properties": {"a": evil}, "required": ["a"]}
    if place == "$defs":
        schema = {**schema, "properties": {"a": {"$ref": "#/$defs/e"}}, "$defs": {"e": evil}}
    tool = {"type": "function", "function": {"name": "time", "parameters": schema}}
    letters = {"logit_bias": towards_tools | {str(token): 15 for token in range(60, 80)}, "temperature": 1.0}
    asked = chat(tools=[tool], tool_choice="required", max_tokens=60, **letters)
    whole = await asyncio.wait_for(tool_engine.ask(asked), 10)
    assert whole["usage"]["completion_tokens"] <= 60
    plain = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    bare = {"type": "function", "function": {"name": "time", "parameters": plain}}
    assert await tool_engine.count(asked) > await tool_engine.count(chat(tools=[bare]))  # the model is told


@pytest.mark.parametrize(
    "arguments",
    ["{not json", "[1]", "{", '{"a": NaN}', '{"a": 1, "a": 2}', '{"a":' * 5000 + "1" + "}" * 5000],
)
async def test_a_history_with_arguments_that_are_no_object_is_wrong_usage(tool_engine, arguments):
    tool = {"id": "c", "type": "function", "function": {"name": "time", "arguments": arguments}}
    said = [{"role": "user", "content": "x"}, {"role": "assistant", "content": None, "tool_calls": [tool]},
            {"role": "tool", "tool_call_id": "c", "content": "x"}]  # fmt: skip
    with pytest.raises(WrongUsage, match="arguments"):
        await tool_engine.ask(chat(messages=said))


def chained(length):
    """2 ** length ways to begin a value."""
    links = {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": {**links, f"d{length}": {"type": "string"}}}


@pytest.mark.parametrize(
    "schema",
    [
        chained(60),
        {"enum": [str(i) for i in range(1000)]},
        {"type": "array", "items": {"enum": [str(i) for i in range(1000)]}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}, {"$ref": "#/$defs/b"}]},
                                        "b": {"enum": [str(i) for i in range(500)]}}},
    ],
    ids=["chain", "enum", "inner", "twice"],
)  # fmt: skip
async def test_a_schema_with_too_many_ways_to_begin_is_refused_before_it_hangs_the_engine(
    tool_engine, schema
):
    form = {"type": "json_schema", "json_schema": {"schema": schema}}
    wrapped = {"type": "object", "properties": {"a": schema}, "$defs": schema.get("$defs", {})}
    tool = {"type": "function", "function": {"name": "f", "parameters": wrapped}}
    for call in (chat(response_format=form), chat(tools=[tool])):
        with pytest.raises(WrongUsage, match=r"alternatives|refers"):
            await tool_engine.ask(call)


async def test_the_most_ways_to_begin_are_served_in_time(engine):
    enum = {"enum": [f"{i:03}" for i in range(999)]}
    form = {"type": "json_schema", "json_schema": {"schema": enum}}
    whole = await asyncio.wait_for(engine.ask(chat(response_format=form, max_tokens=60)), 10)
    assert json.loads(whole["choices"][0]["message"]["content"]) in enum["enum"]
