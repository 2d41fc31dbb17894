"""Prose beside the weights: model card, licence, notice. UTF-8 without control characters, bounded."""

import re
import unicodedata
from collections.abc import Iterator, Mapping
from itertools import islice

from steelyard.digest import JSON
from steelyard.errors import Malformed
from steelyard.formats.base import ByteSource, Finding, Format, Report, Rule, Severity
from steelyard.formats.licence_text import named, recognise, to_json
from steelyard.formats.pickle_in_text import runs_as_pickle

MAX_BYTES = 4 << 20
MAX_FRONT_MATTER_LINES = 2000
MAX_FINDINGS = 10
RULES: Mapping[str, Rule] = {
    "text/size": Rule("a text that exhausts whoever reads it", "shorten it, or remove it"),
    "text/encoding": Rule("bytes that readers decode in different ways", "store the text as UTF-8"),
    "text/pickle": Rule(
        "a pickle of text opcodes, which passes for prose and runs when it is loaded", "remove the file"
    ),
    "text/control": Rule("control characters that rewrite what a terminal shows", "remove them"),
    "text/installer": Rule(
        "packages from an address, a repository or a local path, whose code the installer runs",
        "name packages of a registry and their versions",
        Severity.REVIEW,
    ),
}
_NAMES = re.compile(
    r"(readme|licen[cs]e|notice|copying|use_policy|usage_policy|acceptable_use|model_card|modelcard|changelog|authors"
    r"|citation|contributors|third_party_notices?|copyright)([-_.].*)?",
    re.IGNORECASE,
)
_SUFFIXES = (".md", ".txt", ".rst")
_PAIR = re.compile(r"([A-Za-z][\w-]*):[ \t]*(\S.*)?")
_ITEM = re.compile(r"\s*-[ \t]+(\S.*)")
# Text files that other formats claim by name.
_NOT_PROSE = frozenset({"merges.txt", "vocab.txt"})
MAX_REQUIREMENTS = 2000
# A package by name and extras, then versions, then an environment marker; no address, no option, no path.
_REQUIREMENT = re.compile(r"([A-Za-z0-9][\w.-]*)[ \t]*(?:\[[\w ,.-]*\])?")
_VERSION = re.compile(r"\s*(?:===?|[<>!~]=|[<>])\s*[\w.*+-]+\s*")
_ALLOWED_CONTROL = frozenset("\t\n\r\f\ufeff\u200b\u200c\u200d\u00ad\u2060")


class TextFormat:
    """Claims prose by name, if its first bytes are text."""

    name = "text"
    rules = RULES

    def sniff(self, head: bytes, path: str) -> bool:
        base = path.rpartition("/")[2]
        prose = base.lower().endswith(_SUFFIXES) or ("." not in base and _NAMES.fullmatch(base) is not None)
        if head.startswith(b"tree\nversion="):  # LightGBM's model, see lightgbm_model.py
            return False
        return prose and base not in _NOT_PROSE and b"\0" not in head and head[:2] not in (b"PK", b"\x80\x02")

    def read(self, source: ByteSource, path: str) -> Report:
        text = text_of(source)
        findings = (*_pickled(source), *islice(_hidden(text), MAX_FINDINGS))
        facts: dict[str, JSON] = {"characters": len(text)}
        base = path.rpartition("/")[2].lower()
        if base.startswith(("licen", "copying", "unlicen")):
            facts |= to_json(recognise(text))
        elif base.startswith(("notice", "use_policy")):
            if (licence := named(text)) is not None:
                facts["licence_named"] = licence
        elif _is_requirements(base):
            facts["packages"], asks = _packages(text)
            findings = (*findings, *asks)
        elif base.startswith(("readme", "model_card", "modelcard")):
            facts["front_matter"] = front_matter(text)
        return Report(self.name, facts, findings)


def _pickled(source: ByteSource) -> Iterator[Finding]:
    if (imported := runs_as_pickle(source)) is not None:
        yield Finding("text/pickle", f"is also a pickle that imports {imported[:80]}", 0)


def _is_requirements(base: str) -> bool:
    return base.endswith(".txt") and base.startswith(("requirements", "constraints"))


def _packages(text: str) -> tuple[list[JSON], list[Finding]]:
    """The packages a requirements file names, and one question if an installer would fetch anything by address."""
    packages: list[JSON] = []
    asks: list[str] = []
    for line in (line.partition("#")[0].strip() for line in text.splitlines()[:MAX_REQUIREMENTS]):
        if not line:
            continue
        if (package := _package_of(line)) is not None:
            packages.append(package)
        elif len(asks) < MAX_FINDINGS:
            asks.append(line[:100])
    if not asks:
        return packages, []
    shown = ", ".join(ascii(ask) for ask in asks[:3])
    return packages, [Finding("text/installer", f"an installer would read {shown}; install it?")]


def _package_of(line: str) -> str | None:
    """The package a line names, if that and versions of it is all the line says."""
    named, _, marker = line.partition(";")
    match = _REQUIREMENT.match(named)
    if match is None or "@" in marker or "/" in marker:
        return None
    versions = named[match.end() :].strip().removeprefix("(").removesuffix(")")
    if versions and not all(_VERSION.fullmatch(each) for each in versions.split(",")):
        return None
    return match[1]


def _hidden(text: str) -> Iterator[Finding]:
    for index, char in enumerate(text):
        if char not in _ALLOWED_CONTROL and unicodedata.category(char) in ("Cc", "Cf", "Co"):
            yield Finding("text/control", f"the control character {char!r}", len(text[:index].encode()))


def text_of(source: ByteSource) -> str:
    """The whole text. Raises Malformed when it is too long or not UTF-8."""
    if source.size > MAX_BYTES:
        raise Malformed(f"{source.size} bytes; at most {MAX_BYTES} are read", rule="text/size")
    try:
        return source.read(0, source.size).decode()
    except UnicodeDecodeError as error:
        raise Malformed("not UTF-8", rule="text/encoding", offset=error.start) from error


def front_matter(text: str) -> dict[str, JSON]:
    """The plain `key: value` and `key:` with `- item` lines between the first two `---` lines; the rest is left out.

    Model cards carry their licence, base model and data sets there. A list stays a list of texts.
    """
    lines = text.splitlines()[:MAX_FRONT_MATTER_LINES]
    if not lines or lines[0].strip() != "---":
        return {}
    fields: dict[str, JSON] = {}
    items: list[JSON] | None = None
    for line in lines[1:]:
        if line.strip() == "---":
            return fields
        if items is not None and (item := _ITEM.fullmatch(line)):
            items.append(_unquoted(item[1]))
        elif pair := _PAIR.fullmatch(line):
            items = None if pair[2] else []
            fields[pair[1]] = _unquoted(pair[2]) if pair[2] else items
    return {}  # never closed: not front matter


def _unquoted(value: str) -> str:
    value = value.strip()
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value


FORMAT: Format = TextFormat()
