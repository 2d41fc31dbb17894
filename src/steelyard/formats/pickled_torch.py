"""Torch tensors in a pickle: the rebuild functions of PyTorch and the shape of their arguments.

A rebuild needs a storage, and only a torch archive can supply one.

Source: torch/_utils.py, torch/_tensor.py and torch/storage.py of PyTorch 2.13, checked against its files in the tests.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from steelyard.formats.pickle_values import FLOAT, Global, Misfit, Node, Spec, Value, node_of
from steelyard.formats.pickled_shapes import (
    MAX_DIMENSIONS,
    fit,
    is_int,
    is_kind,
    items_of,
    pairs_of,
    shape_of,
)

# Assigning these changes what a tensor does, not what it says about itself.
TENSOR_ATTRIBUTES = frozenset({"data", "grad", "requires_grad", "names", "real", "imag"})
SAFE_ATTRIBUTE = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
DEVICE = re.compile(r"(cpu|cuda|mps|meta|xpu|hpu|npu|xla|privateuseone)(:[0-9]{1,3})?")


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


def _torch_size(args: Sequence[Value]) -> Value:
    fit(len(args) == 1, "(shape,)")
    shape_of(args[0], "the size")
    return node_of("Size", fact=args[0])


def _torch_device(args: Sequence[Value]) -> Value:
    fit(1 <= len(args) <= 2 and isinstance(args[0], str), "(type[, index])")
    fit(bool(DEVICE.fullmatch(str(args[0]))) and (len(args) == 1 or is_int(args[1])), "a device")
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
    fit(is_int(offset), "an offset")
    size, stride = shape_of(args[2], "the size"), shape_of(args[3], "the stride")
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
    if value is None:
        return
    for name, _ in pairs_of(value, "the tensor bits"):
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
        fit(len(params) == 4 and is_int(params[3], 0, MAX_DIMENSIONS), "(scheme, scales, zero points, axis)")
        fit(
            is_kind(params[1], "tensor", "list") and is_kind(params[2], "tensor", "list"),
            "scales and zero points",
        )
    return node_of("tensor", fact=_in_storage(args, None))


def _sparse(args: Sequence[Value]) -> Value:
    fit(len(args) == 2 and is_kind(args[0], "layout"), "(layout, data)")
    parts = items_of(args[1], "the sparse data")
    fit(
        3 <= len(parts) <= 4 and is_kind(parts[0], "tensor") and is_kind(parts[1], "tensor"),
        "indices and values",
    )
    fit(all(is_kind(p, "tensor", "Size") or isinstance(p, tuple | bool | None) for p in parts[2:]), "a size")
    return node_of("sparse tensor", fact=parts[1].fact if isinstance(parts[1], Node) else None)


def _meta_tensor(args: Sequence[Value]) -> Value:
    fit(len(args) == 4 and type(args[3]) is bool, "(dtype, size, stride, grad)")
    shape_of(args[1], "the size")
    shape_of(args[2], "the stride")
    return node_of("meta tensor", fact=_dtype_name(args[0]))


def _nested(args: Sequence[Value]) -> Value:
    fit(len(args) == 4 and all(is_kind(arg, "tensor") for arg in args), "four tensors")
    return node_of("nested tensor")


TENSORS = ("tensor", "sparse tensor", "meta tensor", "nested tensor")


def _parameter(args: Sequence[Value]) -> Value:
    fit(len(args) == 3 and is_kind(args[0], *TENSORS) and type(args[1]) is bool, "(tensor, grad, hooks)")
    _no_hooks(args[2])
    return node_of("parameter")


def _attributes(state: Value) -> None:
    """State becomes attributes by setattr: a plain dict, or (dict, None), of public names."""
    if isinstance(state, tuple) or is_kind(state, "tuple"):
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

TORCH: Mapping[str, Spec] = {
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
