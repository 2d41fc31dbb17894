"""A whole gateway behind closed doors: it answers, reaches its member, and its operator has it prove the rest."""

import http.client
import importlib.util
import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from steelyard.seccomp import architecture
from steelyard.serve.egress_canary import Canary

SPEC = importlib.util.spec_from_file_location("gateway", Path(__file__).parent / "gateway.py")
world = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(world)

CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}


@contextmanager
def closed_gateway(home, admin, member_port):
    script = Path(__file__).with_name("closed_gateway.py")
    process = subprocess.Popen(
        [sys.executable, str(script), str(home), str(admin), str(member_port)],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.terminate()
        assert process.wait(20) == 0


def steelyard(*args):
    return subprocess.run(
        [sys.executable, "-m", "steelyard", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.skipif(architecture() is None, reason="no seccomp on this platform")
def test_it_answers_reaches_its_member_and_proves_the_rest_closed(tmp_path):
    gateway_home, home = tmp_path / "gateway", tmp_path / "home"
    gateway_home.mkdir()
    world.furnish(gateway_home)
    canary = Canary(tmp_path)
    with closed_gateway(gateway_home, home / "run" / "admin-0.sock", canary.goal.tcp) as ready:
        assert ready["closed"] == {"kernel": True, "python": True}
        assert "steelyard-canary" in ready["came"]
        connection = http.client.HTTPConnection("127.0.0.1", ready["port"], timeout=10)
        connection.request(
            "POST",
            "/v1/chat/completions",
            json.dumps(CHAT),
            {"authorization": f"Bearer {world.SECRET}", "content-type": "application/json"},
        )
        answer = json.loads(connection.getresponse().read())
        connection.close()
        assert answer["choices"][0]["message"]["content"] == world.REPLY
        assert (home / "run" / "admin-0.sock").stat().st_mode & 0o777 == 0o600
        done = steelyard("egress-test", "--running", "--json", "--home", home)
    canary.close()
    assert done.returncode == 0, done.stdout
    (run,) = json.loads(done.stdout)["runs"]
    assert run["run"] == "worker 0"
    assert run["layers"] == {"kernel": True, "python": True}
    assert all(one["state"] != "open" for one in run["attempts"])
    shown = json.loads(steelyard("ledger", "show", "--json", "--home", home).stdout)
    assert '"kind": "egress-test"' in json.dumps(shown)


def test_the_control_run_fails_and_is_not_entered(tmp_path):
    done = steelyard("egress-test", "--control", "--json", "--home", tmp_path)
    assert done.returncode == 1
    assert json.loads(done.stdout)["closed"] is False
    assert not (tmp_path / "ledger").exists()


def test_without_a_running_gateway_it_cannot_be_decided(tmp_path):
    done = steelyard("egress-test", "--running", "--home", tmp_path)
    assert done.returncode == 3
    assert "no gateway runs" in done.stderr
