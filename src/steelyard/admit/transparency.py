"""Keyless signatures, checked offline: Fulcio's certificate, the certificate log, and Rekor's entry.

A trusted root (the operator's file, as Sigstore publishes it) names the keys of the logs and the certificate
authorities, each with the time for which it is valid. The signature holds when
  1. the log entry is in the log: its inclusion proof leads to a tree head that the log signed;
  2. the log signed the time at which it took the entry in (the inclusion promise);
  3. the entry is about this envelope: payload hash, signature and certificate;
  4. the certificate was valid at that time, chains to a certificate authority of that time, and a certificate log
     signed for it (RFC 6962, section 3.2);
  5. the certificate names the identity and the issuer that the operator asked for.
A bundle whose only time is an RFC 3161 timestamp (Rekor 2) is not read, and so is refused.

Sources: sigstore/protobuf-specs sigstore_trustroot.proto; sigstore/architecture-docs client-spec.md; Fulcio
docs/oid-info.md; Rekor types dsse 0.0.1; RFC 6962; C2SP signed-note.
"""

import base64
import hashlib
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.x509.certificate_transparency import SignedCertificateTimestamp

from steelyard.admit.bundle import Bundle, LogEntry, decode, parse_json
from steelyard.admit.certificates import check_chain, check_may_sign, from_der
from steelyard.digest import canonical_json
from steelyard.errors import Malformed, Untrusted
from steelyard.merkle import check_inclusion, leaf_hash
from steelyard.note import Note

MEDIA_TYPES = tuple(
    f"application/vnd.dev.sigstore.trustedroot{v}" for v in ("+json;version=0.1", ".v0.2+json")
)
MAX_INSTANCES = 64

_ISSUER = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8")
_ISSUER_RAW = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.1")
_USERNAME = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.7")
_UTF8_STRING = 0x0C

LogKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey


@dataclass(frozen=True, slots=True)
class Period:
    """From `start` to `end`, open where absent."""

    start: datetime | None
    end: datetime | None

    def holds(self, at: datetime) -> bool:
        return (self.start is None or self.start <= at) and (self.end is None or at <= self.end)


@dataclass(frozen=True, slots=True)
class Log:
    """A transparency log: its id, its key, and when that key signed."""

    log_id: bytes
    key: LogKey
    period: Period


@dataclass(frozen=True, slots=True)
class Authority:
    """A certificate authority: the certificates of its chain, the root last."""

    chain: tuple[x509.Certificate, ...]
    period: Period


@dataclass(frozen=True, slots=True)
class TrustedRoot:
    """Whom a keyless signature is believed by."""

    logs: tuple[Log, ...]
    certificate_logs: tuple[Log, ...]
    authorities: tuple[Authority, ...]

    @classmethod
    def parse(cls, data: bytes) -> "TrustedRoot":
        """Read a trusted_root.json. Raises Malformed."""
        root = parse_json(data, "signature/trusted-root")
        if root.get("mediaType") not in MEDIA_TYPES:
            raise _bad(f"media type {root.get('mediaType')!r} is no Sigstore trusted root")
        return cls(
            tuple(_log(entry) for entry in _listed(root, "tlogs")),
            tuple(_log(entry) for entry in _listed(root, "ctlogs")),
            tuple(_authority(entry) for entry in _listed(root, "certificateAuthorities")),
        )


@dataclass(frozen=True, slots=True)
class Keyless:
    """Who signed, by whose word, when (UTC), and where that is recorded."""

    identity: str
    issuer: str
    signed_at: datetime
    log_id: str
    log_index: int


def check_keyless(
    bundle: Bundle, trusted: TrustedRoot, identity: str, issuer: str
) -> tuple[Keyless, ec.EllipticCurvePublicKey]:
    """The signer and the key that the envelope's signature must be checked with. Raises Untrusted, Malformed.

    identity: the e-mail address, URI or user name in the certificate, exactly.  issuer: the OpenID Connect issuer.
    """
    if len(bundle.certificates) == 0:
        raise Untrusted("the bundle holds no certificate, so no identity")
    if len(bundle.log_entries) != 1:
        raise Untrusted(f"{len(bundle.log_entries)} transparency log entries, expected one")
    entry = bundle.log_entries[0]
    at = _check_entry(entry, trusted)
    _check_body(entry, bundle)
    leaf = from_der(bundle.certificates[0])
    chain = _check_authority(leaf, trusted, at)
    _check_certificate_log(leaf, chain[1], trusted)
    found = _identities(leaf)
    if identity not in found:
        raise Untrusted(f"signed by {', '.join(found) or 'nobody named'}, expected {identity}")
    by = _issuer_of(leaf)
    if by != issuer:
        raise Untrusted(f"the identity was vouched for by {by}, expected {issuer}")
    return Keyless(identity, issuer, at, entry.log_id.hex(), entry.index), check_may_sign(
        leaf, is_code_signer=True
    )


def _check_entry(entry: LogEntry, trusted: TrustedRoot) -> datetime:
    """When the log took the entry in, if the log says so and the entry is in it."""
    if entry.integrated_time is None or entry.promise is None:
        raise Untrusted(
            "the log signed no time for this entry; bundles that carry an RFC 3161 timestamp instead are not read"
        )
    at = datetime.fromtimestamp(entry.integrated_time, UTC)
    log = _find(trusted.logs, entry.log_id, at, "transparency log")
    promised = canonical_json(
        {
            "body": base64.b64encode(entry.body).decode(),
            "integratedTime": entry.integrated_time,
            "logID": entry.log_id.hex(),
            "logIndex": entry.index,
        }
    )
    _check(log.key, entry.promise, promised, "the log's signature on the time of the entry")
    proof = entry.proof
    if proof is None:
        raise Untrusted("the bundle has no inclusion proof: that the entry is in the log is not shown")
    note = Note.parse(proof.checkpoint.encode())
    lines = note.text.split("\n")
    if (
        len(lines) < 4
        or lines[1] != str(proof.size)
        or decode(lines[2], "signature/checkpoint") != proof.root
    ):
        raise Untrusted("the log's checkpoint is about another tree than the inclusion proof")
    signatures = [s for s in note.signatures if s.key_id == entry.log_id[:4]]
    if not signatures:
        raise Untrusted("the checkpoint is not signed by the log of the entry")
    _check(log.key, signatures[0].sig, note.text.encode(), "the log's signature on its checkpoint")
    check_inclusion(leaf_hash(entry.body), proof.index, proof.size, proof.root, proof.hashes)
    return at


def _check_body(entry: LogEntry, bundle: Bundle) -> None:
    """The entry must be about this envelope and this certificate, not about another of the same signer."""
    if (entry.kind, entry.version) != ("dsse", "0.0.1"):
        raise Untrusted(f"a log entry of kind {entry.kind} {entry.version} is not read, only dsse 0.0.1")
    body = parse_json(entry.body, "signature/log-entry")
    spec = body.get("spec")
    try:
        if not isinstance(spec, dict):
            raise TypeError("no spec")
        kind = (body["kind"], body["apiVersion"])
        payload_hash = (spec["payloadHash"]["algorithm"], spec["payloadHash"]["value"])
        [signature] = spec["signatures"]
        signed, verifier = decode(signature["signature"]), decode(signature["verifier"])
    except (KeyError, TypeError, ValueError) as error:
        raise Malformed(f"not a dsse log entry: {error!r}", rule="signature/log-entry") from error
    envelope = bundle.envelope
    leaf = from_der(bundle.certificates[0])
    pem = leaf.public_bytes(serialization.Encoding.PEM)
    if (
        kind != ("dsse", "0.0.1")
        or payload_hash != ("sha256", hashlib.sha256(envelope.payload).hexdigest())
        or signed != envelope.signatures[0].sig
        or verifier.strip() != pem.strip()
    ):
        raise Untrusted("the log entry is about another envelope, signature or certificate")


def _check_authority(
    leaf: x509.Certificate, trusted: TrustedRoot, at: datetime
) -> tuple[x509.Certificate, ...]:
    reasons = []
    for authority in trusted.authorities:
        if not authority.period.holds(at):
            continue
        try:
            chain = check_chain(leaf, authority.chain[:-1], authority.chain[-1:], at)
        except Untrusted as error:
            reasons.append(error.message)
            continue
        if len(chain) > 1:
            return chain
    why = reasons[0] if reasons else "the trusted root names none for that time"
    raise Untrusted(f"no certificate authority of {at:%Y-%m-%d} vouches for the certificate: {why}")


def _check_certificate_log(leaf: x509.Certificate, issuer: x509.Certificate, trusted: TrustedRoot) -> None:
    """At least one signed certificate timestamp of a known log (RFC 6962, section 3.2, entry type 1)."""
    try:
        stamps = leaf.extensions.get_extension_for_class(x509.PrecertificateSignedCertificateTimestamps).value
    except x509.ExtensionNotFound:
        raise Untrusted("no certificate log has recorded the certificate") from None
    for stamp in stamps:
        at = stamp.timestamp.replace(tzinfo=UTC)
        log = next((known for known in trusted.certificate_logs if known.log_id == stamp.log_id), None)
        if log is not None and log.period.holds(at):
            _check(log.key, stamp.signature, _stamped(stamp, leaf, issuer), "the certificate log's signature")
            return
    raise Untrusted("the certificate is recorded only by logs that the trusted root does not name")


def _stamped(stamp: SignedCertificateTimestamp, leaf: x509.Certificate, issuer: x509.Certificate) -> bytes:
    key = issuer.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    certificate = leaf.tbs_precertificate_bytes
    at = stamp.timestamp.replace(tzinfo=UTC)
    milliseconds = round(at.timestamp() * 1000)
    return b"".join(
        [
            struct.pack(">BBQH", 0, 0, milliseconds, 1),
            hashlib.sha256(key).digest(),
            len(certificate).to_bytes(3, "big"),
            certificate,
            struct.pack(">H", len(stamp.extension_bytes)),
            stamp.extension_bytes,
        ]
    )


def _identities(leaf: x509.Certificate) -> list[str]:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    found = [
        *names.get_values_for_type(x509.RFC822Name),
        *names.get_values_for_type(x509.UniformResourceIdentifier),
    ]
    others = names.get_values_for_type(x509.OtherName)
    return found + [_utf8_string(other.value) for other in others if other.type_id == _USERNAME]


def _issuer_of(leaf: x509.Certificate) -> str:
    values = {
        extension.oid: extension.value.value
        for extension in leaf.extensions
        if isinstance(extension.value, x509.UnrecognizedExtension)
    }
    if _ISSUER in values:
        return _utf8_string(values[_ISSUER])
    if _ISSUER_RAW in values:
        return values[_ISSUER_RAW].decode("utf-8", "replace")
    raise Untrusted("the certificate does not say who vouched for its identity")


def _utf8_string(der: bytes) -> str:
    """A DER UTF8String of fewer than 65,536 bytes."""
    heads = {0x81: 3, 0x82: 4}
    head = 2 if der[1:2] < b"\x80" else heads.get(der[1], 0)
    length = der[1] if head == 2 and len(der) > 1 else int.from_bytes(der[2:head], "big")
    if not head or der[0] != _UTF8_STRING or len(der) != head + length:
        raise Malformed("a field of the certificate is not one UTF-8 string", rule="signature/certificate")
    try:
        return der[head:].decode()
    except UnicodeDecodeError as error:
        raise Malformed("a field of the certificate is not UTF-8", rule="signature/certificate") from error


def _check(key: LogKey, signature: bytes, message: bytes, what: str) -> None:
    try:
        if isinstance(key, ed25519.Ed25519PublicKey):
            key.verify(signature, message)
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, message, PKCS1v15(), hashes.SHA256())
        else:
            key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as error:
        raise Untrusted(f"{what} does not hold") from error


def _find(logs: Iterable[Log], log_id: bytes, at: datetime, what: str) -> Log:
    for log in logs:
        if log.log_id == log_id:
            if not log.period.holds(at):
                raise Untrusted(f"the key of {what} {log_id.hex()[:16]} was not valid on {at:%Y-%m-%d}")
            return log
    raise Untrusted(f"the trusted root does not name the {what} {log_id.hex()[:16]}")


def _listed(root: Mapping[str, object], name: str) -> list[dict[str, object]]:
    value = root.get(name, [])
    if (
        not isinstance(value, list)
        or len(value) > MAX_INSTANCES
        or not all(isinstance(v, dict) for v in value)
    ):
        raise _bad(f"{name} is not a list of at most {MAX_INSTANCES} objects")
    return value


def _log(entry: Mapping[str, object]) -> Log:
    key, log_id = entry.get("publicKey"), entry.get("logId")
    if not isinstance(key, dict) or not isinstance(log_id, dict):
        raise _bad("a log has no publicKey or logId")
    try:
        loaded = serialization.load_der_public_key(decode(key.get("rawBytes"), "signature/trusted-root"))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _bad("a log's key is not DER") from error
    if not isinstance(loaded, LogKey):
        raise _bad("a log's key is neither elliptic curve, Ed25519 nor RSA")
    return Log(decode(log_id.get("keyId"), "signature/trusted-root"), loaded, _period(key.get("validFor")))


def _authority(entry: Mapping[str, object]) -> Authority:
    chain = entry.get("certChain")
    listed = chain.get("certificates") if isinstance(chain, dict) else None
    if not isinstance(listed, list) or not listed or not all(isinstance(c, dict) for c in listed):
        raise _bad("a certificate authority has no chain")
    raw = [decode(certificate.get("rawBytes"), "signature/trusted-root") for certificate in listed]
    return Authority(tuple(from_der(der) for der in raw), _period(entry.get("validFor")))


def _period(value: object) -> Period:
    if value is None:
        return Period(None, None)
    if not isinstance(value, dict):
        raise _bad("validFor is not an object")
    return Period(_instant(value.get("start")), _instant(value.get("end")))


def _instant(value: object) -> datetime | None:
    if value is None:
        return None
    try:
        instant = datetime.fromisoformat(str(value))
    except ValueError as error:
        raise _bad(f"{value!r} is no time") from error
    if instant.tzinfo is None:
        raise _bad(f"{value!r} has no time zone")
    return instant


def _bad(message: str) -> Malformed:
    return Malformed(message, rule="signature/trusted-root")
