"""A text that a pickle loader would run, and texts that only look like one."""

import pickletools

import pytest

from steelyard.admit.rules import registry
from steelyard.formats.base import BytesSource
from steelyard.formats.pickle_in_text import runs_as_pickle

CALL = b"cos\nsystem\n(Vtrue\ntR."
PROGRAMS = {
    "stop": CALL,
    "no stop": CALL[:-1],
    "prose behind": CALL[:-1] + b"\n\nThis is a model.\n",
    "instance": b"(Vtrue\nios\nsystem\nHello\n",
    "heading": b"V# Title\n0" + CALL,
    "bytes first": b"C " + b"It is a model, in a few words.".ljust(32) + b"0" + CALL,
    "import and stop": b"cantigravity\nfly\n.",
}
PROSE = {
    "words": b"cat\ndog\nbird\n",
    "version": b"Version 1.0\n(c) Somebody\nAll rights reserved.\n",
    "none": b"None of this is code.\n",
    "keys": b"config:\n  name: a\nclass: b\n",
    "data": b"(lp0\nVa\np1\na.",
    "empty": b"",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_text_that_calls_or_runs_to_its_stop_is_a_program(name: str) -> None:
    assert runs_as_pickle(BytesSource(PROGRAMS[name])) is not None


@pytest.mark.parametrize("name", PROSE)
def test_words_that_read_as_an_import_are_words(name: str) -> None:
    assert runs_as_pickle(BytesSource(PROSE[name])) is None


def test_padding_before_the_call_does_not_hide_it() -> None:
    assert runs_as_pickle(BytesSource(b"N0" * ((1 << 20) + 1) + CALL)) is not None


def test_the_standard_library_reads_the_first_program_as_an_import_and_a_call() -> None:
    names = [opcode.name for opcode, _, _ in pickletools.genops(CALL)]
    assert names == ["GLOBAL", "MARK", "UNICODE", "TUPLE", "REDUCE", "STOP"]


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("path", ["m.yaml", "vocab.txt", "m.jinja", "README.md", "LICENSE", "m.pkl"])
def test_no_file_name_lets_a_text_pickle_pass(path: str, name: str) -> None:
    rules = {finding.rule for finding in registry().read(BytesSource(PROGRAMS[name]), path).findings}
    assert rules & {"file/pickle", "text/pickle", "file/unclaimed", "pickle/global"}


def test_a_word_list_is_read_as_one() -> None:
    assert registry().read(BytesSource(PROSE["words"]), "labels.txt").findings == ()
