"""Tar archives: every header checked, every block accounted for, every member a file of its own.

Blocks of 512 bytes: a header for each member, its content padded with zeros, and two zero blocks (or more zeros) at
the end. Header: name 100, mode 8, uid 8, gid 8, size 12, mtime 12, checksum 8, type 1, link name 100, magic 8,
user 32, group 32, device 8 + 8, prefix 155. Types: 0 file, 5 folder, x and g pax records, L GNU long name.
Sources: POSIX.1-2017 pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format".

Unpacking is what attacks: links, devices, names that leave the folder, two members of one name. Readers differ on
sparse files and on pax records that change sizes, so those are refused.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from steelyard.errors import Malformed
from steelyard.formats.base import ByteSource, Child, Finding, Report, Rule
from steelyard.formats.pickle_machine import Slice

BLOCK = 512
MAX_MEMBERS = 1 << 13
MAX_NAME_BYTES = 1024
MAX_RECORDS_BYTES = 1 << 16  # one pax or long-name header
MAX_FINDINGS = 64
CHUNK = 1 << 20

FILES = frozenset(b"0\x007")
FOLDER, PAX, PAX_GLOBAL, LONG_NAME = ord("5"), ord("x"), ord("g"), ord("L")
KINDS: Mapping[int, str] = {
    ord("1"): "a hard link", ord("2"): "a symbolic link", ord("3"): "a character device",
    ord("4"): "a block device", ord("6"): "a pipe", ord("S"): "a sparse file", ord("K"): "a long link name",
    ord("M"): "a part of several volumes", ord("D"): "a dumped folder", ord("V"): "a volume label",
}  # fmt: skip
# Records that say something about a file and change nothing of what is unpacked.
PAX_INERT = frozenset({"atime", "ctime", "mtime", "uid", "gid", "uname", "gname", "comment", "charset"})
PAX_INERT_PREFIXES = ("SCHILY.xattr.", "LIBARCHIVE.xattr.", "LIBARCHIVE.creationtime")
_PAX_RECORD = re.compile(rb"([1-9][0-9]{0,5}) ")

_REPACK = "Unpack the archive yourself and scan the folder."

RULES: Final[Mapping[str, Rule]] = {
    "tar/header": Rule("A header that readers understand differently, or none.", _REPACK),
    "tar/checksum": Rule("A header that was changed after it was written.", _REPACK),
    "tar/truncated": Rule("A cut archive, whose last members are missing.", _REPACK),
    "tar/trailing": Rule("A second file behind the archive.", _REPACK),
    "tar/padding": Rule("Bytes hidden behind a member.", _REPACK),
    "tar/name": Rule("A name that leaves the folder or means two things.", _REPACK),
    "tar/duplicate": Rule("Two members of one name: unpacking keeps the last.", _REPACK),
    "tar/link": Rule("A link that makes unpacking write or read outside the folder.", _REPACK),
    "tar/special": Rule("A device, pipe or sparse file instead of content.", _REPACK),
    "tar/records": Rule("Extended records that change a member for some readers only.", _REPACK),
    "tar/limit": Rule("Exhausting the scanner.", _REPACK),
    "torch/tar": Rule(
        "A PyTorch file of before 2018, whose pickle runs when it is loaded.",
        "Load it once on a machine you can lose and save the state_dict as safetensors.",
    ),
}


@dataclass(frozen=True, slots=True)
class _Member:
    name: str
    size: int
    data_offset: int


@dataclass(frozen=True, slots=True)
class _Header:
    name: bytes
    size: int
    kind: int
    at: int


class TarFormat:
    """Claims files whose first block is a tar header with a right checksum."""

    name = "tar"
    rules = RULES

    def sniff(self, head: bytes, path: str) -> bool:  # noqa: ARG002 - the content decides
        return len(head) >= BLOCK and head[0] != 0 and _checksum_holds(head[:BLOCK])

    def read(self, source: ByteSource, path: str) -> Report:  # noqa: ARG002
        reader = _Reader(source)
        reader.read()
        names = {member.name for member in reader.members}
        if {"sys_info", "pickle", "storages"} <= names:
            what = "PyTorch's tar format of before 2018"
            return Report("torch-tar", {}, (*reader.findings, Finding("torch/tar", what, 0)))
        facts = {"files": len(reader.members), "folders": reader.folders}
        kind = "nemo" if "model_config.yaml" in {name.rpartition("/")[2] for name in names} else self.name
        return Report(kind, facts, tuple(reader.findings), lambda: _children(source, reader.members))


def _children(source: ByteSource, members: list[_Member]) -> Iterator[Child]:
    for member in members:
        yield Child(member.name, member.size, _opener(source, member))


def _opener(source: ByteSource, member: _Member) -> Callable[[], ByteSource]:
    return lambda: Slice(source, member.data_offset, member.size)


def _checksum_holds(block: bytes) -> bool:
    """The sum of all bytes, its own field counted as blanks; some writers summed signed bytes."""
    text = block[148:156].strip(b" \0")
    if not re.fullmatch(rb"[0-7]{1,7}", text):
        return False
    plain = block[:148] + b" " * 8 + block[156:]
    signed = sum(byte - 256 if byte > 127 else byte for byte in plain)
    return int(text, 8) in {sum(plain), signed}


@dataclass(slots=True)
class _Reader:
    source: ByteSource
    members: list[_Member] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    folders: int = 0
    _seen: dict[str, str] = field(default_factory=dict)
    _long: bytes | None = None
    _records: dict[str, str] = field(default_factory=dict)

    def read(self) -> None:
        """Walk the headers. Raises Malformed where they cannot be followed."""
        at, headers = 0, 0
        while True:
            if at + BLOCK > self.source.size:
                what = "the archive ends without two empty blocks"
                raise Malformed(what, rule="tar/truncated", offset=min(at, self.source.size))
            block = self.source.read(at, BLOCK)
            if not any(block):
                self._check_end(at)
                return
            headers += 1
            if headers > MAX_MEMBERS or len(self.findings) > MAX_FINDINGS:
                raise Malformed(
                    f"more than {MAX_MEMBERS} members or {MAX_FINDINGS} findings", rule="tar/limit"
                )
            header = self._widened(_header_of(block, at))
            end = at + BLOCK + -(-header.size // BLOCK) * BLOCK
            if end > self.source.size:
                what = f"the member needs {header.size} bytes and the file ends"
                raise Malformed(what, rule="tar/truncated", offset=at)
            if header.size % BLOCK:
                self._check_padding(at + BLOCK + header.size, end)
            self._take(header)
            at = end

    def find(self, rule: str, message: str, at: int, name: str | None = None) -> None:
        self.findings.append(Finding(rule, message, at, name))

    def _widened(self, header: _Header) -> _Header:
        """The header with the size of its pax record, which writers use from 8 GiB on and put 0 into the field."""
        if header.kind in {PAX, PAX_GLOBAL, LONG_NAME} or "size" not in self._records:
            return header
        wide = self._records.pop("size")
        if header.size or not re.fullmatch(r"[1-9][0-9]{9,18}", wide) or int(wide) < 8**11:
            raise Malformed("a record that changes the member's size", rule="tar/records", offset=header.at)
        return replace(header, size=int(wide))

    def _check_padding(self, start: int, end: int) -> None:
        if any(self.source.read(start, end - start)):
            self.find("tar/padding", f"{end - start} bytes behind a member are not zero", start)

    def _check_end(self, at: int) -> None:
        if self._long is not None or self._records:
            self.find("tar/records", "extended records without a member", at)
        if self.source.size - at < 2 * BLOCK:
            self.find("tar/truncated", "one empty block at the end, expected two", at)
        while at < self.source.size:
            part = self.source.read(at, min(CHUNK, self.source.size - at))
            if part.count(0) != len(part):
                place = at + len(part) - len(part.lstrip(b"\0"))
                raise Malformed("bytes follow the end of the archive", rule="tar/trailing", offset=place)
            at += len(part)

    def _take(self, header: _Header) -> None:
        if header.kind in {PAX, PAX_GLOBAL, LONG_NAME}:
            if header.size > MAX_RECORDS_BYTES:
                raise Malformed(f"records of {header.size} bytes", rule="tar/limit", offset=header.at)
            data = self.source.read(header.at + BLOCK, header.size)
            if header.kind == LONG_NAME:
                self._long = data.removesuffix(b"\0")
            else:
                self._pax(data, header)
            return
        raw, self._long = self._long or header.name, None
        records, self._records = self._records, {}
        name = records.get("path") or self._text(raw, header.at)
        shown = ascii(name[:80])[1:-1]
        self._check_name(name, shown, header)
        if header.kind == FOLDER:
            self.folders += 1
            if header.size:
                self.find("tar/special", "a folder with content", header.at, shown)
        elif header.kind in FILES:
            self.members.append(_Member(name.removeprefix("./"), header.size, header.at + BLOCK))
        else:
            what = KINDS.get(header.kind, f"of the unknown type {header.kind:#x}")
            rule = "tar/link" if header.kind in b"12K" else "tar/special"
            self.find(rule, f"the member is {what}", header.at, shown)

    def _text(self, raw: bytes, at: int) -> str:
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.find("tar/name", f"{ascii(raw[:80])[1:]} is not UTF-8", at)
            return raw.decode("latin1")

    def _check_name(self, name: str, shown: str, header: _Header) -> None:
        plain = name.removesuffix("/") if header.kind == FOLDER else name
        if plain in {".", "./"} and header.kind == FOLDER:
            return
        parts = plain.removeprefix("./").split("/")
        bad = (
            not 0 < len(plain) <= MAX_NAME_BYTES
            or any(part in {"", ".", ".."} for part in parts)
            or "\\" in plain
            or plain[1:2] == ":"
            or not plain.isprintable()
        )
        if bad:
            self.find("tar/name", f"'{shown}' is no plain relative path", header.at, shown)
        key = unicodedata.normalize("NFKC", "/".join(parts)).casefold()
        if key in self._seen:
            what = f"'{shown}' and {self._seen[key]!a} are one name on some systems"
            self.find("tar/duplicate", what, header.at, shown)
        self._seen[key] = name[:MAX_NAME_BYTES]

    def _pax(self, data: bytes, header: _Header) -> None:
        """Records "<length> <key>=<value>\\n". Only path and size may change what is unpacked."""
        at = 0
        while at < len(data):
            found = _PAX_RECORD.match(data, at)
            size = int(found[1]) if found else 0
            record = data[at : at + size]
            key, equals, value = record[len(found[0]) : -1].partition(b"=") if found else (b"", b"", b"")
            if not found or len(record) != size or record[-1:] != b"\n" or not equals:
                raise Malformed(
                    "extended records that are none", rule="tar/records", offset=header.at + BLOCK + at
                )
            name = key.decode("latin1")
            if name in {"path", "size"} and header.kind == PAX and name not in self._records:
                self._records[name] = self._text(value, header.at)
            elif name not in PAX_INERT and not name.startswith(PAX_INERT_PREFIXES):
                self.find("tar/records", f"the record {name[:40]!a} changes the next members", header.at)
            at += size


def _header_of(block: bytes, at: int) -> _Header:
    if not _checksum_holds(block):
        raise Malformed("the header's checksum does not hold", rule="tar/checksum", offset=at)
    magic = block[257:265]
    if magic not in {b"ustar\x0000", b"ustar  \0", bytes(8)}:
        raise Malformed(f"the magic is {magic!a}", rule="tar/header", offset=at)
    name, _, rest = block[:100].partition(b"\0")
    if rest.strip(b"\0"):
        raise Malformed("a name with a zero byte inside", rule="tar/header", offset=at)
    prefix = block[345:500].partition(b"\0")[0] if magic == b"ustar\x0000" else b""
    kind = block[156]
    if kind in b"0\0" and name.endswith(b"/"):
        kind = FOLDER  # how the oldest writers marked one
    return _Header(prefix + b"/" + name if prefix else name, _size_of(block[124:136], at), kind, at)


def _size_of(text: bytes, at: int) -> int:
    """Octal digits, or base 256 with the first bit set (GNU, above 8 GiB)."""
    if text[0] == 0x80:
        return int.from_bytes(text[1:], "big")
    digits = text.strip(b" \0")
    if not re.fullmatch(rb"[0-7]{1,12}", digits):
        raise Malformed(f"the size {text!a} is no number", rule="tar/header", offset=at)
    return int(digits, 8)


FORMAT: Final = TarFormat()
