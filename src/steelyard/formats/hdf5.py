"""HDF5 files: Keras models and weights (.h5, .hdf5, .weights.h5), and arrays of other writers.

Every group, dataset and attribute is followed (hdf5_file.py); the bytes between them must be zero. A Keras 2
model keeps its architecture as JSON in the attributes model_config and training_config, which keras_objects.py
reads: the loader builds from them whatever they name (CVE-2025-9905).
"""

from collections.abc import Iterator, Mapping
from typing import Final

from steelyard.digest import JSON
from steelyard.errors import Malformed
from steelyard.formats.base import ByteSource, Finding, Report, Rule
from steelyard.formats.hdf5_bytes import RULES as HDF5_RULES
from steelyard.formats.hdf5_file import Attribute, Hdf5, is_hdf5, read_hdf5
from steelyard.formats.jsonfile import PARSE_RULES, parse
from steelyard.formats.keras_config import facts_of
from steelyard.formats.keras_objects import RULES as OBJECT_RULES
from steelyard.formats.keras_objects import examine_objects

MAX_CONFIG_BYTES = 8 << 20
RULES: Final[Mapping[str, Rule]] = {**HDF5_RULES, **OBJECT_RULES, **PARSE_RULES}
CONFIGS = ("model_config", "training_config")
_FACTS = ("keras_version", "backend")
_STEP = 1 << 20


class Hdf5Format:
    """Claims by the magic at offset 0; the format allows it further on, which is refused as a polyglot."""

    name = "hdf5"
    rules = RULES

    def sniff(self, head: bytes, path: str) -> bool:  # noqa: ARG002 - the plug's signature
        return is_hdf5(head)

    def read(self, source: ByteSource, path: str) -> Report:  # noqa: ARG002 - the plug's signature
        file = read_hdf5(source)
        facts: dict[str, JSON] = {
            "groups": len(file.groups),
            "datasets": len(file.datasets),
            "data_bytes": sum(each.size_bytes for each in file.datasets.values()),
        }
        for name in _FACTS:
            text = file.text(name)
            if text is not None:
                facts[name] = text[:80]
        findings = [*_hidden(source, file), *_configurations(file, facts)]
        return Report(self.name, facts, tuple(findings))


def _hidden(source: ByteSource, file: Hdf5) -> Iterator[Finding]:
    """Bytes between the structures: what a deleted object leaves, or what somebody put there."""
    for begin, end in file.gaps:
        for at in range(begin, end, _STEP):
            piece = source.read(at, min(_STEP, end - at))
            if piece.count(0) != len(piece):
                what = f"bytes {begin} to {end} belong to no object and are not zero"
                yield Finding("hdf5/hidden", what, begin)
                return


def _configurations(file: Hdf5, facts: dict[str, JSON]) -> Iterator[Finding]:
    owners: dict[str, Mapping[str, Attribute]] = {**file.groups, **file.attributes}
    for path, attributes in owners.items():
        if "PYTABLES_FORMAT_VERSION" in attributes or "pandas_type" in attributes:
            yield Finding("hdf5/pytables", f"{path or '/'} is written by PyTables", member=path or "/")
        for name in CONFIGS:
            if name in attributes:
                yield from _configuration(path, name, attributes[name], facts)


def _configuration(path: str, name: str, attribute: Attribute, facts: dict[str, JSON]) -> Iterator[Finding]:
    member = f"{path}/{name}"
    if attribute.texts is None or len(attribute.texts) != 1:
        yield Finding("keras/shape", f"{name} is no text", member=member)
        return
    try:
        value = parse(attribute.texts[0].encode("utf-8", "surrogatepass"), max_bytes=MAX_CONFIG_BYTES)
    except Malformed as broken:
        yield Finding(broken.rule, broken.message, None, member)
        return
    for finding in examine_objects(value):
        yield Finding(finding.rule, finding.message, None, member)
    if name == "model_config":
        facts["model"] = facts_of(value)


FORMAT: Final = Hdf5Format()
