"""Jinja of chat templates: an allow-list over the parser's tree, and bounds on what rendering costs.

Parsed by Jinja's own parser, never rendered here. A node, filter, test, method, global or attribute that the lists
below do not hold refuses. What passes is safe even in a loader without a sandbox (CVE-2024-34359): nothing reaches
Python's own attributes, only the listed globals, string and mapping methods and the template's own macros are
called, and what the template writes grows no faster than a polynomial of the conversation. Limits on size and
nesting come before the parser.

One idea, one file: the allow-list and the bounds on cost read the same bindings.

Source: jinja2 3.1 (nodes, parser, `Environment.getitem`, which falls back to getattr for every text key) and the
environment of transformers' `apply_chat_template` (loop controls, the generation tag, raise_exception, strftime_now).
"""

import builtins
import re
import sys
import types
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cache

from jinja2 import Environment, nodes
from jinja2.exceptions import TemplateSyntaxError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, Context, LoopContext, Macro, TemplateReference

from steelyard.errors import Malformed
from steelyard.formats.base import Finding

MAX_BRACKETS = 64
MAX_TAGS = 8192
MAX_DEPTH = 200
MAX_BINDINGS = 1000  # what all names together may hold: assignments, loop targets, macro arguments
MAX_LOOPS = 6  # for loops inside one another
MAX_SAME_LOOPS = 2  # of which over the same list
MAX_RANGE = 1000
MAX_INDENT = 64
MAX_STEPS = 1_000_000  # nodes visited, constant loops and macro calls counted in
MAX_GROWTH = 100_000_000  # pieces a variable may hold after _PASSES turns of a loop
_PASSES = 40

_STATEMENTS: tuple[type[nodes.Node], ...] = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.For, nodes.Assign, nodes.AssignBlock,
    nodes.Macro, nodes.Break, nodes.Continue,
)  # fmt: skip
_EXPRESSIONS: tuple[type[nodes.Node], ...] = (
    nodes.Name, nodes.NSRef, nodes.Const, nodes.Tuple, nodes.List, nodes.Dict, nodes.Pair, nodes.Keyword,
    nodes.CondExpr, nodes.Filter, nodes.Test, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not,
    nodes.Neg, nodes.Pos, nodes.Add, nodes.Sub, nodes.Mul, nodes.Div, nodes.FloorDiv, nodes.Mod, nodes.Concat,
    nodes.Slice, nodes.Getattr, nodes.Getitem, nodes.Call,
)  # fmt: skip
_ALLOWED = frozenset(_STATEMENTS + _EXPRESSIONS)

_FILTERS = frozenset(
    {
        "tojson", "trim", "upper", "lower", "title", "capitalize", "default", "d", "length", "count", "list", "items",
        "dictsort", "join", "first", "last", "map", "select", "reject", "selectattr", "rejectattr", "string", "int",
        "float", "replace", "reverse", "unique", "sort", "indent", "safe", "abs", "round", "min", "max",
    }
)  # fmt: skip
_TESTS = frozenset(
    {
        "defined", "undefined", "none", "string", "mapping", "iterable", "sequence", "number", "boolean", "integer",
        "float", "true", "false", "equalto", "eq", "==", "ne", "!=", "in", "odd", "even", "divisibleby", "sameas",
        "lt", "<", "le", "<=", "gt", ">", "ge", ">=", "lower", "upper", "callable",
    }
)  # fmt: skip
_METHODS = frozenset(
    {
        "strip", "lstrip", "rstrip", "split", "rsplit", "splitlines", "startswith", "endswith", "replace", "upper",
        "lower", "title", "capitalize", "removeprefix", "removesuffix", "find", "rfind", "count", "index", "isdigit",
        "partition", "rpartition", "join", "items", "keys", "values", "get",
    }
)  # fmt: skip
_GLOBALS = frozenset({"namespace", "raise_exception", "strftime_now", "range", "dict"})
_LOOP_NUMBERS = frozenset({"index", "index0", "length", "revindex", "revindex0", "depth", "depth0"})
_LOOP = _LOOP_NUMBERS | {"first", "last", "previtem", "nextitem"}
# What can turn harmless pieces into a name. Cutting cannot, for a whole name in a constant is refused.
_BUILDERS = frozenset({"join", "replace", "map", "indent", "tojson", "reverse"})
_CUTTERS = frozenset(
    {
        "strip", "lstrip", "rstrip", "trim", "split", "rsplit", "partition", "rpartition", "removeprefix",
        "removesuffix", "lower", "upper", "title", "capitalize", "string", "list",
    }
)  # fmt: skip
_SHORTENERS = _CUTTERS | {
    "splitlines",
    "startswith",
    "endswith",
    "find",
    "rfind",
    "count",
    "index",
    "isdigit",
}
_COUNTS = frozenset({"length", "count", "int", "abs", "float", "round"})
_DUNDER = re.compile(r"__\w+__")
_URL = re.compile(r"(?i)\b(?:https?|ftp|wss?|file)://|\bwww\.[a-z0-9-]+\.[a-z]")
_TIME_FORMAT = re.compile(r"(?:%-?[a-zA-Z%]|[^%]){0,64}")
_HIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ue000-\uf8ff\ufeff"
    "\ufff9-\ufffb\U000e0000-\U000e01ef\U000f0000-\U0010ffff]"
)
# A Latin word with letters of another alphabet in it reads like a word or a role that it is not.
_MIXED = re.compile("[A-Za-z_][\u0370-\u03ff\u0400-\u052f]|[\u0370-\u03ff\u0400-\u052f][A-Za-z_]")


class Generation(Extension):
    """{% generation %} marks what the assistant wrote; transformers masks the loss with it."""

    tags = {"generation"}  # noqa: RUF012  (declared so by Extension)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def parse_template(text: str) -> nodes.Template:
    """The tree of a template within the limits. Raises Malformed with template/size or template/syntax."""
    if problem := _too_nested(text):
        raise Malformed(problem, rule="template/size")
    try:
        tree = environment().parse(text)
    except TemplateSyntaxError as error:
        raise Malformed(f"line {error.lineno}: {str(error.message)[:200]}", rule="template/syntax") from error
    except (RecursionError, ValueError, OverflowError) as error:  # deep operators, thousands of digits
        raise Malformed(f"the parser gave up: {type(error).__name__}", rule="template/size") from error
    if _depth(tree) > MAX_DEPTH:
        raise Malformed(f"expressions nest deeper than {MAX_DEPTH}", rule="template/size")
    return tree


def names(tree: nodes.Template) -> Iterator[nodes.Name]:
    """Every name that a template reads or sets."""
    return tree.find_all(nodes.Name)


def hidden_characters(text: str) -> Iterator[Finding]:
    """Characters that no editor shows, anywhere in the source."""
    for match in _HIDDEN.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        yield Finding("template/hidden-text", f"line {line}: character U+{ord(match[0]):04X}")
    if mixed := _MIXED.search(text):
        line = text.count("\n", 0, mixed.start()) + 1
        yield Finding("template/hidden-text", f"line {line}: a word of two alphabets, {mixed[0]!a}")


def examine_tree(tree: nodes.Template) -> Iterator[Finding]:
    """What the lists and the bounds refuse."""
    try:
        yield from _Examination(tree).findings()
    except Malformed as error:
        yield Finding(error.rule, error.message)
    except RecursionError:
        yield Finding("template/size", f"macros and expressions nest deeper than {sys.getrecursionlimit()}")


@cache
def environment() -> Environment:
    """Jinja as transformers sets it up, for parsing only."""
    # Never renders: autoescape has no say.
    return Environment(  # noqa: S701
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )


def _too_nested(text: str) -> str | None:
    if text.count("{%") + text.count("{{") > MAX_TAGS:
        return f"more than {MAX_TAGS} tags"
    depth = deepest = 0
    for char in re.findall(r"[\[\](){}]", text):
        depth = depth + 1 if char in "([{" else max(depth - 1, 0)
        deepest = max(deepest, depth)
    return f"brackets nest deeper than {MAX_BRACKETS}" if deepest > MAX_BRACKETS else None


def _depth(tree: nodes.Node) -> int:
    level: list[nodes.Node] = [tree]
    depth = 0
    while level and depth <= MAX_DEPTH:
        level = [child for node in level for child in node.iter_child_nodes()]
        depth += 1
    return depth


@cache
def _internals() -> frozenset[str]:
    """Attributes of the Python objects a template can hold: none is a key of the data."""
    kinds = (
        types.GeneratorType, types.FrameType, types.CodeType, types.FunctionType, types.MethodType, types.ModuleType,
        types.TracebackType, types.CoroutineType, types.AsyncGeneratorType, type, Context, Environment,
        BlockReference, TemplateReference, LoopContext, Macro,
    )  # fmt: skip
    data = {
        "name",
        "arguments",
        "call",
        "blocks",
        "code",
        "length",
        "first",
        "last",
        "index",
        "parent",
        "keys",
    }
    data |= {"values", "items", "get", "changed"}
    return frozenset(name for kind in kinds for name in dir(kind)) - data - _LOOP


@cache
def _reserved() -> frozenset[str]:
    names = {"self", "lipsum", "cycler", "joiner", "context", "environment"} | set(sys.stdlib_module_names)
    return frozenset(names | set(dir(builtins))) - _GLOBALS - {"True", "False", "None"}


def _is_data_key(name: str) -> bool:
    folded = unicodedata.normalize("NFKC", name).strip()
    return not folded.startswith("_") and "__" not in folded and folded not in _internals()


def _children(node: nodes.Node) -> Iterator[nodes.Node]:
    pending = [node]
    while pending:
        current = pending.pop()
        yield current
        pending.extend(current.iter_child_nodes())


def _text(node: nodes.Node | None) -> str | None:
    return node.value if isinstance(node, nodes.Const) and isinstance(node.value, str) else None


class _Examination:
    """One parsed template and what its names are bound to.

    `bound`: name, or "name.field" of a namespace -> the expressions it may hold (None: a part of a message).
    When a namespace is handed on under another name, all fields of one name are taken for one: ".field".
    """

    def __init__(self, tree: nodes.Template) -> None:
        self.tree = tree
        self.macros: dict[str, list[nodes.Macro]] = defaultdict(list)
        self.bound: dict[str, list[nodes.Node | None]] = defaultdict(list)
        self.looped: dict[str, list[nodes.Node | None]] = defaultdict(list)
        self.rebound: set[str] = set()
        self.counted: dict[tuple[str, tuple[str, ...], frozenset[str]], float] = {}
        self._count = 0
        for macro in tree.find_all(nodes.Macro):
            self.macros[macro.name].append(macro)
        self.namespaces = _namespaces(tree)
        for node in _children(tree):
            self._bind(node)
        self.others = self._others()
        self.built = self._built()
        self.largest = self._held(self._largest, 0.0)
        self.turns = self._held(self._turns, 1.0)

    def findings(self) -> Iterator[Finding]:
        for node in _children(self.tree):
            for rule, message in self._check(node):
                yield Finding(f"template/{rule}", f"line {node.lineno}: {message[:200]}")
        for message in self._costs():
            yield Finding("template/cost", message)

    # What names hold.

    def _bind(self, node: nodes.Node) -> None:
        if isinstance(node, nodes.Assign):
            self._bind_target(node.target, node.node)
            if isinstance(node.target, nodes.Name) and isinstance(node.node, nodes.Call):
                for keyword in node.node.kwargs if _is_call(node.node, "namespace") else ():
                    self._hold(self.bound[f"{self._owner(node.target.name)}.{keyword.key}"], keyword.value)
        elif isinstance(node, nodes.AssignBlock):
            parts = [part for output in node.find_all(nodes.Output) for part in output.nodes]
            self._bind_target(node.target, nodes.Concat(parts))
        elif isinstance(node, nodes.For):
            for name in _targets(node.target):
                self.rebound.add(name)
                self._hold(self.looped[name], node.iter)
        elif isinstance(node, nodes.Macro):
            for parameter in node.args:
                self.rebound.add(parameter.name)
                self._hold(self.bound[parameter.name], None)
            for parameter, default in zip(reversed(node.args), reversed(node.defaults), strict=False):
                self._hold(self.bound[parameter.name], default)
        elif isinstance(node, nodes.Call) and isinstance(node.node, nodes.Name):
            self._bind_call(node, node.node.name)

    def _bind_call(self, call: nodes.Call, called: str) -> None:
        for keyword in call.kwargs:
            own = "." if called in ("namespace", "dict") else ""
            if (own and not self.namespaces) or called in self.macros:
                self._hold(self.bound[f"{own}{keyword.key}"], keyword.value)
        for macro in self.macros.get(called, ()):
            for parameter, value in zip(macro.args, call.args, strict=False):
                self._hold(self.bound[parameter.name], value)

    def _bind_target(self, target: nodes.Node, value: nodes.Node) -> None:
        if isinstance(target, nodes.NSRef):
            self._hold(self.bound[f"{self._owner(target.name)}.{target.attr}"], value)
        for name in _targets(target):
            self._hold(self.bound[name], value)
            self.rebound.add(name)

    def _owner(self, name: str) -> str:
        return name if name in self.namespaces else ""

    def _hold(self, held: list[nodes.Node | None], value: nodes.Node | None) -> None:
        self._count += 1
        if self._count > MAX_BINDINGS:
            raise Malformed(f"more than {MAX_BINDINGS} assignments and arguments", rule="template/size")
        held.append(value)

    def _reference(self, node: nodes.Node) -> str | None:
        """The binding a node reads: a name, or the field of a namespace."""
        if isinstance(node, nodes.Name):
            return node.name
        if isinstance(node, nodes.Getattr):
            field: str | None = node.attr
        else:
            field = _text(node.arg) if isinstance(node, nodes.Getitem) else None
        if field is None or not isinstance(node, nodes.Getattr | nodes.Getitem):
            return None
        subject = node.node
        owner = subject.name if isinstance(subject, nodes.Name) else ""
        if self.namespaces and owner not in self.namespaces:
            return None  # a field of the data
        held = f"{self._owner(owner)}.{field}"
        return held if held in self.bound else None

    def _values(self, name: str) -> list[nodes.Node | None]:
        return [*self.bound.get(name, ()), *self.looped.get(name, ())]

    def _settle(self, decide: Callable[[str, set[str]], bool]) -> frozenset[str]:
        """Flip each name that `decide` says, until none does. Both directions in turn: a chain takes two passes."""
        names = list(dict.fromkeys((*self.bound, *self.looped)))
        settled: set[str] = set()
        while True:
            flipped = False
            for name in [*names, *reversed(names)]:
                if name not in settled and decide(name, settled):
                    settled.add(name)
                    flipped = True
            if not flipped:
                return frozenset(settled)

    def _others(self) -> frozenset[str]:
        """Names that may hold something that is not a number."""

        def is_other(name: str, others: set[str]) -> bool:
            return not (
                all(each is not None and self._is_number(each, others) for each in self.bound.get(name, ()))
                and all(each is not None and _is_call(each, "range") for each in self.looped.get(name, ()))
            )

        return self._settle(is_other)

    def _is_number(self, node: nodes.Node, others: Collection[str]) -> bool:
        if isinstance(node, nodes.Const):
            return isinstance(node.value, int | float)
        if isinstance(node, nodes.Getattr) and isinstance(node.node, nodes.Name) and node.node.name == "loop":
            return node.attr in _LOOP_NUMBERS
        if isinstance(node, nodes.Filter):
            return node.name in _COUNTS
        if isinstance(node, nodes.BinExpr) and not isinstance(node, nodes.And | nodes.Or):
            return self._is_number(node.left, others) and self._is_number(node.right, others)
        if isinstance(node, nodes.Neg | nodes.Pos):
            return self._is_number(node.node, others)
        if isinstance(node, nodes.CondExpr):
            return all(self._is_number(each, others) for each in (node.expr1, node.expr2) if each)
        if isinstance(node, nodes.Compare | nodes.Test | nodes.Not):
            return True
        reference = self._reference(node)
        return (reference in self.bound or reference in self.looped) and reference not in others

    def _built(self) -> frozenset[str]:
        """Names that may hold a text the template itself assembled."""

        def is_built(name: str, built: set[str]) -> bool:
            return any(value is not None and self._builds(value, built) for value in self._values(name))

        return self._settle(is_built)

    def _builds(self, expression: nodes.Node, built: Collection[str]) -> bool:
        for node in _children(expression):
            if isinstance(node, nodes.Concat | nodes.Mod):
                return True
            if isinstance(node, nodes.Add | nodes.Mul) and not self._is_number(node, self.others):
                return True
            if _reshapes(node) or (
                isinstance(node, nodes.Call)
                and isinstance(node.node, nodes.Name)
                and node.node.name in self.macros
            ):
                return True
            if self._reference(node) in built or ((key := _text(node)) is not None and not _is_data_key(key)):
                return True
        return False

    # The allow-list.

    def _check(self, node: nodes.Node) -> Iterator[tuple[str, str]]:
        if type(node) not in _ALLOWED:
            yield "statement", f"{type(node).__name__} is not on the list"
        elif isinstance(node, nodes.TemplateData):
            yield from _check_text(node.data)
        elif isinstance(node, nodes.For) and node.recursive:
            yield "statement", "a recursive loop"
        elif isinstance(node, nodes.Expr):
            yield from self._check_expression(node)

    def _check_expression(self, node: nodes.Expr) -> Iterator[tuple[str, str]]:
        match node:
            case nodes.Const():
                yield from _check_constant(node)
            case nodes.Name():
                yield from self._check_name(node)
            case nodes.Getattr(attr=attr) if attr in _METHODS:
                pass  # whether it is called or read, these are methods of text, lists and mappings
            case nodes.NSRef() | nodes.Getattr():
                yield from _check_key(node.attr)
            case nodes.Getitem():
                yield from self._check_item(node.arg)
            case nodes.Call():
                yield from self._check_call(node)
            case nodes.Filter():
                yield from self._check_filter(node)
            case nodes.Test() if node.name not in _TESTS:
                yield "test", f"the test {node.name!r} is not on the list"
            case nodes.Mod() | nodes.Mul():
                yield from self._check_arithmetic(node)

    def _check_name(self, node: nodes.Name) -> Iterator[tuple[str, str]]:
        own = node.name in self.bound or node.name in self.looped
        if "__" in node.name or not node.name.isascii() or (node.name.startswith("_") and not own):
            yield "name", f"the name {node.name!r}"
        elif node.ctx == "load" and node.name in _reserved() and node.name not in self.rebound:
            yield "name", f"{node.name!r} is Python's own, not a part of the conversation"

    def _check_item(self, key: nodes.Expr) -> Iterator[tuple[str, str]]:
        if (text := _text(key)) is not None:
            yield from _check_key(text)
        elif isinstance(key, nodes.Slice):
            return
        elif self._builds(key, self.built):
            yield "computed-key", "a key assembled from pieces"

    def _check_arithmetic(self, node: nodes.BinExpr) -> Iterator[tuple[str, str]]:
        if not self._is_number(node.left, self.others) or not self._is_number(node.right, self.others):
            yield (
                "cost",
                f"'{node.operator}' on something that is not known to be a number repeats or formats text",
            )
        elif isinstance(node, nodes.Mul) and not any(
            isinstance(n, nodes.Const) for n in (node.left, node.right)
        ):
            yield "cost", "a product of two variables grows without bound in a loop"

    def _check_call(self, node: nodes.Call) -> Iterator[tuple[str, str]]:
        called = node.node
        if node.dyn_args is not None or node.dyn_kwargs is not None:
            yield "call", "arguments given by * or **"
        if isinstance(called, nodes.Getattr):
            if called.attr not in _METHODS:
                yield "call", f"the method {called.attr[:60]!r} is not on the list"
        elif not isinstance(called, nodes.Name):
            yield "call", "a call of something that has no name"
        elif called.name in self.macros:
            if called.name in self.rebound | _GLOBALS:
                yield "call", f"{called.name!r} is a macro and something else"
        elif called.name not in _GLOBALS or called.name in self.rebound:
            yield "call", f"the function {called.name[:60]!r} is not on the list"
        elif called.name == "strftime_now":
            if len(node.args) != 1 or not _TIME_FORMAT.fullmatch(_text(node.args[0]) or "%"):
                yield "call", "strftime_now takes one plain format"
        elif called.name == "range":
            yield from self._check_range(node)

    def _check_range(self, node: nodes.Call) -> Iterator[tuple[str, str]]:
        for argument in node.args:
            if not self._is_number(argument, self.others):
                yield "cost", "range over something that is not known to be a number"
            elif self._largest(argument, self.largest) > MAX_RANGE:
                yield "cost", f"range over more than {MAX_RANGE}"

    def _check_filter(self, node: nodes.Filter) -> Iterator[tuple[str, str]]:
        if node.name not in _FILTERS:
            yield "filter", f"the filter {node.name!r} is not on the list"
        if node.dyn_args is not None or node.dyn_kwargs is not None:
            yield "filter", "arguments given by * or **"
        named = {str(keyword.key): keyword.value for keyword in node.kwargs}
        keys = [named["attribute"]] if "attribute" in named else []
        keys += node.args[:1] if node.name in ("selectattr", "rejectattr") else []
        keys += node.args[1:2] if node.name == "join" else node.args[2:3] if node.name == "sort" else []
        keys += node.args[1:2] if node.name in ("unique", "min", "max") else []
        for key in keys:
            text = _text(key)
            if text is None or not all(_is_data_key(part) for part in text.split(".")):
                yield "attribute", f"{node.name} reads an attribute that is not a plain key"
        if (
            node.name == "map"
            and node.args
            and _text(node.args[0]) not in _FILTERS - {"map", "selectattr", "sort"}
        ):
            yield "filter", "map applies something that is not on the list"
        tests = node.args[:1] if node.name in ("select", "reject") else ()
        tests = node.args[1:2] if node.name in ("selectattr", "rejectattr") else tests
        if any(_text(test) not in _TESTS for test in tests):
            yield "test", f"{node.name} applies a test that is not on the list"
        if node.name == "indent" and not all(_is_small(width) for width in (*node.args, *named.values())):
            yield "cost", f"indent by more than {MAX_INDENT}"

    # What rendering may cost.

    def _held(
        self, measure: Callable[[nodes.Node, Mapping[str, float]], float], start: float
    ) -> dict[str, float]:
        """What each name can measure after _PASSES turns: constant if never added to, 2^40 if doubled each turn."""
        held = dict.fromkeys([*self.bound, *self.looped], start)
        for _ in range(_PASSES):
            before = dict(held)
            for name in held:
                sizes = [measure(value, held) for value in self._values(name) if value is not None]
                held[name] = min(max(held[name], *sizes, start), 1e18)
            if held == before:
                break
        return held

    def _largest(self, node: nodes.Node, held: Mapping[str, float]) -> float:
        """The constant part of a number: the sum of its constants, products multiplied out."""
        if isinstance(node, nodes.Const):
            return abs(node.value) if isinstance(node.value, int | float) else 0.0
        if isinstance(node, nodes.Mul):
            return MAX_RANGE + max(1.0, self._largest(node.left, held)) * max(
                1.0, self._largest(node.right, held)
            )
        if isinstance(node, nodes.Filter):
            # A length is as long as the conversation; a text read as a number is anything.
            return 0.0 if node.name in ("length", "count") else float("inf")
        reference = self._reference(node)
        if reference is not None:
            return held.get(reference, 0.0)
        return sum(self._largest(child, held) for child in node.iter_child_nodes())

    def _costs(self) -> Iterator[str]:
        steps = self._steps(self.tree, (), ())
        if steps > MAX_STEPS:
            yield "loops and macro calls multiply to more than a million steps"
        yield from self._recursion()
        for name, size in self._held(self._pieces, 1.0).items():
            if size > MAX_GROWTH:
                yield f"{name.lstrip('.')!r} doubles with each turn or each assignment"

    def _steps(self, node: nodes.Node, loops: tuple[str, ...], calls: tuple[str, ...]) -> float:
        """Nodes visited by one rendering; a loop over the conversation counts as one turn, too many nested as more."""
        factor = 1.0
        if isinstance(node, nodes.For):
            # A loop over a part of an outer loop's item goes down into the data: all turns together are linear.
            if not any(name.name in self.looped for name in node.iter.find_all(nodes.Name)):
                loops = (*loops, repr(node.iter))
            if len(loops) > MAX_LOOPS or any(loops.count(each) > MAX_SAME_LOOPS for each in loops[-1:]):
                return float("inf")
            factor = max(1.0, self._turns(node.iter, self.turns))
        total = 1.0
        if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Name) and node.node.name not in calls:
            total += self._macro_steps(node.node.name, loops, calls)
            if total > MAX_STEPS:
                return total
        elif isinstance(node, nodes.Macro):
            return 1.0
        for child in node.iter_child_nodes():
            total += self._steps(child, loops, calls)
            if total * factor > MAX_STEPS:
                return total * factor
        return total * factor

    def _macro_steps(self, name: str, loops: tuple[str, ...], calls: tuple[str, ...]) -> float:
        """Nodes visited by one call. Kept, so that counting a bomb is not one."""
        key = (name, loops, frozenset(calls))
        if key not in self.counted:
            total = 0.0
            for macro in self.macros.get(name, ()):
                for part in macro.body:
                    if total <= MAX_STEPS:
                        total += self._steps(part, loops, (*calls, macro.name))
            self.counted[key] = total
        return self.counted[key]

    def _turns(self, node: nodes.Node, held: Mapping[str, float]) -> float:
        """A bound on the turns of a loop that the template itself sets; the conversation's part counts as one."""
        reference = self._reference(node)
        if reference is not None:
            return held.get(reference, 1.0)
        match node:
            case nodes.Call(node=nodes.Name(name="range")):
                return sum(self._largest(argument, self.largest) for argument in node.args)
            case nodes.Const(value=str() as text) | nodes.TemplateData(data=text):
                return float(len(text))
            case nodes.Filter(node=nodes.Expr() as subject) | nodes.Call(node=nodes.Getattr(node=subject)):
                return self._turns(subject, held)
            case nodes.Getitem(node=subject) | nodes.Getattr(node=subject):
                return self._turns(subject, held)
            case nodes.CondExpr() | nodes.And() | nodes.Or():
                return max(self._turns(child, held) for child in node.iter_child_nodes())
            case nodes.List() | nodes.Tuple() | nodes.Dict():
                return len(node.items) + sum(self._turns(child, held) for child in node.items)
            case nodes.Add() | nodes.Concat() | nodes.Pair():
                return sum(self._turns(child, held) for child in node.iter_child_nodes())
        return 1.0

    def _recursion(self) -> Iterator[str]:
        """A macro that reaches itself must go down into the data: one argument is a part of something."""
        calls = {
            name: {
                call.node.name
                for macro in macros
                for call in macro.find_all(nodes.Call)
                if isinstance(call.node, nodes.Name) and call.node.name in self.macros
            }
            for name, macros in self.macros.items()
        }
        for name, macros in self.macros.items():
            for call in (call for macro in macros for call in macro.find_all(nodes.Call)):
                if not isinstance(call.node, nodes.Name) or name not in _reachable(calls, call.node.name):
                    continue
                values = [*call.args, *(keyword.value for keyword in call.kwargs)]
                if not any(self._descends(value) for value in values):
                    yield f"line {call.lineno}: {name!r} calls itself without going down into the data"

    def _descends(self, value: nodes.Expr) -> bool:
        if isinstance(value, nodes.Name):
            return value.name in self.looped
        return isinstance(value, nodes.Getattr | nodes.Getitem) and self._reference(value) is None

    def _pieces(self, node: nodes.Node, held: Mapping[str, float]) -> float:
        if isinstance(node, nodes.Compare | nodes.Test | nodes.Not | nodes.Const | nodes.TemplateData):
            return 1.0
        if isinstance(node, nodes.CondExpr):
            return max(self._pieces(each, held) for each in (node.expr1, node.expr2) if each is not None)
        if isinstance(node, nodes.And | nodes.Or):
            return max(self._pieces(node.left, held), self._pieces(node.right, held))
        if isinstance(node, nodes.Filter) and node.name in _COUNTS:
            return 1.0
        if isinstance(node, nodes.Filter) and node.name in ("default", "d") and node.node is not None:
            return max(self._pieces(each, held) for each in (node.node, *node.args))
        reference = self._reference(node)
        if reference is not None:
            return held.get(reference, 1.0) if reference in self.others else 1.0
        if isinstance(node, nodes.Getitem | nodes.Getattr):
            return self._pieces(node.node, held)
        if (
            isinstance(node, nodes.Call)
            and isinstance(node.node, nodes.Getattr)
            and node.node.attr in _SHORTENERS
        ):
            return self._pieces(node.node.node, held)
        total = max(1.0, sum(self._pieces(child, held) for child in node.iter_child_nodes()))
        if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Name):
            total *= max((_uses(macro) for macro in self.macros.get(node.node.name, ())), default=1)
        return total * _replace_ratio(node)


def _reshapes(node: nodes.Node) -> bool:
    """Whether a filter or method makes a new text out of its subject, or a part of a constant one."""
    if isinstance(node, nodes.Filter):
        name, subject = node.name, node.node
    elif isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr):
        name, subject = node.node.attr, node.node.node
    else:
        return False
    return name in _BUILDERS or (name in _CUTTERS and _text(subject) is not None)


def _replace_ratio(node: nodes.Node) -> float:
    """By how much `replace` may lengthen a text."""
    method = node.node.attr if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr) else None
    if not isinstance(node, nodes.Call | nodes.Filter):
        return 1.0
    if method != "replace" and not (isinstance(node, nodes.Filter) and node.name == "replace"):
        return 1.0
    old, new = (_text(each) for each in (*node.args, None, None)[:2])
    if old is None or new is None:
        return 2.0
    return 1.0 if old and old not in new else max(1.0, len(new) / max(1, len(old)))


def _uses(macro: nodes.Macro) -> int:
    parameters = {parameter.name for parameter in macro.args}
    written = Counter(
        name.name
        for output in macro.find_all(nodes.Output)
        for part in output.nodes
        for name in ([part] if isinstance(part, nodes.Name) else part.find_all(nodes.Name))
        if name.name in parameters
    )
    return max(written.values(), default=1)


def _is_small(node: nodes.Node) -> bool:
    value = node.value if isinstance(node, nodes.Const) else None
    return isinstance(value, int) and value <= MAX_INDENT


def _check_text(text: str) -> Iterator[tuple[str, str]]:
    if match := _URL.search(text):
        yield "url", f"the text holds an address: {text[match.start() : match.start() + 60]!r}"


def _check_constant(node: nodes.Const) -> Iterator[tuple[str, str]]:
    if isinstance(node.value, str):
        yield from _check_text(node.value)
        if _DUNDER.search(unicodedata.normalize("NFKC", node.value)):
            yield "attribute", f"the text {node.value[:60]!r} names a Python internal"


def _check_key(key: str) -> Iterator[tuple[str, str]]:
    if not _is_data_key(key):
        yield "attribute", f"the attribute {key[:60]!r}"


def _namespaces(tree: nodes.Template) -> frozenset[str]:
    """Names that hold a namespace of their own and nothing else; empty when one may be read by another name."""
    held: dict[str, bool] = {}
    made = 0
    for assign in tree.find_all(nodes.Assign):
        is_one = _is_call(assign.node, "namespace")
        made += is_one
        if is_one and not isinstance(assign.target, nodes.Name):
            return frozenset()
        for name in _targets(assign.target):
            held[name] = held.get(name, True) and is_one
    own = {name for name, is_one in held.items() if is_one}
    owned: set[int] = set()
    for part in _children(tree):
        if isinstance(part, nodes.Getattr | nodes.Getitem):
            owned.add(id(part.node))
    shadowed = {
        name for node in tree.find_all((nodes.For, nodes.Macro, nodes.AssignBlock)) for name in _binds(node)
    }
    bare = any(
        name.name in own and name.ctx == "load" and id(name) not in owned
        for name in tree.find_all(nodes.Name)
    )
    strangers = any(field.name not in own for field in tree.find_all(nodes.NSRef))
    calls = sum(_is_call(call, "namespace") for call in tree.find_all(nodes.Call))
    return frozenset() if bare or strangers or calls != made or own & shadowed else frozenset(own)


def _binds(node: nodes.Node) -> Iterator[str]:
    if isinstance(node, nodes.Macro):
        yield from (parameter.name for parameter in node.args)
    elif isinstance(node, nodes.For | nodes.AssignBlock):
        yield from _targets(node.target)


def _targets(target: nodes.Node) -> Iterator[str]:
    for name in [target] if isinstance(target, nodes.Name) else target.find_all(nodes.Name):
        yield name.name


def _is_call(node: nodes.Node, name: str) -> bool:
    return isinstance(node, nodes.Call) and isinstance(node.node, nodes.Name) and node.node.name == name


def _reachable(calls: Mapping[str, Iterable[str]], start: str) -> frozenset[str]:
    seen: set[str] = set()
    pending = [start]
    while pending:
        name = pending.pop()
        if name not in seen:
            seen.add(name)
            pending.extend(calls.get(name, ()))
    return frozenset(seen)
