"""What an answer costs: the operator's price table, by alias and day."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from fnmatch import fnmatchcase

from steelyard.access import Price

MAX_CACHED = 10_000

_EPOCH = date(1970, 1, 1)


@dataclass(frozen=True, slots=True)
class Rate:
    """Nanos of the currency per token."""

    prompt: int
    completion: int

    @property
    def highest(self) -> int:
        return max(self.prompt, self.completion)

    def nanos(self, prompt_tokens: int, completion_tokens: int) -> int:
        return prompt_tokens * self.prompt + completion_tokens * self.completion


class Prices:
    """Prices in force. Of several that match an alias its own name counts before the longest pattern, and of those
    the latest that has begun."""

    def __init__(self, prices: Iterable[Price] = ()) -> None:
        self._prices = tuple(prices)
        self._day = -1
        self._rates: dict[str, Rate | None] = {}

    def rate(self, alias: str, day: int) -> Rate | None:
        """What `alias` costs on `day` (days since 1970, UTC); absent when no price is in force."""
        if day != self._day or len(self._rates) > MAX_CACHED:
            self._rates = {}
            self._day = day
        try:
            return self._rates[alias]
        except KeyError:
            self._rates[alias] = found = self._rate(alias, _EPOCH + timedelta(days=day))
            return found

    def _rate(self, alias: str, day: date) -> Rate | None:
        begun = [price for price in self._prices if price.since <= day and fnmatchcase(alias, price.pattern)]
        if not begun:
            return None
        best = max(begun, key=lambda price: (price.pattern == alias, len(price.pattern), price.since))
        return Rate(best.prompt, best.completion)
