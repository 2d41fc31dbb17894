"""Copies in the store, and models carried between two homes, typed as users would."""

import json
import shutil
from pathlib import Path

import pytest


@pytest.fixture
def admitted(yard, helpdesk):
    assert yard("admit", helpdesk) == 0, yard.out
    return yard


def source_of(shell, name="helpdesk"):
    digest = shell.json("model", "show", name)["digest"].partition(":")[2]
    return Path(json.loads((shell.home / "store" / "manifests" / f"{digest}.json").read_text())["source"])


def test_admitted_model_is_read_from_the_store_whatever_happens_to_the_folder(admitted, helpdesk):
    assert source_of(admitted).is_relative_to(admitted.home)
    (helpdesk / "model.safetensors").write_bytes(b"poisoned")
    assert admitted("admit", "helpdesk") == 0
    shutil.rmtree(helpdesk)
    assert admitted("model", "convert", "helpdesk", "--name", "gguf") in (0, 1), admitted.err


def test_refused_model_is_not_copied(yard, helpdesk):
    (helpdesk / "evil.pth").write_text("import os")
    assert yard("admit", helpdesk) == 1
    assert source_of(yard) == helpdesk
    assert not (yard.home / "store" / "blobs").exists()


def test_weights_stay_where_they_are_if_asked(yard, helpdesk):
    assert yard("admit", helpdesk, "--no-copy") == 0
    assert source_of(yard) == helpdesk


@pytest.mark.parametrize("name", ["clerk.tar", "layout"])
def test_model_crosses_to_another_home_and_counts_only_under_a_trusted_key(
    admitted, tmp_path, capsys, monkeypatch, name
):
    out = tmp_path / name
    exported = admitted.json("model", "export", "helpdesk", "--out", out)
    there = type(admitted)(tmp_path / "there", capsys)
    assert there("key", "new") == 0
    assert there("model", "import", out) == 1  # nobody here trusts who signed
    trust = there.home / "trust"
    trust.mkdir(exist_ok=True)
    shutil.copy(admitted.home / "keys" / "operator.pub", trust / "headquarters.pub")
    result = there.json("model", "import", out)
    assert result["allowed"] is True
    assert there.json("model", "show", "helpdesk")["digest"] == exported["digest"]
    assert source_of(there).is_relative_to(there.home)


def test_import_of_a_changed_layout_is_3(admitted, tmp_path, capsys):
    out = tmp_path / "layout"
    assert admitted("model", "export", "helpdesk", "--out", out) == 0
    largest = max((out / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    data = largest.read_bytes()
    largest.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    there = type(admitted)(tmp_path / "there", capsys)
    assert there("key", "new") == 0
    assert there("model", "import", out) == 3
    assert there.json("model", "ls") == []


def test_dropped_copy_is_garbage_and_gc_frees_it(admitted):
    assert admitted.json("model", "gc")["files"] == 0
    assert admitted("model", "alias", "gpt-4o", "helpdesk") == 0
    assert admitted("model", "drop", "helpdesk") == 2
    assert "gpt-4o" in admitted.err
    assert admitted("key", "show") == 0
    digest = admitted.json("model", "show", "helpdesk")
    size = sum(file["size"] for file in digest["files"])
    (admitted.home / "store" / "aliases.json").unlink()
    assert admitted("model", "drop", "helpdesk") == 0
    assert admitted.json("model", "gc", "--dry-run") == {
        "files": len(digest["files"]),
        "bytes": size,
        "dry_run": True,
    }
    assert admitted.json("model", "gc")["bytes"] == size
    assert admitted.json("model", "gc")["files"] == 0
