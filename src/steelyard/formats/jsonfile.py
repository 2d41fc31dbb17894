"""JSON within bounds, and the keys in JSON that make a loader run code.

`parse` is the one JSON reader of the formats. Size, number of values and depth are checked on the bytes
before the recursive reader of the standard library sees them. RFC 8259 is read strictly: UTF-8 without a
byte order mark, no NaN or Infinity, no number beyond a double, no lone surrogate, no key twice.

FORMAT claims every .json file that no other format knows. It is clean when it parses, holds no key that
makes a loader import code, and every chat template in it is clean.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import isinf
from typing import NoReturn, cast

from steelyard.digest import JSON
from steelyard.errors import Malformed
from steelyard.formats.base import ByteSource, Finding, Report, Rule
from steelyard.formats.chat_template import RULES as TEMPLATE_RULES
from steelyard.formats.chat_template import examine_template
from steelyard.formats.keras_objects import RULES as KERAS_RULES
from steelyard.formats.keras_objects import examine_objects, is_object, looks_like_keras

MAX_BYTES = 64 << 20
MAX_VALUES = 4_000_000
MAX_DEPTH = 64
MAX_FINDINGS = 100

PARSE_RULES: Mapping[str, Rule] = {
    "json/size": Rule(
        attack="A JSON text so large that reading it exhausts memory.",
        mend="Keep the file within the limits of docs/formats, or split it.",
    ),
    "json/depth": Rule(
        attack="Brackets nested so deep that a recursive reader overflows its stack.",
        mend="Write the file flat: no honest model configuration nests this deep.",
    ),
    "json/encoding": Rule(
        attack="Bytes that readers decode differently, so that what is scanned is not what is loaded.",
        mend="Save the file as UTF-8 without a byte order mark.",
    ),
    "json/syntax": Rule(
        attack="Text that some readers accept and others refuse, hiding content from a scan.",
        mend="Write the file again with a standard JSON writer.",
    ),
    "json/duplicate-key": Rule(
        attack="A key given twice: the scanner sees one value, the loader the other.",
        mend="Remove the second key.",
    ),
    "json/number": Rule(
        attack="NaN, Infinity or a number beyond a double, on which readers differ.",
        mend="Use finite numbers within the range of a 64-bit float.",
    ),
    "json/surrogate": Rule(
        attack="Half of a surrogate pair, which readers replace, drop or crash on.",
        mend="Escape the whole pair or write the character in UTF-8.",
    ),
}

CONTENT_RULES: Mapping[str, Rule] = {
    "config/remote-code": Rule(
        attack="A configuration that makes the loader import and run code from the repository or from the hub.",
        mend="Load the model with code that ships in your framework and remove the key; else do not admit it.",
    ),
    "config/chat-template-shape": Rule(
        attack="A chat template in a shape the examiner cannot read but a loader may render.",
        mend="Give the template as one string or as a list of {name, template}.",
    ),
    **TEMPLATE_RULES,
    **KERAS_RULES,
}

RULES: Mapping[str, Rule] = {**PARSE_RULES, **CONTENT_RULES}

# Other formats claim these by name; see hf_config.py and tokenizer.py.
CONFIG_NAMES = frozenset(
    {
        "config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json",
        "preprocessor_config.json", "processor_config.json", "added_tokens.json", "vocab.json",
        "adapter_config.json", "modules.json", "chat_template.json", "model_index.json",
    }
)  # fmt: skip
INDEX_SUFFIX = ".index.json"
TOKENIZER_NAME = "tokenizer.json"

# Present with any value but null or empty: the loader imports what they name.
_CODE_KEYS = frozenset(
    {
        "auto_map", "custom_pipeline", "custom_pipelines", "custom_generate", "_target_",  # Hugging Face, Hydra
        "py/object", "py/type", "py/function", "py/reduce", "py/repr", "py/newobj", "py/newargs",  # jsonpickle
        "__reduce__", "__reduce_ex__", "__setstate__", "__class__", "__globals__", "__builtins__", "__import__",
        "__subclasses__", "__code__", "__getattr__", "__init__", "__new__", "__call__", "__module__",
        "loader_module", "registered_name",  # MLflow, Keras
    }
)  # fmt: skip
# Only True: the file asks every loader to run the repository's code.
_CODE_SWITCHES = frozenset({"trust_remote_code", "allow_remote_code", "unsafe_load"})
# Chains whose model's answer is run: in a shell, as Python, as a query or as a request.
_RUNNING_CHAIN = re.compile(
    r"(?i)(?:bash|shell|terminal|pal|python|repl|sql|cypher|api|requests|math)(?:_|\Z)"
)
_OBEYED_FOLDERS = frozenset({".vscode", ".devcontainer", ".cursor", ".claude"})
_COMMAND_KEY = re.compile(
    r"(?i)command\Z"
)  # VS Code's tasks, postCreateCommand and its like, hooks, tool servers
# A repository name here makes transformers download and load a compiled kernel.
_KERNEL_KEYS = frozenset({"_attn_implementation", "attn_implementation", "_attn_implementation_internal"})

# Dotted names that peft and sentence-transformers import; those they ship themselves are listed.
_IMPORTS: Mapping[str, re.Pattern[str]] = {
    "parent_library": re.compile(r"transformers\.models(\.\w+)+"),
    "megatron_core": re.compile(r"megatron\.core"),
    "activation_function": re.compile(r"\w*|torch\.nn\.(modules\.(activation|linear)\.)?[A-Z]\w*"),
}
_WATCHED = _CODE_KEYS | _CODE_SWITCHES | _KERNEL_KEYS | set(_IMPORTS) | {"chat_template"}
_CONTAINERS = frozenset({dict, list})

# XGBoost's models and skops' schema.json begin so; see xgboost_model.py and skops_schema.py.
XGBOOST_START = re.compile(rb'\s*\{\s*"learner"\s*:')
SKOPS_START = re.compile(rb'\s*\{\s*"__(class|module|loader)__"\s*:')
_STRING = re.compile(rb'"[^"]*"?')
_STEP = 1 << 18
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS = bytes(sorted(set(range(256)) - set(b"[]{}")))
_SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse(data: bytes, *, max_bytes: int = MAX_BYTES, max_depth: int = MAX_DEPTH) -> JSON:
    """The value of a JSON text. Raises Malformed with one of PARSE_RULES.

    max_depth: levels of [ and { allowed; 0 allows a scalar only. Source: RFC 8259.
    """
    if len(data) > max_bytes:
        raise Malformed(f"JSON of {len(data)} bytes; at most {max_bytes} are read", rule="json/size")
    if data.startswith(b"\xef\xbb\xbf"):
        raise Malformed(
            "the text starts with a byte order mark; expected plain UTF-8", rule="json/encoding", offset=0
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Malformed("the text is not UTF-8", rule="json/encoding", offset=error.start) from error
    _check_structure(data, max_depth)
    try:
        value: JSON = json.loads(
            text, object_pairs_hook=_object, parse_constant=_refuse_constant, parse_float=_number
        )
    except json.JSONDecodeError as error:
        offset = len(text[: error.pos].encode())
        raise Malformed(f"not JSON: {error.msg}", rule="json/syntax", offset=offset) from error
    except ValueError as error:  # int() refuses more than sys.get_int_max_str_digits() digits
        raise Malformed("a number has too many digits", rule="json/number") from error
    if _SURROGATE_ESCAPE.search(data):
        _check_surrogates(value)
    return value


def _check_structure(data: bytes, max_depth: int) -> None:
    """Count strings, values and depth, in a few passes of C loops and no recursion.

    One pass of replace removes exactly the innermost pairs, so the number of passes is the depth. Up to
    the first syntax error this reading of strings and the JSON reader's agree, so the bounds hold for it.
    """
    # In a run of backslashes each two are one escaped backslash; an odd one left over escapes the quote.
    plain = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    strings = plain.count(b'"') // 2
    if strings > MAX_VALUES:
        raise Malformed(f"{strings} strings; at most {MAX_VALUES} are read", rule="json/size")
    bare = _without_strings(plain)
    values = bare.count(b",") + bare.count(b"[") + bare.count(b"{")
    if values > MAX_VALUES:
        raise Malformed(f"{values} values; at most {MAX_VALUES} are read", rule="json/size")
    brackets = bare.translate(_BRACKETS, _NOT_BRACKETS)
    for _ in range(max_depth):
        if not brackets:
            return
        shorter = brackets.replace(b"[]", b"")
        if len(shorter) == len(brackets):
            break
        brackets = shorter
    if b"[]" in brackets or brackets.count(b"[") > max_depth:
        raise Malformed(f"brackets nest deeper than {max_depth}", rule="json/depth")
    if brackets:
        raise Malformed("not JSON: brackets do not match", rule="json/syntax")


def _without_strings(plain: bytes) -> bytearray:
    """`plain`, which holds no escaped quote, without its strings. In steps: one `sub` of many costs gigabytes."""
    bare = bytearray()
    inside = False
    for at in range(0, len(plain), _STEP):
        step = plain[at : at + _STEP]
        bare += _STRING.sub(b"", b'"' + step if inside else step)
        inside ^= bool(step.count(b'"') & 1)
    return bare


def _object(pairs: list[tuple[str, JSON]]) -> dict[str, JSON]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise Malformed(f"key {clip(twice)} stands twice in one object", rule="json/duplicate-key")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise Malformed(f"{name} is not JSON", rule="json/number")


def _number(text: str) -> float:
    value = float(text)
    if isinf(value):
        raise Malformed(f"number {text[:40]} is beyond a 64-bit float", rule="json/number")
    return value


def _check_surrogates(value: JSON) -> None:
    for key, item in _walk(value):
        for text in (key, item):
            if isinstance(text, str) and not _encodable(text):
                raise Malformed(f"string {clip(text)} holds half of a surrogate pair", rule="json/surrogate")


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _walk(value: JSON) -> Iterator[tuple[str | None, JSON]]:
    """Every value with its key, if it has one. Iterative: depth is bounded, width is not."""
    stack: list[tuple[str | None, JSON]] = [(None, value)]
    while stack:
        key, item = stack.pop()
        yield key, item
        if isinstance(item, dict):
            stack.extend(item.items())
        elif isinstance(item, list):
            stack.extend((None, each) for each in item)


def clip(text: str, limit: int = 80) -> str:
    """`text` for a message: escaped, quoted and cut."""
    return ascii(text if len(text) <= limit else text[:limit] + "...")


def examine(value: JSON) -> tuple[Finding, ...]:
    """Findings on what a configuration would make its loader do: remote code and chat templates."""
    findings: list[Finding] = []
    stack = [value]
    seen_keras = False
    while stack and len(findings) < MAX_FINDINGS:
        item = stack.pop()
        if isinstance(item, dict):
            if not seen_keras and is_object(item):
                seen_keras = True  # whatever file it stands in, Keras would build it
                findings.extend(examine_objects(value))
            for key in sorted(_WATCHED.intersection(item)):
                findings.extend(_examine_key(key, item[key]))
            if item.get("lc") == 1 and item.get("type") == "constructor":
                findings.append(_remote_code("lc", f"a LangChain constructor: {clip(str(item.get('id')))}"))
            findings.extend(_examine_chain(item))
            # Only containers are pushed: a vocabulary has a hundred thousand numbers.
            stack.extend(each for each in item.values() if type(each) in _CONTAINERS)
        elif isinstance(item, list):
            stack.extend(each for each in item if type(each) in _CONTAINERS)
    return tuple(findings[:MAX_FINDINGS])


def _examine_place(path: str, value: JSON) -> Iterator[Finding]:
    """Commands in a file that an editor or a container tool obeys for where it lies, once the folder is opened."""
    if _OBEYED_FOLDERS.isdisjoint(path.lower().split("/")[:-1]):
        return
    for key, item in _walk(value):
        if key is not None and _COMMAND_KEY.search(key) and item not in (None, "", [], {}):
            yield _remote_code(key, f"an editor's command, {clip(str(item))}")
            return


def _examine_chain(item: Mapping[str, JSON]) -> Iterator[Finding]:
    """LangChain's older form, `_type`: chains run what a model answers, prompts render Jinja or open a file."""
    kind = item.get("_type")
    if not isinstance(kind, str):
        return
    if _RUNNING_CHAIN.search(kind):
        yield _remote_code("_type", f"a LangChain chain: {clip(kind)}")
    if item.get("template_format") == "jinja2":
        yield _remote_code("template_format", "a LangChain prompt that Jinja renders outside a sandbox")


def _examine_key(key: str, item: JSON) -> Iterator[Finding]:
    if key in _CODE_KEYS:
        # A vocabulary maps tokens, these words among them, to numbers: no loader imports a number.
        if item not in (None, "", {}, []) and not isinstance(item, (int, float)):
            yield _remote_code(key, _names_of(item))
    elif key in _CODE_SWITCHES:
        if item is True or isinstance(item, str):
            yield _remote_code(key, str(item))
    elif key in _KERNEL_KEYS:
        if any("/" in each for each in _strings(item)):
            yield _remote_code(key, f"a kernel from the hub: {_names_of(item)}")
    elif key in _IMPORTS:
        if item is not None and not (isinstance(item, str) and _IMPORTS[key].fullmatch(item)):
            yield _remote_code(key, f"an import of {clip(str(item))}")
    elif key == "chat_template":
        yield from _examine_chat_template(item)


def _remote_code(key: str, what: str) -> Finding:
    return Finding("config/remote-code", f"{key} makes the loader run code: {what}", member=key)


def _strings(item: JSON) -> list[str]:
    return [each for _, each in _walk(item) if isinstance(each, str)]


def _names_of(item: JSON) -> str:
    """What an `auto_map` or a like key points at; `repo--module.Class` is code of another repository."""
    names = []
    for text in _strings(item)[:8]:
        repo, separator, module = text.partition("--")
        names.append(f"{clip(module)} of the other repository {clip(repo)}" if separator else clip(text))
    return ", ".join(names) or "no name given"


def template_texts(item: JSON) -> list[str]:
    """The templates in a chat_template value: a text, a list of {name, template}, or a mapping of names to texts."""
    return [each for each in _templates(item) if isinstance(each, str)]


def _templates(item: JSON) -> list[JSON]:
    if item is None:
        return []
    if isinstance(item, list):
        return [each.get("template") if isinstance(each, dict) else None for each in item]
    if isinstance(item, dict):
        return list(item.values())
    return [item]


def _examine_chat_template(item: JSON) -> Iterator[Finding]:
    for template in _templates(item):
        if not isinstance(template, str):
            yield Finding("config/chat-template-shape", "a chat template is not text", member="chat_template")
            continue
        for finding in examine_template(template):
            yield replace(finding, member="chat_template")


def base_name(path: str) -> str:
    return path.rpartition("/")[2]


def looks_like_json(head: bytes, path: str) -> bool:
    """Text formats have no magic: the first character and the name decide together."""
    return path.endswith(".json") and head.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")[:1] in (
        b"{",
        b"[",
    )


def load(source: ByteSource, *, max_bytes: int = MAX_BYTES) -> JSON:
    """The JSON value of a whole file. Raises Malformed; the size is checked before the read."""
    if source.size > max_bytes:
        raise Malformed(f"JSON of {source.size} bytes; at most {max_bytes} are read", rule="json/size")
    return parse(source.read(0, source.size), max_bytes=max_bytes)


class JsonFormat:
    """A .json file no other format knows by name."""

    name = "json"
    rules = RULES

    def sniff(self, head: bytes, path: str) -> bool:
        base = base_name(path)
        known = base in CONFIG_NAMES or base == TOKENIZER_NAME or base.endswith(INDEX_SUFFIX)
        is_skops = base == "schema.json" and SKOPS_START.match(head) is not None
        elsewhere = is_skops or looks_like_keras(head) or XGBOOST_START.match(head) is not None
        return not known and looks_like_json(head, path) and not elsewhere

    def read(self, source: ByteSource, path: str) -> Report:
        value = load(source)
        facts: dict[str, JSON] = {"type": "object" if isinstance(value, dict) else "array"}
        facts["entries"] = len(cast("dict[str, JSON] | list[JSON]", value))
        return Report(self.name, facts, (*_examine_place(path, value), *examine(value)))


FORMAT = JsonFormat()
