"""Openness: components count when a file or a field shows them; classes and verdicts follow their sources."""

import tomllib
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.admit.examined import Examined
from steelyard.admit.licences import licence_of
from steelyard.admit.openness import openness_of
from steelyard.admit.openness_components import is_open, mof_of, osaid_of, shown_in
from steelyard.admit.scan import Scan
from steelyard.formats.base import Report

WEIGHTS = ("model.safetensors", "safetensors")
# What each class asks for beyond the one below, by the Model Openness Tool's settings.
CLASS_3 = {
    "Model architecture": "config.json",
    "Model parameters (Final)": "model.safetensors",
    "Model card": "README.md",
    "Data card": "data_card.md",
    "Technical report": "technical_report.md",
    "Evaluation results": "eval_results.json",
}
CLASS_2 = {
    "Training code": "train.py",
    "Inference code": "inference.py",
    "Evaluation code": "evaluate.py",
    "Evaluation data": "eval_set.jsonl",
}
CLASS_1 = {
    "Datasets": "data/train.jsonl",
    "Data preprocessing code": "preprocess.py",
    "Model parameters (Intermediate)": "checkpoint-500/model.safetensors",
    "Research paper": "paper.pdf",
}
ALL = {**CLASS_3, **CLASS_2, **CLASS_1}


def release(paths, card=None, size=1):
    def report(path):
        if path.endswith(".safetensors"):
            return Report("safetensors")
        return Report("text", {"front_matter": card} if card and path == "README.md" else {})

    return [Examined(path, size, "0" * 64, report(path)) for path in paths]


def judged(paths, licence="Apache-2.0", card=None):
    shown = shown_in(release(paths, card))
    return mof_of(shown, licence), osaid_of(shown, licence)


def test_components_are_those_of_the_model_openness_tool():
    table = tomllib.loads(resources.files("steelyard").joinpath("data/openness/components.toml").read_text())
    required = {entry["name"]: entry["class"] for entry in table["component"] if not entry.get("is_optional")}
    assert required == {
        **dict.fromkeys(CLASS_3, 3), **dict.fromkeys(CLASS_2, 2), **dict.fromkeys(CLASS_1, 1)
    }  # fmt: skip
    optional = {entry["name"] for entry in table["component"] if entry.get("is_optional")}
    assert optional == {"Sample model outputs", "Supporting libraries and tools", "Model metadata"}


@pytest.mark.parametrize(
    ("paths", "reached", "following"),
    [
        ([], "none", "III"),
        (list(CLASS_3.values()), "III", "II"),
        ([*CLASS_3.values(), *CLASS_2.values()], "II", "I"),
        (list(ALL.values()), "I", None),
        ([*CLASS_2.values(), *CLASS_1.values()], "none", "III"),
    ],
)
def test_class_needs_every_component_of_it_and_below(paths, reached, following):
    mof, _ = judged(paths)
    assert (mof["class"], mof["next"]) == (reached, following)


@settings(deadline=None, max_examples=40)
@given(st.sets(st.sampled_from(sorted(ALL))))
def test_each_missing_component_is_named_and_stops_its_class(absent):
    mof, _ = judged([path for name, path in ALL.items() if name not in absent])
    # Weights at a checkpoint are weights, and a paper stands for the report.
    gone = set(absent)
    if "Model parameters (Intermediate)" not in absent:
        gone.discard("Model parameters (Final)")
    if "Research paper" not in absent:
        gone.discard("Technical report")
    levels = [set(CLASS_3), set(CLASS_3) | set(CLASS_2), set(ALL)]
    complete = sum(1 for level in levels if not gone & level)
    assert mof["class"] == ["none", "III", "II", "I"][complete]
    assert set(mof["missing"]) == (gone & levels[complete] if complete < 3 else set())


@settings(deadline=None, max_examples=30)
@given(st.sets(st.sampled_from(sorted(ALL))), st.sampled_from(sorted(ALL)))
def test_one_more_file_never_lowers_the_class(names, more):
    order = ["none", "III", "II", "I"]
    before, _ = judged([ALL[name] for name in names])
    after, _ = judged([ALL[name] for name in {*names, more}])
    assert order.index(after["class"]) >= order.index(before["class"])


@pytest.mark.parametrize("licence", [None, "LicenseRef-scancode-llama-3.1-license-2024", "CC-BY-NC-4.0"])
def test_without_an_open_licence_there_is_no_class_and_no_osaid(licence):
    mof, osaid = judged(list(ALL.values()), licence)
    assert (mof["class"], osaid["verdict"]) == ("none", "no")
    assert set(mof["without_open_licence"]) == set(CLASS_3)
    assert "OSI-approved terms for parameters and code" in osaid["missing"]


def test_open_data_licence_is_for_data_and_documents_only():
    assert is_open("CC-BY-4.0", "data")
    assert not is_open("CC-BY-4.0", "code")
    mof, osaid = judged(list(ALL.values()), "CC-BY-4.0")
    assert mof["without_open_licence"] == ["Model architecture"]
    assert osaid["verdict"] == "no"


def test_everything_shown_is_claimed_and_never_yes():
    assert judged(list(ALL.values()))[1] == {
        "verdict": "claimed",
        "missing": [],
        "source": judged([])[1]["source"],
    }


def test_missing_elements_of_osaid_are_named():
    _, osaid = judged(["model.safetensors", "README.md"])
    assert osaid["verdict"] == "incomplete"
    assert osaid["missing"] == [
        "data information: Datasets",
        "data information: Data card",
        "code: Data preprocessing code",
        "code: Training code",
        "code: Inference code",
    ]


@pytest.mark.parametrize(
    ("card", "shown"),
    [
        ({"datasets": ["ours/data"]}, {"Datasets"}),
        ({"datasets": []}, set()),
        ({"datasets": "[]"}, set()),
        ({"tags": ["arxiv:2403.13784"]}, {"Research paper"}),
        ({"tags": ["gpt", "open-source"]}, set()),
        ({"model-index": ["name: ours"]}, {"Evaluation results"}),
        ({"model-index": []}, set()),
        ({"open": "yes", "openness": "MOF class I"}, set()),
    ],
)
def test_fields_of_a_card_show_what_they_hold(card, shown):
    found = {item.component.name for item in shown_in(release(["README.md"], card)) if item.by}
    assert found == {"Model card"} | shown


def test_empty_files_show_nothing():
    assert not any(item.by for item in shown_in(release(ALL.values(), size=0)))


@pytest.mark.parametrize(
    "path", ["strain.py", "retraining_day.txt", "latest.py", "trainer.png", "myconfig.json"]
)
def test_likeness_of_a_name_shows_nothing(path):
    assert not any(item.by for item in shown_in(release([path])))


def test_brand_counts_for_nothing():
    for name in ("OLMo-2-7B", "GPT-4o"):
        scan = Scan(Path(name), None, tuple(release(["config.json"])), (), {})
        found = openness_of(scan, licence_of(scan))
        assert (found.weights, found.licence, found.mof["class"]) == ("absent", "unknown", "none")


def test_predicate_keeps_its_fields_and_gains_two():
    scan = Scan(Path("m"), None, tuple(release(["model.safetensors"])), (), {})
    body = openness_of(scan, licence_of(scan)).to_json()
    assert list(body) == ["weights", "licence", "reproducible", "missing", "mof", "osaid"]
    assert (body["weights"], body["reproducible"]) == ("available", "no")
