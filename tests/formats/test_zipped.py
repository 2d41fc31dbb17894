"""The zip reader against the standard library's writer."""

import io
import struct
import zipfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.errors import Malformed
from steelyard.formats import zipped
from steelyard.formats.base import BytesSource
from steelyard.formats.spool import FileSource
from steelyard.formats.zipped import RULES, check_crc, open_checked, open_member, read_archive

NAMES = st.lists(
    st.text(st.characters(categories=["Ll", "Nd"]), min_size=1, max_size=6), min_size=1, max_size=3
)
MEMBERS = st.lists(
    st.tuples(
        NAMES.map("/".join),
        st.binary(max_size=300),
        st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
    ),
    max_size=6,
    unique_by=lambda member: member[0].casefold(),
)


class Pipe(io.BytesIO):
    """Not seekable, so that zipfile writes data descriptors."""

    def seekable(self) -> bool:
        return False

    def seek(self, *args: object) -> int:
        raise io.UnsupportedOperation

    def tell(self) -> int:
        raise io.UnsupportedOperation


def archive_of(members, *, stream: bool = False) -> bytes:
    out = Pipe() if stream else io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content, method in members:
            archive.writestr(name, content, compress_type=method)
    return out.getvalue()


@given(MEMBERS, st.booleans())
def test_content_round_trips(members, stream):
    data = archive_of(members, stream=stream)
    source = BytesSource(data)
    archive = read_archive(source)
    assert [f for f in archive.findings if f.rule != "zip/duplicate"] == []
    assert [member.name for member in archive.members] == [name for name, _, _ in members]
    for member, (_, content, _) in zip(archive.members, members, strict=True):
        opened = open_member(source, member)
        assert opened.read(0, opened.size) == content
        assert check_crc(opened, member) is None


@given(MEMBERS.filter(bool), st.data())
def test_every_truncation_is_malformed(members, data):
    whole = archive_of(members)
    with pytest.raises(Malformed) as caught:
        read_archive(BytesSource(whole[: data.draw(st.integers(0, len(whole) - 1))]))
    assert caught.value.rule in RULES


@given(
    MEMBERS.filter(bool),
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 255)), max_size=6),
)
def test_changed_bytes_never_crash(members, stream, changes):
    data = bytearray(archive_of(members, stream=stream))
    for place, byte in changes:
        data[place % len(data)] = byte
    source = BytesSource(bytes(data))
    try:
        archive = read_archive(source)
        for member in archive.members:
            check_crc(open_member(source, member), member)
    except Malformed as broken:
        assert broken.rule in RULES  # noqa: PT017


def test_forced_zip64_headers_are_read():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive, archive.open("a", "w", force_zip64=True) as member:
        member.write(b"abc")
    archive = read_archive(BytesSource(out.getvalue()))
    assert [member.size for member in archive.members] == [3]


def test_an_empty_archive_has_no_members():
    assert read_archive(BytesSource(archive_of([]))) == zipped.Archive((), ())


def test_member_count_at_the_limit_and_one_past_it():
    def rule(count: int) -> str:
        record = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, count, count, 0, 0)
        locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, 0, 1)
        end = struct.pack("<4sHHHHIIH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0, 0, 0)
        with pytest.raises(Malformed) as caught:
            read_archive(BytesSource(record + locator + end))
        return caught.value.rule

    assert rule(zipped.MAX_MEMBERS) == "zip/directory"  # allowed, and then not found
    assert rule(zipped.MAX_MEMBERS + 1) == "zip/limit"


def test_ratio_at_the_limit_and_past_it():
    def rules(*sizes: int) -> list[str]:
        data = archive_of([(f"{i}", bytes(size), zipfile.ZIP_DEFLATED) for i, size in enumerate(sizes)])
        return [finding.rule for finding in read_archive(BytesSource(data)).findings]

    assert rules(zipped.FREE_BYTES) == []
    assert rules(zipped.FREE_BYTES + 1) == ["zip/ratio"]
    assert rules(*[zipped.FREE_TOTAL // 8] * 8) == []
    assert rules(*[zipped.FREE_TOTAL // 8] * 8, 1) == ["zip/ratio"]


def test_a_large_deflated_member_is_spooled_and_not_held():
    content = bytes(range(256)) * (1 << 15) + b"end"
    source = BytesSource(archive_of([("a", content, zipfile.ZIP_DEFLATED)]))
    (member,) = read_archive(source).members
    opened = open_member(source, member)
    assert isinstance(opened, FileSource)
    assert opened.read(0, opened.size) == content
    with pytest.raises(ValueError, match="outside"):
        opened.read(len(content), 1)


def test_a_wrong_checksum_is_malformed_when_a_member_is_opened():
    data = bytearray(archive_of([("a", b"hello world", zipfile.ZIP_STORED)]))
    data[data.index(b"world")] ^= 1
    source = BytesSource(bytes(data))
    (member,) = read_archive(source).members
    with pytest.raises(Malformed) as caught:
        open_checked(source, member)
    assert caught.value.rule == "zip/crc"
