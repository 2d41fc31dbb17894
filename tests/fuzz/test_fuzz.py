"""Damaged files of every format: no parser raises, acts, hangs, doubts itself, or admits what a loader reads otherwise.

The mutants are the same in every run; `fuzz/run.py` looks for new ones.
"""

import contextlib
import itertools
import os

import pytest
from fuzz.harness import Harness
from fuzz.loaders import LOADERS
from fuzz.session import mutants, seeds_by_format

from steelyard.admit.rules import registry
from steelyard.errors import Malformed, Unavailable
from steelyard.formats.base import Report
from steelyard.formats.registry import Registry

MUTANTS = 120
REGISTRY = registry()
SEEDS = seeds_by_format(REGISTRY)
HARNESS = Harness(REGISTRY, LOADERS)


@pytest.mark.parametrize("name", SEEDS)
def test_every_property_holds_for_seeds_and_mutants(name):
    damaged = itertools.islice(mutants(SEEDS, name, seed=1), MUTANTS)
    wrong = {
        (case.name, case.data.hex()[:200]): reasons
        for case in itertools.chain(SEEDS[name][:20], damaged)
        if (reasons := HARNESS.failures(case.data, case.name))
    }
    assert not wrong


def test_seeds_reach_every_format_of_the_registry():
    """A parser without a seed is a parser that is not fuzzed. Some formats report under the name of what they hold."""
    claimed = {
        known.name
        for known in REGISTRY.formats
        for seeds in SEEDS.values()
        for seed in seeds
        if known.sniff(seed.data[:4096], seed.name)
    }
    assert {known.name for known in REGISTRY.formats} - claimed == set()


def test_most_seeds_are_admitted_so_that_mutants_start_from_valid_files():
    reports = [REGISTRY.read(_source(seed), seed.name) for seeds in SEEDS.values() for seed in seeds]
    admitted = sum(HARNESS.admits(report) for report in reports)
    assert admitted > 0.7 * len(reports)


def test_mutants_are_reproducible():
    for name in ("zip", "pickle", "tar"):
        one, two = (list(itertools.islice(mutants(SEEDS, name, seed=5), 20)) for _ in range(2))
        assert one == two
        assert one != list(itertools.islice(mutants(SEEDS, name, seed=6), 20))


def _source(seed):
    from steelyard.formats.base import BytesSource

    return BytesSource(seed.data)


class Double:
    """A format with a defect that one byte sets free."""

    name = "double"

    def __init__(self, defect):
        self.defect = defect
        self.rules = {}

    def sniff(self, head, path):
        return True

    def read(self, source, path):
        if 0xA7 in source.read(0, source.size):
            self.defect()
        return Report(self.name)


def crash():
    raise IndexError("past the end")


def unavailable():
    raise Unavailable("no disk")


def write_file():
    os.open("planted", os.O_WRONLY | os.O_CREAT)


def read_file():
    open("/etc/hostname").close()


def run_program():
    os.system("true")


def run_code():
    exec("1 + 1")


def import_module():
    import torch.nope  # noqa: F401


def reach_out():
    import socket

    socket.socket()


def loop():
    while True:
        pass


def fill_memory():
    bytearray(40 << 20)


COUNT = itertools.count()


@pytest.mark.parametrize(
    ("defect", "said"),
    [
        (crash, "raises IndexError: past the end at test_fuzz.py"),
        (unavailable, "raises Unavailable"),
        (write_file, "opens planted for writing"),
        (read_file, "opens /etc/hostname"),
        (run_program, "audit event os.system"),
        (run_code, "executes code from <string>"),
        (import_module, "imports torch"),
        (reach_out, "audit event socket."),
        (loop, "takes more CPU time than allowed"),
        (fill_memory, "MB"),
    ],
)
def test_planted_defect_is_found_among_mutants(defect, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    harness = Harness(Registry((Double(defect),)), max_cpu_s=0.3, max_growth_bytes=20 << 20)
    found = next(
        reasons
        for case in itertools.islice(mutants(SEEDS, "npy", seed=1), 5000)
        if (reasons := harness.failures(case.data, case.name))
    )
    assert any(said in reason for reason in found)
    assert list(tmp_path.iterdir()) == []


def test_a_swallowed_offence_is_still_found():
    def hidden():
        with contextlib.suppress(BaseException):
            os.system("true")

    assert Harness(Registry((Double(hidden),))).failures(b"\xa7", "a") == [
        "raises the audit event os.system(b'true',)"
    ]


def test_a_verdict_that_changes_is_found():
    class Fickle(Double):
        def read(self, source, path):
            return Report(self.name, {"count": next(COUNT)})

    assert "two readings differ" in Harness(Registry((Fickle(crash),))).failures(b"x", "a")[0]


def test_a_loader_that_sees_something_else_is_found():
    fooled = Harness(Registry((Double(crash),)), {"double": lambda data: "it reads two tensors"})
    assert fooled.failures(b"x", "a") == ["admitted as double, and it reads two tensors"]


def test_a_loader_that_refuses_is_found_and_a_refused_file_is_not_compared():
    def refuses(data):
        raise ValueError("no such dtype")

    fooled = Harness(Registry((Double(crash),)), {"double": refuses})
    assert fooled.failures(b"x", "a") == [
        "admitted as double, and the real loader refuses: ValueError: no such dtype"
    ]


def test_malformed_is_a_verdict_and_no_failure():
    class Strict(Double):
        def read(self, source, path):
            raise Malformed("broken", rule="file/empty")

    assert (
        Harness(Registry((Strict(crash),)), {"double": lambda data: "never asked"}).failures(b"x", "a") == []
    )
