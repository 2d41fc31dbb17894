"""NumPy files: what numpy writes is clean and described, one byte more or less is not."""

import io
import struct

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from steelyard.formats.base import SNIFF_BYTES, BytesSource
from steelyard.formats.npy import FORMAT, MAX_HEADER_BYTES, MAX_LITERAL_DEPTH, RULES
from steelyard.formats.registry import Registry

REGISTRY = Registry((FORMAT,))
DTYPES = hnp.scalar_dtypes() | hnp.array_dtypes(allow_subarrays=True)
ARRAYS = DTYPES.flatmap(lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0)))
VERSIONS = st.sampled_from([(1, 0), (2, 0), (3, 0)])


def written(array: np.ndarray, version=None) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, version)
    return out.getvalue()


def found_in(data: bytes) -> list[str]:
    report = REGISTRY.read(BytesSource(data), "x.npy")
    assert {finding.rule for finding in report.findings} <= {*RULES, "file/empty", "file/unclaimed"}
    return [finding.rule for finding in report.findings]


def headed(header: str, body: bytes = b"") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text)) + text + body


@settings(max_examples=50, deadline=None)
@given(ARRAYS, VERSIONS)
def test_every_array_that_numpy_writes_is_clean_and_described(array, version):
    assume("\\" not in repr(array.dtype))  # names with escapes are refused
    try:
        data = written(array, version)
    except (UnicodeEncodeError, ValueError):
        return  # names of fields that this version cannot write
    report = FORMAT.read(BytesSource(data), "x.npy")
    assert (report.findings, report.facts["shape"]) == ((), list(array.shape))
    assert report.facts["version"] == version[0]
    assert FORMAT.sniff(data[:SNIFF_BYTES], "x")


@settings(max_examples=40, deadline=None)
@given(ARRAYS, st.data())
def test_one_byte_more_or_less_is_refused(array, data):
    assume("\\" not in repr(array.dtype))
    whole = written(array)
    assert found_in(whole + b"\0") == ["npy/size"]
    assert found_in(whole[: data.draw(st.integers(0, len(whole) - 1))])


@given(st.binary(max_size=80))
def test_any_header_is_refused_or_read(header):
    found_in(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)


@pytest.mark.parametrize(
    "array", [np.array([1, "x", None], dtype=object), np.array([[{}, [1]]], dtype=object)]
)
def test_object_arrays_of_plain_data_are_clean(array):
    assert found_in(written(array)) == []


def test_objects_of_a_class_outside_the_list_are_refused():
    assert "pickle/global" in found_in(written(np.array([BytesSource(b"")], dtype=object)))


def test_python_2_wrote_long_numbers():
    assert found_in(headed("{'descr': '<f8', 'fortran_order': False, 'shape': (1L,), }", bytes(8))) == []


def test_the_limit_of_the_header_is_exact():
    fixed = "{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }"
    padded = fixed + " " * (MAX_HEADER_BYTES - 1 - len(fixed))
    assert found_in(headed(padded, bytes(8))) == []
    assert found_in(headed(padded + " ", bytes(8))) == ["npy/header"]


def test_the_limit_of_nesting_is_exact():
    def nested(levels: int) -> bytes:
        dtype = "'<f8'"
        for _ in range(levels):
            dtype = f"[('a', {dtype})]"
        return headed(f"{{'descr': {dtype}, 'fortran_order': False, 'shape': (1,)}}", bytes(8))

    deepest = (MAX_LITERAL_DEPTH - 1) // 2
    assert found_in(nested(deepest)) == []
    assert found_in(nested(deepest + 1)) == ["npy/header"]


def test_the_real_reader_agrees_on_the_shape_of_each_header():
    for array in (
        np.arange(6).reshape(2, 3),
        np.array(5),
        np.zeros((0, 4)),
        np.asfortranarray(np.ones((2, 2))),
    ):
        data = written(array)
        stream = io.BytesIO(data)
        version = np.lib.format.read_magic(stream)
        reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[
            version
        ]
        assert list(reader(stream)[0]) == FORMAT.read(BytesSource(data), "x").facts["shape"]
