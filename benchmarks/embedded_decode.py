"""Decode speed through our engine (child process, frames, chunks) against xllamacpp called directly.

Run: python benchmarks/embedded_decode.py [MODEL.gguf] [--threads N] [--rounds N]
Without a model it converts the demonstration model. The prompt is part of what is timed.
Prints tokens per second of both, interleaved, and the ratio; medians and the range over the rounds.
"""

import argparse
import asyncio
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import resources
from importlib.metadata import version
from pathlib import Path

os.environ["OMP_WAIT_POLICY"] = "passive"  # as the engine's child has it; read when libgomp loads

import xllamacpp

from steelyard.admit.to_gguf import convert
from steelyard.digest import Digest
from steelyard.engines.embedded import EmbeddedEngine
from steelyard.wire.call import Call

TOKENS = 128
CONTEXT = 1024
PROMPT = "Write down everything you know."


def direct_server(gguf: Path, threads: int, folder: str) -> xllamacpp.Server:
    params = xllamacpp.CommonParams()
    params.model.path = str(gguf)
    params.hostnames = [f"{folder}/direct.sock"]
    params.n_ctx = CONTEXT
    params.verbosity = 0
    params.fit_params = False
    params.cache_ram_mib = 0
    params.load_mode = xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_NONE
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    return xllamacpp.Server(params)


def directly(server: xllamacpp.Server) -> float:
    """Tokens per second of the same streamed request, with a callback that keeps the events and nothing more."""
    events: list[str] = []
    body = json.dumps(
        {
            "messages": [{"role": "user", "content": PROMPT}],
            "max_tokens": TOKENS,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "seed": 1,
            "cache_prompt": False,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    )
    began = time.perf_counter()
    server.handle_chat_completions(body, events.append)
    passed_s = time.perf_counter() - began
    usage = next(event["usage"] for event in map(json.loads, events) if event.get("usage"))
    return float(usage["completion_tokens"] / passed_s)


async def through_engine(engine: EmbeddedEngine) -> float:
    message = {"role": "user", "content": PROMPT}
    body = {"messages": [message], "max_tokens": TOKENS, "temperature": 1.0, "seed": 1}
    began = time.perf_counter()
    lists = [chunks async for chunks in engine.stream(Call("chat", "m", body, stream=True))]
    passed_s = time.perf_counter() - began
    return float(lists[-1][-1]["usage"]["completion_tokens"] / passed_s)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("gguf", type=Path, nargs="?")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    pairs: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        gguf = options.gguf
        if gguf is None:
            gguf = Path(folder) / "helpdesk.gguf"
            with resources.as_file(resources.files("steelyard") / "data" / "helpdesk") as model:
                convert(model, gguf)
        with gguf.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        engine = EmbeddedEngine(
            gguf, Digest("sha256", sha256), file_sha256=sha256, context=CONTEXT, threads=options.threads
        )
        await engine.start()
        server = direct_server(gguf, options.threads, folder)
        while len(pairs) <= options.rounds:
            pairs += [(await through_engine(engine), await asyncio.to_thread(directly, server))]
        await engine.close()
    report(pairs[1:], options.threads)  # the first round warms both


def report(pairs: list[tuple[float, float]], threads: int) -> None:
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    print(
        f"commit {git.stdout.strip() or 'none'}  xllamacpp {version('xllamacpp')}  python {platform.python_version()}"
    )
    load = os.getloadavg()[0]
    print(f"{platform.machine()}, {os.cpu_count()} cores, {threads} threads, load average {load:.1f}")
    for name, column in (("engine", 0), ("direct", 1)):
        speeds = [pair[column] for pair in pairs]
        print(
            f"{name:7s} {statistics.median(speeds):8.1f} tokens/s  ({min(speeds):.1f} to {max(speeds):.1f})"
        )
    ratios = [ours / theirs for ours, theirs in pairs]
    print(f"ratio   {statistics.median(ratios):8.2f}           ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
