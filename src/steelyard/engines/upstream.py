"""Engines elsewhere: servers that speak OpenAI's wire, such as vLLM, SGLang, Ollama and llama.cpp's server.

Several members may serve the same weights. A request goes to the member with the least in work; one that is down is
left alone for a while, and another is asked as long as nothing was said. Members of one engine have one digest: other
weights are another engine, and only the gate chooses between those.
"""

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from steelyard.digest import Digest
from steelyard.engines.upstream_events import Events, failure_of, is_usage
from steelyard.engines.upstream_http import Line
from steelyard.engines.upstream_identity import ASK_AGAIN_S, Trust, Word
from steelyard.engines.upstream_member import Dial, Dialler, Member, Place
from steelyard.errors import Unavailable, WrongUsage
from steelyard.policy import IDENTITIES
from steelyard.wire.body import dump, load
from steelyard.wire.call import Call, Object

TICK_S = 0.25
REST_S = 0.05
MAX_RETRY_AFTER_S = 2.0  # a member that asks us to wait longer is asked no more
MAX_REASON_CHARS = 500

_PATHS = {"chat": "/v1/chat/completions", "completion": "/v1/completions", "embedding": "/v1/embeddings"}
_CALLERS = (400, 404, 409, 413, 415, 422)  # the request's fault, whichever member is asked
_log = logging.getLogger(__name__)


class UpstreamEngine:
    """An Engine over one or more members that serve the same weights.

    dial: opens a socket to a place; by default a connection to addresses looked up once.  trust: whose word counts
    for places that have a node.
    """

    def __init__(
        self,
        digest: Digest,
        places: Sequence[Place],
        *,
        dial: Dial | None = None,
        trust: Trust | None = None,
    ) -> None:
        if not places:
            raise ValueError("an upstream engine has at least one member")
        if trust is None and any(place.node for place in places):
            raise ValueError("a place has a node and no key to check it with")
        self._trust = trust
        self._unproven = min((place.identity for place in places), key=IDENTITIES.index)
        self._proven = min(map(_provable, places), key=IDENTITIES.index)
        self._proven_until = 0.0
        self._learn_at = 0.0
        self._words: list[Word] = []
        self._learning: asyncio.Task[None] | None = None
        self._digest = digest
        self._places = tuple(places)
        self._dial = dial or Dialler()
        self._members: list[Member] = []
        self._turn = 0
        self._ticking: asyncio.Task[None] | None = None

    @property
    def digest(self) -> Digest:
        return self._digest

    @property
    def name(self) -> str:
        return "upstream"

    @property
    def identity(self) -> str:
        """That of the member of which least is known. Asking for it has the nodes asked again, in their time."""
        if self._proven == self._unproven:
            return self._proven
        now = asyncio.get_running_loop().time()
        self._learn_in_time(now)
        return self._proven if now < self._proven_until else self._unproven

    async def learn(self) -> None:
        """Ask every node which model its upstream has. Never raises for what they answer: `identity` says it."""
        now = asyncio.get_running_loop().time()
        self._learn_at = now + ASK_AGAIN_S
        if not self._words and self._trust is not None:
            self._words = [
                Word(self._digest, place, place.node, self._dial, self._trust)
                for place in self._places
                if place.node
            ]
        await asyncio.gather(*[word.ask(now) for word in self._words])
        self._proven_until = min([word.until for word in self._words], default=0.0)

    def doubt(self) -> None:
        """A connection broke, so another process may listen there now: the nodes are asked at the next tick."""
        self._learn_at = 0.0

    def _learn_in_time(self, now: float) -> None:
        if now >= self._learn_at and (self._learning is None or self._learning.done()):
            self._learn_at = now + ASK_AGAIN_S
            self._learning = asyncio.create_task(self.learn())

    async def start(self) -> None:
        """Look the members up. Raises Unavailable when none of them answers."""
        if self._members:
            return
        members = [Member(place, self._dial) for place in self._places]
        checks = await asyncio.gather(*[member.check_health() for member in members], return_exceptions=True)
        for member, check in zip(members, checks, strict=True):
            if isinstance(check, Unavailable):
                _log.warning("%s: %s", member.place.origin, check.message)
                member.failed()
            elif check is not None:
                raise check
        if all(checks):
            for member in members:
                await member.close()
            raise Unavailable(f"no upstream of {self._digest} answers: {checks[0]}")
        self._members = members
        for member in members:
            member.start()
        self._ticking = asyncio.create_task(self._tick())

    async def close(self) -> None:
        """Break off what is in work and let go of every connection."""
        if self._ticking is not None:
            self._ticking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ticking
            self._ticking = None
        if self._learning is not None:
            self._learning.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._learning
            self._learning = None
        words, self._words = self._words, []
        self._proven_until = self._learn_at = 0.0
        for word in words:
            await word.close()
        members, self._members = self._members, []
        for member in members:
            await member.close()

    async def ask(self, call: Call) -> Object:
        """The whole answer of one member; see the Engine protocol."""
        body, path = {**call.body, "stream": False}, _PATHS[call.kind]
        body.pop("stream_options", None)
        asked = _Asked(self, path, body, stream=False)
        try:
            line = await asked.begin()
            return _answer(await line.whole(line.limit_s), call)
        finally:
            asked.end()

    def stream(self, call: Call) -> "UpstreamChunks":
        """The answer of one member as it comes."""
        if call.kind == "embedding":
            raise WrongUsage("embeddings are not streamed")
        body = {**call.body, "stream": True, "stream_options": {"include_usage": True}}
        return UpstreamChunks(_Asked(self, _PATHS[call.kind], body, stream=True))

    async def count(self, call: Call) -> int:
        """Tokens of a chat by the member's own tokenizer (vLLM's and SGLang's /tokenize)."""
        wanted: Object = {name: call.body[name] for name in ("messages", "tools") if name in call.body}
        asked = _Asked(self, "/tokenize", wanted, stream=False)
        try:
            line = await asked.begin()
            answer = _object(await line.whole(line.limit_s))
        finally:
            asked.end()
        count = answer.get("count")
        if type(count) is not int:
            raise WrongUsage("this model's server cannot count the tokens of a chat")
        return count

    def choose(self, tried: Sequence[Member]) -> Member | None:
        """The member to ask next: the one with the least in work, in turn among equals; absent when none is left."""
        best: Member | None = None
        self._turn += 1
        count = len(self._members)
        for offset in range(count):
            member = self._members[(self._turn + offset) % count]
            if member in tried or (best is not None and member.busy >= best.busy) or member.is_shut:
                continue
            best = member
        return best

    async def _tick(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(TICK_S)
            now = loop.time()
            if self._proven != self._unproven:
                self._learn_in_time(now)
            for member in self._members:
                member.tick(now)


class _Asked:
    """One request on its way: to one member, and to others until one of them begins to answer."""

    def __init__(self, engine: UpstreamEngine, path: str, body: Object, *, stream: bool) -> None:
        self._engine = engine
        self._path = path
        self._body = body
        self._stream = stream
        self._member: Member | None = None
        self._line: Line | None = None

    async def begin(self) -> Line:
        """The line on which a member answers 200. Raises WrongUsage, Unavailable."""
        tried: list[Member] = []
        failure: Unavailable | None = None
        while (member := self._engine.choose(tried)) is not None:
            tried.append(member)
            member.busy += 1
            self._member = member
            try:
                line = await self._begin(member)
            except Unavailable as error:
                _log.warning("%s: %s", member.place.origin, error.message)
                member.failed()
                self._engine.doubt()
                failure = error
            else:
                member.succeeded()
                return line
            self.end()
        raise failure or Unavailable("no upstream is up")

    def end(self) -> None:
        """Give line and member back; what is unfinished is broken off."""
        if self._line is not None:
            self._line.release()
            self._line = None
        if self._member is not None:
            self._member.busy -= 1
            self._member = None

    async def _begin(self, member: Member) -> Line:
        body = dump({**self._body, "model": member.place.model})
        waited = False
        while True:
            line = self._line = await member.send(self._path, body, stream=self._stream)
            line.limit_s = member.place.answer_s
            line.between_s = member.place.chunk_s
            try:
                await line.head(line.limit_s)
            except Unavailable:
                # A kept connection may have been closed just as we wrote: that is no failure of the member's.
                if not line.was_used or line.has_answered or line.is_late:
                    raise
                self._engine.doubt()
                line.release()
                continue
            if line.status == 200:
                return line
            pause_s = _retry_after(line) if line.status in (429, 503) and not waited else None
            failure = await _failure(line)
            line.release()
            if pause_s is None:
                raise failure
            waited = True
            await asyncio.sleep(pause_s)


class UpstreamChunks:
    """The chunks of one streamed answer. Closing it closes the connection, and the upstream stops.

    Some servers count in every chunk, some in the last, some in one behind it: here the last count comes last. A
    stream that ends without one is broken, whatever else it says: the count is what an upstream sends at its end.
    """

    def __init__(self, asked: _Asked) -> None:
        self._asked = asked
        self._line: Line | None = None
        self._limit_s = 0.0
        self._events = Events()
        self._counted: Object | None = None
        self._is_over = False

    def __aiter__(self) -> "UpstreamChunks":
        return self

    async def __anext__(self) -> list[Object]:
        if self._is_over:
            raise StopAsyncIteration
        try:
            if self._line is None:
                self._line = await self._asked.begin()
                if self._line.content_type != b"text/event-stream":
                    raise Unavailable("the upstream did not answer with a stream of events")
                self._limit_s = self._line.limit_s
            chunks: list[Object] = []
            while not chunks and not self._events.is_done:
                data = await self._line.part(self._limit_s)
                if not data:
                    return await self._last(chunks)
                self._limit_s = self._line.between_s
                chunks = self._uncounted(self._events.feed(data))
            return await self._last(chunks) if self._events.is_done else chunks
        except BaseException:
            await self.aclose()
            raise

    async def aclose(self) -> None:
        """Abort what is not finished."""
        self._is_over = True
        self._asked.end()

    def _uncounted(self, chunks: list[Object]) -> list[Object]:
        """The chunks that say something, without their counts."""
        for chunk in chunks:
            if chunk.get("usage"):
                self._counted = chunk
                return [kept for kept in chunks if self._is_said(kept)]
        return chunks

    def _is_said(self, chunk: Object) -> bool:
        if chunk.get("usage"):
            self._counted = {**chunk, "choices": []}
            chunk["usage"] = None
        return bool(chunk["choices"])

    async def _last(self, chunks: list[Object]) -> list[Object]:
        if self._counted is None:
            raise Unavailable("the upstream's stream ended without a usage")
        assert self._line is not None
        if not self._line.is_complete:
            # The end of the body comes after the end mark, mostly in the same packet: then the line is kept.
            with contextlib.suppress(Unavailable):
                await self._line.part(REST_S)
        await self.aclose()
        chunks.append(self._counted)
        return chunks


def _provable(place: Place) -> str:
    return max(place.identity, "hashed", key=IDENTITIES.index) if place.node else place.identity


def _answer(data: bytes, call: Call) -> Object:
    answer = _object(data)
    if answer.get("error"):
        raise failure_of(answer)
    if not is_usage(answer.get("usage")):
        raise Unavailable("the upstream's answer has no usage")
    items = answer.get("data" if call.kind == "embedding" else "choices")
    if not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items):
        raise Unavailable("the upstream's answer is none")
    if call.kind == "chat" and not all(isinstance(item.get("message"), dict) for item in items):
        raise Unavailable("the upstream's answer has a choice without a message")
    return answer


def _object(data: bytes) -> Object:
    try:
        answer = load(data)
    except ValueError as error:
        raise Unavailable("the upstream's answer is not JSON") from error
    if not isinstance(answer, dict):
        raise Unavailable("the upstream's answer is no JSON object")
    return answer


async def _failure(line: Line) -> WrongUsage | Unavailable:
    """What an answer other than 200 means."""
    status = line.status
    data = await line.whole(line.limit_s)
    if status in _CALLERS:
        return WrongUsage(_reason(data))
    if status in (401, 403):
        return Unavailable(f"the upstream refuses our credentials ({status})")
    return Unavailable(f"the upstream answers with {status}")


def _reason(data: bytes) -> str:
    try:
        body = load(data)
    except ValueError:
        return "the model's server refuses this request"
    error = body.get("error", body) if isinstance(body, dict) else None
    told = error.get("message", error.get("detail")) if isinstance(error, dict) else error
    return told[:MAX_REASON_CHARS] if isinstance(told, str) else "the model's server refuses this request"


def _retry_after(line: Line) -> float | None:
    try:
        wait_s = float(line.retry_after)
    except ValueError:
        return None
    return wait_s if 0 <= wait_s <= MAX_RETRY_AFTER_S else None
