"""Doors: who is let in as whom, for how long, and how an unknown key is answered."""

import hashlib
import importlib.util
import os
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from steelyard.access import ApiKey, Limits, Replaced, Team
from steelyard.errors import Exhausted, Refused, Untrusted
from steelyard.serve.auth import MAX_SECRET_BYTES, MAX_SEEN, KeyedDoor, OpenDoor
from steelyard.serve.oidc import Oidc
from steelyard.serve.peers import FORGET_S, MAX_DELAY_S, MAX_FAILURES, MAX_PEERS, Peers

SPEC = importlib.util.spec_from_file_location("tokens", Path(__file__).parent / "tokens.py")
tokens = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tokens)
PROVIDER = tokens.Provider()
NOON = datetime.fromtimestamp(tokens.NOW, UTC)


@dataclass
class Keys:
    """A store's keys and teams, in memory."""

    keys: list = field(default_factory=list)
    team_list: list = field(default_factory=list)
    number: int = 0

    def head(self):
        return self.number

    def api_keys(self):
        return self.keys

    def teams(self):
        return self.team_list

    def put(self, *keys, teams=()):
        self.keys, self.team_list = list(keys), list(teams) or self.team_list
        self.number += 2


class Clock:
    def __init__(self):
        self.now = NOON
        self.ticked = 0.0

    def __call__(self):
        return self.now

    def ticks(self):
        return self.ticked


def key(name="app", secret="sk-one", **more):
    return ApiKey(name, hashlib.sha256(secret.encode()).hexdigest(), "2026-01-01T00:00:00Z", **more)


def bearer(secret="sk-one"):
    return {b"authorization": b"Bearer " + secret.encode()}


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store():
    return Keys()


@pytest.fixture
def door(store, clock):
    return KeyedDoor(store, clock=clock, ticks=clock.ticks)


def at(text):
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)


def test_a_caller_is_its_key_its_team_and_their_limits(store, clock):
    door = KeyedDoor(store, limits=Limits(rpd=9), clock=clock, ticks=clock.ticks)
    team = Team("claims", "acme", ("gpt-*",), Limits(rpm=5))
    store.put(key(team="claims", role="auditor", models=("*-4o",), limits=Limits(tpm=7)), teams=[team])
    caller = door.caller(bearer())
    assert (caller.key, caller.team, caller.tenant, caller.role) == ("app", "claims", "acme", "auditor")
    assert [(s.label, s.limits) for s in caller.limits.scopes] == [
        ("key:app", Limits(tpm=7)),
        ("team:claims", Limits(rpm=5)),
        ("installation:all", Limits(rpd=9)),
    ]
    assert [caller.may_use(alias) for alias in ("gpt-4o", "gpt-5", "x-4o", "gpt-4o-mini")] == [True] + [
        False
    ] * 3


@pytest.mark.parametrize(
    ("role", "needs"),
    [
        ("app", {"models", "list"}),
        ("auditor", {"list", "metrics", "ledger"}),
        ("operator", {"models", "list", "metrics", "ledger"}),
        ("admin", {"models", "list", "metrics", "ledger"}),
    ],
)
def test_each_role_may_what_it_is_for(store, door, role, needs):
    store.put(key(role=role))
    caller = door.caller(bearer())
    assert {need for need in ("models", "list", "metrics", "ledger", "other") if caller.may(need)} == needs


def test_a_team_without_a_tenant_is_its_own_and_a_key_without_a_team_has_none(store, door):
    store.put(key(team="claims"), key("two", "sk-two"), teams=[Team("claims")])
    assert door.caller(bearer()).tenant == "claims"
    assert door.caller(bearer("sk-two")).tenant is None


def test_both_vendors_fields_are_taken_alone_or_agreeing(store, door):
    store.put(key())
    for headers in (
        bearer(),
        {b"authorization": b"bearer   sk-one "},
        {b"x-api-key": b" sk-one"},
        {**bearer(), b"x-api-key": b"sk-one"},
    ):
        assert door.caller(headers).key == "app"
        assert door.caller(headers).key == "app"  # and from the cache


def test_two_fields_that_differ_are_refused_also_when_both_are_known(store, door):
    store.put(key(), key("two", "sk-two"))
    door.caller(bearer())
    door.caller({b"x-api-key": b"sk-two"})
    with pytest.raises(Untrusted, match="differ"):
        door.caller({**bearer(), b"x-api-key": b"sk-two"})
    with pytest.raises(Untrusted, match="differ"):
        door.caller({**bearer(), b"x-api-key": b""})


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {b"authorization": b""},
        {b"authorization": b"Bearer"},
        {b"authorization": b"Bearer  "},
        {b"authorization": b"Basic c2s6b25l"},
        {b"authorization": b"sk-one"},
        {b"x-api-key": b""},
        {b"x-api-key": b"Bearer sk-one"},
        {b"x-api-key": b"sk-one\0"},
        {b"authorization": b"Bearer sk-one,sk-one"},
        {b"authorization": b"Bearer SK-ONE"},
        {b"authorization": b"Basic c2s6b25l", b"x-api-key": b"sk-one"},
    ],
)
def test_what_is_no_known_key_is_refused(store, door, headers):
    store.put(key())
    door.caller(bearer())
    door.caller({b"x-api-key": b"sk-one"})
    with pytest.raises(Untrusted):
        door.caller(headers)


def test_a_secret_is_bounded(store, door):
    store.put(key(secret="s" * MAX_SECRET_BYTES))
    assert door.caller(bearer("s" * MAX_SECRET_BYTES)).key == "app"
    with pytest.raises(Untrusted, match="at most"):
        door.caller(bearer("s" * (MAX_SECRET_BYTES + 1)))


def test_unknown_expired_and_revoked_keys_get_the_same_words(store, door, clock):
    store.put(
        key("old", "sk-old", expires="2026-01-02T00:00:00Z"),
        key("gone", "sk-gone", revoked="2026-01-02T00:00:00Z"),
    )
    said = set()
    for secret in ("sk-none", "sk-old", "sk-gone"):
        with pytest.raises(Untrusted) as caught:
            door.caller(bearer(secret))
        said.add(caught.value.message)
    assert len(said) == 1


def test_a_key_ends_at_its_moment_also_when_it_is_cached(store, door, clock):
    store.put(key(expires="2026-12-01T00:00:00Z"))
    clock.now = at("2026-11-30T23:59:59Z")
    door.caller(bearer())
    clock.now = at("2026-12-01T00:00:00Z")
    with pytest.raises(Untrusted):
        door.caller(bearer())


def test_a_rotated_key_counts_until_its_grace_is_over(store, door, clock):
    old = hashlib.sha256(b"sk-old").hexdigest()
    store.put(key(replaced=Replaced(old, "2026-12-01T00:00:00Z")))
    assert door.caller(bearer("sk-old")) == door.caller(bearer())
    clock.now = at("2026-12-01T00:00:00Z")
    door.caller(bearer())
    with pytest.raises(Untrusted):
        door.caller(bearer("sk-old"))


def test_a_change_of_the_store_counts_at_the_next_request(store, door):
    store.put(key())
    door.caller(bearer())
    store.put(key(role="operator"))
    assert door.caller(bearer()).role == "operator"
    store.put()
    with pytest.raises(Untrusted):
        door.caller(bearer())


def test_a_store_that_fails_is_asked_again(store, door):
    store.put(key(), teams=[Team("t")])
    good, store.api_keys = store.api_keys, lambda: (_ for _ in ()).throw(Refused("no"))
    for _ in range(2):
        with pytest.raises(Refused):
            door.caller(bearer())
    store.api_keys = good
    assert door.caller(bearer()).key == "app"


def test_a_key_of_a_team_that_is_gone_lets_nobody_in_and_the_others_still_do(store, door):
    store.put(key(team="gone"), key("two", "sk-two"))
    with pytest.raises(Untrusted):
        door.caller(bearer())
    assert door.caller(bearer("sk-two")).key == "two"


def test_what_is_remembered_is_bounded(store, door):
    store.put(key())
    for i in range(MAX_SEEN + 1):
        door.caller({b"authorization": b"Bearer sk-one" + b" " * i})
    assert len(door._by_authorization) <= MAX_SEEN


# Tokens.


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "jwks.json"
    path.write_text(PROVIDER.key_set())
    return path


def token_door(store, clock, path, **changes):
    rules = tokens.rules(path, teams={"apps": "claims"}, **changes)
    return KeyedDoor(store, Oidc(rules), limits=Limits(rpd=9), clock=clock, ticks=clock.ticks)


def test_a_token_is_a_caller_with_the_teams_models_and_limits(store, clock, path):
    store.put(key(), teams=[Team("claims", "acme", ("gpt-*",), Limits(rpm=5))])
    door = token_door(store, clock, path, limits=Limits(rpm=2))
    token = PROVIDER.token().decode()
    for headers in (bearer(token), {b"x-api-key": token.encode()}):
        caller = door.caller(headers)
        assert (caller.key, caller.team, caller.tenant, caller.role) == ("oidc:ada", "claims", "acme", "app")
        assert [s.label for s in caller.limits.scopes] == ["key:oidc:ada", "team:claims", "installation:all"]
        assert not caller.may_use("claude")
    assert door.caller(bearer(token)) is caller
    assert door.caller(bearer()).key == "app"  # API keys go on beside tokens


def test_a_token_of_a_team_that_is_not_here_is_refused(store, clock, path):
    door = token_door(store, clock, path)
    with pytest.raises(Refused, match="team"):
        door.caller(bearer(PROVIDER.token().decode()))


def test_a_cached_token_ends_at_its_end_with_its_key_and_with_its_teams_rights(store, clock, path):
    store.put(teams=[Team("claims")])
    door = token_door(store, clock, path)
    headers = bearer(PROVIDER.token().decode())
    first = door.caller(headers)
    store.put(teams=[Team("claims", models=("none",))])
    assert not door.caller(headers).may_use("gpt-4o")
    assert first.may_use("gpt-4o")
    clock.now = NOON + timedelta(seconds=659)
    door.caller(headers)
    clock.now = NOON + timedelta(seconds=660)
    with pytest.raises(Untrusted, match="expired"):
        door.caller(headers)
    clock.now = NOON
    door.caller(headers)
    path.write_text(PROVIDER.key_set(PROVIDER.jwk("RS256")))
    os.utime(path, ns=(1, 1))
    clock.now = NOON + timedelta(seconds=1)
    with pytest.raises(Untrusted, match="not in the key set"):
        door.caller(headers)


def test_without_oidc_a_token_is_an_unknown_key(store, door):
    with pytest.raises(Untrusted, match="not known here"):
        door.caller(bearer(PROVIDER.token().decode()))


# Peers.


def guess(door, peer, secret="sk-wrong"):
    with pytest.raises((Untrusted, Exhausted)) as caught:
        door.caller(bearer(secret), peer)
    return caught.value


def test_after_too_many_failures_a_second_a_peer_waits_longer_each_time(store, door, clock):
    store.put(key(), key("two", "sk-two"))
    door.caller(bearer(), "203.0.113.1")
    for _ in range(MAX_FAILURES):
        assert isinstance(guess(door, "203.0.113.1"), Untrusted)
    assert isinstance(guess(door, "203.0.113.1"), Untrusted)
    waits = []
    for _ in range(8):
        error = guess(door, "203.0.113.1")
        assert (error.limit, error.code) == ("failures", "rate_limit_exceeded")
        waits.append(error.retry_after_s)
        clock.ticked += error.retry_after_s
        assert isinstance(guess(door, "203.0.113.1"), Untrusted)
    assert waits == [1, 2, 4, 8, 16, 32, 60, MAX_DELAY_S]
    assert isinstance(
        guess(door, "203.0.113.1", "sk-two"), Exhausted
    )  # a right guess says no more than a wrong one
    assert door.caller(bearer(), "203.0.113.1").key == "app"  # who was in already stays in
    assert door.caller(bearer("sk-two"), "203.0.113.2").key == "two"
    clock.ticked += MAX_DELAY_S + FORGET_S + 1
    for _ in range(MAX_FAILURES):
        assert isinstance(guess(door, "203.0.113.1"), Untrusted)


def test_failures_spread_over_time_are_no_attack(store, door, clock):
    for _ in range(10 * MAX_FAILURES):
        assert isinstance(guess(door, "203.0.113.1"), Untrusted)
        clock.ticked += 0.5


def test_a_request_without_a_key_is_no_guess(store, door):
    for _ in range(3 * MAX_FAILURES):
        with pytest.raises(Untrusted):
            door.caller({}, "203.0.113.1")


def test_bad_tokens_are_guesses_too(store, clock, path):
    door = token_door(store, clock, path)
    for _ in range(MAX_FAILURES + 1):
        assert isinstance(guess(door, "::1", "e30.e30.AAAA"), Untrusted)
    assert isinstance(guess(door, "::1", "e30.e30.AAAA"), Exhausted)


@pytest.mark.parametrize(
    ("one", "two", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:203.0.113.1", "203.0.113.1", True),
        ("fe80::1%eth0", "fe80::2", True),
        ("not:an:address", "not:another", False),
    ],
)
def test_one_customers_addresses_are_one_peer(one, two, same):
    peers = Peers()
    for _ in range(MAX_FAILURES + 1):
        peers.failed(one, 0.0)
    assert (peers.wait_s(two, 0.0) is not None) is same


def test_peers_are_bounded_and_the_longest_quiet_is_forgotten():
    peers = Peers()
    for i in range(MAX_PEERS + 1):
        for _ in range(MAX_FAILURES + 1):
            peers.failed(f"peer {i}", 0.0)
    assert peers.wait_s("peer 0", 0.0) is None
    assert peers.wait_s("peer 1", 0.0) == 1
    assert len(peers._peers) == MAX_PEERS


# On loopback.


def test_the_open_door_counts_for_the_installation_only():
    caller = OpenDoor(Limits(rpm=3)).caller({b"host": b"localhost:8470"})
    assert (caller.key, caller.role) == (None, "operator")
    assert [s.label for s in caller.limits.scopes] == ["installation:all"]
    assert OpenDoor().caller({}).limits.scopes == ()
