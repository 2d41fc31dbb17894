"""Scan a file or directory: weigh it, let exactly one format read each file, and give a verdict. Executes nothing."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from steelyard.admit.rules import TREE_RULES
from steelyard.digest import JSON, Digest, canonical_json, sha256
from steelyard.errors import Malformed, Unavailable
from steelyard.formats.base import Finding, Report, Rule, Severity
from steelyard.formats.registry import Registry
from steelyard.manifest import identities_of, manifest_of
from steelyard.model import File, Model

CHANGED = "tree/changed-while-reading"


class Verdict(StrEnum):
    """`admit`: every file was understood and is clean. `review`: a person must answer. `reject`: the door is shut."""

    ADMIT = "admit"
    REVIEW = "review"
    REJECT = "reject"


@dataclass(frozen=True, slots=True)
class Examined:
    """One file with what its format said of it."""

    path: str
    size: int
    sha256: str
    report: Report


@dataclass(frozen=True, slots=True)
class Scan:
    """What was found. `model` is absent when the tree itself could not be weighed (`tree` then says why)."""

    root: Path
    model: Model | None
    files: tuple[Examined, ...]
    tree: tuple[Finding, ...]
    rules: Mapping[str, Rule]

    @property
    def verdict(self) -> Verdict:
        worst = {self.severity(finding) for _, finding in self.findings()}
        if Severity.REJECT in worst:
            return Verdict.REJECT
        return Verdict.REVIEW if Severity.REVIEW in worst else Verdict.ADMIT

    @property
    def ruleset(self) -> Digest:
        """Names the rules that were applied, so that newer ones can ask for another scan."""
        return sha256(canonical_json({name: [r.attack, r.severity.value] for name, r in self.rules.items()}))

    def findings(self) -> Iterator[tuple[str, Finding]]:
        """Every finding with the path of its file, in path order; those on the tree first."""
        for finding in self.tree:
            yield ".", finding
        for file in self.files:
            for finding in file.report.findings:
                yield file.path, finding

    def severity(self, finding: Finding) -> Severity:
        """A rule that no table lists is a refusal: doubt is."""
        rule = self.rules.get(finding.rule)
        return rule.severity if rule else Severity.REJECT

    def finding_json(self, path: str, finding: Finding) -> dict[str, JSON]:
        rule = self.rules.get(finding.rule)
        return {
            "rule": finding.rule,
            "severity": self.severity(finding).value,
            "path": path,
            "offset": finding.offset,
            "member": finding.member,
            "message": finding.message,
            "attack": rule.attack if rule else "a rule without a description",
            "mend": rule.mend if rule else "report this as a defect of Steelyard",
        }


def scan(
    root: Path, registry: Registry, *, name: str | None = None, progress: Callable[[int], None] | None = None
) -> Scan:
    """Weigh and examine everything below `root`, or the one file it is.

    name: what to call the model (default: the folder's or file's name).  progress: bytes hashed so far, any thread.
    Raises WrongUsage for a missing or empty path, Unavailable for a file that cannot be read.
    """
    rules = {**registry.rules(), **TREE_RULES}
    try:
        before = identities_of(root)
        model = manifest_of(root, progress=progress)
    except Malformed as error:
        return Scan(root, None, (), (Finding(error.rule, error.message, error.offset),), rules)
    files = tuple(
        Examined(file.path, file.size, file.sha256, _read(root, file, registry)) for file in model.files
    )
    # The parsers must have seen the bytes that were hashed.
    changed = tuple(
        Finding(CHANGED, f"{path}: changed while it was examined")
        for path in sorted({path for path, _ in before.items() ^ identities_of(root).items()})
    )
    return Scan(root, Model(name or model.name, model.files), files, changed, rules)


def _path(root: Path, relative: str) -> Path:
    return root if relative == "." else root / relative


def _read(root: Path, file: File, registry: Registry) -> Report:
    with closing(_FileSource(_path(root, file.path), file.size)) as source:
        return registry.read(source, root.name if file.path == "." else file.path)


class _FileSource:
    """A ByteSource over an open file."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._size = size
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise Unavailable(f"{path}: {error.strerror}") from error

    @property
    def size(self) -> int:
        return self._size

    def read(self, offset: int, size: int) -> bytes:
        if offset < 0 or size < 0 or offset + size > self._size:
            raise ValueError(f"read of {size} bytes at {offset} is outside {self._size} bytes")
        parts = []
        while size:
            try:
                part = os.pread(self._descriptor, size, offset)
            except OSError as error:
                raise Unavailable(f"{self._path}: {error.strerror}") from error
            if not part:
                raise Malformed(f"{self._path}: became shorter while it was read", rule=CHANGED)
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return b"".join(parts)

    def close(self) -> None:
        os.close(self._descriptor)
