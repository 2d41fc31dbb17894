"""Claim: a torch checkpoint becomes safetensors without being loaded, near the speed of copying and hashing it.

A state_dict of 8 MB matrices is written by torch.save, then converted by us (scan, digest, fsync) and by loading it
with torch.load(weights_only=True) and safetensors.torch.save_file. Each run is a process of its own; rounds alternate.
Prints medians, their spread, and the peak of resident memory.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WAYS = ("steelyard", "torch + safetensors")


def run_one(way: str, source: Path, target: Path) -> None:
    """One measurement in this process: prints seconds and peak memory as JSON. Imports are not counted."""
    if way == "steelyard":
        from steelyard.admit.from_torch import read_torch
        from steelyard.admit.to_safetensors import write

        began = time.perf_counter()
        write(read_torch(source).job(shard_bytes=5 * 10**9).plan, target)
    else:
        import torch
        from safetensors.torch import save_file

        began = time.perf_counter()
        target.mkdir()
        save_file(torch.load(source, weights_only=True), target / "model.safetensors")
        descriptor = os.open(target / "model.safetensors", os.O_RDWR)
        os.fsync(descriptor)
    seconds = time.perf_counter() - began
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024
    print(json.dumps({"seconds": seconds, "peak": peak}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--one", nargs=3, metavar=("WAY", "SOURCE", "TARGET"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        run_one(args.one[0], Path(args.one[1]), Path(args.one[2]))
        return 0
    import torch

    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    print(f"commit {commit.stdout.strip()}, Python {platform.python_version()}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "model.pt"
        torch.save({f"layer.{i}.weight": torch.randn(1024, 2048) for i in range(args.mib // 8)}, source)
        size = source.stat().st_size
        found = {way: [] for way in WAYS}
        for _ in range(args.rounds):
            for way in WAYS:
                target = Path(name) / "out"
                command = [sys.executable, __file__, "--one", way, str(source), str(target)]
                found[way].append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
                shutil.rmtree(target)
    for way in WAYS:
        rates = sorted(size / one["seconds"] / 1e9 for one in found[way])
        peak = max(one["peak"] for one in found[way]) / 1e6
        print(
            f"{way:<20} {statistics.median(rates):5.2f} GB/s ({rates[0]:.2f} to {rates[-1]:.2f})  peak {peak:6.1f} MB"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
