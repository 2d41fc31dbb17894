"""Grok-1's checkpoint, 770 pickled shards, as the input of a conversion. Nothing in them is executed.

The files are numbered in the order JAX flattens the parameter tree, and JAX sorts dict keys as text: layer 10 comes
before layer 2. `expected` therefore sorts the very names the model's code gives its modules. Every shard must be
there, be the sentence of `formats.grok`, and have the shape that name implies; nothing else may lie beside them.
Source: checkpoint.py, model.py and run.py of github.com/xai-org/grok-1.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steelyard.admit.to_safetensors import BLOCK_BYTES, open_input, pieces
from steelyard.admit.to_safetensors_model import Job
from steelyard.admit.to_safetensors_plan import Feed, Range, Source, Tensor, plan_of
from steelyard.digest import JSON
from steelyard.errors import Malformed, Refused, Unavailable, Untrusted, WrongUsage
from steelyard.formats.grok import Array, Shard, is_finite_bf16, shard_of
from steelyard.formats.grok_pickle import framing_of
from steelyard.formats.jsonfile import parse

MODES = ("exact", "bf16")
CHECKPOINT = "ckpt-0"
MAX_LAYERS = 1024
MAX_WIDTH = 1 << 24
MAX_CONFIG_BYTES = 1 << 20
SHARD_NAME = re.compile(r"tensor([0-9]{5})_([0-9]{3})")

ARCHITECTURE = "Grok1ForCausalLM"
MODEL_TYPE = "grok-1"


@dataclass(frozen=True, slots=True)
class Config:
    """The sizes that decide every shape, and the constants that the weights do not show. Defaults: the release."""

    layers: int = 64
    hidden: int = 6144
    feed_forward: int = 32768
    heads: int = 48
    kv_heads: int = 8
    head_dim: int = 128
    experts: int = 8
    experts_used: int = 2
    vocabulary: int = 131072
    context: int = 8192
    embedding_scale: float = 78.38367176906169
    output_scale: float = 0.5773502691896257
    attention_scale: float = 0.08838834764831845
    attention_cap: float = 30.0
    norm_epsilon: float = 1e-5
    rope_theta: float = 10_000.0
    padding_id: int = 0
    end_id: int = 2

    def to_json(self) -> dict[str, JSON]:
        """The config.json of the converted model. No loader in transformers knows this architecture."""
        fields: dict[str, JSON] = {key: getattr(self, name) for key, name in _KEYS.items()}
        return {
            "architectures": [ARCHITECTURE],
            "model_type": MODEL_TYPE,
            **fields,
            "hidden_act": "gelu_pytorch_tanh",
            "tie_word_embeddings": True,
            "weight_layout": "in_out",
        }


_KEYS: Mapping[str, str] = {
    "num_hidden_layers": "layers", "hidden_size": "hidden", "intermediate_size": "feed_forward",
    "num_attention_heads": "heads", "num_key_value_heads": "kv_heads", "head_dim": "head_dim",
    "num_experts": "experts", "num_experts_per_tok": "experts_used", "vocab_size": "vocabulary",
    "max_position_embeddings": "context", "embedding_multiplier_scale": "embedding_scale",
    "output_multiplier_scale": "output_scale", "attn_output_multiplier": "attention_scale",
    "attn_logit_softcapping": "attention_cap", "rms_norm_eps": "norm_epsilon", "rope_theta": "rope_theta",
    "pad_token_id": "padding_id", "eos_token_id": "end_id",
}  # fmt: skip
_REALS = frozenset(
    {"embedding_scale", "output_scale", "attention_scale", "attention_cap", "norm_epsilon", "rope_theta"}
)
_INERT = frozenset(
    {
        "architectures",
        "model_type",
        "hidden_act",
        "tie_word_embeddings",
        "weight_layout",
        "dtype",
        "torch_dtype",
    }
)


def config_of(values: Mapping[str, Any]) -> Config:
    """From a config.json such as `Config.to_json` writes; what is not named is as released. Raises Refused."""
    if values.get("model_type") != MODEL_TYPE:
        raise Refused(f"config.json: model_type is {values.get('model_type')!r}, expected {MODEL_TYPE!r}")
    unknown = sorted(values.keys() - _KEYS.keys() - _INERT)
    if unknown:
        raise Refused(f"config.json has keys the converter does not know: {', '.join(unknown[:8])}")
    given: dict[str, Any] = {}
    for key, name in _KEYS.items():
        if key not in values:
            continue
        value = values[key]
        most = MAX_LAYERS if name == "layers" else MAX_WIDTH
        least = 0 if name in {"padding_id", "end_id"} else 1
        is_real = (
            name in _REALS and isinstance(value, float | int) and not isinstance(value, bool) and value > 0
        )
        if not is_real and (type(value) is not int or not least <= value <= most or name in _REALS):
            raise Refused(f"config.json: {key} is {value!r}, which no Grok-1 model can have")
        given[name] = float(value) if name in _REALS else value
    config = Config(**given)
    if config.heads % config.kv_heads or config.hidden % 8 or config.feed_forward % 8:
        raise Refused("config.json: heads must divide by key-value heads, and widths by 8")
    return config


@dataclass(frozen=True, slots=True)
class Expected:
    """One leaf of the parameter tree: its name, its shape, and whether it is stored as int8 with scales."""

    name: str
    shape: tuple[int, ...]
    is_quantised: bool


def expected(config: Config) -> tuple[Expected, ...]:
    """The leaves in file order: module names sorted as text, as JAX sorts dict keys."""
    hidden, wide, experts = config.hidden, config.feed_forward, config.experts
    queries, keys = config.heads * config.head_dim, config.kv_heads * config.head_dim
    layer: dict[str, tuple[str, tuple[int, ...], bool]] = {
        "moe/linear": ("w", (experts, hidden, wide), True),
        "moe/linear_1": ("w", (experts, wide, hidden), True),
        "moe/linear_v": ("w", (experts, hidden, wide), True),
        "multi_head_attention/key": ("w", (hidden, keys), True),
        "multi_head_attention/linear": ("w", (queries, hidden), True),
        "multi_head_attention/query": ("w", (hidden, queries), True),
        "multi_head_attention/value": ("w", (hidden, keys), True),
        **{f"rms_norm{tail}": ("scale", (hidden,), False) for tail in ("", "_1", "_2", "_3")},
        "router": ("w", (hidden, experts), False),
    }
    modules = {
        "language_model/in_out_embed": ("embeddings", (config.vocabulary, hidden), False),
        "language_model/rms_norm": ("scale", (hidden,), False),
    }
    for number in range(config.layers):
        modules |= {f"transformer/decoder_layer_{number}/{name}": leaf for name, leaf in layer.items()}
    return tuple(
        Expected(f"{module}/{parameter}".replace("/", "."), shape, is_quantised)
        for module, (parameter, shape, is_quantised) in sorted(modules.items())
    )


@dataclass(frozen=True, slots=True)
class Piece:
    """One shard file of a checkpoint: its path in the model's folder, what it is called, what it holds."""

    root: Path
    path: str
    leaf: Expected
    shard: Shard

    @property
    def exact_tensors(self) -> tuple[Tensor, ...]:
        """The arrays as they are stored."""
        if self.shard.scales is None:
            return (Tensor(self.leaf.name, "F32", self.shard.weight.shape),)
        return (
            Tensor(f"{self.leaf.name}.weight", "I8", self.shard.weight.shape),
            Tensor(f"{self.leaf.name}.scales", "BF16", self.shard.scales.shape),
        )

    def to_json(self) -> dict[str, JSON]:
        """What `rebuild` needs beside the tensors."""
        sentence = self.shard.sentence
        return {
            "path": self.path,
            "size": self.shard.size,
            "core": sentence.core,
            "flags": sentence.flags,
            "tensors": [tensor.name for tensor in self.exact_tensors],
        }


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint whose every header has been read."""

    root: Path
    config: Config
    pieces: tuple[Piece, ...]


def is_checkpoint(folder: Path) -> bool:
    """Whether the folder, or ckpt-0 in it, holds a file named as Grok-1's first shard."""
    return any((place / "tensor00000_000").is_file() for place in (folder, folder / CHECKPOINT))


def read_checkpoint(folder: Path, config: Config | None = None) -> Checkpoint:
    """Read the headers of every shard below `folder` and compare them with the table.

    config: default, the folder's config.json where there is one, else the released model.
    Raises Refused (missing, extra or misshapen shard), Malformed (a shard is not the sentence; names the file),
    WrongUsage (no checkpoint), Unavailable.
    """
    config = config or _config_in(folder)
    place = folder / CHECKPOINT if (folder / CHECKPOINT).is_dir() else folder
    leaves = expected(config)
    _check_names(place, len(leaves), alone=place != folder)
    found = []
    for number, leaf in enumerate(leaves):
        name = f"tensor{number:05d}_000"
        path = name if place == folder else f"{CHECKPOINT}/{name}"
        found.append(Piece(folder, path, leaf, _read(folder / path, path, leaf)))
    return Checkpoint(folder, config, tuple(found))


def _config_in(folder: Path) -> Config:
    path = folder / "config.json"
    if not path.exists():
        return Config()
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise Unavailable(f"cannot read {path}: {error.strerror}") from error
    values = parse(data, max_bytes=MAX_CONFIG_BYTES)
    if not isinstance(values, dict):
        raise Refused("config.json is no object")
    return config_of(values)


def _check_names(place: Path, count: int, *, alone: bool) -> None:
    try:
        names = sorted(entry.name for entry in os.scandir(place))
    except OSError as error:
        raise Unavailable(f"cannot read {place}: {error.strerror}") from error
    wanted = {f"tensor{number:05d}_000" for number in range(count)}
    shards = {name for name in names if alone or name.startswith("tensor")}
    if not shards:
        raise WrongUsage(f"{place} holds no file tensor00000_000")
    missing, extra = sorted(wanted - shards), sorted(shards - wanted)
    if missing:
        raise Refused(f"{place}: {len(missing)} of {count} shards are missing, the first is {missing[0]}")
    if extra:
        raise Refused(
            f"{place}: {len(extra)} files are no shard of this model, the first is {extra[0][:80]!a}"
        )


def _read(file: Path, path: str, leaf: Expected) -> Shard:
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise Unavailable(f"cannot read {file}: {error.strerror}") from error
    try:
        shard = shard_of(_Opened(descriptor, os.fstat(descriptor).st_size))
    except Malformed as error:
        raise Malformed(
            f"{path}: {error.message}; take the file from the publisher again",
            rule=error.rule,
            offset=error.offset,
        ) from error
    finally:
        os.close(descriptor)
    if shard.weight.shape != leaf.shape or (shard.scales is not None) != leaf.is_quantised:
        kind, wanted = ("int8" if shard.scales else "float32"), ("int8" if leaf.is_quantised else "float32")
        raise Refused(
            f"{path} holds {kind} {shard.weight.shape}, and {leaf.name} is {wanted} {leaf.shape}; "
            "the files are out of order or of another model"
        )
    return shard


@dataclass(frozen=True, slots=True)
class _Opened:
    """A ByteSource over a descriptor."""

    descriptor: int
    size: int

    def read(self, offset: int, size: int) -> bytes:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ValueError(f"read of {size} bytes at {offset} is outside {self.size} bytes")
        data = os.pread(self.descriptor, size, offset)
        if len(data) != size:
            raise Unavailable("a shard became shorter while it was read")
        return data


@dataclass(frozen=True, slots=True)
class Exact:
    """The arrays of one shard, byte for byte."""

    piece: Piece
    block_bytes: int = BLOCK_BYTES

    @property
    def path(self) -> str:
        return self.piece.path

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return self.piece.exact_tensors

    @property
    def reads(self) -> int:
        return self.piece.shard.size

    @property
    def whole(self) -> bool:
        return True

    @property
    def ranges(self) -> tuple[Range, ...]:
        return tuple(Range(array.offset, array.size) for array in self.piece.shard.arrays)

    def open(self) -> int:
        return open_input(self.piece.root / self.piece.path, self.piece.shard.size)

    def blocks(self, descriptor: int, feed: Feed) -> Iterator[bytes]:
        for array in with_framing(self.piece, descriptor, feed):
            for block in pieces(descriptor, array.offset, array.size, self.block_bytes):
                if array.dtype == "BF16":
                    check_finite(self.piece, block)
                feed(block)
                yield block


def with_framing(piece: Piece, descriptor: int, feed: Feed) -> Iterator[Array]:
    """Each array when its payload is due. The framing around it is compared once more and fed on.

    Stops a file that was exchanged after the plan was made.
    """
    arrays = iter(piece.shard.arrays)
    at = 0
    for stretch in framing_of(piece.shard.sentence):
        found = os.pread(descriptor, len(stretch.framing), at)
        if found != stretch.framing:
            raise Untrusted(f"{piece.path} changed after the plan was made; nothing of it was kept")
        feed(found)
        at += len(found)
        if stretch.payload_bytes is not None:
            yield next(arrays)
            at += stretch.payload_bytes


def check_finite(piece: Piece, scales: bytes) -> None:
    """Raises Malformed when a scale is infinite or not a number."""
    if not is_finite_bf16(scales):
        assert piece.shard.scales is not None
        raise Malformed(
            f"{piece.path}: a scale is infinite or not a number",
            rule="grok/scales",
            offset=piece.shard.scales.offset,
        )


def grok_job(checkpoint: Checkpoint, sources: Sequence[Source], *, mode: str, shard_bytes: int) -> Job:
    """The conversion of a checkpoint, planned. sources: one for each of its shards, in order."""
    config = checkpoint.config.to_json()
    if mode == "exact":
        config["quantization_config"] = {"quant_method": "grok-1-int8", "bits": 8, "scale_dtype": "bfloat16"}
    config["dtype"] = "bfloat16"

    def record(digests: Mapping[str, str]) -> dict[str, JSON]:
        rows: list[JSON] = [{**piece.to_json(), "sha256": digests[piece.path]} for piece in checkpoint.pieces]
        return {"conversion": MODEL_TYPE, "mode": mode, "files": rows}

    return Job(
        root=checkpoint.root,
        kind=MODEL_TYPE,
        plan=plan_of(sources, mode=mode, shard_bytes=shard_bytes, metadata={"format": "pt"}),
        files=tuple(piece.path for piece in checkpoint.pieces),
        record=record,
        config=config,
    )


def exact_sources(checkpoint: Checkpoint) -> list[Source]:
    """One source a shard, byte for byte."""
    return [Exact(piece) for piece in checkpoint.pieces]
