"""Claim: a Grok-1 shard is copied exactly at 1.5 GB/s or the disk's limit, in at most 64 MB of memory.

A synthetic shard of the release's shape (8 experts, int8 with bfloat16 scales) becomes safetensors: copied inside the
kernel, copied with the SHA-256 of input and output on the way (what `model convert` does), and as bfloat16. Beside
them `cp`, a bare sendfile, and the SHA-256 of the same file on one thread. Each run is a process of its own, ends
with fsync, and reports its peak of resident memory; rounds alternate, medians and their spread are printed.
"""

import argparse
import hashlib
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

from steelyard.formats.grok_pickle import CORES, Sentence, framing_of

SHAPE = (8, 1536, 32768)  # 403 MB
WAYS = ("cp", "sendfile", "copy", "hashed", "bf16", "sha256")


def write_shard(path: Path, shape: tuple[int, int, int]) -> int:
    """A shard of random weights and small scales. Returns its size in bytes."""
    block = os.urandom(1 << 22)
    scales = (8, 1, shape[2])
    with path.open("wb") as file:
        for stretch in framing_of(Sentence(CORES[0], True, (shape, scales), 0x40)):
            file.write(stretch.framing)
            left = stretch.payload_bytes or 0
            while left:
                part = block if stretch.dtype == "I8" else b"\x0c\x3c" * (1 << 20)
                left -= file.write(part[:left])
        os.fsync(file.fileno())
    return path.stat().st_size


def run_one(way: str, source: Path, target: Path) -> None:
    """One measurement in this process: prints seconds and peak memory as JSON."""
    work = _work(way, source, target)
    began = time.perf_counter()
    work()
    seconds = time.perf_counter() - began
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024
    print(json.dumps({"seconds": seconds, "peak": peak}))


def _work(way, source, target):
    if way == "sendfile":
        return lambda: _sendfile(source, target)
    if way == "sha256":
        return lambda: _sha256(source)
    from steelyard.admit.from_grok import Exact, Expected, Piece
    from steelyard.admit.to_safetensors import write
    from steelyard.admit.to_safetensors_plan import plan_of
    from steelyard.formats.grok import shard_of

    class Mapped:
        size = source.stat().st_size

        def read(self, offset, size):
            with source.open("rb") as file:
                file.seek(offset)
                return file.read(size)

    shard = shard_of(Mapped())
    leaf = Expected("transformer.decoder_layer_0.moe.linear.w", shard.weight.shape, True)
    piece = Piece(source.parent, source.name, leaf, shard)
    if way == "bf16":
        from steelyard.admit.from_grok_bf16 import Dequantised

        plan = plan_of([Dequantised(piece)], mode="bf16")
    else:
        plan = plan_of([Exact(piece)], mode="exact")
    return lambda: write(plan, target, digests=way != "copy")


def _sendfile(source: Path, target: Path) -> None:
    with source.open("rb") as one, target.open("wb") as other:
        size, at = source.stat().st_size, 0
        while at < size:
            at += os.sendfile(other.fileno(), one.fileno(), at, size - at)
        os.fsync(other.fileno())


def _sha256(source: Path) -> None:
    with source.open("rb") as file:
        hashlib.file_digest(file, "sha256")


def measure(way: str, source: Path, folder: Path) -> dict[str, float]:
    target = folder / f"out-{way}"
    if way == "cp":
        began = time.perf_counter()
        subprocess.run(["cp", source, target], check=True)
        subprocess.run(["sync", target], check=True)
        found = {"seconds": time.perf_counter() - began, "peak": 0.0}
    else:
        command = [sys.executable, __file__, "--one", way, str(source), str(target)]
        found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", type=Path, help="a folder on the disk to measure (default: a temporary one)")
    parser.add_argument("--one", nargs=3, metavar=("WAY", "SOURCE", "TARGET"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        run_one(args.one[0], Path(args.one[1]), Path(args.one[2]))
        return 0
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    print(f"commit {commit.stdout.strip()}, Python {platform.python_version()}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory(dir=args.dir) as name:
        folder = Path(name)
        source = folder / "tensor00000_000"
        size = write_shard(source, SHAPE)
        print(f"shard of {size:,} bytes, in the page cache; each way ends with fsync")
        found = {way: [] for way in WAYS}
        for _ in range(args.rounds):
            for way in WAYS:
                found[way].append(measure(way, source, folder))
    for way in WAYS:
        rates = sorted(size / one["seconds"] / 1e9 for one in found[way])
        peak = max(one["peak"] for one in found[way]) / 1e6
        shown = f"  peak {peak:5.1f} MB" if peak else ""
        print(
            f"{way:<9} {statistics.median(rates):5.2f} GB/s of input ({rates[0]:.2f} to {rates[-1]:.2f}){shown}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
