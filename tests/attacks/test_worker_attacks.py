"""Parsers that a file has taken over: each ends in a refusal with its reason, and nothing happened.

The hostile parsers are formats of a registry of their own; the confinement and the pool are the real ones.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import MappingProxyType

import pytest

from steelyard.admit import pool
from steelyard.admit.pool import Pool
from steelyard.admit.scan import Verdict, scan
from steelyard.formats.base import Finding, Report
from steelyard.formats.registry import Registry

linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's part of the confinement is Linux's")


class Taken:
    """Claims files that end in .evil and does what they say; reads every other file."""

    name = "taken"
    rules = MappingProxyType({})

    def __init__(self, deed=None):
        self.deed = deed

    def sniff(self, head, path):
        return True

    def read(self, source, path):
        if path.endswith(".evil"):
            self.deed()
        return Report("read", {"pid": os.getpid()})


def allocate():
    bytearray(2 << 30)


def allocate_slowly():
    held = []
    while True:
        held.append(os.urandom(1 << 20))


def connect():
    socket.create_connection(("127.0.0.1", 9), 1)


def run_program():
    subprocess.run(["true"], check=True)


def replace_itself():
    os.execv("/bin/true", ["true"])


def fork():
    os.fork()


def crash():
    os.kill(os.getpid(), signal.SIGSEGV)


def crash_hard():
    import ctypes

    ctypes.string_at(0)


def leave():
    os._exit(0)


def write_file():
    Path(tempfile.gettempdir(), "steelyard-was-here").write_text("x")


def remove_file():
    Path(__file__).unlink()


def loop():
    while True:
        pass


@pytest.fixture
def tree(tmp_path):
    for name in ("a.txt", "b.evil", "c.txt"):
        (tmp_path / name).write_text(name)
    return tmp_path


def only(found):
    assert found.verdict is Verdict.REJECT
    reports = {file.path: file.report for file in found.files}
    assert reports["a.txt"].format == reports["c.txt"].format == "read"  # the other files go on
    [finding] = reports["b.evil"].findings
    return finding


DEEDS = {
    connect: pool.DIED,
    run_program: pool.DIED,
    replace_itself: pool.DIED,
    fork: pool.DIED,
    crash_hard: pool.DIED,
    leave: pool.DIED,
    remove_file: pool.DIED,
}


@pytest.mark.parametrize("deed", DEEDS, ids=lambda deed: deed.__name__)
def test_parser_that_is_taken_over_ends_in_a_refusal(tree, deed):
    finding = only(scan(tree, Registry((Taken(deed),)), is_isolated=True))
    assert finding.rule == DEEDS[deed]
    assert Path(__file__).exists()


@linux
@pytest.mark.parametrize("deed", [allocate, allocate_slowly], ids=lambda deed: deed.__name__)
def test_memory_bomb_ends_in_a_refusal(tree, deed):
    began = time.monotonic()
    finding = only(scan(tree, Registry((Taken(deed),)), is_isolated=True))
    assert finding.rule in {"file/too-big", pool.DIED}
    assert time.monotonic() - began < 20


@linux
def test_parser_cannot_write_a_file(tree):
    marker = Path(tempfile.gettempdir(), "steelyard-was-here")
    finding = only(scan(tree, Registry((Taken(write_file),)), is_isolated=True))
    assert finding.rule == pool.DIED
    assert not marker.exists()


def jobs_of(tree):
    return [pool.Job(str(tree), p.name, p.name, p.stat().st_size) for p in sorted(tree.iterdir())]


@linux
def test_endless_parser_is_stopped(tree):
    began = time.monotonic()
    with Pool(Registry((Taken(loop),)), 1, parse_s=0.5) as workers:
        answers = workers.run(jobs_of(tree))
    rules = {a.job.path: [f.rule for f in a.report.findings] for a in answers}
    assert rules == {"a.txt": [], "b.evil": [pool.SLOW], "c.txt": []}
    assert time.monotonic() - began < 20


@linux
def test_kernel_refuses_what_the_hook_would_not_see(tmp_path):
    """With seccomp alone, as for a parser that got past Python: every way out is EPERM."""
    code = (
        "import ctypes, errno, os, sys\n"
        "from steelyard import seccomp\n"
        "from steelyard.admit import confinement\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "assert confinement._filter(libc, confinement._has_nameless_files())\n"
        "def call(*args):\n"
        "    ctypes.set_errno(0)\n"
        "    return libc.syscall(*args), ctypes.get_errno()\n"
        "machine = seccomp.architecture()\n"
        "for name in confinement._REFUSED:\n"
        "    number = machine.number(name)\n"
        "    if number is not None and name not in ('kill', 'tkill', 'tgkill'):\n"
        "        result, error = call(number, 0, 0, 0, 0, 0)\n"
        "        print(name, result, errno.errorcode.get(error))\n"
        "for flags in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC):\n"
        "    try:\n"
        "        os.open('/dev/null', flags)\n"
        "        print('open', 0, None)\n"
        "    except OSError as error:\n"
        "        print('open', -1, errno.errorcode[error.errno])\n"
        "os.close(os.open('/dev/null', os.O_RDONLY))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) > 50
    assert {line.split()[1] + line.split()[2] for line in lines} == {"-1EPERM"}


def test_confinement_that_held_is_said(tree):
    found = scan(tree, Registry((Taken(lambda: None),)), is_isolated=True)
    assert found.verdict is Verdict.ADMIT
    assert found.confinement["audit"] is True
    assert found.confinement["seccomp"] is (sys.platform == "linux")
    assert {file.report.facts["pid"] for file in found.files} - {os.getpid()}


def children():
    """Processes of this one's; other tests may keep servers of their own."""
    found = Path("/proc/self/task").glob("*/children")
    return {pid for path in found for pid in path.read_text().split()}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_leave_no_process_and_no_descriptor(tree):
    before, born = set(os.listdir("/proc/self/fd")), children()
    with Pool(Registry((Taken(crash_hard),)), 2) as workers:
        answers = workers.run(jobs_of(tree) * 5)
    assert len(answers) == 15
    assert children() <= born
    assert set(os.listdir("/proc/self/fd")) == before


def test_isolated_and_in_process_agree(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"x" * 100_000)

    class Plain(Taken):
        def read(self, source, path):
            return Report("read", {"n": source.size}, (Finding("a/b", "said", 3, "m"),))

    registry = Registry((Plain(),))
    here, there = scan(tmp_path, registry), scan(tmp_path, registry, is_isolated=True)
    assert here.files == there.files
    assert here.model == there.model
