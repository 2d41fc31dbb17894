"""Look for bytes that make a parser misbehave; each found one is kept with its reason.

    python fuzz/run.py [--minutes N] [--format NAME] [--seed S] [--out DIR] [--plain]
    python fuzz/run.py --replay FILE

With atheris (a coverage-guided fuzzer for Python; optional) mutants that reach new code become seeds of others;
without it, or with --plain, all mutants come from the valid seeds. Exit code 1: something was found.
"""

import argparse
import hashlib
import importlib.util
import json
import resource
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

OUT = ROOT / "fuzz-findings"
MAX_ADDRESS_SPACE = 8 << 30
MAX_REASONS = 20  # different findings kept of one format


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="for all formats together (default 5)")
    parser.add_argument("--format", help="only this one; an unknown name lists them")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT, help="where findings go")
    parser.add_argument("--plain", action="store_true", help="no coverage guidance")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="read one finding again")
    parser.add_argument("--in-child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_ADDRESS_SPACE, MAX_ADDRESS_SPACE))
    if options.replay:
        return replay(options.replay)
    guided = not options.plain and importlib.util.find_spec("atheris") is not None
    if options.in_child:
        return follow_coverage(options.format, options.minutes, options.seed, options.out)
    return each_format(options, guided=guided)


def replay(file: Path) -> int:
    """Read one kept file again under the name it was found with, and say what is wrong."""
    from fuzz.harness import Harness
    from fuzz.loaders import LOADERS
    from steelyard.admit.rules import registry

    note = file.with_suffix(".json")
    name = json.loads(note.read_text())["name"] if note.exists() else file.name
    reasons = Harness(registry(), LOADERS).failures(file.read_bytes(), name)
    print("\n".join(reasons) or "all properties hold")
    return 1 if reasons else 0


def each_format(options: argparse.Namespace, *, guided: bool) -> int:
    """Every format in turn, each with the same share of the time."""
    from fuzz.harness import Harness
    from fuzz.loaders import LOADERS
    from fuzz.session import mutants, seeds_by_format
    from steelyard.admit.rules import registry

    known = registry()
    seeds = seeds_by_format(known)
    if options.format and options.format not in seeds:
        print(f"no seeds of {options.format!r}; there are: {', '.join(seeds)}", file=sys.stderr)
        return 2
    names = [options.format] if options.format else list(seeds)
    share_s = options.minutes * 60 / len(names)
    harness = Harness(known, LOADERS)
    found = 0
    for name in names:
        if guided:
            found += _in_child(name, share_s, options)
            continue
        kept = Kept(options.out, name)
        began, count = time.monotonic(), 0
        for case in mutants(seeds, name, options.seed):
            for reason in harness.failures(case.data, case.name):
                kept.keep(case.data, case.name, reason)
            count += 1
            if time.monotonic() - began > share_s or len(kept.reasons) >= MAX_REASONS:
                break
        spent_s = time.monotonic() - began
        print(
            f"{name:14} {count:8} mutants {count / spent_s:6.0f}/s  {len(kept.reasons)} findings", flush=True
        )
        found += len(kept.reasons)
    return 1 if found else 0


def _in_child(name: str, share_s: float, options: argparse.Namespace) -> int:
    """libFuzzer ends its process, so each format has its own; 1 when it found something."""
    minutes = ["--minutes", str(share_s / 60), "--seed", str(options.seed), "--out", str(options.out)]
    before = set(options.out.glob("*.bin"))
    done = subprocess.run([sys.executable, __file__, "--in-child", "--format", name, *minutes], check=False)
    new = len(set(options.out.glob("*.bin")) - before)
    print(f"{name:14} {new} findings, exit code {done.returncode}", flush=True)
    return int(new > 0 or done.returncode != 0)


def follow_coverage(name: str, minutes: float, seed: int, out: Path) -> int:
    """One format by atheris; returns only when there is nothing to fuzz, since libFuzzer ends the process.

    The first byte of an input chooses among the names of the seeds, the rest is the file.
    """
    import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore]  # optional

    with atheris.instrument_imports(include=["steelyard.formats"]):
        from steelyard.admit.rules import registry

        known = registry()
    from fuzz.harness import Harness
    from fuzz.loaders import LOADERS
    from fuzz.mutate import mutant
    from fuzz.session import seeds_by_format

    seeds = seeds_by_format(known)
    if name not in seeds:
        print(f"no seeds of {name!r}; there are: {', '.join(seeds)}", file=sys.stderr)
        return 2
    own = seeds[name][:256]
    harness, kept = Harness(known, LOADERS), Kept(out, name)
    others = [each.data for each in own]

    def read(data: bytes) -> None:
        if data:
            path = own[data[0] % len(own)].name
            for reason in harness.failures(data[1:], path):
                kept.keep(data[1:], path, reason)

    def change(data: bytes, max_size: int, number: int) -> bytes:
        rng = Random(f"{seed}/{number}/{zlib.crc32(data)}")
        return (data[:1] or b"\0") + mutant(data[1:], rng, others)[: max_size - 1]

    with tempfile.TemporaryDirectory() as corpus:
        for number, each in enumerate(own):
            (Path(corpus) / str(number)).write_bytes(bytes([number]) + each.data)
        limits = [
            f"-max_total_time={max(1, int(minutes * 60))}",
            f"-seed={seed}",
            "-max_len=65536",
            "-timeout=20",
        ]
        atheris.Setup(
            [sys.argv[0], *limits, "-rss_limit_mb=0", "-verbosity=1", corpus], read, custom_mutator=change
        )
        atheris.Fuzz()
    return 0


@dataclass(slots=True)
class Kept:
    """The findings of one format on disk, one file for each different reason."""

    out: Path
    format: str
    reasons: "set[str]"

    def __init__(self, out: Path, name: str) -> None:
        self.out, self.format, self.reasons = out, name, set()

    def keep(self, data: bytes, name: str, reason: str) -> None:
        short = "".join(char for char in reason[:100] if not char.isdigit())
        if short in self.reasons or len(self.reasons) >= MAX_REASONS:
            return
        self.reasons.add(short)
        self.out.mkdir(parents=True, exist_ok=True)
        file = self.out / f"{self.format}-{hashlib.sha256(data).hexdigest()[:16]}.bin"
        file.write_bytes(data)
        file.with_suffix(".json").write_text(json.dumps({"name": name, "reason": reason}, indent=1) + "\n")
        print(f"{self.format}: {reason}\n  replay: python fuzz/run.py --replay {file}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
