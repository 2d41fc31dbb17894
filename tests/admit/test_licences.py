"""Licence claims: recognised by their words, named in SPDX, and never settled when they differ."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.admit.examined import Examined
from steelyard.admit.licence_terms import merged, terms_of
from steelyard.admit.licences import MAX_BASES, MAX_LICENCES, is_osi_approved, licence_of, spdx_of
from steelyard.admit.openness import openness_of
from steelyard.admit.rules import registry
from steelyard.admit.scan import Scan, scan
from steelyard.formats.base import Report
from steelyard.formats.gguf import MAX_BASE_MODELS, base_models
from steelyard.policy import Condition, State

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
    assert {"Model parameters (Final)", "Training code", "Evaluation results"} <= set(openness.missing)
    assert "Datasets" not in openness.missing


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


LLAMA = "LicenseRef-scancode-llama-3.1-license-2024"


def adapter(tmp_path, base):
    config = {"peft_type": "LORA", "base_model_name_or_path": base, "task_type": "CAUSAL_LM", "r": 8}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))


def test_fine_tune_that_drops_the_licence_of_its_base_is_a_conflict(tmp_path):
    found, openness = licence(
        tmp_path, licence=APACHE, card=card("apache-2.0", base_model="meta-llama/Llama-3.1-8B")
    )
    assert (found.expression, found.has_conflict, found.is_osi_approved) == (None, True, False)
    assert [(i.base, i.licence) for i in found.inherited] == [("meta-llama/Llama-3.1-8B", LLAMA)]
    assert openness.licence == "unknown"


def test_fine_tune_that_keeps_the_licence_of_its_base_has_its_terms(tmp_path):
    found, _ = licence(tmp_path, card=card("llama3.1", base_model="\n- meta-llama/Llama-3.1-8B"))
    assert (found.expression, found.has_conflict, found.base) == (LLAMA, False, "known")
    terms = found.terms()
    assert (terms["commercial"], terms["training_others"]) == ("threshold", "with naming")
    assert "700 million" in terms["commercial_threshold"]


def test_permissive_base_leaves_the_fine_tune_its_own_licence(tmp_path):
    found, _ = licence(tmp_path, card=card("mit", base_model="Qwen/Qwen2.5-7B"))
    assert (found.expression, found.has_conflict, found.base) == ("MIT", False, "known")
    assert found.terms()["commercial"] == "yes"


def test_licence_of_the_base_grants_nothing(tmp_path):
    found, _ = licence(tmp_path, card="---\nbase_model: Qwen/Qwen2.5-7B\n---\n")
    assert (found.expression, found.is_osi_approved, found.has_conflict) == (None, False, False)
    assert found.terms()["commercial"] == "unknown"


@pytest.mark.parametrize("base", ["somebody/strange-model", "../llama", "/models/Llama-3.1-8B", "x" * 300])
def test_unknown_base_is_said_to_be_unknown(tmp_path, base):
    found, _ = licence(tmp_path, card=card("apache-2.0", base_model=base))
    assert (found.expression, found.base) == ("Apache-2.0", "unknown")
    assert found.terms()["commercial"] == "unknown"


def test_adapter_inherits_from_the_model_it_adapts(tmp_path):
    adapter(tmp_path, "meta-llama/Meta-Llama-3-8B")
    found, _ = licence(tmp_path, card=card("mit"))
    assert found.has_conflict
    assert [i.licence for i in found.inherited] == ["LicenseRef-Llama-3"]


def test_gguf_names_its_bases():
    metadata = {
        "general.base_model.count": 2,
        "general.base_model.0.name": "Llama 3.1 8B",
        "general.base_model.0.organization": "Meta Llama",
        "general.base_model.1.repo_url": "https://huggingface.co/google/gemma-2-9b-it",
    }
    facts = {"licence": "apache-2.0", "base_models": base_models(metadata)}
    file = Examined("m.gguf", 1, "0" * 64, Report("gguf", facts))
    found = licence_of(Scan(Path("m"), None, (file,), (), {}))
    assert found.has_conflict
    assert [i.licence for i in found.inherited] == [LLAMA, "LicenseRef-scancode-gemma-tou-2024-04-01"]


def test_gguf_that_claims_a_huge_number_of_bases_is_bounded():
    assert len(base_models({"general.base_model.count": 1 << 62})) == MAX_BASE_MODELS
    assert base_models({"general.base_model.count": -1}) == []


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from(["mit", "apache-2.0", "llama3.1", "gemma", "nonsense", "gpl-3.0"]), max_size=4)
)
def test_claims_that_differ_never_give_an_expression(names):
    cards = (
        Examined(f"{i}.md", 1, "0" * 64, Report("text", {"front_matter": {"license": name}}))
        for i, name in enumerate(names)
    )
    found = licence_of(Scan(Path("m"), None, tuple(cards), (), {}))
    assert (found.expression is not None) is (len(set(names)) == 1 and names[0] != "nonsense")
    assert found.has_conflict is (len(set(names)) > 1)
    assert not found.has_conflict or found.terms()["commercial"] == "unknown"


def test_card_that_lies_about_the_text_is_a_conflict(tmp_path):
    found, _ = licence(tmp_path, licence=APACHE.replace("perpetual", "revocable", 1), card=card("apache-2.0"))
    assert (found.expression, found.has_conflict) == (None, True)
    assert any("terms were changed" in claim.stated for claim in found.claims)


def test_notice_of_another_licence_is_a_conflict(tmp_path):
    (tmp_path / "NOTICE").write_text("Llama 3.1 is licensed under the Llama 3.1 Community License")
    found, _ = licence(tmp_path, licence=APACHE)
    assert found.has_conflict
    assert LLAMA in {claim.expression for claim in found.claims}


def test_apache_notice_of_a_holder_is_no_claim(tmp_path):
    (tmp_path / "NOTICE").write_text("Example Model\nCopyright 2026 Example\n")
    assert licence(tmp_path, licence=APACHE)[0].expression == "Apache-2.0"


@pytest.mark.parametrize(
    ("fields", "expression"),
    [
        ({"license_name": "Llama 3.1"}, LLAMA),
        ({"license_name": "qwen"}, "LicenseRef-scancode-qwen-2024"),
        ({"license_name": "mrl"}, "LicenseRef-Mistral-Research"),
        ({"license_name": "our-terms", "license_link": "https://huggingface.co/xai-org/grok-2/blob/main/LICENSE"},
         "LicenseRef-xAI-Community"),
        ({"license_link": "LICENSE"}, None),
    ],
)  # fmt: skip
def test_other_licence_of_a_card_is_named_by_its_name_or_link(tmp_path, fields, expression):
    assert licence(tmp_path, card=card("other", **fields))[0].expression == expression


def test_lists_of_licences_all_apply(tmp_path):
    assert licence(tmp_path, card=card("\n- apache-2.0\n- mit"))[0].expression == "Apache-2.0 AND MIT"
    assert licence(tmp_path, card=card("[apache-2.0, mit]"))[0].expression == "Apache-2.0 AND MIT"


def test_list_of_licences_at_its_limit_and_past_it(tmp_path):
    names = "".join(f"\n- {name}" for name in ["mit"] * MAX_LICENCES)
    assert licence(tmp_path, card=card(names))[0].expression == "MIT"
    assert licence(tmp_path, card=card(names + "\n- mit"))[0].expression is None


def test_bases_past_the_limit_are_unknown(tmp_path):
    names = "".join("\n- Qwen/Qwen2.5-7B" for _ in range(MAX_BASES))
    assert licence(tmp_path, card=card("mit", base_model=names))[0].base == "known"
    assert licence(tmp_path, card=card("mit", base_model=names + "\n- Qwen/Qwen2.5-7B"))[0].base == "unknown"


def test_llama_4_tag_is_the_agreement_and_not_its_use_policy():
    assert spdx_of("llama4") == "LicenseRef-scancode-llama-4-cla-2025"


@pytest.mark.parametrize(
    ("name", "commercial", "training", "regions"),
    [
        ("llama2", "threshold", "no", "none"),
        ("llama3.2", "threshold", "with naming", "multimodal"),
        ("llama4", "threshold", "with naming", "multimodal"),
        ("grok-2", "yes", "no", "none"),
        ("cc-by-nc-4.0", "no", "unknown", "none"),
        ("databricks-open-model-license", "threshold", "no", "none"),
        ("apache-2.0", "yes", "yes", "none"),
        ("falcon-unheard-of", None, None, None),
    ],
)
def test_terms_by_the_sources(name, commercial, training, regions):
    spdx = spdx_of(name)
    if commercial is None:
        assert spdx is None
        return
    fields = terms_of(spdx).fields
    assert (fields["commercial"], fields["training_others"]) == (commercial, training)
    assert fields["regions"].startswith(regions)


@given(
    st.lists(
        st.sampled_from(["MIT", LLAMA, "CC-BY-NC-4.0", "CC-BY-4.0", "LicenseRef-x"]), min_size=1, max_size=4
    )
)
def test_more_licences_never_permit_more(names):
    order = ["no", "unknown", "threshold", "yes"]
    together = order.index(str(merged(terms_of(name) for name in names)["commercial"]))
    assert together == min(order.index(terms_of(name).fields["commercial"]) for name in names)
    assert together <= min(
        order.index(str(merged([terms_of(n) for n in names[:k]])["commercial"]))
        for k in range(1, len(names) + 1)
    )


def test_policy_can_ask_for_a_term(tmp_path):
    body = licence(tmp_path, licence=APACHE)[0].to_json()
    assert Condition("terms.commercial", "==", "yes").check(body)[0] is State.MET
    assert Condition("base", "in", ["none", "known"]).check(body)[0] is State.MET
    body = licence(tmp_path, licence=APACHE, card=card("llama3.1"))[0].to_json()
    assert Condition("terms.commercial", "==", "yes").check(body)[0] is State.UNMET
