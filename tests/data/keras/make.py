"""Write the Keras fixtures. Two environments, because Keras 2 and 3 cannot share one:

pip install keras==3.15.1 h5py==3.16.0 jax && KERAS_BACKEND=numpy python make.py
pip install tensorflow-cpu==2.15.1 && python make.py
"""

import sys
from pathlib import Path


def keras_3() -> None:
    import keras
    from keras import layers

    model = keras.Sequential(
        [
            layers.Input((4,)),
            layers.Dense(4, activation=keras.activations.swish),
            layers.Dense(1, activation="sigmoid"),
        ]
    )
    loss = keras.losses.BinaryCrossentropy(from_logits=True)
    model.compile(loss=loss, optimizer="rmsprop", metrics=["mae", keras.metrics.BinaryAccuracy(name="a")])
    model.save("dense_3_15.keras")
    inner = keras.Sequential(
        [layers.Input((5,)), layers.Dense(4), layers.LayerNormalization(), layers.LeakyReLU()]
    )
    nested = keras.Sequential([layers.Input((5,)), inner, layers.Dense(1)])
    nested.compile("adam", keras.losses.Huber(), metrics=[keras.metrics.MeanSquaredError()])
    nested.save("nested_3_15.h5")
    pixels = layers.Input((8, 8, 3))
    hidden = layers.Conv2D(4, 3, padding="same", activation="relu", kernel_regularizer="l2")(pixels)
    hidden = keras.ops.relu(layers.GlobalAveragePooling2D()(layers.BatchNormalization()(hidden)) * 2 + 1)
    functional = keras.Model(pixels, layers.Dense(3, activation="softmax")(hidden))
    Path("functional_3_15.json").write_text(functional.to_json())


def keras_2() -> None:
    import tensorflow as tf
    from tensorflow import keras

    layers = keras.layers
    pixels = layers.Input((8, 8, 3))
    hidden = layers.BatchNormalization()(
        layers.Conv2D(4, 3, activation="relu", kernel_regularizer="l2")(pixels)
    )
    hidden = layers.Flatten()(tf.nn.relu(hidden) * 2.0 + 1.0)
    functional = keras.Model(pixels, layers.Dense(2, activation="softmax")(hidden))
    Path("functional_2_15.json").write_text(functional.to_json())
    model = keras.Sequential(
        [layers.Input((5,)), keras.Sequential([layers.Dense(3)]), layers.Dense(1, activation=tf.nn.silu)]
    )
    model.compile("sgd", keras.losses.Huber())
    model.fit(tf.zeros((4, 5)), tf.zeros((4, 1)), verbose=0)
    model.save("sequential_2_15.h5")
    words = layers.TextVectorization()
    words.adapt(["a b", "c http://x /y"])
    text = layers.Input((1,), dtype="string")
    keras.Model(text, words(text)).save("textvec_2_15.keras")


if __name__ == "__main__":
    keras_2() if "tensorflow" in sys.modules or Path(sys.prefix, "bin", "toco").exists() else keras_3()
