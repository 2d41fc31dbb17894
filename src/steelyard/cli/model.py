"""`steelyard model`: the models this installation knows, their GGUF conversions, and the aliases they answer under."""

import argparse

from steelyard.cli.talk import Talk
from steelyard.digest import JSON

HELP = "Known models: ls, show, convert (to GGUF), alias."
QUANTISATIONS = ("q8_0", "q4_k_m")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("ls", help="every model, its size, and whether policy allows it now")
    show = verbs.add_parser("show", help="files, evidence and decision of one model")
    show.add_argument("model", help="name or digest prefix")
    convert = verbs.add_parser(
        "convert", help="write a GGUF from admitted safetensors: a new digest, with lineage"
    )
    convert.add_argument("model", help="name or digest prefix")
    convert.add_argument("--type", choices=("auto", "f32", "f16", "bf16"), default="auto", dest="outtype")
    convert.add_argument("--quantise", choices=QUANTISATIONS, help="then quantise: one more digest")
    convert.add_argument("--name", help="name of the new model (default: NAME-gguf)")
    alias = verbs.add_parser(
        "alias", help="pin an alias to a model, entered in the ledger; none given: list them"
    )
    alias.add_argument("alias", nargs="?", help="the name applications ask for, such as gpt-4o")
    alias.add_argument("model", nargs="?", help="name or digest prefix")


def run(args: argparse.Namespace, talk: Talk) -> int:
    verb = {"ls": _ls, "show": _show, "convert": _convert, "alias": _alias}[args.verb]
    return verb(args, talk)


def _ls(args: argparse.Namespace, talk: Talk) -> int:
    from steelyard.cli.installation import Installation, clock

    home = Installation.open(args.home)
    policy, now = home.config.policy(), clock()
    rows: list[dict[str, JSON]] = []
    for model in home.store.models():
        decision = home.decide(model.digest, policy, now)
        rows.append(
            {
                "name": model.name,
                "digest": str(model.digest),
                "bytes": model.size,
                "files": len(model.files),
                "allowed": decision.allowed,
            }
        )
    lines = [
        f"{talk.paint('allowed', 'good') if row['allowed'] else talk.paint('refused', 'bad')}  "
        f"{str(row['digest']).split(':')[1]:.12}  {row['bytes']:>14,}  {row['name']}"
        for row in rows
    ]
    talk.data("\n".join(lines) or "no models yet; run: steelyard admit DIR", rows)
    return 0


def _show(args: argparse.Namespace, talk: Talk) -> int:
    from steelyard.cli.decisions import decision_text
    from steelyard.cli.installation import Installation, clock

    home = Installation.open(args.home)
    model = home.store.model(args.model)
    decision = home.decide(model.digest, home.config.policy(), clock())
    evidence = home.store.evidence_for(model.digest.hex)
    lines = [f"{model.name}  {model.digest}", f"{len(model.files)} files, {model.size:,} bytes"]
    lines += [f"  {file.sha256[:12]}  {file.size:>14,}  {file.path}" for file in model.files]
    lines += [f"{len(evidence)} statements; list them with: steelyard evidence show {model.digest.hex[:12]}"]
    lines += [decision_text(decision, talk, model.name)]
    ids = [str(item.id) for item in evidence]
    talk.data("\n".join(lines), {**model.to_json(), "evidence": ids, "decision": decision.to_json()})
    return 0


def _alias(args: argparse.Namespace, talk: Talk) -> int:
    from steelyard.cli.installation import Installation, clock
    from steelyard.errors import WrongUsage

    home = Installation.open(args.home)
    if args.alias and not args.model:
        raise WrongUsage("an alias needs a model: steelyard model alias ALIAS MODEL")
    if args.alias:
        model = home.store.model(args.model)
        home.store.set_alias(args.alias, model.digest)
        home.record("alias", clock(), alias=args.alias, model=str(model.digest))
    aliases = {name: str(digest) for name, digest in sorted(home.store.aliases().items())}
    talk.data(
        "\n".join(f"{name:<24} {digest}" for name, digest in aliases.items()) or "no aliases yet", aliases
    )
    return 0


def _convert(args: argparse.Namespace, talk: Talk) -> int:
    from steelyard.cli.conversion import convert_model
    from steelyard.cli.decisions import show_decision
    from steelyard.cli.installation import Installation

    home = Installation.open(args.home)
    model, decision = convert_model(
        home,
        home.store.model(args.model),
        talk,
        outtype=args.outtype,
        quantisation=args.quantise,
        name=args.name,
    )
    show_decision(decision, talk, model.name)
    return 0 if decision.allowed else 1
