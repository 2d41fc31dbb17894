"""`steelyard serve` as a process: where it listens, what it prints, how it stops, what it refuses to start."""

import http.client
import json
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager

import pytest

CANARY = "canary-2d84"


@contextmanager
def serving(home, *options):
    """The running command and its ready line."""
    argv = [
        sys.executable,
        "-m",
        "steelyard",
        "serve",
        "--home",
        str(home),
        "--port",
        "0",
        "--json",
        *options,
    ]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def refused(home, *options):
    argv = [sys.executable, "-m", "steelyard", "serve", "--home", str(home), *options]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == ""
    return done.returncode, done.stderr


def ask(url, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=10)
    connection.request(method, path, body, headers or {})
    response = connection.getresponse()
    data = response.read()
    connection.close()
    return response.status, data


def test_it_listens_on_loopback_says_how_to_call_it_and_stops_cleanly(tmp_path):
    with serving(tmp_path) as (process, ready):
        assert ready["url"].startswith("http://127.0.0.1:")
        assert ask(ready["url"], "GET", "/healthz") == (200, b'{"status":"ok"}')
        body = json.dumps({"model": CANARY, "messages": [{"role": "user", "content": CANARY}]})
        assert ask(ready["url"], "POST", "/v1/chat/completions", body)[0] == 401
        process.send_signal(signal.SIGTERM)
        _, talk = process.communicate(timeout=30)
        assert process.returncode == 0
    assert f"base_url='{ready['url']}/v1'" in talk
    assert "steelyard key new --api" in talk
    assert CANARY not in talk
    assert '"status":401' in talk
    assert "Traceback" not in talk


def test_no_auth_lets_local_callers_in(tmp_path):
    with serving(tmp_path, "--no-auth") as (_, ready):
        assert json.loads(ask(ready["url"], "GET", "/v1/models")[1])["data"] == []
        assert ask(ready["url"], "GET", "/v1/models", headers={"Origin": "http://x"})[0] == 403


def test_port_out_of_range_is_wrong_usage(tmp_path):
    code, talk = refused(tmp_path, "--port", "99999")
    assert code == 2
    assert "port 99999 is not between 0 and 65535" in talk


def test_port_taken_is_said_with_exit_3(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        code, talk = refused(tmp_path, "--port", str(port))
    assert code == 3
    assert f"port {port} on 127.0.0.1 is taken" in talk
    assert "Traceback" not in talk


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0"], "--expose"),
        (["--host", "::"], "--expose"),
        (["--host", "gateway.internal"], "--expose"),
        (["--host", "0.0.0.0", "--expose", "--no-auth"], "loopback only"),
        (["--host", "0.0.0.0", "--expose"], "steelyard key new --api"),
        (["--alias", "gpt-4o"], "NAME=MODEL"),
        (["--alias", "gpt-4o=nothing-here"], "nothing-here"),
    ],
    ids=str,
)
def test_unsafe_or_wrong_options_are_exit_2(tmp_path, options, words):
    code, talk = refused(tmp_path, *options)
    assert (code, words in talk) == (2, True)
