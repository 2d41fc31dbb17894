"""The files of this folder: `python make.py OUT` in an environment with one of the libraries.

sklearn 0.24.2 (Python 3.8, joblib 1.4.2), 1.2.2, 1.7.0 (Python 3.13), 1.8.0; pandas 1.1.5, 2.2.3, 3.1.1; xgboost
1.3.3, 3.2.0; lightgbm 4.7.0; jax 0.10.2 with flax 0.12.8 and optax 0.2.8; transformers 5.23 with torch 2.13.
File names are library-version-object.protocol.pkl.
"""

import pickle
import sys
from pathlib import Path

import numpy as np


def sklearn_files():
    import sklearn
    from sklearn.cluster import Birch
    from sklearn.linear_model import LogisticRegression, PoissonRegressor, SGDClassifier
    from sklearn.model_selection import GridSearchCV
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import FunctionTransformer, KBinsDiscretizer, KernelCenterer, SplineTransformer
    from sklearn.tree import DecisionTreeClassifier

    rng = np.random.RandomState(0)
    x = rng.rand(40, 4)
    y = (x[:, 0] > 0.5).astype(int)
    for made in (
        PoissonRegressor().fit(x, x[:, 0]),
        KNeighborsClassifier().fit(x, y),
        DecisionTreeClassifier().fit(x, y),
        KBinsDiscretizer().fit(x),
        SplineTransformer().fit(x),
        KernelCenterer().fit(x @ x.T),
        SGDClassifier().fit(x, y),
        Birch().fit(x),
        GridSearchCV(LogisticRegression(), {"C": [0.1, 1]}).fit(x, y),
        FunctionTransformer(np.log1p, inverse_func=np.expm1).fit(x),
    ):
        yield "sklearn", sklearn.__version__, type(made).__name__, made


def pandas_files():
    import pandas as pd

    text = pd.to_datetime(["2020-01-01", "2021-01-01"])
    frame = pd.DataFrame({"a": [1, 2], "b": [0.5, 1], "c": ["x", "y"], "d": text, "e": [True, False]})
    yield "pandas", pd.__version__, "df", frame
    yield "pandas", pd.__version__, "tz", pd.date_range("2020-01-01", periods=5, freq="D", tz="Europe/Berlin")
    yield "pandas", pd.__version__, "int64", pd.Series([1, None], dtype="Int64")
    yield "pandas", pd.__version__, "cut", pd.cut(np.arange(9), 3)


def xgboost_files():
    import xgboost

    x = np.random.RandomState(0).rand(60, 4)
    yield "xgboost", xgboost.__version__, "reg", xgboost.XGBRegressor(n_estimators=3).fit(x, x[:, 0])


def lightgbm_files():
    import lightgbm

    x = np.random.RandomState(0).rand(60, 4)
    made = lightgbm.LGBMRegressor(n_estimators=3, min_child_samples=2).fit(x, x[:, 0])
    yield "lightgbm", lightgbm.__version__, "reg", made


def jax_files():
    import flax
    import jax
    import jax.numpy as jnp
    import optax

    weights = {"w": jnp.ones((3, 4)), "b": jnp.zeros(4, jnp.bfloat16)}
    yield "jax", jax.__version__, "params", weights
    yield "flax", flax.__version__, "frozen", flax.core.freeze(weights)
    yield "optax", optax.__version__, "adam", optax.adam(1e-3).init(weights)


def transformers_file(out: Path):
    import torch
    from transformers import TrainingArguments

    torch.save(TrainingArguments(output_dir="out", report_to=[], use_cpu=True), out / "training_args.bin")


def main(out: Path) -> None:
    for files in (sklearn_files, pandas_files, xgboost_files, lightgbm_files, jax_files):
        try:
            for library, version, name, made in files():
                for protocol in (0, 2, 4):
                    (out / f"{library}-{version}-{name}.p{protocol}.pkl").write_bytes(
                        pickle.dumps(made, protocol)
                    )
                if library == "sklearn":
                    import joblib

                    joblib.dump(made, out / f"{library}-{version}-{name}.joblib")
                    joblib.dump(made, out / f"{library}-{version}-{name}.lz4.joblib", compress="lz4")
        except ImportError as missing:
            print(missing)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
