"""OpenSSF model signatures by key and by certificate, both ways against the model-signing package."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st
from model_signing import hashing, signing, verifying

from steelyard.admit.signed_model import ByCertificate, ByKey, sign_model, verify_signature
from steelyard.errors import Untrusted, WrongUsage
from steelyard.manifest import manifest_of

PEM = serialization.Encoding.PEM
CURVES = {"p256": ec.SECP256R1(), "p384": ec.SECP384R1(), "p521": ec.SECP521R1()}


def private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def public(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def certificate(
    key, subject: str, *, by=None, by_name: str = "", is_ca: bool = False, days: int = 30
) -> x509.Certificate:
    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    start = datetime.now(UTC) - timedelta(days=10)
    usage = x509.KeyUsage(not is_ca, False, False, False, False, is_ca, is_ca, False, False)
    issuer = by or key
    return (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(by_name or subject))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), critical=False
        )
        .sign(issuer, hashes.SHA256())
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    (model / "sub").mkdir(parents=True)
    (model / "a.b").write_bytes(b"1")
    (model / "a").mkdir()
    (model / "a" / "b").write_bytes(b"2")
    (model / "sub" / "weights.bin").write_bytes(bytes(range(256)) * 9)
    return model


@pytest.mark.parametrize("curve", CURVES)
def test_they_accept_what_we_sign_by_key_and_refuse_a_change(folder, tmp_path, curve):
    key = ec.generate_private_key(CURVES[curve])
    (tmp_path / "key.pub").write_bytes(public(key))
    (tmp_path / "model.sig").write_bytes(sign_model(manifest_of(folder), private(key)))

    def theirs() -> None:
        verifying.Config().use_elliptic_key_verifier(public_key=tmp_path / "key.pub").verify(
            folder, tmp_path / "model.sig"
        )

    theirs()
    (folder / "a.b").write_bytes(b"3")
    with pytest.raises(ValueError, match="mismatch"):
        theirs()


HASHINGS = {
    "files sha256": lambda: hashing.Config().use_file_serialization(),
    "files blake2b": lambda: hashing.Config().use_file_serialization(hashing_algorithm="blake2"),
    "shards sha256": lambda: hashing.Config().use_shard_serialization(shard_size=1000),
    "shards blake2b": lambda: hashing.Config().use_shard_serialization(
        hashing_algorithm="blake2", shard_size=777
    ),
}


@pytest.mark.parametrize("curve", CURVES)
@pytest.mark.parametrize("method", HASHINGS)
def test_we_accept_what_they_sign_by_key_and_refuse_a_change(folder, tmp_path, curve, method):
    key = ec.generate_private_key(CURVES[curve])
    (tmp_path / "key").write_bytes(private(key))
    out = folder / "model.sig"
    config = signing.Config().use_elliptic_key_signer(private_key=tmp_path / "key")
    config.set_hashing_config(HASHINGS[method]().set_ignored_paths(paths=[out])).sign(folder, out)
    trust = ByKey(public(key))
    signed = verify_signature(folder, manifest_of(folder), out.read_bytes(), trust, own_path="model.sig")
    assert (signed.method, signed.files) == ("key", 3)

    weights = folder / "sub" / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    with pytest.raises(Untrusted, match=r"sub/weights\.bin differs"):
        verify_signature(folder, manifest_of(folder), out.read_bytes(), trust, own_path="model.sig")


def test_single_file_is_signed_and_verified_both_ways(tmp_path):
    key = ec.generate_private_key(CURVES["p256"])
    (tmp_path / "key").write_bytes(private(key))
    (tmp_path / "key.pub").write_bytes(public(key))
    one = tmp_path / "weights.safetensors"
    one.write_bytes(b"bytes")
    signing.Config().use_elliptic_key_signer(private_key=tmp_path / "key").sign(one, tmp_path / "theirs.sig")
    verify_signature(one, manifest_of(one), (tmp_path / "theirs.sig").read_bytes(), ByKey(public(key)))
    (tmp_path / "ours.sig").write_bytes(sign_model(manifest_of(one), private(key)))
    verifying.Config().use_elliptic_key_verifier(public_key=tmp_path / "key.pub").verify(
        one, tmp_path / "ours.sig"
    )


def test_certificates_both_ways(folder, tmp_path):
    root_key, middle_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    root = certificate(root_key, "root", is_ca=True)
    middle = certificate(middle_key, "middle", by=root_key, by_name="root", is_ca=True)
    leaf = certificate(key, "signer", by=middle_key, by_name="middle")
    for name, value in {"root": root, "middle": middle, "leaf": leaf}.items():
        (tmp_path / f"{name}.pem").write_bytes(value.public_bytes(PEM))
    (tmp_path / "key").write_bytes(private(key))
    chain = leaf.public_bytes(PEM) + middle.public_bytes(PEM)
    (tmp_path / "ours.sig").write_bytes(sign_model(manifest_of(folder), private(key), chain=chain))
    verifying.Config().use_certificate_verifier(certificate_chain=[tmp_path / "root.pem"]).verify(
        folder, tmp_path / "ours.sig"
    )
    signing.Config().use_certificate_signer(
        private_key=tmp_path / "key",
        signing_certificate=tmp_path / "leaf.pem",
        certificate_chain=[tmp_path / "middle.pem"],
    ).sign(folder, tmp_path / "theirs.sig")
    data = (tmp_path / "theirs.sig").read_bytes()
    signed = verify_signature(folder, manifest_of(folder), data, ByCertificate(root.public_bytes(PEM)))
    assert signed.method == "certificate"
    assert signed.signer["subject"] == "CN=signer"

    other = certificate(ec.generate_private_key(ec.SECP256R1()), "root", is_ca=True)
    with pytest.raises(Untrusted, match="no valid chain"):
        verify_signature(folder, manifest_of(folder), data, ByCertificate(other.public_bytes(PEM)))
    # A chain whose middle is no authority: the signer of one model may not make signers.
    (tmp_path / "forged.sig").write_bytes(
        sign_model(
            manifest_of(folder),
            private(middle_key),
            chain=certificate(middle_key, "forged", by=key, by_name="signer").public_bytes(PEM)
            + leaf.public_bytes(PEM)
            + middle.public_bytes(PEM),
        )
    )
    with pytest.raises(Untrusted, match="no valid chain"):
        verify_signature(
            folder,
            manifest_of(folder),
            (tmp_path / "forged.sig").read_bytes(),
            ByCertificate(root.public_bytes(PEM)),
        )


def test_another_key_refuses(folder):
    key, other = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    data = sign_model(manifest_of(folder), private(key))
    with pytest.raises(Untrusted, match="not this key's"):
        verify_signature(folder, manifest_of(folder), data, ByKey(public(other)))


@pytest.mark.parametrize("change", ["added", "removed", "renamed"])
def test_tree_that_is_not_the_signed_one_refuses(folder, change):
    key = ec.generate_private_key(ec.SECP256R1())
    data = sign_model(manifest_of(folder), private(key))
    if change == "added":
        (folder / "extra.py").write_text("import os")
    elif change == "removed":
        (folder / "a.b").unlink()
    else:
        (folder / "a.b").rename(folder / "c")
    with pytest.raises(Untrusted, match="does not cover"):
        verify_signature(folder, manifest_of(folder), data, ByKey(public(key)))


def test_ignored_path_of_the_signer_is_refused_unless_the_operator_names_it(folder, tmp_path):
    key = ec.generate_private_key(ec.SECP256R1())
    (tmp_path / "key").write_bytes(private(key))
    config = signing.Config().use_elliptic_key_signer(private_key=tmp_path / "key")
    ignored = hashing.Config().set_ignored_paths(paths=[folder / "a.b"])
    config.set_hashing_config(ignored).sign(folder, tmp_path / "model.sig")
    data, trust = (tmp_path / "model.sig").read_bytes(), ByKey(public(key))
    with pytest.raises(Untrusted, match=r"a\.b is not signed"):
        verify_signature(folder, manifest_of(folder), data, trust)
    signed = verify_signature(folder, manifest_of(folder), data, trust, unsigned=frozenset({"a.b"}))
    assert signed.unsigned == ("a.b",)


@settings(max_examples=40)
@given(position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_flipped_bit_of_the_payload_or_signature_refuses(tmp_path_factory, position, bit):
    import base64

    root = tmp_path_factory.mktemp("m") / "w"
    root.write_bytes(b"weights")
    key = ec.generate_private_key(ec.SECP256R1())
    bundle = json.loads(sign_model(manifest_of(root), private(key)))
    holder = bundle["dsseEnvelope"] if position % 2 else bundle["dsseEnvelope"]["signatures"][0]
    name = "payload" if position % 2 else "sig"
    raw = bytearray(base64.b64decode(holder[name]))
    raw[position % len(raw)] ^= 1 << bit
    holder[name] = base64.b64encode(raw).decode()
    from steelyard.errors import SteelyardError

    with pytest.raises(SteelyardError):
        verify_signature(root, manifest_of(root), json.dumps(bundle).encode(), ByKey(public(key)))


def test_keys_and_certificates_that_cannot_sign_are_wrong_usage(folder):
    model = manifest_of(folder)
    key, other = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    wrong = rsa.generate_private_key(65537, 2048)
    with pytest.raises(WrongUsage, match="ECDSA"):
        sign_model(model, private(wrong))
    with pytest.raises(WrongUsage, match="another key"):
        sign_model(model, private(key), chain=certificate(other, "other").public_bytes(PEM))
    with pytest.raises(WrongUsage, match="not a PEM"):
        sign_model(model, b"no key")
