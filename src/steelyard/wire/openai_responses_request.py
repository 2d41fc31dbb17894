"""OpenAI's responses wire, the request: to a chat request, so that any engine answers it.

We keep no conversations: `previous_response_id`, `conversation`, `background` and references to stored items are
refused, and an answer says `store: false`. Tools that a vendor runs on its own machines (web search, files, code) are
refused by name. Reasoning items of earlier turns are dropped: they hold another model's thoughts, mostly encrypted.

Source: openai/openai-openapi, schema CreateResponse.
"""

from collections.abc import Mapping
from typing import Any

from steelyard.wire.call import Object
from steelyard.wire.openai_fields import choice_of, flag, integer, mapping, number, objects, text, wrong

MAX_ITEMS = 4_096
MAX_TOOLS = 128
MAX_TOOL_CALLS = 1 << 16
MAX_OUTPUT_TOKENS = 1 << 24
LOGPROBS = "message.output_text.logprobs"

_STORED = ("previous_response_id", "conversation", "prompt")
_SAME = ("temperature", "top_p", "user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key",
         "parallel_tool_calls", "top_logprobs")  # fmt: skip
_KNOWN = {*_STORED, *_SAME, "model", "input", "instructions", "tools", "tool_choice", "text", "reasoning", "stream",
          "stream_options", "max_output_tokens", "max_tool_calls", "background", "store", "include",
          "truncation"}  # fmt: skip
_ROLES = ("user", "assistant", "system", "developer")
_CHOICES = ("none", "auto", "required")


def chat_of(body: Mapping[str, Any]) -> Object:
    """The chat request that asks the same. Raises Malformed."""
    for name in _STORED:
        if body.get(name) is not None:
            raise wrong(name, f"{name} is not supported: no conversations or prompts are kept here")
    if flag(body, "background"):
        raise wrong("background", "background is not supported: nothing is kept here")
    if body.get("truncation") not in (None, "disabled"):
        raise wrong("truncation", "truncation is not supported: a prompt that is too long is refused")
    flag(body, "store")
    number(body, "temperature", 0.0, 2.0)
    number(body, "top_p", 0.0, 1.0)
    integer(body, "top_logprobs", 0, 20)
    integer(body, "max_tool_calls", 1, MAX_TOOL_CALLS)
    flag(body, "parallel_tool_calls")
    for name in ("user", "service_tier", "safety_identifier", "prompt_cache_key"):
        text(body, name)
    if body.get("metadata") is not None:
        mapping(body["metadata"], "metadata")
    chat: Object = {name: value for name, value in body.items() if name not in _KNOWN}
    chat |= {name: body[name] for name in ("model", *_SAME) if body.get(name) is not None}
    chat["messages"] = _messages(body)
    _add_limits(chat, body)
    _add_tools(chat, body)
    _add_text(chat, body)
    return chat


def _messages(body: Mapping[str, Any]) -> list[Object]:
    messages: list[Object] = []
    if instructions := text(body, "instructions"):
        messages.append({"role": "system", "content": instructions})
    given = body.get("input")
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    if not isinstance(given, list) or not 1 <= len(given) <= MAX_ITEMS:
        raise wrong("input", f"input is required: text or a list of 1 to {MAX_ITEMS} items")
    for index, item in enumerate(given):
        _add_item(messages, mapping(item, f"input[{index}]"), f"input[{index}]")
    return messages


def _add_item(messages: list[Object], item: Mapping[str, Any], place: str) -> None:
    kind = item.get("type", "message")
    if kind == "message":
        role = item.get("role")
        if role not in _ROLES:
            raise wrong(f"{place}.role", f"{place}.role is not one of {', '.join(_ROLES)}")
        messages.append({"role": role, "content": _content(item.get("content"), f"{place}.content")})
    elif kind == "function_call":
        function = {
            "name": text(item, "name", place, required=True),
            "arguments": text(item, "arguments", place, required=True),
        }
        call = {"id": text(item, "call_id", place, required=True), "type": "function", "function": function}
        last = messages[-1] if messages else {}
        if last.get("role") != "assistant":
            messages.append(last := {"role": "assistant", "content": None})
        last.setdefault("tool_calls", []).append(call)
    elif kind == "function_call_output":
        output = item.get("output")
        content = output if isinstance(output, str) else _content(output, f"{place}.output")
        call_id = text(item, "call_id", place, required=True)
        messages.append({"role": "tool", "tool_call_id": call_id, "content": content})
    elif kind == "item_reference":
        raise wrong(place, f"{place} refers to a stored item, and nothing is stored here")
    elif kind != "reasoning":
        raise wrong(f"{place}.type", f"{place}: items of type {str(kind)[:64]!r} are not supported")


def _content(value: object, place: str) -> str | list[Object]:
    if isinstance(value, str):
        return value
    parts = objects(value, place)
    if not parts:
        raise wrong(place, f"{place} is neither text nor a list of parts")
    return [_part(part, f"{place}[{index}]") for index, part in enumerate(parts)]


def _part(part: Mapping[str, Any], place: str) -> Object:
    kind = part.get("type")
    if kind in ("input_text", "output_text", "text"):
        return {"type": "text", "text": text(part, "text", place, required=True)}
    if kind == "refusal":
        return {"type": "refusal", "refusal": text(part, "refusal", place, required=True)}
    if kind == "input_image":
        url = text(part, "image_url", place, required=True)
        detail = text(part, "detail", place)
        return {"type": "image_url", "image_url": {"url": url, **({"detail": detail} if detail else {})}}
    if kind == "input_file":
        names = ("file_data", "filename")
        return {"type": "file", "file": {name: part[name] for name in names if name in part}}
    if kind == "input_audio":
        return {"type": "input_audio", "input_audio": dict(mapping(part.get("input_audio"), place))}
    raise wrong(f"{place}.type", f"{place}: parts of type {str(kind)[:64]!r} are not supported")


def _add_limits(chat: Object, body: Mapping[str, Any]) -> None:
    most = integer(body, "max_output_tokens", 1, MAX_OUTPUT_TOKENS)
    if most is not None:
        chat["max_completion_tokens"] = most
    reasoning = body.get("reasoning")
    if reasoning is not None:
        effort = text(mapping(reasoning, "reasoning"), "effort", "reasoning")
        if effort is not None:
            chat["reasoning_effort"] = effort
    include = body.get("include")
    if include is not None and not isinstance(include, list):
        raise wrong("include", "include is not a list")
    if LOGPROBS in (include or ()) or body.get("top_logprobs"):
        chat["logprobs"] = True


def _add_tools(chat: Object, body: Mapping[str, Any]) -> None:
    tools = objects(body.get("tools"), "tools")
    if len(tools) > MAX_TOOLS:
        raise wrong("tools", f"more than {MAX_TOOLS} tools")
    if tools:
        chat["tools"] = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(tools)]
    wanted = body.get("tool_choice")
    if wanted is None:
        return
    if isinstance(wanted, str) and wanted in _CHOICES:
        chat["tool_choice"] = wanted
        return
    choice = mapping(wanted, "tool_choice")
    if choice.get("type") != "function":
        raise wrong("tool_choice", "tool_choice is neither none, auto, required nor a function")
    name = text(choice, "name", "tool_choice", required=True)
    if name not in {tool["function"]["name"] for tool in chat.get("tools", ())}:
        raise wrong("tool_choice", f"tool_choice names {name!r}, which is not in tools")
    chat["tool_choice"] = {"type": "function", "function": {"name": name}}


def _tool(tool: Mapping[str, Any], place: str) -> Object:
    kind = tool.get("type")
    if kind != "function":
        raise wrong(
            f"{place}.type",
            f"{place}: tools of type {str(kind)[:64]!r} are not supported, only functions are",
        )
    text(tool, "name", place, required=True)
    text(tool, "description", place)
    names = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {n: tool[n] for n in names if tool.get(n) is not None}}


def _add_text(chat: Object, body: Mapping[str, Any]) -> None:
    if body.get("text") is None:
        return
    wanted = mapping(body["text"], "text")
    if (verbosity := text(wanted, "verbosity", "text")) is not None:
        chat["verbosity"] = verbosity
    if wanted.get("format") is None:
        return
    shape = mapping(wanted["format"], "text.format")
    kind = choice_of(shape, "type", ("text", "json_object", "json_schema"), "text.format")
    if kind == "json_schema":
        text(shape, "name", "text.format", required=True)
        mapping(shape.get("schema"), "text.format.schema")
        names = ("name", "description", "schema", "strict")
        schema = {name: shape[name] for name in names if shape.get(name) is not None}
        chat["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif kind == "json_object":
        chat["response_format"] = {"type": "json_object"}
