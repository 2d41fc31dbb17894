"""Which format claims a file. Exactly one must: none is a refusal with the file's name, two are a refusal too."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from steelyard.errors import Malformed
from steelyard.formats.base import SNIFF_BYTES, ByteSource, Child, Finding, Format, Reference, Report, Rule
from steelyard.formats.pickle_in_text import runs_as_pickle

# One budget for a file and everything nested in it, however the nesting is arranged.
MAX_NESTING = 4
MAX_CHILDREN = 20_000
MAX_UNPACKED_BYTES = 8 << 30
# A small file may not unfold to all of that by boxes in boxes: this much for any file, then so many times its size.
FREE_UNPACKED_BYTES = 1 << 27
MAX_UNPACKED_RATIO = 32
MAX_FINDINGS = 500
# Files that honest projects keep empty; an empty file of any other name is a copy that broke off.
_EMPTY_NAMES = frozenset({"__init__.py", "py.typed", ".gitkeep", ".keep", ".nojekyll"})

UNCLAIMED = "file/unclaimed"
AMBIGUOUS = "file/ambiguous"
EMPTY = "file/empty"
NESTED = "file/nested"
BOMB = "file/bomb"
PICKLE = "file/pickle"
# A format with one of these rules runs the pickle machine itself.
_READ_AS_PICKLE = frozenset({"pickle/global", "text/pickle"})
RULES: Mapping[str, Rule] = {
    UNCLAIMED: Rule(
        "a file nobody understands may hold anything, and the loader that reads it is unknown",
        "remove the file from the model, or convert it to a format listed in docs/reference/rules.md",
    ),
    AMBIGUOUS: Rule(
        "a polyglot: two loaders would read two different things from the same bytes",
        "write the file anew in one format",
    ),
    EMPTY: Rule(
        "an empty file says that a copy or download broke off",
        "fetch the file again, or remove it",
    ),
    NESTED: Rule(
        "containers inside containers hide a file from whoever looks only so deep",
        "unpack the inner archives and put their files into the model's folder",
    ),
    PICKLE: Rule(
        "a file that reads as one format by its name and as a program by a pickle loader",
        "remove the file, or write it anew in the format of its name",
    ),
    BOMB: Rule(
        "a few bytes that unpack to more than any machine holds",
        "unpack the archive yourself and scan the folder",
    ),
}


@dataclass(slots=True)
class _Budget:
    """What may still be unpacked, over the whole recursion."""

    children: int = MAX_CHILDREN
    unpacked_bytes: int = MAX_UNPACKED_BYTES

    def spend(self, child: Child) -> None:
        self.children -= 1
        self.unpacked_bytes -= child.size
        if self.children < 0:
            raise Malformed(f"{child.name!a}: more than {MAX_CHILDREN} files inside", rule=BOMB)
        if self.unpacked_bytes < 0:
            raise Malformed(f"{child.name!a}: more bytes inside than a file of this size may hold", rule=BOMB)


@dataclass(frozen=True, slots=True)
class Registry:
    """The formats that may claim a file."""

    formats: tuple[Format, ...]

    def rules(self) -> dict[str, Rule]:
        """Every rule a report of this registry can name."""
        merged = dict(RULES)
        for known in self.formats:
            merged.update(known.rules)
        return merged

    def read(self, source: ByteSource, path: str) -> Report:
        """The one claiming format's report, with the findings of everything nested in the file.

        A broken structure becomes a finding; nothing is skipped. `format` of the report is "unknown" when no single
        format claims the file. Nested findings carry the member's path in `member` and an offset inside that member.
        """
        allowed = max(FREE_UNPACKED_BYTES, MAX_UNPACKED_RATIO * source.size)
        return self._read(source, path, 0, _Budget(unpacked_bytes=min(MAX_UNPACKED_BYTES, allowed)))

    def _read(self, source: ByteSource, path: str, depth: int, budget: _Budget) -> Report:
        report = self._one(source, path)
        if report.children is None:
            return report
        inside = _Inside(list(report.findings))
        try:
            for child in report.children():
                if depth == MAX_NESTING:
                    raise Malformed(f"{child.name!a}: more than {MAX_NESTING} containers deep", rule=NESTED)
                budget.spend(child)
                try:
                    inside.add(child, self._read(child.open(), child.name, depth + 1, budget))
                except Malformed as error:
                    if error.rule in {NESTED, BOMB}:
                        raise
                    inside.find(Finding(error.rule, error.message, error.offset, child.name))
                if len(inside.findings) > MAX_FINDINGS:
                    break  # a refusal needs no more
        except Malformed as error:
            inside.find(Finding(error.rule, error.message, error.offset))
        facts = {**report.facts, "members": dict(sorted(inside.formats.items()))}
        return Report(report.format, facts, tuple(inside.findings), None, report.references)

    def _one(self, source: ByteSource, path: str) -> Report:
        if source.size == 0:
            if path.rpartition("/")[2] in _EMPTY_NAMES:
                return Report("empty")
            return Report("unknown", {}, (Finding(EMPTY, "the file is empty"),))
        head = source.read(0, min(source.size, SNIFF_BYTES))
        claims = [known for known in self.formats if known.sniff(head, path)]
        if not claims:
            start = head[:16].hex(" ")
            return Report(
                "unknown", {}, (Finding(UNCLAIMED, f"no format claims it; it begins with {start}", 0),)
            )
        if len(claims) > 1:
            names = ", ".join(sorted(known.name for known in claims))
            return Report("unknown", {}, (Finding(AMBIGUOUS, f"claimed by {names}", 0),))
        if not claims[0].rules.keys() & _READ_AS_PICKLE and (imported := runs_as_pickle(source)) is not None:
            found = Finding(PICKLE, f"is also a pickle that imports {imported[:80]}", 0)
            return Report(claims[0].name, {}, (found,))
        try:
            return claims[0].read(source, path)
        except Malformed as error:
            return Report(claims[0].name, {}, (Finding(error.rule, error.message, error.offset),))


@dataclass(slots=True)
class _Inside:
    """What was found in a container and in its members so far."""

    findings: list[Finding]
    formats: Counter[str] = field(default_factory=Counter)

    def find(self, finding: Finding) -> None:
        self.findings.append(finding)

    def add(self, child: Child, report: Report) -> None:
        self.formats[report.format] += 1
        for finding in report.findings:
            member = child.name if finding.member is None else f"{child.name}/{finding.member}"
            self.find(replace(finding, member=member))
        for reference in report.references:
            self.find(_outside(child, reference))


def _outside(child: Child, reference: Reference) -> Finding:
    what = f"makes its loader open {reference.path!a}, which is not looked for inside a container"
    return Finding(UNCLAIMED, what, None, child.name)
