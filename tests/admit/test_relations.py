"""What files say of each other: shards and their index, graphs and their data, links, two formats."""

import json
import os
import struct

import pytest

from steelyard.admit.relations import RAW
from steelyard.admit.rules import registry
from steelyard.admit.scan import Verdict, scan
from steelyard.formats.base import Reference, Report
from steelyard.formats.registry import Registry


def shard(path, *names):
    header = json.dumps(
        {
            name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]}
            for i, name in enumerate(names)
        }
    ).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4 * len(names)))


@pytest.fixture
def sharded(tmp_path):
    shard(tmp_path / "model-00001-of-00002.safetensors", "a", "b")
    shard(tmp_path / "model-00002-of-00002.safetensors", "c")
    weight_map = {
        "a": "model-00001-of-00002.safetensors",
        "b": "model-00001-of-00002.safetensors",
        "c": "model-00002-of-00002.safetensors",
    }
    write_index(tmp_path, weight_map)
    return tmp_path, weight_map


def write_index(folder, weight_map):
    body = {"metadata": {"total_size": 12}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(body))


def rules(folder):
    return sorted(finding.rule for _, finding in scan(folder, registry()).findings())


def test_index_and_shards_that_agree_are_clean(sharded):
    folder, _ = sharded
    assert scan(folder, registry()).verdict is Verdict.ADMIT


def test_missing_shard_is_found(sharded):
    folder, _ = sharded
    (folder / "model-00002-of-00002.safetensors").unlink()
    assert rules(folder) == ["tree/reference-missing"]


@pytest.mark.parametrize(
    "change",
    [
        lambda folder, names: shard(folder / "model-00002-of-00002.safetensors", "c", "smuggled"),
        lambda folder, names: shard(folder / "model-00002-of-00002.safetensors", "d"),
        lambda folder, names: write_index(folder, {k: v for k, v in names.items() if k != "b"}),
        lambda folder, names: write_index(folder, {**names, "e": names["c"]}),
    ],
    ids=[
        "tensor in the shard only",
        "other name",
        "tensor left out of the index",
        "tensor in the index only",
    ],
)
def test_index_and_shards_that_differ_are_found(sharded, change):
    change(*sharded)
    assert rules(sharded[0]) == ["tree/shard-differs"]


class Graph:
    """A file that refers to others, one a line: `path end`."""

    name = "graph"
    rules = registry().rules()

    def sniff(self, head, path):
        return path.endswith(".graph")

    def read(self, source, path):
        lines = source.read(0, source.size).decode().splitlines()
        pairs = [line.split() for line in lines]
        return Report(
            "graph", {}, (), None, tuple(Reference(p[0], int(p[1]) if len(p) > 1 else None) for p in pairs)
        )


def graph_scan(folder):
    return scan(folder, Registry((Graph(),)))


def test_raw_data_that_a_clean_file_accounts_for_is_understood(tmp_path):
    (tmp_path / "m.graph").write_text("sub/weights.bin 100\nsub/weights.bin 40\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "weights.bin").write_bytes(bytes(100))
    found = graph_scan(tmp_path)
    assert found.verdict is Verdict.ADMIT
    assert {f.path: f.report.format for f in found.files}["sub/weights.bin"] == RAW


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("weights.bin 99", ["file/unclaimed"]),
        ("weights.bin", ["file/unclaimed"]),
        ("weights.bin 101", ["file/unclaimed", "tree/reference-short"]),
        ("other.bin 100", ["file/unclaimed", "tree/reference-missing"]),
        ("../weights.bin 100", ["file/unclaimed", "tree/reference-outside"]),
        ("/etc/passwd 1", ["file/unclaimed", "tree/reference-outside"]),
        ("..\\\\weights.bin 100", ["file/unclaimed", "tree/reference-outside"]),
        ("a/../../x/weights.bin 100", ["file/unclaimed", "tree/reference-outside"]),
    ],
    ids=[
        "bytes left over",
        "no length",
        "too short",
        "missing",
        "traversal",
        "absolute",
        "backslash",
        "winding",
    ],
)
def test_raw_data_that_is_not_accounted_for_refuses(tmp_path, lines, expected):
    (tmp_path / "weights.bin").write_bytes(bytes(100))
    (tmp_path / "m.graph").write_text(lines)
    assert sorted(f.rule for _, f in graph_scan(tmp_path).findings()) == expected


def test_file_that_a_format_claims_is_not_made_raw(tmp_path):
    (tmp_path / "m.graph").write_text("weights.bin 5")
    (tmp_path / "weights.bin").write_bytes(b"\x80\x04N..")
    found = scan(tmp_path, Registry((Graph(), *registry().formats)))
    formats = {f.path: f.report.format for f in found.files}
    assert formats["weights.bin"] != RAW


def test_hard_link_that_leaves_the_tree_is_said(tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "README.md").write_text("x")
    os.link(tree / "README.md", tmp_path / "elsewhere")
    found = scan(tree, registry())
    assert [f.rule for _, f in found.findings()] == ["tree/hard-link"]
    assert found.verdict is Verdict.ADMIT  # the store's copy is what is served
    os.unlink(tmp_path / "elsewhere")
    os.link(tree / "README.md", tree / "NOTICE.md")
    assert list(scan(tree, registry()).findings()) == []
