"""Help-desk dialogues drawn from the phrasings in intents.toml.

Everything is a function of the seed: the same seed gives the same dialogues in the same order.
"""

import random
import re
import string
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
OUT_OF_SCOPE = "out_of_scope"
# Small talk is complete as it stands: "hi, goodbye please" teaches nothing.
BARE_INTENTS = frozenset({"greeting", "thanks", "goodbye"})
OUT_OF_SCOPE_SHARE = 0.22
NONSENSE = "nonsense"
# Split from text: one syllable a line would hide the list.
ONSETS = (*"b br c ch d dr f fl g gr h j k l m n p pl qu r s sh sk st t th tr v w x y z".split(), "")  # noqa: SIM905
VOWELS = tuple("a e i o u ai ea ee io oo ou y".split())  # noqa: SIM905
CODAS = ("", "", "", *"b ck d g l ll m n nd ng nt p r rd s st t x".split())  # noqa: SIM905
TOKEN = re.compile(r"[(|)]|\{\w+\}|[^(|){}]+")


@dataclass(frozen=True, slots=True)
class Literal:
    """Text that stands as it is."""

    text: str


@dataclass(frozen=True, slots=True)
class Slot:
    """A reference to a named part of the grammar."""

    name: str


@dataclass(frozen=True, slots=True)
class Choice:
    """Alternatives, each a sequence of parts; one is drawn."""

    options: tuple[tuple["Part", ...], ...]


Part = Literal | Slot | Choice


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and the intent that it belongs to."""

    question: str
    intent: str


@dataclass(frozen=True, slots=True)
class Dialogue:
    """An optional system prompt and one to three turns."""

    system: str | None
    turns: tuple[Turn, ...]


def parse(pattern: str) -> Choice:
    """The parts of a phrasing; raises ValueError when its brackets do not match."""
    tokens = TOKEN.findall(pattern)
    if "".join(tokens) != pattern:
        raise ValueError(f"stray brace in {pattern!r}")
    stack: list[list[list[Part]]] = [[[]]]
    for token in tokens:
        if token == "(":
            stack.append([[]])
        elif token == "|":
            stack[-1].append([])
        elif token == ")":
            if len(stack) == 1:
                raise ValueError(f"unmatched ')' in {pattern!r}")
            options = stack.pop()
            stack[-1][-1].append(Choice(tuple(map(tuple, options))))
        elif token.startswith("{"):
            stack[-1][-1].append(Slot(token[1:-1]))
        else:
            stack[-1][-1].append(Literal(token))
    if len(stack) != 1:
        raise ValueError(f"unmatched '(' in {pattern!r}")
    return Choice(tuple(map(tuple, stack[0])))


class HelpDesk:
    """The intents with their answers, and a sampler of questions and dialogues."""

    def __init__(self, path: Path = HERE / "intents.toml") -> None:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        self._slots = {name: parse(pattern) for name, pattern in data["slots"].items()}
        self._phrasings = {i["name"]: tuple(map(parse, i["phrasings"])) for i in data["intent"]}
        self.answers: dict[str, str] = {i["name"]: i["answer"] for i in data["intent"]}
        self._known = tuple(name for name in self.answers if name != OUT_OF_SCOPE)

    def dialogues(self, seed: int) -> Iterator[Dialogue]:
        """Dialogues without end; equal seeds give equal sequences."""
        rng = random.Random(seed)
        while True:
            turns = tuple(self._turn(rng) for _ in range(rng.choices((1, 2, 3), (85, 11, 4))[0]))
            yield Dialogue(self._system(rng) if rng.random() < 0.3 else None, turns)

    def _turn(self, rng: random.Random) -> Turn:
        intent = OUT_OF_SCOPE if rng.random() < OUT_OF_SCOPE_SHARE else rng.choice(self._known)
        text = self._expand(rng.choice(self._phrasings[intent]), rng)
        if intent not in BARE_INTENTS:
            text = self._dress(text, rng)
        return Turn(roughen(text, rng), intent)

    def _expand(self, choice: Choice, rng: random.Random) -> str:
        return "".join(self._text(part, rng) for part in rng.choice(choice.options))

    def _text(self, part: Part, rng: random.Random) -> str:
        if isinstance(part, Literal):
            return part.text
        if isinstance(part, Choice):
            return self._expand(part, rng)
        return nonsense(rng) if part.name == NONSENSE else self._expand(self._slots[part.name], rng)

    def _dress(self, text: str, rng: random.Random) -> str:
        """The question with, at times, polite words before and after it."""
        if rng.random() < 0.2:
            opener = self._expand(self._slots["opener"], rng)
            text = opener + rng.choice((", ", " ", ": ", "! ", ". ", " - ")) + text
        if rng.random() < 0.1:
            context = self._expand(self._slots["context"], rng)
            first, second, mark = rng.choice(
                ((context, text, ". "), (context, text, ", "), (text, context, ". "), (text, context, ", "))
            )
            text = first + mark + second
        if rng.random() < 0.15:
            text += rng.choice((" ", ", ", "? ", ". ")) + self._expand(self._slots["closer"], rng)
        return text

    def _system(self, rng: random.Random) -> str:
        sentences = (self._expand(self._slots["system"], rng) for _ in range(rng.choice((1, 1, 1, 2, 3, 5))))
        return " ".join(sentence + "." for sentence in sentences)


def nonsense(rng: random.Random) -> str:
    """A pronounceable word that means nothing, so that unknown words are met in training."""
    syllables = rng.choice((1, 2, 2, 3))
    word = "".join(rng.choice(ONSETS) + rng.choice(VOWELS) + rng.choice(CODAS) for _ in range(syllables))
    return word.capitalize() if rng.random() < 0.5 else word


def roughen(text: str, rng: random.Random) -> str:
    """The text as people type it: casing, end mark and, at times, a slip."""
    text = text.strip()
    if rng.random() < 0.4:
        text = thin(text, rng)
    if rng.random() < 0.25:
        text = misspell(text, rng)
    if rng.random() < 0.05:
        text = text.replace("'", "")
    casing = rng.random()
    if casing < 0.45:
        text = text[:1].upper() + text[1:]
    elif casing < 0.65:
        text = text.lower()
    elif casing < 0.68:
        text = text.upper()
    if text[-1:] not in string.punctuation:
        text += rng.choice(("", "", "", "?", "?", "?", ".", ".", "!", " ?", "??", "..."))
    return text


def thin(text: str, rng: random.Random) -> str:
    """The text with a word in eight gone, and at times two neighbours swapped; short texts stay whole."""
    words = text.split(" ")
    if len(words) < 5:
        return text
    words = [word for word in words if rng.random() > 1 / 8] or words
    if rng.random() < 0.2 and len(words) > 2:
        at = rng.randrange(len(words) - 1)
        words[at], words[at + 1] = words[at + 1], words[at]
    return " ".join(words)


def misspell(text: str, rng: random.Random) -> str:
    """One letter dropped, doubled, swapped with the next or replaced."""
    if len(text) < 8:
        return text
    at = rng.randrange(1, len(text) - 1)
    slip = rng.randrange(4)
    if slip == 0:
        return text[:at] + text[at + 1 :]
    if slip == 1:
        return text[:at] + text[at] + text[at:]
    if slip == 2:
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text[:at] + rng.choice(string.ascii_lowercase) + text[at + 1 :]
