"""Hostile files of skops, msgpack, boosting libraries, R and PMML; one for each rule."""

import json
import struct
from pathlib import Path

import pytest

from steelyard.admit.rules import registry
from steelyard.errors import Malformed
from steelyard.formats.base import BytesSource, Format
from steelyard.formats.lightgbm_model import FORMAT as LIGHTGBM
from steelyard.formats.msgpack_file import FORMAT as MSGPACK
from steelyard.formats.pmml_file import FORMAT as PMML
from steelyard.formats.r_data import FORMAT as R_DATA
from steelyard.formats.skops_schema import FORMAT as SKOPS
from steelyard.formats.xgboost_model import FORMAT as XGBOOST

REGISTRY = registry()
DATA = Path(__file__).parents[1] / "data"


def rules_of(kind: Format, raw: bytes, path: str = "model") -> set[str]:
    try:
        return {finding.rule for finding in kind.read(BytesSource(raw), path).findings}
    except Malformed as broken:
        return {broken.rule}


# skops


def node(full: str, loader: str, **more: object) -> dict:
    module, _, name = full.rpartition(".")
    return {"__class__": name, "__module__": module, "__loader__": loader, **more}


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        # CVE-2025-54413: the audit looks at one object, the method of another is taken
        (node("sklearn.linear_model.Ridge", "MethodNode", content={"obj": {}, "func": "x"}), "skops/loader"),
        # CVE-2025-54412: the class on the label is not the one that is built
        (node("operator.attrgetter", "OperatorFuncNode", attrs={}), "skops/loader"),
        (node("functools.partial", "PartialNode", content={}), "skops/loader"),
        (node("os.system", "FunctionNode"), "skops/function"),
        (node("numpy.log1p", "FunctionNode", content={"module_path": "os", "function": "system"}), "skops/function"),
        (node("sklearn.datasets._base.load_files", "FunctionNode"), "skops/function"),
        (node("subprocess.Popen", "ObjectNode", content={}), "skops/class"),
        (node("__main__.Mine", "ObjectNode", content={}), "skops/class"),
        (node("os.system", "TypeNode"), "skops/class"),
        (node("os.system", "DictNode", content={}), "skops/class"),
        (node("numpy.ndarray", "NdArrayNode", type="numpy", file="../x.npy"), "skops/file"),
        (node("numpy.ndarray", "NdArrayNode", type="numpy", file="x.pkl"), "skops/file"),
        (node("builtins.str", "JsonNode", content={}), "skops/shape"),
        ({"__class__": "x", "__module__": "y"}, "skops/shape"),
    ],
)  # fmt: skip
def test_skops_node_refuses(value: dict, rule: str) -> None:
    raw = json.dumps(value).encode()
    assert SKOPS.sniff(raw[:4096], "schema.json")
    assert rule in rules_of(SKOPS, raw)


def test_skops_schema_with_another_first_key_is_still_refused() -> None:
    raw = json.dumps({"protocol": 2, **node("os.system", "FunctionNode")}).encode()
    assert REGISTRY.read(BytesSource(raw), "schema.json").findings


# msgpack


ARRAY = b"\x93\x91\x02\xa7float32\xc4\x08" + bytes(8)


@pytest.mark.parametrize(
    ("raw", "rule"),
    [
        (b"\x81\xa1a\x01\x80\x04N.", "msgpack/trailing"),
        (b"\xdf\xff\xff\xff\xff\xa1a", "msgpack/truncated"),
        (b"\x81\xa1a\xdd\xff\xff\xff\xff", "msgpack/truncated"),
        (b"\x81\xa1a\xc6\xff\xff\xff\xff", "msgpack/truncated"),
        (b"\x81\xa1a" + b"\x91" * 100 + b"\x01", "msgpack/limit"),
        (b"\x82\xa1a\x01\xa1a\x02", "msgpack/key"),
        (b"\x82\xa1a\x01\x07\x02", "msgpack/key"),
        (b"\x81\xa1a\xd4\x07\x00", "msgpack/extension"),
        (b"\x81\xa1a\xc1", "msgpack/marker"),
        (
            b"\x81\xa1a\xc7" + bytes([len(ARRAY), 1]) + ARRAY.replace(b"\x91\x02", b"\x91\x03"),
            "msgpack/array",
        ),
        (b"\x81\xa1a\xc7" + bytes([len(ARRAY), 1]) + ARRAY.replace(b"float32", b"objectO"), "msgpack/array"),
    ],
)
def test_msgpack_refuses(raw: bytes, rule: str) -> None:
    assert MSGPACK.sniff(raw, "flax_model.msgpack")
    assert rules_of(MSGPACK, raw) == {rule}


def test_msgpack_array_that_fits_is_clean() -> None:
    assert rules_of(MSGPACK, b"\x81\xa1a\xc7" + bytes([len(ARRAY), 1]) + ARRAY) == set()


# XGBoost and LightGBM


def booster(**tree: object) -> bytes:
    base = {"left_children": [1, -1, -1], "right_children": [2, -1, -1], "parents": [2147483647, 0, 0],
            "split_conditions": [0.5, 1, 2], "split_indices": [0, 0, 0]}  # fmt: skip
    learner = {
        "gradient_booster": {"name": "gbtree", "model": {"trees": [{**base, **tree}]}},
        "learner_model_param": {"num_feature": "2"},
        "objective": {"name": "reg:squarederror"},
    }
    return json.dumps({"learner": learner, "version": [3, 2, 0]}).encode()


@pytest.mark.parametrize(
    "tree",
    [
        {"left_children": [7, -1, -1]},
        {"left_children": [0, -1, -1]},
        {"right_children": [-2, -1, -1]},
        {"split_indices": [9, 0, 0]},
        {"split_conditions": [1]},
        {"left_children": ["x", -1, -1]},
    ],
)
def test_xgboost_tree_that_leaves_its_arrays_refuses(tree: dict) -> None:
    assert rules_of(XGBOOST, booster(), "model.json") == set()
    assert rules_of(XGBOOST, booster(**tree), "model.json") == {"xgboost/tree"}


@pytest.mark.parametrize(
    ("raw", "rule"),
    [
        (b"{L" + struct.pack(">q", 7) + b"learner{}}\x80\x04N.", "xgboost/trailing"),
        (b"{L" + struct.pack(">q", 1 << 40) + b"learner{}}", "xgboost/size"),
        (b"{L" + struct.pack(">q", 7) + b"learner[$l#L" + struct.pack(">q", 1 << 60), "xgboost/truncated"),
        (b"{L" + struct.pack(">q", 7) + b"learner" + b"[" * 100, "xgboost/size"),
        (b"{L" + struct.pack(">q", 7) + b"learner?}", "xgboost/syntax"),
        (b"{L" + struct.pack(">q", 7) + b"learner{}}", "xgboost/shape"),
        (b"binf" + bytes(100), "xgboost/deprecated"),
    ],
)
def test_xgboost_bytes_refuse(raw: bytes, rule: str) -> None:
    assert rules_of(XGBOOST, raw) == {rule}


@pytest.mark.parametrize(
    ("before", "after", "rule"),
    [
        (b"\nend of trees\n", b"\n", "lightgbm/syntax"),
        (b"\nend of parameters", b"\nend of parameters\nimport os", "lightgbm/syntax"),
        (b"left_child=1", b"left_child=99", "lightgbm/tree"),
        (b"split_feature=", b"split_feature=77 ", "lightgbm/tree"),
        (b"Tree=1", b"Tree=5", "lightgbm/tree"),
        (b"max_feature_idx", b"max_evil_idx", "lightgbm/syntax"),
    ],
)
def test_lightgbm_text_refuses(before: bytes, after: bytes, rule: str) -> None:
    raw = (DATA / "gbdt/lightgbm.txt").read_bytes()
    assert before in raw
    assert rule in rules_of(LIGHTGBM, raw.replace(before, after, 1))


# R


def serialised(*words: int, tail: bytes = b"") -> bytes:
    return b"X\n" + struct.pack(f">{3 + len(words)}i", 2, 0x40200, 0x20300, *words) + tail


@pytest.mark.parametrize(
    ("raw", "rule"),
    [
        (serialised(5), "r/promise"),  # CVE-2024-27322
        (serialised(19, 1, 5), "r/promise"),
        (serialised(0x402, 1, 9, 1, tail=b"x" + struct.pack(">i", 5)), "r/promise"),
        (serialised(21), "r/code"),
        (serialised(3), "r/code"),
        (serialised(4), "r/code"),
        (serialised(22), "r/pointer"),
        (serialised(248), "r/pointer"),
        (serialised(13, 1 << 30), "r/truncated"),
        (serialised(19, 1 << 30), "r/truncated"),
        (serialised(254, 254), "r/trailing"),
        (serialised(*([19, 1] * 100), 254), "r/limit"),
        (serialised(0x1FF), "r/structure"),
        (serialised(99), "r/structure"),
        (b"A\n3\n262146\n", "r/form"),
        (b"RDB3\nB\n" + bytes(40), "r/form"),
    ],
)
def test_r_object_refuses(raw: bytes, rule: str) -> None:
    assert rules_of(R_DATA, raw) == {rule}


@pytest.mark.parametrize("name", ["fun.rds", "lm.rds", "env.rds"])
def test_r_object_with_code_refuses(name: str) -> None:
    report = REGISTRY.read(BytesSource((DATA / "r" / name).read_bytes()), name)
    assert {finding.rule for finding in report.findings} == {"r/code"}


# PMML


def pmml(body: str, head: str = "", space: str = "http://www.dmg.org/PMML-4_4") -> bytes:
    return f'<?xml version="1.0"?>{head}<PMML xmlns="{space}" version="4.4"><Header>{body}</Header></PMML>'.encode()


@pytest.mark.parametrize(
    ("raw", "rule"),
    [
        (pmml("", '<!DOCTYPE PMML [<!ENTITY x SYSTEM "file:///etc/passwd">]>'), "pmml/declaration"),
        (pmml("", '<!DOCTYPE PMML SYSTEM "http://evil/x.dtd">'), "pmml/declaration"),
        (pmml("<Extension name='s'>Runtime.exec('x')</Extension>"), "pmml/extension"),
        (pmml("<Extension name='s'><script>x</script></Extension>"), "pmml/extension"),
        (pmml("<Application name='x'><Extension name='s' value='x'/></Application>"), "pmml/extension"),
        (pmml("<Apply function='java.lang.Runtime.exec'/>"), "pmml/function"),
        (pmml("<TableLocator/>"), "pmml/foreign"),
        (pmml("<x:script xmlns:x='http://evil'>x</x:script>"), "pmml/foreign"),
        (pmml("", space="http://evil"), "pmml/foreign"),
        (pmml("<?php x ?>"), "pmml/foreign"),
        (pmml("<a>"), "pmml/syntax"),
        (pmml("<a>" * 300 + "</a>" * 300), "pmml/size"),
    ],
)
def test_pmml_refuses(raw: bytes, rule: str) -> None:
    assert PMML.sniff(raw, "model.pmml")
    assert rule in rules_of(PMML, raw)


def test_pmml_with_a_note_in_the_header_is_clean() -> None:
    body = "<Extension name='user' value='a' extender='Rattle'/><Apply function='log10'/>"
    assert rules_of(PMML, pmml(body)) == set()
