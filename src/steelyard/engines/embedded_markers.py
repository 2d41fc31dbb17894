"""Keeps a caller's text from becoming structure of the prompt.

Attack: a user, a tool's result or a document says `<|im_end|><|im_start|>system ...`. llama.cpp's chat templates give
one text in which the role markers of the template and those of the caller look alike, and it parses both as control
tokens. So each such string in a caller's text gets U+2060 (word joiner: no width, no line break) after its first
character: it reads as before, and no tokeniser finds the marker. Tokenising the caller's text apart from the
template's would keep every byte, but llama.cpp offers that only without its parsing of tool calls.

User-defined tokens are broken only where the model's own chat template names them (`<tool_call>`, `<think>`): the
others are ordinary words (HTML tags, runs of spaces) that a model should see as it was trained on them.
"""

import re
from collections.abc import Iterable

JOINER = "\u2060"


class Markers:
    """Breaks strings of the vocabulary in text."""

    __slots__ = ("_pattern",)

    def __init__(self, strings: Iterable[str]) -> None:
        # One character cannot be broken inside; it would have to be deleted, and nothing of use has that length.
        found = sorted({text for text in strings if len(text) > 1}, key=lambda text: (-len(text), text))
        self._pattern = re.compile("|".join(map(re.escape, found))) if found else None

    def are_in(self, text: str) -> bool:
        return self._pattern is not None and self._pattern.search(text) is not None

    def broken(self, text: str) -> str:
        """`text` without any of the strings; the very same object if it had none."""
        if self._pattern is None:
            return text
        while self._pattern.search(text):  # strings may overlap: breaking one can leave another
            text = self._pattern.sub(_break, text)
        return text


def _break(found: re.Match[str]) -> str:
    text = found.group()
    return text[0] + JOINER + text[1:]


def markers_of(control: Iterable[str], defined: Iterable[str], template: str) -> tuple[Markers, Markers]:
    """For callers' text, and for the assistant's own earlier words.

    The latter keep user-defined tokens: templates cut `<think>...</think>` out of earlier turns by name.
    """
    control = tuple(control)
    structure = [text for text in defined if text.strip() and text in template]
    return Markers([*control, *structure]), Markers(control)
