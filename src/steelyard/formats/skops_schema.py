"""skops archives: schema.json, a tree of nodes that skops' loader turns into objects, and arrays beside it.

    {"__class__": "Ridge", "__module__": "sklearn.linear_model._ridge", "__loader__": "ObjectNode", "content": {...}}

`__loader__` picks what happens with the class. Data nodes are let through when their class is in the tables that
also judge pickles (pickled_globals.py). MethodNode, OperatorFuncNode and PartialNode build callables from parts that
skops' own audit has named wrongly (CVE-2025-54412, CVE-2025-54413) and are refused; so is every loader not listed.
The zip and the arrays are read by their own formats. A file that is no zip never comes here, so the fallback to
joblib of CVE-2025-54886 has no counterpart.
Source: skops 0.16, skops/io/_general.py, _numpy.py, _scipy.py, _sklearn.py.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Final

from steelyard.digest import JSON
from steelyard.formats.base import ByteSource, Finding, Report, Rule
from steelyard.formats.jsonfile import PARSE_RULES, SKOPS_START, base_name, clip, load
from steelyard.formats.pickled_globals import listed
from steelyard.formats.pickled_numpy import REDUCTIONS, SCALAR_TYPES, UFUNCS

MAX_DEPTH = 64
MAX_FINDINGS = 50
_SAVE_AGAIN = "Save the estimator with skops.io.dump from released library classes only."
RULES: Final[Mapping[str, Rule]] = {
    **PARSE_RULES,
    "skops/loader": Rule(
        "A node that builds a callable from parts, or one nobody knows (CVE-2025-54412, CVE-2025-54413).",
        _SAVE_AGAIN,
    ),
    "skops/class": Rule("A class outside the known libraries, which the loader imports.", _SAVE_AGAIN),
    "skops/function": Rule(
        "A function the loader imports and the model calls: os.system is one.", _SAVE_AGAIN
    ),
    "skops/file": Rule("A node that reads a file outside the archive or of another kind.", _SAVE_AGAIN),
    "skops/shape": Rule("A schema that is no tree of nodes.", _SAVE_AGAIN),
}

_PLAIN: Final[Mapping[str, frozenset[str]]] = {
    "DictNode": frozenset({"builtins.dict", "collections.OrderedDict", "sklearn.utils._bunch.Bunch"}),
    "ListNode": frozenset({"builtins.list"}),
    "SetNode": frozenset({"builtins.set", "builtins.frozenset"}),
    "TupleNode": frozenset({"builtins.tuple"}),
    "BytesNode": frozenset({"builtins.bytes"}),
    "BytearrayNode": frozenset({"builtins.bytearray"}),
    "SliceNode": frozenset({"builtins.slice"}),
    "JsonNode": frozenset(
        {"builtins.str", "builtins.int", "builtins.float", "builtins.bool", "builtins.NoneType"}
    ),
    "DTypeNode": frozenset({"numpy.dtype"}),
    "MaskedArrayNode": frozenset({"numpy.ma.MaskedArray", "numpy.ma.core.MaskedArray"}),
    "RandomStateNode": frozenset({"numpy.random.mtrand.RandomState"}),
    "RandomGeneratorNode": frozenset({"numpy.random._generator.Generator"}),
    "DefaultDictNode": frozenset({"collections.defaultdict"}),
    "TreeNode": frozenset({"sklearn.tree._tree.Tree"}),
    "CachedNode": frozenset(),
}
# Their class must be one that pickles may hold too.
_LISTED: Final = frozenset(
    {"ObjectNode", "NdArrayNode", "SparseMatrixNode", "LossNode", "SGDNode", "ReduceNode"}
)
_DATE: Final = frozenset({"datetime.date", "datetime.datetime", "datetime.time", "datetime.timedelta"})
_LIBRARIES: Final = frozenset({"sklearn", "scipy", "numpy", "xgboost", "lightgbm", "_loss"})
_TYPES: Final = frozenset(
    {"str", "int", "float", "bool", "bytes", "bytearray", "complex", "dict", "list", "tuple", "set", "frozenset",
     "slice", "NoneType"}
)  # fmt: skip
_NUMPY_FUNCTIONS: Final = frozenset(UFUNCS) | frozenset(REDUCTIONS)
_FUNCTION_MODULES: Final = frozenset({"numpy", "scipy._lib.array_api_compat.numpy._aliases", "scipy.special"})
_SPECIAL: Final = frozenset(
    {"expit", "logit", "log_ndtr", "ndtr", "ndtri", "xlogy", "gammaln", "erf", "erfinv", "boxcox"}
)
_FILE = re.compile(r"[A-Za-z0-9_-]{1,64}\.(npy|npz|bin)")


class SkopsSchemaFormat:
    """schema.json, by its first key."""

    name = "skops-schema"
    rules = RULES

    def sniff(self, head: bytes, path: str) -> bool:
        return base_name(path) == "schema.json" and looks_like_skops(head)

    def read(self, source: ByteSource, path: str) -> Report:  # noqa: ARG002 - the plug's signature
        value = load(source)
        facts: dict[str, JSON] = {}
        if isinstance(value, dict):
            facts["class"] = f"{value.get('__module__')}.{value.get('__class__')}"[:120]
            facts["skops_version"] = str(value.get("_skops_version"))[:40]
        return Report(self.name, facts, tuple(islice(_nodes(value), MAX_FINDINGS)))


def looks_like_skops(head: bytes) -> bool:
    return SKOPS_START.match(head) is not None


def _nodes(value: JSON) -> Iterator[Finding]:
    if not (isinstance(value, dict) and "__loader__" in value):
        yield Finding("skops/shape", "the top is no node", 0)
    stack: list[JSON] = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, list):
            stack.extend(item)
        elif isinstance(item, dict):
            # A dictionary of the model may itself have such keys: skops asks for __loader__ alone.
            if "__loader__" in item:
                yield from _node(item)
            elif "__class__" in item or "__module__" in item:
                yield Finding("skops/shape", "a node without a loader")
            stack.extend(item.values())


def _node(item: Mapping[str, JSON]) -> Iterator[Finding]:
    loader, module, name = item.get("__loader__"), item.get("__module__"), item.get("__class__")
    if not (isinstance(loader, str) and isinstance(module, str) and isinstance(name, str)):
        if loader != "CachedNode":
            yield Finding("skops/shape", f"a node of {clip(str(loader))} without class and module")
        return
    full = f"{module}.{name}"
    if loader == "FunctionNode":
        yield from _function(module, name, item.get("content"))
    elif loader == "TypeNode":
        if not _is_type(module, name):
            yield Finding("skops/class", f"the type {clip(full)}", member=full[:120])
    elif loader in _PLAIN:
        if full not in _PLAIN[loader] and loader != "CachedNode":
            yield Finding("skops/class", f"{loader} of {clip(full)}", member=full[:120])
    elif loader in _LISTED:
        if not _is_listed(module, name):
            yield Finding("skops/class", f"{loader} of {clip(full)}", member=full[:120])
    elif loader not in {"DatetimeTimedeltaNode", "DatetimeNode"} or full not in _DATE:
        yield Finding("skops/loader", f"{clip(loader)} of {clip(full)}", member=full[:120])
    yield from _content(item, loader, full)


def _content(item: Mapping[str, JSON], loader: str, full: str) -> Iterator[Finding]:
    file = item.get("file")
    if file is not None and not (isinstance(file, str) and _FILE.fullmatch(file)):
        yield Finding("skops/file", f"{clip(full)} reads {clip(str(file))}", member=full[:120])
    if loader == "JsonNode" and not isinstance(item.get("content"), str):
        yield Finding("skops/shape", "a JSON node without text")


def _is_listed(module: str, name: str) -> bool:
    is_scalar = module == "numpy" and name in {*SCALAR_TYPES, "ndarray", "matrix"}
    return is_scalar or (module.split(".")[0] in _LIBRARIES and listed(module, name) is not None)


def _is_type(module: str, name: str) -> bool:
    if module == "builtins":
        return name in _TYPES
    return (module, name) == ("collections", "OrderedDict") or _is_listed(module, name)


def _function(module: str, name: str, content: JSON) -> Iterator[Finding]:
    named = {(module, name)}
    if isinstance(content, dict):  # versions before 0.10 write the name here and read it from here
        named.add((str(content.get("module_path")), str(content.get("function"))))
    for its_module, its_name in sorted(named):
        is_numeric = its_module in _FUNCTION_MODULES and its_name in _NUMPY_FUNCTIONS | _SPECIAL
        is_sklearn = its_module.split(".")[0] == "sklearn" and listed(its_module, its_name) is not None
        if not is_numeric and not is_sklearn:
            full = f"{its_module}.{its_name}"
            yield Finding("skops/function", f"the function {clip(full)}", member=full[:120])


FORMAT: Final = SkopsSchemaFormat()
