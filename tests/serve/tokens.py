"""Keys and tokens for the tests of oidc, made with PyJWT and `cryptography`, not with our own code."""

import base64
import json
from datetime import UTC, datetime

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from steelyard.access_config import OidcRules

NOW = 1_795_348_800
ISSUER = "https://login.example.org/realm"
AUDIENCE = "steelyard"


def b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def claims(**changes):
    base = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ada", "exp": NOW + 600, "iat": NOW, "groups": ["apps"]}
    return {name: value for name, value in (base | changes).items() if value is not None}


class Provider:
    """An identity provider: private keys, and the set of their public halves."""

    def __init__(self):
        self.keys = {
            "RS256": rsa.generate_private_key(65537, 2048),
            "ES256": ec.generate_private_key(ec.SECP256R1()),
            "EdDSA": ed25519.Ed25519PrivateKey.generate(),
        }
        self.keys["PS256"] = self.keys["RS256"]

    def jwk(self, algorithm, **more):
        name = "RS256" if algorithm == "PS256" else algorithm
        kind = jwt.algorithms.get_default_algorithms()[name]
        return json.loads(kind.to_jwk(self.keys[algorithm].public_key())) | {"kid": f"key-{algorithm}"} | more

    def key_set(self, *jwks):
        return json.dumps({"keys": list(jwks) or [self.jwk(name) for name in ("RS256", "ES256", "EdDSA")]})

    def token(self, algorithm="ES256", *, headers=None, **changes):
        kid = {"kid": f"key-{'RS256' if algorithm == 'PS256' else algorithm}"}
        headers = kid if headers is None else headers
        return jwt.encode(claims(**changes), self.keys[algorithm], algorithm, headers=headers).encode()

    def signed(self, head, body, algorithm="ES256"):
        """A token of raw bytes, signed whatever they are."""
        text = f"{b64(head)}.{b64(body)}".encode()
        kind = jwt.algorithms.get_default_algorithms()[algorithm]
        return text + b"." + b64(kind.sign(text, self.keys[algorithm])).encode()


def rules(path, **changes):
    return OidcRules(ISSUER, AUDIENCE, path, **({"roles": {"apps": "app", "ops": "operator"}} | changes))


def datetime_of(seconds):
    return datetime.fromtimestamp(seconds, UTC)
