"""A scan as SARIF 2.1.0: what code hosts and security desks read.

One result a finding, with the byte offset as the region where there is one. Fingerprints name rule, file digest and
member, so the same finding in the next scan is the same result. Severity: reject is error, review warning, note note.

Source: OASIS SARIF 2.1.0, sections 3.13 to 3.49.
"""

import hashlib
import re

from steelyard import __version__
from steelyard.admit.scan import Scan
from steelyard.digest import JSON
from steelyard.formats.base import Finding, Severity

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_RESERVED = re.compile(rb"[^A-Za-z0-9._~/-]")
_LEVELS = {Severity.REJECT: "error", Severity.REVIEW: "warning", Severity.NOTE: "note"}


def sarif(scan: Scan) -> dict[str, JSON]:
    """The log of one run."""
    named = sorted({finding.rule for _, finding in scan.findings()})
    rules: list[JSON] = [_rule(scan, name) for name in named]
    digests = {file.path: file.sha256 for file in scan.files}
    results: list[JSON] = [
        _result(scan, path, finding, named.index(finding.rule), digests.get(path, ""))
        for path, finding in scan.findings()
    ]
    driver: dict[str, JSON] = {
        "name": "steelyard",
        "semanticVersion": __version__,
        "rules": rules,
        "properties": {"ruleset": str(scan.ruleset)},
    }
    artifacts: list[JSON] = [
        {"location": {"uri": _uri(scan, file.path)}, "length": file.size, "hashes": {"sha-256": file.sha256}}
        for file in scan.files
    ]
    run: dict[str, JSON] = {
        "tool": {"driver": driver},
        "artifacts": artifacts,
        "results": results,
        "invocations": [{"executionSuccessful": True}],
        "properties": {
            "verdict": scan.verdict.value,
            "digest": str(scan.model.digest) if scan.model else None,
        },
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(scan: Scan, name: str) -> dict[str, JSON]:
    detail = scan.finding_json(".", Finding(name, ""))
    return {
        "id": name,
        "shortDescription": {"text": str(detail["attack"])},
        "help": {"text": str(detail["mend"])},
        "defaultConfiguration": {"level": _LEVELS[scan.severity(Finding(name, ""))]},
    }


def _result(scan: Scan, path: str, finding: Finding, index: int, sha256: str) -> dict[str, JSON]:
    place: dict[str, JSON] = {"artifactLocation": {"uri": _uri(scan, path)}}
    if finding.offset is not None and finding.member is None:
        place["region"] = {"byteOffset": finding.offset, "byteLength": 1}
    location: dict[str, JSON] = {"physicalLocation": place}
    if finding.member is not None:
        location["logicalLocations"] = [{"fullyQualifiedName": finding.member, "kind": "member"}]
    seed = "\0".join([finding.rule, sha256, finding.member or "", finding.message])
    return {
        "ruleId": finding.rule,
        "ruleIndex": index,
        "level": _LEVELS[scan.severity(finding)],
        "message": {"text": finding.message},
        "locations": [location],
        "partialFingerprints": {"steelyard/v1": hashlib.sha256(seed.encode()).hexdigest()},
    }


def _uri(scan: Scan, path: str) -> str:
    """A relative URI reference: everything but RFC 3986's unreserved characters and "/" is percent-encoded."""
    data = (scan.root.name if path == "." else path).encode()
    return _RESERVED.sub(lambda found: b"%%%02X" % found[0][0], data).decode()
