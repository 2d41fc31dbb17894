"""Whatever the wire lets through is translated or refused, and no marker of a caller's gets into the prompt."""

import json

from hypothesis import given
from hypothesis import strategies as st

from steelyard.engines.embedded_markers import Markers
from steelyard.engines.embedded_prompt import Traits
from steelyard.engines.embedded_request import SEEDS, task_of
from steelyard.errors import Malformed, WrongUsage
from steelyard.wire.call import Call
from steelyard.wire.openai_chat import parse_chat
from steelyard.wire.openai_completions import parse_completion

MARKER = "<|x|>"
TRAITS = Traits(
    context=256, slots=3, composes=True, embeds=False, tools=True, tokens=300,
    markers=Markers([MARKER]), own_markers=Markers([MARKER]),
)  # fmt: skip

texts = st.text() | st.sampled_from((MARKER, f"a{MARKER}b", "<|", "x|>"))
values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.floats(-3, 3) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
parts = st.fixed_dictionaries({"type": st.sampled_from(("text", "refusal", "image_url"))}, optional={
    "text": texts, "refusal": texts, "image_url": values})  # fmt: skip
calls = st.fixed_dictionaries(
    {"id": texts, "type": st.just("function")},
    optional={"function": st.fixed_dictionaries({"name": texts, "arguments": texts}), "custom": values},
)
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(("system", "user", "assistant", "tool"))},
    optional={
        "content": texts | st.lists(parts, max_size=3),
        "tool_calls": st.lists(calls, max_size=2),
        "reasoning_content": values,
        "name": texts,
        "tool_call_id": texts,
    },
)
tools = st.fixed_dictionaries(
    {"type": st.just("function"), "function": st.fixed_dictionaries(
        {"name": texts}, optional={"description": texts, "parameters": st.dictionaries(texts, values, max_size=3),
                                   "strict": values})},
)  # fmt: skip
OTHERS = (
    "tool_choice", "parallel_tool_calls", "response_format", "logprobs", "top_logprobs", "reasoning_effort",
    "reasoning_format", "chat_template_kwargs", "thinking_budget_tokens", "top_k", "min_p", "repeat_penalty", "stop",
    "seed", "n", "temperature", "top_p", "logit_bias", "max_tokens", "frequency_penalty", "modalities", "audio",
    "echo", "suffix", "best_of", "grammar", "id_slot", "lora", "verbose", "n_probs", "samplers",
)  # fmt: skip
# What llama.cpp would do with these is not the caller's to decide.
NEVER = {"grammar", "id_slot", "lora", "samplers", "json_schema", "response_fields", "preserved_tokens"}


def sent(parse, body):
    """llama.cpp's requests, or nothing when the wire or the engine refuses."""
    try:
        return [turn["body"] for turn in task_of(parse(json.dumps(body).encode()).call, TRAITS)["rounds"]]
    except (Malformed, WrongUsage):
        return []


@given(
    st.lists(messages, min_size=1, max_size=3),
    st.dictionaries(st.sampled_from(OTHERS), values, max_size=3),
    st.lists(tools, max_size=2),
)
def test_a_chat_that_the_wire_lets_through_is_translated_or_refused(said, others, offered):
    for body in sent(parse_chat, {"model": "m", "messages": said, "tools": offered, **others}):
        assert MARKER not in json.dumps([body["messages"], body.get("tools")], ensure_ascii=False)
        assert not body.keys() & NEVER


@given(
    values | texts | st.lists(texts, max_size=3), st.dictionaries(st.sampled_from(OTHERS), values, max_size=3)
)
def test_a_completion_that_the_wire_lets_through_is_translated_or_refused(prompt, others):
    for body in sent(parse_completion, {"model": "m", "prompt": prompt, **others}):
        assert MARKER not in json.dumps(body["prompt"], ensure_ascii=False)
        assert not body.keys() & NEVER


@given(st.integers(-(1 << 63), (1 << 63) - 1), st.integers(1, 20))
def test_each_of_n_answers_has_a_seed_of_its_own_and_none_means_draw_one(seed, n):
    body = {"messages": [{"role": "user", "content": "x"}], "seed": seed, "n": n}
    turns = task_of(Call("chat", "m", body), TRAITS)["rounds"]
    seeds = [(turn["body"]["seed"] + i) % 2**32 for turn in turns for i in range(turn["body"]["n"])]
    assert all(0 <= turn["body"]["seed"] < SEEDS for turn in turns)
    assert [turn["first"] for turn in turns] == list(range(0, n, 3))
    assert len(seeds) == n
    assert len(set(seeds)) >= n - 1  # where the seeds wrap round, two may meet


@given(st.text())
def test_text_is_composed_for_models_that_were_trained_so(text):
    body = {"messages": [{"role": "user", "content": text + "e\u0301"}]}
    content = task_of(Call("chat", "m", body), TRAITS)["rounds"][0]["body"]["messages"][0]["content"]
    assert content.endswith("\u00e9")
