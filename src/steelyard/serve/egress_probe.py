"""A process that closes itself exactly as a serving one does and then tries every way out.

python -m steelyard.serve.egress_probe    one JSON line in: {"goal", "layers": all | kernel | none}; one out:
                                          {"closed": {kernel, python} | null, "attempts": [...]}
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from steelyard.errors import Unavailable
from steelyard.serve import egress
from steelyard.serve.egress_canary import Goal
from steelyard.serve.egress_ways import Attempt, LeftOpen, try_all

LIMIT_S = 180.0

Layers = Literal["all", "kernel", "none"]


def probe(goal: Goal, layers: Layers = "all") -> tuple[egress.Closed | None, list[Attempt]]:
    """Have a process behind these layers try. Raises Unavailable when it does not report."""
    order = json.dumps({"goal": asdict(goal), "layers": layers})
    try:
        done = subprocess.run(
            [sys.executable, "-m", "steelyard.serve.egress_probe"],
            input=order,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
        return _report(json.loads(done.stdout))
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        raise Unavailable(f"the probe did not report ({type(error).__name__})") from error


def _report(report: Mapping[str, Any]) -> tuple[egress.Closed | None, list[Attempt]]:
    closed = egress.Closed(**report["closed"]) if report["closed"] else None
    return closed, read_attempts(report["attempts"])


def read_attempts(attempts: Sequence[Mapping[str, str]]) -> list[Attempt]:
    return [Attempt(one["way"], one["state"], one["by"], one["detail"]) for one in attempts]  # type: ignore[arg-type]  # of our own making


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    order = json.loads(sys.stdin.readline())
    left_open = LeftOpen.make()
    closed = None
    if order["layers"] != "none":
        egress.prepare()
        closed = egress.close_doors([sys.executable], is_hooked=order["layers"] == "all")
    attempts = try_all(Goal(**order["goal"]), left_open)
    report = {"closed": closed and closed.to_json(), "attempts": [one.to_json() for one in attempts]}
    os.write(1, json.dumps(report).encode() + b"\n")


if __name__ == "__main__":
    main()
