"""A serving process that does an attacker's will, and what it reaches: nothing. Each test is named by its attack."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from steelyard.errors import Unavailable
from steelyard.seccomp import architecture
from steelyard.serve.egress import Closed
from steelyard.serve.egress_admin import MAX_LINE_BYTES, Admin
from steelyard.serve.egress_canary import Canary
from steelyard.serve.egress_dialler import Dialler, tcp
from steelyard.serve.egress_dialling import MAX_NAME_BYTES, MAX_PENDING, NUMBER
from steelyard.serve.trace import begun

needs_seccomp = pytest.mark.skipif(architecture() is None, reason="no seccomp on this platform")

_CLOSED = """
import asyncio, ctypes, errno, json, os, socket, struct, subprocess, sys, threading
from steelyard.serve import egress
egress.prepare()
libc = ctypes.CDLL(None, use_errno=True)
def tried(way):
    try:
        found = way()
        return "open" if found is None or found >= 0 else errno.errorcode[ctypes.get_errno()]
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error))
"""


def closed_process(code, *args):
    done = subprocess.run(
        [sys.executable, "-c", _CLOSED + code, *map(str, args)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture
def goal(tmp_path):
    canary = Canary(tmp_path)
    yield canary.goal
    canary.close()


@needs_seccomp
def test_listening_socket_turned_around_by_native_code(goal):
    code = """
listener = socket.create_server(("127.0.0.1", 0))
accepted_pair = socket.create_connection(listener.getsockname()), listener.accept()[0]
egress.close_doors(is_hooked=False)
address = struct.pack("=HH4s8x", socket.AF_INET, socket.htons(int(sys.argv[1])), b"\\x7f\\0\\0\\1")
print(json.dumps([
    tried(lambda: libc.connect(listener.fileno(), address, 16)),
    tried(lambda: libc.connect(accepted_pair[0].fileno(), address, 16)),
    tried(lambda: libc.sendto(accepted_pair[0].fileno(), b"x", 1, 0x20000000, address, 16)),
]))
"""
    assert closed_process(code, goal.tcp) == ["EPERM", "EPERM", "EPERM"]


@needs_seccomp
def test_system_calls_by_number_under_the_x32_convention_end_the_process():
    if os.uname().machine != "x86_64":
        pytest.skip("x32 is of x86-64")
    code = (
        _CLOSED
        + "egress.close_doors(is_hooked=False)\nlibc.syscall(0x40000000 + 41, 2, 1, 0)\nprint('alive')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-31, "")  # SIGSYS


@needs_seccomp
def test_a_child_that_undoes_the_environment_is_closed_all_the_same(goal):
    code = """
egress.close_doors([sys.executable], is_hooked=False)
child = f"import socket; socket.create_connection(('127.0.0.1', {sys.argv[1]}), 3); print('out')"
done = subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, env={"http_proxy": "x"})
print(json.dumps([done.stdout, "Operation not permitted" in done.stderr]))
"""
    assert closed_process(code, goal.tcp) == ["", True]


@needs_seccomp
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_the_diallers_memory_is_not_written_to_make_it_dial_elsewhere(goal):
    code = """
from steelyard.serve.egress_dialler import Dialler, tcp
async def main():
    dialler = await Dialler.start({"member": tcp("127.0.0.1", int(sys.argv[1]))})
    egress.close_doors(is_hooked=False)
    ways = [
        lambda: open(f"/proc/{dialler.pid}/mem", "r+b", buffering=0) and None,
        lambda: libc.ptrace(16, dialler.pid, None, None),
        lambda: libc.syscall(438, os.pidfd_open(dialler.pid), 0, 0),
    ]
    print(json.dumps([tried(way) for way in ways]))
    await dialler.close()
asyncio.run(main())
"""
    assert all(word in ("EPERM", "EACCES") for word in closed_process(code, goal.tcp))


async def test_names_that_are_addresses_paths_or_broken_text_are_not_dialled(goal):
    dialler = await Dialler.start({"member": tcp("127.0.0.1", goal.tcp)})
    for name in (
        f"127.0.0.1:{goal.tcp}",
        goal.unix,
        "member\0",
        "../member",
        "MEMBER",
        "\udcff".encode(errors="replace").decode(),
    ):
        with pytest.raises(Unavailable, match="not on the list"):
            await dialler.dial(name)
    dialler._pipe.send(NUMBER.pack(4_000_000_000) + b"\xff" * MAX_NAME_BYTES)
    (await dialler.dial("member")).close()
    await dialler.close()


async def test_a_flood_of_dials_is_bounded_and_the_dialler_lives():
    with socket.create_server(("127.0.0.1", 0), backlog=0) as deaf:
        dialler = await Dialler.start({"deaf": tcp(*deaf.getsockname())}, connect_limit_s=0.5)
        tasks = [asyncio.create_task(dialler.dial("deaf")) for _ in range(MAX_PENDING + 200)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(one, Unavailable | socket.socket) for one in results)
        assert sum("too many" in str(one) for one in results) >= 100
        for one in results:
            if isinstance(one, socket.socket):
                one.close()
        with pytest.raises(Unavailable, match="not on the list"):
            await dialler.dial("stranger")
        await dialler.close()


@pytest.mark.parametrize(
    "order",
    [
        b"{}\n",
        b"nonsense\n",
        b'{"do": "dial", "goal": {}}\n',
        b'{"do": "egress-test", "goal": {"tcp": 1}}\n',
        b"[1]\n",
        b"x" * (2 * MAX_LINE_BYTES) + b"\n",
    ],
)
async def test_the_admin_socket_takes_no_other_order(tmp_path, order):
    admin = Admin(tmp_path / "admin.sock", lambda: Closed(True, True))
    await admin.start()

    def ask():
        with socket.socket(socket.AF_UNIX) as one:
            one.settimeout(5)
            one.connect(str(tmp_path / "admin.sock"))
            one.sendall(order)
            return one.recv(1000)

    assert await asyncio.to_thread(ask) == b'{"error": "not an order known here"}\n'
    await admin.close()
    assert not (tmp_path / "admin.sock").exists()


@pytest.mark.parametrize(
    "value", [b"00-\r\nx: y", b"00-" + b"a" * 32 + b"-" + b"b" * 16 + b"-01\r\nevil: 1", b"0" * 100_000]
)
def test_a_traceparent_injects_no_header_into_the_upstreams_request(value):
    assert len(begun(value).traceparent) == 55
    assert b"\r" not in begun(value).traceparent


def test_proxies_of_the_environment_lead_nowhere(goal, tmp_path):
    environ = {
        **os.environ,
        "http_proxy": f"http://127.0.0.1:{goal.tcp}",
        "HTTPS_PROXY": "http://127.0.0.1:1",
    }
    code = (
        "import json, os, urllib.request\n"
        "from steelyard.serve import egress\n"
        "egress.prepare()\n"
        "print(json.dumps([urllib.request.getproxies_environment(), 'http_proxy' in os.environ]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [{}, False]
    assert Path(goal.unix).exists()
