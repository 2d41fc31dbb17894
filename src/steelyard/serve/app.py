"""The application: vendors' wires on one side, the gate on the other."""

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime

from steelyard.access_config import RESERVE_TOKENS
from steelyard.digest import JSON
from steelyard.errors import Exhausted, Malformed, Refused, SteelyardError, Untrusted, WrongUsage
from steelyard.gate import Gate, Refusal, UnknownAlias
from steelyard.policy import State
from steelyard.records import End
from steelyard.serve.access_log import AccessLog
from steelyard.serve.accounts import Accounts, Ticket
from steelyard.serve.auth import Door
from steelyard.serve.limits import BYTES_PER_TOKEN, bound_of
from steelyard.serve.message import JSON_TYPE, Request, Response
from steelyard.serve.metrics import Metrics
from steelyard.serve.readiness import Check, health, readiness
from steelyard.serve.routes import METRICS, MODEL, MODELS, READY, Route, Vendor, allowed, route_of
from steelyard.serve.watch import Watch
from steelyard.turn import TRY_LATER, Question
from steelyard.wire import anthropic, openai
from steelyard.wire.call import Problem

MAX_IN_FLIGHT = 256

_RECEIPT = b"x-steelyard-receipt"
_DIGEST = b"x-steelyard-model-digest"
_CONVERSATION = b"x-steelyard-conversation"
_EVENTS = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"))
_BEARER = (b"www-authenticate", b"Bearer")
Fields = tuple[tuple[bytes, bytes], ...]

_log = logging.getLogger(__name__)
_PERCENT = re.compile(rb"%([0-9A-Fa-f]{2})")


class App:
    """Answers HTTP requests from the gate.

    accounts: what callers have used of their limits; absent where nothing is limited.  reserve_tokens: held for an
    answer whose request sets no maximum.  metrics, watch: what is told of requests.  checks: what /readyz looks at.
    """

    def __init__(
        self,
        gate: Gate,
        door: Door,
        access_log: AccessLog,
        *,
        clock: Callable[[], datetime],
        max_in_flight: int = MAX_IN_FLIGHT,
        accounts: Accounts | None = None,
        reserve_tokens: int = RESERVE_TOKENS,
        metrics: Metrics | None = None,
        watch: Watch | None = None,
        checks: Mapping[str, Check] | None = None,
    ) -> None:
        self._gate = gate
        self._door = door
        self._access_log = access_log
        self._created = int(clock().timestamp())  # of every name in the list of models
        self._max_in_flight = max_in_flight
        self.accounts = accounts
        self.reserve_tokens = reserve_tokens
        self._metrics = metrics
        self._watch = watch
        self._checks = dict(checks or {})
        self.in_flight = 0

    # What the HTTP layer asks for.

    def check_head(self, request: Request) -> Response | None:
        route = route_of(request.path)
        vendor = _vendor(route, request)
        if request.method == b"OPTIONS" and (route or request.target == b"*"):
            return Response(204, b"", ((b"allow", allowed(route)),))
        if route is None:
            return _no(vendor, Problem(404, "there is no such address here", "unknown_url"))
        request.route = route
        if request.method not in route.methods:
            problem = Problem(405, f"this address takes {allowed(route).decode()}", "method_not_allowed")
            return _no(vendor, problem, (b"allow", allowed(route)))
        if b"content-encoding" in request.headers:
            return _no(vendor, Problem(415, "compressed bodies are not taken", "unsupported_encoding"))
        if self._watch is not None:
            request.trace = self._watch.trace(request)
        if route.needs is None:
            return None
        try:
            caller = request.caller = self._door.caller(request.headers, request.peer)
        except Untrusted as error:
            return _no(vendor, Problem(401, error.message, "invalid_api_key"), _BEARER)
        except Exhausted as error:
            return self._exhausted(vendor, error)
        except Refused as error:
            return _no(vendor, Problem(403, error.message, "key_required"))
        except SteelyardError as error:
            return _unavailable(vendor, error)
        if not caller.may(route.needs):
            return _no(vendor, Problem(403, f"the role {caller.role} does not pass here", "role_not_allowed"))
        return None

    async def answer(self, request: Request) -> Response:
        route = request.route
        assert route is not None  # check_head let it pass
        vendor = _vendor(route, request)
        try:
            if route.parse is not None:
                return await self._ask(request, route)
            if route is MODELS or route is MODEL:
                return self._models(request, route, vendor)
            if route is READY:
                is_ready, body = readiness(self._checks)
                return Response(200 if is_ready else 503, body)
            if route is METRICS and self._metrics is not None:
                kind, body = self._metrics.render(request.headers.get(b"accept", b""))
                return Response(200, body, ((b"content-type", kind),))
        except WrongUsage as error:
            return _no(vendor, Problem(400, error.message, "invalid_value"))
        except Exhausted as error:
            return self._exhausted(vendor, error)
        except Refused as error:
            self._count_refusal(error.rules)
            return _no(vendor, Problem(403, error.message, "content_not_allowed"))
        except SteelyardError as error:
            return _unavailable(vendor, error)
        return Response(200, health())

    def malformed(self, status: int, message: str) -> Response:
        return _no(openai, Problem(status, message))

    def failed(self) -> Response:
        return _no(openai, Problem(500, "the gateway failed; the operator's log has the place"))

    def log(self, request: Request, status: int, sent_bytes: int, seconds: float) -> None:
        self._access_log.add(request, status, sent_bytes, seconds)
        if self._watch is not None:
            self._watch.answered(request, status, seconds, request.first_chunk_s, request.trace)

    def tick(self) -> None:
        self._access_log.flush()
        if self.accounts is not None:
            self.accounts.flush()

    # Routes.

    def _models(self, request: Request, route: Route, vendor: Vendor) -> Response:
        assert request.caller is not None
        names = [name for name in self._gate.aliases() if request.caller.may_use(name)]
        if route is MODELS:
            return Response(200, vendor.models(names, self._created))
        name = _unquoted(request.path[len(MODEL.name) :])
        if name is None or name not in names:
            return _no(vendor, _no_model(name))
        return Response(200, vendor.model(name, self._created))

    async def _ask(self, request: Request, route: Route) -> Response:
        assert route.parse is not None
        assert request.caller is not None
        try:
            asked = route.parse(request.body)
        except Malformed as error:
            return _no(route.vendor, Problem(400, error.message, "invalid_value", _param(error.rule)))
        name = asked.call.model
        if not request.caller.may_use(name):
            problem = Problem(403, f"this API key may not use {name!r}", "model_not_allowed", "model")
            return _no(route.vendor, problem)
        if self.in_flight >= self._max_in_flight:
            busy = "too many requests are in work; try again later"
            return _no(route.vendor, Problem(429, busy, "rate_limit_exceeded", retry_after_s=1))
        visit = _Visit(
            asked, request.caller, route.name, request.body, request.headers.get(_CONVERSATION, b"")
        )
        visit.open(self, request)
        try:
            outcome = await (self._gate.count if route.counts else self._gate.answer)(visit)
        except UnknownAlias:
            visit.close()
            return _no(route.vendor, _no_model(name))
        except BaseException:
            visit.close()
            raise
        request.alias = name
        request.receipt = outcome.receipt
        if isinstance(outcome, Refusal):
            visit.close()
            self._count_refusal([rule.id for rule in outcome.decision.rules if rule.state is not State.MET])
            return _refused(route.vendor, outcome)
        request.digest = digest = outcome.digest
        named: Fields = ((_RECEIPT, outcome.receipt.encode()), (_DIGEST, digest.encode()))
        if visit.ticket is not None:
            named = (*named, *visit.ticket.headers())
        body = outcome.body
        return Response(200, body, (*((JSON_TYPE,) if isinstance(body, bytes) else _EVENTS), *named))

    def _exhausted(self, vendor: Vendor, error: Exhausted) -> Response:
        if self._metrics is not None:
            self._metrics.exhausted(error.limit)
        problem = Problem(429, error.message, error.code, retry_after_s=error.retry_after_s)
        return _no(vendor, problem, *error.fields)

    def _count_refusal(self, rules: Iterable[str]) -> None:
        if self._metrics is not None:
            self._metrics.refused(rules)


class _Visit(Question):
    """A question of a request in work."""

    __slots__ = ("_app", "_is_open", "_request", "ticket")

    def open(self, app: App, request: Request) -> None:
        """Count it in. Raises Exhausted, Refused, Unavailable."""
        self.ticket: Ticket | None = None
        if app.accounts is not None:
            assert request.caller is not None
            call = self.asked.call
            bound = bound_of(call, len(self.body), app.reserve_tokens)
            self.ticket = app.accounts.take(request.caller, call.model, bound)
        app.in_flight += 1
        self._app = app
        self._request = request
        self._is_open = True

    def done(self, end: End) -> None:
        self._request.end = end
        if self.ticket is not None:
            if end.prompt_tokens is None:  # cut off before the engine counted: what was seen of it counts
                self.ticket.settle(len(self.body) // BYTES_PER_TOKEN, end.chunks)
            else:
                self.ticket.settle(end.prompt_tokens, end.completion_tokens)
        self.close()

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._app.in_flight -= 1
            if self.ticket is not None:
                self.ticket.release()


def _vendor(route: Route | None, request: Request) -> Vendor:
    # Both vendors list models at one address; only Anthropic's clients send its version.
    if b"anthropic-version" in request.headers and (route is None or route.parse is None):
        return anthropic
    return route.vendor if route is not None else openai


def _unquoted(path: bytes) -> str | None:
    """A percent-decoded name, decoded once; absent when it is not UTF-8."""
    try:
        return _PERCENT.sub(lambda match: bytes((int(match[1], 16),)), path).decode()
    except UnicodeDecodeError:
        return None


def _param(rule: str) -> str | None:
    place = rule.partition("/")[2]
    return None if place == "body" else place


def _no(vendor: Vendor, problem: Problem, *fields: tuple[bytes, bytes]) -> Response:
    if problem.retry_after_s is not None:
        fields = (*fields, (b"retry-after", b"%d" % problem.retry_after_s))
    return Response(problem.status, vendor.error(problem), (JSON_TYPE, *fields))


def _no_model(name: str | None) -> Problem:
    message = f"the model {name!r} does not exist here; GET /v1/models lists those that do"
    return Problem(404, message, "model_not_found", "model")


def _unavailable(vendor: Vendor, error: SteelyardError) -> Response:
    # The operator reads which file or process it was; the caller need not.
    _log.error("not answered: %s", error.message)
    return _no(vendor, TRY_LATER)


def _refused(vendor: Vendor, refusal: Refusal) -> Response:
    """403 that names each rule not met and the command that supplies what is missing."""
    decision = refusal.decision
    unmet: list[JSON] = [rule.to_json() for rule in decision.rules if rule.state is not State.MET]
    extra: dict[str, JSON] = {
        "model": str(decision.model),
        "policy": str(decision.policy),
        "receipt": refusal.receipt,
        "rules": unmet,
    }
    problem = Problem(403, refusal.message, "model_not_admitted", "model", extra)
    named = ((_RECEIPT, refusal.receipt.encode()), (_DIGEST, str(decision.model).encode()))
    return _no(vendor, problem, *named)
