"""The JSON files around Hugging Face weights: configurations, token lists, shard indexes.

Which file is which is its name (CONFIG_NAMES and *.index.json); the content must then be that kind. A key
that makes a loader run code (`auto_map` and its like) refuses, and so does a shard index that points
outside its folder. Facts carry what other files must agree with: shards, vocabulary size, architecture.
Source: the loaders of transformers 5 (`configuration_utils`, `dynamic_module_utils`, `modeling_utils`),
peft (`parent_library`) and sentence-transformers (`modules.json`).
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping

from steelyard.digest import JSON
from steelyard.formats.base import ByteSource, Finding, Reference, Report, Rule
from steelyard.formats.chat_template import template_facts
from steelyard.formats.jsonfile import (
    CONFIG_NAMES,
    CONTENT_RULES,
    INDEX_SUFFIX,
    MAX_FINDINGS,
    PARSE_RULES,
    base_name,
    clip,
    examine,
    load,
    looks_like_json,
    template_texts,
)
from steelyard.formats.keras_objects import looks_like_keras
from steelyard.formats.safetensors import names_digest
from steelyard.model import IGNORED_ROOT_NAMES

MAX_SHARDS = 4096
MAX_TOKEN_ID = 1 << 24
MAX_LAYERS = 4096
MAX_WIDTH = 1 << 24
MAX_FACT_CHARS = 200

RULES: Mapping[str, Rule] = {
    "config/shape": Rule(
        attack="A file of a known name with unknown content, which loaders read in ways nobody examined.",
        mend="Write the file again with save_pretrained.",
    ),
    "config/dimensions": Rule(
        attack="A model dimension so large that building the model exhausts memory.",
        mend="Write the true dimensions: whole numbers within docs/formats.",
    ),
    "config/index-path": Rule(
        attack="A shard index naming a file outside its folder, which the loader then opens.",
        mend="Name each shard by its plain file name.",
    ),
    "config/vocabulary": Rule(
        attack="Token ids given twice or outside the vocabulary, so that text and embedding disagree.",
        mend="Give each token one id of its own.",
    ),
    **PARSE_RULES,
    **CONTENT_RULES,
}

_WIDTHS = frozenset(
    {
        "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim",
        "n_embd", "n_head", "n_positions", "d_model", "d_ff", "num_experts", "num_local_experts",
    }
)  # fmt: skip
_DEPTHS = frozenset({"num_hidden_layers", "n_layer", "num_layers", "encoder_layers", "decoder_layers"})
_CONFIG_FACTS = (
    "model_type", "architectures", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "max_position_embeddings", "tie_word_embeddings", "dtype", "torch_dtype",
)  # fmt: skip
_TOKENIZER_FACTS = ("tokenizer_class", "bos_token", "eos_token", "unk_token", "pad_token")
_ADAPTER_FACTS = ("peft_type", "base_model_name_or_path", "task_type", "r", "target_modules")
_SHARD_NAME = re.compile(r"[^/\\:\x00-\x1f\x7f]+(?:/[^/\\:\x00-\x1f\x7f]+)*")

_SENTENCE_MODULE = re.compile(r"sentence_transformers(\.[A-Za-z]\w*)+")
# Libraries whose classes a diffusers pipeline may name; anything else is imported from the repository or the hub.
_PIPELINE_LIBRARIES = frozenset(
    {
        "diffusers", "transformers", "onnxruntime", "stable_diffusion", "latent_diffusion", "unclip",
        "paint_by_example", "kandinsky", "shap_e", "wuerstchen", "audioldm2", "musicldm", "semantic_stable_diffusion",
        "deepfloyd_if", "stable_diffusion_safe", "pag", "stable_audio", "optimum.onnxruntime", "optimum.intel",
    }
)  # fmt: skip
_CLASS_NAME = re.compile(r"[A-Z]\w*")
_PIPELINE_NAME = "model_index.json"

Facts = dict[str, JSON]


def is_inside(path: str) -> bool:
    """Whether a path from a file stays below its folder: relative, no '..', no drive, no URL, no backslash.

    Git's own files are no part of a model, hence not scanned, so a path into them is outside too.
    """
    parts = path.split("/")
    is_weighed = parts[0].lower() not in IGNORED_ROOT_NAMES
    return _SHARD_NAME.fullmatch(path) is not None and not {".", ".."} & set(parts) and is_weighed


def _read_index(value: Mapping[str, JSON], facts: Facts) -> Iterator[Finding]:
    weight_map = value.get("weight_map")
    if not isinstance(weight_map, dict):
        yield Finding("config/shape", "weight_map is missing or not an object")
        return
    shards: Counter[str] = Counter()
    names: dict[str, list[str]] = defaultdict(list)
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str):
            yield Finding(
                "config/shape", f"weight_map {clip(tensor)} is not a file name", member="weight_map"
            )
        elif not is_inside(shard):
            yield Finding(
                "config/index-path", f"tensor {clip(tensor)} is in {clip(shard)}", member="weight_map"
            )
        else:
            shards[shard] += 1
            names[shard].append(tensor)
    if len(shards) > MAX_SHARDS:
        yield Finding(
            "config/shape", f"{len(shards)} shards; at most {MAX_SHARDS} are read", member="weight_map"
        )
    facts["tensors"] = len(weight_map)
    facts["shards"] = dict(sorted(shards.items())[:MAX_SHARDS])
    # What a shard must hold, to compare with its own header without keeping a hundred thousand names.
    facts["shard_tensors_sha256"] = {
        shard: names_digest(held) for shard, held in sorted(names.items())[:MAX_SHARDS]
    }
    metadata = value.get("metadata")
    if isinstance(metadata, dict) and isinstance(metadata.get("total_size"), int):
        facts["total_size_bytes"] = metadata["total_size"]


def _read_vocabulary(value: Mapping[str, JSON], facts: Facts) -> Iterator[Finding]:
    ids: set[int] = set()
    for token, number in value.items():
        if type(number) is not int or not 0 <= number < MAX_TOKEN_ID:
            yield Finding("config/vocabulary", f"token {clip(token)} has id {clip(str(number))}")
        elif number in ids:
            yield Finding("config/vocabulary", f"id {number} of token {clip(token)} is taken")
        else:
            ids.add(number)
    facts["tokens"] = len(value)
    facts["largest_id"] = max(ids, default=None)


def _read_config(value: Mapping[str, JSON], facts: Facts) -> Iterator[Finding]:
    for part in (value, *(part for part in value.values() if isinstance(part, dict))):
        for key, number in part.items():
            limit = MAX_LAYERS if key in _DEPTHS else MAX_WIDTH if key in _WIDTHS else None
            if limit is None or number is None or isinstance(number, (list, dict)):
                continue
            if type(number) is not int or not 0 <= number <= limit:
                message = f"{key} is {clip(str(number))}; expected 0 to {limit}"
                yield Finding("config/dimensions", message, member=key)
    facts.update(_picked(value, _CONFIG_FACTS))


def _read_tokenizer_config(value: Mapping[str, JSON], facts: Facts) -> Iterator[Finding]:
    decoder = value.get("added_tokens_decoder", {})
    for number in decoder if isinstance(decoder, dict) else ("",):
        if not (number.isascii() and number.isdigit() and int(number[:12]) < MAX_TOKEN_ID):
            yield Finding(
                "config/vocabulary", f"added token id {clip(number)}", member="added_tokens_decoder"
            )
    facts.update(_picked(value, _TOKENIZER_FACTS))
    facts["chat_template"] = value.get("chat_template") is not None
    facts["chat_templates"] = [
        dict(template_facts(text)) for text in template_texts(value.get("chat_template"))
    ][:16]


def _read_adapter(value: Mapping[str, JSON], facts: Facts) -> Iterator[Finding]:
    facts.update(_picked(value, _ADAPTER_FACTS))
    yield from ()


def _read_other(value: Mapping[str, JSON], facts: Facts) -> Iterator[Finding]:
    facts["keys"] = sorted(key[:MAX_FACT_CHARS] for key in value)[:64]
    yield from ()


def _read_pipeline(value: Mapping[str, JSON], facts: Facts) -> Iterator[Finding]:
    """model_index.json of diffusers: {_class_name, component: [library, class], ...}, each class imported by name."""
    components: dict[str, JSON] = {}
    pipeline = value.get("_class_name")
    if not isinstance(pipeline, str) or _CLASS_NAME.fullmatch(pipeline) is None:
        # A list here is a custom pipeline: [file of the repository, class].
        yield Finding("config/remote-code", f"the pipeline is {clip(str(pipeline))}", member="_class_name")
    for name, part in value.items():
        if name.startswith("_") or not isinstance(part, list):
            continue
        library, kind = (*part, None, None)[:2]
        if library is None and kind is None:  # an optional component that this model leaves out
            continue
        is_known = isinstance(library, str) and library in _PIPELINE_LIBRARIES
        if not is_known or not isinstance(kind, str) or _CLASS_NAME.fullmatch(kind) is None or len(part) > 3:
            yield Finding(
                "config/remote-code", f"{clip(name)} is made by {clip(str(part))}", member=clip(name)
            )
        components[name[:MAX_FACT_CHARS]] = f"{library}.{kind}"[:MAX_FACT_CHARS]
    facts["components"] = dict(sorted(components.items())[:64])


def _read_modules(value: JSON, facts: Facts) -> Iterator[Finding]:
    """modules.json of sentence-transformers: [{idx, name, path, type}], type imported by its dotted name."""
    modules = value if isinstance(value, list) else []
    if not modules:
        yield Finding("config/shape", "modules.json is not a list of modules")
    kinds = []
    for module in modules:
        kind = module.get("type") if isinstance(module, dict) else None
        path = module.get("path", "") if isinstance(module, dict) else None
        if not isinstance(kind, str) or _SENTENCE_MODULE.fullmatch(kind) is None:
            yield Finding("config/remote-code", f"modules.json imports {clip(str(kind))}", member="type")
        if not isinstance(path, str) or (path and not is_inside(path)):
            yield Finding(
                "config/index-path", f"modules.json names the folder {clip(str(path))}", member="path"
            )
        kinds.append(str(kind)[:MAX_FACT_CHARS])
    facts["modules"] = list(kinds[:64])


def _picked(value: Mapping[str, JSON], keys: tuple[str, ...]) -> Facts:
    return {key: _small(value[key]) for key in keys if value.get(key) is not None}


def _small(value: JSON) -> JSON:
    if isinstance(value, str):
        return value[:MAX_FACT_CHARS]
    if isinstance(value, dict):
        return _small(value.get("content"))  # an AddedToken
    if isinstance(value, list):
        return [_small(each) for each in value[:32] if isinstance(each, (str, int))]
    return value


_READERS: Mapping[str, Callable[[Mapping[str, JSON], Facts], Iterator[Finding]]] = {
    "config.json": _read_config,
    "tokenizer_config.json": _read_tokenizer_config,
    "adapter_config.json": _read_adapter,
    "vocab.json": _read_vocabulary,
    "added_tokens.json": _read_vocabulary,
    _PIPELINE_NAME: _read_pipeline,
}


def _read_by_name(base: str, value: JSON, facts: Facts) -> Iterator[Finding]:
    if base == "modules.json":
        yield from _read_modules(value, facts)
    elif not isinstance(value, dict):
        yield Finding("config/shape", f"{base} is not a JSON object")
    elif base.endswith(INDEX_SUFFIX):
        yield from _read_index(value, facts)
    else:
        yield from _READERS.get(base, _read_other)(value, facts)


class HfConfigFormat:
    """The plug of `steelyard.formats`."""

    name = "hf-config"
    rules = RULES

    def sniff(self, head: bytes, path: str) -> bool:
        base = base_name(path)
        known = base in CONFIG_NAMES or base.endswith(INDEX_SUFFIX)
        return known and looks_like_json(head, path) and not looks_like_keras(head)

    def read(self, source: ByteSource, path: str) -> Report:
        value = load(source)
        base = base_name(path)
        facts: Facts = {"kind": base}
        findings = list(examine(value))
        for finding in _read_by_name(base, value, facts):
            findings.append(finding)
            if len(findings) >= MAX_FINDINGS:
                break
        shards = facts.get("shards")
        references = tuple(Reference(shard) for shard in shards) if isinstance(shards, dict) else ()
        return Report(self.name, facts, tuple(findings), None, references)


FORMAT = HfConfigFormat()
