"""`steelyard policy`: check that a policy can be used, explain what it says of a model."""

import argparse
from pathlib import Path

from steelyard.cli.talk import Talk

HELP = "Check a policy file; explain, rule by rule, what a policy says of a model."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True)
    check = verbs.add_parser("check", help="read a policy and list its rules")
    check.add_argument("file", type=Path, nargs="?", help="default: the policy in force")
    explain = verbs.add_parser("explain", help="decide about a model now; exit 1 when it may not answer")
    explain.add_argument("model", help="name or digest prefix of an admitted model")
    explain.add_argument("--policy", type=Path, metavar="FILE", help="default: the policy in force")
    explain.add_argument("--alias", help="decide for this alias")


def run(args: argparse.Namespace, talk: Talk) -> int:
    return _check(args, talk) if args.verb == "check" else _explain(args, talk)


def _check(args: argparse.Namespace, talk: Talk) -> int:
    from steelyard.config import load_config

    policy = load_config(args.home).policy(args.file)
    lines = [f"{policy.name}  {policy.digest}"]
    for rule in policy.rules:
        age = f", at most {rule.max_age} old" if rule.max_age else ""
        lines.append(f"  {rule.id:<18} {rule.why} ({rule.predicate}{age})")
    rules = [{"id": rule.id, "predicate": rule.predicate, "why": rule.why} for rule in policy.rules]
    talk.data("\n".join(lines), {"name": policy.name, "digest": str(policy.digest), "rules": rules})
    return 0


def _explain(args: argparse.Namespace, talk: Talk) -> int:
    from steelyard.cli.decisions import show_decision
    from steelyard.cli.installation import Installation, clock

    home = Installation.open(args.home)
    model = home.store.model(args.model)
    decision = home.decide(model.digest, home.config.policy(args.policy), clock(), alias=args.alias)
    show_decision(decision, talk, model.name)
    return 0 if decision.allowed else 1
