"""safetensors: a JSON header, then the tensors, tiled without a gap.

    0      8            n, the length of the header, unsigned little-endian
    8      n            header: JSON object starting with '{', may end in spaces
    8+n    to the end   tensor bytes

Header: tensor name -> {"dtype", "shape", "data_offsets": [begin, end]}, offsets relative to 8+n; the key
"__metadata__" -> {string: string}. Source: README of github.com/huggingface/safetensors, section Format, and
its reader `safetensors/src/tensor.rs` (0.8). We refuse what it refuses, and also what it lets pass: a header
that does not start with '{', padding other than spaces, a name twice, an entry with further keys.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

from steelyard.digest import JSON
from steelyard.errors import Malformed
from steelyard.formats.base import ByteSource, Report, Rule
from steelyard.formats.jsonfile import PARSE_RULES, clip, parse

MAX_HEADER_BYTES = 100_000_000
MAX_DEPTH = 3
MAX_METADATA_FACTS = 64
MAX_FACT_CHARS = 200

_U64_MAX = 2**64 - 1
_LENGTH_BYTES = 8
# Above this a text file whose ninth byte happens to be '{' would be claimed: text has no zero bytes.
_CLAIM_BELOW = 1 << 40

# The library's reader refuses -0 where a whole number is due; Python's reads it as 0.
_MINUS_ZERO = re.compile(rb"[\[,]\s*-0\s*[\],]")

DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip

RULES: Mapping[str, Rule] = {
    "safetensors/truncated": Rule(
        attack="A file cut short, so that a reader trusting its header reads past the end.",
        mend="Download or copy the file again and compare its digest.",
    ),
    "safetensors/header-length": Rule(
        attack="A header length that exhausts memory or overflows when eight is added to it.",
        mend="Write the file again with the safetensors library; a header ends below 100,000,000 bytes.",
    ),
    "safetensors/header-start": Rule(
        attack="A header that is also the start of another format, so that two readers see two files.",
        mend="Write the file again with the safetensors library: the header starts with '{'.",
    ),
    "safetensors/header-padding": Rule(
        attack="Bytes hidden after the header's JSON.",
        mend="Pad the header with spaces only.",
    ),
    "safetensors/metadata": Rule(
        attack="Metadata of a shape loaders do not expect, smuggling structure past them.",
        mend="Write __metadata__ as a flat mapping of strings to strings.",
    ),
    "safetensors/entry": Rule(
        attack="A tensor entry with missing, further or wrongly typed keys, read differently by each reader.",
        mend="Give each tensor dtype, shape and data_offsets and nothing else.",
    ),
    "safetensors/dtype": Rule(
        attack="A dtype no reader knows, whose size is anybody's guess.",
        mend="Use a dtype of the published table.",
    ),
    "safetensors/shape-overflow": Rule(
        attack="Dimensions whose product wraps around 64 bits to a small buffer.",
        mend="Write the tensor's true shape.",
    ),
    "safetensors/shape-size": Rule(
        attack="A shape that claims more bytes than the tensor has, so that reading it leaves the buffer.",
        mend="Make shape times dtype equal the data_offsets span.",
    ),
    "safetensors/overlap": Rule(
        attack="Two tensors over the same bytes: one checked, the other served.",
        mend="Write the file again; tied weights are stored once.",
    ),
    "safetensors/gap": Rule(
        attack="Bytes between tensors that belong to none, where a payload hides.",
        mend="Write the file again; tensors lie end to end.",
    ),
    "safetensors/out-of-file": Rule(
        attack="A tensor that ends after the file does.",
        mend="Download or copy the file again and compare its digest.",
    ),
    "safetensors/trailing": Rule(
        attack="Bytes after the last tensor: a second file, such as a zip or a pickle, riding along.",
        mend="Write the file again; it ends with its last tensor.",
    ),
    **PARSE_RULES,
}


class TensorInfo(NamedTuple):
    """One tensor. `begin` and `end` are bytes from SafetensorsHeader.data_start.

    A named tuple: headers of 100,000 tensors are built several times faster than as dataclasses.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class SafetensorsHeader:
    """A validated header. `tensors` are in file order; `data_start` is a byte offset in the file."""

    tensors: tuple[TensorInfo, ...]
    metadata: Mapping[str, str]
    data_start: int


def header_of(source: ByteSource) -> SafetensorsHeader:
    """The header, checked against the whole file's size; tensor bytes are not read. Raises Malformed."""
    header = _header_object(source)
    metadata = _metadata_of(header.value)
    tensors = [_tensor_of(name, entry) for name, entry in header.value.items() if name != "__metadata__"]
    tensors.sort(key=lambda tensor: tensor[3:])
    _check_tiling(tensors, header.end, source.size)
    return SafetensorsHeader(tuple(tensors), metadata, header.end)


class _HeaderObject(NamedTuple):
    value: Mapping[str, JSON]
    end: int


def _header_object(source: ByteSource) -> _HeaderObject:
    if source.size < _LENGTH_BYTES:
        _refuse("truncated", f"{source.size} bytes; a header length alone takes {_LENGTH_BYTES}", 0)
    length = int.from_bytes(source.read(0, _LENGTH_BYTES), "little")
    if length > MAX_HEADER_BYTES or length < 2:
        _refuse("header-length", f"header length {length}; expected 2 to {MAX_HEADER_BYTES}", 0)
    end = _LENGTH_BYTES + length
    if end > source.size:
        _refuse("truncated", f"the header ends at {end}, the file at {source.size}", 0)
    text = source.read(_LENGTH_BYTES, length)
    if text[:1] != b"{":
        _refuse("header-start", f"the header starts with {text[:8]!a}; expected '{{'", _LENGTH_BYTES)
    body = text.rstrip(b" ")
    if not body.endswith(b"}"):
        _refuse("header-padding", "the header does not end in '}' and spaces", _LENGTH_BYTES + len(body) - 1)
    try:
        value = parse(body, max_bytes=MAX_HEADER_BYTES, max_depth=MAX_DEPTH)
    except Malformed as error:
        offset = None if error.offset is None else error.offset + _LENGTH_BYTES
        raise Malformed(f"header: {error.message}", rule=error.rule, offset=offset) from error
    assert isinstance(value, dict)  # it starts with '{'
    if b"-0" in body and (found := _MINUS_ZERO.search(body)):
        _refuse("entry", "the number -0; expected whole numbers >= 0", _LENGTH_BYTES + found.start())
    return _HeaderObject(value, end)


def _metadata_of(header: Mapping[str, JSON]) -> dict[str, str]:
    found = header.get("__metadata__", {})
    if not isinstance(found, dict):
        _refuse("metadata", f"__metadata__ is {_kind(found)}; expected an object", _LENGTH_BYTES)
    metadata = {}
    for key, value in found.items():
        if not isinstance(value, str):
            _refuse(
                "metadata", f"__metadata__ {clip(key)} is {_kind(value)}; expected a string", _LENGTH_BYTES
            )
        metadata[key] = value
    return metadata


def _tensor_of(name: str, entry: JSON) -> TensorInfo:
    # One function and no helper calls on the good path: it runs once for each of up to a million tensors.
    if type(entry) is not dict or len(entry) != 3:
        _refuse_entry(name, "an object of dtype, shape and data_offsets")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if type(dtype) is not str or type(shape) is not list or type(offsets) is not list or len(offsets) != 2:
        _refuse_entry(name, "dtype text, shape a list, data_offsets a list of two")
    begin, end = offsets
    if type(begin) is not int or type(end) is not int or not 0 <= begin <= end <= _U64_MAX:
        _refuse_entry(name, "data_offsets 0 <= begin <= end")
    bits = DTYPE_BITS.get(dtype)
    if bits is None:
        _refuse("dtype", f"tensor {clip(name)} has dtype {clip(dtype)}", _LENGTH_BYTES)
    elements = 1
    for dimension in shape:
        if type(dimension) is not int or dimension < 0:
            _refuse_entry(name, "a shape of whole numbers >= 0")
        elements *= dimension
        if elements > _U64_MAX or dimension > _U64_MAX:
            _refuse("shape-overflow", f"the shape of tensor {clip(name)} overflows 64 bits", _LENGTH_BYTES)
    size_bits = elements * bits
    if size_bits > _U64_MAX:
        _refuse("shape-overflow", f"the size of tensor {clip(name)} overflows 64 bits", _LENGTH_BYTES)
    if size_bits != (end - begin) * 8:
        found = f"{size_bits // 8} bytes" if size_bits % 8 == 0 else f"{size_bits} bits"
        _refuse(
            "shape-size",
            f"tensor {clip(name)}: shape times {dtype} is {found}, data_offsets span {end - begin} bytes",
            _LENGTH_BYTES,
        )
    return TensorInfo(name, dtype, tuple(shape), begin, end)


def _check_tiling(tensors: list[TensorInfo], data_start: int, file_size: int) -> None:
    """Each tensor begins where the one before ends; the last ends with the file."""
    at = 0
    for tensor in tensors:
        if tensor.begin != at:
            rule = "overlap" if tensor.begin < at else "gap"
            message = f"tensor {clip(tensor.name)} begins at {tensor.begin}; the one before ends at {at}"
            _refuse(rule, message, data_start + min(at, tensor.begin))
        at = tensor.end
    end = data_start + at
    if end > file_size:
        _refuse("out-of-file", f"the last tensor ends at {end}, the file at {file_size}", file_size)
    if end < file_size:
        _refuse("trailing", f"{file_size - end} bytes follow the last tensor", end)


def _refuse(rule: str, message: str, offset: int) -> NoReturn:
    raise Malformed(message, rule=f"safetensors/{rule}", offset=offset)


def _refuse_entry(name: str, expected: str) -> NoReturn:
    _refuse("entry", f"tensor {clip(name)}: expected {expected}", _LENGTH_BYTES)


def _kind(value: JSON) -> str:
    return "null" if value is None else type(value).__name__


def _elements(shape: tuple[int, ...]) -> int:
    count = 1
    for dimension in shape:
        count *= dimension
    return count


class SafetensorsFormat:
    """The plug of `steelyard.formats`."""

    name = "safetensors"
    rules = RULES

    def sniff(self, head: bytes, path: str) -> bool:
        """'{' after a plausible length; a named file also when its header is broken."""
        if len(head) <= _LENGTH_BYTES:
            return False
        length = int.from_bytes(head[:_LENGTH_BYTES], "little")
        if path.endswith(".safetensors"):
            return head[8:9] == b"{" or length <= MAX_HEADER_BYTES
        return head[8:9] == b"{" and length < _CLAIM_BELOW

    def read(self, source: ByteSource, path: str) -> Report:  # noqa: ARG002 - the plug's signature
        header = header_of(source)
        dtypes = Counter(tensor.dtype for tensor in header.tensors)
        metadata = list(header.metadata.items())[:MAX_METADATA_FACTS]
        facts: dict[str, JSON] = {
            "tensors": len(header.tensors),
            "parameters": sum(_elements(tensor.shape) for tensor in header.tensors),
            "dtypes": dict(sorted(dtypes.items())),
            "tensor_names_sha256": names_digest(tensor.name for tensor in header.tensors),
            "metadata": {key[:MAX_FACT_CHARS]: value[:MAX_FACT_CHARS] for key, value in metadata},
        }
        return Report(self.name, facts)


def names_digest(names: Iterable[str]) -> str:
    """SHA-256, hex, of tensor names in order, each ended by a line feed: what an index is compared by."""
    return hashlib.sha256("".join(f"{name}\n" for name in sorted(names)).encode()).hexdigest()


FORMAT = SafetensorsFormat()
