"""Shards as the libraries write them, to hold our grammar against. Run with python make.py in an environment with

numpy 2.4.6 and ml_dtypes 0.6.0 (files numpy2_*), then numpy 1.26.4 and ml_dtypes 0.3.2 (files numpy1_*).
"""

import pickle
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np


@dataclass
class QuantizedWeight8bit:
    weight: np.ndarray
    scales: np.ndarray


def main() -> None:
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, size=(2, 16, 24), dtype=np.int8)
    scales = rng.normal(size=(2, 4, 24)).astype(ml_dtypes.bfloat16)
    folder = Path(__file__).parent
    for name, value in (("pair", QuantizedWeight8bit(weight, scales)), ("array", np.arange(300, dtype="f4"))):
        path = folder / f"numpy{np.__version__.split('.')[0]}_{name}"
        with path.open("wb") as file:
            pickle.dump(value, file, protocol=4)


if __name__ == "__main__":
    main()
