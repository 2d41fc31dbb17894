"""`steelyard signature`, typed as a user would."""

import json

import pytest
from model_signing import hashing, verifying


@pytest.fixture
def signed(yard, helpdesk, tmp_path):
    key = tmp_path / "signing.pem"
    assert yard("key", "new", "--algorithm", "p256", "--out", key) == 0
    assert yard("signature", "sign", helpdesk, "--key", key) == 0, yard.err
    return helpdesk, key.with_suffix(".pub")


def test_signed_model_verifies_with_us_and_with_them(yard, signed):
    folder, public = signed
    result = yard.json("signature", "verify", folder, "--key", public)
    assert (result["method"], result["unsigned"]) == ("key", [])
    assert result["files"] == len(list(folder.iterdir())) - 1
    verifying.Config().use_elliptic_key_verifier(public_key=public).set_hashing_config(
        hashing.Config().set_ignored_paths(paths=[folder / "model.sig"])
    ).verify(folder, folder / "model.sig")


def test_signed_model_is_still_admitted(yard, signed):
    folder, _ = signed
    found = yard.json("scan", folder)
    assert {f["path"]: f["format"] for f in found["files"]}["model.sig"] == "signature"


def test_changed_file_is_1_and_named(yard, signed):
    folder, public = signed
    (folder / "config.json").write_text("{}")
    assert yard("signature", "verify", folder, "--key", public) == 1
    assert "config.json differs" in yard.err


def test_added_file_is_1_unless_named(yard, signed):
    folder, public = signed
    (folder / "notes.txt").write_text("later")
    assert yard("signature", "verify", folder, "--key", public) == 1
    assert "notes.txt is not signed" in yard.err
    result = yard.json("signature", "verify", folder, "--key", public, "--unsigned", "notes.txt")
    assert result["unsigned"] == ["notes.txt"]


def test_recorded_signature_meets_a_rule_of_the_policy(yard, signed, tmp_path):
    folder, public = signed
    policy = tmp_path / "policy.toml"
    policy.write_text(
        'version = 1\nname = "signed"\n[[rule]]\nid = "publisher"\nwhy = "signed by the publisher"\n'
        'predicate = "urn:steelyard:signature:v1"\nsupply = "steelyard signature verify DIR --record"\n'
        'require = [{ field = "method", op = "==", value = "key" }]\n'
    )
    assert yard("admit", folder, "--policy", policy) == 1
    assert yard("signature", "verify", folder, "--key", public, "--record") == 0
    assert yard("admit", folder, "--policy", policy) == 0, yard.out


def test_wrong_usage_is_2(yard, signed, tmp_path):
    folder, public = signed
    root = tmp_path / "root.json"
    root.write_text(json.dumps({}))
    assert yard("signature", "verify", folder, "--trusted-root", root) == 2
    assert "--identity" in yard.err
    assert yard("signature", "verify", folder, "--key", public, "--identity", "x") == 2
    assert yard("signature", "verify", folder) == 2
    assert yard("signature", "sign", folder, "--key", public) == 2
    assert yard("signature", "verify", folder, "--key", tmp_path / "none.pub") == 2


def test_what_is_no_bundle_is_3(yard, signed):
    folder, public = signed
    (folder / "model.sig").write_text("{}")
    assert yard("signature", "verify", folder, "--key", public) == 3
    assert yard("scan", folder) == 1
    assert "signature/bundle" in yard.out
