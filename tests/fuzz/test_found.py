"""What the fuzzer found once: files that were admitted though the real loader refuses them."""

import io
import struct
import zipfile

import numpy as np
import pytest
from fuzz.harness import Harness
from fuzz.loaders import LOADERS

from steelyard.admit.rules import registry
from steelyard.formats.base import BytesSource

REGISTRY = registry()


def npy(header: bytes, data: bytes) -> bytes:
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def zip_for_version(version: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.json", b"[1]")
    data = bytearray(out.getvalue())
    data[data.index(b"PK\x01\x02") + 6] = version
    return bytes(data)


def header(text: str) -> bytes:
    return npy(b"{" + text.encode("latin-1") + b"}", bytes(8))


NPY = "'descr': '<f4', 'fortran_order': False, 'shape': (2,), "
FOUND = {
    "a control character between tokens": (
        "a.npy",
        header(NPY.replace("False, ", "False,\x1f")),
        "npy/header",
    ),
    "a no-break space between tokens": ("a.npy", header(NPY.replace("False, ", "False,\xa0")), "npy/header"),
    "a number with a leading zero": ("a.npy", header(NPY.replace("(2,", "(02,")), "npy/header"),
    "a field's name twice": (
        "a.npy",
        header("'descr': [('a', '<i4'), ('a', '<i4')], 'fortran_order': False, 'shape': (1,), "),
        "npy/dtype",
    ),
    "a field's title that is another's name": (
        "a.npy",
        header("'descr': [('a', '<i4'), (('a', 'b'), '<i4')], 'fortran_order': False, 'shape': (1,), "),
        "npy/dtype",
    ),
    "a zip member for readers of version 6.4": ("a.zip", zip_for_version(64), "zip/directory"),
}


@pytest.mark.parametrize("case", FOUND)
def test_what_the_loader_refuses_is_refused(case):
    name, data, rule = FOUND[case]
    assert [finding.rule for finding in REGISTRY.read(BytesSource(data), name).findings] == [rule]
    with pytest.raises((ValueError, SyntaxError, NotImplementedError)):
        np.load(io.BytesIO(data)) if name == "a.npy" else zipfile.ZipFile(io.BytesIO(data))


@pytest.mark.parametrize("data", [header(NPY), header(NPY.replace(" ", "\n")), zip_for_version(63)])
def test_the_same_file_without_the_defect_is_admitted(data):
    name = "a.zip" if data.startswith(b"PK") else "a.npy"
    harness = Harness(REGISTRY, LOADERS)
    assert harness.admits(REGISTRY.read(BytesSource(data), name))
    assert harness.failures(data, name) == []
