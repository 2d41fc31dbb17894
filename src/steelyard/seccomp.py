"""Filters of system calls that the kernel keeps, for this process and all it starts, until they end.

Classic BPF over struct seccomp_data {int nr; u32 arch; u64 ip; u64 args[6]}, for Linux on x86-64 and AArch64. A call of
another architecture, x32 included, ends the process: its numbers mean other calls.

Source: linux/seccomp.h, linux/filter.h, linux/audit.h; the system call tables of both architectures.
"""

import ctypes
import platform
import struct
from collections.abc import Callable, Iterable, Iterator

ALLOW = 0x7FFF0000
EPERM = 0x00050001

_AUDIT_X86_64 = 0xC000003E
_AUDIT_AARCH64 = 0xC00000B7
_X32_BIT = 0x40000000
_KILL = 0x80000000
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_FILTER = 2
_SET_MODE_FILTER = 1
_EVERY_THREAD = 1  # SECCOMP_FILTER_FLAG_TSYNC

# Numbers by name: (x86-64, AArch64), absent where the architecture has no such call.
NUMBERS: dict[str, tuple[int | None, int | None]] = {
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242), "sendto": (44, 206), "sendmsg": (46, 211), "sendmmsg": (307, 269),
    "execve": (59, 221), "execveat": (322, 281), "fork": (57, None), "vfork": (58, None), "clone": (56, 220),
    "clone3": (435, 435), "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "kill": (62, 129), "tkill": (200, 130), "tgkill": (234, 131), "pidfd_open": (434, 434),
    "pidfd_getfd": (438, 438), "kcmp": (312, 272), "open_by_handle_at": (304, 265),
    "open": (2, None), "openat": (257, 56), "creat": (85, None), "openat2": (437, 437), "truncate": (76, 45),
    "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276), "link": (86, None), "linkat": (265, 37),
    "symlink": (88, None), "symlinkat": (266, 36), "unlink": (87, None), "unlinkat": (263, 35), "mkdir": (83, None),
    "mkdirat": (258, 34), "rmdir": (84, None), "mknod": (133, None), "mknodat": (259, 33), "chmod": (90, None),
    "fchmod": (91, 52), "fchmodat": (268, 53), "chown": (92, None), "fchown": (93, 55), "lchown": (94, None),
    "fchownat": (260, 54), "setxattr": (188, 5), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "setns": (308, 268), "unshare": (272, 97), "init_module": (175, 105),
    "finit_module": (313, 273), "kexec_load": (246, 104), "bpf": (321, 280), "perf_event_open": (298, 241),
    "keyctl": (250, 219), "add_key": (248, 217), "request_key": (249, 218), "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "setuid": (105, 146), "setgid": (106, 144), "setresuid": (117, 147), "setresgid": (119, 149),
    "reboot": (169, 142), "seccomp": (317, 277), "fsopen": (430, 430), "fsmount": (432, 432),
    "move_mount": (429, 429), "open_tree": (428, 428), "quotactl": (179, 60), "acct": (163, 89),
}  # fmt: skip


class Architecture:
    """This machine's column of the table."""

    def __init__(self, index: int) -> None:
        self._index = index

    @property
    def is_x86_64(self) -> bool:
        return self._index == 0

    @property
    def audit(self) -> int:
        return (_AUDIT_X86_64, _AUDIT_AARCH64)[self._index]

    def number(self, name: str) -> int | None:
        """The number of a call, absent where there is none."""
        return NUMBERS[name][self._index]


def architecture() -> Architecture | None:
    """Absent where no filter can be made."""
    index = {("Linux", "x86_64"): 0, ("Linux", "aarch64"): 1}.get((platform.system(), platform.machine()))
    return None if index is None else Architecture(index)


def install(
    libc: ctypes.CDLL, rules: Callable[[Architecture], Iterable[bytes]], *, every_thread: bool = False
) -> bool:
    """Have the kernel keep `rules`, then allow the rest. False where it cannot.

    libc: loaded by the caller, who may have forbidden loading since.  rules: find the call's number loaded and may
    end in `statement(0x06, verdict)`; what they load, they must not leave behind for the next rule.
    every_thread: of this process, else only this one and what it starts.
    """
    machine = architecture()
    if machine is None:
        return False
    code = b"".join(_program(machine, rules(machine)))
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
    argument = ctypes.create_string_buffer(program, len(program))
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    if every_thread:
        number = machine.number("seccomp")
        return bool(libc.syscall(number, _SET_MODE_FILTER, _EVERY_THREAD, ctypes.byref(argument)) == 0)
    return bool(libc.prctl(_PR_SET_SECCOMP, _FILTER, ctypes.byref(argument), 0, 0) == 0)


def refused(machine: Architecture, names: Iterable[str]) -> Iterator[bytes]:
    """Rules that answer EPERM to these calls."""
    for number in sorted(n for name in names if (n := machine.number(name)) is not None):
        yield jump(0x15, number, 0, 1)
        yield statement(0x06, EPERM)


def statement(code: int, value: int) -> bytes:
    return struct.pack("<HBBI", code, 0, 0, value)


def jump(code: int, value: int, if_true: int, if_false: int) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)


def _program(machine: Architecture, rules: Iterable[bytes]) -> Iterator[bytes]:
    yield statement(0x20, 4)
    yield jump(0x15, machine.audit, 1, 0)
    yield statement(0x06, _KILL)
    yield statement(0x20, 0)
    if machine.is_x86_64:  # the x32 calls of the same processor have numbers of their own
        yield jump(0x35, _X32_BIT, 0, 1)
        yield statement(0x06, _KILL)
    yield from rules
    yield statement(0x06, ALLOW)
