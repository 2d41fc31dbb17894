"""What OpenVINO's converter wrote is clean and names its weights."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.errors import Malformed
from steelyard.formats.base import BytesSource
from steelyard.formats.openvino import FORMAT

DATA = Path(__file__).parent.parent / "data" / "openvino"
NAMES = ["plain", "quantised", "typed_int4"]


@pytest.mark.parametrize("name", NAMES)
def test_what_the_converter_wrote_is_clean(name):
    data = (DATA / f"{name}.xml").read_bytes()
    assert FORMAT.sniff(data[:4096], name)
    report = FORMAT.read(BytesSource(data), f"some/folder/{name}.xml")
    assert report.findings == ()
    (reference,) = report.references
    assert reference.path == f"{name}.bin"
    assert reference.end == (DATA / reference.path).stat().st_size


def test_the_facts_are_those_of_the_model():
    facts = FORMAT.read(BytesSource((DATA / "plain.xml").read_bytes()), "plain.xml").facts
    assert facts["ir_version"] == "11"
    assert facts["parameters"] == 16 * 32 + 32 * 4
    assert facts["operators"]["MatMul"] == 2


@given(st.sampled_from(NAMES), st.integers(1, 4000))
@settings(max_examples=30, deadline=None)
def test_a_shortened_file_is_refused(name, missing):
    data = (DATA / f"{name}.xml").read_bytes().rstrip()
    with pytest.raises(Malformed) as caught:
        FORMAT.read(BytesSource(data[: max(1, len(data) - missing)]), "m.xml")
    assert caught.value.rule == "openvino/syntax"


@given(st.sampled_from(NAMES), st.data())
@settings(max_examples=60, deadline=None)
def test_a_flipped_bit_is_read_or_refused_and_never_crashes(name, data):
    content = bytearray((DATA / f"{name}.xml").read_bytes())
    at = data.draw(st.integers(0, len(content) * 8 - 1))
    content[at // 8] ^= 1 << at % 8
    try:
        found = {finding.rule for finding in FORMAT.read(BytesSource(bytes(content)), "m.xml").findings}
    except Malformed as error:
        found = {error.rule}
    assert found <= set(FORMAT.rules)


@pytest.mark.parametrize(
    "head", [b"<PMML version='4'>", b"<html>", b"<network>", b"", b"<?xml version='1.0'?><root/>"]
)
def test_other_xml_is_not_claimed(head):
    assert not FORMAT.sniff(head, "model.xml")
