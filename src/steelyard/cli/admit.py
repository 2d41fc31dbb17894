"""`steelyard admit`: scan a model, sign what was found, decide by policy, enter the decision in the ledger."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from steelyard.cli.talk import Talk
from steelyard.digest import JSON

if TYPE_CHECKING:
    from steelyard.cli.installation import Installation
    from steelyard.model import Model

HELP = "Scan a model, sign the evidence, decide by policy. Exit 0 if it may answer, 1 if it is refused."


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What one admission says, to people and to programs."""

    text: str
    value: JSON
    is_allowed: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "path",
        metavar="PATH",
        nargs="?",
        help="a model directory or file; or a known model, to examine it again",
    )
    parser.add_argument(
        "--again",
        metavar="MODEL",
        help="examine a known model again if it was scanned by other rules than today's; all: every such model",
    )
    parser.add_argument("--name", help="what to call it (default: the folder's name)")
    parser.add_argument("--policy", type=Path, metavar="FILE", help="default: the policy in force")
    parser.add_argument(
        "--no-copy",
        action="store_true",
        help="leave the weights where they are; else an allowed model is copied into the store, and served from there",
    )


def run(args: argparse.Namespace, talk: Talk) -> int:
    from steelyard.cli.installation import Installation
    from steelyard.errors import WrongUsage

    if (args.path is None) == (args.again is None):
        raise WrongUsage("give a PATH, or --again MODEL, or --again all")
    home = Installation.open(args.home)
    home.signer()  # a missing key is said before the weights are read
    if args.path is not None:
        outcome = _admit(home, args, talk, *_subject(home, args))
        talk.data(outcome.text, outcome.value)
        return 0 if outcome.is_allowed else 1
    return _again(home, args, talk)


def _again(home: "Installation", args: argparse.Namespace, talk: Talk) -> int:
    """Examine what was scanned by other rules; its bytes must be those that were admitted."""
    from steelyard.cli.admission import current_ruleset

    known = home.store.models() if args.again == "all" else [home.store.model(args.again)]
    today = str(current_ruleset(home.config.plugins))
    old = [model for model in known if _ruleset(home, model) != today]
    if not old:
        talk.data("every model was scanned by today's rules", [])
        return 0
    outcomes = [_admit(home, args, talk, Path(home.store.source(m.digest)), m.name, m) for m in old]
    talk.data("\n".join(outcome.text for outcome in outcomes), [outcome.value for outcome in outcomes])
    return 0 if all(outcome.is_allowed for outcome in outcomes) else 1


def _admit(
    home: "Installation",
    args: argparse.Namespace,
    talk: Talk,
    path: Path,
    name: str | None,
    known: "Model | None" = None,
) -> _Outcome:
    """Scan, sign, decide and copy. known: what must lie at `path`, or Untrusted."""
    from steelyard.cli.admission import examine_path, scan_text, sign_and_decide
    from steelyard.cli.decisions import decision_text
    from steelyard.cli.installation import clock
    from steelyard.cli.transport import keep_copy
    from steelyard.errors import Untrusted

    policy = home.config.policy(args.policy)
    examination = examine_path(path, home.config.plugins, talk, name=name)
    if known is not None and examination.model.digest != known.digest:
        raise Untrusted(f"{path} holds {examination.model.digest}, not {known.name} as it was admitted")
    decision = sign_and_decide(home, examination, path, policy, clock())
    if decision.allowed and not args.no_copy:
        keep_copy(home, examination.model, path, talk)
    found = examination.scan
    findings = [found.finding_json(place, finding) for place, finding in found.findings()]
    return _Outcome(
        scan_text(found, talk) + "\n" + decision_text(decision, talk, examination.model.name),
        {"verdict": found.verdict.value, "findings": findings, "decision": decision.to_json()},
        decision.allowed,
    )


def _ruleset(home: "Installation", model: "Model") -> str | None:
    """What the newest scan of the model says it was scanned by."""
    scans = [
        item.statement.predicate
        for item in home.store.list_evidence(subject=model.digest.hex)
        if item.statement.predicate_type.endswith(":scan:v1")
    ]
    return str(scans[-1].get("ruleset")) if scans else None


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
