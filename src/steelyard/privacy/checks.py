"""Whether a run of characters is what it looks like: check digits, lengths, ranges.

Sources: ISO/IEC 7812-1 (Luhn), ISO 13616 (IBAN), SSA's rules for numbers, RFC 4291, NIST FIPS 180-4 for base58check.
National numbers are python-stdnum's, telephone numbers are phonenumbers'.
"""

import hashlib
import ipaddress
import re
from collections.abc import Callable, Sequence
from functools import lru_cache

from steelyard.errors import WrongUsage

try:
    import phonenumbers
    from stdnum import iban as iban_rules
    from stdnum.de import idnr
    from stdnum.fr import nir
    from stdnum.gb import nhs
except ImportError as error:
    raise WrongUsage("finding personal data needs more: pip install 'steelyard[privacy]'") from error

_DIGITS = re.compile(r"\d")
_BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_VIN = {**{str(d): d for d in range(10)}, **dict(zip("ABCDEFGH", range(1, 9), strict=True)),
        **dict(zip("JKLMN", range(1, 6), strict=True)), "P": 7, "R": 9,
        **dict(zip("STUVWXYZ", range(2, 10), strict=True))}  # fmt: skip
_VIN_WEIGHTS = (8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2)

Check = Callable[[str], bool]


def digits_of(text: str) -> str:
    return "".join(_DIGITS.findall(text))


def luhn(digits: str) -> bool:
    """Whether a run of digits ends in its Luhn check digit."""
    total = 0
    for place, char in enumerate(reversed(digits)):
        value = int(char) * (1 + place % 2)
        total += value - 9 * (value > 9)
    return total % 10 == 0


def is_card(text: str) -> bool:
    digits = digits_of(text)
    known = digits[0] in "23456" or digits.startswith(("1800", "2131"))
    return 12 <= len(digits) <= 19 and known and len(set(digits)) > 1 and luhn(digits)


def is_iban(text: str) -> bool:
    return bool(iban_rules.is_valid(text.upper(), check_country=False))


def is_ssn(text: str) -> bool:
    digits = digits_of(text)
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    if len(digits) != 9 or area in ("000", "666") or area[0] == "9" or group == "00" or serial == "0000":
        return False
    return digits not in ("078051120", "219099999")  # printed on sample cards


def is_ip(text: str) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (address.is_unspecified or address.is_loopback)


def is_nhs(text: str) -> bool:
    return bool(nhs.is_valid(text))


def is_nir(text: str) -> bool:
    return bool(nir.is_valid(text))


def is_tax_id(text: str) -> bool:
    return bool(idnr.is_valid(text))


def is_routing(text: str) -> bool:
    """An ABA routing number: nine digits, weights 3, 7, 1."""
    digits = [int(char) for char in digits_of(text)]
    if len(digits) != 9 or not any(digits):
        return False
    return sum(d * w for d, w in zip(digits, (3, 7, 1) * 3, strict=True)) % 10 == 0


def is_vin(text: str) -> bool:
    """A vehicle number by its North American check digit (49 CFR 565.15)."""
    upper = text.upper()
    if len(upper) != 17 or not all(char in _VIN for char in upper):
        return False
    rest = sum(_VIN[char] * weight for char, weight in zip(upper, _VIN_WEIGHTS, strict=True)) % 11
    return upper[8] == ("X" if rest == 10 else str(rest))


def is_wallet(text: str) -> bool:
    """A Bitcoin address in base58check; bech32 and Ethereum addresses are told by their shape alone."""
    if text[:2].lower() == "0x" or text[:3].lower() == "bc1":
        return True
    number = 0
    for char in text:
        if char not in _BASE58:
            return False
        number = number * 58 + _BASE58.index(char)
    if number >= 1 << 200:
        return False
    raw = number.to_bytes(25, "big")
    return hashlib.sha256(hashlib.sha256(raw[:21]).digest()).digest()[:4] == raw[21:]


def phone_check(regions: Sequence[str]) -> Check:
    """A check for telephone numbers as they are written in `regions`, or with a country's code anywhere."""

    @lru_cache(maxsize=4096)
    def is_phone(text: str) -> bool:
        for region in regions:
            try:
                number = phonenumbers.parse(text, region)
            except phonenumbers.NumberParseException:
                continue
            if phonenumbers.is_possible_number(number) and phonenumbers.is_valid_number(number):
                return True
        return False

    return is_phone
