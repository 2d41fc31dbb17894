"""Claim: weighing a model runs at >= 90 % of what OpenSSL's SHA-256 does on these cores.

Baseline: hashlib (OpenSSL) over a buffer in memory, one thread a core, no file at all. Ours: manifest_of over files in
the page cache. Interleaved; model-signing beside us where it is installed. Prints the ratio and its spread.
"""

import argparse
import hashlib
import os
import ssl
import statistics
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
        ours_s, limit_s, theirs_s = [], [], []
        for _ in range(args.rounds):
            limit_s.append(openssl_limit(total, threads))
            ours_s.append(timed(lambda: manifest_of(root)))
            if theirs:
                theirs_s.append(timed(lambda: theirs(root)))
    print(
        f"{ssl.OPENSSL_VERSION}, Python {sys.version.split()[0]}, {threads} cores, {total >> 20} MiB x{args.rounds}"
    )
    print(f"OpenSSL limit  {total / statistics.median(limit_s) / 1e9:.2f} GB/s")
    print(f"steelyard      {total / statistics.median(ours_s) / 1e9:.2f} GB/s")
    if theirs_s:
        print(f"model-signing  {total / statistics.median(theirs_s) / 1e9:.2f} GB/s")
    ratios = sorted(limit / ours for limit, ours in zip(limit_s, ours_s, strict=True))
    print(
        f"ratio to OpenSSL: median {statistics.median(ratios):.3f}, {ratios[0]:.3f} to {ratios[-1]:.3f}, claim >= 0.9"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
