"""Ways out of a process, each tried for real: what egress denial is tested with.

A way ends in one of three states. refused: a layer said no (EPERM, EACCES). absent: this system has no such thing.
open: anything else, also where the network then failed; what was not refused is not denied.
"""

import asyncio
import ctypes
import errno
import http.client
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from typing import Literal

from steelyard.seccomp import architecture
from steelyard.serve.egress import REMOVED, SWITCHES, closed_loop, leaking_descriptors
from steelyard.serve.egress_canary import WORD, Goal

LIMIT_S = 3.0  # for one way in this process
PROGRAM_LIMIT_S = 30.0  # libraries of a hub take seconds to load

_HOST = "127.0.0.1"
_QUERY = (
    b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03com\x00\x00\x01\x00\x01"  # A example.com
)
_NOWHERE = "steelyard-egress-test.invalid"
_RESOLVERS = {
    "nscd": "/var/run/nscd/socket",
    "systemd-resolved": "/run/systemd/resolve/io.systemd.Resolve",
    "D-Bus": "/run/dbus/system_bus_socket",
    "Docker": "/var/run/docker.sock",
}
_ABSENT = frozenset(
    {errno.ENOSYS, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT, errno.ENODEV}
)
_MSG_FASTOPEN = 0x20000000


@dataclass(frozen=True, slots=True)
class Attempt:
    """How one way ended. by: kernel, python (hook or loop) or nobody."""

    way: str
    state: Literal["refused", "open", "absent"]
    by: str
    detail: str

    def to_json(self) -> dict[str, str]:
        return asdict(self)


class _NotHere(Exception):
    """This system lacks what the way needs."""


class _Refused(Exception):
    """A layer said no, found out otherwise than by an exception of its own."""


@dataclass(frozen=True, slots=True)
class LeftOpen:
    """Sockets made before the doors were closed, as a library might leave some."""

    tcp: socket.socket

    @classmethod
    def make(cls) -> "LeftOpen":
        return cls(socket.socket())


def try_all(goal: Goal, left_open: LeftOpen | None, *, with_programs: bool = True) -> list[Attempt]:
    """Try every way, in order. left_open: absent in a process that serves.

    with_programs: start others too, as a serving process may not.
    """
    ways = [*_sockets(goal), *_libraries(goal), *_kernel(), *_unix(goal)]
    if left_open is not None:
        ways += _premade(goal, left_open)
    ways += [("descriptors left open", _descriptors), ("proxies and hubs in the environment", _environment)]
    if with_programs:
        ways += _programs(goal)
    return [_tried(name, way) for name, way in ways]


Way = tuple[str, Callable[[], str]]


def _tried(name: str, way: Callable[[], str]) -> Attempt:
    try:
        return Attempt(name, "open", "nobody", way())
    except _NotHere as error:
        return Attempt(name, "absent", "nobody", str(error))
    except _Refused as error:
        return Attempt(name, "refused", "kernel", str(error))
    except OSError as error:
        return _judged(name, error)
    except (subprocess.SubprocessError, http.client.HTTPException, RuntimeError) as error:
        return Attempt(name, "open", "nobody", f"{type(error).__name__}: not refused")


def _judged(name: str, error: OSError) -> Attempt:
    cause: BaseException | None = error
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, OSError):
        error = error.reason
    while cause is not None and not isinstance(cause, PermissionError):
        cause = getattr(cause, "reason", None) or cause.__cause__
        if not isinstance(cause, BaseException):
            break
    if isinstance(cause, PermissionError):
        by = "python" if "egress is denied here" in str(cause) else "kernel"
        return Attempt(name, "refused", by, cause.strerror or "Operation not permitted")
    if error.errno in _ABSENT:
        return Attempt(name, "absent", "nobody", error.strerror or "")
    return Attempt(name, "open", "nobody", f"not refused: {error.strerror or error}")


# Sockets, by Python.


def _sockets(goal: Goal) -> list[Way]:
    def tcp() -> str:
        with socket.socket() as one:
            one.settimeout(LIMIT_S)
            one.connect((_HOST, goal.tcp))
        return "connected"

    def tcp6() -> str:
        with socket.socket(socket.AF_INET6) as one:
            one.settimeout(LIMIT_S)
            if goal.tcp6 is None:
                raise _NotHere("no IPv6 loopback to try it on, and the socket was not refused")
            one.connect(("::1", goal.tcp6))
        return "connected"

    def udp() -> str:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.settimeout(LIMIT_S)
            one.sendto(_QUERY, (_HOST, goal.udp))
            return f"{len(one.recv(512))} bytes came back"

    def dns_tcp() -> str:
        with closing(socket.create_connection((_HOST, goal.tcp), LIMIT_S)) as one:
            one.sendall(len(_QUERY).to_bytes(2, "big") + _QUERY)
        return "sent"

    def look_up() -> str:
        try:
            socket.getaddrinfo(_NOWHERE, 80)
        except socket.gaierror as error:
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM).close()  # what the resolver needs
            raise OSError(errno.EHOSTUNREACH, "the look-up was made") from error
        return "looked up"

    return [
        ("TCP over IPv4", tcp),
        ("TCP over IPv6", tcp6),
        ("DNS over UDP", udp),
        ("DNS over TCP", dns_tcp),
        ("getaddrinfo", look_up),
        ("raw ICMP", lambda: _made(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)),
        ("unprivileged ICMP", lambda: _made(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)),
        ("SCTP", lambda: _made(socket.AF_INET, socket.SOCK_STREAM, 132)),
        ("netlink", lambda: _made(getattr(socket, "AF_NETLINK", None), socket.SOCK_RAW)),
        ("packet", lambda: _made(getattr(socket, "AF_PACKET", None), socket.SOCK_RAW)),
        ("vsock", lambda: _made(getattr(socket, "AF_VSOCK", None), socket.SOCK_STREAM)),
        ("every other family", _every_family),
    ]


def _made(family: int | None, kind: int, protocol: int = 0) -> str:
    if family is None:
        raise _NotHere("no such family here")
    socket.socket(family, kind, protocol).close()
    return "a socket was made"


def _every_family() -> str:
    allowed = []
    for family in range(socket.AF_UNIX + 1, 64):
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW, socket.SOCK_SEQPACKET):
            try:
                socket.socket(family, kind).close()
                allowed.append(family)
            except PermissionError:
                continue
            except OSError as error:
                if error.errno not in _ABSENT and error.errno != errno.EINVAL:
                    allowed.append(family)
    if allowed:
        return f"families {sorted(set(allowed))}"
    raise _Refused("every family but Unix")


# Libraries: each has its own way to a socket.


def _libraries(goal: Goal) -> list[Way]:
    def plain_http() -> str:
        with closing(http.client.HTTPConnection(_HOST, goal.tcp, timeout=LIMIT_S)) as one:
            one.request("GET", "/")
            return _seen(one.getresponse().read())

    def https() -> str:
        context = ssl.create_default_context()
        with closing(http.client.HTTPSConnection(_HOST, goal.tcp, timeout=LIMIT_S, context=context)) as one:
            try:
                one.request("GET", "/")
            except ssl.SSLError:
                return "a handshake was begun"
        return "answered"

    def by_proxy() -> str:
        proxy = urllib.request.ProxyHandler({"http": f"http://{_HOST}:{goal.tcp}"})
        with urllib.request.build_opener(proxy).open(f"http://{_NOWHERE}/", timeout=LIMIT_S) as answer:
            return _seen(answer.read())

    return [
        ("HTTP", plain_http),
        ("HTTPS", https),
        ("HTTP by a proxy", by_proxy),
        ("asyncio", lambda: _by_loop(asyncio.new_event_loop(), goal.tcp)),
        ("uvloop", lambda: _by_uvloop(goal.tcp)),
    ]


def _seen(body: bytes) -> str:
    return "the canary answered" if WORD in body else "something answered"


def _by_uvloop(port: int) -> str:
    try:
        import uvloop  # noqa: PLC0415 - extra
    except ImportError as error:
        raise _NotHere("uvloop is not installed") from error
    # Without seccomp nobody refuses uvloop itself; the class that serves does.
    kind = uvloop.Loop if architecture() is not None else closed_loop(uvloop.Loop)
    return _by_loop(kind(), port)


def _by_loop(loop: asyncio.AbstractEventLoop, port: int) -> str:
    """In a thread, since the serving process has a loop in this one."""
    ended: list[BaseException | None] = []

    def connect() -> None:
        try:
            attempt = loop.create_connection(asyncio.Protocol, _HOST, port)
            transport, _ = loop.run_until_complete(asyncio.wait_for(attempt, LIMIT_S))
            transport.abort()
            ended.append(None)
        except OSError as error:
            ended.append(error)
        finally:
            loop.close()

    thread = threading.Thread(target=connect)
    thread.start()
    thread.join()
    if ended and ended[0] is not None:
        raise ended[0]
    return "connected"


# The kernel, without Python's socket module.


def _kernel() -> list[Way]:
    return [
        ("libc socket and connect", lambda: _call("socket", socket.AF_INET, socket.SOCK_STREAM, 0)),
        ("io_uring", lambda: _call("io_uring_setup", 1, None)),
        (
            "key upcall to a resolver",
            lambda: _call("request_key", b"dns_resolver", _NOWHERE.encode(), b"", 0),
        ),
        ("NFS mount", lambda: _call("mount", b"127.0.0.1:/", b"/nowhere", b"nfs", 0, None)),
        ("descriptor of another process", lambda: _call("pidfd_getfd", -1, 0, 0)),
        ("memory of another process", lambda: _call("process_vm_readv", os.getppid(), None, 0, None, 0, 0)),
        ("memory file of another process", _memory_file),
        (
            "tracing another process",
            lambda: _call("ptrace", 16, 0, None, None),
        ),  # process 0: a try that stops nobody
    ]


def _memory_file() -> str:
    try:
        with open(f"/proc/{os.getppid()}/mem", "r+b", buffering=0):
            return "it can be written"
    except FileNotFoundError as error:
        raise _NotHere("no /proc here") from error


def _call(name: str, *args: object) -> str:
    machine = architecture()
    if machine is None:
        raise _NotHere("no numbers of system calls for this platform")
    libc = ctypes.CDLL(None, use_errno=True)
    ctypes.set_errno(0)
    result = libc.syscall(machine.number(name), *args)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    if name in ("socket", "io_uring_setup"):
        os.close(result)
    return "the kernel did it"


# Unix sockets: daemons that resolve, forward or run things for whoever asks.


def _unix(goal: Goal) -> list[Way]:
    def stream(path: str) -> str:
        with socket.socket(socket.AF_UNIX) as one:
            one.settimeout(LIMIT_S)
            one.connect(path)
        return "connected"

    def datagram() -> str:
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        with one, other, suppress(FileNotFoundError, ConnectionRefusedError):
            one.sendto(b"<14>steelyard egress test", "/dev/log")
        return "a datagram could be sent"

    named = [(f"Unix socket of {name}", lambda path=path: stream(path)) for name, path in _RESOLVERS.items()]
    return [
        ("Unix socket", lambda: stream(goal.unix)),
        *named,
        ("abstract Unix socket", lambda: stream("\0/tmp/dbus-steelyard")),
        ("syslog datagram", datagram),
    ]


# What was left open before the doors closed.


def _premade(goal: Goal, left_open: LeftOpen) -> list[Way]:
    def connect() -> str:
        left_open.tcp.settimeout(LIMIT_S)
        left_open.tcp.connect((_HOST, goal.tcp))
        return "connected"

    def fast_open() -> str:
        left_open.tcp.sendmsg([b"x"], [], _MSG_FASTOPEN, (_HOST, goal.tcp))
        return "sent"

    def sendto() -> str:
        left_open.tcp.sendto(b"x", _MSG_FASTOPEN, (_HOST, goal.tcp))
        return "sent"

    return [
        ("Fast Open on a socket left open", fast_open),
        ("sendto on a socket left open", sendto),
        ("connect on a socket left open", connect),
    ]


def _descriptors() -> str:
    leaks = leaking_descriptors()
    if leaks:
        return f"{leaks}"
    raise _Refused("none leads out")


def _environment() -> str:
    left = [name for name in os.environ if name.upper() in REMOVED]
    unset = [name for name, value in SWITCHES.items() if os.environ.get(name) != value]
    if left or unset:
        return f"set: {left}; switches not set: {unset}"
    raise PermissionError(errno.EPERM, "egress is denied here: none is set, every offline switch is")


# Other programs: closed like the process that starts them.


def _programs(goal: Goal) -> list[Way]:
    url = f"http://{_HOST}:{goal.tcp}/"
    connecting = (
        f"import socket; socket.create_connection(('{_HOST}', {goal.tcp}), 3); print('{WORD.decode()}')"
    )
    hub = "import huggingface_hub.constants as h; print('{}' if not h.HF_HUB_OFFLINE else '')"
    offline = "import transformers.utils.hub as h; print('{}' if not h.is_offline_mode() else '')"
    usage = "import vllm.usage.usage_lib as u; print('{}' if u.is_usage_stats_enabled() else '')"
    shell = f"exec 3<>/dev/tcp/{_HOST}/{goal.tcp} && echo {WORD.decode()}"
    return [
        ("curl", lambda: _ran("curl", "-sS", "-m", "3", url)),
        ("wget", lambda: _ran("wget", "-q", "-T", "3", "-t", "1", "-O", "-", url)),
        ("a shell's /dev/tcp", lambda: _ran("bash", "-c", shell)),
        ("another Python", lambda: _ran(sys.executable, "-I", "-c", connecting)),
        ("huggingface_hub", lambda: _ran(sys.executable, "-c", hub.format(WORD.decode()))),
        ("transformers", lambda: _ran(sys.executable, "-c", offline.format(WORD.decode()))),
        ("vLLM usage statistics", lambda: _ran(sys.executable, "-c", usage.format(WORD.decode()))),
    ]


def _ran(program: str, *args: str) -> str:
    path = shutil.which(program)
    if path is None:
        raise _NotHere(f"no {program} here")
    done = subprocess.run([path, *args], capture_output=True, timeout=PROGRAM_LIMIT_S, check=False)
    if WORD in done.stdout:
        return "it reached the canary"
    if b"ModuleNotFoundError" in done.stderr:
        raise _NotHere("not installed")
    raise _Refused(f"it did not get out (exit status {done.returncode})")


def is_closed(attempts: Iterable[Attempt]) -> bool:
    """Whether no way was open."""
    return not any(attempt.state == "open" for attempt in attempts)
