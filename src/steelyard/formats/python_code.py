"""Code beside the weights. It is never run or imported; that it is there is the finding.

Source text (.py, notebooks) asks one question: has somebody read it? A policy may name its digest. Compiled code
(.pyc, ELF, PE, Mach-O, WebAssembly, Java classes) and .pth files, which run at every start of Python, are refused.
"""

import ast
import io
import tokenize
import unicodedata
from collections.abc import Mapping

from steelyard.errors import Malformed
from steelyard.formats.base import ByteSource, Finding, Format, Report, Rule, Severity

MAX_SOURCE_BYTES = 4 << 20
_READ_IT = "read the file, then name its SHA-256 in the policy (docs/concepts/policy.md), or remove it"
RULES: Mapping[str, Rule] = {
    "code/python": Rule("remote code: the loader imports this file and runs it", _READ_IT, Severity.REVIEW),
    "code/notebook": Rule("code that a reader of the notebook is invited to run", _READ_IT, Severity.REVIEW),
    "code/shell": Rule("a script that an installer or a reader may run", _READ_IT, Severity.REVIEW),
    "code/unreadable": Rule("code that a reader sees as something else, or cannot see", "remove the file"),
    "code/native": Rule("native code: loading it runs it, and nobody can read it", "remove the file"),
    "code/compiled": Rule("compiled Python that differs from the source beside it", "remove the file"),
    "code/start-up": Rule("a .pth file runs at every start of Python", "remove the file"),
}
_NATIVE_MAGIC = {
    b"\x7fELF": "ELF",
    b"MZ": "PE",
    b"\xfe\xed\xfa\xce": "Mach-O",
    b"\xfe\xed\xfa\xcf": "Mach-O",
    b"\xce\xfa\xed\xfe": "Mach-O",
    b"\xcf\xfa\xed\xfe": "Mach-O",
    b"\xca\xfe\xba\xbe": "Mach-O or Java",
    b"\0asm": "WebAssembly",
    b"dex\n": "Dalvik",
}
_NATIVE_NAMES = (".so", ".dll", ".dylib", ".pyd", ".exe", ".wasm", ".jar")


class CodeFormat:
    """Claims code of any kind, by content where it has a magic, by name where it is text."""

    name = "code"
    rules = RULES

    def sniff(self, head: bytes, path: str) -> bool:
        return _kind(head, path) is not None

    def read(self, source: ByteSource, path: str) -> Report:
        head = source.read(0, min(source.size, 64))
        kind = _kind(head, path)
        if kind == "native":
            return _one("code/native", f"{_native_name(head)} code")
        if kind == "compiled":
            return _one("code/compiled", "compiled Python")
        if kind == "start-up":
            return _one("code/start-up", "a path configuration file")
        if source.size > MAX_SOURCE_BYTES:
            raise Malformed(
                f"{source.size} bytes of source; at most {MAX_SOURCE_BYTES} are read", rule="code/unreadable"
            )
        data = source.read(0, source.size)
        if kind == "python":
            return _python(data)
        return _one(f"code/{kind}", f"a {kind} file of {source.size} bytes")


def _kind(head: bytes, path: str) -> str | None:
    lower = path.lower()
    if any(head.startswith(magic) for magic in _NATIVE_MAGIC) or lower.endswith(_NATIVE_NAMES):
        return "native"
    if lower.endswith((".pyc", ".pyo")) or (head[2:4] == b"\r\n" and b"\0" in head[:16]):
        return "compiled"
    if lower.endswith(".pth") and _is_text(head):
        return "start-up"
    if lower.endswith(".ipynb"):
        return "notebook"
    if lower.endswith((".sh", ".bash", ".bat", ".ps1", ".cmd")) or head.startswith(b"#!"):
        return "python" if b"python" in head[:64].split(b"\n")[0] else "shell"
    return "python" if lower.endswith((".py", ".pyw", ".pyi")) else None


def _is_text(head: bytes) -> bool:
    return b"\0" not in head and not head.startswith(b"\x80")


def _native_name(head: bytes) -> str:
    return next((name for magic, name in _NATIVE_MAGIC.items() if head.startswith(magic)), "native")


def _one(rule: str, message: str) -> Report:
    return Report("code", {"kind": rule.partition("/")[2]}, (Finding(rule, message, 0),))


def _python(data: bytes) -> Report:
    """Source that parses asks for a reader; source that does not, or hides characters, is refused."""
    try:
        # Python itself obeys a coding line, so utf-7 or rot13 would show a reader another program than it runs.
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        if encoding != "utf-8":
            return _one("code/unreadable", f"the coding line says {encoding}; only UTF-8 is read")
        text = data.decode()
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return _one("code/unreadable", f"not Python 3 source in UTF-8: {str(error)[:120]}")
    hidden = [char for char in text if unicodedata.category(char) in ("Cf", "Co", "Cn") and char != "\ufeff"]
    if hidden:
        return _one(
            "code/unreadable", f"{len(hidden)} invisible or reordering characters, first {hidden[0]!r}"
        )
    folded = sorted({n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and not n.id.isascii()})
    note = f"; identifiers outside ASCII: {', '.join(folded[:5])}" if folded else ""
    imports = sorted(_imports(tree))
    report = _one("code/python", f"Python source that imports {', '.join(imports[:12]) or 'nothing'}{note}")
    return Report(report.format, {**report.facts, "imports": list(imports[:100])}, report.findings)


def _imports(tree: ast.Module) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or ".").partition(".")[0])
    return names


FORMAT: Format = CodeFormat()
