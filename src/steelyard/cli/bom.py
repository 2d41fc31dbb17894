"""`steelyard bom`: the bill of materials of a known model, drawn from its signed evidence."""

import argparse
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from steelyard.cli.talk import Talk
from steelyard.errors import WrongUsage

if TYPE_CHECKING:
    from steelyard.admit.spdx import Release

HELP = "Print a model's bill of materials as CycloneDX ML-BOM or SPDX 3, drawn from its evidence."
FORMS = ("cyclonedx-1.6", "cyclonedx-1.7", "spdx-3.0.1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="name or digest prefix of an examined model")
    parser.add_argument("--form", choices=FORMS, default=FORMS[0], help=f"default: {FORMS[0]}")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: standard output")
    known = parser.add_argument_group(
        "release", "what SPDX's AI profile asks and no file says; give all four, or none"
    )
    known.add_argument("--supplier", help="who supplied the model")
    known.add_argument("--released", metavar="TIME", help="when, as 2026-11-01T00:00:00Z")
    known.add_argument("--release-version", metavar="TEXT", help="the supplier's version")
    known.add_argument("--location", metavar="URL", help="where it was fetched from")


def run(args: argparse.Namespace, talk: Talk) -> int:
    from steelyard.admit.bom import bill_of
    from steelyard.admit.cyclonedx import cyclonedx
    from steelyard.admit.spdx import spdx
    from steelyard.cli.installation import Installation, clock

    release = _release(args)
    home = Installation.open(args.home)
    model = home.store.model(args.model)
    bill = bill_of(model, home.store.evidence_for(model.digest.hex))
    if not bill.evidence:
        raise WrongUsage(f"{model.name} has no evidence yet; run: steelyard admit DIR")
    name, _, version = args.form.partition("-")
    document = spdx(bill, clock(), release) if name == "spdx" else cyclonedx(bill, clock(), version)
    text = json.dumps(document, indent=2, ensure_ascii=False)
    if args.out:
        args.out.write_text(text + "\n")
        talk.say(f"{args.out}: {len(bill.files)} files, {len(bill.evidence)} statements")
    else:
        talk.data(text, document)
    return 0


def _release(args: argparse.Namespace) -> "Release | None":
    from steelyard.admit.spdx import Release

    given = (args.supplier, args.released, args.release_version, args.location)
    if not any(given):
        return None
    if not all(given) or not args.form.startswith("spdx"):
        raise WrongUsage("--supplier, --released, --release-version and --location go together, with SPDX")
    try:
        released = datetime.fromisoformat(args.released)
    except ValueError as error:
        raise WrongUsage(f"{args.released!r} is no time; expected 2026-11-01T00:00:00Z") from error
    return Release(
        args.supplier, released.replace(tzinfo=released.tzinfo or UTC), args.release_version, args.location
    )
