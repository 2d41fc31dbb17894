"""Who is calling: API keys, or on loopback nobody in particular."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol

from steelyard.errors import Refused, Untrusted

_BEARER = b"bearer "


class Key(Protocol):
    """An API key as the store keeps it: its name and the SHA-256 of the secret in hex, never the secret."""

    @property
    def name(self) -> str: ...

    @property
    def sha256(self) -> str: ...


class KeyStore(Protocol):
    def head(self) -> int: ...

    def api_keys(self) -> Sequence[Key]: ...


class Door(Protocol):
    """Lets a request in or not, on its head alone."""

    def caller(self, headers: Mapping[bytes, bytes]) -> str | None:
        """The name of the caller's key, absent where none is needed. Raises Untrusted, Refused or Unavailable."""


class KeyedDoor:
    """Callers with a key in `Authorization: Bearer KEY`. Keys are read again when the store changes.

    What is compared is the SHA-256 of the secret: the time a look-up takes says nothing about the secret.
    """

    def __init__(self, store: KeyStore) -> None:
        self._store = store
        self._head: int | None = None
        self._names: dict[str, str] = {}

    def caller(self, headers: Mapping[bytes, bytes]) -> str:
        authorization = headers.get(b"authorization", b"")
        if authorization[: len(_BEARER)].lower() != _BEARER:
            raise Untrusted("no API key; send it as: Authorization: Bearer KEY")
        secret = authorization[len(_BEARER) :].strip()
        name = self._known().get(hashlib.sha256(secret).hexdigest())
        if name is None:
            raise Untrusted(
                "this API key is not known here; the operator makes one with: steelyard key new --api NAME"
            )
        return name

    def _known(self) -> dict[str, str]:
        head = self._store.head()
        if head != self._head:
            self._names = {key.sha256: key.name for key in self._store.api_keys()}
            self._head = head
        return self._names


class OpenDoor:
    """Anybody on this machine except web pages.

    Attack: a page in the operator's browser reaches a loopback port, by a cross-site request (it then sends
    `Origin`) or by a name it points at 127.0.0.1 (DNS rebinding: the name stands in `Host`).
    """

    def caller(self, headers: Mapping[bytes, bytes]) -> None:
        if b"origin" in headers:
            raise Refused("requests from web pages need an API key; start the gateway without --no-auth")
        host = headers.get(b"host", b"localhost").lower()
        name = host if host.endswith(b"]") else host.rpartition(b":")[0] or host
        if name not in (b"localhost", b"127.0.0.1", b"[::1]"):
            raise Refused("without API keys the gateway answers to localhost, 127.0.0.1 and [::1] only")
