"""`steelyard advisories` and `steelyard environment`, typed as a user would."""

import json
from datetime import UTC, datetime, timedelta
from importlib.metadata import version

import pytest


def dump(folder, *, days=0, package="cryptography", events=None):
    folder.mkdir(exist_ok=True)
    modified = (datetime.now(UTC) - timedelta(days=days)).isoformat()
    record = {
        "id": "PYSEC-2026-9",
        "modified": modified,
        "summary": "says too much",
        "affected": [
            {
                "package": {"ecosystem": "PyPI", "name": package},
                "ranges": [{"type": "ECOSYSTEM", "events": events or [{"introduced": "0"}]}],
            }
        ],
    }
    (folder / "PYSEC-2026-9.json").write_text(json.dumps(record))
    return folder


@pytest.fixture
def admitted(yard, helpdesk):
    assert yard("admit", helpdesk) == 0
    return yard


POLICY = (
    'version = 1\nname = "current"\n[[rule]]\nid = "no-known-vulnerability"\nwhy = "nothing known"\n'
    'predicate = "urn:steelyard:advisories:v1"\nsupply = "steelyard advisories add DUMP"\n'
    'require = [{ field = "verdict", op = "==", value = "clear" }]\n'
)


def test_advisory_added_later_turns_an_admitted_model_without_reading_it(admitted, helpdesk, tmp_path):
    (admitted.home / "policy.toml").write_text(POLICY)
    clear = [{"introduced": "0"}, {"fixed": "0.1"}]
    result = admitted.json("advisories", "add", dump(tmp_path / "d", events=clear))
    assert [m["verdict"] for m in result["models"]] == ["clear"]
    assert admitted.json("policy", "explain", "helpdesk")["allowed"] is True
    for file in helpdesk.iterdir():
        file.unlink()  # no weights are needed
    result = admitted.json("advisories", "add", dump(tmp_path / "d"), code=1)
    match = result["models"][0]["matches"][0]
    assert (match["package"], match["version"]) == ("cryptography", version("cryptography"))
    assert admitted.json("policy", "explain", "helpdesk", code=1)["allowed"] is False


def test_stale_dump_is_3_and_changes_nothing(admitted, tmp_path):
    assert admitted("advisories", "add", dump(tmp_path / "d", days=40)) == 3
    assert "40 days old" in admitted.err
    assert admitted("advisories", "show") == 2
    assert admitted("advisories", "add", tmp_path / "d", "--max-age-days", "50") == 1
    assert admitted("advisories", "check") == 3
    assert admitted.json("advisories", "show")["age_days"] == 40


def test_check_again_from_the_kept_dump(admitted, tmp_path):
    assert admitted("advisories", "check") == 2
    assert admitted("advisories", "add", dump(tmp_path / "d", package="unrelated")) == 0
    assert admitted("advisories", "check", "helpdesk") == 0
    assert admitted("advisories", "check", "nobody") == 2


def test_environment_of_another_folder(shell, tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    assert shell("environment", "check", "--site", site) == 0
    (site / "evil.pth").write_text("import os\n")
    found = shell.json("environment", "check", "--site", site, code=1)
    assert {item["rule"] for item in found["irregularities"]} == {
        "environment/start-up",
        "environment/unowned",
    }
    assert shell("environment", "check", "--site", tmp_path / "none") == 2
