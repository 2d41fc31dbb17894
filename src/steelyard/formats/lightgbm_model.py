"""LightGBM's text model: `tree`, a header of key=value lines, blocks `Tree=0`, ... , `end of trees`, then notes.

LightGBM indexes its arrays with numbers of the file, so each tree is checked: as many splits as leaves less one,
children inside the tree, features inside the model.
Source: lightgbm 4.7, src/boosting/gbdt_model_text.cpp and src/io/tree.cpp.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Final

from steelyard.digest import JSON
from steelyard.errors import Malformed
from steelyard.formats.base import ByteSource, Finding, Report, Rule

MAX_BYTES = 64 << 20
MAX_TREES = 200_000
MAX_FINDINGS = 20
START: Final = b"tree\nversion="

_SAVE = "Save the model again with Booster.save_model."
RULES: Final[Mapping[str, Rule]] = {
    "lightgbm/size": Rule("A model so large that reading it exhausts memory.", _SAVE),
    "lightgbm/syntax": Rule("Lines that are no part of a model: something else rides along.", _SAVE),
    "lightgbm/tree": Rule("A tree whose indexes leave its arrays: the library reads foreign memory.", _SAVE),
}
_PAIR = re.compile(r"([a-z_]+)=([^\x00-\x08\x0b-\x1f]*)")
_HEADER: Final = frozenset(
    {
        "version", "num_class", "num_tree_per_iteration", "label_index", "max_feature_idx", "objective",
        "average_output", "feature_names", "monotone_constraints", "feature_infos", "tree_sizes",
    }
)  # fmt: skip
_TREE: Final = frozenset(
    {
        "num_leaves", "num_cat", "split_feature", "split_gain", "threshold", "decision_type", "left_child",
        "right_child", "leaf_value", "leaf_weight", "leaf_count", "internal_value", "internal_weight",
        "internal_count", "is_linear",
        "shrinkage", "cat_boundaries", "cat_threshold", "leaf_const", "num_features", "leaf_features", "leaf_coeff",
    }
)  # fmt: skip
_NOTE = re.compile(r"\[[a-z_0-9]+: [^\x00-\x1f]*\]|[^\x00-\x1f=]{0,4000}=[0-9]+")
_NOTES_HEADS: Final = frozenset({"feature_importances:", "parameters:", "end of parameters", ""})
_CATEGORIES = re.compile(r"pandas_categorical:(null|\[[^\x00-\x08]*\])")


class LightgbmFormat:
    """Claims by the first two lines, which every version since 2017 writes."""

    name = "lightgbm"
    rules = RULES

    def sniff(self, head: bytes, path: str) -> bool:  # noqa: ARG002 - the plug's signature
        return looks_like_lightgbm(head)

    def read(self, source: ByteSource, path: str) -> Report:  # noqa: ARG002 - the plug's signature
        if source.size > MAX_BYTES:
            raise Malformed(f"{source.size} bytes; at most {MAX_BYTES} are read", rule="lightgbm/size")
        try:
            text = source.read(0, source.size).decode()
        except UnicodeDecodeError as error:
            raise Malformed("not UTF-8", rule="lightgbm/syntax", offset=error.start) from error
        facts: dict[str, JSON] = {}
        return Report(self.name, facts, tuple(islice(_check(text, facts), MAX_FINDINGS)))


def looks_like_lightgbm(head: bytes) -> bool:
    return head.startswith(START)


def _check(text: str, facts: dict[str, JSON]) -> Iterator[Finding]:
    body, mark, notes = text.partition("\nend of trees\n")
    if not mark:
        yield Finding("lightgbm/syntax", "the line 'end of trees' is missing: the file is cut")
        return
    parts = body.split("\nTree=")
    header, wrong = _pairs(parts[0].split("\n")[1:], _HEADER)
    if wrong is not None:
        yield Finding("lightgbm/syntax", f"the header has the line {wrong[:80]!a}")
    facts["version"] = header.get("version", "")[:20]
    facts["objective"] = header.get("objective", "")[:60]
    facts["trees"] = len(parts) - 1
    last = _number(header.get("max_feature_idx", ""))
    facts["features"] = None if last is None else last + 1
    if len(parts) > MAX_TREES:
        yield Finding("lightgbm/size", f"{len(parts) - 1} trees; at most {MAX_TREES} are read")
        return
    for index, part in enumerate(parts[1:]):
        lines = part.split("\n")
        tree, wrong = _pairs(lines[1:], _TREE)
        problem = f"the line {wrong[:80]!a}" if wrong is not None else None
        if lines[0] != str(index):
            problem = f"it is numbered {lines[0][:20]!a}"
        problem = problem or _tree_error(tree, last)
        if problem:
            yield Finding("lightgbm/tree", f"tree {index}: {problem}", member=f"Tree={index}")
    yield from _check_notes(notes)


def _pairs(lines: list[str], known: frozenset[str]) -> tuple[dict[str, str], str | None]:
    """key=value lines, and the first line that is none or is not known."""
    found: dict[str, str] = {}
    for line in lines:
        if not line or line == "average_output":
            continue
        pair = _PAIR.fullmatch(line)
        if pair is None or pair[1] not in known or pair[1] in found:
            return found, line
        found[pair[1]] = pair[2]
    return found, None


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else None


def _tree_error(tree: Mapping[str, str], last_feature: int | None) -> str | None:
    leaves = _number(tree.get("num_leaves", ""))
    if leaves is None or not leaves:
        return "it has no leaves"
    lists = {
        key: tree.get(key, "").split() for key in ("split_feature", "left_child", "right_child", "leaf_value")
    }
    expected = {
        "split_feature": leaves - 1,
        "left_child": leaves - 1,
        "right_child": leaves - 1,
        "leaf_value": leaves,
    }
    if leaves > 1 and any(len(lists[key]) != size for key, size in expected.items()):
        return f"its arrays do not fit {leaves} leaves"
    for key in ("left_child", "right_child"):
        for child in lists[key]:
            if not re.fullmatch(r"-?[0-9]{1,9}", child) or not -leaves <= int(child) < leaves - 1:
                return f"{key} holds {child[:20]!a} in a tree of {leaves} leaves"
    children = [int(child) for key in ("left_child", "right_child") for child in lists[key]]
    if len(set(children)) != len(children) or 0 in children:
        return "a node has two parents"
    for feature in lists["split_feature"]:
        number = _number(feature)
        if number is None or last_feature is None or number > last_feature:
            return f"it asks for feature {feature[:20]!a} of {last_feature}"
    return None


def _check_notes(notes: str) -> Iterator[Finding]:
    for line in notes.split("\n"):
        if line not in _NOTES_HEADS and not _NOTE.fullmatch(line) and not _CATEGORIES.fullmatch(line):
            yield Finding("lightgbm/syntax", f"after the trees comes {line[:80]!a}")
            return


FORMAT: Final = LightgbmFormat()
