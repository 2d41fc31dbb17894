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


def test_an_identifier_that_python_folds_to_another_refuses():
    (finding,) = FORMAT.read(BytesSource("\uff45val = 1\nprint(eval)\n".encode()), "m.py").findings
    assert finding.rule == "code/unreadable"
    assert "NFKC" in finding.message


def test_an_identifier_in_its_own_form_only_asks():
    (finding,) = FORMAT.read(BytesSource("naïve = 1\n".encode()), "m.py").findings
    assert finding.rule == "code/python"


@pytest.mark.parametrize(
    ("source", "capability"),
    [
        ("import os as o\no.system('x')", "processes"),
        ("from os import system as s\ns('x')", "processes"),
        ("import os\nf = os.system\nf('x')", "processes"),
        ("import urllib.request as r\nr.urlopen('x')", "network"),
        ("import torch\ntorch.load('x')", "deserialisation"),
        ("import torch as t\nt.jit.load('x')", "deserialisation"),
        ("from yaml import load\nload('x')", "deserialisation"),
        ("open('x')", "files"),
        ("import os\nos.environ['x']", "environment"),
        ("import ctypes\nctypes.CDLL('x')", "native code"),
        ("getattr(a, b)", "computed names"),
        ("(1).__class__.__subclasses__()", "computed names"),
        ("eval(x)", "code made at run time"),
        ("class A(metaclass=B): pass", "a metaclass"),
    ],
)
def test_capability_is_named_with_its_line(source, capability):
    report = FORMAT.read(BytesSource(source.encode()), "m.py")
    assert report.facts["may"][capability][-1] == source.count("\n") + 1
    assert [finding.rule for finding in report.findings] == ["code/python"]
    assert report.findings[0].message.count("?") == 1


def test_what_runs_at_import_is_told_from_what_a_call_runs():
    inside = FORMAT.read(BytesSource(b"import os\ndef f():\n    os.system('x')\n"), "m.py")
    outside = FORMAT.read(BytesSource(b"import os\ndef f(a=os.system('x')):\n    pass\n"), "m.py")
    assert inside.facts["at_import"] == []
    assert outside.facts["at_import"] == ["processes"]


def test_plain_model_code_asks_one_question_without_capabilities():
    source = b"from torch import nn\nclass A(nn.Module):\n    def forward(self, x):\n        return x + 1\n"
    report = FORMAT.read(BytesSource(source), "modeling.py")
    assert report.facts["may"] == {}
    assert [finding.rule for finding in report.findings] == ["code/python"]


def test_notebook_cells_are_read_as_one_program():
    cells = (
        '{"cells": [{"cell_type": "markdown", "source": "import socket"}, {"cell_type": "code", "source": '
    )
    notebook = cells + '["import os\\n", "os.system(1)\\n", "%matplotlib inline\\n"]}]}'
    report = FORMAT.read(BytesSource(notebook.encode()), "n.ipynb")
    assert [finding.rule for finding in report.findings] == ["code/notebook"]
    assert set(report.facts["may"]) == {"processes"}


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors", "weights.pth"])
def test_other_files_are_left_to_others(name):
    assert not FORMAT.sniff(b"\x80\x02}q\x00." if name.endswith("pth") else b"plain", name)
