"""Writes the honest ONNX files of this folder with the libraries that people export with.

Made on 2026-11-23 with onnx 1.16.2, skl2onnx 1.20.0, onnxruntime 1.32.0, scikit-learn (Python 3.11):
python make.py FOLDER
"""

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic
from skl2onnx import convert_sklearn, to_onnx
from skl2onnx.common.data_types import StringTensorType
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.svm import SVC

FOLDER = Path(sys.argv[1])
RNG = np.random.default_rng(0)


def value(name: str, kind: int, shape: list) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


def sklearn_models() -> None:
    inputs = RNG.random((60, 4), dtype=np.float32)
    labels = (inputs[:, 0] > 0.5).astype(int)
    models = {"linear": LinearRegression(), "logistic": LogisticRegression(), "svc": SVC(probability=True),
              "forest": RandomForestClassifier(3, max_depth=3)}  # fmt: skip
    for name, model in models.items():
        (FOLDER / f"{name}.onnx").write_bytes(
            to_onnx(model.fit(inputs, labels), inputs[:1]).SerializeToString()
        )
    words = TfidfVectorizer().fit(["a cat sat", "the dog ran far"])
    made = convert_sklearn(words, initial_types=[("text", StringTensorType([None]))])
    (FOLDER / "tfidf.onnx").write_bytes(made.SerializeToString())


def network() -> onnx.ModelProto:
    weights = [numpy_helper.from_array(RNG.random(shape, dtype=np.float32), name)
               for name, shape in (("w1", (16, 32)), ("w2", (32, 4)))]  # fmt: skip
    nodes = [helper.make_node("MatMul", ["x", "w1"], ["a"]), helper.make_node("Relu", ["a"], ["b"]),
             helper.make_node("MatMul", ["b", "w2"], ["y"])]  # fmt: skip
    graph = helper.make_graph(nodes, "g", [value("x", 1, ["n", 16])], [value("y", 1, ["n", 4])], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    return model


def functions() -> onnx.ModelProto:
    constant = helper.make_node("Constant", [], ["o"], value=helper.make_tensor("c", 1, [1], [1.0]))
    branch = helper.make_graph([constant], "branch", [], [value("o", 1, [1])])
    function = helper.make_function("my.domain", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])],
                                    [helper.make_opsetid("", 18)])  # fmt: skip
    nodes = [helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch),
             helper.make_node("Twice", ["z"], ["y"], domain="my.domain")]  # fmt: skip
    graph = helper.make_graph(nodes, "g", [value("c", 9, [])], [value("y", 1, [1])])
    sets = [helper.make_opsetid("", 18), helper.make_opsetid("my.domain", 1)]
    model = helper.make_model(graph, functions=[function], opset_imports=sets)
    helper.set_model_props(model, {"author": "nobody", "names": "{0: 'person'}", "stride": "32"})
    return model


def typed() -> None:
    kinds = {"STRING": ["a", "b", "c"], "INT4": [1, 2, -3], "BFLOAT16": [1, 2, 3], "COMPLEX64": [1j, 2, 3],
             "UINT64": [1, 2, 2**63], "INT8": [1, -2, 3]}  # fmt: skip
    for name, values in kinds.items():
        kind = getattr(TensorProto, name)
        graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [value("y", kind, [3])],
                                  [helper.make_tensor("w", kind, [3], values)])  # fmt: skip
        onnx.save(helper.make_model(graph), FOLDER / f"typed_{name.lower()}.onnx")


sklearn_models()
typed()
onnx.save(functions(), FOLDER / "functions.onnx")
onnx.save(network(), FOLDER / "plain.onnx")
quantize_dynamic(FOLDER / "plain.onnx", FOLDER / "quantised.onnx")
(FOLDER / "external").mkdir(exist_ok=True)
onnx.save_model(network(), FOLDER / "external" / "model.onnx", save_as_external_data=True,
                location="model.onnx.data", size_threshold=0)  # fmt: skip
