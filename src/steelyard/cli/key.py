"""`steelyard key`: the operator's signing key and the API keys that applications present."""

import argparse
import hashlib
import secrets
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from steelyard.cli.talk import Talk
from steelyard.digest import JSON

if TYPE_CHECKING:
    from steelyard.access import ApiKey, Limits
    from steelyard.cli.installation import Installation

HELP = "Signing keys (Ed25519, P-256) and the API keys that applications present."
API_KEY_PREFIX = "sk-steelyard-"
GRACE = "24h"

_UNITS = {"m": 60, "h": 3600, "d": 86_400}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True)
    new = verbs.add_parser("new", help="make the operator's signing key, or an API key with --api NAME")
    new.add_argument("--algorithm", choices=("ed25519", "p256"), default="ed25519")
    new.add_argument("--out", type=Path, metavar="FILE", help="where to write the signing key")
    new.add_argument("--api", metavar="NAME", help="make an API key of this name instead; it is printed once")
    new.add_argument("--team", help="of the API key; make it with: steelyard team new")
    new.add_argument("--role", default="app", help="app (default), auditor, operator or admin")
    add_limits(new)
    new.add_argument("--expires", metavar="TIME", help="for example 90d, 12h, or 2027-01-31")
    verbs.add_parser("ls", help="the API keys")
    show = verbs.add_parser("show", help="public keys, key ids and API keys; of one API key all there is")
    show.add_argument("name", nargs="?", metavar="NAME", help="an API key")
    revoke = verbs.add_parser("revoke", help="let an API key in no more, from now on; its name stays taken")
    revoke.add_argument("name", metavar="NAME")
    drop = verbs.add_parser("drop", help="remove an API key; its name is free again")
    drop.add_argument("name", metavar="NAME")
    rotate = verbs.add_parser("rotate", help="give an API key another secret; it is printed once")
    rotate.add_argument("name", metavar="NAME")
    rotate.add_argument(
        "--grace",
        default=GRACE,
        metavar="TIME",
        help=f"how long the old one still counts (default: {GRACE}; 0m)",
    )


def add_limits(parser: argparse.ArgumentParser) -> None:
    """The options that keys and teams share."""
    parser.add_argument(
        "--models",
        metavar="PATTERNS",
        help="aliases it may use, with * and ?, separated by commas (default: all)",
    )
    for name, text in (
        ("rpm", "requests in any minute"),
        ("tpm", "tokens in any minute"),
        ("rpd", "requests a day (UTC)"),
        ("tpd", "tokens a day (UTC)"),
    ):
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"most {text}")
    parser.add_argument(
        "--budget", metavar="AMOUNT/PERIOD", help="most money, for example 50/month or 2.50/day"
    )


def limits_of(args: argparse.Namespace) -> "Limits":
    from steelyard.access import Limits

    names = ("rpm", "tpm", "rpd", "tpd", "budget")
    return Limits.parse(
        {name: getattr(args, name) for name in names if getattr(args, name) is not None}, "limits"
    )


def models_of(args: argparse.Namespace) -> tuple[str, ...]:
    from steelyard.access import check_patterns

    return check_patterns([word.strip() for word in (args.models or "").split(",") if word.strip()])


def run(args: argparse.Namespace, talk: Talk) -> int:
    from steelyard.cli.installation import Installation

    home = Installation.open(args.home)
    match args.verb:
        case "new":
            return _new_api_key(home, args, talk) if args.api else _new_signing_key(home, args, talk)
        case "ls":
            return _list(home, talk)
        case "revoke":
            return _revoke(home, args.name, talk)
        case "drop":
            home.store.remove_api_key(args.name)
            talk.data(f"{args.name} is removed", {"name": args.name, "removed": True})
            return 0
        case "rotate":
            return _rotate(home, args, talk)
        case _:
            return _show_one(home, args.name, talk) if args.name else _show(home, talk)


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


def _new_api_key(home: "Installation", args: argparse.Namespace, talk: Talk) -> int:
    from steelyard.access import ApiKey
    from steelyard.cli.installation import clock
    from steelyard.evidence import timestamp

    now = clock()
    secret, prefix = new_secret()
    key = ApiKey(
        args.api,
        _hash_of(secret),
        timestamp(now),
        prefix,
        args.role,
        args.team,
        models_of(args),
        limits_of(args),
        None if args.expires is None else timestamp(_moment(args.expires, now)),
    )
    home.store.add_api_key(key)
    talk.say(f"API key {args.api!r}. Only its SHA-256 and {prefix!r} are kept: it cannot be shown again.")
    talk.data(secret, {**_public(key, now), "key": secret})
    return 0


def new_secret() -> tuple[str, str]:
    """A fresh secret and the part of it by which people know it. 256 random bits follow that part."""
    prefix = f"{API_KEY_PREFIX}{secrets.token_hex(4)}"
    return f"{prefix}-{secrets.token_urlsafe(32)}", prefix


def _rotate(home: "Installation", args: argparse.Namespace, talk: Talk) -> int:
    from steelyard.access import Replaced
    from steelyard.cli.installation import clock
    from steelyard.errors import WrongUsage
    from steelyard.evidence import timestamp

    now = clock()
    old = _found(home, args.name)
    if old.state(now) != "active":
        raise WrongUsage(f"the API key {old.name!r} is {old.state(now)}; make another one")
    until = timestamp(_moment(args.grace, now))
    secret, prefix = new_secret()
    replaced = Replaced(old.sha256, until)
    key = replace(old, sha256=_hash_of(secret), prefix=prefix, replaced=replaced)
    home.store.set_api_key(key)
    talk.say(
        f"API key {args.name!r} has another secret. The old one, {old.prefix or 'unnamed'}, counts until {until}."
    )
    talk.data(secret, {**_public(key, now), "key": secret})
    return 0


def _revoke(home: "Installation", name: str, talk: Talk) -> int:
    from steelyard.cli.installation import clock
    from steelyard.evidence import timestamp

    now = clock()
    key = _found(home, name)
    if key.revoked is None:
        key = replace(key, revoked=timestamp(now), replaced=None)
        home.store.set_api_key(key)
    talk.data(f"{name} is revoked since {key.revoked}", _public(key, now))
    return 0


def _list(home: "Installation", talk: Talk) -> int:
    from steelyard.cli.installation import clock

    now = clock()
    keys = home.store.api_keys()
    lines = [
        f"{key.name:<20} {key.prefix or '-':<22} {key.role:<9} {key.team or '-':<14} {key.state(now)}"
        for key in keys
    ]
    talk.data(
        "\n".join(lines) or "no API keys yet; run: steelyard key new --api NAME",
        [_public(key, now) for key in keys],
    )
    return 0


def _show_one(home: "Installation", name: str, talk: Talk) -> int:
    from steelyard.cli.installation import clock

    now = clock()
    shown = _public(_found(home, name), now) | {"used": used(home, f"key:{name}", now)}
    talk.data("\n".join(lines_of(shown, home.config.access.currency)), shown)
    return 0


def used(home: "Installation", label: str, now: datetime) -> dict[str, JSON] | None:
    """What an account used, as the gateway's counters say; absent when it was never counted."""
    from steelyard.access import NANO
    from steelyard.serve.accounts_table import usage_in

    found = usage_in(home.config.accounts, [label], int(now.timestamp())).get(label)
    if found is None:
        return None
    names = ("requests_minute", "tokens_minute", "requests_day", "tokens_day", "money_day", "money_month")
    return {
        name: value / NANO if name.startswith("money") else value
        for name, value in zip(names, found, strict=True)
    }


def lines_of(shown: dict[str, JSON], currency: str) -> list[str]:
    """A table of names and values; absent and empty ones are left out."""
    lines = []
    for name, value in shown.items():
        if isinstance(value, dict):
            text = ", ".join(f"{n} {v}" for n, v in value.items())
        else:
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        if value not in (None, "", [], {}):
            lines.append(
                f"{name:<10} {text}{f' (money in {currency})' if name == 'used' and currency else ''}"
            )
    return lines


def _public(key: "ApiKey", now: datetime) -> dict[str, JSON]:
    """All of a key but what its secret hashes to."""
    shown = {name: value for name, value in key.to_json().items() if name not in ("sha256", "replaced")}
    if key.replaced is not None:
        shown["replaced_until"] = key.replaced.until
    return shown | {"state": key.state(now)}


def _found(home: "Installation", name: str) -> "ApiKey":
    from steelyard.errors import WrongUsage

    for key in home.store.api_keys():
        if key.name == name:
            return key
    raise WrongUsage(f"there is no API key {name!r}; see: steelyard key ls")


def _moment(text: str, now: datetime) -> datetime:
    """A time from now on ("90d", "12h", "30m"), or the beginning of a day. Raises WrongUsage."""
    from steelyard.errors import WrongUsage

    if text[-1:] in _UNITS and text[:-1].isascii() and text[:-1].isdigit() and len(text) <= 6:
        return now + timedelta(seconds=int(text[:-1]) * _UNITS[text[-1]])
    try:
        moment = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=now.tzinfo)
    except ValueError:
        raise WrongUsage(f"{text!r} is no time; one is 90d, 12h, 30m or 2027-01-31") from None
    if moment <= now:
        raise WrongUsage(f"{text} is past")
    return moment


def _hash_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


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
