"""`steelyard model convert` of pickled weights: plan, conversion, lineage, proof."""

import hashlib
import importlib.util
import json
from pathlib import Path

import pytest
import torch

from steelyard.cli.conversion import bytes_of
from steelyard.errors import WrongUsage
from steelyard.manifest import manifest_of


def _miniature():
    path = Path(__file__).parents[1] / "admit" / "grok_miniature.py"
    spec = importlib.util.spec_from_file_location("grok_miniature", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


mini = _miniature()


@pytest.fixture
def checkpoint(tmp_path):
    folder = tmp_path / "grok"
    mini.write_checkpoint(folder)
    (folder / "config.json").write_text(json.dumps(mini.MINIATURE.to_json()))
    return folder


def lineage_of(yard, digest):
    rows = yard.json("evidence", "show", digest)
    (id_,) = [row["id"] for row in rows if row["predicate_type"].endswith("lineage:v1")]
    return yard.json("evidence", "show", id_)


def test_the_plan_is_printed_and_nothing_is_written(shell, checkpoint, tmp_path):
    plan = shell.json("model", "convert", checkpoint, "--plan", "--shard-size", "200KB")
    assert (plan["files_in"], plan["tensors"], plan["shards"]) == (50, 78, 3)
    assert plan["largest_shard_bytes"] <= 200_000
    assert plan["bytes_in"] == sum(path.stat().st_size for path in (checkpoint / "ckpt-0").iterdir())
    assert not (tmp_path / "home").exists()


def test_a_checkpoint_is_converted_signed_and_proved(yard, checkpoint, tmp_path):
    out = tmp_path / "out"
    decision = yard.json("model", "convert", checkpoint, "--out", out, "--name", "grok", code=1)
    assert decision["model"] == str(manifest_of(out).digest)
    stated = json.dumps(lineage_of(yard, manifest_of(out).digest.hex))
    assert manifest_of(checkpoint).digest.hex in stated
    assert hashlib.sha256((out / "conversion.json").read_bytes()).hexdigest() in stated
    proved = yard.json("model", "convert", out, "--verify")
    assert [row["path"] for row in proved][:2] == ["ckpt-0/tensor00000_000", "ckpt-0/tensor00001_000"]
    assert len(proved) == 50
    assert yard.json("model", "convert", decision["model"], "--verify") == proved


def test_the_source_is_known_afterwards_so_that_it_can_be_admitted(yard, checkpoint):
    yard("model", "convert", checkpoint, "--name", "converted")
    source = manifest_of(checkpoint).digest
    yard("admit", source.hex[:16])
    rows = {row["name"]: row["digest"] for row in yard.json("model", "ls")}
    assert rows["grok"] == str(source)
    show = yard.json("model", "show", "converted")
    assert not any("no trusted evidence" in rule["reason"] for rule in show["decision"]["rules"])


def test_a_nested_torch_file_lists_its_keys(yard, tmp_path):
    torch.save({"state_dict": {"a": torch.ones(2)}, "epoch": 1}, tmp_path / "model.pt")
    assert yard("model", "convert", tmp_path / "model.pt") == 2
    assert "state_dict (1 tensors)" in yard.err
    yard("model", "convert", tmp_path / "model.pt", "--key", "state_dict", "--out", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.parametrize(
    "options", [("--to", "gguf"), ("--quantise", "q8_0"), ("--shard-size", "lots"), ("--key", "x")]
)
def test_options_that_do_not_fit_are_wrong_usage(options, yard, checkpoint):
    assert yard("model", "convert", checkpoint, *options) == 2


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("1 GiB", 1 << 30), ("200kb", 200_000), ("7", 7), ("7B", 7)]
)
def test_sizes_are_read(text, size):
    assert bytes_of(text) == size


@pytest.mark.parametrize("text", ["", "GB", "0GB", "-5GB", "5TB", "1.5GB"])
def test_sizes_that_are_none_are_refused(text):
    with pytest.raises(WrongUsage):
        bytes_of(text)
