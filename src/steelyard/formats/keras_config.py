"""Keras architectures as JSON: config.json of a .keras archive, and what `model.to_json()` writes.

The archive itself is a zip (see zipped.py): metadata.json, config.json, model.weights.h5 and assets. Each arrives
here as a file of its own. keras_objects.py says what a configuration may hold.
"""

from collections.abc import Mapping
from typing import Final

from steelyard.digest import JSON
from steelyard.formats.base import ByteSource, Finding, Report, Rule
from steelyard.formats.jsonfile import PARSE_RULES, load, looks_like_json
from steelyard.formats.keras_objects import RULES as OBJECT_RULES
from steelyard.formats.keras_objects import examine_objects, is_object, looks_like_keras

MAX_BYTES = 64 << 20
RULES: Final[Mapping[str, Rule]] = {**OBJECT_RULES, **PARSE_RULES}


class KerasConfigFormat:
    """A .json file that begins as a Keras object."""

    name = "keras-config"
    rules = RULES

    def sniff(self, head: bytes, path: str) -> bool:
        return looks_like_json(head, path) and looks_like_keras(head)

    def read(self, source: ByteSource, path: str) -> Report:  # noqa: ARG002 - the plug's signature
        value = load(source, max_bytes=MAX_BYTES)
        findings = list(examine_objects(value))
        if not is_object(value):
            findings.append(Finding("keras/shape", "the top is no {class_name, config} object", 0))
        return Report(self.name, facts_of(value), tuple(findings))


def facts_of(value: JSON) -> dict[str, JSON]:
    """Class, name and number of layers of a model's configuration."""
    if not isinstance(value, dict):
        return {}
    config = value.get("config")
    facts: dict[str, JSON] = {"class": str(value.get("class_name"))[:80]}
    if isinstance(config, dict):
        layers = config.get("layers")
        facts["name"] = str(config.get("name"))[:80]
        facts["layers"] = len(layers) if isinstance(layers, list) else None
    return facts


FORMAT: Final = KerasConfigFormat()
