"""Claim: our pickle machine reads op-dense pickles faster than picklescan and fickling.

Two samples of records, whose shape repeats as in most dense pickles, and one flat vocabulary, where nothing repeats.

Baseline: picklescan's and fickling's own entry points and `pickletools.genops`, each in an interpreter of its own,
one scan a round, interleaved, after one scan to warm up. `--rivals DIR` names a virtual environment that has the
rivals; without it they are taken from this interpreter, and where they are absent the line says "not measured".
Times are CPU seconds of the scan alone. Prints versions, medians, spread and ratios.
"""

import argparse
import json
import pickle  # noqa: TID251 - writes the sample
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

PREAMBLE = "import io, sys, time, json\ndata = open(sys.argv[1], 'rb').read()\n"
LOOP = """
for line in sys.stdin:
    began = time.process_time()
    scan()
    print(time.process_time() - began, flush=True)
"""
SCANS = {
    "steelyard": "from steelyard.formats.base import BytesSource\nfrom steelyard.formats.pickle_machine import run\n"
    "def scan(): run(BytesSource(data))\n",
    "genops": "import pickletools\ndef scan():\n    for _ in pickletools.genops(data): pass\n",
    "picklescan": "from picklescan.scanner import scan_pickle_bytes\n"
    "def scan(): scan_pickle_bytes(io.BytesIO(data), 'x')\n",
    "fickling": "from fickling.fickle import Pickled\nfrom fickling.analysis import check_safety\n"
    "def scan(): check_safety(Pickled.load(io.BytesIO(data)))\n",
}


def sample(rows: int, protocol: int) -> bytes:
    """A list of small mixed records: about three bytes an opcode."""
    chance = random.Random(1)
    record = [
        {
            "id": row,
            "name": f"token_{row}",
            "weight": chance.random(),
            "at": (row % 7, row % 11),
            "tags": ["a", str(row % 100), None, True],
        }
        for row in range(rows)
    ]
    return pickle.dumps(record, protocol)


def vocabulary(rows: int) -> bytes:
    """One flat dict of text to number: dense, and no record repeats."""
    chance = random.Random(2)
    names = {
        "".join(chance.choices("abcdefghij", k=chance.randint(1, 12))): chance.getrandbits(20)
        for _ in range(rows)
    }
    return pickle.dumps(names, 4)


def start(name: str, python: str, path: Path) -> subprocess.Popen[str] | None:
    process = subprocess.Popen(
        [python, "-c", PREAMBLE + SCANS[name] + LOOP, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    if scan(process) is None:
        process.wait()
        return None
    return process


def scan(process: subprocess.Popen[str]) -> float | None:
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write("go\n")
        process.stdin.flush()
    except BrokenPipeError:
        return None
    line = process.stdout.readline()
    return float(line) if line else None


def version(name: str, python: str) -> str:
    program = f"from importlib import metadata; print(metadata.version({name!r}))"
    found = subprocess.run([python, "-c", program], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "?"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rivals", type=Path, help="virtual environment with picklescan and fickling")
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rival_python = str(args.rivals / "bin" / "python") if args.rivals else sys.executable
    pythons = {name: rival_python if name in {"picklescan", "fickling"} else sys.executable for name in SCANS}
    print(
        f"steelyard {metadata.version('steelyard')}, Python {platform.python_version()}, {platform.machine()}"
    )
    for name in ("picklescan", "fickling"):
        print(f"{name} {version(name, pythons[name])}")
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for protocol in (2, 4):
            path = Path(folder) / f"dense{protocol}.pkl"
            path.write_bytes(sample(args.rows, protocol))
            results[f"records, protocol {protocol}"] = measure(path, pythons, args.rounds)
        path = Path(folder) / "vocabulary.pkl"
        path.write_bytes(vocabulary(6 * args.rows))
        results["flat vocabulary"] = measure(path, pythons, args.rounds)
    print(json.dumps(results))
    return 0


def measure(path: Path, pythons: dict[str, str], rounds: int) -> dict[str, float]:
    processes = {name: start(name, python, path) for name, python in pythons.items()}
    running = {name: process for name, process in processes.items() if process}
    times: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(rounds):
        for name, process in running.items():
            seconds = scan(process)
            if seconds is not None:
                times[name].append(seconds)
    for process in running.values():
        process.kill()
        process.wait()
    size = path.stat().st_size
    print(f"{path.name}: {size / 1e6:.1f} MB")
    ours = times["steelyard"]
    ratios = {}
    for name in SCANS:
        if not times.get(name):
            print(f"  {name:<11} not measured")
            continue
        taken = times[name]
        pairs = [theirs / mine for theirs, mine in zip(taken, ours, strict=False)]
        ratios[name] = round(statistics.median(pairs), 2)
        print(
            f"  {name:<11} {statistics.median(taken):.2f} s ({min(taken):.2f} to {max(taken):.2f}), "
            f"{size / 1e6 / statistics.median(taken):.1f} MB/s, {ratios[name]:.2f}x our time "
            f"({min(pairs):.2f} to {max(pairs):.2f})"
        )
    return ratios


if __name__ == "__main__":
    sys.exit(main())
