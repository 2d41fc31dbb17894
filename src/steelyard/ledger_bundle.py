"""What leaves the house: a bundle of a ledger for an outsider, and the answer to who may be asked about one receipt.

bundle    checkpoint, tile/..., witness/<key id> (cosigned checkpoints), ledger.vkey, verify.py
receipt   {"entry", "index", "proof", "salt", "size"}: a tlog-proof of one entry; salt (hex) only when it was revealed
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from steelyard.digest import JSON
from steelyard.disk import Disk, read_file, unavailable
from steelyard.errors import Malformed, Untrusted, WrongUsage
from steelyard.ledger import (
    ENTRIES,
    TILE_WIDTH,
    Checkpoint,
    InclusionProof,
    edge_tiles,
    encode_entries,
    tile_at,
)
from steelyard.note import MAX_NOTE_BYTES, VerifierKey
from steelyard.tile_reader import CHECKPOINT, TileReader

WITNESSED = "witness"
VERIFIER = "verify.py"
MAX_WITNESSED = 1000
SALT_BYTES = 32

_HASH_LEVELS = 8


def cosigned_checkpoints(folder: Path) -> list[Checkpoint]:
    """What witnesses gave back for the ledger in `folder`. Raises Malformed, Unavailable."""
    where = folder / WITNESSED
    if not where.is_dir():
        return []
    with unavailable(f"cannot read {where}"):
        paths = sorted(path for path in where.iterdir() if not path.name.startswith("."))[:MAX_WITNESSED]
        return [Checkpoint.parse(read_file(path, MAX_NOTE_BYTES)) for path in paths]


def export_bundle(reader: TileReader, out: Path, vkey: str | None) -> Checkpoint:
    """Copy what is under the checkpoint to the new folder `out`, with a verifier that stands alone.

    Raises WrongUsage when `out` holds something, Malformed when the ledger lacks a tile.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise WrongUsage(f"{out} exists and is not empty; name a new folder")
    disk = Disk()
    checkpoint = reader.checkpoint()
    for index in range(-(-checkpoint.size // TILE_WIDTH)):
        entries = encode_entries(reader.bundle(index, checkpoint.size))
        disk.lay_all([(out / tile_at(ENTRIES, index, checkpoint.size).path, entries)])
    for level in range(_HASH_LEVELS):
        for index in range(checkpoint.size // TILE_WIDTH ** (level + 1)):
            tile = tile_at(level, index, checkpoint.size)
            disk.lay_all([(out / tile.path, reader.tile(tile))])
    disk.lay_all([(out / tile.path, reader.tile(tile)) for tile in edge_tiles(checkpoint.size)])
    files = [(out / CHECKPOINT, checkpoint.to_bytes())]
    files += [
        (out / WITNESSED / f"{number:03d}", item.to_bytes())
        for number, item in enumerate(cosigned_checkpoints(reader.root))
        if item.size <= checkpoint.size
    ]
    if vkey is not None:
        files.append((out / "ledger.vkey", f"{vkey}\n".encode()))
    files.append((out / VERIFIER, resources.files("steelyard").joinpath("ledger_verifier.py").read_bytes()))
    disk.lay_all(files)
    return checkpoint


@dataclass(frozen=True, slots=True)
class ReceiptReport:
    """What a proof says of one answer. request, response: whether the bytes are those committed to; None: not asked."""

    index: int
    entry: dict[str, JSON]
    request: bool | None
    response: bool | None

    @property
    def is_matching(self) -> bool:
        return self.request is not False and self.response is not False


def check_receipt(
    proof: InclusionProof,
    key: VerifierKey,
    *,
    salt: bytes | None = None,
    request: bytes | None = None,
    response: bytes | None = None,
) -> ReceiptReport:
    """Check the proof, then the bytes against its entry's commitments with the receipt's salt.

    Raises Untrusted when the proof does not hold, Malformed when the entry is no record, WrongUsage without a salt
    where bytes are given.
    """
    proof.check(key)
    entry = record_of(proof.entry)
    if (request is not None or response is not None) and (salt is None or len(salt) != SALT_BYTES):
        raise WrongUsage(
            "to compare bytes, the receipt's salt is needed: 32 bytes in hex, revealed by the operator"
        )
    found = [
        None if data is None or salt is None else hashlib.sha256(salt + data).hexdigest() == entry.get(name)
        for name, data in (("request_sha256", request), ("response_sha256", response))
    ]
    return ReceiptReport(proof.index, entry, *found)


def record_of(entry: bytes) -> dict[str, JSON]:
    try:
        value = json.loads(entry)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"the entry is not JSON: {error}", rule="ledger/entry") from error
    if not isinstance(value, dict):
        raise Malformed("the entry is not a JSON object", rule="ledger/entry")
    return value


def index_of(receipt: str, reader: TileReader, checkpoint: Checkpoint) -> int:
    """The newest entry about the receipt. Raises WrongUsage when there is none."""
    needle = json.dumps(receipt).encode()
    for bundle in reversed(range(-(-checkpoint.size // TILE_WIDTH))):
        entries = reader.bundle(bundle, checkpoint.size)
        for offset in reversed(range(len(entries))):
            if needle in entries[offset] and _receipt_of(entries[offset]) == receipt:
                return bundle * TILE_WIDTH + offset
    raise WrongUsage(
        f"no entry under the checkpoint has receipt {receipt!r}; a fresh answer is published within a second"
    )


def vouching(items: Sequence[Checkpoint], key: VerifierKey) -> list[Checkpoint]:
    """Those of `items` that the log signed. Raises Untrusted for one it did not: somebody made it up."""
    for item in items:
        try:
            item.check(key)
        except Untrusted as error:
            raise Untrusted(f"a cosigned checkpoint of {item.size} entries: {error.message}") from error
    return list(items)


def _receipt_of(entry: bytes) -> JSON:
    try:
        return record_of(entry).get("receipt")
    except Malformed:
        return None
