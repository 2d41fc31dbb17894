"""Newer rules, SARIF, and what `model ls` says of a model that should be looked at again."""

import json
import time

import pytest

from steelyard.cli.demo import POISON
from steelyard.cli.installation import Installation, clock, subject_of
from steelyard.evidence import timestamp


@pytest.fixture
def old(yard, helpdesk):
    """A model whose newest scan was by other rules than today's."""
    assert yard("admit", helpdesk) == 0
    home = Installation.open(yard.home)
    model = home.store.model("helpdesk")
    newest = [
        e for e in home.store.evidence_for(model.digest.hex) if e.statement.predicate_type.endswith("scan:v1")
    ][-1]
    time.sleep(1.1)  # statements are ordered by whole seconds
    later = {**newest.statement.predicate, "ruleset": "sha256:" + "0" * 64, "issued_at": timestamp(clock())}
    home.attest([subject_of(model)], newest.statement.predicate_type, later)
    time.sleep(1.1)
    return yard


def concerns(yard):
    return [row["concerns"] for row in yard.json("model", "ls")]


def test_model_scanned_by_todays_rules_is_of_no_concern(yard, helpdesk):
    assert yard("admit", helpdesk) == 0
    assert concerns(yard) == [[]]
    assert yard.json("admit", "--again", "all") == []


def test_older_rules_turn_a_model_amber_and_again_heals_it(old):
    [[concern]] = concerns(old)
    assert "admit --again" in concern
    assert "admit --again" in old.json("model", "show", "helpdesk")["concerns"][0]
    [outcome] = old.json("admit", "--again", "all")
    assert outcome["verdict"] == "admit"
    assert concerns(old) == [[]]


def test_again_refuses_bytes_that_are_not_those_admitted(yard, helpdesk):
    assert yard("admit", helpdesk, "--no-copy") == 0
    time.sleep(1.1)
    home = Installation.open(yard.home)
    model = home.store.model("helpdesk")
    home.attest(
        [subject_of(model)],
        "urn:steelyard:scan:v1",
        {"issued_at": timestamp(clock()), "ruleset": "old", "verdict": "admit"},
    )
    (helpdesk / "README.md").write_text("other")
    assert yard("admit", "--again", "helpdesk") == 1
    assert "not helpdesk as it was admitted" in yard.err


def test_path_and_again_exclude_each_other(yard, helpdesk):
    assert yard("admit") == 2
    assert yard("admit", helpdesk, "--again", "all") == 2


def test_known_vulnerability_turns_a_model_amber(yard, helpdesk, tmp_path):
    assert yard("admit", helpdesk) == 0
    record = {
        "id": "PYSEC-1",
        "modified": clock().isoformat(),
        "affected": [
            {
                "package": {"ecosystem": "PyPI", "name": "cryptography"},
                "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}]}],
            }
        ],
    }
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "x.json").write_text(json.dumps(record))
    assert yard("advisories", "add", tmp_path / "d") == 1
    [[concern]] = concerns(yard)
    assert "1 known vulnerabilities" in concern


def test_sarif_has_what_the_standard_requires(shell, helpdesk, tmp_path):
    (helpdesk / "pytorch_model.bin").write_bytes(POISON)
    out = tmp_path / "scan.sarif"
    assert shell("scan", helpdesk, "--sarif", out) == 1
    log = json.loads(out.read_text())
    assert log["version"] == "2.1.0"
    [run] = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    call = next(r for r in run["results"] if r["ruleId"] == "pickle/call")
    assert rules[call["ruleIndex"]]["id"] == "pickle/call"
    assert call["level"] == "error"
    place = call["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "pytorch_model.bin"
    assert place["region"] == {"byteOffset": POISON.rindex(b"R"), "byteLength": 1}
    again = tmp_path / "again.sarif"
    assert shell("scan", helpdesk, "--sarif", again) == 1
    assert again.read_text() == out.read_text()
