"""What files of one tree say of each other: shards an index names, data files a graph reads, links that leave.

A report's references are paths beside its file. Each must lead to a file of the tree that is long enough; a clean file
that refers to raw data up to its very end makes that data understood, though no format can claim it.
"""

import os
import posixpath
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from steelyard.admit.examined import Examined
from steelyard.errors import Unavailable
from steelyard.formats.base import Finding, Rule, Severity
from steelyard.formats.registry import UNCLAIMED

RAW = "raw-tensors"
_FETCH = "fetch the whole model again, from one place"
RULES: Mapping[str, Rule] = {
    "tree/reference-outside": Rule("a file that makes its loader open one outside the model", _FETCH),
    "tree/reference-missing": Rule("a model that is loaded with parts from elsewhere, or not at all", _FETCH),
    "tree/reference-short": Rule("a tensor read beyond the end of the file that holds it", _FETCH),
    "tree/shard-differs": Rule(
        "weights that the index does not name, or that it names and the shard does not have", _FETCH
    ),
    "tree/hard-link": Rule(
        "another name of the same file lies outside: who can write there can swap the weights after the scan",
        "copy the tree without links: cp -r --preserve=mode,timestamps",
        Severity.NOTE,
    ),
    "tree/two-formats": Rule(
        "the same weights in two formats: which of them is loaded depends on the loader",
        "keep the safetensors and remove the pickles",
        Severity.NOTE,
    ),
}


@dataclass(frozen=True, slots=True)
class Related:
    """The files, with what their neighbours say of them, and what is wrong between them."""

    files: tuple[Examined, ...]
    tree: tuple[Finding, ...]


def relate(root: Path, files: tuple[Examined, ...]) -> Related:
    """Follow every reference below `root`. Raises Unavailable when a file cannot be looked at."""
    known = {file.path: file for file in files}
    findings: dict[str, list[Finding]] = defaultdict(list)
    ends: dict[str, int] = {}
    for file in files:
        for finding in _follow(file, known, ends):
            findings[file.path].append(finding)
    for file in files:
        if differs := _shards_differ(file, known):
            findings[file.path].append(differs)
    judged = tuple(_judged(file, findings[file.path], ends) for file in files)
    return Related(judged, (*_linked(root, files), *_twice(files)))


def _follow(file: Examined, known: Mapping[str, Examined], ends: dict[str, int]) -> Iterator[Finding]:
    """Check one file's references; `ends` collects how much of each raw file clean neighbours account for."""
    is_clean = not file.report.findings
    for reference in file.report.references:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(file.path), reference.path))
        if reference.path.startswith("/") or path.startswith("..") or "\\" in reference.path:
            yield Finding("tree/reference-outside", f"names {reference.path!a}, which is outside the model")
        elif path not in known:
            yield Finding("tree/reference-missing", f"names {reference.path!a}, which is not in the model")
        elif reference.end is not None:
            if known[path].size < reference.end:
                what = f"reads {reference.path!a} up to byte {reference.end}, it has {known[path].size}"
                yield Finding("tree/reference-short", what)
            elif is_clean:
                ends[path] = max(ends.get(path, 0), reference.end)


def _shards_differ(file: Examined, known: Mapping[str, Examined]) -> Finding | None:
    """Compare the tensor names that an index gives each shard with those in the shard's own header."""
    stated = file.report.facts.get("shard_tensors_sha256")
    if not isinstance(stated, Mapping):
        return None
    folder = posixpath.dirname(file.path)
    for shard, digest in stated.items():
        there = known.get(posixpath.join(folder, shard))
        found = there.report.facts.get("tensor_names_sha256") if there else None
        if found is not None and found != digest:
            return Finding("tree/shard-differs", f"gives {shard!a} other tensors than it holds")
    return None


def _judged(file: Examined, findings: list[Finding], ends: Mapping[str, int]) -> Examined:
    report = file.report
    if [finding.rule for finding in report.findings] == [UNCLAIMED] and ends.get(file.path) == file.size:
        report = replace(report, format=RAW, findings=())
    if findings:
        report = replace(report, findings=(*report.findings, *findings))
    return replace(file, report=report)


def _linked(root: Path, files: Iterable[Examined]) -> Iterator[Finding]:
    """Files with more names than the tree gives them."""
    names: dict[tuple[int, int], list[str]] = defaultdict(list)
    counts: dict[tuple[int, int], int] = {}
    for file in files:
        path = root if file.path == "." else root / file.path
        try:
            status = os.lstat(path)
        except OSError as error:
            raise Unavailable(f"{path}: {error.strerror}") from error
        if status.st_nlink > 1 and file.path != ".":
            names[status.st_dev, status.st_ino].append(file.path)
            counts[status.st_dev, status.st_ino] = status.st_nlink
    for key, paths in sorted(names.items(), key=lambda item: item[1]):
        if counts[key] > len(paths):
            yield Finding("tree/hard-link", f"{paths[0]} has {counts[key] - len(paths)} more names elsewhere")


def _twice(files: Iterable[Examined]) -> Iterator[Finding]:
    by_format: dict[str, list[str]] = defaultdict(list)
    for file in files:
        by_format[file.report.format].append(file.path)
    pickles = sorted(by_format["torch-zip"] + by_format["torch-legacy"])
    if pickles and by_format["safetensors"]:
        yield Finding("tree/two-formats", f"{pickles[0]} lies beside {min(by_format['safetensors'])}")
