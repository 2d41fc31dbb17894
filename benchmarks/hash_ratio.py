"""Claim: weighing a model runs at >= 90 % of what OpenSSL's SHA-256 does on these cores.

Two baselines. The limit: hashlib (OpenSSL) over one buffer that stays in cache, one thread a core, no file at all. The
tool: `openssl dgst`, one process a core, over the same files in the page cache. Ours: manifest_of over those files.
model-signing stands beside us where it is installed. Rounds alternate; prints medians, ratios and their spread.
"""

import argparse
import hashlib
import os
import shutil
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from steelyard.manifest import manifest_of

CHUNK = os.urandom(1 << 20)


def openssl_limit(total_bytes: int, threads: int) -> float:
    """Seconds to hash `total_bytes` from memory on `threads` threads."""

    def hash_share(_: int) -> str:
        hasher = hashlib.sha256()
        for _ in range(total_bytes // threads // len(CHUNK)):
            hasher.update(CHUNK)
        return hasher.hexdigest()

    return timed(lambda: list(ThreadPoolExecutor(threads).map(hash_share, range(threads))))


def openssl_tool(groups: list[list[str]]) -> None:
    """Hash every file with the openssl command, one process for each group."""
    running = [
        subprocess.Popen(["openssl", "dgst", "-sha256", *g], stdout=subprocess.DEVNULL) for g in groups
    ]
    assert [process.wait() for process in running] == [0] * len(groups)


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=1024, help="size of the directory")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    threads = os.cpu_count() or 1
    total = args.mib << 20
    theirs: Callable[[Path], object] | None
    try:
        import model_signing.hashing

        theirs = model_signing.hashing.Config().hash
    except ImportError:
        theirs = None
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for shard in range(2 * threads):
            with (root / f"model-{shard:05}.safetensors").open("wb") as stream:
                for _ in range(args.mib // (2 * threads)):
                    stream.write(CHUNK)
        total = manifest_of(root).size  # also warms the page cache
        paths = [str(path) for path in sorted(root.iterdir())]
        groups = [paths[first::threads] for first in range(threads)]
        ours_s, limit_s, theirs_s, tool_s = [], [], [], []
        for _ in range(args.rounds):
            limit_s.append(openssl_limit(total, threads))
            ours_s.append(timed(lambda: manifest_of(root)))
            if shutil.which("openssl"):
                tool_s.append(timed(lambda: openssl_tool(groups)))
            if theirs:
                theirs_s.append(timed(lambda: theirs(root)))
    print(
        f"{ssl.OPENSSL_VERSION}, Python {sys.version.split()[0]}, {threads} cores, {total >> 20} MiB x{args.rounds}"
    )
    print(f"OpenSSL limit  {total / statistics.median(limit_s) / 1e9:.2f} GB/s")
    print(f"steelyard      {total / statistics.median(ours_s) / 1e9:.2f} GB/s")
    if tool_s:
        print(f"openssl dgst   {total / statistics.median(tool_s) / 1e9:.2f} GB/s")
    if theirs_s:
        print(f"model-signing  {total / statistics.median(theirs_s) / 1e9:.2f} GB/s")
    for name, base_s in (("limit", limit_s), ("openssl dgst", tool_s)):
        if base_s:
            ratios = sorted(base / ours for base, ours in zip(base_s, ours_s, strict=True))
            spread = f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
            print(f"ratio to the {name}: median {statistics.median(ratios):.3f}, {spread} (claim >= 0.9)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
