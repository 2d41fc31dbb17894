"""X.509 chains and ECDSA signatures over DSSE envelopes, as model signing uses them.

Curves P-256, P-384 and P-521 with SHA-256, SHA-384 and SHA-512. The path is built and checked by `cryptography`
(RFC 5280); what we add is who may sign: every issuer is a CA whose key usage allows certificates, and the signer's
certificate allows digital signatures or code signing.
"""

from collections.abc import Iterable
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import verification
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import Criticality, ExtensionPolicy, Policy, PolicyBuilder, Store

from steelyard.errors import Malformed, Untrusted
from steelyard.evidence import Evidence, pae

MAX_PEM_BYTES = 1 << 20
MAX_CHAIN = 8

_HASHES: dict[str, hashes.HashAlgorithm] = {
    "secp256r1": hashes.SHA256(),
    "secp384r1": hashes.SHA384(),
    "secp521r1": hashes.SHA512(),
}


def hash_for(key: ec.EllipticCurvePublicKey) -> hashes.HashAlgorithm:
    """The hash that goes with the key's curve. Raises Untrusted for another curve."""
    try:
        return _HASHES[key.curve.name]
    except KeyError:
        raise Untrusted(f"curve {key.curve.name} is none of P-256, P-384, P-521") from None


def load_key(pem: bytes) -> ec.EllipticCurvePublicKey:
    """A PEM public key on one of the three curves. Raises Malformed, Untrusted."""
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Malformed("not a PEM public key", rule="signature/key") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise Untrusted("the key is not an elliptic curve key; model signatures are ECDSA")
    hash_for(key)
    return key


def load_certificates(pem: bytes) -> tuple[x509.Certificate, ...]:
    """Every certificate of a PEM file, at least one. Raises Malformed."""
    if len(pem) > MAX_PEM_BYTES:
        raise Malformed(f"{len(pem)} bytes of certificates", rule="signature/certificate")
    try:
        return tuple(x509.load_pem_x509_certificates(pem))
    except ValueError as error:
        raise Malformed("no PEM certificates", rule="signature/certificate") from error


def from_der(der: bytes) -> x509.Certificate:
    """Raises Malformed."""
    try:
        return x509.load_der_x509_certificate(der)
    except ValueError as error:
        raise Malformed("not a DER certificate", rule="signature/certificate") from error


def check_envelope(envelope: Evidence, key: ec.EllipticCurvePublicKey, *, is_old: bool = False) -> None:
    """Raise Untrusted unless the envelope's one signature is `key`'s.

    is_old: statements of model-signing 0.2 were signed over another encoding, always with SHA-256: the payload as
    Python prints bytes, behind "DSSEV1". Accepted for those only.
    """
    signature = envelope.signatures[0].sig
    try:
        key.verify(signature, pae(envelope.payload_type, envelope.payload), ec.ECDSA(hash_for(key)))
    except InvalidSignature:
        kind = envelope.payload_type
        printed = f"DSSEV1 {len(kind)} {kind} {len(envelope.payload)} {envelope.payload!r}".encode()
        if is_old and _holds(key, signature, printed):
            return
        raise Untrusted("the signature is not this key's over this statement") from None


def _holds(key: ec.EllipticCurvePublicKey, signature: bytes, message: bytes) -> bool:
    try:
        key.verify(signature, message, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def check_chain(
    leaf: x509.Certificate,
    others: Iterable[x509.Certificate],
    roots: Iterable[x509.Certificate],
    at: datetime,
) -> tuple[x509.Certificate, ...]:
    """The path from `leaf` to one of `roots`, valid at `at`. Raises Untrusted.

    `others` may help to build the path and are trusted for nothing.
    """
    issuers = (
        ExtensionPolicy.permit_all()
        .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, _is_authority)
        .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _may_certify)
    )
    builder = PolicyBuilder().store(Store(list(roots))).time(at).max_chain_depth(MAX_CHAIN)
    verifier = builder.extension_policies(
        ca_policy=issuers, ee_policy=ExtensionPolicy.permit_all()
    ).build_client_verifier()
    try:
        return tuple(verifier.verify(leaf, list(others)).chain)
    except verification.VerificationError as error:
        raise Untrusted(
            f"no valid chain from {leaf.subject.rfc4514_string() or 'the certificate'} to a trusted root: {error}"
        ) from error


def check_may_sign(leaf: x509.Certificate, *, is_code_signer: bool = False) -> ec.EllipticCurvePublicKey:
    """The key of a certificate that may sign a model. Raises Untrusted.

    is_code_signer: it must allow signatures and code signing (Fulcio's profile), not only one of them.
    """
    allowed = (_allows_signatures(leaf), _allows_code_signing(leaf))
    if not (all(allowed) if is_code_signer else any(allowed)):
        raise Untrusted("the certificate does not allow digital signatures or code signing")
    key = leaf.public_key()
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise Untrusted("the certificate's key is not an elliptic curve key")
    return key


def _allows_signatures(leaf: x509.Certificate) -> bool:
    try:
        return leaf.extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature
    except x509.ExtensionNotFound:
        return False


def _allows_code_signing(leaf: x509.Certificate) -> bool:
    try:
        usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return False
    return ExtendedKeyUsageOID.CODE_SIGNING in usage


def _is_authority(policy: Policy, certificate: x509.Certificate, value: x509.BasicConstraints) -> None:  # noqa: ARG001
    if not value.ca:
        raise ValueError("an issuer is not a certificate authority")


def _may_certify(policy: Policy, certificate: x509.Certificate, value: x509.KeyUsage | None) -> None:  # noqa: ARG001
    if value is not None and not value.key_cert_sign:
        raise ValueError("an issuer's key may not sign certificates")
