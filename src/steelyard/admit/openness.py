"""Openness on three axes, of this release and never of a brand: weights, licence freedoms, reproducibility.

Beside them the class of the Model Openness Framework and the verdict under the Open Source AI Definition, each with
what is missing (`openness_components`).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from steelyard.admit.licences import Licence
from steelyard.admit.openness_components import mof_of, osaid_of, shown_in
from steelyard.admit.scan import Scan
from steelyard.digest import JSON


@dataclass(frozen=True, slots=True)
class Openness:
    """weights: available | absent.  licence: open | restricted | unknown.  reproducible: partial | no.

    Nothing here says `reproducible: yes`: that takes somebody who did it.
    missing: components that nothing shows, by their names in the Model Openness Framework, and the licence text.
    """

    weights: str
    licence: str
    reproducible: str
    missing: tuple[str, ...]
    mof: Mapping[str, JSON]
    osaid: Mapping[str, JSON]

    def to_json(self) -> dict[str, JSON]:
        return {
            "weights": self.weights,
            "licence": self.licence,
            "reproducible": self.reproducible,
            "missing": list(self.missing),
            "mof": dict(self.mof),
            "osaid": dict(self.osaid),
        }


def openness_of(scan: Scan, licence: Licence) -> Openness:
    """Judge what lies in the scanned tree."""
    shown = shown_in(scan.files)
    by = {item.component.name: item.by for item in shown}
    # A licence that a base model limits is no open one, whatever the fine-tune's own files say.
    expression = None if licence.has_conflict else licence.expression
    missing = [item.component.name for item in shown if item.by is None and not item.component.is_optional]
    if not any(file.report.facts.get("licence") for file in scan.files):
        missing.append("licence text")
    is_partial = by["Datasets"] is not None or by["Training code"] is not None
    return Openness(
        weights="available" if by["Model parameters (Final)"] else "absent",
        licence="open" if licence.is_osi_approved else "restricted" if expression else "unknown",
        reproducible="partial" if is_partial else "no",
        missing=tuple(missing),
        mof=mof_of(shown, expression),
        osaid=osaid_of(shown, expression),
    )
