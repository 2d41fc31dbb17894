"""What honest files of numbers, tables and estimators import is listed, version by version; nothing else is."""

import argparse
import datetime as dt
import fractions
import ipaddress
import json
import pathlib
import pickle
import re
import types
import uuid
import zoneinfo
from array import array
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.formats.base import BytesSource
from steelyard.formats.pickled import FORMAT
from steelyard.formats.pickled_estimators import KINDS
from steelyard.formats.pickled_globals import ALLOWED, listed
from steelyard.formats.pickled_numpy import ML_DTYPES, REDUCTIONS, SCALAR_TYPES, UFUNCS
from steelyard.formats.pickled_tables import FILES
from steelyard.formats.zip_archive import FORMAT as ZIP

FIXTURES = Path(__file__).parents[1] / "data/pickles"
TABLES = sorted(set(FILES.values()))


def rules_of(data: bytes, name: str = "x.pkl") -> list[str]:
    return [f"{found.rule}: {found.message}" for found in FORMAT.read(BytesSource(data), name).findings]


READ_HERE = sorted(set(FIXTURES.glob("*-*.*")) - set(FIXTURES.glob("*.lz4.joblib")))


@pytest.mark.parametrize("path", READ_HERE, ids=lambda path: path.name)
def test_files_of_many_library_versions_are_clean(path):
    read = ZIP.read if path.suffix == ".bin" else FORMAT.read
    report = read(BytesSource(path.read_bytes()), path.name)
    assert report.findings == ()
    assert report.facts["globals"]


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("*-*.p[0-9].pkl")), ids=lambda path: path.name)
def test_every_cut_of_an_estimator_is_refused(path):
    data = path.read_bytes()
    for cut in range(1, len(data), max(1, len(data) // 40)):
        assert rules_of(data[:cut])


STRUCTURED = np.zeros(3, dtype=[("a", "<f4"), ("b", "i8", (2,)), ("c", [("d", "u1"), ("e", "S3")])])
NUMPY_VALUES = {
    "structured": STRUCTURED,
    "aligned": np.zeros(2, dtype=np.dtype([("a", "u1"), ("b", "f8")], align=True)),
    "record": np.rec.array([(1, 2.0)], dtype=[("x", "i4"), ("y", "f8")]),
    "void": np.zeros(2, "V7"),
    "sub-array": np.zeros(2, dtype=("f4", (2, 2))),
    "structured scalar": STRUCTURED[0],
    "masked": np.ma.array([1, 2, 3], mask=[True, False, False]),
    "matrix": np.matrix([[1, 2], [3, 4]]),
    "datetimes": np.array(["2020-01-01"], dtype="M8[us]"),
    "objects": np.array([1, "x", None, [1, 2]], dtype=object),
    "random state": np.random.RandomState(3),
    "generator": np.random.default_rng(3),
    "Philox": np.random.Generator(np.random.Philox(1)),
    "seed": np.random.SeedSequence(5),
    "ufunc": {"func": np.log1p, "inverse": np.expm1},
    "functions": [np.mean, np.median, np.nanmax],
    "types": [np.float64, np.int8, np.str_, float, int, object, np.ndarray],
    "dtypes": [np.dtype("f4"), np.dtype(">i2"), np.dtype("U5"), STRUCTURED.dtype],
    "Fortran order": np.asfortranarray(np.ones((2, 3))),
    "empty": np.zeros((0, 3)),
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", NUMPY_VALUES)
def test_numpy_objects_of_every_protocol_are_clean(name, protocol):
    assert rules_of(pickle.dumps(NUMPY_VALUES[name], protocol)) == []


PLAIN_VALUES = {
    "uuid": uuid.UUID(int=7),
    "big uuid": uuid.UUID(int=2**128 - 1),
    "paths": [pathlib.Path("a/b"), pathlib.PurePosixPath("/x"), pathlib.PureWindowsPath("c:/x")],
    "fraction": fractions.Fraction(-3, 7),
    "addresses": [ipaddress.ip_address("10.0.0.1"), ipaddress.ip_address("::1")],
    "namespace": types.SimpleNamespace(lr=0.1, layers=[1, 2]),
    "arguments": argparse.Namespace(lr=0.1, name="x"),
    "pattern": re.compile(r"(?u)\b\w\w+\b", re.IGNORECASE),
    "array": array("d", [1.0, 2.0]),
    "zone": dt.datetime(2020, 1, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
    "types": [int, float, str, list, dict, tuple, bool, bytes, set, object, complex, type(None)],
    "ellipsis": ...,
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", PLAIN_VALUES)
def test_plain_objects_of_every_protocol_are_clean(name, protocol):
    assert rules_of(pickle.dumps(PLAIN_VALUES[name], protocol)) == []


@given(st.lists(st.sampled_from(sorted(ALLOWED)), min_size=1, max_size=1), st.text("abcz_.", max_size=3))
def test_a_listed_name_with_anything_added_is_not_listed(pair, more):
    module, name = pair[0]
    assert listed(module, name) is not None
    if more and (module, name + more) not in ALLOWED:
        assert listed(module, name + more) is None


@pytest.mark.parametrize("library", TABLES)
def test_a_table_names_its_versions_and_only_its_own_modules(library):
    table = json.loads(resources.files("steelyard").joinpath(f"data/pickles/{library}.json").read_text())
    assert table["library"] == library
    assert table["versions"]
    roots = {root for root, file in FILES.items() if file == library}
    for kind, modules in table["kinds"].items():
        assert kind in {*KINDS, "native", "unpickle"}
        for module, names in modules.items():
            if kind != "unpickle":
                assert module.partition(".")[0] in roots
            assert all(name.isidentifier() for name in names)


def test_the_functions_listed_are_functions_of_numpy():
    for name in UFUNCS:
        assert isinstance(getattr(np, name, np.sin), np.ufunc)
    for name in REDUCTIONS:
        assert callable(getattr(np, name, np.sum))
    for name in SCALAR_TYPES:
        assert isinstance(getattr(np, name, np.float64), type)


def test_item_sizes_of_ml_dtypes_agree_with_the_library():
    library = pytest.importorskip("ml_dtypes")
    for name, size in ML_DTYPES.items():
        if hasattr(library, name):
            assert np.dtype(getattr(library, name)).itemsize == size


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"), ("builtins", "exec"), ("builtins", "open"), ("builtins", "__import__"), ("os", "system"),
        ("functools", "reduce"), ("operator", "attrgetter"), ("numpy", "load"), ("numpy", "fromfile"),
        ("numpy", "frompyfunc"), ("numpy", "vectorize"), ("joblib", "load"), ("joblib.memory", "Memory"),
        ("joblib.numpy_pickle", "NDArrayWrapper"), ("sklearn.datasets._base", "load_files"), ("pandas", "read_pickle"),
        ("pandas", "eval"), ("pandas.io.pickle", "read_pickle"), ("sklearn.utils._joblib", "load"), ("sklearn", "os"),
        ("sklearn.externals.joblib", "load"), ("scipy.io", "loadmat"), ("xgboost.core", "ctypes"),
        ("xgboost.core", "_load_lib"), ("lightgbm.basic", "_load_lib"), ("types", "FunctionType"),
        ("builtins", "print"),
    ],
)  # fmt: skip
def test_names_with_power_are_in_no_table(module, name):
    assert listed(module, name) is None
