"""Egress denied: after `close_doors` this process, and all it starts, reach nothing but what a dialler hands them.

  kernel    seccomp, in every thread and in programs started later (Linux on x86-64 and AArch64): no socket but Unix
            streams and pairs of them, no `connect` at all, no address on a datagram, no TCP Fast Open, no io_uring,
            no key upcall, no mount, no tracing of or taking a descriptor from another process
  memory    Landlock and fewer capabilities (`egress_memory`): nobody else's memory is written to make it connect
  python    an audit hook refuses connecting, name look-ups, datagrams, foreign libraries, and programs other than
            those named; it covers platforms without seccomp
  loop      `closed_loop`: uvloop connects and looks up in C, past the hook; those methods refuse
  switches  offline and telemetry switches of libraries set, proxies and hub addresses removed from the environment

Sockets that are open stay open: the listening ones, callers' connections, and what was connected before.
What it does not stop: a file somebody else sends on, and whoever is root outside. Run the gateway as a user of its own.
"""

import asyncio
import ctypes
import errno
import os
import socket
import stat
import sys
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from steelyard.digest import JSON
from steelyard.seccomp import ALLOW, EPERM, Architecture, install, jump, refused, statement
from steelyard.serve.egress_memory import keep_out

SWITCHES = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_EVALUATE_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",
    "DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_DO_NOT_TRACK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "GRADIO_ANALYTICS_ENABLED": "False",
    "WANDB_MODE": "offline",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "ANONYMIZED_TELEMETRY": "False",
    "SCARF_NO_ANALYTICS": "true",
    "OTEL_SDK_DISABLED": "true",  # ours is written without the SDK
    "UV_USE_IO_URING": "0",
}
REMOVED = (
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "FTP_PROXY", "SOCKS_PROXY", "HF_ENDPOINT", "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN", "HOSTALIASES", "LOCALDOMAIN", "RES_OPTIONS", "SSLKEYLOGFILE", "LD_PRELOAD",
)  # fmt: skip

_RINGS = ("io_uring_setup", "io_uring_enter", "io_uring_register")
_REFUSED = (
    *_RINGS, "connect", "sendmmsg", "ptrace", "process_vm_readv",
    "process_vm_writev", "pidfd_getfd", "open_by_handle_at", "mount", "umount2", "fsopen", "fsmount", "move_mount",
    "open_tree", "pivot_root", "chroot", "setns", "unshare", "init_module", "finit_module", "kexec_load", "bpf",
    "perf_event_open", "keyctl", "add_key", "request_key", "userfaultfd", "reboot", "quotactl", "acct",
)  # fmt: skip
_TYPE_MASK = 0xF
_MSG_FASTOPEN = 0x20000000

_LOOKUPS = frozenset(
    {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "socket.getnameinfo"}
)
_OUTWARD = frozenset(
    {"socket.connect", "socket.sendto", "ctypes.dlopen", "ctypes.dlsym", "os.system", "pty.spawn"}
)
_PROGRAMS = frozenset({"subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn"})


@dataclass(frozen=True, slots=True)
class Closed:
    """Which layers hold."""

    kernel: bool
    python: bool

    def to_json(self) -> dict[str, JSON]:
        return {"kernel": self.kernel, "python": self.python}


def set_switches(environ: MutableMapping[str, str]) -> None:
    """Before any library reads them, uvloop included."""
    environ.update(SWITCHES)
    for name in list(environ):
        if name.upper() in REMOVED:
            del environ[name]


def prepare() -> bool:
    """The first thing in a serving process, before its event loop and any thread; whether the kernel keeps it.

    uvloop makes an io_uring for its own use and cannot live without it later; calls through a ring pass by seccomp.
    """
    set_switches(os.environ)
    libc = ctypes.CDLL(None, use_errno=True)
    keep_out(libc)
    return install(libc, lambda machine: refused(machine, _RINGS), every_thread=True)


def close_doors(programs: Iterable[str] = (), *, is_hooked: bool = True) -> Closed:
    """Close this process for good, after `prepare`. Diallers, listening sockets and databases are open by now.

    programs: executables it may still start, closed like itself.  is_hooked: the Python layer too; without it every
    attempt meets the kernel alone.  Raises ValueError for an open descriptor that leads out past a filter.
    """
    if leaks := leaking_descriptors():
        raise ValueError(f"descriptors are open that lead out: {leaks}")
    libc = ctypes.CDLL(None, use_errno=True)  # before the hook, which refuses libraries
    kernel = install(libc, _rules, every_thread=True)
    if is_hooked:
        refuse_in_python(programs)
    return Closed(kernel, is_hooked)


def refuse_in_python(programs: Iterable[str] = ()) -> None:
    """The Python layer alone, for good."""
    allowed = frozenset(programs)
    sys.addaudithook(lambda event, args: _check(event, args, allowed))


def leaking_descriptors() -> dict[int, str]:
    """Open descriptors that lead out past any filter: rings, and datagram sockets, whose messages name their goal.

    A raw, packet or netlink socket is one of these; a stream leads where it was connected to.
    """
    found = {}
    for fd in _descriptors():
        with suppress(OSError):
            mode = os.fstat(fd).st_mode
            if stat.S_ISSOCK(mode):
                with socket.socket(fileno=os.dup(fd)) as one:
                    kind = one.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE)
                    # Elsewhere the dialler's pair is of datagrams, and only Linux lets a pair name another goal.
                    is_pair = sys.platform != "linux" and one.family == socket.AF_UNIX
                    if kind not in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET) and not is_pair:
                        found[fd] = f"a socket of family {int(one.family)}, type {kind}"
            elif sys.platform == "linux" and "io_uring" in os.readlink(f"/proc/self/fd/{fd}"):
                found[fd] = "an io_uring"
    return found


def _descriptors() -> list[int]:
    folder = "/proc/self/fd" if sys.platform == "linux" else "/dev/fd"
    return [int(name) for name in os.listdir(folder)]


def closed_loop(base: type[asyncio.AbstractEventLoop]) -> type[asyncio.AbstractEventLoop]:
    """An event loop like `base` that connects to nothing by address; connected sockets may be handed to it."""

    class ClosedLoop(base):  # type: ignore[valid-type,misc]  # the class is an argument
        async def create_connection(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401
            if options.get("sock") is None:
                raise _no("create_connection by address")
            return await super().create_connection(*args, **options)

        async def create_unix_connection(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401
            if options.get("sock") is None:
                raise _no("create_unix_connection by path")
            return await super().create_unix_connection(*args, **options)

        async def create_datagram_endpoint(self, *_args: Any, **_options: Any) -> Any:  # noqa: ANN401
            raise _no("create_datagram_endpoint")

        async def sock_connect(self, *_args: Any) -> None:  # noqa: ANN401
            raise _no("sock_connect")

        async def sock_sendto(self, *_args: Any) -> int:  # noqa: ANN401
            raise _no("sock_sendto")

        async def getaddrinfo(self, *_args: Any, **_options: Any) -> Any:  # noqa: ANN401
            raise _no("getaddrinfo")

        async def getnameinfo(self, *_args: Any, **_options: Any) -> Any:  # noqa: ANN401
            raise _no("getnameinfo")

    return ClosedLoop


def _check(event: str, args: tuple[Any, ...], programs: frozenset[str]) -> None:
    if event in _OUTWARD or event in _LOOKUPS:
        raise _no(event)
    if event == "socket.sendmsg" and args[1] is not None:
        raise _no(event)
    if event in _PROGRAMS and _program(event, args) not in programs:
        raise _no(f"{event} of a program that is not listed")


def _program(event: str, args: tuple[Any, ...]) -> str:
    if event == "subprocess.Popen":
        executable, argv = args[0], args[1]
        return os.fsdecode(executable or (argv if isinstance(argv, str | bytes) else argv[0]))
    return os.fsdecode(args[1] if event == "os.spawn" else args[0])


def _no(what: str) -> PermissionError:
    return PermissionError(errno.EPERM, f"egress is denied here: {what}")


def _rules(machine: Architecture) -> Iterator[bytes]:
    yield from refused(machine, _REFUSED)
    for name in ("socket", "socketpair"):
        number = machine.number(name)
        assert number is not None
        yield jump(0x15, number, 0, 8)
        yield statement(0x20, 16)  # the family
        yield jump(0x15, socket.AF_UNIX, 0, 5)
        yield statement(0x20, 24)  # the type, flags taken off
        yield statement(0x54, _TYPE_MASK)
        yield jump(0x15, socket.SOCK_STREAM, 1, 0)
        yield jump(0x15, socket.SOCK_SEQPACKET, 0, 1)
        yield statement(0x06, ALLOW)
        yield statement(0x06, EPERM)
    # A datagram or Fast Open names its destination itself; what is connected needs none.
    sendto, sendmsg = machine.number("sendto"), machine.number("sendmsg")
    assert sendto is not None
    assert sendmsg is not None
    yield jump(0x15, sendto, 0, 6)
    yield statement(0x20, 48)  # the address, low half
    yield jump(0x15, 0, 0, 2)
    yield statement(0x20, 52)  # and high half
    yield jump(0x15, 0, 1, 0)
    yield statement(0x06, EPERM)
    yield statement(0x06, ALLOW)
    yield jump(0x15, sendmsg, 0, 4)
    yield statement(0x20, 32)  # the flags
    yield jump(0x45, _MSG_FASTOPEN, 0, 1)
    yield statement(0x06, EPERM)
    yield statement(0x06, ALLOW)
