"""PyTorch's zip format (`torch.save` since 1.6): one pickle and the raw storages it names.

Members, all under one folder: data.pkl, data/<key> for each storage, version, and optionally byteorder,
.format_version, .storage_alignment, .data/serialization_id. The pickle names a storage by the persistent id
('storage', storage class, key, device, element count); the member data/<key> must hold exactly those elements.
Source: torch/serialization.py and caffe2/serialize of PyTorch 2.13.

TorchScript archives carry programs (code/) and are refused until they are read.
"""

import re
from collections.abc import Mapping
from typing import Final

from steelyard.digest import JSON
from steelyard.errors import Malformed
from steelyard.formats.base import ByteSource, Finding, Report, Rule
from steelyard.formats.pickle_machine import run
from steelyard.formats.pickle_values import Global, Misfit, Node, Value, node_of
from steelyard.formats.pickled import RULES as PICKLE_RULES
from steelyard.formats.pickled import facts_of
from steelyard.formats.pickled_globals import DEVICE, ELEMENT_BYTES, STORAGE_DTYPES, Storage, items_of
from steelyard.formats.zipped import RULES as ZIP_RULES
from steelyard.formats.zipped import Archive, Member, check_crc, open_member, read_archive

MAX_CHECKED_STORAGE_BYTES = (
    1 << 26
)  # larger raw storages are pinned by the file's digest; their CRC is not read
MAX_SMALL_BYTES = 256

KEY = re.compile(r"[A-Za-z0-9_.-]{1,128}")
SMALL: Final[Mapping[str, re.Pattern[bytes]]] = {
    "version": re.compile(rb"[0-9]{1,4}\n?"),
    "byteorder": re.compile(rb"little|big"),
    ".format_version": re.compile(rb"[0-9]{1,4}"),
    ".storage_alignment": re.compile(rb"[0-9]{1,8}"),
    ".data/serialization_id": re.compile(rb"[0-9]{1,64}"),
}

_SAVE_AGAIN = "Save the state_dict again with torch.save, or as safetensors."

RULES: Final[Mapping[str, Rule]] = {
    **ZIP_RULES,
    **PICKLE_RULES,
    "torch/script": Rule("A TorchScript program, which runs when the model is called.", _SAVE_AGAIN),
    "torch/member": Rule("A member that no part of the format explains.", _SAVE_AGAIN),
    "torch/size": Rule("A storage read beyond its bytes, or bytes no tensor shows.", _SAVE_AGAIN),
    "torch/unreferenced": Rule("Bytes that ride along without a tensor.", _SAVE_AGAIN),
    "torch/byteorder": Rule("Numbers that mean something else on this machine.", _SAVE_AGAIN),
}


class TorchZipFormat:
    """Claims every file that begins as a zip archive; those that are not PyTorch's are refused by name."""

    name = "torch-zip"
    rules = RULES

    def sniff(self, head: bytes, path: str) -> bool:  # noqa: ARG002
        return head[:4] in {b"PK\x03\x04", b"PK\x05\x06"}

    def read(self, source: ByteSource, path: str) -> Report:  # noqa: ARG002
        try:
            archive = read_archive(source)
        except Malformed as broken:
            return Report("zip", {}, (Finding(broken.rule, broken.message, broken.offset),))
        roots = {name.partition("/")[0] for name in (member.name for member in archive.members)}
        pickles = [m for m in archive.members if re.fullmatch(r"[^/]+/data\.pkl", m.name)]
        if len(roots) != 1 or len(pickles) != 1:
            what = f"{len(archive.members)} members and no single <folder>/data.pkl: no PyTorch archive"
            return Report("zip", {}, (*archive.findings, Finding("zip/unclaimed", what, 0)))
        reader = _Reader(source, archive, pickles[0])
        reader.read()
        return Report(self.name, reader.facts, (*archive.findings, *reader.findings))


class _Reader:
    """One archive: `facts` and `findings` after read()."""

    def __init__(self, source: ByteSource, archive: Archive, pickle: Member) -> None:
        self.findings: list[Finding] = []
        self.facts: dict[str, JSON] = {}
        self._source = source
        self._pickle = pickle
        root = pickle.name.removesuffix("data.pkl")
        self._members = {member.name.removeprefix(root): member for member in archive.members}
        self._storages: dict[str, Storage] = {}

    def read(self) -> None:
        program = [name for name in self._members if name.startswith("code/") or name == "constants.pkl"]
        if program:
            what = f"{len(program)} members of TorchScript, such as {program[0]!a}"
            self.findings.append(
                Finding("torch/script", what, self._members[program[0]].header_offset, program[0])
            )
        for name, member in self._members.items():
            if name != "data.pkl" and name not in program:
                self._check_member(name, member)
        self._check_byteorder()
        content = self._open(self._pickle)
        if content is None:
            return
        outcome = run(content, storages=self._storage)
        self.findings += [Finding(f.rule, f.message, f.offset, "data.pkl") for f in outcome.findings]
        self._check_referenced()
        self.facts = {
            **facts_of(outcome),
            "tensors": sum(outcome.tensors.values()),
            "dtypes": dict(sorted(outcome.tensors.items())),
            "storages": len(self._storages),
            "storage_bytes": sum(storage.size_bytes for storage in self._storages.values()),
        }

    def _open(self, member: Member) -> ByteSource | None:
        """The checked content of a member, or None after a finding."""
        try:
            content = open_member(self._source, member)
        except Malformed as broken:
            self.findings.append(Finding(broken.rule, broken.message, broken.offset, member.name))
            return None
        wrong = check_crc(content, member)
        if wrong:
            self.findings.append(wrong)
        return content

    def _check_member(self, name: str, member: Member) -> None:
        pattern = SMALL.get(name)
        if name.startswith("data/") and KEY.fullmatch(name.removeprefix("data/")):
            if member.method != 0:
                self.findings.append(
                    Finding("torch/member", "storages are mapped, not unpacked", member.header_offset, name)
                )
            elif member.size <= MAX_CHECKED_STORAGE_BYTES:
                self._open(member)
        elif pattern is None or member.size > MAX_SMALL_BYTES:
            what = f"{name[:80]!a} of {member.size} bytes is no part of the format"
            self.findings.append(Finding("torch/member", what, member.header_offset, name))
        else:
            content = self._open(member)
            if content is not None and not pattern.fullmatch(content.read(0, content.size)):
                what = f"{name!a} does not hold what it should"
                self.findings.append(Finding("torch/member", what, member.header_offset, name))

    def _check_byteorder(self) -> None:
        member = self._members.get("byteorder")
        if member and member.size == 3:  # "big"; the pattern above leaves "little" alone
            what = "the numbers are big-endian"
            self.findings.append(Finding("torch/byteorder", what, member.data_offset, "byteorder"))

    def _storage(self, wanted: Value) -> Node:
        """('storage', class, key, device, element count) -> a storage symbol. Raises Misfit."""
        parts = items_of(wanted, "the persistent id")
        if len(parts) != 5 or parts[0] != "storage":
            raise Misfit("expected ('storage', class, key, device, count)")
        _, kind, key, device, count = parts
        if not isinstance(kind, Global) or not isinstance(key, str) or not isinstance(device, str):
            raise Misfit("expected a storage class, a key and a device")
        dtype = STORAGE_DTYPES.get(kind.name) if kind.module == "torch" else None
        if dtype is None and str(kind) != "torch.storage.UntypedStorage":
            raise Misfit(f"{kind} is no storage class")
        if not DEVICE.fullmatch(device) or type(count) is not int or count < 0:
            raise Misfit("expected a device and a count")
        storage = Storage(dtype, count, count * (ELEMENT_BYTES[dtype] if dtype else 1))
        member = self._members.get(f"data/{key}")
        if member is None:
            raise Misfit(f"there is no member data/{key[:80]}")
        if member.size != storage.size_bytes:
            raise Misfit(f"data/{key} holds {member.size} bytes, expected {storage.size_bytes}")
        self._storages[key] = storage
        return node_of("storage", storage)

    def _check_referenced(self) -> None:
        for name, member in self._members.items():
            if name.startswith("data/") and name.removeprefix("data/") not in self._storages:
                what = f"no tensor uses {name[:80]!a}, {member.size} bytes"
                self.findings.append(Finding("torch/unreferenced", what, member.header_offset, name))


FORMAT: Final = TorchZipFormat()
