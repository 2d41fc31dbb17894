"""Chat templates: text that decides what a model is told. Files named *.jinja, and templates inside JSON and GGUF.

Four examinations, each in a module of its own. The first must pass before the others run:

1. `template_syntax`: an allow-list over the parsed tree, and bounds on cost (CVE-2024-34359).
2. `template_branches`: whether a message's words or the date decide anything (arXiv 2602.04653).
3. `template_prose`: words of the template's own that no published template says.
4. `template_probe`: renders conversations of ours and compares what comes out.

A template that a project published, character for character, is known by digest and not examined further than for
hidden characters. Jinja is imported only when there is an unknown template to read.
"""

import hashlib
from collections.abc import Iterator, Mapping

from steelyard.digest import JSON
from steelyard.errors import Malformed
from steelyard.formats.base import ByteSource, Finding, Report, Rule, Severity
from steelyard.formats.template_known import published_as

MAX_CHARS = 128 << 10
MAX_FINDINGS = 50

_NEWER = "use a template that the framework itself ships, or write this part with the listed constructs"
RULES: Mapping[str, Rule] = {
    "template/size": Rule(
        "a template so large or so nested that parsing it exhausts memory", "shorten the template"
    ),
    "template/syntax": Rule("a template one renderer reads and another does not", "mend the Jinja syntax"),
    "template/encoding": Rule("bytes that loaders decode differently", "save the template as UTF-8"),
    "template/statement": Rule(
        "include, import, extends, call and other statements reach files and Python objects (CVE-2024-34359)",
        _NEWER,
    ),
    "template/filter": Rule(
        "a filter that reads attributes, formats or repeats text: attr, format, center", _NEWER
    ),
    "template/test": Rule("a test outside the list, which a loader may define as it likes", _NEWER),
    "template/call": Rule(
        "calling anything but known functions, text methods and own macros runs Python", _NEWER
    ),
    "template/attribute": Rule(
        "walking from a value to its class, its globals and so to the operating system (CVE-2024-34359)",
        "name data by plain keys; none begins with an underscore",
    ),
    "template/computed-key": Rule(
        "an attribute name assembled from pieces, so that a search for it finds nothing",
        "write the key as one plain text",
    ),
    "template/name": Rule("reading a built-in function, a module or the template object itself", _NEWER),
    "template/cost": Rule(
        "loops, repetition or doubling that turn one request into hours or gigabytes",
        "bound the range, loop once over each list, and append only once a turn",
    ),
    "template/url": Rule(
        "an address written into every prompt, to be fetched, repeated or trusted",
        "remove the address from the template",
    ),
    "template/hidden-text": Rule(
        "characters that no editor shows, read by the model and not by the reviewer",
        "remove control, direction and tag characters",
    ),
    "template/prose": Rule(
        "instructions to the model that no published template gives, slipped in beside the conversation",
        "read the quoted words; keep the template of the model's own family, or name the file's digest in the policy",
        Severity.REVIEW,
    ),
    "template/content-branch": Rule(
        "a backdoor that wakes on a word, a length or a spelling in a message (arXiv 2602.04653)",
        "write what every message gets; branch on roles and tools only",
    ),
    "template/date-branch": Rule(
        "a backdoor that wakes on a day: clean while it is examined, hostile later",
        "print the date, never compare it",
    ),
    "template/altered": Rule(
        "a message that the model does not get as it was written: dropped, doubled, reordered or changed",
        "write each message's content once, in order, as it is",
    ),
    "template/system-dropped": Rule(
        "the operator's system message is left out without a word, and with it every rule it sets",
        "use a template that shows the system message or raises; or accept, by digest, that this model takes none",
        Severity.REVIEW,
    ),
    "template/no-system": Rule(
        "a template that knows no system message: an operator's rules do not reach the model",
        "put the rules into the first user message",
        Severity.NOTE,
    ),
    "template/role": Rule(
        "one role's words shown to the model as another's, or one turn framed unlike its neighbours",
        "frame every turn of a role alike",
    ),
    "template/unprobed": Rule(
        "a template that renders no conversation that we know, so that nothing was seen of what it does",
        "render a plain conversation of user and assistant turns, or name the file's digest in the policy",
        Severity.REVIEW,
    ),
}


def examine_template(text: str) -> tuple[Finding, ...]:
    """What is refused or asked about in a template; empty when nothing is. Never raises.

    At most MAX_FINDINGS findings, each rule and message once; messages name the line where there is one. A rule that
    asks a question asks it once: one answer serves every place.
    """
    findings: dict[tuple[str, str], Finding] = {}
    for finding in _examine(text):
        is_question = RULES[finding.rule].severity is Severity.REVIEW
        findings.setdefault((finding.rule, "" if is_question else finding.message), finding)
        if len(findings) >= MAX_FINDINGS:
            break
    return tuple(findings.values())


def _examine(text: str) -> Iterator[Finding]:
    if len(text) > MAX_CHARS:
        yield Finding("template/size", f"{len(text)} characters; at most {MAX_CHARS} are read")
        return
    if published_as(text) is not None:
        return
    # Jinja and what renders with it take 40 ms to import: only a template that nobody knows pays for them.
    from steelyard.formats import template_branches as branches  # noqa: PLC0415
    from steelyard.formats import template_probe as behaviour  # noqa: PLC0415
    from steelyard.formats import template_prose as prose  # noqa: PLC0415
    from steelyard.formats import template_syntax as syntax  # noqa: PLC0415

    findings = list(syntax.hidden_characters(text))
    try:
        tree = syntax.parse_template(text)
    except Malformed as error:
        findings.append(Finding(error.rule, error.message))
    else:
        findings += syntax.examine_tree(tree)
    yield from findings
    if findings:
        return  # what may not be rendered is not probed
    if not text.strip() or not any(name.name == "messages" for name in syntax.names(tree)):
        # It shows no conversation, so it cannot change one; its words still reach the model.
        yield from prose.examine_prose(tree)
        return
    yield from branches.examine_branches(tree)
    yield from prose.examine_prose(tree)
    try:
        yield from behaviour.probe(tree)
    except Malformed as error:
        yield Finding(error.rule, error.message)


def template_facts(text: str) -> dict[str, JSON]:
    """What evidence keeps of a template: its digest, and under which name a project published it, if one did."""
    return {
        "sha256": hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest(),
        "published_as": published_as(text),
    }


class ChatTemplateFormat:
    """The plug of `steelyard.formats`: files named *.jinja or *.jinja2."""

    name = "chat-template"
    rules = RULES

    def sniff(self, head: bytes, path: str) -> bool:
        return path.lower().endswith((".jinja", ".jinja2", ".j2")) and b"\0" not in head

    def read(self, source: ByteSource, path: str) -> Report:  # noqa: ARG002
        if source.size > 4 * MAX_CHARS:
            raise Malformed(
                f"{source.size} bytes; at most {4 * MAX_CHARS} are read", rule="template/size", offset=0
            )
        try:
            text = source.read(0, source.size).decode("utf-8")
        except UnicodeDecodeError as error:
            raise Malformed(
                "the template is not UTF-8", rule="template/encoding", offset=error.start
            ) from error
        return Report(self.name, {"characters": len(text), **template_facts(text)}, examine_template(text))


FORMAT = ChatTemplateFormat()
