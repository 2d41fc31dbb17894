"""One file with what its format said of it: what the scan, the relations between files and the reports share."""

from dataclasses import dataclass

from steelyard.formats.base import Report


@dataclass(frozen=True, slots=True)
class Examined:
    """A file of the tree, its SHA-256 in hex, and its report."""

    path: str
    size: int
    sha256: str
    report: Report
