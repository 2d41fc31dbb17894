"""Stand-ins for personal data: of the same form, drawn by a key, the same for the same value in one conversation.

A card stays a card with a right check digit, an IBAN an IBAN, an e-mail an e-mail; a name is made of other names, word
by word, so that a surname alone is still told. Forms that nobody has are taken where there are some: e-mail below
example.com, addresses of the reserved blocks, social security numbers that begin with 9.
"""

import hmac
import ipaddress
import string
from collections.abc import Callable, Iterator

from steelyard.privacy.checks import digits_of, luhn
from steelyard.privacy.names import listed

MAX_TRIES = 64

_FIRST_LETTERS = 3


class Draw:
    """A stream of numbers that a key, a conversation and a value fix."""

    def __init__(self, key: bytes, *parts: bytes) -> None:
        message = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        self._key = hmac.digest(key, message, "sha256")
        self._block = b""
        self._count = 0

    def below(self, limit: int) -> int:
        """A number from 0 to limit - 1."""
        if len(self._block) < 4:
            self._block += hmac.digest(self._key, self._count.to_bytes(8, "big"), "sha256")
            self._count += 1
        number, self._block = int.from_bytes(self._block[:4], "big"), self._block[4:]
        return number * limit >> 32


def pseudonyms(kind: str, value: str, key: bytes, conversation: bytes) -> Iterator[str]:
    """Candidates for a value, best first; another is taken when one stands in the request already."""
    make = _MAKERS.get(kind, _same_shape)
    for attempt in range(MAX_TRIES):
        yield make(value, Draw(key, conversation, kind.encode(), value.encode(), attempt.to_bytes(2, "big")))


def name_word(word: str, key: bytes, conversation: bytes, attempt: int) -> str:
    """Another word for one word of a name, capitalised alike."""
    draw = Draw(key, conversation, b"name", word.lower().encode(), attempt.to_bytes(2, "big"))
    names = _names("first" if word.lower() in listed("first") else "last")
    found = names[draw.below(len(names))]
    return (
        found.upper() if word.isupper() and len(word) > 2 else found if word.islower() else found.capitalize()
    )


_cache: dict[str, list[str]] = {}


def _names(which: str) -> list[str]:
    if which not in _cache:
        _cache[which] = sorted(name for name in listed(which) if len(name) > _FIRST_LETTERS)
    return _cache[which]


def _same_shape(value: str, draw: Draw) -> str:
    """Digit for digit, letter for letter, signs as they are."""

    def other(char: str) -> str:
        if char.isdigit():
            return str(draw.below(10))
        if char.isalpha():
            letter = string.ascii_lowercase[draw.below(26)]
            return letter.upper() if char.isupper() else letter
        return char

    return "".join(map(other, value))


def _card(value: str, draw: Draw) -> str:
    digits = digits_of(value)
    made = digits[0] + "".join(str(draw.below(10)) for _ in digits[1:-1])
    made += next(str(check) for check in range(10) if luhn(made + str(check)))
    return _in_form(value, made)


def _in_form(value: str, digits: str) -> str:
    left = iter(digits)
    return "".join(next(left) if char.isdigit() else char for char in value)


def _iban(value: str, draw: Draw) -> str:
    compact = value.replace(" ", "").upper()
    bban = _same_shape(compact[4:], draw)
    number = int("".join(str(int(char, 36)) for char in bban + compact[:2] + "00"))
    made = f"{compact[:2]}{98 - number % 97:02d}{bban}"
    left = iter(made)
    return "".join(char if char == " " else next(left) for char in value)


def _email(_: str, draw: Draw) -> str:
    return f"{_word(draw)}.{_word(draw)}@mail.example.com"


def _word(draw: Draw) -> str:
    names = _names("last")
    return names[draw.below(len(names))]


def _domain(value: str, draw: Draw) -> str:
    scheme, mark, _ = value.rpartition("://")
    return f"{scheme}{mark}{_word(draw)}-{draw.below(1000)}.example.com"


def _ip(value: str, draw: Draw) -> str:
    if ":" in value:
        base = int(ipaddress.IPv6Address("2001:db8::"))
        return str(ipaddress.IPv6Address(base + (draw.below(1 << 32) << 32 | draw.below(1 << 32))))
    return str(ipaddress.IPv4Address((240 << 24) + draw.below(14 << 24)))


def _ssn(value: str, draw: Draw) -> str:
    return _in_form(value, "9" + "".join(str(draw.below(10)) for _ in range(8)))


def _phone(value: str, draw: Draw) -> str:
    digits = digits_of(value)
    kept = len(digits) - min(7, max(4, len(digits) - 3))
    return _in_form(value, digits[:kept] + "".join(str(draw.below(10)) for _ in digits[kept:]))


_MAKERS: dict[str, Callable[[str, Draw], str]] = {
    "card": _card,
    "iban": _iban,
    "email": _email,
    "domain": _domain,
    "ip": _ip,
    "ssn": _ssn,
    "phone": _phone,
}
