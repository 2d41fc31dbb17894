"""Witnesses: the form of C2SP's published example, then what a witness must refuse."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.errors import Malformed, Refused, SteelyardError, Untrusted
from steelyard.keys import generate
from steelyard.ledger import Checkpoint, Edge
from steelyard.merkle import complete_root, consistency_path, leaf_hash
from steelyard.note import NoteSigner, VerifierKey
from steelyard.witness import Cosigner, Request, WitnessKey, check_request, cosigned_by

# The checkpoint that C2SP tlog-cosignature.md shows; 1679315147 is the time it names for the cosignature.

EXAMPLE = (
    "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
    "\u2014 example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
    "\u2014 witness.example.com/w1 jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n"
).encode()  # fmt: skip

LOG = NoteSigner("steelyard.example/log", generate("ed25519"))
WITNESS = Cosigner("witness.example/w1", generate("ed25519"))
LEAVES = [leaf_hash(b"%d" % i) for i in range(64)]


def head(size: int, leaves: list[bytes] = LEAVES, signer: NoteSigner = LOG) -> Checkpoint:
    edge = Edge()
    edge.add(leaves[:size])
    return Checkpoint(signer.key.name, size, edge.root()).signed(signer)


def path(old: int, new: int, leaves: list[bytes] = LEAVES) -> tuple[bytes, ...]:
    return consistency_path(lambda h, i: complete_root(leaves[i << h : (i + 1) << h]), old, new)


def test_the_published_example_has_the_time_it_says() -> None:
    cosignature = Checkpoint.parse(EXAMPLE).signatures[1]
    assert cosignature.name == "witness.example.com/w1"
    assert int.from_bytes(cosignature.sig[:8], "big") == 1679315147
    assert len(cosignature.sig) == 8 + 64


def test_the_published_request_is_read_and_written_back() -> None:
    body = (
        b"old 20852014\nPlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=\njrJZDmY8Y7SyJE0MWLpLozkIVMSMZcD5kvuKxPC3swk=\n"
        b"5+pKlUdi2LeF/BcMHBn+Ku6yhPGNCswZZD1X/6QgPd8=\n/6WVhPs2CwSsb5rYBH5cjHV/wSmA79abXAwhXw3Kj/0=\n\n"
        + EXAMPLE
    )
    request = Request.parse(body)
    assert (request.old_size, len(request.path), request.checkpoint.size) == (20852014, 4, 20852163)
    assert request.to_bytes() == body


def test_a_cosignature_verifies_with_its_key_alone_and_no_other() -> None:
    cosigned = Checkpoint.parse(WITNESS.sign(head(7), 1_800_000_000).to_bytes())
    key = WitnessKey.parse(str(WITNESS.key))
    assert key == WITNESS.key
    assert key.time_of(cosigned) == 1_800_000_000
    cosigned.check(LOG.key)
    stranger = Cosigner("witness.example/w2", generate("ed25519")).key
    assert cosigned_by(cosigned, [key, stranger]) == {"witness.example/w1": 1_800_000_000}
    with pytest.raises(Malformed):
        WitnessKey.parse(str(LOG.key))  # a log's key is none of a witness


def test_a_second_cosignature_replaces_the_first() -> None:
    twice = WITNESS.sign(WITNESS.sign(head(7), 1), 2)
    assert len(twice.signatures) == 2
    assert WITNESS.key.time_of(twice) == 2


@given(place=st.integers(0, 71))
def test_a_changed_cosignature_or_time_is_untrusted(place: int) -> None:
    cosigned = WITNESS.sign(head(7), 1_800_000_000)
    theirs = cosigned.signatures[1]
    sig = bytearray(theirs.sig)
    sig[place] ^= 1
    changed = type(theirs)(theirs.name, theirs.key_id, bytes(sig))
    forged = Checkpoint(cosigned.origin, 7, cosigned.root, (), (cosigned.signatures[0], changed))
    with pytest.raises(Untrusted):
        WITNESS.key.time_of(forged)


def test_a_cosignature_moved_to_another_tree_is_untrusted() -> None:
    cosigned, other = WITNESS.sign(head(7), 5), head(8)
    with pytest.raises(Untrusted):
        WITNESS.key.time_of(Checkpoint(other.origin, 8, other.root, (), cosigned.signatures))


@given(old=st.integers(0, 64), new=st.integers(0, 64))
def test_a_witness_goes_on_exactly_where_a_proof_leads(old: int, new: int) -> None:
    seen = head(old)
    if new < old:
        with pytest.raises(Untrusted, match="rollback"):
            check_request(Request(old, (), head(new)), LOG.key, seen)
        return
    check_request(Request(old, path(old, new), head(new)), LOG.key, seen)
    if 0 < old < new:
        with pytest.raises(Untrusted):
            check_request(Request(old, (), head(new)), LOG.key, seen)


FORKED = [*LEAVES[:5], leaf_hash(b"other"), *LEAVES[6:]]


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        pytest.param(Request(8, (), head(8, FORKED)), Untrusted, id="fork of the same size"),
        pytest.param(Request(8, path(8, 20, FORKED), head(20, FORKED)), Untrusted, id="fork that went on"),
        pytest.param(Request(0, (), head(20)), Refused, id="from the beginning again"),
        pytest.param(Request(7, path(7, 20), head(20)), Refused, id="from another size"),
        pytest.param(Request(8, path(8, 20)[:-1], head(20)), Untrusted, id="proof cut"),
        pytest.param(Request(8, path(8, 21), head(20)), Untrusted, id="proof of another tree"),
        pytest.param(
            Request(8, path(8, 20), head(20, signer=NoteSigner(LOG.key.name, generate("ed25519")))),
            Untrusted,
            id="another key",
        ),
        pytest.param(
            Request(8, path(8, 20), head(20, signer=NoteSigner("other", generate("ed25519")))),
            Untrusted,
            id="another log",
        ),
    ],
)
def test_what_a_witness_must_not_cosign(request_: Request, error: type[SteelyardError]) -> None:
    with pytest.raises(error):
        check_request(request_, LOG.key, head(8))


@pytest.mark.parametrize(
    "data",
    [
        b"", b"old 1\n", b"old 01\n\n" + EXAMPLE, b"old -1\n\n" + EXAMPLE, b"old 1\nnot base64\n\n" + EXAMPLE,
        b"old 1\nAAAA\n\n" + EXAMPLE, b"old 9223372036854775808\n\n" + EXAMPLE, b"old 1\n\n", b"\xff\n\n" + EXAMPLE,
        b"old 1\n" + b"PlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=\n" * 65 + b"\n" + EXAMPLE,
        bytes(600_000),
    ],
)  # fmt: skip
def test_a_request_that_is_none_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed):
        Request.parse(data)


@pytest.mark.parametrize("change", ["w+00000000+", "", "no key", "a b+12345678+BAAA"])
def test_a_witness_key_that_is_none_is_malformed(change: str) -> None:
    with pytest.raises(Malformed):
        WitnessKey.parse(change)
    assert VerifierKey.parse(str(LOG.key)) == LOG.key
