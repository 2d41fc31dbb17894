"""Attacks on who is let in and on what they may use. Each test is named by its attack."""

import hashlib
import hmac
import importlib.util
import json
import statistics
import threading
import time
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from steelyard.access import ApiKey, Limits, Team
from steelyard.cli.key import new_secret
from steelyard.errors import Exhausted, Malformed, Untrusted, WrongUsage
from steelyard.serve.accounts import Accounts
from steelyard.serve.auth import Caller, KeyedDoor
from steelyard.serve.limits import KEY, TEAM, Scope, allowance_of
from steelyard.serve.oidc import Oidc
from steelyard.serve.prices import Prices
from steelyard.store import Store

SPEC = importlib.util.spec_from_file_location("tokens", Path(__file__).parents[1] / "serve" / "tokens.py")
tokens = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tokens)
NOW, b64, claims = tokens.NOW, tokens.b64, tokens.claims
PROVIDER = tokens.Provider()
PEM = (
    PROVIDER.keys["RS256"]
    .public_key()
    .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
)
DER = (
    PROVIDER.keys["RS256"]
    .public_key()
    .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
)


@pytest.fixture
def oidc(tmp_path):
    path = tmp_path / "jwks.json"
    path.write_text(PROVIDER.key_set())
    return Oidc(tokens.rules(path))


def token_of(head, body, sign):
    text = f"{b64(json.dumps(head).encode())}.{b64(json.dumps(body).encode())}"
    return f"{text}.{b64(sign(text.encode()))}".encode()


def untrusted(oidc, token, match=None):
    with pytest.raises(Untrusted, match=match):
        oidc.verify(token, NOW)


# Tokens.


@pytest.mark.parametrize("name", ["none", "None", "NONE", "nOnE", "", None, 0, ["ES256"], {"ES256": 1}])
def test_algorithm_none(oidc, name):
    for signature in (b"", b"x"):
        untrusted(oidc, token_of({"alg": name, "kid": "key-ES256"}, claims(), lambda text, s=signature: s))


@pytest.mark.parametrize("secret", [PEM, PEM.strip(), DER, b""])
@pytest.mark.parametrize("kid", ["key-RS256", "key-ES256", "key-EdDSA"])
def test_hs256_with_a_public_key_as_the_secret(oidc, secret, kid):
    token = token_of(
        {"alg": "HS256", "kid": kid}, claims(), lambda text: hmac.digest(secret, text, hashlib.sha256)
    )
    untrusted(oidc, token, "signature does not hold")


@pytest.mark.parametrize("algorithm", ["RS256", "PS256", "ES256", "EdDSA"])
@pytest.mark.parametrize("kid", ["key-RS256", "key-ES256", "key-EdDSA"])
def test_a_good_signature_under_another_keys_name(oidc, algorithm, kid):
    if kid.removeprefix("key-") == algorithm.replace("PS", "RS"):
        return
    untrusted(oidc, PROVIDER.token(algorithm, headers={"kid": kid}), "signature does not hold")


def test_a_key_pinned_to_one_algorithm_used_with_another(tmp_path):
    path = tmp_path / "jwks.json"
    path.write_text(PROVIDER.key_set(PROVIDER.jwk("RS256", alg="PS256")))
    oidc = Oidc(tokens.rules(path))
    untrusted(oidc, PROVIDER.token("RS256"), "signature does not hold")
    assert oidc.verify(PROVIDER.token("PS256"), NOW).name == "ada"


@pytest.mark.parametrize("algorithm", ["RS384", "RS512", "PS384", "PS512"])
def test_an_algorithm_nobody_agreed_on(oidc, algorithm):
    token = jwt.encode(claims(), PROVIDER.keys["RS256"], algorithm, headers={"kid": "key-RS256"}).encode()
    untrusted(oidc, token, "signature does not hold")


def test_an_ecdsa_signature_of_zeros_and_of_der_form(oidc):
    head = {"alg": "ES256", "kid": "key-ES256"}
    for signature in (bytes(64), b"\xff" * 64, bytes(63), bytes(65), bytes.fromhex("3006020101020101")):
        untrusted(oidc, token_of(head, claims(), lambda text, s=signature: s), "signature does not hold")


def test_keys_brought_along_by_the_token(oidc):
    mine = rsa.generate_private_key(65537, 2048)
    jwk = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(mine.public_key()))
    for brought in (
        {"jwk": jwk},
        {"jku": "https://attacker.example/jwks.json"},
        {"x5u": "https://attacker.example"},
    ):
        for kid in ({"kid": "key-RS256"}, {"kid": "attacker"}, {}):
            untrusted(oidc, jwt.encode(claims(), mine, "RS256", headers={**brought, **kid}).encode())


@pytest.mark.parametrize(
    "kid", ["../../dev/null", "' OR 1=1 --", "key-ES256\0", "KEY-ES256", 7, ["key-ES256"], {}]
)
def test_a_kid_that_leads_elsewhere(oidc, kid):
    head = json.dumps({"alg": "ES256", "kid": kid}).encode()
    untrusted(oidc, PROVIDER.signed(head, json.dumps(claims()).encode()), "not in the key set")


def test_fields_that_must_be_understood(oidc):
    head = {"alg": "ES256", "kid": "key-ES256", "crit": ["b64"], "b64": False}
    untrusted(oidc, PROVIDER.signed(json.dumps(head).encode(), json.dumps(claims()).encode()), "demands")


@pytest.mark.parametrize("kind", ["JWE", "dpop+jwt", "logout+jwt", "secevent+jwt", 7, [], ""])
def test_a_token_made_for_another_purpose(oidc, kind):
    head = {"alg": "ES256", "kid": "key-ES256", "typ": kind}
    untrusted(oidc, PROVIDER.signed(json.dumps(head).encode(), json.dumps(claims()).encode()), "another type")


@pytest.mark.parametrize(
    "body",
    [
        b'{"sub":"ada","sub":"root"}',
        b'{"iss":"x","iss":"https://login.example.org/realm"}',
        b'{"exp":NaN}',
        b'{"exp":1e999}',
        b"[" * 10_000,
        b'{"a":' * 5_000,
        b"[]",
        b"null",
        b"",
        b"{}{}",
        b"\xff{}",
        b'{"sub":"\\ud800"}',
    ],
)
def test_claims_that_two_readers_see_differently_or_that_exhaust_one(oidc, body):
    head = json.dumps({"alg": "ES256", "kid": "key-ES256"}).encode()
    untrusted(oidc, PROVIDER.signed(head, body)[: 12 << 10])
    untrusted(oidc, PROVIDER.signed(body, json.dumps(claims()).encode())[: 12 << 10])


def test_one_token_spelled_in_several_ways(oidc):
    token = PROVIDER.token("EdDSA")
    oidc.verify(token, NOW)
    # 64 bytes leave four bits of the last character unused: 16 spellings of one signature.
    last = token[-1:]
    alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    others = [bytes((c,)) for c in alphabet if bytes((c,)) != last]
    for spelling in [token[:-1] + c for c in others] + [
        token + b"=",
        token + b"==",
        token + b"\n",
        b" " + token,
    ]:
        untrusted(oidc, spelling)


def test_parts_missing_or_too_many(oidc):
    head, body, signature = PROVIDER.token().split(b".")
    for parts in (
        [head, body],
        [head, body, b""],
        [b"", body, signature],
        [head, body, signature, b""],
        [head] * 5,
    ):
        untrusted(oidc, b".".join(parts))


def test_an_encrypted_token(oidc):
    untrusted(
        oidc, b".".join([b64(b'{"alg":"RSA-OAEP","enc":"A256GCM"}').encode()] + [b"AAAA"] * 4), "no signed"
    )


def test_a_key_set_that_hides_a_second_meaning(tmp_path):
    path = tmp_path / "jwks.json"
    one, two = json.dumps(PROVIDER.jwk("ES256")), json.dumps(PROVIDER.jwk("EdDSA", kid="key-ES256"))
    from steelyard.serve.oidc_keys import parse_keys

    for text in (f'{{"keys":[{one}],"keys":[{two}]}}', f'{{"keys":[{one},{two}]}}'):
        path.write_text(text)
        with pytest.raises(Malformed):
            parse_keys(path.read_bytes())


def test_a_token_named_like_an_api_key_and_the_other_way_round(tmp_path, oidc):
    store = Store.open(tmp_path)
    with pytest.raises(WrongUsage, match="oidc:"):
        store.add_api_key(ApiKey("oidc:ada", "ab" * 32, "2026-01-01T00:00:00Z"))
    store.add_api_key(ApiKey("ada", "ab" * 32, "2026-01-01T00:00:00Z"))
    caller = KeyedDoor(store, oidc, clock=lambda: tokens.datetime_of(NOW)).caller(
        {b"authorization": b"Bearer " + PROVIDER.token()}
    )
    assert caller.key == "oidc:ada"
    store.close()


# Keys.


def test_guessing_keys_by_force(tmp_path):
    store = Store.open(tmp_path)
    door = KeyedDoor(store, ticks=lambda: 0.0)
    answers = []
    for i in range(1000):
        with pytest.raises((Untrusted, Exhausted)) as caught:
            door.caller({b"authorization": b"Bearer sk-steelyard-%d" % i}, "203.0.113.9")
        answers.append(type(caught.value))
    assert answers.count(Untrusted) == 11
    store.close()


def test_secrets_have_nothing_to_guess_from():
    secrets = {new_secret() for _ in range(1000)}
    assert len({secret for secret, _ in secrets}) == len({prefix for _, prefix in secrets}) == 1000
    for secret, prefix in secrets:
        rest = secret.removeprefix(prefix + "-")
        assert len(rest) == 43  # 256 bits
        assert secret == f"{prefix}-{rest}"


def test_learning_a_secret_from_the_time_an_answer_takes(tmp_path):
    """A guess right up to its last character must take as long as one wrong from the first.

    The look-up is by SHA-256, so the test only has to see that nothing compares the secret itself.
    """
    store = Store.open(tmp_path)
    secret = b"sk-steelyard-" + b"a" * 400
    store.add_api_key(ApiKey("app", hashlib.sha256(secret).hexdigest(), "2026-01-01T00:00:00Z"))
    near = {b"authorization": b"Bearer " + secret[:-1] + b"b"}
    far = {b"authorization": b"Bearer " + b"b" * len(secret)}
    ticks = iter(range(10**9))
    door = KeyedDoor(store, ticks=lambda: next(ticks) * 1000.0)
    times = {id(near): [], id(far): []}
    for _ in range(3000):
        for headers in (near, far):
            begin = time.perf_counter_ns()
            with pytest.raises(Untrusted):
                door.caller(headers)
            times[id(headers)].append(time.perf_counter_ns() - begin)
    one, two = (statistics.median(sorted(found)[: len(found) // 2]) for found in times.values())
    assert 0.5 < one / two < 2
    store.close()


def test_learning_a_secret_from_what_is_kept_or_said(tmp_path):
    store = Store.open(tmp_path)
    secret, prefix = new_secret()
    store.add_api_key(
        ApiKey("app", hashlib.sha256(secret.encode()).hexdigest(), "2026-01-01T00:00:00Z", prefix)
    )
    rest = secret.removeprefix(prefix)
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or rest.encode() not in path.read_bytes()
    with pytest.raises(Untrusted) as caught:
        KeyedDoor(store).caller({b"authorization": b"Bearer " + secret.encode() + b"x"})
    assert rest not in caught.value.message
    store.close()


def test_a_key_put_where_its_team_gives_less(tmp_path):
    """A key's own models and limits never widen its team's."""
    store = Store.open(tmp_path)
    store.add_team(Team("small", models=("mini-*",), limits=Limits(rpm=1)))
    sha = hashlib.sha256(b"sk").hexdigest()
    store.add_api_key(
        ApiKey("app", sha, "2026-01-01T00:00:00Z", team="small", models=("*",), limits=Limits(rpm=100))
    )
    caller = KeyedDoor(store).caller({b"x-api-key": b"sk"})
    assert not caller.may_use("gpt-4o")
    accounts = Accounts(tmp_path / "accounts", Prices(), clock=lambda: NOW, boot="b")
    accounts.take(caller, "mini-1", 1)
    with pytest.raises(Exhausted, match="team small"):
        accounts.take(caller, "mini-1", 1)
    accounts.close()
    store.close()


def test_leaving_a_team_that_has_keys_by_dropping_it(tmp_path):
    store = Store.open(tmp_path)
    store.add_team(Team("claims", limits=Limits(rpm=1)))
    store.add_api_key(ApiKey("app", "ab" * 32, "2026-01-01T00:00:00Z", team="claims"))
    with pytest.raises(WrongUsage, match="remove it first"):
        store.remove_team("claims")
    store.close()


@pytest.mark.parametrize(
    "text",
    [
        '[{"title": "a"}]',
        "{}",
        '[{"name":"a","sha256":"ab","created":"x"}]',
        "[1]",
        '[{"role":"admin"}]',
        "nope",
    ],
)
@pytest.mark.parametrize("name", ["api_keys.json", "teams.json"])
def test_a_damaged_list_of_callers_lets_nobody_in(tmp_path, name, text):
    store = Store.open(tmp_path)
    store.add_api_key(ApiKey("app", hashlib.sha256(b"sk").hexdigest(), "2026-01-01T00:00:00Z"))
    (tmp_path / "store" / name).write_text(text)
    with pytest.raises(Malformed):
        KeyedDoor(store).caller({b"x-api-key": b"sk"})
    store.close()


# Limits.


def test_a_limit_raced_from_many_threads_and_workers(tmp_path):
    limits = Limits(rpm=50)
    who = Caller("app", limits=allowance_of(Scope(KEY, "app", limits), Scope(TEAM, "t", limits)))
    first = Accounts(tmp_path, Prices(), clock=lambda: NOW, boot="b")
    first.replay([])
    workers = [first, *(Accounts(tmp_path, Prices(), clock=lambda: NOW, boot="b") for _ in range(3))]
    begin, let_in = threading.Barrier(4), []

    def hammer(accounts):
        begin.wait()
        for _ in range(100):
            try:
                accounts.take(who, "m", 1).release()
            except Exhausted:
                continue
            let_in.append(1)

    threads = [threading.Thread(target=hammer, args=(accounts,)) for accounts in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(let_in) == 50
    for accounts in workers:
        accounts.close()


def test_many_small_keys_do_not_share_and_one_teams_keys_do(tmp_path):
    accounts = Accounts(tmp_path, Prices(), clock=lambda: NOW, boot="b")
    team = Scope(TEAM, "t", Limits(rpm=5))
    for i in range(10):
        who = Caller(f"k{i}", limits=allowance_of(Scope(KEY, f"k{i}", Limits(rpm=1)), team))
        if i < 5:
            accounts.take(who, "m", 1)
            continue
        with pytest.raises(Exhausted, match="team t"):
            accounts.take(who, "m", 1)
    accounts.close()


def test_a_name_that_reads_like_another_scopes(tmp_path):
    accounts = Accounts(tmp_path, Prices(), clock=lambda: NOW, boot="b")
    for who in ("app", "team:app", "key:app", "installation:all"):
        caller = Caller(
            who, limits=allowance_of(Scope(KEY, who, Limits(rpm=1)), Scope(TEAM, who, Limits(rpm=1)))
        )
        accounts.take(caller, "m", 1)
    accounts.close()
