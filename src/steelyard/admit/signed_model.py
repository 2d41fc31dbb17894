"""OpenSSF model signatures (OMS): verified and written, by key and by certificate; keyless ones verified offline.

The bundle's statement has one subject, whose SHA-256 is that of the resources' raw digests one after another, and the
predicate https://model_signing/signature/v1.0:
    serialization {method files | shards, hash_type, shard_size, allow_symlinks, ignore_paths}
    resources [{name, algorithm, digest}], sorted; name is a path, or path:start:end for a shard (bytes).
Method files with sha256 needs no second hash: the model's own digest is the subject. Other methods are hashed again.
Statements of model-signing 0.2 (https://model_signing/Digests/v0.1) list the files as subjects.

The signature must cover every file: one that it does not name is refused, whatever `ignore_paths` says, except the
signature file itself and what the operator names. An ignored file is loaded like any other.

Source: sigstore/model-transparency, model_signing 1.1.1.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from steelyard.admit.bundle import Bundle, bundle_json, parse_bundle
from steelyard.admit.certificates import (
    check_chain,
    check_envelope,
    check_may_sign,
    from_der,
    hash_for,
    load_certificates,
    load_key,
)
from steelyard.admit.transparency import TrustedRoot, check_keyless
from steelyard.digest import JSON
from steelyard.errors import Malformed, Unavailable, Untrusted, WrongUsage
from steelyard.evidence import PAYLOAD_TYPE, Evidence, Signature, Statement, Subject, pae, timestamp
from steelyard.model import IGNORED_ROOT_NAMES, File, Model

PREDICATE_TYPE = "https://model_signing/signature/v1.0"
OLD_PREDICATE_TYPE = "https://model_signing/Digests/v0.1"
SIGNATURE_PREDICATE = "urn:steelyard:signature:v1"
MAX_LISTED = 10
BLOCK_BYTES = 1 << 20

_SHARD = re.compile(r"(.+):([0-9]{1,19}):([0-9]{1,19})", re.ASCII | re.DOTALL)
_HASHES = ("sha256", "blake2b")


@dataclass(frozen=True, slots=True)
class ByKey:
    """Trust one public key, in PEM."""

    pem: bytes


@dataclass(frozen=True, slots=True)
class ByCertificate:
    """Trust every certificate that one of these roots (PEM) vouches for."""

    roots: bytes


@dataclass(frozen=True, slots=True)
class ByIdentity:
    """Trust one identity of one issuer, by a Sigstore trusted root (JSON)."""

    trusted_root: bytes
    identity: str
    issuer: str


Trust = ByKey | ByCertificate | ByIdentity


@dataclass(frozen=True, slots=True)
class Signed:
    """A signature that holds: how, by whom, over what."""

    method: str
    signer: Mapping[str, JSON]
    bundle_sha256: str
    statement_type: str
    serialization: Mapping[str, JSON]
    files: int
    unsigned: tuple[str, ...]

    def to_predicate(self, now: datetime) -> dict[str, JSON]:
        """The body of urn:steelyard:signature:v1."""
        return {
            "issued_at": timestamp(now),
            "method": self.method,
            "signer": dict(self.signer),
            "bundle": {"sha256": self.bundle_sha256},
            "statement_type": self.statement_type,
            "serialization": dict(self.serialization),
            "files": self.files,
            "unsigned": list(self.unsigned),
        }


def verify_signature(
    root: Path,
    model: Model,
    data: bytes,
    trust: Trust,
    *,
    own_path: str | None = None,
    unsigned: frozenset[str] = frozenset(),
) -> Signed:
    """Check bundle `data` against `trust`, and that it covers exactly the files of `model` below `root`.

    own_path: where the bundle itself lies below `root`, absent when it lies elsewhere.  unsigned: paths that the
    operator accepts without a signature; the result names those that were there.
    Raises Untrusted (signature, signer, or a file that differs, is missing or is not signed), Malformed, Unavailable.
    """
    bundle = parse_bundle(data)
    statement = bundle.envelope.statement
    is_old = statement.predicate_type == OLD_PREDICATE_TYPE
    if statement.predicate_type != PREDICATE_TYPE and not is_old:
        raise Untrusted(f"the statement is {statement.predicate_type}, no model signature")
    method, signer = _check_signer(bundle, trust, is_old)
    serialization = _serialization(statement, is_old)
    resources = _resources(statement, is_old)
    left_out = tuple(sorted(f.path for f in model.files if f.path in unsigned and f.path not in resources))
    files = {file.path: file for file in model.files if file.path not in {own_path, *left_out}}
    _check_files(root, files, resources, serialization)
    return Signed(
        method,
        signer,
        hashlib.sha256(data).hexdigest(),
        statement.predicate_type,
        {
            name: serialization[name]
            for name in ("method", "hash_type", "shard_size")
            if name in serialization
        },
        len(files),
        left_out,
    )


def sign_model(
    model: Model,
    private_pem: bytes,
    passphrase: bytes | None = None,
    *,
    chain: bytes | None = None,
    own_path: str | None = None,
) -> bytes:
    """A bundle over every file of `model` but `own_path`, signed by an ECDSA key.

    chain: PEM certificates, the signer's first; absent, the bundle names the bare key.
    Raises WrongUsage (key, certificate of another key), Malformed.
    """
    key = _private_key(private_pem, passphrase)
    files = [file for file in model.files if file.path != own_path]
    if not files:
        raise WrongUsage("there is nothing to sign")
    statement = _statement(Model(model.name, tuple(files)), own_path)
    payload = statement.to_bytes()
    signature = key.sign(pae(PAYLOAD_TYPE, payload), ec.ECDSA(hash_for(key.public_key())))
    envelope = Evidence(payload, PAYLOAD_TYPE, (Signature("", signature),))
    if chain is None:
        return bundle_json(envelope, key_hint=_hint(key.public_key()))
    certificates = load_certificates(chain)
    if check_may_sign(certificates[0]) != key.public_key():
        raise WrongUsage("the first certificate is another key's")
    return bundle_json(
        envelope, certificates=tuple(c.public_bytes(serialization.Encoding.DER) for c in certificates)
    )


def _statement(model: Model, own_path: str | None) -> Statement:
    ignored: list[JSON] = [*sorted(IGNORED_ROOT_NAMES | ({own_path} if own_path else set()))]
    resources: list[JSON] = [
        {"name": file.path, "algorithm": "sha256", "digest": file.sha256} for file in model.files
    ]
    body: dict[str, JSON] = {
        "serialization": {
            "method": "files",
            "hash_type": "sha256",
            "allow_symlinks": False,
            "ignore_paths": ignored,
        },
        "resources": resources,
    }
    return Statement((Subject(model.name, model.digest.hex),), PREDICATE_TYPE, body)


def _private_key(pem: bytes, passphrase: bytes | None) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(pem, passphrase)
    except (TypeError, ValueError) as error:
        raise WrongUsage(f"not a PEM private key, or not with this passphrase: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise WrongUsage("model signatures are ECDSA: make a key with `steelyard key new --algorithm p256`")
    return key


def _hint(key: ec.EllipticCurvePublicKey) -> str:
    """What model-signing names a key by: the SHA-256 of its PEM text."""
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()


def _check_signer(bundle: Bundle, trust: Trust, is_old: bool) -> tuple[str, dict[str, JSON]]:
    """The method and who signed, once the envelope's signature holds."""
    if isinstance(trust, ByKey):
        key = load_key(trust.pem)
        if bundle.certificates:
            raise Untrusted(
                "signed by a certificate, and a key was given: name the roots or the identity instead"
            )
        check_envelope(bundle.envelope, key, is_old=is_old)
        return "key", {"key": _hint(key)}
    if isinstance(trust, ByIdentity):
        signer, key = check_keyless(
            bundle, TrustedRoot.parse(trust.trusted_root), trust.identity, trust.issuer
        )
        check_envelope(bundle.envelope, key)
        return "sigstore", {
            "identity": signer.identity,
            "issuer": signer.issuer,
            "signed_at": timestamp(signer.signed_at),
            "log": {"id": signer.log_id, "index": signer.log_index},
        }
    return "certificate", _check_certificate(bundle, load_certificates(trust.roots), is_old)


def _check_certificate(bundle: Bundle, roots: tuple[x509.Certificate, ...], is_old: bool) -> dict[str, JSON]:
    if not bundle.certificates:
        raise Untrusted("signed by a bare key, and roots were given: name the key instead")
    leaf, *others = (from_der(der) for der in bundle.certificates)
    # No clock is signed here, so the chain is checked for the start of the certificate's own time, as model-signing
    # does. Whether the certificate has expired since is a fact of the evidence, for the policy to judge.
    chain = check_chain(leaf, others, roots, leaf.not_valid_before_utc)
    check_envelope(bundle.envelope, check_may_sign(leaf), is_old=is_old)
    return {
        "subject": leaf.subject.rfc4514_string(),
        "issuer": leaf.issuer.rfc4514_string(),
        "serial": f"{leaf.serial_number:x}",
        "not_before": timestamp(leaf.not_valid_before_utc),
        "not_after": timestamp(leaf.not_valid_after_utc),
        "root": hashlib.sha256(chain[-1].public_bytes(serialization.Encoding.DER)).hexdigest(),
    }


def _serialization(statement: Statement, is_old: bool) -> dict[str, JSON]:
    if is_old:
        return {"method": "files", "hash_type": "sha256"}
    value = statement.predicate.get("serialization")
    if not isinstance(value, dict) or value.get("method") not in {"files", "shards"}:
        raise Malformed("the serialization method is neither files nor shards", rule="signature/statement")
    if value.get("hash_type") not in _HASHES:
        raise Untrusted(f"files hashed by {value.get('hash_type')!r} are not read, only sha256 and blake2b")
    return value


def _resources(statement: Statement, is_old: bool) -> dict[str, str]:
    """Name -> digest in hex; the subject must be the digest of them all."""
    found: dict[str, str] = {}
    if is_old:
        for subject in statement.subjects:
            _add(found, subject.name, subject.sha256)
        return found
    listed = statement.predicate.get("resources")
    if not isinstance(listed, list) or not listed or len(statement.subjects) != 1:
        raise Malformed("expected one subject and a list of resources", rule="signature/statement")
    whole = hashlib.sha256()
    for resource in listed:
        name, digest = (
            (resource.get("name"), resource.get("digest")) if isinstance(resource, dict) else (0, 0)
        )
        if (
            not isinstance(name, str)
            or not isinstance(digest, str)
            or not re.fullmatch("[0-9a-f]{2,128}", digest)
        ):
            raise Malformed("a resource has no name or no digest in hex", rule="signature/statement")
        _add(found, name, digest)
        whole.update(bytes.fromhex(digest))
    if whole.hexdigest() != statement.subjects[0].sha256:
        raise Untrusted("the statement contradicts itself: its subject is not the digest of its resources")
    return found


def _add(found: dict[str, str], name: str, digest: str) -> None:
    if name in found:
        raise Malformed(f"the statement names {name!r} twice", rule="signature/statement")
    found[name] = digest


def _check_files(
    root: Path, files: Mapping[str, File], signed: Mapping[str, str], serialization: Mapping[str, JSON]
) -> None:
    by_file: dict[str, list[tuple[int, int, str]]] = {}
    for name, digest in signed.items():
        path, start, end = name, 0, -1
        if serialization["method"] == "shards":
            shard = _SHARD.fullmatch(name)
            if shard is None:
                raise Malformed(f"{name!r} names no shard", rule="signature/statement")
            path, start, end = shard[1], int(shard[2]), int(shard[3])
        by_file.setdefault(path, []).append((start, end, digest))
    wrong = list(_differences(root, files, by_file, str(serialization["hash_type"])))
    if wrong:
        more = f" and {len(wrong) - MAX_LISTED} more" if len(wrong) > MAX_LISTED else ""
        raise Untrusted("the signature does not cover these files: " + "; ".join(wrong[:MAX_LISTED]) + more)


def _differences(
    root: Path, files: Mapping[str, File], signed: Mapping[str, list[tuple[int, int, str]]], hash_type: str
) -> Iterator[str]:
    for path in sorted(files.keys() - signed.keys()):
        yield f"{path} is not signed"
    for path in sorted(signed.keys() - files.keys()):
        yield f"{path} is missing"
    for path in sorted(files.keys() & signed.keys()):
        file, parts = files[path], sorted(signed[path])
        if parts[0][1] < 0:
            is_same = parts[0][2] == (
                file.sha256 if hash_type == "sha256" else _digest(root, file, 0, file.size)
            )
        else:
            ends = [0, *(end for _, end, _ in parts)]
            is_whole = all(start == end for (start, _, _), end in zip(parts, ends, strict=False))
            is_same = is_whole and ends[-1] == file.size
            is_same = is_same and all(_digest(root, file, s, e, hash_type) == d for s, e, d in parts)
        if not is_same:
            yield f"{path} differs"


def _digest(root: Path, file: File, start: int, end: int, hash_type: str = "blake2b") -> str:
    hasher = hashlib.new(hash_type)
    path = root if file.path == "." else root / file.path
    try:
        with path.open("rb") as stream:
            stream.seek(start)
            left = end - start
            while left > 0 and (block := stream.read(min(BLOCK_BYTES, left))):
                hasher.update(block)
                left -= len(block)
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error
    return hasher.hexdigest()
