"""Known vulnerabilities: OSV records, supplied by the operator, matched against Python packages.

A dump is a zip file (as OSV publishes one for each ecosystem) or a folder of JSON records. Only PyPI packages are
matched. A version is affected when the record lists it, or when a range of type ECOSYSTEM or SEMVER holds it: events
in order of version, `introduced` begins, `fixed` ends, `last_affected` ends after it. Withdrawn records do not count.
A package of unknown version is reported for every record on it, as possible.

Nothing is fetched. The dump's age is that of its newest record; one that is too old cannot say that all is well.

Source: OSV schema 1.7 (ossf.github.io/osv-schema), sections affected and evaluation; PEP 503, PEP 440.
"""

import hashlib
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from packaging.version import InvalidVersion, Version

from steelyard.digest import JSON, canonical_json
from steelyard.errors import Malformed, Unavailable, WrongUsage
from steelyard.evidence import timestamp

MAX_RECORDS = 500_000
MAX_RECORD_BYTES = 4 << 20
MAX_DUMP_BYTES = 1 << 30
MAX_AGE = timedelta(days=30)
PREDICATE = "urn:steelyard:advisories:v1"

_SEPARATORS = re.compile(r"[-_.]+")


@dataclass(frozen=True, slots=True)
class Package:
    """A Python package. version: absent when nothing pins it.  origin: where it was found."""

    name: str
    version: str | None
    origin: str

    @property
    def key(self) -> str:
        """The name as PEP 503 normalises it."""
        return normalised(self.name)


@dataclass(frozen=True, slots=True)
class Affected:
    """What one record says of one package."""

    package: str
    versions: frozenset[str]
    ranges: tuple[tuple[tuple[str, str], ...], ...]  # each a tuple of (event, version)


@dataclass(frozen=True, slots=True)
class Advisory:
    """One OSV record, the part that is matched and shown."""

    id: str
    aliases: tuple[str, ...]
    summary: str
    severity: str
    modified: datetime
    affected: tuple[Affected, ...]


@dataclass(frozen=True, slots=True)
class Match:
    """A package that a record names. is_certain: its version is known and affected."""

    advisory: Advisory
    package: Package
    is_certain: bool
    fixed: tuple[str, ...]

    def to_json(self) -> dict[str, JSON]:
        return {
            "id": self.advisory.id,
            "aliases": list(self.advisory.aliases),
            "summary": self.advisory.summary,
            "severity": self.advisory.severity,
            "package": self.package.name,
            "version": self.package.version,
            "origin": self.package.origin,
            "certain": self.is_certain,
            "fixed": list(self.fixed),
        }


@dataclass(frozen=True, slots=True)
class Database:
    """The records of a dump that are about PyPI packages. sha256: of their canonical form."""

    advisories: tuple[Advisory, ...]
    newest: datetime
    sha256: str

    def is_stale(self, now: datetime, limit: timedelta = MAX_AGE) -> bool:
        return now - self.newest > limit

    def match(self, packages: Iterable[Package]) -> tuple[Match, ...]:
        """Every package of `packages` that a record affects, by id and name."""
        wanted: dict[str, list[Package]] = {}
        for package in packages:
            wanted.setdefault(package.key, []).append(package)
        found = [
            match
            for advisory in self.advisories
            for affected in advisory.affected
            for package in wanted.get(affected.package, ())
            if (match := _match(advisory, affected, package))
        ]
        return tuple(sorted(set(found), key=lambda m: (m.package.key, m.advisory.id, m.package.origin)))

    def predicate(self, packages: Iterable[Package], now: datetime) -> dict[str, JSON]:
        """The body of urn:steelyard:advisories:v1 for these packages. verdict: clear | possible | affected."""
        listed = sorted(set(packages), key=lambda p: (p.origin, p.key, p.version or ""))
        matches = self.match(listed)
        certain = any(match.is_certain for match in matches)
        return {
            "issued_at": timestamp(now),
            "database": {
                "sha256": self.sha256,
                "newest": timestamp(self.newest),
                "records": len(self.advisories),
            },
            "packages": [{"name": p.name, "version": p.version, "origin": p.origin} for p in listed],
            "matches": [match.to_json() for match in matches],
            "verdict": "affected" if certain else "possible" if matches else "clear",
        }


def read_dump(path: Path, progress: Callable[[int], None] | None = None) -> Database:
    """Read a dump. progress: records read since the last call.

    Raises WrongUsage (missing, or no PyPI record in it), Malformed (rule advisory/...), Unavailable.
    """
    found: list[Advisory] = []
    for count, (name, data) in enumerate(_records(path)):
        if count >= MAX_RECORDS:
            raise Malformed(f"{path}: more than {MAX_RECORDS} records", rule="advisory/size")
        advisory = _advisory(name, data)
        if advisory:
            found.append(advisory)
        if progress:
            progress(1)
    return _database(found, str(path))


def dumps(database: Database) -> bytes:
    """The records as `loads` reads them: what an installation keeps of a dump."""
    return canonical_json({"schema": 1, "records": [_to_json(advisory) for advisory in database.advisories]})


def loads(data: bytes) -> Database:
    """Read what `dumps` wrote. Raises Malformed."""
    try:
        records = json.loads(data)["records"]
    except (ValueError, KeyError, TypeError) as error:
        raise Malformed(f"not a kept advisory database: {error}", rule="advisory/record") from error
    read = [_advisory("kept", canonical_json(record)) for record in records]
    return _database([advisory for advisory in read if advisory], "the kept database")


def packages_of(formats: Mapping[str, JSON]) -> tuple[Package, ...]:
    """The packages that a model's own files ask for, from its `formats` predicate (fact `requirements`)."""
    found = []
    files = formats.get("files")
    for file in files if isinstance(files, list) else []:
        facts = file.get("facts") if isinstance(file, Mapping) else None
        listed = facts.get("requirements") if isinstance(facts, Mapping) else None
        for entry in listed if isinstance(listed, list) else []:
            if isinstance(entry, Mapping) and isinstance(entry.get("name"), str):
                version = entry.get("version")
                found.append(
                    Package(str(entry["name"]), str(version) if version else None, str(file["path"]))
                )
    return tuple(found)


def normalised(name: str) -> str:
    """PEP 503."""
    return _SEPARATORS.sub("-", name).lower()


def _database(found: list[Advisory], where: str) -> Database:
    if not found:
        raise WrongUsage(f"{where}: no OSV record about a PyPI package")
    ordered = tuple(sorted(found, key=lambda advisory: advisory.id))
    content = canonical_json([_to_json(advisory) for advisory in ordered])
    return Database(ordered, max(a.modified for a in ordered), hashlib.sha256(content).hexdigest())


def _records(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        if path.is_dir():
            for file in sorted(path.rglob("*.json")):
                yield file.name, _bounded(file.name, file.stat().st_size, file.read_bytes)
        else:
            yield from _zipped(path)
    except FileNotFoundError as error:
        raise WrongUsage(f"{path}: no such file or folder") from error
    except zipfile.BadZipFile as error:
        raise Malformed(f"{path}: neither a folder nor a zip file: {error}", rule="advisory/dump") from error
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror or error}") from error


def _zipped(path: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        left = MAX_DUMP_BYTES
        for member in archive.infolist():
            if member.filename.endswith(".json"):
                left -= member.file_size
                if left < 0:
                    raise Malformed(
                        f"{path}: more than {MAX_DUMP_BYTES} bytes of records", rule="advisory/size"
                    )
                yield (
                    member.filename,
                    _bounded(member.filename, member.file_size, lambda m=member: archive.read(m)),  # type: ignore[misc]
                )


def _bounded(name: str, size: int, read: Callable[[], bytes]) -> bytes:
    if size > MAX_RECORD_BYTES:
        raise Malformed(f"{name}: a record of {size} bytes", rule="advisory/size")
    return read()


def _advisory(name: str, data: bytes) -> Advisory | None:
    """The record, or None when it is withdrawn or about nothing on PyPI."""
    try:
        record = json.loads(data)
        modified = _instant(record["modified"])
        if record.get("withdrawn"):
            return None
        affected = tuple(_affected(entry) for entry in record.get("affected", ()) if _is_pypi(entry))
        advisory_id = str(record["id"])
        texts = [str(alias) for alias in record.get("aliases", ())]
        summary = str(record.get("summary") or record.get("details") or "")[:300]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Malformed(f"{name}: not an OSV record: {error!r}", rule="advisory/record") from error
    if not affected:
        return None
    return Advisory(advisory_id, tuple(texts), summary, _severity(record), modified, affected)


def _is_pypi(entry: Mapping[str, object]) -> bool:
    package = entry.get("package")
    return isinstance(package, Mapping) and str(package.get("ecosystem")).partition(":")[0] == "PyPI"


def _affected(entry: Mapping[str, object]) -> Affected:
    package = entry["package"]
    versions, ranges = entry.get("versions") or [], entry.get("ranges") or []
    if not isinstance(package, Mapping) or not isinstance(versions, list) or not isinstance(ranges, list):
        raise TypeError("affected is not as the schema says")
    kept = tuple(
        tuple((str(event), str(version)) for step in span["events"] for event, version in step.items())
        for span in ranges
        if span.get("type") in {"ECOSYSTEM", "SEMVER"}
    )
    return Affected(normalised(str(package["name"])), frozenset(str(v) for v in versions), kept)


def _severity(record: Mapping[str, object]) -> str:
    specific = record.get("database_specific")
    named = specific.get("severity") if isinstance(specific, Mapping) else None
    scores = record.get("severity")
    if isinstance(named, str):
        return named.lower()
    first = scores[0] if isinstance(scores, list) and scores else None
    return str(first.get("score")) if isinstance(first, Mapping) else "unknown"


def _instant(text: str) -> datetime:
    instant = datetime.fromisoformat(text)
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


def _to_json(advisory: Advisory) -> dict[str, JSON]:
    affected: list[JSON] = [
        {
            "package": {"ecosystem": "PyPI", "name": entry.package},
            "versions": sorted(entry.versions),
            "ranges": [
                {"type": "ECOSYSTEM", "events": [{event: version} for event, version in span]}
                for span in entry.ranges
            ],
        }
        for entry in advisory.affected
    ]
    return {
        "id": advisory.id,
        "aliases": list(advisory.aliases),
        "summary": advisory.summary,
        "database_specific": {"severity": advisory.severity},
        "modified": advisory.modified.isoformat(),
        "affected": affected,
    }


def _match(advisory: Advisory, affected: Affected, package: Package) -> Match | None:
    fixed = tuple(sorted({v for span in affected.ranges for event, v in span if event == "fixed"}))
    if package.version is None:
        return Match(advisory, package, False, fixed)
    version = _version(package.version)
    if version is None:
        # A version that PEP 440 cannot order may be any: said, and not certain.
        is_listed = package.version in affected.versions
        return Match(advisory, package, is_listed, fixed)
    is_listed = any(_version(text) == version for text in affected.versions)
    if is_listed or any(_holds(span, version) for span in affected.ranges):
        return Match(advisory, package, True, fixed)
    return None


def _holds(events: Iterable[tuple[str, str]], version: Version) -> bool:
    """OSV's evaluation: walk the events in order of version. An event that cannot be ordered affects everything."""
    steps = []
    for event, text in events:
        at = Version("0.dev0") if (event, text) == ("introduced", "0") else _version(text)
        if at is None:
            return True
        steps.append((at, event))
    is_affected = False
    for at, event in sorted(steps, key=lambda step: (step[0], step[1] != "introduced")):
        if event == "introduced" and version >= at:
            is_affected = True
        elif (event == "fixed" and version >= at) or (event == "last_affected" and version > at):
            is_affected = False
    return is_affected


def _version(text: str) -> Version | None:
    try:
        return Version(text)
    except InvalidVersion:
        return None
