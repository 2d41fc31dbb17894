"""A scripted engine: same request, same answer. Tests of the gate and the server drive it.

A token here is `chunk_chars` characters, for the prompt and for the answer, so counts can be worked out by hand.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable
from typing import Any

from steelyard.digest import Digest
from steelyard.errors import Unavailable, WrongUsage
from steelyard.wire.call import Call, Object

Script = str | Callable[[Call], str | Object]
EMBEDDING_WIDTH = 8


class FakeEngine:
    """Answers every request with `reply`, or with what `reply` returns for it: text, or OpenAI's whole message.

    `stop`, `max_tokens` and `n` are honoured; sampling fields and schemas change nothing, the script is the answer.
    An embedding is drawn from the SHA-256 of its text. `delay_s` passes before each chunk. `started` counts
    generations begun, `aborted` those whose caller left before the last chunk.
    """

    name = "fake"
    identity = "launched"

    def __init__(self, digest: Digest, reply: Script, chunk_chars: int = 4, delay_s: float = 0.0) -> None:
        if chunk_chars < 1:
            raise ValueError(f"chunk_chars is {chunk_chars}, expected at least 1")
        self._digest = digest
        self._reply = reply
        self._chunk_chars = chunk_chars
        self._delay_s = delay_s
        self._open = False
        self.started = 0
        self.aborted = 0

    @property
    def digest(self) -> Digest:
        return self._digest

    async def start(self) -> None:
        self._open = True

    async def close(self) -> None:
        self._open = False

    async def count(self, call: Call) -> int:
        self._require_open()
        return sum(len(self._pieces(text)) for text in _texts(call))

    async def ask(self, call: Call) -> Object:
        """The reply as a whole. Raises Unavailable unless started."""
        if call.kind == "embedding":
            return self._embedding(call)
        choices: list[Object] = []
        async for chunks in self.stream(call):
            for chunk in chunks:
                _join(choices, chunk)
                usage = chunk.get("usage")
        kind = "chat.completion" if call.kind == "chat" else "text_completion"
        return {
            "id": "fake",
            "object": kind,
            "created": 0,
            "model": "fake",
            "choices": choices,
            "usage": usage,
        }

    async def stream(self, call: Call) -> AsyncGenerator[list[Object], None]:
        """Pieces of `chunk_chars` characters, one in each list. Raises Unavailable unless started."""
        self._require_open()
        self.started += 1
        finished = False
        try:
            message, finish_reason = self._answer(call)
            texts = self._pieces(message.get("content") or "")
            count = call.body.get("n") or 1
            for index in range(count):
                for text in texts:
                    await asyncio.sleep(self._delay_s)
                    self._require_open()
                    yield [_chunk(call, index, text)]
            await asyncio.sleep(self._delay_s)
            finished = True
            tools = message.get("tool_calls")
            ends = [_chunk(call, index, "", finish_reason, tools) for index in range(count)]
            yield [
                *ends,
                {**_chunk(call, 0, ""), "choices": [], "usage": self._usage(call, count * len(texts))},
            ]
        finally:
            if not finished:
                self.aborted += 1

    def _answer(self, call: Call) -> tuple[Object, str]:
        found = self._reply if isinstance(self._reply, str) else self._reply(call)
        if not isinstance(found, str):
            return found, "tool_calls" if found.get("tool_calls") else "stop"
        stops = call.body.get("stop") or ()
        ends = [found.find(stop) for stop in ([stops] if isinstance(stops, str) else stops) if stop in found]
        text = found[: min(ends)] if ends else found
        most = call.body.get("max_completion_tokens") or call.body.get("max_tokens")
        if most is not None and len(self._pieces(text)) > most:
            return {"content": text[: most * self._chunk_chars]}, "length"
        return {"content": text}, "stop"

    def _embedding(self, call: Call) -> Object:
        self._require_open()
        self.started += 1
        given = call.body["input"]
        texts = [given] if isinstance(given, str) else given
        if not all(isinstance(text, str) for text in texts):
            raise WrongUsage("the scripted engine embeds texts, not tokens")
        data = [
            {"object": "embedding", "index": i, "embedding": _vector(text)} for i, text in enumerate(texts)
        ]
        count = sum(len(self._pieces(text)) for text in texts)
        return {"object": "list", "data": data, "model": "fake",
                "usage": {"prompt_tokens": count, "total_tokens": count}}  # fmt: skip

    def _usage(self, call: Call, completion: int) -> Object:
        prompt = sum(len(self._pieces(text)) for text in _texts(call))
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }

    def _pieces(self, text: str) -> list[str]:
        return [text[i : i + self._chunk_chars] for i in range(0, len(text), self._chunk_chars)]

    def _require_open(self) -> None:
        if not self._open:
            raise Unavailable("the scripted engine is not running; call start() first")


def _chunk(call: Call, index: int, text: str, finish: str | None = None, tools: Any = None) -> Object:  # noqa: ANN401
    choice: Object = {"index": index, "finish_reason": finish, "logprobs": None}
    if call.kind == "completion":
        choice["text"] = text
        return {"id": "fake", "object": "text_completion", "created": 0, "model": "fake", "choices": [choice]}
    choice["delta"] = {"content": text} if text or not finish else {}
    if tools:
        choice["delta"] = {"tool_calls": [{"index": i, **tool} for i, tool in enumerate(tools)]}
    return {
        "id": "fake",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": "fake",
        "choices": [choice],
    }


def _join(choices: list[Object], chunk: Object) -> None:
    for choice in chunk["choices"]:
        index = choice["index"]
        while len(choices) <= index:
            choices.append({"index": len(choices), "logprobs": None, "finish_reason": None})
        whole = choices[index]
        whole["finish_reason"] = choice["finish_reason"] or whole["finish_reason"]
        if "text" in choice:
            whole["text"] = whole.get("text", "") + choice["text"]
            continue
        message = whole.setdefault("message", {"role": "assistant", "content": ""})
        message["content"] += choice["delta"].get("content", "")
        if tools := choice["delta"].get("tool_calls"):
            message["tool_calls"] = [{k: v for k, v in tool.items() if k != "index"} for tool in tools]


def _texts(call: Call) -> list[str]:
    if call.kind == "completion":
        prompt = call.body["prompt"]
        return [prompt] if isinstance(prompt, str) else prompt
    texts: list[str] = []
    for message in call.body["messages"]:
        content = message.get("content") or ""
        texts += (
            [content] if isinstance(content, str) else [part["text"] for part in content if "text" in part]
        )
    return texts


def _vector(text: str) -> list[float]:
    return [byte / 255 for byte in hashlib.sha256(text.encode()).digest()[:EMBEDDING_WIDTH]]
