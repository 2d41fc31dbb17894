"""The register of releases: dated, sourced, and a hint only."""

import tomllib
from importlib import resources

import pytest

from steelyard.admit.licence_terms import is_osi_approved, names_of, terms_of
from steelyard.admit.openness_register import MAX_NAME_CHARS, near, release_named


def table(name):
    return tomllib.loads(resources.files("steelyard").joinpath(name).read_text())


@pytest.mark.parametrize(
    "name",
    [
        "ChatGPT", "GPT-4o", "gpt-4.1", "GPT-5", "openai/gpt-5", "o3-mini", "Claude 3.5 Sonnet", "claude-opus-4",
        "Gemini 2.5", "GitHub Copilot",
    ],
)  # fmt: skip
def test_closed_service_has_no_weights(name):
    release = release_named(name)
    assert (release.weights, release.openness, release.licence) == ("none", "none", None)


@pytest.mark.parametrize(
    ("name", "licence", "openness"),
    [
        ("Grok-1", "Apache-2.0", "open"),
        ("grok-2", "LicenseRef-xAI-Community", "restricted"),
        ("meta-llama/Llama-3.1-8B-Instruct", "LicenseRef-scancode-llama-3.1-license-2024", "restricted"),
        ("gpt-oss-20b", "Apache-2.0", "open"),
        ("Qwen2.5-72B", "LicenseRef-scancode-qwen-2024", "restricted"),
        ("Qwen3-8B", "Apache-2.0", "open"),
        ("deepseek-r1", "MIT", "open"),
        ("deepseek-r1-distill-llama-8b", "LicenseRef-scancode-llama-3.1-license-2024", "restricted"),
        ("OLMo 2", "Apache-2.0", "open"),
    ],
)
def test_release_has_the_licence_of_its_source(name, licence, openness):
    release = release_named(name)
    assert (release.weights, release.licence, release.openness) == ("published", licence, openness)


@pytest.mark.parametrize(
    "name", ["", "nothing-like-it", "somebody/claude-opus-5", "x" * 10_000, "../..", "*"]
)
def test_unknown_name_is_unknown(name):
    assert release_named(name) is None


def test_near_names_are_suggested():
    assert "Llama 3" in near("lama-3")
    assert near("q" * (MAX_NAME_CHARS * 50)) == []


def test_every_entry_is_dated_and_sourced():
    for name in ("data/openness/register.toml", "data/licences/terms.toml", "data/licences/families.toml"):
        entries = table(name)
        assert entries["read"] == "2026-11-23"
        for kind in ("release", "licence", "family"):
            assert all(entry["source"] for entry in entries.get(kind, ()))


def test_every_licence_of_a_family_or_release_is_named_in_a_table():
    named = {entry["licence"] for entry in table("data/licences/families.toml")["family"]}
    named |= {e["licence"] for e in table("data/openness/register.toml")["release"] if "licence" in e}
    # Their texts could not be opened: their terms stay unknown.
    unread = {"LicenseRef-Qwen-Research", "LicenseRef-Falcon-180B-TII"}
    for licence in named - unread:
        assert is_osi_approved(licence) or terms_of(licence).source != "none", licence
    assert terms_of("LicenseRef-Qwen-Research").fields["commercial"] == "unknown"


def test_fields_of_the_terms_hold_known_values():
    for entry in table("data/licences/terms.toml")["licence"]:
        assert entry["commercial"] in {"yes", "no", "threshold", "unknown"}
        assert ("commercial_threshold" in entry) is (entry["commercial"] == "threshold")
        assert all(entry["id"] in names_of(name) for name in entry["names"])
