"""PyTorch's format before zip (`torch.save` up to 1.5): five pickles, then the raw storages.

Pickles: a magic number, the protocol 1001, facts of the writing system, the object, the list of storage keys.
Then for each key, in the order of the list: the element count (8 bytes, little-endian) and the elements. The object
names a storage by ('storage', class, key, device, element count, view), with no view. Nothing follows.
Source: _legacy_save and _legacy_load in torch/serialization.py of PyTorch 1.13 and 2.13.
"""

from collections.abc import Mapping
from typing import Final

from steelyard.digest import JSON
from steelyard.errors import Malformed
from steelyard.formats.base import ByteSource, Finding, Report, Rule
from steelyard.formats.pickle_machine import Outcome, Slice, run
from steelyard.formats.pickle_values import Global, Misfit, Value, node_of
from steelyard.formats.pickled import LEGACY_TORCH, facts_of
from steelyard.formats.pickled import RULES as PICKLE_RULES
from steelyard.formats.pickled_globals import ELEMENT_BYTES, Storage, items_of
from steelyard.formats.plain_pickle import read_plain
from steelyard.formats.torchzip import storage_of

PROTOCOL_VERSION = 1001
MAX_KEYS_BYTES = 1 << 24
_SAVE_AGAIN = "Save the state_dict again with torch.save, or as safetensors."

RULES: Final[Mapping[str, Rule]] = {
    **PICKLE_RULES,
    "torch/system": Rule("Numbers of another machine, or a version this reader does not know.", _SAVE_AGAIN),
    "torch/keys": Rule("A list of storages that does not name what the tensors use.", _SAVE_AGAIN),
    "torch/size": Rule("A storage read beyond its bytes, or bytes no tensor shows.", _SAVE_AGAIN),
    "torch/trailing": Rule("A second file behind the storages.", _SAVE_AGAIN),
}


class TorchLegacyFormat:
    """Claims files that begin with the pickled magic number."""

    name = "torch-legacy"
    rules = RULES

    def sniff(self, head: bytes, path: str) -> bool:  # noqa: ARG002 - the content decides
        return bool(LEGACY_TORCH.match(head))

    def read(self, source: ByteSource, path: str) -> Report:  # noqa: ARG002
        reader = _Reader(source)
        reader.read()
        return Report(self.name, reader.facts, tuple(reader.findings))


class _Reader:
    """One file: `facts` and `findings` after read()."""

    def __init__(self, source: ByteSource) -> None:
        self.findings: list[Finding] = []
        self.facts: dict[str, JSON] = {}
        self._source = source
        self._storages: dict[str, Storage] = {}

    def read(self) -> None:
        """Raises Malformed where the file cannot be followed."""
        head = self._source.read(0, min(self._source.size, 4096))
        found = LEGACY_TORCH.match(head)
        at = found.end() if found else 0
        version, at = read_plain(self._source, at, MAX_KEYS_BYTES)
        if version != PROTOCOL_VERSION:
            raise Malformed(
                f"version {version!a:.40}, expected {PROTOCOL_VERSION}", rule="torch/system", offset=at
            )
        system, at = read_plain(self._source, at, MAX_KEYS_BYTES)
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise Malformed("the numbers are not little-endian", rule="torch/system", offset=at)
        outcome = self._object(at)
        if outcome.end is None or self.findings:
            return  # the findings say what is wrong; the storages of a refused object mean nothing
        keys_at = at + outcome.end
        keys, at = read_plain(self._source, keys_at, MAX_KEYS_BYTES)
        if (
            not isinstance(keys, list)
            or not all(isinstance(k, str) for k in keys)
            or len(set(keys)) < len(keys)
        ):
            raise Malformed("the list of storages is none", rule="torch/keys", offset=keys_at)
        if set(keys) != set(self._storages):
            odd = sorted(map(str, set(keys) ^ set(self._storages)))[:3]
            raise Malformed(
                f"storages named once only: {', '.join(odd)!a}", rule="torch/keys", offset=keys_at
            )
        self._walk(keys, at)
        self.facts = {
            **facts_of(outcome),
            "tensors": sum(outcome.tensors.values()),
            "dtypes": dict(sorted(outcome.tensors.items())),
            "storages": len(self._storages),
            "storage_bytes": sum(storage.size_bytes for storage in self._storages.values()),
        }

    def _object(self, at: int) -> Outcome:
        outcome = run(Slice(self._source, at, self._source.size - at), storages=self._storage)
        for finding in outcome.findings:
            if finding.rule != "pickle/trailing":  # what follows is walked here
                place = None if finding.offset is None else at + finding.offset
                self.findings.append(Finding(finding.rule, finding.message, place))
        return outcome

    def _storage(self, wanted: Value) -> Value:
        """A storage symbol for a persistent id; its bytes come later in the file. Raises Misfit.

        ('module', class, file, source) is the class itself: the source is only compared, for a warning.
        """
        parts = items_of(wanted, "the persistent id")
        if len(parts) == 4 and parts[0] == "module" and isinstance(parts[1], Global):
            return parts[1]
        if len(parts) not in {5, 6} or (len(parts) == 6 and parts[5] is not None):
            raise Misfit("expected ('storage', class, key, device, count, None)")
        key, storage = storage_of(parts)
        if self._storages.setdefault(key, storage) != storage:
            raise Misfit(f"storage {key[:80]} has two sizes")
        return node_of("storage", storage)

    def _walk(self, keys: list[object], at: int) -> None:
        for key in keys:
            storage = self._storages[str(key)]
            if at + 8 > self._source.size:
                raise Malformed(f"storage {key!a:.80} is not there", rule="torch/size", offset=at)
            count = int.from_bytes(self._source.read(at, 8), "little", signed=True)
            width = ELEMENT_BYTES[storage.dtype] if storage.dtype else 1
            if count * width != storage.size_bytes or at + 8 + count * width > self._source.size:
                what = f"storage {key!a:.80} has {count} elements, expected {storage.size_bytes // width}"
                raise Malformed(what, rule="torch/size", offset=at)
            at += 8 + count * width
        if at != self._source.size:
            what = f"{self._source.size - at} bytes follow the storages"
            raise Malformed(what, rule="torch/trailing", offset=at)


FORMAT: Final = TorchLegacyFormat()
