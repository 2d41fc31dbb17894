"""The source inside a TorchScript archive, judged without running it.

PyTorch prints each class and function of a script as Python-like text and parses it again when it loads. The text is
parsed here with `ast`, piece by piece, and walked by an allow-list: statements and expressions the printer writes,
names that are defined, operators of `torch_operators`. `torch.add` is the operator aten::add, `ops.quantized.linear`
quantized::linear, `__torch__.a.B` the class or function B in code/__torch__/a.py.
Source: torch/csrc/jit/serialization/python_print.cpp of PyTorch 2.13.
"""

import ast
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from steelyard.errors import Malformed
from steelyard.formats.base import Finding
from steelyard.formats.torch_operators import OPERATORS, PACKED_CLASSES

MAX_SOURCE_BYTES = 1 << 22  # all members of one archive
MAX_PIECE_BYTES = 1 << 20  # one class or function
# Marks such as commas and dots, each about one node of the syntax tree: 1 kB and 8 microseconds.
MAX_MARKS = 400_000
MAX_PIECE_MARKS = 80_000
MAX_NESTING = 100
MAX_FINDINGS = 20

_MARKS: Final = b",.+-*/%<>=:|&^~@([{\n"

# Where a class or function begins: the printer indents everything else.
_PIECE = re.compile(r"^(?=class |def )", re.MULTILINE)

_BUILTINS_NAMES = """
abs annotate awaitable bool chr complex dict divmod enumerate float fork getattr hasattr hash hex inf infj
int isinstance len list max min nan nanj oct ord pow print range round sorted str sum tuple unchecked_cast
uninitialized unwrap_optional wait zip bin
"""
_BUILTINS: Final = frozenset(_BUILTINS_NAMES.split())
_TYPES_NAMES = """
Any AnyClassType AnyEnumType Await BroadcastingList1 BroadcastingList2 BroadcastingList3 Capsule Device
Dict Enum Exception Final Future Generator InferredType Layout List Module Named NamedTuple None NoneType
Number Optional QScheme ScalarType Storage Stream SymBool SymFloat SymInt Tensor Tuple Union _Tensor
interface number Type
"""
_TYPES: Final = frozenset(_TYPES_NAMES.split())
_ALLOWED: Final = frozenset(
    {
        ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Expr, ast.If, ast.While, ast.For, ast.Return, ast.Pass,
        ast.Assert, ast.Raise, ast.Break, ast.Continue, ast.With, ast.FunctionDef, ast.Name, ast.Attribute, ast.Call,
        ast.Constant, ast.Tuple, ast.List, ast.Dict, ast.Subscript, ast.Slice, ast.UnaryOp, ast.BinOp, ast.BoolOp,
        ast.Compare, ast.IfExp, ast.keyword, ast.Starred, ast.withitem, ast.arguments, ast.arg, ast.Load, ast.Store,
        ast.Add, ast.Sub, ast.Mult, ast.MatMult, ast.Div, ast.Mod, ast.Pow, ast.LShift, ast.RShift, ast.BitOr,
        ast.BitXor, ast.BitAnd, ast.FloorDiv, ast.Invert, ast.Not, ast.UAdd, ast.USub, ast.And, ast.Or, ast.Eq,
        ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Is, ast.IsNot, ast.In, ast.NotIn,
    }
)  # fmt: skip
_LEAVES: Final = frozenset({ast.Constant, ast.Load, ast.Store})


@dataclass(slots=True)
class Program:
    """All source of one archive. `defined`: qualified names of its classes and functions; `operators`: named ones."""

    defined: set[str] = field(default_factory=set)
    operators: set[str] = field(default_factory=set)
    findings: list[Finding] = field(default_factory=list)
    source_bytes: int = 0
    marks: int = 0
    _wanted: list[tuple[str, str, int]] = field(default_factory=list)

    def read(self, name: str, source: bytes) -> None:
        """Judge one member, such as code/__torch__/torch/nn/modules/linear.py. Raises Malformed."""
        self.source_bytes += len(source)
        if self.source_bytes > MAX_SOURCE_BYTES:
            raise Malformed(f"more than {MAX_SOURCE_BYTES} bytes of source", rule="torchscript/limit")
        self.marks += _marks_in(source)
        if self.marks > MAX_MARKS:
            raise Malformed(f"more than {MAX_MARKS} parts of speech", rule="torchscript/limit")
        module = name.removeprefix("code/").removesuffix(".py").replace("/", ".")
        line = 0
        for piece in _pieces(source):
            for node in _parse(piece, line):
                _Piece(self, name, module, line).top(node)
            line += piece.count("\n")
            if len(self.findings) > MAX_FINDINGS:
                return

    def find(self, rule: str, message: str, name: str) -> None:
        if len(self.findings) <= MAX_FINDINGS:
            self.findings.append(Finding(rule, message, None, name))

    def want(self, qualified: str, name: str, line: int) -> None:
        """A name below __torch__, to be defined somewhere in the archive."""
        self._wanted.append((qualified, name, line))

    def close(self) -> None:
        """After the last member: every name that was used must be defined here or be a class of packed weights."""
        for qualified, name, line in self._wanted:
            if qualified in PACKED_CLASSES or self._is_defined(qualified):
                continue
            self.find(
                "torchscript/name", f"line {line} names {qualified[:120]!a}, which is nowhere defined", name
            )
        self._wanted.clear()

    def _is_defined(self, qualified: str) -> bool:
        return qualified in self.defined or qualified.rpartition(".")[0] in self.defined


def _pieces(source: bytes) -> Iterator[str]:
    if not source.isascii() or b"\0" in source or b"\f" in source or b"\r" in source:
        raise Malformed("source that is not plain ASCII", rule="torchscript/syntax")
    for piece in _PIECE.split(source.decode("ascii")):
        if len(piece) > MAX_PIECE_BYTES or _marks_in(piece.encode()) > MAX_PIECE_MARKS:
            raise Malformed(f"a class or function of {len(piece)} bytes", rule="torchscript/limit")
        if piece:
            yield piece


def _marks_in(source: bytes) -> int:
    return len(source) - len(source.translate(None, _MARKS))


def _parse(piece: str, line: int) -> list[ast.stmt]:
    depth = deepest = 0
    for letter in piece:
        if letter in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif letter in ")]}":
            depth -= 1
    if deepest > MAX_NESTING:
        raise Malformed(f"brackets {deepest} deep after line {line}", rule="torchscript/limit")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about string escapes, which C++ and Python share here
            return ast.parse(piece).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as bad:
        raise Malformed(
            f"after line {line} the source is no script: {bad}", rule="torchscript/syntax"
        ) from bad


class _Piece:
    """One class or function at the top of a member."""

    def __init__(self, program: Program, name: str, module: str, line: int) -> None:
        self._program = program
        self._name = name
        self._module = module
        self._line = line
        self._known: set[str] = set()

    def find(self, rule: str, message: str, node: ast.AST) -> None:
        line = self._line + getattr(node, "lineno", 1)
        self._program.find(rule, f"line {line} {message}", self._name)

    def top(self, node: ast.stmt) -> None:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            self._program.defined.add(f"{self._module}.{node.name}")
        if isinstance(node, ast.ClassDef):
            self._class(node)
        elif isinstance(node, ast.FunctionDef):
            self._function(node)
        elif isinstance(node, ast.Import) and all(alias.name.startswith("__torch__") for alias in node.names):
            return  # how PyTorch before 1.4 named the other members
        elif _is_version(node):
            return
        else:
            self.find("torchscript/syntax", f"holds a {type(node).__name__} outside of any function", node)

    def _class(self, node: ast.ClassDef) -> None:
        bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
        if node.decorator_list or node.keywords or len(bases) != len(node.bases) or not bases <= _BASES:
            self.find("torchscript/syntax", f"declares {node.name!a} with a base or decorator", node)
        for item in node.body:
            if isinstance(item, ast.FunctionDef):
                self._function(item)
            elif isinstance(item, ast.AnnAssign | ast.Assign):
                self._field(item)
            elif not isinstance(item, ast.Pass):
                self.find("torchscript/syntax", f"holds a {type(item).__name__} in a class", item)

    def _field(self, item: ast.AnnAssign | ast.Assign) -> None:
        """`name : type`, `name : Final[int] = 3`, `__parameters__ = ["a", ]`, `__annotations__["0"] = type`."""
        self._known = {"__annotations__"}
        for node in ast.walk(item):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                self._known.add(node.id)
        self._check(item)

    def _function(self, node: ast.FunctionDef) -> None:
        if node.decorator_list:
            self.find("torchscript/syntax", f"decorates {node.name!a}", node)
        self._known = set()
        for inner in ast.walk(node):
            if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                self._known.add(inner.id)
            elif isinstance(inner, ast.arg):
                self._known.add(inner.arg)
            elif isinstance(inner, ast.FunctionDef) and inner is not node:
                self._known.add(inner.name)  # the printer puts forked functions inside the one that forks
        for part in ast.iter_child_nodes(node):
            self._check(part)

    def _check(self, root: ast.AST) -> None:
        waiting: list[ast.AST] = [root]
        while waiting:
            node = waiting.pop()
            kind = type(node)
            if kind in _LEAVES:
                continue
            if kind not in _ALLOWED:
                self.find("torchscript/syntax", f"holds a {kind.__name__}", node)
                continue
            if isinstance(node, ast.Name):
                self._local(node)
                continue
            if isinstance(node, ast.Attribute):
                path = _path_of(node)
                if path is not None and path[0] in _ROOTS and path[0] not in self._known:
                    self._global(path, node)
                    continue
            waiting.extend(ast.iter_child_nodes(node))

    def _local(self, node: ast.Name) -> None:
        if node.id not in self._known and node.id not in _BUILTINS and node.id not in _TYPES:
            self.find("torchscript/name", f"uses {node.id[:80]!a}, which is nowhere defined", node)

    def _global(self, path: list[str], node: ast.Attribute) -> None:
        _ROOTS[path[0]](self, path, node)

    def _torch(self, path: list[str], node: ast.Attribute) -> None:
        self._operator("aten", ".".join(path[1:]), node)

    def _ops(self, path: list[str], node: ast.Attribute) -> None:
        self._operator(path[1], ".".join(path[2:]), node)

    def _operator(self, namespace: str, name: str, node: ast.Attribute) -> None:
        shown = f"{namespace}::{name}"
        if name in OPERATORS.get(namespace, ()):
            self._program.operators.add(shown)
        else:
            self.find(
                "torchscript/operator", f"calls the operator {ascii(shown[:120])[1:-1]}, not listed", node
            )

    def _torch_name(self, path: list[str], node: ast.Attribute) -> None:
        self._program.want(".".join(path), self._name, self._line + node.lineno)

    def _constant(self, path: list[str], node: ast.Attribute) -> None:
        if len(path) < 2 or not re.fullmatch(r"c[0-9]{1,7}", path[1]):
            self.find("torchscript/name", "names a constant that is none", node)


_ROOTS: Final[dict[str, Callable[[_Piece, list[str], ast.Attribute], None]]] = {
    "torch": _Piece._torch,
    "ops": _Piece._ops,
    "__torch__": _Piece._torch_name,
    "CONSTANTS": _Piece._constant,
}
_BASES: Final = frozenset(
    {"Module", "NamedTuple", "Enum", "Interface", "ModuleInterface", "object", "Exception"}
)


def _path_of(node: ast.Attribute) -> list[str] | None:
    """["torch", "add"] for `torch.add`; None when the chain does not begin with a name."""
    parts = [node.attr]
    inner: ast.expr = node.value
    while isinstance(inner, ast.Attribute):
        parts.append(inner.attr)
        inner = inner.value
    return [inner.id, *parts[::-1]] if isinstance(inner, ast.Name) else None


def _is_version(node: ast.stmt) -> bool:
    """`op_version_set = 1`, the first line of members of PyTorch before 1.6."""
    return (
        isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Constant)
        and type(node.value.value) is int
        and all(isinstance(target, ast.Name) and target.id == "op_version_set" for target in node.targets)
    )
