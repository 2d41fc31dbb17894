"""The one claimant of zip files: the directory says which kind it is.

A PyTorch archive, a TorchScript program, a torch.export program or a MAR is read by its own reader. Everything else
(npz, Keras, skops, plain zip) is a box of files: each member goes back to the registry, and none is skipped.
The kind is named in the facts; it never decides whether a member is looked at.
"""

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Final

from steelyard.digest import JSON
from steelyard.errors import Malformed
from steelyard.formats.base import ByteSource, Child, Finding, Report, Rule
from steelyard.formats.jsonfile import PARSE_RULES, parse
from steelyard.formats.torch_export import RULES as EXPORT_RULES
from steelyard.formats.torch_export import is_export, read_export
from steelyard.formats.torchscript import RULES as SCRIPT_RULES
from steelyard.formats.torchscript import is_script, read_script
from steelyard.formats.torchzip import RULES as TORCH_RULES
from steelyard.formats.torchzip import read_torch, root_of
from steelyard.formats.zipped import Archive, Member, open_checked, read_archive

MAX_MANIFEST_BYTES = 1 << 16
MAX_FILES = 1 << 13  # in a box whose members are files of their own
# With one of these the archive is refused before anything in it is unpacked.
UNREADABLE = frozenset({"zip/ratio", "zip/gap", "zip/encrypted", "zip/method", "zip/limit"})
# torch.package puts its own files here; PackageImporter runs the Python source of the archive.
PACKAGE_MARKS = frozenset({".data/extern_modules", ".data/python_version"})
# Handlers that TorchServe ships; any other name is code of the archive.
HANDLERS = frozenset(
    {"image_classifier", "image_segmenter", "object_detector", "text_classifier", "text_handler"}
)

_UNPACK = "Leave the archive out of the model and ship the weights as safetensors."

RULES: Final[Mapping[str, Rule]] = {
    **TORCH_RULES,
    **SCRIPT_RULES,
    **EXPORT_RULES,
    **PARSE_RULES,
    "torch/package": Rule("A torch.package archive: Python source that runs when it is imported.", _UNPACK),
    "mar/manifest": Rule("A model archive whose manifest does not say what the server runs.", _UNPACK),
    "mar/handler": Rule("A request handler inside the archive: code the server imports.", _UNPACK),
    "mar/requirements": Rule("Packages the server installs when the model is loaded.", _UNPACK),
}


class ZipFormat:
    """Claims every file that begins as a zip archive."""

    name = "zip"
    rules = RULES

    def sniff(self, head: bytes, path: str) -> bool:  # noqa: ARG002 - the content decides
        return head[:4] in {b"PK\x03\x04", b"PK\x05\x06"}

    def read(self, source: ByteSource, path: str) -> Report:  # noqa: ARG002
        archive = read_archive(source)
        if any(finding.rule in UNREADABLE for finding in archive.findings):
            return Report(self.name, {"archive": "unreadable"}, archive.findings)
        names = {member.name for member in archive.members}
        root = root_of(names)
        if root is not None:
            inside = {name.removeprefix(root) for name in names}
            if inside & PACKAGE_MARKS:
                what = "a torch.package archive: loading it runs the Python source inside"
                return Report("torch-package", {}, (*archive.findings, Finding("torch/package", what, 0)))
            if is_script(inside):
                return read_script(source, archive, root)
            if is_export(inside):
                return read_export(source, archive, root)
            if "data.pkl" in inside:
                return read_torch(source, archive, root)
        if is_export(names):
            return read_export(source, archive, "")
        return _box(source, archive)


def _box(source: ByteSource, archive: Archive) -> Report:
    """An archive whose members are files on their own."""
    kind = _kind_of([member.name for member in archive.members])
    findings = list(archive.findings)
    if len(archive.members) > MAX_FILES:
        findings.append(Finding("zip/limit", f"{len(archive.members)} files, more than {MAX_FILES}", 0))
        return Report(kind, {"files": len(archive.members)}, tuple(findings))
    if kind == "mar":
        findings += _check_mar(source, archive)
    facts: dict[str, JSON] = {
        "files": len(archive.members),
        "unpacked_bytes": sum(member.size for member in archive.members),
    }
    return Report(kind, facts, tuple(findings), lambda: children_of(source, archive.members))


def children_of(source: ByteSource, members: tuple[Member, ...]) -> Iterator[Child]:
    """Every member that is no folder, opened and its checksum compared when the registry asks for it."""
    for member in members:
        if not member.name.endswith("/"):
            yield child_of(source, member)


def child_of(source: ByteSource, member: Member) -> Child:
    return Child(member.name, member.size, lambda: open_checked(source, member))


def _kind_of(names: list[str]) -> str:
    present = set(names)
    if names and all(name.endswith(".npy") for name in names):
        return "npz"
    if {"config.json", "metadata.json", "model.weights.h5"} <= present:
        return "keras-zip"
    if "schema.json" in present:
        return "skops"
    if "MAR-INF/MANIFEST.json" in present:
        return "mar"
    return "zip"


def _check_mar(source: ByteSource, archive: Archive) -> Iterator[Finding]:
    """TorchServe reads MAR-INF/MANIFEST.json: `model.handler` is imported, `model.requirementsFile` installed."""
    member = next(member for member in archive.members if member.name == "MAR-INF/MANIFEST.json")
    try:
        content = open_checked(source, member)
        if content.size > MAX_MANIFEST_BYTES:
            raise Malformed(f"a manifest of {content.size} bytes", rule="mar/manifest")
        manifest = parse(content.read(0, content.size))
    except Malformed as bad:
        yield Finding(bad.rule, bad.message, bad.offset, member.name)
        return
    model = manifest.get("model") if isinstance(manifest, dict) else None
    if not isinstance(model, dict):
        yield Finding("mar/manifest", "the manifest describes no model", None, member.name)
        return
    handler = model.get("handler")
    if handler is not None and handler not in HANDLERS:
        yield Finding(
            "mar/handler", f"the server would import the handler {handler!a:.80}", None, member.name
        )
    if model.get("requirementsFile") or "requirements.txt" in {
        PurePosixPath(member.name).name for member in archive.members
    }:
        yield Finding("mar/requirements", "loading the model installs packages by name", None, member.name)


FORMAT: Final = ZipFormat()
