"""A closed process reaches nothing but what the dialler hands it; each layer holds alone; the test itself can fail."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from steelyard.errors import Unavailable, WrongUsage
from steelyard.seccomp import architecture
from steelyard.serve.egress import REMOVED, SWITCHES, leaking_descriptors, set_switches
from steelyard.serve.egress_canary import Canary
from steelyard.serve.egress_dialler import Dialler, tcp, unix
from steelyard.serve.egress_dialling import MAX_NAME_BYTES
from steelyard.serve.egress_probe import probe
from steelyard.serve.egress_ways import is_closed

has_seccomp = pytest.mark.skipif(architecture() is None, reason="no seccomp on this platform")


@pytest.fixture
def goal(tmp_path):
    canary = Canary(tmp_path)
    yield canary.goal
    canary.close()


def in_a_process(code, *args):
    """What a process of its own prints, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


# The test of the test: what is denied is open when nothing is denied.


def test_without_denial_the_same_ways_are_open(goal):
    closed, attempts = probe(goal, "none")
    open_ = {one.way for one in attempts if one.state == "open"}
    assert closed is None
    assert not is_closed(attempts)
    assert {
        "TCP over IPv4",
        "DNS over UDP",
        "DNS over TCP",
        "getaddrinfo",
        "HTTP",
        "HTTPS",
        "HTTP by a proxy",
        "asyncio",
        "uvloop",
        "another Python",
        "Unix socket",
        "connect on a socket left open" if sys.platform != "linux" else "Fast Open on a socket left open",
        "proxies and hubs in the environment",
    } <= open_
    if architecture() is not None:
        assert {"libc socket and connect", "netlink", "io_uring", "every other family"} <= open_


@has_seccomp
@pytest.mark.parametrize("layers", ["all", "kernel"])
def test_behind_the_doors_every_way_is_refused(goal, layers):
    closed, attempts = probe(goal, layers)
    assert closed.kernel
    assert [one for one in attempts if one.state == "open"] == []
    assert sum(one.state == "refused" for one in attempts) > 35
    if layers == "kernel":
        by_python = {one.way for one in attempts if one.by == "python"}
        assert by_python == {"proxies and hubs in the environment"}


# Each layer alone.

_HOOK_ALONE = """
import json, os, socket, subprocess, sys
from steelyard.serve import egress
egress.refuse_in_python([sys.executable])
said = {}
one = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
ways = {
    "connect": lambda: one.connect(("127.0.0.1", 9)),
    "getaddrinfo": lambda: socket.getaddrinfo("localhost", 80),
    "gethostbyname": lambda: socket.gethostbyname("localhost"),
    "sendto": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("127.0.0.1", 9)),
    "sendmsg": lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendmsg([b"x"], [], 0, ("127.0.0.1", 9)),
    "curl": lambda: subprocess.run(["curl", "http://127.0.0.1"]),
    "system": lambda: os.system("true"),
    "exec": lambda: os.execv("/bin/true", ["true"]),
    "spawn": lambda: os.posix_spawn("/bin/true", ["true"], {}),
    "ctypes": lambda: __import__("ctypes").CDLL(None),
}
for name, way in ways.items():
    try:
        way()
        said[name] = "open"
    except PermissionError as error:
        said[name] = error.strerror
pair = socket.socketpair()
pair[0].sendmsg([b"x"])
said["pair"] = pair[1].recv(1).decode()
said["python"] = subprocess.run([sys.executable, "-c", "print(1)"], capture_output=True, text=True).stdout
print(json.dumps(said))
"""


def test_the_hook_alone_refuses_what_python_can_see_and_lets_listed_programs_start():
    said = in_a_process(_HOOK_ALONE)
    assert said.pop("pair") == "x"
    assert said.pop("python") == "1\n"
    assert all(word.startswith("egress is denied here") for word in said.values()), said


_LOOP_ALONE = """
import asyncio, json, socket, sys
import uvloop
from steelyard.serve.egress import closed_loop
said = {}
async def main():
    loop = asyncio.get_running_loop()
    ways = {
        "tcp": lambda: loop.create_connection(asyncio.Protocol, "127.0.0.1", int(sys.argv[1])),
        "unix": lambda: loop.create_unix_connection(asyncio.Protocol, "/nowhere"),
        "udp": lambda: loop.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=("127.0.0.1", 9)),
        "connect": lambda: loop.sock_connect(socket.socket(), ("127.0.0.1", int(sys.argv[1]))),
        "lookup": lambda: loop.getaddrinfo("localhost", 80),
        "name": lambda: loop.getnameinfo(("127.0.0.1", 80)),
    }
    for name, way in ways.items():
        try:
            await way()
            said[name] = "open"
        except PermissionError as error:
            said[name] = error.strerror
    one = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
    one.setblocking(False)
    transport, _ = await loop.create_connection(asyncio.Protocol, sock=one)
    said["given"] = type(transport).__name__
    transport.abort()
for base in (uvloop.Loop, asyncio.SelectorEventLoop):
    with asyncio.Runner(loop_factory=closed_loop(base)) as runner:
        runner.run(main())
    assert "given" in said, said
    assert all(word.startswith("egress is denied") for name, word in said.items() if name != "given"), said
print(json.dumps(said))
"""


def test_the_closed_loop_alone_refuses_uvloops_and_asyncios_own_connects(goal):
    in_a_process(_LOOP_ALONE, goal.tcp)


@has_seccomp
def test_threads_that_ran_before_are_closed_too():
    code = (
        "import json, socket, threading\n"
        "from steelyard.serve import egress\n"
        "go, said = threading.Event(), []\n"
        "def old():\n"
        "    go.wait()\n"
        "    try:\n"
        "        socket.socket()\n"
        "        said.append('open')\n"
        "    except PermissionError:\n"
        "        said.append('refused')\n"
        "thread = threading.Thread(target=old)\n"
        "thread.start()\n"
        "egress.close_doors(is_hooked=False)\n"
        "go.set()\n"
        "thread.join()\n"
        "print(json.dumps(said))\n"
    )
    assert in_a_process(code) == ["refused"]


@has_seccomp
def test_what_was_open_goes_on_and_unix_streams_work():
    code = (
        "import json, socket, subprocess, sys, tempfile\n"
        "from steelyard.serve import egress\n"
        "listener = socket.create_server(('127.0.0.1', 0))\n"
        "caller = socket.create_connection(listener.getsockname())\n"
        "egress.close_doors([sys.executable])\n"
        "accepted = listener.accept()[0]\n"
        "caller.sendall(b'hello')\n"
        "said = [accepted.recv(5).decode()]\n"
        "one, other = socket.socketpair()\n"
        "one.send(b'x')\n"
        "said.append(other.recv(1).decode())\n"
        "unix = socket.socket(socket.AF_UNIX)\n"
        "unix.bind(tempfile.mkdtemp() + '/s')\n"
        "unix.listen()\n"
        "done = subprocess.run([sys.executable, '-c', 'print(2)'], capture_output=True, text=True)\n"
        "said.append(done.stdout.strip())\n"
        "print(json.dumps(said))\n"
    )
    assert in_a_process(code) == ["hello", "x", "2"]


@pytest.mark.parametrize(
    "leak",
    [
        "socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
        "socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
    ],
)
def test_a_datagram_socket_left_open_stops_the_start(leak):
    code = (
        "import json, socket\n"
        "from steelyard.serve import egress\n"
        f"leak = {leak}\n"
        "try:\n"
        "    egress.close_doors()\n"
        "    print(json.dumps('closed'))\n"
        "except ValueError as error:\n"
        "    print(json.dumps(str(error)))\n"
    )
    assert in_a_process(code).startswith("descriptors are open that lead out")


@has_seccomp
def test_an_io_uring_left_open_stops_the_start():
    code = (
        "import ctypes, json\n"
        "from steelyard.serve import egress\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "ring = libc.syscall(425, 8, ctypes.create_string_buffer(256))\n"
        "try:\n"
        "    egress.close_doors()\n"
        "    print(json.dumps('closed' if ring >= 0 else 'no rings here: io_uring'))\n"
        "except ValueError as error:\n"
        "    print(json.dumps(str(error)))\n"
    )
    assert "io_uring" in in_a_process(code)


def test_the_environment_loses_proxies_and_hubs_and_gains_every_switch():
    environ = {"https_proxy": "http://p", "HF_TOKEN": "secret", "SSLKEYLOGFILE": "/tmp/k", "PATH": "/bin"}
    set_switches(environ)
    assert environ == SWITCHES | {"PATH": "/bin"}
    assert {"HTTPS_PROXY", "HF_TOKEN"} <= set(REMOVED)


def test_a_pair_of_streams_is_no_leak_and_a_datagram_is(tmp_path):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        assert one.fileno() in leaking_descriptors()
    pair = socket.socketpair()
    assert not {pair[0].fileno(), pair[1].fileno()} & set(leaking_descriptors())
    for one in pair:
        one.close()


# The dialler.


@pytest.fixture
async def listener():
    one = socket.create_server(("127.0.0.1", 0))
    yield one
    one.close()


async def test_the_dialler_connects_to_names_on_its_list_and_to_no_other(listener):
    port = listener.getsockname()[1]
    dialler = await Dialler.start({"member": tcp("127.0.0.1", port)})
    try:
        assert dialler.addresses == {"member": [f"127.0.0.1 port {port}"]}
        connections = await asyncio.gather(*(dialler.dial("member") for _ in range(20)))
        for one in connections:
            assert one.getpeername() == ("127.0.0.1", port)
            assert one.gettimeout() == 0.0
            one.close()
        for name in ("stranger", "", "127.0.0.1", "x" * (MAX_NAME_BYTES + 10)):
            with pytest.raises(Unavailable, match="not on the list"):
                await dialler.dial(name)
    finally:
        await dialler.close()


async def test_the_dialler_reaches_unix_sockets_by_path(tmp_path):
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(path)
        one.listen()
        dialler = await Dialler.start({"member": unix(path)})
        (await dialler.dial("member")).close()
        await dialler.close()


async def test_who_does_not_listen_or_answer_is_unavailable_in_time(listener):
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        queued = []
        for _ in range(4):  # the kernel drops what comes after these
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(full.getsockname())
            queued.append(one)
        closed_port = listener.getsockname()[1]
        listener.close()
        dialler = await Dialler.start(
            {"closed": tcp("127.0.0.1", closed_port), "deaf": tcp("127.0.0.1", full.getsockname()[1])},
            connect_limit_s=0.3,
        )
        with pytest.raises(Unavailable, match="refused"):
            await dialler.dial("closed")
        with pytest.raises(Unavailable, match="timed out"):
            await dialler.dial("deaf")
        await dialler.close()
        for one in queued:
            one.close()


async def test_a_name_that_cannot_be_looked_up_stops_the_start():
    with pytest.raises(Unavailable, match="cannot be looked up"):
        await Dialler.start({"member": tcp("steelyard-no-such-host.invalid", 80)})


async def test_a_name_too_long_is_wrong_usage():
    with pytest.raises(WrongUsage):
        await Dialler.start({"x" * (MAX_NAME_BYTES + 1): tcp("127.0.0.1", 80)})


async def test_a_dead_dialler_is_told_and_nothing_is_reached(listener):
    dialler = await Dialler.start({"member": tcp("127.0.0.1", listener.getsockname()[1])})
    os.kill(dialler.pid, 9)
    await asyncio.wait_for(dialler.died.wait(), 5)
    with pytest.raises(Unavailable, match="gone"):
        await dialler.dial("member")
    await dialler.close()


async def test_a_caller_who_leaves_leaves_no_connection(listener):
    dialler = await Dialler.start({"member": tcp("127.0.0.1", listener.getsockname()[1])})
    task = asyncio.create_task(dialler.dial("member"))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    accepted, _ = await asyncio.to_thread(listener.accept)
    accepted.settimeout(5)
    assert await asyncio.to_thread(accepted.recv, 1) == b""
    accepted.close()
    await dialler.close()


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
async def test_the_dialler_is_closed_itself(listener):
    dialler = await Dialler.start({"member": tcp("127.0.0.1", listener.getsockname()[1])})
    status = await asyncio.to_thread(Path(f"/proc/{dialler.pid}/status").read_text)
    await dialler.close()
    assert "Seccomp:\t2" in status
