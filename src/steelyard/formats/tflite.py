"""TensorFlow Lite models: operators by number, tensors against their buffers, and what stands behind the buffer.

    Model       0 version  1 operator codes*  2 subgraphs*  3 description  4 buffers*  5, 6 metadata*  7 signatures*
                8, 9 buffers in other files*
    code        0, 3 number (the larger counts)  1 custom name  2 version
    subgraph    0 tensors*  1 inputs*  2 outputs*  3 operators*  4 name
    tensor      0 shape*  1 type  2 buffer  3 name  4 quantisation  6 sparsity  10 buffer in another file
    operator    0 code  1 inputs*  2 outputs*  4, 12 options  5 custom options*  8 intermediates*  9, 10 outside
    buffer      0 bytes*  1 offset in the file  2 size: bytes behind the flat buffer
    behind      nothing, or a zip of associated files (labels, vocabularies)

Source: `tensorflow/compiler/mlir/lite/schema/schema.fbs` of github.com/tensorflow/tensorflow, release 2.21, and the
guide "Adding metadata to TensorFlow Lite models". An operator that the runtime does not ship needs native code beside
the model; a Flex operator is any operator of TensorFlow, files and processes included.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from steelyard.digest import JSON
from steelyard.errors import Malformed
from steelyard.formats.base import ByteSource, Child, Finding, Report, Rule
from steelyard.formats.flatbuffer import Flat, Table, rules_of
from steelyard.formats.zipped import RULES as ZIP_RULES
from steelyard.formats.zipped import Archive, Member, check_crc, open_member, read_archive

MAX_GAP_BYTES = 4096  # options of operators are not read; they are small
MAX_ALIGNMENT = 64
MAX_FACTS = 32

_CONVERT = "Convert the model again, with the operators of the runtime only."
RULES: Mapping[str, Rule] = {
    **rules_of("tflite"),
    **ZIP_RULES,
    "tflite/version": Rule("A schema that the runtime reads in another way.", _CONVERT),
    "tflite/operator": Rule("An operator number that no runtime knows.", _CONVERT),
    "tflite/custom-operator": Rule(
        "An operator that the runtime does not ship: a native library must come with the model.", _CONVERT
    ),
    "tflite/flex-operator": Rule(
        "An operator of the whole of TensorFlow, which reads and writes files and calls Python.",
        "Convert the model without SELECT_TF_OPS.",
    ),
    "tflite/index": Rule("An index outside its list, so that the runtime leaves its buffer.", _CONVERT),
    "tflite/tensor-size": Rule(
        "A shape that claims more or fewer bytes than the buffer has, so that reading it leaves the buffer.",
        _CONVERT,
    ),
    "tflite/external": Rule(
        "Weights in another file, named by the model.", "Convert the model into one file."
    ),
    "tflite/gap": Rule("Bytes between tables that belong to none, where a payload hides.", _CONVERT),
    "tflite/trailing": Rule("A second file behind the model.", _CONVERT),
    "tflite/empty": Rule("A model without a subgraph.", _CONVERT),
}

MAGIC = b"TFL3"
LAST_OPERATOR = 209
_CUSTOM, _DELEGATE, _PLACEHOLDER, _CUSTOM_CALL = 32, 51, 127, 173
# Custom operators that ship with the runtime or with MediaPipe, and only compute.
PURE_CUSTOM: Final = frozenset(
    {"TFLite_Detection_PostProcess", "Mfcc", "AudioSpectrogram", "NumericVerify", "Convolution2DTransposeBias",
     "MaxPoolingWithArgmax2D", "MaxUnpooling2D"}
)  # fmt: skip
# Bits of one element by type; 5 text, 13 resource and 14 variant have none.
BITS: Final[Mapping[int, int]] = {
    0: 32, 1: 16, 2: 32, 3: 8, 4: 64, 6: 8, 7: 16, 8: 64, 9: 8, 10: 64, 11: 128, 12: 64, 15: 32, 16: 16, 17: 4, 18: 16,
    19: 2, 20: 4,
}  # fmt: skip
_OPAQUE = frozenset({5, 13, 14})


@dataclass(slots=True)
class _Walk:
    flat: Flat
    findings: list[Finding] = field(default_factory=list)
    codes: list[str] = field(default_factory=list)
    buffers: list[int] = field(default_factory=list)  # bytes of each
    tensors: list[int] = field(default_factory=list)  # of each subgraph
    operators: Counter[str] = field(default_factory=Counter)
    parameters: int = 0

    def find(self, rule: str, message: str, offset: int | None) -> None:
        if len(self.findings) < 100:
            self.findings.append(Finding(f"tflite/{rule}", message, offset))

    def model(self) -> dict[str, JSON]:
        flat = self.flat
        model = flat.table(flat.follow(0))
        version = flat.scalar(model, 0, 4)
        if version != 3:
            self.find("version", f"schema version {version}; expected 3", model.at)
        for code in flat.tables_of(model, 1):
            self._code(code)
        self.buffers = [self._buffer(buffer) for buffer in flat.tables_of(model, 4, may_share=True)]
        subgraphs = flat.tables_of(model, 2)
        for subgraph in subgraphs:
            self._subgraph(subgraph)
        if not subgraphs:
            self.find("empty", "no subgraph", model.at)
        self._metadata(model)
        self._signatures(model)
        for slot in (8, 9):
            if flat.vector(model, slot, 4).length:
                self.find("external", "weights in other files", model.at)
        return {
            "description": flat.text(model, 3)[:200],
            "subgraphs": len(subgraphs),
            "tensors": sum(self.tensors),
            "parameters": self.parameters,
            "operators": dict(self.operators.most_common(MAX_FACTS)),
        }

    def _code(self, code: Table) -> None:
        flat = self.flat
        number = max(flat.scalar(code, 0, 1, signed=True), flat.scalar(code, 3, 4, signed=True))
        name = flat.text(code, 1)
        flat.scalar(code, 2, 4)
        if number != _CUSTOM:
            bad = not 0 <= number <= LAST_OPERATOR or number in {_DELEGATE, _PLACEHOLDER, _CUSTOM_CALL}
            if bad or name:
                self.find("operator", f"operator {number} with the name {name[:80]!a}", code.at)
            self.codes.append(str(number))
            return
        if name.startswith("Flex"):
            self.find("flex-operator", f"operator {name[:80]!a}", code.at)
        elif name not in PURE_CUSTOM:
            self.find("custom-operator", f"operator {name[:80]!a}", code.at)
        self.codes.append(name[:80])

    def _buffer(self, buffer: Table) -> int:
        """The bytes of one buffer, in the table or behind it."""
        flat = self.flat
        data = flat.vector(buffer, 0, 1)
        offset, size = flat.scalar(buffer, 1, 8), flat.scalar(buffer, 2, 8)
        if offset <= 1:  # 0 and 1 say that it has no place of its own
            return data.length
        self._outside(offset, size, buffer.at)
        if data.length:
            self.find("index", "a buffer both here and behind the model", buffer.at)
        return size

    def _outside(self, offset: int, size: int, at: int) -> None:
        if offset + size > self.flat.source.size:
            self.flat.refuse("offset", f"{size} bytes at {offset} outside the file", at)
        self.flat.spans.append((offset, offset + size))

    def _subgraph(self, subgraph: Table) -> None:
        flat = self.flat
        tensors = flat.tables_of(subgraph, 0)
        for tensor in tensors:
            self._tensor(tensor)
        self.tensors.append(len(tensors))
        for slot in (1, 2):
            self._check(flat.numbers(subgraph, slot, 4), len(tensors), subgraph.at)
        for operator in flat.tables_of(subgraph, 3):
            self._operator(operator, len(tensors))
        flat.text(subgraph, 4)

    def _tensor(self, tensor: Table) -> None:
        flat = self.flat
        shape = flat.numbers(tensor, 0, 4)
        kind, buffer = flat.scalar(tensor, 1, 1, signed=True), flat.scalar(tensor, 2, 4)
        name = flat.text(tensor, 3)
        flat.numbers(tensor, 7, 4)
        if quantisation := flat.child(tensor, 4):
            for slot, width in ((0, 4), (1, 4), (2, 4), (3, 8)):
                flat.vector(quantisation, slot, width)
        sparse = flat.child(tensor, 6)
        if sparse is not None:
            self._sparse(sparse)
        if buffer >= len(self.buffers) or (kind not in BITS and kind not in _OPAQUE):
            self.find("index", f"tensor {name[:80]!a} of type {kind} in buffer {buffer}", tensor.at)
            return
        if flat.scalar(tensor, 10, 4):
            self.find("external", f"tensor {name[:80]!a} is kept in another file", tensor.at)
        elements = 1
        for size in shape:
            elements *= size
            if size < -1 or elements >= 1 << 60:
                flat.refuse("tensor-size", f"tensor {name[:80]!a} has the shape {list(shape[:8])}", tensor.at)
        found = self.buffers[buffer]
        if found and kind in BITS and sparse is None:
            expected = (elements * BITS[kind] + 7) // 8
            if expected != found:
                what = f"tensor {name[:80]!a}: the shape asks for {expected} bytes, the buffer has {found}"
                self.find("tensor-size", what, tensor.at)
            self.parameters += max(elements, 0)

    def _sparse(self, sparse: Table) -> None:
        flat = self.flat
        flat.vector(sparse, 0, 4)
        flat.vector(sparse, 1, 4)
        widths = {1: 4, 2: 2, 3: 1}
        for dimension in flat.tables_of(sparse, 2):
            for slot in (3, 5):
                inner = flat.child(dimension, slot)
                width = widths.get(flat.scalar(dimension, slot - 1, 1))
                if inner is not None and width is not None:
                    flat.vector(inner, 0, width)

    def _operator(self, operator: Table, tensors: int) -> None:
        flat = self.flat
        code = flat.scalar(operator, 0, 4)
        if code >= len(self.codes):
            self.find("index", f"operator code {code} of {len(self.codes)}", operator.at)
        else:
            self.operators[self.codes[code]] += 1
        for slot in (1, 2, 8):
            self._check(flat.numbers(operator, slot, 4), tensors, operator.at)
        flat.vector(operator, 5, 1)
        flat.vector(operator, 7, 1)
        for slot in (4, 12):
            flat.child(operator, slot)
        offset, size = flat.scalar(operator, 9, 8), flat.scalar(operator, 10, 8)
        if offset > 1:
            self._outside(offset, size, operator.at)

    def _metadata(self, model: Table) -> None:
        flat = self.flat
        for index in flat.numbers(model, 5, 4):
            if not 0 <= index < len(self.buffers):
                self.find("index", f"metadata in buffer {index}", model.at)
        for entry in flat.tables_of(model, 6):
            name, buffer = flat.text(entry, 0), flat.scalar(entry, 1, 4)
            if buffer >= len(self.buffers):
                self.find("index", f"metadata {name[:80]!a} in buffer {buffer}", entry.at)

    def _signatures(self, model: Table) -> None:
        flat = self.flat
        for signature in flat.tables_of(model, 7):
            graph = flat.scalar(signature, 4, 4)
            flat.text(signature, 2)
            if graph >= len(self.tensors):
                self.find("index", f"a signature of subgraph {graph}", signature.at)
                continue
            for slot in (0, 1):
                for entry in flat.tables_of(signature, slot):
                    flat.text(entry, 0)
                    if flat.scalar(entry, 1, 4) >= self.tensors[graph]:
                        self.find("index", "a signature of a tensor outside its subgraph", entry.at)

    def _check(self, indices: "array[int]", tensors: int, at: int) -> None:
        """Each is a tensor of the subgraph, or -1 for an input left out."""
        if indices and (min(indices) < -1 or max(indices) >= tensors):
            self.find("index", f"tensors {min(indices)} to {max(indices)} of {tensors}", at)

    def end(self) -> int:
        """The end of what was read, after looking for gaps."""
        at = 0
        for begin, end in sorted([*self.flat.spans, (0, 8)]):
            if begin - at > MAX_GAP_BYTES:
                self.find("gap", f"{begin - at} bytes belong to nothing", at)
            at = max(at, end)
        return at


class TfliteFormat:
    """The plug of `steelyard.formats`."""

    name = "tflite"
    rules = RULES

    def sniff(self, head: bytes, path: str) -> bool:  # noqa: ARG002 - content alone decides
        return head[4:8] == MAGIC

    def read(self, source: ByteSource, path: str) -> Report:  # noqa: ARG002 - the plug's signature
        walk = _Walk(Flat(source, "tflite"))
        facts = walk.model()
        end = walk.end()
        rest = source.size - end
        children: Callable[[], Iterator[Child]] | None = None
        if rest:
            archive = _associated(source, end, walk)
            if archive is not None:
                facts["associated_files"] = len(archive.members)
                children = _children(source, archive)
        return Report(self.name, facts, tuple(walk.findings), children)


def _associated(source: ByteSource, end: int, walk: _Walk) -> Archive | None:
    """The archive behind the model, or None when only padding is there."""
    head = source.read(end, min(MAX_ALIGNMENT + 4, source.size - end))
    padding = head.find(b"PK\x03\x04")
    if any(head[:padding] if padding >= 0 else head) or (padding < 0 and len(head) >= MAX_ALIGNMENT):
        walk.find("trailing", f"{source.size - end} bytes behind the model", end)
        return None
    if padding < 0:
        return None
    archive = read_archive(source)
    for finding in archive.findings:
        if (
            finding.rule == "zip/prefix"
            and archive.members
            and archive.members[0].header_offset == end + padding
        ):
            continue  # the model itself
        walk.findings.append(finding)
    return archive


def _children(source: ByteSource, archive: Archive) -> Callable[[], Iterator[Child]]:
    def children() -> Iterator[Child]:
        for member in archive.members:
            if not member.name.endswith("/"):
                yield Child(member.name, member.size, partial(_open, source, member))

    return children


def _open(source: ByteSource, member: Member) -> ByteSource:
    content = open_member(source, member)
    if broken := check_crc(content, member):
        raise Malformed(broken.message, rule=broken.rule, offset=broken.offset)
    return content


FORMAT = TfliteFormat()
