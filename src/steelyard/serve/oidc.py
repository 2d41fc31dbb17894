"""Callers with a token of an identity provider: a JSON Web Token checked against a key set on this disk.

    base64url({alg, kid?, typ?}) "." base64url({iss, aud, exp, nbf?, iat?, ...}) "." base64url(signature)

Nothing is fetched: `jku`, `x5u` and the like in a token are never followed. The file is looked at once a second and
read again when it changed; tokens of keys that are gone stop at once.

Attacks: see oidc_keys; `crit` fields we do not know; a token for another audience or of another issuer; one without
an end; a name that looks like another's. Source: RFC 7515, 7519, 8725; OpenID Connect Core 1.0, 3.1.3.7.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steelyard.access import Limits, check_patterns
from steelyard.access_config import OidcRules
from steelyard.disk import read_file, unavailable
from steelyard.errors import Malformed, Refused, SteelyardError, Unavailable, Untrusted, WrongUsage
from steelyard.serve.oidc_keys import WebKey, decoded, parse_keys
from steelyard.wire.body import parse_object

MAX_TOKEN_BYTES = 12 << 10
MAX_KEY_SET_BYTES = 1 << 20
MAX_GROUPS = 1000
LOOK_AGAIN_S = 1.0
MAX_MOMENT = 10**12

_NAME = re.compile(r"[!-~]{1,128}")  # printable ASCII without spaces: what cannot be taken for another's
_TYPES = (None, "jwt", "at+jwt", "application/at+jwt")
_PARTS = 3


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom a token names. until: seconds since 1970 at which it ends, skew included."""

    name: str
    role: str
    team: str | None
    models: tuple[str, ...]
    limits: Limits
    until: float


class Oidc:
    """Checks tokens. `now` is seconds since 1970. look_at: when the key set is looked at next."""

    def __init__(self, rules: OidcRules) -> None:
        self._rules = rules
        self._keys: tuple[WebKey, ...] = ()
        self._mark: tuple[int, int, int] | None = None
        self._generation = 0
        self.look_at = float("-inf")
        self._looked_at = float("-inf")

    def generation(self, now: float) -> int:
        """Another number when the key set is another. Raises Unavailable when it cannot be read."""
        if now >= self.look_at or now < self._looked_at:
            self._look(now)
        return self._generation

    def verify(self, token: bytes, now: float) -> Identity:
        """Whom `token` names. Raises Untrusted, Refused for one without a role here, Unavailable."""
        self.generation(now)
        if len(token) > MAX_TOKEN_BYTES:
            raise Untrusted(f"a token has at most {MAX_TOKEN_BYTES} bytes")
        parts = token.split(b".")
        if len(parts) != _PARTS:
            raise Untrusted("this is no signed token")
        try:
            head, claims, signature = (decoded(part.decode("ascii")) for part in parts)
            fields = parse_object(head, "token/")
            # The signature covers the text as sent, so it is checked before the claims are read.
            self._check_signature(fields, signature, token.rpartition(b".")[0])
            return self._identity(parse_object(claims, "token/"), now)
        except (Malformed, ValueError) as error:
            raise Untrusted("this token is not well-formed") from error

    def _look(self, now: float) -> None:
        path = self._rules.key_set
        with unavailable(f"cannot read the key set {path}"):
            status = os.stat(path)
            mark = (status.st_mtime_ns, status.st_size, status.st_ino)
            if mark != self._mark:
                # A set that cannot be read or is damaged lets nobody in; the last good one is not kept.
                self._keys, self._mark = (), None
                self._generation += 1
                self._keys = _keys(path)
                self._mark = mark
        self.look_at, self._looked_at = now + LOOK_AGAIN_S, now

    def _check_signature(self, fields: Mapping[str, Any], signature: bytes, signed: bytes) -> None:
        algorithm, kid, kind = fields.get("alg"), fields.get("kid"), fields.get("typ")
        if "crit" in fields or not isinstance(algorithm, str):
            raise Untrusted("this token has no alg, or demands what is not known here")
        if (kind.lower() if isinstance(kind, str) else kind) not in _TYPES:
            raise Untrusted("this token is of another type than JWT")
        if kid is None and len(self._keys) != 1:
            raise Untrusted("this token does not say which key signed it")
        for key in self._keys:
            if kid is None or key.kid == kid:
                if key.verifies(algorithm, signature, signed):
                    return
                raise Untrusted("this token's signature does not hold")
        raise Untrusted("the key that signed this token is not in the key set here")

    def _identity(self, claims: Mapping[str, Any], now: float) -> Identity:
        rules = self._rules
        if claims.get("iss") != rules.issuer:
            raise Untrusted("this token is of another issuer")
        audience = claims.get("aud")
        if rules.audience not in (audience if isinstance(audience, list) else [audience]):
            raise Untrusted("this token is for another audience")
        end = _moment(claims, "exp")
        if end is None:
            raise Untrusted("this token has no end (exp)")
        if now >= end + rules.skew_s:
            raise Untrusted("this token is expired")
        for begin in ("nbf", "iat"):
            if (_moment(claims, begin) or 0) > now + rules.skew_s:
                raise Untrusted("this token is not valid yet")
        name = _claim(claims, rules.name)
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise Untrusted(f"this token's {rules.name} is no name: 1 to 128 printable characters, no spaces")
        groups = _texts(_claim(claims, rules.groups), rules.groups)
        role = next((rules.roles[group] for group in rules.roles if group in groups), rules.default_role)
        if role is None:
            raise Refused("no group of this token has a role here; the operator maps groups in [access.oidc]")
        team = next((rules.teams[group] for group in rules.teams if group in groups), None)
        return Identity(name, role, team, self._models(claims), rules.limits, end + rules.skew_s)

    def _models(self, claims: Mapping[str, Any]) -> tuple[str, ...]:
        if self._rules.models is None:
            return ()
        names = _texts(_claim(claims, self._rules.models), self._rules.models)
        try:
            # An empty tuple would mean all models: who is named none gets none.
            return check_patterns(sorted(names)) or ("-",)
        except WrongUsage as error:
            raise Untrusted(f"this token's {self._rules.models} are no alias patterns") from error


def _keys(path: Path) -> tuple[WebKey, ...]:
    try:
        keys = parse_keys(read_file(path, MAX_KEY_SET_BYTES))
    except Malformed as error:
        raise Unavailable(f"{path}: {error.message}") from error
    if not keys:
        raise Unavailable(
            f"{path} has no key that signatures of RS256, PS256, ES256 or EdDSA are checked with"
        )
    return keys


def check_key_set(path: Path) -> None:
    """Raises WrongUsage when there are no usable keys in `path`; for the start, before callers meet it."""
    try:
        _keys(path)
    except (OSError, SteelyardError) as error:
        raise WrongUsage(f"access.oidc.jwks: {error}") from error


def _claim(claims: Mapping[str, Any], name: str) -> object:
    """A claim by its name, or by the way to it."""
    if name in claims:  # names such as "https://example.org/groups" have dots
        return claims[name]
    value: object = claims
    for part in name.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _texts(value: object, name: str) -> set[str]:
    """The texts of a list, or the words of a text (as `scope` has them)."""
    values = value.split() if isinstance(value, str) else [] if value is None else value
    if (
        not isinstance(values, list)
        or len(values) > MAX_GROUPS
        or not all(isinstance(v, str) for v in values)
    ):
        raise Untrusted(f"this token's {name} is no list of at most {MAX_GROUPS} texts")
    return set(values)


def _moment(claims: Mapping[str, Any], name: str) -> float | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < MAX_MOMENT:
        raise Untrusted(f"this token's {name} is no moment")
    return float(value)
