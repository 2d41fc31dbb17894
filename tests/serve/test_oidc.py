"""Tokens of an identity provider: the RFCs' own examples, PyJWT's tokens, and every reason to say no."""

import importlib.util
import json
import os
from pathlib import Path

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.access import Limits
from steelyard.errors import Malformed, Refused, Unavailable, Untrusted, WrongUsage
from steelyard.serve.oidc import LOOK_AGAIN_S, MAX_GROUPS, MAX_TOKEN_BYTES, Oidc, check_key_set
from steelyard.serve.oidc_keys import MAX_KEYS, decoded, parse_keys

SPEC = importlib.util.spec_from_file_location("tokens", Path(__file__).parent / "tokens.py")
tokens = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(tokens)
NOW, b64, claims, rules = tokens.NOW, tokens.b64, tokens.claims, tokens.rules
PROVIDER = tokens.Provider()
ALGORITHMS = ["RS256", "PS256", "ES256", "EdDSA"]

# RFC 7515, A.2 and A.3; RFC 8037, A.4.
JOE = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ"
RFC = {
    "RS256": (
        {
            "kty": "RSA",
            "n": "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yR"
            "T-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaS"
            "HSXndS5z5rexMdbBYUsLA9e-KXBdQOS"
            "-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2et"
            "hFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ",
            "e": "AQAB",
        },
        f"eyJhbGciOiJSUzI1NiJ9.{JOE}",
        "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CU"
        "Ar7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_d"
        "O--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0ig"
        "cN_IoypGlUPQGe77Rw",
    ),
    "ES256": (
        {
            "kty": "EC",
            "crv": "P-256",
            "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
            "y": b64(bytes.fromhex("c7f144cd1bbd9b7e872cdfedb9eeb9f4b3695d6ea90b24ad8a4623288588e5ad")),
        },
        f"eyJhbGciOiJFUzI1NiJ9.{JOE}",
        "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
    ),
    "EdDSA": (
        {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
        "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc",
        b64(
            bytes.fromhex(
                "860c98d2297f3060a33f42739672d61b53cf3adefed3d3c672f320dc021b411e"
                "9d59b8628dc351e248b88b29468e0e41855b0fb7d83bb15be902bfccb8cd0a02"
            )
        ),
    ),
}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "jwks.json"
    path.write_text(PROVIDER.key_set())
    return path


@pytest.fixture
def oidc(path):
    return Oidc(rules(path))


@pytest.mark.parametrize("algorithm", RFC)
def test_the_rfcs_examples_verify_and_one_bit_less_does_not(algorithm):
    jwk, signed, signature = RFC[algorithm]
    (key,) = parse_keys(json.dumps({"keys": [jwk]}).encode())
    data = decoded(signature)
    assert key.verifies(algorithm, data, signed.encode())
    assert not key.verifies(algorithm, data, signed.encode() + b"A")
    assert not key.verifies(algorithm, bytes((data[0] ^ 1,)) + data[1:], signed.encode())


def test_the_rfcs_token_names_joe_until_its_end(tmp_path):
    jwk, signed, signature = RFC["ES256"]
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": [jwk]}))
    token = f"{signed}.{signature}".encode()
    with pytest.raises(Untrusted, match="another audience"):
        Oidc(tokens.OidcRules("joe", "me", path)).verify(token, 1300819379)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_tokens_of_another_library_are_let_in(oidc, algorithm):
    found = oidc.verify(PROVIDER.token(algorithm), NOW)
    assert (found.name, found.role, found.team, found.until) == ("ada", "app", None, NOW + 660)


@given(position=st.integers(0, 10_000), bit=st.integers(0, 7), algorithm=st.sampled_from(ALGORITHMS))
def test_one_flipped_bit_anywhere_is_refused(tmp_path_factory, position, bit, algorithm):
    path = tmp_path_factory.getbasetemp() / "flip.json"
    if not path.exists():
        path.write_text(PROVIDER.key_set())
    token = bytearray(PROVIDER.token(algorithm))
    token[position % len(token)] ^= 1 << bit
    with pytest.raises(Untrusted):
        Oidc(rules(path)).verify(bytes(token), NOW)


@given(st.binary(max_size=400))
def test_noise_is_refused_and_nothing_else(tmp_path_factory, noise):
    path = tmp_path_factory.getbasetemp() / "noise.json"
    if not path.exists():
        path.write_text(PROVIDER.key_set())
    for token in (noise, b".".join([noise] * 3), b64(noise).encode() + b".e30.AAAA"):
        with pytest.raises(Untrusted):
            Oidc(rules(path)).verify(token, NOW)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"iss": "https://login.example.org/realm/"}, "another issuer"),
        ({"iss": None}, "another issuer"),
        ({"iss": [tokens.ISSUER]}, "another issuer"),
        ({"aud": "other"}, "another audience"),
        ({"aud": ["other", "another"]}, "another audience"),
        ({"aud": {"steelyard": 1}}, "another audience"),
        ({"aud": None}, "another audience"),
        ({"exp": None}, "no end"),
        ({"exp": NOW - 60}, "expired"),
        ({"exp": str(NOW + 60)}, "no moment"),
        ({"exp": True}, "no moment"),
        ({"exp": 10**400}, "no moment"),
        ({"exp": -1}, "no moment"),
        ({"nbf": NOW + 61}, "not valid yet"),
        ({"iat": NOW + 61}, "not valid yet"),
        ({"iat": "now"}, "no moment"),
        ({"sub": None}, "no name"),
        ({"sub": ""}, "no name"),
        ({"sub": "ada\nroot"}, "no name"),
        ({"sub": "\u0430da"}, "no name"),
        ({"sub": "a" * 129}, "no name"),
        ({"sub": 7}, "no name"),
        ({"groups": {"apps": 1}}, "no list"),
        ({"groups": ["apps", 7]}, "no list"),
        ({"groups": ["apps"] * (MAX_GROUPS + 1)}, "no list"),
    ],
)
def test_claims_that_do_not_hold_are_refused(oidc, changes, reason):
    head = json.dumps({"alg": "ES256", "kid": "key-ES256"}).encode()
    token = PROVIDER.signed(head, json.dumps(claims(**changes), ensure_ascii=False).encode())
    with pytest.raises(Untrusted, match=reason):
        oidc.verify(token, NOW)


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": NOW - 59},
        {"exp": NOW + 0.5},
        {"nbf": NOW + 60},
        {"iat": NOW + 60},
        {"iat": None},
        {"aud": ["other", "steelyard"]},
        {"sub": "a" * 128},
        {"groups": ["apps"] * MAX_GROUPS},
        {"groups": "apps other"},
    ],
)
def test_claims_at_their_borders_are_let_in(oidc, changes):
    assert oidc.verify(PROVIDER.token(**changes), NOW).role == "app"


def test_groups_map_to_roles_and_teams_and_the_first_one_listed_counts(path):
    mapped = rules(
        path, roles={"ops": "operator", "apps": "app"}, teams={"claims": "claims-team", "apps": "t"}
    )
    oidc = Oidc(mapped)
    found = oidc.verify(PROVIDER.token(groups=["apps", "ops", "claims"]), NOW)
    assert (found.role, found.team) == ("operator", "claims-team")
    with pytest.raises(Refused, match="no group"):
        oidc.verify(PROVIDER.token(groups=["others"]), NOW)
    with pytest.raises(Refused, match="no group"):
        oidc.verify(PROVIDER.token(groups=None), NOW)
    assert Oidc(rules(path, default_role="auditor")).verify(PROVIDER.token(groups=[]), NOW).role == "auditor"


def test_claims_are_found_by_name_and_by_the_way_to_them(path):
    oidc = Oidc(rules(path, name="https://example.org/name", groups="realm_access.roles", models="models"))
    more = {"https://example.org/name": "bob", "realm_access": {"roles": ["apps"]}}
    found = oidc.verify(PROVIDER.token(**more, models=["gpt-*"]), NOW)
    assert (found.name, found.models) == ("bob", ("gpt-*",))
    assert oidc.verify(PROVIDER.token(**more, models=[]), NOW).models == ("-",)
    assert oidc.verify(PROVIDER.token(**more), NOW).models == ("-",)
    with pytest.raises(Untrusted, match="no alias patterns"):
        oidc.verify(PROVIDER.token(**more, models=["[a-z]"]), NOW)


def test_limits_of_tokens_come_from_the_rules(path):
    limits = Limits(rpm=5)
    assert Oidc(rules(path, limits=limits)).verify(PROVIDER.token(), NOW).limits == limits


def test_a_token_has_a_bound_on_its_size(oidc):
    def sized(extra):
        return PROVIDER.token("EdDSA", pad="x" * extra)

    step = MAX_TOKEN_BYTES - len(sized(0))
    fits = next(
        token for extra in range(step * 3 // 4 - 8, step) if len(token := sized(extra)) >= MAX_TOKEN_BYTES - 1
    )
    assert oidc.verify(fits, NOW).name == "ada"
    with pytest.raises(Untrusted, match="at most"):
        oidc.verify(sized(step), NOW)


# The key set.


def test_a_new_key_set_counts_within_a_second_and_keys_that_are_gone_stop(path, oidc):
    token = PROVIDER.token("ES256")
    oidc.verify(token, NOW)
    before = oidc.generation(NOW)
    path.write_text(PROVIDER.key_set(PROVIDER.jwk("RS256"), PROVIDER.jwk("EdDSA")))
    os.utime(path, ns=(1, 1))
    assert oidc.generation(NOW + LOOK_AGAIN_S / 2) == before
    assert oidc.generation(NOW + LOOK_AGAIN_S) != before
    with pytest.raises(Untrusted, match="not in the key set"):
        oidc.verify(token, NOW + LOOK_AGAIN_S)
    oidc.verify(PROVIDER.token("EdDSA"), NOW + LOOK_AGAIN_S)


@pytest.mark.parametrize("text", ["", "{}", '{"keys": {}}', '{"keys": []}', "[]", '{"keys": [7]}', "\xff"])
def test_a_key_set_that_is_none_lets_nobody_in_until_it_is_mended(path, oidc, text):
    oidc.verify(PROVIDER.token(), NOW)
    path.write_bytes(text.encode("latin-1"))
    os.utime(path, ns=(1, 1))
    with pytest.raises(WrongUsage, match="jwks"):
        check_key_set(path)
    for later in (1, 2, 2.1):
        with pytest.raises(Unavailable):
            oidc.verify(PROVIDER.token(), NOW + later)
    path.write_text(PROVIDER.key_set())
    check_key_set(path)
    oidc.verify(PROVIDER.token(), NOW + 4)


def test_a_key_set_that_is_gone_is_unavailable(tmp_path):
    with pytest.raises(Unavailable):
        Oidc(rules(tmp_path / "none")).verify(PROVIDER.token(), NOW)
    with pytest.raises(WrongUsage):
        check_key_set(tmp_path / "none")


def test_keys_of_other_kinds_are_passed_over(path):
    others = [
        {"kty": "oct", "k": "c2VjcmV0", "alg": "HS256"},
        {"kty": "EC", "crv": "P-384", "x": "AA", "y": "AA"},
        {"kty": "OKP", "crv": "X25519", "x": "AA"},
        PROVIDER.jwk("RS256", kid="enc", use="enc"),
        PROVIDER.jwk("RS256", kid="signing only", key_ops=["sign"]),
        PROVIDER.jwk("RS256", kid="oaep", alg="RSA-OAEP"),
    ]
    assert parse_keys(PROVIDER.key_set(*others).encode()) == ()
    found = parse_keys(PROVIDER.key_set(*others, PROVIDER.jwk("ES256")).encode())
    assert [key.kid for key in found] == ["key-ES256"]


@pytest.mark.parametrize(
    ("jwk", "rule"),
    [
        ({"kty": "RSA", "n": "AQAB", "e": "AQAB"}, "jwks/key"),
        ({"kty": "RSA", "e": "AQAB"}, "jwks/key"),
        ({"kty": "RSA", "n": "A" * 2049, "e": "AQAB"}, "jwks/key"),
        ({"kty": "RSA", "n": "_" * 1400, "e": "AQAB"}, "jwks/key"),
        ({"kty": "EC", "crv": "P-256", "x": b64(b"\1" * 32), "y": b64(b"\1" * 32)}, "jwks/key"),
        ({"kty": "EC", "crv": "P-256", "x": b64(b"\1" * 31), "y": b64(b"\1" * 32)}, "jwks/key"),
        ({"kty": "EC", "crv": "Ed25519", "x": b64(b"\1" * 32)}, "jwks/key"),
        ({"kty": "OKP", "crv": "Ed25519", "x": b64(b"\1" * 31)}, "jwks/key"),
        ({"kty": "OKP", "crv": "Ed25519", "x": b64(b"\1" * 32) + "="}, "jwks/key"),
        ({"kty": "OKP", "crv": "Ed25519", "x": b64(b"\1" * 32), "kid": 7}, "jwks/kid"),
    ],
)
def test_a_key_that_is_none_is_malformed(jwk, rule):
    with pytest.raises(Malformed) as caught:
        parse_keys(json.dumps({"keys": [jwk]}).encode())
    assert caught.value.rule == rule


def test_a_key_set_is_bounded_and_its_kids_are_unambiguous():
    many = [PROVIDER.jwk("EdDSA", kid=str(i)) for i in range(MAX_KEYS + 1)]
    assert len(parse_keys(PROVIDER.key_set(*many[:-1]).encode())) == MAX_KEYS
    with pytest.raises(Malformed, match="at most"):
        parse_keys(PROVIDER.key_set(*many).encode())
    with pytest.raises(Malformed, match="same kid"):
        parse_keys(PROVIDER.key_set(many[0], many[0]).encode())


@given(st.binary(max_size=60))
def test_base64url_round_trips_and_has_one_spelling(data):
    if data:
        assert decoded(b64(data)) == data
        with pytest.raises(ValueError, match="base64url"):
            decoded(b64(data) + "=")


@pytest.mark.parametrize(
    "text", ["", "A", "AB", "AAAAA", "A+==", "AA==", "A A", "A\n", "AAAA\n", "é", "AA/A"]
)
def test_what_is_not_the_one_spelling_is_no_base64url(text):
    with pytest.raises(ValueError, match="base64url"):
        decoded(text)


def test_the_oracle_agrees_that_our_tokens_are_good(oidc):
    token = PROVIDER.token("PS256")
    assert jwt.decode(token, PROVIDER.keys["PS256"].public_key(), ["PS256"], audience="steelyard",
                      options={"verify_exp": False, "verify_iat": False})["sub"] == "ada"  # fmt: skip
    assert oidc.verify(token, NOW).name == "ada"
