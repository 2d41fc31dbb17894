"""Who is calling: API keys, tokens of an identity provider, or on loopback nobody in particular."""

import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Protocol

from steelyard.access import OIDC_PREFIX, ROLES, ApiKey, Limits, Team
from steelyard.errors import Exhausted, Refused, Untrusted
from steelyard.serve.limits import KEY, TEAM, UNLIMITED, Allowance, Scope, allowance_of, installation
from steelyard.serve.oidc import Identity, Oidc
from steelyard.serve.peers import Peers

MAX_SEEN = 10_000  # secrets let in lately, and tokens
MAX_SECRET_BYTES = 16 << 10

_BEARER = b"bearer "
_TOKEN_DOTS = 2
_NO_KEY = "no API key; send it as: Authorization: Bearer KEY, or x-api-key: KEY"
# One message for every secret that lets nobody in: it does not say which of them once did.
_UNKNOWN = (
    "this API key is not known here, is expired or was revoked; the operator makes one with: "
    "steelyard key new --api NAME"
)
_NO_LIMITS = Limits()
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. key: the API key's name, or oidc: and the name in a token; absent without either.

    models, team_models: patterns of aliases, empty means all; both must hold.  limits: what the requests count in.
    """

    key: str | None = None
    tenant: str | None = None
    team: str | None = None
    role: str = "app"
    models: tuple[str, ...] = ()
    team_models: tuple[str, ...] = ()
    limits: Allowance = UNLIMITED

    def may(self, need: str) -> bool:
        return need in ROLES[self.role]

    def may_use(self, alias: str) -> bool:
        return _match(self.models, alias) and _match(self.team_models, alias)


@lru_cache(maxsize=4096)
def _match(patterns: tuple[str, ...], alias: str) -> bool:
    return not patterns or any(fnmatchcase(alias, pattern) for pattern in patterns)


_Seen = tuple[Caller, float, float | None]  # from and until when nothing need be looked up again


class KeyStore(Protocol):
    def head(self) -> int: ...

    def api_keys(self) -> Sequence[ApiKey]: ...

    def teams(self) -> Sequence[Team]: ...


class Door(Protocol):
    """Lets a request in or not, on its head alone."""

    def caller(self, headers: Mapping[bytes, bytes], peer: str = "") -> Caller:
        """Who asks. peer: the address it comes from. Raises Untrusted, Refused, Exhausted or Unavailable."""


class KeyedDoor:
    """Callers with `Authorization: Bearer SECRET` or, as Anthropic's clients send it, `x-api-key: SECRET`.

    SECRET is an API key, or with `oidc` a token. Keys and teams are read again when the store changes. What is
    compared is the SHA-256 of the secret: the time a look-up takes says nothing about the secret.
    limits: the installation's.  clock: timezone-aware now.  ticks: monotonic seconds.
    """

    def __init__(
        self,
        store: KeyStore,
        oidc: Oidc | None = None,
        *,
        limits: Limits = _NO_LIMITS,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._oidc = oidc
        self._installation = installation(limits)
        self._clock = clock
        self._ticks = ticks
        self._peers = Peers()
        self._head: int | None = None
        self._teams: dict[str, Team] = {}
        self._callers: dict[str, tuple[Caller, float | None]] = {}  # by SHA-256 of the secret, with its end
        # Of those let in lately, by the field as sent; apart, so that one is never taken for the other.
        self._by_authorization: dict[bytes, _Seen] = {}
        self._by_key: dict[bytes, _Seen] = {}
        self._by_token: dict[bytes, tuple[Caller, float]] = {}  # by SHA-256 of the token
        self._generation = 0

    def caller(self, headers: Mapping[bytes, bytes], peer: str = "") -> Caller:
        head = self._store.head()
        if head != self._head:
            self._read(head)
        authorization = headers.get(b"authorization")
        key = headers.get(b"x-api-key")
        if key is None:
            found = None if authorization is None else self._by_authorization.get(authorization)
        else:
            found = self._by_key.get(key) if authorization is None else None
        if found is not None and (found[2] is None or found[1] <= self._clock().timestamp() < found[2]):
            return found[0]
        secret = _secret(authorization, key)
        if self._oidc is not None and secret.count(b".") == _TOKEN_DOTS:
            found = self._bearer(self._oidc, secret, peer)
        else:
            found = self._known(secret, peer)
        if authorization is None or key is None:  # with both of them, both are compared each time
            seen = self._by_key if authorization is None else self._by_authorization
            if len(seen) >= MAX_SEEN:
                seen.clear()
            seen[authorization or key or b""] = found
        return found[0]

    def _known(self, secret: bytes, peer: str) -> _Seen:
        self._check_wait(peer)
        found = self._callers.get(hashlib.sha256(secret).hexdigest())
        if found is None or (found[1] is not None and self._clock().timestamp() >= found[1]):
            self._peers.failed(peer, self._ticks())
            raise Untrusted(_UNKNOWN)
        return found[0], float("-inf"), found[1]

    def _bearer(self, oidc: Oidc, token: bytes, peer: str) -> _Seen:
        """Whom it names, until its end or the next look at the key set."""
        now = self._clock().timestamp()
        generation = oidc.generation(now)
        if generation != self._generation:
            self._by_token.clear()
            self._generation = generation
        name = hashlib.sha256(token).digest()
        found = self._by_token.get(name)
        if found is not None and now < found[1]:
            return found[0], now, min(found[1], oidc.look_at)
        self._check_wait(peer)
        try:
            identity = oidc.verify(token, now)
        except Untrusted:
            self._peers.failed(peer, self._ticks())
            raise
        caller = self._user(identity)
        if len(self._by_token) >= MAX_SEEN:
            self._by_token.clear()
        self._by_token[name] = (caller, identity.until)
        return caller, now, min(identity.until, oidc.look_at)

    def _check_wait(self, peer: str) -> None:
        wait_s = self._peers.wait_s(peer, self._ticks())
        if wait_s is not None:
            message = f"too many unknown API keys from this address; wait {wait_s} s"
            raise Exhausted(message, limit="failures", retry_after_s=wait_s)

    def _read(self, head: int) -> None:
        self._by_authorization.clear()
        self._by_key.clear()
        self._by_token.clear()
        self._teams = {team.name: team for team in self._store.teams()}
        self._callers = {}
        shared = {name: self._scope(team) for name, team in self._teams.items()}
        for key in self._store.api_keys():
            team = None if key.team is None else self._teams.get(key.team)
            if key.team is not None and team is None:
                _log.error("the API key %r lets nobody in: its team %r is gone", key.name, key.team)
                continue
            own = Scope(KEY, key.name, key.limits)
            scopes = (
                (own, self._installation) if team is None else (own, shared[team.name], self._installation)
            )
            caller = _caller(key.name, team, key.role, key.models, allowance_of(*scopes))
            self._callers |= {sha256: (caller, until) for sha256, until in key.secrets()}
        self._head = head  # last: after an error the next caller tries again

    def _scope(self, team: Team) -> Scope:
        return Scope(TEAM, team.name, team.limits)

    def _user(self, identity: Identity) -> Caller:
        team = None if identity.team is None else self._teams.get(identity.team)
        if identity.team is not None and team is None:
            _log.error("a token's groups name the team %r, which is not here", identity.team)
            raise Refused(
                "the team of this token is not known here; the operator makes it with: steelyard team new"
            )
        # Of several tokens of one user, all count in the same account.
        name = OIDC_PREFIX + identity.name
        own = () if identity.limits.is_empty else (Scope(KEY, name, identity.limits),)
        shared = () if team is None else (self._scope(team),)
        return _caller(
            name, team, identity.role, identity.models, allowance_of(*own, *shared, self._installation)
        )


def _caller(name: str, team: Team | None, role: str, models: tuple[str, ...], limits: Allowance) -> Caller:
    if team is None:
        return Caller(name, role=role, models=models, limits=limits)
    # A team without a tenant is its own: nothing of one team is shared with another by oversight.
    return Caller(name, team.tenant or team.name, team.name, role, models, team.models, limits)


def _secret(authorization: bytes | None, key: bytes | None) -> bytes:
    """The one secret of a request. Raises Untrusted."""
    if authorization is None:
        secret = (key or b"").strip()
    elif authorization[: len(_BEARER)].lower() != _BEARER:
        raise Untrusted(_NO_KEY)
    else:
        secret = authorization[len(_BEARER) :].strip()
        if key is not None and key.strip() != secret:
            raise Untrusted("two API keys that differ; send one")
    if not secret:
        raise Untrusted(_NO_KEY)
    if len(secret) > MAX_SECRET_BYTES:
        raise Untrusted(f"an API key or token has at most {MAX_SECRET_BYTES} bytes")
    return secret


class OpenDoor:
    """Anybody on this machine except web pages. limits: the installation's.

    Attack: a page in the operator's browser reaches a loopback port, by a cross-site request (it then sends
    `Origin`) or by a name it points at 127.0.0.1 (DNS rebinding: the name stands in `Host`).
    """

    def __init__(self, limits: Limits = _NO_LIMITS) -> None:
        self._caller = Caller(role="operator", limits=allowance_of(installation(limits)))

    def caller(self, headers: Mapping[bytes, bytes], peer: str = "") -> Caller:  # noqa: ARG002 - Door's shape
        if b"origin" in headers:
            raise Refused("requests from web pages need an API key; start the gateway without --no-auth")
        host = headers.get(b"host", b"localhost").lower()
        name = host if host.endswith(b"]") else host.rpartition(b":")[0] or host
        if name not in (b"localhost", b"127.0.0.1", b"[::1]"):
            raise Refused("without API keys the gateway answers to localhost, 127.0.0.1 and [::1] only")
        return self._caller
