"""Policy and Decision: which evidence a model needs before it may answer. Pure: no clock, no disk.

A policy is TOML. Each rule names a predicate type, conditions on the predicate's fields, a maximum age, accepted
signers and a scope. A model is allowed only if every rule in scope is met. Rules read evidence data, never code.

How doubt is settled, always towards refusal:
- of several statements of one type, the newest decides; those issued in the same second must all agree;
- a revoked statement is not replaced by an older one: the rule is unmet until newer evidence is issued;
- missing evidence or a missing field is `unknown`, and unknown refuses;
- a statement dated more than MAX_SKEW ahead of `now` is not accepted;
- at least one rule applies to everyone, so adding a rule can only refuse more.
"""

import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any

from steelyard.digest import JSON, Digest, sha256
from steelyard.errors import Untrusted, WrongUsage
from steelyard.evidence import PREDICATE_PREFIX, Evidence, PublicKey, verify

LINEAGE = PREDICATE_PREFIX + "lineage:v1"
REVOCATION = PREDICATE_PREFIX + "revocation:v1"
MAX_POLICY_BYTES = 1 << 20
MAX_SKEW = timedelta(minutes=5)

# How it is known which bytes an engine loaded, weakest first: a URL says so; an agent on the engine's host hashed
# them; we launched the engine on a verified path. None of these proves what ran.
IDENTITIES = ("asserted", "hashed", "launched")
DEFAULT_IDENTITY = "hashed"
IDENTITY_RULE = "identity"

_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,63}")
_AGE = re.compile(r"([1-9][0-9]{0,4})([mhd])")
_AGE_UNIT = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}
_PATTERNS = {
    "nonempty": re.compile(r"(?s).+"),
    "rfc3339": re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?Z"),
    "semver": re.compile(r"\d{1,9}\.\d{1,9}\.\d{1,9}"),
    "sha256": re.compile(r"(sha256:)?[0-9a-f]{64}"),
}


class State(StrEnum):
    """`unmet`: evidence says no. `unknown`: there is no evidence that could say."""

    MET = "met"
    UNMET = "unmet"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Condition:
    """One comparison. `field` is a dotted path; a part ending in [] means every element of that list."""

    field: str
    op: str
    value: Any

    def __post_init__(self) -> None:
        if self.op not in _OPERATORS:
            raise WrongUsage(
                f"condition on {self.field!r}: operator {self.op!r} is not one of {_names(_OPERATORS)}"
            )
        if self.op == "in" and not isinstance(self.value, list):
            raise WrongUsage(f"condition on {self.field!r}: `in` needs a list")
        if self.op == "matches" and self.value not in _PATTERNS:
            raise WrongUsage(
                f"condition on {self.field!r}: pattern {self.value!r} is not one of {_names(_PATTERNS)}"
            )
        if self.op in ("<=", ">=") and not _is_number(self.value):
            raise WrongUsage(f"condition on {self.field!r}: `{self.op}` needs a number")

    def check(self, predicate: Mapping[str, Any]) -> tuple[State, str]:
        """State and reason for one predicate. A missing field, or one of another type, is unknown."""
        for found in _values(predicate, self.field.split(".")):
            if found is _MISSING:
                return State.UNKNOWN, f"field {self.field} is missing"
            holds = _OPERATORS[self.op](found, self.value)
            if holds is None:
                return (
                    State.UNKNOWN,
                    f"field {self.field} holds {_short(found)}, which {self.op} cannot compare",
                )
            if not holds:
                return State.UNMET, f"{self.field} is {_short(found)}, wanted {self.op} {_short(self.value)}"
        return State.MET, ""


@dataclass(frozen=True, slots=True)
class Rule:
    """What one kind of evidence must say. `supply` is the command that would produce it."""

    id: str
    predicate: str
    why: str
    supply: str
    require: tuple[Condition, ...]
    max_age: timedelta | None = None
    signers: tuple[str, ...] = ("*",)
    aliases: tuple[str, ...] = ("*",)
    api_keys: tuple[str, ...] = ("*",)
    sources: bool = False

    @property
    def is_universal(self) -> bool:
        return "*" in self.aliases and "*" in self.api_keys

    def applies(self, alias: str | None, api_key: str | None) -> bool:
        """A rule applies where its scope matches; an unnamed caller or alias is in every scope."""
        return _in_scope(alias, self.aliases) and _in_scope(api_key, self.api_keys)


@dataclass(frozen=True, slots=True)
class RuleResult:
    """One line of a decision. `evidence` is the id of the statement that decided, absent when none did."""

    id: str
    state: State
    reason: str
    supply: str
    evidence: str | None = None
    expires: datetime | None = None

    def to_json(self) -> dict[str, JSON]:
        return {
            "id": self.id,
            "state": self.state.value,
            "reason": self.reason,
            "supply": self.supply,
            "evidence": self.evidence,
        }


@dataclass(frozen=True, slots=True)
class Decision:
    """Every rule in scope with its state. `valid_until`: when the first met rule grows too old."""

    model: Digest
    policy: Digest
    rules: tuple[RuleResult, ...]

    @property
    def allowed(self) -> bool:
        return bool(self.rules) and all(rule.state is State.MET for rule in self.rules)

    @property
    def valid_until(self) -> datetime | None:
        return min((rule.expires for rule in self.rules if rule.expires), default=None)

    def to_json(self) -> dict[str, JSON]:
        return {
            "allowed": self.allowed,
            "model": str(self.model),
            "policy": str(self.policy),
            "rules": [rule.to_json() for rule in self.rules],
        }


@dataclass(frozen=True, slots=True)
class Policy:
    """A parsed policy. `digest` is that of the TOML text, so that a decision names the exact rules it used.

    identity: the weakest of IDENTITIES with which an engine may answer.
    """

    name: str
    digest: Digest
    rules: tuple[Rule, ...]
    identity: str = DEFAULT_IDENTITY

    @classmethod
    def parse(cls, text: str) -> "Policy":
        """Raises WrongUsage for anything that is not a policy, unknown keys included."""
        data = text.encode()
        if len(data) > MAX_POLICY_BYTES:
            raise WrongUsage(f"the policy has {len(data)} bytes, at most {MAX_POLICY_BYTES} are read")
        try:
            table = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            raise WrongUsage(f"the policy is not TOML: {error}") from error
        _only(table, {"version", "name", "identity", "rule"}, "the policy")
        if table.get("version") != 1:
            raise WrongUsage(f"the policy has version {table.get('version')!r}, expected 1")
        rules = tuple(_rule(entry) for entry in _list(table, "rule", "the policy", dict))
        ids = [rule.id for rule in rules]
        if len(set(ids)) != len(ids):
            raise WrongUsage("two rules of the policy have the same id")
        if not any(rule.is_universal for rule in rules):
            raise WrongUsage(
                'no rule of the policy applies to everyone (aliases = ["*"] and api_keys = ["*"])'
            )
        identity = table.get("identity", DEFAULT_IDENTITY)
        if identity not in IDENTITIES:
            raise WrongUsage(f"the policy's identity {identity!r} is not one of {_names(IDENTITIES)}")
        return cls(_text(table, "name", "the policy"), sha256(data), rules, identity)

    def decide(
        self,
        model: Digest,
        evidence: Iterable[Evidence],
        now: datetime,
        *,
        keys: Iterable[PublicKey],
        alias: str | None = None,
        api_key: str | None = None,
        identity: str | None = None,
    ) -> Decision:
        """Weigh `evidence` (anything the store has; signatures are checked here) for `model` at `now`.

        now: timezone-aware.  keys: the trusted public keys.  alias, api_key: who asks, for the rules' scopes.
        identity: what is known of the engine that is to answer; absent where none is, as when a model is admitted.
        Same input, same decision.
        """
        if now.tzinfo is None:
            raise ValueError("now must be timezone-aware")
        file = _File.of(evidence, tuple(keys), now)
        rules = tuple(rule for rule in self.rules if rule.applies(alias, api_key))
        results = [_judge(rule, model, file, now) for rule in rules]
        if identity is not None:
            results.append(self._judge_identity(identity))
        return Decision(model, self.digest, tuple(results))

    def _judge_identity(self, identity: str) -> RuleResult:
        """The rule every engine must meet, beside those of the policy's text."""
        known = IDENTITIES.index(identity) if identity in IDENTITIES else -1
        if known >= IDENTITIES.index(self.identity):
            return RuleResult(IDENTITY_RULE, State.MET, f"identity: {identity}", "")
        reason = f"identity: unverified, the model is only {identity}, wanted {self.identity}"
        supply = "steelyard node on the engine's host, or let steelyard serve --launch start the engine"
        return RuleResult(IDENTITY_RULE, State.UNMET, reason, supply)


@dataclass(frozen=True, slots=True)
class _Filed:
    """A verified statement about one subject."""

    id: str
    predicate: Mapping[str, Any]
    signers: frozenset[str]
    issued_at: datetime
    is_revoked: bool


@dataclass(slots=True)
class _File:
    """Verified evidence by (subject SHA-256, predicate type)."""

    entries: dict[tuple[str, str], list[_Filed]] = field(default_factory=dict)

    @classmethod
    def of(cls, evidence: Iterable[Evidence], keys: tuple[PublicKey, ...], now: datetime) -> "_File":
        verified: dict[str, tuple[Evidence, frozenset[str], datetime]] = {}
        for item in evidence:
            try:
                signers = verify(item, keys)
            except Untrusted:
                continue  # evidence nobody we trust has signed is no evidence
            issued_at = _issued_at(item.statement.predicate)
            if issued_at is not None and issued_at <= now + MAX_SKEW:
                verified[item.id.hex] = (item, signers, issued_at)
        revoked = {
            subject.sha256
            for item, _, _ in verified.values()
            if item.statement.predicate_type == REVOCATION
            for subject in item.statement.subjects
        }
        file = cls()
        for name, (item, signers, issued_at) in verified.items():
            statement = item.statement
            filed = _Filed(name, statement.predicate, signers, issued_at, name in revoked)
            for subject in statement.subjects:
                file.entries.setdefault((subject.sha256, statement.predicate_type), []).append(filed)
        return file

    def newest(self, subject: str, predicate_type: str, signers: tuple[str, ...]) -> list[_Filed]:
        """The newest accepted statements; several only when they share a second."""
        accepted = [
            filed
            for filed in self.entries.get((subject, predicate_type), ())
            if "*" in signers or any(keyid in filed.signers for keyid in signers)
        ]
        latest = max((filed.issued_at for filed in accepted), default=None)
        return [filed for filed in accepted if filed.issued_at == latest]

    def chain(self, subject: str) -> tuple[str, ...]:
        """`subject` and every source its lineage statements name, nearest first."""
        order = [subject]
        for current in order:
            for filed in self.entries.get((current, LINEAGE), ()):
                source = filed.predicate.get("source")
                digest = source.get("digest") if isinstance(source, Mapping) else None
                sha = digest.get("sha256") if isinstance(digest, Mapping) else None
                if isinstance(sha, str) and sha not in order:
                    order.append(sha)
        return tuple(order)


def _judge(rule: Rule, model: Digest, file: _File, now: datetime) -> RuleResult:
    if not rule.sources:
        return _judge_subject(rule, model.hex, file, now)
    expires: list[datetime] = []
    for subject in file.chain(model.hex):
        if any(filed.is_revoked for filed in file.newest(subject, LINEAGE, ("*",))):
            result = RuleResult(
                rule.id, State.UNMET, "the lineage statement was revoked", _supply(rule, subject)
            )
        else:
            result = _judge_subject(rule, subject, file, now)
        if result.state is not State.MET:
            where = "" if subject == model.hex else f"source {subject[:12]}: "
            return replace(result, reason=where + result.reason)
        if result.expires:
            expires.append(result.expires)
        if subject == model.hex:
            own = result
    return replace(own, expires=min(expires, default=None))


def _judge_subject(rule: Rule, subject: str, file: _File, now: datetime) -> RuleResult:
    supply = _supply(rule, subject)
    newest = file.newest(subject, rule.predicate, rule.signers)
    if not newest:
        return RuleResult(rule.id, State.UNKNOWN, f"no trusted evidence of type {rule.predicate}", supply)
    expires = newest[0].issued_at + rule.max_age if rule.max_age else None
    for filed in newest:
        state, reason = State.MET, rule.why
        if filed.is_revoked:
            state, reason = State.UNMET, "the evidence was revoked"
        elif expires and now > expires:
            state, reason = State.UNMET, f"the evidence expired at {expires:%Y-%m-%dT%H:%M:%SZ}"
        else:
            for condition in rule.require:
                state, failed = condition.check(filed.predicate)
                if state is not State.MET:
                    reason = failed
                    break
        if state is not State.MET:
            return RuleResult(rule.id, state, reason, supply, filed.id)
    return RuleResult(rule.id, State.MET, rule.why, "", newest[0].id, expires)


def _supply(rule: Rule, subject: str) -> str:
    return rule.supply.replace("{model}", subject[:12])


def _issued_at(predicate: Mapping[str, Any]) -> datetime | None:
    text = predicate.get("issued_at")
    if not isinstance(text, str) or not _PATTERNS["rfc3339"].fullmatch(text):
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


_MISSING = object()


def _values(value: object, parts: list[str]) -> Iterator[object]:
    """Every value that the path reaches; _MISSING where it breaks off. An empty list reaches none."""
    if not parts:
        yield value
        return
    name, every = (parts[0][:-2], True) if parts[0].endswith("[]") else (parts[0], False)
    inner = value.get(name, _MISSING) if isinstance(value, Mapping) else _MISSING
    if not every:
        yield from _values(inner, parts[1:]) if inner is not _MISSING else (_MISSING,)
    elif isinstance(inner, list):
        for element in inner:
            yield from _values(element, parts[1:])
    else:
        yield _MISSING


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _same(found: object, wanted: object) -> bool:
    # In Python True == 1; in evidence they are different answers.
    return found == wanted and isinstance(found, bool) == isinstance(wanted, bool)


# Each returns None when it cannot compare the two, which the caller takes as unknown.
_OPERATORS: dict[str, Callable[[Any, Any], bool | None]] = {
    "==": _same,
    "in": lambda found, wanted: any(_same(found, item) for item in wanted),
    "<=": lambda found, wanted: found <= wanted if _is_number(found) else None,
    ">=": lambda found, wanted: found >= wanted if _is_number(found) else None,
    "matches": lambda found, wanted: (
        bool(_PATTERNS[wanted].fullmatch(found)) if isinstance(found, str) else None
    ),
}


def _in_scope(name: str | None, scope: tuple[str, ...]) -> bool:
    return name is None or any(fnmatchcase(name, pattern) for pattern in scope)


def _names(options: Iterable[str]) -> str:
    return ", ".join(options)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _rule(entry: Mapping[str, Any]) -> Rule:
    where = f"rule {entry.get('id')!r}"
    _only(entry, _RULE_KEYS, where)
    name = _text(entry, "id", where)
    if not _ID.fullmatch(name):
        raise WrongUsage(f"{where}: an id has lower-case letters, digits and hyphens only")
    if name == IDENTITY_RULE:
        raise WrongUsage(
            f"{where}: every policy has a rule of this name; set `identity` beside `name` instead"
        )
    conditions = _list(entry, "require", where, dict)
    if not conditions:
        raise WrongUsage(f"{where}: `require` is empty, so the rule would ask for nothing")
    sources = entry.get("sources", False)
    if not isinstance(sources, bool):
        raise WrongUsage(f"{where}: `sources` is true or false")
    return Rule(
        id=name,
        predicate=_text(entry, "predicate", where),
        why=_text(entry, "why", where),
        supply=_text(entry, "supply", where),
        require=tuple(_condition(condition, where) for condition in conditions),
        max_age=_age(entry["max_age"], where) if "max_age" in entry else None,
        signers=_scope(entry, "signers", where),
        aliases=_scope(entry, "aliases", where),
        api_keys=_scope(entry, "api_keys", where),
        sources=sources,
    )


_RULE_KEYS = {
    "id",
    "predicate",
    "why",
    "supply",
    "require",
    "max_age",
    "signers",
    "aliases",
    "api_keys",
    "sources",
}


def _condition(entry: Mapping[str, Any], where: str) -> Condition:
    _only(entry, {"field", "op", "value"}, f"a condition of {where}")
    if "value" not in entry:
        raise WrongUsage(f"a condition of {where} has no value")
    return Condition(_text(entry, "field", where), _text(entry, "op", where), entry["value"])


def _only(table: Mapping[str, Any], known: set[str], where: str) -> None:
    unknown = sorted(set(table) - known)
    if unknown:
        raise WrongUsage(f"{where}: unknown key {unknown[0]!r}; known keys are {_names(sorted(known))}")


def _text(table: Mapping[str, Any], key: str, where: str) -> str:
    value = table.get(key)
    if not isinstance(value, str) or not value:
        raise WrongUsage(f"{where}: {key!r} is missing or not text")
    return value


def _list(table: Mapping[str, Any], key: str, where: str, kind: type) -> list[Any]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        raise WrongUsage(f"{where}: {key!r} is not a list of {'tables' if kind is dict else 'texts'}")
    return value


def _scope(table: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    if key not in table:
        return ("*",)
    scope = tuple(_list(table, key, where, str))
    if not scope:
        raise WrongUsage(f"{where}: {key!r} is empty, so the rule would apply to nobody")
    return scope


def _age(text: object, where: str) -> timedelta:
    found = _AGE.fullmatch(text) if isinstance(text, str) else None
    if not found:
        raise WrongUsage(f"{where}: max_age {text!r} is not a number with m, h or d, such as 30d")
    return int(found[1]) * _AGE_UNIT[found[2]]
