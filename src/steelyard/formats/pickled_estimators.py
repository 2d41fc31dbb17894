"""Estimators in a pickle: how objects of scikit-learn, XGBoost, LightGBM and SciPy are rebuilt, and from what.

An estimator is made empty (`__new__` without arguments) and given a dict of attributes. What an attribute holds must
itself be listed: no callable but pure numeric functions stands in one. Two attributes are programs or paths to
programs in the libraries' own code and have shapes of their own: `pre_dispatch`, which joblib before 1.2 evaluates, and
`memory`, which names a folder of pickles.

Sources: `__reduce__`, `__getstate__` and `__setstate__` of scikit-learn 0.23 to 1.8, XGBoost 1.3 to 3.2, LightGBM 3.1
to 4.7 and SciPy 1.5 to 1.18.
"""

import re
from collections.abc import Callable, Mapping, Sequence

from steelyard.formats.pickle_values import FLOAT, LONG, Global, Node, Spec, Value, node_of
from steelyard.formats.pickled_shapes import (
    attributes_of,
    fit,
    holding,
    is_bytes,
    is_data,
    is_global,
    is_int,
    is_kind,
    is_text,
    items_of,
    pairs_of,
)

MAX_STATE = 32  # parts of the state of a compiled class
PRE_DISPATCH = re.compile(r"all|[0-9]{0,9}\*?n_jobs|[0-9]{1,9}")
_NUMBERS = (bool, int, type(None))


# Classes written in Python


def _object(args: Sequence[Value]) -> Value:
    fit(not args, "no arguments")
    return node_of("object")


def _mapping(args: Sequence[Value]) -> Value:
    fit(not args, "no arguments")
    return node_of("mapping")


def _record(args: Sequence[Value]) -> Value:
    return holding("record", args)


def _member(args: Sequence[Value]) -> Value:
    """An enum is called with the value of a member; any other value raises."""
    fit(len(args) == 1 and (args[0] is FLOAT or isinstance(args[0], int | str | tuple)), "(value,)")
    return node_of("enum")


def _attributes(_node: Node, state: Value) -> None:
    for name, value in attributes_of(state):
        if name == "pre_dispatch":
            known = type(value) in _NUMBERS or (
                isinstance(value, str) and bool(PRE_DISPATCH.fullmatch(value))
            )
            fit(known, "pre_dispatch as a number, 'all' or '2*n_jobs'")
        if name == "memory":
            fit(value is None, "no memory, which is a folder of pickles")


KINDS: Mapping[str, Spec] = {
    "object": Spec(new=_object, build=_attributes, data=True),
    "mapping": Spec(new=_mapping, build=_attributes, data=True),
    "tuple": Spec(new=_record, data=True),
    "enum": Spec(_member, data=True),
    "function": Spec(data=True),
}


# Compiled classes of scikit-learn


def _numbers(args: Sequence[Value]) -> Value:
    """A loss: called with its few parameters."""
    fit(len(args) <= 3 and all(arg is FLOAT or type(arg) in _NUMBERS for arg in args), "up to three numbers")
    fit(all(type(arg) is not int or abs(arg) < 1 << 31 for arg in args), "small numbers")
    return node_of("object")


def _parts(state: Value) -> Sequence[Value]:
    parts = items_of(state, "the state")
    fit(len(parts) <= MAX_STATE and all(is_data(part) for part in parts), f"up to {MAX_STATE} parts")
    return parts


def _compiled_state(_node: Node, state: Value) -> None:
    """A tuple of numbers, arrays and other compiled objects; Cython checks the type of each."""
    for part in _parts(state):
        number = part is FLOAT or part is LONG or type(part) in _NUMBERS
        fit(
            number or is_text(part) or is_kind(part, "ndarray", "object", "scalar", "dict"),
            "numbers and arrays",
        )


def _new_of(module: str) -> Callable[[Sequence[Value]], Value]:
    """`newObj(class)` of that module: `class.__new__(class)`."""

    def call(args: Sequence[Value]) -> Value:
        fit(len(args) == 1 and isinstance(args[0], Global), "(class,)")
        kind = args[0]
        listed = isinstance(kind, Global) and kind.spec is COMPILED and kind.module == module
        fit(listed, f"a class of {module}")
        return node_of("object")

    return call


def _unpickle(module: str, name: str) -> Callable[[Sequence[Value]], Value]:
    """Cython's `__pyx_unpickle_<name>(class, checksum, state)`."""

    def call(args: Sequence[Value]) -> Value:
        fit(len(args) == 3 and is_global(args[0], f"{module}.{name}"), f"({name}, checksum, state)")
        fit(is_int(args[1], 0, 1 << 32), "a checksum")
        node = node_of("object")
        if args[2] is not None:
            _compiled_state(node, args[2])
        return node

    return call


def _tree(args: Sequence[Value]) -> Value:
    """`Tree(n_features, n_classes, n_outputs)`."""
    fit(
        len(args) == 3 and is_int(args[0], 0, 1 << 31) and is_int(args[2], 0, 1 << 24),
        "(features, classes, outputs)",
    )
    fit(is_kind(args[1], "ndarray"), "an array of the numbers of classes")
    return holding("object", args)


def _tree_state(_node: Node, state: Value) -> None:
    """{'max_depth', 'node_count', 'nodes', 'values'}: counts and two arrays."""
    found = dict(pairs_of(state, "the state"))
    fit(
        set(found) == {"max_depth", "node_count", "nodes", "values"},
        "max_depth, node_count, nodes and values",
    )
    fit(is_int(found["max_depth"], 0, 1 << 31) and is_int(found["node_count"], 0, 1 << 40), "counts")
    fit(is_kind(found["nodes"], "ndarray") and is_kind(found["values"], "ndarray"), "two arrays")


COMPILED = Spec(data=True)  # a compiled class: named by newObj or __pyx_unpickle_, never called by itself
_LOSS = Spec(_numbers, build=_compiled_state, data=True)
_TREE = Spec(_tree, build=_tree_state, data=True)
_LOSS_MODULES = frozenset({"_loss", "_sgd_fast", "sgd_fast", "_sag_fast"})
_BINARY_TREES = frozenset({"_kd_tree", "_ball_tree", "_dist_metrics"})
_BINARY_CLASS = re.compile(
    r"(KDTree|BallTree|BinaryTree|[A-Za-z]*Distance|DistanceMetric|[A-Za-z]*Metric)(32|64)?"
)


def _sklearn(module: str, name: str) -> Spec | None:
    leaf = module.rpartition(".")[2]
    if leaf in _LOSS_MODULES:
        unpickled = name.removeprefix("__pyx_unpickle_")
        return _LOSS if unpickled == name else Spec(_unpickle(module, unpickled), build=_compiled_state)
    if leaf in _BINARY_TREES:
        if name == "newObj":
            return Spec(_new_of(module), build=_compiled_state)
        return COMPILED if _BINARY_CLASS.fullmatch(name) else None
    return _TREE if (module, name) == ("sklearn.tree._tree", "Tree") else None


# SciPy, XGBoost and LightGBM


def _xgboost_state(_node: Node, state: Value) -> None:
    """A Booster: `handle` holds the model as bytes, the rest is what Python adds."""
    for name, value in attributes_of(state):
        if name == "handle":
            fit(value is None or is_bytes(value), "the model as bytes")


def _lightgbm_state(_node: Node, state: Value) -> None:
    """A Booster: `handle` holds the model as LightGBM's own text."""
    for name, value in attributes_of(state):
        if name in {"handle", "model_str", "_handle"}:
            fit(value is None or is_text(value), "the model as text")


def _spline_state(node: Node, state: Value) -> None:
    """Attributes; since SciPy 1.18 (the spline itself, an empty array of its namespace)."""
    if is_kind(state, "dict"):
        _attributes(node, state)
        return
    parts = items_of(state, "the state")
    fit(len(parts) == 2 and is_kind(parts[0], "object") and is_kind(parts[1], "ndarray"), "(spline, array)")


ESTIMATORS: Mapping[str, Spec] = {
    "scipy.interpolate._bsplines.BSpline": Spec(new=_object, build=_spline_state, data=True),
    "xgboost.core.Booster": Spec(new=_object, build=_xgboost_state, data=True),
    "lightgbm.basic.Booster": Spec(new=_object, build=_lightgbm_state, data=True),
}
NATIVE: Mapping[str, Callable[[str, str], Spec | None]] = {"sklearn": _sklearn, "_loss": _sklearn}
