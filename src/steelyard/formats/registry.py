"""Which format claims a file. Exactly one must: none is a refusal with the file's name, two are a refusal too."""

from collections.abc import Mapping
from dataclasses import dataclass

from steelyard.errors import Malformed
from steelyard.formats.base import SNIFF_BYTES, ByteSource, Finding, Format, Report, Rule

UNCLAIMED = "file/unclaimed"
AMBIGUOUS = "file/ambiguous"
EMPTY = "file/empty"
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
}


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
        """The one claiming format's report. A broken structure becomes a finding; nothing is skipped.

        `format` of the report is "unknown" when no single format claims the file.
        """
        if source.size == 0:
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
        try:
            return claims[0].read(source, path)
        except Malformed as error:
            return Report(claims[0].name, {}, (Finding(error.rule, error.message, error.offset),))
