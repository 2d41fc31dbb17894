"""Claim: hashing and scanning a model together costs hardly more than hashing alone can.

Makes safetensors shards of random bytes (default 3 GB in six, then one file of the same size), in the page cache, and
measures, interleaved:
  limit   hashlib.sha256 over a buffer in memory, as many bytes, as many threads as there are cores (one for one file:
          a SHA-256 is one stream, and the digest is OpenSSF model-signing's, so one file cannot use two threads)
  hash    steelyard.manifest.manifest_of
  scan    steelyard.admit.scan.scan in confined processes: walk, parse, hash, compare
`--rivals DIR` adds model_signing's own hashing if DIR/model_signing has it. Prints versions, medians, spread, ratios.
"""

import argparse
import hashlib
import json
import os
import platform
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from steelyard import __version__
from steelyard.admit.rules import registry
from steelyard.admit.scan import Verdict, scan
from steelyard.manifest import manifest_of

BLOCK = 1 << 20


def shard(path: Path, size: int) -> None:
    count = size // 4
    body = {"w": {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}}
    header = json.dumps(body).encode()
    header += b" " * (-len(header) % 8)
    block = os.urandom(BLOCK)
    with path.open("wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        left = 4 * count
        while left:
            left -= stream.write(block[: min(BLOCK, left)])


def limit(size: int, threads: int) -> None:
    block = os.urandom(BLOCK)

    def one(blocks: int) -> None:
        hasher = hashlib.sha256()
        for _ in range(blocks):
            hasher.update(block)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, [size // BLOCK // threads] * threads))


def hashed(path: Path) -> None:
    manifest_of(path)


def scanned(path: Path) -> None:
    assert scan(path, registry(), is_isolated=True).verdict is Verdict.ADMIT


def theirs(python: Path, path: Path) -> Callable[[], None]:
    code = f"from model_signing import hashing; hashing.hash({str(path)!r})"

    def run() -> None:
        subprocess.run([str(python), "-c", code], check=True)

    return run


def measure(name: str, runs: dict[str, Callable[[], None]], rounds: int) -> None:
    times: dict[str, list[float]] = {key: [] for key in runs}
    for _ in range(rounds):
        for key, run in runs.items():
            began = time.perf_counter()
            run()
            times[key].append(time.perf_counter() - began)
    print(f"\n{name}")
    base = statistics.median(times["limit"])
    for key, taken in times.items():
        middle = statistics.median(taken)
        print(
            f"  {key:14} {middle:6.2f} s ({min(taken):.2f} to {max(taken):.2f})  {middle / base:5.2f}x the limit"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rivals", type=Path, help="a folder with the virtual environment model_signing")
    arguments = parser.parse_args()
    size = int(arguments.gigabytes * 1e9)
    cores = os.cpu_count() or 1
    print(f"steelyard {__version__}, Python {platform.python_version()}, {cores} cores, {size / 1e9:.1f} GB")
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "model"
        tree.mkdir()
        for index in range(6):
            shard(tree / f"model-{index + 1:05}-of-00006.safetensors", size // 6)
        runs: dict[str, Callable[[], None]] = {
            "limit": lambda: limit(size, cores),
            "hash": lambda: hashed(tree),
            "hash and scan": lambda: scanned(tree),
        }
        python = arguments.rivals / "model_signing" / "bin" / "python" if arguments.rivals else None
        if python and python.exists():
            runs["model_signing"] = theirs(python, tree)
        measure("six shards", runs, arguments.rounds)
        for file in tree.iterdir():
            file.unlink()
        one = tree / "model.safetensors"
        shard(one, size)
        measure(
            "one file (the limit is one thread)",
            {
                "limit": lambda: limit(size, 1),
                "hash": lambda: hashed(one),
                "hash and scan": lambda: scanned(one),
            },
            arguments.rounds,
        )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
