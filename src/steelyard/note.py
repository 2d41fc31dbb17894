"""Signed notes and verifier keys (C2SP signed-note), Ed25519 only.

note      = text "\\n" 1*signature; the text ends in a newline and the last empty line parts it from the signatures
signature = "\\u2014 " name " " base64(key id[4] || signature) "\\n"
vkey      = name "+" hex(key id[4]) "+" base64(0x01 || public key[32])
key id    = SHA-256(name "\\n" 0x01 || public key)[:4]
Signatures by keys we do not know (witnesses, other algorithms) are kept and written back, never trusted.

Source: C2SP signed-note.md.
"""

import base64
import binascii
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from steelyard.errors import Malformed, Untrusted
from steelyard.evidence import Signer

MAX_NOTE_BYTES = 256 << 10
MAX_NOTE_SIGNATURES = 32
ED25519 = b"\x01"

_DASH = "\u2014 "


@dataclass(frozen=True, slots=True)
class NoteSignature:
    """One signature line. `key_id` is a hint of 4 bytes; `sig` is whatever its algorithm gives."""

    name: str
    key_id: bytes
    sig: bytes

    def __str__(self) -> str:
        return f"{_DASH}{self.name} {base64.b64encode(self.key_id + self.sig).decode()}\n"


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """An Ed25519 public key (32 bytes) under a name. `parse(str(key)) == key`."""

    name: str
    public: bytes
    key_id: bytes = field(init=False)

    def __post_init__(self) -> None:
        if not is_key_name(self.name) or len(self.public) != 32:
            raise ValueError(f"{self.name!r} is no key name, or {len(self.public)} bytes are no Ed25519 key")
        seed = self.name.encode() + b"\n" + ED25519 + self.public
        object.__setattr__(self, "key_id", hashlib.sha256(seed).digest()[:4])

    @classmethod
    def parse(cls, text: str) -> "VerifierKey":
        """Read a vkey. Raises Malformed, also when its key id is not that of its key."""
        key = cls(*vkey_parts(text, ED25519, "note/vkey"))
        check_key_id(text, key.key_id, "note/vkey")
        return key

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{base64.b64encode(ED25519 + self.public).decode()}"


class NoteSigner:
    """Signs notes with an Ed25519 key under the name `name`."""

    def __init__(self, name: str, signer: Signer) -> None:
        public = serialization.load_pem_public_key(signer.public.pem)
        if not isinstance(public, Ed25519PublicKey):
            raise ValueError("notes are signed with an Ed25519 key")
        raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        self.key = VerifierKey(name, raw)
        self._signer = signer

    def sign(self, text: str) -> NoteSignature:
        return NoteSignature(self.key.name, self.key.key_id, self._signer.sign(text.encode()))


@dataclass(frozen=True, slots=True)
class Note:
    """Signed text. `text` ends in a newline."""

    text: str
    signatures: tuple[NoteSignature, ...]

    @classmethod
    def parse(cls, data: bytes) -> "Note":
        """Read a signed note. Raises Malformed; checks no signature."""
        if len(data) > MAX_NOTE_BYTES:
            raise Malformed(f"{len(data)} bytes, at most {MAX_NOTE_BYTES} are read", rule="note/size")
        try:
            whole = data.decode()
        except UnicodeDecodeError as error:
            raise Malformed("the note is not UTF-8", rule="note/text", offset=error.start) from error
        control = next((i for i, char in enumerate(whole) if char < " " and char != "\n"), None)
        if control is not None:
            raise Malformed("the note holds a control character", rule="note/text", offset=control)
        body, gap, tail = whole.rpartition("\n\n")
        if not gap or not tail.endswith("\n"):
            raise Malformed("the note has no signatures after an empty line", rule="note/signatures")
        lines = tail[:-1].split("\n")
        if len(lines) > MAX_NOTE_SIGNATURES:
            raise Malformed(
                f"{len(lines)} signatures, at most {MAX_NOTE_SIGNATURES} are read", rule="note/signatures"
            )
        return cls(body + "\n", tuple(_signature(line) for line in lines))

    def to_bytes(self) -> bytes:
        return (self.text + "\n" + "".join(map(str, self.signatures))).encode()

    def check(self, keys: Iterable[VerifierKey]) -> tuple[VerifierKey, ...]:
        """The keys out of `keys` that signed. Raises Untrusted when none did, or one of theirs is wrong."""
        known = {(key.name, key.key_id): key for key in keys}
        signed: list[VerifierKey] = []
        for signature in self.signatures:
            key = known.get((signature.name, signature.key_id))
            if key is None:
                continue
            try:
                Ed25519PublicKey.from_public_bytes(key.public).verify(signature.sig, self.text.encode())
            except InvalidSignature as error:
                raise Untrusted(
                    f"the signature of {key.name}+{key.key_id.hex()} is wrong for this text"
                ) from error
            if key not in signed:
                signed.append(key)
        if not signed:
            found = ", ".join(f"{s.name}+{s.key_id.hex()}" for s in self.signatures)
            wanted = ", ".join(f"{name}+{key_id.hex()}" for name, key_id in known) or "no key"
            raise Untrusted(f"the note is signed by {found}; expected {wanted}")
        return tuple(signed)


def is_key_name(name: str) -> bool:
    """Whether `name` may stand in a signature line: not empty, no space, no plus, no control character."""
    return bool(name) and not any(char.isspace() or char == "+" or char < " " for char in name)


def vkey_parts(text: str, algorithm: bytes, rule: str) -> tuple[str, bytes]:
    """Name and public key (32 bytes) of a verifier key of one algorithm. Raises Malformed under `rule`."""
    name, _, rest = text.strip().partition("+")
    key_id, _, encoded = rest.partition("+")
    if not is_key_name(name) or not key_id or not encoded:
        raise Malformed("not a verifier key: expected NAME+KEYID+BASE64 on one line", rule=rule)
    raw = decode_base64(encoded, rule)
    if raw[:1] != algorithm or len(raw) != 33:
        raise Malformed(f"the verifier key is not of type {algorithm[0]} with 32 bytes", rule=rule)
    return name, raw[1:]


def check_key_id(text: str, key_id: bytes, rule: str) -> None:
    """Raises Malformed when a verifier key names another id than its key gives."""
    told = text.strip().partition("+")[2].partition("+")[0]
    if told != key_id.hex():
        raise Malformed(f"the verifier key says id {told}, its key gives {key_id.hex()}", rule=rule)


def decode_base64(text: str, rule: str) -> bytes:
    """Standard base64 in its one canonical spelling. Raises Malformed under `rule`."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Malformed(f"not base64: {text[:80]!r}", rule=rule) from error
    if base64.b64encode(raw).decode() != text:
        raise Malformed(f"base64 with stray bits: {text[:80]!r}", rule=rule)
    return raw


def _signature(line: str) -> NoteSignature:
    name, _, encoded = line.removeprefix(_DASH).partition(" ")
    if not line.startswith(_DASH) or not is_key_name(name):
        raise Malformed(f"not a signature line: {line[:80]!r}", rule="note/signatures")
    raw = decode_base64(encoded, "note/signatures")
    if len(raw) < 5:
        raise Malformed(f"the signature of {name} is too short", rule="note/signatures")
    return NoteSignature(name, raw[:4], raw[4:])
