"""Evidence: one in-toto Statement v1 in a DSSE envelope, signed with Ed25519 or ECDSA P-256.

Envelope (DSSE v1.0.2): {"payload": base64, "payloadType": text, "signatures": [{"keyid": text, "sig": base64}]}.
What is signed is the pre-authentication encoding `pae(payloadType, payload)`; `keyid` is a hint and never
trusted. Unknown fields of the envelope, of a signature and of the statement are kept and written back.

Sources: secure-systems-lab/dsse protocol.md and envelope.md; in-toto/attestation spec/v1/statement.md.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from steelyard.digest import JSON, Digest, canonical_json, sha256
from steelyard.errors import Malformed, Untrusted

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_PREFIX = "urn:steelyard:"
MAX_ENVELOPE_BYTES = 64 << 20  # the manifest of a million-file directory still fits
MAX_SIGNATURES = 64
MAX_SUBJECTS = 100_000


@dataclass(frozen=True, slots=True)
class PublicKey:
    """An Ed25519 or P-256 public key. `keyid` is the SHA-256 of its DER SubjectPublicKeyInfo, in hex."""

    pem: bytes
    keyid: str = field(init=False)
    _key: ed25519.Ed25519PublicKey | ec.EllipticCurvePublicKey = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        try:
            key = serialization.load_pem_public_key(self.pem)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise Malformed(f"not a PEM public key: {error}", rule="key/pem") from error
        if isinstance(key, ec.EllipticCurvePublicKey):
            if not isinstance(key.curve, ec.SECP256R1):
                raise Malformed(f"curve {key.curve.name} is not P-256", rule="key/algorithm")
        elif not isinstance(key, ed25519.Ed25519PublicKey):
            raise Malformed("the key is neither Ed25519 nor ECDSA P-256", rule="key/algorithm")
        der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        object.__setattr__(self, "_key", key)
        object.__setattr__(self, "keyid", hashlib.sha256(der).hexdigest())

    @property
    def algorithm(self) -> str:
        """`ed25519` or `p256`."""
        return "ed25519" if isinstance(self._key, ed25519.Ed25519PublicKey) else "p256"

    def verify(self, signature: bytes, data: bytes) -> bool:
        """Whether `signature` (raw for Ed25519, DER for P-256 with SHA-256) is this key's over `data`."""
        try:
            if isinstance(self._key, ed25519.Ed25519PublicKey):
                self._key.verify(signature, data)
            else:
                self._key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        except InvalidSignature:
            return False
        return True


class Signer(Protocol):
    """A private key, wherever it lives."""

    @property
    def public(self) -> PublicKey: ...

    def sign(self, data: bytes) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Subject:
    """What a statement is about: a name for people and the SHA-256 that identifies it."""

    name: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Statement:
    """in-toto Statement v1. `predicate` is plain JSON data whose meaning `predicate_type` names."""

    subjects: tuple[Subject, ...]
    predicate_type: str
    predicate: Mapping[str, Any]

    def to_bytes(self) -> bytes:
        """Canonical JSON of the statement."""
        return canonical_json(
            {
                "_type": STATEMENT_TYPE,
                "subject": [{"name": s.name, "digest": {"sha256": s.sha256}} for s in self.subjects],
                "predicateType": self.predicate_type,
                "predicate": self.predicate,
            }
        )


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature of an envelope, with the unknown fields it came with."""

    keyid: str
    sig: bytes
    extra: Mapping[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Evidence:
    """A signed statement. `id` is the SHA-256 of the payload, so more signatures do not change it."""

    payload: bytes
    payload_type: str
    signatures: tuple[Signature, ...]
    extra: Mapping[str, JSON] = field(default_factory=dict)
    statement: Statement = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "statement", _statement(self.payload_type, self.payload))

    @property
    def id(self) -> Digest:
        return sha256(self.payload)

    @classmethod
    def parse(cls, data: bytes) -> "Evidence":
        """Read a DSSE envelope in JSON. Raises Malformed."""
        envelope = _json_object(data, "evidence/envelope")
        signatures = _pop(envelope, "signatures", list, "evidence/envelope")
        if not 1 <= len(signatures) <= MAX_SIGNATURES:
            raise Malformed(
                f"{len(signatures)} signatures, expected 1 to {MAX_SIGNATURES}", rule="evidence/envelope"
            )
        payload_type = _pop(envelope, "payloadType", str, "evidence/envelope")
        payload = _base64(_pop(envelope, "payload", str, "evidence/envelope"))
        return cls(payload, payload_type, tuple(_signature(s) for s in signatures), envelope)

    def to_json(self) -> bytes:
        """The envelope as canonical JSON, unknown fields included."""
        signatures = [
            {**s.extra, "keyid": s.keyid, "sig": base64.b64encode(s.sig).decode()} for s in self.signatures
        ]
        return canonical_json(
            {
                **self.extra,
                "payload": base64.b64encode(self.payload).decode(),
                "payloadType": self.payload_type,
                "signatures": signatures,
            }
        )


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE pre-authentication encoding, version 1: what a signature covers."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def attest(statement: Statement, *signers: Signer) -> Evidence:
    """Sign `statement` with every signer (at least one)."""
    if not signers:
        raise ValueError("evidence needs at least one signer")
    payload = statement.to_bytes()
    message = pae(PAYLOAD_TYPE, payload)
    signatures = tuple(Signature(s.public.keyid, s.sign(message)) for s in signers)
    return Evidence(payload, PAYLOAD_TYPE, signatures)


def verify(evidence: Evidence, keys: Iterable[PublicKey]) -> frozenset[str]:
    """The keyids out of `keys` that signed. Raises Untrusted when none did.

    A signature whose keyid names one of `keys` is tried with that key; any other with all of them.
    """
    trusted = {key.keyid: key for key in keys}
    message = pae(evidence.payload_type, evidence.payload)
    signed: set[str] = set()
    for signature in evidence.signatures:
        named = trusted.get(signature.keyid)
        candidates = (named,) if named else tuple(trusted.values())
        signed.update(key.keyid for key in candidates if key.verify(signature.sig, message))
    if not signed:
        hints = ", ".join(sorted({s.keyid[:16] or "(none)" for s in evidence.signatures}))
        raise Untrusted(
            f"evidence {evidence.id}: no signature by any of {len(trusted)} trusted keys (signed by {hints})"
        )
    return frozenset(signed)


def timestamp(now: datetime) -> str:
    """`now` (timezone-aware) as every predicate's issued_at states it: RFC 3339, UTC, whole seconds."""
    return now.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _signature(value: object) -> Signature:
    if not isinstance(value, dict):
        raise Malformed("a signature is not an object", rule="evidence/envelope")
    fields = dict(value)
    keyid = fields.pop("keyid", "")
    if not isinstance(keyid, str):
        raise Malformed("a signature's keyid is not text", rule="evidence/envelope")
    return Signature(keyid, _base64(_pop(fields, "sig", str, "evidence/envelope")), fields)


def _statement(payload_type: str, payload: bytes) -> Statement:
    if payload_type != PAYLOAD_TYPE:
        raise Malformed(
            f"payload type {payload_type!r}, expected {PAYLOAD_TYPE}", rule="evidence/payload-type"
        )
    body = _json_object(payload, "evidence/statement")
    kind = _pop(body, "_type", str, "evidence/statement")
    if kind != STATEMENT_TYPE:
        raise Malformed(f"statement type {kind!r}, expected {STATEMENT_TYPE}", rule="evidence/statement")
    subjects = _pop(body, "subject", list, "evidence/statement")
    if not 1 <= len(subjects) <= MAX_SUBJECTS:
        raise Malformed(f"{len(subjects)} subjects, expected 1 to {MAX_SUBJECTS}", rule="evidence/statement")
    predicate_type = _pop(body, "predicateType", str, "evidence/statement")
    predicate = body.get("predicate", {})
    if not isinstance(predicate, dict):
        raise Malformed("the predicate is not an object", rule="evidence/statement")
    return Statement(tuple(_subject(s) for s in subjects), predicate_type, predicate)


def _subject(value: object) -> Subject:
    digest = value.get("digest") if isinstance(value, dict) else None
    if (
        not isinstance(value, dict)
        or not isinstance(digest, dict)
        or not isinstance(digest.get("sha256"), str)
    ):
        raise Malformed("a subject has no sha256 digest", rule="evidence/statement")
    name = value.get("name", "")
    if not isinstance(name, str):
        raise Malformed("a subject's name is not text", rule="evidence/statement")
    return Subject(name, digest["sha256"])


def _json_object(data: bytes, rule: str) -> dict[str, Any]:
    if len(data) > MAX_ENVELOPE_BYTES:
        raise Malformed(f"{len(data)} bytes, at most {MAX_ENVELOPE_BYTES} are read", rule=rule)
    try:
        value = json.loads(data, object_pairs_hook=_no_duplicates, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not one JSON value: {error}", rule=rule) from error
    if not isinstance(value, dict):
        raise Malformed("the JSON value is not an object", rule=rule)
    return value


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("an object repeats a key")
    return result


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _pop(fields: dict[str, Any], name: str, kind: type, rule: str) -> Any:  # noqa: ANN401 - `kind` is what comes back
    value = fields.pop(name, None)
    if not isinstance(value, kind):
        raise Malformed(f"field {name!r} is missing or not a {kind.__name__}", rule=rule)
    return value


def _base64(text: str) -> bytes:
    # DSSE allows the standard and the URL-safe alphabet.
    try:
        return base64.b64decode(text.replace("-", "+").replace("_", "/"), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Malformed(f"not base64: {error}", rule="evidence/base64") from error
