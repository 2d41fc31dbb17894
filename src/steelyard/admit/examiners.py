"""The examiners of admission. One shape: examine(scan, now) -> Predicate; each becomes one signed statement."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from steelyard import __version__
from steelyard.admit.licences import licence_of
from steelyard.admit.openness import openness_of
from steelyard.admit.scan import Scan
from steelyard.digest import JSON
from steelyard.evidence import PREDICATE_PREFIX, timestamp
from steelyard.formats.base import Severity
from steelyard.plugins import load

MAX_FINDINGS = 1000  # a refusal needs no more; how many there were is stated


@dataclass(frozen=True, slots=True)
class Predicate:
    """What one examiner says: the predicate type and its body."""

    type: str
    body: Mapping[str, JSON]


def examine_all(scan: Scan, now: datetime, allowed: tuple[str, ...] = ()) -> tuple[Predicate, ...]:
    """Run every built-in examiner, and those foreign ones that the configuration allows, in order of name.

    A foreign one's distribution and version go into what it says.
    """
    predicates = []
    for _, plugin in sorted(load("steelyard.examiners", allowed).items()):
        predicate: Predicate = plugin.value(scan, now)
        if not plugin.is_builtin:
            made_by: JSON = {"name": plugin.distribution, "version": plugin.version, "plugin": plugin.name}
            predicate = Predicate(predicate.type, {**predicate.body, "made_by": made_by})
        predicates.append(predicate)
    return tuple(predicates)


def examine_scan(scan: Scan, now: datetime) -> Predicate:
    """The verdict with its findings, and the files that wait for a person's word."""
    found = list(scan.findings())
    digests = {file.path: file.sha256 for file in scan.files}
    review: list[JSON] = [
        {"rule": finding.rule, "path": path, "sha256": digests.get(path)}
        for path, finding in found
        if scan.severity(finding) is Severity.REVIEW
    ]
    listed: list[JSON] = [scan.finding_json(path, finding) for path, finding in found[:MAX_FINDINGS]]
    return _predicate(
        "scan",
        now,
        tool={"name": "steelyard", "version": __version__},
        ruleset=str(scan.ruleset),
        confinement=scan.confinement,
        verdict=scan.verdict.value,
        files=len(scan.files),
        bytes=sum(file.size for file in scan.files),
        finding_count=len(found),
        findings=listed,
        review=review,
    )


def examine_formats(scan: Scan, now: datetime) -> Predicate:
    """Which format claimed each file, with its facts."""
    files: list[JSON] = [
        {"path": file.path, "format": file.report.format, "size": file.size, "facts": dict(file.report.facts)}
        for file in scan.files
    ]
    counts = Counter(file.report.format for file in scan.files)
    return _predicate(
        "formats", now, files=files, counts=dict(sorted(counts.items())), unclaimed=counts["unknown"]
    )


def examine_manifest(scan: Scan, now: datetime) -> Predicate:
    """Every file with its size and SHA-256."""
    files: list[JSON] = [{"path": file.path, "size": file.size, "sha256": file.sha256} for file in scan.files]
    root = scan.model.digest.hex if scan.model else None
    return _predicate("manifest", now, algorithm="oms-sha256", root=root, files=files)


def examine_licence(scan: Scan, now: datetime) -> Predicate:
    """What the licence texts and metadata say, and whether they agree."""
    return _predicate("licence", now, **licence_of(scan).to_json())


def examine_openness(scan: Scan, now: datetime) -> Predicate:
    """Weights, licence freedoms, reproducibility: three axes, each with what is missing."""
    return _predicate("openness", now, **openness_of(scan, licence_of(scan)).to_json())


def _predicate(name: str, now: datetime, **body: JSON) -> Predicate:
    return Predicate(f"{PREDICATE_PREFIX}{name}:v1", {"issued_at": timestamp(now), **body})
