"""Putting the caller's own values back into an answer: whole, in tool arguments, and across the borders of chunks.

Only what this very request hid is put back. A stream is held back by as much as might still become a stand-in, never
more than the longest of them. Inside tool arguments a value is written as JSON writes it.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from steelyard.wire.call import Object

_TEXTS = ("content", "reasoning_content", "reasoning", "refusal", "text")
Channel = tuple[int, str, int]


class Restorer:
    """Knows what stands for what in one request."""

    def __init__(self, originals: Mapping[str, str]) -> None:
        self._originals = dict(originals)
        # In JSON a slash may be escaped.
        written = {*self._originals, *(stand.replace("/", "\\/") for stand in self._originals)}
        stands = sorted(written, key=len, reverse=True)
        self._pattern = re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, stands)) + r")(?!\w)")
        self._longest = len(stands[0])
        self._firsts = {stand[0] for stand in stands}
        self._stands = stands
        self._quoted = {stand.replace("/", "\\/"): value for stand, value in self._originals.items()}
        self._quoted.update(self._originals)
        self._held: dict[Channel, str] = {}
        self._before: dict[Channel, str] = {}  # the character said last, which a word may go on from

    def text(self, text: str) -> str:
        """A whole text with every stand-in replaced."""
        return self._pattern.sub(lambda found: self._originals.get(found.group(), found.group()), text)

    def arguments(self, text: str) -> str:
        """The same inside a JSON text."""
        return self._pattern.sub(lambda found: _in_json(self._quoted[found.group()]), text)

    def whole(self, answer: Object) -> Object:
        """An answer that came whole; changed in place."""
        for choice in answer.get("choices", ()):
            message = choice.get("message", choice)
            for name in _TEXTS:
                if isinstance(message.get(name), str):
                    message[name] = self.text(message[name])
            for call in message.get("tool_calls") or ():
                function = call.get("function") or {}
                if isinstance(function.get("arguments"), str):
                    function["arguments"] = self.arguments(function["arguments"])
        return answer

    def chunks(self, chunks: list[Object]) -> list[Object]:
        """Some chunks of a stream; changed in place. What is held back comes with a later one, or with `flush`."""
        for chunk in chunks:
            for choice in chunk.get("choices", ()):
                self._choice(choice)
        return chunks

    def flush(self) -> list[Object]:
        """What is still held back, as chunks."""
        left, self._held = self._held, {}
        return [
            {"choices": [_as_choice(channel, self._said(channel, text))]}
            for channel, text in left.items()
            if text
        ]

    def _choice(self, choice: dict[str, Any]) -> None:
        index = choice.get("index", 0)
        delta = choice.get("delta", choice)
        for name in _TEXTS:
            if isinstance(delta.get(name), str):
                delta[name] = self._feed((index, name, 0), delta[name])
        for call in delta.get("tool_calls") or ():
            function = call.get("function") or {}
            if isinstance(function.get("arguments"), str):
                function["arguments"] = self._feed(
                    (index, "arguments", call.get("index", 0)), function["arguments"]
                )
        if choice.get("finish_reason"):
            self._end(delta, index)

    def _end(self, delta: dict[str, Any], index: int) -> None:
        for channel in [channel for channel in self._held if channel[0] == index]:
            text = self._said(channel, self._held.pop(channel))
            if not text:
                continue
            if channel[1] != "arguments":
                delta[channel[1]] = (delta.get(channel[1]) or "") + text
                continue
            calls = delta.setdefault("tool_calls", [])
            calls.append({"index": channel[2], "function": {"arguments": text}})

    def _feed(self, channel: Channel, text: str) -> str:
        text = self._held.get(channel, "") + text
        keep = self._safe(text)
        self._held[channel] = text[keep:]
        return self._said(channel, text[:keep])

    def _said(self, channel: Channel, text: str) -> str:
        """The text restored, with regard to what was said before it."""
        before = self._before.get(channel, "")
        self._before[channel] = text[-1:] or before
        whole, place, parts = before + text, len(before), []
        # From `place` on; what stands before it still tells whether a word begins there.
        for found in self._pattern.finditer(whole, place):
            parts += [whole[place : found.start()], self._put(channel, found.group())]
            place = found.end()
        return "".join([*parts, whole[place:]])

    def _put(self, channel: Channel, text: str) -> str:
        return self.arguments(text) if channel[1] == "arguments" else self.text(text)

    def _safe(self, text: str) -> int:
        """How much of a text may go: up to where a stand-in might have begun that is not yet over."""
        start = max(0, len(text) - self._longest)
        for place in range(start, len(text)):
            if text[place] in self._firsts and (place == 0 or not _is_word(text[place - 1])):
                rest = text[place:]
                # Whole at the very end: one character more decides whether a longer word has begun.
                if any(stand.startswith(rest) for stand in self._stands):
                    return place
        return len(text)


def _is_word(char: str) -> bool:
    return char.isalnum() or char == "_"


def _in_json(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)[1:-1]


def _as_choice(channel: Channel, text: str) -> Object:
    index, name, call = channel
    if name == "arguments":
        return {
            "index": index,
            "delta": {"tool_calls": [{"index": call, "function": {"arguments": text}}]},
            "finish_reason": None,
        }
    if name == "text":
        return {"index": index, "text": text, "finish_reason": None}
    return {"index": index, "delta": {name: text}, "finish_reason": None}
