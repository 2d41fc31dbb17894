"""Finding personal data in text: one pass that says which patterns may fit at all, then those alone in full.

The first pass is Hyperscan's, all patterns at once over the UTF-8 bytes; it may say yes too often and never says no
wrongly (each hint is a part that its pattern cannot do without). Without Hyperscan every pattern is tried, with the same result.
Digits, spaces and signs that only look unlike are folded first, so that full-width digits or a soft hyphen hide nothing.
"""

import importlib.util
import re
import unicodedata
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from steelyard.errors import Refused
from steelyard.privacy.names import people
from steelyard.privacy.patterns import NEAR, Pattern, patterns

if TYPE_CHECKING:
    pass

PERSON = "person"
KINDS = ("account", "address", "birth", "card", "domain", "email", "iban", "ip", "licence", "national", "passport",
         PERSON, "phone", "secret", "ssn", "vehicle", "wallet", "zip", "customer")  # fmt: skip
MAX_TEXT_CHARS = 1 << 20
DEFAULT_REGIONS = ("US", "GB", "DE", "FR")

# Characters without width, and those that NFKC makes into plain ones.
_ODD = re.compile(
    r"(?![0-9])\d|"
    "[\u0130\u0131\u017f\u212a\u00a0\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u2000-\u200f\u2010-\u2015\u202a-\u202f\u205f-\u206f"
    "\u2212\u3000\ufe00-\ufe0f\ufe58\ufe63\ufeff\uff01-\uff5e\U0001d400-\U0001d7ff\u0660-\u0669\u06f0-\u06f9\u0966-\u096f]"
)
_NOTHING = frozenset("\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180e\u200b\u200c\u200d\u200e\u200f"
                     "\u2060\u2061\u2062\u2063\u2064\ufeff")  # fmt: skip
_DASHES = frozenset("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63")
_CAPITAL = re.compile(r"[^\W\d_a-z]")


@dataclass(frozen=True, slots=True)
class Hit:
    """Characters start to end of a text are of a kind. score: 0 to 1, how sure."""

    start: int
    end: int
    kind: str
    score: float


class Detector:
    """Finds the kinds given. customers: further hits, from the firm's own list.  fast: use Hyperscan if it is there."""

    def __init__(
        self,
        kinds: Iterable[str] = KINDS,
        *,
        regions: Sequence[str] = DEFAULT_REGIONS,
        customers: Callable[[str], Iterable[tuple[int, int]]] | None = None,
        fast: bool = True,
    ) -> None:
        wanted = frozenset(kinds)
        self._patterns = tuple(pattern for pattern in patterns(regions) if pattern.kind in wanted)
        self._people = PERSON in wanted
        self._customers = customers
        self._first = _FirstPass(self._patterns) if fast and importlib.util.find_spec("hyperscan") else None

    def find(self, text: str) -> list[Hit]:
        """Hits by place, none overlapping another. The text may be many, joined by a character that is in none."""
        if len(text) > MAX_TEXT_CHARS:
            raise Refused(
                f"more than {MAX_TEXT_CHARS} characters to scan for personal data", ("privacy/too-large",)
            )
        folded, places = _folded(text)
        found: list[Hit] = []
        for number in self._first.maybe(folded) if self._first else range(len(self._patterns)):
            found += _hits(self._patterns[number], folded)
        if self._customers is not None:
            found += [Hit(start, end, "customer", 1.0) for start, end in self._customers(folded)]
        if self._people and _CAPITAL.search(folded):
            found += [Hit(start, end, PERSON, score) for start, end, score in people(folded)]
        best = _apart(found)
        if places is None:
            return best
        return [Hit(places[hit.start], places[hit.end - 1] + 1, hit.kind, hit.score) for hit in best]


def _hits(pattern: Pattern, text: str) -> Iterable[Hit]:
    for match in pattern.regex.finditer(text):
        if pattern.check is not None and not pattern.check(match.group()):
            continue
        if pattern.refuses is not None and pattern.refuses.search(
            text, max(0, match.start() - 24), match.start()
        ):
            continue
        if pattern.needs is not None:
            near = text[max(0, match.start() - NEAR) : match.start()], text[match.end() : match.end() + NEAR]
            if not any(map(pattern.needs.search, near)):
                continue
        start, end = match.span("value" if "value" in pattern.regex.groupindex else 0)
        yield Hit(start, end, pattern.kind, pattern.score)


def _apart(found: list[Hit]) -> list[Hit]:
    """Of hits that overlap, the surest and then the longest."""
    if len(found) < 2:
        return found
    kept: list[Hit] = []
    starts: list[int] = []
    for hit in sorted(found, key=lambda hit: (-hit.score, hit.start - hit.end, hit.start, hit.kind)):
        place = bisect_left(
            starts, hit.end
        )  # the last that begins before this one ends is the only one to meet it
        if place and kept[place - 1].end > hit.start:
            continue
        starts.insert(place, hit.start)
        kept.insert(place, hit)
    return kept


def _folded(text: str) -> tuple[str, list[int] | None]:
    """The text with odd characters made plain, and where each character stood; absent when none was odd."""
    if text.isascii() or not _ODD.search(text):
        return text, None
    chars: list[str] = []
    places: list[int] = []
    for place, char in enumerate(text):
        if char in _NOTHING:
            continue
        plain = char
        if not char.isascii() and _ODD.match(char):
            plain = (
                "-"
                if char in _DASHES
                else "i"
                if char in "\u0130\u0131"
                else unicodedata.normalize("NFKC", char)
            )
            if len(plain) == 1 and plain.isdecimal():
                plain = str(unicodedata.decimal(plain))
        for piece in plain:
            chars.append(" " if piece.isspace() and piece not in "\n\r\t" else piece)
            places.append(place)
    return "".join(chars), places


class _FirstPass:
    """Which patterns may fit somewhere."""

    def __init__(self, all_patterns: Sequence[Pattern]) -> None:
        import hyperscan  # noqa: PLC0415 - optional: without it every pattern is tried

        # Over bytes: where a pattern's own letters may be other than ASCII, its hint does without them.
        flags = hyperscan.HS_FLAG_SINGLEMATCH | hyperscan.HS_FLAG_CASELESS
        numbers: dict[str, int] = {}
        self._wanted = [
            (
                numbers.setdefault(pattern.hint, len(numbers)),
                numbers.setdefault(pattern.hint_near, len(numbers)) if pattern.hint_near else None,
            )
            for pattern in all_patterns
        ]
        self._database: hyperscan.Database = hyperscan.Database()
        self._database.compile(
            expressions=[hint.encode() for hint in numbers],
            ids=list(range(len(numbers))),
            elements=len(numbers),
            flags=[flags] * len(numbers),
        )

    def maybe(self, text: str) -> list[int]:
        found: set[int] = set()

        def note(hint: int, *_: object) -> None:
            found.add(hint)

        self._database.scan(text.encode("utf-8", "surrogatepass"), match_event_handler=note)
        return [
            number
            for number, (hint, near) in enumerate(self._wanted)
            if hint in found and (near is None or near in found)
        ]
