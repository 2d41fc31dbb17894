"""The store's files, one class or function each: how their bytes look and what makes them wrong.

Every reader here raises Malformed with the file's name, never skips, and checks what the name promises: the id of
an envelope, the digest of a manifest.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steelyard.digest import JSON, Digest, canonical_json
from steelyard.disk import read_file, unavailable
from steelyard.errors import Malformed, WrongUsage
from steelyard.evidence import MAX_ENVELOPE_BYTES, Evidence
from steelyard.model import Model

MAX_NAMES = 10_000

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}")
_HEX_64 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A caller's key: its name, the SHA-256 of the secret in hex (never the secret), when it was made (RFC 3339)."""

    name: str
    sha256: str
    created: str

    def __post_init__(self) -> None:
        if not _HEX_64.fullmatch(self.sha256):
            raise ValueError(f"API key {self.name!r}: {self.sha256!r} is no SHA-256 in hex")


@dataclass(frozen=True, slots=True)
class Manifest:
    """A model and where its weights lay when it was put into the store."""

    model: Model
    source: str

    def to_bytes(self) -> bytes:
        return canonical_json({"model": self.model.to_json(), "source": self.source})

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        value = _json(path)
        if not isinstance(value, dict) or not isinstance(value.get("source"), str):
            raise Malformed(f"{path} has no model and source", rule="store/manifest")
        model = value.get("model")
        try:
            manifest = cls(Model.from_json(model if isinstance(model, dict) else {}), value["source"])
        except Malformed as error:
            raise Malformed(f"{path}: {error.message}", rule=error.rule, offset=error.offset) from error
        if manifest.model.digest.hex != path.stem:
            raise Malformed(f"{path} holds the manifest of {manifest.model.digest}", rule="store/manifest")
        return manifest


@dataclass(frozen=True, slots=True)
class Aliases:
    """aliases.json: {alias: "oms-sha256:<hex>"}."""

    path: Path

    def read(self) -> dict[str, Digest]:
        if not self.path.exists():
            return {}
        value = _json(self.path)
        try:
            return {_name(alias, "alias"): Digest.parse(digest) for alias, digest in value.items()}
        except (AttributeError, ValueError, WrongUsage) as error:
            raise Malformed(f"{self.path}: {error}", rule="store/aliases") from error

    def with_alias(self, alias: str, digest: Digest) -> bytes:
        return self._bytes({**self.read(), _name(alias, "alias"): digest})

    def without(self, alias: str) -> bytes:
        known = self.read()
        if known.pop(alias, None) is None:
            raise WrongUsage(f"there is no alias {alias!r}; there are: {', '.join(sorted(known)) or 'none'}")
        return self._bytes(known)

    def _bytes(self, aliases: dict[str, Digest]) -> bytes:
        if len(aliases) > MAX_NAMES:
            raise WrongUsage(f"more than {MAX_NAMES} aliases")
        return canonical_json({alias: str(digest) for alias, digest in aliases.items()})


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """api_keys.json: [{name, sha256, created}]."""

    path: Path

    def read(self) -> list[ApiKey]:
        if not self.path.exists():
            return []
        value = _json(self.path)
        try:
            return [ApiKey(_name(k["name"], "API key"), str(k["sha256"]), str(k["created"])) for k in value]
        except (KeyError, TypeError, ValueError, WrongUsage) as error:
            raise Malformed(f"{self.path}: {error!r}", rule="store/api-keys") from error

    def with_key(self, key: ApiKey) -> bytes:
        known = self.read()
        _name(key.name, "API key")
        if any(key.name == other.name for other in known):
            raise WrongUsage(f"there is an API key {key.name!r} already; remove it or take another name")
        if len(known) >= MAX_NAMES:
            raise WrongUsage(f"more than {MAX_NAMES} API keys")
        return _key_bytes([*known, key])

    def without(self, name: str) -> bytes:
        known = self.read()
        kept = [key for key in known if key.name != name]
        if len(kept) == len(known):
            raise WrongUsage(f"there is no API key {name!r}")
        return _key_bytes(kept)


def read_evidence(path: Path) -> Evidence:
    """One envelope, whose payload hashes to the file's name."""
    try:
        evidence = Evidence.parse(_bytes(path))
    except Malformed as error:
        raise Malformed(f"{path}: {error.message}", rule=error.rule, offset=error.offset) from error
    if evidence.id.hex != path.stem:
        raise Malformed(f"{path} holds the envelope {evidence.id}", rule="store/evidence-name")
    return evidence


def _key_bytes(keys: list[ApiKey]) -> bytes:
    value: list[JSON] = [{"name": k.name, "sha256": k.sha256, "created": k.created} for k in keys]
    return canonical_json(value)


def _name(text: object, what: str) -> str:
    if not isinstance(text, str) or not _NAME.fullmatch(text):
        raise WrongUsage(
            f"{text!r} cannot be an {what}: 1 to 128 letters, digits and ._:/@+-, beginning with one"
        )
    return text


def _bytes(path: Path) -> bytes:
    with unavailable(f"cannot read {path}"):
        try:
            return read_file(path, MAX_ENVELOPE_BYTES)
        except FileNotFoundError as error:
            raise Malformed(
                f"{path} is gone, the index knows it: restore it; to accept the loss delete index.db",
                rule="store/missing",
            ) from error


def _json(path: Path) -> Any:  # noqa: ANN401 - the caller checks the shape
    try:
        return json.loads(_bytes(path))
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{path} is not JSON: {error}", rule="store/json") from error
