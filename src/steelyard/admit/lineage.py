"""What a conversion did, and the statement that links its result to its source."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

from steelyard.digest import JSON
from steelyard.evidence import timestamp
from steelyard.model import Model


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was done to get `target`: `operation` is convert or quantise, `parameters` goes into the lineage."""

    operation: str
    target: Path
    parameters: Mapping[str, JSON]


def lineage_predicate(conversion: Conversion, source: Model, now: datetime) -> dict[str, JSON]:
    """The body of a lineage statement about the converted file: which model it was made from, and how."""
    return {
        "issued_at": timestamp(now),
        "operation": conversion.operation,
        "source": {"name": source.name, "digest": {"sha256": source.digest.hex}},
        "parameters": dict(conversion.parameters),
        "tool": {"name": "steelyard", "version": version("steelyard")},
    }
