"""Each command as a user types it: what it prints and how it ends. Exit codes 0, 1, 2 and 3 for each that has them."""

import json
import stat
from pathlib import Path

import pytest

from steelyard.cli.demo import POISON
from steelyard.policy import Policy


def admitted(yard, helpdesk):
    assert yard("admit", helpdesk) == 0, yard.out + yard.err
    return yard


def poisoned(helpdesk):
    (helpdesk / "pytorch_model.bin").write_bytes(POISON)
    return helpdesk


# scan


def test_scan_of_an_honest_model_is_0(shell, helpdesk):
    found = shell.json("scan", helpdesk)
    assert (found["verdict"], found["findings"]) == ("admit", [])
    assert found["digest"].startswith("oms-sha256:")
    assert {f["path"] for f in found["files"]} >= {"model.safetensors", "tokenizer.json", "config.json"}


def test_scan_of_a_single_file_is_0(shell, helpdesk):
    assert shell("scan", helpdesk / "model.safetensors") == 0


def test_scan_of_a_poisoned_model_is_1_and_says_where(shell, helpdesk):
    found = shell.json("scan", poisoned(helpdesk), code=1)
    call = next(f for f in found["findings"] if f["rule"] == "pickle/call")
    assert (call["path"], call["offset"]) == ("pytorch_model.bin", POISON.rindex(b"R"))
    assert "posix.system" in call["message"]
    assert call["attack"]
    assert call["mend"]


def test_scan_needs_no_home(shell, helpdesk):
    shell("scan", helpdesk)
    assert not shell.home.exists()


def test_scan_of_a_missing_path_is_2(shell, tmp_path):
    assert shell("scan", tmp_path / "absent") == 2
    assert "no such file or directory" in shell.err


def test_scan_of_an_empty_directory_is_2(shell, tmp_path):
    (tmp_path / "empty").mkdir()
    assert shell("scan", tmp_path / "empty") == 2
    assert "holds no files" in shell.err


def test_scan_of_what_cannot_be_read_is_3(shell):
    assert shell("scan", "/proc/self/mem") == 3


def test_scan_of_truncated_weights_is_1(shell, helpdesk):
    weights = helpdesk / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    found = shell.json("scan", helpdesk, code=1)
    assert {f["path"] for f in found["findings"]} == {"model.safetensors"}


def test_scan_of_a_file_nobody_claims_is_1_with_its_name(shell, helpdesk):
    (helpdesk / "extra.xyz").write_bytes(b"\x00\x01\x02")
    found = shell.json("scan", helpdesk, code=1)
    assert [(f["rule"], f["path"]) for f in found["findings"]] == [("file/unclaimed", "extra.xyz")]


def test_scan_of_a_tree_with_a_link_is_1(shell, helpdesk):
    (helpdesk / "link").symlink_to("model.safetensors")
    found = shell.json("scan", helpdesk, code=1)
    assert [f["rule"] for f in found["findings"]] == ["tree/symlink"]
    assert found["digest"] is None


# admit


def test_admit_signs_and_decides(yard, helpdesk):
    decision = yard.json("admit", helpdesk)["decision"]
    assert decision["allowed"]
    assert {rule["state"] for rule in decision["rules"]} == {"met"}
    kinds = [row["predicate_type"].split(":")[2] for row in yard.json("evidence", "show", "helpdesk")]
    assert sorted(kinds) == ["decision", "formats", "licence", "manifest", "openness", "scan"]


def test_admit_refuses_the_poisoned_copy_and_keeps_the_evidence(yard, helpdesk):
    assert yard("admit", poisoned(helpdesk)) == 1
    assert "REDUCE" in yard.out
    assert yard("evidence", "show", "helpdesk") == 0
    assert "scan:v1" in yard.out


def test_admit_without_a_key_is_2_and_names_the_command(shell, helpdesk):
    assert shell("admit", helpdesk) == 2
    assert "steelyard key new" in shell.err


def test_admit_of_a_missing_path_is_2(yard, tmp_path):
    assert yard("admit", tmp_path / "absent") == 2


def test_admit_again_by_name(yard, helpdesk):
    admitted(yard, helpdesk)
    assert yard("admit", "helpdesk") == 0


def test_admit_with_the_wrong_passphrase_is_1(shell, helpdesk, monkeypatch):
    monkeypatch.setenv("STEELYARD_PASSPHRASE", "right")
    assert shell("key", "new") == 0
    monkeypatch.setenv("STEELYARD_PASSPHRASE", "wrong")
    assert shell("admit", helpdesk) == 1
    assert "passphrase" in shell.err


def test_python_is_refused_unless_policy_names_its_digest(yard, helpdesk):
    import hashlib

    code = b"import os\n"
    (helpdesk / "modeling_x.py").write_bytes(code)
    assert yard("admit", helpdesk) == 1
    shipped = yard.json("policy", "check")["digest"]
    text = """version = 1
name = "own"
[[rule]]
id = "read-code"
predicate = "urn:steelyard:scan:v1"
why = "somebody read the code"
supply = "read it"
require = [
    { field = "verdict", op = "in", value = ["admit", "review"] },
    { field = "review[].sha256", op = "in", value = ["DIGEST"] },
]
"""
    (yard.home / "policy.toml").write_text(text.replace("DIGEST", hashlib.sha256(code).hexdigest()))
    assert yard.json("policy", "check")["digest"] != shipped
    assert yard("admit", helpdesk) == 0
    (yard.home / "policy.toml").write_text(text.replace("DIGEST", "0" * 64))
    assert yard("admit", helpdesk) == 1


# model


def test_model_ls_and_show(yard, helpdesk):
    admitted(yard, helpdesk)
    (row,) = yard.json("model", "ls")
    assert (row["name"], row["allowed"], row["files"]) == ("helpdesk", True, len(list(helpdesk.iterdir())))
    shown = yard.json("model", "show", row["digest"].split(":")[1][:12])
    assert shown["decision"]["allowed"]
    assert len(shown["files"]) == row["files"]


def test_model_show_of_an_unknown_one_is_2(yard):
    assert yard("model", "show", "nobody") == 2


def test_convert_gives_a_new_digest_with_lineage(yard, helpdesk):
    admitted(yard, helpdesk)
    decision = yard.json("model", "convert", "helpdesk")
    assert decision["allowed"]
    source = yard.json("model", "show", "helpdesk")["digest"]
    assert decision["model"] != source
    rows = yard.json("evidence", "show", "helpdesk-gguf")
    lineage = next(row["id"] for row in rows if row["predicate_type"] == "urn:steelyard:lineage:v1")
    body = yard.json("evidence", "show", lineage)["predicate"]
    assert body["source"]["digest"]["sha256"] == source.split(":")[1]


def test_quantising_gives_a_third_digest(yard, helpdesk):
    admitted(yard, helpdesk)
    decision = yard.json("model", "convert", "helpdesk", "--quantise", "q8_0")
    assert decision["allowed"]
    assert [row["name"] for row in yard.json("model", "ls")] == [
        "helpdesk",
        "helpdesk-gguf",
        "helpdesk-gguf-q8_0",
    ]
    assert len({row["digest"] for row in yard.json("model", "ls")}) == 3


def test_convert_refuses_what_policy_refuses(yard, helpdesk):
    yard("admit", poisoned(helpdesk))
    assert yard("model", "convert", "helpdesk") == 1
    assert "not allowed by policy" in yard.err


def test_convert_refuses_files_that_changed_since(yard, helpdesk):
    assert yard("admit", helpdesk, "--no-copy") == 0
    (helpdesk / "README.md").write_text("other")
    assert yard("model", "convert", "helpdesk") == 1
    assert "was admitted" in yard.err


def test_alias_is_pinned_and_logged(yard, helpdesk):
    admitted(yard, helpdesk)
    digest = yard.json("model", "show", "helpdesk")["digest"]
    assert yard.json("model", "alias", "gpt-4o", "helpdesk") == {"gpt-4o": digest}
    assert yard("ledger", "show") == 0
    assert "alias" in yard.out


def test_alias_of_an_unknown_model_is_2(yard):
    assert yard("model", "alias", "gpt-4o", "nobody") == 2


# evidence


def test_exported_evidence_verifies_elsewhere_and_a_changed_one_does_not(yard, helpdesk, tmp_path):
    admitted(yard, helpdesk)
    paths = yard.json("evidence", "export", "helpdesk", "--out", tmp_path / "out")
    key = tmp_path / "operator.pub"
    key.write_bytes((yard.home / "keys" / "operator.pub").read_bytes())
    yard.home = tmp_path / "another machine"
    rows = yard.json("evidence", "verify", *paths, "--key", key)
    assert all(row["signed_by"] for row in rows)
    assert len(rows) == 6
    one, other = Path(paths[0]), Path(paths[1])
    envelope = json.loads(one.read_text()) | {"payload": json.loads(other.read_text())["payload"]}
    one.write_text(json.dumps(envelope))
    assert yard("evidence", "verify", paths[0], "--key", key) == 1
    assert yard("evidence", "verify", tmp_path / "absent.json", "--key", key) == 2
    (tmp_path / "rubbish.json").write_text("{")
    assert yard("evidence", "verify", tmp_path / "rubbish.json", "--key", key) == 3


def test_verify_without_a_trusted_key_is_2(shell, tmp_path):
    (tmp_path / "x.json").write_text("{}")
    assert shell("evidence", "verify", tmp_path / "x.json") == 2


def test_revoked_evidence_refuses(yard, helpdesk):
    admitted(yard, helpdesk)
    rows = yard.json("evidence", "show", "helpdesk")
    scan = next(row["id"] for row in rows if row["predicate_type"].endswith("scan:v1"))
    assert yard("evidence", "revoke", scan[:16], "--reason", "test") == 0
    decision = yard.json("policy", "explain", "helpdesk", code=1)
    assert [rule["reason"] for rule in decision["rules"] if rule["state"] != "met"] == [
        "the evidence was revoked"
    ]


def test_another_operators_key_makes_evidence_unknown(yard, helpdesk):
    admitted(yard, helpdesk)
    (yard.home / "keys" / "operator.pem").unlink()
    (yard.home / "keys" / "operator.pub").unlink()
    assert yard("key", "new") == 0
    decision = yard.json("policy", "explain", "helpdesk", code=1)
    assert {rule["state"] for rule in decision["rules"]} == {"unknown"}


# policy


def test_policy_check_reads_the_shipped_one(shell):
    assert shell.json("policy", "check")["name"] == "default"


def test_policy_explain_of_an_unknown_model_is_2(yard):
    assert yard("policy", "explain", "nobody") == 2


def test_policy_that_cannot_be_read_is_2(yard, helpdesk, tmp_path):
    (tmp_path / "p.toml").write_text("version = 2")
    assert yard("admit", helpdesk, "--policy", tmp_path / "p.toml") == 2
    with pytest.raises(Exception, match="version 2"):
        Policy.parse("version = 2")


# key


def test_key_new_never_overwrites(yard):
    before = (yard.home / "keys" / "operator.pem").read_bytes()
    assert yard("key", "new") == 2
    assert (yard.home / "keys" / "operator.pem").read_bytes() == before


def test_key_p256(shell):
    assert shell.json("key", "new", "--algorithm", "p256")["algorithm"] == "p256"
    assert stat.S_IMODE((shell.home / "keys" / "operator.pem").stat().st_mode) == 0o600


def test_api_key_is_shown_once_and_kept_as_its_hash(yard):
    secret = yard.json("key", "new", "--api", "app")["key"]
    assert secret.startswith("sk-steelyard-")
    assert yard("key", "show") == 0
    assert "app" in yard.out
    kept = b"".join(path.read_bytes() for path in yard.home.rglob("*") if path.is_file())
    assert secret.encode() not in kept


# ledger


def test_ledger_of_a_home_verifies_and_a_changed_one_does_not(yard, helpdesk):
    admitted(yard, helpdesk)
    folder, key = yard.home / "ledger", yard.home / "keys" / "ledger.vkey"
    assert yard("ledger", "verify", folder, "--key", key) == 0
    (bundle,) = (path for path in (folder / "tile" / "entries").rglob("*") if path.is_file())
    data = bytearray(bundle.read_bytes())
    data[-2] ^= 1
    bundle.write_bytes(data)
    assert yard("ledger", "verify", folder, "--key", key) == 1


def test_ledger_that_is_not_there_is_not_0(shell, tmp_path):
    assert shell("ledger", "verify", tmp_path / "absent") in (2, 3)
