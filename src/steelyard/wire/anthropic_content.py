"""Anthropic's messages and their content blocks as OpenAI's messages; anthropic_request.py has the table.

Source: the types of anthropic-sdk-python 2.12 (message_param, content_block_param).
"""

from collections.abc import Mapping
from typing import Any

from steelyard.errors import Malformed
from steelyard.wire.body import dump
from steelyard.wire.call import Object

RULE = "anthropic/"
MAX_MESSAGES = 4_096

_IMAGE_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp")

Place = str
Blocks = list[tuple[Place, Mapping[str, Any]]]


def wrong(place: Place, message: str) -> Malformed:
    return Malformed(message, rule=RULE + place)


def system_of(given: object) -> list[Object]:
    """The system prompt as no message or one."""
    if given is None or given == "" or given == []:
        return []
    return [{"role": "system", "content": _paragraphs(_blocks(given, "system"), "system")}]


def turns_of(given: object) -> list[Object]:
    """The conversation. Raises Malformed."""
    if not isinstance(given, list) or not 1 <= len(given) <= MAX_MESSAGES:
        raise wrong("messages", f"messages is required: a list of 1 to {MAX_MESSAGES} messages")
    turns: list[tuple[str, Blocks]] = []
    for index, message in enumerate(given):
        place = f"messages[{index}]"
        role = mapping(message, place).get("role")
        if role not in ("user", "assistant", "system"):
            raise wrong(f"{place}.role", f"{place}.role is not one of user, assistant, system")
        blocks = _blocks(message.get("content"), f"{place}.content")
        if not blocks and role != "assistant":
            raise wrong(f"{place}.content", f"{place}.content is empty")
        if turns and turns[-1][0] == role:
            turns[-1][1].extend(blocks)
        else:
            turns.append((role, blocks))
    messages: list[Object] = []
    for role, blocks in turns:
        if role == "user":
            messages += _user(blocks)
        elif role == "assistant":
            messages.append(_assistant(blocks))
        else:
            messages.append({"role": "system", "content": _paragraphs(blocks, blocks[0][0])})
    return messages


def _blocks(given: object, place: Place) -> Blocks:
    """Content blocks, each with its place. Text alone is one block."""
    if isinstance(given, str):
        return [(place, {"type": "text", "text": given})]
    if not isinstance(given, list):
        raise wrong(place, f"{place} is neither text nor a list of content blocks")
    return [(f"{place}[{index}]", mapping(block, f"{place}[{index}]")) for index, block in enumerate(given)]


def _user(blocks: Blocks) -> list[Object]:
    """Results of tools first: OpenAI wants them right behind the calls."""
    results: list[Object] = []
    parts: list[Object] = []
    for place, block in blocks:
        if block.get("type") == "tool_result":
            result, images = _result(block, place)
            results.append(result)
            parts += images
        else:
            parts += _parts(block, place)
    return [*results, {"role": "user", "content": _content(parts)}] if parts or not results else results


def _content(parts: list[Object]) -> str | list[Object]:
    if all(part["type"] == "text" for part in parts):
        return "\n\n".join(part["text"] for part in parts)
    return parts


def _result(block: Mapping[str, Any], place: Place) -> tuple[Object, list[Object]]:
    """A tool's result, and the images in it, which a message of role tool cannot hold."""
    answers = text_of(block.get("tool_use_id"), f"{place}.tool_use_id")
    parts = []
    for inner, part in _blocks(block.get("content") or "", f"{place}.content"):
        parts += _parts(part, inner)
    text = "\n\n".join(part["text"] for part in parts if part["type"] == "text")
    if block.get("is_error"):
        text = f"Error: {text}" if text else "Error"  # OpenAI has no field for it
    others = [part for part in parts if part["type"] != "text"]
    if others and not text:
        text = "(see below)"
    return {"role": "tool", "tool_call_id": answers, "content": text}, others


def _parts(block: Mapping[str, Any], place: Place) -> list[Object]:
    """A block of a user's turn or of a tool's result."""
    kind = block.get("type")
    if kind == "text":
        return [{"type": "text", "text": text_of(block.get("text"), f"{place}.text")}]
    if kind == "image":
        return [_image(mapping(block.get("source"), f"{place}.source"), f"{place}.source")]
    if kind == "document":
        return _document(block, place)
    if kind == "search_result":
        head = [text_of(block.get(name), f"{place}.{name}") for name in ("title", "source")]
        body = _paragraphs(_blocks(block.get("content"), f"{place}.content"), f"{place}.content")
        return [{"type": "text", "text": "\n\n".join([*head, body])}]
    raise wrong(f"{place}.type", f"{place}: content of type {kind!r} is not supported here")


def _image(source: Mapping[str, Any], place: Place) -> Object:
    kind = source.get("type")
    if kind == "url":
        url = text_of(source.get("url"), f"{place}.url")
    elif kind == "base64":
        if source.get("media_type") not in _IMAGE_TYPES:
            raise wrong(f"{place}.media_type", f"{place}.media_type is not one of {', '.join(_IMAGE_TYPES)}")
        url = f"data:{source['media_type']};base64,{text_of(source.get('data'), f'{place}.data')}"
    else:
        raise wrong(f"{place}.type", f"{place}: images from {kind!r} are not supported; send base64 or url")
    return {"type": "image_url", "image_url": {"url": url}}


def _document(block: Mapping[str, Any], place: Place) -> list[Object]:
    if mapping(block.get("citations") or {}, f"{place}.citations").get("enabled"):
        raise wrong(f"{place}.citations", f"{place}: citations are not supported by this gateway")
    source = mapping(block.get("source"), f"{place}.source")
    head = [
        {"type": "text", "text": text_of(block[name], f"{place}.{name}")} for name in ("title", "context")
        if block.get(name)
    ]  # fmt: skip
    kind = source.get("type")
    where = f"{place}.source"
    if kind == "text":
        return [*head, {"type": "text", "text": text_of(source.get("data"), f"{where}.data")}]
    if kind == "content":
        inner = _blocks(source.get("content"), f"{where}.content")
        for at, part in inner:
            if part.get("type") not in ("text", "image"):
                raise wrong(f"{at}.type", f"{at}: a document's content is text and images")
        return head + [part for at, block_ in inner for part in _parts(block_, at)]
    if kind == "base64":
        data = f"data:application/pdf;base64,{text_of(source.get('data'), f'{where}.data')}"
        name = block.get("title") or "document.pdf"
        return [*head, {"type": "file", "file": {"filename": name, "file_data": data}}]
    raise wrong(
        f"{where}.type", f"{where}: documents from {kind!r} are not supported; send them in the request"
    )


def _assistant(blocks: Blocks) -> Object:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[Object] = []
    for place, block in blocks:
        kind = block.get("type")
        if kind == "text":
            texts.append(text_of(block.get("text"), f"{place}.text"))
        elif kind == "thinking":
            thoughts.append(text_of(block.get("thinking"), f"{place}.thinking"))
        elif kind == "tool_use":
            calls.append(_call(block, place))
        elif kind != "redacted_thinking":
            raise wrong(f"{place}.type", f"{place}: an assistant's {kind!r} is not supported here")
    message: Object = {"role": "assistant", "content": "\n\n".join(texts)}
    if calls:
        message |= {"content": message["content"] or None, "tool_calls": calls}
    if any(thoughts):
        message["reasoning_content"] = "\n\n".join(thoughts)
    return message


def _call(block: Mapping[str, Any], place: Place) -> Object:
    arguments = mapping(block.get("input"), f"{place}.input")
    return {
        "id": text_of(block.get("id"), f"{place}.id"),
        "type": "function",
        "function": {"name": name_of(block, place), "arguments": dump(arguments).decode()},
    }


def _paragraphs(blocks: Blocks, place: Place) -> str:
    texts = []
    for at, block in blocks:
        if block.get("type") != "text":
            raise wrong(f"{at}.type", f"{place}: only text is allowed here")
        texts.append(text_of(block.get("text"), f"{at}.text"))
    return "\n\n".join(texts)


# Fields.


def mapping(value: object, place: Place) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise wrong(place, f"{place} is not an object")
    return value


def text_of(value: object, place: Place) -> str:
    if not isinstance(value, str):
        raise wrong(place, f"{place} is not text")
    return value


def name_of(holder: Mapping[str, Any], place: Place) -> str:
    name = text_of(holder.get("name"), f"{place}.name")
    if not name:
        raise wrong(f"{place}.name", f"{place}.name is empty")
    return name
