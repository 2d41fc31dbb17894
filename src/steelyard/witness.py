"""Witness cosignatures: a second party says that a ledger's checkpoint continues the one it saw before.

signature = key id[4] || time:u64 big-endian || Ed25519 over "cosignature/v1\\n" "time " time "\\n" checkpoint text
vkey      = name "+" hex(key id) "+" base64(0x04 || public key[32])
key id    = SHA-256(name "\\n" 0x04 || public key)[:4]
request   = "old " size "\\n" *(base64 hash "\\n") "\\n" checkpoint      the consistency proof from old to checkpoint

The witness keeps the last checkpoint it signed. It signs a later one of the same log only with a proof that nothing
before was changed, so a fork or a rollback needs the witness too. Pure: no clock, no disk.

Sources: C2SP tlog-cosignature.md (Ed25519 form), tlog-witness.md (add-checkpoint body, rules of the witness).
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from steelyard.errors import Malformed, Refused, Untrusted
from steelyard.evidence import Signer
from steelyard.ledger import Checkpoint
from steelyard.merkle import EMPTY_ROOT, HASH_BYTES, MAX_PATH, MAX_SIZE, check_consistency
from steelyard.note import NoteSignature, VerifierKey, check_key_id, decode_base64, is_key_name, vkey_parts

MAX_REQUEST_BYTES = 512 << 10
COSIGNATURE = b"\x04"

_TIME_BYTES = 8
_OLD = re.compile(r"old (0|[1-9][0-9]{0,18})")


@dataclass(frozen=True, slots=True)
class WitnessKey:
    """A witness's Ed25519 public key (32 bytes) under its name. `parse(str(key)) == key`."""

    name: str
    public: bytes
    key_id: bytes = field(init=False)

    def __post_init__(self) -> None:
        if not is_key_name(self.name) or len(self.public) != 32:
            raise ValueError(f"{self.name!r} is no key name, or {len(self.public)} bytes are no Ed25519 key")
        seed = self.name.encode() + b"\n" + COSIGNATURE + self.public
        object.__setattr__(self, "key_id", hashlib.sha256(seed).digest()[:4])

    @classmethod
    def parse(cls, text: str) -> "WitnessKey":
        """Read a witness's vkey. Raises Malformed, also when its key id is not that of its key."""
        key = cls(*vkey_parts(text, COSIGNATURE, "witness/vkey"))
        check_key_id(text, key.key_id, "witness/vkey")
        return key

    def __str__(self) -> str:
        return f"{self.name}+{self.key_id.hex()}+{base64.b64encode(COSIGNATURE + self.public).decode()}"

    def time_of(self, checkpoint: Checkpoint) -> int | None:
        """When this witness cosigned, in seconds since 1970; None when it did not. Raises Untrusted for a wrong one."""
        for signature in checkpoint.signatures:
            if (signature.name, signature.key_id) != (self.name, self.key_id):
                continue
            time_s = int.from_bytes(signature.sig[:_TIME_BYTES], "big")
            try:
                Ed25519PublicKey.from_public_bytes(self.public).verify(
                    signature.sig[_TIME_BYTES:], _message(checkpoint, time_s)
                )
            except InvalidSignature as error:
                raise Untrusted(f"the cosignature of {self.name}+{self.key_id.hex()} is wrong") from error
            return time_s
        return None


class Cosigner:
    """Signs checkpoints as the witness `name`."""

    def __init__(self, name: str, signer: Signer) -> None:
        public = serialization.load_pem_public_key(signer.public.pem)
        if not isinstance(public, Ed25519PublicKey):
            raise ValueError("cosignatures are made with an Ed25519 key")
        raw = public.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        self.key = WitnessKey(name, raw)
        self._signer = signer

    def sign(self, checkpoint: Checkpoint, time_s: int) -> Checkpoint:
        """The checkpoint with this witness's cosignature, made at `time_s`, in place of an earlier one of its."""
        sig = time_s.to_bytes(_TIME_BYTES, "big") + self._signer.sign(_message(checkpoint, time_s))
        others = [s for s in checkpoint.signatures if (s.name, s.key_id) != (self.key.name, self.key.key_id)]
        signatures = (*others, NoteSignature(self.key.name, self.key.key_id, sig))
        return Checkpoint(
            checkpoint.origin, checkpoint.size, checkpoint.root, checkpoint.extensions, signatures
        )


@dataclass(frozen=True, slots=True)
class Request:
    """What a log asks of a witness: to cosign `checkpoint`, with the proof that it continues `old_size` entries."""

    old_size: int
    path: tuple[bytes, ...]
    checkpoint: Checkpoint

    def to_bytes(self) -> bytes:
        hashes = "".join(f"{base64.b64encode(item).decode()}\n" for item in self.path)
        return f"old {self.old_size}\n{hashes}\n".encode() + self.checkpoint.to_bytes()

    @classmethod
    def parse(cls, data: bytes) -> "Request":
        """Read a tlog-witness add-checkpoint body. Raises Malformed; checks nothing."""
        rule = "witness/request"
        if len(data) > MAX_REQUEST_BYTES:
            raise Malformed(f"{len(data)} bytes, at most {MAX_REQUEST_BYTES} are read", rule=rule)
        head, gap, note = data.partition(b"\n\n")
        lines = head.decode("ascii", "replace").split("\n")
        old = _OLD.fullmatch(lines[0])
        if not gap or old is None or int(old[1]) > MAX_SIZE:
            raise Malformed("not a witness request: expected old SIZE, hashes, a checkpoint", rule=rule)
        path = tuple(decode_base64(line, rule) for line in lines[1:])
        if len(path) > MAX_PATH or any(len(item) != HASH_BYTES for item in path):
            raise Malformed(f"the proof is not 0 to {MAX_PATH} hashes of 32 bytes", rule=rule)
        return cls(int(old[1]), path, Checkpoint.parse(note))


def check_request(request: Request, key: VerifierKey, seen: Checkpoint | None) -> None:
    """Return when a witness that last saw `seen` may cosign. Raises Refused for a stale or smaller request,
    Untrusted for one that `key` did not sign, for a fork and for a proof that does not hold.

    Stops: a log that shows one history to its witness and another elsewhere, or takes entries back.
    """
    checkpoint = request.checkpoint
    checkpoint.check(key)
    size, root = (seen.size, seen.root) if seen is not None else (0, EMPTY_ROOT)
    if checkpoint.size < size:
        raise Untrusted(
            f"a rollback: this witness has seen {size} entries of {key.name}, now there are {checkpoint.size}"
        )
    if request.old_size != size:
        raise Refused(
            f"the request continues {request.old_size} entries, this witness has seen {size}; ask again from there",
            (f"witness/size: {size}",),
        )
    if checkpoint.size == size and checkpoint.root != root:
        raise Untrusted(
            f"a fork: two trees of {size} entries are signed by {key.name}; keep both checkpoints"
        )
    check_consistency(size, root, checkpoint.size, checkpoint.root, request.path)


def cosigned_by(checkpoint: Checkpoint, witnesses: Sequence[WitnessKey]) -> dict[str, int]:
    """Name and time of each of `witnesses` that cosigned. Raises Untrusted when a cosignature of theirs is wrong."""
    times = {key.name: key.time_of(checkpoint) for key in witnesses}
    return {name: time_s for name, time_s in times.items() if time_s is not None}


def _message(checkpoint: Checkpoint, time_s: int) -> bytes:
    return f"cosignature/v1\ntime {time_s}\n{checkpoint.text}".encode()
