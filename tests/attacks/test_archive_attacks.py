"""Hostile tar, compressed and 7z files. Each names its rule; bombs are timed in a process of their own."""

import bz2
import gzip
import io
import lzma
import struct
import subprocess
import sys
import tarfile
import zipfile
import zlib
from functools import reduce

import pytest

from steelyard.formats.base import BytesSource
from steelyard.formats.compressed import FORMAT as COMPRESSED
from steelyard.formats.pickled import FORMAT as PICKLE
from steelyard.formats.registry import Registry
from steelyard.formats.seven_zip import FORMAT as SEVEN_ZIP
from steelyard.formats.tar_archive import FORMAT as TAR
from steelyard.formats.text import FORMAT as TEXT
from steelyard.formats.zip_archive import FORMAT as ZIP

EVIL = b"\x80\x02cposix\nsystem\nX\x04\0\0\0true\x85R."
REGISTRY = Registry((TAR, COMPRESSED, SEVEN_ZIP, ZIP, PICKLE, TEXT))


def rules_of(data: bytes, path: str = "model.bin") -> set[str]:
    return {finding.rule for finding in REGISTRY.read(BytesSource(data), path).findings}


def tar_of(
    *names: str, content: bytes = b"hello\n", dialect: int = tarfile.USTAR_FORMAT, **fields: object
) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=dialect) as archive:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 0 if "type" in fields else len(content)
            for field, value in fields.items():
                setattr(info, field, value)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


HONEST = tar_of("notes.md", "readme.md")


def header(*changes: tuple[int, bytes], data: bytes = HONEST) -> bytes:
    """The first header changed, its checksum mended."""
    block = bytearray(data[:512])
    for place, value in changes:
        block[place : place + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + data[512:]


def with_records(*records: bytes) -> bytes:
    body = b"".join(records)
    lead = header(
        (0, b"records\0"), (124, b"%011o\0" % len(body)), (156, b"x"), data=tar_of("notes.md", content=b"")
    )[:512]
    return lead + body.ljust(512, b"\0") + HONEST


def record(text: bytes) -> bytes:
    size = len(text) + 3
    while len(b"%d %s\n" % (size, text)) != size:
        size += 1
    return b"%d %s\n" % (size, text)


def test_the_honest_archives_are_clean():
    assert rules_of(HONEST) == set()
    assert rules_of(with_records(record(b"path=other.md"), record(b"mtime=1"))) == set()
    assert rules_of(gzip.compress(HONEST), "x.tar.gz") == set()


def seven_zip(names: bytes = b"", *, extra: bytes = b"") -> bytes:
    body = b"\x01\x05\x01" + (b"\x11" + bytes([len(names) + 1]) + b"\0" + names if names else b"") + b"\0"
    start = struct.pack("<QQI", 0, len(body), zlib.crc32(body))
    return b"7z\xbc\xaf\x27\x1c\0\4" + struct.pack("<I", zlib.crc32(start)) + start + body + extra


PACKED = seven_zip("evil.pkl\0".encode("utf-16-le"))
TARS: dict[str, tuple[str, bytes]] = {
    "name leaves the folder": ("tar/name", tar_of("../x.md")),
    "name leaves the folder midway": ("tar/name", tar_of("a/../../x.md")),
    "absolute name": ("tar/name", tar_of("/etc/x.md")),
    "backslash name": ("tar/name", tar_of("a\\x.md")),
    "drive name": ("tar/name", tar_of("C:x.md")),
    "control character in a name": ("tar/name", tar_of("x\n.md")),
    "name in no encoding": ("tar/name", header((0, b"\xff\xfe"))),
    "absolute name in a record": ("tar/name", with_records(record(b"path=/etc/x.md"))),
    "two members of one name": ("tar/duplicate", tar_of("x.md", "x.md")),
    "names equal but for case": ("tar/duplicate", tar_of("x.md", "X.md")),
    "names equal but for a dot folder": ("tar/duplicate", tar_of("x.md", "./x.md")),
    "symbolic link": ("tar/link", tar_of("x", type=tarfile.SYMTYPE, linkname="/etc")),
    "hard link": ("tar/link", tar_of("x", type=tarfile.LNKTYPE, linkname="y")),
    "character device": ("tar/special", tar_of("x", type=tarfile.CHRTYPE)),
    "block device": ("tar/special", tar_of("x", type=tarfile.BLKTYPE)),
    "pipe": ("tar/special", tar_of("x", type=tarfile.FIFOTYPE)),
    "sparse file": ("tar/special", header((156, b"S"))),
    "several volumes": ("tar/special", header((156, b"M"))),
    "unknown type": ("tar/special", header((156, b"Z"))),
    "folder with content": ("tar/special", header((156, b"5"))),
    "size in a record": ("tar/records", with_records(record(b"size=12"))),
    "sparse map in a record": ("tar/records", with_records(record(b"GNU.sparse.map=0,1"))),
    "link in a record": ("tar/records", with_records(record(b"linkpath=/etc"))),
    "character set in a record": ("tar/records", with_records(record(b"hdrcharset=BINARY"))),
    "record that lies about its length": ("tar/records", with_records(b"99 path=x\n")),
    "path given twice": ("tar/records", with_records(record(b"path=a.md"), record(b"path=b.md"))),
    "size that is no number": ("tar/header", header((124, b"99999999999\0"))),
    "name that ends twice": ("tar/header", header((0, b"a.md\0b.md"))),
    "another magic": ("tar/header", header((257, b"ustarX00"))),
    "size beyond the file": ("tar/truncated", header((124, b"77777777777\0"))),
    "negative size": ("tar/header", header((124, b"\xff" * 12))),
    "checksum of the second header": ("tar/checksum", HONEST[:1024] + b"Z" + HONEST[1025:]),
    "bytes behind a member": ("tar/padding", HONEST[:1000] + b"evil" + HONEST[1004:]),
    "bytes behind the archive": ("tar/trailing", HONEST + EVIL),
    "one empty block at the end": ("tar/truncated", HONEST.rstrip(b"\0") + bytes(506 + 512)),
    "records of many bytes": ("tar/limit", header((124, b"00000300000\0"), (156, b"x")) + bytes(1 << 20)),
    "pickle inside": ("pickle/call", tar_of("x.md", content=EVIL)),
    "PyTorch before 2018": ("torch/tar", tar_of("sys_info", "pickle", "storages", "tensors")),
}
STREAMS: dict[str, tuple[str, bytes]] = {
    "pickle in gzip": ("pickle/call", gzip.compress(EVIL)),
    "pickle in bzip2": ("pickle/call", bz2.compress(EVIL)),
    "pickle in xz": ("pickle/call", lzma.compress(EVIL)),
    "pickle in lzma": ("pickle/call", lzma.compress(EVIL, lzma.FORMAT_ALONE)),
    "pickle in zlib": ("pickle/call", zlib.compress(EVIL)),
    "pickle in the second stream": ("pickle/call", gzip.compress(EVIL[:8]) + gzip.compress(EVIL[8:])),
    "pickle in a tar in gzip": ("pickle/call", gzip.compress(tar_of("x.md", content=EVIL))),
    "bytes behind gzip": ("compressed/trailing", gzip.compress(b"hello\n") + EVIL),
    "bytes behind bzip2": ("compressed/trailing", bz2.compress(b"hello\n") + EVIL),
    "bytes behind xz": ("compressed/trailing", lzma.compress(b"hello\n") + EVIL),
    "bytes behind lzma": ("compressed/trailing", lzma.compress(b"hello\n", lzma.FORMAT_ALONE) + EVIL),
    "bytes behind zlib": ("compressed/trailing", zlib.compress(b"hello\n") + zlib.compress(b"more\n")),
    "wrong checksum": ("compressed/checksum", gzip.compress(b"hello\n")[:-8] + b"\0\0\0\0\6\0\0\0"),
    "wrong length": ("compressed/checksum", gzip.compress(b"hello\n")[:-4] + bytes(4)),
    "reserved gzip flag": ("compressed/header", b"\x1f\x8b\x08\x80" + gzip.compress(b"hello\n")[4:]),
    "gzip name without an end": ("compressed/header", b"\x1f\x8b\x08\x08" + b"A" * 70_000),
    "wrong header checksum": ("compressed/checksum", b"\x1f\x8b\x08\x02" + bytes(6) + b"\1\2" + bytes(40)),
    "cut stream": ("compressed/stream", gzip.compress(b"hello\n" * 9)[:-12]),
    "dictionary of gigabytes": (
        "compressed/stream",
        b"\x5d" + (1 << 31).to_bytes(4, "little") + lzma.compress(b"hello\n", lzma.FORMAT_ALONE)[5:],
    ),
    "empty streams without end": ("compressed/bomb", gzip.compress(b"") * 10_001),
    "gzip in gzip without end": ("file/nested", reduce(lambda d, _: gzip.compress(d), range(6), b"x\n")),
    "zstandard": ("compressed/unsupported", b"\x28\xb5\x2f\xfd" + bytes(40)),
    "rar": ("compressed/unsupported", b"Rar!\x1a\x07\x01\0" + bytes(40)),
}  # fmt: skip
SEVEN_ZIPS: dict[str, tuple[str, bytes]] = {
    "7z": ("7z/unread", PACKED),
    "7z with bytes behind it": ("7z/trailing", PACKED + EVIL),
    "7z with another header": ("7z/checksum", PACKED[:-1] + b"\1"),
    "7z with another start": ("7z/checksum", PACKED[:12] + b"\1" + PACKED[13:]),
    "7z cut": ("7z/header", PACKED[:20]),
    "7z whose header lies outside": ("7z/header", PACKED[:-9]),
}
ATTACKS = {**TARS, **STREAMS, **SEVEN_ZIPS}


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_is_refused_by_its_rule(name):
    rule, data = ATTACKS[name]
    assert rule in rules_of(data)


def test_a_7z_is_refused_with_its_listing():
    (finding,) = REGISTRY.read(BytesSource(PACKED), "m.7z").findings
    assert "evil.pkl" in finding.message


WATCHED = """
import os, resource, sys, time
from steelyard.admit.rules import registry
class File:
    def __init__(self, path):
        self.fd = os.open(path, os.O_RDONLY)
        self.size = os.fstat(self.fd).st_size
    def read(self, offset, size):
        return os.pread(self.fd, size, offset)
known = registry()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.process_time()
report = known.read(File(sys.argv[1]), "model.bin")
spent = time.process_time() - start
grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(*sorted({finding.rule for finding in report.findings}))
assert spent < 2, spent
assert grown < 150 << 10, grown
"""


def deflated(*members: tuple[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name), content, compress_type=zipfile.ZIP_DEFLATED)
    return out.getvalue()


def stored(count: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for place in range(count):
            archive.writestr(zipfile.ZipInfo(f"{place}.md"), b"x")
    return out.getvalue()


def layered() -> bytes:
    data = deflated(("x.md", bytes(15 << 20)))
    for _ in range(2):
        data = deflated(*((f"{place}.zip", data) for place in range(10)))
    return data


MIB = 1 << 20
BOMBS = {
    "gzip": ("compressed/bomb", lambda: gzip.compress(bytes(256 * MIB), 1)),
    "bzip2": ("compressed/bomb", lambda: bz2.compress(bytes(64 * MIB))),
    "xz": ("compressed/bomb", lambda: lzma.compress(bytes(128 * MIB), preset=0)),
    "tar.gz": ("compressed/bomb", lambda: gzip.compress(tar_of("a.md", content=bytes(64 * MIB)), 1)),
    "zip": ("zip/ratio", lambda: deflated(("a.md", bytes(64 * MIB)))),
    "zips in zips": ("file/bomb", layered),
    "60000 members": ("zip/limit", lambda: stored(60_000)),
    "instructions": ("compressed/bomb", lambda: gzip.compress(b"\x80\x02" + b"N0" * (6 * MIB) + b"N.")),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_time_and_memory(name, tmp_path):
    rule, make = BOMBS[name]
    path = tmp_path / "model.bin"
    path.write_bytes(make())
    child = subprocess.run(
        [sys.executable, "-c", WATCHED, path], capture_output=True, text=True, timeout=60, check=False
    )
    assert child.returncode == 0, child.stderr
    assert rule in child.stdout.split()
