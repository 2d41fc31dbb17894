"""A JSON Web Key Set: public keys of an identity provider, and signatures checked with them.

    {"keys": [{kty, kid?, use?, key_ops?, alg?, ...}]}
    kty RSA  n, e          RS256, PS256; 2048 to 8192 bits
    kty EC   crv P-256     ES256; x, y of 32 bytes
    kty OKP  crv Ed25519   EdDSA (and its name of RFC 9864, Ed25519); x of 32 bytes
Keys of other types, curves, uses and algorithms are passed over: providers publish some for encryption.

Attacks: `none`; HS256 with a public key as the secret (no symmetric key is ever read); a key used with another
algorithm than its own; RSA keys too short to trust or so long that a check takes seconds; small-order points
(refused by OpenSSL). Source: RFC 7517, 7518, 8037, 8725.
"""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from steelyard.errors import Malformed
from steelyard.wire.body import parse_object

MAX_KEYS = 100
MAX_KEY_TEXT = 2048  # characters of one number
MIN_RSA_BITS, MAX_RSA_BITS = 2048, 8192

_P256_BYTES = 32
_BASE64URL = re.compile(r"[A-Za-z0-9_-]+")
_PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
_ALGORITHMS = {"RSA": ("RS256", "PS256"), "EC": ("ES256",), "OKP": ("EdDSA", "Ed25519")}


@dataclass(frozen=True, slots=True)
class WebKey:
    """A public key. kid: absent when it has none.  algorithms: the only ones it is used with."""

    kid: str | None
    algorithms: tuple[str, ...]
    public: _PublicKey

    def verifies(self, algorithm: str, signature: bytes, signed: bytes) -> bool:
        if algorithm not in self.algorithms:
            return False
        try:
            _verify(self.public, algorithm, signature, signed)
        except InvalidSignature:
            return False
        return True


def parse_keys(data: bytes) -> tuple[WebKey, ...]:
    """The keys for signatures in a key set. Raises Malformed with a rule `jwks/...`."""
    value = parse_object(data, "jwks/").get("keys")
    if not isinstance(value, list) or len(value) > MAX_KEYS:
        raise Malformed(f"a key set has a list of at most {MAX_KEYS} keys", rule="jwks/keys")
    found = tuple(key for entry in value if (key := _key(entry)) is not None)
    kids = [key.kid for key in found]
    if len(set(kids)) != len(kids):
        raise Malformed("two keys of the set have the same kid, or none", rule="jwks/kid")
    return found


def decoded(text: str) -> bytes:
    """base64url without padding, the one spelling of these bytes. Raises ValueError.

    Stops: a token spelled in several ways, each of which would be another one to caches and logs.
    """
    if not _BASE64URL.fullmatch(text) or len(text) % 4 == 1:
        raise ValueError("not base64url")
    data = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    if base64.urlsafe_b64encode(data).rstrip(b"=").decode() != text:
        raise ValueError("not canonical base64url")
    return data


def _key(entry: object) -> WebKey | None:
    if not isinstance(entry, dict):
        raise Malformed("a key of the set is not an object", rule="jwks/key")
    algorithms = _ALGORITHMS.get(str(entry.get("kty")), ())
    if entry.get("alg") is not None:
        algorithms = tuple(name for name in algorithms if name == entry["alg"])
    operations = entry.get("key_ops", ["verify"])
    if entry.get("use", "sig") != "sig" or not isinstance(operations, list) or "verify" not in operations:
        return None
    kid = entry.get("kid")
    if kid is not None and (not isinstance(kid, str) or len(kid) > MAX_KEY_TEXT):
        raise Malformed("a kid is a text", rule="jwks/kid")
    if not algorithms or entry.get("crv") not in (None, "P-256", "Ed25519"):
        return None
    try:
        return WebKey(kid, algorithms, _public(entry))
    except ValueError as error:
        raise Malformed(f"key {kid!r} of the set: {error}", rule="jwks/key") from error


def _public(entry: Mapping[str, object]) -> _PublicKey:
    kty, crv = entry["kty"], entry.get("crv")
    if kty == "RSA":
        numbers = rsa.RSAPublicNumbers(_number(entry, "e"), _number(entry, "n"))
        if not MIN_RSA_BITS <= numbers.n.bit_length() <= MAX_RSA_BITS:
            raise ValueError(f"RSA keys have {MIN_RSA_BITS} to {MAX_RSA_BITS} bits")
        return numbers.public_key()
    if kty == "EC" and crv == "P-256":
        if len(_bytes(entry, "x")) != _P256_BYTES or len(_bytes(entry, "y")) != _P256_BYTES:
            raise ValueError("a point of P-256 has 32 bytes for x and for y")
        return ec.EllipticCurvePublicNumbers(
            _number(entry, "x"), _number(entry, "y"), ec.SECP256R1()
        ).public_key()
    if kty == "OKP" and crv == "Ed25519":
        return ed25519.Ed25519PublicKey.from_public_bytes(_bytes(entry, "x"))
    raise ValueError(f"{kty} keys have no curve {crv}")


def _verify(public: _PublicKey, algorithm: str, signature: bytes, signed: bytes) -> None:
    match public:
        case ed25519.Ed25519PublicKey():
            public.verify(signature, signed)
        case ec.EllipticCurvePublicKey():
            if len(signature) != 2 * _P256_BYTES:
                raise InvalidSignature
            r, s = (int.from_bytes(signature[i : i + _P256_BYTES], "big") for i in (0, _P256_BYTES))
            public.verify(encode_dss_signature(r, s), signed, ec.ECDSA(hashes.SHA256()))
        case rsa.RSAPublicKey() if algorithm == "PS256":
            # RFC 7518, 3.5: the salt is as long as the hash.
            scheme = padding.PSS(padding.MGF1(hashes.SHA256()), salt_length=32)
            public.verify(signature, signed, scheme, hashes.SHA256())
        case rsa.RSAPublicKey():
            public.verify(signature, signed, padding.PKCS1v15(), hashes.SHA256())


def _number(entry: Mapping[str, object], name: str) -> int:
    return int.from_bytes(_bytes(entry, name), "big")


def _bytes(entry: Mapping[str, object], name: str) -> bytes:
    text = entry.get(name)
    if not isinstance(text, str) or len(text) > MAX_KEY_TEXT:
        raise ValueError(f"{name!r} is missing or too long")
    return decoded(text)
