"""Licence claims: recognised by their words, named in SPDX, and never settled when they differ."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.admit.licences import is_osi_approved, licence_of, spdx_of
from steelyard.admit.openness import openness_of
from steelyard.admit.rules import registry
from steelyard.admit.scan import scan

APACHE = (Path(__file__).parents[2] / "LICENSE").read_text()


def licence(tmp_path, **files):
    for name, text in files.items():
        path = tmp_path / {"licence": "LICENSE", "card": "README.md", "other": "LICENSE-other"}[name]
        path.write_text(text)
    found = scan(tmp_path, registry())
    return licence_of(found), openness_of(found, licence_of(found))


def card(name, **more):
    lines = "".join(f"{key}: {value}\n" for key, value in more.items())
    return f"---\nlicense: {name}\n{lines}---\n# A model\n"


def test_apache_text_is_apache(tmp_path):
    found, openness = licence(tmp_path, licence=APACHE)
    assert (found.expression, found.is_osi_approved, found.has_conflict) == ("Apache-2.0", True, False)
    assert openness.licence == "open"


def test_layout_and_holder_do_not_matter(tmp_path):
    text = "Copyright 2026 Somebody Else\n\n" + "\n".join("   " + line for line in APACHE.splitlines())
    assert licence(tmp_path, licence=text)[0].expression == "Apache-2.0"


def test_one_changed_word_is_not_the_licence(tmp_path):
    assert "perpetual" in APACHE
    found, openness = licence(tmp_path, licence=APACHE.replace("perpetual", "revocable", 1))
    assert (found.expression, found.is_osi_approved) == (None, False)
    assert openness.licence == "unknown"


def test_text_and_card_that_agree(tmp_path):
    found, _ = licence(tmp_path, licence=APACHE, card=card("apache-2.0"))
    assert (found.expression, found.has_conflict, len(found.claims)) == ("Apache-2.0", False, 2)


def test_text_and_card_that_differ_are_a_conflict_and_both_are_shown(tmp_path):
    found, openness = licence(tmp_path, licence=APACHE, card=card("llama3.1"))
    assert (found.expression, found.has_conflict, found.is_osi_approved) == (None, True, False)
    assert {claim.expression for claim in found.claims} == {
        "Apache-2.0",
        "LicenseRef-scancode-llama-3.1-license-2024",
    }
    assert openness.licence == "unknown"


@pytest.mark.parametrize(
    "name", ["llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "gemma", "openrail"]
)
def test_community_licence_is_known_and_not_open(tmp_path, name):
    found, openness = licence(tmp_path, card=card(name))
    assert found.expression is not None
    assert not found.is_osi_approved
    assert openness.licence == "restricted"


def test_no_claim_is_unknown(tmp_path):
    found, openness = licence(tmp_path, card="# A model\n")
    assert (found.expression, found.claims) == (None, ())
    assert openness.licence == "unknown"


def test_unknown_name_is_unknown(tmp_path):
    found, _ = licence(tmp_path, card=card("other", license_name="our-own-terms"))
    assert found.expression is None
    assert [claim.stated for claim in found.claims] == ["our-own-terms"]


def test_missing_components_are_named(tmp_path):
    _, openness = licence(tmp_path, licence=APACHE, card=card("apache-2.0", datasets="\n- ours/data"))
    assert openness.weights == "absent"
    assert {"final weights", "training code", "evaluation results"} <= set(openness.missing)
    assert "training data" not in openness.missing


@pytest.mark.parametrize(
    ("expression", "approved"),
    [
        ("MIT", True), ("MIT AND Apache-2.0", True), ("MIT AND CC-BY-NC-4.0", False), ("MIT OR CC-BY-NC-4.0", True),
        ("CC-BY-4.0", False), ("LicenseRef-scancode-gemma-tou-2024-04-01", False),
        ("MIT AND (Apache-2.0 OR CC0-1.0)", True),
    ],
)  # fmt: skip
def test_osi_approval_of_an_expression(expression, approved):
    assert is_osi_approved(expression) is approved


@pytest.mark.parametrize(
    ("name", "expression"),
    [("apache-2.0", "Apache-2.0"), ("mit", "MIT"), ("MIT", "MIT"), ("cc-by-nc-4.0", "CC-BY-NC-4.0")],
)
def test_card_names_become_spdx(name, expression):
    assert spdx_of(name) == expression


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_name_is_answered(name):
    assert spdx_of(name) is None or spdx_of(name)
