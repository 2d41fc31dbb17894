"""On-CPU time of one request at each gateway: nginx, ours, vllm-router, Portkey, LiteLLM, interleaved in one run.

Every gateway is one worker pinned to the second core; the upstream (nginx with a fixed answer, or a process of ours
that sends 40 chunks, at once or one every 5 ms) and the load generator share the first. The figure is on-CPU time of
the gateway's whole process tree from /proc/PID/task/*/schedstat: it holds on a busy machine where requests a second
do not. Ours runs as `steelyard serve` does for a user, everything on: keys, budgets, policy, ledger, access log, egress
denied; once without and once with the scan for personal data. The prompt is 1 kB.

python benchmarks/gateway.py [--litellm BIN] [--portkey FOLDER] [--vllm-router BIN] [--nginx BIN] [--rounds 5]
A rival that is not named is left out. Installed as: pip install 'litellm[proxy]', npm i @portkey-ai/gateway,
pip install vllm-router, apt-get install nginx.
"""

import argparse
import asyncio
import contextlib
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import cast

import httptools
import uvloop

from steelyard.config import default_policy_text

KEY = "sk-steelyard-benchmark-0123456789abcdef"
PROMPT = ("The policy holder reports water damage in the kitchen and asks who pays for it. " * 13)[:1000]
ANSWER = {
    "id": "chatcmpl-1", "object": "chat.completion", "created": 1700000000, "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "The claim is covered. " * 12},
                 "logprobs": None, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 210, "completion_tokens": 60, "total_tokens": 270},
}  # fmt: skip
CHUNKS = 40
PACE_S = 0.005
START_LIMIT_S = 60.0
UPSTREAM_CORE, SYSTEM_CORE = {0}, {1}


@dataclass
class System:
    """A gateway under test: its process, its port, the head fields its callers send."""

    name: str
    process: "subprocess.Popen[bytes]"
    port: int
    fields: tuple[str, ...] = (f"Authorization: Bearer {KEY}",)
    figures: dict[str, list[float]] = field(default_factory=dict)


# The upstream.


class Upstream(asyncio.Protocol):
    """Answers any POST with CHUNKS events, `pace_s` between them, or all at once when that is 0."""

    def __init__(self, pace_s: float) -> None:
        self.pace_s = pace_s

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.parser = httptools.HttpRequestParser(self)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def on_message_complete(self) -> None:
        if self.parser.get_method() != b"POST":
            body = b'{"object":"list","data":[{"id":"m","object":"model"}]}'
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
            self.transport.write(head % len(body) + body)
            return
        self.transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        if self.pace_s:
            self.send(0)
        else:
            self.transport.write(b"".join(map(http_chunk, EVENTS)) + http_chunk(b""))

    def send(self, index: int) -> None:
        if index < len(EVENTS):
            self.transport.write(http_chunk(EVENTS[index]))
            asyncio.get_running_loop().call_later(self.pace_s, self.send, index + 1)
        else:
            self.transport.write(http_chunk(b""))


def http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _events() -> list[bytes]:
    def event(delta: dict[str, str], finish: str | None = None, usage: object = None) -> bytes:
        choices = [] if usage else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
        chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1700000000, "model": "m",
                 "choices": choices, "usage": usage}  # fmt: skip
        return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"

    words = [event({"content": f" word{index}"}) for index in range(CHUNKS)]
    return [event({"role": "assistant", "content": ""}), *words, event({}, "stop"),
            event({}, None, ANSWER["usage"]), b"data: [DONE]\n\n"]  # fmt: skip


EVENTS = _events()


async def serve_upstream(pace_s: float) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Upstream(pace_s), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


# The load.


class Asker(asyncio.Protocol):
    """One connection that asks, waits for the whole answer, and asks again."""

    def __init__(self, load: "Load") -> None:
        self.load = load

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.ask()

    def ask(self) -> None:
        if self.load.left <= 0:
            self.transport.close()
            self.load.finished.release()
            return
        self.load.left -= 1
        self.parser = httptools.HttpResponseParser(self)
        self.size = 0
        self.first_at = 0.0
        self.asked_at = time.perf_counter()
        self.transport.write(self.load.request)

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.load.left > 0:
            raise SystemExit(f"the gateway closed the connection: {exc}")

    def on_body(self, body: bytes) -> None:
        self.first_at = self.first_at or time.perf_counter()
        self.size += len(body)

    def on_message_complete(self) -> None:
        if self.parser.get_status_code() != 200 or self.size < self.load.least_bytes:
            raise SystemExit(f"status {self.parser.get_status_code()}, {self.size} bytes")
        self.load.first_s.append(self.first_at - self.asked_at)
        self.ask()


class Load:
    """`count` requests over some connections, each asking again when it has its answer."""

    def __init__(self, system: System, count: int, *, stream: bool, least_bytes: int) -> None:
        body = json.dumps({
            "model": "gpt-4o", "stream": stream, "max_tokens": 256,
            "messages": [{"role": "user", "content": PROMPT}],
            **({"stream_options": {"include_usage": True}} if stream else {}),
        }).encode()  # fmt: skip
        fields = "\r\n".join(
            ("Host: localhost", "Content-Type: application/json", "Accept: */*", *system.fields)
        )
        head = f"POST /v1/chat/completions HTTP/1.1\r\n{fields}\r\nContent-Length: {len(body)}\r\n\r\n"
        self.request = head.encode() + body
        self.port, self.left, self.least_bytes = system.port, count, least_bytes
        self.first_s: list[float] = []

    async def run(self, connections: int) -> None:
        self.finished = asyncio.Semaphore(0)
        for _ in range(connections):
            await asyncio.get_running_loop().create_connection(lambda: Asker(self), "127.0.0.1", self.port)
        for _ in range(connections):
            await self.finished.acquire()


# Processes.


def tree(pid: int) -> Iterator[int]:
    """The process and all below it."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                yield from tree(int(child))


def cpu_us(pid: int) -> float:
    """On-CPU time of all threads of a process tree."""
    total = 0
    for process in tree(pid):
        for stat in Path(f"/proc/{process}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):
                total += int(stat.read_text().split()[0])
    return total / 1e3


def memory_mb(pid: int) -> float:
    """Proportional set size of a process tree."""
    total = 0
    for process in tree(pid):
        with contextlib.suppress(OSError):
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def spawn(command: list[str], core: set[int], folder: Path, **env: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=(folder / f"{Path(command[0]).name}.log").open("wb"),
        cwd=folder,
        env={**os.environ, **env},
        start_new_session=True,
        preexec_fn=lambda: os.sched_setaffinity(0, core),  # noqa: PLW1509 - before any thread
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int, name: str) -> None:
    limit = time.monotonic() + START_LIMIT_S
    while time.monotonic() < limit:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.2)
    raise SystemExit(f"{name} does not listen after {START_LIMIT_S:.0f} s")


def nginx(
    binary: str, folder: Path, core: set[int], server: str, extra: str = ""
) -> tuple["subprocess.Popen[bytes]", int]:
    port = free_port()
    folder.mkdir()
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;\n"
        "events { worker_connections 1024; }\n"
        f"http {{ access_log {folder}/access.log combined buffer=64k flush=1s;\n"
        f"client_body_temp_path {folder}/b; proxy_temp_path {folder}/p; fastcgi_temp_path {folder}/f;\n"
        f"uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s; keepalive_requests 100000000;\n"
        f"{extra} server {{ listen 127.0.0.1:{port}; {server} }} }}\n"
    )
    return spawn([binary, "-p", str(folder), "-c", str(folder / "nginx.conf")], core, folder), port


def nginx_upstream(binary: str, folder: Path) -> tuple["subprocess.Popen[bytes]", int]:
    answer = json.dumps(ANSWER, separators=(",", ":"))
    models = '{"object":"list","data":[{"id":"m","object":"model"}]}'
    server = (f"location / {{ default_type application/json; return 200 '{answer}'; }}"
              f"location /v1/models {{ default_type application/json; return 200 '{models}'; }}")  # fmt: skip
    return nginx(binary, folder, UPSTREAM_CORE, server)


# The gateways.


def nginx_system(binary: str, folder: Path, upstream: int) -> System:
    extra = f"upstream model {{ server 127.0.0.1:{upstream}; keepalive 64; keepalive_requests 100000000; }}"
    server = ('location / { proxy_pass http://model; proxy_http_version 1.1; proxy_set_header Connection "";'
              "proxy_buffering off; }")  # fmt: skip
    process, port = nginx(binary, folder, SYSTEM_CORE, server, extra)
    return System("nginx", process, port)


def ours(folder: Path, upstream: int, *, pii: bool) -> System:
    """`steelyard serve` over a model folder that was admitted here, with the upstream as its engine."""
    folder.mkdir()
    home, port = folder / "home", free_port()
    secret = furnish(home, upstream, pii=pii)
    process = spawn(
        [str(Path(sys.executable).with_name("steelyard")), "serve", "--home", str(home), "--port", str(port)],
        SYSTEM_CORE, folder,
    )  # fmt: skip
    return System("ours with PII" if pii else "ours", process, port, (f"Authorization: Bearer {secret}",))


def furnish(home: Path, upstream: int, *, pii: bool) -> str:
    """A home with one admitted model, the upstream as its engine and an API key. Returns the key's secret."""
    steelyard = str(Path(sys.executable).with_name("steelyard"))

    def run(*words: str) -> dict[str, str]:
        done = subprocess.run(
            [steelyard, *words, "--home", str(home), "--json"], capture_output=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"steelyard {words[0]}: {done.stderr.decode()}")
        return cast("dict[str, str]", json.loads(done.stdout))

    run("key", "new")
    weights = resources.files("steelyard").joinpath("data/helpdesk")
    run("admit", str(weights), "--no-copy")
    run("model", "alias", "gpt-4o", "helpdesk")
    home.joinpath("steelyard.toml").write_text(
        f'[[serve.upstream]]\nurl = "http://127.0.0.1:{upstream}"\nserves = "gpt-4o"\nmodel = "m"\n'
        + ("[privacy]\n" if pii else "")
    )
    # The upstream is somebody's server on a URL, and this policy says that this is enough.
    home.joinpath("policy.toml").write_text(f'identity = "asserted"\n{default_policy_text()}')
    return run("key", "new", "--api", "bench")["key"]


def litellm(binary: str, folder: Path, upstream: int) -> System:
    folder.mkdir()
    port = free_port()
    (folder / "config.yaml").write_text(json.dumps({
        "model_list": [{"model_name": "gpt-4o", "litellm_params": {
            "model": "openai/m", "api_base": f"http://127.0.0.1:{upstream}/v1", "api_key": "none"}}],
        "general_settings": {"master_key": KEY},
        "litellm_settings": {"telemetry": False},
    }))  # fmt: skip
    command = [binary, "--config", str(folder / "config.yaml"), "--host", "127.0.0.1", "--port", str(port)]
    env = {"LITELLM_LOG": "ERROR", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    return System("LiteLLM", spawn(command, SYSTEM_CORE, folder, **env), port)


def portkey(package: str, folder: Path, upstream: int) -> System:
    folder.mkdir()
    port = free_port()
    start = Path(package) / "node_modules/@portkey-ai/gateway/build/start-server.js"
    process = spawn(
        [shutil.which("node") or "node", str(start), f"--port={port}", "--headless"], SYSTEM_CORE, folder
    )
    fields = ("x-portkey-provider: openai", f"x-portkey-custom-host: http://127.0.0.1:{upstream}/v1",
              f"Authorization: Bearer {KEY}")  # fmt: skip
    return System("Portkey", process, port, fields)


def vllm_router(binary: str, folder: Path, upstream: int) -> System:
    folder.mkdir()
    port = free_port()
    command = [binary, "--worker-urls", f"http://127.0.0.1:{upstream}", "--host", "127.0.0.1",
               "--port", str(port), "--log-level", "error"]  # fmt: skip
    return System("vllm-router", spawn(command, SYSTEM_CORE, folder, TOKIO_WORKER_THREADS="1"), port)


@dataclass(frozen=True)
class Task:
    """What is asked of each gateway. count: requests in a round, fewer for the slow ones."""

    name: str
    stream: bool
    connections: int
    count: int
    least_bytes: int


TASKS = {
    "whole": Task("one answer in one piece", stream=False, connections=16, count=3000, least_bytes=400),
    "burst": Task("40 chunks at once", stream=True, connections=16, count=1200, least_bytes=4000),
    "paced": Task("40 chunks, one every 5 ms", stream=True, connections=16, count=160, least_bytes=4000),
}
SLOW = {"LiteLLM": 30, "Portkey": 5}  # how many times fewer requests


def measure(system: System, task: Task, share: float = 1.0) -> tuple[float, float]:
    """CPU microseconds for each request, and the median time to the first byte in ms."""
    count = max(task.connections, int(task.count * share / SLOW.get(system.name, 1)))
    load = Load(system, count, stream=task.stream, least_bytes=task.least_bytes)
    before = cpu_us(system.process.pid)
    uvloop.run(load.run(task.connections))
    return (cpu_us(system.process.pid) - before) / count, statistics.median(load.first_s) * 1e3


def started(args: argparse.Namespace, folder: Path, upstream: int) -> list[System]:
    """The gateways in front of one upstream, each answering."""
    systems = [nginx_system(args.nginx, folder / "nginx", upstream)]
    if not args.rivals_only:
        systems.append(ours(folder / "ours", upstream, pii=False))
        if args.pii:
            systems.append(ours(folder / "pii", upstream, pii=True))
    if args.vllm_router:
        systems.append(vllm_router(args.vllm_router, folder / "vllm-router", upstream))
    if args.portkey:
        systems.append(portkey(args.portkey, folder / "portkey", upstream))
    if args.litellm:
        systems.append(litellm(args.litellm, folder / "litellm", upstream))
    for system in systems:
        wait_for(system.port, system.name)
    return systems


def run(args: argparse.Namespace, folder: Path, tasks: list[str], upstream: int) -> None:
    folder.mkdir()
    systems = started(args, folder, upstream)
    try:
        for name in tasks:
            task = TASKS[name]
            for system in tuple(systems):
                try:
                    measure(system, task, 0.2)  # warm
                except SystemExit as error:
                    print(f"{system.name}: left out of `{task.name}`: {error}")
                    systems.remove(system)
                    stop(system.process)
            figures: dict[str, list[tuple[float, float]]] = {system.name: [] for system in systems}
            for _ in range(args.rounds):
                for system in systems:
                    figures[system.name].append(measure(system, task))
            report(task, figures, {system.name: memory_mb(system.process.pid) for system in systems})
    finally:
        for system in systems:
            stop(system.process)


def report(task: Task, figures: dict[str, list[tuple[float, float]]], memory: dict[str, float]) -> None:
    print(f"\n{task.name}, {task.connections} connections")
    print(f"{'':<14}{'CPU us/request':>16}{'spread':>18}{'x nginx':>9}{'first byte ms':>15}{'PSS MB':>8}")
    base = [cpu for cpu, _ in figures["nginx"]]
    for name, found in figures.items():
        cpus = [cpu for cpu, _ in found]
        ratio = statistics.median(cpu / least for cpu, least in zip(cpus, base, strict=True))
        first = statistics.median(first for _, first in found)
        print(f"{name:<14}{statistics.median(cpus):>16.1f}{min(cpus):>9.1f}-{max(cpus):<8.1f}{ratio:>9.2f}"
              f"{first:>15.2f}{memory[name]:>8.0f}")  # fmt: skip


def stop(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nginx", default=shutil.which("nginx") or "/usr/sbin/nginx")
    parser.add_argument("--litellm", help="its executable")
    parser.add_argument("--portkey", help="the folder with its node_modules")
    parser.add_argument("--vllm-router", help="its executable")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", nargs="*", choices=TASKS, default=list(TASKS))
    parser.add_argument("--rivals-only", action="store_true")
    parser.add_argument("--pii", action="store_true")
    parser.add_argument("--upstream", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.upstream is not None:
        uvloop.run(serve_upstream(args.upstream))
        return
    if not Path(args.nginx).exists():
        raise SystemExit(
            "the measure is nginx, and there is none: apt-get install nginx-light, or --nginx BIN"
        )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    print(f"commit {commit.stdout.strip() or '?'}, Python {platform.python_version()}, uvloop {version('uvloop')}, "
          f"httptools {version('httptools')}, {args.rounds} rounds, prompt {len(PROMPT)} bytes")  # fmt: skip
    os.sched_setaffinity(0, UPSTREAM_CORE)
    with tempfile.TemporaryDirectory(prefix="steelyard-bench-") as name:
        folder = Path(name)
        if "whole" in args.tasks:
            process, port = nginx_upstream(args.nginx, folder / "upstream")
            wait_for(port, "the upstream")
            run(args, folder / "whole", ["whole"], port)
            stop(process)
        for task, pace_s in (("burst", 0.0), ("paced", PACE_S)):
            if task in args.tasks:
                process = spawn([sys.executable, __file__, "--upstream", str(pace_s)], UPSTREAM_CORE, folder)
                assert process.stdout is not None
                port = int(process.stdout.readline())
                run(args, folder / task, [task], port)
                stop(process)


if __name__ == "__main__":
    main()
