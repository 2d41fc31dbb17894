"""Writes the honest TensorFlow files of this folder and of tests/data/tflite.

Made on 2026-11-23 with tensorflow-cpu 2.21.0 (Python 3.11), in an empty folder: python make.py
"""

import zipfile
from pathlib import Path

import numpy as np
import tensorflow as tf

RNG = np.random.default_rng(0)
Path("tf").mkdir()
Path("tflite").mkdir()


class Dense(tf.Module):
    def __init__(self) -> None:
        self.weights = tf.Variable(RNG.random((4, 3), dtype=np.float32))

    @tf.function(input_signature=[tf.TensorSpec([None, 4])])
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return tf.nn.relu(tf.matmul(x, self.weights))


class Vocabulary(tf.Module):
    def __init__(self) -> None:
        Path("vocab.txt").write_text("a\nb\nc\n")
        index = tf.lookup.TextFileIndex
        words = tf.lookup.TextFileInitializer(
            "vocab.txt", tf.string, index.WHOLE_LINE, tf.int64, index.LINE_NUMBER
        )
        self.table = tf.lookup.StaticHashTable(words, -1)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        return self.table.lookup(x)


def version_one() -> None:
    """Variables, saver and frozen graph as TensorFlow 1 writes them."""
    v1 = tf.compat.v1
    with tf.Graph().as_default() as graph, v1.Session() as session:
        x = v1.placeholder(tf.float32, [None, 4], "x")
        y = tf.matmul(x, v1.get_variable("w", [4, 2], use_resource=False), name="y")
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(session, "tf/version_one", {"x": x}, {"y": y})
        v1.train.Saver().save(session, "tf/checkpoint/model.ckpt")
        frozen = v1.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), ["y"])
    Path("tf/frozen.pb").write_bytes(frozen.SerializeToString())


WEIGHTS = RNG.random((3, 3, 3, 4), dtype=np.float32)


@tf.function(input_signature=[tf.TensorSpec([1, 8, 8, 3])])
def convolution(x: tf.Tensor) -> tf.Tensor:
    return tf.nn.softmax(tf.nn.relu(tf.nn.conv2d(x, WEIGHTS, 1, "VALID")))


@tf.function(input_signature=[tf.TensorSpec([4])])
def branch(x: tf.Tensor) -> tf.Tensor:
    return tf.cond(tf.reduce_sum(x) > 0, lambda: x + 1.0, lambda: x - 1.0)


@tf.function(input_signature=[tf.TensorSpec([], tf.string)])
def outside(x: tf.Tensor) -> tf.Tensor:
    return tf.io.decode_jpeg(x)


def lite(name: str, function: tf.types.experimental.PolymorphicFunction, **settings: object) -> None:
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [function.get_concrete_function()], tf.Module()
    )
    for key, value in settings.items():
        setattr(converter, key, value)
    if function is outside:
        converter.target_spec.supported_ops = [tf.lite.OpsSet.SELECT_TF_OPS]
    Path("tflite", f"{name}.tflite").write_bytes(converter.convert())


tf.saved_model.save(Dense(), "tf/dense")
tf.saved_model.save(Vocabulary(), "tf/vocabulary")
version_one()
tf.train.Checkpoint(dense=Dense()).save("tf/checkpoint_two/ckpt")
lite("convolution", convolution)
lite("branch", branch)
lite("quantised", convolution, optimizations=[tf.lite.Optimize.DEFAULT],
     representative_dataset=lambda: ([RNG.random((1, 8, 8, 3), dtype=np.float32)] for _ in range(4)))  # fmt: skip
lite("buffers_behind", convolution, _experimental_use_buffer_offset=True)
lite("flex", outside)
labelled = Path("tflite/labelled.tflite")
labelled.write_bytes(Path("tflite/convolution.tflite").read_bytes())
with zipfile.ZipFile(labelled, "a") as archive:  # as the metadata library does
    archive.writestr("labels.txt", "cat\ndog\n")
