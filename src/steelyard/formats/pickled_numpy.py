"""NumPy in a pickle: arrays, dtypes, scalars, masked arrays, random generators, and functions kept as data.

Every array is checked: shape times item size is the number of bytes that follow, and no raw bytes stand behind a
dtype that holds references, because numpy would follow them as pointers.

Source: numpy/_core/src/multiarray/{methods,descriptor}.c, numpy/random/_pickle.py and numpy/ma/core.py of numpy
1.17 to 2.4, and ml_dtypes 0.5; checked against their files in the tests.
"""

import re
from collections.abc import Mapping, Sequence
from math import prod

from steelyard.formats.pickle_values import Global, Node, Spec, Value, node_of
from steelyard.formats.pickled_shapes import (
    fit,
    is_bytes,
    is_global,
    is_int,
    is_kind,
    is_plain,
    items_of,
    pairs_of,
    shape_of,
    size_of,
)

MAX_FIELDS = 64
MAX_RECORD_BYTES = 1 << 20
RECORD = "record"  # its size is in the state
DTYPE_CODE = re.compile(r"([biufcmMSUOV])([0-9]{1,6})|\?")
# Item sizes of the extension types of ml_dtypes, in bytes.
ML_DTYPES: Mapping[str, int] = {
    "bfloat16": 2, "float8_e3m4": 1, "float8_e4m3": 1, "float8_e4m3b11fnuz": 1, "float8_e4m3fn": 1,
    "float8_e4m3fnuz": 1, "float8_e5m2": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1, "float4_e2m1fn": 1,
    "float6_e2m3fn": 1, "float6_e3m2fn": 1, "int1": 1, "int2": 1, "int4": 1, "uint1": 1, "uint2": 1, "uint4": 1,
}  # fmt: skip
_HOLDS_REFERENCES = 0x0F  # ITEM_REFCOUNT, LIST_PICKLE, ITEM_IS_POINTER, NEEDS_INIT
_STRUCT_FLAGS = frozenset({0x00, 0x10, 0x80, 0x90})  # NEEDS_PYAPI, ALIGNED_STRUCT
ARRAY_CLASSES = frozenset(
    {
        "numpy.ndarray", "numpy.matrix", "numpy.matrixlib.defmatrix.matrix", "numpy.memmap",
        "numpy.core.memmap.memmap", "numpy.recarray", "numpy.rec.recarray", "numpy.core.records.recarray",
    }
)  # fmt: skip
SCALAR_TYPES = (
    "bool", "bool_", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "intc", "uintc",
    "intp", "uintp", "byte", "ubyte", "short", "ushort", "longlong", "ulonglong", "long", "ulong", "int_", "uint",
    "float16", "float32", "float64", "float128", "half", "single", "double", "longdouble", "complex64",
    "complex128", "complex256", "csingle", "cdouble", "clongdouble", "str_", "bytes_", "object_", "void",
    "datetime64", "timedelta64", "number", "integer", "signedinteger", "unsignedinteger", "inexact", "floating",
    "complexfloating", "flexible", "character", "generic", "record",
)  # fmt: skip
BIT_GENERATORS: Mapping[str, str] = {
    "MT19937": "numpy.random._mt19937", "PCG64": "numpy.random._pcg64", "PCG64DXSM": "numpy.random._pcg64",
    "Philox": "numpy.random._philox", "SFC64": "numpy.random._sfc64",
}  # fmt: skip
UFUNCS = (
    "abs", "absolute", "add", "arccos", "arccosh", "arcsin", "arcsinh", "arctan", "arctan2", "arctanh", "bitwise_and",
    "bitwise_count", "bitwise_or", "bitwise_xor", "cbrt", "ceil", "conj", "conjugate", "copysign", "cos", "cosh",
    "deg2rad", "degrees", "divide", "divmod", "equal", "exp", "exp2", "expm1", "fabs", "float_power", "floor",
    "floor_divide", "fmax", "fmin", "fmod", "frexp", "gcd", "greater", "greater_equal", "heaviside", "hypot", "invert",
    "isfinite", "isinf", "isnan", "isnat", "lcm", "ldexp", "left_shift", "less", "less_equal", "log", "log10", "log1p",
    "log2", "logaddexp", "logaddexp2", "logical_and", "logical_not", "logical_or", "logical_xor", "matmul", "maximum",
    "minimum", "mod", "modf", "multiply", "negative", "nextafter", "not_equal", "positive", "power", "rad2deg",
    "radians", "reciprocal", "remainder", "right_shift", "rint", "sign", "signbit", "sin", "sinh", "spacing", "sqrt",
    "square", "subtract", "tan", "tanh", "true_divide", "trunc",
)  # fmt: skip
# Functions of numbers that estimators keep as parameters (FunctionTransformer, SelectFromModel, aggregation).
REDUCTIONS = (
    "all", "amax", "amin", "any", "argmax", "argmin", "around", "array", "asarray", "average", "clip", "count_nonzero",
    "cumprod", "cumsum", "diff", "log", "max", "mean", "median", "min", "nan_to_num", "nanmax", "nanmean", "nanmedian",
    "nanmin", "nanstd", "nansum", "nanvar", "percentile", "prod", "ptp", "quantile", "ravel", "reshape", "round",
    "squeeze", "std", "sum", "transpose", "unique", "var", "where", "zeros_like", "ones_like",
)  # fmt: skip


# dtypes


def _dtype(args: Sequence[Value]) -> Value:
    """`numpy.dtype(code, False, True)`; the code may be a class of ml_dtypes or `numpy.record`."""
    fit(len(args) == 3, "(code, align, copy)")
    # Without a copy numpy hands out its one float64 for all, and a BUILD would change that for everyone.
    fit(tuple(args[1:]) == (0, 1), "no alignment and a copy")
    code = args[0]
    if isinstance(code, Global):
        if is_global(code, "numpy.record"):
            return node_of("dtype", fact=RECORD)
        fit(code.module == "ml_dtypes" and code.name in ML_DTYPES, "a class of ml_dtypes")
        return node_of("dtype", fact=code.name)
    if not isinstance(code, str):  # numpy.dtype((numpy.record, 'V16'))
        parts = items_of(code, "the record type")
        fit(
            len(parts) == 2 and is_global(parts[0], "numpy.record") and isinstance(parts[1], str),
            "(record, code)",
        )
        fit(str(parts[1]).startswith("V"), "the size of a record")
        code = str(parts[1])
    fit(bool(DTYPE_CODE.fullmatch(code)), "a type code such as 'f8'")
    return node_of("dtype", fact=code)


def item_bytes(code: object) -> int:
    """Bytes of one item of a dtype code; 0 for object arrays, which hold no raw bytes."""
    text = str(code)
    fit(text != RECORD, "a record whose fields are known")
    if text in ML_DTYPES:
        return ML_DTYPES[text]
    fit(bool(DTYPE_CODE.fullmatch(text)), "a known dtype")  # a refused call leaves none
    if text.startswith("O"):
        return 0
    if text == "?":
        return 1
    return int(text[1:]) * (4 if text[0] == "U" else 1)


def _dtype_state(node: Node, state: Value) -> None:
    """(version, order, sub-array, names, fields, item size, alignment, flags[, datetime unit]).

    Size and flags are checked: numpy takes them from the file, and a raw type flagged as holding
    references makes it follow arbitrary bytes as pointers.
    """
    parts = items_of(state, "the dtype state")
    if node.fact == RECORD:
        fit(len(parts) > 5 and is_int(parts[5], 0, MAX_RECORD_BYTES), "the size of a record")
        node.fact = f"V{parts[5]}"
    code = str(node.fact)
    fit(
        len(parts) in {8, 9} and parts[0] in {3, 4} and parts[1] in {"<", ">", "|", "="},
        "a plain dtype state",
    )
    fit(is_int(parts[6], -1, 64), "an alignment")
    if code.startswith("V"):
        _void_state(item_bytes(code), parts)
    else:
        fit(list(parts[2:5]) == [None, None, None], "no fields, names or sub-array")
        sized = code[0] in "SU"
        fit(
            parts[5] in ({item_bytes(code)} if sized else {-1, item_bytes(code)}),
            "the item size of its code",
        )
        fit(
            parts[7] == {"U": 8, "O": 63}.get(code[0], 0) or _is_extension(code, parts[7]),
            "the flags of its code",
        )
    fit(
        len(parts) == 8 or parts[8] is None or (code[0] in "mM" and is_plain(parts[8])),
        "a unit only on datetimes",
    )


def _is_extension(code: str, flags: Value) -> bool:
    return code in ML_DTYPES and isinstance(flags, int) and not flags & _HOLDS_REFERENCES


def _void_state(size: int, parts: Sequence[Value]) -> None:
    """A structure: names, and for each its dtype and offset, inside `size` bytes. No field holds references."""
    fit(parts[5] == size and parts[7] in _STRUCT_FLAGS, f"{size} bytes without references")
    if parts[2] is not None:
        base, shape = items_of(parts[2], "the sub-array")
        counts = shape_of(shape if not isinstance(shape, int) else (shape,), "the sub-array")
        fit(parts[3] is None and prod(counts) * _field_bytes(base) == size, f"a sub-array of {size} bytes")
        return
    if parts[3] is None:
        fit(parts[4] is None, "names with the fields")
        return
    names = items_of(parts[3], "the names")
    fields = dict(pairs_of(parts[4], "the fields"))
    fit(len(names) <= MAX_FIELDS and all(isinstance(name, str) for name in names), "names as text")
    fit(set(names) == set(fields) and len(set(names)) == len(names), "one field for each name")
    for name in names:
        field = items_of(fields[name], "a field")
        fit(2 <= len(field) <= 3 and is_int(field[1], 0, size), "(dtype, offset)")
        fit(len(field) == 2 or field[2] is None or isinstance(field[2], str), "a title as text")
        fit(int(str(field[1])) + _field_bytes(field[0]) <= size, f"fields inside {size} bytes")


def _field_bytes(dtype: Value) -> int:
    code = dtype.fact if isinstance(dtype, Node) and dtype.kind == "dtype" else "O"
    fit(not str(code).startswith("O"), "a dtype without references")
    return item_bytes(code)


# Arrays


def reconstruct(args: Sequence[Value]) -> Node:
    """`_reconstruct(ndarray, (0,), b'b')`: an empty array that a BUILD fills."""
    fit(len(args) == 3, "(ndarray, (0,), b'b')")
    array = args[0]
    fit(isinstance(array, Global) and str(array) in ARRAY_CLASSES, "numpy.ndarray")
    fit(args[1] == (0,) and args[2] in {b"b", "b"}, "(ndarray, (0,), b'b')")
    return node_of("ndarray")


def contents(shape: Value, dtype: Value, data: Value) -> None:
    """Check that `data` is what an array of that shape and dtype holds. Raises Misfit."""
    sizes = shape_of(shape, "the shape")
    fit(isinstance(dtype, Node) and dtype.kind == "dtype", "a dtype")
    width = item_bytes(dtype.fact if isinstance(dtype, Node) else "")
    if isinstance(data, Node) and data.kind == "list":
        fit(width == 0 and data.count == prod(sizes), "one list item for each element of an object array")
    else:
        fit(is_bytes(data) and size_of(data) == prod(sizes) * width, f"{prod(sizes) * width} bytes of data")
        fit(
            width != 0 or prod(sizes) == 0 or not str(getattr(dtype, "fact", "")).startswith("O"),
            "no raw bytes behind an object array",
        )


def array_state(_node: Node, state: Value) -> None:
    """(1, shape, dtype, order, data)."""
    parts = items_of(state, "the array state")
    fit(len(parts) == 5 and parts[0] == 1 and type(parts[3]) in {bool, int}, "(1, shape, dtype, order, data)")
    contents(parts[1], parts[2], parts[4])


def _scalar(args: Sequence[Value]) -> Value:
    fit(len(args) == 2, "(dtype, bytes)")
    contents((), args[0], args[1])
    return node_of("scalar")


def _frombuffer(args: Sequence[Value]) -> Value:
    fit(len(args) in {4, 5} and args[3] in {"C", "F", "K"}, "(bytes, dtype, shape, order)")
    fit(len(args) == 4 or args[4] is None, "no order of axes")
    contents(args[2], args[1], args[0])
    return node_of("ndarray")


def _masked(args: Sequence[Value]) -> Value:
    """`_mareconstruct(MaskedArray, ndarray, (0,), 'b')`."""
    fit(len(args) == 4, "(MaskedArray, ndarray, (0,), 'b')")
    fit(isinstance(args[0], Global) and str(args[0]) in MASKED, "numpy.ma.MaskedArray")
    fit(isinstance(args[1], Global) and str(args[1]) in ARRAY_CLASSES, "numpy.ndarray")
    fit(args[2] == (0,) and args[3] in {b"b", "b"}, "(MaskedArray, ndarray, (0,), 'b')")
    return node_of("ndarray")


MASKED = frozenset({"numpy.ma.MaskedArray", "numpy.ma.core.MaskedArray"})


def _masked_state(_node: Node, state: Value) -> None:
    """(1, shape, dtype, order, data, mask, fill value): the mask holds one byte for each element and field."""
    parts = items_of(state, "the array state")
    fit(
        len(parts) == 7 and parts[0] == 1 and type(parts[3]) in {bool, int},
        "(1, shape, dtype, order, data, mask)",
    )
    contents(parts[1], parts[2], parts[4])
    dtype = parts[2].fact if isinstance(parts[2], Node) else ""
    count = prod(shape_of(parts[1], "the shape"))
    fit(not str(dtype).startswith("V"), "a mask of one field")
    fit(is_bytes(parts[5]) and size_of(parts[5]) == count, f"a mask of {count} bytes")
    fit(parts[6] is None or is_plain(parts[6]), "a fill value")


# Random generators


def _generator_name(value: Value) -> bool:
    if isinstance(value, Global):
        return BIT_GENERATORS.get(value.name) == value.module
    return isinstance(value, str) and value in BIT_GENERATORS


def _bit_generator(args: Sequence[Value]) -> Value:
    fit(len(args) == 1 and _generator_name(args[0]), "the name of a bit generator")
    return node_of("bit generator")


def _bit_generator_state(_node: Node, state: Value) -> None:
    """A dict of words, or (dict, SeedSequence)."""
    if not is_kind(state, "dict"):
        parts = items_of(state, "the state")
        seeded = len(parts) == 2 and (parts[1] is None or is_kind(parts[1], "seed"))
        fit(seeded and is_kind(parts[0], "dict"), "(dict, SeedSequence)")


def _generator(args: Sequence[Value]) -> Value:
    """`__randomstate_ctor(bit generator[, constructor])`; older versions pass names."""
    fit(1 <= len(args) <= 2, "(bit generator)")
    fit(is_kind(args[0], "bit generator") or _generator_name(args[0]), "a bit generator")
    fit(
        len(args) == 1 or is_global(args[1], "numpy.random._pickle.__bit_generator_ctor"),
        "numpy's constructor",
    )
    return node_of("random generator")


def _generator_state(_node: Node, state: Value) -> None:
    fit(state is None or is_kind(state, "dict"), "a dict")


def _seed(args: Sequence[Value]) -> Value:
    fit(
        len(args) == 3 and is_global(args[0], "numpy.random.bit_generator.SeedSequence"),
        "(SeedSequence, checksum, None)",
    )
    fit(is_int(args[1], 0, 1 << 32) and args[2] is None, "(SeedSequence, checksum, None)")
    return node_of("seed")


def _seed_state(_node: Node, state: Value) -> None:
    parts = items_of(state, "the seed")
    fit(len(parts) == 5 and all(is_plain(part) for part in parts), "(entropy, spawned, pool, size, key)")
    fit(
        is_int(parts[1], 0, 1 << 32) and is_kind(parts[2], "ndarray") and is_int(parts[3], 0, 1 << 10),
        "a pool",
    )


def _ufunc(args: Sequence[Value]) -> Value:
    """`_ufunc_reconstruct(module, name)` imports `module`: both must be numpy's or scipy's own."""
    fit(len(args) == 2 and isinstance(args[0], str) and isinstance(args[1], str), "(module, name)")
    fit(args[0] in UFUNC_MODULES and args[1] in UFUNCS, "a ufunc of numpy")
    return node_of("ufunc")


UFUNC_MODULES = (
    "numpy", "numpy.core", "numpy.core.umath", "numpy.core._multiarray_umath", "numpy._core", "numpy._core.umath",
    "numpy._core._multiarray_umath",
)  # fmt: skip
_DATA = Spec(data=True)

NUMPY: Mapping[str, Spec] = {
    **dict.fromkeys(sorted(ARRAY_CLASSES | MASKED), _DATA),
    "numpy.dtype": Spec(_dtype, build=_dtype_state, data=True),
    **{
        f"numpy.{core}.{name}": spec
        for core in ("core", "_core")
        for name, spec in (
            ("multiarray._reconstruct", Spec(reconstruct, build=array_state)),
            ("multiarray.scalar", Spec(_scalar)),
            ("numeric._frombuffer", Spec(_frombuffer)),
            ("_ufunc_reconstruct", Spec(_ufunc)),
        )
    },
    "numpy.ma.core._mareconstruct": Spec(_masked, build=_masked_state),
    **{f"numpy.{name}": _DATA for name in SCALAR_TYPES},
    **{f"ml_dtypes.{name}": _DATA for name in ML_DTYPES},
    **{f"{module}.{name}": _DATA for module in UFUNC_MODULES for name in UFUNCS},
    **{f"numpy.{name}": _DATA for name in REDUCTIONS},
    "scipy._lib.array_api_compat.numpy._aliases.asarray": _DATA,
    **{f"{module}.{name}": _DATA for name, module in BIT_GENERATORS.items()},
    "numpy.random.bit_generator.SeedSequence": _DATA,
    "numpy.random._pickle.__bit_generator_ctor": Spec(_bit_generator, build=_bit_generator_state, data=True),
    "numpy.random._pickle.__randomstate_ctor": Spec(_generator, build=_generator_state),
    "numpy.random._pickle.__generator_ctor": Spec(_generator, build=_generator_state),
    "numpy.random.bit_generator.__pyx_unpickle_SeedSequence": Spec(_seed, build=_seed_state),
    "numpy.random._bit_generator.__pyx_unpickle_SeedSequence": Spec(_seed, build=_seed_state),
}
