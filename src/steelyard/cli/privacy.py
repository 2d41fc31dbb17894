"""`steelyard privacy`: what the detector finds in a text file, and the hashing of a list of customers."""

import argparse
from pathlib import Path

from steelyard.cli.talk import Talk
from steelyard.digest import JSON
from steelyard.errors import Unavailable, WrongUsage

HELP = "Show what the privacy shield finds in a text: places and classes, never values. Exit 1 if anything is found."
MAX_BYTES = 4 << 20
MAX_LIST_BYTES = 256 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True)
    scan = verbs.add_parser("scan", help="find personal data in a file")
    scan.add_argument("file", type=Path, help="UTF-8 text")
    scan.add_argument(
        "--region", action="append", metavar="CC", help="where telephone numbers are from; may be repeated"
    )

    made = verbs.add_parser(
        "dictionary", help="hash a list of customers, one a line, for [privacy] customers"
    )
    made.add_argument("file", type=Path, help="the list, UTF-8")
    made.add_argument("--key", type=Path, required=True, help="the key of the shield; made if absent")
    made.add_argument("--out", type=Path, required=True, help="where the hashes go")


def run(args: argparse.Namespace, talk: Talk) -> int:
    return _scan(args, talk) if args.verb == "scan" else _dictionary(args, talk)


def _dictionary(args: argparse.Namespace, talk: Talk) -> int:
    from steelyard.privacy.dictionary import Dictionary
    from steelyard.privacy.settings import load_key

    entries = [line.strip() for line in _text(args.file, MAX_LIST_BYTES).splitlines() if line.strip()]
    dictionary = Dictionary.made(entries, load_key(args.key))
    try:
        args.out.write_text(dictionary.dump(), "ascii")
    except OSError as error:
        raise Unavailable(f"{args.out}: cannot be written: {error.strerror}") from error
    talk.data(
        f"{len(entries)} entries hashed to {args.out}", {"entries": len(entries), "file": str(args.out)}
    )
    return 0


def _scan(args: argparse.Namespace, talk: Talk) -> int:
    from steelyard.privacy.detect import DEFAULT_REGIONS, Detector

    hits = Detector(regions=args.region or DEFAULT_REGIONS).find(_text(args.file, MAX_BYTES))
    value: list[JSON] = [
        {"start": hit.start, "end": hit.end, "kind": hit.kind, "score": hit.score} for hit in hits
    ]
    lines = [f"{hit.start}-{hit.end}  {hit.kind}  {hit.score:.2f}" for hit in hits]
    talk.data("\n".join(lines) or "nothing found", value)
    return 1 if hits else 0


def _text(path: Path, most: int) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise Unavailable(f"{path}: cannot be read: {error.strerror}") from error
    if len(data) > most:
        raise WrongUsage(f"{path}: larger than {most} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise WrongUsage(f"{path}: not UTF-8 at byte {error.start}") from None
