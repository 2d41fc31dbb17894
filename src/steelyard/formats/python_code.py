"""Code beside the weights. It is never run or imported; that it is there is the finding.

Source text (.py, notebooks) asks one question, which names what it may do; a policy may name its digest. Source that
hides what it runs is refused. Compiled code
(.pyc, ELF, PE, Mach-O, WebAssembly, Java classes) and .pth files, which run at every start of Python, are refused.
"""

import ast
import io
import tokenize
import unicodedata
from collections.abc import Mapping

from steelyard.digest import JSON
from steelyard.errors import Malformed
from steelyard.formats.base import ByteSource, Finding, Format, Report, Rule, Severity
from steelyard.formats.code_report import CodeReport, examine_code, identifiers_not_normal
from steelyard.formats.jsonfile import PARSE_RULES
from steelyard.formats.jsonfile import parse as parse_json

MAX_SOURCE_BYTES = 4 << 20
MAX_NAMES = 100
MAX_LINES = 20
MAX_FINDINGS = 20
_READ_IT = "read the file, then name its SHA-256 in the policy (docs/concepts/policy.md), or remove it"
RULES: Mapping[str, Rule] = {
    "code/python": Rule("remote code: the loader imports this file and runs it", _READ_IT, Severity.REVIEW),
    "code/notebook": Rule("code that a reader of the notebook is invited to run", _READ_IT, Severity.REVIEW),
    "code/shell": Rule("a script that an installer or a reader may run", _READ_IT, Severity.REVIEW),
    "code/obfuscated": Rule(
        "code that hides what it runs: decoded or downloaded text executed, names put together from pieces",
        "remove the file; a digest in the policy does not help it",
    ),
    "code/unreadable": Rule("code that a reader sees as something else, or cannot see", "remove the file"),
    "code/native": Rule("native code: loading it runs it, and nobody can read it", "remove the file"),
    "code/compiled": Rule("compiled Python that differs from the source beside it", "remove the file"),
    "code/start-up": Rule("a .pth file runs at every start of Python", "remove the file"),
    **PARSE_RULES,
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
        if kind == "notebook":
            return _notebook(data)
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
    if (folded := identifiers_not_normal(tree, text)) is not None:
        return _one("code/unreadable", f"the identifier {folded!a} is another one to Python (NFKC)")
    return _reported(examine_code(tree, text), "code/python")


def _reported(seen: CodeReport, rule: str) -> Report:
    """One question for a file that somebody may run, or a refusal for what no honest file does."""
    facts: dict[str, JSON] = {
        "kind": rule.partition("/")[2],
        "lines": seen.lines,
        "imports": list(seen.imports[:MAX_NAMES]),
        "may": {what: list(sorted(lines)[:MAX_LINES]) for what, lines in sorted(seen.capabilities.items())},
        "at_import": sorted(seen.at_import),
    }
    findings = [
        Finding("code/obfuscated", f"line {line}: {what}") for line, what in seen.hostile[:MAX_FINDINGS]
    ]
    may = ", ".join(
        f"{what} (line {', '.join(map(str, sorted(lines)[:3]))}{'; at import' if what in seen.at_import else ''})"
        for what, lines in sorted(seen.capabilities.items())
    )
    question = f"{seen.lines} lines of Python; may use: {may or 'nothing beyond its imports'}; run it?"
    return Report("code", facts, (*findings, Finding(rule, question, 0)))


def _notebook(data: bytes) -> Report:
    """A notebook's code cells as one program; magics (%pip, !ls) are commands of a shell."""
    value = parse_json(data)
    cells = value.get("cells") if isinstance(value, dict) else None
    if not isinstance(cells, list):
        return _one("code/unreadable", "a notebook without cells")
    lines: list[str] = []
    shell = 0
    for cell in cells:
        if not isinstance(cell, dict) or cell.get("cell_type") != "code":
            continue
        source = cell.get("source", "")
        text = (
            "".join(each for each in source if isinstance(each, str))
            if isinstance(source, list)
            else str(source)
        )
        for line in text.splitlines():
            is_command = line.lstrip().startswith(("!", "%", "?"))
            shell += is_command
            lines.append("pass" if is_command and not line.startswith(" ") else "" if is_command else line)
    text = "\n".join(lines)
    try:
        seen = examine_code(ast.parse(text), text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return _one("code/notebook", f"cells that are not plain Python ({str(error)[:80]}); run them?")
    if shell:
        seen.capabilities["processes"] = [*seen.capabilities.get("processes", []), 1]
    return _reported(seen, "code/notebook")


FORMAT: Format = CodeFormat()
