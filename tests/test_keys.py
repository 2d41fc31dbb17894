"""Keys on disk."""

import stat

import pytest

from steelyard.errors import Malformed, Untrusted, WrongUsage
from steelyard.evidence import Statement, Subject, attest, verify
from steelyard.keys import ALGORITHMS, load_public, load_signer, new_key

each_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)


@each_algorithm
@pytest.mark.parametrize("passphrase", [None, b"correct horse"])
def test_key_written_is_key_read(tmp_path, algorithm, passphrase):
    made = new_key(tmp_path / "k.pem", algorithm, passphrase)
    read = load_signer(tmp_path / "k.pem", passphrase)
    assert read.public == made.public == load_public(tmp_path / "k.pub")
    evidence = attest(Statement((Subject("m", "00" * 32),), "urn:x", {}), read)
    assert verify(evidence, [made.public]) == {made.public.keyid}


def test_private_key_is_readable_by_its_owner_alone(tmp_path):
    new_key(tmp_path / "keys" / "k.pem")
    assert stat.S_IMODE((tmp_path / "keys" / "k.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700


def test_plain_key_open_to_others_is_refused(tmp_path):
    new_key(tmp_path / "k.pem")
    (tmp_path / "k.pem").chmod(0o640)
    with pytest.raises(WrongUsage, match="chmod 600"):
        load_signer(tmp_path / "k.pem")


def test_encrypted_key_says_nothing_without_its_passphrase(tmp_path):
    new_key(tmp_path / "k.pem", passphrase=b"right")
    assert b"ENCRYPTED" in (tmp_path / "k.pem").read_bytes()
    with pytest.raises(WrongUsage, match="needs a passphrase"):
        load_signer(tmp_path / "k.pem")
    with pytest.raises(Untrusted, match="does not open"):
        load_signer(tmp_path / "k.pem", b"wrong")


@pytest.mark.parametrize("name", ["k.pem", "k.pub"])
def test_key_is_never_overwritten(tmp_path, name):
    (tmp_path / name).write_bytes(b"precious")
    with pytest.raises(WrongUsage, match="never overwritten"):
        new_key(tmp_path / "k.pem")
    assert (tmp_path / name).read_bytes() == b"precious"


def test_missing_key_names_the_command_that_makes_one(tmp_path):
    with pytest.raises(WrongUsage, match="steelyard key new"):
        load_signer(tmp_path / "absent.pem")


def test_rubbish_is_no_key(tmp_path):
    (tmp_path / "k.pem").write_bytes(b"rubbish")
    (tmp_path / "k.pem").chmod(0o600)
    with pytest.raises(Malformed, match="not a PEM private key"):
        load_signer(tmp_path / "k.pem")


def test_rsa_key_is_refused(tmp_path):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    pem = rsa.generate_private_key(65537, 2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "k.pem").write_bytes(pem)
    (tmp_path / "k.pem").chmod(0o600)
    with pytest.raises(Malformed) as caught:
        load_signer(tmp_path / "k.pem")
    assert caught.value.rule == "key/algorithm"
