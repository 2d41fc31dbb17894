"""The tables [access] and [prices]: what they mean, and every way to get them wrong."""

from datetime import date

import pytest

from steelyard.access import Budget, Limits, Price
from steelyard.config import load_config
from steelyard.errors import WrongUsage

GOOD = """
[access]
rpm = 600
budget = "1000/month"
currency = "EUR"
reserve_tokens = 512

[access.oidc]
issuer = "https://login.example.org/realm"
audience = "steelyard"
jwks = "jwks.json"
name = "email"
groups = "realm_access.roles"
default_role = "app"
skew_s = 0

[access.oidc.roles]
"ai-ops" = "operator"

[access.oidc.teams]
"claims-department" = "claims"

[access.oidc.limits]
rpm = 20

[prices."gpt-4o"]
prompt = 2.5
completion = 10

[[prices."*"]]
prompt = 1
completion = 1
[[prices."*"]]
from = 2026-01-01
prompt = 2
completion = 2
"""


def read(tmp_path, text):
    (tmp_path / "steelyard.toml").write_text(text)
    return load_config(tmp_path).access


def test_a_full_table_is_read(tmp_path):
    access = read(tmp_path, GOOD)
    assert access.limits == Limits(rpm=600, budget=Budget(10**12, "month"))
    assert (access.currency, access.reserve_tokens) == ("EUR", 512)
    oidc = access.oidc
    assert (oidc.issuer, oidc.audience, oidc.skew_s) == ("https://login.example.org/realm", "steelyard", 0)
    assert (oidc.key_set, oidc.name, oidc.groups, oidc.models) == (
        tmp_path / "jwks.json",
        "email",
        "realm_access.roles",
        None,
    )
    assert (oidc.roles, oidc.teams) == ({"ai-ops": "operator"}, {"claims-department": "claims"})
    assert (oidc.default_role, oidc.limits) == ("app", Limits(rpm=20))
    assert access.prices == (
        Price("gpt-4o", date(1970, 1, 1), 2500, 10_000),
        Price("*", date(1970, 1, 1), 1000, 1000),
        Price("*", date(2026, 1, 1), 2000, 2000),
    )


def test_without_tables_nothing_is_limited_and_no_token_trusted(tmp_path):
    access = read(tmp_path, "")
    assert (access.limits, access.oidc, access.prices) == (Limits(), None, ())


OIDC = '[access.oidc]\nissuer = "i"\naudience = "a"\njwks = "j"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("access = 1", "table"),
        ("prices = 1", "table"),
        ("[access]\nrps = 1", "rps"),
        ("[access]\nrpm = -1", "rpm"),
        ("[access]\ncurrency = 1", "currency"),
        ("[access]\nreserve_tokens = 10000001", "reserve_tokens"),
        ("[access]\nreserve_tokens = true", "reserve_tokens"),
        ("[access]\noidc = 1", "oidc"),
        ('[access.oidc]\nissuer = "i"\naudience = "a"', "jwks"),
        ('[access.oidc]\nissuer = ""\naudience = "a"\njwks = "j"', "issuer"),
        (OIDC + "name = 1", "name"),
        (OIDC + 'default_role = "root"', "root"),
        (OIDC + "skew_s = 301", "skew_s"),
        (OIDC + "algorithms = ['none']", "algorithms"),
        (OIDC + '[access.oidc.roles]\ng = "root"', "root"),
        (OIDC + "[access.oidc.roles]\ng = 1", "text"),
        (OIDC + '[access.oidc.teams]\ng = "a b"', "a b"),
        (OIDC + "[access.oidc.limits]\nrps = 1", "rps"),
        ('[prices."a b"]\nprompt = 1\ncompletion = 1', "a b"),
        ("[prices.m]\nprompt = 1", "completion"),
        ("[[prices.m]]\nprompt = 1\ncompletion = 1\n[[prices.m]]\nprompt = 2\ncompletion = 1", "same day"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path, text, said):
    with pytest.raises(WrongUsage, match=said) as caught:
        read(tmp_path, text)
    assert "steelyard.toml" in caught.value.message
