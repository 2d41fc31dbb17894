"""The routes: OpenAI's wire on one side, the gate on the other."""

import logging
import re
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from datetime import datetime

from steelyard.digest import JSON
from steelyard.errors import Malformed, Refused, SteelyardError, Unavailable, Untrusted, WrongUsage
from steelyard.gate import Answer, Gate, Refusal
from steelyard.policy import State
from steelyard.serve.access_log import AccessLog
from steelyard.serve.auth import Door
from steelyard.serve.message import JSON_TYPE, Request, Response
from steelyard.wire import openai
from steelyard.wire.chat import Chunk

MAX_IN_FLIGHT = 256

HEALTH = b"/healthz"
MODELS = b"/v1/models"
MODEL = b"/v1/models/"
CHAT = b"/v1/chat/completions"
_READ = (b"GET", b"HEAD")
_METHODS = {HEALTH: _READ, MODELS: _READ, MODEL: _READ, CHAT: (b"POST",)}

_RECEIPT = b"x-steelyard-receipt"
_DIGEST = b"x-steelyard-model-digest"
_EVENTS = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"))
_TRY_LATER = "the gateway cannot answer now (engine, store or ledger); try again later"
_log = logging.getLogger(__name__)
_PERCENT = re.compile(rb"%([0-9A-Fa-f]{2})")


class App:
    """Answers HTTP requests from the gate. created: when the gateway started, for the model list."""

    def __init__(
        self,
        gate: Gate,
        door: Door,
        access_log: AccessLog,
        *,
        clock: Callable[[], datetime],
        max_in_flight: int = MAX_IN_FLIGHT,
    ) -> None:
        self._gate = gate
        self._door = door
        self._access_log = access_log
        self._clock = clock
        self._created = int(clock().timestamp())
        self._max_in_flight = max_in_flight
        self._in_flight = 0

    # What the HTTP layer asks for.

    def check_head(self, request: Request) -> Response | None:
        route = _route(request.path)
        if request.method == b"OPTIONS" and (route or request.target == b"*"):
            return Response(204, b"", ((b"allow", _allow(route)),))
        if route is None:
            return _no(404, "there is no such address here", code="unknown_url")
        request.notes["route"] = route.decode()
        if request.method not in _METHODS[route]:
            return _no(
                405, f"this address takes {_allow(route).decode()}", extra=((b"allow", _allow(route)),)
            )
        if route == HEALTH:
            return None
        try:
            request.caller = self._door.caller(request.headers)
        except Untrusted as error:
            bearer = ((b"www-authenticate", b"Bearer"),)
            return _no(401, error.message, kind="authentication_error", code="invalid_api_key", extra=bearer)
        except Refused as error:
            return _no(403, error.message, kind="permission_error", code="key_required")
        except SteelyardError as error:
            return _unavailable(error)
        return None

    async def answer(self, request: Request) -> Response:
        route = _route(request.path)
        try:
            if route == CHAT:
                return await self._chat(request)
            if route == MODELS:
                return Response(200, openai.models(self._gate.aliases(), self._created))
            if route == MODEL:
                return self._model(request.path)
        except WrongUsage as error:
            return _no(400, error.message, code="invalid_value")
        except SteelyardError as error:
            return _unavailable(error)
        return Response(200, b'{"status":"ok"}')

    def malformed(self, status: int, message: str) -> Response:
        return _no(status, message) if status < 500 else _no(status, message, kind="server_error")

    def failed(self) -> Response:
        return _no(500, "the gateway failed; the operator's log has the place", kind="server_error")

    def log(self, entry: Mapping[str, JSON]) -> None:
        self._access_log.add(entry)

    def tick(self) -> None:
        self._access_log.flush()

    # Routes.

    def _model(self, path: bytes) -> Response:
        name = _unquoted(path[len(MODEL) :])
        if name is None or name not in self._gate.aliases():
            return _no_model(name)
        return Response(200, openai.model(name, self._created))

    async def _chat(self, request: Request) -> Response:
        try:
            chat = openai.parse_chat(request.body)
        except Malformed as error:
            return _no(400, error.message, param=_param(error.rule), code="invalid_value")
        if chat.model not in self._gate.aliases():
            return _no_model(chat.model)
        request.notes["alias"] = chat.model
        if self._in_flight >= self._max_in_flight:
            busy = "too many requests are in work; try again later"
            return _no(
                429, busy, kind="requests", code="rate_limit_exceeded", extra=((b"retry-after", b"1"),)
            )
        outcome = await self._gate.answer(request.caller, chat)
        request.notes["receipt"] = outcome.receipt
        if isinstance(outcome, Refusal):
            return _refused(outcome)
        request.notes["model"] = str(outcome.digest)
        headers = ((_RECEIPT, outcome.receipt.encode()), (_DIGEST, str(outcome.digest).encode()))
        reply = openai.Reply(
            f"chatcmpl-{outcome.receipt}", int(self._clock().timestamp()), chat.model, outcome.digest
        )
        chunks = self._counted(outcome, request)
        if not chat.stream:
            return Response(200, await _whole(chunks, reply), (JSON_TYPE, *headers))
        events = _events(chunks, openai.Stream(reply, chat.include_usage))
        first = await anext(events)  # a request the engine refuses still gets its status
        return Response(200, events, (*_EVENTS, *headers), first)

    async def _counted(self, answer: Answer, request: Request) -> AsyncGenerator[Chunk, None]:
        self._in_flight += 1
        try:
            async with aclosing(answer.chunks) as chunks:
                async for chunk in chunks:
                    if chunk.usage is not None:
                        request.notes["prompt_tokens"] = chunk.usage.prompt_tokens
                        request.notes["completion_tokens"] = chunk.usage.completion_tokens
                    yield chunk
        finally:
            self._in_flight -= 1


async def _whole(chunks: AsyncGenerator[Chunk, None], reply: openai.Reply) -> bytes:
    parts = []
    async with aclosing(chunks):
        async for chunk in chunks:
            parts.append(chunk.text)
            if chunk.finish_reason is not None:
                assert chunk.usage is not None  # the Engine protocol: the last chunk has both
                return reply.completion("".join(parts), chunk.finish_reason, chunk.usage)
    raise Unavailable("the answer ended early")


async def _events(chunks: AsyncGenerator[Chunk, None], stream: openai.Stream) -> AsyncGenerator[bytes, None]:
    """The answer as events. What goes wrong before the first is raised, later it is an event without an end mark."""
    started = False
    try:
        async with aclosing(chunks):
            async for chunk in chunks:
                event = stream.text(chunk.text) if chunk.text else b""
                if not started:
                    event = stream.start() + event
                    started = True
                if chunk.finish_reason is not None:
                    assert chunk.usage is not None  # the Engine protocol: the last chunk has both
                    event += stream.finish(chunk.finish_reason, chunk.usage)
                if event:
                    yield event
    except SteelyardError as error:
        if not started:
            raise
        _log.error("a stream broke off: %s", error.message)
        yield openai.error_event(openai.error(_TRY_LATER, "server_error", code="unavailable"))


def _route(path: bytes) -> bytes | None:
    if path in _METHODS and path != MODEL:
        return path
    return MODEL if path.startswith(MODEL) and len(path) > len(MODEL) else None


def _allow(route: bytes | None) -> bytes:
    return b", ".join(((*_METHODS[route],) if route else (b"GET", b"HEAD", b"POST")) + (b"OPTIONS",))


def _unquoted(path: bytes) -> str | None:
    """A percent-decoded name, decoded once; absent when it is not UTF-8."""
    try:
        return _PERCENT.sub(lambda match: bytes((int(match[1], 16),)), path).decode()
    except UnicodeDecodeError:
        return None


def _param(rule: str) -> str | None:
    place = rule.removeprefix(openai.RULE)
    return None if place == "body" else place


def _no(
    status: int,
    message: str,
    *,
    kind: str = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
    extra: tuple[tuple[bytes, bytes], ...] = (),
) -> Response:
    return Response(status, openai.error(message, kind, param=param, code=code), (JSON_TYPE, *extra))


def _no_model(name: str | None) -> Response:
    return _no(
        404,
        f"the model {name!r} does not exist here; GET /v1/models lists those that do",
        param="model",
        code="model_not_found",
    )


def _unavailable(error: SteelyardError) -> Response:
    # The operator reads which file or process it was; the caller need not.
    _log.error("not answered: %s", error.message)
    return _no(503, _TRY_LATER, kind="server_error", code="unavailable", extra=((b"retry-after", b"1"),))


def _refused(refusal: Refusal) -> Response:
    """403 that names each rule not met and the command that supplies what is missing."""
    decision = refusal.decision
    unmet: list[JSON] = [rule.to_json() for rule in decision.rules if rule.state is not State.MET]
    extra: dict[str, JSON] = {
        "model": str(decision.model),
        "policy": str(decision.policy),
        "receipt": refusal.receipt,
        "rules": unmet,
    }
    body = openai.error(
        refusal.message, "permission_error", param="model", code="model_not_admitted", extra=extra
    )
    headers = ((_RECEIPT, refusal.receipt.encode()), (_DIGEST, str(decision.model).encode()))
    return Response(403, body, (JSON_TYPE, *headers))
