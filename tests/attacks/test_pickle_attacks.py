"""Hostile pickles, written opcode by opcode. Each names its rule, and none may run: a marker file proves it."""

import io
import os
import pickle
import struct
import tempfile
import zipfile
from pathlib import Path

import pytest

from steelyard.formats.base import BytesSource
from steelyard.formats.pickled import FORMAT
from steelyard.formats.zip_archive import FORMAT as TORCH

MARKER = Path(tempfile.gettempdir()) / f"steelyard-pickle-attack-{os.getpid()}"
TOUCH = f"touch {MARKER}".encode()


@pytest.fixture(autouse=True)
def nothing_runs():
    MARKER.unlink(missing_ok=True)
    yield
    assert not MARKER.exists()


def text(value: bytes) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value


def imported(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def call(module: str, name: str, *arguments: bytes) -> bytes:
    return imported(module, name) + b"(" + b"".join(arguments) + b"tR"


def v2(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


def v4(*parts: bytes) -> bytes:
    return b"\x80\x04" + b"".join(parts) + b"."


def short(value: str) -> bytes:
    return b"\x8c" + bytes([len(value)]) + value.encode()


SYSTEM = call("posix", "system", text(TOUCH))
NESTED = v2(SYSTEM)
NINE = NESTED
for _ in range(9):
    NINE = pickle.dumps(NINE, 4)
ORDERED = imported("collections", "OrderedDict")


def doubling(levels: int) -> bytes:
    """A tuple of two references to a tuple of two references to ..."""
    return (
        b"\x80\x04]\x94"
        + b"".join(b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86\x94" for n in range(levels))
        + b"."
    )


# name -> (rule that must be among the findings, stream)
ATTACKS: dict[str, tuple[str, bytes]] = {
    "os.system, protocol 0": ("pickle/call", b"cos\nsystem\n(S'" + TOUCH + b"'\ntR."),
    "posix.system": ("pickle/call", v2(SYSTEM)),
    "subprocess.Popen by STACK_GLOBAL": (
        "pickle/call",
        v4(short("subprocess"), short("Popen"), b"\x93", text(TOUCH), b"\x85R"),
    ),
    "builtins.eval": ("pickle/call", v2(call("builtins", "eval", text(b"1")))),
    "builtins.exec of Python 2": ("pickle/call", v2(call("__builtin__", "execfile", text(b"x")))),
    "getattr chain": (
        "pickle/global",
        v2(imported("builtins", "getattr"), b"(", imported("os", "path"), text(b"os"), b"tR"),
    ),
    "pip.main": ("pickle/call", v2(call("pip", "main", b"]", text(b"install"), b"a"))),
    "pkgutil.resolve_name": ("pickle/call", v2(call("pkgutil", "resolve_name", text(b"os:system")))),
    "functools.partial": ("pickle/arguments", v2(call("functools", "partial", imported("os", "system"), text(TOUCH)))),
    "operator.attrgetter": ("pickle/call", v2(call("operator", "attrgetter", text(b"system")))),
    "runpy.run_path": ("pickle/call", v2(call("runpy", "_run_code", text(b"x")))),
    "ctypes.CDLL": ("pickle/call", v2(call("ctypes", "CDLL", text(b"x.so")))),
    "numpy.load": ("pickle/call", v2(call("numpy", "load", text(b"x.npy")))),
    "torch.load": ("pickle/call", v2(call("torch", "load", text(b"x.pt")))),
    "torch storage bytes": ("pickle/call", v2(call("torch.storage", "_load_from_bytes", text(b"x")))),
    "numpy's own exec": ("pickle/call", v2(call("numpy.testing._private.utils", "runstring", text(b"1"), b"}"))),
    "mailcap.findmatch": ("pickle/call", v2(call("mailcap", "findmatch", b"}", text(b"x")))),
    "webbrowser.open": ("pickle/call", v2(call("webbrowser", "open", text(b"file:///")))),
    "dotted STACK_GLOBAL": (
        "pickle/dotted",
        v4(short("collections"), short("abc.sys.modules"), b"\x93"),
    ),
    "dotted name under a listed class": ("pickle/dotted", v4(short("collections"), short("OrderedDict.pop"), b"\x93")),
    "case variant": ("pickle/global", v2(imported("Collections", "OrderedDict"), b")R")),
    "listed name in another module": ("pickle/global", v2(imported("evil", "OrderedDict"), b")R")),
    "escaped name": ("pickle/call", v4(b"Vp\\u006fsix\n", b"Vs\\u0079stem\n", b"\x93", text(TOUCH), b"\x85R")),
    "Python 2 name under protocol 4": ("pickle/global", v4(imported("__builtin__", "set"), b")R")),
    "name out of a call": (
        "pickle/global",
        v4(short("os"), imported("builtins", "str"), b")R", b"\x93"),
    ),
    "PUT overwrites a memo entry": (
        "pickle/memo",
        v4(short("collections"), b"\x94", short("posix"), b"q\x00", b"0h\x00", short("OrderedDict"), b"\x93"),
    ),
    "MEMOIZE after a gap": ("pickle/memo", v4(b"]q\x05", b"]\x94", b"a")),
    "GET of an unwritten entry": ("pickle/memo", v2(b"h\x07")),
    "memo number of billions": ("pickle/memo", v2(b"Nr\xff\xff\xff\x7f")),
    "BUILD sets attributes of a function": ("pickle/build", v2(imported("collections", "OrderedDict"), b"}b")),
    "BUILD of an attribute": ("pickle/build", v2(ORDERED, b")R}", text(b"__class__"), b"Nsb")),
    "OBJ then POP": ("pickle/instance", v2(b"(", imported("posix", "system"), text(TOUCH), b"o0N")),
    "INST": ("pickle/instance", v2(b"(", text(TOUCH), b"iposix\nsystem\n")),
    "NEWOBJ": ("pickle/instance", v2(imported("subprocess", "Popen"), text(TOUCH), b"\x85\x81")),
    "NEWOBJ_EX": (
        "pickle/instance",
        v4(short("subprocess"), short("Popen"), b"\x93", text(TOUCH), b"\x85}\x92"),
    ),
    "REDUCE then POP": ("pickle/call", v2(SYSTEM, b"0N")),
    "EXT1": ("pickle/extension", v2(b"\x82\x01)R")),
    "EXT4": ("pickle/extension", v2(b"\x84\x01\0\0\0)R")),
    "PERSID": ("pickle/persistent", b"Pposix.system\n."),
    "BINPERSID outside an archive": ("pickle/persistent", v2(text(b"x"), b"Q")),
    "NEXT_BUFFER": ("pickle/buffer", b"\x80\x05\x97."),
    "opcode straddles its frame": (
        "pickle/frame",
        b"\x80\x04\x95" + struct.pack("<Q", 3) + short("collections") + b"." + b"0" * 8,
    ),
    "frame inside a frame": (
        "pickle/frame",
        b"\x80\x04\x95" + struct.pack("<Q", 20) + b"\x95" + struct.pack("<Q", 2) + b"N." + b"0" * 12,
    ),
    "STOP before the frame ends": ("pickle/frame", b"\x80\x04\x95" + struct.pack("<Q", 9) + b"N." + b"0" * 7),
    "frame longer than the file": ("pickle/truncated", b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"N."),
    "payload before a broken stream": ("pickle/call", b"\x80\x02" + SYSTEM + b"\xff\xff\xff"),
    "broken stream": ("pickle/opcode", b"\x80\x02" + SYSTEM + b"\xff\xff\xff"),
    "payload and no STOP": ("pickle/no-stop", b"\x80\x02" + SYSTEM),
    "second pickle behind STOP": ("pickle/trailing", v2(b"N") + NESTED),
    "nested pickle in bytes": ("pickle/nested", pickle.dumps({"weights": NESTED}, 4)),
    "nested pickle in protocol 2 bytes": ("pickle/nested", pickle.dumps({"weights": NESTED}, 2)),
    "nested pickle in a bytearray": ("pickle/nested", pickle.dumps(bytearray(NESTED), 5)),
    "pickle of plain data inside bytes": ("pickle/inside", pickle.dumps({"w": pickle.dumps({"a": "b"}, 4)}, 4)),
    "nested three deep": ("pickle/nested", pickle.dumps(pickle.dumps(pickle.dumps(NESTED, 4), 4), 4)),
    "nested deeper than we look": ("pickle/nested", pickle.dumps(NINE, 4)),
    "doubling by memo": ("pickle/bomb", doubling(40)),
    "doubled key": ("pickle/bomb", doubling(13)[:-1] + b"}h\x0dNs."),
    "bytearray of billions": ("pickle/arguments", v2(call("builtins", "bytearray", b"J\xff\xff\xff\x7f"))),
    "bytes of billions": ("pickle/arguments", v2(call("builtins", "bytes", b"J\xff\xff\xff\x7f"))),
    "LONG4 of billions": ("pickle/length", v2(b"\x8b\xff\xff\xff\x7f")),
    "LONG4 of negative length": ("pickle/length", v2(b"\x8b\xff\xff\xff\xff")),
    "BINUNICODE8 of exabytes": ("pickle/length", v4(b"\x8d" + b"\xff" * 8)),
    "BINBYTES past the end": ("pickle/truncated", v4(b"B\xff\xff\xff\x7f")),
    "decimal digits in quadratic time": ("pickle/length", v2(b"I" + b"9" * 10_000 + b"\n")),
    "codecs.encode with zlib": ("pickle/arguments", v2(call("_codecs", "encode", text(b"x"), text(b"zlib")))),
    "codecs.decode": ("pickle/call", v2(call("_codecs", "decode", text(b"x"), text(b"hex")))),
    "defaultdict that calls": (
        "pickle/arguments",
        v2(call("collections", "defaultdict", imported("os", "getcwd"))),
    ),
    "defaultdict with a listed class": (
        "pickle/arguments",
        v2(call("collections", "defaultdict", imported("collections", "deque"))),
    ),
    "rebuild function in disguise": (
        "pickle/arguments",
        v2(
            call(
                "torch._tensor", "_rebuild_from_type_v2",
                imported("posix", "system"), imported("torch", "Tensor"), text(TOUCH) + b"\x85", b"}",
            )
        ),
    ),
    "function kept as a value": ("pickle/global-value", v2(b"]", ORDERED, b"a")),
    "function as the result": ("pickle/global-value", v2(imported("torch", "Tensor"))),
    "named class called": ("pickle/call", v2(call("torch", "Tensor", b"]"))),
    "call of a string": ("pickle/call", v2(text(b"os.system"), b")R")),
    "append to a call result": ("pickle/target", v2(ORDERED, b")RNa")),
    "setitem on an imported module": ("pickle/target", v2(imported("torch", "Tensor"), text(b"x"), b"Ns")),
    "list changed after it was placed": ("pickle/cycle", v2(b"]q\x00]q\x01h\x00a0h\x00h\x01a")),
    "list inside itself": ("pickle/cycle", v2(b"]q\x00h\x00a")),
    "object dtype over raw bytes": (
        "pickle/build",
        v2(
            call("numpy.core.multiarray", "_reconstruct", imported("numpy", "ndarray"), b"K\0\x85", text(b"b")),
            b"(K\x01K\x01\x85",
            call("numpy", "dtype", text(b"O8"), b"\x89\x88"),
            b"\x89", call("_codecs", "encode", text(b"AAAAAAAA"), text(b"latin1")), b"tb",
        ),
    ),
    "raw dtype flagged as references": (
        "pickle/build",
        v2(
            call("numpy", "dtype", text(b"i8"), b"\x89\x88"),
            b"(K\x03", text(b"<"), b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ftb",
        ),
    ),
    "numpy's shared dtype changed in place": (
        "pickle/arguments",
        v2(call("numpy", "dtype", text(b"f8"), b"\x89\x89")),
    ),
    "structured dtype as text": ("pickle/arguments", v2(call("numpy", "dtype", text(b"O,f8"), b"\x89\x88"))),
    "subclass of ndarray": (
        "pickle/arguments",
        v2(call("numpy.core.multiarray", "_reconstruct", imported("numpy", "chararray"), b"K\0\x85", text(b"b"))),
    ),
    "unknown protocol": ("pickle/proto", b"\x80\x06N."),
    "protocol changed midway": ("pickle/proto", b"\x80\x04\x80\x02" + imported("__builtin__", "set") + b")R."),
    "integer read two ways": ("pickle/noncanonical", b"I010\n."),
    "boolean read two ways": ("pickle/noncanonical", b"I+1\n."),
    "string read two ways": ("pickle/noncanonical", b"S'a\\q'\n."),
    "8-bit string": ("pickle/text", v2(b"U\x02\xc3\xa9")),
    "broken UTF-8": ("pickle/text", v2(b"X\x02\0\0\0\xc3\x28")),
    "stack underflow": ("pickle/stack", v2(b"R")),
    "no mark": ("pickle/stack", v2(b"t")),
    "key without a value": ("pickle/stack", v2(b"}(Nu")),
    "objects left behind": ("pickle/leftover", v2(b"NN")),
    "mark left behind": ("pickle/leftover", v2(b"(N")),
    "unhashable key": ("pickle/key", v2(b"}]Ns")),
    "deep nesting": ("pickle/nesting", v2(b"]" * 5000 + b"a" * 4999)),
    "name of megabytes": ("pickle/length", v2(b"c" + b"a" * 100_000 + b"\nb\n")),
}  # fmt: skip


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_is_refused_by_its_rule_and_never_runs(name):
    rule, data = ATTACKS[name]
    rules = [finding.rule for finding in FORMAT.read(BytesSource(data), "weights.pkl").findings]
    assert rule in rules


def test_the_payload_of_these_attacks_would_run():
    """The marker proves something only if the stream is one that CPython executes."""
    import subprocess
    import sys

    program = "import pickle, sys; pickle.loads(sys.stdin.buffer.read())"
    subprocess.run([sys.executable, "-c", program], input=ATTACKS["posix.system"][1], check=True)
    assert MARKER.exists()
    MARKER.unlink()


@pytest.mark.parametrize("name", [name for name in ATTACKS if name != "deep nesting"])
def test_the_same_attack_inside_a_torch_archive_is_refused(name):
    rule, data = ATTACKS[name]
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
    rules = [finding.rule for finding in TORCH.read(BytesSource(out.getvalue()), "model.pt").findings]
    assert (rule if rule != "pickle/persistent" or name == "PERSID" else "torch/storage") in rules


def test_findings_are_bounded():
    data = v2(b"]", SYSTEM * 5000)
    assert len(FORMAT.read(BytesSource(data), "x.pkl").findings) <= 64


def test_a_stack_hidden_under_marks_is_bounded():
    data = b"\x80\x02" + (b"N" * 400_000 + b"(") * 12
    rules = [finding.rule for finding in FORMAT.read(BytesSource(data), "x.pkl").findings]
    assert rules == ["pickle/limit"]
