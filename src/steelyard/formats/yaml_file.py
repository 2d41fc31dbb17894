"""YAML around models: training recipes, Hydra and NeMo configurations, conda environments, MLflow's files.

Claimed by name (*.yaml, *.yml, MLmodel, MLproject), for YAML has no magic. yaml_subset.py reads it; then the keys
that make a loader import code are looked for as in JSON (jsonfile.py), and these:

    _target_, class_path   Hydra and Lightning import the name and call it. Classes of `nemo.collections`, `torch.nn`
                           and `torch.optim` are let through, since NeMo writes them into each checkpoint and their
                           constructors take numbers and texts; every other name, functions among them, is refused.
    MLmodel                flavours of MLflow read the file beside it, which is scanned by itself. A pyfunc model of
                           one's own (`loader_module`, `code`, python_model) is somebody's Python: refused.
    MLproject              commands for a shell: refused.
    conda.yaml             packages by address, path or another index are code from an unknown place: refused.

Source: mlflow 3 (`mlflow/models/model.py`, `mlflow/pyfunc/__init__.py`), hydra 1.3 (`hydra/_internal/instantiate`),
nemo_toolkit 2 (`nemo/core/classes/common.py`).
"""

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Final

from steelyard.digest import JSON
from steelyard.errors import Malformed
from steelyard.formats.base import ByteSource, Finding, Reference, Report, Rule
from steelyard.formats.hf_config import is_inside
from steelyard.formats.jsonfile import CONTENT_RULES, base_name, clip, examine
from steelyard.formats.yaml_subset import MAX_BYTES, parse_yaml
from steelyard.formats.yaml_subset import RULES as YAML_RULES

MAX_FINDINGS = 100
_OF_LIBRARY = "Name a class of the library that loads the file, or build the object in your own code."
RULES: Final[Mapping[str, Rule]] = {
    **YAML_RULES,
    **CONTENT_RULES,
    "yaml/instantiate": Rule(
        "A name that Hydra or Lightning imports and calls with arguments of the file: os.system is one.",
        _OF_LIBRARY,
    ),
    "mlflow/flavour": Rule(
        "A flavour that loads and runs Python of the model's author.",
        "Log the model with a flavour of its library, such as mlflow.sklearn.",
    ),
    "mlflow/path": Rule(
        "A path that leads the loader out of the model's folder.",
        "Name files inside the folder, relative to it.",
    ),
    "mlflow/project": Rule(
        "A list of shell commands that `mlflow run` executes.",
        "Remove MLproject: a model needs none to be served.",
    ),
    "conda/source": Rule(
        "A package from an address, a path or another index: code from an unknown place is installed.",
        "Name packages and versions only, from the usual channels.",
    ),
}

_MAGIC_STARTS = (b"PK", b"\x80", b"\x89HDF", b"\x1f\x8b")
_TARGET_KEYS: Final = frozenset({"_target_", "class_path", "_class_", "_partial_target_"})
# LangChain writes its kinds in small letters: chains, agents and tools run commands, prompts are text.
_PROMPTS: Final = frozenset({"prompt", "few_shot"})
_TARGET = re.compile(
    r"nemo\.collections(\.[a-z][a-z0-9_]*)+\.[A-Z][A-Za-z0-9]*"
    r"|torch\.nn(\.modules(\.[a-z]+)?)?\.[A-Z][A-Za-z0-9]*|torch\.optim(\.lr_scheduler)?\.[A-Z][A-Za-z0-9]*"
)
_FLAVOURS: Final = frozenset(
    {
        "catboost", "diviner", "fastai", "gluon", "h2o", "keras", "lightgbm", "onnx", "paddle", "pmdarima", "prophet",
        "pytorch", "sentence_transformers", "sklearn", "spacy", "spark", "statsmodels", "tensorflow", "transformers",
        "xgboost",
    }
)  # fmt: skip
_LEAVES = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:|[/~\\]|(.*[/\\])?\.\.([/\\]|$)", re.DOTALL)
_NOT_PATHS: Final = frozenset(
    {"python_version", "loader_module", "mlflow_version", "signature", "config", "options"}
)
_REFERENCES: Final = ("pickled_model", "model_path", "model_data", "data")
_LIST_BESIDE = re.compile(r"-r [A-Za-z0-9_][A-Za-z0-9_.-]{0,80}\.txt")
_PACKAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(\[[A-Za-z0-9,._ -]*\])?\s*([=<>!~, ;|*+].*)?")


class YamlFormat:
    """*.yaml, *.yml, MLmodel and MLproject, by name."""

    name = "yaml"
    rules = RULES

    def sniff(self, head: bytes, path: str) -> bool:
        base = base_name(path)
        named = base.lower().endswith((".yaml", ".yml")) or base in {"MLmodel", "MLproject"}
        return named and b"\0" not in head and not head.startswith(_MAGIC_STARTS)

    def read(self, source: ByteSource, path: str) -> Report:
        if source.size > MAX_BYTES:
            raise Malformed(f"YAML of {source.size} bytes; at most {MAX_BYTES} are read", rule="yaml/size")
        value = parse_yaml(source.read(0, source.size))
        base = base_name(path)
        findings = [*_content(value)]
        facts: dict[str, JSON] = {"keys": sorted(value)[:32] if isinstance(value, dict) else None}
        references: list[Reference] = []
        if base == "MLproject" or (isinstance(value, dict) and isinstance(value.get("entry_points"), dict)):
            findings.append(Finding("mlflow/project", "an MLflow project with commands to run"))
        if base == "MLmodel" or (isinstance(value, dict) and "flavors" in value):
            findings += _mlmodel(value, facts, references)
        if isinstance(value, dict) and isinstance(value.get("dependencies"), list):
            findings += islice(_packages(value["dependencies"]), MAX_FINDINGS)
        return Report(self.name, facts, tuple(findings[:MAX_FINDINGS]), None, tuple(references))


def _content(value: JSON) -> Iterator[Finding]:
    """What examine() finds, with instantiation judged here."""
    for finding in examine(value):
        is_ours = finding.member in _TARGET_KEYS or finding.member == "loader_module"
        if not is_ours:
            yield finding
    yield from islice(_targets(value), MAX_FINDINGS)


def _targets(value: JSON) -> Iterator[Finding]:
    stack = [value]
    while stack:
        item = stack.pop()
        if isinstance(item, list):
            stack.extend(item)
        elif isinstance(item, dict):
            stack.extend(item.values())
            kind = item.get("_type")
            if isinstance(kind, str) and kind.islower() and kind not in _PROMPTS:
                yield Finding("yaml/instantiate", f"_type builds {clip(kind)} of LangChain", member="_type")
            elif kind in _PROMPTS and item.get("template_format", "f-string") != "f-string":
                yield Finding("yaml/instantiate", "a prompt that a template engine renders", member="_type")
            for key in sorted(_TARGET_KEYS.intersection(item)):
                name = item[key]
                if not isinstance(name, str) or not _TARGET.fullmatch(name):
                    yield Finding("yaml/instantiate", f"{key} calls {clip(str(name))}", member=key)


def _mlmodel(value: JSON, facts: dict[str, JSON], references: list[Reference]) -> list[Finding]:
    flavours = value.get("flavors") if isinstance(value, dict) else None
    if not isinstance(flavours, dict):
        return [Finding("mlflow/flavour", "MLmodel names no flavours")]
    facts["flavours"] = sorted(flavours)[:16]
    findings: list[Finding] = []
    for name, flavour in flavours.items():
        if not isinstance(flavour, dict):
            findings.append(Finding("mlflow/flavour", f"the flavour {clip(name)} is no mapping"))
            continue
        findings += _flavour(name, flavour)
        findings += islice(_leaving(name, flavour), 8)
        for key in _REFERENCES:
            path = flavour.get(key)
            # Some flavours name a folder here; a file has a suffix.
            if isinstance(path, str) and is_inside(path) and "." in base_name(path):
                references.append(Reference(path))
    return findings


def _flavour(name: str, flavour: Mapping[str, JSON]) -> Iterator[Finding]:
    loader = flavour.get("loader_module")
    if name == "python_function":
        module, _, last = str(loader).partition(".")
        if module != "mlflow" or last.split(".")[0] not in _FLAVOURS or last.count("."):
            yield Finding(
                "mlflow/flavour", f"the model is loaded by {clip(str(loader))}", member="loader_module"
            )
    elif name not in _FLAVOURS:
        yield Finding("mlflow/flavour", f"the flavour {clip(name)} is not known", member="flavors")
    elif loader is not None:
        yield Finding("mlflow/flavour", f"the model is loaded by {clip(str(loader))}", member="loader_module")
    for key in ("code", "python_model", "model_code_path", "artifacts", "custom_objects"):
        if flavour.get(key) not in (None, "", {}, []):
            yield Finding("mlflow/flavour", f"{key} of {clip(name)} brings Python of its own", member=key)


def _leaving(name: str, flavour: JSON) -> Iterator[Finding]:
    stack: list[tuple[str, JSON]] = [(name, flavour)]
    while stack:
        key, item = stack.pop()
        if isinstance(item, dict):
            stack.extend(item.items())
        elif isinstance(item, list):
            stack.extend((key, each) for each in item)
        elif isinstance(item, str) and key not in _NOT_PATHS and _LEAVES.match(item):
            yield Finding("mlflow/path", f"{clip(key)} leads to {clip(item)}", member=key[:80])


def _packages(dependencies: list[JSON]) -> Iterator[Finding]:
    """Entries of a conda environment: texts, and one mapping of pip's own list."""
    for entry in dependencies:
        if isinstance(entry, dict):
            for each in entry.values():
                yield from _packages(each if isinstance(each, list) else [each])
        elif not isinstance(entry, str):
            yield Finding("conda/source", f"the package {clip(str(entry))} is no name")
        else:
            plain = entry.rpartition("::")[2]
            if _LIST_BESIDE.fullmatch(entry):
                continue  # a file of the same folder, read by itself
            if not _PACKAGE.fullmatch(plain) or "://" in plain or " @ " in plain:
                yield Finding("conda/source", f"the package {clip(entry)} is not a name with a version")


FORMAT: Final = YamlFormat()
