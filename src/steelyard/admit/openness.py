"""Openness on three axes, of this release and never of a brand: weights, licence freedoms, reproducibility.

Components are those the Model Openness Framework lists for an open model and for open science
(White et al., arXiv 2403.13784). A component counts as present only if a file or a field shows it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from steelyard.admit.licences import Licence
from steelyard.admit.scan import Scan
from steelyard.digest import JSON

_WEIGHT_FORMATS = frozenset({"safetensors", "gguf", "torch-zip", "pickle"})


@dataclass(frozen=True, slots=True)
class Openness:
    """weights: available | absent.  licence: open | restricted | unknown.  reproducible: partial | no.

    Nothing here says `reproducible: yes`: that takes somebody who did it.
    """

    weights: str
    licence: str
    reproducible: str
    missing: tuple[str, ...]

    def to_json(self) -> dict[str, JSON]:
        return {
            "weights": self.weights,
            "licence": self.licence,
            "reproducible": self.reproducible,
            "missing": list(self.missing),
        }


def openness_of(scan: Scan, licence: Licence) -> Openness:
    """Judge what lies in the scanned tree."""
    formats = {file.report.format for file in scan.files}
    card: Mapping[str, JSON] = {}
    for file in scan.files:
        found = file.report.facts.get("front_matter")
        if isinstance(found, Mapping):
            card = found
    names = {file.path.rpartition("/")[2].lower() for file in scan.files}
    has = {
        "final weights": bool(formats & _WEIGHT_FORMATS),
        "architecture": "config.json" in names or "gguf" in formats,
        "model card": bool(card) or any(name.startswith("readme") for name in names),
        "licence text": any(file.report.facts.get("licence") for file in scan.files),
        "training data": bool(card.get("datasets")),
        "training code": any(
            file.path.endswith(".py") and "train" in file.path.lower() for file in scan.files
        ),
        "evaluation results": "model-index" in card,
    }
    is_partial = has["training data"] or has["training code"]
    return Openness(
        weights="available" if has["final weights"] else "absent",
        licence="open" if licence.is_osi_approved else "restricted" if licence.expression else "unknown",
        reproducible="partial" if is_partial else "no",
        missing=tuple(name for name, present in has.items() if not present),
    )
