"""The part of a request that becomes the prompt: messages, tools, schemas, with every marker in them broken.

Only what is named here reaches the chat template.
"""

import json
import unicodedata
from dataclasses import dataclass
from typing import Any

from steelyard.engines.embedded_markers import Markers
from steelyard.engines.embedded_schema import require_bounded, require_enforceable
from steelyard.errors import WrongUsage
from steelyard.wire.body import dump
from steelyard.wire.call import Object

_NO_TOOLS = "the chat template of this model has no place for tools"


@dataclass(frozen=True, slots=True)
class Traits:
    """What the translation must know of a loaded model.

    context: tokens for each slot.  composes: text must be normalised to NFC.  embeds: it gives vectors, not text.
    tools: its chat template has a place for them.  tokens: size of the vocabulary.
    markers, own_markers: what to break in callers' text and in the assistant's earlier words.
    """

    context: int
    slots: int
    composes: bool
    embeds: bool
    tools: bool
    tokens: int
    markers: Markers
    own_markers: Markers

    def text(self, text: str) -> str:
        """A caller's text as the model may read it."""
        return self.markers.broken(unicodedata.normalize("NFC", text) if self.composes else text)

    def own_text(self, text: str) -> str:
        return self.own_markers.broken(unicodedata.normalize("NFC", text) if self.composes else text)


def messages_of(given: object, traits: Traits) -> list[Object]:
    if not isinstance(given, list) or not given:
        raise WrongUsage("the request has no messages")
    return [_message(message, traits) for message in given]


def _message(message: Object, traits: Traits) -> Object:
    role = message["role"]
    if (role == "tool" or message.get("tool_calls")) and not traits.tools:
        raise WrongUsage(_NO_TOOLS)
    if role not in ("system", "developer", "user", "assistant", "tool"):
        raise WrongUsage(f"messages of role {role} are not supported by this engine")
    text = traits.own_text if role == "assistant" else traits.text
    given = message.get("content")
    if given is None and role != "assistant":
        raise WrongUsage(f"a {role} message has no content")
    kept: Object = {
        "role": "system" if role == "developer" else role,
        "content": None if given is None else text(_joined(given)),
    }
    for name in ("name", "tool_call_id"):
        if message.get(name):
            kept[name] = _whole(message[name], f"a message's {name}", traits)
    thought = message.get("reasoning_content")
    if thought:
        if not isinstance(thought, str):
            raise WrongUsage("a message's reasoning_content is not text")
        kept["reasoning_content"] = text(thought)
    if message.get("function_call"):
        raise WrongUsage("function_call is not supported by this engine; send tool_calls")
    if message.get("tool_calls"):
        kept["tool_calls"] = [_tool_call(tool, traits) for tool in message["tool_calls"]]
    if role == "assistant" and given is None and "tool_calls" not in kept:
        kept["content"] = ""
    return kept


def _joined(content: Any) -> str:  # noqa: ANN401 (JSON)
    """The text of a message. Parts are joined before markers are sought: one could hide in the seam."""
    if isinstance(content, str):
        return content
    texts = []
    for part in content:
        kind = part.get("type")
        if kind not in ("text", "refusal"):
            raise WrongUsage(f"this model reads text only; a message has a part of type {kind}")
        texts.append(part[kind])
    return "".join(texts)


def _tool_call(tool: Object, traits: Traits) -> Object:
    function = tool.get("function")
    if not isinstance(function, dict):
        raise WrongUsage("a tool call that is no function call is not supported by this engine")
    return {
        "id": _whole(tool.get("id") or "", "a tool call's id", traits),
        "type": "function",
        "function": {
            "name": _whole(function.get("name") or "", "a tool call's name", traits),
            "arguments": _arguments(function.get("arguments") or "{}", traits),
        },
    }


def _arguments(text: str, traits: Traits) -> str:
    """Arguments of an earlier call. llama.cpp decodes them for the template, so markers are sought in what they
    decode to: `\\u003c|im_end|>` is a marker too."""
    try:
        given = _decode(text)
        cleaned = _cleaned(given, traits)
    except (ValueError, RecursionError) as error:
        raise WrongUsage("the arguments of a tool call are not JSON") from error
    if not isinstance(given, dict):
        raise WrongUsage("the arguments of a tool call are not a JSON object")
    return text if cleaned == given else dump(cleaned).decode()


def _unique(pairs: list[tuple[str, Any]]) -> Object:
    # Of a repeated key we might read the one and llama.cpp the other.
    if len(found := dict(pairs)) != len(pairs):
        raise ValueError("an object repeats a key")
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_decode = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant).decode


def _cleaned(value: Any, traits: Traits) -> Any:  # noqa: ANN401 (JSON)
    if isinstance(value, str):
        return traits.own_text(value)
    if isinstance(value, list):
        return [_cleaned(part, traits) for part in value]
    if isinstance(value, dict):
        return {traits.own_text(key): _cleaned(part, traits) for key, part in value.items()}
    return value


def tools_of(body: Object, traits: Traits) -> Object:
    """tools and tool_choice. llama.cpp takes an unknown choice for "auto", so a choice by name becomes a list of
    the tools named."""
    given = body.get("tools")
    if not given:
        return {}
    if not traits.tools:
        if body.get("tool_choice") == "none":
            return {}
        raise WrongUsage(_NO_TOOLS)
    tools = [_tool(tool, traits) for tool in given]
    choice: Any = body.get("tool_choice") or "auto"
    if isinstance(choice, dict):
        names, choice = _chosen(choice)
        tools = [tool for tool in tools if tool["function"]["name"] in names]
        if not tools or len(names) != len(tools):
            raise WrongUsage("tool_choice names a tool that the request does not bring")
    asked: Object = {"tools": tools, "tool_choice": choice}
    if body.get("parallel_tool_calls") is not None:
        asked["parallel_tool_calls"] = body["parallel_tool_calls"]
    return asked


def _chosen(choice: Object) -> tuple[set[str], str]:
    """The names of the tools that may be called, and whether one must."""
    wanted: Any = [choice]
    mode = "required"
    if choice.get("type") == "allowed_tools":
        allowed = choice.get("allowed_tools")
        if not isinstance(allowed, dict) or allowed.get("mode") not in ("auto", "required"):
            raise WrongUsage("tool_choice.allowed_tools.mode is neither auto nor required")
        wanted, mode = allowed.get("tools") or [], allowed["mode"]
    if not isinstance(wanted, list):
        raise WrongUsage("tool_choice.allowed_tools.tools is not a list")
    functions = [tool.get("function") if isinstance(tool, dict) else None for tool in wanted]
    names = [function.get("name") if isinstance(function, dict) else None for function in functions]
    if not all(isinstance(name, str) for name in names):
        raise WrongUsage("tool_choice names something that is no function")
    return {str(name) for name in names}, mode


def _tool(tool: Object, traits: Traits) -> Object:
    function = tool.get("function")
    if tool.get("type") != "function" or not isinstance(function, dict):
        raise WrongUsage(f"tools of type {tool.get('type')} are not supported by this engine")
    parameters = function.get("parameters")
    if parameters is not None:
        (require_enforceable if function.get("strict") else require_bounded)(parameters)
    kept = {"name": _whole(function["name"], "a tool's name", traits)}
    if function.get("description"):
        kept["description"] = traits.text(function["description"])
    told = _without_patterns(parameters or {"type": "object", "properties": {}})
    kept["parameters"] = described(told, "a tool", traits)
    return {"type": "function", "function": kept}


def _without_patterns(schema: Any) -> Any:  # noqa: ANN401 (JSON)
    """A schema whose patterns stand in its descriptions: the model reads them, no grammar is made of them.

    Attack: `^(a?){200}$`. llama.cpp turns it into a grammar whose states explode, in the one thread that serves all
    slots: the engine hangs, and nothing can abort it. Dropped wherever they stand, because a $ref leads anywhere.
    """
    if isinstance(schema, list):
        return [_without_patterns(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: _without_patterns(value) for key, value in schema.items()}
    pattern = kept.get("pattern")
    if isinstance(pattern, str):
        del kept["pattern"]
        remark = kept.get("description")
        kept["description"] = (
            f"{remark} Pattern: {pattern}" if isinstance(remark, str) else f"Pattern: {pattern}"
        )
    return kept


def described(schema: Any, what: str, traits: Traits, *, is_remark: bool = False) -> Any:  # noqa: ANN401 (JSON)
    """A schema with the markers in its remarks broken. Elsewhere they would change what the schema says."""
    if isinstance(schema, str):
        return traits.text(schema) if is_remark else _whole(schema, what, traits)
    if isinstance(schema, list):
        return [described(part, what, traits) for part in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        _whole(key, what, traits): described(value, what, traits, is_remark=key in ("description", "title"))
        for key, value in schema.items()
    }


def _whole(text: str, what: str, traits: Traits) -> str:
    if traits.markers.are_in(text):
        raise WrongUsage(f"{what} holds a control token of this model")
    return text
