import json
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.admit.rules import registry
from steelyard.formats.base import BytesSource
from steelyard.formats.keras_config import FORMAT
from steelyard.formats.keras_objects import examine_objects, looks_like_keras

REGISTRY = registry()
DATA = Path(__file__).parents[1] / "data" / "keras"


@pytest.mark.parametrize(
    "name",
    [
        "dense_3_15.keras",
        "functional_3_15.json",
        "functional_2_15.json",
        "textvec_2_15.keras",
        "nested_3_15.h5",
    ],
)
def test_honest_model_is_admitted_whole(name: str) -> None:
    report = REGISTRY.read(BytesSource((DATA / name).read_bytes()), name)
    assert [(finding.rule, finding.message) for finding in report.findings] == []


def test_architecture_file_says_what_it_is() -> None:
    raw = (DATA / "functional_3_15.json").read_bytes()
    assert FORMAT.sniff(raw[:4096], "config.json")
    assert FORMAT.read(BytesSource(raw), "config.json").facts["class"] == "Functional"


def test_words_of_a_vocabulary_may_look_like_addresses() -> None:
    layer = {"class_name": "TextVectorization", "config": {"vocabulary": ["", "http://x", "/y"]}}
    assert examine_objects(layer) == ()


def test_hugging_face_configuration_is_not_claimed() -> None:
    assert not looks_like_keras(b'{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')


def test_optimiser_as_keras_2_registers_it_is_known() -> None:
    assert examine_objects({"class_name": "Custom>Adam", "config": {}}) == ()
    assert [f.rule for f in examine_objects({"class_name": "Custom>Evil", "config": {}})] == ["keras/custom"]


@given(st.sampled_from(["Lambda", "TFSMLayer", "Evil"]), st.lists(st.sampled_from("abc"), max_size=6))
def test_refused_class_is_found_however_deep(name: str, path: list[str]) -> None:
    value: object = {"class_name": name, "config": {}}
    for key in path:
        value = {key: [value]}
    assert len(examine_objects(value)) == 1


def test_key_order_does_not_hide_an_object() -> None:
    """A config.json whose first 4096 bytes name no class goes to another format, which asks the same questions."""
    padded = {
        "config": {"a": "x" * 5000, "layers": [{"class_name": "Lambda", "config": {}}]},
        "class_name": "Sequential",
    }
    report = REGISTRY.read(BytesSource(json.dumps(padded).encode()), "config.json")
    assert "keras/code" in {finding.rule for finding in report.findings}


def test_fixture_archive_holds_what_keras_writes() -> None:
    with zipfile.ZipFile(DATA / "dense_3_15.keras") as archive:
        assert sorted(archive.namelist()) == ["config.json", "metadata.json", "model.weights.h5"]
