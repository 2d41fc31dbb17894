"""Safetensors weights of a decoder -> GGUF tensors, a few rows at a time.

The plan is made before a byte is written: every tensor of the directory is named in it, every tensor it names is
there with the shape config.json implies, and every dtype is float. Memory holds one block of rows, never a tensor.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from steelyard.admit.to_gguf_config import Shape
from steelyard.errors import Malformed, Refused, Unavailable, WrongUsage
from steelyard.formats.safetensors import TensorInfo, header_of

BLOCK_BYTES = 32 << 20
MAX_INDEX_BYTES = 64 << 20
OUT_TYPES = ("auto", "f32", "f16", "bf16")
WIDTHS = {"F32": 4, "F16": 2, "BF16": 2}
LARGEST = {"F32": 3.4028235e38, "F16": 65504.0, "BF16": 3.3895314e38}

_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.safetensors")
_RECOMPUTED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Planned:
    """One tensor of the GGUF. `shape` is row-major; `turned` > 0 moves the rows of each head of that many rows.

    `transposed`: stored with its last two axes the other way round.
    """

    name: str
    source: str
    shape: tuple[int, ...]
    dtype: str
    turned: int = 0
    constant: tuple[float, ...] = ()
    transposed: bool = False

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * WIDTHS[self.dtype]


@dataclass(frozen=True, slots=True)
class FdSource:
    """A ByteSource over an open file."""

    fd: int

    @property
    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def read(self, offset: int, size: int) -> bytes:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ValueError(f"read of {size} bytes at {offset} is outside {self.size} bytes")
        parts = []
        while size:
            part = os.pread(self.fd, min(size, 1 << 30), offset)
            if not part:
                raise Unavailable("a weights file became shorter while it was read")
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return b"".join(parts)


@dataclass(frozen=True, slots=True)
class Stored:
    """Where one tensor lies: its shard, the byte offset of its data in it, its dtype and shape."""

    source: FdSource
    offset: int
    dtype: str
    shape: tuple[int, ...]


class Weights:
    """The safetensors files of a directory, opened once. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self._files = ExitStack()
        self.tensors: dict[str, Stored] = {}
        try:
            for name, expected in _shards(folder).items():
                self._open(folder / name, expected)
        except BaseException:
            self._files.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def _open(self, path: Path, expected: frozenset[str] | None) -> None:
        try:
            file = self._files.enter_context(path.open("rb"))
        except OSError as error:
            raise Unavailable(f"cannot read {path}: {error.strerror}") from error
        source = FdSource(file.fileno())
        header = header_of(source)
        names = {tensor.name for tensor in header.tensors}
        if expected is not None and names != expected:
            odd = min(names ^ expected)
            raise Refused(f"{path.name} and the index disagree about tensor {odd}")
        for tensor in header.tensors:
            if tensor.name in self.tensors:
                raise Refused(f"tensor {tensor.name} is in two shards")
            self.tensors[tensor.name] = _stored(source, header.data_start, tensor)

    def columns(self, name: str, matrix: int, start: int, count: int) -> Floats:
        """Columns [start, start + count) of one matrix of a tensor (.., K, N), as rows: float32 (count, K)."""
        stored = self.tensors[name]
        rows, columns = stored.shape[-2:]
        width = WIDTHS[stored.dtype]
        first = stored.offset + (matrix * rows * columns + start) * width
        data = b"".join(
            stored.source.read(first + row * columns * width, count * width) for row in range(rows)
        )
        return np.ascontiguousarray(as_float32(data, stored.dtype).reshape(rows, count).T)

    def rows(self, name: str, start: int, count: int) -> Floats:
        """Rows [start, start + count) of a tensor as float32 (count, columns); a vector is one row."""
        stored = self.tensors[name]
        columns = stored.shape[-1]
        width = columns * WIDTHS[stored.dtype]
        data = stored.source.read(stored.offset + start * width, count * width)
        return as_float32(data, stored.dtype).reshape(count, columns)


def _stored(source: FdSource, data_start: int, tensor: TensorInfo) -> Stored:
    return Stored(source, data_start + tensor.begin, tensor.dtype, tuple(tensor.shape))


def _shards(folder: Path) -> Mapping[str, frozenset[str] | None]:
    """File name -> tensor names it must hold (absent for a single file)."""
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if single.exists() and index.exists():
        raise Refused("both model.safetensors and an index are present: it is unclear which is the model")
    if single.exists():
        return {single.name: None}
    if not index.exists():
        raise WrongUsage(f"{folder} has neither model.safetensors nor model.safetensors.index.json")
    body = load_json(index, MAX_INDEX_BYTES)
    weight_map = body.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise Malformed("the index has no weight_map", rule="safetensors/index")
    shards: dict[str, set[str]] = {}
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not _SHARD_NAME.fullmatch(shard):
            raise Malformed(f"the index names a shard {shard!r}", rule="safetensors/index")
        shards.setdefault(shard, set()).add(tensor)
    return {name: frozenset(shards[name]) for name in sorted(shards)}


def load_json(path: Path, limit: int) -> dict[str, Any]:
    """The JSON object in a file of at most `limit` bytes."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        raise Unavailable(f"cannot read {path}: {error.strerror}") from error
    if len(data) > limit:
        raise Malformed(f"{path.name} is larger than {limit} bytes", rule="json/size")
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"{path.name} is not JSON: {error}", rule="json/syntax") from error
    if not isinstance(body, dict):
        raise Malformed(f"{path.name} is not a JSON object", rule="json/syntax")
    return body


def plan(shape: Shape, weights: Weights, outtype: str) -> tuple[Planned, ...]:
    """Every tensor of the GGUF in file order. Raises Refused on a missing, unexpected or misshapen tensor."""
    wanted = tuple(_wanted(shape))
    names = {entry.source for entry in wanted if not entry.constant}
    missing = sorted(names - weights.tensors.keys())
    if missing:
        raise Refused(f"{len(missing)} tensors are missing, the first is {missing[0]}")
    left = sorted(
        name
        for name in weights.tensors.keys() - names
        if not _RECOMPUTED.fullmatch(name) and not _is_tied_copy(name, shape)
    )
    if left:
        raise Refused(f"{len(left)} tensors are unexpected for this architecture, the first is {left[0]}")
    if shape.tied and "lm_head.weight" in weights.tensors:
        _require_equal(weights, "lm_head.weight", "model.embed_tokens.weight")
    return tuple(typed(entry, weights, outtype) for entry in wanted)


def _is_tied_copy(name: str, shape: Shape) -> bool:
    return shape.tied and name == "lm_head.weight"


def typed(entry: Planned, weights: Weights, outtype: str) -> Planned:
    """`entry` with the type it is written in. Raises Refused when what is stored has another shape or no floats."""
    if entry.constant:
        return entry
    stored = weights.tensors[entry.source]
    *batch, rows, columns = (1, *entry.shape)
    implied = tuple((*batch, columns, rows)[1:]) if entry.transposed else entry.shape
    if stored.shape != implied:
        raise Refused(f"{entry.source} has shape {stored.shape}, config.json implies {implied}")
    if stored.dtype not in WIDTHS:
        raise Refused(f"{entry.source} has dtype {stored.dtype}, expected F32, F16 or BF16")
    dtype = stored.dtype if outtype == "auto" else outtype.upper()
    dtype = "F32" if len(entry.shape) == 1 else dtype
    return replace(entry, dtype=dtype)


def _wanted(shape: Shape) -> Iterator[Planned]:
    """The tensors config.json implies; names on the right as gguf-py's tensor_mapping writes them."""
    hidden = shape.hidden
    yield Planned("token_embd.weight", "model.embed_tokens.weight", (shape.vocabulary, hidden), "F32")
    if shape.rope.frequency_factors:
        factors = shape.rope.frequency_factors
        yield Planned("rope_freqs.weight", "", (len(factors),), "F32", constant=factors)
    for i in range(shape.layers):
        yield from _layer(shape, f"model.layers.{i}.", f"blk.{i}.")
    yield Planned("output_norm.weight", "model.norm.weight", (hidden,), "F32")
    if not shape.tied:
        yield Planned("output.weight", "lm_head.weight", (shape.vocabulary, hidden), "F32")


def _layer(shape: Shape, source: str, target: str) -> Iterator[Planned]:
    hidden, ffn, dim = shape.hidden, shape.feed_forward, shape.head_dim
    turned = dim if shape.family.rotates_pairs else 0
    queries, keys = shape.heads * dim, shape.kv_heads * dim
    matrices = [
        ("self_attn.q_proj", "attn_q", (queries, hidden), turned, shape.attention_bias),
        ("self_attn.k_proj", "attn_k", (keys, hidden), turned, shape.attention_bias),
        ("self_attn.v_proj", "attn_v", (keys, hidden), 0, shape.attention_bias),
        (
            "self_attn.o_proj",
            "attn_output",
            (hidden, queries),
            0,
            shape.attention_bias and not shape.family.qkv_bias,
        ),
        ("mlp.gate_proj", "ffn_gate", (ffn, hidden), 0, shape.mlp_bias),
        ("mlp.up_proj", "ffn_up", (ffn, hidden), 0, shape.mlp_bias),
        ("mlp.down_proj", "ffn_down", (hidden, ffn), 0, shape.mlp_bias),
    ]
    yield Planned(f"{target}attn_norm.weight", f"{source}input_layernorm.weight", (hidden,), "F32")
    yield Planned(f"{target}ffn_norm.weight", f"{source}post_attention_layernorm.weight", (hidden,), "F32")
    for name, short, size, head, has_bias in matrices:
        yield Planned(f"{target}{short}.weight", f"{source}{name}.weight", size, "F32", head)
        if has_bias:
            yield Planned(f"{target}{short}.bias", f"{source}{name}.bias", size[:1], "F32", head)
    if shape.family.qk_norm:
        for letter in "qk":
            norm = f"{source}self_attn.{letter}_norm.weight"
            yield Planned(f"{target}attn_{letter}_norm.weight", norm, (dim,), "F32")


def blocks(entry: Planned, weights: Weights, block_bytes: int = BLOCK_BYTES) -> Iterator[bytes]:
    """The tensor's bytes in file order, read about `block_bytes` of float32 at a time."""
    if entry.constant:
        yield np.asarray(entry.constant, dtype="<f4").tobytes()
        return
    if entry.transposed:
        yield from _transposed(entry, weights, block_bytes)
        return
    rows, columns = (1, entry.shape[0]) if len(entry.shape) == 1 else entry.shape
    if len(entry.shape) == 1:
        vector = weights.rows(entry.source, 0, 1)
        turned = _turn(vector.reshape(-1, 1), entry.turned) if entry.turned else vector
        yield _as_bytes(turned, entry)
        return
    step = max(1, block_bytes // (columns * 4))
    if entry.turned:
        step = max(entry.turned, step // entry.turned * entry.turned)
    for start in range(0, rows, step):
        block = weights.rows(entry.source, start, min(step, rows - start))
        yield _as_bytes(_turn(block, entry.turned) if entry.turned else block, entry)


def _transposed(entry: Planned, weights: Weights, block_bytes: int) -> Iterator[bytes]:
    """Each matrix of the tensor by blocks of stored columns."""
    *batch, rows, columns = entry.shape
    step = max(1, block_bytes // (columns * 4))
    for matrix in range(int(np.prod(batch, dtype=np.int64))):
        for start in range(0, rows, step):
            yield _as_bytes(weights.columns(entry.source, matrix, start, min(step, rows - start)), entry)


def _turn(block: Floats, head_dim: int) -> Floats:
    """Rows of each head from halves (i, i + d/2) to neighbours (2i, 2i + 1), the order llama.cpp rotates in."""
    heads = block.shape[0] // head_dim
    halves = block.reshape(heads, 2, head_dim // 2, block.shape[1])  # (heads, half, d/2, columns)
    return halves.swapaxes(1, 2).reshape(block.shape)


def as_float32(data: bytes, dtype: str) -> Floats:
    """Little-endian F32, F16 or BF16 bytes as float32, exactly."""
    if dtype == "BF16":
        return (np.frombuffer(data, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, dtype="<f4" if dtype == "F32" else "<f2").astype(np.float32)


def _as_bytes(block: Floats, entry: Planned) -> bytes:
    """Rounds to nearest, ties to even. Raises Refused on a value that is not finite or does not fit."""
    if not np.isfinite(block).all():
        raise Refused(f"{entry.source} holds a value that is not finite")
    if np.abs(block).max(initial=0.0) > LARGEST[entry.dtype]:
        raise Refused(
            f"{entry.source} holds a value above {LARGEST[entry.dtype]:g}, the largest {entry.dtype}"
        )
    if entry.dtype == "F16":
        return block.astype("<f2").tobytes()
    if entry.dtype == "BF16":
        bits = np.ascontiguousarray(block).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    return block.astype("<f4").tobytes()


def _require_equal(weights: Weights, one: str, other: str) -> None:
    a, b = weights.tensors[one], weights.tensors[other]
    if (a.shape, a.dtype) == (b.shape, b.dtype) and a.dtype in WIDTHS and len(a.shape) == 2:
        step = max(1, BLOCK_BYTES // (a.shape[1] * 4))
        for start in range(0, a.shape[0], step):
            count = min(step, a.shape[0] - start)
            if not np.array_equal(weights.rows(one, start, count), weights.rows(other, start, count)):
                break
        else:
            return
    raise Refused(f"config.json ties the embeddings, but {one} and {other} differ")
