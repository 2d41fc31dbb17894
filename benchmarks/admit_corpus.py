"""Claim: of the scanners side by side only ours admits no hostile file and still admits honest ones.

`--corpus DIR` holds samples and `manifest.csv` (or `--manifest FILE`) with the columns file, attack_class, expected
(malicious, benign, or anything else, which is not scored). A sample is a file or a folder; it is scanned, never loaded.
Every scanner gets each sample by its own command line, in its own environment: `--rivals DIR` names a folder with one
virtual environment for each, DIR/picklescan, DIR/modelscan, DIR/fickling, DIR/modelaudit. Absent ones are left out.

Flagged: the scanner says that the sample is bad (ours: reject or review). Not admitted: flagged, or an error, or not
understood. Silently clean: called clean. Skipped: the scanner says that it did not look.
"""

import argparse
import csv
import json
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

LIMIT_S = 60
FLAGGED, CLEAN, SKIPPED, ERROR = "flagged", "clean", "skipped", "error"


@dataclass(frozen=True)
class Sample:
    path: Path
    attack_class: str
    expected: str


@dataclass(frozen=True)
class Scanner:
    """`command` is completed by the sample's path; `meaning` turns exit code and output into one of four words."""

    name: str
    version: str
    command: list[str]
    meaning: Callable[[int, str], str]


def _steelyard(code: int, output: str) -> str:
    if code == 3 or not output.strip():
        return ERROR
    return CLEAN if json.loads(output)["verdict"] == "admit" else FLAGGED


def _picklescan(code: int, output: str) -> str:
    if code == 0 and "Scanned files: 0" in output:
        return SKIPPED
    return {0: CLEAN, 1: FLAGGED}.get(code, ERROR)


def _modelscan(code: int, output: str) -> str:  # noqa: ARG001
    return {0: CLEAN, 1: FLAGGED, 3: SKIPPED}.get(code, ERROR)


def _fickling(code: int, output: str) -> str:
    if "Traceback" in output:
        return ERROR
    return {0: CLEAN, 1: FLAGGED}.get(code, ERROR)


def _modelaudit(code: int, output: str) -> str:  # noqa: ARG001
    return {0: CLEAN, 1: FLAGGED}.get(code, ERROR)


RIVALS: dict[str, tuple[list[str], Callable[[int, str], str]]] = {
    "picklescan": (["picklescan", "-g", "-p"], _picklescan),
    "modelscan": (["modelscan", "-p"], _modelscan),
    "fickling": (["fickling", "--check-safety", "--json-output", "/dev/null"], _fickling),
    "modelaudit": (["modelaudit", "scan", "--no-cache"], _modelaudit),
}


def scanners(rivals: Path | None) -> list[Scanner]:
    ours = [sys.executable, "-m", "steelyard", "scan", "--json", "--quiet"]
    found = [Scanner("steelyard", metadata.version("steelyard"), ours, _steelyard)]
    for name, (command, meaning) in RIVALS.items():
        program = (rivals / name / "bin" / command[0]) if rivals else None
        if program and program.exists():
            python = str(program.parent / "python")
            asked = f"from importlib.metadata import version; print(version({name!r}))"
            version = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=True)
            found.append(Scanner(name, version.stdout.strip(), [str(program), *command[1:]], meaning))
        else:
            print(f"{name}: not measured (no {program or 'DIR given'})")
    return found


def judge(scanner: Scanner, sample: Sample) -> str:
    try:
        done = subprocess.run(
            [*scanner.command, str(sample.path)],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return ERROR
    output = done.stdout if scanner.name == "steelyard" else done.stdout + done.stderr
    return scanner.meaning(done.returncode, output)


def read_samples(corpus: Path, manifest: Path) -> list[Sample]:
    with manifest.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    samples = [Sample(corpus / row["file"], row["attack_class"], row["expected"]) for row in rows]
    missing = [str(sample.path) for sample in samples if not sample.path.exists()]
    if missing:
        sys.exit(f"{len(missing)} samples of the manifest are missing, first {missing[0]}")
    return samples


def table(scanner: Scanner, samples: list[Sample], words: list[str], seconds: float) -> None:
    print(f"\n## {scanner.name} {scanner.version} ({seconds:.0f} s)")
    for expected in ("malicious", "benign"):
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for sample, word in zip(samples, words, strict=True):
            if sample.expected == expected:
                counts[sample.attack_class][word] += 1
                counts["all"][word] += 1
        for kind, count in sorted(counts.items(), key=lambda item: (item[0] == "all", item[0])):
            n = count.total()
            admitted = count[CLEAN] + count[SKIPPED]
            shown = f"flagged {count[FLAGGED]:4} ({count[FLAGGED] / n:6.1%})  not admitted {n - admitted:4}"
            print(
                f"{expected:9} {kind:24} n {n:4}  {shown}  clean {count[CLEAN]:4}  skipped {count[SKIPPED]:4}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--corpus", type=Path, help="without it there is nothing to measure, and the script says so"
    )
    parser.add_argument("--manifest", type=Path, help="default: DIR/manifest.csv")
    parser.add_argument("--rivals", type=Path, help="a folder of virtual environments, one for each rival")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--wrong", action="store_true", help="list our own wrong verdicts")
    arguments = parser.parse_args()
    if arguments.corpus is None:
        print("no corpus given: not measured")
        return
    samples = read_samples(arguments.corpus, arguments.manifest or arguments.corpus / "manifest.csv")
    for scanner in scanners(arguments.rivals):
        began = time.monotonic()
        with ThreadPoolExecutor(arguments.jobs) as pool:
            words = list(pool.map(lambda sample, by=scanner: judge(by, sample), samples))
        table(scanner, samples, words, time.monotonic() - began)
        if arguments.wrong and scanner.name == "steelyard":
            for sample, word in zip(samples, words, strict=True):
                right = {"malicious": {FLAGGED, ERROR}, "benign": {CLEAN}}.get(sample.expected)
                if right and word not in right:
                    print(f"  wrong: {sample.expected} {word} {sample.path.relative_to(arguments.corpus)}")


if __name__ == "__main__":
    main()
