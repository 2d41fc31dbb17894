"""Sigstore bundles: what an OpenSSF model signature is carried in.

bundle = {"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
          "verificationMaterial": one of "publicKey" {"hint"}, "certificate" {"rawBytes"} and
              "x509CertificateChain" {"certificates": [{"rawBytes"}]}, with "tlogEntries" [entry] and
              "timestampVerificationData",
          "dsseEnvelope": the DSSE envelope of an in-toto statement}
Bytes are base64, 64-bit integers are decimal text. Media types 0.1 to 0.3 differ in which fields must be there; what
a method needs is checked by that method.

Source: sigstore/protobuf-specs, sigstore_bundle.proto and sigstore_rekor.proto.
"""

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from steelyard.digest import JSON, canonical_json
from steelyard.errors import Malformed
from steelyard.evidence import Evidence

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
MAX_BUNDLE_BYTES = 96 << 20  # the largest envelope, in base64
MAX_CERTIFICATES = 16
MAX_LOG_ENTRIES = 8
MAX_PROOF_HASHES = 64

_MEDIA_TYPES = re.compile(
    r"application/vnd\.dev\.sigstore\.bundle(\.v0\.3\+json|\+json;version=0\.[123])", re.ASCII
)


@dataclass(frozen=True, slots=True)
class InclusionProof:
    """Entry `index` of the tree of `size` entries; `checkpoint` is the log's signed note on that tree."""

    index: int
    size: int
    root: bytes
    hashes: tuple[bytes, ...]
    checkpoint: str


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One entry of a transparency log. `integrated_time` is in seconds since 1970, bound by `promise` alone."""

    index: int
    log_id: bytes
    kind: str
    version: str
    integrated_time: int | None
    promise: bytes | None
    proof: InclusionProof | None
    body: bytes


@dataclass(frozen=True, slots=True)
class Bundle:
    """A parsed bundle. certificates: DER, the signer's first; empty when a bare key signed."""

    envelope: Evidence
    certificates: tuple[bytes, ...]
    key_hint: str | None
    log_entries: tuple[LogEntry, ...]
    has_timestamps: bool


def parse_bundle(data: bytes) -> Bundle:
    """Read a bundle. Raises Malformed (rule signature/bundle or evidence/...); checks no signature."""
    root = parse_json(data, "signature/bundle")
    media_type = _text(root, "mediaType")
    if not _MEDIA_TYPES.fullmatch(media_type):
        raise Malformed(
            f"media type {media_type!r} is no Sigstore bundle 0.1 to 0.3", rule="signature/bundle"
        )
    material = _object(root, "verificationMaterial")
    envelope = root.get("dsseEnvelope")
    if not isinstance(envelope, dict):
        raise Malformed("the bundle has no DSSE envelope", rule="signature/bundle")
    evidence = Evidence.parse(canonical_json(_without_null_hints(envelope)))
    if len(evidence.signatures) != 1:
        raise Malformed(f"{len(evidence.signatures)} signatures, expected one", rule="signature/bundle")
    hint = None
    if "publicKey" in material:
        hint = str(_object(material, "publicKey").get("hint", ""))
    entries = _list(material, "tlogEntries", MAX_LOG_ENTRIES)
    stamps = material.get("timestampVerificationData")
    return Bundle(
        evidence,
        _certificates(material),
        hint,
        tuple(_log_entry(entry) for entry in entries),
        isinstance(stamps, dict) and bool(stamps.get("rfc3161Timestamps")),
    )


def bundle_json(
    envelope: Evidence, *, certificates: tuple[bytes, ...] = (), key_hint: str | None = None
) -> bytes:
    """The bundle of `envelope` as JSON: signed by a certified key, or by a bare one."""
    material: dict[str, JSON] = {"tlogEntries": []}
    if certificates:
        chain: list[JSON] = [{"rawBytes": base64.b64encode(der).decode()} for der in certificates]
        material["x509CertificateChain"] = {"certificates": chain}
    else:
        material["publicKey"] = {"hint": key_hint}
    dsse: JSON = json.loads(envelope.to_json())
    return canonical_json({"mediaType": MEDIA_TYPE, "verificationMaterial": material, "dsseEnvelope": dsse})


def parse_json(data: bytes, rule: str) -> dict[str, object]:
    """One JSON object without repeated keys, of at most MAX_BUNDLE_BYTES. Raises Malformed under `rule`."""
    if len(data) > MAX_BUNDLE_BYTES:
        raise Malformed(f"{len(data)} bytes, at most {MAX_BUNDLE_BYTES} are read", rule=rule)
    try:
        value = json.loads(data, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not one JSON value: {error}", rule=rule) from error
    if not isinstance(value, dict):
        raise Malformed("the JSON value is not an object", rule=rule)
    return value


def decode(value: object, rule: str = "signature/bundle") -> bytes:
    """Base64 text as bytes. Raises Malformed under `rule`."""
    if not isinstance(value, str):
        raise Malformed("bytes are expected as base64 text", rule=rule)
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Malformed(f"not base64: {value[:40]!r}", rule=rule) from error


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("an object repeats a key")
    return result


def _without_null_hints(envelope: dict[str, JSON]) -> dict[str, JSON]:
    """model-signing before 1.1 wrote `keyid: null`; a DSSE hint is text or absent."""
    signatures = envelope.get("signatures")
    if not isinstance(signatures, list):
        return envelope
    kept: list[JSON] = []
    for signature in signatures:
        is_null = isinstance(signature, dict) and signature.get("keyid", "") is None
        kept.append({k: v for k, v in signature.items() if k != "keyid"} if is_null else signature)
    return {**envelope, "signatures": kept}


def _certificates(material: Mapping[str, object]) -> tuple[bytes, ...]:
    if "certificate" in material:
        return (decode(_object(material, "certificate").get("rawBytes")),)
    if "x509CertificateChain" not in material:
        return ()
    listed = _list(_object(material, "x509CertificateChain"), "certificates", MAX_CERTIFICATES)
    if not listed:
        raise Malformed("the certificate chain is empty", rule="signature/bundle")
    return tuple(decode(certificate.get("rawBytes")) for certificate in listed)


def _log_entry(entry: Mapping[str, object]) -> LogEntry:
    kind = _object(entry, "kindVersion")
    promise = entry.get("inclusionPromise")
    proof = entry.get("inclusionProof")
    return LogEntry(
        index=_integer(entry, "logIndex"),
        log_id=decode(_object(entry, "logId").get("keyId")),
        kind=_text(kind, "kind"),
        version=_text(kind, "version"),
        integrated_time=_integer(entry, "integratedTime") if entry.get("integratedTime") else None,
        promise=decode(promise.get("signedEntryTimestamp")) if isinstance(promise, dict) else None,
        proof=_proof(proof) if isinstance(proof, dict) else None,
        body=decode(entry.get("canonicalizedBody")),
    )


def _proof(proof: Mapping[str, object]) -> InclusionProof:
    hashes = proof.get("hashes", [])
    if not isinstance(hashes, list) or len(hashes) > MAX_PROOF_HASHES:
        raise Malformed("the inclusion proof has no list of hashes, or too many", rule="signature/bundle")
    return InclusionProof(
        index=_integer(proof, "logIndex"),
        size=_integer(proof, "treeSize"),
        root=decode(proof.get("rootHash")),
        hashes=tuple(decode(value) for value in hashes),
        checkpoint=_text(_object(proof, "checkpoint"), "envelope"),
    )


def _object(fields: Mapping[str, object], name: str) -> dict[str, object]:
    value = fields.get(name)
    if not isinstance(value, dict):
        raise Malformed(f"field {name!r} is missing or not an object", rule="signature/bundle")
    return value


def _list(fields: Mapping[str, object], name: str, limit: int) -> list[dict[str, object]]:
    value = fields.get(name, [])
    if not isinstance(value, list) or len(value) > limit or not all(isinstance(item, dict) for item in value):
        raise Malformed(f"field {name!r} is not a list of at most {limit} objects", rule="signature/bundle")
    return value


def _text(fields: Mapping[str, object], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise Malformed(f"field {name!r} is missing or not text", rule="signature/bundle")
    return value


def _integer(fields: Mapping[str, object], name: str) -> int:
    # proto3 JSON leaves out zero and writes 64-bit integers as text.
    value = fields.get(name, "0")
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not re.fullmatch(r"[0-9]{1,19}", value, re.ASCII):
        raise Malformed(f"field {name!r} is not a whole number", rule="signature/bundle")
    return int(value)
