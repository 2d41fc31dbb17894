"""The gateway's ledger entries: one for each request, canonical JSON, never text of a caller or an engine.

    {kind: "answer", alias, at, build, completion_tokens, decision, engine, finish_reason, key, model, pii, policy,
     prompt_tokens, receipt, request_sha256, response_sha256, route, salt, status: complete | aborted | failed |
     revoked, tenant}
    {kind: "refusal", alias, at, build, decision, key, model, policy, receipt, request_sha256, route, rules, salt,
     tenant}
    {kind: "decision", at, model, policy, decision, allowed, rules}    before the first entry that names it
    {kind: "resumed", at}                       the first entry after the ledger refused one
request_sha256 = SHA-256(salt || the body as received); response_sha256 = SHA-256(salt || the body as sent, transfer
coding taken off). The salt is SHA-256(secret || receipt) with the secret that `salt` names, kept outside the ledger;
destroying the secret makes both commitments unguessable while every proof still holds. pii: hits by class.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

from steelyard.digest import JSON, canonical_json
from steelyard.policy import Decision, State

MAX_DECISION_BYTES = 32 << 10  # a longer decision is entered without its rules

# What an engine may say of its end. Other words of an upstream's are not copied into the ledger.
FINISH_REASONS = frozenset({"stop", "length", "tool_calls", "function_call", "content_filter"})


@dataclass(frozen=True, slots=True)
class Parties:
    """Who asks for what, where: the part of an entry that is the same for many requests."""

    alias: str
    route: str
    key: str | None
    tenant: str | None


class Form:
    """An entry with everything filled in that a decision and a caller fix; canonical JSON comes out of it.

    Filled by one formatting instead of a sorted encoding for each request.
    """

    def __init__(
        self, decision: Decision, decision_id: str, parties: Parties, engine: str, build: str
    ) -> None:
        fixed = {
            "alias": parties.alias,
            "build": build,
            "decision": decision_id,
            "engine": engine,
            "key": parties.key,
            "model": str(decision.model),
            "policy": str(decision.policy),
            "route": parties.route,
            "tenant": parties.tenant,
        }
        open_ = ("at", "completion_tokens", "finish_reason", "kind", "pii", "prompt_tokens", "receipt",
                 "request_sha256", "response_sha256", "salt", "status")  # fmt: skip
        fields = dict.fromkeys(open_, "%s") | {
            name: json.dumps(value, ensure_ascii=False).replace("%", "%%") for name, value in fixed.items()
        }
        self._text = "{" + ",".join(f'"{name}":{fields[name]}' for name in sorted(fields)) + "}"
        unmet: JSON = [rule.id for rule in decision.rules if rule.state is not State.MET]
        self._fixed: Mapping[str, JSON] = {**fixed, "rules": unmet}

    def answer(self, begun: "Begun", hashed: str, end: "End") -> bytes:
        """The entry of an answer. hashed: SHA-256 of salt and response, hex."""
        finish = (
            f'"{end.finish_reason}"' if end.finish_reason in FINISH_REASONS else _other(end.finish_reason)
        )
        return (
            self._text
            % (
                f'"{begun.at}"',
                "null" if end.completion_tokens is None else end.completion_tokens,
                finish,
                '"answer"',
                _counts(end.pii),
                "null" if end.prompt_tokens is None else end.prompt_tokens,
                f'"{begun.receipt}"',
                f'"{begun.request_sha256}"',
                f'"{hashed}"',
                f'"{begun.salt_name}"',
                f'"{end.status}"',
            )
        ).encode()

    def refusal(self, begun: "Begun", rules: Sequence[str] = ()) -> bytes:
        """The entry of a decided no. rules: those of privacy that said it, instead of policy's."""
        variable: dict[str, JSON] = {
            "kind": "refusal",
            "rules": rules or self._fixed["rules"],
            "at": begun.at,
            "receipt": begun.receipt,
            "request_sha256": begun.request_sha256,
            "salt": begun.salt_name,
        }
        fixed = {name: value for name, value in self._fixed.items() if name != "engine"}
        return canonical_json({**fixed, **variable})


class Begun:
    """What is known of a request when it comes in. at: RFC 3339 with milliseconds.  created: seconds since 1970."""

    __slots__ = ("at", "created", "receipt", "request_sha256", "salt", "salt_name")

    def __init__(self, now: datetime, receipt: str, salt_name: str, secret: bytes, body: bytes) -> None:
        self.at = text_of(now)
        self.created = int(now.timestamp())
        self.receipt = receipt
        self.salt_name = salt_name
        self.salt = hashlib.sha256(secret + receipt.encode()).digest()
        self.request_sha256 = hashlib.sha256(self.salt + body).hexdigest()


@dataclass(slots=True)
class End:
    """How an answer ended. Counts are absent when the engine gave none; pii: hits by class.

    chunks: of a stream, those that came; not entered.
    """

    status: str = "failed"
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str | None = None
    pii: Mapping[str, int] | None = None
    chunks: int = 0


def decision_entry(decision: Decision, decision_id: str, now: datetime) -> bytes:
    """The entry of a decision, without its rules when they are too long for one."""
    entry: dict[str, JSON] = {
        **decision.to_json(),
        "kind": "decision",
        "at": text_of(now),
        "decision": decision_id,
    }
    if len(canonical_json(entry)) > MAX_DECISION_BYTES:
        entry["rules"] = None
    return canonical_json(entry)


def resumed_entry(now: datetime) -> bytes:
    return canonical_json({"kind": "resumed", "at": text_of(now)})


def text_of(moment: datetime) -> str:
    """RFC 3339 with milliseconds, in UTC."""
    return f"{_second(int(moment.timestamp()))}.{moment.microsecond // 1000:03d}Z"


@lru_cache(maxsize=16)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()[:-6]


def _other(finish_reason: str | None) -> str:
    return "null" if finish_reason is None else '"other"'


def _counts(counts: Mapping[str, int] | None) -> str:
    return canonical_json(dict(counts)).decode() if counts else "{}"
