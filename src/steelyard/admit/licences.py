"""One licence out of many claims: texts, model card, GGUF metadata, base models. Conflicts are shown, never settled.

The licence of a base model is a limit, never a grant: it restricts what the claims of a fine-tune may say, and it
licenses nothing that the fine-tune's own files leave unlicensed.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from steelyard.admit.examined import Examined
from steelyard.admit.licence_terms import (
    family_of,
    is_osi_approved,
    is_permissive,
    licences_in,
    merged,
    names_of,
    terms_of,
)
from steelyard.admit.scan import Scan
from steelyard.digest import JSON

__all__ = ["Claim", "Inherited", "Licence", "is_osi_approved", "licence_of", "spdx_of"]

MAX_BASES = 32  # a merge names a few
MAX_LICENCES = 16  # of one card
MAX_STATED_CHARS = 500  # of a claim, in evidence


@dataclass(frozen=True, slots=True)
class Claim:
    """What one source says. `expression` is None when it names a licence that nobody knows."""

    path: str
    kind: str
    stated: str
    expression: str | None


@dataclass(frozen=True, slots=True)
class Inherited:
    """A base model that a file names, with its licence; None when the table of families does not know it."""

    path: str
    base: str
    licence: str | None
    source: str | None


@dataclass(frozen=True, slots=True)
class Licence:
    """`expression` is absent when nothing, or nothing that can be named, was claimed, or when claims conflict."""

    expression: str | None
    is_osi_approved: bool
    claims: tuple[Claim, ...]
    has_conflict: bool
    inherited: tuple[Inherited, ...] = ()

    @property
    def base(self) -> str:
        """`none` is named, every one that is named is `known`, or one at least is `unknown`."""
        if not self.inherited:
            return "none"
        return "known" if all(each.licence for each in self.inherited) else "unknown"

    def terms(self) -> dict[str, JSON]:
        """What may be done with the model: the licence's own terms and those of its base models together.

        Without an expression every field is `unknown`; `licences` then still lists what the named ones say.
        """
        own = licences_in(self.expression) if self.expression else ()
        bases = tuple(each.licence for each in self.inherited if each.licence)
        apply = [terms_of(licence) for licence in dict.fromkeys((*own, *bases))]
        if self.expression is None or self.base == "unknown":
            apply = [*apply, terms_of("")]
        claimed = (
            licence for claim in self.claims if claim.expression for licence in licences_in(claim.expression)
        )
        listed: list[JSON] = [
            terms_of(licence).to_json() for licence in dict.fromkeys((*own, *bases, *claimed))
        ]
        return {**merged(apply if self.expression else [terms_of("")]), "licences": listed}

    def to_json(self) -> dict[str, JSON]:
        sources: list[JSON] = [
            {"path": c.path, "kind": c.kind, "stated": c.stated, "expression": c.expression}
            for c in self.claims
        ]
        inherited: list[JSON] = [
            {"path": i.path, "base_model": i.base, "expression": i.licence, "source": i.source}
            for i in self.inherited
        ]
        return {
            "expression": self.expression,
            "osi_approved": self.is_osi_approved,
            "conflict": self.has_conflict,
            "sources": sources,
            "base": self.base,
            "inherited": inherited,
            "terms": self.terms(),
        }


def licence_of(scan: Scan) -> Licence:
    """Collect the claims of every file and compare them."""
    texts = tuple(claim for file in scan.files for claim in _text_claims(file))
    exact = frozenset(claim.expression for claim in texts if claim.expression)
    claims = (*texts, *(claim for file in scan.files for claim in _stated(file, exact)))
    inherited = tuple(dict.fromkeys(found for file in scan.files for found in _inherited(file)))
    named = {claim.expression for claim in claims}
    has_conflict = len(named) > 1 or any(_contradicts(each.licence, named) for each in inherited)
    (expression,) = named if len(named) == 1 else (None,)
    if expression is None or has_conflict:
        return Licence(None, False, claims, has_conflict, inherited)
    return Licence(expression, is_osi_approved(expression), claims, False, inherited)


def spdx_of(name: str) -> str | None:
    """A model card's name for a licence as an SPDX expression; None when it is unknown."""
    return next(iter(names_of(name)), None)


def _contradicts(base: str | None, named: Iterable[str | None]) -> bool:
    """Whether a claim leaves out the licence of the base model, which must stay."""
    if base is None or is_permissive(base):
        return False
    return any(base not in licences_in(expression) for expression in named if expression)


def _text_claims(file: Examined) -> Iterator[Claim]:
    facts = file.report.facts
    if file.report.format != "text":
        return
    if "licence" in facts:
        stated = facts["licence"]
        exact = facts.get("licence_is_exact") is True
        remark = str(facts.get("licence_remark") or "with other words than the standard text")
        note = "" if exact else f", {remark}" if stated else "an unknown text"
        yield Claim(file.path, "text", f"{stated or ''}{note}", str(stated) if stated and exact else None)
    elif facts.get("licence_named"):
        name = str(facts["licence_named"])
        yield Claim(file.path, "notice", name, name)


def _stated(file: Examined, texts: frozenset[str]) -> Iterator[Claim]:
    facts = file.report.facts
    card = facts.get("front_matter")
    if isinstance(card, Mapping):
        yield from _card_claims(file.path, card, texts)
    if file.report.format == "gguf" and facts.get("licence") is not None:
        # A GGUF licence is free text: several names may stand in one string.
        stated = str(facts["licence"])
        name = facts.get("licence_name") if stated.strip().lower() == "other" else None
        yield Claim(file.path, "gguf", str(name or stated), _meant(str(name or stated), texts))


def _card_claims(path: str, card: Mapping[str, JSON], texts: frozenset[str]) -> Iterator[Claim]:
    names = _items(card.get("license"))
    if [name.lower() for name in names] == ["other"]:
        link = family_of(str(card.get("license_link") or ""))
        stated = str(card.get("license_name") or card.get("license_link") or "other")
        meant = _meant(stated, texts) or (link.licence if link else None)
        yield Claim(path, "model card", stated[:MAX_STATED_CHARS], meant)
    elif names:
        known = [_meant(name, texts) for name in names] if len(names) <= MAX_LICENCES else [None]
        expression = " AND ".join(sorted({k for k in known if k})) if all(known) else None
        yield Claim(path, "model card", ", ".join(names[:MAX_LICENCES])[:MAX_STATED_CHARS], expression)


def _meant(name: str, texts: frozenset[str]) -> str | None:
    """The licence a name means; of several versions the one whose text stands beside it."""
    known = names_of(name)
    return next((each for each in known if each in texts), next(iter(known), None))


def _inherited(file: Examined) -> Iterator[Inherited]:
    """The base models that a card, an adapter's configuration or a GGUF names."""
    facts = file.report.facts
    card = facts.get("front_matter")
    bases = _items(card.get("base_model")) if isinstance(card, Mapping) else []
    bases += [str(facts["base_model_name_or_path"])] if facts.get("base_model_name_or_path") else []
    bases += _items(facts.get("base_models")) if file.report.format == "gguf" else []
    for base in bases[:MAX_BASES]:
        family = family_of(base)
        yield Inherited(
            file.path, base, family.licence if family else None, family.source if family else None
        )
    if len(bases) > MAX_BASES:
        yield Inherited(file.path, f"{len(bases) - MAX_BASES} more", None, None)


def _items(value: JSON) -> list[str]:
    """The texts of a list, or of one text that may be a list in brackets."""
    if isinstance(value, list):
        return [str(item) for item in value]
    text = str(value or "").strip()
    if text.startswith("[") and text.endswith("]"):
        return [item.strip().strip("'\"") for item in text[1:-1].split(",") if item.strip()]
    return [text] if text else []
