"""Recognise a licence by its text. Exact means: the same words as the standard text, whatever the layout.

Words are compared in lower case without punctuation; copyright lines, the year and the holder are left out, and
what follows the terms (how to apply them) is cut. `data/licences/texts.toml` holds one SHA-256 for each standard
text, and for community licences, whose texts change, the phrases that only they have. A text that has the phrases
of a standard licence and other words is not that licence: somebody changed the terms.
"""

import hashlib
import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources

_END = re.compile(
    r"end of terms and conditions.*|appendix how to apply.*|how to apply these terms to your new.*", re.DOTALL
)
_COPYRIGHT = re.compile(r"^\W*(copyright|\(c\)|all rights reserved).*$", re.IGNORECASE | re.MULTILINE)
_TITLE = re.compile(
    r"^\W*(the )?(mit|bsd|isc|[\w\- ]{0,40}clause[\w\- ]{0,20}) ?(licen[cs]e)?\W*$",
    re.IGNORECASE | re.MULTILINE,
)
_WORDS = re.compile(r"[a-z0-9]+")


@dataclass(frozen=True, slots=True)
class LicenceText:
    """`licence` is an SPDX id or LicenseRef; `is_exact` is false when the words differ from the standard text."""

    licence: str
    is_exact: bool


@dataclass(frozen=True, slots=True)
class _Known:
    by_hash: dict[str, str]
    by_phrases: tuple[tuple[str, tuple[str, ...], bool], ...]


def recognise(text: str) -> LicenceText | None:
    """The licence `text` is, or None when no known licence's phrases stand in it."""
    known = _known()
    words = normalised(text)
    exact = known.by_hash.get(hashlib.sha256(words.encode()).hexdigest())
    if exact:
        return LicenceText(exact, True)
    for licence, phrases, is_enough in known.by_phrases:
        if all(phrase in words for phrase in phrases):
            return LicenceText(licence, is_enough)
    return None


def normalised(text: str) -> str:
    """The words that make the terms, single-spaced."""
    body = _TITLE.sub(" ", _COPYRIGHT.sub(" ", text))
    return _END.sub("", " ".join(_WORDS.findall(body.lower()))).strip()


@cache
def _known() -> _Known:
    table = tomllib.loads(resources.files("steelyard").joinpath("data/licences/texts.toml").read_text())
    phrases = [
        (entry["licence"], tuple(entry["phrases"]), bool(entry["is_enough"])) for entry in table["phrases"]
    ]
    return _Known(dict(table["sha256"]), tuple(phrases))
