"""steelyard ledger: verify, show and prove. Needs a ledger's folder and its verifier key, no store and no secret."""

import argparse
import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING

from steelyard.digest import JSON

if TYPE_CHECKING:
    from steelyard.cli.talk import Talk
    from steelyard.ledger import Checkpoint, InclusionProof
    from steelyard.tiles import TileReader

HELP = "The tamper-evident ledger: verify it, show its entries, prove that an entry is in it."
MAX_INPUT_BYTES = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    verify = verbs.add_parser("verify", help="recompute every hash and compare with the signed checkpoint")
    verify.add_argument(
        "dir", nargs="?", type=Path, help="the ledger's folder (default: the one in the home)"
    )
    verify.add_argument(
        "--key", help="verifier key, or a file that holds it (default: keys/ledger.vkey in the home)"
    )
    verify.add_argument(
        "--since", type=Path, help="an earlier checkpoint that must be a prefix of this ledger"
    )
    verify.add_argument("--proof", type=Path, help="verify this proof of one entry instead of a folder")
    show = verbs.add_parser("show", help="print the last entries")
    show.add_argument("dir", nargs="?", type=Path, help="the ledger's folder (default: the one in the home)")
    show.add_argument("--last", type=int, default=20, metavar="N", help="how many (default 20; 0: all)")
    prove = verbs.add_parser("prove", help="print a proof of one entry that verifies offline")
    prove.add_argument("index", nargs="?", type=int, help="the entry's index")
    prove.add_argument("--receipt", help="the receipt id of the answer the entry is about")
    prove.add_argument("--dir", type=Path, help="the ledger's folder (default: the one in the home)")


def run(args: argparse.Namespace, talk: "Talk") -> int:
    verb = {"verify": _verify, "show": _show, "prove": _prove}[args.verb]
    return verb(args, talk)


def _verify(args: argparse.Namespace, talk: "Talk") -> int:
    from steelyard.errors import WrongUsage
    from steelyard.ledger import Checkpoint
    from steelyard.ledger_check import verify_log
    from steelyard.tiles import TileReader

    vkey = _vkey(args)
    if args.proof is not None:
        if args.dir is not None or args.since is not None:
            raise WrongUsage("--proof stands alone: it needs the key and no folder")
        return _verify_proof(args.proof, vkey, talk)
    since = Checkpoint.parse(_input(args.since)) if args.since is not None else None
    folder = _folder(args)
    with talk.bar("checking", TileReader(folder).checkpoint().size) as bar:
        report = verify_log(folder, vkey, since=since, progress=bar.advance)
    if report.fault is None:
        text = f"{talk.paint('intact', 'good')}  {report.size} entries of {report.origin}, root {report.root.hex()}"
        if since is not None:
            text += f"\nit continues the checkpoint of {since.size} entries"
    else:
        text = f"{talk.paint('tampered', 'bad')}  {report.fault.place}: {report.fault.reason}"
    if report.unpublished:
        text += f"\n{report.unpublished} entries are durable and not under a signed checkpoint yet"
    talk.data(text, report.to_json())
    return 0 if report.is_intact else 1


def _verify_proof(path: Path, vkey: str, talk: "Talk") -> int:
    from steelyard.note import VerifierKey

    proof = _proof_of(_input(path))
    proof.check(VerifierKey.parse(vkey))
    checkpoint = proof.checkpoint
    text = (
        f"{talk.paint('proven', 'good')}  entry {proof.index} of {checkpoint.origin}, size {checkpoint.size}"
    )
    talk.data(f"{text}\n{_line(proof.index, proof.entry)}", _proof_json(proof))
    return 0


def _show(args: argparse.Namespace, talk: "Talk") -> int:
    from steelyard.errors import WrongUsage
    from steelyard.tiles import TileReader

    if args.last < 0:
        raise WrongUsage("--last is a number of entries, 0 for all")
    reader = TileReader(_folder(args))
    checkpoint = reader.checkpoint()
    start = max(0, checkpoint.size - args.last) if args.last else 0
    rows: list[dict[str, JSON]] = []
    lines: list[str] = []
    for index, entry in enumerate(reader.entries(start, checkpoint.size, checkpoint.size), start):
        rows.append({"index": index, "entry": _record(entry)})
        lines.append(_line(index, entry))
    talk.say(f"{checkpoint.size} entries of {checkpoint.origin}; not verified here: steelyard ledger verify")
    talk.data("\n".join(lines), rows)
    return 0


def _prove(args: argparse.Namespace, talk: "Talk") -> int:
    from steelyard.errors import WrongUsage
    from steelyard.tiles import TileReader

    if (args.index is None) == (args.receipt is None):
        raise WrongUsage("give the entry's index or --receipt ID, one of them")
    reader = TileReader(_folder(args))
    checkpoint = reader.checkpoint()
    index = args.index if args.receipt is None else _index_of(args.receipt, reader, checkpoint)
    if not 0 <= index < checkpoint.size:
        raise WrongUsage(f"entry {index} is not under the checkpoint, which covers {checkpoint.size} entries")
    proof = reader.prove_inclusion(index)
    talk.data(proof.to_text().rstrip("\n"), _proof_json(proof))
    return 0


def _index_of(receipt: str, reader: "TileReader", checkpoint: "Checkpoint") -> int:
    """The newest entry whose record names the receipt."""
    from steelyard.errors import WrongUsage
    from steelyard.ledger import TILE_WIDTH

    for bundle in reversed(range(-(-checkpoint.size // TILE_WIDTH))):
        entries = reader.bundle(bundle, checkpoint.size)
        for offset in reversed(range(len(entries))):
            record = _record(entries[offset])
            if isinstance(record, dict) and record.get("receipt") == receipt:
                return bundle * TILE_WIDTH + offset
    raise WrongUsage(
        f"no entry under the checkpoint has receipt {receipt!r}; a fresh answer is published within a second"
    )


def _folder(args: argparse.Namespace) -> Path:
    if args.dir is not None:
        return Path(args.dir)
    from steelyard.config import load_config

    return load_config(args.home).ledger


def _vkey(args: argparse.Namespace) -> str:
    from steelyard.errors import WrongUsage

    if args.key is not None and "+" in args.key:
        return str(args.key)
    if args.key is not None:
        path = Path(args.key)
    else:
        from steelyard.config import load_config

        path = load_config(args.home).ledger_key.with_suffix(".vkey")
    if not path.is_file():
        raise WrongUsage(f"no verifier key at {path}; give --key NAME+ID+BASE64 or a file that holds it")
    return _input(path).decode("utf-8", "replace").strip()


def _input(path: Path) -> bytes:
    from steelyard.disk import read_file, unavailable

    with unavailable(f"cannot read {path}"):
        return read_file(path, MAX_INPUT_BYTES)


def _proof_of(data: bytes) -> "InclusionProof":
    """A proof as `prove` prints it, with --json or without."""
    from steelyard.errors import Malformed
    from steelyard.ledger import InclusionProof

    if not data.lstrip().startswith(b"{"):
        return InclusionProof.parse(data)
    try:
        text = json.loads(data)["proof"]
    except (ValueError, KeyError, RecursionError) as error:
        raise Malformed(f"not a proof in JSON: {error!r}", rule="ledger/proof") from error
    if not isinstance(text, str):
        raise Malformed("field 'proof' is not text", rule="ledger/proof")
    return InclusionProof.parse(text.encode())


def _proof_json(proof: "InclusionProof") -> dict[str, JSON]:
    return {
        "index": proof.index,
        "size": proof.checkpoint.size,
        "entry": _record(proof.entry),
        "proof": proof.to_text(),
    }


def _record(entry: bytes) -> JSON:
    """The entry as JSON; one that is none, as {"base64": ...}."""
    try:
        value: JSON = json.loads(entry)
    except (ValueError, RecursionError):
        return {"base64": base64.b64encode(entry).decode()}
    return value


def _line(index: int, entry: bytes) -> str:
    record = _record(entry)
    if not isinstance(record, dict):
        return f"{index:>8}  {json.dumps(record)}"
    rest = "  ".join(
        f"{name}={_short(value)}" for name, value in record.items() if name not in ("kind", "at")
    )
    return f"{index:>8}  {_short(record.get('at', '-'))}  {_short(record.get('kind', '-')):<10}  {rest}"


def _short(value: JSON) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    # A record may hold what a caller sent: nothing in it may steer a terminal.
    text = "".join(char if char.isprintable() else "?" for char in text)
    return text if len(text) <= 40 else f"{text[:39]}…"
