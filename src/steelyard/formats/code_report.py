"""What Python source may do when it is imported or called, read from its syntax tree and never run.

Capabilities are found by the names a program reaches for: imports, and calls through them, with aliases followed
(`import os as o`, `from os import system as s`, `f = os.system`). A report is no proof of harmlessness: a name made
at run time can be anything, so code that makes names is said to do so. What runs at import is marked: the module's
body, class bodies, decorators and default arguments.
"""

import ast
import base64
import binascii
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

MAX_PLACES = 200
MIN_BLOB_CHARS = 64

# First part of a dotted name, or a whole dotted name -> what it is for.
_MODULES: Mapping[str, str] = {
    "socket": "network", "ssl": "network", "http": "network", "urllib": "network", "urllib3": "network",
    "requests": "network", "httpx": "network", "aiohttp": "network", "ftplib": "network", "smtplib": "network",
    "telnetlib": "network", "poplib": "network", "imaplib": "network", "xmlrpc": "network", "socketserver": "network",
    "websocket": "network", "websockets": "network", "paramiko": "network", "boto3": "network", "asyncore": "network",
    "webbrowser": "network", "huggingface_hub": "network",
    "subprocess": "processes", "multiprocessing": "processes", "pty": "processes", "pexpect": "processes",
    "concurrent.futures.ProcessPoolExecutor": "processes", "commands": "processes", "sh": "processes",
    "ctypes": "native code", "cffi": "native code", "_ctypes": "native code", "cppyy": "native code",
    "torch.ops.load_library": "native code", "torch.utils.cpp_extension": "native code",
    "torch.classes.load_library": "native code",
    "pickle": "deserialisation", "_pickle": "deserialisation", "cPickle": "deserialisation", "dill": "deserialisation",
    "cloudpickle": "deserialisation", "joblib": "deserialisation", "marshal": "deserialisation",
    "shelve": "deserialisation", "jsonpickle": "deserialisation", "pandas.read_pickle": "deserialisation",
    "torch.load": "deserialisation", "torch.jit.load": "deserialisation", "torch.package": "deserialisation",
    "torch.hub": "network", "numpy.load": "deserialisation", "yaml.load": "deserialisation",
    "yaml.unsafe_load": "deserialisation", "yaml.full_load": "deserialisation",
    "shutil": "files", "tempfile": "files", "pathlib": "files", "glob": "files", "zipfile": "files",
    "tarfile": "files", "mmap": "files", "fileinput": "files", "sqlite3": "files", "io.open": "files", "open": "files",
    "os.environ": "environment", "os.getenv": "environment", "os.putenv": "environment", "platform": "environment",
    "getpass": "environment", "pwd": "environment",
    "exec": "code made at run time", "eval": "code made at run time", "compile": "code made at run time",
    "code": "code made at run time", "codeop": "code made at run time", "runpy": "code made at run time",
    "types.FunctionType": "code made at run time", "types.CodeType": "code made at run time",
    "__import__": "computed names", "importlib": "computed names", "pkgutil": "computed names",
    "imp": "computed names", "zipimport": "computed names", "globals": "computed names", "locals": "computed names",
    "vars": "computed names", "builtins": "computed names", "__builtins__": "computed names",
    "inspect.currentframe": "computed names", "sys._getframe": "computed names", "sys.modules": "computed names",
    "gc": "computed names", "operator.attrgetter": "computed names", "operator.methodcaller": "computed names",
    "signal": "the interpreter's state", "atexit": "the interpreter's state", "sys.settrace": "the interpreter's state",
    "sys.setprofile": "the interpreter's state", "sys.path": "the interpreter's state",
    "sys.meta_path": "the interpreter's state", "site": "the interpreter's state",
    "sitecustomize": "the interpreter's state", "faulthandler": "the interpreter's state",
}  # fmt: skip
# Of `os`, paths and sizes are harmless; these are not.
_OS_PROCESSES = re.compile(
    r"(?:os|posix|nt)\.(?:system|popen|exec\w+|spawn\w+|fork\w*|posix_spawn\w*|startfile|kill\w*)"
)
_OS_FILES = re.compile(
    r"(?:os|posix|nt)\.(?:open|remove|unlink|rename\w*|replace|rmdir|removedirs|makedirs|mkdir|link|symlink|chmod|chown"
    r"|listdir|scandir|walk|truncate|write)"
)
_DUNDERS = frozenset(
    {
        "__subclasses__", "__globals__", "__builtins__", "__bases__", "__mro__", "__code__", "__getattribute__",
        "__import__", "__loader__", "__reduce__", "__reduce_ex__", "__closure__",
    }
)  # fmt: skip
_DECODERS = re.compile(
    r"(?:base64\.\w+|binascii\.(?:a2b_\w+|unhexlify)|zlib\.decompress\w*|gzip\.decompress|bz2\.decompress"
    r"|lzma\.decompress|codecs\.(?:decode|getdecoder)|marshal\.loads?|pickle\.loads?|bytes\.fromhex|bytearray\.fromhex"
    r"|urllib\..*|requests\..*|httpx\..*|socket\..*|http\..*)"
)
_RUNNERS = frozenset({"exec", "eval", "compile", "types.FunctionType", "types.CodeType", "runpy.run_path"})
_BLOB = re.compile(r"[A-Za-z0-9+/=_\-\s]+|(?:[0-9a-fA-F]{2}\s*)+")


@dataclass(slots=True)
class CodeReport:
    """What one source may do: capability -> lines, and what no honest source does -> line."""

    lines: int
    imports: list[str] = field(default_factory=list)
    capabilities: dict[str, list[int]] = field(default_factory=dict)
    at_import: set[str] = field(default_factory=set)
    hostile: list[tuple[int, str]] = field(default_factory=list)

    def may(self, capability: str, line: int, *, at_import: bool) -> None:
        places = self.capabilities.setdefault(capability, [])
        if line not in places and len(places) < MAX_PLACES:
            places.append(line)
        if at_import:
            self.at_import.add(capability)


def examine_code(tree: ast.Module, text: str) -> CodeReport:
    """The report on one parsed source. Depth is bounded by the parser that made the tree."""
    report = CodeReport(text.count("\n") + 1)
    names = _aliases(tree, report)
    for node, at_import in _nodes(tree):
        _examine(node, names, report, at_import=at_import)
    if {"processes", "network"} <= report.at_import:
        report.hostile.append((1, "reaches the network and starts processes as soon as it is imported"))
    return report


def identifiers_not_normal(text_tree: ast.Module, text: str) -> str | None:
    """The first identifier that Python folds to another one (NFKC): a reader and the interpreter see two names."""
    seen = {match[0] for match in re.finditer(r"[^\W\d]\w*", text) if not match[0].isascii()}
    known = {node.id for node in ast.walk(text_tree) if isinstance(node, ast.Name)}
    known |= {node.attr for node in ast.walk(text_tree) if isinstance(node, ast.Attribute)}
    for name in sorted(seen):
        folded = unicodedata.normalize("NFKC", name)
        if folded != name and folded in known:
            return name
    return None


def _nodes(tree: ast.Module) -> Iterator[tuple[ast.AST, bool]]:
    """Every node, and whether it runs when the module is imported."""
    pending: list[tuple[ast.AST, bool]] = [(tree, True)]
    while pending:
        node, at_import = pending.pop()
        yield node, at_import
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            now = [*node.args.defaults, *(each for each in node.args.kw_defaults if each is not None)]
            body: list[ast.AST] = [node.body] if isinstance(node, ast.Lambda) else list(node.body)
            if not isinstance(node, ast.Lambda):
                now += node.decorator_list
            pending.extend((each, at_import) for each in now)
            pending.extend((each, False) for each in body)
        else:
            pending.extend((child, at_import) for child in ast.iter_child_nodes(node))


def _aliases(tree: ast.Module, report: CodeReport) -> dict[str, str]:
    """Local name -> dotted name, through imports and plain assignments."""
    names: dict[str, str] = {}
    modules: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                modules.add(alias.name)
                names[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            modules.add(base)
            for alias in node.names:
                names[alias.asname or alias.name] = f"{base}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Name | ast.Attribute):
            dotted = _dotted(node.value, names)
            for target in node.targets:
                if isinstance(target, ast.Name) and dotted is not None and _capability(dotted) is not None:
                    names[target.id] = dotted
    report.imports = sorted(modules)
    return names


def _dotted(node: ast.AST, names: Mapping[str, str]) -> str | None:
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    return ".".join([names.get(node.id, node.id), *reversed(parts)])


def _capability(dotted: str) -> str | None:
    if _OS_PROCESSES.fullmatch(dotted):
        return "processes"
    if _OS_FILES.fullmatch(dotted):
        return "files"
    parts = dotted.split(".")
    for length in range(len(parts), 0, -1):
        if (found := _MODULES.get(".".join(parts[:length]))) is not None:
            return found
    return None


def _examine(node: ast.AST, names: Mapping[str, str], report: CodeReport, *, at_import: bool) -> None:
    line = getattr(node, "lineno", 1)
    if isinstance(node, ast.Import | ast.ImportFrom):
        module = getattr(node, "module", None)
        for alias in node.names:
            capability = _capability(f"{module}.{alias.name}" if module else alias.name)
            if capability is not None:
                report.may(capability, line, at_import=False)
    elif isinstance(node, ast.Name | ast.Attribute):
        dotted = _dotted(node, names)
        if isinstance(node, ast.Attribute) and node.attr in _DUNDERS:
            report.may("computed names", line, at_import=at_import)
        if dotted is not None and (capability := _capability(dotted)) is not None:
            report.may(capability, line, at_import=False)
    elif isinstance(node, ast.Call):
        _examine_call(node, names, report, at_import=at_import)
    elif isinstance(node, ast.ClassDef) and node.keywords:
        report.may("a metaclass", line, at_import=True)


def _examine_call(node: ast.Call, names: Mapping[str, str], report: CodeReport, *, at_import: bool) -> None:
    dotted = _dotted(node.func, names)
    if dotted is not None and (capability := _capability(dotted)) is not None:
        report.may(capability, node.lineno, at_import=at_import)
    if dotted in ("getattr", "setattr", "delattr") and len(node.args) > 1:
        name = node.args[1]
        if not (isinstance(name, ast.Constant) and isinstance(name.value, str)):
            report.may("computed names", node.lineno, at_import=at_import)
            if _is_assembled(name):
                report.hostile.append((node.lineno, f"puts together the name it asks for in {dotted}"))
    if dotted == "__import__" and node.args and _is_assembled(node.args[0]):
        report.hostile.append((node.lineno, "puts together the name it imports"))
    if dotted in _RUNNERS and any(_decodes(part, names) for part in node.args):
        report.hostile.append((node.lineno, f"{dotted} of decoded or downloaded data"))
    if dotted is not None and _DECODERS.fullmatch(dotted) and any(_is_blob(part) for part in node.args):
        report.may("an encoded literal", node.lineno, at_import=at_import)
        if any(name in report.capabilities for name in ("code made at run time",)):
            report.hostile.append((node.lineno, "decodes a long literal beside code made at run time"))


def _is_assembled(node: ast.AST) -> bool:
    """A name written so that a search for it finds nothing: pieces, escapes in a call, a reversed text."""
    if isinstance(node, ast.BinOp):
        return all(isinstance(each, ast.Constant | ast.BinOp) for each in (node.left, node.right))
    if isinstance(node, ast.Subscript):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.Call):
        func = node.func
        of_constant = isinstance(func, ast.Attribute) and isinstance(func.value, ast.Constant)
        is_chr = isinstance(func, ast.Name) and func.id in ("chr", "bytes")
        return of_constant or is_chr
    return False


def _decodes(node: ast.AST, names: Mapping[str, str]) -> bool:
    for part in ast.walk(node):
        if isinstance(part, ast.Call):
            dotted = _dotted(part.func, names)
            if dotted is not None and _DECODERS.fullmatch(dotted):
                return True
            if isinstance(part.func, ast.Name) and part.func.id == "chr":
                return True
    return False


def _is_blob(node: ast.AST) -> bool:
    """A long literal that decodes as base64 or hexadecimal."""
    value = node.value if isinstance(node, ast.Constant) else None
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    if not isinstance(text, str) or len(text) < MIN_BLOB_CHARS or not _BLOB.fullmatch(text):
        return False
    try:
        base64.b64decode("".join(text.split()), validate=False)
    except (binascii.Error, ValueError):
        return False
    return True
