"""Code beside the weights is named, never run: source waits for a reader, everything else is refused."""

import pytest

from steelyard.formats.base import BytesSource, Severity
from steelyard.formats.python_code import FORMAT, MAX_SOURCE_BYTES, RULES


def rules_of(data, path="m.py"):
    return [finding.rule for finding in FORMAT.read(BytesSource(data), path).findings]


def test_source_that_parses_asks_for_a_reader():
    report = FORMAT.read(BytesSource(b"import os\nfrom torch import nn\n"), "modeling.py")
    assert [finding.rule for finding in report.findings] == ["code/python"]
    assert RULES["code/python"].severity is Severity.REVIEW
    assert report.facts["imports"] == ["os", "torch"]


def test_source_that_does_not_parse_is_refused():
    assert rules_of(b"def f(:\n") == ["code/unreadable"]


def test_source_size_at_the_limit_and_one_past_it():
    from steelyard.errors import Malformed

    assert rules_of(b"#" * MAX_SOURCE_BYTES) == ["code/python"]
    with pytest.raises(Malformed):
        rules_of(b"#" * (MAX_SOURCE_BYTES + 1))


def test_identifiers_outside_ascii_are_named_after_folding():
    (finding,) = FORMAT.read(BytesSource("\uff45val = 1\nprint(é)\n".encode()), "m.py").findings
    assert "outside ASCII" in finding.message


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors", "weights.pth"])
def test_other_files_are_left_to_others(name):
    assert not FORMAT.sniff(b"\x80\x02}q\x00." if name.endswith("pth") else b"plain", name)
