"""Hostile zip archives, made by changing bytes of an honest one. Each names its rule; nothing is unpacked to disk."""

import io
import json
import struct
import warnings
import zipfile
import zlib

import pytest

from steelyard.formats.base import BytesSource
from steelyard.formats.jsonfile import FORMAT as JSON
from steelyard.formats.pickled import FORMAT as PICKLE
from steelyard.formats.registry import Registry
from steelyard.formats.text import FORMAT as TEXT
from steelyard.formats.zip_archive import FORMAT

PLAIN = b"\x80\x02}."
EVIL = b"\x80\x02cposix\nsystem\nX\x04\0\0\0true\x85R."


def archive_of(*members: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(out, "w") as archive:
        warnings.simplefilter("ignore")  # zipfile warns of duplicate names
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, compress_type=method)
    return out.getvalue()


def mar(manifest: object, *more: tuple[str, bytes]) -> bytes:
    return archive_of(("MAR-INF/MANIFEST.json", json.dumps(manifest).encode()), *more)


HONEST = archive_of(("a/data.pkl", PLAIN), ("a/version", b"3\n"))
LOCAL = 0
CENTRAL = HONEST.index(b"PK\x01\x02")
END = HONEST.index(b"PK\x05\x06")


def patched(*changes: tuple[int, bytes], data: bytes = HONEST) -> bytes:
    out = bytearray(data)
    for place, value in changes:
        out[place : place + len(value)] = value
    return bytes(out)


REGISTRY = Registry((FORMAT, PICKLE, JSON, TEXT))


def rules_of(data: bytes) -> set[str]:
    return {finding.rule for finding in REGISTRY.read(BytesSource(data), "model.pt").findings}


def test_the_honest_archive_is_clean():
    assert rules_of(HONEST) == set()


def flags(bits: int) -> bytes:
    value = struct.pack("<H", bits)
    return patched((LOCAL + 6, value), (CENTRAL + 8, value))


def linked() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a/data.pkl", PLAIN)
        info = zipfile.ZipInfo("a/version")
        info.create_system, info.external_attr = 3, 0o120777 << 16
        archive.writestr(info, b"3\n")
    return out.getvalue()


def nested(depth: int) -> bytes:
    data = archive_of(("notes.md", b"hello"))
    for _ in range(depth):
        data = archive_of(("inner.zip", data))
    return data


def unfolding() -> bytes:
    """Ten archives of ten archives of a member just under the limit of one."""
    data = archive_of(("notes.md", b"hello world\n" * (1 << 20)), method=zipfile.ZIP_DEFLATED)
    for _ in range(2):
        data = archive_of(*((f"{place}.zip", data) for place in range(10)), method=zipfile.ZIP_DEFLATED)
    return data


def second_name() -> bytes:
    """Info-ZIP's Unicode path: some readers prefer it to the name both headers show."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        info = zipfile.ZipInfo("notes.md")
        info.extra = struct.pack("<HHBI", 0x7075, 5 + 6, 1, zlib.crc32(b"notes.md")) + b"run.py"
        archive.writestr(info, b"hello")
    return out.getvalue()


def lying_zip64() -> bytes:
    """A zip64 field for sizes that are not 0xFFFFFFFF: some readers use it, some do not."""
    extra = struct.pack("<HHQQ", 1, 16, len(PLAIN), len(PLAIN))
    data = patched((CENTRAL + 30, struct.pack("<H", len(extra))))
    name_end = CENTRAL + 46 + len("a/data.pkl")
    data = data[:name_end] + extra + data[name_end:]
    end = data.index(b"PK\x05\x06")
    return patched((end + 12, struct.pack("<I", end - CENTRAL)), data=data)


ATTACKS: dict[str, tuple[str, bytes]] = {
    "encrypted flag stops a scanner": ("zip/encrypted", flags(0x1)),
    "strong encryption flag": ("zip/encrypted", flags(0x40)),
    "masked headers": ("zip/encrypted", flags(0x2000)),
    "patched data flag": ("zip/flags", flags(0x20)),
    "reserved flag": ("zip/flags", flags(0x8000)),
    "flags differ": ("zip/mismatch", patched((CENTRAL + 8, b"\x01\x00"))),
    "checksum differs from the content": (
        "zip/crc",
        patched((LOCAL + 14, b"\0\0\0\0"), (CENTRAL + 16, b"\0\0\0\0")),
    ),
    "checksums differ": ("zip/mismatch", patched((CENTRAL + 16, b"\0\0\0\0"))),
    "local name differs": ("zip/mismatch", patched((LOCAL + 30, b"a/safe.pkl"))),
    "local method differs": ("zip/mismatch", patched((LOCAL + 8, b"\x08\x00"))),
    "local size differs": ("zip/mismatch", patched((LOCAL + 18, b"\x01\0\0\0\x01\0\0\0"))),
    "duplicate names": ("zip/duplicate", archive_of(("a/data.pkl", PLAIN), ("a/data.pkl", EVIL))),
    "names equal but for case": ("zip/duplicate", archive_of(("a/data.pkl", PLAIN), ("a/DATA.PKL", EVIL))),
    "name leaves the folder": ("zip/name", archive_of(("a/data.pkl", PLAIN), ("a/../../x", b""))),
    "absolute name": ("zip/name", archive_of(("a/data.pkl", PLAIN), ("/etc/x", b""))),
    "backslash name": ("zip/name", archive_of(("a/data.pkl", PLAIN), ("a/..\\x", b""))),
    "drive name": ("zip/name", archive_of(("a/data.pkl", PLAIN), ("C:x", b""))),
    "control character in a name": ("zip/name", archive_of(("a/data.pkl", PLAIN), ("a/x\n", b""))),
    "deflate bomb": (
        "zip/ratio",
        archive_of(("a/data.pkl", PLAIN), ("a/data/0", bytes(17 << 20)), method=zipfile.ZIP_DEFLATED),
    ),
    "bytes behind the archive": ("zip/trailing", HONEST + EVIL),
    "comment": ("zip/trailing", patched((END + 20, struct.pack("<H", len(EVIL)))) + EVIL),
    "unknown method": ("zip/method", patched((LOCAL + 8, b"\x0e\x00"), (CENTRAL + 10, b"\x0e\x00"))),
    "zip64 field nobody asked for": ("zip/zip64", lying_zip64()),
    "zip64 value without its field": ("zip/zip64", patched((CENTRAL + 20, b"\xff\xff\xff\xff"))),
    "zip64 count without its record": ("zip/zip64", patched((END + 8, b"\xff\xff\xff\xff"))),
    "count too small": ("zip/directory", patched((END + 8, b"\x01\x00\x01\x00"))),
    "count too large": ("zip/directory", patched((END + 8, b"\x03\x00\x03\x00"))),
    "directory elsewhere": ("zip/directory", patched((END + 16, b"\x00\x00\x00\x00"))),
    "header outside the file": ("zip/directory", patched((CENTRAL + 42, b"\xff\xff\xff\x7f"))),
    "two members share their bytes": (
        "zip/gap",
        patched((CENTRAL + 46 + len("a/data.pkl") + 42, struct.pack("<I", 0))),
    ),
    "second name in an extra field": ("zip/mismatch", second_name()),
    "second name in the directory alone": (
        "zip/mismatch",
        second_name().replace(b"\x75\x70", b"\xfe\xca", 1),
    ),
    "several disks": ("zip/end", patched((END + 4, b"\x01\x00"))),
    "symbolic link": ("zip/special", linked()),
    "a member nobody claims": ("file/unclaimed", archive_of(("weights.npy", b"x"))),
    "two pickles": ("pickle/call", archive_of(("a/data.pkl", PLAIN), ("b/data.pkl", EVIL))),
    "pickle in a plain archive": ("pickle/call", archive_of(("notes.md", b"hello"), ("x.dat", EVIL))),
    "pickle under a name in capitals": (
        "pickle/call",
        archive_of(("a/DATA.PKL", EVIL), ("a/version", b"3\n")),
    ),
    "pickle three archives deep": (
        "pickle/call",
        archive_of(("b.zip", archive_of(("c.zip", archive_of(("p", EVIL)))))),
    ),
    "archives without end": ("file/nested", nested(6)),
    "many small boxes that unfold": ("file/bomb", unfolding()),
    "a pickle of nothing but instructions": (
        "zip/ratio",
        archive_of(("a/data.pkl", b"\x80\x02]" + b"N0" * (2 << 20) + b"."), method=zipfile.ZIP_DEFLATED),
    ),
    "torch.package": ("torch/package", archive_of(("a/.data/extern_modules", b""), ("a/data.pkl", PLAIN))),
    "evil pickle": ("pickle/call", archive_of(("a/data.pkl", EVIL))),
    "evil pickle, deflated": ("pickle/call", archive_of(("a/data.pkl", EVIL), method=zipfile.ZIP_DEFLATED)),
    "second pickle under another name": (
        "torch/member",
        archive_of(("a/data.pkl", PLAIN), ("a/more.pkl", EVIL)),
    ),
    "handler in a MAR": ("mar/handler", mar({"model": {"handler": "handler.py"}})),
    "packages in a MAR": (
        "mar/requirements",
        mar({"model": {"handler": "image_classifier", "requirementsFile": "requirements.txt"}}),
    ),
    "requirements beside a MAR's manifest": (
        "mar/requirements",
        mar({"model": {"handler": "image_classifier"}}, ("requirements.txt", b"evil==1\n")),
    ),
    "MAR without a model": ("mar/manifest", mar([])),
}


def test_a_mar_of_a_built_in_handler_is_clean():
    assert rules_of(mar({"model": {"handler": "image_classifier", "modelName": "x"}})) == set()


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_is_refused_by_its_rule(name):
    rule, data = ATTACKS[name]
    assert rule in rules_of(data)


def test_bytes_before_the_archive_are_refused():
    assert rules_of(b"PK\x03\x04" + HONEST) == {"zip/directory"}


def test_bytes_before_the_archive_with_mended_offsets_are_refused():
    data = b"PK\x03\x04" + HONEST
    moves = [CENTRAL + 42, CENTRAL + 46 + len("a/data.pkl") + 42, END + 16]
    mended = patched(
        *((m + 4, struct.pack("<I", struct.unpack_from("<I", HONEST, m)[0] + 4)) for m in moves), data=data
    )
    assert "zip/prefix" in rules_of(mended)


def test_bytes_between_members_are_refused():
    second = HONEST.index(b"PK\x03\x04", 1)
    data = HONEST[:second] + b"hidden" + HONEST[second:]
    moves = [CENTRAL + 46 + len("a/data.pkl") + 42, END + 16]
    mended = patched(
        *((m + 6, struct.pack("<I", struct.unpack_from("<I", HONEST, m)[0] + 6)) for m in moves), data=data
    )
    assert rules_of(mended) == {"zip/gap"}


def test_a_7z_or_a_pickle_with_an_archive_behind_it_is_not_claimed_as_zip():
    assert not FORMAT.sniff(b"7z\xbc\xaf\x27\x1c" + HONEST, "model.pt")
    assert not FORMAT.sniff(PLAIN + HONEST, "model.pt")
    assert [f.rule for f in PICKLE.read(BytesSource(PLAIN + HONEST), "model.pt").findings] == [
        "pickle/trailing"
    ]


def test_a_deflated_stream_longer_than_declared_is_refused():
    data = archive_of(("a/data.pkl", PLAIN * 30), method=zipfile.ZIP_DEFLATED)
    central = data.index(b"PK\x01\x02")
    assert "zip/inflate" in rules_of(patched((22, b"\x04\0\0\0"), (central + 24, b"\x04\0\0\0"), data=data))
