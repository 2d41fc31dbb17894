"""Hostile estimators, arrays and joblib files: each names its rule, and none may run: a marker file proves it.

The names are listed ones, used outside their shape; the streams are written opcode by opcode.
"""

import os
import pickle
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest

from steelyard.formats.base import BytesSource
from steelyard.formats.npy import FORMAT as NPY
from steelyard.formats.pickled import FORMAT

MARKER = Path(tempfile.gettempdir()) / f"steelyard-estimator-attack-{os.getpid()}"
TOUCH = f"touch {MARKER}"


@pytest.fixture(autouse=True)
def nothing_runs():
    MARKER.unlink(missing_ok=True)
    yield
    assert not MARKER.exists()


def short(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


def named(full: str) -> bytes:
    module, _, name = full.rpartition(".")
    return short(module) + short(name) + b"\x93"


def call(full: str, *arguments: bytes) -> bytes:
    return named(full) + b"(" + b"".join(arguments) + b"tR"


def new(full: str, *arguments: bytes) -> bytes:
    return named(full) + b"(" + b"".join(arguments) + b"t\x81"


def entries(**values: bytes) -> bytes:
    return b"}(" + b"".join(short(name) + value for name, value in values.items()) + b"u"


def v4(*parts: bytes) -> bytes:
    return b"\x80\x04" + b"".join(parts) + b"."


SYSTEM = named("posix.system")
PIPELINE = "sklearn.pipeline.Pipeline"
TRANSFORMER = "sklearn.preprocessing._function_transformer.FunctionTransformer"
GRID = "sklearn.model_selection._search.GridSearchCV"
TREE = "sklearn.tree._tree.Tree"
RECONSTRUCT = "numpy._core.multiarray._reconstruct"
ARRAY = call(RECONSTRUCT, named("numpy.ndarray"), b"K\0\x85", b"C\x01b")
F8 = call("numpy.dtype", short("f8"), b"\x89", b"\x88")


def dtype(code: str, *state: bytes) -> bytes:
    return call("numpy.dtype", short(code), b"\x89", b"\x88") + b"(" + b"".join(state) + b"tb"


def array(shape: bytes, kind: bytes, data: bytes) -> bytes:
    return ARRAY + b"(K\x01" + shape + kind + b"\x89" + data + b"tb"


def raw(data: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(data)) + data


FIELDS = b"}(" + short("a") + call("numpy.dtype", short("O8"), b"\x89", b"\x88") + b"K\0\x86u"
NARROW = b"}(" + short("a") + F8 + b"K\x05\x86u"

# name -> (rule that must be among the findings, stream)
ATTACKS: dict[str, tuple[str, bytes]] = {
    "FunctionTransformer(func=os.system)": (
        "pickle/global", v4(new(TRANSFORMER), entries(func=SYSTEM), b"b")),
    "FunctionTransformer of a function of __main__": (
        "pickle/global", v4(new(TRANSFORMER), entries(func=named("__main__.f")), b"b")),
    "a rebuild function as an attribute": (
        "pickle/global-value", v4(new(TRANSFORMER), entries(func=named(RECONSTRUCT)), b"b")),
    "a rebuild function inside a tuple inside an attribute": (
        "pickle/global-value", v4(new(TRANSFORMER), entries(kw_args=named(RECONSTRUCT) + b"\x85"), b"b")),
    "an estimator called with arguments": ("pickle/call", v4(call(PIPELINE, b"]", b"N"))),
    "an estimator made with arguments": ("pickle/arguments", v4(new(PIPELINE, b"]"))),
    "an attribute named like a method of objects": (
        "pickle/build", v4(new(PIPELINE), b"}(", short("__class__"), b"Nub")),
    "attributes by setattr": ("pickle/build", v4(new(PIPELINE), b"N", entries(steps=b"]"), b"\x86b")),
    "pre_dispatch, which old joblib evaluates": (
        "pickle/build", v4(new(GRID), entries(pre_dispatch=short("__import__('os').system('x')")), b"b")),
    "memory, a folder of pickles": ("pickle/build", v4(new(PIPELINE), entries(memory=short("/tmp/x")), b"b")),
    "a memory object": (
        "pickle/global", v4(new(PIPELINE), entries(memory=new("joblib.memory.Memory")), b"b")),
    "an estimator no version of the library has": ("pickle/global", v4(new("sklearn.pipeline.Popen"))),
    "an estimator in a module of another": ("pickle/global", v4(new("sklearn.linear_model._ridge.Pipeline"))),
    "a loader of data sets": ("pickle/global", v4(call("sklearn.datasets._base.load_files", short("/")))),
    "items into an estimator": ("pickle/target", v4(new(PIPELINE), short("a"), b"Ns")),
    "a pure function called while loading": ("pickle/call", v4(call("numpy.mean", b"]"))),
    "_reconstructor of a class outside the list": (
        "pickle/arguments",
        v4(call("copyreg._reconstructor", named("subprocess.Popen"), named("builtins.object"), b"N"))),
    "_reconstructor with a base of its own": (
        "pickle/arguments", v4(call("copyreg._reconstructor", named(PIPELINE), named("builtins.int"), b"K\x01"))),
    "_reconstructor with its base as text": (
        "pickle/arguments",
        v4(call("copyreg._reconstructor", named(PIPELINE), short("builtins.object"), b"N"))),
    "_reconstructor with a state": (
        "pickle/arguments", v4(call("copyreg._reconstructor", named(PIPELINE), named("builtins.object"), b"]"))),
    "__newobj__ of a class outside the list": (
        "pickle/arguments", v4(call("copyreg.__newobj__", named("subprocess.Popen"), short(TOUCH)))),
    "getattr of a listed class": (
        "pickle/arguments", v4(call("builtins.getattr", named(PIPELINE), short("__init__")))),
    "getattr of a module": ("pickle/arguments", v4(call("builtins.getattr", named("os.path"), short("os")))),
    "newObj of a class of another module": (
        "pickle/arguments", v4(call("sklearn.neighbors._kd_tree.newObj", named(TREE)))),
    "newObj of a class outside the list": (
        "pickle/arguments", v4(call("sklearn.neighbors._kd_tree.newObj", named("subprocess.Popen")))),
    "KDTree without newObj": ("pickle/call", v4(call("sklearn.neighbors._kd_tree.KDTree", b"]"))),
    "KDTree with a list as its data": (
        "pickle/build",
        v4(call("sklearn.neighbors._kd_tree.newObj", named("sklearn.neighbors._kd_tree.KDTree")), b"]\x85b")),
    "Cython unpickle of another class": (
        "pickle/arguments",
        v4(call("sklearn._loss._loss.__pyx_unpickle_CyHalfPoissonLoss", named(PIPELINE), b"K\x01", b"N"))),
    "a loss with an array as its parameter": (
        "pickle/arguments", v4(call("_loss.CyHalfTweedieLoss", array(b"K\x01\x85", F8, raw(bytes(8)))))),
    "Tree with text as its features": (
        "pickle/arguments", v4(call(TREE, short("4"), array(b"K\x01\x85", F8, raw(bytes(8))), b"K\x01"))),
    "Tree with an attribute more": (
        "pickle/build",
        v4(call(TREE, b"K\x04", array(b"K\x01\x85", F8, raw(bytes(8))), b"K\x01"), entries(nodes=b"N", x=b"N"), b"b")),
    "a spline over a list": (
        "pickle/build", v4(new("scipy.interpolate._bsplines.BSpline"), b"]N\x86b")),
    "Booster with a list as its model": ("pickle/build", v4(new("xgboost.core.Booster"), entries(handle=b"]"), b"b")),
    "Booster with bytes in place of text": (
        "pickle/build", v4(new("lightgbm.basic.Booster"), entries(handle=raw(bytes(99))), b"b")),
    "an array longer than its bytes": ("pickle/build", v4(array(b"K\x05\x85", F8, raw(bytes(8))))),
    "bytes behind an object array": (
        "pickle/build",
        v4(array(b"K\x01\x85", call("numpy.dtype", short("O8"), b"\x89", b"\x88"), raw(bytes(8))))),
    "an object field in a structure": (
        "pickle/build",
        v4(dtype("V8", b"K\x03", short("|"), b"N", short("a") + b"\x85", FIELDS, b"K\x08K\x01K\x10"))),
    "a field past the end of its structure": (
        "pickle/build",
        v4(dtype("V8", b"K\x03", short("|"), b"N", short("a") + b"\x85", NARROW, b"K\x08K\x01K\x10"))),
    "raw bytes flagged as references": (
        "pickle/build", v4(dtype("V8", b"K\x03", short("|"), b"NNN", b"K\x08K\x01K\x3f"))),
    "a state for a dtype that was refused": (
        "pickle/arguments", v4(dtype("zz", b"K\x03", short("<"), b"NNN", b"K\x08K\x01K\0"))),
    "a dtype shared by all": ("pickle/arguments", v4(call("numpy.dtype", short("f8"), b"\x89", b"\x89"))),
    "_reconstruct of another class": (
        "pickle/arguments", v4(call(RECONSTRUCT, named("subprocess.Popen"), b"K\0\x85", b"C\x01b"))),
    "a mask of another length": (
        "pickle/build",
        v4(call("numpy.ma.core._mareconstruct", named("numpy.ma.MaskedArray"), named("numpy.ndarray"), b"K\0\x85",
                b"C\x01b"), b"(K\x01K\x01\x85", F8, b"\x89", raw(bytes(8)), raw(bytes(9)), b"Ntb")),
    "a ufunc of another module": (
        "pickle/arguments", v4(call("numpy.core._ufunc_reconstruct", short("os"), short("system")))),
    "a bit generator by another name": (
        "pickle/arguments", v4(call("numpy.random._pickle.__bit_generator_ctor", short("system")))),
    "a random state over a function": (
        "pickle/arguments", v4(call("numpy.random._pickle.__randomstate_ctor", SYSTEM))),
    "a seed of another class": (
        "pickle/arguments",
        v4(call("numpy.random.bit_generator.__pyx_unpickle_SeedSequence", named(PIPELINE), b"K\x01", b"N"))),
    "a JAX array rebuilt by another function": (
        "pickle/arguments",
        v4(call("jax._src.array._reconstruct_array", SYSTEM, short(TOUCH) + b"\x85", b")", b"}"))),
    "FrozenDict of a list": ("pickle/arguments", v4(call("flax.core.frozen_dict.FrozenDict", b"]"))),
    "an optimiser state with a function": (
        "pickle/arguments", v4(new("optax._src.transform.ScaleByAdamState", SYSTEM))),
    "an index of another class": (
        "pickle/arguments", v4(call("pandas.core.indexes.base._new_Index", named("subprocess.Popen"), b"}"))),
    "an index of a promised range": (
        "pickle/arguments",
        v4(call("pandas.core.indexes.base._new_Index", named("pandas.Index"),
                entries(data=call("builtins.range", b"K\0", b"J\xff\xff\xff\x7f", b"K\x01"))))),
    "an array class of another library": (
        "pickle/arguments",
        v4(call("pandas._libs.arrays.__pyx_unpickle_NDArrayBacked", named(PIPELINE), b"K\x01", b"N"))),
    "a block of a list": ("pickle/arguments", v4(call("pandas._libs.internals._unpickle_block", b"]", b"N", b"K\x02"))),
    "a time stamp of a list": (
        "pickle/arguments", v4(call("pandas._libs.tslibs.timestamps._unpickle_timestamp", b"]"))),
    "block manager with a function": (
        "pickle/arguments", v4(call("pandas.core.internals.managers.BlockManager", SYSTEM))),
    "a frame made with arguments": ("pickle/arguments", v4(new("pandas.core.frame.DataFrame", b"]"))),
    "training arguments with a function": (
        "pickle/global",
        v4(new("transformers.training_args.TrainingArguments"), entries(optim=SYSTEM), b"b")),
    "an enum of a list": ("pickle/arguments", v4(call("transformers.training_args.OptimizerNames", b"]"))),
    "a uuid with attributes": ("pickle/build", v4(new("uuid.UUID"), entries(int=b"K\x01", hex=b"N"), b"b")),
    "a path of bytes": ("pickle/arguments", v4(call("pathlib.PosixPath", b"C\x01a"))),
    "a fraction with an exponent": ("pickle/arguments", v4(call("fractions.Fraction", short("1e999999999")))),
    "a time zone outside its folder": ("pickle/arguments", v4(call("pytz._p", short("../../etc/passwd")))),
    "a zone by an absolute path": (
        "pickle/arguments",
        v4(short("zoneinfo"), short("ZoneInfo._unpickle"), b"\x93", short("/etc/passwd"), b"\x88\x86R")),
    "a namespace with a function": (
        "pickle/global-value", v4(call("types.SimpleNamespace"), entries(run=named(RECONSTRUCT)), b"b")),
    "a pattern of bytes": ("pickle/arguments", v4(call("re._compile", b"C\x01a", b"K\0"))),
    "an array of another class": (
        "pickle/arguments",
        v4(call("array._array_reconstructor", named("subprocess.Popen"), short("d"), b"K\x0e", b"C\x00"))),
    "the type of an object": ("pickle/arguments", v4(call("builtins.type", new(PIPELINE)))),
    "type with three arguments": ("pickle/arguments", v4(call("builtins.type", short("X"), b")", b"}"))),
    "sorted with a key": ("pickle/arguments", v4(call("builtins.sorted", b"]", SYSTEM))),
    "an import named by a computed text": (
        "pickle/global", v4(short("posix"), call("builtins.str", short("system")), b"\x93")),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_refused_by_its_rule(name):
    rule, data = ATTACKS[name]
    found = {finding.rule for finding in FORMAT.read(BytesSource(data), "model.pkl").findings}
    assert rule in found


# joblib


def wrapped(body: bytes, *, alignment: bytes = b"N", kind: bytes = F8, shape: bytes = b"K\x01\x85") -> bytes:
    described = entries(
        subclass=named("numpy.ndarray"), shape=shape, order=short("C"), dtype=kind, allow_mmap=b"\x88",
        numpy_array_alignment_bytes=alignment,
    )  # fmt: skip
    return b"\x80\x04" + new("joblib.numpy_pickle.NumpyArrayWrapper") + described + b"b" + body + b"."


RUN = named("posix.system") + short(TOUCH) + b"\x85R."
OBJECTS = pickle.dumps(np.array([1, "x"], dtype=object), 4)
O8 = call("numpy.dtype", short("O8"), b"\x89", b"\x88")
POISONED = OBJECTS[:-1] + b"0" + RUN
JOBLIB_ATTACKS: dict[str, tuple[str, bytes]] = {
    "array bytes that pickle.load runs": (
        "joblib/ambiguous", wrapped(RUN, shape=b"K" + bytes([len(RUN)]) + b"\x85", kind=F8.replace(b"f8", b"u1"))),
    "names before the array, used by its bytes": (
        "joblib/ambiguous",
        b"\x80\x04]\x94(" + short("posix") + b"\x94" + short("system") + b"\x94"
        + wrapped(b"h\x01h\x02\x93NNNN", kind=F8)[2:-1] + b"e."),
    "padding that is an opcode": ("pickle/inline", wrapped(b"N" + bytes(86), alignment=b"K\x10")),
    "padding longer than the alignment": (
        "pickle/inline", wrapped(b"\x11" + b"\xff" * 17 + bytes(8), alignment=b"K\x10")),
    "padding that carries bytes": ("pickle/inline", wrapped(b"\x02ab" + bytes(8), alignment=b"K\x10")),
    "an array longer than the file": ("pickle/inline", wrapped(b"\x01\xff" + bytes(4), alignment=b"K\x10")),
    "an object array that calls": ("pickle/inline", wrapped(POISONED, kind=O8)),
    "an object array that is no array": ("pickle/inline", wrapped(pickle.dumps([1], 4), kind=O8)),
    "an object array cut short": ("pickle/inline", wrapped(OBJECTS[:-9], kind=O8)),
    "a wrapper with a file name": (
        "pickle/build",
        v4(new("joblib.numpy_pickle.NumpyArrayWrapper"), entries(filename=short("x.npy")), b"b")),
    "a wrapper of another class": (
        "pickle/build",
        v4(new("joblib.numpy_pickle.NumpyArrayWrapper"), entries(
            subclass=named("builtins.object"), shape=b"K\x01\x85", order=short("C"), dtype=F8), b"b")),
    "the wrapper of joblib before 0.10": (
        "pickle/global", v4(new("joblib.numpy_pickle.NDArrayWrapper"), entries(filename=short("x")), b"b")),
    "raw bytes inside a frame": (
        "pickle/frame",
        b"\x80\x04\x95" + struct.pack("<Q", len(wrapped(bytes(8))) - 2) + wrapped(bytes(8))[2:]),
}  # fmt: skip


@pytest.mark.parametrize("name", JOBLIB_ATTACKS)
def test_joblib_file_refused_by_its_rule(name):
    rule, data = JOBLIB_ATTACKS[name]
    found = {finding.rule for finding in FORMAT.read(BytesSource(data), "model.joblib").findings}
    assert rule in found


def test_the_plain_wrapper_of_these_attacks_is_clean():
    assert FORMAT.read(BytesSource(wrapped(bytes(8))), "x.joblib").findings == ()
    assert (
        FORMAT.read(BytesSource(wrapped(b"\x01\xff" + bytes(8), alignment=b"K\x10")), "x.joblib").findings
        == ()
    )
    assert FORMAT.read(BytesSource(wrapped(OBJECTS, kind=O8)), "x.joblib").findings == ()


# npy


def npy(header: str, body: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode() + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(text)) + text + body


F8_HEADER = "{'descr': '<f8', 'fortran_order': False, 'shape': (1,), }"
NPY_ATTACKS: dict[str, tuple[str, bytes]] = {
    "a header that calls": ("npy/header", npy("__import__('os').system('x')")),
    "a call inside the dict": ("npy/header", npy("{'descr': str(1), 'fortran_order': False, 'shape': (1,)}")),
    "a key more": ("npy/header", npy(F8_HEADER.replace("}", "'x': 1}"), bytes(8))),
    "a key twice": ("npy/header", npy(F8_HEADER.replace("}", "'shape': (2,)}"), bytes(16))),
    "a negative count": ("npy/header", npy(F8_HEADER.replace("(1,)", "(-1,)"))),
    "brackets without end": ("npy/header", npy("(" * 60_000)),
    "version 9": ("npy/header", npy(F8_HEADER, bytes(8), b"\x09\x00")),
    "a header longer than the file": ("npy/header", b"\x93NUMPY\x01\x00\xff\xff{}"),
    "a longer array": ("npy/size", npy(F8_HEADER.replace("(1,)", "(99999999999,)"), bytes(8))),
    "trailing bytes": ("npy/size", npy(F8_HEADER, bytes(8) + RUN)),
    "an unknown dtype": ("npy/dtype", npy(F8_HEADER.replace("<f8", "<f3"), bytes(3))),
    "objects that call": ("pickle/call", npy(F8_HEADER.replace("<f8", "|O"), b"\x80\x04" + RUN)),
    "objects that are no array": ("npy/object", npy(F8_HEADER.replace("<f8", "|O"), pickle.dumps([1]))),
    "bytes behind the objects": ("pickle/trailing", npy(F8_HEADER.replace("<f8", "|O"), OBJECTS + b"x")),
}


@pytest.mark.parametrize("name", NPY_ATTACKS)
def test_npy_refused_by_its_rule(name):
    rule, data = NPY_ATTACKS[name]
    from steelyard.formats.registry import Registry

    report = Registry((NPY,)).read(BytesSource(data), "x.npy")
    assert rule in {finding.rule for finding in report.findings}
