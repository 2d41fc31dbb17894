"""Anthropic's Messages request as OpenAI's chat request.

    Anthropic                          OpenAI
    system, messages of role system    messages of role system
    text, document, search_result      text (blocks are paragraphs: joined with an empty line)
    image                              image_url part
    document with a PDF                file part
    tool_use                           tool_calls
    tool_result                        message of role tool; its images in the user message behind it
    thinking                           reasoning_content; redacted_thinking has nothing to read and goes
    consecutive turns of one role      one message, as Anthropic combines them
    a last turn of the assistant       continue_final_message (llama.cpp continues by itself)
    tools, tool_choice                 functions; auto, any, tool, none
    thinking, output_config.effort     chat_template_kwargs.enable_thinking, thinking_budget_tokens, reasoning_effort
    output_config.format               response_format

Refused by name: tools that Anthropic's servers run or that its models know by heart, files by id, citations. Taken
and dropped, because nothing here hangs on them: cache_control, service_tier, betas.

Source: the types of anthropic-sdk-python 2.12 (message_create_params, content_block_param).
"""

from collections.abc import Callable, Mapping
from typing import Any

from steelyard.wire.anthropic_content import mapping, name_of, system_of, text_of, turns_of, wrong
from steelyard.wire.call import Object

MAX_MODEL_CHARS = 256
MAX_TOKENS = 1 << 24
MAX_TOOLS = 256
MAX_STOPS = 64
MAX_STOP_CHARS = 256

# What of Anthropic's own fields changes nothing here, and what cannot be done.
_DROPPED = frozenset({
    "betas", "cache_control", "context_management", "diagnostics", "inference_geo", "speed", "user_profile_id",
    "workspace_id",
})  # fmt: skip
_UNDOABLE = frozenset({"container", "mcp_servers"})
_PLAIN = frozenset(
    {"max_tokens", "messages", "model", "output_format", "stream", "system", "tool_choice", "tools"}
)
# OpenAI's names mean something else to whoever answers; nobody checked them here.
_OPENAIS = frozenset({
    "audio", "chat_template_kwargs", "frequency_penalty", "function_call", "functions", "logit_bias", "logprobs",
    "max_completion_tokens", "modalities", "n", "parallel_tool_calls", "prediction", "presence_penalty",
    "reasoning_effort", "response_format", "stop", "store", "stream_options", "top_logprobs", "user", "verbosity",
    "web_search_options",
})  # fmt: skip

_EFFORTS = {"low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}


def chat_of(body: Mapping[str, Any], *, counts_only: bool = False) -> Object:
    """OpenAI's chat request. counts_only: it will not be answered, so max_tokens may be missing."""
    asked: Object = {
        "model": _model(body),
        "messages": system_of(body.get("system")) + turns_of(body.get("messages")),
    }
    last = asked["messages"][-1]
    if last["role"] == "assistant" and "tool_calls" not in last:
        asked |= {"continue_final_message": True, "add_generation_prompt": False}
    if not counts_only or body.get("max_tokens") is not None:
        asked["max_tokens"] = _integer(body, "max_tokens", 1, MAX_TOKENS)
    if body.get("tools") or body.get("tool_choice"):
        asked |= _tools(body)
    if body.get("output_format"):
        asked |= _output(body)
    for name in body:
        if name not in _PLAIN and body[name] is not None:
            asked |= _field(name, body)
    budget = asked.get("thinking_budget_tokens")
    if budget is not None and budget >= asked.get("max_tokens", MAX_TOKENS):
        raise wrong("thinking.budget_tokens", "thinking.budget_tokens is not below max_tokens")
    return asked


def _field(name: str, body: Mapping[str, Any]) -> Object:
    """What a field that not every request has becomes. One that nobody knows passes through."""
    read = _FIELDS.get(name)
    if read is not None:
        return read(body)
    if name in _OPENAIS:
        raise wrong(name, f"{name} is no field of the Messages API")
    if name in _UNDOABLE and body[name]:
        raise wrong(name, f"{name} is not supported by this gateway")
    return {} if name in _DROPPED or name in _UNDOABLE else {name: body[name]}


def _user_id(body: Mapping[str, Any]) -> Object:
    user = mapping(body["metadata"], "metadata").get("user_id")
    return {} if user is None else {"user": text_of(user, "metadata.user_id")}


def _tier(body: Mapping[str, Any]) -> Object:
    if body["service_tier"] not in ("auto", "standard_only"):
        raise wrong("service_tier", "service_tier is not one of auto, standard_only")
    return {}


# Tools, thinking, output.


def _tools(body: Mapping[str, Any]) -> Object:
    given = body.get("tools") or []
    if not isinstance(given, list) or len(given) > MAX_TOOLS:
        raise wrong("tools", f"tools is not a list of at most {MAX_TOOLS}")
    tools = [_tool(mapping(tool, f"tools[{index}]"), f"tools[{index}]") for index, tool in enumerate(given)]
    choice = mapping(body.get("tool_choice") or {"type": "auto"}, "tool_choice")
    kind = choice.get("type")
    if kind not in ("auto", "any", "tool", "none"):
        raise wrong("tool_choice.type", "tool_choice.type is not one of auto, any, tool, none")
    if not tools:
        if kind in ("any", "tool"):
            raise wrong("tool_choice", f"tool_choice is {kind}, yet there are no tools")
        return {}
    wanted: Any = {"any": "required"}.get(kind, kind)
    if kind == "tool":
        name = name_of(choice, "tool_choice")
        if name not in [tool["function"]["name"] for tool in tools]:
            raise wrong("tool_choice.name", "tool_choice.name is not in tools")
        wanted = {"type": "function", "function": {"name": name}}
    asked: Object = {"tools": tools, "tool_choice": wanted}
    if choice.get("disable_parallel_tool_use") and kind != "none":
        asked["parallel_tool_calls"] = False
    return asked


def _tool(tool: Mapping[str, Any], place: str) -> Object:
    kind = tool.get("type")
    if kind not in (None, "custom"):
        raise wrong(
            f"{place}.type", f"{place}: the tool {kind!r} runs at Anthropic or is known to its models alone"
        )
    function: Object = {
        "name": name_of(tool, place),
        "parameters": dict(mapping(tool.get("input_schema"), f"{place}.input_schema")),
    }
    if tool.get("description") is not None:
        function["description"] = text_of(tool["description"], f"{place}.description")
    if tool.get("strict"):
        function["strict"] = True
    return {"type": "function", "function": function}


def _thinking(body: Mapping[str, Any]) -> Object:
    given = body["thinking"]
    kind = mapping(given, "thinking").get("type")
    if kind not in ("enabled", "disabled", "adaptive", "between_tools"):
        raise wrong("thinking.type", "thinking.type is not one of enabled, disabled, adaptive, between_tools")
    asked: Object = {"chat_template_kwargs": {"enable_thinking": kind != "disabled"}}
    if kind == "enabled":
        budget = _integer(given, "budget_tokens", 1, MAX_TOKENS, "thinking.")
        asked["thinking_budget_tokens"] = budget
    return asked


def _output(body: Mapping[str, Any]) -> Object:
    config = mapping(body.get("output_config") or {}, "output_config")
    asked: Object = {}
    effort = config.get("effort")
    if effort is not None:
        if effort not in _EFFORTS:
            raise wrong("output_config.effort", f"output_config.effort is not one of {', '.join(_EFFORTS)}")
        asked["reasoning_effort"] = _EFFORTS[effort]
    form = config.get("format") or body.get("output_format")
    if form is not None:
        if mapping(form, "output_config.format").get("type") != "json_schema":
            raise wrong("output_config.format", "output_config.format.type is not json_schema")
        schema = mapping(form.get("schema"), "output_config.format.schema")
        wrapper = {"name": "output", "schema": dict(schema), "strict": True}
        asked["response_format"] = {"type": "json_schema", "json_schema": wrapper}
    return asked


# Fields.


def _model(body: Mapping[str, Any]) -> str:
    name = body.get("model")
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_MODEL_CHARS:
        raise wrong("model", f"model is required: text of 1 to {MAX_MODEL_CHARS} characters")
    return name


def _integer(body: Mapping[str, Any], name: str, least: int, most: int, within: str = "") -> int:
    value = body.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise wrong(within + name, f"{within}{name} is not a whole number from {least} to {most}")
    return value


def _number(body: Mapping[str, Any], name: str) -> float:
    value = body.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise wrong(name, f"{name} is not a number from 0 to 1")
    return value


def _stops(body: Mapping[str, Any]) -> Object:
    given = body["stop_sequences"]
    if not isinstance(given, list) or len(given) > MAX_STOPS:
        raise wrong("stop_sequences", f"stop_sequences is not a list of at most {MAX_STOPS} texts")
    for stop in given:
        if not isinstance(stop, str) or not 1 <= len(stop) <= MAX_STOP_CHARS:
            raise wrong("stop_sequences", f"a stop sequence is text of 1 to {MAX_STOP_CHARS} characters")
    return {"stop": given} if given else {}


_FIELDS: Mapping[str, Callable[[Mapping[str, Any]], Object]] = {
    "metadata": _user_id,
    "output_config": _output,
    "seed": lambda body: {"seed": _integer(body, "seed", -(1 << 63), (1 << 63) - 1)},
    "service_tier": _tier,
    "stop_sequences": _stops,
    "temperature": lambda body: {"temperature": _number(body, "temperature")},
    "thinking": _thinking,
    "top_k": lambda body: {"top_k": _integer(body, "top_k", 0, 1 << 31)},
    "top_p": lambda body: {"top_p": _number(body, "top_p")},
}
