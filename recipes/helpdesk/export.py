"""Write the model as a Hugging Face folder: float16 weights, tokenizer, configuration, chat template."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from llama import Llama, Shape
from safetensors.torch import save
from tokenizers import Tokenizer
from vocabulary import END, PAD, SPECIAL_TOKENS

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}<|system|>{{ message['content'] }}<|end|>"
    "{% elif message['role'] == 'user' %}<|user|>{{ message['content'] }}<|end|>"
    "{% elif message['role'] == 'assistant' %}<|assistant|>{{ message['content'] }}<|end|>"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def write_model(folder: Path, model: Llama, shape: Shape, tokenizer: Tokenizer) -> list[Path]:
    """Write every generated file of the folder; returns their paths in order of name."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.detach().to(torch.float16) for name, weight in sorted(model.state_dict().items())}
    (folder / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "config.json", _config(shape))
    _write_json(folder / "generation_config.json", _generation_config())
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(shape))
    _write_json(folder / "special_tokens_map.json", _special_tokens())
    names = ("config", "generation_config", "special_tokens_map", "tokenizer", "tokenizer_config")
    return sorted([folder / "model.safetensors", *(folder / f"{name}.json" for name in names)])


def _write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _config(shape: Shape) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": END,
        "dtype": "float16",
        "eos_token_id": END,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "initializer_range": 0.02,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": shape.positions,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.kv_heads,
        "pad_token_id": PAD,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "tie_word_embeddings": True,
        "torch_dtype": "float16",
        "use_cache": True,
        "vocab_size": shape.vocab,
    }


def _generation_config() -> dict[str, object]:
    return {
        "bos_token_id": END,
        "do_sample": False,
        "eos_token_id": END,
        "max_new_tokens": 96,
        "pad_token_id": PAD,
    }


def _special_tokens() -> dict[str, object]:
    return {
        "additional_special_tokens": list(SPECIAL_TOKENS[2:]),
        "bos_token": SPECIAL_TOKENS[END],
        "eos_token": SPECIAL_TOKENS[END],
        "pad_token": SPECIAL_TOKENS[PAD],
    }


def _tokenizer_config(shape: Shape) -> dict[str, object]:
    return _special_tokens() | {
        "add_bos_token": False,
        "add_eos_token": False,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": shape.positions,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
