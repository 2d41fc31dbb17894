"""steelyard ledger: export, erase, hold, request, witness. Each but the witness's enters what it did in the ledger."""

import argparse
import hashlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from steelyard.digest import JSON

if TYPE_CHECKING:
    from steelyard.cli.talk import Talk
    from steelyard.ledger import Checkpoint
    from steelyard.witness import Cosigner, Request


def add_arguments(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    from steelyard.cli.ledger import add_outsider

    export = verbs.add_parser("export", help="write a bundle an outsider verifies without Steelyard")
    export.add_argument("out", type=Path, metavar="DIR", help="a new folder")
    export.add_argument("--dir", type=Path, help="the ledger's folder (default: the one in the home)")
    export.add_argument("--key", help="verifier key to put beside it (default: keys/ledger.vkey in the home)")
    add_outsider(export)
    erase = verbs.add_parser("erase", help="destroy a day's salts: its commitments cannot be tested any more")
    erase.add_argument("day", metavar="DAY", help="YYYY-MM-DD (UTC), before today")
    hold = verbs.add_parser("hold", help="keep a day's salts from being erased, or show what is held")
    hold.add_argument("day", nargs="?", metavar="DAY", help="YYYY-MM-DD (UTC)")
    hold.add_argument("--reason", help="why, for who finds it")
    hold.add_argument("--release", action="store_true", help="end the hold")
    request = verbs.add_parser("request", help="print what a witness needs to cosign the checkpoint")
    request.add_argument("old", type=int, metavar="SIZE", help="entries the witness saw last; 0 at first")
    request.add_argument("--dir", type=Path, help="the ledger's folder (default: the one in the home)")
    request.add_argument("--out", type=Path, help="write it to this file instead")
    _add_witness(verbs)


def _add_witness(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    witness = verbs.add_parser(
        "witness", help="cosign a ledger's checkpoint if it continues the one seen last; no network"
    )
    witness.add_argument(
        "source", type=Path, help="a ledger's folder or export, or a file that `request` printed"
    )
    witness.add_argument("--log", required=True, metavar="KEY", help="the ledger's verifier key, or its file")
    witness.add_argument("--name", required=True, help="the witness's name, such as audit.example/w1")
    witness.add_argument(
        "--signer", type=Path, required=True, metavar="PEM", help="the witness's own key; made at first use"
    )
    witness.add_argument("--state", type=Path, required=True, metavar="DIR", help="what it saw last")
    witness.add_argument("--begin", action="store_true", help="this ledger is new to the witness")
    witness.add_argument(
        "--out", type=Path, help="the cosigned checkpoint (default: witness/ in a folder, else stdout)"
    )


def _export(args: argparse.Namespace, talk: "Talk") -> int:
    from steelyard.cli.ledger import enter_reading, folder_of, is_own, key_text, vkey_of
    from steelyard.errors import WrongUsage
    from steelyard.ledger_bundle import export_bundle
    from steelyard.tile_reader import TileReader

    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise WrongUsage(f"{args.out} exists and is not empty; name a new folder")
    reader = TileReader(folder_of(args))
    enter_reading(args, "export", what="all", first=0, stop=reader.checkpoint().size)
    vkey = vkey_of(args) if is_own(args) else key_text(args.key) if args.key else None
    checkpoint = export_bundle(reader, args.out, vkey)
    text = f"{checkpoint.size} entries of {checkpoint.origin} in {args.out}"
    talk.data(text, {"folder": str(args.out), "size": checkpoint.size, "root": checkpoint.root.hex()})
    talk.say(f"the outsider runs: python {args.out}/verify.py {args.out} --key VKEY")
    return 0


def _erase(args: argparse.Namespace, talk: "Talk") -> int:
    from steelyard.cli.installation import clock
    from steelyard.cli.ledger import enter
    from steelyard.config import load_config
    from steelyard.salts import Salts

    salts = Salts(load_config(args.home).home / "salts")
    today = clock().date()
    salts.check_erasable(args.day, today)
    # Entered first: an erasure nobody can see must not happen. One that then fails is told and can be repeated.
    index = enter(args, "erase", day=args.day)
    salts.erase(args.day, today)
    talk.data(f"the salts of {args.day} are destroyed; entry {index}", {"day": args.day, "index": index})
    talk.say("copies in backups and snapshots are not: destroy those too")
    return 0


def _hold(args: argparse.Namespace, talk: "Talk") -> int:
    from steelyard.cli.ledger import enter
    from steelyard.config import load_config
    from steelyard.errors import WrongUsage
    from steelyard.salts import Salts, day_of

    salts = Salts(load_config(args.home).home / "salts")
    if args.day is None:
        held: dict[str, JSON] = dict(salts.holds())
        talk.data("\n".join(f"{day}  {reason}" for day, reason in held.items()) or "nothing is held", held)
        return 0
    day = day_of(args.day)
    if args.release == (args.reason is not None):
        raise WrongUsage("give --reason TEXT to hold the day, or --release to end the hold")
    if args.release:
        if salts.hold_of(day) is None:
            raise WrongUsage(f"{day} is not held")
        index = enter(args, "release", day=day)
        salts.release(day)
    else:
        # The hold stands before its entry does: a day is never erasable while the ledger says that it is held.
        salts.hold(day, args.reason)
        index = enter(args, "hold", day=day)
    word = "released" if args.release else "held"
    talk.data(f"{day} is {word}; entry {index}", {"day": day, "state": word, "index": index})
    return 0


def _request(args: argparse.Namespace, talk: "Talk") -> int:
    from steelyard.cli.ledger import folder_of, put_out
    from steelyard.errors import WrongUsage

    request = _request_of(folder_of(args), args.old)
    if request is None:
        raise WrongUsage(f"the checkpoint covers fewer than {args.old} entries")
    text = request.to_bytes().decode()
    put_out(args.out, text, {"request": text, "size": request.checkpoint.size}, talk)
    return 0


def _witness(args: argparse.Namespace, talk: "Talk") -> int:
    from steelyard.cli.installation import clock
    from steelyard.cli.ledger import key_text
    from steelyard.disk import Disk, FileLock
    from steelyard.note import VerifierKey
    from steelyard.witness import check_request

    key = VerifierKey.parse(key_text(args.log))
    disk = Disk()
    disk.make_folder(args.state)
    cosigner = _cosigner(args)
    path = args.state / f"{hashlib.sha256(key.name.encode()).hexdigest()[:32]}.checkpoint"
    with FileLock(args.state / "lock").held():
        seen = _seen(path, key, begin=args.begin)
        request = _asked(args.source, seen)
        check_request(request, key, seen)
        cosigned = cosigner.sign(request.checkpoint, int(clock().timestamp()))
        disk.put(path, cosigned.to_bytes(), scratch=args.state)  # before anybody has the signature
    text = cosigned.to_bytes()
    out = args.out or (args.source / "witness" / cosigner.key.key_id.hex() if args.source.is_dir() else None)
    if out is None:
        sys.stdout.write(text.decode())
    else:
        disk.make_folder(out.parent)
        disk.put(out, text, scratch=out.parent)
        value: dict[str, JSON] = {"size": cosigned.size, "file": str(out), "witness": str(cosigner.key)}
        talk.data(f"cosigned  {cosigned.size} entries of {cosigned.origin}: {out}", value)
    talk.say(f"this witness's key: {cosigner.key}")
    return 0


def _seen(path: Path, key: object, *, begin: bool) -> "Checkpoint | None":
    from steelyard.cli.ledger import input_of
    from steelyard.errors import WrongUsage
    from steelyard.ledger import Checkpoint

    if path.exists() == begin:
        found, way = ("has", "without") if begin else ("has not", "with")
        raise WrongUsage(f"this witness {found} seen the ledger {key} before; call it {way} --begin")
    return None if begin else Checkpoint.parse(input_of(path))


def _asked(source: Path, seen: "Checkpoint | None") -> "Request":
    from steelyard.cli.ledger import input_of
    from steelyard.errors import Untrusted
    from steelyard.tile_reader import TileReader
    from steelyard.witness import Request

    if not source.is_dir():
        return Request.parse(input_of(source))
    size = seen.size if seen is not None else 0
    request = _request_of(source, size)
    if request is None:
        smaller = TileReader(source).checkpoint().size
        raise Untrusted(f"a rollback: this witness has seen {size} entries, now there are {smaller}")
    return request


def _request_of(folder: Path, old_size: int) -> "Request | None":
    """What asks a witness to go on from `old_size`; None when the ledger is smaller."""
    from steelyard.ledger import nodes_of
    from steelyard.merkle import consistency_path
    from steelyard.tile_reader import TileReader
    from steelyard.witness import Request

    reader = TileReader(folder)
    checkpoint = reader.checkpoint()
    if not 0 <= old_size <= checkpoint.size:
        return None
    path = consistency_path(nodes_of(reader.tile, checkpoint.size), old_size, checkpoint.size)
    return Request(old_size, path, checkpoint)


def _cosigner(args: argparse.Namespace) -> "Cosigner":
    from steelyard.cli.installation import passphrase
    from steelyard.keys import load_signer, new_key
    from steelyard.witness import Cosigner

    if args.signer.exists():
        return Cosigner(args.name, load_signer(args.signer, passphrase()))
    return Cosigner(args.name, new_key(args.signer, "ed25519", passphrase()))


VERBS: Mapping[str, "Callable[[argparse.Namespace, Talk], int]"] = {
    "export": _export,
    "erase": _erase,
    "hold": _hold,
    "request": _request,
    "witness": _witness,
}
