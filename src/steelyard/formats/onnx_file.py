"""ONNX models: the whole tree of one ModelProto, its operators by exact name, its tensors against their bytes.

    ModelProto   1 IR version  2-6 producer  7 graph  8 operator sets*  14 metadata*  20 training*  25 functions*
    graph        1 nodes*  5 tensors*  11-13 values*  15 sparse tensors*
    node         4 operator  5 attributes* (6, 11 graphs; 5, 10 tensors; 22, 23 sparse tensors)  7 domain
    function     1 name  7 nodes*  10 domain  11 default attributes*  13 overload

Source: `onnx/onnx.proto` of github.com/onnx/onnx. ONNX files compute with operators that ship in the runtime. One
that does not needs native code or Python beside the model, so it refuses, except a function the file defines itself.
"""

import binascii
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from steelyard.digest import JSON
from steelyard.formats.base import ByteSource, Finding, Report, Rule
from steelyard.formats.onnx_operators import ALIASES, NATIVE, OPERATORS, PYTHON, PYTHON_DOMAINS
from steelyard.formats.onnx_schema import MESSAGES
from steelyard.formats.onnx_tensor import RULES as TENSOR_RULES
from steelyard.formats.onnx_tensor import Tensors
from steelyard.formats.protobuf import LENGTH, VARINT, Part, Reader, outline, rules_of

MAX_EXPANDED = 50_000_000  # nodes once all functions are written out
MAX_SEEN = 1 << 16
MAX_FACTS = 32
MAX_IR = 1000

RULES: Mapping[str, Rule] = {
    **rules_of("onnx"),
    **TENSOR_RULES,
    "onnx/operator": Rule(
        "An operator that no runtime ships: the loader must be given a native library that comes with the model.",
        "Export the model with standard operators, or define the operator as a function of the model.",
    ),
    "onnx/native-operator": Rule(
        "An operator that hands a compiled blob or a file to a vendor's library.",
        "Give the model as it was before it was compiled for one device.",
    ),
    "onnx/python-operator": Rule(
        "An operator that calls back into Python or into another framework.",
        "Export the model with standard operators only.",
    ),
    "onnx/opset": Rule(
        "A model without operator sets, or with one in two versions: each runtime picks its own meaning.",
        "Export the model again; it names the version of each operator set once.",
    ),
    "onnx/graph": Rule("A file without a graph, or without an IR version.", "Export the model again."),
    "onnx/duplicate": Rule(
        "Two tensors or functions of one name: one is checked, the other is used.", "Give each its own name."
    ),
    "onnx/function-cycle": Rule(
        "Functions that call themselves, or that unfold without end when a runtime writes them out.",
        "Export the model without nested functions.",
    ),
    "onnx/metadata-payload": Rule(
        "A program or a pickle carried as text in the metadata, for code that looks for it.",
        "Remove the metadata entry.",
    ),
}

_KNOWN_FIELDS: Final = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26})
# Keys of a node's fields: inputs, outputs, name, operator, attributes, domain.
_INPUT, _OUTPUT, _NAME, _OPERATOR, _ATTRIBUTE, _DOMAIN = 0x0A, 0x12, 0x1A, 0x22, 0x2A, 0x3A
_PLAIN_NODE: Final = frozenset({_INPUT, _OUTPUT, _NAME, _OPERATOR, _ATTRIBUTE, _DOMAIN})
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{12,}={0,2}")
_HEX = re.compile(rb"(?:[0-9A-Fa-f]{2}){8,}")
_MAGICS = (b"PK\x03\x04", b"\x7fELF", b"MZ\x90", b"\x1f\x8b\x08", b"7z\xbc\xaf", b"\xfd7zXZ", b"BZh",
           b"\xca\xfe\xba\xbe", b"\xcf\xfa\xed\xfe", b"#!/", b"\x93NUMPY", b"\x89HDF")  # fmt: skip


@dataclass(slots=True)
class _Body:
    """What a graph or function calls: functions of the model by name, and how many nodes it has itself."""

    calls: Counter[tuple[str, str]] = field(default_factory=Counter)
    nodes: int = 0


@dataclass(slots=True)
class _Walk:
    reader: Reader
    tensors: Tensors
    findings: list[Finding]
    functions: dict[tuple[str, str], _Body] = field(default_factory=dict)
    operators: Counter[str] = field(default_factory=Counter)
    verdicts: dict[tuple[str, str], str] = field(default_factory=dict)
    good: dict[tuple[bytes, bytes], str] = field(
        default_factory=dict
    )  # operators by the bytes of name and domain
    seen: set[bytes] = field(default_factory=set)  # attributes found clean

    def find(self, rule: str, message: str, offset: int | None) -> None:
        if len(self.findings) < 100:
            self.findings.append(Finding(f"onnx/{rule}", message, offset))

    def graph(self, begin: int, end: int, depth: int, body: _Body) -> None:
        names: set[bytes] = set()
        for part in self.reader.parts("GraphProto", begin, end, depth):
            label = part.spec.name
            if label == "node":
                self.node(part, depth + 1, body)
            elif label == "initializer":
                self._once(names, self.tensors.examine(part.begin, part.end, depth + 1), part.begin)
            elif label == "sparse_initializer":
                self._once(names, self.sparse(part, depth + 1), part.begin)
            elif label == "metadata_props":
                self.metadata(part, depth + 1)
            else:
                self.reader.skim_part(part, depth)

    def node(self, node: Part, depth: int, body: _Body) -> None:
        fields = self.reader.plain(node.begin, node.end, _PLAIN_NODE)
        if fields is not None and (label := self._as_before(fields)):
            body.nodes += 1
            self.operators[label] += 1
            return
        domain = name = ""
        for part in self.reader.parts("NodeProto", node.begin, node.end, depth):
            number = part.spec.number
            if number in {1, 2, 3}:
                continue  # names of values and of the node
            if number == 4:
                name = self.reader.text(part, 4096)
            elif number == 7:
                domain = self.reader.text(part, 4096)
            elif number == 5:
                self.attribute(part, depth + 1, body)
            elif number == 9:
                self.metadata(part, depth + 1)
            else:
                self.reader.skim_part(part, depth)
        body.nodes += 1
        key = (ALIASES.get(domain, domain), name)
        if key in self.functions:
            body.calls[key] += 1
            return
        if key not in self.verdicts:
            self.verdicts[key] = _verdict(*key)
        if self.verdicts[key]:
            self.find(self.verdicts[key], f"operator {name[:80]!a} of domain {domain[:80]!a}", node.begin)
            return
        label = f"{key[0]}:{name}" if key[0] else name
        self.operators[label] += 1
        self.good[name.encode(), domain.encode()] = label

    def _as_before(self, fields: list[tuple[int, bytes]]) -> str:
        """The operator of a node of which every part was examined before in another node, else nothing."""
        name = domain = b""
        once = 0
        for key, data in fields:
            if key == _ATTRIBUTE:
                if data not in self.seen:
                    return ""
            elif key > _OUTPUT:
                if once >> key & 1:
                    return ""
                once |= 1 << key
                if key == _OPERATOR:
                    name = data
                elif key == _DOMAIN:
                    domain = data
        return self.good.get((name, domain), "")

    def attribute(self, attribute: Part, depth: int, body: _Body) -> None:
        wrong, leaf = len(self.findings), True
        for part in self.reader.parts("AttributeProto", attribute.begin, attribute.end, depth):
            kind = part.spec.kind
            leaf = leaf and kind not in {"GraphProto", "TensorProto", "SparseTensorProto"}
            if kind == "GraphProto":
                self.graph(part.begin, part.end, depth + 1, body)
            elif kind == "TensorProto":
                self.tensors.examine(part.begin, part.end, depth + 1)
            elif kind == "SparseTensorProto":
                self.sparse(part, depth + 1)
            else:
                self.reader.skim_part(part, depth)

        if leaf and attribute.size < 128 and len(self.findings) == wrong and len(self.seen) < MAX_SEEN:
            self.seen.add(self.reader.raw(attribute))

    def sparse(self, sparse: Part, depth: int) -> bytes:
        name = b""
        for part in self.reader.parts("SparseTensorProto", sparse.begin, sparse.end, depth):
            if part.spec.kind == "TensorProto":
                found = self.tensors.examine(part.begin, part.end, depth + 1)
                name = found if part.spec.name == "values" else name
            elif any(value >> 63 for value in self.reader.numbers(part)):
                self.reader.refuse("tensor-shape", "a sparse tensor of negative size", part.begin)
        return name

    def metadata(self, entry: Part, depth: int) -> str:
        key, value = self.reader.pair("StringStringEntryProto", entry, depth)
        if value is not None and _carries_payload(self.reader.raw(value, 16 << 20)):
            self.find(
                "metadata-payload", f"metadata {key[:80]!a} unpacks to a program or pickle", value.begin
            )
        return key

    def function(self, function: Part, body: _Body) -> None:
        for part in self.reader.parts("FunctionProto", function.begin, function.end, 1):
            label = part.spec.name
            if label == "node":
                self.node(part, 2, body)
            elif label == "attribute_proto":
                self.attribute(part, 2, body)
            elif label == "metadata_props":
                self.metadata(part, 2)
            else:
                self.reader.skim_part(part, 1)

    def name_functions(self, functions: list[Part]) -> dict[tuple[str, str], list[Part]]:
        """The functions by domain and name. One name may have several overloads, each with its own."""
        named: dict[tuple[str, str], list[Part]] = {}
        overloads: set[tuple[str, str, str]] = set()
        for function in functions:
            texts = {"name": "", "domain": "", "overload": ""}
            for part in self.reader.parts("FunctionProto", function.begin, function.end, 1):
                if part.spec.name in texts:
                    texts[part.spec.name] = self.reader.text(part, 4096)
            domain = ALIASES.get(texts["domain"], texts["domain"])
            whole = (domain, texts["name"], texts["overload"])
            if whole in overloads:
                self.find("duplicate", f"function {texts['name'][:80]!a} is defined twice", function.begin)
            overloads.add(whole)
            named.setdefault((domain, texts["name"]), []).append(function)
        return named

    def _once(self, names: set[bytes], name: bytes, offset: int) -> None:
        if name in names:
            self.find("duplicate", f"tensor {name[:80]!a} stands twice in one graph", offset)
        names.add(name)


def _verdict(domain: str, name: str) -> str:
    """The rule an operator breaks, or nothing."""
    if name in OPERATORS.get(domain, ()):
        return ""
    if domain in PYTHON_DOMAINS or name in PYTHON:
        return "python-operator"
    return "native-operator" if name in NATIVE else "operator"


def _carries_payload(value: bytes) -> bool:
    """Whether a text is base64 or hexadecimal of something that runs or unpacks."""
    packed = b"".join(value.split())
    decoded = []
    if _HEX.fullmatch(packed):
        decoded.append(binascii.unhexlify(packed))
    if _BASE64.fullmatch(packed):
        plain = packed.rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
        plain = plain[: len(plain) - (len(plain) % 4 == 1)]
        decoded.append(binascii.a2b_base64(plain + b"=" * (-len(plain) % 4)))
    return any(_is_program(found) for found in (*decoded, value.lstrip()))


def _is_program(data: bytes) -> bool:
    pickled = (
        len(data) > 3
        and data[0] == 0x80
        and 2 <= data[1] <= 5
        and (data[-1:] == b"." or data[2] in b"\x8c\x95c")
    )
    return pickled or data.startswith(_MAGICS)


def _check_expansion(walk: _Walk, main: _Body) -> None:
    """No function reaches itself, and the graph stays small when each call is written out."""
    sizes: dict[tuple[str, str], int] = {}
    open_now: set[tuple[str, str]] = set()
    todo = list(walk.functions)
    while todo:
        key = todo[-1]
        if key in sizes:
            todo.pop()
            continue
        body = walk.functions[key]
        waiting = [name for name in body.calls if name not in sizes]
        if not waiting:
            sizes[key] = min(MAX_EXPANDED + 1, _written_out(body, sizes))
            open_now.discard(key)
            todo.pop()
        elif key in open_now:
            walk.find("function-cycle", f"function {key[1][:80]!a} reaches itself", None)
            return
        else:
            open_now.add(key)
            todo += waiting
    if _written_out(main, sizes) > MAX_EXPANDED:
        walk.find("function-cycle", f"more than {MAX_EXPANDED} nodes when functions are written out", None)


def _written_out(body: _Body, sizes: Mapping[tuple[str, str], int]) -> int:
    return body.nodes + sum(times * sizes[name] for name, times in body.calls.items())


def is_model(head: bytes) -> bool:
    """An IR version first, known fields in order, the producer a text, and a graph or a set."""
    fields = outline(head)
    if not fields or (fields[0].number, fields[0].wire) != (1, VARINT) or not 1 <= fields[0].value <= MAX_IR:
        return False
    last = 0
    for found in fields:
        if found.number not in _KNOWN_FIELDS or found.number < last:
            return False
        last = found.number
        if found.number in {2, 3, 4, 6} and any(
            byte < 32 and byte not in b"\t\n\r" for byte in found.body[:64]
        ):
            return False  # a message where a text is due: another model's format
        if found.number == 2 and found.body[:1] in b"\n\r\t" and found.body:
            return False
        if found.number in {7, 8}:
            return found.wire == LENGTH
    return False


class OnnxFormat:
    """The plug of `steelyard.formats`."""

    name = "onnx"
    rules = RULES

    def sniff(self, head: bytes, path: str) -> bool:  # noqa: ARG002 - content alone decides
        return is_model(head)

    def read(self, source: ByteSource, path: str) -> Report:  # noqa: ARG002 - the plug's signature
        findings: list[Finding] = []
        reader = Reader(source, MESSAGES, "onnx")
        walk = _Walk(reader, Tensors(reader, findings), findings)
        facts: dict[str, JSON] = {}
        functions: list[Part] = []
        others: list[Part] = []
        for part in reader.parts("ModelProto", 0, source.size, 0):
            label = part.spec.name
            if label in {"ir_version", "model_version"}:
                facts[label] = part.value
            elif part.spec.kind == "text":
                facts[label] = reader.text(part)[:200]
            else:
                (functions if label == "functions" else others).append(part)
        named = walk.name_functions(functions)
        walk.functions = {key: _Body() for key in named}
        for key, overloads in named.items():
            for function in overloads:
                walk.function(function, walk.functions[key])
        main = _Body()
        facts |= self._rest(walk, others, main)
        if "ir_version" not in facts or not any(part.spec.name == "graph" for part in others):
            walk.find("graph", "no graph or no IR version", 0)
        _check_expansion(walk, main)
        tensors = walk.tensors
        facts |= {
            "nodes": main.nodes + sum(body.nodes for body in walk.functions.values()),
            "operators": dict(walk.operators.most_common(MAX_FACTS)),
            "functions": len(functions),
            "tensors": tensors.count,
            "parameters": tensors.parameters,
            "external_files": len(tensors.external),
        }
        return Report(self.name, facts, tuple(findings), references=tensors.references())

    def _rest(self, walk: _Walk, parts: list[Part], main: _Body) -> dict[str, JSON]:
        """Graph, operator sets, metadata and training, once the functions are known."""
        opsets: dict[str, JSON] = {}
        keys: list[JSON] = []
        for part in parts:
            label = part.spec.name
            if label == "graph":
                walk.graph(part.begin, part.end, 1, main)
            elif label == "opset_import":
                domain, version = _opset(walk.reader, part)
                if opsets.get(domain[:200], version) != version or not 1 <= version <= 10_000:
                    walk.find("opset", f"operator set {domain[:80]!a} in version {version}", part.begin)
                opsets[domain[:200]] = version
            elif label == "metadata_props":
                keys.append(walk.metadata(part, 1)[:80])
            elif label == "training_info":
                for inner in walk.reader.parts("TrainingInfoProto", part.begin, part.end, 1):
                    if inner.spec.kind == "GraphProto":
                        walk.graph(inner.begin, inner.end, 2, main)
                    else:
                        walk.reader.skim_part(inner, 1)
            else:
                walk.reader.skim_part(part, 0)
        if not opsets:
            walk.find("opset", "the model names no operator set", 0)
        some: dict[str, JSON] = dict(sorted(opsets.items())[:MAX_FACTS])
        return {"opsets": some, "metadata_keys": keys[:MAX_FACTS]}


def _opset(reader: Reader, part: Part) -> tuple[str, int]:
    domain, version = "", 0
    for inner in reader.parts("OperatorSetIdProto", part.begin, part.end, 1):
        if inner.spec.number == 1:
            domain = reader.text(inner, 4096)
        else:
            version = inner.value
    return ALIASES.get(domain, domain), version


FORMAT = OnnxFormat()
