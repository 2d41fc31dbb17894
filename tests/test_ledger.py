"""merkle, note and ledger: known answers from RFC 6962's reference tree and C2SP's documents, then laws."""

import base64
import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.errors import Malformed, Untrusted
from steelyard.keys import generate
from steelyard.ledger import (
    ENTRIES,
    MAX_ENTRY_BYTES,
    Checkpoint,
    Edge,
    InclusionProof,
    Tile,
    decode_entries,
    edge_tiles,
    encode_entries,
    nodes_of,
    tile_at,
)
from steelyard.merkle import (
    EMPTY_ROOT,
    check_consistency,
    check_inclusion,
    complete_root,
    consistency_path,
    inclusion_path,
    leaf_hash,
    node_hash,
    root_of,
)
from steelyard.note import MAX_NOTE_SIGNATURES, Note, NoteSignature, NoteSigner, VerifierKey

# The eight-leaf tree that the test suites of Certificate Transparency implementations share.
LEAVES = [bytes.fromhex(x) for x in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657")]
LEAVES.append(bytes(range(0x60, 0x70)))
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
# Inner nodes of that tree that RFC 6962's example proofs are made of.
NODE_01 = "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125"
NODE_23 = "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e"
NODE_45 = "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a"
NODE_67 = "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0"
NODE_0_3 = "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7"
NODE_4_7 = "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4"
LEAF_0 = "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
LEAF_2 = "0298d122906dcfc10892cb53a73992fc5b9f493ea4c9badb27b791b4127a7fe7"
LEAF_3 = "07506a85fd9dd2f120eb694f86011e5bb4662e5c415a62917033d4a9624487e7"
LEAF_4 = "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b"
LEAF_6 = "b08693ec2e721597130641e8211e7eedccb4c26413963eee6c1e2ed16ffb1a5f"
NODE_4_6 = hashlib.sha256(b"\1" + bytes.fromhex(NODE_45 + LEAF_6)).hexdigest()

# The example of C2SP signed-note.
NOTE_KEY = "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k"
NOTE = (
    "This is an example message.\n\n\u2014 example.com/foo "
    "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
).encode()


def plain_root(entries: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, word for word: what every other way must equal."""
    if not entries:
        return hashlib.sha256().digest()
    if len(entries) == 1:
        return hashlib.sha256(b"\0" + entries[0]).digest()
    split = 1
    while split * 2 < len(entries):
        split *= 2
    return hashlib.sha256(b"\1" + plain_root(entries[:split]) + plain_root(entries[split:])).digest()


def plain_nodes(entries: list[bytes]):
    return lambda height, index: plain_root(entries[index << height : (index + 1) << height])


def entries_of(size: int) -> list[bytes]:
    return [b"entry %d" % i for i in range(size)]


def hexes(*names: str) -> tuple[bytes, ...]:
    return tuple(bytes.fromhex(name) for name in names)


@pytest.mark.parametrize("size", range(9))
def test_reference_tree_has_its_published_roots(size: int) -> None:
    edge = Edge()
    for leaf in LEAVES[:size]:
        edge.add([leaf_hash(leaf)])
    assert edge.root().hex() == ROOTS[size]
    assert root_of(plain_nodes(LEAVES), size).hex() == ROOTS[size]


@pytest.mark.parametrize(
    ("index", "size", "path"),
    [
        (0, 1, ()),
        (0, 8, hexes("96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7", NODE_23, NODE_4_7)),
        (5, 8, hexes(LEAF_4, NODE_67, NODE_0_3)),
        (2, 3, hexes(NODE_01)),
        (1, 5, hexes(LEAF_0, NODE_23, LEAF_4)),
    ],
)
def test_reference_inclusion_paths(index: int, size: int, path: tuple[bytes, ...]) -> None:
    assert inclusion_path(plain_nodes(LEAVES), index, size) == path
    check_inclusion(leaf_hash(LEAVES[index]), index, size, bytes.fromhex(ROOTS[size]), path)


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        (1, 8, hexes("96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7", NODE_23, NODE_4_7)),
        (6, 8, hexes(NODE_45, NODE_67, NODE_0_3)),
        (2, 5, hexes(NODE_23, LEAF_4)),
        (3, 7, hexes(LEAF_2, LEAF_3, NODE_01, NODE_4_6)),
    ],
)
def test_reference_consistency_paths(old: int, new: int, path: tuple[bytes, ...]) -> None:
    assert consistency_path(plain_nodes(LEAVES), old, new) == path
    check_consistency(old, bytes.fromhex(ROOTS[old]), new, bytes.fromhex(ROOTS[new]), path)


def test_example_of_the_signed_note_document_verifies() -> None:
    key = VerifierKey.parse(NOTE_KEY)
    assert str(key) == NOTE_KEY
    assert Note.parse(NOTE).check([key]) == (key,)
    assert Note.parse(NOTE).to_bytes() == NOTE


def test_example_of_the_checkpoint_document_parses() -> None:
    data = (
        "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
        "\u2014 example.com/behind-the-sofa "
        "Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
    ).encode()
    checkpoint = Checkpoint.parse(data)
    assert (checkpoint.origin, checkpoint.size) == ("example.com/behind-the-sofa", 20852163)
    assert checkpoint.root.hex().startswith("0ac5186a91863e8e")
    assert checkpoint.to_bytes() == data


@pytest.mark.parametrize(
    ("tile", "path"),
    [
        (Tile(0, 1234067), "tile/0/x001/x234/067"),
        (Tile(0, 0), "tile/0/000"),
        (Tile(1, 999, 17), "tile/1/999.p/17"),
        (Tile(ENTRIES, 1000, 1), "tile/entries/x001/000.p/1"),
    ],
)
def test_tile_paths(tile: Tile, path: str) -> None:
    assert tile.path == path


def test_tree_of_70000_has_the_partial_tiles_the_document_lists() -> None:
    assert list(edge_tiles(70_000)) == [Tile(0, 273, 112), Tile(1, 1, 17), Tile(2, 0, 1)]
    assert list(edge_tiles(256)) == [Tile(1, 0, 1)]
    assert tile_at(0, 272, 70_000) == Tile(0, 272)
    with pytest.raises(ValueError, match="no tile 274"):
        tile_at(0, 274, 70_000)


@given(st.integers(1, 70), st.data())
def test_every_inclusion_proof_verifies_and_no_altered_one_does(size: int, data: st.DataObject) -> None:
    entries = entries_of(size)
    index = data.draw(st.integers(0, size - 1))
    root, leaf = plain_root(entries), leaf_hash(entries[index])
    path = inclusion_path(plain_nodes(entries), index, size)
    check_inclusion(leaf, index, size, root, path)
    other = data.draw(st.integers(0, size - 1).filter(lambda i: i != index)) if size > 1 else size
    altered = [
        (leaf_hash(b"another"), index, size, root, path),
        (leaf, other, size, root, path),
        (leaf, index, size, leaf_hash(b"root"), path),
        (leaf, index, size, root, (*path, leaf)),
        (leaf, index, size, root, (leaf, *path)),
        (leaf, size, size, root, path),
        (leaf, -1, size, root, path),
    ]
    if path:
        place = data.draw(st.integers(0, len(path) - 1))
        flipped = bytes([path[place][0] ^ 1]) + path[place][1:]
        altered += [
            (leaf, index, size, root, path[:place] + path[place + 1 :]),
            (leaf, index, size, root, (*path[:place], flipped, *path[place + 1 :])),
        ]
    for attempt in altered:
        with pytest.raises(Untrusted):
            check_inclusion(*attempt)


@given(st.integers(2, 64), st.data())
def test_a_proof_for_a_tree_of_another_shape_is_refused(size: int, data: st.DataObject) -> None:
    # A size that gives the entry another number or order of siblings cannot share the proof.
    index = data.draw(st.integers(0, size - 1))
    entries = entries_of(size)
    path = inclusion_path(plain_nodes(entries), index, size)
    wrong = data.draw(st.sampled_from([size * 2 + 1, size * 4, index]))
    with pytest.raises(Untrusted):
        check_inclusion(leaf_hash(entries[index]), index, wrong, plain_root(entries), path)


def test_all_trees_up_to_40_are_consistent_with_their_prefixes_only() -> None:
    entries = entries_of(40)
    roots = [plain_root(entries[:n]) for n in range(41)]
    for new in range(41):
        for old in range(new + 1):
            path = consistency_path(plain_nodes(entries), old, new)
            check_consistency(old, roots[old], new, roots[new], path)
            if 0 < old < new:
                for attempt in (
                    (old, roots[old - 1], new, roots[new], path),
                    (old, roots[old], new, roots[new - 1], path),
                    (old, roots[old], new, roots[new], path[:-1]),
                    (old, roots[old], new, roots[new], (*path, roots[1])),
                    (old, roots[old], new, roots[new], ()),
                    (new, roots[new], old, roots[old], path),
                ):
                    with pytest.raises(Untrusted):
                        check_consistency(*attempt)


def test_the_empty_tree_has_one_root() -> None:
    check_consistency(0, EMPTY_ROOT, 3, leaf_hash(b"any"), ())
    for old_root, new_root, new in ((EMPTY_ROOT, leaf_hash(b""), 0), (leaf_hash(b""), leaf_hash(b""), 3)):
        with pytest.raises(Untrusted):
            check_consistency(0, old_root, new, new_root, ())


@given(st.integers(1, 40), st.integers(0, 39), st.sampled_from(["drop", "reorder", "edit"]))
def test_a_changed_past_is_not_consistent(size: int, place: int, change: str) -> None:
    place %= size
    entries = entries_of(size)
    later = entries_of(size + 3)
    if change == "drop":
        del later[place]
    elif change == "edit":
        later[place] += b"!"
    elif size == 1:
        later[0], later[1] = later[1], later[0]
    else:
        other = (place + 1) % size
        later[place], later[other] = later[other], later[place]
    path = consistency_path(plain_nodes(later), size, len(later))
    with pytest.raises(Untrusted):
        check_consistency(size, plain_root(entries), len(later), plain_root(later), path)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 70_000))
def test_edge_and_tiles_agree_for_any_size(size: int) -> None:
    # Every leaf is the same, so the root of any complete subtree is known by its height alone.
    by_height = [leaf_hash(b"")]
    while len(by_height) < 20:
        by_height.append(node_hash(by_height[-1], by_height[-1]))
    widths = {(tile.level, tile.index): tile.width for tile in edge_tiles(size)}

    def read(tile: Tile) -> bytes:
        assert tile.width == widths.get((tile.level, tile.index), 256)
        return by_height[8 * tile.level] * tile.width

    edge = Edge.of(size, read)
    assert edge.root() == root_of(nodes_of(read, size), size)
    assert edge.root() == root_of(lambda height, _: by_height[height], size)
    filled = edge.add([by_height[0]])
    assert len(filled) == (0 if (size + 1) % 256 else 1 if (size + 1) % 65536 else 2)
    assert edge.root() == root_of(lambda height, _: by_height[height], size + 1)


@pytest.mark.parametrize("size", [1, 255, 256, 257, 511, 513, 700])
def test_proofs_from_tiles_equal_proofs_from_the_definition(size: int) -> None:
    entries = entries_of(size)
    edge, tiles = Edge(), {}
    for entry in entries:
        tiles |= dict(edge.add([leaf_hash(entry)]))
    tiles |= dict(edge.partial())
    nodes = nodes_of(tiles.__getitem__, size)
    assert root_of(nodes, size) == edge.root() == plain_root(entries)
    for index in {0, size // 2, size - 1}:
        assert inclusion_path(nodes, index, size) == inclusion_path(plain_nodes(entries), index, size)
    for old in {1, size // 3 + 1, size}:
        assert consistency_path(nodes, old, size) == consistency_path(plain_nodes(entries), old, size)


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_bundles_round_trip(entries: list[bytes]) -> None:
    assert decode_entries(encode_entries(entries)) == entries


@given(st.lists(st.binary(min_size=1, max_size=9), min_size=1, max_size=9), st.integers(1, 2))
def test_a_cut_bundle_is_malformed(entries: list[bytes], cut: int) -> None:
    with pytest.raises(Malformed) as caught:
        decode_entries(encode_entries(entries)[: -min(cut, len(entries[-1]))])
    assert caught.value.rule == "ledger/bundle"


def test_an_entry_of_the_limit_fits_and_one_byte_more_does_not() -> None:
    entry = bytes(MAX_ENTRY_BYTES)
    assert decode_entries(encode_entries([entry])) == [entry]
    with pytest.raises(ValueError, match="65535 bytes"):
        encode_entries([entry + b"x"])


ORIGIN = "steelyard.example/log"
SIGNER = NoteSigner(ORIGIN, generate("ed25519"))


def signed_checkpoint(entries: list[bytes], *extensions: str) -> Checkpoint:
    return Checkpoint(ORIGIN, len(entries), plain_root(entries), tuple(extensions)).signed(SIGNER)


def test_checkpoint_round_trips_and_keeps_unknown_signatures() -> None:
    checkpoint = signed_checkpoint(entries_of(5), "extension 1", "extension 2")
    witness = NoteSignature("witness.example/w1", b"\x01\x02\x03\x04", bytes(72))
    both = Checkpoint(ORIGIN, 5, checkpoint.root, checkpoint.extensions, (witness, *checkpoint.signatures))
    read = Checkpoint.parse(both.to_bytes())
    assert read == checkpoint
    assert read.signatures == both.signatures
    read.check(SIGNER.key)


@pytest.mark.parametrize("change", ["origin", "size", "root", "extension", "signature", "key", "forged id"])
def test_a_changed_checkpoint_is_untrusted(change: str) -> None:
    good = signed_checkpoint(entries_of(5), "kept")
    key, sig = SIGNER.key, good.signatures[0]
    changed = {
        "origin": Checkpoint("steelyard.example/other", 5, good.root, good.extensions, good.signatures),
        "size": Checkpoint(ORIGIN, 6, good.root, good.extensions, good.signatures),
        "root": Checkpoint(ORIGIN, 5, EMPTY_ROOT, good.extensions, good.signatures),
        "extension": Checkpoint(ORIGIN, 5, good.root, (), good.signatures),
        "signature": Checkpoint(
            ORIGIN, 5, good.root, good.extensions, (NoteSignature(sig.name, sig.key_id, bytes(64)),)
        ),
        "forged id": Checkpoint(ORIGIN, 5, good.root, good.extensions, ()).signed(
            NoteSigner(ORIGIN, generate("ed25519"))
        ),
    }.get(change, good)
    if change == "key":
        key = NoteSigner(ORIGIN, generate("ed25519")).key
    with pytest.raises(Untrusted):
        Checkpoint.parse(changed.to_bytes()).check(key)


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_no_changed_byte_of_a_checkpoint_passes_for_the_original(place: int, change: int) -> None:
    good = signed_checkpoint(entries_of(3))
    data = bytearray(good.to_bytes())
    data[place % len(data)] ^= change
    with pytest.raises((Malformed, Untrusted)):
        Checkpoint.parse(bytes(data)).check(SIGNER.key)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a\n1\n",
        "a\n1\nAAAA\n",
        "a\n01\n{root}\n",
        "a\n-1\n{root}\n",
        "a\n9223372036854775808\n{root}\n",
        "a\n1\n{root}\n\nx\n",
        "\n1\n{root}\n",
        "a\n1\n{root}=\n",
        "a\n\u0661\n{root}\n",
    ],
)
def test_a_checkpoint_that_is_not_in_form_is_malformed(text: str) -> None:
    body = text.format(root=base64.b64encode(EMPTY_ROOT).decode())
    with pytest.raises(Malformed):
        Checkpoint.parse(Note(body, (SIGNER.sign(body),)).to_bytes())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"text\n",
        b"text\n\n",
        b"text\n\nno dash AAAAAAAA\n",
        "text\n\n\u2014 name AAAAAAA=".encode(),
        "text\n\n\u2014 na+me AAAAAAA=\n".encode(),
        "text\n\n\u2014 name AAAA\n".encode(),
        "text\n\n\u2014 name AAAAAAB=\n".encode(),
        "text\n\n\u2014 name AAAAAAA=\r\n".encode(),
        "te\txt\n\n\u2014 name AAAAAAA=\n".encode(),
        b"\xff\n\n\xe2\x80\x94 name AAAAAAA=\n",
    ],
)
def test_a_note_that_is_not_in_form_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        Note.parse(data)


def test_a_note_of_the_most_signatures_parses_and_one_more_does_not() -> None:
    line = "\u2014 witness AAAAAAA=\n"
    assert len(Note.parse(f"t\n\n{line * MAX_NOTE_SIGNATURES}".encode()).signatures) == MAX_NOTE_SIGNATURES
    with pytest.raises(Malformed, match="signatures"):
        Note.parse(f"t\n\n{line * (MAX_NOTE_SIGNATURES + 1)}".encode())


def test_a_text_with_empty_lines_is_cut_at_the_last_one() -> None:
    text = "one\n\ntwo\n"
    note = Note.parse(Note(text, (SIGNER.sign(text),)).to_bytes())
    assert note.text == text
    assert note.check([SIGNER.key]) == (SIGNER.key,)


@pytest.mark.parametrize(
    "vkey",
    [
        "",
        "example.com/foo",
        NOTE_KEY.replace("530d903a", "530d903b"),
        NOTE_KEY.replace("+Aek", "+Bek"),
        NOTE_KEY[:-4],
        NOTE_KEY.replace("/foo", " foo"),
    ],
)
def test_a_verifier_key_that_is_not_in_form_is_malformed(vkey: str) -> None:
    with pytest.raises(Malformed) as caught:
        VerifierKey.parse(vkey)
    assert caught.value.rule == "note/vkey"


def test_notes_are_signed_with_ed25519_only() -> None:
    with pytest.raises(ValueError, match="Ed25519"):
        NoteSigner(ORIGIN, generate("p256"))


@given(st.integers(1, 30), st.data())
def test_a_proof_travels_as_text(size: int, data: st.DataObject) -> None:
    entries = entries_of(size)
    index = data.draw(st.integers(0, size - 1))
    path = inclusion_path(plain_nodes(entries), index, size)
    proof = InclusionProof(index, entries[index], path, signed_checkpoint(entries))
    read = InclusionProof.parse(proof.to_text().encode())
    assert read == proof
    read.check(SIGNER.key)
    with pytest.raises(Untrusted):
        InclusionProof(index, b"another", path, proof.checkpoint).check(SIGNER.key)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("tlog-proof@v1", "tlog-proof@v2"),
        ("extra ", "extra"),
        ("index 1", "index 01"),
        ("index 1", "index -1"),
        ("index 1\n", "index 1\nAAAA\n"),
        ("index 1\n", "index 1\n" + ("A" * 43 + "=\n") * 65),
        ("\n\n", "\n"),
    ],
)
def test_a_proof_that_is_not_in_form_is_malformed(old: str, new: str) -> None:
    entries = entries_of(3)
    path = inclusion_path(plain_nodes(entries), 1, 3)
    text = InclusionProof(1, entries[1], path, signed_checkpoint(entries)).to_text()
    assert text.count(old) >= 1
    with pytest.raises(Malformed):
        InclusionProof.parse(text.replace(old, new, 1).encode())


def test_a_subtree_needs_a_power_of_two_of_hashes() -> None:
    assert complete_root([leaf_hash(LEAVES[0]), leaf_hash(LEAVES[1])]).hex() == ROOTS[2]
    with pytest.raises(ValueError, match="3 hashes"):
        complete_root([EMPTY_ROOT] * 3)


@given(st.lists(st.integers(0, 600), max_size=4), st.integers(0, 600))
def test_leaves_may_be_added_in_any_portions(portions: list[int], rest: int) -> None:
    leaves = [leaf_hash(b"%d" % i) for i in range(sum(portions) + rest)]
    one_by_one, in_portions = Edge(), Edge()
    expected = [tile for leaf in leaves for tile in one_by_one.add([leaf])]
    found, start = [], 0
    for portion in (*portions, rest):
        found += in_portions.add(leaves[start : start + portion])
        start += portion
    assert found == expected
    assert in_portions.levels == one_by_one.levels
    assert in_portions.size == one_by_one.size == len(leaves)
