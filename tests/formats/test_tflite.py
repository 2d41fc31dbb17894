"""What TensorFlow's converter wrote is clean; what it is not sure of is flagged."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.errors import Malformed
from steelyard.formats.base import BytesSource
from steelyard.formats.tflite import FORMAT

DATA = Path(__file__).parent.parent / "data" / "tflite"
HONEST = ["branch", "buffers_behind", "convolution", "labelled", "quantised"]


def load(name: str) -> bytes:
    return (DATA / f"{name}.tflite").read_bytes()


def flagged(data: bytes) -> bool:
    try:
        report = FORMAT.read(BytesSource(data), "m.tflite")
        if report.children is not None:
            for child in report.children():
                child.open()
        return not FORMAT.sniff(data[:4096], "m") or bool(report.findings)
    except Malformed as error:
        return error.rule in FORMAT.rules


@pytest.mark.parametrize("name", HONEST)
def test_what_the_converter_wrote_is_clean(name):
    assert FORMAT.sniff(load(name)[:4096], name)
    assert not flagged(load(name))


def test_the_facts_are_those_of_the_model():
    facts = FORMAT.read(BytesSource(load("convolution")), "m").facts
    assert facts["description"] == "MLIR Converted."
    assert facts["subgraphs"] == 1
    assert facts["parameters"] == 3 * 3 * 3 * 4 + 4  # the kernel and its zero bias
    assert facts["operators"] == {"3": 1, "25": 1}  # CONV_2D with the RELU fused, SOFTMAX


def test_the_branches_of_a_condition_are_subgraphs():
    assert FORMAT.read(BytesSource(load("branch")), "m").facts["subgraphs"] == 3


def test_associated_files_are_children():
    report = FORMAT.read(BytesSource(load("labelled")), "m")
    (child,) = report.children()
    opened = child.open()
    assert (child.name, opened.read(0, opened.size)) == ("labels.txt", b"cat\ndog\n")


def test_operators_of_the_whole_of_tensorflow_are_refused():
    report = FORMAT.read(BytesSource(load("flex")), "m")
    assert {finding.rule for finding in report.findings} == {"tflite/flex-operator"}


@given(st.sampled_from(HONEST), st.integers(1, 1500))
@settings(max_examples=60, deadline=None)
def test_a_shortened_file_is_flagged_or_lost_only_padding(name, missing):
    data = load(name)
    cut = data[: max(8, len(data) - missing)]
    assert flagged(cut) or not any(data[len(cut) :]) or name == "labelled"


@given(st.sampled_from(HONEST), st.binary(min_size=1, max_size=60).filter(any))
@settings(max_examples=40, deadline=None)
def test_bytes_behind_the_model_are_flagged(name, tail):
    assert flagged(load(name) + tail)


@given(st.sampled_from(HONEST), st.data())
@settings(max_examples=150, deadline=None)
def test_a_flipped_bit_is_read_or_refused_and_never_crashes(name, data):
    content = bytearray(load(name))
    at = data.draw(st.integers(0, len(content) * 8 - 1))
    content[at // 8] ^= 1 << at % 8
    flagged(bytes(content))
