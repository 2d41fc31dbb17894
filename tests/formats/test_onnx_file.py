"""ONNX files that honest exporters wrote are clean, with the figures their libraries give."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.errors import Malformed
from steelyard.formats.base import BytesSource, Reference, Report
from steelyard.formats.onnx_file import FORMAT
from steelyard.formats.onnx_tensor import is_plain_path

DATA = Path(__file__).parent.parent / "data" / "onnx"
FILES = sorted(path.relative_to(DATA).as_posix() for path in DATA.rglob("*.onnx"))


def read(data: bytes) -> Report:
    return FORMAT.read(BytesSource(data), "model.onnx")


def flagged(data: bytes) -> bool:
    """Not claimed, refused, or with a finding."""
    try:
        return not FORMAT.sniff(data[:4096], "m") or bool(read(data).findings)
    except Malformed as error:
        return error.rule in FORMAT.rules


@pytest.mark.parametrize("name", FILES)
def test_an_honest_export_is_clean(name):
    data = (DATA / name).read_bytes()
    assert FORMAT.sniff(data[:4096], name)
    assert read(data).findings == ()


def test_the_facts_are_those_of_the_model():
    facts = read((DATA / "plain.onnx").read_bytes()).facts
    assert facts["parameters"] == 16 * 32 + 32 * 4
    assert facts["operators"] == {"MatMul": 2, "Relu": 1}
    assert facts["opsets"] == {"": 13}
    assert facts["ir_version"] == 8


def test_functions_of_the_model_count_as_known():
    facts = read((DATA / "functions.onnx").read_bytes()).facts
    assert facts["functions"] == 1
    assert facts["operators"] == {"Constant": 2, "If": 1, "Add": 1}
    assert facts["metadata_keys"] == ["author", "names", "stride"]


def test_quantised_operators_of_the_runtime_are_known():
    operators = read((DATA / "quantised.onnx").read_bytes()).facts["operators"]
    assert {"DynamicQuantizeLinear", "MatMulInteger"} <= set(operators)


def test_external_data_becomes_a_reference_with_its_end():
    report = read((DATA / "external" / "model.onnx").read_bytes())
    size = (DATA / "external" / "model.onnx.data").stat().st_size
    assert report.references == (Reference("model.onnx.data", size),)
    assert report.facts["parameters"] * 4 == size


@given(st.sampled_from(FILES), st.integers(1, 4000))
@settings(max_examples=60)
def test_a_shortened_file_is_flagged(name, missing):
    data = (DATA / name).read_bytes()
    assert flagged(data[: max(1, len(data) - missing)])


@given(st.sampled_from(FILES), st.binary(min_size=1, max_size=40))
@settings(max_examples=60)
def test_bytes_behind_the_model_are_flagged_unless_they_are_fields_of_it(name, tail):
    data = (DATA / name).read_bytes()
    # Domain, version, text, operator sets, metadata, training, functions: protobuf allows them in any order.
    if tail[0] >> 3 not in {4, 5, 6, 8, 14} and tail[0] < 0x80:
        assert flagged(data + tail)


@given(st.sampled_from(FILES), st.data())
@settings(max_examples=100)
def test_a_flipped_bit_is_read_or_refused_and_never_crashes(name, data):
    content = bytearray((DATA / name).read_bytes())
    at = data.draw(st.integers(0, len(content) * 8 - 1))
    content[at // 8] ^= 1 << at % 8
    flagged(bytes(content))


@pytest.mark.parametrize(
    "path", ["w.bin", "a/b/w.bin", "model.onnx_data", "layer 1.weight", "ü.bin", "x" * 1024]
)
def test_plain_paths(path):
    assert is_plain_path(path)


@pytest.mark.parametrize(
    "path",
    ["", "/etc/passwd", "../w", "a/../../w", "a//b", "a/./b", "C:/w", "c:w", "a\\b", "http://x/y", "a\0b", "a\nb", "a/",
     "\\\\host\\share", "x" * 1025, "a*"],
)  # fmt: skip
def test_paths_that_are_not_plain(path):
    assert not is_plain_path(path)
