"""What the pickle machine keeps on its stack: symbols that stand for objects nobody builds.

Small plain values stand for themselves (None, bool, int, str, bytes, tuples of those). Everything else is one
of the four classes here. A symbol keeps enough to judge a call and to print it, never the payload.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from steelyard.formats.base import ByteSource

Value: TypeAlias = object  # None | bool | int | str | bytes | tuple of those | Token | Blob | Global | Node

KEPT_ITEMS = 512  # items a container keeps for shape rules and messages; the rest are only counted
RENDERED_ITEMS = 6
RENDERED_TEXT = 80
RENDERED_CALL = 320
RENDERED_DEPTH = 4


class Misfit(Exception):
    """A listed name is given arguments outside its shape. Raised by shape rules, reported by the machine."""


class Token:
    """A plain scalar whose value nobody needs: a float, or text too long to be a name."""

    __slots__ = ("label",)

    def __init__(self, label: str) -> None:
        self.label = label


FLOAT = Token("<float>")
TEXT = Token("<text>")
LONG = Token("<int>")


class Unset:
    """A memo entry skipped by a numbered PUT. It is no plain value, so using it is always noticed."""

    __slots__ = ()


UNSET = Unset()


@dataclass(frozen=True, slots=True)
class Blob:
    """A payload left in the file: bytes or bytearray with `size` in bytes, text with `size` in characters."""

    kind: str
    size: int


@dataclass(frozen=True, slots=True)
class Spec:
    """How a listed global may be used.

    call: arguments -> the symbol of the result; raises Misfit outside its shape. Absent: never called.
    new: the same for NEWOBJ, `copyreg.__newobj__` and `copyreg._reconstructor`: arguments of `__new__` -> symbol.
    build: checks the state of a BUILD on a result of `call` or `new`; raises Misfit. Absent: no BUILD.
    inline: called after a good BUILD with (node, source, offset behind BUILD): returns the offset where the opcodes go
    on, or raises Misfit. Absent: right there.
    data: the object itself is plain data (a dtype) and may stand inside containers.
    """

    call: Callable[[Sequence[Value]], Value] | None = None
    build: "Callable[[Node, Value], None] | None" = None
    data: bool = False
    new: Callable[[Sequence[Value]], Value] | None = None
    inline: "Inline | None" = None


@dataclass(frozen=True, slots=True)
class Global:
    """An import. `spec` is absent for a name outside the allow-list, which is already a finding."""

    module: str
    name: str
    spec: Spec | None

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Node:
    """A container, or the result of a call.

    kind: what it is (list, dict, tuple, OrderedDict, tensor ...; `unknown` after a refused call).
    made_by: the global called, absent for containers.
    kept: the first items, keys and values alternating in mappings, or the arguments of a refused call.
    count: items in all.  weight: nodes it would unfold to if nothing were shared.  depth: nesting below it.
    held: stands in two places since the memo gave it out again, so it may not change any more.
    carries: a tuple with an import inside, which only a call may take.
    fact: what a shape rule wants to remember (dtype, element count).
    Defaults sit on the class: setting nine fields on each of a million objects is what made this slow.
    """

    kind: str = "unknown"
    made_by: Global | None = None
    kept: list[Value] | None = None
    count: int = 0
    weight: int = 1
    depth: int = 1
    held: bool = False
    carries: bool = False
    fact: object = None

    def keep(self, items: Sequence[Value]) -> None:
        """Count `items` and keep those that fit. A list that fits is taken over, not copied.

        What is kept is always the beginning: once it was dropped, nothing is kept any more.
        """
        before = self.count
        self.count = before + len(items)
        if not before:
            fits = len(items) <= KEPT_ITEMS and type(items) is list
            self.kept = items if fits else list(items[:KEPT_ITEMS])  # type: ignore[assignment]  # a list, see above
        elif self.kept is not None and len(self.kept) < KEPT_ITEMS:
            self.kept.extend(items[: KEPT_ITEMS - len(self.kept)])


class ListNode(Node):
    kind = "list"


class DictNode(Node):
    kind = "dict"


class Husk(Node):
    """Stands for an object whose contents were dropped (`pickle_husks`). It never changes."""


class Carrier(Node):
    """A tuple with an import inside."""


def node_of(kind: str, fact: object = None) -> Node:
    """A symbol of `kind`."""
    node = Node()
    node.kind = kind
    if fact is not None:
        node.fact = fact
    return node


Inline: TypeAlias = Callable[[Node, ByteSource, int], int]
LEAVES = frozenset({type(None), bool, int, str, bytes, Token, Blob})
SCALARS = LEAVES | {tuple}  # a bare tuple holds leaves only
QUIET = SCALARS | {Node, ListNode, DictNode, Husk}  # what any container may hold without a second look


def render(value: Value, depth: int = 0) -> str:
    """A bounded, escaped, one-line text of `value`, the way Python would write the call."""
    if isinstance(value, str | bytes):
        shown = ascii(value[:RENDERED_TEXT])
        return shown if len(value) <= RENDERED_TEXT else shown + "..."
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return "<int>"
    if isinstance(value, Token):
        return value.label
    if isinstance(value, Blob):
        return f"<{value.size} {value.kind}>"
    if isinstance(value, Global):
        return ascii(str(value))[1:-1][:RENDERED_TEXT]
    if isinstance(value, tuple):
        return _listed(value, len(value), depth)
    if isinstance(value, Node):
        return _render_node(value, depth)
    return repr(value)


def _render_node(node: Node, depth: int) -> str:
    if depth >= RENDERED_DEPTH:
        return "..."
    items = node.kept or []
    if node.kind == "unknown" and node.made_by is not None:
        return render(node.made_by) + _listed(items, max(node.count, len(items)), depth)
    if node.kind == "list":
        return "[" + _listed(items, node.count, depth)[1:-1].removesuffix(",") + "]"
    if node.kind == "dict":
        pairs = [
            f"{render(k, depth + 1)}: {render(v, depth + 1)}"
            for k, v in zip(items[: 2 * RENDERED_ITEMS : 2], items[1 : 2 * RENDERED_ITEMS : 2], strict=False)
        ]
        return "{" + ", ".join(pairs) + (", ...}" if node.count > 2 * len(pairs) else "}")
    if node.kind == "tuple":
        return _listed(items, node.count, depth)
    return f"<{node.kind}>"


def _listed(items: Sequence[Value], count: int, depth: int) -> str:
    parts = [render(item, depth + 1) for item in items[:RENDERED_ITEMS]]
    if count > len(parts):
        parts.append("...")
    return "(" + ", ".join(parts) + ("," if len(parts) == 1 and depth else "") + ")"


def render_call(target: Value, args: Value) -> str:
    """`target(args)` as text. `args` that are no tuple are shown with a star."""
    if isinstance(args, Node) and args.kind == "tuple":
        inner = _listed(args.kept or [], args.count, 0)
    elif isinstance(args, tuple):
        inner = _listed(args, len(args), 0)
    else:
        inner = f"(*{render(args)})"
    text = render(target) + inner
    return text if len(text) <= RENDERED_CALL else text[: RENDERED_CALL - 3] + "..."
