"""A zip reader that trusts neither of the two directories until they agree.

Bytes: local header (PK 03 04), data, optional data descriptor (PK 07 08), for each member; central directory
(PK 01 02); optional zip64 end record and locator (PK 06 06, PK 06 07); end record (PK 05 06), at the very end.
Source: PKWARE APPNOTE 6.3.10, sections 4.3 to 4.5.

Loaders follow the central directory, streaming tools the local headers, so a file in which the two differ shows
one thing to a scanner and another to a loader. Every byte must belong to exactly one structure.
"""

import struct
import unicodedata
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Final, NamedTuple

from steelyard.errors import Malformed
from steelyard.formats.base import ByteSource, Finding, Rule
from steelyard.formats.pickle_machine import Slice
from steelyard.formats.pickled import is_pickle_like
from steelyard.formats.spool import Spool

MAX_MEMBERS = 1 << 16
MAX_DIRECTORY_BYTES = 1 << 25
LAST_VERSION = 63  # APPNOTE 4.4.3.2; others refuse what is above
MAX_NAME_BYTES = 1024
MAX_FINDINGS = 64  # a refusal needs no more
# What unpacks to less than this is read whatever its ratio: arrays of zeros are honest.
FREE_BYTES = 1 << 24
FREE_TOTAL = 1 << 26
MAX_RATIO = 100  # of one member larger than FREE_BYTES
MAX_TOTAL_RATIO = 20  # of all deflated members, when they are more than FREE_TOTAL
MAX_PICKLE_BYTES = (
    1 << 21
)  # of a pickle that is packed more than MAX_TOTAL_RATIO: each byte is an instruction
MAX_CHECKED_BYTES = 1 << 26  # larger stored members are pinned by the file's digest; their CRC is not read
CHUNK = 1 << 18
WINDOW = 1 << 15

STORED, DEFLATED = 0, 8
DESCRIPTOR, UTF8 = 0x0008, 0x0800
ENCRYPTED = 0x0001 | 0x0040 | 0x2000
DEFLATE_LEVEL = 0x0006
ZIP64, SECOND_NAME = 0x0001, 0x7075  # extra fields; the second holds the name once more, in UTF-8
MAX_16, MAX_32 = 0xFFFF, 0xFFFFFFFF

_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END = struct.Struct("<4sHHHHIIH")
_END64 = struct.Struct("<4sQHHIIQQQQ")
_LOCATOR = struct.Struct("<4sIQI")

_REPACK = "Write the archive again with one ordinary tool, stored and without comments."

RULES: Final[Mapping[str, Rule]] = {
    "zip/end": Rule("An end record that two readers find in different places.", _REPACK),
    "zip/trailing": Rule("A second file behind the archive.", _REPACK),
    "zip/prefix": Rule("A second file before the archive.", _REPACK),
    "zip/gap": Rule("Bytes that belong to no member, or to two.", _REPACK),
    "zip/directory": Rule("A central directory that does not say what it holds.", _REPACK),
    "zip/zip64": Rule("64-bit sizes that one reader uses and another ignores.", _REPACK),
    "zip/mismatch": Rule("Local and central headers that describe different members.", _REPACK),
    "zip/flags": Rule("Flag bits that stop a scanner and not a loader.", _REPACK),
    "zip/encrypted": Rule("Content that no scanner can read.", _REPACK),
    "zip/method": Rule("A compression that not every reader knows.", _REPACK),
    "zip/name": Rule("A name that leaves the folder or means two things.", _REPACK),
    "zip/duplicate": Rule("Two members of one name: each reader picks its own.", _REPACK),
    "zip/special": Rule("A symbolic link or device inside the archive.", _REPACK),
    "zip/crc": Rule("Content that a strict reader refuses and a lenient one loads.", _REPACK),
    "zip/ratio": Rule("A decompression bomb.", _REPACK),
    "zip/limit": Rule("Exhausting the scanner.", _REPACK),
    "zip/inflate": Rule("A compressed stream that two readers end in different places.", _REPACK),
}


@dataclass(frozen=True, slots=True)
class Member:
    """One entry on which both headers agree. Sizes and offsets in bytes."""

    name: str
    method: int
    crc: int
    stored_bytes: int
    size: int
    header_offset: int
    data_offset: int


@dataclass(frozen=True, slots=True)
class Archive:
    """Members in file order, and what is wrong with them."""

    members: tuple[Member, ...]
    findings: tuple[Finding, ...]


class _Entry(NamedTuple):
    """A central header with zip64 applied."""

    raw_name: bytes
    flags: int
    method: int
    crc: int
    stored_bytes: int
    size: int
    header_offset: int
    attributes: int
    made_by: int
    at: int


class _Window:
    """Reads ahead, so that the headers of many small members cost few reads."""

    def __init__(self, source: ByteSource) -> None:
        self.size = source.size
        self._source = source
        self._start = 0
        self._data = b""

    def read(self, offset: int, size: int) -> bytes:
        at = offset - self._start
        if at < 0 or at + size > len(self._data):
            ahead = min(WINDOW, self.size - offset) if offset - self._start < WINDOW else 0
            self._start, self._data = offset, self._source.read(offset, max(size, ahead))
            at = 0
        return self._data[at : at + size]


@dataclass(frozen=True, slots=True)
class _Directory:
    count: int
    offset: int
    size: int


def read_archive(source: ByteSource) -> Archive:
    """Both directories of `source`, compared. Raises Malformed where the structure cannot be followed."""
    directory = _find_directory(source)
    findings: list[Finding] = []
    entries = sorted(_entries(source, directory), key=lambda entry: entry.header_offset)
    members = []
    window = _Window(source)
    expected = 0
    for entry in entries:
        name = _name_of(entry, findings)
        _check_kind(entry, name, findings)
        if entry.header_offset != expected:
            rule = "zip/prefix" if expected == 0 else "zip/gap"
            what = f"the local header is at {entry.header_offset}, expected {expected}"
            findings.append(Finding(rule, what, expected, name))
        member, expected = _follow(window, entry, name, directory.offset, findings)
        members.append(member)
        if len(findings) > MAX_FINDINGS:
            return Archive(tuple(members), tuple(findings))
    if expected != directory.offset:
        rule = "zip/gap" if entries else "zip/prefix"
        what = f"the members end at {expected}, the directory begins at {directory.offset}"
        findings.append(Finding(rule, what, expected))
    findings.extend(islice(_check_names(members), MAX_FINDINGS))
    findings.extend(islice(_check_ratios(members), MAX_FINDINGS))
    return Archive(tuple(members), tuple(findings))


def _find_directory(source: ByteSource) -> _Directory:
    """The end record must be the last 22 bytes: no comment, nothing behind it."""
    if source.size < _END.size:
        raise Malformed("the file is shorter than the smallest archive", rule="zip/end", offset=0)
    at = source.size - _END.size
    magic, disk, first_disk, here, count, size, offset, comment = _END.unpack(source.read(at, _END.size))
    if magic != b"PK\x05\x06" or comment:
        tail_at = max(0, source.size - (1 << 16) - _END.size)
        found = source.read(tail_at, source.size - tail_at).rfind(b"PK\x05\x06")
        if found < 0:
            raise Malformed(
                "no end record: the archive is cut or is none", rule="zip/end", offset=source.size
            )
        what = f"{source.size - tail_at - found - _END.size} bytes follow the end record"
        raise Malformed(what, rule="zip/trailing", offset=tail_at + found + _END.size)
    if disk or first_disk or here != count:
        raise Malformed("the archive says it has several parts", rule="zip/end", offset=at)
    claimed = _Directory(count, offset, size)
    directory, end = _widest(source, claimed, at)
    if directory.offset + directory.size != end:
        what = f"the directory is {directory.size} bytes at {directory.offset}, expected to end at {end}"
        raise Malformed(what, rule="zip/directory", offset=at)
    if directory.count > MAX_MEMBERS or directory.size > MAX_DIRECTORY_BYTES:
        raise Malformed(f"{directory.count} members in {directory.size} bytes", rule="zip/limit", offset=at)
    return directory


def _widest(source: ByteSource, claimed: _Directory, at: int) -> tuple[_Directory, int]:
    """The directory and the offset where it must end, after the zip64 record has been compared with `claimed`."""
    found = _find_zip64(source, at)
    if found is None:
        if MAX_32 in {claimed.size, claimed.offset} or claimed.count == MAX_16:
            raise Malformed(
                "the end record points to a zip64 record that is not there", rule="zip/zip64", offset=at
            )
        return claimed, at
    wide, end = found
    agrees = (
        claimed.count in {wide.count, MAX_16}
        and claimed.offset in {wide.offset, MAX_32}
        and claimed.size in {wide.size, MAX_32}
    )
    if not agrees:
        raise Malformed("the end record and its zip64 record differ", rule="zip/zip64", offset=at)
    return wide, end


def _find_zip64(source: ByteSource, end_at: int) -> tuple[_Directory, int] | None:
    """The zip64 record right before the end record and the offset where it begins; None without a locator."""
    at = end_at - _LOCATOR.size
    if at < 0:
        return None
    magic, disk, record_at, disks = _LOCATOR.unpack(source.read(at, _LOCATOR.size))
    if magic != b"PK\x06\x07":
        return None
    if disk or disks > 1 or record_at + _END64.size != at:
        raise Malformed("the zip64 record is not right before its locator", rule="zip/zip64", offset=at)
    magic, length, _, _, disk, first, here, count, size, offset = _END64.unpack(
        source.read(record_at, _END64.size)
    )
    if magic != b"PK\x06\x06" or length != _END64.size - 12 or disk or first or here != count:
        raise Malformed("the zip64 record is not one", rule="zip/zip64", offset=record_at)
    return _Directory(count, offset, size), record_at


def _entries(source: ByteSource, directory: _Directory) -> Iterator[_Entry]:
    block = source.read(directory.offset, directory.size)
    at = 0
    for _ in range(directory.count):
        if at + _CENTRAL.size > len(block):
            raise Malformed("the directory is cut", rule="zip/directory", offset=directory.offset + at)
        (magic, made_by, needed, flags, method, _, _, crc, stored, size, name_size, extra_size, comment_size,
         disk, _, attributes, header) = _CENTRAL.unpack_from(block, at)  # fmt: skip
        after = at + _CENTRAL.size + name_size + extra_size + comment_size
        if magic != b"PK\x01\x02" or after > len(block) or disk not in {0, MAX_16}:
            raise Malformed(
                "the directory is cut or no directory", rule="zip/directory", offset=directory.offset + at
            )
        if needed & 0xFF > LAST_VERSION:
            what = f"a member for readers of version {needed & 0xFF}, the last known is {LAST_VERSION}"
            raise Malformed(what, rule="zip/directory", offset=directory.offset + at)
        name_at = at + _CENTRAL.size
        extra = block[name_at + name_size : name_at + name_size + extra_size]
        size, stored, header = _widen(extra, [size, stored, header], directory.offset + at)
        yield _Entry(
            block[name_at : name_at + name_size], flags, method, crc, stored, size, header, attributes,
            made_by, directory.offset + at,
        )  # fmt: skip
        at = after
    if at != len(block):
        raise Malformed(
            "the directory is longer than its members", rule="zip/directory", offset=directory.offset + at
        )


def _widen(extra: bytes, values: list[int], at: int) -> list[int]:
    """Apply a zip64 extra field: it holds exactly the values that are 0xFFFFFFFF in the header, in order."""
    wide = None
    for kind, body in _extras(extra, at):
        if kind == SECOND_NAME:
            raise Malformed("a second name, which some readers prefer", rule="zip/mismatch", offset=at)
        if kind == ZIP64:
            if wide is not None:
                raise Malformed("two zip64 fields in one header", rule="zip/zip64", offset=at)
            wide = body
    wanted = [index for index, value in enumerate(values) if value == MAX_32]
    if wide is None and wanted:
        raise Malformed("a 64-bit value without a zip64 field", rule="zip/zip64", offset=at)
    if wide is not None and len(wide) != 8 * len(wanted):
        raise Malformed("a zip64 field for values that fit 32 bits", rule="zip/zip64", offset=at)
    for place, index in enumerate(wanted):
        values[index] = int.from_bytes((wide or b"")[8 * place : 8 * place + 8], "little")
    return values


def _extras(extra: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position < len(extra):
        kind, size = int.from_bytes(extra[position : position + 2], "little"), 0
        if position + 4 <= len(extra):
            size = int.from_bytes(extra[position + 2 : position + 4], "little")
        position += 4
        if position + size > len(extra):
            raise Malformed("an extra field is cut", rule="zip/directory", offset=at)
        yield kind, extra[position : position + size]
        position += size


def _follow(
    source: ByteSource, entry: _Entry, name: str, limit: int, findings: list[Finding]
) -> tuple[Member, int]:
    """Compare the local header with the central one. Returns the member and the offset behind it."""
    at = entry.header_offset
    if at + _LOCAL.size > limit:
        raise Malformed("a local header lies outside the file", rule="zip/directory", offset=entry.at)
    magic, _, flags, method, _, _, crc, stored, size, name_size, extra_size = _LOCAL.unpack(
        source.read(at, _LOCAL.size)
    )
    data_at = at + _LOCAL.size + name_size + extra_size
    if magic != b"PK\x03\x04" or data_at + entry.stored_bytes > limit:
        raise Malformed(
            "a local header is missing, or its data outside the file", rule="zip/directory", offset=at
        )
    rest = source.read(at + _LOCAL.size, name_size + extra_size)
    differs = []
    if rest[:name_size] != entry.raw_name:
        differs.append(f"name {ascii(rest[:name_size][:80])[1:]}")
    if flags != entry.flags:
        differs.append(f"flags 0x{flags:04x} and 0x{entry.flags:04x}")
    if method != entry.method:
        differs.append(f"method {method} and {entry.method}")
    differs += _local_differs(entry, (crc, stored, size), rest[name_size:], at)
    end = data_at + entry.stored_bytes
    if entry.flags & DESCRIPTOR:
        end = _descriptor(source, entry, end, limit, differs)
    if entry.method == STORED and entry.stored_bytes != entry.size:
        differs.append("stored and original size of a member that is not compressed")
    if differs:
        findings.append(Finding("zip/mismatch", f"the two headers differ: {'; '.join(differs)}", at, name))
    return Member(name, entry.method, entry.crc, entry.stored_bytes, entry.size, at, data_at), end


def _local_differs(entry: _Entry, local: tuple[int, int, int], extra: bytes, at: int) -> Iterator[str]:
    """What the local checksum, sizes and extra fields say that the central header does not."""
    if any(kind == SECOND_NAME for kind, _ in _extras(extra, at)):
        yield "a second name"
    if entry.flags & DESCRIPTOR and local == (0, 0, 0):
        return  # streamed: the descriptor behind the data says it
    crc, stored, size = local
    wide = [size, stored]
    if MAX_32 in wide:
        wide = _widen(extra, wide, at)
    if (crc, wide[1], wide[0]) != (entry.crc, entry.stored_bytes, entry.size):
        yield "sizes or checksum"


def _descriptor(source: ByteSource, entry: _Entry, at: int, limit: int, differs: list[str]) -> int:
    """The data descriptor behind a streamed member: with signature, 32-bit or 64-bit sizes."""
    raw = source.read(at, min(24, limit - at))
    for width, size in (("I", 16), ("Q", 24)):
        form = struct.Struct(f"<4sI{width}{width}")
        if len(raw) >= size and form.unpack_from(raw) == (
            b"PK\x07\x08",
            entry.crc,
            entry.stored_bytes,
            entry.size,
        ):
            return at + size
    differs.append("the data descriptor")
    return at


def _name_of(entry: _Entry, findings: list[Finding]) -> str:
    raw = entry.raw_name
    try:
        name = raw.decode("utf-8" if entry.flags & UTF8 else "ascii")
    except UnicodeDecodeError:
        name = raw.decode("latin1")
        findings.append(Finding("zip/name", f"{name[:80]!a} is in no declared encoding", entry.at))
    parts = name.removesuffix("/").split("/")
    bad = (
        not 0 < len(raw) <= MAX_NAME_BYTES
        or any(part in {"", ".", ".."} for part in parts)
        or "\\" in name
        or name[1:2] == ":"
        or not name.isprintable()
    )
    if bad:
        what = f"{name[:80]!a} is no plain relative path"
        findings.append(Finding("zip/name", what, entry.at, ascii(name[:80])[1:-1]))
    return name


def _check_kind(entry: _Entry, name: str, findings: list[Finding]) -> None:
    if entry.flags & ENCRYPTED:
        findings.append(Finding("zip/encrypted", "the member is encrypted", entry.at, name))
    allowed = DESCRIPTOR | UTF8 | ENCRYPTED | (DEFLATE_LEVEL if entry.method == DEFLATED else 0)
    if entry.flags & ~allowed:
        findings.append(
            Finding("zip/flags", f"flag bits 0x{entry.flags & ~allowed:04x} are set", entry.at, name)
        )
    if entry.method not in {STORED, DEFLATED}:
        findings.append(Finding("zip/method", f"compression method {entry.method}", entry.at, name))
    kind = entry.attributes >> 28 if entry.made_by >> 8 in {3, 19} else 0
    if kind not in {0, 4, 8}:
        findings.append(Finding("zip/special", f"neither file nor folder: mode {kind:o}", entry.at, name))
    if name.endswith("/") and (entry.size or entry.stored_bytes):
        findings.append(Finding("zip/special", "a folder with content", entry.at, name))


def _check_names(members: list[Member]) -> Iterator[Finding]:
    seen: dict[str, str] = {}
    for member in members:
        plain = member.name if member.name.isascii() else unicodedata.normalize("NFKC", member.name)
        key = plain.casefold().removesuffix("/")
        if key in seen:
            what = f"{member.name!a} and {seen[key]!a} are one name on some systems"
            yield Finding("zip/duplicate", what, member.header_offset, member.name)
        seen[key] = member.name


def _check_ratios(members: list[Member]) -> Iterator[Finding]:
    total = stored = 0
    for member in members:
        if member.method != STORED:
            total += member.size
            stored += member.stored_bytes
            if member.size > FREE_BYTES and member.size > MAX_RATIO * member.stored_bytes:
                what = f"{member.stored_bytes} bytes would unpack to {member.size}"
                yield Finding("zip/ratio", what, member.header_offset, member.name)
    if total > FREE_TOTAL and total > MAX_TOTAL_RATIO * stored:
        yield Finding("zip/ratio", f"{stored} bytes of the archive would unpack to {total}", 0)


def open_member(source: ByteSource, member: Member) -> ByteSource:
    """The content of one member. Stored members are not copied; deflated ones are unpacked, spooled when large.

    Call it only on members whose archive has no `zip/ratio` finding.
    Raises Malformed (`zip/inflate`, `zip/method`), Unavailable when there is no room to unpack.
    """
    if member.method == STORED:
        return Slice(source, member.data_offset, member.stored_bytes)
    if member.method != DEFLATED:
        raise Malformed(f"method {member.method} is not read", rule="zip/method", offset=member.header_offset)
    spool = Spool()
    inflater = zlib.decompressobj(-15)
    at, end = member.data_offset, member.data_offset + member.stored_bytes
    try:
        while not inflater.eof and spool.size <= member.size:
            pending = inflater.unconsumed_tail
            if not pending and at < end:
                pending = source.read(at, min(CHUNK, end - at))
                at += len(pending)
            part = inflater.decompress(pending, CHUNK)
            if not part and not pending:
                break
            spool.write(part)
    except zlib.error as bad:
        raise Malformed(
            f"the stream is broken: {bad}", rule="zip/inflate", offset=member.data_offset
        ) from bad
    left = end - at + len(inflater.unused_data) + len(inflater.unconsumed_tail)
    if spool.size != member.size or not inflater.eof or left:
        what = f"the stream gives {spool.size} bytes and leaves {left}, expected {member.size} and 0"
        raise Malformed(what, rule="zip/inflate", offset=member.data_offset)
    content = spool.source()
    dense = member.size > MAX_PICKLE_BYTES and member.size > MAX_TOTAL_RATIO * member.stored_bytes
    if dense and is_pickle_like(content.read(0, 2), member.name):
        what = f"{member.stored_bytes} bytes unpack to a pickle of {member.size}"
        raise Malformed(what, rule="zip/ratio", offset=member.header_offset)
    return content


def open_checked(source: ByteSource, member: Member) -> ByteSource:
    """The content of one member, whose checksum holds. Raises Malformed as `open_member` does, and `zip/crc`."""
    content = open_member(source, member)
    if member.method != STORED or member.size <= MAX_CHECKED_BYTES:
        wrong = check_crc(content, member)
        if wrong:
            raise Malformed(wrong.message, rule=wrong.rule, offset=wrong.offset)
    return content


def check_crc(content: ByteSource, member: Member) -> Finding | None:
    """Compare the checksum of `content` with the directory's."""
    crc = 0
    for offset in range(0, content.size, CHUNK):
        crc = zlib.crc32(content.read(offset, min(CHUNK, content.size - offset)), crc)
    if crc == member.crc:
        return None
    what = f"checksum {crc:08x}, the directory says {member.crc:08x}"
    return Finding("zip/crc", what, member.header_offset, member.name)
