"""Prose: known names, UTF-8, no hidden characters; the model card's head is read by a reader of our own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.errors import Malformed
from steelyard.formats.base import BytesSource
from steelyard.formats.text import FORMAT, MAX_BYTES, front_matter


@pytest.mark.parametrize(
    "name", ["README.md", "LICENSE", "LICENCE.txt", "NOTICE", "USE_POLICY.md", "COPYING"]
)
def test_prose_is_claimed_by_name(name):
    assert FORMAT.sniff(b"words", name)


@pytest.mark.parametrize("name", ["weights", "merges.txt", "a.exe", "README.exe"])
def test_other_names_are_not(name):
    assert not FORMAT.sniff(b"words", name)


def test_bytes_that_are_no_text_are_not_claimed():
    assert not FORMAT.sniff(b"PK\x03\x04", "README.md")
    assert not FORMAT.sniff(b"a\0b", "README.md")


@pytest.mark.parametrize("char", ["\x1b", "\x08", "\u202e", "\U000e0041", "\x7f"])
def test_hidden_character_is_refused_at_its_offset(char):
    (finding,) = FORMAT.read(BytesSource(f"é{char}".encode()), "README.md").findings
    assert (finding.rule, finding.offset) == ("text/control", 2)


def test_text_of_nothing_but_control_characters_is_read_quickly():
    assert len(FORMAT.read(BytesSource(b"\x01" * MAX_BYTES), "README.md").findings) == 10


def test_size_at_the_limit_and_one_past_it():
    assert FORMAT.read(BytesSource(b"a" * MAX_BYTES), "README.md").findings == ()
    with pytest.raises(Malformed, match="at most"):
        FORMAT.read(BytesSource(b"a" * (MAX_BYTES + 1)), "README.md")


def test_wrong_encoding_is_malformed_at_its_offset():
    with pytest.raises(Malformed) as caught:
        FORMAT.read(BytesSource(b"ab\xff"), "README.md")
    assert (caught.value.rule, caught.value.offset) == ("text/encoding", 2)


def test_front_matter_reads_pairs_and_lists_and_leaves_out_the_rest():
    card = "---\nlicense: apache-2.0\nquoted: 'a b'\ndatasets:\n- one\n- two\n"
    card += "model-index:\n  - deep: {x: [\n---\nbody: no\n"
    assert front_matter(card) == {
        "license": "apache-2.0", "quoted": "a b", "datasets": ["one", "two"], "model-index": ["deep: {x: ["],
    }  # fmt: skip


@pytest.mark.parametrize("card", ["license: mit\n", "---\nlicense: mit\n", "", "--\nlicense: mit\n---\n"])
def test_text_without_a_closed_head_has_no_front_matter(card):
    assert front_matter(card) == {}


@given(st.text())
def test_front_matter_reads_any_text(text):
    assert isinstance(front_matter("---\n" + text), dict)


def test_requirements_by_name_are_facts():
    text = b"torch>=2.1,<3  # comment\ntransformers[sentencepiece]==4.40.0; python_version < '3.12'\nnumpy\n"
    report = FORMAT.read(BytesSource(text), "requirements.txt")
    assert report.findings == ()
    assert report.facts["packages"] == ["torch", "transformers", "numpy"]


@pytest.mark.parametrize(
    "line",
    [
        "git+https://x.example/a",
        "--index-url https://x.example",
        "a @ https://x.example/a.whl",
        "-e .",
        "./a.whl",
    ],
)
def test_requirement_by_address_asks_one_question(line):
    report = FORMAT.read(BytesSource(f"numpy\n{line}\n".encode()), "requirements.txt")
    assert [finding.rule for finding in report.findings] == ["text/installer"]
    assert report.findings[0].message.endswith("install it?")


HARMLESS = b"cos\nsystem\n(S'true'\ntR."


@pytest.mark.parametrize(
    "tail", [b"", b"\n", b"\nApache License\nVersion 2.0\n"], ids=["bare", "line end", "prose"]
)
def test_pickle_of_text_opcodes_does_not_pass_for_prose(tail):
    found = FORMAT.read(BytesSource(HARMLESS + tail), "LICENSE.txt").findings
    assert "text/pickle" in {finding.rule for finding in found}


def test_prose_that_speaks_of_a_pickle_is_prose():
    text = b"cos\nsystem\nis how an attack begins. It is not one.\n"
    assert FORMAT.read(BytesSource(text), "README.md").findings == ()
