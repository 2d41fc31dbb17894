"""GGUF files: the structure is read by gguf_header.py, the metadata is judged here.

Judged are what a loader acts on: chat templates, links, split numbers, and the vocabulary's arrays and ids.
Source: the keys of docs/gguf.md of github.com/ggml-org/ggml and their use in llama.cpp's `llama-vocab.cpp`.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace

from steelyard.digest import JSON
from steelyard.formats.base import ByteSource, Finding, Report, Rule, Severity
from steelyard.formats.chat_template import RULES as TEMPLATE_RULES
from steelyard.formats.chat_template import examine_template
from steelyard.formats.gguf_header import (
    MAGIC,
    STRUCTURE_RULES,
    WRITE_AGAIN,
    ArrayInfo,
    GgufHeader,
    clip,
    header_of,
)

__all__ = ["FORMAT", "RULES", "GgufFormat", "GgufHeader", "base_models", "header_of", "metadata_of"]

MAX_SPLITS = 1024
MAX_FACT_CHARS = 200
MAX_BASE_MODELS = 16

RULES: Mapping[str, Rule] = {
    **STRUCTURE_RULES,
    "gguf/vocabulary": Rule(
        "Token scores or types fewer than tokens: the reader indexes past their end.", WRITE_AGAIN
    ),
    "gguf/token-id": Rule(
        "A special token's id outside the vocabulary.", "Set the id to a token that exists.", Severity.REVIEW
    ),
    "gguf/split": Rule(
        "A part number outside the count of parts, or a count that makes the loader look for thousands of files.",
        "Split the model again with a current tool.",
    ),
    "gguf/link": Rule(
        "A link that opens local files or runs a handler when a tool follows it.", "Link with http or https."
    ),
    "gguf/template-type": Rule("A chat template that is not text, so it cannot be examined.", WRITE_AGAIN),
    **TEMPLATE_RULES,
}


def metadata_of(source: ByteSource) -> Mapping[str, JSON]:
    """Scalars and strings of the metadata, by key. Raises Malformed."""
    return header_of(source).metadata


def _examine(header: GgufHeader) -> Iterator[Finding]:
    for key, kind in header.kinds.items():
        if key == "tokenizer.chat_template" or key.startswith("tokenizer.chat_template."):
            value = header.metadata.get(key)
            if not isinstance(value, str):
                yield Finding(
                    "gguf/template-type", f"{clip(key)} is of type {kind}; expected string", member=key
                )
                continue
            for finding in examine_template(value):
                yield replace(finding, member=key)
    yield from _examine_split(header.metadata)
    yield from _examine_links(header.metadata)
    tokens = header.arrays.get("tokenizer.ggml.tokens")
    if tokens is not None:
        yield from _examine_vocabulary(header, tokens)


def _examine_split(metadata: Mapping[str, JSON]) -> Iterator[Finding]:
    if "split.count" not in metadata and "split.no" not in metadata:
        return
    part, parts = metadata.get("split.no"), metadata.get("split.count")
    if type(part) is not int or type(parts) is not int or not 0 <= part < parts <= MAX_SPLITS:
        message = f"part {part} of {parts}; expected a part from 0 below a count of at most {MAX_SPLITS}"
        yield Finding("gguf/split", message, member="split.count")


def _examine_links(metadata: Mapping[str, JSON]) -> Iterator[Finding]:
    for key, value in metadata.items():
        if not key.endswith(("url", ".link", ".doi")) or not isinstance(value, str):
            continue
        scheme, separator, _ = value.partition(":")
        if separator and scheme.strip().lower() not in {"http", "https", "doi"}:
            yield Finding("gguf/link", f"{clip(key)} is {clip(value)}", member=key)


def _examine_vocabulary(header: GgufHeader, tokens: ArrayInfo) -> Iterator[Finding]:
    if tokens.element != "string":
        yield Finding("gguf/vocabulary", f"tokens are {tokens.element}; expected strings")
    for key, element in (("tokenizer.ggml.scores", "f32"), ("tokenizer.ggml.token_type", "i32")):
        array = header.arrays.get(key, ArrayInfo(element, tokens.length))
        if key in header.metadata or array.length != tokens.length or array.element != element:
            message = f"{array.length} {array.element} for {tokens.length} tokens; expected as many {element}"
            yield Finding("gguf/vocabulary", message, member=key)
    for key, value in header.metadata.items():
        is_id = key.startswith("tokenizer.ggml.") and key.endswith("_token_id")
        if is_id and (type(value) is not int or not 0 <= value < tokens.length):
            yield Finding("gguf/token-id", f"{value} of {tokens.length} tokens", member=key)


def _facts(header: GgufHeader) -> dict[str, JSON]:
    metadata = header.metadata
    architecture = metadata["general.architecture"]
    facts: dict[str, JSON] = {
        "version": header.version,
        "architecture": _bounded(architecture),
        "tensors": len(header.tensors),
        "parameters": sum(tensor.elements for tensor in header.tensors),
        "types": dict(sorted(Counter(tensor.type.name for tensor in header.tensors).items())),
        "keys": len(header.kinds),
        "alignment": header.alignment,
    }
    named = {
        "context_length": f"{architecture}.context_length",
        "block_count": f"{architecture}.block_count",
        "embedding_length": f"{architecture}.embedding_length",
        "tokenizer": "tokenizer.ggml.model",
        "file_type": "general.file_type",
        "name": "general.name",
        "licence": "general.license",
        "licence_name": "general.license.name",
        "licence_link": "general.license.link",
        "author": "general.author",
        "organisation": "general.organization",
        "source": "general.source.url",
        "split": "split.no",
        "splits": "split.count",
    }
    facts.update({fact: _bounded(metadata[key]) for fact, key in named.items() if key in metadata})
    if tokens := header.arrays.get("tokenizer.ggml.tokens"):
        facts["vocabulary"] = tokens.length
    if bases := base_models(metadata):
        facts["base_models"] = bases
    return facts


def base_models(metadata: Mapping[str, JSON]) -> list[JSON]:
    """The models this one was made from: their repositories, or `organisation/name` put together."""
    count = metadata.get("general.base_model.count")
    bases: list[JSON] = []
    for index in range(min(count, MAX_BASE_MODELS) if type(count) is int else 0):
        key = f"general.base_model.{index}"
        named = [
            str(metadata.get(f"{key}.{part}", "")).replace(" ", "-") for part in ("organization", "name")
        ]
        bases.append(_bounded(metadata.get(f"{key}.repo_url") or "/".join(part for part in named if part)))
    return bases


def _bounded(value: JSON) -> JSON:
    return value[:MAX_FACT_CHARS] if isinstance(value, str) else value


class GgufFormat:
    """The plug of `steelyard.formats`."""

    name = "gguf"
    rules = RULES

    def sniff(self, head: bytes, path: str) -> bool:  # noqa: ARG002 - the plug's signature
        return head.startswith(MAGIC)

    def read(self, source: ByteSource, path: str) -> Report:  # noqa: ARG002 - the plug's signature
        header = header_of(source)
        return Report(self.name, _facts(header), tuple(_examine(header)))


FORMAT = GgufFormat()
