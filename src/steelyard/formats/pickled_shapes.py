"""What shape rules of pickles share: claims about symbols, and the symbols that hold others.

A rule receives symbols (`pickle_values`), raises Misfit outside its shape, and returns the symbol of the result.
"""

import re
from collections.abc import Sequence
from math import prod

from steelyard.formats.pickle_values import LEAVES, Blob, Global, Misfit, Node, Value, node_of

MAX_DIMENSIONS = 64
MAX_ELEMENTS = 1 << 48
MAX_WEIGHT = 10**18
ATTRIBUTE = re.compile(r"(?!__)[A-Za-z_][A-Za-z0-9_]{0,127}")


def fit(claim: bool, expected: str) -> None:
    """Raise Misfit naming what was expected unless `claim` holds."""
    if not claim:
        raise Misfit(f"expected {expected}")


def items_of(value: Value, what: str) -> Sequence[Value]:
    """The items of a tuple symbol. Raises Misfit for anything else, or a tuple too long to have been kept."""
    if isinstance(value, tuple):
        return value
    if isinstance(value, Node) and value.kind == "tuple" and value.kept is not None:
        fit(value.count == len(value.kept), f"a shorter tuple for {what}")
        return value.kept
    raise Misfit(f"expected a tuple for {what}")


def is_kind(value: Value, *kinds: str) -> bool:
    return isinstance(value, Node) and value.kind in kinds


def is_global(value: Value, *names: str) -> bool:
    """Whether `value` is an import of one of those `module.name`."""
    return isinstance(value, Global) and str(value) in names


def is_int(value: Value, low: int = 0, high: int = MAX_ELEMENTS) -> bool:
    return type(value) is int and low <= value <= high


def is_plain(value: Value) -> bool:
    return (
        type(value) in LEAVES or isinstance(value, tuple) or (isinstance(value, Node) and not value.carries)
    )


def is_bytes(value: Value) -> bool:
    return isinstance(value, bytes) or (isinstance(value, Blob) and value.kind in {"bytes", "bytearray"})


def size_of(value: Value) -> int:
    return value.size if isinstance(value, Blob) else len(value) if isinstance(value, bytes) else 0


def shape_of(value: Value, what: str) -> list[int]:
    """A tensor shape or stride: a tuple, or torch.Size, of counts."""
    source = value.fact if isinstance(value, Node) and value.kind == "Size" else value
    sizes = [size for size in items_of(source, what) if type(size) is int and 0 <= size <= MAX_ELEMENTS]
    fit(len(sizes) == len(items_of(source, what)) <= MAX_DIMENSIONS, f"counts for {what}")
    fit(prod(size for size in sizes if size) <= MAX_ELEMENTS**2, f"a {what} that can exist")
    return sizes


def is_data(value: Value) -> bool:
    """Whether `value` may stand inside an object: no import but those listed as data, not even inside a tuple."""
    if isinstance(value, Global):
        return value.spec is not None and value.spec.data
    return is_plain(value)


def is_text(value: Value) -> bool:
    return isinstance(value, str) or (isinstance(value, Blob) and value.kind == "text")


def holding(kind: str, items: Sequence[Value]) -> Node:
    """A symbol of `kind` that keeps `items`, which are data and may not change from now on."""
    fit(all(is_data(item) for item in items), "data as arguments")
    node = node_of(kind)
    for item in items:
        if isinstance(item, Node):
            item.held = True
            node.depth = max(node.depth, item.depth + 1)
            node.weight = min(node.weight + item.weight, MAX_WEIGHT)
    node.keep(items)
    return node


def pairs_of(state: Value, what: str) -> list[tuple[Value, Value]]:
    """The entries of a dict symbol. Raises Misfit for anything else, or a dict too long to have been kept."""
    fit(isinstance(state, Node) and state.kind == "dict", f"a dict for {what}")
    kept = (state.kept or []) if isinstance(state, Node) else []
    fit(isinstance(state, Node) and state.count == len(kept), f"fewer entries in {what}")
    return list(zip(kept[0::2], kept[1::2], strict=True))


def attributes_of(state: Value) -> list[tuple[str, Value]]:
    """The attributes that a BUILD sets: a dict, or (dict, None), of identifiers that are not `__special__`.

    A second dict would be set by setattr, which runs properties.
    """
    if isinstance(state, tuple) or is_kind(state, "tuple"):
        parts = items_of(state, "the state")
        fit(len(parts) == 2 and parts[1] is None, "(dict, None)")
        state = parts[0]
    if state is None:
        return []
    found = []
    for name, value in pairs_of(state, "the state"):
        fit(isinstance(name, str) and bool(ATTRIBUTE.fullmatch(name)), "names of attributes")
        found.append((str(name), value))
    return found
