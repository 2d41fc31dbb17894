"""What a process that parses a stranger's file may still do: read, compute, write to its own temporary file.

Three layers, each tried, and what held is said in the scan's statement:
  limits    memory of its own (RLIMIT_DATA), size of a file it writes (RLIMIT_FSIZE), no core dump
  audit     a Python audit hook ends the process at the first socket, subprocess, exec, fork or foreign library
  seccomp   on Linux (x86-64, AArch64) the kernel refuses those and renames, links, deletions, mounts, tracing and the
            like, whoever asks: EPERM. Opening for writing is refused too, unless the file has no name (O_TMPFILE).

Source: linux/seccomp.h, linux/filter.h, linux/audit.h; the system call tables of both architectures.
"""

import ctypes
import os
import platform
import resource
import struct
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from steelyard.digest import JSON

MEMORY_BYTES = (
    384 << 20
)  # on top of what the process has; parsers stay far below, this is the fence behind them
FILE_BYTES = 9 << 30  # the budget of unpacked bytes, and a little
EXIT_BREACH = 86

_AUDIT_X86_64 = 0xC000003E
_AUDIT_AARCH64 = 0xC00000B7
_X32_BIT = 0x40000000
_ALLOW = 0x7FFF0000
_KILL = 0x80000000
_EPERM = 0x00050001
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_FILTER = 2
_O_TMPFILE = 0o20200000
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

# What a parser never needs. Numbers by name: (x86-64, AArch64), absent where the architecture has no such call.
_REFUSED: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242), "sendto": (44, 206), "sendmsg": (46, 211), "sendmmsg": (307, 269),
    "execve": (59, 221), "execveat": (322, 281), "fork": (57, None), "vfork": (58, None), "clone": (56, 220),
    "clone3": (435, 435), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "pidfd_open": (434, 434),
    "creat": (85, None), "openat2": (437, 437), "truncate": (76, 45), "rename": (82, None), "renameat": (264, 38),
    "renameat2": (316, 276), "link": (86, None), "linkat": (265, 37), "symlink": (88, None), "symlinkat": (266, 36),
    "unlink": (87, None), "unlinkat": (263, 35), "mkdir": (83, None), "mkdirat": (258, 34), "rmdir": (84, None),
    "mknod": (133, None), "mknodat": (259, 33), "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53),
    "chown": (92, None), "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "setxattr": (188, 5),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "setns": (308, 268),
    "unshare": (272, 97), "init_module": (175, 105), "finit_module": (313, 273), "kexec_load": (246, 104),
    "bpf": (321, 280), "perf_event_open": (298, 241), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "setuid": (105, 146),
    "setgid": (106, 144), "setresuid": (117, 147), "setresgid": (119, 149), "reboot": (169, 142),
}  # fmt: skip
_OPEN = (2, None)
_OPENAT = (257, 56)

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
    index = {("Linux", "x86_64"): 0, ("Linux", "aarch64"): 1}.get((platform.system(), platform.machine()))
    if index is None:
        return False
    code = b"".join(_program(index, has_nameless_files))
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    argument = ctypes.create_string_buffer(program, len(program))
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    return bool(libc.prctl(_PR_SET_SECCOMP, _FILTER, ctypes.byref(argument), 0, 0) == 0)


def _program(index: int, has_nameless_files: bool) -> Iterator[bytes]:
    """Classic BPF over struct seccomp_data {int nr; u32 arch; u64 ip; u64 args[6]}.

    Where temporary files need a name, they are made and unlinked at once, so both stay allowed.
    """
    refused = {k: v for k, v in _REFUSED.items() if has_nameless_files or k not in {"unlink", "unlinkat"}}
    load_nr, load_arch = _statement(0x20, 0), _statement(0x20, 4)
    yield load_arch
    yield _jump(0x15, (_AUDIT_X86_64, _AUDIT_AARCH64)[index], 1, 0)
    yield _statement(0x06, _KILL)
    yield load_nr
    if index == 0:  # the x32 calls of the same processor have numbers of their own
        yield _jump(0x35, _X32_BIT, 0, 1)
        yield _statement(0x06, _KILL)
    for number in sorted(n for numbers in refused.values() if (n := numbers[index]) is not None):
        yield _jump(0x15, number, 0, 1)
        yield _statement(0x06, _EPERM)
    for numbers, flags_at in ((_OPEN, 24), (_OPENAT, 32)):
        opening = numbers[index]
        if opening is not None and has_nameless_files:
            yield _jump(0x15, opening, 0, 7)
            yield _statement(0x20, flags_at)
            yield _statement(0x54, _O_TMPFILE & ~os.O_DIRECTORY)
            yield _jump(0x15, _O_TMPFILE & ~os.O_DIRECTORY, 3, 0)  # a file without a name
            yield _statement(0x20, flags_at)
            yield _jump(0x45, _WRITES, 0, 1)
            yield _statement(0x06, _EPERM)
            yield _statement(0x06, _ALLOW)
    yield _statement(0x06, _ALLOW)


def _statement(code: int, value: int) -> bytes:
    return struct.pack("<HBBI", code, 0, 0, value)


def _jump(code: int, value: int, if_true: int, if_false: int) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)
