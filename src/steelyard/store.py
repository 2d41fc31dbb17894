"""Store: evidence, model manifests, aliases, API keys and teams as files, with a SQLite index that files can rebuild.

    <home>/store/evidence/<id hex>.json      DSSE envelopes        <home>/store/aliases.json, api_keys.json, teams.json
    <home>/store/manifests/<model hex>.json  {model, source}       <home>/store/models/<model hex>/  copied weights
    <home>/store/index.db                    the index             <home>/store/head, lock

The files are the truth. A change is: head becomes odd, the file is written and synced, the index commits, head
becomes even. Who finds head odd and the lock free knows that a writer died and reconciles; who finds a folder's
time other than the index noted (power cut, files restored by hand) does the same. One writer at a time, across
processes; readers wait for nobody.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from steelyard.access import ApiKey, Team
from steelyard.digest import OMS_SHA256, Digest
from steelyard.disk import Disk, FileLock, sweep, unavailable
from steelyard.errors import Unavailable, WrongUsage
from steelyard.evidence import Evidence
from steelyard.head import Head
from steelyard.model import Model
from steelyard.store_files import Aliases, ApiKeys, Manifest, Teams, read_evidence
from steelyard.store_index import Index, IndexDamaged
from steelyard.store_rules import bearing_on, check_prefix, joined, oldest_first, only

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class Store:
    """An open store. Safe in threads and across processes."""

    def __init__(self, root: Path, disk: Disk) -> None:
        self.root = root
        self._disk = disk
        self._evidence = root / "evidence"
        self._manifests = root / "manifests"
        for folder in (self._evidence, self._manifests, root / "models"):
            disk.make_folder(folder)
        self._aliases = Aliases(root / "aliases.json")
        self._api_keys = ApiKeys(root / "api_keys.json")
        self._teams = Teams(root / "teams.json")
        self._mutex = threading.RLock()
        self._lock = FileLock(root / "lock")
        self._head = Head(root / "head")
        self._index: Index | None = None

    @classmethod
    def open(cls, home: Path, *, disk: Disk | None = None) -> "Store":
        """The store below `home`, made when missing; what a killed writer left is put right.

        Raises Malformed naming the file when the index must be rebuilt and a file is damaged; Unavailable.
        """
        store = cls(home / "store", disk or Disk())
        with store._writing():
            pass
        return store

    def close(self) -> None:
        with self._mutex:
            if self._index is not None:
                self._index.close()
            self._head.close()
            self._lock.close()

    def head(self) -> int:
        """A number that is another after every change by any process. No file or database is touched.

        Odd while a change is under way; then a dead writer's change is finished here. What was read under one
        number may be used as long as the number stays the same.
        """
        value = self._head.value
        if value & 1:
            self._heal()
            value = self._head.value
        return value

    # Evidence

    def put_evidence(self, evidence: Evidence) -> Digest:
        """Keep `evidence`, durable on return. Idempotent; new signatures and fields join an envelope already here.

        WrongUsage when the joined envelope would have more than MAX_SIGNATURES signatures.
        """
        path = self._evidence / f"{evidence.id.hex}.json"
        with self._writing() as index:
            known = read_evidence(path) if path.exists() else None
            whole = joined(known, evidence) if known else evidence
            if whole == known and index.evidence_ids(evidence.id.hex):
                return evidence.id
            with self._moving():
                self._put(path, whole.to_json())
                self._record(lambda index: index.add_evidence(whole), undo=None if known else path)
        return evidence.id

    def evidence(self, id_: Digest | str) -> Evidence:
        """One envelope by its id, with or without `sha256:`, or the first MIN_PREFIX or more digits of it.

        WrongUsage when there is none or more than one; Malformed when its file is damaged or gone.
        """
        text = str(id_).removeprefix("sha256:")
        check_prefix(text, "evidence")
        return self._read(only(self._ask(lambda index: index.evidence_ids(text)), f"evidence {text}"))

    def evidence_for(self, sha256: str) -> list[Evidence]:
        """All that bears on the digest `sha256` (hex), oldest first.

        That is evidence about it; about the sources its lineage statements name, and theirs; and the revocations
        of any of these. Revocations of revocations are left out: a withdrawn statement stays withdrawn.
        Raises Malformed when a file is damaged or gone, or a lineage has more than MAX_LINEAGE members.
        """
        return bearing_on(sha256, self._about, self._read)

    def list_evidence(
        self, *, subject: str | None = None, predicate_type: str | None = None
    ) -> list[Evidence]:
        """Evidence by subject (SHA-256 hex), by predicate type, by both, or all of it; oldest first."""
        if subject is not None:
            keys = self._about(subject, predicate_type)
        elif predicate_type is not None:
            keys = self._ask(lambda index: index.of_type(predicate_type))
        else:
            keys = self._ask(lambda index: index.evidence_ids())
        return oldest_first(self._read(key) for key in keys)

    # Models

    def put_model(self, model: Model, *, source: str) -> Digest:
        """Keep a manifest and where its weights lie. The last name and source given to a digest stand."""
        manifest = Manifest(model, source)
        path = self._manifest_path(model.digest.hex)
        with self._writing(), self._moving():
            known = path.exists()
            self._put(path, manifest.to_bytes())
            self._record(
                lambda index: index.add_manifest(model.digest.hex, model.name), undo=None if known else path
            )
        return model.digest

    def model(self, name: str) -> Model:
        """A model by alias, name, digest, or the first MIN_PREFIX or more digits of it.

        WrongUsage when there is none or the name is ambiguous.
        """
        return self._manifest(self._resolve(name)).model

    def models(self) -> list[Model]:
        """Every model, by name."""
        return [self._manifest(hex_).model for hex_, _ in self._ask(lambda index: index.manifests())]

    def source(self, digest: Digest) -> str:
        """Where the weights lay when the model was put here. WrongUsage when it never was."""
        return self._manifest(self._resolve(str(digest))).source

    def model_dir(self, digest: Digest) -> Path:
        """The folder for weights the store owns (copies, conversions). Not made here."""
        return self.root / "models" / digest.hex

    # Names

    def set_alias(self, alias: str, digest: Digest) -> None:
        """Let `alias` stand for a model that is here. WrongUsage when it is not, or the alias cannot be one."""
        self._resolve(str(digest))
        with self._writing():
            data = self._aliases.with_alias(alias, digest)
            with self._moving():
                self._put(self._aliases.path, data)

    def remove_alias(self, alias: str) -> None:
        """WrongUsage when there is none."""
        with self._writing():
            data = self._aliases.without(alias)
            with self._moving():
                self._put(self._aliases.path, data)

    def aliases(self) -> dict[str, Digest]:
        return self._aliases.read()

    # Callers

    def add_api_key(self, key: ApiKey) -> None:
        """Let in who has the key's secret. WrongUsage when the name is taken or its team is not here."""
        self._put_key(key, replace=False)

    def set_api_key(self, key: ApiKey) -> None:
        """Put `key` in the place of the one of its name. WrongUsage when there is none, or no such team."""
        self._put_key(key, replace=True)

    def remove_api_key(self, name: str) -> None:
        """WrongUsage when there is none."""
        with self._writing():
            data = self._api_keys.without(name)
            with self._moving():
                self._put(self._api_keys.path, data)

    def api_keys(self) -> list[ApiKey]:
        return self._api_keys.read()

    def add_team(self, team: Team) -> None:
        """WrongUsage when the name is taken."""
        self._put_team(team, replace=False)

    def set_team(self, team: Team) -> None:
        """Put `team` in the place of the one of its name. WrongUsage when there is none."""
        self._put_team(team, replace=True)

    def remove_team(self, name: str) -> None:
        """WrongUsage when there is none, or a key is in it."""
        with self._writing():
            data = self._teams.without(name)
            members = [key.name for key in self._api_keys.read() if key.team == name]
            if members:
                raise WrongUsage(f"the API key {members[0]!r} is in the team {name!r}; remove it first")
            with self._moving():
                self._put(self._teams.path, data)

    def teams(self) -> list[Team]:
        return self._teams.read()

    def _put_key(self, key: ApiKey, *, replace: bool) -> None:
        with self._writing():
            if key.team is not None and key.team not in {team.name for team in self._teams.read()}:
                raise WrongUsage(
                    f"there is no team {key.team!r}; make it with: steelyard team new {key.team}"
                )
            data = self._api_keys.with_key(key, replace=replace)
            with self._moving():
                self._put(self._api_keys.path, data)

    def _put_team(self, team: Team, *, replace: bool) -> None:
        with self._writing():
            data = self._teams.with_team(team, replace=replace)
            with self._moving():
                self._put(self._teams.path, data)

    def reindex(self) -> None:
        """Build the index anew from the files. Raises Malformed naming a damaged file."""
        with self._mutex, self._lock.held():
            self._rebuild()

    # Locks, index, recovery

    @contextmanager
    def _writing(self) -> Iterator[Index]:
        """The store to oneself, settled."""
        with self._mutex, self._lock.held():
            yield self._settled()

    @contextmanager
    def _moving(self) -> Iterator[None]:
        """Around a change. After an error head stays odd, so that whoever comes next reconciles."""
        self._disk.step("head odd")
        self._head.begin()
        yield
        self._disk.step("head even")
        self._head.settle()

    def _record(self, change: Callable[[Index], None], undo: Path | None) -> None:
        """Enter a written file in the index. `undo`: the file to take away again when that fails, if it is new."""
        try:
            index = self._opened()
            with index.change():
                change(index)
                index.set_marks(self._marks())
                self._disk.step("commit index")
        except IndexDamaged as error:
            _log.warning("the store's index is damaged and is built anew from the files: %s", error)
            self._rebuild()
        except (Unavailable, OSError):
            if undo is not None:
                undo.unlink(missing_ok=True)
            raise

    def _ask(self, question: Callable[[Index], _T]) -> _T:
        self.head()
        with self._mutex:
            index = self._index
            try:
                if index is not None and not index.is_replaced():
                    return question(index)
            except IndexDamaged as error:
                _log.warning("a damaged index is met: %s", error)
            # Another process may be building it anew: never ask a half-built index, wait for the lock.
            with self._lock.held():
                return question(self._settled())

    def _about(self, sha256: str, predicate_type: str | None = None) -> list[str]:
        return self._ask(lambda index: index.about(sha256, predicate_type))

    def _heal(self) -> None:
        # Only when nobody is writing: the kernel frees a dead writer's lock.
        if not self._mutex.acquire(blocking=False):
            return
        try:
            if self._lock.try_take():
                try:
                    self._settled()
                finally:
                    self._lock.release()
        finally:
            self._mutex.release()

    def _settled(self) -> Index:
        """The index, agreeing with the files. The caller holds the lock, here and below."""
        try:
            self._settle(self._opened())
        except IndexDamaged as error:
            _log.warning("the store's index is damaged and is built anew from the files: %s", error)
            self._rebuild()
        return self._opened()

    def _opened(self) -> Index:
        if self._index is None or self._index.is_replaced():
            if self._index is not None:
                self._index.close()
            self._index = None
            self._index = Index(self.root / "index.db")
        return self._index

    def _settle(self, index: Index) -> None:
        """Bring the index up to the files, if a writer died or a folder changed behind our back."""
        if not self._head.is_odd and index.marks() == self._marks():
            return
        sweep(self.root)
        self._head.begin()
        marks = self._marks()
        known = set(index.evidence_ids())
        with index.change():
            for path in self._evidence.glob("*.json"):
                if path.stem not in known:
                    index.add_evidence(read_evidence(path))
            for path in self._manifests.glob("*.json"):
                manifest = Manifest.read(path)
                index.add_manifest(manifest.model.digest.hex, manifest.model.name)
            index.set_marks(marks)
        self._head.settle()

    def _rebuild(self) -> None:
        if self._index is not None:
            self._index.close()
            self._index = None
        Index.discard(self.root / "index.db")
        self._settle(self._opened())

    def _marks(self) -> dict[str, int]:
        with unavailable(f"cannot read {self.root}"):
            return {folder.name: folder.stat().st_mtime_ns for folder in (self._evidence, self._manifests)}

    # Files

    def _put(self, path: Path, data: bytes) -> None:
        self._disk.put(path, data, scratch=self.root)

    def _read(self, key: str) -> Evidence:
        return read_evidence(self._evidence / f"{key}.json")

    def _manifest_path(self, hex_: str) -> Path:
        return self._manifests / f"{hex_}.json"

    def _manifest(self, hex_: str) -> Manifest:
        return Manifest.read(self._manifest_path(hex_))

    def _resolve(self, name: str) -> str:
        alias = self.aliases().get(name)
        text = alias.hex if alias else name.removeprefix(f"{OMS_SHA256}:")
        manifests = self._ask(lambda index: index.manifests())
        named = [hex_ for hex_, known in manifests if known == text]
        if not named:
            check_prefix(text, "model")
            named = [hex_ for hex_, _ in manifests if hex_.startswith(text)]
        return only(named, f"model {name}")
