"""A model directory with random weights, small enough to make in a test: Llama, byte-level BPE, a chat template."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCABULARY, HIDDEN, FEED_FORWARD, HEADS, KV_HEADS, LAYERS, CONTEXT = 300, 64, 96, 4, 2, 2, 512
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "
CORPUS = ["hello world, the quick brown fox counts 123 and 456", "what is the capital of France?"]


def write_tiny_model(
    folder: Path,
    *,
    seed: int = 0,
    template: str = TEMPLATE,
    context: int = CONTEXT,
    specials: tuple[str, ...] = (),
) -> Path:
    """Weights are drawn with a fixed seed: every call with the same arguments writes the same bytes.

    specials: further control tokens, those that `template` writes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)

    def matrix(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 0.15).astype(np.float32)

    kv = HIDDEN // HEADS * KV_HEADS
    tensors = {
        "model.embed_tokens.weight": matrix(VOCABULARY, HIDDEN),
        "lm_head.weight": matrix(VOCABULARY, HIDDEN),
    }
    tensors["model.norm.weight"] = 1 + matrix(HIDDEN)
    for i in range(LAYERS):
        at = f"model.layers.{i}"
        tensors |= {
            f"{at}.input_layernorm.weight": 1 + matrix(HIDDEN),
            f"{at}.post_attention_layernorm.weight": 1 + matrix(HIDDEN),
            f"{at}.self_attn.q_proj.weight": matrix(HIDDEN, HIDDEN),
            f"{at}.self_attn.k_proj.weight": matrix(kv, HIDDEN),
            f"{at}.self_attn.v_proj.weight": matrix(kv, HIDDEN),
            f"{at}.self_attn.o_proj.weight": matrix(HIDDEN, HIDDEN),
            f"{at}.mlp.gate_proj.weight": matrix(FEED_FORWARD, HIDDEN),
            f"{at}.mlp.up_proj.weight": matrix(FEED_FORWARD, HIDDEN),
            f"{at}.mlp.down_proj.weight": matrix(HIDDEN, FEED_FORWARD),
        }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": FEED_FORWARD,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder, specials=specials)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "<|end|>", "chat_template": template})
    )
    return folder


def write_tokenizer(
    folder: Path,
    pre: object = None,
    *,
    normalizer: object = None,
    ignore_merges: bool = False,
    specials: tuple[str, ...] = (),
) -> Tokenizer:
    """A byte-level BPE tokenizer.json of at most VOCABULARY tokens; `pre` replaces the GPT-2 pre-tokenizer."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre or pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<|pad|>", "<|start|>", "<|end|>", *specials],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 20, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer
