"""Safetensors directory -> one GGUF file, and a GGUF -> a smaller one. Each result is a new digest.

The same input gives the same bytes: no time, no path and no version enters the file. The target appears whole or
not at all. What the converter does not understand refuses (see to_gguf_config, to_gguf_tensors, to_gguf_tokenizer).
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter, LlamaFileType, RopeScalingType

from steelyard.admit.from_grok import Config
from steelyard.admit.lineage import Conversion
from steelyard.admit.to_gguf_config import Shape, shape_of
from steelyard.admit.to_gguf_grok import ARCH, add_config, grok_config, is_grok
from steelyard.admit.to_gguf_grok import plan as grok_plan
from steelyard.admit.to_gguf_tensors import OUT_TYPES, FdSource, Planned, Weights, blocks, load_json, plan
from steelyard.admit.to_gguf_tokenizer import (
    Specials,
    Vocabulary,
    specials_of,
    vocabulary_of,
)
from steelyard.digest import JSON
from steelyard.errors import Refused, Unavailable, WrongUsage
from steelyard.formats.gguf import header_of

KINDS = ("q8_0", "q4_k_m")
MAX_CONFIG_BYTES = 1 << 20

_FILE_TYPES = {
    "F32": LlamaFileType.ALL_F32,
    "F16": LlamaFileType.MOSTLY_F16,
    "BF16": LlamaFileType.MOSTLY_BF16,
}
_LICENCE = re.compile(rb"^license: *[\"']?([A-Za-z0-9.+-]{1,64})[\"']? *$", re.MULTILINE)


def convert(
    source_dir: Path, target: Path, *, outtype: str = "auto", progress: Callable[[int], None] | None = None
) -> Conversion:
    """Write `target` from the safetensors, tokenizer and configuration in `source_dir`.

    outtype: f32, f16, bf16, or auto, which keeps each matrix as it is stored; vectors are always f32.
    progress: called with the bytes written since the last call.
    Raises WrongUsage (outtype, no model in the directory, target exists), Refused (something is not understood),
    Malformed (a file breaks its format), Unavailable (disk).
    """
    if outtype not in OUT_TYPES:
        raise WrongUsage(f"outtype is {outtype!r}, expected one of {', '.join(OUT_TYPES)}")
    config_path = source_dir / "config.json"
    if not config_path.exists():
        raise WrongUsage(f"{source_dir} has no config.json")
    config = load_json(config_path, MAX_CONFIG_BYTES)
    shape: Shape | Config = grok_config(config) if is_grok(config) else shape_of(config)
    vocabulary = vocabulary_of(source_dir, shape.vocabulary)
    specials = specials_of(source_dir, vocabulary, config)
    with Weights(source_dir) as weights, whole_file(target) as temporary:
        if isinstance(shape, Config):
            tensors = grok_plan(shape, weights, outtype)
            writer = GGUFWriter(temporary, ARCH)
            writer.add_file_type(_file_type(tensors))
            add_config(writer, shape)
        else:
            tensors = plan(shape, weights, outtype)
            writer = GGUFWriter(temporary, shape.family.arch)
            writer.add_file_type(_file_type(tensors))
            _add_shape(writer, shape)
        licence = _licence(source_dir)
        if licence:
            writer.add_license(licence)
        _add_tokenizer(writer, vocabulary, specials)
        write_tensors(writer, tensors, weights, progress)
    parameters: dict[str, JSON] = {
        "outtype": outtype,
        "tensors": len(tensors),
        "types": _counts(tensors),
        "steelyard": version("steelyard"),
        "gguf": version("gguf"),
    }
    return Conversion("convert", target, parameters)


def quantise(source_gguf: Path, target: Path, kind: str) -> Conversion:
    """Write `target` from a float GGUF, with llama.cpp's quantiser in a child process. kind: q8_0 or q4_k_m.

    Raises WrongUsage (kind, target exists), Refused (quantised already), Malformed (no GGUF), Unavailable (disk,
    no xllamacpp, or the child died).
    """
    if kind not in KINDS:
        raise WrongUsage(f"kind is {kind!r}, expected one of {', '.join(KINDS)}")
    try:
        with source_gguf.open("rb") as file:
            header_of(FdSource(file.fileno()))
    except OSError as error:
        raise Unavailable(f"cannot read {source_gguf}: {error.strerror}") from error
    with whole_file(target) as temporary:
        answer = _quantised_in_child(source_gguf, temporary, kind)
    parameters: dict[str, JSON] = {
        "outtype": kind,
        "tensors": sum(answer.values()),
        "types": answer,
        "steelyard": version("steelyard"),
        "gguf": version("gguf"),
        "xllamacpp": version("xllamacpp"),
    }
    return Conversion("quantise", target, parameters)


def _quantised_in_child(source: Path, target: Path, kind: str) -> dict[str, int]:
    """Tensors by type, as the child reports them."""
    command = [sys.executable, "-I", "-m", "steelyard.admit.to_gguf_quantise"]
    done = subprocess.run(
        [*command, str(source.resolve()), str(target.resolve()), kind],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        env={"PATH": os.defpath, "LC_ALL": "C.UTF-8"},
    )
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().rsplit("\n", 1)[-1][:300]
        raise Unavailable(f"the quantiser ended with status {done.returncode}: {last}")
    answer = json.loads(done.stdout.rsplit(b"\n", 2)[-2])
    if "error" in answer:
        raise (Refused if answer["refused"] else Unavailable)(answer["error"])
    types: dict[str, int] = answer["types"]
    return types


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """A temporary path beside `target`, synced and renamed to it at the end, removed on any error."""
    if target.exists():
        raise WrongUsage(f"{target} exists already; name a new file")
    temporary = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise Unavailable(f"cannot write {target}: {error.strerror}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_tensors(
    writer: GGUFWriter, tensors: tuple[Planned, ...], weights: Weights, progress: Callable[[int], None] | None
) -> None:
    for entry in tensors:
        kind = GGMLQuantizationType[entry.dtype]
        writer.add_tensor_info(entry.name, entry.shape, np.dtype(np.float32), entry.size, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    assert writer.fout is not None
    file = writer.fout[0]
    writer.write_padding(file, file.tell())
    for entry in tensors:
        for block in blocks(entry, weights):
            file.write(block)
            if progress:
                progress(len(block))
        writer.write_padding(file, entry.size)
    writer.close()


def _file_type(tensors: tuple[Planned, ...]) -> LlamaFileType:
    """By the type of most matrices."""
    matrices = [entry.dtype for entry in tensors if len(entry.shape) > 1]
    return _FILE_TYPES[max(sorted(set(matrices)), key=matrices.count)]


def _add_shape(writer: GGUFWriter, shape: Shape) -> None:
    writer.add_vocab_size(shape.vocabulary)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.norm_epsilon)
    writer.add_rope_freq_base(shape.rope.theta)
    if shape.rope.kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType[shape.rope.kind.upper()])
        writer.add_rope_scaling_factor(shape.rope.factor)
    if shape.rope.kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(shape.rope.original_context)


def _add_tokenizer(writer: GGUFWriter, vocabulary: Vocabulary, specials: Specials) -> None:
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types([int(kind) for kind in vocabulary.kinds])
    if vocabulary.scores:
        writer.add_token_scores(vocabulary.scores)
    if vocabulary.merges:
        writer.add_token_merges(vocabulary.merges)
    if specials.bos is not None:
        writer.add_bos_token_id(specials.bos)
    adders = (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    for add, token in zip(adders, specials.ends, strict=False):
        add(token)
    if specials.unknown is not None:
        writer.add_unk_token_id(specials.unknown)
    if specials.padding is not None:
        writer.add_pad_token_id(specials.padding)
    writer.add_add_bos_token(vocabulary.add_bos)
    writer.add_add_eos_token(vocabulary.add_eos)
    if vocabulary.add_space_prefix is not None:
        writer.add_add_space_prefix(vocabulary.add_space_prefix)
    if vocabulary.normaliser:
        writer.add_key_value("steelyard.tokenizer.normaliser", vocabulary.normaliser, GGUFValueType.STRING)
    for name, text in specials.templates.items():
        key = f"tokenizer.chat_template.{name}" if name else "tokenizer.chat_template"
        writer.add_string(key, text)


def _licence(folder: Path) -> str | None:
    """The `license` line of the README's front matter."""
    path = folder / "README.md"
    if not path.exists():
        return None
    with path.open("rb") as file:
        head = file.read(64 << 10)
    parts = head.split(b"---", 2)
    match = _LICENCE.search(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    return match[1].decode() if match else None


def _counts(tensors: tuple[Planned, ...]) -> dict[str, JSON]:
    kinds = [entry.dtype for entry in tensors]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}
