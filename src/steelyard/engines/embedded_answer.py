"""llama.cpp's stream events as OpenAI's objects: chunks to forward, or the whole answer they add up to.

llama.cpp gives an answer in parts even to a caller who wants it whole, because only a stream can be aborted.
Runs in the child.
"""

import json
import re
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any

Object = dict[str, Any]
Chunk = Callable[[str], None]

REASON_CHARS = 500
_QUOTES = re.compile(r"""[:'"`\n\[{<(]""")


class Failed(Exception):
    """llama.cpp gave an error. usage: it is the caller's."""

    def __init__(self, message: str, *, usage: bool) -> None:
        super().__init__(message)
        self.message = message[:REASON_CHARS]
        self.usage = usage


class Gathered:
    """The rounds of one answer, as they come. `on_chunk` is given every chunk as JSON; without it they are kept.

    task: see embedded_child.py.
    """

    def __init__(self, task: Mapping[str, Any], on_chunk: Chunk | None) -> None:
        self._task = task
        self._on_chunk = on_chunk
        self._first = 0
        self._again = False
        self._choices: dict[int, Object] = {}
        self._open: set[int] = set()
        self._head: Object = {}
        self._prompt = self._completion = 0
        self._cached: int | None = None

    def begin(self, turn: Mapping[str, Any]) -> None:
        """The events of this round come next."""
        self._first = turn["first"]
        self._again = turn["again"]
        count = turn["body"].get("n", 1)
        self._open = {self._first + index for index in range(count)}

    def read(self, text: str) -> None:
        """One event. Raises Failed."""
        event = json.loads(text)
        error = event.get("error", event if "code" in event else None)
        if error is not None:
            raise failure(error)
        if "prompt_progress" in event:
            return
        verbose = event.pop("__verbose", None)
        usage = event.pop("usage", None)
        if usage is not None:
            self._count(usage)
        choices = event["choices"]
        if not choices:
            return
        for choice in choices:
            self._shape(choice, verbose)
        event["object"] = self._kind(".chunk")
        self._head = self._head or {key: event[key] for key in ("id", "created", "model")}
        if self._on_chunk is None:
            for choice in choices:
                join(self._choices, choice)
        else:
            self._on_chunk(json.dumps(event))

    def end_round(self) -> None:
        """Raises Failed when an answer of this round has no end."""
        if self._open:
            raise Failed("the answer ended without a finish reason", usage=False)

    def closing(self) -> Object:
        """The chunk with the usage of all rounds."""
        return {**self._head, "object": self._kind(".chunk"), "choices": [], "usage": self._usage()}

    def whole(self) -> Object:
        choices = [self._choices[index] for index in sorted(self._choices)]
        for choice in choices:
            message = choice.get("message")
            if message and message.get("tool_calls") and not message["content"]:
                message["content"] = None
        return {**self._head, "object": self._kind(""), "choices": choices, "usage": self._usage()}

    def _kind(self, suffix: str) -> str:
        return "chat.completion" + suffix if self._task["kind"] == "chat" else "text_completion"

    def _usage(self) -> Object:
        total = self._prompt + self._completion
        usage: Object = {
            "prompt_tokens": self._prompt,
            "completion_tokens": self._completion,
            "total_tokens": total,
        }
        if self._cached is not None:
            usage["prompt_tokens_details"] = {"cached_tokens": self._cached}
        return usage

    def _count(self, usage: Mapping[str, Any]) -> None:
        # Every answer of a round brings its own usage, with the prompt in each; the prompt was read once.
        self._completion += usage["completion_tokens"]
        if not self._again:
            self._prompt += usage["prompt_tokens"]
            details = usage.get("prompt_tokens_details")
            if details:
                self._cached = (self._cached or 0) + details.get("cached_tokens", 0)
            self._again = True

    def _shape(self, choice: Object, verbose: Mapping[str, Any] | None) -> None:
        choice["index"] += self._first
        if "message" in choice:
            choice["delta"] = _delta(choice.pop("message"))
        if choice.get("finish_reason"):
            self._open.discard(choice["index"])
        word = (verbose or {}).get("stopping_word")
        if word and word in self._task["stops"] and verbose and verbose.get("stop_type") == "word":
            choice["stop_reason"] = word  # the name vLLM gives it
        top, found = self._task.get("top"), choice.get("logprobs")
        if top is not None and found:
            shape = _cut if self._task["kind"] == "chat" else _legacy
            choice["logprobs"] = shape(found["content"], top)


def failure(error: Mapping[str, Any]) -> Failed:
    message = str(error.get("message", "llama.cpp gave no reason"))
    if error.get("type") == "exceed_context_size_error":
        tokens, room = error.get("n_prompt_tokens"), error.get("n_ctx")
        message = f"the prompt has {tokens} tokens, the context of this model holds {room}"
    usage = 400 <= int(error.get("code", 500)) < 500
    return Failed(message if usage else without_text(message), usage=usage)


def without_text(message: str) -> str:
    """The begin of a message, before it quotes anything: failures are logged, and a prompt must not be."""
    return _QUOTES.split(message, maxsplit=1)[0].strip()


def join(choices: dict[int, Object], choice: Object) -> None:
    """Add a chunk's choice to the whole ones."""
    index = choice["index"]
    whole = choices.setdefault(index, {"index": index, "logprobs": None, "finish_reason": None})
    for name in ("finish_reason", "stop_reason"):
        if choice.get(name) is not None:
            whole[name] = choice[name]
    if choice.get("logprobs"):
        _join_logprobs(whole, choice["logprobs"])
    if "text" in choice:
        whole["text"] = whole.get("text", "") + choice["text"]
        return
    message = whole.setdefault("message", {"role": "assistant", "content": ""})
    delta = choice.get("delta", {})
    for name in ("content", "reasoning_content"):
        if delta.get(name):
            message[name] = message.get(name, "") + delta[name]
    for part in delta.get("tool_calls", ()):
        _join_tool(message.setdefault("tool_calls", []), part)


def _delta(message: Object) -> Object:
    """An unbroken message as the one delta of a stream."""
    tools = message.get("tool_calls")
    if tools:
        message["tool_calls"] = [{"index": index, **tool} for index, tool in enumerate(tools)]
    return message


def _join_logprobs(whole: Object, found: Object) -> None:
    if whole["logprobs"] is None:
        whole["logprobs"] = found
        return
    for name, values in found.items():
        if values:
            whole["logprobs"][name] = (whole["logprobs"].get(name) or []) + values


def _join_tool(tools: list[Object], part: Object) -> None:
    while len(tools) <= part["index"]:
        tools.append({"id": "", "type": "function", "function": {"name": "", "arguments": ""}})
    tool = tools[part["index"]]
    tool["id"] = part.get("id") or tool["id"]
    for name in ("name", "arguments"):
        tool["function"][name] += part.get("function", {}).get(name) or ""


def _cut(content: list[Object], top: int) -> Object:
    return {"content": [_token(token, top) for token in content], "refusal": None}


def _token(token: Object, top: int) -> Object:
    shown = {"token": token["token"], "logprob": token["logprob"], "bytes": token["bytes"]}
    others = [{k: other[k] for k in shown} for other in token.get("top_logprobs", [])[:top]]
    return {**shown, "top_logprobs": others}


def _legacy(content: list[Object], top: int) -> Object:
    """The older form of completions: parallel lists. The offsets count the answer's own characters."""
    tokens = [token["token"] for token in content]
    tops = [{t["token"]: t["logprob"] for t in token.get("top_logprobs", [])[:top]} for token in content]
    ends = accumulate(map(len, tokens), initial=0)
    return {
        "tokens": tokens,
        "token_logprobs": [token["logprob"] for token in content],
        "top_logprobs": tops if top else None,
        "text_offset": [offset for offset, _ in zip(ends, tokens, strict=False)],
    }
