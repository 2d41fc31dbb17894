"""`steelyard key`: the operator's signing key and the API keys that applications present."""

import argparse
import hashlib
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from steelyard.cli.talk import Talk
from steelyard.digest import JSON

if TYPE_CHECKING:
    from steelyard.cli.installation import Installation

HELP = "Signing keys (Ed25519, P-256) and the API keys that applications present."
API_KEY_PREFIX = "sk-steelyard-"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True)
    new = verbs.add_parser("new", help="make the operator's signing key, or an API key with --api NAME")
    new.add_argument("--algorithm", choices=("ed25519", "p256"), default="ed25519")
    new.add_argument("--out", type=Path, metavar="FILE", help="where to write the signing key")
    new.add_argument("--api", metavar="NAME", help="make an API key of this name instead; it is printed once")
    verbs.add_parser("show", help="public keys, key ids and the names of API keys")


def run(args: argparse.Namespace, talk: Talk) -> int:
    from steelyard.cli.installation import Installation

    home = Installation.open(args.home)
    if args.verb == "show":
        return _show(home, talk)
    return _new_api_key(home, args.api, talk) if args.api else _new_signing_key(home, args, talk)


def _new_signing_key(home: "Installation", args: argparse.Namespace, talk: Talk) -> int:
    from steelyard.cli.installation import passphrase
    from steelyard.keys import new_key

    path = args.out or home.config.operator_key
    signer = new_key(path, args.algorithm, passphrase())
    talk.say(
        f"Private key: {path} (mode 0600{', encrypted' if passphrase() else ', set STEELYARD_PASSPHRASE to encrypt'})"
    )
    talk.data(
        f"{signer.public.keyid}  {path.with_suffix('.pub')}",
        {"keyid": signer.public.keyid, "algorithm": signer.public.algorithm, "private": str(path)},
    )
    return 0


def _new_api_key(home: "Installation", name: str, talk: Talk) -> int:
    from steelyard.cli.installation import clock
    from steelyard.evidence import timestamp

    secret = API_KEY_PREFIX + secrets.token_urlsafe(24)
    home.store.add_api_key(name, hashlib.sha256(secret.encode()).hexdigest(), timestamp(clock()))
    talk.say(f"API key {name!r}. Only its SHA-256 is kept: it cannot be shown again.")
    talk.data(secret, {"name": name, "key": secret})
    return 0


def _show(home: "Installation", talk: Talk) -> int:
    operator = home.config.operator_key.with_suffix(".pub")
    rows: list[dict[str, JSON]] = [
        {
            "use": "operator" if index == 0 and operator.exists() else "trusted",
            "keyid": key.keyid,
            "algorithm": key.algorithm,
        }
        for index, key in enumerate(home.config.trusted_keys())
    ]
    vkey = home.config.ledger_key.with_suffix(".vkey")
    if vkey.exists():
        rows.append({"use": "ledger", "keyid": vkey.read_text().strip(), "algorithm": "ed25519"})
    rows += [{"use": "api", "keyid": key.name, "algorithm": "sha256"} for key in home.store.api_keys()]
    lines = [f"{row['use']:<9} {row['algorithm']:<8} {row['keyid']}" for row in rows]
    talk.data("\n".join(lines) or "no keys yet; run: steelyard key new", rows)
    return 0
