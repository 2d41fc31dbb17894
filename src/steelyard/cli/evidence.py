"""`steelyard evidence`: show, verify, export and revoke signed statements."""

import argparse
import json
from pathlib import Path

from steelyard.cli.talk import Talk
from steelyard.digest import JSON

HELP = "Signed statements about models: show, verify, export, revoke."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True)
    show = verbs.add_parser("show", help="list what the store holds on a model, or print one statement")
    show.add_argument("what", help="model name, digest prefix, or evidence id")
    verify = verbs.add_parser("verify", help="check signatures of exported files; needs no store")
    verify.add_argument("files", type=Path, nargs="+", metavar="FILE")
    verify.add_argument(
        "--key", type=Path, action="append", metavar="PUB", help="a trusted public key (repeatable)"
    )
    export = verbs.add_parser(
        "export", help="write every statement on a model to a folder, one DSSE file each"
    )
    export.add_argument("model")
    export.add_argument("--out", type=Path, required=True, metavar="DIR")
    revoke = verbs.add_parser(
        "revoke", help="sign a revocation: the next request that needs the statement fails"
    )
    revoke.add_argument("id", help="evidence id (prefix)")
    revoke.add_argument("--reason", required=True)


def run(args: argparse.Namespace, talk: Talk) -> int:
    verb = {"show": _show, "verify": _verify, "export": _export, "revoke": _revoke}[args.verb]
    return verb(args, talk)


def _show(args: argparse.Namespace, talk: Talk) -> int:
    from steelyard.cli.installation import Installation
    from steelyard.errors import WrongUsage

    home = Installation.open(args.home)
    try:
        model = home.store.model(args.what)
    except WrongUsage:
        evidence = home.store.evidence(args.what)
        statement = json.loads(evidence.payload)
        talk.data(json.dumps(statement, indent=2, ensure_ascii=False), statement)
        return 0
    rows: list[dict[str, JSON]] = []
    for item in home.store.evidence_for(model.digest.hex):
        statement = item.statement
        rows.append(
            {
                "id": item.id.hex,
                "predicate_type": statement.predicate_type,
                "issued_at": str(statement.predicate.get("issued_at", "")),
                "subject": statement.subjects[0].name,
            }
        )
    rows.sort(key=lambda row: (str(row["issued_at"]), str(row["predicate_type"])))
    lines = [
        f"{row['id']:.12}  {row['issued_at']}  {row['predicate_type']:<30} {row['subject']}" for row in rows
    ]
    talk.data("\n".join(lines), rows)
    return 0


def _verify(args: argparse.Namespace, talk: Talk) -> int:
    from steelyard.config import load_config
    from steelyard.errors import Unavailable, Untrusted, WrongUsage
    from steelyard.evidence import MAX_ENVELOPE_BYTES, Evidence, verify
    from steelyard.keys import load_public

    keys = [load_public(path) for path in args.key] if args.key else load_config(args.home).trusted_keys()
    if not keys:
        raise WrongUsage("no trusted key: name one with --key FILE.pub")
    rows: list[dict[str, JSON]] = []
    for path in args.files:
        try:
            with path.open("rb") as stream:
                data = stream.read(MAX_ENVELOPE_BYTES + 1)
        except FileNotFoundError as error:
            raise WrongUsage(f"{path}: no such file") from error
        except OSError as error:
            raise Unavailable(f"{path}: {error.strerror}") from error
        evidence = Evidence.parse(data)
        row: dict[str, JSON] = {"file": str(path), "id": evidence.id.hex}
        row["predicate_type"] = evidence.statement.predicate_type
        try:
            row["signed_by"] = sorted(verify(evidence, keys))
        except Untrusted as error:
            row["error"] = error.message
        rows.append(row)
    lines = [
        f"{talk.paint('bad', 'bad')}  {row['file']}: {row['error']}"
        if "error" in row
        else f"{talk.paint('good', 'good')} {row['file']}: {row['predicate_type']}, signed by {row['signed_by'][0]:.16}"  # type: ignore[index]
        for row in rows
    ]
    talk.data("\n".join(lines), rows)
    return 1 if any("error" in row for row in rows) else 0


def _export(args: argparse.Namespace, talk: Talk) -> int:
    from steelyard.cli.installation import Installation

    home = Installation.open(args.home)
    model = home.store.model(args.model)
    args.out.mkdir(parents=True, exist_ok=True)
    paths = []
    for item in home.store.evidence_for(model.digest.hex):
        kind = item.statement.predicate_type.rsplit(":", 2)[-2]
        path = args.out / f"{kind}-{item.id.hex[:16]}.dsse.json"
        path.write_bytes(item.to_json())
        paths.append(str(path))
    talk.say("Verify them elsewhere with: steelyard evidence verify FILE ... --key operator.pub")
    talk.data("\n".join(sorted(paths)), sorted(paths))
    return 0


def _revoke(args: argparse.Namespace, talk: Talk) -> int:
    from steelyard.cli.installation import Installation, clock
    from steelyard.evidence import Subject, timestamp
    from steelyard.policy import REVOCATION

    home = Installation.open(args.home)
    evidence = home.store.evidence(args.id)
    now = clock()
    body = {"issued_at": timestamp(now), "revokes": str(evidence.id), "reason": args.reason}
    revocation = home.attest([Subject(evidence.statement.predicate_type, evidence.id.hex)], REVOCATION, body)
    home.record("revocation", now, revokes=str(evidence.id), evidence=str(revocation.id))
    talk.say(
        "Revoked. It takes effect with the next request and cannot be undone; examine again to replace it."
    )
    talk.data(f"revoked {evidence.id}", {"revoked": str(evidence.id), "evidence": str(revocation.id)})
    return 0
