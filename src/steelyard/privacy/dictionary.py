"""The firm's own list of people and numbers, found in texts although it is kept as keyed hashes alone.

A file of lines: "steelyard-dictionary 1 WORDS", WORDS the most words of an entry; then hashes, "f" + hex for an
entry's first word and "e" + hex for an entry. A hash is keyed BLAKE2b of 16 bytes over the words, without case and
accents, one blank between them.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache

from steelyard.errors import Malformed, WrongUsage

MAX_WORDS = 8
MAX_ENTRIES = 5_000_000
HEAD = "steelyard-dictionary 1 "
_WORD = re.compile(r"\w+")


def normal(text: str) -> tuple[str, ...]:
    """The words of a text without case and accents."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    return tuple(_WORD.findall("".join(char for char in plain if not unicodedata.combining(char))))


@dataclass(frozen=True, slots=True)
class Dictionary:
    """Entries as hashes. Called with a text it gives the places of those in it."""

    key: bytes
    most_words: int
    firsts: frozenset[bytes]
    entries: frozenset[bytes]

    @classmethod
    def made(cls, entries: Iterable[str], key: bytes) -> "Dictionary":
        """From the list itself. Raises WrongUsage for an entry without words or with too many."""
        firsts, whole, most = set(), set(), 1
        for number, entry in enumerate(entries, 1):
            words = normal(entry)
            if not 1 <= len(words) <= MAX_WORDS or number > MAX_ENTRIES:
                raise WrongUsage(f"entry {number} has {len(words)} words; 1 to {MAX_WORDS} are possible")
            firsts.add(_hash(key, words[:1]))
            whole.add(_hash(key, words))
            most = max(most, len(words))
        return cls(key, most, frozenset(firsts), frozenset(whole))

    def dump(self) -> str:
        lines = [f"f{item.hex()}" for item in sorted(self.firsts)] + [
            f"e{item.hex()}" for item in sorted(self.entries)
        ]
        return f"{HEAD}{self.most_words}\n" + "".join(f"{line}\n" for line in lines)

    @classmethod
    def parse(cls, text: str, key: bytes) -> "Dictionary":
        """Raises Malformed."""
        head, _, rest = text.partition("\n")
        most = head.removeprefix(HEAD)
        if not head.startswith(HEAD) or most not in map(str, range(1, MAX_WORDS + 1)):
            raise Malformed("not a dictionary of steelyard", rule="dictionary/head", offset=0)
        found: dict[str, set[bytes]] = {"f": set(), "e": set()}
        for line in rest.splitlines():
            if line[:1] not in found or not re.fullmatch(r"[0-9a-f]{32}", line[1:]):
                raise Malformed("a line of the dictionary is no hash", rule="dictionary/line")
            found[line[0]].add(bytes.fromhex(line[1:]))
        return cls(key, int(most), frozenset(found["f"]), frozenset(found["e"]))

    def __call__(self, text: str) -> Iterator[tuple[int, int]]:
        words = list(_WORD.finditer(text))
        begins: dict[str, bool] = {}
        for place, word in enumerate(words):
            plain = word.group()
            if plain not in begins:
                begins[plain] = _hash(self.key, normal(plain)[:1]) in self.firsts
            if not begins[plain]:
                continue
            for last in reversed(words[place : place + self.most_words]):
                part = text[word.start() : last.end()]
                if len(part) <= 400 and _hash(self.key, normal(part)) in self.entries:
                    yield word.start(), last.end()
                    break


@lru_cache(maxsize=1 << 15)
def _hash(key: bytes, words: tuple[str, ...]) -> bytes:
    return hashlib.blake2b(" ".join(words).encode("utf-8", "surrogatepass"), key=key, digest_size=16).digest()
