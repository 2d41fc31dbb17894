"""PMML: models as XML of the Data Mining Group.

Expat reads it with every declaration refused: no document type, hence no entities, no external files and no
expansion. Elements of other vocabularies are refused, `Extension` may hold a name and a value in the header and no
more, a function of a Java class (a dotted name, which JPMML loads by name) is refused, and so is TableLocator.
Source: PMML 4.4.1 (dmg.org), general structure, functions; JPMML-Evaluator's function registry.
"""

import re
from collections.abc import Mapping
from typing import Final
from xml.parsers import expat

from steelyard.digest import JSON
from steelyard.errors import Malformed
from steelyard.formats.base import ByteSource, Finding, Report, Rule

MAX_BYTES = 64 << 20
MAX_DEPTH = 256
MAX_ELEMENTS = 500_000
MAX_FINDINGS = 20
_STEP = 1 << 16

_EXPORT = "Export the model again as plain PMML."
RULES: Final[Mapping[str, Rule]] = {
    "pmml/size": Rule("A document so large or so deep that reading it exhausts memory.", _EXPORT),
    "pmml/declaration": Rule(
        "A document type or entity: files are read and texts expand without end.", _EXPORT
    ),
    "pmml/syntax": Rule("XML that readers take differently, or not at all.", _EXPORT),
    "pmml/extension": Rule("An extension, in which vendors put scripts that their engine runs.", _EXPORT),
    "pmml/foreign": Rule("Elements of another vocabulary, or data of another file.", _EXPORT),
    "pmml/function": Rule(
        "A function by the name of a Java class, which the engine loads and calls.", _EXPORT
    ),
}
_SPACE = re.compile(r"http://www\.dmg\.org/PMML-[0-9_]{1,6}")
_ROOT = re.compile(rb"\s*(<\?xml[^>]{0,200}\?>)?(\s|<!--.{0,1000}?-->)*<(!DOCTYPE\s+)?PMML[\s>]", re.DOTALL)
_FUNCTION = re.compile(r"[A-Za-z+*/-][A-Za-z0-9_ +*/-]{0,80}")
_SHORT = 400


class PmmlFormat:
    """Claims by the root element."""

    name = "pmml"
    rules = RULES

    def sniff(self, head: bytes, path: str) -> bool:  # noqa: ARG002 - the plug's signature
        return _ROOT.match(head.removeprefix(b"\xef\xbb\xbf")) is not None

    def read(self, source: ByteSource, path: str) -> Report:  # noqa: ARG002 - the plug's signature
        if source.size > MAX_BYTES:
            raise Malformed(f"{source.size} bytes; at most {MAX_BYTES} are read", rule="pmml/size")
        reader = _Reader()
        reader.read(source)
        facts: dict[str, JSON] = {
            "version": reader.version,
            "elements": reader.elements,
            "models": reader.models,
        }
        return Report(self.name, facts, tuple(reader.findings))


class _Reader:
    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.elements = 0
        self.version = ""
        self.models: list[JSON] = []
        self._stack: list[str] = []
        self._parser = expat.ParserCreate(namespace_separator=" ")
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._text
        self._parser.StartDoctypeDeclHandler = self._declaration
        self._parser.EntityDeclHandler = self._declaration
        self._parser.ProcessingInstructionHandler = self._instruction

    def read(self, source: ByteSource) -> None:
        try:
            for at in range(0, source.size, _STEP):
                self._parser.Parse(source.read(at, min(_STEP, source.size - at)), at + _STEP >= source.size)
        except expat.ExpatError as error:
            at = self._parser.CurrentByteIndex
            raise Malformed(f"not XML: {error}", rule="pmml/syntax", offset=at) from error

    def _declaration(self, name: str, *_: object) -> None:
        at = self._parser.CurrentByteIndex
        raise Malformed(f"the declaration {name[:80]!a}", rule="pmml/declaration", offset=at)

    def _instruction(self, target: str, _data: str) -> None:
        at = self._parser.CurrentByteIndex
        raise Malformed(f"the processing instruction {target[:80]!a}", rule="pmml/foreign", offset=at)

    def _find(self, rule: str, message: str) -> None:
        if len(self.findings) < MAX_FINDINGS:
            self.findings.append(Finding(rule, message, self._parser.CurrentByteIndex))

    def _start(self, full: str, attributes: dict[str, str]) -> None:
        space, _, name = full.rpartition(" ")
        self.elements += 1
        if self.elements > MAX_ELEMENTS or len(self._stack) >= MAX_DEPTH:
            raise Malformed(f"more than {MAX_ELEMENTS} elements or {MAX_DEPTH} levels", rule="pmml/size")
        in_rows = "InlineTable" in self._stack  # rows of data may be named as their columns are
        if not self._stack:
            self.version = attributes.get("version", "")[:20]
            if name != "PMML" or not (_SPACE.fullmatch(space) or not space):
                self._find("pmml/foreign", f"the root is {full[:120]!a}")
        elif not in_rows and space != "" and not _SPACE.fullmatch(space):
            self._find("pmml/foreign", f"an element {full[:120]!a}")
        elif "Extension" in self._stack:
            self._find("pmml/extension", f"{name[:80]!a} inside an extension")
        if name == "Extension":
            value = attributes.get("value", "")
            if self._stack[-1:] not in (["Header"], ["Annotation"]) or len(value) > _SHORT:
                self._find("pmml/extension", f"an extension {attributes.get('name', '')[:80]!a}")
        elif name == "TableLocator":
            self._find("pmml/foreign", "a table of another file or data base")
        elif name == "Apply" and not _FUNCTION.fullmatch(attributes.get("function", "")):
            self._find("pmml/function", f"the function {attributes.get('function', '')[:80]!a}")
        if len(self._stack) == 1 and name.endswith("Model") and len(self.models) < 16:
            self.models.append(name[:80])
        self._stack.append(name)

    def _end(self, _name: str) -> None:
        self._stack.pop()

    def _text(self, text: str) -> None:
        if self._stack[-1] == "Extension" and text.strip():
            self._find("pmml/extension", f"an extension holds the text {text.strip()[:60]!a}")


FORMAT: Final = PmmlFormat()
