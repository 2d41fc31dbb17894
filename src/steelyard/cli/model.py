"""`steelyard model`: the models this installation knows, their GGUF conversions, and the aliases they answer under."""

import argparse
from pathlib import Path

from steelyard.cli import transport
from steelyard.cli.talk import Talk
from steelyard.digest import JSON

HELP = "Known models: ls, show, convert, alias, export, import, drop, gc."
QUANTISATIONS = ("q8_0", "q4_k_m")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("ls", help="every model, its size, and whether policy allows it now")
    show = verbs.add_parser("show", help="files, evidence and decision of one model")
    show.add_argument("model", help="name or digest prefix")
    convert = verbs.add_parser(
        "convert",
        help="admitted safetensors to GGUF, or torch and Grok-1 pickles to safetensors: a new digest, with lineage",
    )
    convert.add_argument("model", help="name or digest prefix; or a folder or file with pickled weights")
    convert.add_argument("--to", choices=("safetensors", "gguf"), help="default: by what MODEL is")
    convert.add_argument(
        "--mode",
        choices=("exact", "bf16"),
        default="exact",
        help="Grok-1: int8 and scales as they are (default), or their products as bfloat16",
    )
    convert.add_argument(
        "--shard-size", default="5GB", metavar="SIZE", help="most bytes a shard (default: 5GB)"
    )
    convert.add_argument("--key", help="torch: which part of the file is the model, such as state_dict")
    convert.add_argument(
        "--shared",
        choices=("alias", "copy"),
        default="alias",
        help="torch: a tensor with several names is written once, or once for each",
    )
    convert.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: in the store)")
    convert.add_argument("--plan", action="store_true", help="print what would be written, and stop")
    convert.add_argument(
        "--verify",
        action="store_true",
        help="MODEL is an exact conversion: rebuild the originals' digests from it",
    )
    convert.add_argument("--type", choices=("auto", "f32", "f16", "bf16"), default="auto", dest="outtype")
    convert.add_argument("--quantise", choices=QUANTISATIONS, help="then quantise: one more digest")
    convert.add_argument("--name", help="name of the new model (default: NAME-gguf)")
    alias = verbs.add_parser(
        "alias", help="pin an alias to a model, entered in the ledger; none given: list them"
    )
    alias.add_argument("alias", nargs="?", help="the name applications ask for, such as gpt-4o")
    alias.add_argument("model", nargs="?", help="name or digest prefix")
    transport.add_verbs(verbs.add_parser)


def run(args: argparse.Namespace, talk: Talk) -> int:
    verbs = {"ls": _ls, "show": _show, "convert": _convert, "alias": _alias, **transport.VERBS}
    return verbs[args.verb](args, talk)


def _ls(args: argparse.Namespace, talk: Talk) -> int:
    from steelyard.cli.admission import concerns_of
    from steelyard.cli.installation import Installation, clock

    home = Installation.open(args.home)
    policy, now = home.config.policy(), clock()
    rows: list[dict[str, JSON]] = []
    lines = []
    for model in home.store.models():
        allowed = home.decide(model.digest, policy, now).allowed
        concerns = concerns_of(home, model)
        rows.append(
            {
                "name": model.name,
                "digest": str(model.digest),
                "bytes": model.size,
                "files": len(model.files),
                "allowed": allowed,
                "concerns": [*concerns],
            }
        )
        style = "bad" if not allowed else "warn" if concerns else "good"
        state = talk.paint("allowed" if allowed else "refused", style)
        lines.append(f"{state}  {model.digest.hex:.12}  {model.size:>14,}  {model.name}")
        lines += [f"    {talk.paint(concern, 'warn')}" for concern in concerns]
    talk.data("\n".join(lines) or "no models yet; run: steelyard admit DIR", rows)
    return 0


def _show(args: argparse.Namespace, talk: Talk) -> int:
    from steelyard.cli.admission import concerns_of
    from steelyard.cli.decisions import decision_text
    from steelyard.cli.installation import Installation, clock

    home = Installation.open(args.home)
    model = home.store.model(args.model)
    decision = home.decide(model.digest, home.config.policy(), clock())
    evidence = home.store.evidence_for(model.digest.hex)
    lines = [f"{model.name}  {model.digest}", f"{len(model.files)} files, {model.size:,} bytes"]
    lines += [f"  {file.sha256[:12]}  {file.size:>14,}  {file.path}" for file in model.files]
    lines += [f"{len(evidence)} statements; list them with: steelyard evidence show {model.digest.hex[:12]}"]
    concerns = concerns_of(home, model)
    lines += [talk.paint(concern, "warn") for concern in concerns]
    lines += [decision_text(decision, talk, model.name)]
    ids = [str(item.id) for item in evidence]
    talk.data(
        "\n".join(lines),
        {**model.to_json(), "evidence": ids, "concerns": [*concerns], "decision": decision.to_json()},
    )
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
    from steelyard.cli.conversion import convert_model, is_checkpoint_path, verify_conversion
    from steelyard.cli.decisions import show_decision
    from steelyard.cli.installation import Installation
    from steelyard.errors import WrongUsage

    place = Path(args.model)
    if args.verify:
        verify_conversion(place if place.exists() else _kept(args), talk)
        return 0
    if args.to == "safetensors" or (place.exists() and is_checkpoint_path(place)):
        return _convert_checkpoint(args, talk, place)
    if args.plan:
        raise WrongUsage("--plan is for pickled weights; a GGUF is planned while it is written")
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


def _kept(args: argparse.Namespace) -> Path:
    """Where the weights of a known model lie."""
    from steelyard.cli.installation import Installation

    home = Installation.open(args.home)
    return Path(home.store.source(home.store.model(args.model).digest))


def _convert_checkpoint(args: argparse.Namespace, talk: Talk, place: Path) -> int:
    from steelyard.cli.conversion import bytes_of, convert_checkpoint, job_of
    from steelyard.cli.decisions import show_decision
    from steelyard.cli.installation import Installation
    from steelyard.errors import WrongUsage

    if args.to == "gguf" or args.quantise:
        raise WrongUsage(f"{place} is pickled weights; convert it to safetensors, then that to GGUF")
    place = place if place.exists() else _kept(args)
    job = job_of(
        place, mode=args.mode, shard_bytes=bytes_of(args.shard_size), key=args.key, shared=args.shared
    )
    if args.plan:
        target = args.out or Path()
        talk.data(job.text(target), job.to_json(target))
        return 0
    home = Installation.open(args.home)
    model, decision = convert_checkpoint(home, job, talk, out=args.out, name=args.name)
    show_decision(decision, talk, model.name)
    return 0 if decision.allowed else 1
