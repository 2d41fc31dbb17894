"""Formats that are recognised and not read are refused by a rule of their own."""

import pytest

from steelyard.formats.base import BytesSource
from steelyard.formats.known_unread import FORMAT

CORE_ML = b"\x08\x05\x12\x03\x0a\x01x\xda\x22\x03\x52\x01y"


@pytest.mark.parametrize(("path", "head", "rule"), [
    ("model.t7", b"\x04\0\0\0\x01\0\0\0\x03\0\0\0V 1\x09\0\0\0", "torch7"),
    ("renamed.bin", b"\x04\0\0\0\x01\0\0\0\x03\0\0\0V 1\x09\0\0\0", "torch7"),
    ("model-0000.params", b"\x12\x01" + bytes(14) + b"\x02", "mxnet"),
    ("model-symbol.json", b'{"nodes": [{"op": "null", "name": "data"}, {"op": "Custom"}]}', "mxnet"),
    ("model.mlmodel", CORE_ML, "coreml"),
    ("renamed.bin", CORE_ML, "coreml"),
    ("model.mlmodel", b"\x08\x05\x12\x00", "coreml"),
    ("inference.pdmodel", b"\x0a\x05abcde", "paddle"),
    ("model.cbm", b"CBM1" + bytes(20), "catboost"),
    ("model.ort", b"\x10\0\0\0ORTM" + bytes(20), "ort"),
    ("model.pte", b"\x10\0\0\0ET12" + bytes(20), "executorch"),
    ("model.engine", b"ftrt" + bytes(20), "tensorrt"),
    ("model.plan", bytes(20), "tensorrt"),
    ("model.rknn", b"RKNN" + bytes(20), "rknn"),
    ("ggml-model.bin", b"tjgg" + bytes(20), "ggml"),
    ("model.param", b"7767517\n75 83\n", "ncnn"),
    ("yolo.cfg", b"[net]\nbatch=1\n", "darknet"),
    ("yolo.weights", b"\0\0\0\0\x02\0\0\0" + bytes(20), "darknet"),
    ("model.dnn", b"B\0C\0N\0T\0K\0" + bytes(20), "cntk"),
    ("net.caffemodel", b"\x0a\x05abcde", "caffe"),
    ("graph.pbtxt", b"node {\n}\n", "pbtxt"),
])  # fmt: skip
def test_known_format_is_refused_by_its_rule(path, head, rule):
    assert FORMAT.sniff(head, path)
    (finding,) = FORMAT.read(BytesSource(head), path).findings
    assert finding.rule == f"unread/{rule}"
    assert FORMAT.rules[finding.rule].mend


@pytest.mark.parametrize(("path", "head"), [
    ("model.t7", b"\x80\x04\x95"), ("model.engine", b"PK\x03\x04"), ("model.onnx", b"\x08\x08\x12\x03abc"),
    ("graph.json", b'{"nodes": [{"id": 1}], "edges": []}'),
    ("README.md", b"# Model"), ("model.safetensors", b"\x10\0\0\0\0\0\0\0{"), ("weights.bin", bytes(64)),
])  # fmt: skip
def test_other_files_are_left_to_their_formats(path, head):
    assert not FORMAT.sniff(head, path)
