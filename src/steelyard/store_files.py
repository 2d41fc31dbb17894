"""The store's files, one class or function each: how their bytes look and what makes them wrong.

Every reader here raises Malformed with the file's name, never skips, and checks what the name promises: the id of
an envelope, the digest of a manifest.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steelyard.access import ApiKey, Team, check_name
from steelyard.digest import Digest, canonical_json
from steelyard.disk import read_file, unavailable
from steelyard.errors import Malformed, WrongUsage
from steelyard.evidence import MAX_ENVELOPE_BYTES, Evidence
from steelyard.model import Model

MAX_NAMES = 10_000


@dataclass(frozen=True, slots=True)
class Manifest:
    """A model and where its weights lay when it was put into the store."""

    model: Model
    source: str

    def to_bytes(self) -> bytes:
        return canonical_json({"model": self.model.to_json(), "source": self.source})

    @classmethod
    def read(cls, path: Path) -> "Manifest":
        return cls.parse(_bytes(path), str(path), path.stem)

    @classmethod
    def parse(cls, data: bytes, place: str, hex_: str) -> "Manifest":
        """The manifest of the model `hex_`. Raises Malformed that names `place`."""
        value = _parsed(data, place)
        if not isinstance(value, dict) or not isinstance(value.get("source"), str):
            raise Malformed(f"{place} has no model and source", rule="store/manifest")
        model = value.get("model")
        try:
            manifest = cls(Model.from_json(model if isinstance(model, dict) else {}), value["source"])
        except Malformed as error:
            raise Malformed(f"{place}: {error.message}", rule=error.rule, offset=error.offset) from error
        if manifest.model.digest.hex != hex_:
            raise Malformed(f"{place} holds the manifest of {manifest.model.digest}", rule="store/manifest")
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
            return {check_name(alias, "alias"): Digest.parse(digest) for alias, digest in value.items()}
        except (AttributeError, ValueError, WrongUsage) as error:
            raise Malformed(f"{self.path}: {error}", rule="store/aliases") from error

    def with_alias(self, alias: str, digest: Digest) -> bytes:
        return self._bytes({**self.read(), check_name(alias, "alias"): digest})

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
    """api_keys.json: a list of API keys as `ApiKey.to_json` gives them. Never a secret."""

    path: Path

    def read(self) -> list[ApiKey]:
        if not self.path.exists():
            return []
        try:
            return [ApiKey.parse(value) for value in _list(self.path)]
        except (ValueError, WrongUsage) as error:
            raise Malformed(f"{self.path}: {error}", rule="store/api-keys") from error

    def with_key(self, key: ApiKey, *, replace: bool) -> bytes:
        """The file with `key` in it, in the place of one of its name if `replace`."""
        known = {other.name: other for other in self.read()}
        check_name(key.name, "API key")
        if replace and key.name not in known:
            raise WrongUsage(f"there is no API key {key.name!r}")
        if not replace and key.name in known:
            raise WrongUsage(f"there is an API key {key.name!r} already; remove it or take another name")
        if not replace and len(known) >= MAX_NAMES:
            raise WrongUsage(f"more than {MAX_NAMES} API keys")
        return _bytes_of({**known, key.name: ApiKey.parse(key.to_json())}.values())

    def without(self, name: str) -> bytes:
        known = {key.name: key for key in self.read()}
        if known.pop(name, None) is None:
            raise WrongUsage(f"there is no API key {name!r}")
        return _bytes_of(known.values())


@dataclass(frozen=True, slots=True)
class Teams:
    """teams.json: a list of teams as `Team.to_json` gives them."""

    path: Path

    def read(self) -> list[Team]:
        if not self.path.exists():
            return []
        try:
            return [Team.parse(value) for value in _list(self.path)]
        except WrongUsage as error:
            raise Malformed(f"{self.path}: {error}", rule="store/teams") from error

    def with_team(self, team: Team, *, replace: bool) -> bytes:
        """The file with `team` in it, in the place of one of its name if `replace`."""
        known = {other.name: other for other in self.read()}
        check_name(team.name, "team")
        if replace and team.name not in known:
            raise WrongUsage(f"there is no team {team.name!r}; make it with: steelyard team new {team.name}")
        if not replace and team.name in known:
            raise WrongUsage(f"there is a team {team.name!r} already; change it with: steelyard team set")
        if not replace and len(known) >= MAX_NAMES:
            raise WrongUsage(f"more than {MAX_NAMES} teams")
        return _bytes_of({**known, team.name: Team.parse(team.to_json())}.values())

    def without(self, name: str) -> bytes:
        known = {team.name: team for team in self.read()}
        if known.pop(name, None) is None:
            raise WrongUsage(f"there is no team {name!r}")
        return _bytes_of(known.values())


def read_evidence(path: Path) -> Evidence:
    """One envelope, whose payload hashes to the file's name."""
    try:
        evidence = Evidence.parse(_bytes(path))
    except Malformed as error:
        raise Malformed(f"{path}: {error.message}", rule=error.rule, offset=error.offset) from error
    if evidence.id.hex != path.stem:
        raise Malformed(f"{path} holds the envelope {evidence.id}", rule="store/evidence-name")
    return evidence


def _bytes_of(items: Iterable[ApiKey | Team]) -> bytes:
    return canonical_json([item.to_json() for item in items])


def _list(path: Path) -> list[object]:
    value = _json(path)
    if not isinstance(value, list):
        raise WrongUsage("not a list")
    return value


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
    return _parsed(_bytes(path), str(path))


def _parsed(data: bytes, place: str) -> Any:  # noqa: ANN401 - the caller checks the shape
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{place} is not JSON: {error}", rule="store/json") from error
