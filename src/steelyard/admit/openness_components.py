"""Which components of an open model a release shows, its Model Openness Framework class and its OSAID verdict.

A component counts only if a file or a field of the release shows it; no name of a model or of its maker does. Each
needs an open licence. Names, classes and sources: `data/openness/components.toml`.
"""

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from steelyard.admit.examined import Examined
from steelyard.admit.licence_terms import is_osi_approved
from steelyard.digest import JSON

CLASSES = {3: "III", 2: "II", 1: "I"}
_REPORT, _PAPER = "Technical report", "Research paper"
# What the three elements of the Open Source AI Definition are shown by.
_OSAID = {
    "data information": ("Datasets", "Data card"),
    "code": ("Data preprocessing code", "Training code", "Inference code"),
    "parameters": ("Model parameters (Final)",),
}


@dataclass(frozen=True, slots=True)
class Component:
    """One component. `kind`: code, data or document; `level`: 3, 2 or 1, the lowest class that needs it."""

    name: str
    level: int
    kind: str
    is_optional: bool
    card: tuple[str, ...]
    files: tuple[re.Pattern[str], ...]
    formats: frozenset[str]


@dataclass(frozen=True, slots=True)
class Shown:
    """A component and the path or field that shows it, or None."""

    component: Component
    by: str | None


def shown_in(files: Iterable[Examined]) -> tuple[Shown, ...]:
    """Look for every component in the files of one release."""
    present = [file for file in files if file.size > 0]
    cards = [
        (file.path, card)
        for file in present
        if isinstance(card := file.report.facts.get("front_matter"), Mapping)
    ]
    return tuple(Shown(component, _evidence(component, present, cards)) for component in _table().components)


def mof_of(shown: Iterable[Shown], licence: str | None) -> dict[str, JSON]:
    """The class this release reaches, and what the next one asks for. `licence`: its expression, if there is one."""
    each = {item.component.name: item for item in shown}
    reached: int | None = None
    missing: list[JSON] = []
    unlicensed: list[JSON] = []
    for level in CLASSES:
        needed = [i for i in each.values() if i.component.level >= level and not i.component.is_optional]
        absent = [i for i in needed if i.by is None and not _is_covered(i, each)]
        closed = [i for i in needed if i.by is not None and not is_open(licence, i.component.kind)]
        if absent or closed:
            missing = [i.component.name for i in absent]
            unlicensed = [i.component.name for i in closed]
            break
        reached = level
    following = None if reached == 1 else CLASSES[3 if reached is None else reached - 1]
    return {
        "class": CLASSES[reached] if reached else "none",
        "next": following,
        "missing": missing,
        "without_open_licence": unlicensed,
        "components": [
            {
                "name": i.component.name,
                "class": CLASSES[i.component.level],
                "shown_by": i.by,
                "needs": _needed_licence(i.component.kind),
            }
            for i in each.values()
        ],
        "source": _table().source,
    }


def osaid_of(shown: Iterable[Shown], licence: str | None) -> dict[str, JSON]:
    """Whether this release can meet the Open Source AI Definition 1.0.

    `no`: what is here is not under terms the OSI approved, or there are no parameters.  `incomplete`: elements are
    missing.  `claimed`: every element is shown; whether the data information suffices takes a person.
    """
    by = {item.component.name: item.by for item in shown}
    missing: list[JSON] = [
        f"{element}: {name}" for element, names in _OSAID.items() for name in names if not by[name]
    ]
    is_approved = licence is not None and is_osi_approved(licence)
    if not is_approved:
        missing.append("OSI-approved terms for parameters and code")
    has_parameters = by["Model parameters (Final)"] is not None
    verdict = "no" if not is_approved or not has_parameters else "incomplete" if missing else "claimed"
    return {"verdict": verdict, "missing": missing, "source": _table().osaid_source}


def is_open(licence: str | None, kind: str) -> bool:
    """Whether a component of this kind is open under the release's licence: OSI-approved, or for open data."""
    if licence is None:
        return False
    return is_osi_approved(licence) or (kind != "code" and licence in _table().open_data)


def _is_covered(item: Shown, each: Mapping[str, Shown]) -> bool:
    """A research paper may stand for the technical report."""
    return item.component.name == _REPORT and each[_PAPER].by is not None


def _needed_licence(kind: str) -> str:
    return "OSI-approved" if kind == "code" else "OSI-approved or open data"


def _evidence(
    component: Component, files: Iterable[Examined], cards: Iterable[tuple[str, Mapping[str, JSON]]]
) -> str | None:
    for path, card in cards:
        for field in component.card:
            name, _, prefix = field.partition("=")
            if _has(card.get(name), prefix):
                return f"{path}: {name}"
    for file in files:
        if file.report.format in component.formats:
            return file.path
        if any(pattern.fullmatch(file.path.lower()) for pattern in component.files):
            return file.path
    return None


def _has(value: JSON, prefix: str) -> bool:
    entries = value if isinstance(value, list) else [value]
    return any(
        isinstance(e, str) and e.strip("[] \t") != "" and e.strip("[] ").startswith(prefix) for e in entries
    )


@dataclass(frozen=True, slots=True)
class _Table:
    components: tuple[Component, ...]
    open_data: frozenset[str]
    source: str
    osaid_source: str


@cache
def _table() -> _Table:
    text = resources.files("steelyard").joinpath("data/openness/components.toml").read_text()
    table: dict[str, Any] = tomllib.loads(text)
    components = tuple(
        Component(
            entry["name"],
            entry["class"],
            entry["kind"],
            entry.get("is_optional", False),
            tuple(entry.get("card", ())),
            tuple(re.compile(pattern) for pattern in entry.get("files", ())),
            frozenset(entry.get("formats", ())),
        )
        for entry in table["component"]
    )
    return _Table(components, frozenset(table["open_data"]), table["source"], table["osaid_source"])
