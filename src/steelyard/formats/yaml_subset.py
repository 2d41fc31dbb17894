"""The part of YAML that configuration files need, read in one way only.

Read: block mappings and sequences, flow collections, plain, quoted and block scalars, comments, one document.
Refused: tags (a `!!python/` tag makes PyYAML's full loader call what it names), anchors, aliases and merge keys
(a few lines expand to gigabytes), directives, further documents, complex keys, tabs as indentation, a key twice.

Scalars come back as None, bool, int, float or str by YAML 1.1's common forms; every other word is a text.
Source: YAML 1.2.2, chapters 6 to 9; PyYAML 6's resolver for what is a bool or a null.
"""

import re
from collections.abc import Mapping
from typing import Final, NoReturn

from steelyard.digest import JSON
from steelyard.errors import Malformed
from steelyard.formats.base import Rule

MAX_BYTES = 8 << 20
MAX_LINES = 100_000
MAX_DEPTH = 48
MAX_VALUES = 100_000
MAX_FLOW_CHARS = 1 << 20  # one flow collection or quoted text

_PLAIN_FILE = "Write the file with plain mappings, lists and texts."
RULES: Final[Mapping[str, Rule]] = {
    "yaml/size": Rule("A text so large or so deep that reading it exhausts memory.", _PLAIN_FILE),
    "yaml/encoding": Rule("Bytes or control characters that readers take differently.", _PLAIN_FILE),
    "yaml/syntax": Rule("Text that YAML readers take differently, or not at all.", _PLAIN_FILE),
    "yaml/duplicate-key": Rule("A key given twice: each reader picks its own.", _PLAIN_FILE),
    "yaml/tag": Rule("A tag: PyYAML's full loader imports and calls what it names.", _PLAIN_FILE),
    "yaml/alias": Rule("Anchors and aliases: a few lines that expand to gigabytes, or a loop.", _PLAIN_FILE),
    "yaml/document": Rule(
        "A second document or a directive: readers differ in which they take.", _PLAIN_FILE
    ),
}

_NULLS: Final = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE: Final = frozenset({"true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"})
_FALSE: Final = frozenset({"false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"})
_INT = re.compile(r"[-+]?[0-9]{1,400}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]{1,300}|[0-9]{1,300}(\.[0-9]{0,300})?)([eE][-+]?[0-9]{1,3})?")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x85\u2028\u2029\ufeff\u202a-\u202e\u2066-\u2069]")
_KEY_END = re.compile(r":(?= |$)")
_FLOW_END = re.compile(r"[,\[\]{}\0]|:(?=[\s,\]}\0])")
_BLOCK = re.compile(r"([|>])([0-9]?[-+]?|[-+][0-9])(\s+#.*)?")
_ESCAPES: Final = {
    "0": "\0", "a": "\a", "b": "\b", "t": "\t", "\t": "\t", "n": "\n", "v": "\v", "f": "\f", "r": "\r", "e": "\x1b",
    " ": " ", '"': '"', "/": "/", "\\": "\\", "N": "\x85", "_": "\xa0", "L": "\u2028", "P": "\u2029",
}  # fmt: skip
_HEX: Final = {"x": 2, "u": 4, "U": 8}


def parse_yaml(data: bytes) -> JSON:
    """The value of a YAML text. Raises Malformed with one of RULES; offsets count bytes up to the line."""
    if len(data) > MAX_BYTES:
        raise Malformed(f"YAML of {len(data)} bytes; at most {MAX_BYTES} are read", rule="yaml/size")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise Malformed("the text is not UTF-8", rule="yaml/encoding", offset=error.start) from error
    found = _CONTROL.search(text)
    if found:
        offset = len(text[: found.start()].encode())
        raise Malformed(f"the character {found[0]!a}", rule="yaml/encoding", offset=offset)
    return _Parser(text).document()


class _Parser:
    """One pass over the lines; `_at` is the line read next. A line may be rewritten by what it opens."""

    def __init__(self, text: str) -> None:
        self._lines = text.replace("\r\n", "\n").split("\n")
        self._at = 0
        self._values = 0
        if len(self._lines) > MAX_LINES:
            self._refuse("size", f"{len(self._lines)} lines; at most {MAX_LINES} are read")

    def _refuse(self, rule: str, message: str) -> NoReturn:
        line = min(self._at, len(self._lines) - 1)
        raise Malformed(f"line {line + 1}: {message}", rule=f"yaml/{rule}")

    def document(self) -> JSON:
        self._skip()
        if self._at < len(self._lines) and self._lines[self._at].rstrip() == "---":
            self._lines[self._at] = ""
        value = self._block(0, 0)
        if self._peek() is not None:
            self._refuse("syntax", "text that belongs to nothing before it")
        return value

    # Lines

    def _skip(self) -> None:
        while self._at < len(self._lines):
            bare = self._lines[self._at].lstrip(" ")
            if bare and bare[0] != "#" and bare.strip():
                return
            self._at += 1

    def _peek(self) -> tuple[int, str] | None:
        """Indentation and text of the next line with content, without its comment's line."""
        self._skip()
        if self._at == len(self._lines):
            return None
        line = self._lines[self._at]
        bare = line.lstrip(" ")
        if bare[0] == "\t":
            self._refuse("syntax", "a tab as indentation")
        is_mark = line.startswith(("---", "...")) and not line[3:4].strip()
        if is_mark or line[0] == "%":
            self._refuse("document", "a directive or a second document")
        return len(line) - len(bare), bare.rstrip()

    def _count(self, depth: int) -> None:
        self._values += 1
        if self._values > MAX_VALUES or depth > MAX_DEPTH:
            self._refuse("size", f"more than {MAX_VALUES} values or {MAX_DEPTH} levels")

    # Blocks

    def _block(self, indent: int, depth: int) -> JSON:
        """The node that begins on the next line, indented by at least `indent`; None when there is none."""
        self._count(depth)
        line = self._peek()
        if line is None or line[0] < indent:
            return None
        found, text = line
        if text == "-" or text.startswith("- "):
            return self._sequence(found, depth)
        if text == "?" or text.startswith("? "):
            self._refuse("syntax", "a complex key")
        if self._key(text) is not None:
            return self._mapping(found, depth)
        self._at += 1
        return self._inline(text, indent - 1, depth)

    def _sequence(self, indent: int, depth: int) -> JSON:
        items: list[JSON] = []
        while (line := self._peek()) is not None and line[0] == indent:
            text = line[1]
            if text != "-" and not text.startswith("- "):
                break
            rest = text[1:].lstrip(" ")
            if not rest or rest[0] == "#":
                self._at += 1
                items.append(self._block(indent + 1, depth + 1))
            elif (rest[0] == "-" and rest[1:2] in {"", " "}) or self._key(rest) is not None:
                inner = indent + len(text) - len(rest)
                self._lines[self._at] = " " * inner + rest
                items.append(self._block(inner, depth + 1))
            else:
                self._at += 1
                self._count(depth)
                items.append(self._inline(rest, indent, depth))
        if line is not None and line[0] > indent:
            self._refuse("syntax", "a line indented deeper than its list")
        return items

    def _mapping(self, indent: int, depth: int) -> JSON:
        found: dict[str, JSON] = {}
        while (line := self._peek()) is not None and line[0] == indent:
            split = self._key(line[1])
            if split is None:
                break
            key, rest = split
            if key in found:
                self._refuse("duplicate-key", f"the key {key[:80]!a} stands twice")
            if key == "<<":
                self._refuse("alias", "a merge key")
            self._at += 1
            if rest and rest[0] != "#":
                self._count(depth)
                found[key] = self._inline(rest, indent, depth)
                continue
            below = self._peek()
            is_list = below is not None and (below[1] == "-" or below[1].startswith("- "))
            found[key] = self._block(indent if is_list else indent + 1, depth + 1)
        if line is not None and line[0] > indent:
            self._refuse("syntax", "a line indented deeper than its mapping")
        return found

    def _key(self, text: str) -> tuple[str, str] | None:
        """A line's key and what stands behind its colon; None when it has no key."""
        if text[0] in "\"'":
            end = self._quote_end(text, 0)
            if end < 0 or not _KEY_END.match(text, end):
                return None
            return self._unquote(text[:end]), text[end + 1 :].strip()
        if text[0] in "[{|>%@`#,]}":
            return None
        if text[0] in "&*!":
            self._special(text[0])
        colon = _KEY_END.search(text)
        comment = text.find(" #")
        if colon is None or 0 <= comment < colon.start():
            return None
        return text[: colon.start()].rstrip(), text[colon.end() :].strip()

    def _special(self, first: str) -> NoReturn:
        if first == "!":
            self._refuse("tag", "a tag")
        self._refuse("alias", "an anchor or an alias")

    # Scalars and flow collections on the line of their key

    def _inline(self, text: str, indent: int, depth: int) -> JSON:
        """The value that starts with `text`; lines indented deeper than `indent` may continue it."""
        first = text[0]
        if first in "&*!":
            self._special(first)
        if first in "%@`,]}":
            self._refuse("syntax", f"a value that begins with {first}")
        if first in "|>":
            return self._block_scalar(text, indent)
        if first in "[{":
            return self._flow(text, depth)
        if first in "\"'":
            return self._quoted(text)
        return self._plain(text, indent)

    def _plain(self, text: str, indent: int) -> JSON:
        parts = [self._bare(text)]
        while (line := self._peek()) is not None and line[0] > indent:
            if _KEY_END.search(line[1].split(" #")[0]):
                self._refuse("syntax", "a key inside a text")
            self._at += 1
            parts.append(self._bare(line[1]))
        words = [part for part in parts if part]
        return _scalar(words[0]) if len(words) == 1 else " ".join(words)

    def _bare(self, text: str) -> str:
        """A plain scalar's line without its comment."""
        bare = text.split(" #", 1)[0].rstrip()
        if _KEY_END.search(bare):
            self._refuse("syntax", "a second key on one line")
        return bare

    def _block_scalar(self, text: str, indent: int) -> str:
        head = _BLOCK.fullmatch(text)
        if head is None:
            self._refuse("syntax", "text behind the mark of a block text")
        digits = head[2].strip("+-")
        inner = max(indent, 0) + int(digits) if digits else 0
        lines: list[str] = []
        while self._at < len(self._lines):
            line = self._lines[self._at]
            found = len(line) - len(line.lstrip(" "))
            if line.strip():
                if found <= indent or (inner and found < inner):
                    break
                inner = inner or found
            lines.append(line[inner:] if inner else "")
            self._at += 1
        return ("\n" if head[1] == "|" else " ").join(lines)

    def _quote_end(self, text: str, begin: int) -> int:
        """The index behind the closing quote of the text quoted at `begin`; -1 when this line does not close it."""
        quote, at = text[begin], begin + 1
        while at < len(text):
            if quote == '"' and text[at] == "\\":
                at += 1
            elif text[at] == quote:
                if quote == '"' or text[at + 1 : at + 2] != "'":
                    return at + 1
                at += 1
            at += 1
        return -1

    def _unquote(self, text: str) -> str:
        if text[0] == "'":
            return text[1:-1].replace("''", "'")
        parts: list[str] = []
        at, body = 0, text[1:-1]
        while (slash := body.find("\\", at)) >= 0:
            parts.append(body[at:slash])
            kind = body[slash + 1 : slash + 2]
            digits = body[slash + 2 : slash + 2 + _HEX.get(kind, 0)]
            if (
                kind in _HEX
                and re.fullmatch(f"[0-9a-fA-F]{{{_HEX[kind]}}}", digits)
                and int(digits, 16) < 0x110000
            ):
                parts.append(chr(int(digits, 16)))
            elif kind in _ESCAPES:
                parts.append(_ESCAPES[kind])
            else:
                self._refuse("syntax", f"the escape {kind!a}")
            at = slash + 2 + len(digits)
        return "".join([*parts, body[at:]])

    def _quoted(self, text: str) -> str:
        whole, end = self._gather(text)
        tail = whole[end:].strip()
        if tail and tail[0] != "#":
            self._refuse("syntax", "text behind a quoted text")
        return self._unquote(whole[:end])

    def _gather(self, text: str) -> tuple[str, int]:
        """`text` with as many further lines as its quote or bracket needs, and where that closes."""
        kept: list[str] = []
        size, depth, quote = 0, 0, ""
        while True:
            at = 0
            while at < len(text):
                char = text[at]
                if quote:
                    if (char == "\\" and quote == '"') or text[at : at + 2] == quote * 2 == "''":
                        at += 1
                    elif char == quote:
                        quote = ""
                elif char in "\"'" and (at == 0 or text[at - 1] in "[{,: "):
                    quote = char
                elif char == "#" and (at == 0 or text[at - 1] == " "):
                    text = text[:at]
                elif char in "[{":
                    depth += 1
                elif char in "]}":
                    depth -= 1
                at += 1
                if not quote and depth <= 0 and char in "\"']}":
                    return "".join([*kept, text]), size + at
            kept.append(text + " ")
            size += len(text) + 1
            if size > MAX_FLOW_CHARS or self._at >= len(self._lines):
                self._refuse("syntax", "a quote or bracket that is not closed where it should")
            text = self._lines[self._at].strip()
            self._at += 1

    def _flow(self, text: str, depth: int) -> JSON:
        whole, end = self._gather(text)
        tail = whole[end:].strip()
        if tail and tail[0] != "#":
            self._refuse("syntax", "text behind a flow collection")
        value, at = self._flow_node(whole[:end] + "\0", 0, depth)
        if at != end:
            self._refuse("syntax", "a flow collection that ends twice")
        return value

    def _flow_node(self, text: str, at: int, depth: int) -> tuple[JSON, int]:
        self._count(depth)
        first = text[at]
        if first in "&*!":
            self._special(first)
        if first in "\"'":
            end = self._quote_end(text, at)
            if end < 0:
                self._refuse("syntax", "a quote that is never closed")
            return self._unquote(text[at:end]), end
        if first == "[":
            return self._flow_list(text, at + 1, depth + 1)
        if first == "{":
            return self._flow_mapping(text, at + 1, depth + 1)
        found = _FLOW_END.search(text, at)
        end = found.start() if found else len(text) - 1
        return _scalar(text[at:end].strip()), end

    def _flow_list(self, text: str, at: int, depth: int) -> tuple[JSON, int]:
        items: list[JSON] = []
        while True:
            at = _blank(text, at)
            if text[at] == "]":
                return items, at + 1
            value, at = self._flow_node(text, at, depth)
            at = _blank(text, at)
            if text[at] == ":":
                key = str(value)
                value, at = self._flow_node(text, _blank(text, at + 1), depth)
                value = {key: value}
                at = _blank(text, at)
            items.append(value)
            at = self._flow_comma(text, at, "]")

    def _flow_mapping(self, text: str, at: int, depth: int) -> tuple[JSON, int]:
        found: dict[str, JSON] = {}
        while True:
            at = _blank(text, at)
            if text[at] == "}":
                return found, at + 1
            key, at = self._flow_node(text, at, depth)
            if isinstance(key, (dict, list)) or key in found or str(key) == "<<":
                self._refuse("duplicate-key", f"the key {str(key)[:80]!a} is twice there or no text")
            at = _blank(text, at)
            value: JSON = None
            if text[at] == ":":
                at = _blank(text, at + 1)
                if text[at] not in ",}":
                    value, at = self._flow_node(text, at, depth)
            found[str(key)] = value
            at = self._flow_comma(text, _blank(text, at), "}")

    def _flow_comma(self, text: str, at: int, closing: str) -> int:
        if text[at] == ",":
            return at + 1
        if text[at] != closing:
            self._refuse("syntax", f"expected a comma or {closing}")
        return at


def _blank(text: str, at: int) -> int:
    while at < len(text) - 1 and text[at] in " \t\n":
        at += 1
    return at


def _scalar(word: str) -> JSON:
    if word in _NULLS:
        return None
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    if _INT.fullmatch(word):
        return int(word)
    return float(word) if _FLOAT.fullmatch(word) else word
