"""Hostile TorchScript, torch.export and old PyTorch files, each by its rule. Built in code; nothing is loaded."""

import io
import json
import struct
import zipfile

import pytest

from steelyard.formats.base import BytesSource
from steelyard.formats.pickled import FORMAT as PICKLE
from steelyard.formats.registry import Registry
from steelyard.formats.text import FORMAT as TEXT
from steelyard.formats.torch_legacy import FORMAT as LEGACY
from steelyard.formats.zip_archive import FORMAT as ZIP

REGISTRY = Registry((ZIP, LEGACY, PICKLE, TEXT))
EVIL = b"\x80\x02cposix\nsystem\nX\x04\0\0\0true\x85R."
EMPTY = b"\x80\x02)."
OBJECT = b"\x80\x02c__torch__\nM\n)\x81}b."


def rules_of(data: bytes) -> set[str]:
    return {finding.rule for finding in REGISTRY.read(BytesSource(data), "model.pt").findings}


def archive_of(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return out.getvalue()


def source(*lines: str, fields: str = "") -> bytes:
    body = "".join(f"    {line}\n" for line in lines) or "    return x\n"
    return (
        "class M(Module):\n  __parameters__ = []\n  training : bool\n"
        f"{fields}  def forward(self: __torch__.M,\n    x: Tensor) -> Tensor:\n{body}"
    ).encode()


def script(code: bytes = source(), **more: bytes) -> bytes:
    members = {
        "data.pkl": OBJECT,
        "constants.pkl": EMPTY,
        "version": b"3\n",
        "code/__torch__.py": code,
        **more,
    }
    return archive_of({f"m/{name}": content for name, content in members.items()})


def node(target: str, **arg: object) -> dict[str, object]:
    inputs = [{"name": "x", "arg": arg or {"as_tensor": {"name": "x"}}, "kind": 1}]
    return {"target": target, "inputs": inputs, "outputs": [{"as_tensor": {"name": "y"}}], "metadata": {}}


def export(*nodes: dict[str, object], extra: dict[str, bytes] | None = None, **top: object) -> bytes:
    graph = {"inputs": [], "outputs": [], "nodes": list(nodes), "tensor_values": {}, "sym_int_values": {}}
    program = {
        "graph_module": {"graph": graph, "module_call_graph": []},
        "opset_version": {"aten": 10},
        **top,
    }
    members = {"archive_format": b"pt2", "models/model.json": json.dumps(program).encode(), **(extra or {})}
    return archive_of({f"m/{name}": content for name, content in members.items()})


def with_spec(spec: object) -> dict[str, object]:
    entry = {
        "fqn": "",
        "signature": {"inputs": [], "outputs": [], "in_spec": json.dumps([1, spec]), "out_spec": ""},
    }
    return {"graph_module": {"graph": {}, "module_call_graph": [entry]}}


ADD = node("torch.ops.aten.add.Tensor")


def test_the_honest_files_are_clean():
    assert rules_of(script()) == set()
    assert rules_of(script(source("return torch.add(x, 1)"))) == set()
    assert rules_of(export(ADD)) == set()


SCRIPTS: dict[str, tuple[str, bytes]] = {
    "writes a file": ("torchscript/operator", script(source('torch.save(x, "/tmp/x")', "return x"))),
    "reads a file": ("torchscript/operator", script(source('return torch.from_file("/etc/passwd")'))),
    "reads a file by another way": ("torchscript/operator", script(source("return ops.aten.from_file(x)"))),
    "reads an image": ("torchscript/operator", script(source('return ops.image.read_file("/etc/passwd")'))),
    "calls another machine": ("torchscript/operator", script(source("return ops.prim.rpc_sync(x)"))),
    "calls Python": ("torchscript/operator", script(source("return ops.prim.PythonOp(x)"))),
    "operator of a library of its own": ("torchscript/operator", script(source("return ops.evil.run(x)"))),
    "operator kept in a name": ("torchscript/operator", script(source("_0 = ops.evil.run", "return _0(x)"))),
    "operator in a default": (
        "torchscript/operator",
        script(b"def f(x: Tensor=ops.evil.run()) -> Tensor:\n  return x\n" + source()),
    ),
    "operator in a field": (
        "torchscript/operator",
        script(source(fields="  a : Final[int] = ops.evil.run()\n")),
    ),
    "operator in a forked function": (
        "torchscript/operator",
        script(source("def f(y: Tensor) -> Tensor:", "  return ops.evil.run(y)", "return fork(f, x)")),
    ),
    "loads a library": ("torchscript/operator", script(source('torch.ops.load_library("x.so")', "return x"))),
    "class of C++": ("torchscript/name", script(source("return __torch__.torch.classes.evil.C(x)"))),
    "class that is nowhere": ("torchscript/name", script(source("return __torch__.b.C(x)"))),
    "function of Python": ("torchscript/name", script(source('return eval("1")'))),
    "import function": ("torchscript/name", script(source('return __import__("os")'))),
    "import": ("torchscript/syntax", script(b"import os\n" + source())),
    "code outside of functions": ("torchscript/syntax", script(b"print(1)\n" + source())),
    "decorator": ("torchscript/syntax", script(b"@torch.add\n" + source())),
    "base class": ("torchscript/syntax", script(source().replace(b"(Module)", b"(os.system)"))),
    "lambda": ("torchscript/syntax", script(source("return (lambda: x)()"))),
    "comprehension": ("torchscript/syntax", script(source("return [y for y in x]"))),
    "formatted string": ("torchscript/syntax", script(source("return f'{x}'"))),
    "walrus": ("torchscript/syntax", script(source("return (y := x)"))),
    "import in a function": ("torchscript/syntax", script(source("import os", "return x"))),
    "global": ("torchscript/syntax", script(source("global x", "return x"))),
    "no source": ("torchscript/syntax", script(b"class M(Module:\n")),
    "letters that look alike": ("torchscript/syntax", script(source("\uff45val(1)", "return x"))),
    "brackets without end": ("torchscript/limit", script(source("return " + "(" * 200 + "x" + ")" * 200))),
    "function of a megabyte": (
        "torchscript/limit",
        script(source(*["y = torch.add(x, 1)"] * 50_000, "return x")),
    ),
    "code in the state": ("pickle/call", script(**{"data.pkl": EVIL})),
    "code in the constants": ("pickle/call", script(**{"constants.pkl": EVIL})),
    "code in the inputs of the trace": ("pickle/call", script(**{"traced_inputs.pkl": EVIL})),
    "code in the places of the source": ("pickle/call", script(**{"code/__torch__.py.debug_pkl": EVIL})),
    "class of the state that is nowhere": (
        "pickle/global",
        script(**{"data.pkl": OBJECT.replace(b"M", b"N")}),
    ),
    "class of C++ in the state": (
        "pickle/global",
        script(**{"data.pkl": b"\x80\x02c__torch__.torch.classes.evil\nC\n)\x81}b."}),
    ),
    "import in the state of an object": (
        "pickle/global",
        script(**{"data.pkl": b"\x80\x02c__torch__\nM\n)\x81}X\x01\0\0\0acposix\nsystem\nsb."}),
    ),
    "state without a type tag": (
        "pickle/arguments",
        script(**{"data.pkl": b"\x80\x02ctorch.jit._pickle\nrestore_type_tag\nK\x01K\x02\x86R."}),
    ),
    "bytecode": ("torch/member", script(**{"bytecode.pkl": EMPTY})),
    "member beside the code": ("torch/member", script(**{"code/run.sh": b"x"})),
    "storage nobody names": ("torch/unreferenced", script(**{"data/0": b"1234"})),
    "pickle among the author's files": ("pickle/call", script(**{"extra/notes": EVIL})),
    "no state": ("torchscript/member", archive_of({"m/constants.pkl": EMPTY, "m/version": b"3\n"})),
}
EXPORTS: dict[str, tuple[str, bytes]] = {
    "function of torch": ("export/target", export(node("torch.hub.load"))),
    "loads a library": ("export/target", export(node("torch.ops.load_library"))),
    "operator of a library of its own": ("export/target", export(node("torch.ops.evil.run.default"))),
    "writes a file": ("export/target", export(node("torch.ops.aten.save.default"))),
    "reads a file": ("export/target", export(node("torch.ops.aten.from_file.default"))),
    "attributes of an operator": ("export/target", export(node("torch.ops.aten.add.__class__.mro"))),
    "method of operator": ("export/target", export(node("_operator.attrgetter"))),
    "call of operator": ("export/target", export(node("_operator.call"))),
    "Triton kernel": (
        "export/target",
        export(node("torch.ops.higher_order.triton_kernel_wrapper_functional")),
    ),
    "torch-bind call": ("export/target", export(node("torch.ops.higher_order.call_torchbind"))),
    "extension": ("export/target", export(node("#evil:x"))),
    "operator as an argument": (
        "export/target",
        export(node("torch.ops.aten.add.Tensor", as_operator="torch.hub.load")),
    ),
    "size that is code": (
        "export/expression",
        export(node("torch.ops.aten.add.Tensor", as_expr={"expr_str": "__import__('os').system('true')"})),
    ),
    "guard that is code": ("export/expression", export(ADD, guards_code=["__import__('os').system('true')"])),
    "tree that imports": (
        "export/tree",
        export(
            **with_spec(
                {
                    "type": "collections.defaultdict",
                    "context": {"default_factory_module": "os", "default_factory_name": "abort"},
                    "children_spec": [],
                }
            )
        ),
    ),
    "object in the graph": (
        "export/object",
        export(node("torch.ops.aten.add.Tensor", as_custom_obj={"name": "x", "class_fqn": "y"})),
    ),
    "pickled object": ("export/object", export(ADD, extra={"data/constants/custom_obj_0": EVIL})),
    "key of no schema": ("export/graph", export(ADD, on_load="x")),
    "graph that is a list": (
        "export/graph",
        archive_of({"m/archive_format": b"pt2", "m/models/m.json": b"[]"}),
    ),
    "machine code": ("export/native", export(ADD, extra={"data/aotinductor/model/x.so": b"\x7fELF"})),
    "machine code under another name": (
        "export/native",
        export(ADD, extra={"data/aotinductor/model/x.txt": b"\x7fELF"}),
    ),
    "machine code alone": ("export/native", archive_of({"m/data/aotinductor/model/x.so": b"\x7fELF"})),
    "member beside the graph": ("torch/member", export(ADD, extra={"run.py": b"x"})),
    "code in the sample inputs": (
        "pickle/call",
        export(
            ADD, extra={"data/sample_inputs/model.pt": archive_of({"a/data.pkl": EVIL, "a/version": b"3\n"})}
        ),
    ),
    "bare pickle as sample inputs": ("pickle/call", export(ADD, extra={"data/sample_inputs/model.pt": EVIL})),
    "pickled weight": (
        "pickle/call",
        export(ADD, extra={"data/weights/weight_0": archive_of({"a/data.pkl": EVIL, "a/version": b"3\n"})}),
    ),
    "old layout": (
        "export/target",
        archive_of(
            {
                "serialized_exported_program.json": json.dumps(
                    {"graph_module": {"graph": {"nodes": [node("torch.hub.load")]}}}
                ).encode()
            }
        ),
    ),
    "old layout, code in the state": (
        "pickle/call",
        archive_of(
            {"serialized_exported_program.json": b'{"graph_module": {}}', "serialized_state_dict.pt": EVIL}
        ),
    ),
    "key given twice": (
        "json/duplicate-key",
        archive_of(
            {"m/archive_format": b"pt2", "m/models/m.json": b'{"graph_module": {}, "graph_module": {}}'}
        ),
    ),
}

MAGIC = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
VERSION = b"\x80\x02M\xe9\x03."
SYSTEM = b"\x80\x02}(X\x0d\0\0\0little_endian\x88u."
NOTHING = b"\x80\x02N."
STORAGE = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\0aX\x03\0\0\0cpuK\x02NtQ"
TENSOR = b"ctorch._utils\n_rebuild_tensor\n(" + STORAGE + b"K\0K\x02\x85K\x01\x85tR."
KEYS = b"\x80\x02]X\x01\0\0\0aa."
FLOATS = struct.pack("<Qff", 2, 1.0, 2.0)
OLD: dict[str, tuple[str, bytes]] = {
    "code in the object": ("pickle/call", MAGIC + VERSION + SYSTEM + EVIL + b"\x80\x02]."),
    "code in the version": ("pickle/opcode", MAGIC + EVIL + SYSTEM + NOTHING + b"\x80\x02]."),
    "code in the system facts": ("pickle/opcode", MAGIC + VERSION + EVIL + NOTHING + b"\x80\x02]."),
    "code in the keys": ("pickle/opcode", MAGIC + VERSION + SYSTEM + NOTHING + EVIL),
    "another version": ("torch/system", MAGIC + b"\x80\x02K\x01." + SYSTEM + NOTHING + b"\x80\x02]."),
    "big-endian": (
        "torch/system",
        MAGIC + VERSION + SYSTEM.replace(b"\x88", b"\x89") + NOTHING + b"\x80\x02].",
    ),
    "no facts": ("torch/system", MAGIC + VERSION + NOTHING + NOTHING + b"\x80\x02]."),
    "bytes behind": (
        "torch/trailing",
        MAGIC + VERSION + SYSTEM + b"\x80\x02" + TENSOR + KEYS + FLOATS + EVIL,
    ),
    "storage cut": ("torch/size", MAGIC + VERSION + SYSTEM + b"\x80\x02" + TENSOR + KEYS + FLOATS[:-1]),
    "storage of another count": (
        "torch/size",
        MAGIC + VERSION + SYSTEM + b"\x80\x02" + TENSOR + KEYS + struct.pack("<Qff", 1, 1.0, 2.0),
    ),
    "storage of a negative count": (
        "torch/size",
        MAGIC + VERSION + SYSTEM + b"\x80\x02" + TENSOR + KEYS + struct.pack("<qff", -2, 1.0, 2.0),
    ),
    "storage without a key": (
        "torch/keys",
        MAGIC + VERSION + SYSTEM + b"\x80\x02" + TENSOR + b"\x80\x02]." + FLOATS,
    ),
    "key without a storage": ("torch/keys", MAGIC + VERSION + SYSTEM + NOTHING + KEYS + FLOATS),
    "keys that are no list": ("torch/keys", MAGIC + VERSION + SYSTEM + NOTHING + NOTHING),
    "class that is not listed": (
        "pickle/global",
        MAGIC
        + VERSION
        + SYSTEM
        + b"\x80\x02(X\x06\0\0\0modulecevil\nNet\nX\x01\0\0\0fX\x01\0\0\0stQ)\x81.\x80\x02].",
    ),
    "memo number out of order": ("pickle/memo", MAGIC + VERSION + SYSTEM + NOTHING + b"\x80\x02]q\x05."),
    "memo number of nothing": ("pickle/memo", MAGIC + VERSION + SYSTEM + NOTHING + b"\x80\x02h\x05."),
    "keys cut": ("pickle/truncated", MAGIC + VERSION + SYSTEM + NOTHING + b"\x80\x02]"),
    "text that is none": ("pickle/text", MAGIC + VERSION + SYSTEM + NOTHING + b"\x80\x02X\x01\0\0\0\xff."),
    "two values": ("pickle/stack", MAGIC + VERSION + SYSTEM + NOTHING + b"\x80\x02]]."),
    "append to nothing": ("pickle/target", MAGIC + VERSION + SYSTEM + NOTHING + b"\x80\x02NNa."),
}


def test_the_honest_old_file_is_clean():
    assert rules_of(MAGIC + VERSION + SYSTEM + b"\x80\x02" + TENSOR + KEYS + FLOATS) == set()


@pytest.mark.parametrize("name", SCRIPTS)
def test_script_is_refused_by_its_rule(name):
    rule, data = SCRIPTS[name]
    assert rule in rules_of(data)


@pytest.mark.parametrize("name", EXPORTS)
def test_export_is_refused_by_its_rule(name):
    rule, data = EXPORTS[name]
    assert rule in rules_of(data)


@pytest.mark.parametrize("name", OLD)
def test_old_file_is_refused_by_its_rule(name):
    rule, data = OLD[name]
    assert rule in rules_of(data)
