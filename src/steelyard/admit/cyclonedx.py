"""A bill of materials as CycloneDX 1.6 or 1.7 ML-BOM (JSON).

The model is the component of the metadata, of type machine-learning-model, with its card; each file is a component.
What the standard has no field for (digest of the chat template, verdict of the scan) stands in properties named
steelyard:... Evidence is referred to by its SHA-256. The serial number is derived from the content, so the same bill
at the same time is the same document.

Source: CycloneDX/specification, bom-1.6.schema.json and bom-1.7.schema.json.
"""

import hashlib
import uuid
from collections.abc import Mapping
from datetime import datetime

from steelyard import __version__
from steelyard.admit.bom import Ancestor, Bill
from steelyard.digest import JSON, canonical_json
from steelyard.evidence import timestamp

VERSIONS = ("1.6", "1.7")


def cyclonedx(bill: Bill, now: datetime, version: str = "1.6") -> dict[str, JSON]:
    """The document. version: one of VERSIONS, otherwise ValueError."""
    if version not in VERSIONS:
        raise ValueError(f"version {version!r} is none of {', '.join(VERSIONS)}")
    document: dict[str, JSON] = {
        "$schema": f"http://cyclonedx.org/schema/bom-{version}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": version,
        "version": 1,
        "metadata": {
            "timestamp": timestamp(now),
            "tools": {"components": [{"type": "application", "name": "steelyard", "version": __version__}]},
            "component": _model(bill),
        },
        "components": [_file(bill, index) for index in range(len(bill.files))],
        "dependencies": [
            {"ref": bill.digest, "dependsOn": [_ref(bill, index) for index in range(len(bill.files))]}
        ],
    }
    seed = hashlib.sha256(canonical_json(document)).hexdigest()
    document["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, f'urn:sha256:{seed}')}"
    return document


def _model(bill: Bill) -> dict[str, JSON]:
    component: dict[str, JSON] = {
        "type": "machine-learning-model",
        "bom-ref": bill.digest,
        "name": bill.name,
        "version": bill.digest,
        "hashes": _hashes(bill.digest),
        "modelCard": _card(bill),
        "properties": _properties(
            {
                "digest:algorithm": "oms-sha256",
                "scan:verdict": bill.verdict,
                "parameters": str(bill.parameters) if bill.parameters else None,
                **{f"chat-template:{index}:sha256": value for index, value in enumerate(bill.templates)},
            }
        ),
    }
    if bill.licence:
        component["licenses"] = [{"expression": bill.licence}]
    if bill.ancestors:
        component["pedigree"] = {"ancestors": [_ancestor(ancestor) for ancestor in bill.ancestors]}
    if bill.evidence:
        references: list[JSON] = [
            {
                "type": "attestation",
                "url": f"urn:sha256:{item.id}",
                "comment": f"{item.predicate_type} of {item.issued_at}",
                "hashes": _hashes(item.id),
            }
            for item in bill.evidence
        ]
        component["externalReferences"] = references
    return component


def _card(bill: Bill) -> dict[str, JSON]:
    datasets: list[JSON] = [{"type": "dataset", "name": name} for name in bill.datasets]
    parameters: dict[str, JSON] = {
        "task": bill.task,
        "architectureFamily": bill.family,
        "modelArchitecture": bill.architecture,
        "datasets": datasets or None,
    }
    if bill.task and bill.task.startswith("text"):
        parameters |= {"inputs": [{"format": "text"}], "outputs": [{"format": "text"}]}
    card: dict[str, JSON] = {"modelParameters": {k: v for k, v in parameters.items() if v is not None}}
    if bill.missing:
        limits: list[JSON] = [f"Not published with the model: {name}." for name in bill.missing]
        card["considerations"] = {"technicalLimitations": limits}
    card["properties"] = _properties({f"config:{k}": v for k, v in bill.hyperparameters.items()})
    return card


def _ancestor(ancestor: Ancestor) -> dict[str, JSON]:
    component: dict[str, JSON] = {
        "type": "machine-learning-model",
        "name": ancestor.name,
        "description": ancestor.how,
    }
    if ancestor.sha256:
        component["hashes"] = _hashes(ancestor.sha256)
    return component


def _file(bill: Bill, index: int) -> dict[str, JSON]:
    file = bill.files[index]
    return {
        "type": "file",
        "bom-ref": _ref(bill, index),
        "name": file.path if file.path != "." else bill.name,
        "hashes": _hashes(file.sha256),
        "properties": _properties({"size": str(file.size), "format": bill.formats.get(file.path)}),
    }


def _ref(bill: Bill, index: int) -> str:
    return f"{bill.digest}#{index}"


def _hashes(sha256: str) -> list[JSON]:
    return [{"alg": "SHA-256", "content": sha256}]


def _properties(values: Mapping[str, str | None]) -> list[JSON]:
    return [{"name": f"steelyard:{k}", "value": v} for k, v in values.items() if v is not None]
