"""The rules of the tree itself, and all rules together (for the docs and for `scan`)."""

from collections.abc import Mapping

from steelyard.formats.base import Rule
from steelyard.formats.registry import Registry
from steelyard.plugins import load

_LINK = "copy the tree with links resolved: cp -rL"
_RENAME = "rename the file"
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
}


def registry(allowed: tuple[str, ...] = ()) -> Registry:
    """The built-in formats and those foreign ones that the configuration allows."""
    loaded = load("steelyard.formats", allowed)
    return Registry(tuple(plugin.value for _, plugin in sorted(loaded.items())))


def all_rules() -> dict[str, Rule]:
    """Every built-in rule by id."""
    return {**registry().rules(), **TREE_RULES}
