"""A store in PostgreSQL, where gateways on several machines share one. It keeps to what `store.Store` keeps to.

    steelyard.head       one row: value, even, larger after every change      steelyard.evidence   id, envelope
    steelyard.about      subject, predicate type, id                          steelyard.manifests  model, name, body
    steelyard.documents  "aliases.json", "api_keys.json", "teams.json" with the bytes those files have

A change locks the head's row first, so there is one writer at a time; it moves the head and notifies in the same
transaction. `head` asks nobody: a thread listens and keeps the last value, and looks itself each second. When it has
not heard from the server for STALE_S, `head` raises Unavailable: nothing is decided on evidence that may be revoked.
A change made elsewhere counts here as soon as its notice is in.

Weights lie on each machine's own disk, below the home.
"""

import json
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, LiteralString, TypeVar

from steelyard.access import ApiKey, Team, check_name
from steelyard.digest import OMS_SHA256, Digest
from steelyard.errors import Malformed, Unavailable, WrongUsage
from steelyard.evidence import Evidence
from steelyard.model import Model
from steelyard.store_files import Aliases, ApiKeys, Manifest, Teams
from steelyard.store_postgres_head import CHANNEL, Connection, HeadListener, ServerError, connect
from steelyard.store_rules import bearing_on, check_prefix, joined, oldest_first, only

_SCHEMA = """
CREATE SCHEMA IF NOT EXISTS steelyard;
CREATE TABLE IF NOT EXISTS steelyard.head (one boolean PRIMARY KEY CHECK (one), value bigint NOT NULL);
INSERT INTO steelyard.head VALUES (true, 0) ON CONFLICT DO NOTHING;
CREATE TABLE IF NOT EXISTS steelyard.evidence (id text PRIMARY KEY, envelope bytea NOT NULL);
CREATE TABLE IF NOT EXISTS steelyard.about (
    subject text NOT NULL, type bytea NOT NULL, id text NOT NULL REFERENCES steelyard.evidence,
    PRIMARY KEY (subject, type, id));
CREATE INDEX IF NOT EXISTS about_type ON steelyard.about (type);
CREATE TABLE IF NOT EXISTS steelyard.manifests (model text PRIMARY KEY, name text NOT NULL, body bytea NOT NULL);
CREATE TABLE IF NOT EXISTS steelyard.documents (name text PRIMARY KEY, body bytea NOT NULL);
"""
_SCHEMA_LOCK = 0x5354594C  # any number of our own

_T = TypeVar("_T")


class PostgresStore:
    """An open store at `url` (postgresql://...). home: for weights.  Safe in threads, processes and across machines.

    Every method raises Unavailable when the server does not answer.
    """

    def __init__(self, url: str, home: Path) -> None:
        self.root = home / "store"
        self._url = url
        self._mutex = threading.RLock()
        self._connection: Connection | None = None
        self._listener: HeadListener | None = None

    @classmethod
    def open(cls, url: str, home: Path) -> "PostgresStore":
        """The tables are made when missing."""
        store = cls(url, home)
        with store._asking() as connection, connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(%s)", [_SCHEMA_LOCK])
            connection.execute(_SCHEMA)
        return store

    def close(self) -> None:
        with self._mutex:
            if self._listener is not None:
                self._listener.stop()
            if self._connection is not None:
                self._connection.close()

    @property
    def is_lost(self) -> bool:
        """Whether the server has not been heard from for STALE_S, once listening has begun."""
        return self._listener is not None and self._listener.value is None

    def head(self) -> int:
        """As store.Store.head. The first call begins to listen."""
        listener = self._listener
        if listener is None:
            listener = self._listening()
        value = listener.value
        if value is None:
            raise Unavailable("the store's server does not answer")
        return value

    # Evidence

    def put_evidence(self, evidence: Evidence) -> Digest:
        key = evidence.id.hex
        with self._writing() as connection:
            row = connection.execute(
                "SELECT envelope FROM steelyard.evidence WHERE id = %s", [key]
            ).fetchone()
            known = _envelope(key, row[0]) if row else None
            whole = joined(known, evidence) if known else evidence
            if whole != known:
                connection.execute(
                    "INSERT INTO steelyard.evidence VALUES (%s, %s) "
                    "ON CONFLICT (id) DO UPDATE SET envelope = excluded.envelope",
                    [key, whole.to_json()],
                )
                _index(connection, whole)
                self._move(connection)
        return evidence.id

    def evidence(self, id_: Digest | str) -> Evidence:
        text = str(id_).removeprefix("sha256:")
        check_prefix(text, "evidence")
        rows = self._rows("SELECT id FROM steelyard.evidence WHERE starts_with(id, %s) LIMIT 9", text)
        return self._read(only([row[0] for row in rows], f"evidence {text}"))

    def evidence_for(self, sha256: str) -> list[Evidence]:
        """As store.Store.evidence_for, as of one moment."""
        with self._asking() as connection, connection.transaction():
            connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
            return bearing_on(sha256, self._about, self._read)

    def list_evidence(
        self, *, subject: str | None = None, predicate_type: str | None = None
    ) -> list[Evidence]:
        if subject is not None:
            keys = self._about(subject, predicate_type)
        elif predicate_type is not None:
            rows = self._rows(
                "SELECT DISTINCT id FROM steelyard.about WHERE type = %s", _type(predicate_type)
            )
            keys = [row[0] for row in rows]
        else:
            keys = [row[0] for row in self._rows("SELECT id FROM steelyard.evidence")]
        return oldest_first(self._read(key) for key in keys)

    # Models

    def put_model(self, model: Model, *, source: str) -> Digest:
        with self._writing() as connection:
            connection.execute(
                "INSERT INTO steelyard.manifests VALUES (%s, %s, %s) "
                "ON CONFLICT (model) DO UPDATE SET name = excluded.name, body = excluded.body",
                [model.digest.hex, model.name, Manifest(model, source).to_bytes()],
            )
            self._move(connection)
        return model.digest

    def model(self, name: str) -> Model:
        return self._manifest(self._resolve(name)).model

    def models(self) -> list[Model]:
        rows = self._rows("SELECT model, body FROM steelyard.manifests")
        return sorted((_manifest(*row).model for row in rows), key=lambda model: (model.name, model.digest))

    def source(self, digest: Digest) -> str:
        return self._manifest(self._resolve(str(digest))).source

    def model_dir(self, digest: Digest) -> Path:
        return self.root / "models" / digest.hex

    # Names and callers

    def set_alias(self, alias: str, digest: Digest) -> None:
        self._resolve(str(digest))
        self._change("aliases.json", lambda: self._aliases().with_alias(alias, digest))

    def remove_alias(self, alias: str) -> None:
        self._change("aliases.json", lambda: self._aliases().without(alias))

    def aliases(self) -> dict[str, Digest]:
        return self._aliases().read()

    def add_api_key(self, key: ApiKey) -> None:
        self._change("api_keys.json", lambda: self._with_key(key, replace=False))

    def set_api_key(self, key: ApiKey) -> None:
        self._change("api_keys.json", lambda: self._with_key(key, replace=True))

    def remove_api_key(self, name: str) -> None:
        self._change("api_keys.json", lambda: self._api_keys().without(name))

    def api_keys(self) -> list[ApiKey]:
        return self._api_keys().read()

    def add_team(self, team: Team) -> None:
        self._change("teams.json", lambda: self._teams().with_team(team, replace=False))

    def set_team(self, team: Team) -> None:
        self._change("teams.json", lambda: self._teams().with_team(team, replace=True))

    def remove_team(self, name: str) -> None:
        def without() -> bytes:
            data = self._teams().without(name)
            members = [key.name for key in self._api_keys().read() if key.team == name]
            if members:
                raise WrongUsage(f"the API key {members[0]!r} is in the team {name!r}; remove it first")
            return data

        self._change("teams.json", without)

    def teams(self) -> list[Team]:
        return self._teams().read()

    def reindex(self) -> None:
        """Build `about` anew from the envelopes. Raises Malformed naming a damaged one."""
        with self._writing() as connection:
            connection.execute("DELETE FROM steelyard.about")
            for key, envelope in connection.execute("SELECT id, envelope FROM steelyard.evidence").fetchall():
                _index(connection, _envelope(key, envelope))
            self._move(connection)

    # The server

    @contextmanager
    def _asking(self) -> Iterator[Connection]:
        """The connection, to oneself. What the server says no to is Unavailable, and the next call connects anew."""
        with self._mutex:
            try:
                if self._connection is None or self._connection.closed:
                    self._connection = connect(self._url)
                yield self._connection
            except ServerError as error:
                if self._connection is not None:
                    self._connection.close()
                self._connection = None
                raise Unavailable(f"the store's server does not answer: {type(error).__name__}") from error

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self._asking() as connection:
            with connection.transaction():
                connection.execute("SELECT value FROM steelyard.head FOR UPDATE")
                self._moved: int | None = None
                yield connection
            if self._listener is not None and self._moved is not None:
                self._listener.hear(self._moved)  # one's own change counts at once

    def _move(self, connection: Connection) -> None:
        row = connection.execute("UPDATE steelyard.head SET value = value + 2 RETURNING value").fetchone()
        assert row is not None
        self._moved = row[0]
        connection.execute("SELECT pg_notify(%s, %s)", [CHANNEL, str(row[0])])

    def _listening(self) -> "HeadListener":
        with self._mutex:
            if self._listener is None:
                self._listener = HeadListener(self._url)
                weakref.finalize(self, self._listener.stop)
            return self._listener

    def _rows(self, query: LiteralString, *values: str | bytes) -> list[tuple[Any, ...]]:
        with self._asking() as connection:
            return connection.execute(query, values).fetchall()

    def _about(self, subject: str, type_: str | None) -> list[str]:
        query = (
            "SELECT DISTINCT id FROM steelyard.about WHERE subject = %s AND (%s::bytea IS NULL OR type = %s)"
        )
        kind = None if type_ is None else _type(type_)
        with self._asking() as connection:
            return [row[0] for row in connection.execute(query, [subject, kind, kind])]

    def _read(self, key: str) -> Evidence:
        rows = self._rows("SELECT envelope FROM steelyard.evidence WHERE id = %s", key)
        if not rows:
            raise Malformed(f"evidence {key} is gone, the index knows it", rule="store/missing")
        return _envelope(key, rows[0][0])

    def _manifest(self, hex_: str) -> Manifest:
        rows = self._rows("SELECT body FROM steelyard.manifests WHERE model = %s", hex_)
        return _manifest(hex_, rows[0][0])

    def _resolve(self, name: str) -> str:
        alias = self.aliases().get(name)
        text = alias.hex if alias else name.removeprefix(f"{OMS_SHA256}:")
        named: list[str] = []
        if "\0" not in text:  # no name has one, and PostgreSQL takes none
            rows = self._rows("SELECT model FROM steelyard.manifests WHERE name = %s", text)
            named = [row[0] for row in rows]
        if not named:
            check_prefix(text, "model")
            rows = self._rows("SELECT model FROM steelyard.manifests WHERE starts_with(model, %s)", text)
            named = [row[0] for row in rows]
        return only(named, f"model {name}")

    # Documents: the same bytes and the same rules as the files of a store on disk.

    def _change(self, name: str, made: Callable[[], bytes]) -> None:
        with self._writing() as connection:
            connection.execute(
                "INSERT INTO steelyard.documents VALUES (%s, %s) "
                "ON CONFLICT (name) DO UPDATE SET body = excluded.body",
                [name, made()],
            )
            self._move(connection)

    def _document(self, name: str, empty: _T) -> Any | _T:  # noqa: ANN401 - the caller checks the shape
        rows = self._rows("SELECT body FROM steelyard.documents WHERE name = %s", name)
        if not rows:
            return empty
        try:
            return json.loads(bytes(rows[0][0]))
        except ValueError as error:
            raise Malformed(f"{name} is not JSON", rule="store/json") from error

    def _aliases(self) -> "_AliasRows":
        value: dict[str, str] = self._document("aliases.json", {})
        try:
            return _AliasRows(
                Path("aliases.json"),
                {check_name(name, "alias"): Digest.parse(digest) for name, digest in value.items()},
            )
        except (AttributeError, ValueError, WrongUsage) as error:
            raise Malformed(f"aliases.json: {error}", rule="store/aliases") from error

    def _api_keys(self) -> "_KeyRows":
        try:
            return _KeyRows(
                Path("api_keys.json"), [ApiKey.parse(value) for value in self._document("api_keys.json", [])]
            )
        except (TypeError, ValueError, WrongUsage) as error:
            raise Malformed(f"api_keys.json: {error}", rule="store/api-keys") from error

    def _teams(self) -> "_TeamRows":
        try:
            return _TeamRows(
                Path("teams.json"), [Team.parse(value) for value in self._document("teams.json", [])]
            )
        except (TypeError, ValueError, WrongUsage) as error:
            raise Malformed(f"teams.json: {error}", rule="store/teams") from error

    def _with_key(self, key: ApiKey, *, replace: bool) -> bytes:
        if key.team is not None and key.team not in {team.name for team in self.teams()}:
            raise WrongUsage(f"there is no team {key.team!r}; make it with: steelyard team new {key.team}")
        return self._api_keys().with_key(key, replace=replace)


@dataclass(frozen=True, slots=True)
class _AliasRows(Aliases):
    known: Mapping[str, Digest]

    def read(self) -> dict[str, Digest]:
        return dict(self.known)


@dataclass(frozen=True, slots=True)
class _KeyRows(ApiKeys):
    known: Sequence[ApiKey]

    def read(self) -> list[ApiKey]:
        return list(self.known)


@dataclass(frozen=True, slots=True)
class _TeamRows(Teams):
    known: Sequence[Team]

    def read(self) -> list[Team]:
        return list(self.known)


def _index(connection: Connection, evidence: Evidence) -> None:
    statement = evidence.statement
    # Not text: a type may hold what PostgreSQL's text cannot, such as a zero.
    type_ = _type(statement.predicate_type)
    for subject in statement.subjects:
        connection.execute(
            "INSERT INTO steelyard.about VALUES (%s, %s, %s) ON CONFLICT DO NOTHING",
            [subject.sha256, type_, evidence.id.hex],
        )


def _type(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _envelope(key: str, data: bytes) -> Evidence:
    try:
        evidence = Evidence.parse(bytes(data))
    except Malformed as error:
        raise Malformed(f"evidence {key}: {error.message}", rule=error.rule, offset=error.offset) from error
    if evidence.id.hex != key:
        raise Malformed(f"evidence {key} holds the envelope {evidence.id}", rule="store/evidence-name")
    return evidence


def _manifest(hex_: str, data: bytes) -> Manifest:
    return Manifest.parse(bytes(data), f"manifest {hex_}", hex_)
