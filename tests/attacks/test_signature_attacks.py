"""Keyless model signatures in a world of our own: one honest bundle, and everything that must not pass for one.

The world has a certificate authority, a certificate log and a transparency log. That it is drawn rightly is shown by
sigstore's own verifier, which accepts the honest bundle.
"""

import base64
import hashlib
import json
import struct
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from steelyard.admit.signed_model import ByIdentity, verify_signature
from steelyard.digest import canonical_json
from steelyard.errors import Malformed, SteelyardError, Untrusted
from steelyard.evidence import PAYLOAD_TYPE, Statement, Subject, pae
from steelyard.manifest import manifest_of

WHO = "release@models.example"
ISSUER = "https://login.models.example"
AT = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)
DER, PEM = serialization.Encoding.DER, serialization.Encoding.PEM
SPKI = serialization.PublicFormat.SubjectPublicKeyInfo


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def log_id(key: ec.EllipticCurvePrivateKey) -> bytes:
    return hashlib.sha256(key.public_key().public_bytes(DER, SPKI)).digest()


def sign(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    return key.sign(message, ec.ECDSA(hashes.SHA256()))


@dataclass
class World:
    """Keys and choices; every field is what an attacker might turn. `bundle(folder)` draws the bundle."""

    root_key: ec.EllipticCurvePrivateKey = field(default_factory=new_key)
    leaf_key: ec.EllipticCurvePrivateKey = field(default_factory=new_key)
    ct_key: ec.EllipticCurvePrivateKey = field(default_factory=new_key)
    rekor_key: ec.EllipticCurvePrivateKey = field(default_factory=new_key)
    issuing_key: ec.EllipticCurvePrivateKey | None = None
    stamping_key: ec.EllipticCurvePrivateKey | None = None
    promising_key: ec.EllipticCurvePrivateKey | None = None
    checkpoint_key: ec.EllipticCurvePrivateKey | None = None
    identity: str = WHO
    issuer: str = ISSUER
    not_before: datetime = AT - timedelta(minutes=1)
    integrated: datetime = AT
    code_signing: bool = True
    is_stamped: bool = True
    root_is_ca: bool = True
    payload_in_log: bytes | None = None
    signature_in_log: bytes | None = None
    kind: str = "dsse"

    def root(self) -> x509.Certificate:
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "root")])
        key = self.root_key
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(7)
            .not_valid_before(AT - timedelta(days=100))
            .not_valid_after(AT + timedelta(days=100))
            .add_extension(x509.BasicConstraints(ca=self.root_is_ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(_usage(key_cert_sign=True), critical=True)
            .sign(key, hashes.SHA256())
        )

    def leaf(self) -> x509.Certificate:
        root, issuing = self.root(), self.issuing_key or self.root_key
        issuer = self.issuer.encode()
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(root.subject)
            .public_key(self.leaf_key.public_key())
            .serial_number(99)
            .not_valid_before(self.not_before)
            .not_valid_after(self.not_before + timedelta(minutes=10))
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.SubjectAlternativeName([x509.RFC822Name(self.identity)]), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(root.public_key()), critical=False
            )
            .add_extension(
                x509.UnrecognizedExtension(
                    x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8"), b"\x0c" + bytes([len(issuer)]) + issuer
                ),
                critical=False,
            )
        )
        if self.code_signing:
            usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING])
            builder = builder.add_extension(usage, critical=False)
        if not self.is_stamped:
            return builder.sign(issuing, hashes.SHA256())
        before = builder.sign(issuing, hashes.SHA256()).tbs_certificate_bytes
        issuer_hash = hashlib.sha256(self.root_key.public_key().public_bytes(DER, SPKI)).digest()
        milliseconds = round(AT.timestamp() * 1000)
        signed = struct.pack(">BBQH", 0, 0, milliseconds, 1) + issuer_hash
        signed += len(before).to_bytes(3, "big") + before + b"\0\0"
        signature = sign(self.stamping_key or self.ct_key, signed)
        stamp = b"\0" + log_id(self.ct_key) + struct.pack(">QH", milliseconds, 0) + b"\x04\x03"
        stamp += struct.pack(">H", len(signature)) + signature
        listed = struct.pack(">HH", len(stamp) + 2, len(stamp)) + stamp
        octets = (
            b"\x04\x81" + bytes([len(listed)]) + listed
            if len(listed) > 127
            else b"\x04" + bytes([len(listed)]) + listed
        )
        oid = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
        return builder.add_extension(x509.UnrecognizedExtension(oid, octets), critical=False).sign(
            issuing, hashes.SHA256()
        )

    def bundle(self, folder: Path) -> dict:
        model = manifest_of(folder)
        resources = [{"name": f.path, "algorithm": "sha256", "digest": f.sha256} for f in model.files]
        serialization_ = {
            "method": "files",
            "hash_type": "sha256",
            "allow_symlinks": False,
            "ignore_paths": [],
        }
        statement = Statement(
            (Subject("m", model.digest.hex),),
            "https://model_signing/signature/v1.0",
            {"serialization": serialization_, "resources": resources},
        )
        payload = statement.to_bytes()
        signature = sign(self.leaf_key, pae(PAYLOAD_TYPE, payload))
        certificate = self.leaf()
        body = canonical_json(
            {
                "apiVersion": "0.0.1",
                "kind": self.kind,
                "spec": {
                    "envelopeHash": {"algorithm": "sha256", "value": "00" * 32},
                    "payloadHash": {
                        "algorithm": "sha256",
                        "value": hashlib.sha256(self.payload_in_log or payload).hexdigest(),
                    },
                    "signatures": [
                        {
                            "signature": b64(self.signature_in_log or signature),
                            "verifier": b64(certificate.public_bytes(PEM)),
                        }
                    ],
                },
            }
        )
        sibling = hashlib.sha256(b"\0" + b"another entry").digest()
        root = hashlib.sha256(b"\x01" + sibling + hashlib.sha256(b"\0" + body).digest()).digest()
        text = f"rekor.models.example - 1\n2\n{b64(root)}\n"
        tick = int(self.integrated.timestamp())
        promised = canonical_json(
            {"body": b64(body), "integratedTime": tick, "logID": log_id(self.rekor_key).hex(), "logIndex": 41}
        )
        note = b64(log_id(self.rekor_key)[:4] + sign(self.checkpoint_key or self.rekor_key, text.encode()))
        return {
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "verificationMaterial": {
                "certificate": {"rawBytes": b64(certificate.public_bytes(DER))},
                "tlogEntries": [
                    {
                        "logIndex": "41",
                        "logId": {"keyId": b64(log_id(self.rekor_key))},
                        "kindVersion": {"kind": self.kind, "version": "0.0.1"},
                        "integratedTime": str(tick),
                        "inclusionPromise": {
                            "signedEntryTimestamp": b64(sign(self.promising_key or self.rekor_key, promised))
                        },
                        "inclusionProof": {
                            "logIndex": "1",
                            "rootHash": b64(root),
                            "treeSize": "2",
                            "hashes": [b64(sibling)],
                            "checkpoint": {"envelope": f"{text}\n— rekor.models.example {note}\n"},
                        },
                        "canonicalizedBody": b64(body),
                    }
                ],
            },
            "dsseEnvelope": {
                "payload": b64(payload),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [{"sig": b64(signature), "keyid": ""}],
            },
        }

    def trusted_root(self) -> bytes:
        period = {"start": "2025-01-01T00:00:00Z"}

        def log(key: ec.EllipticCurvePrivateKey) -> dict:
            return {
                "baseUrl": "https://log.models.example",
                "hashAlgorithm": "SHA2_256",
                "publicKey": {
                    "rawBytes": b64(key.public_key().public_bytes(DER, SPKI)),
                    "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                    "validFor": period,
                },
                "logId": {"keyId": b64(log_id(key))},
            }

        authority = {
            "subject": {"organization": "models.example", "commonName": "root"},
            "uri": "https://ca.models.example",
            "certChain": {"certificates": [{"rawBytes": b64(self.root().public_bytes(DER))}]},
            "validFor": period,
        }
        return json.dumps(
            {
                "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
                "tlogs": [log(self.rekor_key)],
                "ctlogs": [log(self.ct_key)],
                "certificateAuthorities": [authority],
                "timestampAuthorities": [],
            }
        ).encode()


def _usage(**on: bool) -> x509.KeyUsage:
    names = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: on.get(name, False) for name in names})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tmp_path / "m"
    model.mkdir()
    (model / "README.md").write_text("a model")
    (model / "weights.bin").write_bytes(bytes(100))
    return model


def check(world: World, folder: Path, bundle: dict | None = None, **trust: object):
    data = json.dumps(bundle if bundle is not None else world.bundle(folder)).encode()
    by = replace(ByIdentity(world.trusted_root(), WHO, ISSUER), **trust)
    return verify_signature(folder, manifest_of(folder), data, by)


def test_honest_bundle_is_accepted_by_us_and_by_sigstore(folder):
    from sigstore.models import Bundle, TrustedRoot
    from sigstore.verify import Verifier
    from sigstore.verify.policy import OIDCIssuerV2
    from sigstore_models.trustroot import v1 as trustroot_v1

    world = World()
    bundle = world.bundle(folder)
    signed = check(world, folder, bundle)
    assert signed.method == "sigstore"
    assert signed.signer["signed_at"] == "2026-03-01T12:00:00Z"
    theirs = Verifier(trusted_root=TrustedRoot(trustroot_v1.TrustedRoot.from_json(world.trusted_root())))
    kind, payload = theirs.verify_dsse(Bundle.from_json(json.dumps(bundle)), OIDCIssuerV2(ISSUER))
    assert kind == PAYLOAD_TYPE
    assert payload == base64.b64decode(bundle["dsseEnvelope"]["payload"])


WORLDS = {
    "certificate by another authority": ({"issuing_key": new_key()}, "vouches for the certificate"),
    "certificate never logged": ({"is_stamped": False}, "no certificate log"),
    "certificate log forged": ({"stamping_key": new_key()}, "certificate log's signature"),
    "promise forged": ({"promising_key": new_key()}, "signature on the time"),
    "checkpoint forged": ({"checkpoint_key": new_key()}, "signature on its checkpoint"),
    "signed after the certificate expired": (
        {"integrated": AT + timedelta(hours=1)},
        "vouches for the certificate",
    ),
    "signed before the certificate began": (
        {"integrated": AT - timedelta(hours=1)},
        "vouches for the certificate",
    ),
    "authority that is none": ({"root_is_ca": False}, "vouches for the certificate"),
    "certificate for something else": ({"code_signing": False}, "does not allow"),
    "another identity": ({"identity": "release@models.example.net"}, "expected release@models.example"),
    "another issuer": ({"issuer": "https://login.models.example.net"}, "vouched for by"),
    "log entry of another payload": ({"payload_in_log": b"x"}, "another envelope"),
    "log entry of another signature": ({"signature_in_log": b"x"}, "another envelope"),
    "log entry of another kind": ({"kind": "hashedrekord"}, "is not read"),
}


@pytest.mark.parametrize("attack", WORLDS)
def test_a_world_with_one_lie_is_refused(folder, attack):
    fields, reason = WORLDS[attack]
    with pytest.raises(Untrusted, match=reason):
        check(World(**fields), folder)


def entry_of(bundle: dict) -> dict:
    return bundle["verificationMaterial"]["tlogEntries"][0]


EDITS = {
    "no log entry": (
        lambda b: b["verificationMaterial"].update(tlogEntries=[]),
        "0 transparency log entries",
    ),
    "two log entries": (
        lambda b: b["verificationMaterial"]["tlogEntries"].append(entry_of(b)),
        "2 transparency log entries",
    ),
    "no inclusion proof": (lambda b: entry_of(b).pop("inclusionProof"), "no inclusion proof"),
    "no promise": (lambda b: entry_of(b).pop("inclusionPromise"), "signed no time"),
    "time moved": (lambda b: entry_of(b).update(integratedTime="1772366401"), "signature on the time"),
    "index moved": (lambda b: entry_of(b).update(logIndex="42"), "signature on the time"),
    "proof of another index": (
        lambda b: entry_of(b)["inclusionProof"].update(logIndex="0"),
        "inclusion of entry",
    ),
    "root without a checkpoint": (
        lambda b: entry_of(b)["inclusionProof"].update(rootHash=b64(bytes(32))),
        "another tree",
    ),
    "unknown log": (lambda b: entry_of(b)["logId"].update(keyId=b64(bytes(32))), "does not name"),
    "no certificate": (lambda b: b["verificationMaterial"].pop("certificate"), "no certificate"),
}


@pytest.mark.parametrize("attack", EDITS)
def test_an_edited_bundle_is_refused(folder, attack):
    edit, reason = EDITS[attack]
    world = World()
    bundle = world.bundle(folder)
    edit(bundle)
    with pytest.raises(Untrusted, match=reason):
        check(world, folder, bundle)


def test_every_flipped_byte_of_payload_signature_and_body_refuses(folder):
    world = World()
    bundle = world.bundle(folder)
    places = [
        (bundle["dsseEnvelope"], "payload"),
        (bundle["dsseEnvelope"]["signatures"][0], "sig"),
        (entry_of(bundle), "canonicalizedBody"),
        (entry_of(bundle)["inclusionProof"]["hashes"], 0),
        (entry_of(bundle)["inclusionPromise"], "signedEntryTimestamp"),
    ]
    for holder, name in places:
        good = holder[name]
        raw = base64.b64decode(good)
        for at in range(0, len(raw), max(1, len(raw) // 12)):
            holder[name] = b64(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
            with pytest.raises(SteelyardError):
                check(world, folder, bundle)
        holder[name] = good
    check(world, folder, bundle)


def test_trust_in_another_world_refuses(folder):
    with pytest.raises(Untrusted, match="does not name"):
        check(World(), folder, trusted_root=World().trusted_root())


def test_an_expired_log_key_refuses(folder):
    world = World()
    trusted = json.loads(world.trusted_root())
    trusted["tlogs"][0]["publicKey"]["validFor"]["end"] = "2025-06-01T00:00:00Z"
    with pytest.raises(Untrusted, match="was not valid"):
        check(world, folder, trusted_root=json.dumps(trusted).encode())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{",
        b'{"mediaType": 1}',
        b'{"a": 1, "a": 2}',
        b"[" * 100_000,
        b'{"mediaType": "text/plain"}',
    ],
)
def test_what_is_no_bundle_is_malformed(folder, data):
    with pytest.raises(Malformed):
        verify_signature(folder, manifest_of(folder), data, ByIdentity(World().trusted_root(), WHO, ISSUER))


def test_a_file_added_after_signing_refuses(folder):
    world = World()
    bundle = world.bundle(folder)
    (folder / "modeling.py").write_text("import os")
    with pytest.raises(Untrusted, match=r"modeling\.py is not signed"):
        check(world, folder, bundle)
