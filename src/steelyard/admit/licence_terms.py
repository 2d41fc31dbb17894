"""What licences permit, by the tables of `data/licences`: their names, their terms, and those of known base models.

Every entry of the tables names the source it was written from and the date it was read.
"""

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from typing import Any

from license_expression import ExpressionError, LicenseSymbol, Licensing, get_spdx_licensing

from steelyard.digest import JSON

MAX_EXPRESSION_CHARS = 200
MAX_BASE_CHARS = 200
# Each field with the value that limits nothing.
FREE = {
    "commercial": "yes",
    "training_others": "yes",
    "naming": "none",
    "use_policy": "none",
    "regions": "none",
    "share_alike": "no",
}
_REPOSITORY = re.compile(
    r"(?:https?://(?:www\.)?huggingface\.co/)?([\w.-]+/[\w.-]+)(?:/(?:blob|resolve|tree|raw)/.*)?/?"
)


@dataclass(frozen=True, slots=True)
class Terms:
    """One licence's terms. `fields` has every key of FREE; `unknown` where the source does not say."""

    licence: str
    fields: Mapping[str, str]
    threshold: str | None
    source: str

    def to_json(self) -> dict[str, JSON]:
        return {
            "licence": self.licence,
            **self.fields,
            "commercial_threshold": self.threshold,
            "source": self.source,
        }


@dataclass(frozen=True, slots=True)
class Family:
    """The licence of a base model that the table knows."""

    licence: str
    source: str


def names_of(name: str) -> tuple[str, ...]:
    """The SPDX expressions a licence's name may mean: several when it leaves the version open, none when unknown.

    Names of the tables first, then SPDX's own list, ids in any case.
    """
    text = name.strip()
    if not text or len(text) > MAX_EXPRESSION_CHARS:
        return ()
    for spelling in (text.lower(), re.sub(r"[\s_]+", "-", text.lower())):
        if found := _tables().names.get(spelling):
            return found
    try:
        parsed = _spdx().parse(text, validate=True, strict=True)
    except ExpressionError:
        return ()
    return (str(parsed),) if parsed is not None else ()


def licences_in(expression: str) -> tuple[str, ...]:
    """The licences an expression names, each once."""
    found = _spdx().license_keys(expression, unique=True)
    return tuple(str(key) for key in found)


def is_osi_approved(expression: str) -> bool:
    """Whether the terms leave an OSI-approved way: every part of an AND, at least one of an OR."""
    parsed = _spdx().parse(expression)

    def holds(node: object) -> bool:
        if isinstance(node, LicenseSymbol):
            return node.key in _tables().osi
        parts = [holds(part) for part in getattr(node, "args", ())]
        is_or = type(node).__name__ == "OR"
        return bool(parts) and (any(parts) if is_or else all(parts))

    return holds(parsed)


def is_permissive(licence: str) -> bool:
    """Whether works under this OSI-approved licence may go into a work under other terms."""
    return _tables().osi.get(licence) == "Permissive"


def terms_of(licence: str) -> Terms:
    """What one licence permits; every field `unknown` when no table has it."""
    tables = _tables()
    if licence in tables.terms:
        return tables.terms[licence]
    if licence in tables.osi:
        share_alike = "no" if is_permissive(licence) else "yes"
        return Terms(
            licence, {**FREE, "naming": "notices kept", "share_alike": share_alike}, None, tables.osi_source
        )
    return Terms(licence, dict.fromkeys(FREE, "unknown"), None, "none")


def merged(terms: Iterable[Terms]) -> dict[str, JSON]:
    """The terms of several licences that all apply: in each field the least that any of them leaves."""
    each = tuple(terms)
    fields: dict[str, JSON] = {}
    for name, free in FREE.items():
        limits = sorted({term.fields[name] for term in each} - {free})
        decisive = [word for word in ("no", "unknown") if word in limits and word != free]
        fields[name] = decisive[0] if decisive else "; ".join(limits) or free
    thresholds = sorted({term.threshold for term in each if term.threshold})
    return {**fields, "commercial_threshold": "; ".join(thresholds) or None, "read": _tables().read}


def repository_of(name: str) -> str | None:
    """`owner/name` out of a repository id or its address; None for a local path or anything else."""
    match = _REPOSITORY.fullmatch(name.strip()[: MAX_BASE_CHARS + 1])
    return match[1] if match and len(name) <= MAX_BASE_CHARS else None


def family_of(base: str) -> Family | None:
    """The licence of a base model by its repository id; None when the table does not know it."""
    repository = repository_of(base)
    if repository is None:
        return None
    return next(
        (family for pattern, family in _tables().families if fnmatchcase(repository.lower(), pattern)), None
    )


@dataclass(frozen=True, slots=True)
class _Tables:
    names: Mapping[str, tuple[str, ...]]
    terms: Mapping[str, Terms]
    families: tuple[tuple[str, Family], ...]
    osi: Mapping[str, str]  # category by licence
    osi_source: str
    read: str


@cache
def _spdx() -> Licensing:
    return get_spdx_licensing()


@cache
def _tables() -> _Tables:
    folder = resources.files("steelyard").joinpath("data/licences")

    def table(name: str) -> dict[str, Any]:
        return tomllib.loads(folder.joinpath(name).read_text())

    listed = table("terms.toml")
    names = {name: (licence,) for name, licence in table("names.toml")["aliases"].items()}
    for entry in listed["licence"]:
        for name in (*entry["names"], entry["id"].lower()):
            names[name] = (*names.get(name, ()), entry["id"])
    families = tuple(
        (pattern, Family(entry["licence"], entry["source"]))
        for entry in table("families.toml")["family"]
        for pattern in entry["patterns"]
    )
    terms = {
        entry["id"]: Terms(
            entry["id"],
            {name: entry[name] for name in FREE},
            entry.get("commercial_threshold"),
            entry["source"],
        )
        for entry in listed["licence"]
    }
    osi = json.loads(folder.joinpath("texts.json").read_text())["osi"]
    return _Tables(names, terms, families, osi, listed["osi_source"], listed["read"])
