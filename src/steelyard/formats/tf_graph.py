"""The graph of a TensorFlow model: every node of the graph and of its functions by exact operator name.

    GraphDef       1 nodes*  2 library  4 versions
    library        1 functions*  2 gradients*
    FunctionDef    1 signature (1 name, 2 arguments*)  3 nodes*  4 results
    NodeDef        1 name  2 operator  3 inputs*  4 device  5 attributes*

Source: `tensorflow/core/framework/{graph,function,node_def}.proto` of github.com/tensorflow/tensorflow. TensorFlow's
own security guide says that a model is a program: operators read and write files and open connections. Two kinds
cannot be missed from honest models and are allowed by where their path comes from: the saver's, whose path is given
by whoever calls it, and a vocabulary's, which is an asset.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from steelyard.formats.base import Finding, Rule
from steelyard.formats.protobuf import Part, Reader, signed
from steelyard.formats.tf_operators import OPERATORS, PATH_STEPS, PYTHON, SAVER, VOCABULARY

MAX_TRACE = 256
MAX_TENSOR_BYTES = 2 << 30
MAX_FUNCTIONS = 100_000
MAX_KEPT_NODES = 200_000
MAX_SEEN = 1 << 16

_EXPORT = "Export the model for inference, without input pipelines or host code."
RULES: Mapping[str, Rule] = {
    "tensorflow/operator": Rule(
        "An operator that reaches files, processes, the network or a native library, or that nobody knows.",
        _EXPORT,
    ),
    "tensorflow/python-operator": Rule("An operator that calls a Python function of the process.", _EXPORT),
    "tensorflow/saver-path": Rule(
        "A checkpoint operator with a path of its own: it writes, deletes or reads a file of the author's choosing.",
        "Export the model again; the saver's path comes from its caller.",
    ),
    "tensorflow/saver-call": Rule(
        "A saver that serving reaches, so that a request writes files.",
        "Export the model again; only the saver's own signature calls it.",
    ),
    "tensorflow/vocabulary-path": Rule(
        "A table read from a file that is no asset: any text file of the machine ends in the model's answers.",
        "Save the vocabulary as an asset of the model.",
    ),
    "tensorflow/print-file": Rule(
        "A print operator that writes to a file.", "Print to stderr, or not at all."
    ),
    "tensorflow/tensor": Rule(
        "A constant whose shape and bytes disagree, that unfolds without bound, or that holds a handle to memory.",
        "Export the model again.",
    ),
    "tensorflow/duplicate": Rule(
        "Two functions or nodes of one name: one is checked, the other runs.", "Give each its own name."
    ),
}

# Bytes of one element by the number of its type; 7 text, 20 handle and 21 variant have none.
TYPE_BYTES: Final[Mapping[int, int]] = {
    1: 4, 2: 8, 3: 4, 4: 1, 5: 2, 6: 1, 8: 8, 9: 8, 10: 1, 11: 1, 12: 1, 13: 4, 14: 2, 15: 2, 16: 2, 17: 2, 18: 16,
    19: 2, 22: 4, 23: 8, 24: 1, 25: 1, 26: 1, 27: 1, 28: 1, 29: 1, 30: 1, 31: 1, 32: 1,
}  # fmt: skip
# Keys of a node's fields: name, operator, inputs, device, attributes.
_NAME, _OPERATOR, _INPUT, _DEVICE, _ATTRIBUTE = 0x0A, 0x12, 0x1A, 0x22, 0x2A
_PLAIN_NODE: Final = frozenset({_NAME, _OPERATOR, _INPUT, _DEVICE, _ATTRIBUTE})
_FUNCTION_NAME = re.compile(r"__[\w.\-/]{1,500}|[A-Za-z][A-Za-z0-9.\-/]*_[\w.\-/]{0,500}", re.ASCII)
_PLAIN_PREFIX = re.compile(rb"[A-Za-z0-9_\-][A-Za-z0-9_.\-]{0,63}")
_PLAIN_SUFFIX = re.compile(rb"(?!.*\.\.)[A-Za-z0-9_.]{0,64}(?:/part)?")
_STREAMS = frozenset({b"stderr", b"stdout", b"log(info)", b"log(warning)", b"log(error)"})
_KEPT: Final = PATH_STEPS | SAVER | VOCABULARY | {
    "Const", "Placeholder", "PlaceholderWithDefault", "Select", "SelectV2", "ReadVariableOp", "StatefulPartitionedCall",
    "PartitionedCall",
}  # fmt: skip
# Of these only the ones that handle text are kept; a path cannot come through the others.
_TYPED: Final = frozenset({
    "Const", "Placeholder", "PlaceholderWithDefault", "Select", "SelectV2", "ReadVariableOp", "Identity", "Pack",
    "ExpandDims", "Reshape", "ConcatV2",
})  # fmt: skip
_TEXT = 7
_TEXT_TYPE = b"\0text"
_CALLS: Final = frozenset({"StatefulPartitionedCall", "PartitionedCall"})
_STEP_INPUTS: Final = {
    "Identity": 1,
    "ExpandDims": 1,
    "Reshape": 1,
    "ShardedFilename": 1,
    "ShardedFilespec": 1,
}


@dataclass(slots=True)
class Node:
    operator: str
    inputs: list[str]
    text: bytes | None  # of a Const that holds one text
    offset: int


@dataclass(slots=True)
class Scope:
    """The graph (name "") or one function: what is needed to follow a path back to where it comes from."""

    name: str
    arguments: list[str] = field(default_factory=list)
    nodes: dict[str, Node] = field(default_factory=dict)
    watched: list[str] = field(default_factory=list)
    calls: list[tuple[str, str]] = field(default_factory=list)  # (node, function)


@dataclass(slots=True)
class Graph:
    """One GraphDef, examined."""

    reader: Reader
    findings: list[Finding]
    scopes: dict[str, Scope] = field(default_factory=dict)
    operators: Counter[str] = field(default_factory=Counter)
    unknown: dict[str, int] = field(default_factory=dict)
    gradients: list[str] = field(default_factory=list)
    wanted: dict[str, int] = field(default_factory=dict)  # functions by name, and where they are first named
    good: dict[bytes, str] = field(default_factory=dict)  # operators by the bytes of their name
    seen: set[bytes] = field(default_factory=set)  # attributes found clean
    nodes: int = 0
    kept: int = 0

    def find(self, rule: str, message: str, offset: int | None) -> None:
        if len(self.findings) < 100:
            self.findings.append(Finding(f"tensorflow/{rule}", message, offset))

    def read(self, begin: int, end: int, depth: int) -> None:
        """Every node and function of the GraphDef; paths are followed by `settle`."""
        top = self.scopes.setdefault("", Scope(""))
        for part in self.reader.parts("GraphDef", begin, end, depth):
            label = part.spec.name
            if label == "node":
                self.node(part, depth + 1, top)
            elif label == "library":
                self._library(part, depth + 1)
            else:
                self.reader.skim_part(part, depth)

    def _library(self, library: Part, depth: int) -> None:
        for part in self.reader.parts("FunctionDefLibrary", library.begin, library.end, depth):
            if part.spec.name == "function":
                self._function(part, depth + 1)
                continue
            for inner in self.reader.parts(part.spec.kind, part.begin, part.end, depth + 1):
                if inner.spec.name == "gradient_func":
                    self.gradients.append(self.reader.text(inner, 4096))

    def _function(self, function: Part, depth: int) -> None:
        scope = Scope("?")
        for part in self.reader.parts("FunctionDef", function.begin, function.end, depth):
            label = part.spec.name
            if label == "signature":
                self._signature(part, depth + 1, scope)
            elif label == "node_def":
                self.node(part, depth + 1, scope)
            else:
                self.reader.skim_part(part, depth)
        if scope.name in self.scopes or not scope.name:
            self.find("duplicate", f"function {scope.name[:80]!a} is defined twice", function.begin)
        if len(self.scopes) > MAX_FUNCTIONS:
            self.reader.refuse("limit", f"more than {MAX_FUNCTIONS} functions", function.begin)
        self.scopes[scope.name] = scope

    def _signature(self, signature: Part, depth: int, scope: Scope) -> None:
        for part in self.reader.parts("OpDef", signature.begin, signature.end, depth):
            if part.spec.name == "name":
                scope.name = self.reader.text(part, 4096)
            elif part.spec.name == "input_arg":
                for inner in self.reader.parts("OpDef.ArgDef", part.begin, part.end, depth + 1):
                    if inner.spec.name == "name":
                        scope.arguments.append(self.reader.text(inner, 4096))
                    else:
                        self.reader.skim_part(inner, depth + 1)
            else:
                self.reader.skim_part(part, depth)

    def node(self, node: Part, depth: int, scope: Scope) -> None:
        fields = self.reader.plain(node.begin, node.end, _PLAIN_NODE)
        if fields is not None and (known := self._as_before(fields)):
            self.nodes += 1
            self.operators[known] += 1
            return
        name = operator = ""
        inputs: list[Part] = []
        called: list[str] = []
        texts: dict[str, bytes] = {}
        for part in self.reader.parts("NodeDef", node.begin, node.end, depth):
            number = part.spec.number
            if number == 1:
                name = self.reader.text(part, 4096)
            elif number == 2:
                operator = self.reader.text(part, 4096)
            elif number == 3:
                inputs.append(part)
            elif number == 5:
                self._attribute(part, depth + 1, texts, called)
            else:
                self.reader.skim_part(part, depth)
        self.nodes += 1
        self._judge(operator, node.begin)
        if operator == "PrintV2" and texts.get("output_stream", b"stderr") not in _STREAMS:
            self.find(
                "print-file", f"node {name[:80]!a} prints to {texts['output_stream'][:80]!a}", node.begin
            )
        if operator not in OPERATORS and operator not in _KEPT:
            scope.calls.append((name, operator))  # a node may name its function as its operator
        if called or (operator in _KEPT and (operator not in _TYPED or texts)):
            scope.calls += [(name, function) for function in called]
            self._keep(scope, name, Node(operator, self._words(inputs), texts.get("value"), node.begin))

    def _words(self, inputs: list[Part]) -> list[str]:
        return [self.reader.text(part, 4096) for part in inputs[:64]]

    def _keep(self, scope: Scope, name: str, node: Node) -> None:
        """Remember a node that a path may come through."""
        self.kept += 1
        if self.kept > MAX_KEPT_NODES:
            self.reader.refuse("limit", f"more than {MAX_KEPT_NODES} calls and constants", node.offset)
        if name in scope.nodes:
            self.find("duplicate", f"node {name[:80]!a} stands twice", node.offset)
        scope.nodes[name] = node
        if node.operator in SAVER or node.operator in VOCABULARY:
            scope.watched.append(name)

    def _as_before(self, fields: list[tuple[int, bytes]]) -> str:
        """The operator of a node that needs no following and of which every part was examined before, else nothing."""
        name = b""
        once = 0
        for key, data in fields:
            if key == _ATTRIBUTE:
                if data not in self.seen:
                    return ""
            elif key != _INPUT:
                if once >> key & 1:
                    return ""
                once |= 1 << key
                if key == _OPERATOR:
                    name = data
        return self.good.get(name, "")

    def _judge(self, operator: str, offset: int) -> None:
        if operator in OPERATORS:
            self.operators[operator] += 1
            if operator not in _KEPT and operator != "PrintV2":
                self.good[operator.encode()] = operator
        elif operator in PYTHON:
            self.find("python-operator", f"operator {operator[:80]!a}", offset)
        elif operator not in SAVER and operator not in VOCABULARY and operator not in PATH_STEPS:
            self.unknown.setdefault(operator, offset)

    def _attribute(self, attribute: Part, depth: int, texts: dict[str, bytes], called: list[str]) -> None:
        wrong, calls = len(self.findings), len(called)
        key, value = self.reader.pair("NodeDef.AttrEntry", attribute, depth)
        if value is not None:
            text = self.value(value, depth + 1, called)
            if text is not None and key in {"value", "output_stream", "T", "dtype"}:
                texts[key] = text
        clean = len(self.findings) == wrong and len(called) == calls
        if clean and attribute.size < 128 and len(self.seen) < MAX_SEEN:
            self.seen.add(self.reader.raw(attribute))

    def value(self, value: Part, depth: int, called: list[str]) -> bytes | None:
        """One AttrValue: names of functions go into `called`; a single text, or that the type is text, is returned."""
        text = None
        kinds = 0
        for part in self.reader.parts("AttrValue", value.begin, value.end, depth):
            kinds += 1
            label = part.spec.name
            if label == "s" and part.size <= 4096:
                text = self.reader.raw(part)
            elif label == "type":
                text = _TEXT_TYPE if part.value == _TEXT else None
            elif label == "tensor":
                text = self.tensor(part, depth + 1)
            elif label == "func":
                self._called(part, depth + 1, called)
            elif label == "list":
                for inner in self.reader.parts("AttrValue.ListValue", part.begin, part.end, depth + 1):
                    if inner.spec.name == "func":
                        self._called(inner, depth + 2, called)
                    elif inner.spec.name == "tensor":
                        self.tensor(inner, depth + 2)
                    else:
                        self.reader.skim_part(inner, depth + 1)
            else:
                self.reader.skim_part(part, depth)
        if kinds > 1:
            self.find("duplicate", "an attribute of two kinds, of which readers take one each", value.begin)
        return text

    def _called(self, function: Part, depth: int, called: list[str]) -> None:
        for part in self.reader.parts("NameAttrList", function.begin, function.end, depth):
            if part.spec.name == "name":
                called.append(self.reader.text(part, 4096))
                self.wanted.setdefault(called[-1], part.begin)
                continue
            _, value = self.reader.pair(part.spec.kind, part, depth + 1)
            if value is not None:
                self.value(value, depth + 2, called)

    def tensor(self, tensor: Part, depth: int) -> bytes | None:
        """Check one TensorProto. Returns its text when it holds exactly one."""
        kind = content = values = 0
        elements = 1
        text = None
        for part in self.reader.parts("TensorProto", tensor.begin, tensor.end, depth):
            label = part.spec.name
            if label == "dtype":
                kind = part.value
            elif label == "tensor_shape":
                elements = elements_of(self.reader, part, depth + 1)
            elif label == "tensor_content":
                content = part.size
            elif label == "string_val":
                values += 1
                text = self.reader.raw(part) if values == 1 and part.size <= 4096 else None
            elif label in {"resource_handle_val", "variant_val"}:
                self.find("tensor", f"a constant of kind {label}", part.begin)
                self.reader.skim_part(part, depth)
            elif part.form or label.endswith("_val"):
                values += part.size if label == "float8_val" else self.reader.count(part)
            else:
                self.reader.skim_part(part, depth)
        size = TYPE_BYTES.get(kind, 0)
        per = 2 if kind in {8, 18} else 1
        if elements < 0 or elements * max(size, 1) > MAX_TENSOR_BYTES:
            self.find("tensor", f"a constant of {elements} elements", tensor.begin)
        elif content and content != elements * size and kind != _TEXT:
            self.find(
                "tensor", f"a constant of {elements} elements of {size} bytes in {content}", tensor.begin
            )
        elif values > max(elements, 0) * per:
            self.find("tensor", f"a constant of {elements} elements with {values} values", tensor.begin)
        return text

    def settle(self, assets: frozenset[str] = frozenset(), reachable: frozenset[str] = frozenset()) -> None:
        """Once everything is read: unknown operators, saver and vocabulary paths.

        assets: nodes that the loader overwrites with an asset's path.  reachable: functions that a user of the
        loaded object can call.
        """
        for operator, offset in self.unknown.items():
            if operator not in self.scopes or not _FUNCTION_NAME.fullmatch(operator):
                self.find("operator", f"operator {operator[:80]!a}", offset)
        for name, offset in self.wanted.items():
            if name not in self.scopes:  # the runtime takes an operator of that name for a function
                self.find("operator", f"the function {name[:80]!a}, which is not there", offset)
        savers: dict[str, int] = {}
        for scope in self.scopes.values():
            for name in scope.watched:
                node = scope.nodes[name]
                if node.operator in VOCABULARY:
                    self._vocabulary(scope, name, node, assets)
                elif (place := self._saver(scope, name, node)) is not None:
                    savers[scope.name] = place
        self._check_callers(savers, reachable)

    def _vocabulary(self, scope: Scope, name: str, node: Node, assets: frozenset[str]) -> None:
        path = node.inputs[1] if len(node.inputs) > 1 else ""
        source = _Trace(scope, assets).origin(path)
        held = scope.nodes.get(source) if source else None
        from_asset = source is not None and (source in scope.arguments or source in assets)
        if not from_asset and not (held and held.operator in {"ReadVariableOp", "Placeholder"}):
            self.find("vocabulary-path", f"node {name[:80]!a} reads a file that is no asset", node.offset)

    def _saver(self, scope: Scope, name: str, node: Node) -> int | None:
        """Follow the paths of a saver's node. Returns the argument that is the path, for a function."""
        places = set()
        # MergeV2Checkpoints takes the parts and the destination; the others take one path.
        for path in node.inputs[: 2 if node.operator == "MergeV2Checkpoints" else 1] or [""]:
            source = _Trace(scope).origin(path)
            if source is None:
                self.find("saver-path", f"{node.operator} {name[:80]!a} has a path of its own", node.offset)
                return None
            places.add(source)
        if not scope.name:
            return None
        if len(places) != 1 or not (places <= set(scope.arguments)):
            self.find("saver-path", f"{node.operator} {name[:80]!a} has a path of its own", node.offset)
            return None
        return scope.arguments.index(places.pop())

    def _check_callers(self, savers: Mapping[str, int], reachable: frozenset[str]) -> None:
        for function in sorted(savers):
            if function in reachable or function in self.gradients:
                self.find("saver-call", f"the saver {function[:80]!a} is a function of the model", None)
        for scope in self.scopes.values():
            for name, function in scope.calls:
                if function not in savers:
                    continue
                node = scope.nodes.get(name)
                place = savers[function]
                path = node.inputs[place] if node and place < len(node.inputs) else ""
                plain = node is not None and node.operator in _CALLS
                if not plain or scope.name or _Trace(scope).origin(path) is None:
                    what = f"node {name[:80]!a} of {scope.name[:80]!a} calls the saver {function[:80]!a}"
                    self.find("saver-call", what, node.offset if node else None)


@dataclass(slots=True)
class _Trace:
    """Follows a text back to the one place it comes from."""

    scope: Scope
    assets: frozenset[str] = frozenset()
    steps: int = 0

    def origin(self, value: str) -> str | None:
        """An argument of the function, or the node that the caller feeds; None when the model chose the path."""
        self.steps += 1
        if self.steps > MAX_TRACE:
            return None
        name = value.split(":", 1)[0]
        if self.scope.name and ":" not in value:
            return name if name in self.scope.arguments else None
        node = self.scope.nodes.get(name)
        if node is None:
            return None
        if node.operator in {"Placeholder", "ReadVariableOp"} or (
            name in self.assets and not self.scope.name
        ):
            return name
        if node.operator in {"PlaceholderWithDefault", "Const"}:
            return self._default(name, node)
        if node.operator not in PATH_STEPS or not node.inputs:
            return None
        wanted = [word for word in node.inputs if not word.startswith("^")]
        wanted = wanted[: _STEP_INPUTS.get(node.operator, len(wanted))]
        if node.operator == "StringJoin":
            return self.origin(wanted[0]) if all(self._is_suffix(word) for word in wanted[1:]) else None
        if node.operator == "ConcatV2":
            wanted = wanted[:-1]
        found = {self.origin(word) for word in wanted}
        return found.pop() if len(found) == 1 else None

    def _default(self, name: str, node: Node) -> str | None:
        """What TensorFlow 1 writes: a name such as "model" that the caller replaces."""
        if node.operator == "PlaceholderWithDefault":
            return name if node.inputs and self.origin(node.inputs[0]) is not None else None
        plain = not self.scope.name and node.text is not None and _PLAIN_PREFIX.fullmatch(node.text)
        return name if plain else None

    def _is_suffix(self, value: str) -> bool:
        """A constant such as "_temp/part", or a choice of two."""
        self.steps += 1
        node = self.scope.nodes.get(value.split(":", 1)[0])
        if node is None or self.steps > MAX_TRACE:
            return False
        if node.operator == "Const":
            return node.text is not None and _PLAIN_SUFFIX.fullmatch(node.text) is not None
        if node.operator in {"Select", "SelectV2"}:
            return len(node.inputs) == 3 and all(self._is_suffix(word) for word in node.inputs[1:])
        return False


def elements_of(reader: Reader, shape: Part, depth: int) -> int:
    """The product of a shape's dimensions; -1 when one is unknown. Raises Malformed above 64 bits."""
    elements = 1
    for part in reader.parts("TensorShapeProto", shape.begin, shape.end, depth):
        if part.spec.name == "unknown_rank":
            elements = -1 if part.value else elements
            continue
        size = 0
        for inner in reader.parts("TensorShapeProto.Dim", part.begin, part.end, depth + 1):
            if inner.spec.name == "size":
                size = signed(inner.value)
        elements = -1 if size < 0 or elements < 0 else elements * size
        if elements >= 1 << 60:
            reader.refuse("tensor", "a shape that overflows 64 bits", shape.begin)
    return elements
