"""Limits, budgets, prices, keys and teams: what parses, what it means, what is refused."""

from datetime import UTC, date, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.access import (
    MAX_AMOUNT,
    MAX_COUNT,
    MAX_PATTERNS,
    MAX_PRICE,
    ROLES,
    ApiKey,
    Budget,
    Limits,
    Price,
    Replaced,
    Team,
    check_name,
    check_patterns,
    seconds_of,
)
from steelyard.errors import WrongUsage

HASH = "ab" * 32
COUNTS = st.none() | st.integers(0, MAX_COUNT)
BUDGETS = st.none() | st.builds(
    Budget, st.integers(0, MAX_AMOUNT * 10**6).map(lambda n: n * 1000), st.sampled_from(["day", "month"])
)
LIMITS = st.builds(Limits, COUNTS, COUNTS, COUNTS, COUNTS, BUDGETS)
NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,20}", fullmatch=True).filter(
    lambda n: n[:5] != "oidc:"
)
PATTERNS = st.lists(st.from_regex(r"[A-Za-z0-9*?][A-Za-z0-9*?.-]{0,9}", fullmatch=True), max_size=4).map(
    tuple
)
MOMENTS = st.dates(date(1970, 1, 2), date(2200, 1, 1)).map(lambda day: f"{day}T23:59:59Z")
HASHES = st.binary(min_size=32, max_size=32).map(bytes.hex)


@given(LIMITS)
def test_limits_survive_json(limits):
    assert Limits.parse(limits.to_json(), "x") == limits


@given(st.builds(Team, NAMES, st.none() | NAMES, PATTERNS, LIMITS))
def test_teams_survive_json(team):
    assert Team.parse(team.to_json()) == team


@given(
    st.builds(
        ApiKey, NAMES, HASHES, MOMENTS, st.just("sk-steelyard-ab"), st.sampled_from(sorted(ROLES)), st.none() | NAMES,
        PATTERNS, LIMITS, st.none() | MOMENTS, st.none() | MOMENTS, st.none() | st.builds(Replaced, HASHES, MOMENTS),
    )
)  # fmt: skip
def test_keys_survive_json(key):
    assert ApiKey.parse(key.to_json()) == key


def test_a_key_of_three_fields_as_it_was_once_kept_is_still_one():
    assert ApiKey.parse({"name": "a", "sha256": HASH, "created": "2026-01-01T00:00:00Z"}).role == "app"


@pytest.mark.parametrize(
    "text", ["50", "50/", "/month", "50/year", "-1/day", "1e3/day", "0.1234567/day", f"{MAX_AMOUNT + 1}/day", 50, None,
             "50/month ", "\u0665/day", "NaN/day"],
)  # fmt: skip
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(WrongUsage, match="no budget"):
        Budget.parse(text)


def test_budgets_are_whole_nanos():
    assert Budget.parse("2.50/day") == Budget(2_500_000_000, "day")
    assert Budget.parse("0.000001/month") == Budget(1000, "month")
    assert str(Budget.parse("100/month")) == "100/month"
    assert Budget.parse(f"{MAX_AMOUNT}/month").nanos == MAX_AMOUNT * 10**9


@pytest.mark.parametrize(
    "value", [7, [], {"rpm": -1}, {"rpm": MAX_COUNT + 1}, {"rpm": True}, {"rpm": 1.0}, {"rpm": "1"}, {"rps": 1},
              {"budget": "x"}],
)  # fmt: skip
def test_what_are_no_limits_is_refused(value):
    with pytest.raises(WrongUsage):
        Limits.parse(value, "here")


@pytest.mark.parametrize(
    "change", [{"role": "root"}, {"role": ["app"]}, {"sha256": "ab"}, {"expires": "tomorrow"}, {"models": "gpt"},
               {"expires": "2026-02-30T00:00:00Z"}, {"unknown": 1}, {"name": "oidc:ada"}, {"name": ""}, {"team": ""},
               {"replaced": {"sha256": HASH}}, {"replaced": {"sha256": "x", "until": "2026-01-01T00:00:00Z"}}],
)  # fmt: skip
def test_what_is_no_key_is_refused(change):
    value = {"name": "a", "sha256": HASH, "created": "2026-01-01T00:00:00Z"} | change
    with pytest.raises((WrongUsage, ValueError)):
        ApiKey.parse(value)


def test_patterns_are_bounded_and_have_no_classes():
    assert len(check_patterns(["a"] * MAX_PATTERNS)) == MAX_PATTERNS
    for values in (
        ["a"] * (MAX_PATTERNS + 1),
        ["[a-z]"],
        ["a b"],
        ["a\n"],
        [""],
        [7],
        "gpt",
        ["-x"],
        ["x" * 129],
    ):
        with pytest.raises(WrongUsage):
            check_patterns(values)


def test_names_are_as_long_as_they_may_be():
    assert check_name("x" * 128, "team") == "x" * 128
    for name in ("x" * 129, "", " a", "a\n", "ä"):
        with pytest.raises(WrongUsage):
            check_name(name, "team")


def test_prices_are_whole_nanos_per_token():
    price = Price.parse("gpt-4o*", {"prompt": 2.5, "completion": 10, "from": date(2026, 1, 1)})
    assert price == Price("gpt-4o*", date(2026, 1, 1), 2500, 10_000)
    assert Price.parse("m", {"prompt": 0.001, "completion": MAX_PRICE}).prompt == 1


@pytest.mark.parametrize(
    "change", [{"prompt": 0.0001}, {"prompt": -1}, {"prompt": MAX_PRICE + 1}, {"prompt": float("nan")},
               {"prompt": True}, {"prompt": "free"}, {"from": "2026-01-01"}, {"per": 1},
               {"from": datetime(2026, 1, 1, tzinfo=UTC)}],
)  # fmt: skip
def test_what_is_no_price_is_refused(change):
    with pytest.raises(WrongUsage):
        Price.parse("m", {"prompt": 1, "completion": 1} | change)


def test_secrets_end_with_the_key_its_grace_and_its_revocation():
    late, soon = "2026-12-31T00:00:00Z", "2026-12-01T00:00:00Z"
    plain = ApiKey("a", HASH, soon)
    assert list(plain.secrets()) == [(HASH, None)]
    rotated = ApiKey("a", HASH, soon, expires=soon, replaced=Replaced("cd" * 32, late))
    assert list(rotated.secrets()) == [(HASH, seconds_of(soon)), ("cd" * 32, seconds_of(soon))]
    graced = ApiKey("a", HASH, soon, expires=late, replaced=Replaced("cd" * 32, soon))
    assert list(graced.secrets())[1] == ("cd" * 32, seconds_of(soon))
    assert list(ApiKey("a", HASH, soon, revoked=soon, replaced=Replaced("cd" * 32, late)).secrets()) == []


def test_a_key_is_active_to_its_last_second():
    key = ApiKey("a", HASH, "2026-01-01T00:00:00Z", expires="2026-12-01T00:00:00Z")
    assert key.state(datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC)) == "active"
    assert key.state(datetime(2026, 12, 1, tzinfo=UTC)) == "expired"
