"""`steelyard egress-test`: try every way out of a process closed as the gateway is, and show how each is refused."""

import argparse
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from steelyard.cli.talk import Talk
from steelyard.digest import JSON

if TYPE_CHECKING:
    from steelyard.serve.egress import Closed
    from steelyard.serve.egress_canary import Goal
    from steelyard.serve.egress_ways import Attempt

HELP = "Try every way out of a process closed as the gateway is, show how each is refused, enter it in the ledger."
_STYLES = {"refused": "good", "absent": "dim", "open": "bad"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--running",
        action="store_true",
        help="have the gateway that runs in this home try, not a process of its own",
    )
    which.add_argument(
        "--control",
        action="store_true",
        help="try without any denial, to see that the ways are ways; not entered in the ledger",
    )


def run(args: argparse.Namespace, talk: Talk) -> int:
    from steelyard.cli.installation import Installation, clock
    from steelyard.serve.egress_canary import Canary
    from steelyard.serve.egress_ways import is_closed

    home = Installation.open(args.home)
    with tempfile.TemporaryDirectory(prefix="steelyard-egress-") as folder:
        canary = Canary(Path(folder))
        try:
            runs = _runs(args, home.config.home / "run", canary.goal, talk)
        finally:
            canary.close()
    is_good = all(is_closed(attempts) for _, _, attempts in runs)
    if not args.control:
        home.record("egress-test", clock(), closed=is_good, runs=[_entry(*one) for one in runs])
    _show(runs, is_good, talk)
    return 0 if is_good else 1


Run = tuple[str, "Closed | None", "list[Attempt]"]


def _runs(args: argparse.Namespace, folder: Path, goal: "Goal", talk: Talk) -> list[Run]:
    from steelyard.errors import Unavailable
    from steelyard.serve.egress_admin import ask
    from steelyard.serve.egress_probe import probe

    if args.running:
        paths = sorted(folder.glob("admin-*.sock"))
        if not paths:
            raise Unavailable(f"no gateway runs in {folder.parent}; start one with: steelyard serve")
        return [(path.stem.replace("admin-", "worker "), *ask(path, goal)) for path in paths]
    if args.control:
        return [("nothing denied", *probe(goal, "none"))]
    talk.say("trying every way out of a process closed as the gateway is")
    whole = probe(goal, "all")
    if whole[0] is None or not whole[0].kernel:
        talk.say("this platform has no seccomp: only Python's layer holds, which native code can pass")
        return [("every layer", *whole)]
    talk.say("and once more with the kernel's layer alone")
    return [("every layer", *whole), ("kernel alone", *probe(goal, "kernel"))]


def _entry(name: str, closed: "Closed | None", attempts: "Iterable[Attempt]") -> JSON:
    by_state: dict[str, list[JSON]] = {"refused": [], "absent": [], "open": []}
    for attempt in attempts:
        by_state[attempt.state].append(attempt.way)
    layers: JSON = closed.to_json() if closed else None
    return {"run": name, "layers": layers, **by_state}


def _show(runs: list[Run], is_good: bool, talk: Talk) -> None:
    lines = []
    for name, closed, attempts in runs:
        held = [layer for layer, holds in (closed.to_json() if closed else {}).items() if holds]
        lines.append(f"{name} ({', '.join(held) or 'no layer'} holds)")
        for one in attempts:
            state = talk.paint(f"{one.state:<8}", _STYLES[one.state])
            lines.append(f"  {state} {one.by:<7} {one.way:<36} {one.detail}")
    lines.append("closed: no way out" if is_good else "NOT closed: a way is open")
    value: JSON = {
        "closed": is_good,
        "runs": [
            {
                "run": name,
                "layers": closed.to_json() if closed else None,
                "attempts": [dict(one.to_json()) for one in attempts],
            }
            for name, closed, attempts in runs
        ],
    }
    talk.data("\n".join(lines), value)
