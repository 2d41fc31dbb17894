"""Store: evidence, model manifests, aliases and API keys as files, with a SQLite index that files can rebuild.

    <home>/store/evidence/<id hex>.json      DSSE envelopes        <home>/store/aliases.json, api_keys.json
    <home>/store/manifests/<model hex>.json  {model, source}       <home>/store/models/<model hex>/  copied weights
    <home>/store/index.db                    the index             <home>/store/head, lock

The files are the truth. A change is: head becomes odd, the file is written and synced, the index commits, head
becomes even. Who finds head odd and the lock free knows that a writer died and reconciles; who finds a folder's
time other than the index noted (power cut, files restored by hand) does the same. One writer at a time, across
processes; readers wait for nobody.
"""

import logging
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from steelyard.digest import OMS_SHA256, Digest
from steelyard.disk import Disk, FileLock, sweep, unavailable
from steelyard.errors import Malformed, Unavailable, WrongUsage
from steelyard.evidence import MAX_SIGNATURES, Evidence
from steelyard.head import Head
from steelyard.model import Model
from steelyard.policy import LINEAGE, REVOCATION
from steelyard.store_files import Aliases, ApiKey, ApiKeys, Manifest, read_evidence
from steelyard.store_index import Index, IndexDamaged, issued_at

MAX_LINEAGE = 64
MIN_PREFIX = 6

_HEX = re.compile(r"[0-9a-f]{1,64}")
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
        if self._head.is_odd:
            self._heal()
        return self._head.value

    # Evidence

    def put_evidence(self, evidence: Evidence) -> Digest:
        """Keep `evidence`, durable on return. Idempotent; new signatures and fields join an envelope already here.

        WrongUsage when the joined envelope would have more than MAX_SIGNATURES signatures.
        """
        path = self._evidence / f"{evidence.id.hex}.json"
        with self._writing() as index:
            known = read_evidence(path) if path.exists() else None
            joined = _joined(known, evidence) if known else evidence
            if joined == known and index.evidence_ids(evidence.id.hex):
                return evidence.id
            with self._moving():
                self._put(path, joined.to_json())
                self._record(lambda index: index.add_evidence(joined), undo=None if known else path)
        return evidence.id

    def evidence(self, id_: Digest | str) -> Evidence:
        """One envelope by its id, with or without `sha256:`, or the first MIN_PREFIX or more digits of it.

        WrongUsage when there is none or more than one; Malformed when its file is damaged or gone.
        """
        text = str(id_).removeprefix("sha256:")
        _check_prefix(text, "evidence")
        return self._read(_only(self._ask(lambda index: index.evidence_ids(text)), f"evidence {text}"))

    def evidence_for(self, sha256: str) -> list[Evidence]:
        """All that bears on the digest `sha256` (hex), oldest first.

        That is evidence about it; about the sources its lineage statements name, and theirs; and the revocations
        of any of these. Revocations of revocations are left out: a withdrawn statement stays withdrawn.
        Raises Malformed when a file is damaged or gone, or a lineage has more than MAX_LINEAGE members.
        """
        found: dict[str, Evidence] = {}
        seen, wanted = {sha256}, [sha256]
        while wanted:
            subject = wanted.pop()
            for key in self._about(subject):
                if key not in found:
                    found[key] = self._read(key)
                source = _source_of(found[key])
                if source and source not in seen:
                    seen.add(source)
                    wanted.append(source)
            if len(seen) > MAX_LINEAGE:
                raise Malformed(
                    f"the lineage of {sha256} names over {MAX_LINEAGE} models", rule="store/lineage"
                )
        for key in [key for key, item in found.items() if item.statement.predicate_type != REVOCATION]:
            for revocation in self._about(key, REVOCATION):
                if revocation not in found:
                    found[revocation] = self._read(revocation)
        return _oldest_first(found.values())

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
        return _oldest_first(self._read(key) for key in keys)

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

    def add_api_key(self, name: str, sha256: str, created: str) -> None:
        """Let in the caller whose secret has this SHA-256 (hex); `created` is RFC 3339.

        WrongUsage when the name is taken.
        """
        with self._writing():
            data = self._api_keys.with_key(ApiKey(name, sha256, created))
            with self._moving():
                self._put(self._api_keys.path, data)

    def remove_api_key(self, name: str) -> None:
        """WrongUsage when there is none."""
        with self._writing():
            data = self._api_keys.without(name)
            with self._moving():
                self._put(self._api_keys.path, data)

    def api_keys(self) -> list[ApiKey]:
        return self._api_keys.read()

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
            _check_prefix(text, "model")
            named = [hex_ for hex_, _ in manifests if hex_.startswith(text)]
        return _only(named, f"model {name}")


def _joined(known: Evidence, new: Evidence) -> Evidence:
    seen = {(item.keyid, item.sig) for item in known.signatures}
    added = tuple(item for item in new.signatures if (item.keyid, item.sig) not in seen)
    signatures = known.signatures + added
    if len(signatures) > MAX_SIGNATURES:
        raise WrongUsage(
            f"evidence {known.id} would have {len(signatures)} signatures, at most {MAX_SIGNATURES}"
        )
    return replace(known, signatures=signatures, extra={**new.extra, **known.extra})


def _source_of(evidence: Evidence) -> str | None:
    if evidence.statement.predicate_type != LINEAGE:
        return None
    source = evidence.statement.predicate.get("source")
    digest = source.get("digest") if isinstance(source, dict) else None
    sha256 = digest.get("sha256") if isinstance(digest, dict) else None
    return sha256 if isinstance(sha256, str) else None


def _oldest_first(items: Iterable[Evidence]) -> list[Evidence]:
    return sorted(items, key=lambda item: (issued_at(item), item.id))


def _check_prefix(text: str, what: str) -> None:
    if not _HEX.fullmatch(text) or len(text) < MIN_PREFIX:
        raise WrongUsage(
            f"no {what} is called {text!r}; give its name or {MIN_PREFIX} or more digits of its digest"
        )


def _only(keys: list[str], what: str) -> str:
    if not keys:
        raise WrongUsage(f"there is no {what} in the store; see `steelyard {what.split()[0]} ls`")
    if len(keys) > 1:
        listed = ", ".join(key[:16] for key in sorted(keys)[:8])
        raise WrongUsage(f"{what} is ambiguous: {listed}; give more of the digest")
    return keys[0]
