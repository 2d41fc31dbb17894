"""config.json of a model directory -> the hyperparameters a GGUF needs, or a refusal.

Every key of config.json is either understood here, or known to change nothing, or unset; anything else refuses,
because a key we skip could change what the model computes.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from steelyard.errors import Refused

JsonObject = Mapping[str, Any]

_UNDERSTOOD = frozenset({
    "architectures", "attention_bias", "bos_token_id", "eos_token_id", "head_dim", "hidden_act", "hidden_size",
    "intermediate_size", "layer_types", "max_position_embeddings", "max_window_layers", "mlp_bias", "model_type",
    "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "pad_token_id", "partial_rotary_factor",
    "rms_norm_eps", "rope_parameters", "rope_scaling", "rope_theta", "sliding_window", "tie_word_embeddings",
    "use_sliding_window", "vocab_size",
})  # fmt: skip
_INERT = frozenset({
    "attention_dropout", "dtype", "initializer_range", "pretraining_tp", "torch_dtype", "transformers_version",
    "unk_token_id", "use_cache",
})  # fmt: skip
MAX_LAYERS = 1024
MAX_SIZE = 1 << 24  # hidden, feed-forward, vocabulary


@dataclass(frozen=True, slots=True)
class Family:
    """What sets one architecture apart. `rotates_pairs`: llama.cpp turns neighbours (2i, 2i+1), so q and k move."""

    arch: str
    rotates_pairs: bool
    qkv_bias: bool
    qk_norm: bool
    may_have_bias: bool


_FAMILIES = {
    "LlamaForCausalLM": Family(
        "llama", rotates_pairs=True, qkv_bias=False, qk_norm=False, may_have_bias=True
    ),
    "MistralForCausalLM": Family(
        "llama", rotates_pairs=True, qkv_bias=False, qk_norm=False, may_have_bias=False
    ),
    "Qwen2ForCausalLM": Family(
        "qwen2", rotates_pairs=False, qkv_bias=True, qk_norm=False, may_have_bias=False
    ),
    "Qwen3ForCausalLM": Family(
        "qwen3", rotates_pairs=False, qkv_bias=False, qk_norm=True, may_have_bias=False
    ),
}


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary embedding. `kind` is none, linear, llama3 or yarn; `frequency_factors` (head_dim / 2) for llama3."""

    theta: float
    kind: str = "none"
    factor: float = 1.0
    original_context: int = 0
    frequency_factors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Shape:
    """The hyperparameters of one decoder. `context` is the longest prompt plus answer for which full attention
    equals the model's own attention, in tokens."""

    family: Family
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int
    norm_epsilon: float
    tied: bool
    attention_bias: bool
    mlp_bias: bool
    rope: Rope


def shape_of(config: JsonObject) -> Shape:
    """Raises Refused, naming the key, when config.json asks for what the converter cannot do exactly."""
    if "auto_map" in config:
        raise Refused("config.json has auto_map: the model needs its own code, which is never executed")
    if "quantization_config" in config:
        raise Refused("config.json has quantization_config: convert the unquantised release instead")
    family = _family(config)
    unknown = sorted(
        key
        for key, value in config.items()
        if key not in _UNDERSTOOD | _INERT and not key.startswith("_") and not _is_unset(value)
    )
    if unknown:
        raise Refused(f"config.json has keys the converter does not know: {', '.join(unknown[:8])}")
    if config.get("hidden_act", "silu") != "silu":
        raise Refused(f"hidden_act is {config['hidden_act']!r}, expected 'silu'")
    hidden = _integer(config, "hidden_size")
    heads = _integer(config, "num_attention_heads")
    head_dim = _integer(config, "head_dim", default=hidden // heads)
    kv_heads = _integer(config, "num_key_value_heads", default=heads)
    if heads % kv_heads or head_dim % 2:
        raise Refused(f"{heads} heads of {head_dim} cannot share {kv_heads} key-value heads")
    return Shape(
        family=family,
        layers=_integer(config, "num_hidden_layers", most=MAX_LAYERS),
        hidden=hidden,
        feed_forward=_integer(config, "intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocabulary=_integer(config, "vocab_size"),
        context=_context(config),
        norm_epsilon=_number(config, "rms_norm_eps", 1e-6),
        tied=_flag(config, "tie_word_embeddings"),
        attention_bias=family.qkv_bias or _allowed_bias(config, family, "attention_bias"),
        mlp_bias=_allowed_bias(config, family, "mlp_bias"),
        rope=_rope(config, head_dim),
    )


def _family(config: JsonObject) -> Family:
    names = config.get("architectures")
    if not isinstance(names, list) or len(names) != 1 or names[0] not in _FAMILIES:
        raise Refused(f"architecture {names!r} is unknown; the converter knows {', '.join(_FAMILIES)}")
    return _FAMILIES[names[0]]


def _is_unset(value: object) -> bool:
    return value is None or value is False or value in ([], {}, "")


def _integer(config: JsonObject, key: str, *, default: int | None = None, most: int = MAX_SIZE) -> int:
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise Refused(f"config.json: {key} is {value!r}, expected an integer from 1 to {most}")
    return value


def _number(config: JsonObject, key: str, default: float | None = None) -> float:
    value = config.get(key, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise Refused(f"config.json: {key} is {value!r}, expected a number above 0")
    return float(value)


def _flag(config: JsonObject, key: str) -> bool:
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise Refused(f"config.json: {key} is {value!r}, expected true or false")
    return bool(value)


def _allowed_bias(config: JsonObject, family: Family, key: str) -> bool:
    if _flag(config, key) and not family.may_have_bias:
        raise Refused(
            f"config.json: {key} is true, which {config['architectures'][0]} in llama.cpp has no place for"
        )
    return _flag(config, key)


def _context(config: JsonObject) -> int:
    """Full attention equals sliding-window attention up to the window, so the window caps the context."""
    longest = _integer(config, "max_position_embeddings", most=1 << 30)
    qwen = config["architectures"][0].startswith("Qwen")
    slides = _flag(config, "use_sliding_window") if qwen else config.get("sliding_window") is not None
    layer_types = config.get("layer_types") or []
    if not slides and any(kind != "full_attention" for kind in layer_types):
        raise Refused("config.json: layer_types name attention other than full_attention")
    if any(kind not in ("full_attention", "sliding_attention") for kind in layer_types):
        raise Refused("config.json: layer_types name an attention the converter does not know")
    return min(longest, _integer(config, "sliding_window", most=1 << 30)) if slides else longest


def _rope(config: JsonObject, head_dim: int) -> Rope:
    """Both spellings: rope_theta + rope_scaling (type or rope_type), and rope_parameters holding all."""
    scaling = dict(config.get("rope_scaling") or {})
    scaling.update(config.get("rope_parameters") or {})
    theta = _number(
        {"rope_theta": scaling.pop("rope_theta", config.get("rope_theta", 10_000.0))}, "rope_theta"
    )
    kind = scaling.pop("rope_type", None) or scaling.get("type", "default")
    scaling.pop("type", None)
    partial = scaling.pop("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    if partial not in (None, 1, 1.0):
        raise Refused(f"config.json: partial_rotary_factor is {partial!r}, expected 1")
    if kind == "default":
        rope, used = Rope(theta), frozenset[str]()
    elif kind == "linear":
        rope, used = Rope(theta, "linear", _number(scaling, "factor")), frozenset({"factor"})
    elif kind == "llama3":
        rope, used = _llama3(scaling, theta, head_dim)
    elif kind == "yarn":
        rope, used = _yarn(scaling, theta)
    else:
        raise Refused(f"config.json: rope type {kind!r} is not default, linear, llama3 or yarn")
    left = sorted(key for key, value in scaling.items() if key not in used and value is not None)
    if left:
        raise Refused(f"config.json: rope {kind} with {', '.join(left)} cannot be converted exactly")
    return rope


def _yarn(scaling: JsonObject, theta: float) -> tuple[Rope, frozenset[str]]:
    """Defaults only (beta_fast 32, beta_slow 1, attention factor 0.1 ln(factor) + 1): llama.cpp computes the same."""
    original = _integer(scaling, "original_max_position_embeddings", most=1 << 30)
    inert = {"beta_fast": 32, "beta_slow": 1, "truncate": True}
    for key, value in inert.items():
        if scaling.get(key, value) != value:
            raise Refused(f"config.json: rope yarn with {key} {scaling[key]!r} cannot be converted exactly")
    rope = Rope(theta, "yarn", _number(scaling, "factor"), original)
    return rope, frozenset({"factor", "original_max_position_embeddings", *inert})


def _llama3(scaling: JsonObject, theta: float, head_dim: int) -> tuple[Rope, frozenset[str]]:
    """Frequency divisors: 1 for short waves, `factor` for long ones, a smooth blend between (Llama 3.1 release)."""
    factor, low, high = (_number(scaling, key) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    original = _integer(scaling, "original_max_position_embeddings", most=1 << 30)
    if not low < high:
        raise Refused(f"config.json: low_freq_factor {low} is not below high_freq_factor {high}")
    divisors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * theta ** (i / head_dim)
        if wavelength < original / high:
            divisors.append(1.0)
        elif wavelength > original / low:
            divisors.append(factor)
        else:
            smooth = (original / wavelength - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    used = {"factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"}
    return Rope(theta, "llama3", factor, original, tuple(divisors)), frozenset(used)
