"""Keeps a process from the memory of others: another process of the same user could be made to connect for it.

seccomp refuses `ptrace` and `process_vm_writev`, and cannot see that a file being opened is /proc/PID/mem. Two more
layers of Linux, each used where it is:
  Landlock      from inside a domain no process outside of it can be traced, its memory file included. A domain has to
                handle something: moving files between folders, which is then allowed everywhere.
  capabilities  root loses those that override this or make sockets, namespaces and kernel modules

Both hold for the calling thread and what it starts: call it first, before there is another thread.
Source: linux/landlock.h, linux/capability.h; the kernel's userspace-api/landlock documentation.
"""

import ctypes
import os
import struct
from contextlib import suppress

from steelyard.seccomp import architecture

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446  # the same numbers on every architecture
_REFER = 1 << 13
_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION = 0x20080522
# DAC_READ_SEARCH, NET_ADMIN, NET_RAW, SYS_MODULE, SYS_RAWIO, SYS_PTRACE, SYS_ADMIN, SYS_BOOT, PERFMON, BPF
_DROPPED = (2, 12, 13, 16, 17, 19, 21, 22, 38, 39)


def keep_out(libc: ctypes.CDLL) -> bool:
    """Whether Landlock holds; capabilities are dropped in any case."""
    if architecture() is None:
        return False
    _drop_capabilities(libc)
    rule_bytes = struct.pack("=Q", _REFER)
    ruleset = libc.syscall(_CREATE, rule_bytes, len(rule_bytes), 0)
    if ruleset < 0:
        return False
    root = os.open("/", os.O_PATH | os.O_CLOEXEC)
    try:
        if libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("=Qi", _REFER, root), 0) != 0:
            return False
        if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            return False
        return bool(libc.syscall(_RESTRICT, ruleset, 0) == 0)
    finally:
        os.close(root)
        os.close(ruleset)


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    sets = ctypes.create_string_buffer(24)  # twice: effective, permitted, inheritable
    with suppress(AttributeError):  # a C library without them
        if libc.capget(header, sets) != 0:
            return
        words = list(struct.unpack("=6I", sets.raw))
        for number in _DROPPED:
            half = 3 * (number // 32)
            for word in range(half, half + 3):
                words[word] &= ~(1 << (number % 32))
        libc.capset(header, struct.pack("=6I", *words))
