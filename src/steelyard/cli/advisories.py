"""`steelyard advisories`: known vulnerabilities of what serves a model and of what its own code asks for."""

import argparse
import os
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from steelyard.cli.talk import Talk
from steelyard.digest import JSON
from steelyard.errors import Unavailable, WrongUsage

if TYPE_CHECKING:
    from steelyard.admit.advisories import Database, Package
    from steelyard.cli.installation import Installation
    from steelyard.model import Model

HELP = "Known vulnerabilities, from an OSV dump you supply. Nothing is fetched, and no weights are read."
KEPT = "advisories.json"
_STYLE = {"clear": "good", "possible": "warn", "affected": "bad"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True)
    add = verbs.add_parser("add", help="keep a dump, and check every known model against it")
    add.add_argument("dump", type=Path, metavar="DUMP", help="OSV's all.zip for PyPI, or a folder of records")
    check = verbs.add_parser("check", help="check again, from the kept dump: signs what it finds")
    check.add_argument("model", nargs="?", help="name or digest prefix; default: every known model")
    for verb in (add, check):
        verb.add_argument(
            "--max-age-days", type=int, default=30, help="older dumps are refused (default: 30)"
        )
    verbs.add_parser("show", help="how many records are kept, and how old they are")


def run(args: argparse.Namespace, talk: Talk) -> int:
    from steelyard.cli.installation import Installation

    return {"add": _add, "check": _check, "show": _show}[args.verb](Installation.open(args.home), args, talk)


def _add(home: "Installation", args: argparse.Namespace, talk: Talk) -> int:
    from steelyard.admit.advisories import dumps, read_dump

    with talk.bar("reading records", 0) as bar:
        database = read_dump(args.dump, bar.advance)
    _refuse_stale(database, args.max_age_days)
    kept = home.config.home / KEPT
    partial = kept.with_suffix(".partial")
    partial.write_bytes(dumps(database))
    os.replace(partial, kept)
    return _examine(home, home.store.models(), database, talk)


def _check(home: "Installation", args: argparse.Namespace, talk: Talk) -> int:
    database = _kept(home)
    _refuse_stale(database, args.max_age_days)
    models = [home.store.model(args.model)] if args.model else home.store.models()
    return _examine(home, models, database, talk)


def _show(home: "Installation", args: argparse.Namespace, talk: Talk) -> int:  # noqa: ARG001
    from steelyard.cli.installation import clock
    from steelyard.evidence import timestamp

    database = _kept(home)
    age = (clock() - database.newest).days
    talk.data(
        f"{len(database.advisories)} advisories on PyPI packages, "
        f"newest {timestamp(database.newest)} ({age} days old)\nsha256:{database.sha256}",
        {
            "records": len(database.advisories),
            "newest": timestamp(database.newest),
            "age_days": age,
            "sha256": database.sha256,
        },
    )
    return 0


def _examine(home: "Installation", models: "list[Model]", database: "Database", talk: Talk) -> int:
    """Sign one statement on each model; 1 when any is affected."""
    from steelyard.admit.advisories import PREDICATE
    from steelyard.admit.environment import packages
    from steelyard.cli.installation import clock, subject_of

    installed, now = packages(), clock()
    age = (now - database.newest).days
    lines = [
        f"{len(database.advisories)} advisories, newest {age} days old; {len(installed)} packages installed"
    ]
    rows: list[dict[str, JSON]] = []
    for model in models:
        body = database.predicate([*installed, *_own(home, model)], now)
        home.attest([subject_of(model)], PREDICATE, body)
        verdict, matches = str(body["verdict"]), body["matches"]
        assert isinstance(matches, list)
        rows.append(
            {"model": model.name, "digest": str(model.digest), "verdict": verdict, "matches": matches}
        )
        lines.append(f"{talk.paint(verdict, _STYLE[verdict])}  {model.name}")
        for match in matches:
            assert isinstance(match, dict)
            fixed = match["fixed"]
            mend = f"fixed in {fixed[-1]}" if isinstance(fixed, list) and fixed else "no fix is known"
            version = match["version"] or "of unknown version"
            lines.append(f"    {match['id']}  {match['package']} {version} ({match['origin']}): {mend}")
            lines.append(f"        {match['summary']}")
    talk.data("\n".join(lines), {"sha256": database.sha256, "age_days": age, "models": rows})
    return 1 if any(row["verdict"] == "affected" for row in rows) else 0


def _own(home: "Installation", model: "Model") -> "tuple[Package, ...]":
    """What the model's own files ask for: from its evidence, so nothing is read again."""
    from steelyard.admit.advisories import packages_of

    formats = [
        e
        for e in home.store.evidence_for(model.digest.hex)
        if e.statement.predicate_type.endswith("formats:v1")
    ]
    newest = max(formats, key=lambda e: str(e.statement.predicate.get("issued_at")), default=None)
    return packages_of(newest.statement.predicate) if newest else ()


def _kept(home: "Installation") -> "Database":
    from steelyard.admit.advisories import loads

    path = home.config.home / KEPT
    try:
        return loads(path.read_bytes())
    except FileNotFoundError as error:
        raise WrongUsage("no dump is kept yet; run: steelyard advisories add DUMP") from error
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error


def _refuse_stale(database: "Database", max_age_days: int) -> None:
    from steelyard.cli.installation import clock

    now = clock()
    if database.is_stale(now, timedelta(days=max_age_days)):
        raise Unavailable(
            f"the newest record is {(now - database.newest).days} days old, at most {max_age_days} are accepted: "
            "a stale dump cannot say that all is well. Fetch a new one, or raise --max-age-days"
        )
