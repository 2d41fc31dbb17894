"""A miniature Grok-1: its checkpoint as the release writes one, and a forward pass of our own in torch.

The pickles come from CPython's own pickler. What ml_dtypes would add is stood in for by classes that reduce to the
same calls; tests/data/grok holds files of the real libraries to compare with.
The forward pass follows the published facts (model.py and run.py of github.com/xai-org/grok-1): RMS norms before and
after attention and experts, keys and values shared by groups of heads, rotary halves, logits capped by 30 tanh(x/30),
two experts a token weighed by their softmax over all, GELU by tanh, tied embeddings and the three constant factors.
"""

import pickle
import sys
import types
from pathlib import Path

import numpy as np
import torch

from steelyard.admit.from_grok import Config, expected

MINIATURE = Config(
    layers=4, hidden=64, feed_forward=96, heads=4, kv_heads=2, head_dim=16, experts=4, experts_used=2,
    vocabulary=160, context=64, embedding_scale=8.0, attention_scale=0.25,
)  # fmt: skip


class _Bfloat16:
    """Stands for ml_dtypes.bfloat16, which pickles as a global."""


_Bfloat16.__module__, _Bfloat16.__qualname__, _Bfloat16.__name__ = "ml_dtypes", "bfloat16", "bfloat16"


class QuantizedWeight8bit:
    def __init__(self, weight, scales):
        self.weight = weight
        self.scales = scales


QuantizedWeight8bit.__module__ = "__main__"


class _Dtype:
    def __reduce__(self):
        return np.dtype, (_Bfloat16, False, True), (3, "<", None, None, None, 2, 2, 64)


class Bits:
    """An array of bfloat16, given as its uint16 bits."""

    def __init__(self, bits):
        self.bits = bits

    def __reduce__(self):
        build, arguments, state = self.bits.__reduce__()
        return build, arguments, (*state[:2], _Dtype(), False, self.bits.tobytes())


def to_bf16(values):
    bits = np.asarray(values, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")


def from_bf16(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def dumped(value):
    """`pickle.dump` at protocol 4, with the two classes where a loader would look for them."""
    fake = types.ModuleType("ml_dtypes")
    fake.bfloat16 = _Bfloat16
    main = sys.modules["__main__"]
    before = sys.modules.get("ml_dtypes")
    sys.modules["ml_dtypes"], main.QuantizedWeight8bit = fake, QuantizedWeight8bit
    try:
        return pickle.dumps(value, protocol=4)
    finally:
        del main.QuantizedWeight8bit
        if before is None:
            del sys.modules["ml_dtypes"]
        else:
            sys.modules["ml_dtypes"] = before


def pair(weight, scales):
    """A quantised shard: int8 (.., K, N) and float scales (.., G, N)."""
    return dumped(QuantizedWeight8bit(weight, Bits(to_bf16(scales))))


def parameters(config, seed=0):
    """Name -> float32 array, or (int8, float32 scales that bfloat16 holds). Groups as in the release: 8 or 1."""
    rng = np.random.default_rng(seed)
    out = {}
    for leaf in expected(config):
        if not leaf.is_quantised:
            spread = 0.5 if leaf.name.endswith("router.w") else 0.1
            centre = 1.0 if leaf.name.endswith("scale") else 0.0
            out[leaf.name] = rng.normal(centre, spread, size=leaf.shape).astype(np.float32)
            continue
        *batch, rows, columns = leaf.shape
        groups = 8 if leaf.name.endswith(("linear_1.w", "attention.linear.w")) else 1
        weight = rng.integers(-127, 128, size=leaf.shape, dtype=np.int8)
        scales = from_bf16(to_bf16(rng.uniform(0.5, 1.5, size=(*batch, groups, columns)) / 73 / rows**0.5))
        out[leaf.name] = (weight, scales)
    return out


def write_checkpoint(folder: Path, config=MINIATURE, seed=0):
    """ckpt-0 below `folder`; returns the parameters."""
    place = folder / "ckpt-0"
    place.mkdir(parents=True)
    values = parameters(config, seed)
    for number, leaf in enumerate(expected(config)):
        value = values[leaf.name]
        data = pair(*value) if leaf.is_quantised else dumped(value)
        (place / f"tensor{number:05d}_000").write_bytes(data)
    return values


def dequantised(weight, scales):
    """float32 (.., K, N), rounded to bfloat16 once as the release's code does."""
    *batch, rows, columns = weight.shape
    groups = scales.shape[-2]
    grouped = weight.astype(np.float32).reshape(*batch, groups, rows // groups, columns)
    return from_bf16(to_bf16(grouped * scales[..., :, None, :])).reshape(weight.shape)


def floats(values):
    """Every parameter as a float32 torch tensor."""
    return {
        name: torch.from_numpy(dequantised(*value) if isinstance(value, tuple) else value)
        for name, value in values.items()
    }


def _norm(x, scale, epsilon):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * scale


def _rotated(x, theta):
    """x: (tokens, heads, d); halves (i, i + d/2) turn by t * theta^(-2i/d)."""
    tokens, _, width = x.shape
    frequencies = theta ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
    phase = torch.arange(tokens, dtype=torch.float32)[:, None] * frequencies
    cos, sin = phase.cos().repeat(1, 2)[:, None], phase.sin().repeat(1, 2)[:, None]
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def logits(config, weights, ids, *, renormalised=False):
    """(tokens, vocabulary) for one sequence of ids, in float32.

    renormalised: the two gates of a token sum to one, as llama.cpp has it; the release leaves them as they are.
    """
    embedding = weights["language_model.in_out_embed.embeddings"]
    x = embedding[torch.tensor(ids)] * config.embedding_scale
    mask = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
    for number in range(config.layers):
        layer = {
            name.removeprefix(f"transformer.decoder_layer_{number}."): value
            for name, value in weights.items()
            if name.startswith(f"transformer.decoder_layer_{number}.")
        }
        h = _norm(x, layer["rms_norm.scale"], config.norm_epsilon)
        x = x + _norm(_attention(config, layer, h, mask), layer["rms_norm_1.scale"], config.norm_epsilon)
        h = _norm(x, layer["rms_norm_2.scale"], config.norm_epsilon)
        x = x + _norm(
            _experts(config, layer, h, renormalised), layer["rms_norm_3.scale"], config.norm_epsilon
        )
    x = _norm(x, weights["language_model.rms_norm.scale"], config.norm_epsilon)
    return x @ embedding.T * config.output_scale


def _attention(config, layer, h, mask):
    tokens = h.shape[0]

    def heads(name, count):
        return (h @ layer[f"multi_head_attention.{name}.w"]).reshape(tokens, count, config.head_dim)

    query = _rotated(heads("query", config.heads), config.rope_theta)
    key = _rotated(heads("key", config.kv_heads), config.rope_theta)
    shared = config.heads // config.kv_heads
    key, value = (part.repeat_interleave(shared, dim=1) for part in (key, heads("value", config.kv_heads)))
    scores = torch.einsum("thd,shd->hts", query, key) * config.attention_scale
    scores = config.attention_cap * torch.tanh(scores / config.attention_cap)
    shares = scores.masked_fill(~mask, -1e30).softmax(-1)
    mixed = torch.einsum("hts,shd->thd", shares, value).reshape(tokens, -1)
    return mixed @ layer["multi_head_attention.linear.w"]


def _experts(config, layer, h, renormalised):
    shares, chosen = (h @ layer["router.w"]).softmax(-1).topk(config.experts_used, dim=-1)
    if renormalised:
        shares = shares / shares.sum(-1, keepdim=True)
    out = torch.zeros_like(h)
    for token in range(h.shape[0]):
        for share, expert in zip(shares[token], chosen[token], strict=True):
            gate = torch.nn.functional.gelu(h[token] @ layer["moe.linear.w"][expert], approximate="tanh")
            up = h[token] @ layer["moe.linear_v.w"][expert]
            out[token] += share * ((gate * up) @ layer["moe.linear_1.w"][expert])
    return out
