"""Laws of Anthropic's wire; test_anthropic_sdk.py asks the vendor's own client."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.digest import Digest
from steelyard.errors import Malformed
from steelyard.wire import anthropic
from steelyard.wire.anthropic_content import MAX_MESSAGES
from steelyard.wire.anthropic_request import MAX_STOP_CHARS, MAX_STOPS, MAX_TOOLS
from steelyard.wire.body import dump
from steelyard.wire.call import Problem, Reply
from steelyard.wire.openai_chat import parse_chat

REPLY = Reply("f00d", 1_700_000_000, "gpt-4o", Digest("sha256", "a" * 64))
LEAST = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
TOOL = {"name": "look", "input_schema": {"type": "object", "properties": {"at": {"type": "string"}}}}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
TYPES = (
    "text",
    "image",
    "document",
    "tool_use",
    "tool_result",
    "thinking",
    "redacted_thinking",
    "search_result",
    "x",
)
FIELDS = (
    "text",
    "source",
    "id",
    "name",
    "input",
    "tool_use_id",
    "content",
    "thinking",
    "title",
    "data",
    "url",
    "type",
)
blocks = st.fixed_dictionaries(
    {"type": st.sampled_from(TYPES)}, optional={name: json_values for name in FIELDS if name != "type"}
)
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(("user", "assistant", "system", "tool"))},
    optional={"content": json_values | st.lists(blocks, max_size=4)},
)
ANY_VALUE = (
    "model", "max_tokens", "temperature", "system", "tools", "tool_choice", "thinking", "stop_sequences", "metadata",
    "output_config", "stream", "service_tier", "top_k", "betas",
)  # fmt: skip
requests = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(ANY_VALUE, json_values),
        "messages": st.lists(messages, max_size=4) | json_values,
    },
)  # fmt: skip


def asked(**fields):
    return anthropic.parse_messages(json.dumps({**LEAST, **fields}).encode())


def sent(**fields):
    return asked(**fields).call.body


def turns(*pairs, **fields):
    return sent(messages=[{"role": role, "content": content} for role, content in pairs], **fields)[
        "messages"
    ]


@given(st.binary())
def test_arbitrary_bytes_are_malformed_or_a_call(data):
    _parses(data)


@given(requests, st.booleans())
def test_arbitrary_json_is_malformed_or_a_call(body, is_filled):
    _parses(json.dumps({**LEAST, **body} if is_filled else body).encode())


def _parses(data):
    for parse in (anthropic.parse_messages, anthropic.parse_count):
        try:
            found = parse(data)
        except Malformed as error:
            rule = error.rule
        else:
            call = getattr(found, "call", found)
            rule = "anthropic/" + call.kind
            parse_chat(dump(call.body))  # it is a request of OpenAI's
        assert rule.startswith("anthropic/")


# Requests.


def test_the_least_request():
    assert sent() == {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
    assert not asked().call.stream
    assert asked(stream=True).call.stream


def test_a_system_prompt_is_the_first_message_and_its_blocks_are_paragraphs():
    assert sent(system="be brief")["messages"][0] == {"role": "system", "content": "be brief"}
    system = [
        {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "b"},
    ]
    assert sent(system=system)["messages"][0] == {"role": "system", "content": "a\n\nb"}
    assert sent(system=[]) == sent()


def test_turns_of_one_role_become_one_message():
    assert turns(
        ("user", "a"), ("user", [{"type": "text", "text": "b"}]), ("assistant", "c"), ("user", "d")
    ) == [
        {"role": "user", "content": "a\n\nb"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
    ]


def test_a_last_turn_of_the_assistant_is_continued():
    body = sent(messages=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "The"}])
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)


def test_a_history_of_tools():
    history = turns(
        ("user", "where?"),
        ("assistant", [
            {"type": "thinking", "thinking": "hm", "signature": "s"},
            {"type": "redacted_thinking", "data": "opaque"},
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "t1", "name": "look", "input": {"at": "ü"}},
            {"type": "tool_use", "id": "t2", "name": "look", "input": {}},
        ]),
        ("user", [
            {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "x"},
                                                                     {"type": "text", "text": "y"}]},
            {"type": "tool_result", "tool_use_id": "t2", "content": "no", "is_error": True},
            {"type": "text", "text": "and?"},
        ]),
        tools=[TOOL],
    )  # fmt: skip
    assert history[1:] == [
        {"role": "assistant", "content": "I look.", "reasoning_content": "hm", "tool_calls": [
            {"id": "t1", "type": "function", "function": {"name": "look", "arguments": '{"at":"ü"}'}},
            {"id": "t2", "type": "function", "function": {"name": "look", "arguments": "{}"}},
        ]},
        {"role": "tool", "tool_call_id": "t1", "content": "x\n\ny"},
        {"role": "tool", "tool_call_id": "t2", "content": "Error: no"},
        {"role": "user", "content": "and?"},
    ]  # fmt: skip


def test_images_and_documents():
    png = {"type": "base64", "media_type": "image/png", "data": "iVBO"}
    pdf = {"type": "base64", "media_type": "application/pdf", "data": "JVBE"}
    (message,) = turns(
        ("user", [
            {"type": "text", "text": "see"},
            {"type": "image", "source": png},
            {"type": "image", "source": {"type": "url", "url": "https://example.org/a.png"}},
            {"type": "document", "title": "T", "source": {"type": "text", "media_type": "text/plain", "data": "D"}},
            {"type": "document", "source": pdf},
            {"type": "search_result", "title": "t", "source": "s", "content": [{"type": "text", "text": "c"}]},
        ]),
    )  # fmt: skip
    assert message["content"] == [
        {"type": "text", "text": "see"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBO"}},
        {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}},
        {"type": "text", "text": "T"},
        {"type": "text", "text": "D"},
        {
            "type": "file",
            "file": {"filename": "document.pdf", "file_data": "data:application/pdf;base64,JVBE"},
        },
        {"type": "text", "text": "t\n\ns\n\nc"},
    ]


def test_an_image_in_a_tools_result_stands_in_the_message_behind_it():
    image = {"type": "image", "source": {"type": "url", "url": "u"}}
    assert turns(("user", [{"type": "tool_result", "tool_use_id": "t", "content": [image]}])) == [
        {"role": "tool", "tool_call_id": "t", "content": "(see below)"},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]},
    ]


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        ({"type": "auto"}, {"tool_choice": "auto"}),
        ({"type": "none"}, {"tool_choice": "none"}),
        ({"type": "any"}, {"tool_choice": "required"}),
        (
            {"type": "tool", "name": "look", "disable_parallel_tool_use": True},
            {
                "tool_choice": {"type": "function", "function": {"name": "look"}},
                "parallel_tool_calls": False,
            },
        ),
    ],
)
def test_tools_and_the_choice_of_them(choice, wanted):
    tool = {**TOOL, "type": "custom", "description": "looks", "strict": True, "cache_control": None}
    body = sent(tools=[tool], tool_choice=choice)
    function = {"name": "look", "description": "looks", "strict": True, "parameters": TOOL["input_schema"]}
    assert body["tools"] == [{"type": "function", "function": function}]
    assert {name: body.get(name) for name in wanted} == wanted


def test_sampling_and_the_rest():
    body = sent(
        temperature=0.5, top_p=0.9, top_k=5, stop_sequences=["X"], metadata={"user_id": "u"}, seed=3,
        service_tier="auto", cache_control={"type": "ephemeral"}, speed="standard", repetition_penalty=1.1,
    )  # fmt: skip
    assert body == {
        **sent(), "temperature": 0.5, "top_p": 0.9, "top_k": 5, "stop": ["X"], "user": "u", "seed": 3,
        "repetition_penalty": 1.1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("thinking", "wanted"),
    [
        (
            {"type": "enabled", "budget_tokens": 8},
            {"chat_template_kwargs": {"enable_thinking": True}, "thinking_budget_tokens": 8},
        ),
        ({"type": "adaptive"}, {"chat_template_kwargs": {"enable_thinking": True}}),
        ({"type": "disabled"}, {"chat_template_kwargs": {"enable_thinking": False}}),
    ],
)
def test_thinking(thinking, wanted):
    assert sent(thinking=thinking) == {**sent(), **wanted}


def test_structured_output_and_effort():
    schema = {"type": "object", "properties": {}}
    body = sent(output_config={"format": {"type": "json_schema", "schema": schema}, "effort": "max"})
    assert body["response_format"]["json_schema"]["schema"] == schema
    assert body["reasoning_effort"] == "high"


BLOCK = {"role": "user", "content": [{"type": "text", "text": "x"}]}


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"model": ""}, "model"),
        ({"model": "x" * 257}, "model"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [BLOCK] * (MAX_MESSAGES + 1)}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "assistant", "content": [{"type": "image"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "file"}}]}]},
         "messages[0].content[0].source.type"),
        ({"messages": [{"role": "user", "content": [{"type": "document", "citations": {"enabled": True}}]}]},
         "messages[0].content[0].citations"),
        ({"system": [{"type": "image"}]}, "system[0].type"),
        ({"temperature": 1.1}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_k": 1.5}, "top_k"),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"stop_sequences": ["x" * (MAX_STOP_CHARS + 1)]}, "stop_sequences"),
        ({"stop_sequences": ["x"] * (MAX_STOPS + 1)}, "stop_sequences"),
        ({"tools": [TOOL] * (MAX_TOOLS + 1)}, "tools"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"name": "x"}]}, "tools[0].input_schema"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "other"}}, "tool_choice.name"),
        ({"tools": [TOOL], "tool_choice": {"type": "required"}}, "tool_choice.type"),
        ({"thinking": {"type": "enabled", "budget_tokens": 9}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "hard"}}, "thinking.type"),
        ({"output_config": {"effort": "none"}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "json_object"}}}, "output_config.format"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"stream": 1}, "stream"),
        ({"mcp_servers": [{}]}, "mcp_servers"),
        ({"container": "c"}, "container"),
        ({"n": 2}, "n"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(fields, place):
    with pytest.raises(Malformed) as caught:
        asked(**fields)
    assert caught.value.rule == f"anthropic/{place}"


def test_limits_hold_exactly():
    asked(
        messages=[BLOCK] * MAX_MESSAGES,
        tools=[TOOL] * MAX_TOOLS,
        stop_sequences=["x" * MAX_STOP_CHARS] * MAX_STOPS,
        model="x" * 256,
    )


def test_a_count_needs_no_max_tokens():
    body = {name: value for name, value in LEAST.items() if name != "max_tokens"}
    call = anthropic.parse_count(json.dumps({**body, "system": "s"}).encode())
    assert (call.kind, call.model, len(call.body["messages"])) == ("chat", "m", 2)
    assert anthropic.counted(7) == b'{"input_tokens":7}'


# Answers.

words = st.text(min_size=1, max_size=8)
arguments = st.dictionaries(words, st.integers() | words, max_size=3)
calls = st.lists(st.tuples(words, arguments), max_size=3)


def emitter(**fields):
    return asked(**fields).emitter(REPLY)


def chunk(delta=None, finish=None, **fields):
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return {"choices": choices, **fields}


@st.composite
def answers(draw):
    """The chunks of an answer, and the same answer as a whole."""
    thought, text, tools = draw(st.text()), draw(st.text()), draw(calls)
    finish = "tool_calls" if tools else draw(st.sampled_from(("stop", "length", "content_filter")))
    chunks = [chunk({"role": "assistant", "content": None})]
    chunks += [chunk({"reasoning_content": piece}) for piece in _cut(draw, thought)]
    chunks += [chunk({"content": piece}) for piece in _cut(draw, text)]
    called = []
    for index, (name, given_) in enumerate(tools):
        written = json.dumps(given_)
        head = {
            "index": index,
            "id": f"c{index}",
            "type": "function",
            "function": {"name": name, "arguments": ""},
        }
        chunks.append(chunk({"tool_calls": [head]}))
        for piece in _cut(draw, written):
            chunks.append(chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]}))
        called.append({**head, "function": {"name": name, "arguments": written}})
    usage = {"prompt_tokens": 5, "completion_tokens": 9, "total_tokens": 14,
             "prompt_tokens_details": {"cached_tokens": draw(st.integers(0, 5))}}  # fmt: skip
    chunks += [chunk({}, finish), chunk(usage=usage)]
    message = {
        "role": "assistant",
        "content": text or None,
        "reasoning_content": thought,
        "tool_calls": called,
    }
    return chunks, {"choices": [{"index": 0, "message": message, "finish_reason": finish}], "usage": usage}


def _cut(draw, text):
    ends = sorted(draw(st.lists(st.integers(0, len(text)), max_size=3)))
    return [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)], strict=True) if a < b]


def events_of(data):
    found = []
    for event in data.decode().split("\n\n")[:-1]:
        name, body = event.split("\n", 1)
        parsed = json.loads(body.removeprefix("data: "))
        assert name == f"event: {parsed['type']}"
        found.append(parsed)
    return found


def accumulated(events):
    """The message that the events add up to, by Anthropic's description of them."""
    message = None
    for event in events:
        kind = event["type"]
        if kind == "message_start":
            message = event["message"]
        elif kind == "content_block_start":
            assert event["index"] == len(message["content"])
            message["content"].append({**event["content_block"], "partial": ""})
        elif kind == "content_block_delta":
            block, delta = message["content"][event["index"]], event["delta"]
            for name in ("text", "thinking", "signature"):
                if name in delta:
                    block[name] += delta[name]
            block["partial"] += delta.get("partial_json", "")
        elif kind == "message_delta":
            message |= event["delta"]
            message["usage"] |= event["usage"]
    for block in message["content"]:
        partial = block.pop("partial")
        if block["type"] == "tool_use":
            block["input"] = json.loads(partial or "{}")
    return message


@given(answers(), st.data())
def test_a_stream_cut_anywhere_gives_the_same_bytes_and_the_whole_message(answer, data):
    chunks, whole = answer
    one = emitter()
    at_once = one.start() + one.chunks(json.loads(json.dumps(chunks))) + one.end()
    many = emitter()
    pieces = many.start()
    for index in range(len(chunks)):
        pieces += many.chunks([])
        pieces += (
            many.chunks(chunks[index : index + 1])
            if data.draw(st.booleans())
            else many.chunks([chunks[index]])
        )
    pieces += many.end()
    assert pieces == at_once
    assert accumulated(events_of(at_once)) == json.loads(emitter().whole(whole))


@given(answers())
def test_one_block_is_open_at_a_time_and_the_events_come_in_order(answer):
    one = emitter()
    events = events_of(one.start() + one.chunks(answer[0]) + one.end())
    assert [event["type"] for event in events[:2]] == ["message_start", "ping"]
    assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
    is_open = None
    for event in events[2:-2]:
        if event["type"] == "content_block_start":
            assert is_open is None
            is_open = event["index"]
        assert event["index"] == is_open
        if event["type"] == "content_block_stop":
            is_open = None
    assert is_open is None


@given(answers())
def test_an_answer_sent_back_as_history_keeps_its_meaning(answer):
    """OpenAI -> Anthropic -> OpenAI."""
    message = answer[1]["choices"][0]["message"]
    told = json.loads(emitter(tools=[TOOL]).whole(answer[1]))
    history = [{"role": "user", "content": "q"}, {"role": "assistant", "content": told["content"]}]
    back = sent(messages=[*history, {"role": "user", "content": "next"}])["messages"][1]
    assert (back["content"] or "") == (message["content"] or "")
    assert back.get("reasoning_content", "") == message["reasoning_content"]
    assert [
        (call["id"], call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in back.get("tool_calls", [])
    ] == [
        (call["id"], call["function"]["name"], json.loads(call["function"]["arguments"]))
        for call in message["tool_calls"]
    ]


def ended(finish, stop=None, told=9, **fields):
    choice = {"index": 0, "message": {"content": "x"}, "finish_reason": finish, "stop_reason": stop}
    usage = {"prompt_tokens": 1, "completion_tokens": told}
    found = json.loads(emitter(**fields).whole({"choices": [choice], "usage": usage}))
    return found["stop_reason"], found["stop_sequence"]


@pytest.mark.parametrize(
    ("finish", "stop", "told", "wanted"),
    [
        ("stop", None, 3, ("end_turn", None)),
        ("stop", "END", 3, ("stop_sequence", "END")),
        ("stop", "</s>", 3, ("end_turn", None)),  # the engine's own, not the caller's
        ("stop", 128009, 3, ("end_turn", None)),  # vLLM: a token
        ("length", None, 9, ("max_tokens", None)),
        ("length", None, 8, ("model_context_window_exceeded", None)),
        ("tool_calls", None, 3, ("tool_use", None)),
        ("content_filter", None, 3, ("refusal", None)),
    ],
)
def test_why_an_answer_ended(finish, stop, told, wanted):
    assert ended(finish, stop, told, stop_sequences=["END"]) == wanted


def test_usage_in_the_first_chunk_is_shown_at_the_start():
    one = emitter()
    usage = {"prompt_tokens": 12, "completion_tokens": 0, "prompt_tokens_details": {"cached_tokens": 4}}
    event = events_of(one.start() + one.chunks([chunk({"content": "x"}, usage=usage)]))[0]
    assert event["message"]["usage"] == {
        "input_tokens": 8, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 4, "output_tokens": 0,
    }  # fmt: skip


def test_thinking_that_was_not_wanted_is_not_shown():
    chunks = [chunk({"reasoning_content": "secret"}), chunk({"content": "x"}, "stop")]

    def shown(**thinking):
        one = emitter(thinking=thinking)
        return accumulated(events_of(one.chunks(chunks) + one.end()))["content"]

    text = {"type": "text", "text": "x"}
    assert shown(type="disabled") == [text]
    assert shown(type="adaptive", display="omitted") == [
        {"type": "thinking", "thinking": "", "signature": "f00d"}, text]  # fmt: skip


def test_the_rest_of_an_earlier_call_goes_to_its_own_block():
    def part(index, arguments, **more):
        return chunk({"tool_calls": [{"index": index, "function": {"arguments": arguments, **more}}]})

    one = emitter()
    chunks = [part(0, '{"a"', name="f"), part(1, '{"b":2}', name="g"), part(0, ":1}")]
    content = accumulated(events_of(one.chunks(chunks) + one.end()))["content"]
    assert [(block["name"], block["input"]) for block in content] == [("f", {"a": 1}), ("g", {"b": 2})]


@pytest.mark.parametrize(
    "arguments", ['{"a": 1', "[1]", "NaN", '{"a": NaN}', '{"a": "\\ud800"}', "[" * 100_000]
)
def test_arguments_that_are_no_object_leave_the_input_empty(arguments):
    tool = {"id": "c", "function": {"name": "f", "arguments": arguments}}
    choice = {"message": {"content": None, "tool_calls": [tool]}, "finish_reason": "length"}
    found = json.loads(emitter().whole({"choices": [choice], "usage": {}}))
    assert found["content"] == [{"type": "tool_use", "id": "c", "name": "f", "input": {}}]


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"), (401, "authentication_error"), (402, "billing_error"),
        (403, "permission_error"), (404, "not_found_error"), (405, "invalid_request_error"),
        (413, "request_too_large"), (429, "rate_limit_error"), (500, "api_error"), (502, "api_error"),
        (503, "overloaded_error"), (504, "timeout_error"), (529, "overloaded_error"),
    ],
)  # fmt: skip
def test_errors_have_anthropics_shape(status, kind):
    problem = Problem(status, "why", code="c", extra={"receipt": "r1", "rules": ["x"]})
    wanted = {"receipt": "r1", "rules": ["x"], "type": kind, "message": "why"}
    body = {"type": "error", "error": wanted, "request_id": "r1"}
    assert json.loads(anthropic.error(problem)) == body
    assert events_of(emitter().broken(problem)) == [body]


def test_the_list_of_models():
    found = json.loads(anthropic.models(["b", "a"], 1_700_000_000))
    assert (found["first_id"], found["last_id"], found["has_more"]) == ("a", "b", False)
    assert found["data"][0] == json.loads(anthropic.model("a", 1_700_000_000)) == {
        "type": "model", "id": "a", "display_name": "a", "created_at": "2023-11-14T22:13:20Z", "lifecycle": "active",
    }  # fmt: skip
    assert json.loads(anthropic.models([], 0))["first_id"] is None
