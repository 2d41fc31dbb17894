"""What in a conversation decides a chat template's course: roles, tools and marks may; words, lengths and days may not.

A backdoor in a template waits for a trigger: a word in a message, a length, a date (arXiv 2602.04653). This follows
the text of messages, and what `strftime_now` gives, through names, filters and methods, and refuses a comparison,
search, replacement or table look-up that depends on it. Free are the marks of role grammar (`</think>`, `[TOOL]`,
`/no_think`: anything with a bracket, slash or bar, or without a letter) and the names of a content part's fields.
What a mark may change is left to `template_probe`.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator

from jinja2 import nodes

from steelyard.formats.base import Finding

_CONTENT = frozenset({"content", "text", "reasoning_content", "reasoning", "thinking"})
_PART_WORDS = frozenset(
    {
        "text", "image", "image_url", "video", "video_url", "audio", "audio_url", "input_audio", "type", "content",
        "url", "thinking", "reasoning", "reasoning_content", "function", "name", "arguments", "id", "data", "value",
        "key", "role", "tool", "tool_calls", "tool_call_id", "tool_call", "tool_name", "model", "user", "assistant",
        "system", "output", "input", "result", "error", "parts", "blocks", "object", "string", "array", "number",
        "integer", "boolean", "null",
    }
)  # fmt: skip
_MARK = re.compile(r"[<>\[\]{}|/#\\`=_]|\A\W*\Z")
_SEARCHES = frozenset(
    {
        "startswith",
        "endswith",
        "find",
        "rfind",
        "count",
        "index",
        "split",
        "rsplit",
        "partition",
        "rpartition",
    }
)
_PASSES_THROUGH = frozenset(
    {
        "strip", "lstrip", "rstrip", "trim", "split", "rsplit", "splitlines", "partition", "rpartition", "replace",
        "upper", "lower", "title", "capitalize", "removeprefix", "removesuffix", "string", "join", "first", "last",
        "reverse", "list", "tojson", "safe", "default", "d", "indent", "length", "count", "find", "rfind", "index",
        "int",
    }
)  # fmt: skip
_CASES = frozenset({"upper", "lower", "odd", "even", "divisibleby"})
_SMALL = (-1, 0, 1)  # found or not, empty or not
_PASSES = 20


def examine_branches(tree: nodes.Template) -> Iterator[Finding]:
    """Findings of template/content-branch, template/date-branch and template/altered, naming lines."""
    texts = _Taint(tree, is_text=True)
    dates = _Taint(tree, is_text=False)
    for node in tree.find_all(
        (nodes.Compare, nodes.Call, nodes.Filter, nodes.Test, nodes.Getitem, nodes.Mod)
    ):
        for what in _depends(node, texts):
            yield Finding("template/content-branch", f"line {node.lineno}: {what} a message's text")
        for what in _depends(node, dates):
            yield Finding("template/date-branch", f"line {node.lineno}: {what} the date")
        yield from _altered(node, texts)


class _Taint:
    """Which expressions come from messages' text, or from the clock."""

    def __init__(self, tree: nodes.Template, *, is_text: bool) -> None:
        self.is_text = is_text
        self.names: set[str] = set()
        self.values: dict[str, list[nodes.Node]] = defaultdict(list)
        macros = {macro.name: macro for macro in tree.find_all(nodes.Macro)}
        for assign in tree.find_all(nodes.Assign):
            self._bind(assign.target, assign.node)
        for loop in tree.find_all(nodes.For):
            self._bind(loop.target, loop.iter)
        for call in tree.find_all(nodes.Call):
            macro = macros.get(call.node.name) if isinstance(call.node, nodes.Name) else None
            for keyword in call.kwargs:
                self.values[keyword.key].append(keyword.value)
            for parameter, value in zip(macro.args if macro else (), call.args, strict=False):
                self.values[parameter.name].append(value)
        for _ in range(_PASSES):
            grown = {name for name, held in self.values.items() if any(self.holds(value) for value in held)}
            if grown <= self.names:
                break
            self.names |= grown

    def _bind(self, target: nodes.Node, value: nodes.Node) -> None:
        if isinstance(target, nodes.NSRef):
            self.values[target.attr].append(value)
        elif isinstance(target, nodes.Tuple) and isinstance(value, nodes.Tuple):
            for each, part in zip(target.items, value.items, strict=False):
                self._bind(each, part)
        elif isinstance(target, nodes.Name):
            self.values[target.name].append(value)
        else:
            for name in target.find_all(nodes.Name):
                self.values[name.name].append(value)

    def holds(self, node: nodes.Node | None) -> bool:
        """Whether an expression's value is, or is cut from, the watched text."""
        match node:
            case nodes.Name():
                return node.name in self.names
            case nodes.Getattr(attr=key) | nodes.Getitem(arg=nodes.Const(value=key)) if isinstance(key, str):
                return (self.is_text and key in _CONTENT) or key in self.names
            case nodes.Getitem():
                return self.holds(node.node)
            case nodes.Filter():
                return node.name in _PASSES_THROUGH and self.holds(node.node)
            case nodes.Call(node=nodes.Getattr(node=subject, attr=method)):
                return method in _PASSES_THROUGH and self.holds(subject)
            case nodes.Call(node=nodes.Name(name="strftime_now")):
                return not self.is_text
            case nodes.Concat() | nodes.CondExpr() | nodes.Add() | nodes.Sub() | nodes.Mul() | nodes.Mod():
                return any(self.holds(child) for child in _values(node))
            case nodes.And() | nodes.Or():
                return self.holds(node.left) or self.holds(node.right)
        return False


def _values(node: nodes.Node) -> list[nodes.Node]:
    if isinstance(node, nodes.CondExpr):
        return [each for each in (node.expr1, node.expr2) if each is not None]
    return list(node.iter_child_nodes())


def _depends(node: nodes.Node, taint: _Taint) -> Iterator[str]:
    match node:
        case nodes.Compare(expr=left, ops=ops):
            sides = [left, *(operand.expr for operand in ops)]
            if any(taint.holds(side) for side in sides) and not _all_free(sides, taint):
                yield "compares"
        case nodes.Call(node=nodes.Getattr(node=subject, attr=method)) if method in _SEARCHES:
            if taint.holds(subject) and not _all_free(node.args, taint):
                yield "searches"
        case nodes.Test(node=subject) if taint.holds(subject):
            if node.name in _CASES or not _all_free(node.args, taint):
                yield "tests"
        case nodes.Filter(name="selectattr" | "rejectattr", args=[nodes.Const(value=key), _, *others]):
            if taint.is_text and key in _CONTENT and not _all_free(others, taint):
                yield "chooses messages by"
        case nodes.Mod() if taint.holds(node.left):
            yield "counts with"
        case nodes.Getitem() | nodes.Call():
            if _looks_up(node, taint):
                yield "looks up a table by"


def _looks_up(node: nodes.Getitem | nodes.Call, taint: _Taint) -> bool:
    if isinstance(node, nodes.Call):
        is_table = isinstance(node.node, nodes.Getattr) and isinstance(node.node.node, nodes.Dict)
        return is_table and any(taint.holds(argument) for argument in node.args)
    key = node.arg
    if isinstance(key, nodes.Slice | nodes.Const):
        return False
    return any(taint.holds(part) for part in (key, *key.find_all((nodes.Name, nodes.Call, nodes.Getattr))))


def _all_free(expressions: Iterable[nodes.Node], taint: _Taint) -> bool:
    return all(_is_free(each, taint) for each in expressions)


def is_mark(text: str) -> bool:
    """Whether a text is a mark of role grammar or the name of a field, not a word somebody may write."""
    return _MARK.search(text) is not None or text in _PART_WORDS


def _is_free(node: nodes.Node, taint: _Taint) -> bool:
    """Whether a comparison with this tells nothing but the grammar's marks."""
    if taint.holds(node):
        return True
    if isinstance(node, nodes.Const):
        if isinstance(node.value, str):
            return taint.is_text and is_mark(node.value)
        return node.value in _SMALL or node.value is None
    if isinstance(node, nodes.Neg):
        return _is_free(node.node, taint)
    if isinstance(node, nodes.List | nodes.Tuple):
        return _all_free(node.items, taint)
    if isinstance(node, nodes.Name):  # its every value is known and free, or it is the caller's
        return all(_is_free(value, taint) for value in taint.values.get(node.name, ()))
    if isinstance(node, nodes.Getattr):
        return all(_is_free(value, taint) for value in taint.values.get(node.attr, ()))
    if isinstance(node, nodes.Concat | nodes.Add):
        return any(
            _is_free(part, taint) and isinstance(part, nodes.Const) for part in node.iter_child_nodes()
        )
    return isinstance(node, nodes.Getitem | nodes.Filter)


def _altered(node: nodes.Node, texts: _Taint) -> Iterator[Finding]:
    """A replacement of words inside a message."""
    if isinstance(node, nodes.Filter) and node.name == "replace":
        subject, arguments = node.node, node.args
    elif (
        isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr) and node.node.attr == "replace"
    ):
        subject, arguments = node.node.node, node.args
    else:
        return
    if texts.holds(subject) and not _all_free(arguments, texts):
        yield Finding("template/altered", f"line {node.lineno}: replaces words in a message's text")
