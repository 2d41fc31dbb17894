import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.formats.base import BytesSource
from steelyard.formats.hf_config import FORMAT, is_inside


def read(path: str, value: object):
    return FORMAT.read(BytesSource(json.dumps(value).encode()), path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A sharded Qwen2 with generation config, as transformers saves it."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("qwen2")
    config = Qwen2Config(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder, max_shard_size="6KB")
    return folder


def test_every_json_file_transformers_saves_is_claimed_and_clean(saved):
    files = sorted(saved.glob("*.json"))
    assert {"config.json", "generation_config.json", "model.safetensors.index.json"} <= {
        file.name for file in files
    }
    for file in files:
        data = file.read_bytes()
        assert FORMAT.sniff(data[:64], file.name)
        assert FORMAT.read(BytesSource(data), file.name).findings == ()


def test_config_facts_name_the_architecture(saved):
    facts = FORMAT.read(BytesSource((saved / "config.json").read_bytes()), "config.json").facts
    assert facts["model_type"] == "qwen2"
    assert facts["architectures"] == ["Qwen2ForCausalLM"]
    assert facts["vocab_size"] == 64


def test_index_facts_name_every_shard_on_disk(saved):
    name = "model.safetensors.index.json"
    facts = FORMAT.read(BytesSource((saved / name).read_bytes()), name).facts
    assert sorted(facts["shards"]) == sorted(file.name for file in saved.glob("*.safetensors"))
    assert sum(facts["shards"].values()) == facts["tensors"]


def test_sentence_transformers_modules_are_clean():
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    assert read("modules.json", modules).findings == ()


def test_vocabulary_facts_hold_what_the_embedding_must_cover():
    report = read("vocab.json", {"a": 0, "auto_map": 1, "b": 7})
    assert report.findings == ()
    assert report.facts == {"kind": "vocab.json", "tokens": 3, "largest_id": 7}


def test_special_tokens_written_as_objects_are_read():
    report = read(
        "tokenizer_config.json", {"eos_token": {"content": "</s>", "special": True}, "tokenizer_class": "X"}
    )
    assert report.facts["eos_token"] == "</s>"
    assert report.findings == ()


@settings(deadline=None)
@given(st.text(max_size=20))
def test_a_path_is_inside_only_if_joining_it_stays_below_the_folder(path):
    from posixpath import join, normpath

    if is_inside(path):
        assert normpath(join("/model", path)).startswith("/model/")


@pytest.mark.parametrize(
    "path", ["model-00001-of-00002.safetensors", "sub/model.bin", "..a", "a..b", "é.safetensors"]
)
def test_plain_paths_are_inside(path):
    assert is_inside(path)


def test_a_pickle_named_config_is_not_claimed():
    assert not FORMAT.sniff(b"\x80\x04}\x94.", "config.json")


def test_pipeline_of_known_libraries_is_clean():
    value = {
        "_class_name": "StableDiffusionPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "x": [None, None],
    }
    report = FORMAT.read(BytesSource(json.dumps(value).encode()), "model_index.json")
    assert report.findings == ()
    assert report.facts["components"] == {"unet": "diffusers.UNet2DConditionModel"}


@pytest.mark.parametrize(
    "change",
    [{"_class_name": ["pipeline.py", "P"]}, {"unet": ["my_unet", "UNet"]}, {"unet": ["diffusers", "a.b"]}],
)
def test_pipeline_that_imports_anything_else_refuses(change):
    value = {"_class_name": "P", "unet": ["diffusers", "U"], **change}
    report = FORMAT.read(BytesSource(json.dumps(value).encode()), "model_index.json")
    assert {finding.rule for finding in report.findings} == {"config/remote-code"}


def test_index_names_its_shards_and_what_each_must_hold():
    value = {"weight_map": {"b": "m-1.safetensors", "a": "m-1.safetensors", "c": "m-2.safetensors"}}
    report = FORMAT.read(BytesSource(json.dumps(value).encode()), "model.safetensors.index.json")
    assert [reference.path for reference in report.references] == ["m-1.safetensors", "m-2.safetensors"]
    # printf 'a\nb\n' | sha256sum
    assert (
        report.facts["shard_tensors_sha256"]["m-1.safetensors"]
        == "911169ddaaf146aff539f58c26c489af3b892dff0fe283c1c264c65ae5aa59a2"
    )
