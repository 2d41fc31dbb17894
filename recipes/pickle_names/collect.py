"""Names that honest pickles of one installed library import, as JSON on stdout.

Run inside an environment that has the library: `python collect.py scikit-learn > sklearn-1.8.0.json`. Runs on
Python 3.8 and later, because old library versions need old interpreters. `merge.py` joins the results.

A class is listed by how its objects are rebuilt, read from the class itself:
  object   object.__reduce_ex__, object.__new__ and no __setstate__ but those judged below: NEWOBJ () and BUILD {...}
  mapping  the same for a subclass of dict without a __setitem__ of its own
  tuple    a namedtuple: NEWOBJ (field, ...)
  enum     REDUCE (value)
  native   anything else; only a shape rule written for that class admits it
  unpickle Cython's `__pyx_unpickle_<class>` and `newObj`
  function pure numeric functions that estimators keep as parameters; never called while loading
"""

from __future__ import annotations

import datetime as dt
import enum
import importlib
import json
import pkgutil
import platform
import sys
import types
import warnings
from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

SKIPPED = {
    "tests",
    "conftest",
    "_build_utils",
    "externals",
    "datasets",
    "testing",
    "_mocking",
    "estimator_checks",
}
# Python code that runs on BUILD. Read in every version listed: it sets attributes and rebuilds arrays, no more.
JUDGED_SETSTATE = {
    "sklearn.base.BaseEstimator",
    "sklearn.isotonic.IsotonicRegression",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
    "sklearn.linear_model._stochastic_gradient.BaseSGD",
    "sklearn.utils.Bunch",
    "scipy.sparse._coo._coo_base",
    "scipy.sparse._coo.coo_matrix",
    "scipy.interpolate._rbfinterp.RBFInterpolator",
    "sklearn.utils._bunch.Bunch",
}
# Of these libraries only the kinds named: the rest of their classes carry functions.
ONLY = {"optax": {"tuple"}}
JUDGED_NEW = {"builtins.object", "builtins.dict", "typing.Generic", "sklearn.base.BaseEstimator"}
PURE_MODULES = {
    "sklearn": (
        "sklearn.metrics",
        "sklearn.feature_selection",
        "sklearn.preprocessing",
        "sklearn.utils.extmath",
    ),
}
PURE_NAMES = ("_kmeans_single", "_refit_callable")
FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType)
BUILTINS = (list, tuple, int, float, str)
ROOTS = {
    "scikit-learn": ["sklearn"],
    "scipy": ["scipy.sparse", "scipy.interpolate"],
    "xgboost": ["xgboost.sklearn", "xgboost.core", "xgboost.compat"],
    "optax": ["optax", "optax._src"],
    "lightgbm": ["lightgbm.sklearn", "lightgbm.basic", "lightgbm.compat"],
}


def modules(name: str) -> Iterator[types.ModuleType]:
    """The module and those below it that can be imported here."""
    try:
        module = importlib.import_module(name)  # noqa: TID251 - reads whatever library is installed beside it
    except (ImportError, OSError, AttributeError) as missing:
        print(f"{name}: {missing}", file=sys.stderr)
        return
    yield module
    for found in pkgutil.iter_modules(getattr(module, "__path__", [])):
        if found.name not in SKIPPED and not found.name.startswith("test_"):
            yield from modules(f"{name}.{found.name}")


def origin(kind: type, attribute: str) -> str:
    """`module.class` of the base that defines `attribute`, empty when none does."""
    for base in kind.__mro__:
        if attribute in vars(base):
            return f"{base.__module__}.{base.__qualname__}"
    return ""


def is_deprecated(kind: type) -> bool:
    """The wrapper of sklearn's `deprecated` only warns."""
    return "deprecated" in getattr(kind.__new__, "__qualname__", "") or "warnings" in getattr(
        getattr(kind.__new__, "__code__", None), "co_names", ()
    )


def kind_of(kind: type) -> str | None:
    if issubclass(kind, BaseException):
        return None
    if issubclass(kind, enum.Enum):
        return "enum"
    if issubclass(kind, tuple) and hasattr(kind, "_fields"):
        return "tuple"
    plain = origin(kind, "__reduce__") == origin(kind, "__reduce_ex__") == "builtins.object"
    made = origin(kind, "__new__") in JUDGED_NEW or is_deprecated(kind)
    if not plain or not made:
        return "native"
    setstate = origin(kind, "__setstate__")
    if setstate and setstate not in JUDGED_SETSTATE:
        print(f"not judged: {setstate}.__setstate__", file=sys.stderr)
        return "native"
    if issubclass(kind, dict):
        return "mapping" if origin(kind, "__setitem__") == "builtins.dict" else "native"
    return "native" if issubclass(kind, BUILTINS) else "object"


def kept_as(module: types.ModuleType, name: str, value: object) -> tuple[str, str] | None:
    """(kind, module it is named under) of one name of a module, None for what no pickle needs."""
    top = module.__name__.partition(".")[0]
    if isinstance(value, type):
        own = value.__module__ in {module.__name__, module.__name__.rpartition(".")[2]}
        kind = kind_of(value) if own and value.__qualname__ == name else None
        return (kind, value.__module__) if kind else None
    if name == "newObj" or (name.startswith("__pyx_unpickle_") and not name.endswith("_Enum")):
        return "unpickle", getattr(value, "__module__", None) or module.__name__
    pure = module.__name__.startswith(PURE_MODULES.get(top, ("?",))) or name.startswith(PURE_NAMES)
    function = isinstance(value, FUNCTIONS) and (value.__module__, value.__name__) == (module.__name__, name)
    return ("function", module.__name__) if pure and function else None


def collect(library: str) -> dict[str, object]:
    kinds: dict[str, dict[str, set[str]]] = {}
    tops = {ROOTS[library][0].partition(".")[0], "_loss"}
    for root in ROOTS[library]:
        for module in list(modules(root)):
            for name, value in list(vars(module).items()):
                found = kept_as(module, name, value)
                if found and found[1].partition(".")[0] in tops and found[0] in ONLY.get(library, {found[0]}):
                    kinds.setdefault(found[0], {}).setdefault(found[1], set()).add(name)
    return {
        "library": library,
        "version": metadata.version(library),
        "python": platform.python_version(),
        "made": dt.datetime.now(dt.timezone.utc).date().isoformat(),  # noqa: UP017 - Python 3.8
        "kinds": {
            kind: {module: sorted(names) for module, names in sorted(found.items())}
            for kind, found in sorted(kinds.items())
        },
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    json.dump(collect(sys.argv[1]), sys.stdout, indent=1)
