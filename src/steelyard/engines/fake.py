"""A scripted engine: same request, same answer. Tests of the gate and the server drive it.

A token here is `chunk_chars` characters, for the prompt and for the answer, so counts can be worked out by hand.
"""

import asyncio
from collections.abc import AsyncIterator, Callable

from steelyard.digest import Digest
from steelyard.errors import Unavailable
from steelyard.wire.chat import ChatRequest, Chunk, Usage


class FakeEngine:
    """Answers every request with `reply`, or with what `reply` returns for it.

    `stop` and `max_tokens` are honoured; sampling fields and `json_schema` change nothing, the script is the
    answer. `delay_s` passes before each chunk. `started` counts generations begun, `aborted` those whose caller
    left before the last chunk.
    """

    def __init__(
        self,
        digest: Digest,
        reply: str | Callable[[ChatRequest], str],
        chunk_chars: int = 4,
        delay_s: float = 0.0,
    ) -> None:
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

    async def generate(self, request: ChatRequest) -> AsyncIterator[Chunk]:
        """Yield the reply in pieces of `chunk_chars` characters. Raises Unavailable unless started."""
        self._require_open()
        self.started += 1
        finished = False
        try:
            text, finish_reason = self._answer(request)
            pieces = self._pieces(text)
            for piece in pieces:
                await asyncio.sleep(self._delay_s)
                self._require_open()
                yield Chunk(piece)
            prompt_tokens = sum(len(self._pieces(message.content)) for message in request.messages)
            finished = True
            yield Chunk("", finish_reason, Usage(prompt_tokens, len(pieces)))
        finally:
            if not finished:
                self.aborted += 1

    def _answer(self, request: ChatRequest) -> tuple[str, str]:
        text = self._reply if isinstance(self._reply, str) else self._reply(request)
        ends = [text.find(stop) for stop in request.stop if stop in text]
        text = text[: min(ends)] if ends else text
        if request.max_tokens is not None and len(self._pieces(text)) > request.max_tokens:
            return text[: request.max_tokens * self._chunk_chars], "length"
        return text, "stop"

    def _pieces(self, text: str) -> list[str]:
        return [text[i : i + self._chunk_chars] for i in range(0, len(text), self._chunk_chars)]

    def _require_open(self) -> None:
        if not self._open:
            raise Unavailable("the scripted engine is not running; call start() first")
