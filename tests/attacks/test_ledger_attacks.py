"""Attacks on a ledger by who can write its folder, and on its verifier by who can hand it a folder."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from steelyard.errors import Malformed, SteelyardError, Unavailable, Untrusted
from steelyard.keys import generate
from steelyard.ledger import (
    ENTRIES,
    MAX_PROOF_BYTES,
    Checkpoint,
    Edge,
    InclusionProof,
    Tile,
    decode_entries,
    encode_entries,
    tile_at,
)
from steelyard.ledger_check import verify_log
from steelyard.merkle import leaf_hash
from steelyard.note import NoteSignature, NoteSigner, VerifierKey
from steelyard.tiles import TileLog

ORIGIN = "steelyard.example/log"
SIGNER = generate("ed25519")
KEY = str(NoteSigner(ORIGIN, SIGNER).key)
SIZE = 600
ENTRY_LIST = [b'{"kind":"answer","n":%d}' % i for i in range(SIZE)]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ledger") / "log"
    log = TileLog.open(root, origin=ORIGIN, signer=SIGNER)
    log.append(ENTRY_LIST[:300])
    log.publish()
    (root.parent / "earlier").write_bytes((root / "checkpoint").read_bytes())
    shutil.copytree(root, root.parent / "earlier-log")
    log.append(ENTRY_LIST[300:])
    log.close()
    return root


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path / "copy")
    return tmp_path / "copy"


def earlier(original: Path) -> Checkpoint:
    return Checkpoint.parse((original.parent / "earlier").read_bytes())


def write_log(root: Path, entries: list[bytes], signer: NoteSigner | None = None) -> None:
    """What an attacker with all of C2SP at hand writes: tiles and bundles that agree with each other."""
    shutil.rmtree(root / "tile")
    edge, tiles = Edge(), {}
    for entry in entries:
        tiles |= dict(edge.add([leaf_hash(entry)]))
    tiles |= dict(edge.partial())
    for index in range(-(-len(entries) // 256)):
        tiles[tile_at(ENTRIES, index, len(entries))] = encode_entries(
            entries[index * 256 : index * 256 + 256]
        )
    for tile, data in tiles.items():
        path = root / tile.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    if signer is not None:
        checkpoint = Checkpoint(ORIGIN, len(entries), edge.root()).signed(signer)
        (root / "checkpoint").write_bytes(checkpoint.to_bytes())


def test_the_untouched_ledger_is_intact(original: Path) -> None:
    done: list[int] = []
    report = verify_log(original, KEY, since=earlier(original), progress=done.append)
    assert report.is_intact
    assert (report.origin, report.size, report.unpublished, sum(done)) == (ORIGIN, SIZE, 0, SIZE)
    assert report.to_json()["fault"] is None


def files_that_count(root: Path) -> list[Path]:
    tiles = [tile_at(level, i, SIZE) for level, count in ((0, 3), (1, 1), (ENTRIES, 3)) for i in range(count)]
    return [root / tile.path for tile in tiles] + [root / "checkpoint"]


def test_one_flipped_bit_anywhere_is_found_and_its_file_named(copy: Path) -> None:
    for path in files_that_count(copy):
        whole = path.read_bytes()
        for place in {0, 1, len(whole) // 2, len(whole) - 1}:
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            try:
                fault = verify_log(copy, KEY).fault
            except Malformed:
                assert path.name == "checkpoint"  # no ledger can be read at all
            else:
                assert fault is not None
                # A changed leaf hash and a changed entry look the same from the other file.
                names = {
                    str(path.relative_to(copy)),
                    str(path.relative_to(copy)).replace("tile/0", "tile/entries"),
                }
                assert fault.place in names
        path.write_bytes(whole)
    assert verify_log(copy, KEY).is_intact


def change_bundle(root: Path, index: int, change: Callable[[list[bytes]], list[bytes]]) -> None:
    path = root / tile_at(ENTRIES, index, SIZE).path
    path.write_bytes(encode_entries(change(decode_entries(path.read_bytes()))))


@pytest.mark.parametrize(
    ("change", "index"),
    [
        pytest.param(lambda e: [*e[:7], b'{"kind":"answer","n":70}', *e[8:]], 263, id="edit"),
        pytest.param(lambda e: [*e[:7], e[8], e[7], *e[9:]], 263, id="reorder"),
        pytest.param(lambda e: [*e[:7], *e[8:]], None, id="drop"),
        pytest.param(lambda e: [*e[:7], *e[8:], e[7]], 263, id="move to the end"),
        pytest.param(lambda e: [*e[:7], b"", *e[8:]], 263, id="empty"),
        pytest.param(lambda e: [*e, b"x"], None, id="add"),
        pytest.param(lambda e: e[:-1], None, id="truncate"),
        pytest.param(lambda e: [*e[:-1], e[-1] + e[-1]], 511, id="double the last"),
    ],
)
def test_a_changed_bundle_is_found_at_its_entry(copy: Path, change: Callable, index: int | None) -> None:
    change_bundle(copy, 1, change)
    fault = verify_log(copy, KEY).fault
    assert fault is not None
    assert fault.place == "tile/entries/001"
    assert fault.index == (256 if index is None else index)


@pytest.mark.parametrize("name", ["tile/0/000", "tile/0/002.p/88", "tile/1/000.p/2", "tile/entries/002.p/88"])
def test_a_deleted_file_is_found_and_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    fault = verify_log(copy, KEY).fault
    assert fault is not None
    assert fault.place == name
    assert "missing" in fault.reason


def test_swapped_bundles_are_found(copy: Path) -> None:
    one, two = (copy / tile_at(ENTRIES, i, SIZE).path for i in (0, 1))
    data = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(data)
    fault = verify_log(copy, KEY).fault
    assert fault is not None
    assert (fault.place, fault.index) == ("tile/entries/000", 0)


@pytest.mark.parametrize(
    "entries",
    [
        pytest.param([*ENTRY_LIST[:7], *ENTRY_LIST[8:]], id="drop"),
        pytest.param([*ENTRY_LIST[:7], b"edited", *ENTRY_LIST[8:]], id="edit"),
        pytest.param([ENTRY_LIST[1], ENTRY_LIST[0], *ENTRY_LIST[2:]], id="reorder"),
        pytest.param(ENTRY_LIST[:-1], id="truncate"),
    ],
)
def test_a_consistent_rewrite_without_the_key_is_found(copy: Path, entries: list[bytes]) -> None:
    write_log(copy, entries)
    fault = verify_log(copy, KEY).fault
    assert fault is not None
    if len(entries) == SIZE:
        assert (fault.place, fault.index) == ("tile", None)
        assert "signed is" in fault.reason


def test_a_rewrite_signed_by_another_key_is_found(copy: Path) -> None:
    write_log(copy, ENTRY_LIST[:-1], NoteSigner(ORIGIN, generate("ed25519")))
    fault = verify_log(copy, KEY).fault
    assert fault is not None
    assert fault.place == "checkpoint"


@pytest.mark.parametrize(
    "entries",
    [
        pytest.param([*ENTRY_LIST[:7], b"edited", *ENTRY_LIST[8:]], id="edit"),
        pytest.param(ENTRY_LIST[:299], id="truncate"),
        pytest.param([*ENTRY_LIST[:299], b"edited"], id="edit the last it covered"),
    ],
)
def test_a_rewrite_with_the_ledgers_own_key_is_found_by_an_earlier_checkpoint(
    copy: Path, original: Path, entries: list[bytes]
) -> None:
    write_log(copy, entries, NoteSigner(ORIGIN, SIGNER))
    (copy / "wal").unlink()
    assert verify_log(copy, KEY).is_intact  # the operator can rewrite what nobody else holds a checkpoint of
    fault = verify_log(copy, KEY, since=earlier(original)).fault
    assert fault is not None
    assert fault.place == "checkpoint"


def test_a_folder_set_back_is_found_by_a_later_checkpoint_only(original: Path) -> None:
    old = original.parent / "earlier-log"
    later = Checkpoint.parse((original / "checkpoint").read_bytes())
    assert verify_log(old, KEY).is_intact
    fault = verify_log(old, KEY, since=later).fault
    assert fault is not None
    assert "cut off" in fault.reason


def test_a_checkpoint_set_back_alone_is_found_by_the_write_ahead_file(tmp_path: Path) -> None:
    root = tmp_path / "log"
    log = TileLog.open(root, origin=ORIGIN, signer=SIGNER, renew_bytes=1 << 20)
    log.append([b"one"])
    log.publish()
    old = (root / "checkpoint").read_bytes()
    log.append([bytes(4_000)] * 300)
    log.close()
    (root / "checkpoint").write_bytes(old)
    fault = verify_log(root, KEY).fault
    assert fault is not None
    assert fault.place == "wal"


def test_a_since_checkpoint_nobody_signed_is_untrusted(original: Path) -> None:
    forged = Checkpoint(ORIGIN, 0, Edge().root(), (), (NoteSignature(ORIGIN, b"abcd", bytes(64)),))
    with pytest.raises(Untrusted):
        verify_log(original, KEY, since=forged)


def test_a_signed_checkpoint_of_another_log_is_found(copy: Path, tmp_path: Path) -> None:
    other = TileLog.open(tmp_path / "other", origin="steelyard.example/other", signer=SIGNER)
    other.append(ENTRY_LIST)
    other.close()
    shutil.copy(tmp_path / "other" / "checkpoint", copy / "checkpoint")
    fault = verify_log(copy, KEY).fault
    assert fault is not None
    assert "steelyard.example/other" in fault.reason


def test_an_empty_log_with_a_wrong_root_is_found(tmp_path: Path) -> None:
    root = tmp_path / "log"
    TileLog.open(root, origin=ORIGIN, signer=SIGNER).close()
    assert verify_log(root, KEY).is_intact
    wrong = Checkpoint(ORIGIN, 0, bytes(32)).signed(NoteSigner(ORIGIN, SIGNER))
    (root / "checkpoint").write_bytes(wrong.to_bytes())
    assert not verify_log(root, KEY).is_intact


def test_entries_not_yet_signed_are_counted_and_not_vouched_for(copy: Path) -> None:
    log = TileLog.open(copy, origin=ORIGIN, signer=SIGNER)
    log.append([b"one", b"two"])
    report = verify_log(copy, KEY)
    assert report.is_intact
    assert (report.size, report.unpublished) == (SIZE, 2)


def said_of(root: Path) -> str:
    try:
        fault = verify_log(root, KEY).fault
    except (Malformed, Unavailable) as error:
        return error.message
    return f"{fault.place}: {fault.reason}" if fault else "intact"


@pytest.mark.parametrize("name", ["checkpoint", "tile/0/000", "tile/entries/000", "wal"])
@pytest.mark.parametrize("kind", ["pipe", "endless", "folder", "huge"])
def test_a_strange_file_neither_hangs_nor_passes(copy: Path, name: str, kind: str) -> None:
    path = copy / name
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path.touch()
        os.truncate(path, 1 << 40)  # sparse
    assert path.name in said_of(copy)


def test_a_size_that_is_a_lie_costs_no_time(copy: Path) -> None:
    lie = Checkpoint(ORIGIN, (1 << 63) - 1, bytes(32)).signed(NoteSigner(ORIGIN, SIGNER))
    (copy / "checkpoint").write_bytes(lie.to_bytes())
    fault = verify_log(copy, KEY).fault
    assert fault is not None
    assert fault.place == "tile/entries/002"


@pytest.mark.parametrize("missing", ["checkpoint", "folder"])
def test_what_is_not_there_is_unreadable_not_tampered(copy: Path, missing: str) -> None:
    (copy / "checkpoint").unlink()
    with pytest.raises((Unavailable, Malformed)):
        verify_log(copy if missing == "checkpoint" else copy / "nowhere", KEY)


def proof_of(original: Path, index: int) -> InclusionProof:
    return TileLog.open(original, origin=ORIGIN, signer=SIGNER).prove_inclusion(index)


def test_a_proof_is_of_its_entry_index_and_log_alone(original: Path) -> None:
    proof, other = proof_of(original, 5), proof_of(original, 400)
    key = VerifierKey.parse(KEY)
    proof.check(key)
    forged = [
        InclusionProof(6, proof.entry, proof.path, proof.checkpoint),
        InclusionProof(5, other.entry, proof.path, proof.checkpoint),
        InclusionProof(5, proof.entry, other.path, proof.checkpoint),
        InclusionProof(5, proof.entry, proof.path, earlier(original)),
        InclusionProof(5, proof.entry, (), proof.checkpoint),
        InclusionProof(SIZE, proof.entry, proof.path, proof.checkpoint),
    ]
    for attempt in forged:
        with pytest.raises(Untrusted):
            attempt.check(key)
    with pytest.raises(Untrusted):
        proof.check(NoteSigner(ORIGIN, generate("ed25519")).key)


def test_an_inner_node_passed_off_as_an_entry_is_refused(original: Path) -> None:
    # Without RFC 6962's prefixes, the two hashes below an inner node would verify as an entry.
    proof = proof_of(original, 0)
    node = leaf_hash(ENTRY_LIST[0]) + proof.path[0]
    with pytest.raises(Untrusted):
        InclusionProof(0, node, proof.path[1:], proof.checkpoint).check(VerifierKey.parse(KEY))


def test_no_changed_byte_of_a_proof_proves_anything_else(original: Path) -> None:
    proof = proof_of(original, 5)
    text = proof.to_text().encode()
    for place in range(len(text)):
        changed = text[:place] + bytes([text[place] ^ 1]) + text[place + 1 :]
        with pytest.raises(SteelyardError):
            InclusionProof.parse(changed).check(VerifierKey.parse(KEY))


def test_a_proof_longer_than_the_limit_is_malformed(original: Path) -> None:
    text = proof_of(original, 5).to_text().encode()
    InclusionProof.parse(text)
    with pytest.raises(Malformed, match="at most"):
        InclusionProof.parse(text + b" " * (MAX_PROOF_BYTES + 1 - len(text)))


def test_an_index_never_leaves_the_folder() -> None:
    assert Tile(0, 10**18).path == "tile/0/x001/x000/x000/x000/x000/x000/000"
    with pytest.raises(ValueError, match="no tile -1"):
        tile_at(0, -1, 5)
