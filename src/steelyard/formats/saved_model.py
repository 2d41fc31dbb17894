"""TensorFlow's graphs on disk: SavedModel, its side files, MetaGraph and frozen GraphDef. Nothing is loaded.

    saved_model.pb      SavedModel: 1 schema version (1)  2 MetaGraphDef*
    *.meta              MetaGraphDef: 1 info  2 GraphDef  3 saver  4 collections*  5 signatures*  6 assets*  7 objects
    frozen *.pb         GraphDef: 1 nodes*  2 library  4 versions
    fingerprint.pb      1-5 checksums  6 version  7 id
    keras_metadata.pb   1 nodes*: 5 metadata (a JSON configuration)
    checkpoint          text, `key: "prefix"`: which checkpoint is the latest

Source: the proto files below `tensorflow/core` of github.com/tensorflow/tensorflow, release 2.21, and its guide
"Using TensorFlow securely".
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from steelyard.digest import JSON
from steelyard.errors import Malformed
from steelyard.formats.base import ByteSource, Finding, Reference, Report, Rule
from steelyard.formats.jsonfile import PARSE_RULES, parse
from steelyard.formats.keras_objects import RULES as KERAS_RULES
from steelyard.formats.keras_objects import examine_objects
from steelyard.formats.onnx_tensor import is_plain_path
from steelyard.formats.protobuf import FIXED64, LENGTH, VARINT, Outline, Part, Reader, outline, rules_of
from steelyard.formats.tf_graph import RULES as GRAPH_RULES
from steelyard.formats.tf_graph import Graph
from steelyard.formats.tf_schema import MESSAGES

MAX_METADATA_BYTES = 16 << 20
MAX_METADATA_DEPTH = 64
MAX_CHECKPOINT_BYTES = 1 << 20
MAX_FACTS = 32

_EXPORT = "Export the model again with tf.saved_model.save."
RULES: Mapping[str, Rule] = {
    **rules_of("tensorflow"),
    **GRAPH_RULES,
    **PARSE_RULES,
    **KERAS_RULES,
    "tensorflow/asset-path": Rule(
        "An asset outside the model's folder: the loader hands any file of the machine to the graph.",
        "Save the file as an asset; its name has no folder.",
    ),
    "tensorflow/registered": Rule(
        "An object that a class or saver of the process restores from data of the model's choosing.",
        "Save the model with TensorFlow's own classes.",
    ),
    "tensorflow/checkpoint-path": Rule(
        "A note of the latest checkpoint that points outside the folder.", "Write relative names."
    ),
    "tensorflow/empty": Rule("A file without a graph.", _EXPORT),
}

_META_FIELDS: Final = frozenset(range(1, 8))
_CHECKPOINT_LINE = re.compile(
    r'(model_checkpoint_path|all_model_checkpoint_paths): "([^"\\]{1,1024})"'
    r"|(?:all_model_checkpoint_timestamps|last_preserved_timestamp): [0-9.e+\-]{1,40}"
)
_CHECKPOINT_HEAD = b"model_checkpoint_path:"


def _text_like(body: bytes) -> bool:
    return bool(body) and all(32 < byte < 127 for byte in body[:64])


def _is_saved_model(fields: list[Outline]) -> bool:
    """A schema version of 1 and meta graphs; some writers leave the version out, then a graph must be seen."""
    versioned = (fields[0].number, fields[0].wire, fields[0].value) == (1, VARINT, 1)
    rest = fields[1:] if versioned else fields
    if (
        not rest
        or (rest[0].number, rest[0].wire) != (2, LENGTH)
        or any(found.number >= 200 for found in rest)
    ):
        return False  # a number from 200 is a Core ML model
    inner = outline(rest[0].body)
    if versioned:
        return not rest[0].value or (
            bool(inner) and inner[0].wire == LENGTH and inner[0].number in _META_FIELDS
        )
    graphs = [found for found in inner if (found.number, found.wire) == (2, LENGTH)]
    only = all((found.number, found.wire) == (2, LENGTH) for found in rest)
    return only and bool(graphs) and all(_is_graph(outline(found.body)) for found in graphs)


def _is_graph(fields: list[Outline]) -> bool:
    """A first node of a name and an operator, or a library with a function."""
    if not fields or fields[0].wire != LENGTH or any(not 1 <= found.number <= 5 for found in fields):
        return False
    inner = outline(fields[0].body, 2)
    if fields[0].number != 1 or len(inner) < 2 or inner[0].number != 1 or inner[0].wire != LENGTH:
        return False
    return (
        (inner[1].number, inner[1].wire) == (2, LENGTH)
        and _text_like(inner[0].body)
        and _text_like(inner[1].body)
    )


def _is_meta_graph(fields: list[Outline]) -> bool:
    """Info first: a list of operators or a version text, then the graph."""
    first = fields[0]
    if (first.number, first.wire) != (1, LENGTH):
        return False
    inner = outline(first.body, 4)
    listed = next((found for found in inner if (found.number, found.wire) == (2, LENGTH)), None)
    if listed is None or any(found.wire != LENGTH for found in inner if found.number < 7):
        return False
    operators = outline(listed.body, 1)
    if not operators or (operators[0].number, operators[0].wire) != (1, LENGTH):
        return False
    name = outline(operators[0].body, 1)
    return bool(name) and (name[0].number, name[0].wire) == (1, LENGTH) and _text_like(name[0].body)


def _is_fingerprint(fields: list[Outline], head: bytes) -> bool:
    checksums = [found for found in fields if found.number <= 5]
    numbers = [found.number for found in fields]
    return (
        len(head) < 256
        and len(checksums) >= 3
        and all(found.wire == VARINT and found.value > 1 << 32 for found in checksums[:1])
        and all(found.wire in {VARINT, FIXED64} for found in checksums)
        and numbers == sorted(set(numbers))
        and numbers[-1] <= 7
    )


def _is_keras_metadata(fields: list[Outline]) -> bool:
    inner = outline(fields[0].body, 4)
    return (
        all((found.number, found.wire) == (1, LENGTH) for found in fields)
        and bool(inner)
        and inner[0].number in {2, 3}
        and any(found.number == 3 and found.body.startswith(b"root") for found in inner)
    )


def _kind_of(head: bytes, path: str) -> str:
    """Which of the files it is, or nothing."""
    if head.startswith(_CHECKPOINT_HEAD) and path.rpartition("/")[2] == "checkpoint":
        return "checkpoint"
    fields = outline(head, 4096)
    if not fields:
        return ""
    if _is_saved_model(fields):
        return "SavedModel"
    if _is_fingerprint(fields, head):
        return "FingerprintDef"
    if fields[0].number != 1 or fields[0].wire != LENGTH:
        return ""
    if _is_keras_metadata(fields):
        return "SavedMetadata"
    if _is_graph(fields):
        return "GraphDef"
    return "MetaGraphDef" if _is_meta_graph(fields) else ""


@dataclass(slots=True)
class _Objects:
    """What the object graph of one MetaGraphDef lets a user of the loaded model call."""

    functions: set[str] = field(default_factory=set)


@dataclass(slots=True)
class _Walk:
    reader: Reader
    findings: list[Finding] = field(default_factory=list)
    facts: dict[str, JSON] = field(default_factory=dict)
    assets: set[str] = field(default_factory=set)
    nodes: int = 0
    operators: int = 0

    def find(self, rule: str, message: str, offset: int | None) -> None:
        if len(self.findings) < 100:
            self.findings.append(Finding(f"tensorflow/{rule}", message, offset))

    def saved_model(self, end: int) -> None:
        tags: list[JSON] = []
        for part in self.reader.parts("SavedModel", 0, end, 0):
            if part.spec.name == "meta_graphs":
                self.meta_graph(part.begin, part.end, 1, tags)
        self.facts["tags"] = tags[:MAX_FACTS]

    def meta_graph(self, begin: int, end: int, depth: int, tags: list[JSON]) -> None:
        graph = Graph(self.reader, self.findings)
        objects = _Objects()
        holders: set[str] = set()
        signatures: list[JSON] = []
        for part in self.reader.parts("MetaGraphDef", begin, end, depth):
            label = part.spec.name
            if label == "graph_def":
                graph.read(part.begin, part.end, depth + 1)
            elif label == "meta_info_def":
                self._info(part, depth + 1, tags)
            elif label == "asset_file_def":
                holders.add(self._asset(part, depth + 1))
            elif label == "collection_def":
                holders |= self._collected(part, depth + 1)
            elif label == "object_graph_def":
                self._object_graph(part, depth + 1, objects)
            elif label == "signature_def":
                signatures.append(self.reader.pair(part.spec.kind, part, depth + 1)[0][:200])
                self.reader.skim_part(part, depth)
            else:
                self.reader.skim_part(part, depth)
        graph.settle(frozenset(holders), frozenset(objects.functions))
        self._add(graph)
        self.facts["signatures"] = signatures[:MAX_FACTS]

    def graph(self, end: int) -> None:
        graph = Graph(self.reader, self.findings)
        graph.read(0, end, 0)
        graph.settle()
        self._add(graph)

    def _add(self, graph: Graph) -> None:
        self.nodes += graph.nodes
        self.facts["functions"] = len(graph.scopes) - 1
        self.facts["operators"] = dict(graph.operators.most_common(MAX_FACTS))

    def _info(self, info: Part, depth: int, tags: list[JSON]) -> None:
        for part in self.reader.parts("MetaGraphDef.MetaInfoDef", info.begin, info.end, depth):
            if part.spec.name == "tags":
                tags.append(self.reader.text(part, 4096)[:200])
            elif part.spec.name == "tensorflow_version":
                self.facts["tensorflow_version"] = self.reader.text(part, 4096)[:80]
            else:
                self.reader.skim_part(part, depth)

    def _collected(self, collection: Part, depth: int) -> set[str]:
        """The assets that TensorFlow 1 lists in a collection instead: messages packed into Any."""
        self.reader.skim(collection.spec.kind, collection.begin, collection.end, depth)
        key, value = self.reader.pair(collection.spec.kind, collection, depth)
        if key != "saved_model_assets" or value is None:
            return set()
        reader = self.reader
        return {
            self._asset(packed, depth + 4)
            for part in reader.parts("CollectionDef", value.begin, value.end, depth + 1)
            if part.spec.kind == "CollectionDef.AnyList"
            for item in reader.parts(part.spec.kind, part.begin, part.end, depth + 2)
            for packed in reader.parts("Any", item.begin, item.end, depth + 3)
            if packed.spec.name == "value"
        }

    def _asset(self, asset: Part, depth: int) -> str:
        """The file of an asset; returns the node that holds its path."""
        holder = ""
        for part in self.reader.parts("AssetFileDef", asset.begin, asset.end, depth):
            if part.spec.name == "filename":
                name = self.reader.text(part, 4096)
                if not is_plain_path(name):
                    self.find("asset-path", f"asset {name[:80]!a}", part.begin)
                else:
                    self.assets.add(name)
                continue
            for inner in self.reader.parts("TensorInfo", part.begin, part.end, depth + 1):
                if inner.spec.name == "name":
                    holder = self.reader.text(inner, 4096).split(":", 1)[0]
                else:
                    self.reader.skim_part(inner, depth + 1)
        return holder

    def _object_graph(self, graph: Part, depth: int, objects: _Objects) -> None:
        for part in self.reader.parts("SavedObjectGraph", graph.begin, graph.end, depth):
            if part.spec.name == "concrete_functions":
                objects.functions.add(self.reader.pair(part.spec.kind, part, depth + 1)[0])
                self.reader.skim_part(part, depth)
                continue
            for inner in self.reader.parts("SavedObject", part.begin, part.end, depth + 1):
                self._object(inner, depth + 1, objects)

    def _object(self, part: Part, depth: int, objects: _Objects) -> None:
        label = part.spec.name
        if label == "user_object":
            for inner in self.reader.parts("SavedUserObject", part.begin, part.end, depth + 1):
                if inner.spec.name == "metadata" and inner.size:
                    self.metadata(inner)
                else:
                    self.reader.skim_part(inner, depth + 1)
        elif label == "registered_saver" and part.size:
            self.find("registered", f"saver {self.reader.text(part, 4096)[:80]!a}", part.begin)
        elif label == "bare_concrete_function":
            for inner in self.reader.parts("SavedBareConcreteFunction", part.begin, part.end, depth + 1):
                if inner.spec.name == "concrete_function_name":
                    objects.functions.add(self.reader.text(inner, 4096))
                else:
                    self.reader.skim_part(inner, depth + 1)
        else:
            self.reader.skim_part(part, depth)

    def keras_metadata(self, end: int) -> None:
        for part in self.reader.parts("SavedMetadata", 0, end, 0):
            for inner in self.reader.parts("KerasObject", part.begin, part.end, 1):
                if inner.spec.name == "metadata" and inner.size:
                    self.metadata(inner)
                else:
                    self.reader.skim_part(inner, 1)
            self.nodes += 1

    def metadata(self, part: Part) -> None:
        """One Keras configuration. Anything that is not JSON is no configuration."""
        text = self.reader.raw(part, MAX_METADATA_BYTES)
        try:
            tree = parse(text, max_bytes=MAX_METADATA_BYTES, max_depth=MAX_METADATA_DEPTH)
        except Malformed as error:
            raise Malformed(f"Keras metadata: {error.message}", rule=error.rule, offset=part.begin) from error
        for finding in examine_objects(tree):
            # Specifications of inputs are looked up in TensorFlow's own register.
            if (finding.rule, finding.member) != ("keras/class", "TypeSpec"):
                self.findings.append(replace(finding, offset=part.begin))


class TensorflowFormat:
    """The plug of `steelyard.formats`."""

    name = "tensorflow"
    rules = RULES

    def sniff(self, head: bytes, path: str) -> bool:
        return bool(_kind_of(head, path))

    def read(self, source: ByteSource, path: str) -> Report:
        kind = _kind_of(source.read(0, min(source.size, 4096)), path)
        walk = _Walk(Reader(source, MESSAGES, "tensorflow"))
        if kind == "checkpoint":
            return self._checkpoint(source)
        if kind == "SavedModel":
            walk.saved_model(source.size)
        elif kind == "MetaGraphDef":
            walk.meta_graph(0, source.size, 0, [])
        elif kind == "GraphDef":
            walk.graph(source.size)
        elif kind == "SavedMetadata":
            walk.keras_metadata(source.size)
        else:
            walk.reader.skim("FingerprintDef", 0, source.size, 0)
        if walk.nodes == 0 and kind != "FingerprintDef":
            walk.find("empty", "no node in it", 0)
        folder = "assets/" if kind == "SavedModel" else ""
        references = tuple(Reference(folder + name) for name in sorted(walk.assets))
        facts: dict[str, JSON] = {"kind": kind, "nodes": walk.nodes, **walk.facts}
        return Report(self.name, facts, tuple(walk.findings), references=references)

    def _checkpoint(self, source: ByteSource) -> Report:
        if source.size > MAX_CHECKPOINT_BYTES:
            raise Malformed(f"{source.size} bytes", rule="tensorflow/limit", offset=0)
        findings = []
        try:
            text = source.read(0, source.size).decode()
        except UnicodeDecodeError as error:
            raise Malformed("not UTF-8", rule="tensorflow/encoding", offset=error.start) from error
        for line in text.splitlines():
            match = _CHECKPOINT_LINE.fullmatch(line)
            if match is None:
                raise Malformed(f"the line {line[:80]!a}", rule="tensorflow/field", offset=None)
            if match[2] is not None and not is_plain_path(match[2]):
                findings.append(Finding("tensorflow/checkpoint-path", f"checkpoint {match[2][:80]!a}", None))
        return Report(self.name, {"kind": "checkpoint"}, tuple(findings))


FORMAT = TensorflowFormat()
