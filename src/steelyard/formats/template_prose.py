"""Words of a template's own: what it tells the model beside the conversation.

A template needs role names and marks; each longer run of words in its literals is an instruction to the model. Runs
that a published template says are known by digest (`data/templates/sentences.txt`, made by
`recipes/chat_templates/collect.py`; digests only, no text of others). A plain persona ("You are X, made by Y") passes.
Every other run of three words or more asks for a reader, wherever in the template it stands and whatever branch it is
in: what never renders in a probe is seen here.
"""

import hashlib
import re
from collections.abc import Iterator
from functools import cache
from importlib.resources import files

from jinja2 import nodes

from steelyard.formats.base import Finding

MIN_WORDS = 3
DIGEST_CHARS = 32
MIN_ENCODED_VARIETY = 12  # different characters; a rule of dashes or one letter has few
_SHOWN_CHARS = 100

_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_CJK}]|(?:(?![{_CJK}])[^\W\d_])+(?:['\u2019](?:(?![{_CJK}])[^\W\d_])+)*")
# A sentence ends at a line's end, at . ! ? ; : before a space, at a mark of role grammar or a bracket.
_BREAK = re.compile(
    r"[\n\r]+|\\[nrt]|[.!?;:\u3002\uff01\uff1f\uff1b\uff1a]+(?=\s|$)|<[^<>\n]{1,60}>|\[/?[A-Z_]{1,40}\]"
)
_ENCODED = re.compile(r"[A-Za-z0-9+/]{48}")
_NAME = r"[^\W\d_]\S*(?: [^\W\d_]\S*){0,3}"
_KIND = (
    r"(?:(?:helpful|honest|harmless|friendly|useful|polite|respectful|ai|artificial|intelligence|large|language|chat"
    r"|conversational|multimodal|vision|coding|programming|intelligent|virtual|smart|and) )*"
    r"(?:assistant|chatbot|bot|model|agent)"
)
_PERSONA = re.compile(
    rf"you are (?:(?:an? |the )?{_KIND}|{_NAME}(?: an? {_KIND})?)"
    rf"(?: (?:created|developed|trained|made|built|designed) by {_NAME})?"
)
_PERSONA_WORDS = 16

# Names of roles and channels, and what stands between two of them: grammar, whatever marks surround it.
_GRAMMAR = frozenset(
    {
        "system", "developer", "user", "assistant", "tool", "tools", "ipython", "functions", "analysis", "commentary",
        "final", "channel", "message", "to", "start", "end", "json",
    }
)  # fmt: skip

# Arguments that are looked for, cut at or looked up, and so never written.
_SEEKERS = frozenset(
    {
        "strip", "lstrip", "rstrip", "trim", "split", "rsplit", "partition", "rpartition", "removeprefix",
        "removesuffix", "startswith", "endswith", "find", "rfind", "count", "index", "get", "selectattr", "rejectattr",
        "select", "reject", "map", "sort", "dictsort", "unique", "min", "max", "strftime_now", "raise_exception",
    }
)  # fmt: skip


def examine_prose(tree: nodes.Template) -> Iterator[Finding]:
    """One finding for each unknown run of words, naming its line."""
    for line, text in literals(tree):
        encoded = _ENCODED.search(text)
        if encoded is not None and len(set(encoded[0])) >= MIN_ENCODED_VARIETY:
            yield Finding("template/prose", f"line {line}: an encoded text, {encoded[0][:_SHOWN_CHARS]!a}")
        for run in runs(text):
            if not is_known(run):
                yield Finding(
                    "template/prose", f"line {line}: the template itself says {run[:_SHOWN_CHARS]!a}"
                )


def literals(tree: nodes.Template) -> Iterator[tuple[int, str]]:
    """(line, text) of what the template may write: neighbouring pieces of one output joined."""
    pending: list[nodes.Node] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, nodes.Output | nodes.Concat | nodes.Add):
            joined = "".join(piece for _, piece in _written(node))
            yield node.lineno, joined
            if isinstance(node, nodes.Output):
                continue
        elif isinstance(node, nodes.Assign | nodes.For | nodes.Macro | nodes.Call | nodes.CallBlock):
            yield from _apart(node)
        pending.extend(node.iter_child_nodes())


def _apart(node: nodes.Node) -> Iterator[tuple[int, str]]:
    """Literals outside an output, each by itself, and all of them after one another."""
    parts: list[nodes.Node] = []
    if isinstance(node, nodes.Assign):
        parts = [node.node]
    elif isinstance(node, nodes.For):  # a sentence written word by word, or letter by letter
        parts = [node.iter]
    elif isinstance(node, nodes.Macro):
        parts = list(node.defaults)
    elif isinstance(node, nodes.Call) and not _seeks(node):
        parts = [*node.args, *(keyword.value for keyword in node.kwargs)]
    for part in parts:
        pieces = [text for _, text in _written(part)]
        yield node.lineno, " ".join(pieces)


def _seeks(node: nodes.Node) -> bool:
    if isinstance(node, nodes.Filter | nodes.Test):
        return isinstance(node, nodes.Test) or node.name in _SEEKERS
    if isinstance(node, nodes.Call):
        called = node.node
        name = called.attr if isinstance(called, nodes.Getattr) else getattr(called, "name", None)
        return name in _SEEKERS
    return False


def _written(node: nodes.Node) -> Iterator[tuple[int, str]]:
    """Texts below a node that may reach the output, in order."""
    if isinstance(node, nodes.TemplateData):
        yield node.lineno, node.data
    elif isinstance(node, nodes.Const):
        if isinstance(node.value, str):
            yield node.lineno, node.value
    elif isinstance(node, nodes.Compare):
        return
    elif _seeks(node) or isinstance(node, nodes.Getitem):
        for subject in _subject(node):
            yield from _written(subject)
    elif isinstance(node, nodes.CondExpr):  # the condition is not written
        for each in (node.expr1, node.expr2):
            if each is not None:
                yield from _written(each)
                yield node.lineno, "\n"
    else:
        for child in node.iter_child_nodes():
            yield from _written(child)


def _subject(node: nodes.Node) -> Iterator[nodes.Node]:
    """What is searched, cut or indexed: the part of it that may be written."""
    if isinstance(node, nodes.Call):
        if isinstance(node.node, nodes.Getattr):
            yield node.node.node
    elif isinstance(node, nodes.Filter | nodes.Getitem) and node.node is not None:
        yield node.node


def runs(text: str) -> Iterator[str]:
    """The word runs of a text, lower case, words joined by one space; runs too short to tell are joined on."""
    held: list[str] = []
    at = 0
    for mark in [*_BREAK.finditer(text), None]:
        held += words_of(text[at : mark.start() if mark else len(text)])
        at = mark.end() if mark else at
        if len(held) >= MIN_WORDS:
            yield " ".join(held)
            held = []


def words_of(text: str) -> list[str]:
    """Its words in lower case; each Chinese, Japanese or Korean character counts as one."""
    return [word.casefold() for word in _WORD.findall(text)]


def is_known(run: str) -> bool:
    """Whether a published template says this, or it is a plain persona, or names of roles and channels only."""
    return (
        _GRAMMAR.issuperset(run.split())
        or digest_of(run) in _sentences()
        or (run.count(" ") < _PERSONA_WORDS and _PERSONA.fullmatch(run) is not None)
    )


def digest_of(run: str) -> str:
    """The first half of the SHA-256 of a run, hex."""
    return hashlib.sha256(run.encode()).hexdigest()[:DIGEST_CHARS]


@cache
def _sentences() -> frozenset[str]:
    text = files("steelyard").joinpath("data/templates/sentences.txt").read_text()
    return frozenset(line for line in text.split() if len(line) == DIGEST_CHARS)
