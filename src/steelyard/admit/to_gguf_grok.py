"""A converted Grok-1 (bfloat16) -> the tensors and keys of llama.cpp's `grok` architecture.

The release keeps matrices as (in, out), GGUF as (out, in): every matrix is transposed, the experts' each for itself.
llama.cpp computes the same but for two details: it lets the two gates of a token sum to one, which the norm after the
experts takes out again up to its epsilon; and it does not mask padding tokens, which a prompt does not hold.
Sources: ggml-org/llama.cpp src/models/grok.cpp, gguf-py constants; model.py of github.com/xai-org/grok-1.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from gguf import GGUFWriter

from steelyard.admit.from_grok import MODEL_TYPE, Config, config_of
from steelyard.admit.to_gguf_tensors import Planned, Weights, typed
from steelyard.errors import Refused

ARCH = "grok"


def is_grok(config: Mapping[str, Any]) -> bool:
    """Whether config.json is one that a conversion of Grok-1 wrote."""
    return config.get("model_type") == MODEL_TYPE


def grok_config(config: Mapping[str, Any]) -> Config:
    """Raises Refused when the weights are still int8, or llama.cpp has no place for the shape."""
    if "quantization_config" in config:
        raise Refused("this Grok-1 is int8 with scales; convert its checkpoint with --mode bf16 first")
    found = config_of(config)
    if found.heads * found.head_dim != found.hidden:
        raise Refused(
            f"llama.cpp's grok needs {found.heads} heads of {found.head_dim} to make {found.hidden}"
        )
    return found


def plan(config: Config, weights: Weights, outtype: str) -> tuple[Planned, ...]:
    """Every tensor of the GGUF in file order. Raises Refused on a missing, unexpected or misshapen tensor."""
    wanted = tuple(_wanted(config))
    names = {entry.source for entry in wanted}
    if odd := sorted(names ^ weights.tensors.keys()):
        raise Refused(f"{len(odd)} tensors are missing or unexpected, the first is {odd[0]}")
    return tuple(
        typed(entry, weights, "f32" if entry.name.endswith("ffn_gate_inp.weight") else outtype)
        for entry in wanted
    )


def _wanted(config: Config) -> Iterator[Planned]:
    hidden, wide, experts = config.hidden, config.feed_forward, config.experts
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    matrices = [
        ("attn_q", "multi_head_attention.query", (queries, hidden)),
        ("attn_k", "multi_head_attention.key", (keys, hidden)),
        ("attn_v", "multi_head_attention.value", (keys, hidden)),
        ("attn_output", "multi_head_attention.linear", (hidden, queries)),
        ("ffn_gate_inp", "router", (experts, hidden)),
        ("ffn_gate_exps", "moe.linear", (experts, wide, hidden)),
        ("ffn_up_exps", "moe.linear_v", (experts, wide, hidden)),
        ("ffn_down_exps", "moe.linear_1", (experts, hidden, wide)),
    ]
    norms = [
        ("attn_norm", "rms_norm"),
        ("attn_output_norm", "rms_norm_1"),
        ("ffn_norm", "rms_norm_2"),
        ("layer_output_norm", "rms_norm_3"),
    ]
    yield Planned(
        "token_embd.weight", "language_model.in_out_embed.embeddings", (config.vocabulary, hidden), "F32"
    )
    for number in range(config.layers):
        source, target = f"transformer.decoder_layer_{number}.", f"blk.{number}."
        for name, norm in norms:
            yield Planned(f"{target}{name}.weight", f"{source}{norm}.scale", (hidden,), "F32")
        for name, matrix, shape in matrices:
            yield Planned(f"{target}{name}.weight", f"{source}{matrix}.w", shape, "F32", transposed=True)
    yield Planned("output_norm.weight", "language_model.rms_norm.scale", (hidden,), "F32")


def add_config(writer: GGUFWriter, config: Config) -> None:
    """The keys llama.cpp reads; the embeddings are tied, so there is no output tensor."""
    writer.add_vocab_size(config.vocabulary)
    writer.add_context_length(config.context)
    writer.add_embedding_length(config.hidden)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.feed_forward)
    writer.add_expert_feed_forward_length(config.feed_forward)
    writer.add_expert_count(config.experts)
    writer.add_expert_used_count(config.experts_used)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_embedding_scale(config.embedding_scale)
    writer.add_logit_scale(config.output_scale)
    writer.add_attn_output_scale(config.attention_scale)
    writer.add_attn_logit_softcapping(config.attention_cap)
