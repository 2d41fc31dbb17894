"""The dated register of releases and closed services: what is known by name, as a hint. A digest gets the verdict."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cache
from importlib import resources
from typing import Any

from steelyard.admit.licence_terms import is_osi_approved, terms_of
from steelyard.digest import JSON

MAX_NAME_CHARS = 200
_NEAR = 5


@dataclass(frozen=True, slots=True)
class Release:
    """One entry. `weights`: none | published.  `licence` and `training_data` are absent for a closed service."""

    name: str
    maker: str
    names: tuple[str, ...]
    weights: str
    licence: str | None
    training_data: str | None
    source: str
    read: str

    @property
    def openness(self) -> str:
        """The licence axis: open | restricted | none (there is nothing to license)."""
        if self.licence is None:
            return "none"
        return "open" if is_osi_approved(self.licence) else "restricted"

    def to_json(self) -> dict[str, JSON]:
        terms: JSON = terms_of(self.licence).to_json() if self.licence else None
        return {
            "name": self.name,
            "maker": self.maker,
            "weights": self.weights,
            "licence": self.openness,
            "expression": self.licence,
            "training_data": self.training_data,
            "terms": terms,
            "source": self.source,
            "read": self.read,
        }


def release_named(name: str) -> Release | None:
    """The first entry whose pattern the name matches, with the owner in front of it left out.

    A closed service is nobody's but its maker's: another owner's repository of that name is something else.
    """
    plain = _plain(name)
    owner = name[:MAX_NAME_CHARS].strip().lower().rpartition("/")[0]
    for release in _register():
        is_theirs = release.weights != "none" or owner in ("", release.maker.lower())
        if is_theirs and any(fnmatchcase(plain, pattern) for pattern in release.names):
            return release
    return None


def near(name: str) -> list[str]:
    """Names in the register that are spelled like this one, nearest first."""
    spelled: Mapping[str, str] = {
        _plain(each): release.name
        for release in _register()
        for each in (release.name, *(pattern.strip("*-") for pattern in release.names))
    }
    close = get_close_matches(_plain(name), spelled, n=_NEAR, cutoff=0.6)
    return list(dict.fromkeys(spelled[each] for each in close))


def _plain(name: str) -> str:
    return name[:MAX_NAME_CHARS].strip().lower().replace(" ", "-").replace("_", "-").rpartition("/")[2]


@cache
def _register() -> tuple[Release, ...]:
    text = resources.files("steelyard").joinpath("data/openness/register.toml").read_text()
    table: dict[str, Any] = tomllib.loads(text)
    return tuple(
        Release(
            entry["name"],
            entry["maker"],
            tuple(entry["names"]),
            entry["weights"],
            entry.get("licence"),
            entry.get("training_data"),
            entry["source"],
            table["read"],
        )
        for entry in table["release"]
    )
