"""`steelyard key` and `steelyard team`: what is printed, kept, changed and refused."""

import hashlib
import time

import pytest

from steelyard.access import Budget, Limits
from steelyard.serve.accounts import Accounts
from steelyard.serve.auth import KeyedDoor
from steelyard.serve.limits import installation
from steelyard.serve.prices import Prices
from steelyard.store import Store

FULL = (
    "key", "new", "--api", "claims-app", "--team", "claims", "--role", "app", "--models", "gpt-4o*, mini",
    "--rpm", "60", "--tpm", "100000", "--rpd", "5000", "--tpd", "2000000", "--budget", "50/month", "--expires", "90d",
)  # fmt: skip


@pytest.fixture
def store(shell):
    store = Store.open(shell.home)
    yield store
    store.close()


@pytest.fixture
def door(store):
    return KeyedDoor(store)


def lets_in(door, secret):
    return door.caller({b"authorization": b"Bearer " + secret.encode()}).key


def test_a_key_is_printed_once_and_kept_as_hash_and_prefix(shell, store, door):
    made = shell.json("key", "new", "--api", "app")
    secret = made["key"]
    assert secret.startswith(made["prefix"] + "-")
    assert made["prefix"].startswith("sk-steelyard-")
    (kept,) = store.api_keys()
    assert (kept.sha256, kept.prefix) == (hashlib.sha256(secret.encode()).hexdigest(), made["prefix"])
    assert lets_in(door, secret) == "app"
    for command in (("key", "ls"), ("key", "show"), ("key", "show", "app"), ("key", "ls", "--json")):
        assert shell(*command) == 0
        assert secret not in shell.out + shell.err
        assert kept.sha256 not in shell.out
    shell("key", "new", "--api", "plain")
    assert shell.out.strip().startswith("sk-steelyard-")
    assert "cannot be shown again" in shell.err


def test_every_option_of_a_key_is_kept(shell, store):
    assert shell("team", "new", "claims") == 0
    shell.json(*FULL)
    (kept,) = store.api_keys()
    assert (kept.team, kept.role, kept.models) == ("claims", "app", ("gpt-4o*", "mini"))
    assert kept.limits == Limits(60, 100_000, 5000, 2_000_000, Budget(50 * 10**9, "month"))
    shown = shell.json("key", "show", "claims-app")
    assert shown["limits"]["budget"] == "50/month"
    assert (shown["state"], shown["used"]) == ("active", None)
    assert shown["expires"] > shown["created"]


@pytest.mark.parametrize(
    "options",
    [
        ("--team", "nobody"),
        ("--role", "root"),
        ("--rpm", "-1"),
        ("--rpm", "many"),
        ("--budget", "50"),
        ("--models", "[a-z]"),
        ("--expires", "soon"),
        ("--expires", "2020-01-01"),
        ("--expires", "-1d"),
        ("--expires", "1000000d"),
    ],
)
def test_options_that_make_no_key_are_wrong_usage(shell, store, options):
    assert shell("key", "new", "--api", "app", *options) == 2
    assert store.api_keys() == []


def test_a_revoked_key_lets_nobody_in_and_its_name_stays_taken(shell, store, door):
    secret = shell.json("key", "new", "--api", "app")["key"]
    lets_in(door, secret)
    assert shell.json("key", "revoke", "app")["state"] == "revoked"
    since = store.api_keys()[0].revoked
    assert shell("key", "revoke", "app") == 0  # again changes nothing
    assert store.api_keys()[0].revoked == since
    with pytest.raises(Exception, match="not known here"):
        lets_in(door, secret)
    assert shell("key", "new", "--api", "app") == 2
    assert shell("key", "rotate", "app") == 2
    assert shell("key", "drop", "app") == 0
    assert shell("key", "new", "--api", "app") == 0


def test_a_rotated_key_has_two_secrets_for_a_while_and_the_same_rights(shell, store, door):
    old = shell.json("key", "new", "--api", "app", "--rpm", "7")
    new = shell.json("key", "rotate", "app", "--grace", "1h")
    assert new["prefix"] != old["prefix"]
    assert new["limits"] == {"rpm": 7}
    assert lets_in(door, old["key"]) == lets_in(door, new["key"]) == "app"
    third = shell.json("key", "rotate", "app", "--grace", "0m")["key"]
    assert lets_in(door, third) == "app"
    for gone in (old["key"], new["key"]):
        with pytest.raises(Exception, match="not known here"):
            lets_in(door, gone)


def test_unknown_names_are_wrong_usage(shell):
    for command in (("key", "show"), ("key", "revoke"), ("key", "rotate"), ("key", "drop"), ("team", "show"),
                    ("team", "set"), ("team", "drop")):  # fmt: skip
        assert shell(*command, "nobody") == 2
        assert "nobody" in shell.err


def test_teams_are_made_listed_changed_and_dropped(shell, store):
    assert shell("team", "ls") == 0
    assert "steelyard team new" in shell.out
    made = shell.json(
        "team", "new", "claims", "--tenant", "acme", "--models", "gpt-*", "--rpm", "5", "--budget", "9/day"
    )
    assert made == shell.json("team", "ls")[0]
    shell.json("team", "set", "claims", "--rpm", "6", "--clear", "budget", "--clear", "tenant")
    (team,) = store.teams()
    assert (team.tenant, team.models, team.limits) == (None, ("gpt-*",), Limits(rpm=6))
    assert shell("team", "set", "claims", "--rpm", "6", "--clear", "rpm") == 2
    shell.json("key", "new", "--api", "app", "--team", "claims")
    assert shell.json("team", "show", "claims")["keys"] == ["app"]
    assert shell("team", "ls") == 0
    assert "claims" in shell.out
    assert shell("team", "drop", "claims") == 2
    shell("key", "drop", "app")
    assert shell("team", "drop", "claims") == 0
    assert store.teams() == []


def test_what_was_used_is_shown_with_its_currency(shell, store, door):
    shell.home.mkdir(exist_ok=True)
    (shell.home / "steelyard.toml").write_text(
        '[access]\ncurrency = "EUR"\n[prices."*"]\nprompt = 1000\ncompletion = 0\n'
    )
    secret = shell.json("key", "new", "--api", "app")["key"]
    caller = door.caller({b"authorization": b"Bearer " + secret.encode()})
    from steelyard.config import load_config

    config = load_config(shell.home)
    accounts = Accounts(config.accounts, Prices(config.access.prices), clock=time.time, boot="b")
    accounts.take(caller, "gpt-4o", 500).settle(250, 3)
    accounts.close()
    used = shell.json("key", "show", "app")["used"]
    assert (used["requests_day"], used["tokens_day"], used["money_month"]) == (1, 253, 0.25)
    assert shell("key", "show", "app") == 0
    assert "money in EUR" in shell.out
    assert installation(config.access.limits).limits.is_empty
