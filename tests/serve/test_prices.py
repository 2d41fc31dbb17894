"""What an answer costs."""

from datetime import date

import pytest

from steelyard.access import Price
from steelyard.serve.limits import bound_of
from steelyard.serve.prices import MAX_CACHED, Prices, Rate
from steelyard.wire.call import Call

DAY = 20_000  # 2024-10-04
TABLE = Prices(
    [
        Price("*", date(1970, 1, 1), 1, 1),
        Price("gpt-*", date(1970, 1, 1), 2, 2),
        Price("gpt-4o***", date(1970, 1, 1), 7, 7),
        Price("gpt-4o", date(1970, 1, 1), 3, 3),
        Price("gpt-4o", date(2024, 10, 4), 4, 40),
        Price("gpt-4o", date(2024, 10, 5), 5, 50),
        Price("new", date(2024, 10, 5), 9, 9),
    ]
)


@pytest.mark.parametrize(
    ("alias", "day", "prompt"),
    [
        ("gpt-4o", DAY - 1, 3),
        ("gpt-4o", DAY, 4),
        ("gpt-4o", DAY + 1, 5),
        ("gpt-4o-mini", DAY, 7),
        ("gpt-5", DAY, 2),
        ("claude", DAY, 1),
        ("new", DAY, 1),
        ("new", DAY + 1, 9),
        ("GPT-4o", DAY, 1),
    ],
)
def test_the_own_name_then_the_longest_pattern_then_the_latest_day_counts(alias, day, prompt):
    assert TABLE.rate(alias, day).prompt == prompt
    assert TABLE.rate(alias, day).prompt == prompt  # and from the cache


def test_no_price_is_none_and_a_rate_charges_each_side():
    assert Prices().rate("x", DAY) is None
    assert Rate(4, 40).nanos(10, 2) == 120
    assert Rate(4, 40).highest == 40


def test_the_cache_is_bounded():
    prices = Prices()
    for i in range(MAX_CACHED + 10):
        prices.rate(str(i), DAY)
    assert len(prices._rates) <= MAX_CACHED + 1


@pytest.mark.parametrize(
    ("kind", "body", "bound"),
    [
        ("chat", {}, 11 + 4096),
        ("chat", {"max_tokens": 5}, 16),
        ("chat", {"max_tokens": 5, "max_completion_tokens": 7, "n": 3}, 32),
        ("chat", {"max_tokens": None, "n": None}, 11 + 4096),
        ("chat", {"max_tokens": -5, "n": -5}, 11),
        ("chat", {"max_tokens": True}, 11 + 4096),
        ("completion", {"max_tokens": 5, "n": 2, "best_of": 4}, 31),
        ("embedding", {"max_tokens": 5}, 11),
    ],
)
def test_what_is_held_is_the_prompt_by_size_and_each_answer_at_its_maximum(kind, body, bound):
    assert bound_of(Call(kind, "m", body), 40, 4096) == bound
