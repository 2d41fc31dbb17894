"""joblib files: arrays between opcodes are found by both loaders' rules, cut files are refused."""

import io
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from steelyard.formats.base import BytesSource
from steelyard.formats.joblib_file import names
from steelyard.formats.pickle_machine import run
from steelyard.formats.pickled import FORMAT

SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5)
ARRAYS = st.sampled_from(["<f8", "<f4", ">i2", "u1", "?", "S3", "U2", "M8[s]"]).flatmap(
    lambda code: hnp.arrays(np.dtype(code), SHAPES)
)


class NumpyArrayWrapper:
    """What joblib writes in place of an array; pickled under joblib's own name."""

    __module__ = "joblib.numpy_pickle"
    __qualname__ = "NumpyArrayWrapper"


class JoblibWriter(pickle._Pickler):
    """The bytes of `joblib.dump`: arrays become wrappers followed by raw data."""

    def __init__(self, file, protocol, alignment):
        super().__init__(file, protocol)
        self.file, self.alignment = file, alignment

    def save_global(self, obj, name=None):
        if obj is NumpyArrayWrapper:
            self.save("joblib.numpy_pickle")
            self.save("NumpyArrayWrapper")
            self.write(b"\x93")
            self.memoize(obj)
        else:
            super().save_global(obj, name)

    def save(self, obj, save_persistent_id=True):
        if type(obj) is not np.ndarray:
            return super().save(obj, save_persistent_id)
        wrapper = NumpyArrayWrapper()
        wrapper.subclass, wrapper.shape, wrapper.order = np.ndarray, obj.shape, "C"
        wrapper.dtype, wrapper.allow_mmap = obj.dtype, not obj.dtype.hasobject
        if self.alignment:
            wrapper.numpy_array_alignment_bytes = self.alignment
        super().save(wrapper)
        self.framer.commit_frame(force=True)
        if obj.dtype.hasobject:
            self.file.write(pickle.dumps(obj, 2))
            return None
        if self.alignment:
            padding = self.alignment - (self.file.tell() + 1) % self.alignment
            self.file.write(bytes([padding]) + b"\xff" * padding)
        self.file.write(obj.tobytes())
        return None

    dispatch = dict(pickle._Pickler.dispatch)  # noqa: RUF012 - the base has it so
    dispatch[type] = save_global


def joblib_bytes(value: object, alignment: int | None = 16, protocol: int = 4) -> bytes:
    out = io.BytesIO()
    JoblibWriter(out, protocol, alignment).dump(value)
    return out.getvalue()


def found_in(data: bytes) -> list[str]:
    return [finding.rule for finding in FORMAT.read(BytesSource(data), "x.joblib").findings]


@settings(max_examples=40, deadline=None)
@given(st.lists(ARRAYS, max_size=4))
def test_arrays_of_every_dtype_and_shape_are_clean(arrays):
    data = joblib_bytes({"arrays": arrays, "again": [1, "x"]})
    assert found_in(data) == []
    report = FORMAT.read(BytesSource(data), "x.joblib")
    assert report.format == ("joblib" if arrays else "pickle")


@settings(max_examples=30, deadline=None)
@given(st.lists(ARRAYS, min_size=1, max_size=3), st.integers(1, 300))
def test_the_window_changes_nothing(arrays, window):
    source = BytesSource(joblib_bytes(arrays))
    whole, parts = run(source, names=names), run(source, names=names, window=window, slack=600)
    assert (whole.opcodes, whole.end, whole.findings) == (parts.opcodes, parts.end, parts.findings)


@settings(max_examples=40, deadline=None)
@given(st.lists(ARRAYS, min_size=1, max_size=2), st.data())
def test_every_truncation_is_refused(arrays, data):
    whole = joblib_bytes(arrays)
    assert found_in(whole[: data.draw(st.integers(0, len(whole) - 1))])


def test_an_object_array_is_judged_as_a_pickle_of_its_own():
    assert found_in(joblib_bytes([np.array([1, "x", None], dtype=object), np.ones(3)])) == []
    assert found_in(joblib_bytes([np.array([pytest.fail], dtype=object)]))[:1] == ["pickle/inline"]


def test_numbers_without_padding_are_clean_where_pickle_would_break_off():
    assert found_in(joblib_bytes(np.arange(4.0) + 0.1, alignment=None)) == []


def test_raw_bytes_that_both_loaders_follow_to_an_import_are_refused():
    raw = np.frombuffer(b"cposix\nsystem\n", dtype=np.uint8)
    assert found_in(joblib_bytes([raw], alignment=None)) == ["joblib/ambiguous"]
    assert found_in(joblib_bytes([raw])) == []  # the padding byte ends the other reading


def test_a_wrapper_is_no_array_to_a_loader_that_is_not_joblib():
    outcome = run(BytesSource(joblib_bytes([np.ones(3)])))
    assert "pickle/global" in {finding.rule for finding in outcome.findings}
