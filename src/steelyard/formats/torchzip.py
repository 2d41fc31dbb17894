"""PyTorch's zip format (`torch.save` since 1.6): one pickle and the raw storages it names.

Members, all under one folder: data.pkl, data/<key> for each storage, version, and optionally byteorder,
.format_version, .storage_alignment, .data/serialization_id. The pickle names a storage by the persistent id
('storage', storage class, key, device, element count); the member data/<key> must hold exactly those elements.
Source: torch/serialization.py and caffe2/serialize of PyTorch 1.13 and 2.13.

`Folder` is what the other PyTorch archives (TorchScript, torch.export) read their members by.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Final

from steelyard.digest import JSON
from steelyard.errors import Malformed
from steelyard.formats.base import ByteSource, Child, Finding, Report, Rule
from steelyard.formats.pickle_machine import Outcome, run
from steelyard.formats.pickle_values import Global, Misfit, Node, Spec, Value, node_of
from steelyard.formats.pickled import RULES as PICKLE_RULES
from steelyard.formats.pickled import facts_of
from steelyard.formats.pickled_globals import DEVICE, ELEMENT_BYTES, STORAGE_DTYPES, Storage, items_of
from steelyard.formats.zipped import MAX_CHECKED_BYTES, STORED, Archive, Member, open_checked
from steelyard.formats.zipped import RULES as ZIP_RULES

MAX_SMALL_BYTES = 256

KEY = re.compile(r"[A-Za-z0-9_.-]{1,128}")
SMALL: Final[Mapping[str, re.Pattern[bytes]]] = {
    "version": re.compile(rb"[0-9]{1,4}\n?"),
    "byteorder": re.compile(rb"little|big"),
    ".format_version": re.compile(rb"[0-9]{1,4}"),
    ".storage_alignment": re.compile(rb"[0-9]{1,8}"),
    ".data/serialization_id": re.compile(rb"[0-9]{1,64}"),
    ".data/version": re.compile(rb"[0-9]{1,4}\n?"),
}

_SAVE_AGAIN = "Save the state_dict again with torch.save, or as safetensors."

RULES: Final[Mapping[str, Rule]] = {
    **ZIP_RULES,
    **PICKLE_RULES,
    "torch/member": Rule("A member that no part of the format explains.", _SAVE_AGAIN),
    "torch/size": Rule("A storage read beyond its bytes, or bytes no tensor shows.", _SAVE_AGAIN),
    "torch/unreferenced": Rule("Bytes that ride along without a tensor.", _SAVE_AGAIN),
    "torch/byteorder": Rule("Numbers that mean something else on this machine.", _SAVE_AGAIN),
}

Names = Callable[[str, str], Spec | None]


def root_of(names: AbstractSet[str]) -> str | None:
    """The one folder in which all members lie, with its slash; None when there is no single one."""
    roots = {name.partition("/")[0] + "/" for name in names if "/" in name}
    return roots.pop() if len(roots) == 1 and all("/" in name for name in names) else None


def read_torch(source: ByteSource, archive: Archive, root: str) -> Report:
    """The report of an archive that holds <root>data.pkl."""
    folder = Folder(source, archive, root)
    for name in folder.members:
        if name.startswith("data/"):
            folder.check_storage(name)
        elif name != "data.pkl":
            folder.check_small(name)
    folder.check_byteorder()
    storages = Storages(folder, "data/")
    outcome = folder.run("data.pkl", storages)
    facts: dict[str, JSON] = {}
    if outcome is not None:
        folder.check_referenced({"data/": storages})
        facts = {**facts_of(outcome), **tensor_facts(outcome, storages)}
    return Report("torch-zip", facts, (*archive.findings, *folder.findings))


def tensor_facts(outcome: Outcome, storages: "Storages") -> dict[str, JSON]:
    return {
        "tensors": sum(outcome.tensors.values()),
        "dtypes": dict(sorted(outcome.tensors.items())),
        "storages": len(storages.used),
        "storage_bytes": sum(storage.size_bytes for storage in storages.used.values()),
    }


class Folder:
    """The members below the archive's one folder. `members` by name without it; `findings` grow by each check."""

    def __init__(self, source: ByteSource, archive: Archive, root: str) -> None:
        self.findings: list[Finding] = []
        self.members = {
            member.name.removeprefix(root): member
            for member in archive.members
            if not member.name.endswith("/")  # a folder, which is empty or a finding of the zip reader
        }
        self._source = source
        self._checked_bytes = 0

    def find(self, rule: str, message: str, name: str, offset: int | None = None) -> None:
        at = self.members[name].header_offset if offset is None else offset
        self.findings.append(Finding(rule, message, at, name))

    def open(self, name: str) -> ByteSource | None:
        """The checked content of a member, or None after a finding."""
        try:
            return open_checked(self._source, self.members[name])
        except Malformed as broken:
            self.findings.append(Finding(broken.rule, broken.message, broken.offset, name))
            return None

    def child(self, name: str) -> Child:
        """A member that is a file of its own."""
        member = self.members[name]
        return Child(name, member.size, lambda: open_checked(self._source, member))

    def run(self, name: str, storages: "Storages | None", names: Names | None = None) -> Outcome | None:
        """What the pickle in a member does, its findings noted; None when the member cannot be read."""
        content = self.open(name)
        if content is None:
            return None
        outcome = run(content, storages=storages, names=names)
        self.findings += [Finding(f.rule, f.message, f.offset, name) for f in outcome.findings]
        return outcome

    def check_small(self, name: str, patterns: Mapping[str, re.Pattern[bytes]] = SMALL) -> None:
        """A member must be one of `patterns`, and hold what its pattern says."""
        pattern, member = patterns.get(name), self.members[name]
        if pattern is None or member.size > MAX_SMALL_BYTES:
            self.find("torch/member", f"{name[:80]!a} of {member.size} bytes is no part of the format", name)
            return
        content = self.open(name)
        if content is not None and not pattern.fullmatch(content.read(0, content.size)):
            self.find("torch/member", f"{name!a} does not hold what it should", name)

    def check_storage(self, name: str) -> None:
        """A raw storage: never compressed, its name a key, its checksum right, for the first MAX_CHECKED_BYTES.

        What follows is pinned by the digest of the file; reading it twice would double the time of a scan.
        """
        member = self.members[name]
        if not KEY.fullmatch(name.rpartition("/")[2]) or member.method != STORED:
            self.find(
                "torch/member", f"{name[:80]!a} is no storage: a plain key, mapped and not unpacked", name
            )
        elif self._checked_bytes + member.size <= MAX_CHECKED_BYTES:
            self._checked_bytes += member.size
            self.open(name)

    def check_byteorder(self) -> None:
        member = self.members.get("byteorder")
        if member and member.size == 3:  # "big"; the pattern above leaves "little" alone
            self.find("torch/byteorder", "the numbers are big-endian", "byteorder", member.data_offset)

    def check_referenced(self, used: "Mapping[str, Storages]") -> None:
        """Each member in a folder of storages is named by a pickle. used: folder -> what was named."""
        for name, member in self.members.items():
            folder, _, key = name.rpartition("/")
            storages = used.get(folder + "/")
            if storages is not None and key not in storages.used:
                self.find("torch/unreferenced", f"no tensor uses {name[:80]!a}, {member.size} bytes", name)


class Storages:
    """Turns persistent ids into storages of one folder of the archive; `used` by key.

    may_be_empty: the folder keeps shapes alone, and no loader reads its storages.
    """

    def __init__(self, folder: Folder, prefix: str, *, may_be_empty: bool = False) -> None:
        self.used: dict[str, Storage] = {}
        self._may_be_empty = may_be_empty
        self._folder = folder
        self._prefix = prefix

    def __call__(self, wanted: Value) -> Node:
        """('storage', class, key, device, element count) -> a storage symbol. Raises Misfit."""
        parts = items_of(wanted, "the persistent id")
        if len(parts) != 5:
            raise Misfit("expected ('storage', class, key, device, count)")
        key, storage = storage_of(parts)
        member: Member | None = self._folder.members.get(self._prefix + key)
        if member is None:
            raise Misfit(f"there is no member {self._prefix}{key[:80]}")
        if member.size != storage.size_bytes and (member.size or not self._may_be_empty):
            raise Misfit(f"{self._prefix}{key[:80]} holds {member.size} bytes, expected {storage.size_bytes}")
        self.used[key] = storage
        return node_of("storage", storage)


def storage_of(parts: Sequence[Value]) -> tuple[str, Storage]:
    """Key and storage of the first five items of a persistent id. Raises Misfit."""
    mark, kind, key, device, count = parts[:5]
    if mark != "storage" or not isinstance(kind, Global) or not isinstance(key, str):
        raise Misfit("expected a storage class and a key")
    dtype = STORAGE_DTYPES.get(kind.name) if kind.module == "torch" else None
    if dtype is None and str(kind) != "torch.storage.UntypedStorage":
        raise Misfit(f"{kind} is no storage class")
    if not isinstance(device, str) or not DEVICE.fullmatch(device) or type(count) is not int or count < 0:
        raise Misfit("expected a device and a count")
    return key, Storage(dtype, count, count * (ELEMENT_BYTES[dtype] if dtype else 1))
