"""The rules of the tree itself, and all rules together (for the docs and for `scan`)."""

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib import resources

from steelyard.admit import pool, worker
from steelyard.admit.relations import RULES as RELATION_RULES
from steelyard.digest import JSON, Digest, canonical_json, sha256
from steelyard.formats.base import Rule
from steelyard.formats.registry import Registry
from steelyard.plugins import load

_LINK = "copy the tree with links resolved: cp -rL"
_RENAME = "rename the file"
_REPORT = "do not load the file anywhere; if it is honest, report it to Steelyard as a defect"
TREE_RULES: Mapping[str, Rule] = {
    "tree/symlink": Rule("a link leaves the tree: what is scanned is not what is loaded", _LINK),
    "tree/special-file": Rule("a pipe, socket or device blocks or feeds the loader", "remove it"),
    "tree/name-encoding": Rule(
        "a name that is not UTF-8 means different files on different systems", _RENAME
    ),
    "tree/name-unsafe": Rule("path traversal, or a name that a terminal shows as another", _RENAME),
    "tree/case-collision": Rule("one of two files is scanned, the other loaded, where names fold", _RENAME),
    "tree/too-many-files": Rule("a tree that exhausts whoever walks it", "split the model"),
    "tree/too-deep": Rule("a tree that exhausts whoever walks it", "flatten the folders"),
    "tree/changed-while-reading": Rule(
        "bytes swapped between the check and the use", "stop whatever writes to the folder, then scan again"
    ),
    **RELATION_RULES,
    worker.TOO_BIG: Rule("a file that exhausts the memory of whoever reads it", _REPORT),
    pool.DIED: Rule("a file that ends or takes over the program that reads it", _REPORT),
    pool.SLOW: Rule("a file that keeps whoever reads it busy for ever", _REPORT),
}


def registry(allowed: tuple[str, ...] = ()) -> Registry:
    """The built-in formats and those foreign ones that the configuration allows."""
    loaded = load("steelyard.formats", allowed)
    return Registry(tuple(plugin.value for _, plugin in sorted(loaded.items())))


def all_rules() -> dict[str, Rule]:
    """Every built-in rule by id."""
    return {**registry().rules(), **TREE_RULES}


def ruleset_of(rules: Mapping[str, Rule]) -> Digest:
    """One digest of these rules, of the parsers that apply them and of the tables they use.

    Any change of behaviour changes it: it covers the bytes of the modules themselves.
    """
    listed: JSON = {name: [rule.attack, rule.severity.value] for name, rule in rules.items()}
    return sha256(canonical_json({"rules": listed, "code": _code_digest()}))


@cache
def _code_digest() -> str:
    hasher = hashlib.sha256()
    package = resources.files("steelyard")
    for folder in ("formats", "admit", "data/pickles", "data/templates"):
        for entry in sorted(package.joinpath(folder).iterdir(), key=lambda entry: entry.name):
            if entry.is_file():
                data = entry.read_bytes()
                hasher.update(f"{folder}/{entry.name}\n{len(data)}\n".encode() + data)
    return hasher.hexdigest()
