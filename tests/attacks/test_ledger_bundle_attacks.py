"""Attacks on an exported ledger, judged by the verifier that travels with it and by Steelyard's own."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from steelyard import ledger_verifier
from steelyard.errors import SteelyardError
from steelyard.keys import generate
from steelyard.ledger import ENTRIES, Checkpoint, Edge, decode_entries, encode_entries, tile_at
from steelyard.ledger_bundle import export_bundle
from steelyard.ledger_check import verify_log
from steelyard.merkle import leaf_hash
from steelyard.note import NoteSigner
from steelyard.tile_reader import TileReader
from steelyard.tiles import TileLog

ORIGIN = "steelyard.example/log"
SIGNER = NoteSigner(ORIGIN, generate("ed25519"))
KEY = str(SIGNER.key)
SIZE = 1100
ENTRY_LIST = [b'{"kind":"answer","n":%d}' % i for i in range(SIZE)]


def tree(entries: list[bytes]) -> Edge:
    edge = Edge()
    edge.add([leaf_hash(entry) for entry in entries])
    return edge


def head(entries: list[bytes]) -> Checkpoint:
    return Checkpoint(ORIGIN, len(entries), tree(entries).root()).signed(SIGNER)


def write(root: Path, entries: list[bytes]) -> None:
    """A whole ledger of `entries`, signed with its own key: what the operator can always write."""
    shutil.rmtree(root / "tile")
    edge = Edge()
    tiles = dict(edge.add([leaf_hash(entry) for entry in entries]))
    tiles |= dict(edge.partial())
    for index in range(-(-len(entries) // 256)):
        tiles[tile_at(ENTRIES, index, len(entries))] = encode_entries(
            entries[index * 256 : index * 256 + 256]
        )
    for tile, data in tiles.items():
        (root / tile.path).parent.mkdir(parents=True, exist_ok=True)
        (root / tile.path).write_bytes(data)
    (root / "checkpoint").write_bytes(head(entries).to_bytes())


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    log = TileLog.open(home / "log", origin=ORIGIN, signer=SIGNER._signer)
    for start in range(0, SIZE, 110):
        log.append(ENTRY_LIST[start : start + 110])
        log.publish()
    log.close()
    export_bundle(TileReader(home / "log"), home / "bundle", KEY)
    return home / "bundle"


@pytest.fixture
def copy(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path / "copy")
    return tmp_path / "copy"


def standalone(folder: Path, since: Checkpoint | None) -> bool | None:
    """Whether the travelling verifier says intact; None: unreadable."""
    key = ledger_verifier.key_of(KEY, ledger_verifier.LOG_KEY)
    earlier = [ledger_verifier.tree_head(since.to_bytes(), "since")] if since else []
    try:
        return ledger_verifier.verify(folder, key, earlier, [], 0).fault is None
    except ledger_verifier.Unreadable:
        return None


def ours(folder: Path, since: Checkpoint | None) -> bool | None:
    try:
        return verify_log(folder, KEY, since=since or ()).is_intact
    except SteelyardError:
        return None


def change_bundle(root: Path, change) -> None:
    path = root / "tile/entries/002"
    path.write_bytes(encode_entries(change(decode_entries(path.read_bytes()))))


def swap(root: Path, one: str, two: str) -> None:
    data = (root / one).read_bytes()
    (root / one).write_bytes((root / two).read_bytes())
    (root / two).write_bytes(data)


ATTACKS = {
    "edit": lambda root: change_bundle(root, lambda e: [*e[:9], b"{}", *e[10:]]),
    "drop": lambda root: change_bundle(root, lambda e: [*e[:9], *e[10:]]),
    "reorder": lambda root: change_bundle(root, lambda e: [*e[:9], e[10], e[9], *e[11:]]),
    "add": lambda root: change_bundle(root, lambda e: [*e, b"{}"]),
    "swap bundles": lambda root: swap(root, "tile/entries/000", "tile/entries/001"),
    "swap tiles": lambda root: swap(root, "tile/0/000", "tile/0/001"),
    "delete a bundle": lambda root: (root / "tile/entries/003").unlink(),
    "delete a tile": lambda root: (root / "tile/1/000.p/4").unlink(),
    "cut a tile": lambda root: os.truncate(root / "tile/0/001", 32 * 255),
    "cut a bundle": lambda root: os.truncate(root / "tile/entries/001", 100),
    "change a level 1 tile": lambda root: (root / "tile/1/000.p/4").write_bytes(bytes(128)),
    "a folder for a tile": lambda root: ((root / "tile/0/002").unlink(), (root / "tile/0/002").mkdir()),
    "a pipe for a tile": lambda root: ((root / "tile/0/002").unlink(), os.mkfifo(root / "tile/0/002")),
    "rewrite unsigned": lambda root: (
        kept := (root / "checkpoint").read_bytes(),
        write(root, [*ENTRY_LIST[:-1], b"{}"]),
        (root / "checkpoint").write_bytes(kept),
    ),
    "another key": lambda root: (root / "checkpoint").write_bytes(
        Checkpoint(ORIGIN, SIZE, tree(ENTRY_LIST).root()).signed(NoteSigner(ORIGIN, generate("ed25519"))).to_bytes()
    ),
    "another log": lambda root: (root / "checkpoint").write_bytes(
        Checkpoint("other", SIZE, tree(ENTRY_LIST).root()).signed(SIGNER).to_bytes()
    ),
}  # fmt: skip


def test_the_untouched_bundle_is_intact(original: Path) -> None:
    for size in (0, 1, 255, 256, 257, 1024, SIZE):
        assert standalone(original, head(ENTRY_LIST[:size])) is True
        assert ours(original, head(ENTRY_LIST[:size])) is True


@pytest.mark.parametrize("name", ATTACKS)
def test_both_verifiers_find(copy: Path, name: str) -> None:
    ATTACKS[name](copy)
    assert standalone(copy, None) is False
    assert ours(copy, None) is not True


REWRITES = {
    "edit": [*ENTRY_LIST[:300], b"{}", *ENTRY_LIST[301:]],
    "drop": [*ENTRY_LIST[:300], *ENTRY_LIST[301:]],
    "reorder": [*ENTRY_LIST[:300], ENTRY_LIST[301], ENTRY_LIST[300], *ENTRY_LIST[302:]],
    "truncate": ENTRY_LIST[:600],
    "fork": [*ENTRY_LIST[:700], *[b"fork"] * 400],
}


@pytest.mark.parametrize("name", REWRITES)
def test_what_the_keyholder_rewrites_only_an_older_checkpoint_finds(copy: Path, name: str) -> None:
    write(copy, REWRITES[name])
    assert standalone(copy, None) is True
    assert ours(copy, None) is True
    since = head(ENTRY_LIST[:800])
    assert standalone(copy, since) is False
    assert ours(copy, since) is False


def test_any_flipped_bit_of_a_bundles_files_is_seen_by_both(copy: Path) -> None:
    paths = [
        path for path in copy.rglob("*") if path.is_file() and path.name not in ("verify.py", "ledger.vkey")
    ]
    assert len(paths) == 5 + 5 + 1 + 1
    for path in paths:
        whole = path.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 2):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            assert standalone(copy, None) is not True, (path, place)
            assert ours(copy, None) is not True, (path, place)
        path.write_bytes(whole)


@pytest.mark.parametrize("data", [b"", b"\n\n", b"x\n1\n\n\xe2\x80\x94 a AAAA\n", b"\xff", bytes(300_000)])
def test_a_checkpoint_that_is_none_is_unreadable_and_never_a_trace(copy: Path, data: bytes) -> None:
    (copy / "checkpoint").write_bytes(data)
    words = [sys.executable, str(copy / "verify.py"), str(copy), "--key", KEY, "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 3
    assert done.stderr.startswith("unreadable: ")


def test_the_verifier_speaks_json(original: Path) -> None:
    words = [sys.executable, str(original / "verify.py"), str(original), "--key", KEY, "--json"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    assert json.loads(done.stdout)["size"] == SIZE
