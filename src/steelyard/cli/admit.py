"""`steelyard admit`: scan a model, sign what was found, decide by policy, enter the decision in the ledger."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from steelyard.cli.talk import Talk

if TYPE_CHECKING:
    from steelyard.cli.installation import Installation

HELP = "Scan a model, sign the evidence, decide by policy. Exit 0 if it may answer, 1 if it is refused."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path", metavar="PATH", help="a model directory or file; or a known model, to examine it again"
    )
    parser.add_argument("--name", help="what to call it (default: the folder's name)")
    parser.add_argument("--policy", type=Path, metavar="FILE", help="default: the policy in force")


def run(args: argparse.Namespace, talk: Talk) -> int:
    from steelyard.cli.admission import examine_path, scan_text, sign_and_decide
    from steelyard.cli.decisions import decision_text
    from steelyard.cli.installation import Installation, clock

    home = Installation.open(args.home)
    policy = home.config.policy(args.policy)
    home.signer()  # a missing key is said before the weights are read
    path, name = _subject(home, args)
    examination = examine_path(path, home.config.plugins, talk, name=name)
    decision = sign_and_decide(home, examination, path, policy, clock())
    found = examination.scan
    findings = [found.finding_json(place, finding) for place, finding in found.findings()]
    talk.data(
        scan_text(found, talk) + "\n" + decision_text(decision, talk, examination.model.name),
        {"verdict": found.verdict.value, "findings": findings, "decision": decision.to_json()},
    )
    return 0 if decision.allowed else 1


def _subject(home: "Installation", args: argparse.Namespace) -> tuple[Path, str | None]:
    """Where the weights lie, and what to call them: a path, or a model that is known already."""
    from steelyard.errors import WrongUsage

    path = Path(args.path)
    if path.exists() or "/" in args.path:
        return path, args.name
    try:
        known = home.store.model(args.path)
    except WrongUsage:
        raise WrongUsage(f"{args.path}: no such file or directory, and no model of that name") from None
    return Path(home.store.source(known.digest)), args.name or known.name
