"""Signing keys on disk: PKCS #8 in PEM, encrypted by a passphrase, or plain and readable by the owner alone."""

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from steelyard.errors import Malformed, Unavailable, Untrusted, WrongUsage
from steelyard.evidence import PublicKey

ALGORITHMS = ("ed25519", "p256")
PrivateKey = ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class LocalSigner:
    """A private key held in this process."""

    key: PrivateKey
    public: PublicKey

    @classmethod
    def of(cls, key: PrivateKey) -> "LocalSigner":
        pem = key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return cls(key, PublicKey(pem))

    def sign(self, data: bytes) -> bytes:
        """Raw Ed25519, or DER ECDSA with SHA-256."""
        if isinstance(self.key, ed25519.Ed25519PrivateKey):
            return self.key.sign(data)
        return self.key.sign(data, ec.ECDSA(hashes.SHA256()))


def generate(algorithm: str) -> LocalSigner:
    """A fresh key in memory. algorithm: ed25519 or p256."""
    if algorithm == "ed25519":
        return LocalSigner.of(ed25519.Ed25519PrivateKey.generate())
    if algorithm == "p256":
        return LocalSigner.of(ec.generate_private_key(ec.SECP256R1()))
    raise WrongUsage(f"algorithm {algorithm!r} is not one of {', '.join(ALGORITHMS)}")


def new_key(path: Path, algorithm: str = "ed25519", passphrase: bytes | None = None) -> LocalSigner:
    """Write a new private key to `path` (mode 0600) and its public key to `path` with suffix .pub.

    Raises WrongUsage when either file exists: a key is never overwritten.
    """
    signer = generate(algorithm)
    encryption = (
        serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption()
    )
    pem = signer.key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    public_path = path.with_suffix(".pub")
    if public_path.exists():
        raise WrongUsage(f"{public_path} exists; a key is never overwritten")
    _write_new(path, pem, 0o600)
    _write_new(public_path, signer.public.pem, 0o644)
    return signer


def load_signer(path: Path, passphrase: bytes | None = None) -> LocalSigner:
    """Read a private key. Raises WrongUsage when it is missing, open to others or needs a passphrase;
    Untrusted when the passphrase is wrong; Malformed when the file is no key of ours."""
    pem = _read(path)
    if b"ENCRYPTED" not in pem and stat.S_IMODE(os.stat(path).st_mode) & 0o077:
        raise WrongUsage(f"{path}: an unencrypted private key that others can read; run: chmod 600 {path}")
    try:
        key = serialization.load_pem_private_key(pem, passphrase)
    except TypeError as error:
        needs = "needs a passphrase (set STEELYARD_PASSPHRASE)" if passphrase is None else "is not encrypted"
        raise WrongUsage(f"{path}: the key {needs}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        if passphrase is not None and b"ENCRYPTED" in pem:
            raise Untrusted(f"{path}: the passphrase does not open this key") from error
        raise Malformed(f"{path}: not a PEM private key", rule="key/pem") from error
    if not isinstance(key, ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey):
        raise Malformed(f"{path}: neither Ed25519 nor ECDSA P-256", rule="key/algorithm")
    return LocalSigner.of(key)


def load_public(path: Path) -> PublicKey:
    """Read a PEM public key."""
    return PublicKey(_read(path))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise WrongUsage(f"{path}: no such key; run: steelyard key new") from error
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error


def _write_new(path: Path, data: bytes, mode: int) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as error:
        raise WrongUsage(f"{path} exists; a key is never overwritten") from error
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error
    with open(descriptor, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
