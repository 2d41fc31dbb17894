"""A bill of materials as SPDX 3.0.1 with the AI profile (JSON-LD).

The profile demands who supplied the package, when it was released, where it comes from. No file says so reliably, so
the operator does (`Release`); without it the document does not claim to conform to the AI profile.

Source: SPDX 3.0.1 model (spdx.github.io/spdx-spec/v3.0.1), profiles Core, Software, AI, SimpleLicensing.
"""

from dataclasses import dataclass
from datetime import datetime

from steelyard import __version__
from steelyard.admit.bom import Bill
from steelyard.digest import JSON
from steelyard.evidence import timestamp

CONTEXT = "https://spdx.org/rdf/3.0.1/spdx-context.jsonld"
_CREATION = "_:creation"


@dataclass(frozen=True, slots=True)
class Release:
    """What the operator knows of the release: its supplier, time, version and place."""

    supplier: str
    released_at: datetime
    version: str
    location: str


def spdx(bill: Bill, now: datetime, release: Release | None = None) -> dict[str, JSON]:
    """The document: one ai_AIPackage, one software_File for each file, and how they hang together."""
    space = f"urn:sha256:{bill.digest}"
    tool, package, document = f"{space}#tool", f"{space}#model", f"{space}#document"
    graph: list[JSON] = [
        {
            "type": "CreationInfo",
            "@id": _CREATION,
            "specVersion": "3.0.1",
            "created": timestamp(now),
            "createdBy": [f"{space}#creator"],
            "createdUsing": [tool],
        },
        _element("SoftwareAgent", f"{space}#creator", name="steelyard"),
        _element("Tool", tool, name=f"steelyard-{__version__}"),
        _package(bill, package, space, release),
    ]
    if release:
        graph.append(_element("Organization", f"{space}#supplier", name=release.supplier))
    files = [f"{space}#file-{index}" for index in range(len(bill.files))]
    graph += [_file(bill, index, spdx_id) for index, spdx_id in enumerate(files)]
    graph.append(_relation(f"{space}#contains", package, "contains", files))
    if bill.licence:
        licence = f"{space}#licence"
        graph.append(
            _element(
                "simplelicensing_LicenseExpression",
                licence,
                simplelicensing_licenseExpression=bill.licence,
            )
        )
        graph.append(_relation(f"{space}#declared", package, "hasDeclaredLicense", [licence]))
    for index, ancestor in enumerate(bill.ancestors):
        source = f"{space}#ancestor-{index}"
        hashes: dict[str, JSON] = {"verifiedUsing": [_hash(ancestor.sha256)]} if ancestor.sha256 else {}
        graph.append(_element("ai_AIPackage", source, name=ancestor.name, comment=ancestor.how, **hashes))
        graph.append(_relation(f"{space}#origin-{index}", source, "ancestorOf", [package]))
    profiles: list[JSON] = ["core", "software", "simpleLicensing", *(["ai"] if release else [])]
    graph.append(
        _element(
            "SpdxDocument",
            document,
            name=bill.name,
            profileConformance=profiles,
            rootElement=[package],
        )
    )
    return {"@context": CONTEXT, "@graph": graph}


def _package(bill: Bill, spdx_id: str, space: str, release: Release | None) -> dict[str, JSON]:
    fields: dict[str, JSON] = {
        "name": bill.name,
        "verifiedUsing": [_hash(bill.digest)],
        "software_packageVersion": release.version if release else bill.digest,
        "software_primaryPurpose": "model",
    }
    types: list[JSON] = [text for text in (bill.architecture, bill.family) if text]
    hyperparameters: list[JSON] = [_entry(k, v) for k, v in bill.hyperparameters.items()]
    if bill.parameters:
        hyperparameters.append(_entry("parameters", str(bill.parameters)))
    optional: dict[str, JSON] = {
        "ai_typeOfModel": types or None,
        "ai_domain": [bill.task] if bill.task else None,
        "ai_hyperparameter": hyperparameters or None,
        "ai_informationAboutTraining": "data sets: " + ", ".join(bill.datasets) if bill.datasets else None,
        "ai_limitation": "not published: " + ", ".join(bill.missing) if bill.missing else None,
        "comment": _comment(bill),
    }
    fields |= {name: value for name, value in optional.items() if value is not None}
    if release:
        fields |= {
            "suppliedBy": f"{space}#supplier",
            "releaseTime": timestamp(release.released_at),
            "software_downloadLocation": release.location,
        }
    return _element("ai_AIPackage", spdx_id, **fields)


def _comment(bill: Bill) -> str | None:
    parts = [f"scan: {bill.verdict}"] if bill.verdict else []
    parts += [f"chat template sha256: {digest}" for digest in bill.templates]
    parts += [f"evidence {item.predicate_type} sha256: {item.id}" for item in bill.evidence]
    return "; ".join(parts) or None


def _file(bill: Bill, index: int, spdx_id: str) -> dict[str, JSON]:
    file = bill.files[index]
    kind = bill.formats.get(file.path)
    fields: dict[str, JSON] = {"comment": f"format: {kind}"} if kind else {}
    name = file.path if file.path != "." else bill.name
    return _element("software_File", spdx_id, name=name, verifiedUsing=[_hash(file.sha256)], **fields)


def _relation(spdx_id: str, source: str, kind: str, targets: list[str]) -> dict[str, JSON]:
    to: list[JSON] = [*targets]
    return _element("Relationship", spdx_id, **{"from": source, "relationshipType": kind, "to": to})


def _element(kind: str, spdx_id: str, **fields: JSON) -> dict[str, JSON]:
    return {"type": kind, "spdxId": spdx_id, "creationInfo": _CREATION, **fields}


def _hash(sha256: str) -> dict[str, JSON]:
    return {"type": "Hash", "algorithm": "sha256", "hashValue": sha256}


def _entry(key: str, value: str) -> dict[str, JSON]:
    return {"type": "DictionaryEntry", "key": key, "value": value}
