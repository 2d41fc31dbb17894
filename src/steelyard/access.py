"""Who may ask for what: roles, limits, budgets, prices, API keys and teams, as facts.

A key belongs to at most one team, every team to the installation. Limits of all three hold at once: the tightest wins.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation

from steelyard.digest import JSON
from steelyard.errors import WrongUsage

# What a role may do: ask models something, list them, read metrics, read the ledger.
ROLES = {
    "app": frozenset({"models", "list"}),
    "auditor": frozenset({"list", "metrics", "ledger"}),
    "operator": frozenset({"models", "list", "metrics", "ledger"}),
    "admin": frozenset({"models", "list", "metrics", "ledger"}),
}
OIDC_PREFIX = "oidc:"  # names of callers known by a token; no API key may begin so

MAX_PATTERNS = 64
MAX_COUNT = 10**15  # of requests or tokens in a limit
MAX_AMOUNT = 10**9  # of currency in a budget
MAX_PRICE = 10**4  # of currency per million tokens
NANO = 10**9  # money is counted in whole billionths of the currency

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}")
_PATTERN = re.compile(r"[A-Za-z0-9*?][A-Za-z0-9._:/@+*?-]{0,127}")
_HEX_64 = re.compile(r"[0-9a-f]{64}")
_AMOUNT = re.compile(r"[0-9]{1,10}(\.[0-9]{1,6})?")
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_COUNTS = ("rpm", "tpm", "rpd", "tpd")
_PERIODS = ("day", "month")


@dataclass(frozen=True, slots=True)
class Budget:
    """Money that may be spent in one period. nanos: billionths of the currency.  period: "day" or "month", UTC."""

    nanos: int
    period: str

    @classmethod
    def parse(cls, text: object) -> "Budget":
        """From "50/month" or "2.50/day". Raises WrongUsage."""
        amount, _, period = text.partition("/") if isinstance(text, str) else ("", "", "")
        if not _AMOUNT.fullmatch(amount) or period not in _PERIODS or Decimal(amount) > MAX_AMOUNT:
            raise WrongUsage(f"{text!r} is no budget; one is an amount per day or month: 50/month, 2.50/day")
        return cls(int(Decimal(amount) * NANO), period)

    def __str__(self) -> str:
        return f"{(Decimal(self.nanos) / NANO).normalize():f}/{self.period}"


@dataclass(frozen=True, slots=True)
class Limits:
    """Requests and tokens per minute (any 60 seconds) and per day (UTC), and money. Absent means no limit."""

    rpm: int | None = None
    tpm: int | None = None
    rpd: int | None = None
    tpd: int | None = None
    budget: Budget | None = None

    @classmethod
    def parse(cls, value: object, place: str) -> "Limits":
        """From {rpm, tpm, rpd, tpd: count, budget: "AMOUNT/PERIOD"}. Raises WrongUsage that names `place`."""
        if not isinstance(value, Mapping):
            raise WrongUsage(f"{place}: limits are a table of {', '.join(_COUNTS)} and budget")
        fields = dict(value)
        budget = fields.pop("budget", None)
        counts = {name: _count(fields.pop(name, None), f"{place}: {name}") for name in _COUNTS}
        if fields:
            raise WrongUsage(f"{place}: {min(fields)!r} is no limit; limits are {', '.join(_COUNTS)}, budget")
        return cls(**counts, budget=None if budget is None else Budget.parse(budget))

    def to_json(self) -> dict[str, JSON]:
        """Those that are set."""
        found: dict[str, JSON] = {n: getattr(self, n) for n in _COUNTS if getattr(self, n) is not None}
        return found | ({"budget": str(self.budget)} if self.budget else {})

    @property
    def is_empty(self) -> bool:
        return self == _NO_LIMITS


_NO_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Team:
    """Keys that share a tenant, models and limits. models: alias patterns, empty means all."""

    name: str
    tenant: str | None = None
    models: tuple[str, ...] = ()
    limits: Limits = _NO_LIMITS

    @classmethod
    def parse(cls, value: object) -> "Team":
        """Raises WrongUsage."""
        fields = _fields(value, "team", {"name"}, {"tenant", "models", "limits"})
        name = check_name(fields["name"], "team")
        tenant = fields.get("tenant")
        return cls(
            name,
            None if tenant is None else check_name(tenant, "tenant"),
            check_patterns(fields.get("models", [])),
            Limits.parse(fields.get("limits", {}), f"team {name}"),
        )

    def to_json(self) -> dict[str, JSON]:
        return {
            "name": self.name,
            "tenant": self.tenant,
            "models": list(self.models),
            "limits": self.limits.to_json(),
        }


@dataclass(frozen=True, slots=True)
class Replaced:
    """A secret that a rotation replaced. until: RFC 3339; it is let in before that."""

    sha256: str
    until: str

    def __post_init__(self) -> None:
        _check_hash(self.sha256, "a replaced secret")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A caller's key: SHA-256 of its secret in hex, never the secret; `prefix` is the part people know it by.

    created, expires, revoked: RFC 3339, UTC, whole seconds.  models: alias patterns, empty means all.
    """

    name: str
    sha256: str
    created: str
    prefix: str = ""
    role: str = "app"
    team: str | None = None
    models: tuple[str, ...] = ()
    limits: Limits = _NO_LIMITS
    expires: str | None = None
    revoked: str | None = None
    replaced: Replaced | None = None

    def __post_init__(self) -> None:
        _check_hash(self.sha256, f"API key {self.name!r}")

    @classmethod
    def parse(cls, value: object) -> "ApiKey":
        """Raises WrongUsage or ValueError."""
        rest = {"prefix", "role", "team", "models", "limits", "expires", "revoked", "replaced"}
        fields = _fields(value, "API key", {"name", "sha256", "created"}, rest)
        name, role, team = (
            check_name(fields["name"], "API key"),
            fields.get("role", "app"),
            fields.get("team"),
        )
        if not isinstance(role, str) or role not in ROLES:
            raise WrongUsage(f"API key {name}: {role!r} is no role; roles are {', '.join(ROLES)}")
        replaced = fields.get("replaced")
        if replaced is not None:
            parts = _fields(replaced, "replaced secret", {"sha256", "until"}, set())
            replaced = Replaced(str(parts["sha256"]), str(_moment(parts["until"])))
        return cls(
            name,
            str(fields["sha256"]),
            str(fields["created"]),
            str(fields.get("prefix", "")),
            role,
            None if team is None else check_name(team, "team"),
            check_patterns(fields.get("models", [])),
            Limits.parse(fields.get("limits", {}), f"API key {name}"),
            _moment(fields.get("expires")),
            _moment(fields.get("revoked")),
            replaced,
        )

    def to_json(self) -> dict[str, JSON]:
        replaced: JSON = None
        if self.replaced:
            replaced = {"sha256": self.replaced.sha256, "until": self.replaced.until}
        return {
            "name": self.name,
            "sha256": self.sha256,
            "created": self.created,
            "prefix": self.prefix,
            "role": self.role,
            "team": self.team,
            "models": list(self.models),
            "limits": self.limits.to_json(),
            "expires": self.expires,
            "revoked": self.revoked,
            "replaced": replaced,
        }

    def secrets(self) -> Iterator[tuple[str, float | None]]:
        """SHA-256 of each secret that lets in, and until when (seconds since 1970; absent means for good)."""
        if self.revoked is not None:
            return
        until = None if self.expires is None else seconds_of(self.expires)
        yield self.sha256, until
        if self.replaced is not None:
            grace = seconds_of(self.replaced.until)
            yield self.replaced.sha256, grace if until is None else min(grace, until)

    def state(self, now: datetime) -> str:
        """ "active", "expired" or "revoked"."""
        if self.revoked is not None:
            return "revoked"
        expired = self.expires is not None and seconds_of(self.expires) <= now.timestamp()
        return "expired" if expired else "active"


@dataclass(frozen=True, slots=True)
class Price:
    """What tokens of aliases cost from a day on (UTC). prompt, completion: nanos of the currency per token."""

    pattern: str
    since: date
    prompt: int
    completion: int

    @classmethod
    def parse(cls, pattern: str, value: object) -> "Price":
        """From {from: date, prompt, completion: currency per million tokens}. Raises WrongUsage."""
        check_patterns([pattern])
        fields = _fields(value, f"price of {pattern}", {"prompt", "completion"}, {"from"})
        since = fields.get("from", date(1970, 1, 1))
        if not isinstance(since, date) or isinstance(since, datetime):
            raise WrongUsage(f"price of {pattern}: from is a date, such as 2026-01-01")
        return cls(pattern, since, _rate(fields["prompt"], pattern), _rate(fields["completion"], pattern))


def check_name(text: object, what: str) -> str:
    """Raises WrongUsage for what cannot be a name of a key, team, tenant or alias."""
    if not isinstance(text, str) or not _NAME.fullmatch(text):
        raise WrongUsage(
            f"{text!r} cannot be an {what}: 1 to 128 letters, digits and ._:/@+-, beginning with one"
        )
    if what == "API key" and text.startswith(OIDC_PREFIX):
        raise WrongUsage(f"{text!r}: names that begin with {OIDC_PREFIX} are for callers with a token")
    return text


def check_patterns(values: object) -> tuple[str, ...]:
    """Alias patterns, where * stands for anything and ? for one character. Raises WrongUsage."""
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) > MAX_PATTERNS:
        raise WrongUsage(f"models are a list of at most {MAX_PATTERNS} alias patterns")
    for value in values:
        if not isinstance(value, str) or not _PATTERN.fullmatch(value):
            raise WrongUsage(f"{value!r} is no alias pattern: letters, digits and ._:/@+-, with * and ?")
    return tuple(values)


def seconds_of(moment: str) -> float:
    """Seconds since 1970 of an RFC 3339 moment in UTC."""
    return datetime.strptime(moment, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()


def _fields(value: object, what: str, needed: set[str], others: set[str]) -> dict[str, object]:
    if not isinstance(value, Mapping):
        raise WrongUsage(f"a {what} is a table, not {type(value).__name__}")
    fields = dict(value)
    if missing := needed - fields.keys():
        raise WrongUsage(f"{what}: {min(missing)!r} is missing")
    if unknown := fields.keys() - needed - others:
        raise WrongUsage(f"{what}: unknown key {min(unknown)!r}; known keys are {sorted(needed | others)}")
    return fields


def _count(value: object, place: str) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_COUNT:
        raise WrongUsage(f"{place} is a whole number from 0 to {MAX_COUNT}, not {value!r}")
    return value


def _rate(value: object, pattern: str) -> int:
    try:
        price = Decimal(str(value))
    except InvalidOperation:
        price = Decimal("NaN")
    nanos = price * 1000  # per million tokens -> nanos per token
    if isinstance(value, bool) or not price.is_finite() or not 0 <= price <= MAX_PRICE or nanos % 1:
        raise WrongUsage(
            f"price of {pattern}: {value!r} is no price; one is currency per million tokens, to a thousandth"
        )
    return int(nanos)


def _moment(value: object) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not _MOMENT.fullmatch(value):
        raise WrongUsage(f"{value!r} is no moment; one is 2026-01-31T12:00:00Z")
    seconds_of(value)
    return value


def _check_hash(text: str, whose: str) -> None:
    if not _HEX_64.fullmatch(text):
        raise ValueError(f"{whose}: {text!r} is no SHA-256 in hex")
