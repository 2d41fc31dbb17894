"""steelyard ledger: verify, show, prove. Needs a ledger's folder and its verifier key, no store and no secret.

What changes something or leaves the house (export, erase, hold, witness, request) is in ledger_custody. Whoever reads
the home's own ledger is entered in it first; an outsider's copy has no key to enter anything with.
"""

import argparse
import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING

from steelyard.digest import JSON

if TYPE_CHECKING:
    from steelyard.cli.talk import Talk
    from steelyard.ledger import Checkpoint, InclusionProof
    from steelyard.note import VerifierKey

HELP = "The tamper-evident ledger: verify it, show its entries, prove one, export it, erase a day's salts."
MAX_INPUT_BYTES = 1 << 20
MAX_BODY_BYTES = 64 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from steelyard.cli import ledger_custody

    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    _add_verify(verbs)
    show = verbs.add_parser("show", help="print the last entries")
    show.add_argument("dir", nargs="?", type=Path, help="the ledger's folder (default: the one in the home)")
    show.add_argument("--last", type=int, default=20, metavar="N", help="how many (default 20; 0: all)")
    prove = verbs.add_parser("prove", help="print a proof of one entry that verifies offline")
    prove.add_argument(
        "what", nargs="?", metavar="RECEIPT", help="an answer's receipt id, or an entry's index"
    )
    prove.add_argument("--receipt", help="the receipt id, where it could be taken for an index")
    prove.add_argument("--dir", type=Path, help="the ledger's folder (default: the one in the home)")
    prove.add_argument(
        "--reveal",
        action="store_true",
        help="add the receipt's salt: who has the texts can then compare them",
    )
    prove.add_argument("--out", type=Path, help="write it to this file instead")
    for reading in (show, prove):
        add_outsider(reading)
    check = verbs.add_parser("check-receipt", help="check a proof, and the texts of the answer it is about")
    check.add_argument("proof", type=Path, help="what `prove` printed")
    check.add_argument("--key", help="the ledger's verifier key, or a file that holds it")
    check.add_argument("--request", type=Path, help="the request body, byte for byte")
    check.add_argument("--response", type=Path, help="the response body, byte for byte")
    check.add_argument("--salt", metavar="HEX", help="the receipt's salt (default: the one in the proof)")
    ledger_custody.add_arguments(verbs)


def _add_verify(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    verify = verbs.add_parser("verify", help="recompute every hash and compare with the signed checkpoint")
    verify.add_argument(
        "dir", nargs="?", type=Path, help="the ledger's folder (default: the one in the home)"
    )
    verify.add_argument(
        "--key", help="verifier key, or a file that holds it (default: keys/ledger.vkey in the home)"
    )
    verify.add_argument(
        "--since",
        type=Path,
        action="append",
        default=[],
        help="an earlier checkpoint that must be a prefix of this ledger; may be repeated",
    )
    verify.add_argument(
        "--witness",
        action="append",
        default=[],
        metavar="KEY",
        help="a witness's key, or a file that holds it; its cosigned checkpoint must be a prefix; may be repeated",
    )
    verify.add_argument(
        "--quorum", type=int, metavar="N", help="how many of the witnesses must vouch (default: all)"
    )
    verify.add_argument(
        "--cosigned",
        type=Path,
        action="append",
        default=[],
        help="a checkpoint that witnesses cosigned, besides those in the ledger's folder witness/",
    )
    verify.add_argument("--proof", type=Path, help="verify this proof of one entry instead of a folder")


def add_outsider(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--outsider",
        action="store_true",
        help="do not enter the reading: for who has a copy of the home and not its key",
    )


def run(args: argparse.Namespace, talk: "Talk") -> int:
    from steelyard.cli import ledger_custody

    verbs = {"verify": _verify, "show": _show, "prove": _prove, "check-receipt": _check_receipt}
    verb = verbs.get(args.verb) or ledger_custody.VERBS[args.verb]
    return verb(args, talk)


def _verify(args: argparse.Namespace, talk: "Talk") -> int:
    from steelyard.errors import WrongUsage
    from steelyard.ledger import Checkpoint
    from steelyard.ledger_check import verify_log
    from steelyard.note import VerifierKey
    from steelyard.tile_reader import TileReader

    vkey = vkey_of(args)
    if args.proof is not None:
        if args.dir is not None or args.since or args.witness:
            raise WrongUsage("--proof stands alone: it needs the key and no folder")
        return _verify_proof(args.proof, vkey, talk)
    since = [Checkpoint.parse(input_of(path)) for path in args.since]
    folder = folder_of(args)
    times, cosigned = _witnessed(args, folder, VerifierKey.parse(vkey))
    with talk.bar("checking", TileReader(folder).checkpoint().size) as bar:
        report = verify_log(folder, vkey, since=[*since, *cosigned], progress=bar.advance)
    if report.fault is None:
        text = f"{talk.paint('intact', 'good')}  {report.size} entries of {report.origin}, root {report.root.hex()}"
        text += "".join(f"\nit continues the checkpoint of {item.size} entries" for item in since)
        text += "".join(f"\n{name} vouches for {size} entries" for name, (size, _) in times.items())
    else:
        text = f"{talk.paint('tampered', 'bad')}  {report.fault.place}: {report.fault.reason}"
    if report.unpublished:
        text += f"\n{report.unpublished} entries are written and not under a signed checkpoint yet"
    witnesses: JSON = {name: {"size": size, "time": time_s} for name, (size, time_s) in times.items()}
    talk.data(text, {**report.to_json(), "witnesses": witnesses})
    return 0 if report.is_intact else 1


def _witnessed(
    args: argparse.Namespace, folder: Path, key: "VerifierKey"
) -> "tuple[dict[str, tuple[int, int]], list[Checkpoint]]":
    """Size and time each witness vouches for, and the checkpoints they cosigned. Raises Untrusted below the quorum."""
    from steelyard.errors import Untrusted, WrongUsage
    from steelyard.ledger import Checkpoint
    from steelyard.ledger_bundle import cosigned_checkpoints, vouching
    from steelyard.tile_reader import TileReader
    from steelyard.witness import WitnessKey, cosigned_by

    witnesses = [WitnessKey.parse(key_text(word)) for word in args.witness]
    quorum = len(witnesses) if args.quorum is None else args.quorum
    if not 0 <= quorum <= len({witness.name for witness in witnesses}):
        raise WrongUsage(f"--quorum {quorum} of {len(witnesses)} witnesses; give each with --witness")
    if not witnesses:
        if args.cosigned:
            raise WrongUsage("--cosigned needs the witnesses' keys: --witness KEY")
        return {}, []
    items = [Checkpoint.parse(input_of(path)) for path in args.cosigned]
    items += [*cosigned_checkpoints(folder), TileReader(folder).checkpoint()]
    times: dict[str, tuple[int, int]] = {}
    found: list[Checkpoint] = []
    for item in items:
        cosigners = cosigned_by(item, witnesses)
        if cosigners:
            found += vouching([item], key)
        for name, time_s in cosigners.items():
            times[name] = max(times.get(name, (-1, 0)), (item.size, time_s))
    if len(times) < quorum:
        raise Untrusted(f"{len(times)} of {len(witnesses)} witnesses vouch for this ledger, {quorum} must")
    return times, found


def _verify_proof(path: Path, vkey: str, talk: "Talk") -> int:
    from steelyard.note import VerifierKey

    proof = _proof_of(input_of(path))
    proof.check(VerifierKey.parse(vkey))
    checkpoint = proof.checkpoint
    text = (
        f"{talk.paint('proven', 'good')}  entry {proof.index} of {checkpoint.origin}, size {checkpoint.size}"
    )
    talk.data(f"{text}\n{_line(proof.index, proof.entry)}", _proof_json(proof))
    return 0


def _show(args: argparse.Namespace, talk: "Talk") -> int:
    from steelyard.errors import WrongUsage
    from steelyard.tile_reader import TileReader

    if args.last < 0:
        raise WrongUsage("--last is a number of entries, 0 for all")
    reader = TileReader(folder_of(args))
    checkpoint = reader.checkpoint()
    start = max(0, checkpoint.size - args.last) if args.last else 0
    enter_reading(args, "read", what="show", first=start, stop=checkpoint.size)
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
    from steelyard.ledger_bundle import index_of
    from steelyard.tile_reader import TileReader

    if (args.what is None) == (args.receipt is None):
        raise WrongUsage("give a receipt id or the entry's index, one of them")
    reader = TileReader(folder_of(args))
    checkpoint = reader.checkpoint()
    index = _index(args.what) if args.receipt is None else None
    if index is None:
        index = index_of(args.receipt or args.what, reader, checkpoint)
    if not 0 <= index < checkpoint.size:
        raise WrongUsage(f"entry {index} is not under the checkpoint, which covers {checkpoint.size} entries")
    what = "reveal" if args.reveal else "prove"
    enter_reading(args, "read", what=what, first=index, stop=index + 1)
    proof = reader.prove_inclusion(index)
    value = _proof_json(proof)
    text = proof.to_text()
    if args.reveal:
        value["salt"] = _revealed(args, proof)
        text = json.dumps(value) + "\n"
    put_out(args.out, text, value, talk)
    return 0


def _index(word: str) -> int | None:
    """An index, as people write it; a receipt has 32 characters and may consist of digits."""
    return int(word) if word.lstrip("-").isascii() and word.lstrip("-").isdigit() and len(word) < 20 else None


def _revealed(args: argparse.Namespace, proof: "InclusionProof") -> str:
    from steelyard.config import load_config
    from steelyard.errors import WrongUsage
    from steelyard.ledger_bundle import record_of
    from steelyard.salts import Salts

    entry = record_of(proof.entry)
    name, receipt = entry.get("salt"), entry.get("receipt")
    if not isinstance(name, str) or not isinstance(receipt, str):
        raise WrongUsage(f"entry {proof.index} commits to no text, so there is no salt to reveal")
    return Salts(load_config(args.home).home / "salts").reveal(name, receipt).hex()


def _check_receipt(args: argparse.Namespace, talk: "Talk") -> int:
    from steelyard.errors import WrongUsage
    from steelyard.ledger_bundle import check_receipt
    from steelyard.note import VerifierKey

    data = input_of(args.proof)
    word = args.salt or _salt_in(data)
    try:
        salt = bytes.fromhex(word) if word else None
    except ValueError as error:
        raise WrongUsage("--salt is 32 bytes in hex") from error
    request, response = (
        input_of(path, MAX_BODY_BYTES) if path else None for path in (args.request, args.response)
    )
    key = VerifierKey.parse(vkey_of(args))
    report = check_receipt(_proof_of(data), key, salt=salt, request=request, response=response)
    said = {None: "not compared", True: "as committed", False: "NOT what was committed"}
    verdict = talk.paint("proven", "good") if report.is_matching else talk.paint("different", "bad")
    text = (
        f"{verdict}  entry {report.index}; request {said[report.request]}, response {said[report.response]}"
    )
    value: dict[str, JSON] = {
        "index": report.index,
        "entry": report.entry,
        "request": report.request,
        "response": report.response,
    }
    talk.data(f"{text}\n{_line(report.index, _proof_of(data).entry)}", value)
    return 0 if report.is_matching else 1


def _salt_in(data: bytes) -> str | None:
    if not data.lstrip().startswith(b"{"):
        return None
    try:
        found = json.loads(data).get("salt")
    except (ValueError, RecursionError):
        return None  # _proof_of says what is wrong
    return found if isinstance(found, str) else None


def put_out(out: Path | None, text: str, value: JSON, talk: "Talk") -> None:
    """To the file, or where a command's result goes."""
    from steelyard.disk import unavailable

    if out is None:
        talk.data(text.rstrip("\n"), value)
        return
    with unavailable(f"cannot write {out}"):
        out.write_text(text, encoding="utf-8")
    talk.say(f"written to {out}")


def folder_of(args: argparse.Namespace) -> Path:
    if args.dir is not None:
        return Path(args.dir)
    from steelyard.config import load_config

    return load_config(args.home).ledger


def is_own(args: argparse.Namespace) -> bool:
    """Whether the folder is the ledger of the home, whatever path leads there."""
    from steelyard.config import load_config

    own = load_config(args.home).ledger
    folder = folder_of(args)
    return own.exists() and folder.exists() and own.samefile(folder)


def enter_reading(args: argparse.Namespace, kind: str, **fields: JSON) -> None:
    """Enter in the home's own ledger who reads what. Raises before anything is shown when it cannot be entered."""
    if args.outsider or not is_own(args):
        return
    enter(args, kind, **fields)


def enter(args: argparse.Namespace, kind: str, **fields: JSON) -> int:
    """Enter what a person does to the home's ledger, and publish it. Its index."""
    import os
    import pwd

    from steelyard.cli.installation import Installation, clock

    uid = os.getuid()
    try:
        who = pwd.getpwuid(uid).pw_name
    except KeyError:
        who = str(uid)
    return Installation.open(args.home).record(kind, clock(), who=who, **fields)


def vkey_of(args: argparse.Namespace) -> str:
    from steelyard.errors import WrongUsage

    if args.key is not None:
        return key_text(args.key)
    from steelyard.config import load_config

    path = load_config(args.home).ledger_key.with_suffix(".vkey")
    if not path.is_file():
        raise WrongUsage(f"no verifier key at {path}; give --key NAME+ID+BASE64 or a file that holds it")
    return input_of(path).decode("utf-8", "replace").strip()


def key_text(word: str) -> str:
    """A verifier key given as such, or in a file."""
    from steelyard.errors import WrongUsage

    path = Path(word)
    if "+" in word and not path.is_file():
        return word
    if not path.is_file():
        raise WrongUsage(f"no verifier key at {path}; give NAME+ID+BASE64 or a file that holds it")
    return input_of(path).decode("utf-8", "replace").strip()


def input_of(path: Path, limit_bytes: int = MAX_INPUT_BYTES) -> bytes:
    from steelyard.disk import read_file, unavailable

    with unavailable(f"cannot read {path}"):
        return read_file(path, limit_bytes)


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
