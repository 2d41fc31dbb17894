"""One licence out of many claims: LICENSE text, model card, GGUF metadata. Conflicts are shown, never settled."""

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources

from license_expression import ExpressionError, LicenseSymbol, get_spdx_licensing

from steelyard.admit.examined import Examined
from steelyard.admit.scan import Scan
from steelyard.digest import JSON

MAX_EXPRESSION_CHARS = 200


@dataclass(frozen=True, slots=True)
class Claim:
    """What one source says. `expression` is None when it names a licence that nobody knows."""

    path: str
    kind: str
    stated: str
    expression: str | None


@dataclass(frozen=True, slots=True)
class Licence:
    """`expression` is absent when nothing, or nothing that can be named, was claimed, or when claims conflict."""

    expression: str | None
    is_osi_approved: bool
    claims: tuple[Claim, ...]
    has_conflict: bool

    def to_json(self) -> dict[str, JSON]:
        sources: list[JSON] = [
            {"path": c.path, "kind": c.kind, "stated": c.stated, "expression": c.expression}
            for c in self.claims
        ]
        return {
            "expression": self.expression,
            "osi_approved": self.is_osi_approved,
            "conflict": self.has_conflict,
            "sources": sources,
        }


def licence_of(scan: Scan) -> Licence:
    """Collect the claims of every file and compare them."""
    claims = tuple(claim for file in scan.files for claim in _claims(file))
    named = {claim.expression for claim in claims}
    if len(named) != 1 or None in named:
        return Licence(None, False, claims, len(named) > 1)
    (expression,) = named
    assert expression is not None
    return Licence(expression, is_osi_approved(expression), claims, False)


def spdx_of(name: str) -> str | None:
    """A model card's name for a licence as an SPDX expression; None when it is unknown.

    Aliases first (docs: data/licences/names.toml), then SPDX's own list, ids in any case.
    """
    text = name.strip()
    alias = _names()["aliases"].get(text.lower())
    if alias is not None:
        return str(alias)
    if not text or len(text) > MAX_EXPRESSION_CHARS:
        return None
    try:
        parsed = get_spdx_licensing().parse(text, validate=True, strict=True)
    except ExpressionError:
        return None
    return str(parsed) if parsed is not None else None


def is_osi_approved(expression: str) -> bool:
    """Whether the terms leave an OSI-approved way: every part of an AND, at least one of an OR."""
    approved = set(_names()["osi"]["approved"])
    parsed = get_spdx_licensing().parse(expression)

    def holds(node: object) -> bool:
        if isinstance(node, LicenseSymbol):
            return node.key in approved
        parts = [holds(part) for part in getattr(node, "args", ())]
        is_or = type(node).__name__ == "OR"
        return bool(parts) and (any(parts) if is_or else all(parts))

    return holds(parsed)


def _claims(file: Examined) -> Iterator[Claim]:
    facts = file.report.facts
    if file.report.format == "text" and "licence" in facts:
        stated = facts["licence"]
        exact = facts.get("licence_is_exact") is True
        note = "" if exact else ", with other words than the standard text" if stated else "an unknown text"
        yield Claim(file.path, "text", f"{stated or ''}{note}", str(stated) if stated and exact else None)
    card = facts.get("front_matter")
    if isinstance(card, Mapping):
        yield from _card_claims(file.path, card)
    if file.report.format == "gguf" and facts.get("licence") is not None:
        # A GGUF licence is free text: several names may stand in one string.
        yield Claim(file.path, "gguf", str(facts["licence"]), spdx_of(str(facts["licence"])))


def _card_claims(path: str, card: Mapping[str, JSON]) -> Iterator[Claim]:
    stated = card.get("license")
    names = [str(item) for item in stated] if isinstance(stated, list) else [str(stated)] if stated else []
    if names == ["other"]:
        named = str(card.get("license_name") or "other")
        yield Claim(path, "model card", named, spdx_of(named))
    elif names:
        known = [spdx_of(name) for name in names]
        expression = " AND ".join(sorted(k for k in known if k)) if all(known) else None
        yield Claim(path, "model card", ", ".join(names), expression)


@cache
def _names() -> dict[str, dict[str, list[str]]]:
    table: dict[str, dict[str, list[str]]] = tomllib.loads(
        resources.files("steelyard").joinpath("data/licences/names.toml").read_text()
    )
    return table
