"""The globals a pickle may name, and the shape each call must have.

Default-deny: exact (module, name) pairs, no prefixes, no wildcards. Three tiers: plain data, numpy arrays,
torch tensors. A shape rule receives symbols (`pickle_values`), raises Misfit, and returns the symbol of the
result. Tensor rules need a storage, and only a torch archive can supply one.

Sources: `object.__reduce_ex__` of each class as CPython 3.11, numpy 2 and torch 2.13 write it (read and
checked against their files in the tests).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from steelyard.formats.pickle_values import FLOAT, LEAVES, Blob, Global, Misfit, Node, Spec, Value, node_of

MAX_DIMENSIONS = 64
MAX_ELEMENTS = 1 << 48
MAX_KEY_WEIGHT = 4096  # hashing a tuple walks all it unfolds to, each time
# Assigning these changes what a tensor does, not what it says about itself.
TENSOR_ATTRIBUTES = frozenset({"data", "grad", "requires_grad", "names", "real", "imag"})
SAFE_ATTRIBUTE = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
NUMPY_DTYPE = re.compile(r"([biufcmMSUO])([0-9]{1,6})|\?")
DEVICE = re.compile(r"(cpu|cuda|mps|meta|xpu|hpu|npu|xla|privateuseone)(:[0-9]{1,3})?")
DECIMAL = re.compile(r"[+-]?([0-9.]{1,4096}(E[+-]?[0-9]{1,18})?|Infinity|s?NaN[0-9]{0,64})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Storage:
    """Typed or untyped torch storage: `dtype` absent when untyped, `numel` in elements (bytes if untyped)."""

    dtype: str | None
    numel: int
    size_bytes: int


ELEMENT_BYTES: Mapping[str, int] = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1,
    "uint8": 1, "uint16": 2, "uint32": 4, "uint64": 8, "bool": 1, "complex32": 4, "complex64": 8, "complex128": 16,
    "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
    "float4_e2m1fn_x2": 1, "qint8": 1, "quint8": 1, "qint32": 4, "quint4x2": 1, "quint2x4": 1,
}  # fmt: skip

STORAGE_DTYPES: Mapping[str, str] = {
    "DoubleStorage": "float64", "FloatStorage": "float32", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "LongStorage": "int64", "IntStorage": "int32", "ShortStorage": "int16", "CharStorage": "int8",
    "ByteStorage": "uint8", "BoolStorage": "bool", "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128", "QInt8Storage": "qint8", "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32", "QUInt4x2Storage": "quint4x2", "QUInt2x4Storage": "quint2x4",
}  # fmt: skip


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


def _is_kind(value: Value, *kinds: str) -> bool:
    return isinstance(value, Node) and value.kind in kinds


def _is_int(value: Value, low: int = 0, high: int = MAX_ELEMENTS) -> bool:
    return type(value) is int and low <= value <= high


def _is_plain(value: Value) -> bool:
    return (
        type(value) in LEAVES or isinstance(value, tuple) or (isinstance(value, Node) and not value.carries)
    )


def _is_bytes(value: Value) -> bool:
    return isinstance(value, bytes) or (isinstance(value, Blob) and value.kind in {"bytes", "bytearray"})


def _size_of(value: Value) -> int:
    return value.size if isinstance(value, Blob) else len(value) if isinstance(value, bytes) else 0


def _shape_of(value: Value, what: str) -> list[int]:
    """A tensor shape or stride: a tuple, or torch.Size, of counts."""
    source = value.fact if isinstance(value, Node) and value.kind == "Size" else value
    sizes = [size for size in items_of(source, what) if type(size) is int and 0 <= size <= MAX_ELEMENTS]
    fit(len(sizes) == len(items_of(source, what)) <= MAX_DIMENSIONS, f"counts for {what}")
    fit(prod(size for size in sizes if size) <= MAX_ELEMENTS**2, f"a {what} that can exist")
    return sizes


# Plain data


def _bytes_of_text(args: Sequence[Value]) -> Value:
    """`_codecs.encode(text, 'latin1')`, how protocols 0-2 write bytes. Other codecs can decompress or unhex."""
    fit(len(args) == 2 and args[1] == "latin1", "(text, 'latin1')")
    text = args[0]
    if isinstance(text, str):
        fit(all(ord(letter) < 256 for letter in text), "text that latin1 can encode")
        return text.encode("latin1")
    if isinstance(text, Blob) and text.kind == "text":
        return Blob("bytes", text.size)
    raise Misfit("expected (text, 'latin1')")


def _bytes(args: Sequence[Value]) -> Value:
    fit(not args, "no argument: bytes(n) allocates n bytes")
    return b""


def _bytearray(args: Sequence[Value]) -> Value:
    if not args:
        return Blob("bytearray", 0)
    if len(args) == 2:
        text = args[0]
        fit(args[1] in {"latin-1", "latin1"}, "(text, 'latin-1')")
        fit(isinstance(text, str) or (isinstance(text, Blob) and text.kind == "text"), "(text, 'latin-1')")
        return Blob("bytearray", len(text) if isinstance(text, str) else _size_of(text))
    fit(len(args) == 1 and _is_bytes(args[0]), "(bytes,): bytearray(n) allocates n bytes")
    return Blob("bytearray", _size_of(args[0]))


def _set(kind: str) -> Callable[[Sequence[Value]], Value]:
    def call(args: Sequence[Value]) -> Value:
        fit(not args or (len(args) == 1 and _is_kind(args[0], "list")), "() or (list,)")
        node = node_of(kind)
        if args and isinstance(args[0], Node):
            node.weight, node.depth = args[0].weight, args[0].depth
            fit(not isinstance(args[0].fact, int) or args[0].fact <= MAX_KEY_WEIGHT, "small items")
        return node

    return call


def _complex(args: Sequence[Value]) -> Value:
    fit(len(args) == 2 and all(part is FLOAT for part in args), "(float, float)")
    return node_of("complex")


def _ints(kind: str, least: int, most: int) -> Callable[[Sequence[Value]], Value]:
    def call(args: Sequence[Value]) -> Value:
        fit(least <= len(args) <= most, f"{least} to {most} integers")
        fit(all(arg is None or (type(arg) is int and abs(arg) < 1 << 62) for arg in args), "integers")
        return node_of(kind)

    return call


def _decimal(args: Sequence[Value]) -> Value:
    fit(len(args) == 1 and isinstance(args[0], str) and bool(DECIMAL.fullmatch(args[0])), "(number as text,)")
    return node_of("Decimal")


def _instant(size_bytes: int) -> Callable[[Sequence[Value]], Value]:
    def call(args: Sequence[Value]) -> Value:
        fit(len(args) in {1, 2} and isinstance(args[0], bytes), f"({size_bytes} bytes[, timezone])")
        fit(_size_of(args[0]) == size_bytes, f"{size_bytes} bytes")
        fit(len(args) == 1 or _is_kind(args[1], "timezone"), "a fixed timezone")
        return node_of("instant")

    return call


def _timezone(args: Sequence[Value]) -> Value:
    fit(1 <= len(args) <= 2 and _is_kind(args[0], "timedelta"), "(timedelta[, name])")
    fit(len(args) == 1 or isinstance(args[1], str), "a name as text")
    return node_of("timezone")


def _ordered(args: Sequence[Value]) -> Value:
    fit(not args or (len(args) == 1 and _is_kind(args[0], "list")), "() or a list of pairs")
    node = node_of("OrderedDict")
    if args and isinstance(args[0], Node):
        node.weight, node.depth = args[0].weight, args[0].depth
        for pair in args[0].kept or []:
            fit((isinstance(pair, tuple) and len(pair) == 2) or _is_kind(pair, "list", "tuple"), "pairs")
    return node


def _ordered_state(_node: Node, state: Value) -> None:
    """`module.state_dict()` carries one attribute, `_metadata`: module path -> {'version': n}."""
    fit(isinstance(state, Node) and state.kind == "dict", "a dict")
    kept = state.kept or [] if isinstance(state, Node) else []
    fit(kept[0::2] == ["_metadata"] and len(kept) == 2, "the one attribute _metadata")
    fit(_is_kind(kept[1], "OrderedDict", "dict"), "a mapping for _metadata")


def _counter(args: Sequence[Value]) -> Value:
    fit(not args or (len(args) == 1 and _is_kind(args[0], "dict")), "() or (dict,)")
    node = node_of("Counter")
    if args and isinstance(args[0], Node):
        node.weight, node.depth = args[0].weight, args[0].depth
    return node


FACTORIES = frozenset({"list", "dict", "set", "int", "float", "str", "bool", "tuple"})


def _defaultdict(args: Sequence[Value]) -> Value:
    """The factory is called on every missing key, so only empty builtins may be one."""
    fit(len(args) <= 1, "() or (factory,)")
    if args and args[0] is not None:
        factory = args[0]
        fit(
            isinstance(factory, Global) and factory.module == "builtins" and factory.name in FACTORIES,
            f"a factory out of {', '.join(sorted(FACTORIES))}",
        )
    return node_of("defaultdict")


def _deque(args: Sequence[Value]) -> Value:
    fit(not args or items_of(args[0], "the items") == (), "() or ((), maxlen)")
    fit(len(args) < 2 or (len(args) == 2 and _is_int(args[1])), "a maxlen")
    return node_of("deque")


# numpy


def _np_dtype(args: Sequence[Value]) -> Value:
    """`numpy.dtype(code, False, True)`. Structured and void types can hide object fields: not listed."""
    fit(len(args) == 3 and isinstance(args[0], str), "(code, align, copy)")
    # Without a copy numpy hands out its one float64 for all, and a BUILD would change that for everyone.
    fit(tuple(args[1:]) == (0, 1), "no alignment and a copy")
    code = args[0] if isinstance(args[0], str) else ""
    fit(bool(NUMPY_DTYPE.fullmatch(code)), "a scalar type code such as 'f8'")
    return node_of("dtype", fact=code)


def _np_item_bytes(code: object) -> int:
    """Bytes of one item of a dtype code; 0 for object arrays, which hold no raw bytes."""
    text = str(code)
    if text.startswith("O"):
        return 0
    if text == "?":
        return 1
    return int(text[1:]) * (4 if text[0] == "U" else 1)


def _np_dtype_state(node: Node, state: Value) -> None:
    """(version, order, None, None, None, item size, alignment, flags[, datetime unit]).

    Size and flags are checked: numpy takes them from the file, and a raw type flagged as holding
    references makes it follow arbitrary bytes as pointers.
    """
    code = str(node.fact)
    parts = items_of(state, "the dtype state")
    fit(
        len(parts) in {8, 9} and parts[0] in {3, 4} and parts[1] in {"<", ">", "|", "="},
        "a plain dtype state",
    )
    fit(list(parts[2:5]) == [None, None, None], "no fields, names or sub-array")
    sized = code[0] in "SU"
    fit(
        parts[5] in ({_np_item_bytes(code)} if sized else {-1, _np_item_bytes(code)}),
        "the item size of its code",
    )
    fit(_is_int(parts[6], -1, 16), "an alignment")
    fit(parts[7] == {"U": 8, "O": 63}.get(code[0], 0), "the flags of its code")
    fit(len(parts) == 8 or (code[0] in "mM" and _is_plain(parts[8])), "a unit only on datetimes")


def _np_reconstruct(args: Sequence[Value]) -> Value:
    fit(len(args) == 3, "(ndarray, (0,), b'b')")
    array = args[0]
    fit(isinstance(array, Global) and str(array) == "numpy.ndarray", "numpy.ndarray")
    fit(args[1] == (0,) and args[2] in {b"b", "b"}, "(ndarray, (0,), b'b')")
    return node_of("ndarray")


def _np_contents(shape: Value, dtype: Value, data: Value) -> None:
    sizes = _shape_of(shape, "the shape")
    fit(isinstance(dtype, Node) and dtype.kind == "dtype", "a dtype")
    width = _np_item_bytes(dtype.fact if isinstance(dtype, Node) else "")
    if isinstance(data, Node) and data.kind == "list":
        fit(width == 0 and data.count == prod(sizes), "one list item for each element of an object array")
    else:
        fit(_is_bytes(data) and _size_of(data) == prod(sizes) * width, f"{prod(sizes) * width} bytes of data")
        fit(width != 0 or prod(sizes) == 0, "no raw bytes behind an object array")


def _np_array_state(_node: Node, state: Value) -> None:
    parts = items_of(state, "the array state")
    fit(len(parts) == 5 and parts[0] == 1 and type(parts[3]) in {bool, int}, "(1, shape, dtype, order, data)")
    _np_contents(parts[1], parts[2], parts[4])


def _np_scalar(args: Sequence[Value]) -> Value:
    fit(len(args) == 2, "(dtype, bytes)")
    _np_contents((), args[0], args[1])
    return node_of("scalar")


def _np_frombuffer(args: Sequence[Value]) -> Value:
    fit(len(args) == 4 and args[3] in {"C", "F"}, "(bytes, dtype, shape, order)")
    _np_contents(args[2], args[1], args[0])
    return node_of("ndarray")


# torch


def _torch_size(args: Sequence[Value]) -> Value:
    fit(len(args) == 1, "(shape,)")
    _shape_of(args[0], "the size")
    return node_of("Size", fact=args[0])


def _torch_device(args: Sequence[Value]) -> Value:
    fit(1 <= len(args) <= 2 and isinstance(args[0], str), "(type[, index])")
    fit(bool(DEVICE.fullmatch(str(args[0]))) and (len(args) == 1 or _is_int(args[1])), "a device")
    return node_of("device")


def _torch_layout(args: Sequence[Value]) -> Value:
    layouts = {
        f"torch.{name}"
        for name in ("strided", "sparse_coo", "sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc")
    }
    fit(len(args) == 1 and args[0] in layouts, "a layout name")
    return node_of("layout")


def _dtype_name(value: Value) -> str:
    fit(
        isinstance(value, Global) and value.module == "torch" and value.name in ELEMENT_BYTES, "a torch dtype"
    )
    return value.name if isinstance(value, Global) else ""


def _in_storage(args: Sequence[Value], dtype: str | None) -> str:
    """The first four arguments of every rebuild: storage, offset, size, stride. Returns the dtype.

    The view must lie inside the storage, counted in elements.
    """
    fit(len(args) >= 4, "(storage, offset, size, stride, ...)")
    storage = args[0].fact if isinstance(args[0], Node) and args[0].kind == "storage" else None
    if not isinstance(storage, Storage):
        raise Misfit("expected a storage of this archive")
    name = dtype or storage.dtype
    if name is None:
        raise Misfit("expected a dtype for an untyped storage")
    offset = args[1]
    fit(_is_int(offset), "an offset")
    size, stride = _shape_of(args[2], "the size"), _shape_of(args[3], "the stride")
    fit(len(size) == len(stride), "as many strides as sizes")
    if all(size):
        last = sum((count - 1) * step for count, step in zip(size, stride, strict=True))
        needed = ((offset if isinstance(offset, int) else 0) + last + 1) * ELEMENT_BYTES[name]
        fit(
            needed <= storage.size_bytes, f"a view inside {storage.size_bytes} bytes of storage, not {needed}"
        )
    return name


def _no_hooks(value: Value) -> None:
    """Backward hooks are callables run during training: only an empty OrderedDict or None is data."""
    empty = isinstance(value, Node) and value.kind == "OrderedDict" and value.count == 0 and value.weight == 1
    fit(value is None or empty, "no backward hooks")
    if isinstance(value, Node):
        value.held = True


def _bits(value: Value) -> None:
    fit(value is None or _is_kind(value, "dict"), "a dict of tensor bits")
    for name in (value.kept or [])[0::2] if isinstance(value, Node) else []:
        fit(name in {"conj", "neg"}, "the bits conj and neg")


def _tensor(args: Sequence[Value]) -> Value:
    fit(len(args) == 4, "(storage, offset, size, stride)")
    return node_of("tensor", fact=_in_storage(args, None))


def _tensor_v2(args: Sequence[Value]) -> Value:
    fit(len(args) in {6, 7} and type(args[4]) is bool, "(storage, offset, size, stride, grad, hooks[, bits])")
    _no_hooks(args[5])
    _bits(args[6] if len(args) == 7 else None)
    return node_of("tensor", fact=_in_storage(args, None))


def _tensor_v3(args: Sequence[Value]) -> Value:
    fit(
        len(args) in {7, 8} and type(args[4]) is bool,
        "(storage, offset, size, stride, grad, hooks, dtype[, bits])",
    )
    _no_hooks(args[5])
    _bits(args[7] if len(args) == 8 else None)
    return node_of("tensor", fact=_in_storage(args, _dtype_name(args[6])))


def _qtensor(args: Sequence[Value]) -> Value:
    fit(len(args) == 7 and type(args[5]) is bool, "(storage, offset, size, stride, quantiser, grad, hooks)")
    _no_hooks(args[6])
    params = items_of(args[4], "the quantiser")
    scheme = params[0] if params else None
    fit(isinstance(scheme, Global) and scheme.name in QSCHEMES, "a quantisation scheme")
    if len(params) == 3:
        fit(params[1] is FLOAT and type(params[2]) is int, "(scheme, scale, zero point)")
    else:
        fit(len(params) == 4 and _is_int(params[3], 0, MAX_DIMENSIONS), "(scheme, scales, zero points, axis)")
        fit(
            _is_kind(params[1], "tensor", "list") and _is_kind(params[2], "tensor", "list"),
            "scales and zero points",
        )
    return node_of("tensor", fact=_in_storage(args, None))


def _sparse(args: Sequence[Value]) -> Value:
    fit(len(args) == 2 and _is_kind(args[0], "layout"), "(layout, data)")
    parts = items_of(args[1], "the sparse data")
    fit(
        3 <= len(parts) <= 4 and _is_kind(parts[0], "tensor") and _is_kind(parts[1], "tensor"),
        "indices and values",
    )
    fit(all(_is_kind(p, "tensor", "Size") or isinstance(p, tuple | bool | None) for p in parts[2:]), "a size")
    return node_of("sparse tensor", fact=parts[1].fact if isinstance(parts[1], Node) else None)


def _meta_tensor(args: Sequence[Value]) -> Value:
    fit(len(args) == 4 and type(args[3]) is bool, "(dtype, size, stride, grad)")
    _shape_of(args[1], "the size")
    _shape_of(args[2], "the stride")
    return node_of("meta tensor", fact=_dtype_name(args[0]))


def _nested(args: Sequence[Value]) -> Value:
    fit(len(args) == 4 and all(_is_kind(arg, "tensor") for arg in args), "four tensors")
    return node_of("nested tensor")


TENSORS = ("tensor", "sparse tensor", "meta tensor", "nested tensor")


def _parameter(args: Sequence[Value]) -> Value:
    fit(len(args) == 3 and _is_kind(args[0], *TENSORS) and type(args[1]) is bool, "(tensor, grad, hooks)")
    _no_hooks(args[2])
    return node_of("parameter")


def _attributes(state: Value) -> None:
    """State becomes attributes by setattr: a plain dict, or (dict, None), of public names."""
    if isinstance(state, tuple) or _is_kind(state, "tuple"):
        parts = items_of(state, "the state")
        fit(len(parts) == 2 and parts[1] is None, "(dict, None)")
        state = parts[0]
    if state is None:
        return
    fit(isinstance(state, Node) and state.kind == "dict", "a dict")
    kept = (state.kept or []) if isinstance(state, Node) else []
    fit(isinstance(state, Node) and state.count == len(kept), "fewer attributes")
    for name in kept[0::2]:
        fit(isinstance(name, str) and bool(SAFE_ATTRIBUTE.fullmatch(name)), "public attribute names")
        fit(name not in TENSOR_ATTRIBUTES, "attribute names that tensors do not have")


def _parameter_with_state(args: Sequence[Value]) -> Value:
    fit(len(args) == 4, "(tensor, grad, hooks, state)")
    _attributes(args[3])
    return _parameter(args[:3])


def _from_type(args: Sequence[Value]) -> Value:
    """`_rebuild_from_type_v2(function, class, arguments, state)`: a call in disguise, so its inside is judged."""
    fit(len(args) == 4, "(rebuild function, tensor class, arguments, state)")
    function, kind = args[0], args[1]
    fit(isinstance(function, Global) and str(function) in REBUILDS, "a listed rebuild function")
    fit(
        isinstance(kind, Global) and str(kind) in {"torch.Tensor", "torch.nn.parameter.Parameter"},
        "a tensor class",
    )
    _attributes(args[3])
    call = function.spec.call if isinstance(function, Global) and function.spec else None
    if call is None:
        raise Misfit("expected a listed rebuild function")
    return call(items_of(args[2], "the arguments"))


QSCHEMES = frozenset(
    {
        "per_tensor_affine",
        "per_tensor_symmetric",
        "per_channel_affine",
        "per_channel_symmetric",
        "per_channel_affine_float_qparams",
    }
)

_NAMED_ONLY = Spec()
_DATA = Spec(data=True)
_DTYPE = Spec(_np_dtype, build=_np_dtype_state)
_SCALAR = Spec(_np_scalar)
_RECONSTRUCT = Spec(_np_reconstruct, build=_np_array_state)
_FROMBUFFER = Spec(_np_frombuffer)

REBUILDS: Mapping[str, Spec] = {
    "torch._utils._rebuild_tensor": Spec(_tensor),
    "torch._utils._rebuild_tensor_v2": Spec(_tensor_v2),
    "torch._utils._rebuild_tensor_v3": Spec(_tensor_v3),
    "torch._utils._rebuild_qtensor": Spec(_qtensor),
    "torch._utils._rebuild_sparse_tensor": Spec(_sparse),
    "torch._utils._rebuild_meta_tensor_no_storage": Spec(_meta_tensor),
    "torch._utils._rebuild_nested_tensor": Spec(_nested),
    "torch._utils._rebuild_parameter": Spec(_parameter),
    "torch._utils._rebuild_parameter_with_state": Spec(_parameter_with_state),
}

_PLAIN: Mapping[str, Spec] = {
    "_codecs.encode": Spec(_bytes_of_text),
    "builtins.bytes": Spec(_bytes),
    "builtins.bytearray": Spec(_bytearray),
    "builtins.set": Spec(_set("set")),
    "builtins.frozenset": Spec(_set("frozenset")),
    "builtins.complex": Spec(_complex),
    "builtins.range": Spec(_ints("range", 3, 3)),
    "builtins.slice": Spec(_ints("slice", 3, 3)),
    **{f"builtins.{name}": _NAMED_ONLY for name in sorted(FACTORIES - {"set"})},
    "collections.OrderedDict": Spec(_ordered, build=_ordered_state),
    "collections.Counter": Spec(_counter),
    "collections.defaultdict": Spec(_defaultdict),
    "collections.deque": Spec(_deque),
    "datetime.datetime": Spec(_instant(10)),
    "datetime.date": Spec(_instant(4)),
    "datetime.time": Spec(_instant(6)),
    "datetime.timedelta": Spec(_ints("timedelta", 3, 3)),
    "datetime.timezone": Spec(_timezone),
    "decimal.Decimal": Spec(_decimal),
}

_NUMPY: Mapping[str, Spec] = {
    "numpy.ndarray": _NAMED_ONLY,
    "numpy.dtype": _DTYPE,
    **{
        f"numpy.{core}.{name}": spec
        for core in ("core", "_core")
        for name, spec in (
            ("multiarray._reconstruct", _RECONSTRUCT),
            ("multiarray.scalar", _SCALAR),
            ("numeric._frombuffer", _FROMBUFFER),
        )
    },
}

_TORCH: Mapping[str, Spec] = {
    **REBUILDS,
    "torch._tensor._rebuild_from_type_v2": Spec(_from_type),
    "torch.Size": Spec(_torch_size),
    "torch.device": Spec(_torch_device),
    "torch.serialization._get_layout": Spec(_torch_layout),
    "torch.Tensor": _NAMED_ONLY,
    "torch.nn.parameter.Parameter": _NAMED_ONLY,
    "torch.storage.UntypedStorage": _NAMED_ONLY,
    **{f"torch.{name}": _NAMED_ONLY for name in STORAGE_DTYPES},
    **{f"torch.{name}": _DATA for name in ELEMENT_BYTES},
    **{f"torch.{name}": _DATA for name in sorted(QSCHEMES)},
}

# Keyed by (module, name): the class sits in the last part, so "a.b" + "c" never equals "a" + "b.c".
ALLOWED: Mapping[tuple[str, str], Spec] = {
    (full.rpartition(".")[0], full.rpartition(".")[2]): spec
    for full, spec in {**_PLAIN, **_NUMPY, **_TORCH}.items()
}
