"""Tables of data in a pickle: pandas frames, series, indexes, their dtypes and arrays.

All of pandas' classes take data and keep data. The list is written by hand: pandas moves classes between modules
(`pandas.core.frame.DataFrame` is `pandas.DataFrame` since 3.0), and each name stands here under both. Objects backed by
pyarrow are not listed: pyarrow rebuilds them with functions of its own.

Source: `__reduce__`, `__setstate__` and the unpickle functions of pandas 1.0 to 3.1.
"""

from collections.abc import Mapping, Sequence

from steelyard.formats.pickle_values import FLOAT, LONG, Global, Node, Spec, Value, node_of
from steelyard.formats.pickled_shapes import (
    attributes_of,
    fit,
    holding,
    is_data,
    is_global,
    is_int,
    is_kind,
    items_of,
    pairs_of,
)

MAX_ARGUMENTS = 16

_INDEXES = {
    "base": ("Index",), "range": ("RangeIndex",), "multi": ("MultiIndex",), "category": ("CategoricalIndex",),
    "datetimes": ("DatetimeIndex",), "timedeltas": ("TimedeltaIndex",), "period": ("PeriodIndex",),
    "interval": ("IntervalIndex",), "numeric": ("Int64Index", "UInt64Index", "Float64Index"),
}  # fmt: skip
_INTEGERS = tuple(f"{sign}Int{bits}Dtype" for sign in ("", "U") for bits in (8, 16, 32, 64))
_DTYPES = {
    "pandas.core.dtypes.dtypes": (
        "CategoricalDtype",
        "DatetimeTZDtype",
        "PeriodDtype",
        "IntervalDtype",
        "SparseDtype",
    ),
    "pandas.core.arrays.sparse.dtype": ("SparseDtype",),
    "pandas.core.arrays.sparse": ("SparseDtype",),
    "pandas.core.arrays.integer": _INTEGERS,
    "pandas.core.arrays.floating": ("Float32Dtype", "Float64Dtype"),
    "pandas.core.arrays.boolean": ("BooleanDtype",),
    "pandas.core.arrays.string_": ("StringDtype",),
    "pandas.core.arrays.numpy_": ("PandasDtype", "NumpyEADtype"),
}
_ARRAYS = {
    "pandas.core.arrays.categorical": ("Categorical",),
    "pandas.core.arrays.boolean": ("BooleanArray",),
    "pandas.core.arrays.integer": ("IntegerArray",),
    "pandas.core.arrays.floating": ("FloatingArray",),
    "pandas.core.arrays.datetimes": ("DatetimeArray",),
    "pandas.core.arrays.timedeltas": ("TimedeltaArray",),
    "pandas.core.arrays.period": ("PeriodArray",),
    "pandas.core.arrays.interval": ("IntervalArray",),
    "pandas.core.arrays.sparse.array": ("SparseArray",),
    "pandas.core.arrays.string_": ("StringArray",),
    "pandas.core.arrays.numpy_": ("PandasArray", "NumpyExtensionArray"),
}
_OFFSETS = (
    "Day", "Hour", "Minute", "Second", "Milli", "Micro", "Nano", "MonthEnd", "MonthBegin", "BusinessDay",
    "BusinessMonthEnd", "BusinessMonthBegin", "SemiMonthEnd", "SemiMonthBegin", "Week", "WeekOfMonth",
    "LastWeekOfMonth", "QuarterEnd", "QuarterBegin", "BQuarterEnd", "BQuarterBegin", "YearEnd", "YearBegin",
    "BYearEnd", "BYearBegin", "Easter",
)  # fmt: skip


def _of_data(kind: str, most: int = MAX_ARGUMENTS) -> Spec:
    """A class made of up to `most` parts, each data; its state is data too."""

    def make(args: Sequence[Value]) -> Value:
        fit(len(args) <= most, f"up to {most} arguments")
        # A range is a promise of numbers, and pandas would write them all out.
        fit(not any(is_kind(arg, "range") for arg in args), "no range")
        return holding(kind, args)

    return Spec(make, build=_state, data=True, new=make)


def _state(_node: Node, state: Value) -> None:
    """Attributes, or a tuple or list of data."""
    if is_kind(state, "dict"):
        attributes_of(state)
    elif not is_kind(state, "list"):
        fit(state is None or all(is_data(part) for part in items_of(state, "the state")), "data")


def _empty(args: Sequence[Value]) -> Value:
    fit(not args, "no arguments")
    return node_of("object")


def _new_index(args: Sequence[Value]) -> Value:
    """`_new_Index(class, {'data': ..., 'name': ...})`."""
    fit(len(args) == 2 and is_global(args[0], *INDEX_CLASSES), "(a class of indexes, dict)")
    values = [value for _, value in pairs_of(args[1], "the index")]
    fit(not any(is_kind(value, "range") for value in values), "no range")
    return holding("object", values)


def _backed(args: Sequence[Value]) -> Value:
    """`__pyx_unpickle_NDArrayBacked(class, checksum, state)`."""
    fit(
        len(args) == 3 and isinstance(args[0], Global) and is_global(args[0], *BACKED),
        "(array class, checksum, state)",
    )
    fit(is_int(args[1], 0, 1 << 32), "a checksum")
    return holding("object", (args[2],))


def _block(args: Sequence[Value]) -> Value:
    """`_unpickle_block(values, placement, dimensions)`."""
    fit(
        len(args) == 3 and is_kind(args[0], "ndarray", "object") and is_int(args[2], 0, 2),
        "(values, placement, ndim)",
    )
    fit(is_kind(args[1], "slice", "ndarray"), "a placement")
    return holding("object", args)


def _new_block(args: Sequence[Value]) -> Value:
    """`partial(new_block, ndim=n)(values, placement)`: how pandas 1.3 writes a block."""
    fit(len(args) == 2 and is_kind(args[0], "ndarray", "object"), "(values, placement)")
    fit(is_kind(args[1], "slice", "ndarray"), "a placement")
    return holding("object", args)


_NEW_BLOCK = "pandas.core.internals.blocks.new_block"
_BLOCK_CALL = Spec(_new_block)


def _partial(args: Sequence[Value]) -> Value:
    """`functools.partial` of the one function that pandas 1.3 wraps."""
    fit(len(args) == 1 and is_global(args[0], _NEW_BLOCK), f"({_NEW_BLOCK},)")
    return node_of("partial", _BLOCK_CALL)


def _partial_state(_node: Node, state: Value) -> None:
    """(function, no arguments, {"ndim": n}, no attributes): the same function again, and one number."""
    function, positional, keywords, attributes = _four(state)
    fit(is_global(function, _NEW_BLOCK) and attributes is None, f"the state of a partial of {_NEW_BLOCK}")
    fit(not items_of(positional, "the arguments"), "no arguments")
    pairs = pairs_of(keywords, "the keywords")
    fit([name for name, _ in pairs] == ["ndim"] and is_int(pairs[0][1], 1, 2), "ndim of 1 or 2")


def _four(state: Value) -> Sequence[Value]:
    parts = items_of(state, "the state")
    fit(len(parts) == 4, "a state of four parts")
    return parts


def _moment(args: Sequence[Value]) -> Value:
    """A time stamp, time span or period: numbers, text, a frequency, a time zone."""
    for arg in args:
        known = arg is None or arg is FLOAT or arg is LONG or isinstance(arg, int | str)
        fit(
            known or is_kind(arg, "object", "offset", "timezone", "timedelta", "enum"),
            "numbers and a time zone",
        )
    return holding("instant", args)


_CLASS = Spec(new=_empty, build=_state, data=True)
_FRAME = {f"{module}.{name}": _CLASS for module, name in (
    ("pandas", "DataFrame"), ("pandas.core.frame", "DataFrame"), ("pandas", "Series"), ("pandas.core.series", "Series"),
)}  # fmt: skip
INDEX_CLASSES = frozenset(
    f"{module}.{name}"
    for leaf, names in _INDEXES.items()
    for name in names
    for module in ("pandas", f"pandas.core.indexes.{leaf}")
)
_ARRAY_NAMES = frozenset(
    f"{prefix}.{name}"
    for module, names in _ARRAYS.items()
    for name in names
    for prefix in (module, "pandas.arrays", "pandas")
)
_DTYPE_NAMES = frozenset(
    f"{prefix}.{name}" for module, names in _DTYPES.items() for name in names for prefix in (module, "pandas")
)
BACKED = _ARRAY_NAMES
_MOMENT = Spec(_moment, build=_state, data=True)

FRAMES: Mapping[str, Spec] = {
    **_FRAME,
    **{name: _of_data("object") for name in sorted(_ARRAY_NAMES | _DTYPE_NAMES)},
    **dict.fromkeys(sorted(INDEX_CLASSES), _CLASS),
    **{f"pandas._libs.tslibs.offsets.{name}": _of_data("offset") for name in _OFFSETS},
    **{f"pandas.core.indexes.{leaf}": Spec(_new_index) for leaf in (
        "base._new_Index", "datetimes._new_DatetimeIndex", "interval._new_IntervalIndex",
        "period._new_PeriodIndex", "timedeltas._new_TimedeltaIndex",
    )},
    "pandas.core.indexes.frozen.FrozenList": _of_data("object", 1),
    "pandas.core.internals.managers.BlockManager": _of_data("object", 3),
    "pandas.core.internals.managers.SingleBlockManager": _of_data("object", 3),
    "pandas._libs.internals._unpickle_block": Spec(_block),
    _NEW_BLOCK: Spec(data=True),
    "functools.partial": Spec(_partial, build=_partial_state),
    "pandas._libs.arrays.__pyx_unpickle_NDArrayBacked": Spec(_backed, build=_state),
    "pandas._libs.sparse.IntIndex": _of_data("object", 3),
    "pandas._libs.sparse.BlockIndex": _of_data("object", 4),
    "pandas._libs.interval.Interval": _of_data("instant", 3),
    "pandas.Interval": _of_data("instant", 3),
    "pandas._libs.missing.NA": Spec(data=True),
    "pandas.NA": Spec(data=True),
    "pandas._libs.tslibs.nattype.__nat_unpickle": _MOMENT,
    "pandas._libs.tslibs.nattype._nat_unpickle": _MOMENT,
    "pandas._libs.tslibs.timestamps._unpickle_timestamp": _MOMENT,
    "pandas._libs.tslibs.timedeltas._timedelta_unpickle": _MOMENT,
    "pandas._libs.tslibs.period.__pyx_unpickle_PeriodMixin": Spec(_backed, build=_state),
    **{
        f"{module}.{name}": _MOMENT
        for name, leaf in (("Timestamp", "timestamps"), ("Timedelta", "timedeltas"), ("Period", "period"))
        for module in ("pandas", f"pandas._libs.tslibs.{leaf}")
    },
}  # fmt: skip
