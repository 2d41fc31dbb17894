"""7z archives of the real writer are refused with the names inside."""

from pathlib import Path

from steelyard.formats.base import BytesSource
from steelyard.formats.seven_zip import FORMAT

PLAIN = (Path(__file__).parent.parent / "data" / "archives" / "plain.7z").read_bytes()


def test_the_names_of_a_plain_header_are_listed():
    assert FORMAT.sniff(PLAIN[:4096], "m.7z")
    report = FORMAT.read(BytesSource(PLAIN), "m.7z")
    assert [finding.rule for finding in report.findings] == ["7z/unread"]
    assert report.facts == {"names": ["model.pkl", "folder/notes.md"]}
