"""`steelyard environment`: whether this Python environment is what its packages say it is."""

import argparse
import sysconfig
from pathlib import Path

from steelyard.cli.talk import Talk

HELP = (
    "Check this Python environment: start-up hooks, changed and unowned files. Exit 0 only if there are none."
)
SHOWN = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True)
    check = verbs.add_parser("check", help="compare every file with what its package recorded")
    check.add_argument("--site", type=Path, metavar="DIR", help="site-packages to check; default: this one")


def run(args: argparse.Namespace, talk: Talk) -> int:
    from steelyard.admit.environment import RULES, irregularities, packages
    from steelyard.errors import WrongUsage
    from steelyard.formats.base import Severity

    site: Path = args.site or Path(sysconfig.get_paths()["purelib"])
    if not site.is_dir():
        raise WrongUsage(f"{site}: no such folder")
    installed = packages([str(site)])
    with talk.bar(f"checking {len(installed)} packages", len(installed)) as bar:
        found = irregularities(site, bar.advance)
    lines = []
    for item in found[:SHOWN]:
        severity = RULES[item.rule].severity
        shown = talk.paint(severity.value, "bad" if severity is Severity.REJECT else "warn")
        lines += [
            f"{shown}  {item.rule}  {item.path}",
            f"    {item.message}",
            f"    mend: {RULES[item.rule].mend}",
        ]
    if len(found) > SHOWN:
        lines.append(f"... and {len(found) - SHOWN} more; --json lists them all")
    verdict = talk.paint("irregular", "bad") if found else talk.paint("as recorded", "good")
    lines.append(f"{verdict}  {len(installed)} packages in {site}")
    talk.data(
        "\n".join(lines),
        {
            "packages": [{"name": p.name, "version": p.version} for p in installed],
            "irregularities": [item.to_json() for item in found],
        },
    )
    return 1 if found else 0
