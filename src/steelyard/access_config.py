"""The tables [access] and [prices] of the configuration.

[access]                  rpm, tpm, rpd, tpd, budget: limits of the whole installation; currency; reserve_tokens
[access.oidc]             issuer, audience, jwks: path; name, groups, models: claims; default_role; skew_s
[access.oidc.roles]       group = "role"        [access.oidc.teams]  group = "team"
[access.oidc.limits]      of each caller with a token
[prices."ALIAS"]          from: date, prompt, completion: currency per million tokens; [[prices."ALIAS"]] for several
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steelyard.access import ROLES, Limits, Price, check_name
from steelyard.errors import WrongUsage

MAX_SKEW_S = 300
MAX_PRICES = 10_000
RESERVE_TOKENS = 4096
MAX_RESERVE_TOKENS = 10**7

_NO_LIMITS = Limits()
_OIDC_TEXTS = ("issuer", "audience", "jwks", "name", "groups", "models", "default_role")


@dataclass(frozen=True, slots=True)
class OidcRules:
    """What tokens to trust and how claims map to callers.

    key_set: a JSON Web Key Set.  name, groups, models: names of claims; a dot leads into an object
    ("realm_access.roles").  roles, teams: by group; of several groups the first one listed here counts.
    default_role: for callers with none of these groups; absent refuses them.  limits: of each caller.
    skew_s: by how much the provider's clock may differ from ours.
    """

    issuer: str
    audience: str
    key_set: Path
    name: str = "sub"
    groups: str = "groups"
    models: str | None = None
    roles: Mapping[str, str] = field(default_factory=dict)
    teams: Mapping[str, str] = field(default_factory=dict)
    default_role: str | None = None
    limits: Limits = _NO_LIMITS
    skew_s: int = 60

    @classmethod
    def parse(cls, value: object, home: Path) -> "OidcRules":
        """Raises WrongUsage. A relative path is one in `home`."""
        table = _table(value, "access.oidc")
        texts = {name: table.pop(name) for name in _OIDC_TEXTS if name in table}
        for name, text in texts.items():
            if not isinstance(text, str) or not text:
                raise WrongUsage(f"access.oidc.{name} is a text")
        if missing := [name for name in ("issuer", "audience", "jwks") if name not in texts]:
            raise WrongUsage(f"access.oidc.{missing[0]} is missing")
        roles = _texts(table.pop("roles", {}), "access.oidc.roles")
        teams = _texts(table.pop("teams", {}), "access.oidc.teams")
        for role in (*roles.values(), texts.get("default_role", "app")):
            if role not in ROLES:
                raise WrongUsage(f"access.oidc: {role!r} is no role; roles are {', '.join(ROLES)}")
        for team in teams.values():
            check_name(team, "team")
        limits = Limits.parse(table.pop("limits", {}), "access.oidc.limits")
        skew_s = _whole(table.pop("skew_s", 60), "access.oidc.skew_s", MAX_SKEW_S)
        _check_rest(table, "access.oidc")
        key_set = home / texts.pop("jwks")
        return cls(key_set=key_set, roles=roles, teams=teams, limits=limits, skew_s=skew_s, **texts)


@dataclass(frozen=True, slots=True)
class Access:
    """limits: the installation's.  reserve_tokens: held for an answer when the request sets no maximum."""

    limits: Limits = _NO_LIMITS
    currency: str = ""
    reserve_tokens: int = RESERVE_TOKENS
    oidc: OidcRules | None = None
    prices: tuple[Price, ...] = ()

    @classmethod
    def parse(cls, access: object, prices: object, home: Path) -> "Access":
        """Raises WrongUsage."""
        table = _table(access, "access")
        oidc = table.pop("oidc", None)
        currency = table.pop("currency", "")
        if not isinstance(currency, str):
            raise WrongUsage("access.currency is a text, such as EUR")
        reserve = _whole(
            table.pop("reserve_tokens", RESERVE_TOKENS), "access.reserve_tokens", MAX_RESERVE_TOKENS
        )
        rules = None if oidc is None else OidcRules.parse(oidc, home)
        return cls(Limits.parse(table, "[access]"), currency, reserve, rules, _prices(prices))


def _prices(value: object) -> tuple[Price, ...]:
    found = tuple(
        Price.parse(pattern, entry)
        for pattern, entries in _table(value, "prices").items()
        for entry in (entries if isinstance(entries, list) else [entries])
    )
    if len(found) > MAX_PRICES:
        raise WrongUsage(f"more than {MAX_PRICES} prices")
    if len({(price.pattern, price.since) for price in found}) != len(found):
        raise WrongUsage("[prices]: two prices of one alias begin on the same day")
    return found


def _table(value: object, place: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise WrongUsage(f"[{place}] is a table")
    return dict(value)


def _texts(value: object, place: str) -> dict[str, str]:
    table = _table(value, place)
    if not all(isinstance(text, str) for text in table.values()):
        raise WrongUsage(f"[{place}] gives each group one text")
    return table


def _whole(value: object, place: str, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise WrongUsage(f"{place} is a whole number from 0 to {most}")
    return value


def _check_rest(table: Mapping[str, object], place: str) -> None:
    if table:
        raise WrongUsage(f"{place}: unknown key {min(table)!r}")
