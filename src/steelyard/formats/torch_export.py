"""torch.export archives (`torch.export.save`, .pt2): a graph in JSON, weights, sample inputs.

Layout since PyTorch 2.8, below one folder: archive_format ("pt2"), archive_version, byteorder, models/<name>.json,
data/weights/ and data/constants/ (raw weight_<n> or tensor_<n>, a JSON list of them, or a pickled .pt),
data/sample_inputs/<name>.pt, extra/**. Layout of 2.1 to 2.6, at the top: serialized_exported_program.json, version,
serialized_state_dict.pt or .json, serialized_constants.pt or .json, serialized_example_inputs.pt, extra_files/**.
Every .pt inside is an archive of its own and is read as one. data/aotinductor holds machine code and is refused.
Sources: torch/_export/serde/serialize.py, torch/export/pt2_archive of PyTorch 2.13.

The loader resolves each `target` of the graph by attribute look-ups from `torch`, `_operator` or `math`, hands
each `expr_str` to sympy, which evaluates Python, compiles `guards_code`, and hands tree specifications to importlib.
All four are checked against exact names here, and a key outside the schema is refused.
"""

import ast
import re
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Final

from steelyard.digest import JSON
from steelyard.errors import Malformed
from steelyard.formats.base import ByteSource, Child, Report, Rule
from steelyard.formats.jsonfile import PARSE_RULES, parse
from steelyard.formats.torch_operators import HIGHER_ORDER, OPERATORS
from steelyard.formats.torchzip import SMALL, Folder
from steelyard.formats.zipped import Archive

MAX_FINDINGS = 50
MAX_GRAPH_BYTES = 1 << 24
MAX_LISTED = 200
MAX_EXPRESSION = 1 << 14
MAX_BRACKETS = 1000
MAX_EXPONENT = 64
MAX_TREE_BYTES = 1 << 20

_EXPORT_AGAIN = "Export the model again from PyTorch's own operators, or ship its weights as safetensors."

RULES: Final[Mapping[str, Rule]] = {
    **PARSE_RULES,
    "export/target": Rule("A graph node that calls something other than a listed operator.", _EXPORT_AGAIN),
    "export/expression": Rule(
        "A size written as an expression that the loader evaluates as Python.", _EXPORT_AGAIN
    ),
    "export/tree": Rule("A tree specification that makes the loader import a module.", _EXPORT_AGAIN),
    "export/object": Rule("A custom object, pickled beside the graph.", _EXPORT_AGAIN),
    "export/native": Rule("Machine code that the loader maps and runs.", _EXPORT_AGAIN),
    "export/graph": Rule("A graph that is none.", _EXPORT_AGAIN),
}

_SMALL: Mapping[str, re.Pattern[bytes]] = {
    **SMALL,
    "archive_format": re.compile(rb"pt2"),
    "archive_version": re.compile(rb"[0-9]{1,4}\n?"),
    "version": re.compile(rb"[0-9.]{1,16}\n?"),
}
_OLD_PROGRAM = "serialized_exported_program.json"
_NAME = r"[A-Za-z0-9_.-]{1,128}"
_GRAPH = re.compile(rf"models/{_NAME}\.json|serialized_exported_program\.json")
_CONFIG = re.compile(rf"data/(weights|constants)/{_NAME}_config\.json")
_RAW = re.compile(r"data/(weights|constants)/(weight|tensor)_[0-9]{1,9}")
_NESTED = re.compile(
    rf"data/(weights|constants|sample_inputs)/{_NAME}\.pt|data/(weights|constants)/(weight|tensor)_[0-9]{{1,9}}|"
    r"serialized_(state_dict|constants|example_inputs)\.(pt|json)|extra/.*|extra_files/.*"
)
_OBJECT = re.compile(r"data/constants/(custom|opaque)_obj_.*")
_NATIVE = re.compile(r"data/aotinductor/.*|data/executorch/.*|mtia/.*|.*\.(so|dll|dylib|cubin|o)")

_OPERATOR_MODULE_NAMES = """
abs add and_ contains eq floordiv ge getitem gt index inv invert le lshift lt matmul mod mul ne neg not_
or_ pos pow rshift sub truediv xor
"""
_OPERATOR_MODULE = frozenset(_OPERATOR_MODULE_NAMES.split())
_MATH_NAMES = """
ceil floor sqrt trunc
"""
_MATH = frozenset(_MATH_NAMES.split())
_SYMBOLIC_NAMES = """
sym_constrain_range_for_size sym_float sym_int sym_ite sym_max sym_min sym_not sym_sqrt sym_sum _sym_sqrt
"""
_SYMBOLIC = frozenset(_SYMBOLIC_NAMES.split())
_OPERATOR = re.compile(r"torch\.ops\.(\w+)\.(\w+)(?:\.(\w+))?", re.ASCII)
# Functions that sympy and PyTorch define for sizes; anything else in an expression is a symbol.
_FUNCTIONS_NAMES = """
Abs Add And CeilDiv CeilToInt CleanDiv Eq Equality False FloatPow FloatTrueDiv Float FloorDiv FloorToInt
Ge GreaterThan Gt Identity IntTrueDiv Integer IsNonOverlappingAndDenseIndicator LShift Le LessThan Lt Max
Min Mod ModularIndexing Mul Ne Not Or Piecewise Pow PowByNatural PythonMod RShift Rational Relational
RoundDecimal RoundToInt StrictGreaterThan StrictLessThan Symbol ToFloat True TruncToFloat TruncToInt
Unequality Where ceiling floor int_oo inf oo nan zoo math_trunc
"""
_FUNCTIONS = frozenset(_FUNCTIONS_NAMES.split())
_POWERS = frozenset({"Pow", "PowByNatural", "FloatPow", "LShift"})
_ASSUMPTIONS_NAMES = """
commutative finite integer negative nonnegative nonzero positive real zero
"""
_ASSUMPTIONS = frozenset(_ASSUMPTIONS_NAMES.split())
_SYMBOL = re.compile(r"_?[a-z]{1,4}[0-9]{1,6}", re.ASCII)
_EXPRESSION_NODES = (
    ast.Expression, ast.Call, ast.Name, ast.Constant, ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.keyword,
    ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.expr_context,
)  # fmt: skip
_TREE_TYPE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", re.ASCII)
_GUARD_METHODS = frozenset({"size", "stride", "storage_offset", "dim", "numel"})
_KEY_NAMES = """
arg as_bool as_bools as_complex as_custom_obj as_device as_expr as_float as_float_lists as_floats as_graph as_int
as_int_lists as_ints as_layout as_memory_format as_name as_nested_tensors as_none as_operator as_optional_tensor
as_optional_tensors as_scalar_type as_string as_strings as_sym_bool as_sym_bools as_sym_float as_sym_floats
as_sym_int as_sym_ints as_tensor as_tensors buffer buffer_mutation buffer_name class_fqn constant_input custom_obj
custom_obj_name device dialect dtype equality_constraints example_inputs expr_str field_names forward_arg_names fqn
gradient_to_parameter gradient_to_user_input graph graph_module guards_code hint imag in_spec index input_specs
inputs is_hop_single_tensor_return is_param is_single_tensor_return kind layout loss_output major max_val minor
min_val module_call_graph name nodes out_spec output_specs outputs parameter parameter_mutation parameter_name
path_name persistent real requires_grad schema_version signature sizes storage_offset strides target
tensor_constant tensor_constant_name tensor_meta token torch_version type use_pickle user_input
user_input_mutation user_input_name user_output value verifiers
"""
# Every field of the schema. Those below hold names of the model's own as keys.
_KEYS = frozenset(_KEY_NAMES.split())
_NAMING_KEYS = frozenset(
    {
        "as_string_to_argument", "config", "custom_obj_values", "metadata", "opset_version", "range_constraints",
        "sym_bool_values", "sym_float_values", "sym_int_values", "tensor_values", "treespec_namedtuple_fields",
    }
)  # fmt: skip
_OBJECT_KEYS = frozenset({"as_custom_obj", "custom_obj"})


def is_export(names: AbstractSet[str]) -> bool:
    """Whether members (without their folder) are those of an exported program."""
    if _OLD_PROGRAM in names:
        return True
    return "archive_format" in names or any(name.startswith("data/aotinductor/") for name in names)


def read_export(source: ByteSource, archive: Archive, root: str) -> Report:
    """The report of a torch.export archive below `root`; the .pt members are its children."""
    folder = Folder(source, archive, root)
    checker = _Checker()
    nested = [name for name in folder.members if _sort(folder, checker, name)]
    folder.check_byteorder()
    raw = sum(member.size for name, member in folder.members.items() if _RAW.fullmatch(name))
    facts: dict[str, JSON] = {
        "operators": list(sorted(checker.operators)[:MAX_LISTED]),
        "weight_bytes": raw,
    }

    def children() -> Iterator[Child]:
        for name in nested:
            yield folder.child(name)

    return Report("torch-export", facts, (*archive.findings, *folder.findings), children)


def _sort(folder: Folder, checker: "_Checker", name: str) -> bool:
    """Read one member, or say true when the registry has to."""
    member = folder.members[name]
    if _NATIVE.fullmatch(name):
        folder.find("export/native", f"{name[:80]!a} would be mapped and run", name)
    elif _OBJECT.fullmatch(name):
        folder.find("export/object", f"{name[:80]!a} is an object of a class of its own", name)
    elif _GRAPH.fullmatch(name) or _CONFIG.fullmatch(name):
        _read_json(folder, checker, name)
    elif _RAW.fullmatch(name) and not _is_archive(folder, name):
        folder.check_storage(name)
    elif _NESTED.fullmatch(name):
        return not (name.startswith(("extra/", "extra_files/")) and not member.size)
    else:
        folder.check_small(name, _SMALL)
    return False


def _is_archive(folder: Folder, name: str) -> bool:
    """A weight that was pickled, not written raw: read as the archive it is."""
    content = folder.open(name) if folder.members[name].size >= 4 else None
    return content is not None and content.read(0, 4) == b"PK\x03\x04"


def _read_json(folder: Folder, checker: "_Checker", name: str) -> None:
    content = folder.open(name)
    if content is None:
        return
    try:
        value = parse(content.read(0, content.size), max_bytes=MAX_GRAPH_BYTES)
        if _GRAPH.fullmatch(name) and not (isinstance(value, dict) and "graph_module" in value):
            raise Malformed("the program has no graph_module", rule="export/graph")
        for rule, what in checker.check(value):
            folder.find(rule, what, name)
    except Malformed as bad:
        folder.find(bad.rule, bad.message, name)


class _Checker:
    """Walks the JSON of a graph; `operators` collects what it calls."""

    def __init__(self) -> None:
        self.operators: set[str] = set()
        self._found = 0

    def check(self, root: JSON) -> Iterator[tuple[str, str]]:
        """(rule, message) for each thing the loader would resolve to code, and each key it is not known to read."""
        waiting: list[tuple[JSON, bool]] = [(root, False)]
        while waiting and self._found <= MAX_FINDINGS:
            value, named = waiting.pop()
            if isinstance(value, list):
                waiting.extend((item, named) for item in value)
            elif isinstance(value, dict):
                for key, item in value.items():
                    wrong = None if named else self._item(key, item)
                    if wrong:
                        self._found += 1
                        yield wrong
                    waiting.append((item, not named and key in _NAMING_KEYS))

    def _item(self, key: str, item: JSON) -> tuple[str, str] | None:
        shown = ascii(item)[:120]
        if key not in _KEYS and key not in _NAMING_KEYS:
            return "export/graph", f"the key {key[:80]!a} is none of the schema's"
        if key == "target" and isinstance(item, str) and not self._is_listed(item):
            return "export/target", f"a node calls {shown}, which is not listed"
        if key == "as_operator" and not (isinstance(item, str) and self._is_listed(item)):
            return "export/target", f"a node is given {shown}, which is not listed"
        if key == "expr_str" and not _is_expression(item):
            return "export/expression", f"the loader would evaluate {shown}"
        if key == "guards_code" and not (isinstance(item, list) and all(map(_is_guard, item))):
            return "export/expression", f"the loader would execute {shown}"
        if key in {"in_spec", "out_spec"} and not _is_tree(item):
            return "export/tree", f"the loader would resolve {shown}"
        if key in _OBJECT_KEYS and item:
            return "export/object", f"a custom object: {shown}"
        return None

    def _is_listed(self, target: str) -> bool:
        module, _, name = target.rpartition(".")
        found = _OPERATOR.fullmatch(target)
        if found:
            space, operator = found[1], found[2]
            allowed = HIGHER_ORDER if space == "higher_order" else OPERATORS.get(space, frozenset())
            self.operators.add(f"{space}::{operator}")
            return operator in allowed
        if target.startswith(("torch", "_operator", "math", "#")) or not target:
            return (
                (module == "_operator" and name in _OPERATOR_MODULE)
                or (module == "math" and name in _MATH)
                or (module in {"torch", "torch.fx.experimental.sym_node"} and name in _SYMBOLIC)
            )
        # The loader leaves other text as it is: the name of a parameter in the signature of the graph.
        return bool(re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.]*", target, re.ASCII))


def _is_expression(item: JSON) -> bool:
    """Numbers, symbols such as s0, arithmetic, and the listed functions: no attribute, text or subscript.

    sympy evaluates what it is given, so powers are bounded as well.
    """
    if isinstance(item, int | float):
        return True
    if not isinstance(item, str) or len(item) > MAX_EXPRESSION or not item.isascii():
        return False
    if item.count("(") > MAX_BRACKETS:
        return False
    try:
        tree = ast.parse(item.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(_is_term(node) for node in ast.walk(tree))


def _is_term(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return node.id in _FUNCTIONS or bool(_SYMBOL.fullmatch(node.id))
    if isinstance(node, ast.Constant):
        text = isinstance(node.value, str) and bool(_SYMBOL.fullmatch(node.value))
        return text or (isinstance(node.value, int | float) and abs(node.value) <= 1 << 63)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow | ast.LShift):
        return _is_small(node.right)
    if isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else ""
        return name in _FUNCTIONS and (
            name not in _POWERS or (len(node.args) == 2 and _is_small(node.args[1]))
        )
    if isinstance(node, ast.keyword):
        return node.arg in _ASSUMPTIONS and isinstance(node.value, ast.Constant)
    return isinstance(node, _EXPRESSION_NODES)


def _is_guard(item: JSON) -> bool:
    """A claim about the sizes of the inputs, which the loader compiles: `L['x'].size()[0] % 2 == 0`."""
    if (
        not isinstance(item, str)
        or len(item) > MAX_EXPRESSION
        or item.count("(") > MAX_BRACKETS
        or not item.isascii()
    ):
        return False
    try:
        tree = ast.parse(item.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(_is_guard_term(node) for node in ast.walk(tree))


def _is_guard_term(node: ast.AST) -> bool:
    if isinstance(node, ast.Name):
        return node.id in {"L", "max", "min", "abs"}
    if isinstance(node, ast.Attribute):
        return node.attr in _GUARD_METHODS
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Attribute):
            return not node.args and not node.keywords
        return isinstance(node.func, ast.Name) and node.func.id != "L" and not node.keywords
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow | ast.LShift):
        return _is_small(node.right)
    return isinstance(node, (*_EXPRESSION_NODES, ast.Subscript)) and not isinstance(node, ast.keyword)


def _is_small(node: ast.expr) -> bool:
    """An exponent that does not make a number of millions of digits: -1, 2, Integer(2)."""
    if isinstance(node, ast.Call) and len(node.args) == 1:
        node = node.args[0]
    if isinstance(node, ast.UnaryOp):
        node = node.operand
    return isinstance(node, ast.Constant) and isinstance(node.value, int) and node.value <= MAX_EXPONENT


def _is_tree(item: JSON) -> bool:
    """A tree specification as PyTorch writes it: [version, {type, context, children_spec}] in JSON text."""
    if item is None or item == "":
        return True
    if not isinstance(item, str) or len(item) > MAX_TREE_BYTES:
        return False
    try:
        value = parse(item.encode())
    except Malformed:
        return False
    return (
        isinstance(value, list) and len(value) == 2 and type(value[0]) is int and _are_plain_trees([value[1]])
    )


def _are_plain_trees(waiting: list[JSON]) -> bool:
    """Types are looked up by name in a table of the loader. Only contexts with an object in them import a module."""
    while waiting:
        node = waiting.pop()
        if not isinstance(node, dict) or not set(node) <= {"type", "context", "children_spec"}:
            return False
        kind, children = node.get("type"), node.get("children_spec")
        if not (kind is None or (isinstance(kind, str) and _TREE_TYPE.fullmatch(kind))):
            return False
        if not isinstance(children, list) or not _is_plain_context(node.get("context")):
            return False
        waiting.extend(children)
    return True


def _is_plain_context(context: JSON) -> bool:
    """null, a number, text that is no JSON object, or a list of those."""
    if isinstance(context, list):
        return all(_is_plain_context(item) for item in context)
    return context is None or isinstance(context, int) or (isinstance(context, str) and "{" not in context)
