"""Exactly one format claims a file; none, two, an empty or a broken file are findings, never silence."""

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.admit.rules import all_rules, registry
from steelyard.errors import Malformed
from steelyard.formats.base import BytesSource, Report, Rule
from steelyard.formats.registry import Registry

EVERY = registry()
RULES = all_rules()


@dataclass
class Letter:
    """Claims files that begin with one letter."""

    name: str
    letter: bytes
    is_broken: bool = False
    rules: dict[str, Rule] = field(default_factory=lambda: {"letter/broken": Rule("a", "b")})

    def sniff(self, head, path):
        return head.startswith(self.letter)

    def read(self, source, path):
        if self.is_broken:
            raise Malformed("no letter", rule="letter/broken", offset=7)
        return Report(self.name)


def found(formats, data):
    report = Registry(tuple(formats)).read(BytesSource(data), "file")
    return report.format, [(finding.rule, finding.offset) for finding in report.findings]


def test_one_claim_reads_the_file():
    assert found([Letter("one", b"a"), Letter("two", b"b")], b"abc") == ("one", [])


def test_no_claim_is_a_refusal():
    assert found([Letter("one", b"a")], b"xyz") == ("unknown", [("file/unclaimed", 0)])


def test_two_claims_are_a_refusal():
    assert found([Letter("one", b"a"), Letter("two", b"ab")], b"abc") == ("unknown", [("file/ambiguous", 0)])


def test_empty_file_is_a_refusal():
    assert found([Letter("one", b"")], b"") == ("unknown", [("file/empty", None)])


def test_broken_structure_becomes_a_finding_with_rule_and_offset():
    assert found([Letter("one", b"a", is_broken=True)], b"abc") == ("one", [("letter/broken", 7)])


@settings(deadline=None)
@given(
    st.binary(max_size=400),
    st.sampled_from(["x", "a.bin", "a.json", "a.pt", "README.md", "a.jinja", "a.model"]),
)
def test_any_bytes_are_either_claimed_by_one_format_or_refused(data, path):
    report = EVERY.read(BytesSource(data), path)
    assert report.format != "unknown" or report.findings
    assert {finding.rule for finding in report.findings} <= set(RULES)
