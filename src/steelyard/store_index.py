"""The store's SQLite index: which evidence is about what, and which model has which name.

Everything in it comes from the store's files, so a damaged index is thrown away and rebuilt. Evidence bytes are not
in it. WAL mode; a commit need not survive a power cut, because the store notices files the index does not know.
"""

import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from steelyard.disk import open_file, unavailable
from steelyard.errors import Unavailable
from steelyard.evidence import Evidence

SCHEMA_VERSION = 1
BUSY_TIMEOUT_S = 10.0

_SCHEMA = """
CREATE TABLE IF NOT EXISTS evidence (id TEXT PRIMARY KEY, predicate_type TEXT NOT NULL, issued_at TEXT NOT NULL)
    WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS subject (sha256 TEXT NOT NULL, id TEXT NOT NULL, PRIMARY KEY (sha256, id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS manifest (hex TEXT PRIMARY KEY, name TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS mark (folder TEXT PRIMARY KEY, time_ns INTEGER NOT NULL) WITHOUT ROWID;
"""
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


class IndexDamaged(Unavailable):
    """The index cannot be read. The store catches this and rebuilds; nobody else sees it."""


class Index:
    """An open index. The store serialises the calls; one connection serves every thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        os.close(
            open_file(path, os.O_RDWR)
        )  # so that SQLite finds it 0600, and gives its own files the same mode
        with _translated(path):
            self._db = sqlite3.connect(
                path,
                timeout=BUSY_TIMEOUT_S,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=32,
            )
            try:
                self._prepare()
            except BaseException:
                self._db.close()
                raise
        self._inode = os.stat(path).st_ino

    @staticmethod
    def discard(path: Path) -> None:
        """Remove the index and SQLite's files beside it."""
        with unavailable(f"cannot remove {path}"):
            for suffix in ("-wal", "-shm", ""):
                path.with_name(path.name + suffix).unlink(missing_ok=True)

    def is_replaced(self) -> bool:
        """Whether another process rebuilt the index in a new file."""
        try:
            return os.stat(self._path).st_ino != self._inode
        except FileNotFoundError:
            return True

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def change(self) -> Iterator[None]:
        """One transaction: all of it or none."""
        with _translated(self._path):
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def add_evidence(self, evidence: Evidence) -> None:
        statement, key = evidence.statement, evidence.id.hex
        row = (key, statement.predicate_type, issued_at(evidence))
        self._db.execute("INSERT OR REPLACE INTO evidence VALUES (?, ?, ?)", row)
        subjects = [(subject.sha256, key) for subject in statement.subjects]
        self._db.executemany("INSERT OR IGNORE INTO subject VALUES (?, ?)", subjects)

    def add_manifest(self, hex_: str, name: str) -> None:
        self._db.execute("INSERT OR REPLACE INTO manifest VALUES (?, ?)", (hex_, name))

    def set_marks(self, marks: dict[str, int]) -> None:
        self._db.executemany("INSERT OR REPLACE INTO mark VALUES (?, ?)", marks.items())

    def marks(self) -> dict[str, int]:
        """Folder -> its modification time when the index last agreed with it."""
        return {str(folder): int(time) for folder, time in self._rows("SELECT folder, time_ns FROM mark")}

    def evidence_ids(self, prefix: str = "") -> list[str]:
        """Ids in hex that begin with `prefix`."""
        return self._column("SELECT id FROM evidence WHERE substr(id, 1, ?) = ?", (len(prefix), prefix))

    def about(self, sha256: str, predicate_type: str | None = None) -> list[str]:
        """Ids of evidence with this subject, of one predicate type or of all."""
        query = "SELECT id FROM subject JOIN evidence USING (id) WHERE sha256 = ?"
        if predicate_type is None:
            return self._column(query, (sha256,))
        return self._column(query + " AND predicate_type = ?", (sha256, predicate_type))

    def of_type(self, predicate_type: str) -> list[str]:
        return self._column("SELECT id FROM evidence WHERE predicate_type = ?", (predicate_type,))

    def manifests(self) -> list[tuple[str, str]]:
        """(model hex, name) of every model, by name."""
        rows = self._rows("SELECT hex, name FROM manifest ORDER BY name, hex")
        return [(str(hex_), str(name)) for hex_, name in rows]

    def _prepare(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        (version,) = self._db.execute("PRAGMA user_version").fetchone()
        (verdict,) = self._db.execute("PRAGMA quick_check(1)").fetchone()
        if version not in (0, SCHEMA_VERSION) or verdict != "ok":
            raise IndexDamaged(f"{self._path}: schema {version}, check says {verdict}")
        self._db.executescript(_SCHEMA)
        self._db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _rows(self, query: str, values: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
        with _translated(self._path):
            return self._db.execute(query, values).fetchall()

    def _column(self, query: str, values: Iterable[str | int] = ()) -> list[str]:
        return [str(row[0]) for row in self._rows(query, tuple(values))]


def issued_at(evidence: Evidence) -> str:
    """RFC 3339 time the statement gives itself, empty when it gives none."""
    found = evidence.statement.predicate.get("issued_at", "")
    return found if isinstance(found, str) else ""


@contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _DAMAGED:
            raise IndexDamaged(f"{path}: {error}") from error
        raise Unavailable(f"{path}: {error}") from error
