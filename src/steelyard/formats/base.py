"""What every format parser shares: the byte source it reads, and the report it returns."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from steelyard.digest import JSON


class Severity(StrEnum):
    """`reject`: the door stays closed. `review`: one question for a person. `note`: said, changes nothing."""

    REJECT = "reject"
    REVIEW = "review"
    NOTE = "note"


@dataclass(frozen=True, slots=True)
class Rule:
    """One check. `attack` names what it stops, `mend` tells the owner of an honest file what to do."""

    attack: str
    mend: str
    severity: Severity = Severity.REJECT


@dataclass(frozen=True, slots=True)
class Finding:
    """One broken rule in one file. `offset` is a byte offset in that file, absent when there is none.

    `member` names the entry inside a container (zip member, GGUF key) when the file is one.
    """

    rule: str
    message: str
    offset: int | None = None
    member: str | None = None


@dataclass(frozen=True, slots=True)
class Reference:
    """Another file of the same tree that this one makes its loader open.

    path: as written in the file, relative to that file's folder.  end: bytes the named file must at least hold,
    absent when any size will do.
    """

    path: str
    end: int | None = None


@dataclass(frozen=True, slots=True)
class Child:
    """A file inside a file, which the registry hands to the one format that claims it.

    name: its path in the container.  size: bytes it unpacks to, counted against the budget before it is opened.
    open: gives its bytes; raises Malformed.  Opened one at a time, and not before the parent's report is complete.
    """

    name: str
    size: int
    open: "Callable[[], ByteSource]"


@dataclass(frozen=True, slots=True)
class Report:
    """What one parser says about one file. No findings above `note` means understood and clean.

    children: files inside this one that nobody has read yet; the registry reads them and leaves none.
    references: files beside this one, which the scan of the tree looks for.
    """

    format: str
    facts: Mapping[str, JSON] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    children: "Callable[[], Iterator[Child]] | None" = None
    references: tuple[Reference, ...] = ()

    def to_json(self) -> dict[str, JSON]:
        """As JSON, for the pipe between processes; children cannot cross it."""
        if self.children is not None:
            raise ValueError("the registry has not read this report's children")
        return {
            "format": self.format,
            "facts": self.facts,
            "findings": [[f.rule, f.message, f.offset, f.member] for f in self.findings],
            "references": [[r.path, r.end] for r in self.references],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Report":
        return cls(
            value["format"],
            value["facts"],
            tuple(Finding(*finding) for finding in value["findings"]),
            None,
            tuple(Reference(*reference) for reference in value["references"]),
        )


class ByteSource(Protocol):
    """Random access to the bytes of one file. `read` returns exactly `size` bytes or raises ValueError."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int, size: int) -> bytes: ...


@dataclass(frozen=True, slots=True)
class BytesSource:
    """A ByteSource over bytes in memory: tests and container members."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)

    def read(self, offset: int, size: int) -> bytes:
        if offset < 0 or size < 0 or offset + size > len(self.data):
            raise ValueError(f"read of {size} bytes at {offset} is outside {len(self.data)} bytes")
        return self.data[offset : offset + size]


class Format(Protocol):
    """The plug of the `steelyard.formats` group.

    `sniff(head, path)` claims a file by its first bytes (up to SNIFF_BYTES) and, only for text formats
    that have no magic, by its name. `read(source, path)` parses within its own limits and returns a
    Report; a structural break may be raised as Malformed (its `rule` is a key of `rules`).
    """

    name: str
    rules: Mapping[str, Rule]

    def sniff(self, head: bytes, path: str) -> bool: ...

    def read(self, source: ByteSource, path: str) -> Report: ...


SNIFF_BYTES = 4096
