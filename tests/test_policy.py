"""Policy: the laws of a decision, then one example for each way a rule can fail."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.config import default_policy_text
from steelyard.digest import OMS_SHA256, Digest
from steelyard.errors import WrongUsage
from steelyard.evidence import Statement, Subject, attest
from steelyard.keys import generate
from steelyard.policy import IDENTITIES, LINEAGE, MAX_SKEW, REVOCATION, Policy, State

NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)
OPERATOR, STRANGER = generate("ed25519"), generate("p256")
MODEL = Digest(OMS_SHA256, "aa" * 32)
SOURCE = Digest(OMS_SHA256, "bb" * 32)
SCAN = "urn:steelyard:scan:v1"
RULE = """
[[rule]]
id = "{id}"
why = "w"
predicate = "{predicate}"
supply = "steelyard admit {{model}}"
require = [{{ field = "{field}", op = "{op}", value = {value} }}]
{more}
"""


def policy(*rules):
    return Policy.parse('version = 1\nname = "p"\n' + "".join(rules))


def rule(name="scan", predicate=SCAN, field="verdict", op="==", value='"admit"', more=""):
    return RULE.format(id=name, predicate=predicate, field=field, op=op, value=value, more=more)


def statement(predicate_type=SCAN, subject=MODEL.hex, at=NOW, signer=OPERATOR, **fields):
    body = {"issued_at": f"{at:%Y-%m-%dT%H:%M:%SZ}", **fields}
    return attest(Statement((Subject("m", subject),), predicate_type, body), signer)


def revocation(of, signer=OPERATOR):
    return statement(REVOCATION, subject=of.id.hex, signer=signer, reason="r")


def decide(a_policy, *evidence, now=NOW, alias=None, api_key=None):
    return a_policy.decide(MODEL, evidence, now, keys=[OPERATOR.public], alias=alias, api_key=api_key)


def only_rule(decision):
    (result,) = decision.rules
    assert decision.allowed == (result.state is State.MET)
    return result


VERDICTS = st.sampled_from(["admit", "review", "reject"])
RULES = st.builds(
    lambda value, op, kind: (value, op, kind),
    VERDICTS,
    st.sampled_from(["==", "in"]),
    st.sampled_from([SCAN, "urn:steelyard:licence:v1"]),
)
STATEMENTS = st.builds(
    statement,
    st.sampled_from([SCAN, "urn:steelyard:licence:v1"]),
    at=st.integers(-3, 3).map(lambda days: NOW + timedelta(days=days)),
    verdict=VERDICTS,
)


def spelled(rules):
    return [
        rule(f"r{i}", kind, op=op, value=f'"{value}"' if op == "==" else f'["{value}"]')
        for i, (value, op, kind) in enumerate(rules)
    ]


@given(st.lists(RULES, min_size=1, max_size=4), RULES, st.lists(STATEMENTS, max_size=4))
def test_adding_a_rule_never_turns_refuse_into_allow(rules, extra, evidence):
    before = decide(policy(*spelled(rules)), *evidence)
    after = decide(policy(*spelled([*rules, extra])), *evidence)
    assert after.allowed <= before.allowed


@given(
    st.lists(RULES, min_size=1, max_size=3),
    st.lists(STATEMENTS, max_size=4),
    st.randoms(use_true_random=False),
)
def test_same_input_same_decision_in_any_order(rules, evidence, rng):
    shuffled = list(evidence)
    rng.shuffle(shuffled)
    a_policy = policy(*spelled(rules))
    states = [r.state for r in decide(a_policy, *evidence).rules]
    assert [r.state for r in decide(a_policy, *shuffled).rules] == states


@given(st.lists(RULES, min_size=1, max_size=3), st.lists(STATEMENTS, max_size=4))
def test_revoking_never_turns_refuse_into_allow(rules, evidence):
    a_policy = policy(*spelled(rules))
    before = decide(a_policy, *evidence)
    for item in evidence:
        assert decide(a_policy, *evidence, revocation(item)).allowed <= before.allowed


def test_met_rule_allows_and_names_its_evidence():
    scan = statement(verdict="admit")
    result = only_rule(decide(policy(rule()), scan))
    assert (result.state, result.evidence) == (State.MET, scan.id.hex)


def test_no_evidence_is_unknown_and_says_what_would_supply_it():
    result = only_rule(decide(policy(rule())))
    assert (result.state, result.supply) == (State.UNKNOWN, "steelyard admit " + MODEL.hex[:12])


def test_evidence_on_another_model_is_no_evidence():
    assert (
        only_rule(decide(policy(rule()), statement(subject="cc" * 32, verdict="admit"))).state
        is State.UNKNOWN
    )


def test_condition_that_fails_is_unmet():
    result = only_rule(decide(policy(rule()), statement(verdict="reject")))
    assert (result.state, result.reason) == (State.UNMET, "verdict is 'reject', wanted == 'admit'")


def test_missing_field_is_unknown():
    assert only_rule(decide(policy(rule()), statement())).state is State.UNKNOWN


def test_stranger_signs_nothing():
    assert (
        only_rule(decide(policy(rule()), statement(verdict="admit", signer=STRANGER))).state is State.UNKNOWN
    )


def test_rule_may_accept_fewer_signers_than_are_trusted():
    more = f'signers = ["{STRANGER.public.keyid}"]'
    keys = [OPERATOR.public, STRANGER.public]
    a_policy = policy(rule(more=more))
    by_operator, by_other = statement(verdict="admit"), statement(verdict="admit", signer=STRANGER)
    assert not a_policy.decide(MODEL, [by_operator], NOW, keys=keys).allowed
    assert a_policy.decide(MODEL, [by_other], NOW, keys=keys).allowed


def test_newest_statement_decides():
    old = statement(at=NOW - timedelta(days=2), verdict="admit")
    assert not decide(policy(rule()), old, statement(verdict="reject")).allowed
    assert decide(
        policy(rule()), statement(at=NOW - timedelta(days=2), verdict="reject"), statement(verdict="admit")
    ).allowed


def test_statements_of_one_second_must_agree():
    assert not decide(
        policy(rule()), statement(verdict="admit", n=1), statement(verdict="reject", n=2)
    ).allowed


def test_age_is_checked_and_bounds_the_decision():
    a_policy = policy(rule(more='max_age = "2d"'))
    scan = statement(at=NOW - timedelta(days=1), verdict="admit")
    decision = decide(a_policy, scan)
    assert decision.allowed
    assert decision.valid_until == NOW + timedelta(days=1)
    assert decide(a_policy, scan, now=NOW + timedelta(days=1)).allowed
    late = only_rule(decide(a_policy, scan, now=NOW + timedelta(days=1, seconds=1)))
    assert (late.state, late.reason) == (State.UNMET, "the evidence expired at 2026-11-23T12:00:00Z")


def test_evidence_from_the_future_is_no_evidence():
    assert decide(policy(rule()), statement(at=NOW + MAX_SKEW, verdict="admit")).allowed
    future = statement(at=NOW + MAX_SKEW + timedelta(seconds=1), verdict="admit")
    assert only_rule(decide(policy(rule()), future)).state is State.UNKNOWN


def test_revoked_evidence_is_unmet_even_beside_an_older_one():
    old = statement(at=NOW - timedelta(days=1), verdict="admit")
    new = statement(verdict="admit")
    result = only_rule(decide(policy(rule()), old, new, revocation(new)))
    assert (result.state, result.reason) == (State.UNMET, "the evidence was revoked")


def test_newer_evidence_heals_a_revocation():
    old = statement(at=NOW - timedelta(days=1), verdict="admit")
    assert decide(policy(rule()), old, revocation(old), statement(verdict="admit")).allowed


def test_stranger_cannot_revoke():
    scan = statement(verdict="admit")
    assert decide(policy(rule()), scan, revocation(scan, signer=STRANGER)).allowed


def lineage():
    return statement(LINEAGE, operation="convert", source={"name": "s", "digest": {"sha256": SOURCE.hex}})


def test_rule_on_sources_asks_the_source_too():
    a_policy = policy(rule(more="sources = true"))
    own, theirs = statement(verdict="admit"), statement(subject=SOURCE.hex, verdict="admit")
    assert decide(a_policy, own, lineage(), theirs).allowed
    missing = only_rule(decide(a_policy, own, lineage()))
    assert (missing.state, missing.reason[:20]) == (State.UNKNOWN, f"source {SOURCE.hex[:12]}:")
    assert not decide(a_policy, own, lineage(), theirs, revocation(theirs)).allowed


def test_revoked_lineage_refuses_rules_on_sources():
    a_policy = policy(rule(more="sources = true"))
    link = lineage()
    result = only_rule(
        decide(
            a_policy,
            statement(verdict="admit"),
            link,
            statement(subject=SOURCE.hex, verdict="admit"),
            revocation(link),
        )
    )
    assert (result.state, result.reason) == (State.UNMET, "the lineage statement was revoked")


def test_scope_limits_where_a_rule_applies():
    a_policy = policy(rule(), rule("hr", field="bias", value='"pass"', more='aliases = ["hr-*"]'))
    scan = statement(verdict="admit")
    assert decide(a_policy, scan, alias="gpt-4o").allowed
    assert not decide(a_policy, scan, alias="hr-screen").allowed
    assert not decide(a_policy, scan).allowed


@pytest.mark.parametrize(
    ("op", "value", "found", "state"),
    [
        ("==", "1", 1, State.MET),
        ("==", "true", 1, State.UNMET),
        ("==", "1", True, State.UNMET),
        ("in", '["a", "b"]', "b", State.MET),
        ("in", "[1]", True, State.UNMET),
        ("<=", "0.8", 0.8, State.MET),
        ("<=", "0.8", 0.81, State.UNMET),
        (">=", "0.8", "0.9", State.UNKNOWN),
        (">=", "0", True, State.UNKNOWN),
        ("matches", '"sha256"', "sha256:" + "0" * 64, State.MET),
        ("matches", '"sha256"', "sha256:xyz", State.UNMET),
        ("matches", '"sha256"', 7, State.UNKNOWN),
    ],
)
def test_operators(op, value, found, state):
    assert only_rule(decide(policy(rule(op=op, value=value)), statement(verdict=found))).state is state


def test_every_element_of_a_list_must_hold():
    a_policy = policy(rule(field="review[].sha256", op="in", value='["11", "22"]'))
    assert decide(a_policy, statement(review=[{"sha256": "11"}, {"sha256": "22"}])).allowed
    assert decide(a_policy, statement(review=[])).allowed
    assert not decide(a_policy, statement(review=[{"sha256": "11"}, {"sha256": "33"}])).allowed
    assert only_rule(decide(a_policy, statement(review=[{}]))).state is State.UNKNOWN
    assert only_rule(decide(a_policy, statement(review="11"))).state is State.UNKNOWN


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("version = 1\nname = 'p'\nextra = 1", "unknown key 'extra'"),
        (rule(more="extra = 1"), "unknown key 'extra'"),
        (rule(op="~"), "operator"),
        (rule(op="in"), "needs a list"),
        (rule(op="<=", value="true"), "needs a number"),
        (rule(op="matches", value='".*"'), "pattern"),
        (rule(more='max_age = "soon"'), "max_age"),
        (rule(name="Bad Id"), "id has"),
        (rule() + rule(), "same id"),
        (rule(more='aliases = ["x"]'), "applies to everyone"),
        (rule(more="aliases = []"), "empty"),
        (rule(more="sources = 1"), "sources"),
        ("", "applies to everyone"),
        ("[[rule]", "not TOML"),
        ("x = " + "[" * 5000, "not TOML"),
    ],
)
def test_policy_that_cannot_be_used_is_wrong_usage(text, message):
    body = (
        text
        if text.startswith(("version", "x =", "[[rule]\n")) or text == "[[rule]"
        else 'version = 1\nname = "p"\n' + text
    )
    with pytest.raises(WrongUsage, match=message):
        Policy.parse(body)


def test_naive_clock_is_a_programming_error():
    with pytest.raises(ValueError, match="timezone"):
        decide(policy(rule()), now=datetime(2026, 1, 1))  # noqa: DTZ001


def test_default_policy_refuses_by_default():
    decision = decide(Policy.parse(default_policy_text()))
    assert not decision.allowed
    assert {r.state for r in decision.rules} == {State.UNKNOWN}


@pytest.mark.parametrize("wanted", [None, *IDENTITIES])
@pytest.mark.parametrize("known", [*IDENTITIES, "proven"])
def test_identity_is_a_rule_of_every_engine(wanted, known):
    text = 'version = 1\nname = "p"\n' + (f'identity = "{wanted}"\n' if wanted else "") + rule()
    a_policy, evidence = Policy.parse(text), [statement(verdict="admit")]
    decision = a_policy.decide(MODEL, evidence, NOW, keys=[OPERATOR.public], identity=known)
    result = decision.rules[-1]
    rank = {"asserted": 0, "hashed": 1, "launched": 2, "proven": -1}
    assert result.id == "identity"
    assert decision.allowed == (rank[known] >= rank[wanted or "hashed"])
    assert decision.allowed or ("unverified" in result.reason and "steelyard node" in result.supply)
    assert decide(a_policy, *evidence).allowed  # a model is admitted without an engine


@given(st.sampled_from(IDENTITIES), VERDICTS)
def test_identity_never_turns_a_refusal_into_a_yes(known, verdict):
    a_policy, evidence = policy(rule()), [statement(verdict=verdict)]
    decision = a_policy.decide(MODEL, evidence, NOW, keys=[OPERATOR.public], identity=known)
    assert decision.allowed <= decide(a_policy, *evidence).allowed


def test_identity_has_three_words_and_no_rule_may_take_its_name():
    with pytest.raises(WrongUsage, match="identity"):
        Policy.parse('version = 1\nname = "p"\nidentity = "trust me"\n' + rule())
    with pytest.raises(WrongUsage, match="identity"):
        policy(rule(name="identity"))
