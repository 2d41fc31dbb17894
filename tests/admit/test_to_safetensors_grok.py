"""Grok-1: a miniature of four layers converts, computes the same, and gives its pickles back."""

import hashlib
import importlib.util
import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from steelyard.admit.from_grok import (
    Config,
    config_of,
    exact_sources,
    expected,
    grok_job,
    is_checkpoint,
    read_checkpoint,
)
from steelyard.admit.from_grok_bf16 import product
from steelyard.admit.from_grok_bf16 import sources as bf16_sources
from steelyard.admit.from_grok_rebuild import verify_exact
from steelyard.admit.lineage import lineage_predicate
from steelyard.admit.rules import registry
from steelyard.admit.scan import Verdict, scan
from steelyard.admit.to_gguf import convert
from steelyard.admit.to_safetensors_model import convert_to_safetensors
from steelyard.errors import Refused
from steelyard.formats.grok_pickle import CORES, Sentence, framing_of
from steelyard.manifest import manifest_of


def _module(name, *parts):
    path = Path(__file__).parents[1].joinpath(*parts)
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


mini = _module("grok_miniature", "admit", "grok_miniature.py")
IDS = torch.randint(1, 160, (24,), generator=torch.Generator().manual_seed(5)).tolist()


def job_of(folder, config, mode, shard_bytes=200_000):
    checkpoint = read_checkpoint(folder, config)
    sources = exact_sources(checkpoint) if mode == "exact" else bf16_sources(checkpoint)
    return grok_job(checkpoint, sources, mode=mode, shard_bytes=shard_bytes)


@pytest.fixture(scope="module")
def miniature(tmp_path_factory):
    """A checkpoint, its parameters, and both conversions."""
    folder = tmp_path_factory.mktemp("grok")
    values = mini.write_checkpoint(folder / "source")
    results = {
        mode: convert_to_safetensors(job_of(folder / "source", mini.MINIATURE, mode), folder / mode)
        for mode in ("exact", "bf16")
    }
    return folder, values, results


def loaded(folder):
    found = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def test_files_follow_the_order_in_which_jax_sorts_text():
    """Positions read off a flattened tree with jax 0.10: layer 10 stands before layer 2."""
    names = [leaf.name for leaf in expected(Config())]
    assert len(names) == 64 * 12 + 2 == 770
    assert names[:3] == [
        "language_model.in_out_embed.embeddings",
        "language_model.rms_norm.scale",
        "transformer.decoder_layer_0.moe.linear.w",
    ]
    order = list(dict.fromkeys(name.split(".")[1] for name in names[2:]))
    assert order[:5] == [f"decoder_layer_{n}" for n in (0, 1, 10, 11, 12)]
    assert order[11:14] == [f"decoder_layer_{n}" for n in (19, 2, 20)]
    assert order[-1] == "decoder_layer_9"
    assert [name.split(".", 2)[2] for name in names[2:14]] == [
        "moe.linear.w", "moe.linear_1.w", "moe.linear_v.w", "multi_head_attention.key.w",
        "multi_head_attention.linear.w", "multi_head_attention.query.w", "multi_head_attention.value.w",
        "rms_norm.scale", "rms_norm_1.scale", "rms_norm_2.scale", "rms_norm_3.scale", "router.w",
    ]  # fmt: skip


def test_the_released_shapes_make_316_billion_parameters():
    table = {leaf.name: leaf.shape for leaf in expected(Config())}
    assert table["transformer.decoder_layer_7.moe.linear_1.w"] == (8, 32768, 6144)
    assert table["transformer.decoder_layer_7.multi_head_attention.key.w"] == (6144, 1024)
    assert round(sum(map(prod, table.values())) / 1e9) == 316


def test_a_checkpoint_of_the_released_size_is_planned_from_its_headers(tmp_path):
    """770 sparse files with the published framing: no payload is read, no byte is written."""
    place = tmp_path / "ckpt-0"
    place.mkdir()
    config = Config()
    for number, leaf in enumerate(expected(config)):
        *batch, _, columns = leaf.shape if leaf.is_quantised else (1, 1)
        groups = 8 if leaf.name.endswith(("linear_1.w", "attention.linear.w")) else 1
        shapes = (leaf.shape, (*batch, groups, columns)) if leaf.is_quantised else (leaf.shape,)
        with (place / f"tensor{number:05d}_000").open("wb") as file:
            for stretch in framing_of(Sentence(CORES[0], leaf.is_quantised, shapes, 0x50)):
                file.write(stretch.framing)
                file.seek(stretch.payload_bytes or 0, os.SEEK_CUR)
    plan = job_of(tmp_path, None, "exact", 5_000_000_000).plan
    assert len(plan.tensors) == 64 * (7 * 2 + 5) + 2
    assert max(shard.size for shard in plan.shards) <= 5_000_000_000
    assert round(plan.parameters / 1e9) == 316
    assert 318e9 < plan.bytes_in < 320e9
    assert abs(plan.bytes_in - plan.bytes_out) < 10_000_000
    both = job_of(tmp_path, None, "bf16", 5_000_000_000)
    assert round(both.plan.bytes_out / 1e9) == 633  # the size of the published bfloat16 conversion
    assert "315,684,820,992 parameters" in both.text(tmp_path)


def test_exact_keeps_every_array_bit_for_bit(miniature):
    folder, values, results = miniature
    tensors = loaded(folder / "exact")
    for name, value in values.items():
        if isinstance(value, tuple):
            assert np.array_equal(tensors.pop(f"{name}.weight").numpy(), value[0])
            assert np.array_equal(tensors.pop(f"{name}.scales").float().numpy(), value[1])
        else:
            assert np.array_equal(tensors.pop(name).numpy(), value)
    assert not tensors
    assert len(results["exact"].written.files) > 3


def test_bf16_is_weight_times_scales_in_groups_along_the_contracting_axis(miniature):
    folder, values, _ = miniature
    tensors = loaded(folder / "bf16")
    reference = mini.floats(values)
    assert tensors.keys() == reference.keys()
    for name, tensor in tensors.items():
        assert torch.equal(tensor.float(), reference[name]), name
        assert tensor.dtype == (torch.bfloat16 if isinstance(values[name], tuple) else torch.float32)


def test_the_reference_gives_the_same_logits_from_shards_and_from_both_conversions(miniature):
    folder, values, _ = miniature
    wanted = mini.logits(mini.MINIATURE, mini.floats(values), IDS)
    bf16 = {name: tensor.float() for name, tensor in loaded(folder / "bf16").items()}
    assert torch.equal(mini.logits(mini.MINIATURE, bf16, IDS), wanted)
    exact = loaded(folder / "exact")
    pairs = {
        name: (exact[f"{name}.weight"].numpy(), exact[f"{name}.scales"].float().numpy())
        if f"{name}.weight" in exact
        else exact[name].numpy()
        for name in values
    }
    assert torch.equal(mini.logits(mini.MINIATURE, mini.floats(pairs), IDS), wanted)
    assert wanted.std() > 0.1


def test_layers_in_numeric_order_would_change_the_logits(tmp_path):
    """The trap that string sorting avoids, shown on eleven layers: 10 and 2 swapped."""
    config = replace(mini.MINIATURE, layers=11)
    values = mini.write_checkpoint(tmp_path / "source", config)
    convert_to_safetensors(job_of(tmp_path / "source", config, "bf16"), tmp_path / "out")
    found = {name: tensor.float() for name, tensor in loaded(tmp_path / "out").items()}
    right = mini.logits(config, mini.floats(values), IDS)
    assert torch.equal(mini.logits(config, found, IDS), right)
    swap = {"decoder_layer_10.": "decoder_layer_2.", "decoder_layer_2.": "decoder_layer_10."}
    swapped = {
        next((name.replace(a, b) for a, b in swap.items() if a in name), name): tensor
        for name, tensor in found.items()
    }
    assert (mini.logits(config, swapped, IDS) - right).abs().max() > 0.01


def test_the_original_pickles_are_rebuilt_from_the_exact_conversion(miniature):
    folder, _, results = miniature
    rebuilt = {file.path: file.sha256 for file in verify_exact(folder / "exact")}
    originals = {
        f"ckpt-0/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (folder / "source" / "ckpt-0").iterdir()
    }
    assert rebuilt == originals
    assert {file.path: file.sha256 for file in results["exact"].written.consumed} == originals


def test_the_lineage_names_the_digest_a_scan_of_the_source_gives(miniature):
    folder, _, results = miniature
    result = results["exact"]
    assert result.source.digest == manifest_of(folder / "source").digest
    predicate = lineage_predicate(result.conversion, result.source, datetime(2026, 1, 2, tzinfo=UTC))
    record = (folder / "exact" / "conversion.json").read_bytes()
    assert predicate["operation"] == "convert"
    assert predicate["source"]["digest"] == {"sha256": manifest_of(folder / "source").digest.hex}
    assert predicate["parameters"]["mode"] == "exact"
    assert predicate["parameters"]["mapping"] == {"sha256": hashlib.sha256(record).hexdigest()}


def test_source_and_result_are_admitted_by_a_scan(miniature):
    folder, _, _ = miniature
    for name in ("source", "exact", "bf16"):
        assert scan(folder / name, registry(())).verdict is Verdict.ADMIT, name


def test_the_config_goes_round():
    assert config_of(Config().to_json()) == Config()
    assert config_of(mini.MINIATURE.to_json()) == mini.MINIATURE
    assert config_of({"model_type": "grok-1"}) == Config()


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "llama"}, {"num_hidden_layers": 0}, {"num_hidden_layers": 1025}, {"hidden_size": 6145},
        {"hidden_size": True}, {"vocab_size": 1 << 25}, {"rms_norm_eps": 0}, {"rope_theta": "1"},
        {"num_key_value_heads": 5}, {"auto_map": {}}, {"attn_output_multiplier": -1.0},
    ],
)  # fmt: skip
def test_a_config_that_no_grok_has_is_refused(change):
    with pytest.raises(Refused, match=r"config\.json"):
        config_of({**Config().to_json(), **change})


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_products_round_as_torch_rounds(rows, columns, seed):
    rng = np.random.default_rng(seed)
    weight = rng.integers(-128, 128, size=(rows, columns), dtype=np.int8)
    factor = mini.from_bf16(mini.to_bf16(rng.normal(size=columns) * 10.0 ** rng.integers(-8, 8)))
    wanted = (torch.from_numpy(weight).float() * torch.from_numpy(factor)).to(torch.bfloat16)
    assert product(weight.tobytes(), factor) == wanted.view(torch.int16).numpy().tobytes()


def test_llama_cpp_agrees_with_the_reference(tmp_path):
    """The whole way: pickled shards, safetensors, GGUF, llama.cpp's own graph. GELU by table is what is left."""
    judge = _module("test_to_gguf", "admit", "test_to_gguf.py")
    tiny = _module("tiny_model", "engines", "tiny_model.py")
    config = replace(mini.MINIATURE, vocabulary=300)
    values = mini.write_checkpoint(tmp_path / "source", config)
    tiny.write_tokenizer(tmp_path / "source")
    convert_to_safetensors(job_of(tmp_path / "source", config, "bf16"), tmp_path / "bf16")
    convert(tmp_path / "bf16", tmp_path / "out.gguf", outtype="f32")
    wanted = torch.log_softmax(mini.logits(config, mini.floats(values), IDS), -1).numpy()
    server = judge.LlamaCpp(tmp_path / "out.gguf")
    for place in (0, 7, 23):
        found = server.log_probs(IDS[: place + 1], 300)
        assert np.abs(found - wanted[place]).max() <= 1e-3
    assert wanted.std() > 0.1


def test_int8_weights_do_not_become_a_gguf(miniature, tmp_path):
    folder, _, _ = miniature
    with pytest.raises(Refused, match="--mode bf16"):
        convert(folder / "exact", tmp_path / "out.gguf")


def test_the_record_names_every_tensor(miniature):
    folder, _, _ = miniature
    record = json.loads((folder / "exact" / "conversion.json").read_text())
    assert sorted(name for row in record["files"] for name in row["tensors"]) == sorted(
        loaded(folder / "exact")
    )
    assert is_checkpoint(folder / "source")
    assert not is_checkpoint(folder / "exact")
