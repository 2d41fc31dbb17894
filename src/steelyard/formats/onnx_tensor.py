"""Tensors of an ONNX file: shape times type against the bytes that are there, and data kept in files beside it.

    TensorProto   1 dims*  2 type  4 float  5 int32  6 string  7 int64  9 raw bytes  10 double  11 uint64  13 external*
                  14 location (0 here, 1 external)
    external      pairs of text: location (a relative path), offset, length, checksum

Sources: `onnx/onnx.proto` and `docs/ExternalData.md` of github.com/onnx/onnx. A location that leaves the folder is
CVE-2022-25882, CVE-2024-27318 and CVE-2026-27489; links are CVE-2026-34446 and -34447 (the scan of the tree refuses
them); keys beyond the four became attributes of a Python object.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from steelyard.formats.base import Finding, Reference, Rule
from steelyard.formats.protobuf import Part, Reader, signed

MAX_DIMENSIONS = 64
MAX_EXTERNAL_FILES = 4096
MAX_PATH_CHARS = 1024

# Bits of one element by the number of its type.
BITS: Final[Mapping[int, int]] = {
    1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 14: 64, 15: 128, 16: 16,
    17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4, 24: 8, 25: 2, 26: 2, 27: 6, 28: 6,
}  # fmt: skip
_STRING = 8
# Which typed field holds which types; the numbers in it are wider than the element except where listed.
_TYPED: Final[Mapping[str, frozenset[int]]] = {
    "float_data": frozenset({1, 14}),
    "int32_data": frozenset({2, 3, 4, 5, 6, 9, 10, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28}),
    "int64_data": frozenset({7}),
    "double_data": frozenset({11, 15}),
    "uint64_data": frozenset({12, 13}),
    "string_data": frozenset({_STRING}),
}
_EXTERNAL_KEYS = frozenset({"location", "offset", "length", "checksum"})
_NUMBER = re.compile(r"[0-9]{1,18}")
_DRIVE = re.compile(r"[A-Za-z]:")

_SAVE_AGAIN = "Save the model again with onnx.save_model and copy the data files beside it."
RULES: Mapping[str, Rule] = {
    "onnx/tensor-type": Rule("A tensor of no known type, whose size is anybody's guess.", _SAVE_AGAIN),
    "onnx/tensor-shape": Rule("Dimensions that are negative or whose product wraps around.", _SAVE_AGAIN),
    "onnx/tensor-size": Rule(
        "A shape that claims more or fewer bytes than the tensor has, so that reading it leaves the buffer.",
        _SAVE_AGAIN,
    ),
    "onnx/external-path": Rule(
        "External data outside the model's folder: the loader reads any file of the machine into a tensor.",
        "Put the data file beside the model and name it by a plain relative path.",
    ),
    "onnx/external-range": Rule(
        "External data at an offset or of a length that leaves its file or the tensor.", _SAVE_AGAIN
    ),
    "onnx/external-key": Rule(
        "A key that becomes an attribute of the loader's object, or a value the loader takes for an address.",
        "Keep location, offset, length and checksum only.",
    ),
}


class Loose(NamedTuple):
    """What one TensorProto says before it is checked."""

    elements: int
    bits: int
    kind: int


@dataclass(slots=True)
class Tensors:
    """Checks tensors and gathers what they keep elsewhere."""

    reader: Reader
    findings: list[Finding]
    count: int = 0
    parameters: int = 0
    external: dict[str, int] = field(default_factory=dict)
    spans: dict[str, list[tuple[int, int]]] = field(default_factory=dict)

    def examine(self, begin: int, end: int, depth: int) -> bytes:
        """Check one TensorProto; returns its name."""
        dims: list[int] = []
        kind = location = 0
        name = b""
        stored: dict[str, int] = {}
        pairs: list[Part] = []
        reader = self.reader
        for part in reader.parts("TensorProto", begin, end, depth):
            label = part.spec.name
            if label == "dims":
                dims += [signed(value) for value in reader.numbers(part)]
            elif label == "data_type":
                kind = part.value
            elif label == "raw_data":
                stored[label] = part.size
            elif label in _TYPED:
                one = 1 if label == "string_data" else reader.count(part)
                stored[label] = stored.get(label, 0) + one
            elif label == "external_data":
                pairs.append(part)
            elif label == "data_location":
                location = part.value
            elif label == "name":
                name = reader.raw(part)
            else:
                self._other(part, depth)
        self.count += 1
        elements = self._elements(dims, begin)
        if kind not in BITS and kind != _STRING:
            self.find("tensor-type", f"tensor {name[:80]!a} has type {kind}", begin)
        elif location == 0 and not pairs:
            self._check_stored(name, Loose(elements, BITS.get(kind, 0), kind), stored, begin)
        else:
            self._check_external(name, elements * BITS.get(kind, 0), stored, pairs, location, depth, begin)
        self.parameters += elements
        return name

    def _other(self, part: Part, depth: int) -> None:
        if part.spec.name == "segment":
            self.find("tensor-size", "a tensor in segments, which loaders read as the whole", part.begin)
        self.reader.skim_part(part, depth)

    def _elements(self, dims: list[int], at: int) -> int:
        if len(dims) > MAX_DIMENSIONS or any(value < 0 for value in dims):
            self.reader.refuse("tensor-shape", f"shape {dims[:8]}", at)
        elements = 1
        for value in dims:
            elements *= value
            if elements * 128 >= 1 << 63:
                self.reader.refuse("tensor-shape", f"shape {dims[:8]} overflows 64 bits", at)
        return elements

    def _check_stored(self, name: bytes, shape: Loose, stored: Mapping[str, int], at: int) -> None:
        if not stored and shape.elements == 0:
            return
        if len(stored) != 1:
            what = f"tensor {name[:80]!a} of {shape.elements} elements has its data in {sorted(stored) or 'no field'}"
            self.find("tensor-size", what, at)
            return
        ((label, found),) = stored.items()
        if label == "raw_data":
            expected = (shape.elements * shape.bits + 7) // 8
            if shape.kind == _STRING:
                self.find("tensor-size", f"tensor {name[:80]!a} keeps strings in raw_data", at)
                return
        elif shape.kind not in _TYPED[label]:
            self.find(
                "tensor-size", f"tensor {name[:80]!a} of type {shape.kind} keeps its data in {label}", at
            )
            return
        else:
            per = 8 // shape.bits if shape.bits in {2, 4} else 1
            expected = -(-shape.elements // per) * (2 if shape.kind in {14, 15} else 1)
        if found != expected:
            what = f"tensor {name[:80]!a}: {label} holds {found}, the shape asks for {expected}"
            self.find("tensor-size", what, at)

    def _check_external(
        self, name: bytes, bits: int, stored: Mapping[str, int], pairs: list[Part], location: int, depth: int,
        at: int,
    ) -> None:  # fmt: skip
        if location != 1 or any(stored.values()) or not bits:
            self.find("tensor-size", f"tensor {name[:80]!a} is both here and elsewhere, or holds nothing", at)
        values: dict[str, str] = {}
        for pair in pairs:
            key, value = self.reader.pair("StringStringEntryProto", pair, depth + 1)
            if key not in _EXTERNAL_KEYS or key in values:
                self.find(
                    "external-key", f"tensor {name[:80]!a} has the external key {key[:40]!a}", pair.begin
                )
            values[key] = "" if value is None else self.reader.text(value, 4096)
        path = values.get("location", "")
        if "_ORT_MEM_ADDR_" in path:
            self.find("external-key", f"location {path[:80]!a} is an address in the loader's memory", at)
            return
        path = path.removeprefix("./")
        if not is_plain_path(path):
            self.find("external-path", f"tensor {name[:80]!a} is kept in {path[:200]!a}", at)
            return
        offset, length = values.get("offset", "0"), values.get("length")
        size = (bits + 7) // 8
        whole = _NUMBER.fullmatch(offset) and (length is None or _NUMBER.fullmatch(length))
        if not whole or (length is not None and int(length) != size):
            found = f"offset {offset[:24]!a}, length {(length or 'absent')[:24]!a}"
            what = f"tensor {name[:80]!a}: {found}; the shape asks for {size}"
            self.find("external-range", what, at)
            return
        begin = int(offset)
        self.external[path] = max(self.external.get(path, 0), begin + size)
        self.spans.setdefault(path, []).append((begin, begin + size))
        if len(self.external) > MAX_EXTERNAL_FILES:
            self.reader.refuse("limit", f"data in more than {MAX_EXTERNAL_FILES} files", at)

    def references(self) -> tuple[Reference, ...]:
        return tuple(Reference(path, end) for path, end in sorted(self.external.items()))

    def find(self, rule: str, message: str, offset: int) -> None:
        if len(self.findings) < 100:
            self.findings.append(Finding(f"onnx/{rule}", message, offset))


def is_plain_path(path: str) -> bool:
    """A relative path of named parts, the same on every system: no `..`, drive, scheme, backslash or control."""
    return (
        0 < len(path) <= MAX_PATH_CHARS
        and path.isprintable()
        and not any(char in path for char in '\\:*?"<>|')
        and not _DRIVE.match(path)
        and all(part not in {"", ".", ".."} for part in path.split("/"))
    )
