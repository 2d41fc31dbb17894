"""`steelyard scan`: examine a file or a directory. No store, no key, no policy."""

import argparse
import json
from pathlib import Path

from steelyard.cli.talk import Talk
from steelyard.digest import JSON

HELP = "Examine a file or directory without executing anything. Exit 0 only if every file is understood and clean."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, help="a model directory or a single file")
    parser.add_argument("--sarif", type=Path, metavar="FILE", help="also write the findings as SARIF 2.1.0")


def run(args: argparse.Namespace, talk: Talk) -> int:
    from steelyard.admit.scan import Verdict
    from steelyard.cli.admission import scan_path, scan_text
    from steelyard.config import load_config

    found = scan_path(args.path, load_config(args.home).plugins, talk)
    value: dict[str, JSON] = {
        "verdict": found.verdict.value,
        "name": found.model.name if found.model else args.path.name,
        "digest": str(found.model.digest) if found.model else None,
        "ruleset": str(found.ruleset),
        "confinement": found.confinement,
        "files": [
            {"path": file.path, "size": file.size, "sha256": file.sha256, "format": file.report.format}
            for file in found.files
        ],
        "findings": [found.finding_json(path, finding) for path, finding in found.findings()],
    }
    if args.sarif:
        from steelyard.admit.sarif import sarif

        args.sarif.write_text(json.dumps(sarif(found), indent=2) + "\n")
    talk.data(scan_text(found, talk), value)
    return 0 if found.verdict is Verdict.ADMIT else 1
