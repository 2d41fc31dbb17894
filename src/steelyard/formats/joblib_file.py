"""joblib files: pickles with the raw bytes of arrays between their opcodes.

`joblib.dump` writes each array as a NumpyArrayWrapper (NEWOBJ, BUILD) and its bytes right behind the BUILD; the loader
reads them there and goes on with the next opcode. Bytes behind the BUILD:

    plain arrays    1 byte n, n bytes 0xff (since joblib 1.2, so that the data begins at a multiple of 16), then
                    product(shape) * item size bytes
    object arrays   one pickle, read by pickle.load

`pickle.load` knows no wrapper and would follow those bytes as opcodes: what is data for one loader may not be a
program for the other. So every such file is followed a second time the way `pickle.load` would (`read_plainly`). The
padding byte, 1 to 16, is no opcode and ends that reading at the first array; files before 1.2 have none.

Source: joblib/numpy_pickle.py of joblib 0.11 to 1.5. The format before 0.10, one .npy file for each array beside the
pickle, is refused (NDArrayWrapper is not listed).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from steelyard.formats.base import ByteSource, Finding
from steelyard.formats.pickle_machine import Slice, run
from steelyard.formats.pickle_values import Misfit, Node, Spec, Value, node_of
from steelyard.formats.pickled_numpy import ARRAY_CLASSES, item_bytes
from steelyard.formats.pickled_shapes import attributes_of, fit, is_global, is_int, is_kind, shape_of

MAX_ALIGNMENT = 255
MAX_OBJECT_ARRAY_BYTES = 1 << 26
WRAPPER = ("joblib.numpy_pickle", "NumpyArrayWrapper")
_ATTRIBUTES = frozenset({"subclass", "shape", "order", "dtype", "allow_mmap", "numpy_array_alignment_bytes"})
# What a plain reading may break on: pickle.load stops there too. Any other finding of it is an attack.
_STOPS = frozenset(
    {
        "pickle/opcode", "pickle/stack", "pickle/truncated", "pickle/no-stop", "pickle/trailing", "pickle/leftover",
        "pickle/proto", "pickle/text", "pickle/noncanonical", "pickle/target", "pickle/build", "pickle/call",
        "pickle/cycle", "pickle/key", "pickle/nested",
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Described:
    """What a wrapper says of the array behind it: elements, dtype code, and the padding's alignment if any."""

    count: int
    code: str
    alignment: int | None


def _wrapper(args: Sequence[Value]) -> Value:
    fit(not args, "no arguments")
    return node_of("ndarray")


def _wrapper_state(node: Node, state: Value) -> None:
    """Shape, order and dtype of the array that follows; becomes the node's fact."""
    found = dict(attributes_of(state))
    fit(
        set(found) <= _ATTRIBUTES and {"subclass", "shape", "order", "dtype"} <= set(found),
        "an array's description",
    )
    fit(is_global(found["subclass"], *ARRAY_CLASSES), "a class of arrays")
    fit(found["order"] in {"C", "F"} and type(found.get("allow_mmap", False)) is bool, "an order and a flag")
    fit(is_kind(found["dtype"], "dtype"), "a dtype")
    alignment = found.get("numpy_array_alignment_bytes")
    fit(alignment is None or is_int(alignment, 1, MAX_ALIGNMENT), "an alignment")
    dtype = found["dtype"]
    code = str(dtype.fact if isinstance(dtype, Node) else "")
    aligned = alignment if isinstance(alignment, int) else None
    node.fact = _Described(prod(shape_of(found["shape"], "the shape")), code, aligned)


def _array_bytes(node: Node, source: ByteSource, offset: int) -> int:
    """The offset behind the array that begins at `offset`. Raises Misfit."""
    described = node.fact
    if not isinstance(described, _Described):
        raise Misfit("expected an array's description")
    count, code, alignment = described.count, described.code, described.alignment
    if code.startswith("O"):
        return _object_array(source, offset)
    if alignment is None:
        size = count * item_bytes(code)
        fit(offset + size <= source.size, f"{size} bytes of array data")
        return offset + size
    fit(offset < source.size, "array data")
    padding = source.read(offset, 1)[0]
    fit(1 <= padding <= alignment and alignment == 16, "1 to 16 bytes of padding")
    start = offset + 1 + padding
    size = count * item_bytes(code)
    fit(start + size <= source.size, f"{size} bytes of array data")
    fit(source.read(offset + 1, padding) == b"\xff" * padding, "padding of 0xff")
    return start + size


def _object_array(source: ByteSource, offset: int) -> int:
    inner = Slice(source, offset, source.size - offset)
    outcome = run(inner)
    bad = [finding for finding in outcome.findings if finding.rule != "pickle/trailing"]
    if bad or outcome.end is None:
        raise Misfit(f"expected a pickled array: {bad[0].message if bad else 'no end'}")
    fit(is_kind(outcome.result, "ndarray"), "a pickled array")
    fit(outcome.end <= MAX_OBJECT_ARRAY_BYTES, f"at most {MAX_OBJECT_ARRAY_BYTES} bytes of objects")
    return offset + outcome.end


_WRAPPER = Spec(new=_wrapper, build=_wrapper_state, inline=_array_bytes)
_PLAIN_WRAPPER = Spec(new=_wrapper, build=_wrapper_state)


def names(module: str, name: str) -> Spec | None:
    """What only joblib's loader understands, for `pickle_machine.run`."""
    return _WRAPPER if (module, name) == WRAPPER else None


def _plain_names(module: str, name: str) -> Spec | None:
    return _PLAIN_WRAPPER if (module, name) == WRAPPER else None


def read_plainly(source: ByteSource) -> list[Finding]:
    """What `pickle.load` would do with the same bytes: it follows the first array as opcodes until they break off.

    A call or BUILD of what is no import raises in the loader, and so is no finding here; every import outside the
    list is one, and so is a place where only our reading stops.
    """
    outcome = run(source, names=_plain_names)
    found = outcome.findings
    # A memo entry written twice is followed as it is; a memo number that ends our reading might not end theirs.
    if outcome.end is not None or (found and found[-1].rule != "pickle/memo"):
        found = [finding for finding in found if finding.rule != "pickle/memo"]
    bad = [finding for finding in found if finding.rule not in _STOPS]
    return [
        Finding(
            "joblib/ambiguous", f"read by pickle.load, {finding.message} ({finding.rule})", finding.offset
        )
        for finding in bad[:1]
    ]
