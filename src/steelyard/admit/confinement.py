"""What a process that parses a stranger's file may still do: read, compute, write to its own temporary file.

Three layers, each tried, and what held is said in the scan's statement:
  limits    memory of its own (RLIMIT_DATA), size of a file it writes (RLIMIT_FSIZE), no core dump
  audit     a Python audit hook ends the process at the first socket, subprocess, exec, fork or foreign library
  seccomp   on Linux (x86-64, AArch64) the kernel refuses those and renames, links, deletions, mounts, tracing and the
            like, whoever asks: EPERM. Opening for writing is refused too, unless the file has no name (O_TMPFILE).

Source: linux/fcntl.h; `seccomp.py` has the rest.
"""

import ctypes
import os
import resource
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from steelyard.digest import JSON
from steelyard.seccomp import ALLOW, EPERM, Architecture, install, jump, refused, statement

MEMORY_BYTES = (
    384 << 20
)  # on top of what the process has; parsers stay far below, this is the fence behind them
FILE_BYTES = 9 << 30  # the budget of unpacked bytes, and a little
EXIT_BREACH = 86

_O_TMPFILE = 0o20200000
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

# What a parser never needs.
_REFUSED = (
    "socket", "socketpair", "connect", "bind", "listen", "accept", "accept4", "sendto", "sendmsg", "sendmmsg", "execve",
    "execveat", "fork", "vfork", "clone", "clone3", "ptrace", "process_vm_readv", "process_vm_writev", "kill", "tkill",
    "tgkill", "pidfd_open", "pidfd_getfd", "creat", "openat2", "truncate", "rename", "renameat", "renameat2", "link",
    "linkat", "symlink", "symlinkat", "unlink", "unlinkat", "mkdir", "mkdirat", "rmdir", "mknod", "mknodat", "chmod",
    "fchmod", "fchmodat", "chown", "fchown", "lchown", "fchownat", "setxattr", "mount", "umount2", "pivot_root",
    "chroot", "setns", "unshare", "init_module", "finit_module", "kexec_load", "bpf", "perf_event_open", "keyctl",
    "add_key", "request_key", "userfaultfd", "io_uring_setup", "setuid", "setgid", "setresuid", "setresgid", "reboot",
)  # fmt: skip

_BREACHES = (
    "socket.",
    "subprocess.",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "pty.",
    "ctypes.",
    "webbrowser.",
)
_BREACH_NAMES = frozenset(
    {"os.system", "os.putenv", "os.remove", "os.rename", "os.link", "os.symlink", "os.kill", "os.chmod"}
)


@dataclass(frozen=True, slots=True)
class Confinement:
    """Which layers hold."""

    limits: bool
    audit: bool
    seccomp: bool

    def to_json(self) -> dict[str, JSON]:
        return {"limits": self.limits, "audit": self.audit, "seccomp": self.seccomp}


def confine() -> Confinement:
    """Put this process behind all three, for good. Layers that the system does not have are said to be absent."""
    libc = ctypes.CDLL(None, use_errno=True)  # before the hook, which ends whoever loads a library
    limits = _limit()
    seccomp = _filter(libc, _has_nameless_files())
    sys.addaudithook(_end_at_breach)
    return Confinement(limits, True, seccomp)


def _limit() -> bool:
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
        allowed = _own_memory() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (allowed, allowed))
    except (OSError, ValueError):
        return False
    return sys.platform == "linux"  # elsewhere RLIMIT_DATA does not bound what malloc takes


def _own_memory() -> int:
    """Bytes of data this process has mapped, which RLIMIT_DATA counts from zero."""
    try:
        with open("/proc/self/statm", "rb") as stream:
            return int(stream.read().split()[5]) * resource.getpagesize()
    except (OSError, IndexError, ValueError):
        return 256 << 20


def _end_at_breach(event: str, args: tuple[object, ...]) -> None:  # noqa: ARG001
    if event.startswith(_BREACHES) or event in _BREACH_NAMES:
        os._exit(EXIT_BREACH)


def _has_nameless_files() -> bool:
    """Whether temporary files need no name here. It also settles where they go: asking later would write one."""
    try:
        os.close(os.open(tempfile.gettempdir(), os.O_RDWR | os.O_TMPFILE | os.O_EXCL, 0o600))
    except (OSError, AttributeError):
        return False
    return True


def _filter(libc: ctypes.CDLL, has_nameless_files: bool) -> bool:
    """Install the seccomp filter. False where it cannot be."""
    return install(libc, lambda machine: _rules(machine, has_nameless_files))


def _rules(machine: Architecture, has_nameless_files: bool) -> Iterator[bytes]:
    """Where temporary files need a name, they are made and unlinked at once, so both stay allowed."""
    yield from refused(
        machine, (name for name in _REFUSED if has_nameless_files or name not in {"unlink", "unlinkat"})
    )
    for name, flags_at in (("open", 24), ("openat", 32)):
        opening = machine.number(name)
        if opening is not None and has_nameless_files:
            yield jump(0x15, opening, 0, 7)
            yield statement(0x20, flags_at)
            yield statement(0x54, _O_TMPFILE & ~os.O_DIRECTORY)
            yield jump(0x15, _O_TMPFILE & ~os.O_DIRECTORY, 3, 0)  # a file without a name
            yield statement(0x20, flags_at)
            yield jump(0x45, _WRITES, 0, 1)
            yield statement(0x06, EPERM)
            yield statement(0x06, ALLOW)
