"""Claim: no pickle makes the scanner hold more than 150 MB beyond its read buffers, and bombs end in under 2 s.

Each case is written by code below, scanned by the registry in an interpreter of its own, and reported with its peak
resident memory above that of the same interpreter before the scan, CPU seconds and the rules that refused it. A case
marked honest must be admitted; it has no time floor. Exit status 1 when a case breaks its bound.
"""

import argparse
import io
import json
import pickle  # noqa: TID251 - writes the honest sample
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

MAX_MEGABYTES = 150
MAX_SECONDS = 2.0
CHILD = """
import json, resource, sys, time
from pathlib import Path
from steelyard.admit.rules import registry
from steelyard.admit.scan import scan
known, path = registry(), Path(sys.argv[1])
def resident(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))
Path("/proc/self/clear_refs").write_text("5")  # forget the peak, which a new process inherits
before = resident("VmRSS")
began = time.process_time()
scanned = scan(path, known)
taken = time.process_time() - began
peak = resident("VmHWM")
children = resource.getrusage(resource.RUSAGE_CHILDREN)
taken += children.ru_utime + children.ru_stime
rules = sorted({finding.rule for _, finding in scanned.findings()})
print(json.dumps([(peak - before) / 1024, taken, rules]))
"""
HEAD = b"\x80\x04"


def short(word: bytes) -> bytes:
    return b"\x8c" + bytes([len(word)]) + word


def numbered(count: int, opcode: bytes) -> bytes:
    return b"".join(opcode + struct.pack("<I", index) for index in range(count))


def zipped(data: bytes, entries: int = 1) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", b"3\n")
        for index in range(entries - 2):
            archive.writestr(f"archive/data/{index}", b"")
    return out.getvalue()


def doubling(levels: int) -> bytes:
    return (
        HEAD
        + b"]\x94"
        + b"".join(b"h" + bytes([n]) * 1 + b"h" + bytes([n]) + b"\x86\x94" for n in range(levels))
        + b"."
    )


def lists_of_words(rows: int) -> Iterator[bytes]:
    yield HEAD + b"]("
    for row in range(rows):
        yield b"](" + b"".join(short(b"w%06d%02d" % (row, column)) for column in range(40)) + b"e"
    yield b"e."


BOMBS: dict[str, Callable[[], bytes]] = {
    "memo of None": lambda: HEAD + b"N" + b"\x94" * 30_000_000 + b"0N.",
    "memo of lists": lambda: HEAD + b"]\x94" * 12_000_000 + b".",
    "numbered memo": lambda: b"\x80\x02N" + numbered(9_000_000, b"r") + b".",
    "open marks": lambda: HEAD + b"(" * 20_000_000 + b".",
    "standing lists": lambda: HEAD + b"]" * 20_000_000 + b".",
    "standing dicts in frames": lambda: HEAD + b"](" * 9_000 + b"}" * 20_000_000 + b".",
    "standing words": lambda: HEAD + b"".join(short(b"%07d" % n) for n in range(3_000_000)) + b".",
    "standing tuples": lambda: HEAD + b"K\x01K\x02K\x03\x87" * 3_000_000 + b".",
    "thrown away": lambda: HEAD + b"]0" * 15_000_000 + b"N.",
    "long integers": lambda: b"\x80\x02]" + (b"\x8b\x00\x10\x00\x00" + b"\x7f" * 4096 + b"a") * 8_000 + b".",
    "integer of gigabytes": lambda: b"\x80\x02\x8b\xff\xff\xff\x7f" + b"\x01" * 1000 + b".",
    "decimal digits": lambda: b"I" + b"9" * 30_000_000 + b"\n.",
    "deep nesting": lambda: HEAD + b"]" * 900_000 + b"a" * 899_999 + b".",
    "nested tuples": lambda: HEAD + b")" + b"\x85" * 20_000_000 + b".",
    "doubling by memo": lambda: doubling(200),
    "doubling by DUP": lambda: HEAD + b"]" + b"2\x86" * 10_000_000 + b".",
    "one text line": lambda: b"V" + b"a" * 60_000_000 + b"\n.",
    "lines of text": lambda: b"(" + b"Vaaaaaaaaaaaaaaaa\n" * 3_000_000 + b"l.",
    "findings": lambda: HEAD + b"cos\nsystem\n)R0" * 2_000_000 + b"N.",
    "60 MB of None in a zip": lambda: zipped(HEAD + b"](" + b"N" * 60_000_000 + b"e."),
    "60 MB of small lists in a zip": lambda: zipped(HEAD + b"](" + b"](K\x01K\x02e" * 7_500_000 + b"e."),
    "70,000 entries in a zip": lambda: zipped(HEAD + b"N.", 70_000),
}
HONEST: dict[str, Callable[[], bytes]] = {
    "20 MB of words in lists": lambda: b"".join(lists_of_words(45_000)),
    "records": lambda: pickle.dumps(
        [
            {"id": n, "name": f"token_{n}", "at": (n % 7, n % 11), "tags": ["a", str(n), None]}
            for n in range(300_000)
        ],
        4,
    ),
    "vocabulary": lambda: pickle.dumps({f"word{n}": n for n in range(1_000_000)}, 4),
    "nested mappings": lambda: pickle.dumps(
        {f"a{a}": {f"b{b}": {f"c{c}": [a, b, c] for c in range(20)} for b in range(100)} for a in range(100)},
        2,
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="?", default="", help="cases whose name holds this text")
    only = parser.parse_args().only
    good = True
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "case.pkl"
        for name, case in {**BOMBS, **HONEST}.items():
            if only not in name:
                continue
            path.write_bytes(case())
            ran = subprocess.run(
                [sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, check=True
            )
            megabytes, seconds, rules = json.loads(ran.stdout)
            fits = megabytes <= MAX_MEGABYTES
            fits &= not rules if name in HONEST else bool(rules) and seconds < MAX_SECONDS
            good &= fits
            size = path.stat().st_size / 1e6
            print(
                f"{'ok ' if fits else 'BAD'} {name:<32} {size:6.1f} MB {megabytes:6.1f} MB held {seconds:5.2f} s",
                rules,
            )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
