"""The vendors' own clients drive every endpoint, sync, async and streaming, on a real gateway over a socket."""

import asyncio
import importlib.util
import json
from pathlib import Path

import anthropic
import openai
import pytest

GATEWAY = Path(__file__).parents[1] / "serve" / "gateway.py"
SPEC = importlib.util.spec_from_file_location("gateway", GATEWAY)
world = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(world)

QUESTION = [{"role": "user", "content": "When was the claim filed?"}]
CALL = {"id": "call_1", "type": "function", "function": {"name": "look", "arguments": '{"claim": "Ü-7"}'}}
SCHEMA = {"type": "object", "properties": {"claim": {"type": "string"}}}


@pytest.fixture
def home(tmp_path):
    world.furnish(tmp_path)
    return tmp_path


def calling(call):
    """A model that calls the tool once and then says what the tool said."""
    last = call.body["messages"][-1]
    if last["role"] == "tool":
        return f"It says: {last['content']}"
    return {"role": "assistant", "content": "", "tool_calls": [CALL]}


def openai_clients(gateway):
    options = {"base_url": gateway.url, "api_key": world.SECRET, "max_retries": 0}
    return openai.OpenAI(**options), openai.AsyncOpenAI(**options)


def anthropic_clients(gateway):
    url = gateway.url.removesuffix("/v1")
    options = {"base_url": url, "api_key": world.SECRET, "max_retries": 0}
    return anthropic.Anthropic(**options), anthropic.AsyncAnthropic(**options)


async def both(gateway, clients, ask):
    """What the sync and the async client give for the same question."""
    sync, other = clients(gateway)
    with sync:
        first = await asyncio.to_thread(ask, sync)
    async with other:
        return first, await ask(other)


async def test_openai_completions(home):
    async with world.running(home) as gateway:
        for answer in await both(
            gateway, openai_clients, lambda api: api.completions.create(model="gpt-4o", prompt="Once")
        ):
            assert answer.choices[0].text == world.REPLY
            assert answer.object == "text_completion"
        sync, other = openai_clients(gateway)
        with sync:
            parts = await asyncio.to_thread(
                lambda: list(sync.completions.create(model="gpt-4o", prompt="Once", stream=True))
            )
        assert "".join(part.choices[0].text for part in parts if part.choices) == world.REPLY
        await other.close()
        assert {entry["route"] for entry in gateway.entries("answer")} == {"/v1/completions"}


@pytest.mark.parametrize("encoding", ["float", "base64", None])
async def test_openai_embeddings(home, encoding):
    options = {"encoding_format": encoding} if encoding else {}  # by itself the client asks for base64
    async with world.running(home) as gateway:
        for answer in await both(
            gateway,
            openai_clients,
            lambda api: api.embeddings.create(model="gpt-4o", input=["a", "b", "a"], **options),
        ):
            a, b, again = (item.embedding for item in answer.data)
            if encoding == "base64":
                assert a == again != b
            else:
                assert a == pytest.approx(again)
                assert a != b
            assert answer.usage.prompt_tokens == 3
        assert gateway.entries("answer")[0]["completion_tokens"] == 0


async def test_openai_tools_go_there_and_back(home):
    tools = [{"type": "function", "function": {"name": "look", "parameters": SCHEMA}}]
    async with world.running(home, reply=calling) as gateway:
        sync, other = openai_clients(gateway)
        sync.close()
        async with other as api:
            first = await api.chat.completions.create(model="gpt-4o", messages=QUESTION, tools=tools)
            (call,) = first.choices[0].message.tool_calls
            assert json.loads(call.function.arguments) == {"claim": "Ü-7"}
            history = [
                *QUESTION,
                first.choices[0].message.model_dump(exclude_none=True),
                {"role": "tool", "tool_call_id": call.id, "content": "Monday"},
            ]
            second = await api.chat.completions.create(model="gpt-4o", messages=history, tools=tools)
            assert second.choices[0].message.content == "It says: Monday"
            async with api.chat.completions.stream(model="gpt-4o", messages=QUESTION, tools=tools) as stream:
                final = await stream.get_final_completion()
            assert final.choices[0].message.tool_calls[0].function.name == "look"


async def test_openai_responses(home):
    async with world.running(home) as gateway:
        for answer in await both(
            gateway,
            openai_clients,
            lambda api: api.responses.create(model="gpt-4o", input="When?", instructions="Be brief."),
        ):
            assert (answer.output_text, answer.status, answer.model) == (world.REPLY, "completed", "gpt-4o")
            assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
            assert answer.store is False
        sync, other = openai_clients(gateway)

        def talk():
            with sync, sync.responses.stream(model="gpt-4o", input="When?") as stream:
                kinds = [event.type for event in stream]
                return kinds, stream.get_final_response()

        kinds, final = await asyncio.to_thread(talk)
        assert final.output_text == world.REPLY
        assert kinds[:2] == ["response.created", "response.in_progress"]
        assert kinds[-1] == "response.completed"
        await other.close()


async def test_openai_responses_tools_go_there_and_back(home):
    tools = [{"type": "function", "name": "look", "parameters": SCHEMA, "strict": False}]
    async with world.running(home, reply=calling) as gateway:
        sync, other = openai_clients(gateway)
        sync.close()
        async with other as api:
            first = await api.responses.create(model="gpt-4o", input="When?", tools=tools)
            (call,) = first.output
            assert (call.type, json.loads(call.arguments)) == ("function_call", {"claim": "Ü-7"})
            history = [
                {"role": "user", "content": "When?"},
                call.model_dump(exclude_none=True),
                {"type": "function_call_output", "call_id": call.call_id, "output": "Monday"},
            ]
            second = await api.responses.create(model="gpt-4o", input=history, tools=tools)
            assert second.output_text == "It says: Monday"
            async with api.responses.stream(model="gpt-4o", input="When?", tools=tools) as stream:
                final = await stream.get_final_response()
            assert final.output[0].name == "look"


async def test_several_choices_arrive_whole(home):
    async with world.running(home) as gateway:
        sync, other = openai_clients(gateway)
        sync.close()
        async with other as api:
            answer = await api.chat.completions.create(model="gpt-4o", messages=QUESTION, n=3)
            assert [choice.message.content for choice in answer.choices] == [world.REPLY] * 3
            texts = ["", "", ""]
            async for event in await api.chat.completions.create(
                model="gpt-4o", messages=QUESTION, n=3, stream=True
            ):
                for choice in event.choices:
                    texts[choice.index] += choice.delta.content or ""
            assert texts == [world.REPLY] * 3


async def test_anthropic_messages(home):
    async with world.running(home) as gateway:
        for answer in await both(
            gateway,
            anthropic_clients,
            lambda api: api.messages.create(
                model="gpt-4o", max_tokens=100, messages=QUESTION, system="Be brief."
            ),
        ):
            assert answer.content[0].text == world.REPLY
            assert (answer.stop_reason, answer.model, answer.role) == ("end_turn", "gpt-4o", "assistant")
        assert answer.usage.output_tokens == gateway.entries("answer")[0]["completion_tokens"]
        assert {entry["route"] for entry in gateway.entries("answer")} == {"/v1/messages"}


async def test_anthropic_streams(home):
    async with world.running(home) as gateway:
        sync, other = anthropic_clients(gateway)

        def talk():
            with sync, sync.messages.stream(model="gpt-4o", max_tokens=100, messages=QUESTION) as stream:
                return "".join(stream.text_stream), stream.get_final_message()

        text, final = await asyncio.to_thread(talk)
        assert text == final.content[0].text == world.REPLY
        async with other, other.messages.stream(model="gpt-4o", max_tokens=100, messages=QUESTION) as stream:
            assert (await stream.get_final_message()).usage.output_tokens == final.usage.output_tokens > 0


async def test_anthropic_tools_go_there_and_back(home):
    tools = [{"name": "look", "description": "look it up", "input_schema": SCHEMA}]
    async with world.running(home, reply=calling) as gateway:
        sync, other = anthropic_clients(gateway)
        sync.close()
        async with other as api:
            options = {"model": "gpt-4o", "max_tokens": 100, "tools": tools}
            first = await api.messages.create(**options, messages=QUESTION)
            assert first.stop_reason == "tool_use"
            call = next(block for block in first.content if block.type == "tool_use")
            assert (call.name, call.input) == ("look", {"claim": "Ü-7"})
            result = {"type": "tool_result", "tool_use_id": call.id, "content": "Monday"}
            history = [
                *QUESTION,
                {"role": "assistant", "content": [block.model_dump() for block in first.content]},
                {"role": "user", "content": [result]},
            ]
            second = await api.messages.create(**options, messages=history)
            assert second.content[0].text == "It says: Monday"


async def test_anthropic_counts_tokens_and_lists_models(home):
    async with world.running(home) as gateway:
        for count in await both(
            gateway,
            anthropic_clients,
            lambda api: api.messages.count_tokens(model="gpt-4o", messages=QUESTION),
        ):
            assert count.input_tokens == -(-len(QUESTION[0]["content"]) // 4)
        for page in await both(gateway, anthropic_clients, lambda api: api.models.list()):
            assert [model.id for model in page.data] == ["gpt-4o"]
        for model in await both(gateway, anthropic_clients, lambda api: api.models.retrieve("gpt-4o")):
            assert model.display_name == "gpt-4o"


async def test_each_vendors_client_raises_its_own_errors(home):
    async with world.running(home) as gateway:
        _, api = openai_clients(gateway)
        async with api:
            with pytest.raises(openai.NotFoundError):
                await api.chat.completions.create(model="gpt-5", messages=QUESTION)
            with pytest.raises(openai.BadRequestError) as caught:
                await api.chat.completions.create(model="gpt-4o", messages=QUESTION, temperature=9)
            assert caught.value.param == "temperature"
            with pytest.raises(openai.AuthenticationError):
                await api.with_options(api_key="wrong").models.list()
        _, api = anthropic_clients(gateway)
        async with api:
            with pytest.raises(anthropic.NotFoundError):
                await api.messages.create(model="gpt-5", max_tokens=5, messages=QUESTION)
            with pytest.raises(anthropic.BadRequestError):
                await api.messages.create(model="gpt-4o", max_tokens=-1, messages=QUESTION)
            with pytest.raises(anthropic.AuthenticationError):
                await api.with_options(api_key="wrong").models.list()


async def test_a_refused_model_is_permission_denied_for_both(home):
    async with world.running(home) as gateway:
        (scan,) = gateway.store.list_evidence(predicate_type=world.SCAN)
        world.revoke(home, scan)
        _, api = openai_clients(gateway)
        async with api:
            with pytest.raises(openai.PermissionDeniedError, match="scan-clean"):
                await api.embeddings.create(model="gpt-4o", input="x")
        _, api = anthropic_clients(gateway)
        async with api:
            for ask in (
                api.messages.create(model="gpt-4o", max_tokens=5, messages=QUESTION),
                api.messages.count_tokens(model="gpt-4o", messages=QUESTION),
            ):
                with pytest.raises(anthropic.PermissionDeniedError, match="scan-clean"):
                    await ask
        assert [entry["route"] for entry in gateway.entries("refusal")] == [
            "/v1/embeddings", "/v1/messages", "/v1/messages/count_tokens",
        ]  # fmt: skip
