"""TorchScript archives (`torch.jit.save`): a program, its constants and its state.

Members below one folder: data.pkl (the module object and what it holds) and data/<key> (its storages), likewise
constants.pkl and traced_inputs.pkl; code/**.py (source, see `torchscript_code`) and code/**.py.debug_pkl (places in
the original source); extra/** (files of the author, read as files of their own); the small members of every archive.
Source: torch/csrc/jit/serialization/export_module.cpp and import.cpp of PyTorch 2.13.

A program is admitted when every operator it names is listed and every class of its state is defined in the archive.
It runs when the model is called, and `__setstate__` when it is loaded, so nothing less will do.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Final

from steelyard.digest import JSON
from steelyard.errors import Malformed
from steelyard.formats.base import ByteSource, Child, Finding, Report, Rule
from steelyard.formats.pickle_values import Misfit, Node, Spec, Value, node_of
from steelyard.formats.pickled import facts_of
from steelyard.formats.torch_operators import PACKED_CLASSES
from steelyard.formats.torchscript_code import MAX_SOURCE_BYTES, Program
from steelyard.formats.torchzip import Folder, Storages, tensor_facts
from steelyard.formats.zipped import Archive

MAX_LISTED = 200
MAX_DEBUG_BYTES = 1 << 24

_TRACE_AGAIN = "Script the model again from PyTorch's own operators, or ship its weights as safetensors."

RULES: Final[Mapping[str, Rule]] = {
    "torchscript/syntax": Rule("Source that PyTorch's printer does not write.", _TRACE_AGAIN),
    "torchscript/name": Rule("A class or function that the archive does not hold.", _TRACE_AGAIN),
    "torchscript/operator": Rule(
        "An operator that touches files, other machines or memory, or that a library of its own brings.",
        _TRACE_AGAIN,
    ),
    "torchscript/member": Rule("A member that no part of the format explains.", _TRACE_AGAIN),
    "torchscript/limit": Rule("Exhausting the scanner.", _TRACE_AGAIN),
}

# Each pickle and the folder of its storages. The inputs of a trace are kept since PyTorch 2.0.
_PICKLES: Final[Mapping[str, str]] = {
    "constants.pkl": "constants/",
    "data.pkl": "data/",
    "traced_inputs.pkl": "traced_inputs/",
}
_CODE = re.compile(r"code/__torch__(/[A-Za-z0-9_]+)*\.py")
_QUALIFIED = re.compile(r"__torch__(\.[A-Za-z_][A-Za-z0-9_]*)*")


def is_script(names: AbstractSet[str]) -> bool:
    """Whether members (without their folder) are those of a TorchScript archive."""
    return "constants.pkl" in names or any(name.startswith("code/") for name in names)


def read_script(source: ByteSource, archive: Archive, root: str) -> Report:
    """The report of a TorchScript archive below `root`."""
    folder = Folder(source, archive, root)
    program = Program()
    extra = [name for name in folder.members if name.startswith("extra/")]
    for name in folder.members:
        if _CODE.fullmatch(name):
            _read_code(folder, program, name)
    program.close()
    for name in folder.members:
        _check_member(folder, name)
    folder.findings += program.findings
    folder.check_byteorder()
    pickles = {
        name: Storages(folder, place, may_be_empty=name == "traced_inputs.pkl")
        for name, place in _PICKLES.items()
    }
    facts: dict[str, JSON] = {}
    names = _Names(program)
    for name, storages in pickles.items():
        outcome = folder.run(name, storages, names) if name in folder.members else None
        if outcome is not None and name == "data.pkl":
            facts = {**facts_of(outcome), **tensor_facts(outcome, storages)}
    if "data.pkl" not in folder.members:
        folder.findings.append(Finding("torchscript/member", "there is no data.pkl"))
    folder.check_referenced({place: pickles[name] for name, place in _PICKLES.items()})
    operators: list[JSON] = list(sorted(program.operators)[:MAX_LISTED])
    facts = {**facts, "operators": operators, "source_bytes": program.source_bytes}

    def children() -> Iterator[Child]:
        for name in extra:
            yield folder.child(name)

    return Report("torchscript", facts, (*archive.findings, *folder.findings), children if extra else None)


def _read_code(folder: Folder, program: Program, name: str) -> None:
    if folder.members[name].size > MAX_SOURCE_BYTES:
        folder.find("torchscript/limit", f"{folder.members[name].size} bytes of source", name)
        return
    content = folder.open(name)
    if content is None:
        return
    try:
        program.read(name, content.read(0, content.size))
    except Malformed as bad:
        folder.find(bad.rule, bad.message, name)


def _check_member(folder: Folder, name: str) -> None:
    if name in _PICKLES or name.startswith("extra/") or _CODE.fullmatch(name):
        return
    if name.endswith(".debug_pkl") and _CODE.fullmatch(name.removesuffix(".debug_pkl")):
        if folder.members[name].size > MAX_DEBUG_BYTES:
            folder.find("torchscript/limit", f"{folder.members[name].size} bytes of source places", name)
        else:
            folder.run(name, None, _debug_names)
    elif name.startswith(tuple(_PICKLES.values())):
        folder.check_storage(name)
    else:
        folder.check_small(name)


class _Names:
    """What the pickles of a script may import beside tensors: classes of its own program, packed weights, lists."""

    def __init__(self, program: Program) -> None:
        self._program = program

    def __call__(self, module: str, name: str) -> Spec | None:
        if module == "torch.jit._pickle":
            return _JIT.get(name)
        qualified = f"{module}.{name}"
        if not _QUALIFIED.fullmatch(qualified):
            return None
        if qualified in PACKED_CLASSES:
            return _PACKED
        return _OBJECT if qualified in self._program.defined else None


def _debug_names(module: str, name: str) -> Spec | None:
    return _JIT.get(name) if module == "torch.jit._pickle" else None


def _new_object(args: Sequence[Value]) -> Value:
    if args:
        raise Misfit("expected no arguments")
    return node_of("script object")


def _enum_member(args: Sequence[Value]) -> Value:
    if len(args) != 1 or not isinstance(args[0], int | str):
        raise Misfit("expected one plain value of an enumeration")
    return node_of("script enum")


def _any_state(_node: Node, _state: Value) -> None:
    """Attributes, or what the class's own `__setstate__` takes. The machine refuses any import inside."""


def _tagged(args: Sequence[Value]) -> Value:
    if len(args) != 2 or not isinstance(args[1], str) or not isinstance(args[0], Node):
        raise Misfit("expected a list or dictionary and the name of its type")
    if args[0].kind not in {"list", "dict"}:
        raise Misfit("expected a list or dictionary")
    return args[0]


def _built(args: Sequence[Value]) -> Value:
    if len(args) != 1 or not isinstance(args[0], Node) or args[0].kind != "list":
        raise Misfit("expected a list")
    return args[0]


_OBJECT = Spec(call=_enum_member, new=_new_object, build=_any_state)
_PACKED = Spec(new=_new_object, build=_any_state)
_JIT: Final[Mapping[str, Spec]] = {
    "restore_type_tag": Spec(_tagged),
    **{f"build_{kind}list": Spec(_built) for kind in ("int", "double", "bool", "tensor")},
}
