"""OpenVINO models: the network in XML against the weights in the .bin beside it. No document type, no entity.

    net        layers, edges, rt_info
    layer      id, name, type, version (the operator set); data, input, output, body
    data       attributes of the operator; of a Const: element_type, shape, offset, size in NAME.bin

Source: "OpenVINO IR format" and "Operation sets" (docs.openvino.ai), IR versions 10 and 11. The parser is expat of
the standard library, which fetches nothing; a document type is refused before its first entity is read.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, NoReturn
from xml.parsers import expat

from steelyard.digest import JSON
from steelyard.errors import Malformed
from steelyard.formats.base import ByteSource, Finding, Reference, Report, Rule

MAX_BYTES = 128 << 20
MAX_DEPTH = 64
MAX_ELEMENTS = 4_000_000
MAX_ATTRIBUTE_CHARS = 1 << 20
MAX_DIMENSIONS = 64
MAX_GAP_BYTES = 4096
MAX_FACTS = 32
CHUNK = 1 << 18

_CONVERT = "Convert the model again with OpenVINO's own operators."
RULES: Mapping[str, Rule] = {
    "openvino/doctype": Rule(
        "A document type or entity: the reader fetches files and addresses, or unfolds without bound.",
        "Remove the DOCTYPE; OpenVINO writes none.",
    ),
    "openvino/syntax": Rule("XML that readers understand in different ways.", _CONVERT),
    "openvino/limit": Rule("A file made to exhaust its reader.", "Split the model, or reduce it."),
    "openvino/element": Rule(
        "An element outside the format, such as one that names a library to load.", _CONVERT
    ),
    "openvino/extension-operator": Rule(
        "An operator outside the published sets: a native library must be loaded for it.", _CONVERT
    ),
    "openvino/weights-range": Rule(
        "Weights at an offset or of a size that leaves the file or the tensor.", _CONVERT
    ),
    "openvino/weights-gap": Rule("Bytes between weights that belong to none.", _CONVERT),
    "openvino/name": Rule(
        "A network under a name from which its weights cannot be found.", "Keep NAME.xml beside NAME.bin."
    ),
}

_HEAD = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]{0,200}\?>)?\s*(?:<!--.{0,2000}?-->\s*)*(?:<net[\s>/]|<!DOCTYPE\s+net\b)",
    re.DOTALL,
)
_OPSET = re.compile(r"opset[1-9][0-9]?")
_NUMBER = re.compile(r"[0-9]{1,18}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.:\-]{0,127}")
# Inside these anything is data about the conversion.
_FREE: Final = frozenset({"rt_info", "meta_data", "cli_parameters", "quantization_parameters", "statistics"})
_ELEMENTS: Final = frozenset(
    {"net", "layers", "layer", "data", "input", "output", "port", "dim", "edges", "edge", "body", "port_map",
     "back_edges", "then_body", "else_body", "then_port_map", "else_port_map", "blobs", "weights", "biases", "custom",
     "pre-process", "channel", "mean", "scale", "attribute", *_FREE}
)  # fmt: skip
_BITS: Final[Mapping[str, int]] = {
    "f64": 64, "i64": 64, "u64": 64, "f32": 32, "i32": 32, "u32": 32, "f16": 16, "bf16": 16, "i16": 16, "u16": 16,
    "f8e4m3": 8, "f8e5m2": 8, "f8e8m0": 8, "i8": 8, "u8": 8, "boolean": 8, "nf4": 4, "f4e2m1": 4, "i4": 4, "u4": 4,
    "u3": 3, "u2": 2, "i2": 2, "u6": 6, "u1": 1,
}  # fmt: skip
_PLACED: Final = frozenset({"weights", "biases", "mean"})


def _refuse(rule: str, message: str, offset: int | None) -> NoReturn:
    raise Malformed(message, rule=f"openvino/{rule}", offset=offset)


@dataclass(slots=True)
class _Walk:
    parser: expat.XMLParserType
    findings: list[Finding] = field(default_factory=list)
    path: list[str] = field(default_factory=list)
    types: list[str] = field(default_factory=list)  # of the layers that are open
    operators: Counter[str] = field(default_factory=Counter)
    spans: list[tuple[int, int]] = field(default_factory=list)
    free: int = 0  # how many free elements are open
    elements: int = 0
    parameters: int = 0
    version: str = ""

    def find(self, rule: str, message: str) -> None:
        if len(self.findings) < 100:
            self.findings.append(Finding(f"openvino/{rule}", message, self.parser.CurrentByteIndex))

    def start(self, name: str, attributes: dict[str, str]) -> None:
        self.elements += 1
        at = self.parser.CurrentByteIndex
        if len(self.path) >= MAX_DEPTH or self.elements > MAX_ELEMENTS:
            _refuse("limit", f"element {self.elements}, {len(self.path)} deep", at)
        self.path.append(name)
        if name in _FREE:
            self.free += 1
        if self.free:
            return
        if name not in _ELEMENTS or (name == "net") != (len(self.path) == 1):
            self.find("element", f"element {name[:80]!a} in {self.path[-2:-1]}")
        for key, value in attributes.items():
            if not _NAME.fullmatch(key) or len(value) > MAX_ATTRIBUTE_CHARS:
                self.find("element", f"attribute {key[:80]!a} of {len(value)} characters")
        if name == "net":
            self.version = attributes.get("version", "")[:8]
        elif name == "layer":
            self._layer(attributes)
        elif name == "data" and self.types and self.types[-1] in {"Const", "Constant"}:
            self._constant(attributes)
        elif name in _PLACED:
            self._place(attributes, None)

    def end(self, name: str) -> None:
        self.path.pop()
        if name in _FREE:
            self.free -= 1
        elif name == "layer" and not self.free:
            self.types.pop()

    def _layer(self, attributes: dict[str, str]) -> None:
        kind, opset = attributes.get("type", ""), attributes.get("version", "")
        self.types.append(kind)
        if not _OPSET.fullmatch(opset) or not _NAME.fullmatch(kind):
            self.find("extension-operator", f"operator {kind[:80]!a} of set {opset[:80]!a}")
        elif len(self.operators) < 4096:
            self.operators[kind] += 1

    def _constant(self, attributes: dict[str, str]) -> None:
        kind = attributes.get("element_type", "")
        elements = 1
        sizes = [part.strip() for part in attributes.get("shape", "").split(",") if part.strip()]
        for size in sizes:
            if not _NUMBER.fullmatch(size) or len(sizes) > MAX_DIMENSIONS:
                _refuse(
                    "weights-range",
                    f"the shape {attributes.get('shape', '')[:80]!a}",
                    self.parser.CurrentByteIndex,
                )
            elements *= int(size)
            if elements >= 1 << 60:
                _refuse("weights-range", "a shape that overflows 64 bits", self.parser.CurrentByteIndex)
        self.parameters += elements
        if kind not in _BITS and kind != "string":
            self.find("weights-range", f"weights of type {kind[:80]!a}")
            return
        self._place(attributes, None if kind == "string" else (elements * _BITS[kind] + 7) // 8)

    def _place(self, attributes: dict[str, str], expected: int | None) -> None:
        offset, size = attributes.get("offset", ""), attributes.get("size", "")
        if not _NUMBER.fullmatch(offset) or not _NUMBER.fullmatch(size):
            self.find("weights-range", f"offset {offset[:24]!a}, size {size[:24]!a}")
        elif expected is not None and int(size) != expected:
            self.find("weights-range", f"{size} bytes; the shape asks for {expected}")
        else:
            self.spans.append((int(offset), int(offset) + int(size)))

    def covered(self) -> int:
        """The end of the weights, after looking for gaps."""
        at = 0
        for begin, end in sorted(self.spans):
            if begin - at > MAX_GAP_BYTES:
                self.findings.append(
                    Finding("openvino/weights-gap", f"{begin - at} bytes from {at} belong to nothing", None)
                )
            at = max(at, end)
        return at


def _parser() -> tuple[expat.XMLParserType, _Walk]:
    parser = expat.ParserCreate("UTF-8")
    walk = _Walk(parser)

    def forbidden(*_: object) -> NoReturn:
        _refuse("doctype", "a document type, entity or processing instruction", parser.CurrentByteIndex)

    parser.StartDoctypeDeclHandler = forbidden
    parser.EntityDeclHandler = forbidden
    parser.ExternalEntityRefHandler = forbidden
    parser.ProcessingInstructionHandler = forbidden
    parser.StartElementHandler = walk.start
    parser.EndElementHandler = walk.end
    return parser, walk


class OpenvinoFormat:
    """The plug of `steelyard.formats`."""

    name = "openvino"
    rules = RULES

    def sniff(self, head: bytes, path: str) -> bool:  # noqa: ARG002 - content alone decides
        return _HEAD.match(head) is not None

    def read(self, source: ByteSource, path: str) -> Report:
        if source.size > MAX_BYTES:
            _refuse("limit", f"{source.size} bytes; at most {MAX_BYTES} are read", 0)
        parser, walk = _parser()
        try:
            for at in range(0, source.size, CHUNK):
                parser.Parse(source.read(at, min(CHUNK, source.size - at)), False)
            parser.Parse(b"", True)
        except expat.ExpatError as error:
            raise Malformed(
                f"no XML: {expat.errors.messages.get(error.code, 'broken')}",
                rule="openvino/syntax",
                offset=parser.ErrorByteIndex,
            ) from error
        end = walk.covered()
        stem = path.rpartition("/")[2]
        references: tuple[Reference, ...] = ()
        if not stem.lower().endswith(".xml"):
            walk.findings.append(Finding("openvino/name", f"{stem[:80]!a} does not end in .xml", None))
        elif end:
            references = (Reference(f"{stem[:-4]}.bin", end),)
        facts: dict[str, JSON] = {
            "ir_version": walk.version,
            "layers": walk.operators.total(),
            "operators": dict(walk.operators.most_common(MAX_FACTS)),
            "parameters": walk.parameters,
        }
        return Report(self.name, facts, tuple(walk.findings), references=references)


FORMAT = OpenvinoFormat()
