"""Recognise licences by their text. Exact means: the same words as a standard text, whatever the layout.

A text is read as words: case, punctuation, bullets, typographic quotes, markdown marks, and the holder's name where
a standard text leaves it open do not count. Every other character does, so that a letter of another script, an
invisible character or a picture breaks the word it stands in.

`data/licences/texts.json` holds for each standard text its number of words and a SHA-256, never the words, and a
sketch: the 64 smallest hashes of its five-word runs. Words outside the texts that were found must be a title or a
copyright statement; with any others the text is not exact, and its nearest licence is named with the share of
runs it has in common. Source of the rules: SPDX License List, Matching Guidelines (spdx.github.io/spdx-spec).
"""

import base64
import hashlib
import json
import re
import struct
import tomllib
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from steelyard.digest import JSON

MAX_CHARS = 1 << 20  # of a licence text; the longest SPDX text has 80 thousand
MAX_COMPARED_WORDS = 1 << 20  # hashed while looking for standard texts
RUN_WORDS = 5
SKETCH_RUNS = 64
ANCHOR_WORDS = 6
LIKE = 0.6  # share of runs from which a text is named as like a licence
MAX_STATEMENT_WORDS = 40  # between two words "copyright"
MAX_TITLE_WORDS = 12  # that name the work, in front of the first text

# Quotes, dashes, bullets, section and trade marks, the space that does not break.
_IGNORED = dict.fromkeys(
    map(
        ord,
        "\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u00ab\u00bb\u2039\u203a\u2013\u2014\u2015"
        "\u2212\u2010\u2011\u00b7\u2022\u25cf\u25e6\u25aa\u25a0\u25cb\u2026\u00a7\u00b6\u00ae\u2122\u00a0",
    ),
    " ",
)
_MARKUP = re.compile(r"\]\((?:https?://|#|mailto:)[^)\s]{0,300}\)|https?://(?:www\.)?", re.IGNORECASE)
_COPYRIGHT = re.compile(
    r"(?:copyright\s*)?(?:\u00a9|\(c\)(?=\s*(?:\d{4}|by\b)))|copyright\s*\(c\)", re.IGNORECASE
)
_BULLET = re.compile(r"(?<![\w.])\(?(?:\d{1,2}|[a-z]|[ivx]{1,5})\\?[.)](?=\s)")
_WORD = re.compile(r"[^\W_]+|[^\x00-\x7f]")
_SAME = (
    (" licence ", " license "),
    (" licences ", " licenses "),
    (" non infringement ", " noninfringement "),
    (" sub license ", " sublicense "),
    (" copyright owner ", " copyright holder "),
    (" end of terms and conditions ", " "),
    (" including the next paragraph ", " "),
    (" and or ", " and "),
)
_FORCE = (
    "not|no|nor|never|cannot|unless|except|only|must|shall|may|should|if|without|subject|provided|use|used|uses"
    "|using|license|licensed|licensee|terms|conditions?|permission|permitted|prohibited|forbidden|restrict\\w*"
    "|commercial\\w*|noncommercial|agree\\w*|grant\\w*|fees?|pay\\w*|consent|require\\w*|warranty|liable|military"
)
_HOLDER = rf"(?:(?!(?:{_FORCE})\b)\S+ ){{1,14}}"
_OPEN = (
    (
        re.compile(rf"\bneither the names? {_HOLDER}nor the names? of {_HOLDER}may be"),
        "neither holder may be",
    ),
    (
        re.compile(rf"\bthe names? of {_HOLDER}may not be used to endorse"),
        "neither holder may be used to endorse",
    ),
    (
        re.compile(rf"\bsoftware is provided by {_HOLDER}as is and any"),
        "software is provided by holder as is and any",
    ),
    (re.compile(rf"\bin no event shall {_HOLDER}be liable"), "in no event shall holder be liable"),
)
_FORCEFUL = re.compile(rf"(?:{_FORCE})")
# A title names a licence; "evaluation license" is none of these.
_NAMES = frozenset(["mit", "apache", "bsd", "isc", "public", "software", "expat", "clause", "zlib", "boost"])
# The words of titles and of the addresses below them.
_TITLE = frozenset({
    "0", "1", "19", "1991", "1999", "2", "2004", "2007", "29", "3", "4", "5", "a", "affero", "and",
    "apache", "artistic", "attribution", "boost", "bsd", "clause", "eclipse", "european", "expat",
    "february", "file", "general", "gnu", "identifier", "illinois", "is", "isc", "january", "june",
    "lesser", "library", "license", "licenses", "mit", "modified", "mozilla", "ncsa", "new", "none",
    "november", "of", "open", "opensource", "org", "original", "permissive", "postgresql", "public",
    "revised", "simplified", "software", "source", "spdx", "text", "the", "this", "three", "two",
    "union", "universal", "university", "unlicense", "version", "www", "zlib",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class LicenceText:
    """`licence`: an SPDX expression or LicenseRef.  `is_exact`: these are the standard words and no others.

    similarity: the share of the licence's runs that stand in the text, 0 to 1.  extra_words: those that belong to
    no standard text, no title and no copyright statement.
    """

    licence: str
    is_exact: bool
    similarity: float = 1.0
    extra_words: int = 0

    @property
    def remark(self) -> str:
        """What is to be said of a text that is not exact; empty for one that is."""
        if self.is_exact:
            return ""
        if self.similarity == 1.0 and self.extra_words:
            return f"with {self.extra_words} words that belong to no licence text"
        if not self.similarity:
            return "named in it, with no standard text to compare"
        return f"has {self.similarity:.0%} of its wording: terms were changed"


@dataclass(frozen=True, slots=True)
class Passage:
    """A standard text, or the appendix of one, by its words: how many, and the first 16 bytes of their SHA-256."""

    licence: str
    words: int
    sha256: str


@dataclass(frozen=True, slots=True)
class _Known:
    passages: dict[int, tuple[Passage, ...]]  # by the hash of their first words, longest first
    sketches: tuple[tuple[str, int, frozenset[int]], ...]  # licence, its words, its smallest hashes
    phrases: tuple[tuple[str, tuple[str, ...], bool], ...]


def recognise(text: str) -> LicenceText | None:
    """The licence `text` is, the one it is like, or the one it names; None when there is none."""
    words = words_of(text[:MAX_CHARS])
    found, rest = _passages_in(words)
    names = sorted({passage.licence for passage in found if not passage.licence.startswith("+")})
    leading = rest[0] if rest and words[: len(rest[0])] == rest[0] else None
    extra = sum(len(run) for run in rest if not is_statement(run, MAX_TITLE_WORDS if run is leading else 0))
    is_whole = len(text) <= MAX_CHARS
    if names and not extra and is_whole:
        return LicenceText(" AND ".join(names), True)
    if names:
        return LicenceText(" AND ".join(names), False, 1.0, max(extra, 1))
    return _likest(words) or _named(words, is_whole)


def named(text: str) -> str | None:
    """The community licence whose name stands in a notice or a use policy."""
    found = _named(words_of(text[:MAX_CHARS]), True)
    return found.licence if found and found.licence.startswith("LicenseRef") else None


def words_of(text: str) -> list[str]:
    """The words that make the terms, in lower case; see the module's docstring for what does not count."""
    plain = _COPYRIGHT.sub(" copyright ", text.removeprefix("\ufeff").translate(_IGNORED))
    plain = _MARKUP.sub(" ", plain)
    plain = _BULLET.sub(" ", unicodedata.normalize("NFKC", plain).casefold())
    joined = f" {' '.join(_WORD.findall(plain))} "
    for one, other in _SAME:
        joined = joined.replace(one, other)
    for pattern, instead in _OPEN:
        joined = pattern.sub(instead, joined)
    return joined.split()


def anchor_of(words: Sequence[str]) -> int:
    return _hash(" ".join(words[:ANCHOR_WORDS]))


def passage_digest(words: Sequence[str]) -> str:
    return hashlib.sha256(" ".join(words).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def sketch_of(words: Sequence[str]) -> list[int]:
    """The smallest hashes of the five-word runs: enough to estimate how much of this text another one holds."""
    return sorted(_runs(words))[:SKETCH_RUNS]


def _passages_in(words: list[str]) -> tuple[list[Passage], list[list[str]]]:
    """The standard texts that stand in `words`, and the runs of words between them."""
    known = _known()
    found: list[Passage] = []
    rest: list[list[str]] = [[]]
    budget = MAX_COMPARED_WORDS
    at = 0
    while at < len(words):
        passage = None
        for each in known.passages.get(anchor_of(words[at : at + ANCHOR_WORDS]), ()):
            if each.words > min(budget, len(words) - at):
                continue
            budget -= each.words
            if passage_digest(words[at : at + each.words]) == each.sha256:
                passage = each
                break
        if passage is None:
            rest[-1].append(words[at])
            at += 1
        else:
            found.append(passage)
            rest.append([])
            at += passage.words
    return found, [run for run in rest if run]


def is_statement(run: Sequence[str], allowance: int) -> bool:
    """A title, copyright statements or both: nothing in it can be a term. allowance: further words of a title."""
    since = 0
    is_copyright = False
    for before, word in zip(("", *run), run, strict=False):
        if word == "copyright":
            is_copyright, since = True, 0
        elif word not in _TITLE or word in ("use", "license"):
            since += 1
            limit = MAX_STATEMENT_WORDS if is_copyright else allowance
            is_title = word == "license" and (before in _NAMES or not is_copyright)
            if not is_title and (since > limit or _FORCEFUL.fullmatch(word)):
                return False
    return True


def _likest(words: Sequence[str]) -> LicenceText | None:
    runs = _runs(words)
    if not words:
        return None
    likest = 0.0, 0.0, ""
    for licence, count, sketch in _known().sketches:
        share = len(sketch & runs) / len(sketch)
        # Of two that stand in the text, the one that covers more of it.
        likest = max(likest, (share * (1 + min(1, count / len(words))), share, licence))
    _, share, licence = likest
    if share < LIKE:
        return None
    # All sampled runs may agree although the words do not: never claim the whole.
    return LicenceText(licence, False, min(share, 0.99))


def _named(words: Sequence[str], is_whole: bool) -> LicenceText | None:
    joined = f" {' '.join(words)} "
    for licence, phrases, is_enough in _known().phrases:
        if all(f" {phrase} " in joined for phrase in phrases):
            return LicenceText(licence, is_enough and is_whole, 0.0)
    return None


def _runs(words: Sequence[str]) -> set[int]:
    return {_hash(" ".join(words[at : at + RUN_WORDS])) for at in range(max(1, len(words) - RUN_WORDS + 1))}


def _hash(text: str) -> int:
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=4).digest(), "big"
    )


@cache
def _known() -> _Known:
    folder = resources.files("steelyard").joinpath("data/licences")
    table = json.loads(folder.joinpath("texts.json").read_text())
    passages: dict[int, tuple[Passage, ...]] = {}
    for licence, anchor, count, digest in table["passages"]:
        passages[anchor] = (*passages.get(anchor, ()), Passage(licence, count, digest))
    longest = {key: tuple(sorted(each, key=lambda p: -p.words)) for key, each in passages.items()}
    phrases = tomllib.loads(folder.joinpath("phrases.toml").read_text())["phrase"]
    return _Known(
        longest,
        tuple((licence, count, frozenset(_unpacked(runs))) for licence, count, runs in table["sketches"]),
        tuple((each["licence"], tuple(each["words"]), bool(each["is_enough"])) for each in phrases),
    )


def packed(sketch: Sequence[int]) -> str:
    """A sketch as the data file has it: big-endian 32-bit hashes in base64."""
    return base64.b64encode(struct.pack(f">{len(sketch)}I", *sketch)).decode()


def _unpacked(runs: str) -> Iterator[int]:
    data = base64.b64decode(runs)
    return (value for (value,) in struct.iter_unpack(">I", data))


def to_json(found: LicenceText | None) -> dict[str, JSON]:
    """The facts of a licence text, as the formats' evidence carries them."""
    if found is None:
        return {"licence": None, "licence_is_exact": False}
    facts: dict[str, JSON] = {"licence": found.licence, "licence_is_exact": found.is_exact}
    return facts if found.is_exact else {**facts, "licence_remark": found.remark}
