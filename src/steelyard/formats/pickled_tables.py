"""Tables of names that libraries of estimators and data frames write into pickles, loaded when first needed.

`data/pickles/<library>.json` holds exact (module, class) pairs of every version read, sorted by how an object of the
class is rebuilt; `recipes/pickle_names` reads them from the libraries themselves. The rule for each kind of class is
here or in `pickled_estimators` and `pickled_frames`. A name in no table is refused.
"""

import json
from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from typing import TypeAlias

from steelyard.formats.pickle_values import Spec
from steelyard.formats.pickled_estimators import ESTIMATORS, KINDS, NATIVE
from steelyard.formats.pickled_frames import FRAMES
from steelyard.formats.pickled_jax import JAX
from steelyard.formats.pickled_training import TRAINING

Table: TypeAlias = Mapping[tuple[str, str], Spec]

# The first part of a module's name -> the file of data/pickles that knows it.
FILES: Mapping[str, str] = {
    "sklearn": "scikit-learn",
    "_loss": "scikit-learn",  # the name Cython gave sklearn._loss._loss in some builds
    "scipy": "scipy",
    "xgboost": "xgboost",
    "lightgbm": "lightgbm",
    "optax": "optax",
}
_HAND_WRITTEN: Mapping[str, Spec] = {**ESTIMATORS, **FRAMES, **TRAINING, **JAX}


def table_of(module: str) -> Table:
    """The names of the library that `module` belongs to; empty for every other module."""
    root = module.partition(".")[0]
    return _load(FILES[root]) if root in FILES else _written()


@cache
def _written() -> Table:
    return {_key(full): spec for full, spec in _HAND_WRITTEN.items()}


@cache
def _load(library: str) -> Table:
    text = resources.files("steelyard").joinpath(f"data/pickles/{library}.json").read_text()
    found: dict[tuple[str, str], Spec] = {}
    for kind, modules in json.loads(text)["kinds"].items():
        for module, names in modules.items():
            for name in names:
                spec = _spec_of(kind, module, name)
                if spec is not None:
                    found[module, name] = spec
    return {**found, **_written()}


def _spec_of(kind: str, module: str, name: str) -> Spec | None:
    if kind in {"native", "unpickle"}:
        rule: Callable[[str, str], Spec | None] | None = NATIVE.get(module.partition(".")[0])
        return rule(module, name) if rule else None
    return KINDS[kind]


def _key(full: str) -> tuple[str, str]:
    module, _, name = full.rpartition(".")
    return module, name
