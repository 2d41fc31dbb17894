"""Plug points: entry points, loaded by name. Built-ins register the same way as foreign ones.

A foreign plugin is code in a trust tool, so none loads unless the configuration names it, one that fails to import
is an error, and two of one name are an error. The only place that imports by name.
"""

import importlib.metadata
from collections.abc import Collection
from dataclasses import dataclass
from functools import cache
from typing import Any

from steelyard.errors import Unavailable, WrongUsage

GROUPS = ("steelyard.formats", "steelyard.examiners")
BUILT_IN = "steelyard"


@dataclass(frozen=True, slots=True)
class LoadedPlugin:
    """What an entry point points at, and whose it is (for the evidence it will produce)."""

    name: str
    value: Any
    distribution: str
    version: str

    @property
    def is_builtin(self) -> bool:
        return self.distribution == BUILT_IN


def load(group: str, allowed: Collection[str] = ()) -> dict[str, LoadedPlugin]:
    """Every built-in of `group` and those foreign plugins that `allowed` names, by name.

    Raises WrongUsage for a name in `allowed` that is not installed or that two distributions claim;
    Unavailable when a plugin does not import.
    """
    loaded: dict[str, LoadedPlugin] = {}
    for entry in _entries(group):
        distribution, version = _made_by(entry.dist)
        if distribution != BUILT_IN and entry.name not in allowed:
            continue
        if entry.name in loaded:
            raise WrongUsage(
                f"{group}: {entry.name!r} is claimed by {loaded[entry.name].distribution} and {distribution}"
            )
        try:
            value = entry.load()
        except (ImportError, AttributeError) as error:
            raise Unavailable(f"{group}: {entry.name!r} of {distribution} does not load: {error}") from error
        loaded[entry.name] = LoadedPlugin(entry.name, value, distribution, version)
    installed = {entry.name for name in GROUPS for entry in _entries(name)}
    missing = sorted(set(allowed) - installed)
    if missing:
        raise WrongUsage(f"the configuration allows the plugin {missing[0]!r}, which is not installed")
    return loaded


@cache
def _made_by(distribution: importlib.metadata.Distribution | None) -> tuple[str, str]:
    """Name and version. Parsed once for all entry points of one distribution."""
    return (distribution.name, distribution.version) if distribution else ("?", "?")


@cache
def _entries(group: str) -> tuple[importlib.metadata.EntryPoint, ...]:
    return tuple(importlib.metadata.entry_points(group=group))
