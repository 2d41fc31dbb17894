"""People's names, found by lists, titles and the way names stand in a sentence.

A run of capitalised words is a name when a title or a phrase such as "my name is" stands before it, when its words are
on the lists, or when it has two or more words of which none is an ordinary word, a place or part of a firm's name.

Lists: first names and the commonest surnames of the 1990 US census (public domain); see data/names/make.py.
"""

import lzma
import re
import tomllib
from collections.abc import Iterator
from functools import lru_cache
from importlib import resources

_WORDS_OF = {
    name: frozenset(words.split())
    for name, words in tomllib.loads(
        resources.files("steelyard").joinpath("data/names/words.toml").read_text("utf-8")
    ).items()
}
_PARTICLES = _WORDS_OF["particles"]
_WORD = r"[\w'’]*(?:-[^\W\d_][\w'’]*)*\.?"
_NEXT = rf"(?:[ \t]{{1,2}}(?:{'|'.join(sorted(_PARTICLES))}))*[ \t]{{1,2}}[^\W\d_a-z]{_WORD}"
# A run: capitalised words, initials and the small words inside names, on one line. It begins with a set of characters,
# which the engine skips to; what stands before it is looked at afterwards.
_RUN = re.compile(rf"[^\W\d_a-z]{_WORD}(?:{_NEXT}){{0,5}}")
_INSIDE = re.compile(r"[\w@./]")
_TOKEN = re.compile(r"\S+")
_TITLE = re.compile(
    r"(?i)(?:^|[^\w])(?:mr|mrs|ms|miss|mx|dr|prof|professor|sir|madam|madame|mme|monsieur|herr|frau|señor|señora|sr|sra"
    r"|rev|judge|officer|captain|insured|claimant|policy ?holder|patient|customer|applicant|employee|beneficiary|witness)"
    r"\.?[ \t]*[:,]?[ \t]*$"
)
_LEAD = re.compile(
    r"(?i)(?:my name is|name is|name:|name was|name to|named|called|i am|i'm|this is|dear|hi|hello|hey|signed,?|sincerely,?|regards,?"
    r"|attn:?|attention:?|contact:?|from:?|to:?|cc:?|ask for|speak (?:to|with)|met|meet|by|for|with|and|about|thanks,?|told|asked|friend|wife|husband|son|daughter"
    r"|brother|sister|mother|father|colleague|manager|boss|nephew|niece|uncle|aunt|actor|actress|singer|author|player|on behalf of|belongs to|owner:?)[ \t]*[:,]?[ \t]*$"
)
_NAMED = re.compile(
    r"(?i)(?:name is|name:|name was|name\?|named|called|call me|i am|i'm|dear|hi|hello)[ \t]*\Z"
)
# What people do and have, after a single word that is on no list.
_ACTS = re.compile(
    r"(?:['’]s? )?[ \t]*(?:(?:and [^\W\d_]+ )?(?:said|says|told|asked|asks|shouted|replied|wrote|writes|lives|lived|works|worked|called|emailed|married|died"
    r"|arrived|began|is from|is very|was born|had given|will be talking|wants|wanted|thinks|thought|knows|knew|likes|loves|spent|who)\b"
    r"|(?:son|daughter|wife|husband|mother|father|mom|dad|sister|brother|friend|boss|address|name|birthday|phone|email|account|house|car|claim|policy)\b"
    r"|,? (?:can|could|will|would|please)\b|:[ \t]*[\"“])"
)
_SPEECH = re.compile(
    r"(?:\b(?:says|said|named (?:him|her|them)|name\?|call(?:s|ed)? me|did|does|is|was|has|have)[ \t]+|[,:][ \t]*)$"
)
_ENDINGS = re.compile(
    r"(?:vić|vic|vich|ović|ić|ova|ová|eva|enko|ski|ska|sky|skaya|czyk|wicz|sson|ssen|nsen|dóttir|dottir|escu|idze|shvili|opoulos|akis|ián|oğlu|yan|zade|tsev|mov)$"
)
# A text without capitals: a name comes after these words, or is a first name and a surname of the lists.
_SPOKEN = re.compile(
    r"\b(?:my name is|name is|name:|call me|they call me|i am called|named (?:him|her)|signed|follow up with|speak (?:to|with)|son of|daughter of|dear|hi|hello)[ \t]+"
    r"([^\W\d_]{2,}(?:[ \t][^\W\d_]{2,})?)"
)
_WORDS = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_OWNED = re.compile(r"['’]s\b")

_TITLES = _WORDS_OF["titles"]
_FIRM = _WORDS_OF["firms"]
# Ordinary words that begin sentences or are written large, and calendar words. Lower case.
_ORDINARY = _WORDS_OF["ordinary"]
_COMMON_FIRST = _WORDS_OF["names_that_are_words"]
_PLACES = _WORDS_OF["places"]


@lru_cache(maxsize=2)
def listed(which: str) -> frozenset[str]:
    """The list `first` or `last`, lower case."""
    data = resources.files("steelyard").joinpath(f"data/names/{which}.txt.xz").read_bytes()
    return frozenset(lzma.decompress(data).decode().split("\n"))


def people(text: str) -> Iterator[tuple[int, int, float]]:
    """Start, end and score of every name in `text`."""
    first, last = listed("first"), listed("last")
    if text.islower():
        yield from _spoken(text, first)
        return
    for run in _RUN.finditer(text):
        start, run_text = run.start(), run.group()
        if " " not in run_text and "\t" not in run_text:
            bare = run_text.lower().rstrip(".")
            if len(bare) < 3 or (bare in _ORDINARY and bare not in _COMMON_FIRST):
                continue
        if start and _INSIDE.match(text, start - 1):
            continue
        words = _capitalised(run_text, start)
        before = text[max(0, run.start() - 40) : run.start()]
        while words and words[0][1].strip(".").lower() in _TITLES:
            before = "Mr "
            words.pop(0)
        words, before = _without_ordinary(words, before)
        if not words:
            continue
        score = _score([word for _, word in words], before, text, run, first, last)
        if score:
            start, (tail_at, tail) = words[0][0], words[-1]
            owned = _OWNED.search(tail)
            yield start, tail_at + (owned.start() if owned else len(tail.rstrip("'’"))), score


def _capitalised(run: str, start: int) -> list[tuple[int, str]]:
    """The words of a run and where they stand, up to the first that is neither large nor a particle."""
    words: list[tuple[int, str]] = []
    for found in _TOKEN.finditer(run):
        word = found.group()
        if word.endswith(".") and len(word) > 2 and word[:-1].lower() not in _TITLES:
            words.append((start + found.start(), word[:-1]))  # a sentence ends here
            break
        if not word[0].isupper() and word not in _PARTICLES:
            break
        words.append((start + found.start(), word))
    while words and words[-1][1] in _PARTICLES:
        words.pop()
    return words


def _without_ordinary(words: list[tuple[int, str]], before: str) -> tuple[list[tuple[int, str]], str]:
    """The run without the ordinary words at its ends: "Please call John" begins with two."""
    dropped = False
    while words and words[0][1].lower() in _ORDINARY and words[0][1].lower() not in _COMMON_FIRST:
        before = f"{before}{words[0][1]} "
        words = words[1:]
        dropped = True
    while words and _bare(words[-1][1]) in _ORDINARY and (dropped or len(words) != 1):
        words = words[:-1]
    return words, before


def _bare(word: str) -> str:
    return _OWNED.sub("", word).strip(".'’").lower()


def _score(  # noqa: C901, PLR0912 - one rule a line
    words: list[str],
    before: str,
    text: str,
    run: "re.Match[str]",
    first: frozenset[str],
    last: frozenset[str],
) -> float:
    bare = [_bare(word) for word in words]
    if any(char.isdecimal() for word in words for char in word):
        return 0.0
    if any(word in _FIRM for word in bare) or all(word in _PLACES or word in _ORDINARY for word in bare):
        return 0.0
    if any(word.isupper() and len(word.rstrip(".")) > 1 for word in words) and not all(
        word.isupper() for word in words
    ):
        return 0.0
    if _TITLE.search(before):
        return 0.9
    led = bool(_LEAD.search(before))
    known = sum(word in first or word in last for word in bare)
    if len(words) >= 2:
        if any(word in _PLACES for word in bare):
            return 0.6 if bare[0] in first and bare[-1] in last else 0.0
        if bare[0] in first:
            return 0.85
        if known or led:
            return 0.7
        return 0.5 if len(words) <= 3 and not any(word in _ORDINARY for word in bare) else 0.0
    (word,) = bare
    if len(word) < 3 or words[0].isupper() or word in _PLACES:
        return 0.0
    if word in _ORDINARY and word not in _COMMON_FIRST:
        return 0.0
    if word in first and word not in _COMMON_FIRST:
        return 0.7 if led or not _begins_sentence(text, run.start()) else 0.5
    if led and (word in last or word in _COMMON_FIRST):
        return 0.6
    if word in _COMMON_FIRST:
        return 0.0
    if not word.isascii() or _ENDINGS.search(word) or (led and _NAMED.search(before)):
        return 0.45
    if _ACTS.match(text, run.start() + len(words[0])) or (_SPEECH.search(before) and word in last):
        return 0.4
    return 0.35 if word in last and not _begins_sentence(text, run.start()) else 0.0


def _spoken(text: str, first: frozenset[str]) -> Iterator[tuple[int, int, float]]:
    """Names in a text that is all lower case."""
    taken = -1
    for found in _SPOKEN.finditer(text):
        words = found.group(1).split()
        if words[0] in _ORDINARY:
            continue
        end = found.end() if len(words) > 1 and words[-1] not in _ORDINARY else found.start(1) + len(words[0])
        yield found.start(1), end, 0.5
        taken = end
    before: re.Match[str] | None = None
    for word in _WORDS.finditer(text):
        bare = _bare(word.group())
        if bare in _ORDINARY or bare in _PLACES or word.start() < taken:
            before = None
            continue
        if (
            before is not None
            and bare not in _COMMON_FIRST
            and text[before.end() : word.start()].strip(" \tabcdefghijklmnopqrstuvwxyz.") == ""
        ):
            yield before.start(), word.start() + len(bare), 0.45
            before = None
            continue
        before = word if bare in first and bare not in _COMMON_FIRST and len(bare) > 2 else None


def _begins_sentence(text: str, start: int) -> bool:
    before = text[:start].rstrip(" \t\"'(")
    return not before or before[-1] in ".!?\n:;\0"
