"""Verify an exported Steelyard ledger. One file: it needs Python and `cryptography`, nothing of Steelyard's.

    python verify.py FOLDER --key VKEY [--since CHECKPOINT] [--witness VKEY ... --quorum N] [--json]

FOLDER holds `checkpoint` and `tile/` as C2SP tlog-tiles has them, and cosigned checkpoints in `witness/`. VKEY is the
ledger's verifier key or a file that holds it; get it from somebody other than who gave you the folder. Every entry is
hashed, every tile compared, the root compared with the signed checkpoint: an edit, a drop, a reorder shows. A cut
tail, a rollback or a fork shows against a checkpoint kept elsewhere (--since) or a witness's (--witness).
Exit code 0: intact. 1: not. 2: wrong usage. 3: unreadable.

Sources: RFC 6962 (hashes), C2SP tlog-tiles.md, tlog-checkpoint.md, signed-note.md, tlog-cosignature.md. Written apart
from Steelyard's own checker on purpose: a defect of one is not a defect of both.
"""

import argparse
import base64
import binascii
import hashlib
import json
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

WIDTH = 256
MAX_NOTE_BYTES = 256 << 10
MAX_BUNDLE_BYTES = WIDTH * (2 + 65535)
MAX_WITNESSED = 1000  # files read from `witness/`
LOG_KEY, WITNESS_KEY = b"\x01", b"\x04"


class Fault(Exception):
    """The ledger is not what was signed: which file, and what is wrong with it."""


class Unreadable(Exception):
    """There is nothing that could be judged."""


@dataclass(frozen=True)
class Key:
    """An Ed25519 key under a name, of a log (type 1) or of a witness (type 4)."""

    name: str
    key_id: bytes
    public: bytes


@dataclass(frozen=True)
class TreeHead:
    """What a checkpoint says, and the note it stands in."""

    origin: str
    size: int
    root: bytes
    text: str
    signatures: tuple[tuple[str, bytes, bytes], ...]


@dataclass
class Verdict:
    """What was found. fault: absent when intact.  witnesses: name -> size, and time in seconds since 1970."""

    origin: str
    size: int
    root: str
    witnesses: dict[str, dict[str, int]]
    fault: str | None = None


def main() -> int:
    parser = argparse.ArgumentParser(description="Verify an exported Steelyard ledger.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--key", required=True, help="the ledger's verifier key, or a file that holds it")
    parser.add_argument("--since", type=Path, action="append", default=[], help="an earlier checkpoint")
    parser.add_argument(
        "--witness", action="append", default=[], help="a witness's key, or a file that holds it"
    )
    parser.add_argument(
        "--quorum", type=int, help="how many of the witnesses must vouch (default: all given)"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    try:
        key = key_of(args.key, LOG_KEY)
        witnesses = [key_of(text, WITNESS_KEY) for text in args.witness]
        since = [tree_head(read(path, MAX_NOTE_BYTES), str(path)) for path in args.since]
        quorum = len(witnesses) if args.quorum is None else args.quorum
        if not 0 <= quorum <= len({witness.name for witness in witnesses}):
            parser.error(f"--quorum {quorum} with {len(witnesses)} witnesses")
        verdict = verify(args.folder, key, since, witnesses, quorum)
    except Unreadable as error:
        sys.stderr.write(f"unreadable: {error}\n")
        return 3
    if args.json:
        sys.stdout.write(json.dumps(vars(verdict)) + "\n")
    elif verdict.fault is None:
        sys.stdout.write(f"intact  {verdict.size} entries of {verdict.origin}, root {verdict.root}\n")
        for name, seen in verdict.witnesses.items():
            sys.stdout.write(f"  {name} vouches for {seen['size']} entries at {seen['time']}\n")
    else:
        sys.stdout.write(f"tampered  {verdict.fault}\n")
    return 0 if verdict.fault is None else 1


def verify(folder: Path, key: Key, since: list[TreeHead], witnesses: list[Key], quorum: int) -> Verdict:
    """The verdict on `folder`. Raises Unreadable when it has no checkpoint that can be parsed."""
    head = tree_head(read(folder / "checkpoint", MAX_NOTE_BYTES), "checkpoint")
    verdict = Verdict(head.origin, head.size, head.root.hex(), {})
    try:
        check_signature(head, key, "checkpoint")
        earlier = list(since)
        for item in since:
            check_signature(item, key, "the checkpoint given with --since")
        for item in [head, *cosigned(folder)]:
            found = vouched(item, witnesses)
            if found:
                check_signature(item, key, f"the checkpoint of {item.size} entries that witnesses cosigned")
                earlier.append(item)
            for name, time in found.items():
                if item.size >= verdict.witnesses.get(name, {"size": -1})["size"]:
                    verdict.witnesses[name] = {"size": item.size, "time": time}
        if len(verdict.witnesses) < quorum:
            raise Fault(f"witness: {len(verdict.witnesses)} of {len(witnesses)} vouch, {quorum} must")
        for item in earlier:
            if item.size > head.size:
                raise Fault(
                    f"checkpoint: covers {head.size} entries, an earlier one covers {item.size}: entries were cut off"
                )
        walk(folder, head, earlier)
    except Fault as fault:
        verdict.fault = str(fault)
    return verdict


def walk(folder: Path, head: TreeHead, earlier: list[TreeHead]) -> None:
    """Hash all entries and compare every tile, the root, and the root of each earlier tree."""
    roots: dict[int, list[tuple[bytes, str]]] = {}
    for item in earlier:
        roots.setdefault(item.size, []).append((item.root, "an earlier checkpoint of it was rewritten"))
    roots.setdefault(head.size, []).append((head.root, "the entries do not give the signed root"))
    rows: list[list[bytes]] = []  # for levels 1 and up: roots of full tiles of the level below
    compare_roots(roots, 0, root_of(rows, []))
    for index in range(-(-head.size // WIDTH)):
        start = index * WIDTH
        count = min(WIDTH, head.size - start)
        entries = bundle(folder, index, count)
        leaves = [hashlib.sha256(b"\x00" + entry).digest() for entry in entries]
        stored = hashes(folder, 0, index, count)
        for place, (ours, theirs) in enumerate(zip(leaves, stored, strict=True)):
            if ours != theirs:
                raise Fault(
                    f"{path_of('entries', index, count)}: entry {start + place} does not hash to what the tile holds"
                )
        for stop in range(start + 1, start + count + 1):
            if stop in roots:
                compare_roots(roots, stop, root_of(rows, leaves[: stop - start]))
        if count == WIDTH:
            carry(folder, rows, leaves, index)
    for level, row in enumerate(rows, 1):
        if row and hashes(folder, level, head.size // WIDTH ** (level + 1), len(row)) != row:
            raise Fault(f"tile/{level}: the last tile is not that of the entries below it")


def carry(folder: Path, rows: list[list[bytes]], leaves: list[bytes], index: int) -> None:
    full, level = leaves, 1
    while len(full) == WIDTH:
        if level > len(rows):
            rows.append([])
        rows[level - 1].append(complete_root(full))
        full = rows[level - 1]
        if len(full) < WIDTH:
            return
        index //= WIDTH
        if hashes(folder, level, index, WIDTH) != full:
            raise Fault(f"{path_of(str(level), index, WIDTH)}: is not that of the entries below it")
        rows[level - 1] = []
        level += 1


def compare_roots(roots: dict[int, list[tuple[bytes, str]]], size: int, root: bytes) -> None:
    for wanted, reason in roots.get(size, []):
        if wanted != root:
            raise Fault(f"tile: at {size} entries: {reason} (fork): root {root.hex()}, signed {wanted.hex()}")


def root_of(rows: list[list[bytes]], leaves: list[bytes]) -> bytes:
    """RFC 6962 root from the hashes of each level's last tile, lowest level apart."""
    subtrees = []
    for row in [*reversed(rows), leaves]:
        start = 0
        for bit in reversed(range(9)):
            if len(row) >> bit & 1:
                subtrees.append(complete_root(row[start : start + (1 << bit)]))
                start += 1 << bit
    if not subtrees:
        return hashlib.sha256(b"").digest()
    root = subtrees.pop()
    while subtrees:
        root = hashlib.sha256(b"\x01" + subtrees.pop() + root).digest()
    return root


def complete_root(row: list[bytes]) -> bytes:
    while len(row) > 1:
        row = [hashlib.sha256(b"\x01" + row[i] + row[i + 1]).digest() for i in range(0, len(row), 2)]
    return row[0]


def bundle(folder: Path, index: int, count: int) -> list[bytes]:
    name, data = tile(folder, "entries", index, count, MAX_BUNDLE_BYTES)
    entries: list[bytes] = []
    offset = 0
    while offset < len(data):
        stop = offset + 2 + int.from_bytes(data[offset : offset + 2], "big")
        if offset + 2 > len(data) or stop > len(data):
            raise Fault(f"{name}: entry {index * WIDTH + len(entries)} runs past the end")
        entries.append(data[offset + 2 : stop])
        offset = stop
    if len(entries) not in (count, WIDTH):
        raise Fault(f"{name}: {len(entries)} entries, expected {count}")
    return entries[:count]


def hashes(folder: Path, level: int, index: int, count: int) -> list[bytes]:
    name, data = tile(folder, str(level), index, count, 32 * WIDTH)
    if len(data) not in (32 * count, 32 * WIDTH):
        raise Fault(f"{name}: {len(data)} bytes, expected {32 * count}")
    return [data[i : i + 32] for i in range(0, 32 * count, 32)]


def tile(folder: Path, level: str, index: int, count: int, limit: int) -> tuple[str, bytes]:
    """A tile's path and bytes; a full one stands in for a partial one that is gone."""
    for width in (count, WIDTH):
        name = path_of(level, index, width)
        if (folder / name).exists():
            try:
                return name, read(folder / name, limit)
            except Unreadable as error:
                raise Fault(str(error)) from error
    raise Fault(f"{path_of(level, index, count)}: is missing")


def path_of(level: str, index: int, width: int) -> str:
    groups = [f"{index % 1000:03d}"]
    while index := index // 1000:
        groups.insert(0, f"x{index % 1000:03d}")
    return f"tile/{level}/{'/'.join(groups)}" + ("" if width == WIDTH else f".p/{width}")


def cosigned(folder: Path) -> list[TreeHead]:
    where = folder / "witness"
    if not where.is_dir():
        return []
    paths = sorted(where.iterdir())[:MAX_WITNESSED]
    return [tree_head(read(path, MAX_NOTE_BYTES), f"witness/{path.name}") for path in paths]


def tree_head(data: bytes, name: str) -> TreeHead:
    """Parse a signed checkpoint. Raises Unreadable; checks no signature."""
    try:
        text, gap, tail = data.decode().rpartition("\n\n")
        origin, size, root = text.split("\n")[:3]
        signatures = []
        for line in tail.removesuffix("\n").split("\n"):
            dash, signer, encoded = line.split(" ")
            raw = base64.b64decode(encoded, validate=True)
            if dash != "\u2014" or len(raw) < 5:
                raise ValueError("not a signature line")
            signatures.append((signer, raw[:4], raw[4:]))
        if not gap or not origin or str(int(size)) != size or int(size) < 0:
            raise ValueError("origin or size")
        decoded = base64.b64decode(root, validate=True)
        if len(decoded) != 32 or base64.b64encode(decoded).decode() != root:
            raise ValueError("root")
    except (ValueError, binascii.Error) as error:
        raise Unreadable(f"{name} is not a signed checkpoint: {error}") from error
    return TreeHead(origin, int(size), decoded, text + "\n", tuple(signatures))


def check_signature(head: TreeHead, key: Key, name: str) -> None:
    if head.origin != key.name:
        raise Fault(f"{name}: is of log {head.origin!r}, the key is for {key.name!r}")
    mine = [sig for signer, key_id, sig in head.signatures if (signer, key_id) == (key.name, key.key_id)]
    if not mine:
        raise Fault(f"{name}: not signed by {key.name}+{key.key_id.hex()}")
    for sig in mine:
        if not is_signed(key.public, sig, head.text.encode()):
            raise Fault(f"{name}: the signature of {key.name}+{key.key_id.hex()} is wrong")


def vouched(head: TreeHead, witnesses: list[Key]) -> dict[str, int]:
    """Which of `witnesses` cosigned, and when."""
    found = {}
    for key in witnesses:
        for signer, key_id, sig in head.signatures:
            if (signer, key_id) != (key.name, key.key_id):
                continue
            time = int.from_bytes(sig[:8], "big")
            if not is_signed(key.public, sig[8:], f"cosignature/v1\ntime {time}\n{head.text}".encode()):
                raise Fault(f"witness: the cosignature of {key.name} on {head.size} entries is wrong")
            found[key.name] = time
    return found


def is_signed(public: bytes, sig: bytes, message: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(sig, message)
    except InvalidSignature:
        return False
    return True


def key_of(text: str, kind: bytes) -> Key:
    """A verifier key from its one line, or from the file that holds it. Raises Unreadable."""
    if "+" not in text or Path(text).is_file():
        text = read(Path(text), MAX_NOTE_BYTES).decode("utf-8", "replace")
    name, _, rest = text.strip().partition("+")
    key_id, _, encoded = rest.partition("+")
    try:
        raw = base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise Unreadable(f"not a verifier key: {text.strip()[:80]!r}") from error
    expected = hashlib.sha256(name.encode() + b"\n" + raw).digest()[:4]
    if not name or len(raw) != 33 or raw[:1] != kind or expected.hex() != key_id:
        raise Unreadable(f"not an Ed25519 verifier key of type {kind[0]}: {text.strip()[:80]!r}")
    return Key(name, expected, raw[1:])


def read(path: Path, limit: int) -> bytes:
    """All of a regular file of at most `limit` bytes. Raises Unreadable."""
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise Unreadable(f"{path} is not a regular file")
            data = file.read(limit + 1)
    except OSError as error:
        raise Unreadable(f"{path}: {error.strerror}") from error
    if len(data) > limit:
        raise Unreadable(f"{path} is longer than {limit} bytes")
    return data


if __name__ == "__main__":
    sys.exit(main())
