"""The tar reader against the standard library's writer, in its three dialects."""

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.errors import Malformed
from steelyard.formats.base import BytesSource
from steelyard.formats.tar_archive import FORMAT, MAX_MEMBERS, RULES

DIALECTS = pytest.mark.parametrize("dialect", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
NAMES = st.lists(
    st.text(st.characters(categories=["Ll", "Nd"], max_codepoint=0x2FF), min_size=1, max_size=30),
    min_size=1,
    max_size=3,
).map("/".join)


def archive_of(*members: tuple[str, bytes], dialect: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=dialect) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def members_of(data: bytes) -> dict[str, bytes]:
    assert FORMAT.sniff(data[:4096], "model.tar")
    report = FORMAT.read(BytesSource(data), "model.tar")
    assert [f for f in report.findings if f.rule != "tar/duplicate"] == []
    opened = {child.name: child.open() for child in report.children()}
    return {name: source.read(0, source.size) for name, source in opened.items()}


@DIALECTS
@given(
    members=st.lists(
        st.tuples(NAMES, st.binary(max_size=1200)), min_size=1, max_size=5, unique_by=lambda m: m[0]
    )
)
def test_content_round_trips(dialect, members):
    assert members_of(archive_of(*members, dialect=dialect)) == dict(members)


@DIALECTS
def test_long_names_are_read(dialect):
    name = "/".join(["a" * 60] * (3 if dialect == tarfile.USTAR_FORMAT else 12))
    assert members_of(archive_of((name, b"x"), dialect=dialect)) == {name: b"x"}


def test_folders_are_counted_and_have_no_content():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in ("./", "./a", "./a/b"):
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE
            archive.addfile(info)
    report = FORMAT.read(BytesSource(out.getvalue()), "x")
    assert (report.findings, report.facts["folders"], list(report.children())) == ((), 3, [])


def test_a_nemo_archive_is_named():
    data = archive_of(("./model_config.yaml", b"a: 1\n"), ("./model_weights.ckpt", b"x"))
    report = FORMAT.read(BytesSource(data), "m.nemo")
    assert report.format == "nemo"
    assert [child.name for child in report.children()] == ["model_config.yaml", "model_weights.ckpt"]


@given(st.data())
def test_every_truncation_is_refused(data):
    whole = archive_of(("a", b"x" * 700), ("b", b"y"))
    end = whole.rindex(b"y") + 512
    with pytest.raises(Malformed) as caught:
        FORMAT.read(BytesSource(whole[: data.draw(st.integers(512, end - 512))]), "x")
    assert caught.value.rule == "tar/truncated"


@given(st.integers(0, 511), st.integers(0, 7))
def test_a_flipped_bit_in_a_header_is_never_claimed(place, bit):
    data = bytearray(archive_of(("a", b"x" * 700), dialect=tarfile.USTAR_FORMAT))
    data[place] ^= 1 << bit
    if FORMAT.sniff(bytes(data[:4096]), "x"):
        assert 148 <= place < 156  # blanks and zeros around the checksum itself


def test_member_count_at_the_limit_and_one_past_it():
    block = archive_of(("a", b""), dialect=tarfile.USTAR_FORMAT)[:512]

    def rules(count: int) -> set[str]:
        try:
            return {f.rule for f in FORMAT.read(BytesSource(block * count + bytes(1024)), "x").findings}
        except Malformed as bad:
            return {bad.rule}

    assert rules(1) == set()
    assert rules(MAX_MEMBERS + 1) == {"tar/limit"}
    assert set(RULES) >= {"tar/limit"}
