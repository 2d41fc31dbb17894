"""Code that rides with a model, under its own name or another: found by content, refused or held for a reader."""

import py_compile

import pytest

from steelyard.admit.rules import registry
from steelyard.formats.base import BytesSource
from steelyard.formats.python_code import FORMAT

ATTACKS = {
    # name: (rule, path, bytes)
    "remote code": ("code/python", "modeling_x.py", b"import os\nos.system('true')\n"),
    "installer": ("code/python", "setup.py", b"from setuptools import setup\nsetup()\n"),
    "notebook": ("code/notebook", "demo.ipynb", b'{"cells": [], "nbformat": 4}'),
    "shell script": ("code/shell", "run.sh", b"echo hello\n"),
    "shell script named as weights": ("code/shell", "weights.bin", b"#!/bin/sh\ntrue\n"),
    "python script named as weights": ("code/python", "weights.bin", b"#!/usr/bin/env python3\nprint(1)\n"),
    "start-up file": ("code/start-up", "x.pth", b"import os\n"),
    "ELF library": ("code/native", "libx.so", b"\x7fELF" + bytes(60)),
    "ELF named as weights": ("code/native", "model.bin", b"\x7fELF" + bytes(60)),
    "PE named as licence": ("code/native", "LICENSE", b"MZ" + b"a" * 60),
    "Mach-O": ("code/native", "kernel", b"\xcf\xfa\xed\xfe" + bytes(60)),
    "WebAssembly": ("code/native", "op.wasm", b"\0asm\1\0\0\0"),
    "compiled Python by name": ("code/compiled", "m.pyc", bytes(32)),
    "source nobody can read": ("code/unreadable", "m.py", b"def f(:\n"),
    "text that turns direction": ("code/unreadable", "m.py", "x = 1  # \u202e1 = y\n".encode()),
    "invisible letters": ("code/unreadable", "m.py", "x\u200b = 1\n".encode()),
    "another encoding": ("code/unreadable", "m.py", b"# coding: utf-7\n+AG8-s = 1\n"),
    "rot13": ("code/unreadable", "m.py", b"# -*- coding: rot13 -*-\nvzcbeg bf\n"),
    "not UTF-8": ("code/unreadable", "m.py", b"x = '\xff'\n"),
    "brackets": ("code/unreadable", "m.py", b"(" * 100_000),
    "NUL in source": ("code/unreadable", "m.py", b"x = 1\0\n"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_is_not_admitted(name):
    rule, path, data = ATTACKS[name]
    found = [finding.rule for finding in registry().read(BytesSource(data), path).findings]
    assert found in ([rule], ["file/ambiguous"])
    if name != "PE named as licence":
        assert found == [rule]


def test_real_compiled_module_is_refused_under_any_name(tmp_path):
    source = tmp_path / "m.py"
    source.write_text("x = 1\n")
    compiled = py_compile.compile(str(source), cfile=str(tmp_path / "m.pyc"))
    data = (tmp_path / "m.pyc").read_bytes()
    assert compiled
    for path in ("m.pyc", "weights.bin"):
        found = registry().read(BytesSource(data), path).findings
        assert [finding.rule for finding in found] == ["code/compiled"]


@pytest.mark.parametrize(
    "source",
    [
        "import base64\nexec(base64.b64decode(b'cGFzcw=='))",
        "from base64 import b64decode as d\nexec(d(b'cGFzcw=='))",
        "import zlib\nexec(compile(zlib.decompress(b'x'), 'a', 'exec'))",
        "import marshal\nexec(marshal.loads(b'x'))",
        "import requests\neval(requests.get('x').text)",
        "import builtins\ngetattr(builtins, 'ex' + 'ec')('pass')",
        "import os\ngetattr(os, 'metsys'[::-1])('x')",
        "import os\ngetattr(os, ''.join(['sys', 'tem']))('x')",
        "__import__('o' + 's').system('x')",
        "exec(bytes.fromhex('70617373'))",
        "exec(''.join(chr(c) for c in [112, 97, 115, 115]))",
        "import socket, subprocess\ns = socket.socket()\nsubprocess.call(['x'])",
    ],
)
def test_code_that_hides_what_it_runs_refuses_whatever_the_policy_says(source):
    found = {finding.rule for finding in FORMAT.read(BytesSource(source.encode()), "m.py").findings}
    assert "code/obfuscated" in found
