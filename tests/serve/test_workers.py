"""Workers under a supervisor, as real processes: shared port, restarts, signals, readiness."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest

from steelyard.errors import Unavailable, WrongUsage
from steelyard.seccomp import architecture
from steelyard.serve.workers import MAX_WORKERS, READY, STARTING, Fleet, Listeners, check_workers

SUPERVISED = Path(__file__).with_name("supervised.py")


@contextmanager
def supervised(count, mode=""):
    process = subprocess.Popen(
        [sys.executable, str(SUPERVISED), str(count), mode],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process, int(process.stdout.readline() or 0)
    finally:
        process.kill()
        process.communicate()


def ask(port):
    with socket.create_connection(("127.0.0.1", port), timeout=5) as one:
        one.sendall(b"?\n")
        with one.makefile() as answer:
            return json.loads(answer.readline())


def everybody(port, count):
    """The last answer of each worker, once all have answered."""
    seen = {}
    deadline = time.monotonic() + 10
    while len(seen) < count:
        assert time.monotonic() < deadline, seen
        reply = ask(port)
        seen[reply["worker"]] = reply
    return seen


def test_connections_are_spread_over_all_workers_and_all_say_ready():
    with supervised(3) as (_, port):
        replies = [ask(port) for _ in range(90)]
    shares = Counter(reply["worker"] for reply in replies)
    assert set(shares) == {0, 1, 2}
    assert min(shares.values()) >= 10
    assert all(reply["ready"] for reply in replies)


def test_a_killed_worker_starts_again_on_the_same_port_and_readiness_tells():
    with supervised(2) as (_, port):
        before = everybody(port, 2)
        os.kill(before[1]["pid"], signal.SIGKILL)
        deadline = time.monotonic() + 10
        while (after := everybody(port, 2))[1]["pid"] == before[1]["pid"]:
            assert time.monotonic() < deadline
        assert after[0]["pid"] == before[0]["pid"]
        while not all(one["ready"] for one in everybody(port, 2).values()):
            assert time.monotonic() < deadline


@pytest.mark.skipif(architecture() is None, reason="no seccomp on this platform")
def test_workers_behind_closed_doors_serve_reach_their_list_and_are_replaced():
    with supervised(2, "closed") as (process, port):
        before = everybody(port, 2)
        assert all(one["closed"] == {"kernel": True, "python": True} for one in before.values())
        os.kill(before[0]["pid"], signal.SIGKILL)
        deadline = time.monotonic() + 10
        while (after := everybody(port, 2))[0]["pid"] == before[0]["pid"]:
            assert time.monotonic() < deadline
        assert after[0]["closed"] == {"kernel": True, "python": True}
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_sighup_reaches_every_worker_and_sigterm_ends_all_with_0():
    with supervised(2) as (process, port):
        everybody(port, 2)
        process.send_signal(signal.SIGHUP)
        deadline = time.monotonic() + 5
        while [one["reloads"] for one in everybody(port, 2).values()] != [1, 1]:
            assert time.monotonic() < deadline
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def test_a_worker_that_cannot_start_ends_all_with_its_exit_code():
    with supervised(3, "fragile") as (process, port):
        assert port == 0
        assert process.wait(10) == 2


def test_a_worker_deaf_to_sigterm_is_killed_and_that_is_no_clean_end():
    with supervised(1, "stubborn") as (process, port):
        pid = ask(port)["pid"]
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)  # asked twice: no more waiting
        assert process.wait(10) == 1
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_workers_end_when_the_supervisor_is_killed():
    with supervised(2) as (process, port):
        pids = [one["pid"] for one in everybody(port, 2).values()]
        process.kill()
        deadline = time.monotonic() + 5
        while any(Path(f"/proc/{pid}/exe").exists() for pid in pids):
            assert time.monotonic() < deadline


def test_a_port_shared_by_another_gateway_is_taken_not_joined():
    first = Listeners("127.0.0.1", 0, 2)
    with pytest.raises(Unavailable, match="is taken"):
        Listeners("127.0.0.1", first.port, 2)
    first.close()
    Listeners("127.0.0.1", first.port, 1).close()


def test_a_given_up_socket_sends_new_connections_to_the_others():
    listeners = Listeners("127.0.0.1", 0, 2)
    listeners.give_up(0)
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", listeners.port)):
            listeners.take(1).accept()[0].close()
    assert listeners.take(0).getsockname()[1] == listeners.port
    listeners.close()


def test_the_fleet_is_ready_when_every_worker_is():
    fleet = Fleet(2)
    fleet.say(0, READY)
    fleet.say(1, STARTING)
    assert not fleet.is_ready
    fleet.say(1, READY)
    assert fleet.is_ready


@pytest.mark.parametrize(("count", "embedded"), [(0, False), (MAX_WORKERS + 1, False), (2, True)])
def test_a_number_of_workers_that_cannot_be_is_refused(count, embedded):
    with pytest.raises(WrongUsage):
        check_workers(count, has_embedded_engine=embedded)


def test_the_largest_number_and_one_embedded_owner_are_fine():
    check_workers(MAX_WORKERS, has_embedded_engine=False)
    check_workers(1, has_embedded_engine=True)
