"""Pictures beside a model card: PNG, JPEG, GIF and WebP by a walk over their blocks, SVG by its elements.

No pixel is decoded. The walk must end where the file ends: what follows the last block is another file's hiding place
(a ZIP behind a PNG is both). An SVG is a program when it holds scripts, handlers or entities; those are refused.

| kind | layout | source |
|---|---|---|
| PNG | 8 bytes, then chunks: length u32, type, data, CRC-32; IHDR first, IEND last | W3C PNG |
| JPEG | FF D8, segments FF xx length u16, scans, FF D9 | ITU T.81 annex B |
| GIF | header, screen, colour table, blocks 2C / 21, trailer 3B | GIF89a |
| WebP | RIFF, length u32, WEBP, chunks: type, length u32, data padded to even | RFC 9649 |
"""

import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Literal
from xml.parsers import expat

from steelyard.errors import Malformed
from steelyard.formats.base import ByteSource, Finding, Format, Report, Rule

MAX_BYTES = 64 << 20
MAX_BLOCKS = 1_000_000
MAX_SVG_BYTES = 4 << 20
MAX_SVG_DEPTH = 100

RULES: Mapping[str, Rule] = {
    "image/size": Rule("a picture that exhausts whoever opens it", "make it smaller, or remove it"),
    "image/structure": Rule(
        "a broken picture: decoders of C code read past what it says", "save it again, or remove it"
    ),
    "image/trailing": Rule("a second file behind a picture's end", "save the picture again, or remove it"),
    "image/active": Rule(
        "an SVG that runs scripts, loads addresses or expands entities when it is shown",
        "save it as PNG, or as plain SVG",
    ),
}
_PNG = b"\x89PNG\r\n\x1a\n"
_SVG_NAMESPACES = (
    "http://www.w3.org/2000/svg",
    "http://www.w3.org/1999/xlink",
    "http://www.w3.org/XML/1998/namespace",
)
_SVG_ACTIVE = frozenset(
    {
        "script",
        "foreignobject",
        "iframe",
        "object",
        "embed",
        "handler",
        "listener",
        "audio",
        "video",
        "set",
        "use",
    }
)
_SVG_LINK = re.compile(r"(?i)\s*(?:#|data:image/(?:png|jpeg|gif|webp);base64,)")
_SVG_STYLE = re.compile(r"(?i)@import|expression\s*\(|javascript:|url\(\s*['\"]?\s*(?!#)")


class ImageFormat:
    """Claims pictures by their first bytes, SVG by name and its first character."""

    name = "image"
    rules = RULES

    def sniff(self, head: bytes, path: str) -> bool:
        return _kind(head, path) is not None

    def read(self, source: ByteSource, path: str) -> Report:
        if source.size > MAX_BYTES:
            raise Malformed(f"{source.size} bytes; at most {MAX_BYTES} are read", rule="image/size", offset=0)
        data = source.read(0, source.size)
        kind = _kind(data[:64], path) or "svg"
        if kind == "svg":
            return Report(self.name, {"kind": kind}, tuple(_svg(data)))
        try:
            end = _WALKS[kind](data)
        except (IndexError, ValueError) as error:
            raise Malformed(f"the {kind} breaks off", rule="image/structure", offset=len(data)) from error
        if end != len(data):
            message = f"{len(data) - end} bytes follow the {kind}'s end"
            return Report(self.name, {"kind": kind}, (Finding("image/trailing", message, end),))
        return Report(self.name, {"kind": kind})


def _kind(head: bytes, path: str) -> str | None:
    if head.startswith(_PNG):
        return "png"
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "gif"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if path.lower().endswith(".svg") and head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"<":
        return "svg"
    return None


def _u32(data: bytes, at: int, order: Literal["big", "little"] = "big") -> int:
    if at + 4 > len(data):
        raise ValueError(at)
    return int.from_bytes(data[at : at + 4], order)


def _broken(what: str, at: int) -> Malformed:
    return Malformed(what, rule="image/structure", offset=at)


def _png(data: bytes) -> int:
    at, first = len(_PNG), True
    view = memoryview(data)
    for _ in range(MAX_BLOCKS):
        length, kind = _u32(data, at), data[at + 4 : at + 8]
        if first != (kind == b"IHDR") or not kind.isalpha():
            raise _broken(f"chunk {kind!r} where another is expected", at)
        end = at + 12 + length
        if zlib.crc32(view[at + 4 : end - 4]) != _u32(data, end - 4):
            raise _broken(f"the checksum of chunk {kind!r} is wrong", at)
        if kind == b"IEND":
            return end
        at, first = end, False
    raise _broken("too many chunks", at)


def _jpeg(data: bytes) -> int:
    at = 2
    for _ in range(MAX_BLOCKS):
        if data[at] != 0xFF:
            raise _broken("a segment that does not begin with FF", at)
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
        elif marker == 0xD9:
            return at + 2
        elif marker == 0x01 or 0xD0 <= marker <= 0xD7:
            at += 2
        else:
            length = int.from_bytes(data[at + 2 : at + 4], "big")
            if length < 2 or marker < 0xC0:
                raise _broken(f"segment FF {marker:02X} of {length} bytes", at)
            at += 2 + length
            if marker == 0xDA:
                at = _scan_end(data, at)
    raise _broken("too many segments", at)


def _scan_end(data: bytes, at: int) -> int:
    """Where coded data ends: the next FF that is neither escaped (00) nor a restart mark."""
    while True:
        at = data.index(b"\xff", at)
        if data[at + 1] != 0 and not 0xD0 <= data[at + 1] <= 0xD7:
            return at
        at += 2


def _gif(data: bytes) -> int:
    at = 13 + _colours(data[10])
    for _ in range(MAX_BLOCKS):
        if data[at] == 0x3B:
            return at + 1
        if data[at] == 0x2C:
            at += 10 + _colours(data[at + 9]) + 1
        elif data[at] == 0x21:
            at += 2
        else:
            raise _broken(f"block {data[at]:02X}", at)
        while data[at]:
            at += 1 + data[at]
        at += 1
    raise _broken("too many blocks", at)


def _colours(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _webp(data: bytes) -> int:
    end = 8 + _u32(data, 4, "little")
    if end > len(data):
        raise _broken(f"says {end} bytes; there are {len(data)}", 4)
    at = 12
    while at < end:
        length = _u32(data, at + 4, "little")
        if not data[at : at + 4].strip().isalnum():
            raise _broken("a chunk without a name", at)
        at += 8 + length + (length & 1)
    if at != end:
        raise _broken("a chunk reaches over the end", at)
    return end


_WALKS: Mapping[str, Callable[[bytes], int]] = {"png": _png, "jpeg": _jpeg, "gif": _gif, "webp": _webp}


def _svg(data: bytes) -> Iterator[Finding]:
    """What an SVG does beyond drawing."""
    if len(data) > MAX_SVG_BYTES:
        raise Malformed(f"{len(data)} bytes; at most {MAX_SVG_BYTES} are read", rule="image/size", offset=0)
    reader = _SvgReader()
    parser = expat.ParserCreate("UTF-8", " ")
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.text
    parser.StartDoctypeDeclHandler = reader.doctype
    parser.ProcessingInstructionHandler = reader.instruction
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        raise _broken(f"not XML: {expat.errors.messages[error.code]}", 0) from error
    for what in dict.fromkeys(reader.active):
        yield Finding("image/active", what)


class _SvgReader:
    def __init__(self) -> None:
        self.active: list[str] = []
        self.path: list[str] = []

    def start(self, name: str, attributes: Mapping[str, str]) -> None:
        space, _, local = name.rpartition(" ")
        self.path.append(local.lower())
        if len(self.path) > MAX_SVG_DEPTH:
            raise Malformed(f"elements nest deeper than {MAX_SVG_DEPTH}", rule="image/size")
        if len(self.path) == 1 and (local != "svg" or space not in ("", _SVG_NAMESPACES[0])):
            raise _broken(f"the root is {local[:40]!a}, not svg", 0)
        links = {key.rpartition(" ")[2].lower(): value for key, value in attributes.items()}
        target = links.get("href", links.get("src", ""))
        is_local = not target or _SVG_LINK.match(target) is not None
        if local.lower() in _SVG_ACTIVE and not (local.lower() in ("use", "set") and is_local):
            self.active.append(f"the element {local[:40]!a}")
        if not is_local and local.lower() != "a":
            self.active.append(f"loads {target[:60]!a}")
        if any(key.startswith("on") for key in links) or "javascript:" in "".join(target.lower().split()):
            self.active.append(f"a handler on {local[:40]!a}")
        if any(_SVG_STYLE.search(value) for value in attributes.values()):
            self.active.append(f"a style that loads an address, on {local[:40]!a}")

    def end(self, name: str) -> None:  # noqa: ARG002  expat's signature
        self.path.pop()

    def text(self, text: str) -> None:
        if self.path and self.path[-1] == "style" and _SVG_STYLE.search(text):
            self.active.append("a style sheet that loads an address")

    def doctype(self, name: str, system: str | None, public: str | None, has_subset: bool) -> None:  # noqa: ARG002
        if has_subset:
            raise Malformed("a document type with entities of its own", rule="image/active", offset=0)

    def instruction(self, target: str, data: str) -> None:  # noqa: ARG002
        self.active.append(f"the processing instruction {target[:40]!a}")


FORMAT: Format = ImageFormat()
