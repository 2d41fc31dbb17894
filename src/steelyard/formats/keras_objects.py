"""What a Keras configuration builds: a tree of {class_name, config} objects, each named from a closed list.

    Keras 3      {"module": "keras.layers", "class_name": "Dense", "config": {...}, "registered_name": null}
    Keras 2      {"class_name": "Dense", "config": {...}}
    a function   {"class_name": "function", "config": "relu", "module": "builtins"}, or its name alone
    plain data   {"class_name": "__tuple__", "items": [...]} and other names between double underscores

`from_config` imports `module` and calls `class_name` with what `config` holds, so each object must be a class of
Keras itself. Names are compared whole; keras_names.py says where they are from. Classes that run code, import or
open what the configuration names are refused: Lambda (CVE-2024-3660, CVE-2025-9905), a foreign module
(CVE-2025-1550), TFSMLayer (CVE-2026-1462), TorchModuleWrapper (CVE-2025-9906), vocabularies by path
(CVE-2025-12058), get_file (CVE-2025-8747, CVE-2025-12638).
Source: keras/src/saving/serialization_lib.py of keras 3.15, keras/saving/legacy/serialization.py of keras 2.15.
"""

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Final

from steelyard.digest import JSON
from steelyard.formats.base import Finding, Rule
from steelyard.formats.keras_names import CLASSES, FUNCTIONS

MAX_FINDINGS = 50
_REBUILD = "Rebuild the model from layers of Keras and save it again, or ship the weights alone."

RULES: Final[Mapping[str, Rule]] = {
    "keras/code": Rule(
        "A layer that carries a program or loads one: Lambda, TFSMLayer, a wrapper of another framework "
        "(CVE-2024-3660, CVE-2025-9905, CVE-2025-9906, CVE-2026-1462).",
        _REBUILD,
    ),
    "keras/module": Rule(
        "A module outside Keras, which the loader imports and calls (CVE-2025-1550, CVE-2025-8747).", _REBUILD
    ),
    "keras/class": Rule("A class that Keras does not build itself: what it does is unknown.", _REBUILD),
    "keras/custom": Rule(
        "An object registered by somebody's package; loading it needs, and runs, that package's code.",
        _REBUILD,
    ),
    "keras/function": Rule("A function outside Keras' own, called when the model is built.", _REBUILD),
    "keras/file": Rule(
        "A path or an address that a layer opens when the model is built: local files are read, servers are "
        "called (CVE-2025-12058, CVE-2025-12638).",
        "Keep the vocabulary in the configuration or in the model's assets.",
    ),
    "keras/shape": Rule("A configuration that is no tree of Keras objects.", _REBUILD),
}

_CODE_CLASSES: Final = frozenset(
    {
        "Lambda", "__lambda__", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer", "NnxLayer",
        "TensorFlowOpLayer", "Map", "VectorizedMap", "Cond", "WhileLoop", "Scan", "AssociativeScan", "ForiLoop",
        "Switch", "CustomGradient", "Function", "SavedModelLayer", "ClassMethod", "InstanceMethod",
        "InstanceProperty",
    }
)  # fmt: skip
_PLAIN: Final = frozenset(
    {
        "__keras_tensor__", "__tensor__", "__numpy__", "__bytes__", "__tuple__", "__slice__", "__ellipsis__",
        "__complex__", "__shape__", "TensorShape",
    }
)  # fmt: skip
_OP_LAYERS: Final = frozenset({"TFOpLambda", "SlicingOpLambda"})
# TensorFlow symbols of arithmetic; anything else may read files or call back into Python.
_TF_SYMBOL = re.compile(
    r"(math|nn|linalg|__operators__|signal|bitwise)\.[a-z0-9_]{1,40}|keras\.backend\.[a-z0-9_]{1,40}"
    r"|(reshape|transpose|concat|stack|unstack|expand_dims|squeeze|cast|shape|slice|strided_slice|tile|where|split"
    r"|gather|pad|reverse|clip_by_value|broadcast_to|zeros_like|ones_like|identity|stop_gradient|one_hot|einsum"
    r"|convert_to_tensor|range|rank|size|ones|zeros|fill|eye|image\.resize|compat\.v1\.(transpose|shape|gather))"
)
_MODULE = re.compile(
    r"(tensorflow\.python\.keras|tensorflow\.keras|tf_keras|keras)"
    r"(\.(src|api|_v2|_tf_keras|keras))*"
    r"(\.(layers|models|engine|activations|initializers|regularizers|constraints|losses|metrics|optimizers|ops"
    r"|dtype_policies|mixed_precision|quantizers|random|applications)(\.[a-z_][a-z0-9_]*)*)?"
)
_FILE_KEYS: Final = frozenset(
    {
        "vocabulary", "vocabulary_file", "vocab", "idf_weights", "filepath", "file_path", "filename", "fname",
        "file", "path", "origin", "url", "cache_dir", "cache_subdir", "directory", "asset_path", "weights_path",
        "initial_vocabulary", "saved_model_path", "model_path",
    }
)  # fmt: skip
_CODE_KEYS: Final = frozenset(
    {"fn_module", "function", "function_type", "output_shape_type", "output_shape_module", "mask_module"}
)
_PATH = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://|/\w|~|[A-Za-z]:[\\/]|\\\\|(.*[\\/])?\.\.([\\/]|$)", re.DOTALL)
_CALLED_SUFFIXES = ("activation", "_initializer", "_regularizer", "_constraint")
_COMPILED: Final = frozenset({"loss", "metrics", "weighted_metrics", "optimizer"})
_ALSO_CALLED: Final = frozenset(
    {"accuracy", "acc", "crossentropy", "ce", "normal", "uniform", "one", "zero", "auto"}
)
_PLAIN_NAMES: Final = frozenset(name.replace("_", "").lower() for name in CLASSES | FUNCTIONS)
# Keras 2.11 to 2.15 registers its own optimisers as a user's package would.
_OPTIMIZERS: Final = frozenset(
    f"Custom>{name}"
    for name in (
        "Adadelta",
        "Adafactor",
        "Adagrad",
        "Adam",
        "AdamW",
        "Adamax",
        "Ftrl",
        "Lion",
        "Nadam",
        "RMSprop",
        "SGD",
    )
)
_START = re.compile(
    rb'\s*\{\s*"(class_name"\s*:\s*"[^"]{1,200}"\s*,\s*"config"|'
    rb'module"\s*:\s*"[^"]{0,200}"\s*,\s*"class_name"|config"\s*:\s*\{.{0,4000}"class_name")',
    re.DOTALL,
)


def looks_like_keras(head: bytes) -> bool:
    """Whether a JSON text begins as a Keras object: class_name and config, or module and class_name."""
    return _START.match(head) is not None


def is_object(value: JSON) -> bool:
    """Whether a JSON value is what Keras' deserialiser builds an object from."""
    return isinstance(value, dict) and isinstance(value.get("class_name"), str) and "config" in value


def examine_objects(value: JSON) -> tuple[Finding, ...]:
    """Findings on every Keras object in `value`, at most MAX_FINDINGS of them."""
    return tuple(islice(_examine(value), MAX_FINDINGS))


def _examine(value: JSON) -> Iterator[Finding]:
    stack: list[JSON] = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, list):
            stack.extend(item)
        elif isinstance(item, dict):
            if "class_name" in item:
                yield from _object(item)
            elif "module" in item:
                yield from _module(item["module"], "an object")
            for key, each in item.items():
                yield from _field(key, each, item)
                # Words of a vocabulary are not names: they may look like anything.
                if key != "vocabulary" or isinstance(each, dict):
                    stack.append(each)
        elif isinstance(item, str) and _PATH.match(item):
            yield Finding("keras/file", f"the configuration names {_clip(item)}")


def _object(item: Mapping[str, JSON]) -> Iterator[Finding]:
    name = item["class_name"]
    if not isinstance(name, str):
        yield Finding("keras/shape", f"class_name is {_clip(str(name))}")
        return
    if name in _CODE_CLASSES:
        yield Finding("keras/code", f"the layer {name} runs code of the file's choice", member=name)
        return
    if name in _PLAIN:
        return
    yield from _module(item.get("module"), name)
    registered = item.get("registered_name")
    if name == "function":
        yield from _function(item.get("config"))
        return
    if name in _OP_LAYERS:
        config = item.get("config")
        symbol = config.get("function", "") if isinstance(config, dict) else ""
        if name == "TFOpLambda" and not (isinstance(symbol, str) and _TF_SYMBOL.fullmatch(symbol)):
            yield Finding("keras/function", f"TFOpLambda calls {_clip(str(symbol))}", member=name)
        return
    if name in _OPTIMIZERS:
        return
    if registered not in {None, name} and registered not in _OPTIMIZERS:
        yield Finding(
            "keras/custom", f"{_clip(name)} is registered as {_clip(str(registered))}", member=name[:80]
        )
    if name not in CLASSES and name != "Tokenizer":  # keras.preprocessing.text writes its word counts so
        rule = "keras/custom" if ">" in name else "keras/class"
        yield Finding(rule, f"{_clip(name)} is no class Keras builds", member=name[:80])
    elif "config" in item and not isinstance(item["config"], dict):
        yield Finding("keras/shape", f"the config of {name} is no object", member=name)


def _module(module: JSON, name: str) -> Iterator[Finding]:
    if module is None or (module == "builtins" and name == "function"):
        return
    if not isinstance(module, str) or not _MODULE.fullmatch(module):
        yield Finding("keras/module", f"{_clip(name)} is taken from the module {_clip(str(module))}")


def _function(config: JSON) -> Iterator[Finding]:
    if not (isinstance(config, str) and config in FUNCTIONS):
        yield Finding("keras/function", f"the function {_clip(str(config))} is not Keras' own")


def _field(key: str, value: JSON, parent: Mapping[str, JSON]) -> Iterator[Finding]:
    if key in _FILE_KEYS and isinstance(value, str) and value:
        yield Finding("keras/file", f"{key} names the file or address {_clip(value)}", member=key)
    elif key in _CODE_KEYS and value is not None and not _is_operator(key, parent):
        yield Finding("keras/code", f"{key} holds code or the name of code: {_clip(str(value))}", member=key)
    elif key.endswith(_CALLED_SUFFIXES) and isinstance(value, str):
        yield from _called(key, value)
    elif key in _COMPILED:
        for name in _names(value):
            yield from _called(key, name)


def _is_operator(key: str, parent: Mapping[str, JSON]) -> bool:
    """The `function` of TFOpLambda, which _object has looked at. Its config holds nothing but these."""
    symbol = parent.get("function")
    return key == "function" and isinstance(symbol, str) and _TF_SYMBOL.fullmatch(symbol) is not None


def _names(value: JSON) -> Iterator[str]:
    """Names in the loss or the metrics of `compile`: a text, a list, or a mapping from outputs."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _names(each)
    elif isinstance(value, dict) and "class_name" not in value:
        for each in value.values():
            if isinstance(each, (str, list)):
                yield from _names(each)


def _called(key: str, name: str) -> Iterator[Finding]:
    """Keras reads `glorot_uniform` and `GlorotUniform` as the same class."""
    if name not in _ALSO_CALLED and name.replace("_", "").lower() not in _PLAIN_NAMES:
        yield Finding("keras/function", f"{key} is {_clip(name)}, no name of Keras", member=key[:80])


def _clip(text: str, limit: int = 80) -> str:
    return ascii(text if len(text) <= limit else text[:limit] + "...")
