"""A float GGUF -> a quantised one, with llama.cpp's own row quantiser, in a process of its own.

xllamacpp's library carries `ggml_quantize_chunk` but not llama.cpp's whole-file quantiser, so which tensor gets
which type is decided here, after llama-quantize's rules for Q8_0 and Q4_K_M (dense models; the extra rule it has
for 80-layer models is left out). Run: python -m steelyard.admit.to_gguf_quantise SOURCE TARGET KIND; the last
line of standard output is one JSON object.

Source: ggml-org/llama.cpp src/llama-quant.cpp (type choice), ggml/include/ggml.h (ggml_quantize_chunk).
"""

import ctypes
import json
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from gguf import (
    GGML_QUANT_SIZES,
    GGMLQuantizationType,
    GGUFReader,
    GGUFValueType,
    GGUFWriter,
    Keys,
    LlamaFileType,
    ReaderTensor,
)

from steelyard.admit.to_gguf_tensors import BLOCK_BYTES, WIDTHS, FdSource, as_float32
from steelyard.errors import Refused, SteelyardError, Unavailable

FILE_TYPES = {"q8_0": LlamaFileType.MOSTLY_Q8_0, "q4_k_m": LlamaFileType.MOSTLY_Q4_K_M}
QUANTISATION_VERSION = 2
_BLOCK_NUMBER = re.compile(r"blk\.(\d+)\.")
_NARROWER = {"Q4_K": "Q5_0", "Q6_K": "Q8_0"}  # for rows that are no multiple of 256


@dataclass(frozen=True, slots=True)
class _Target:
    """One tensor of the result: `shape` is row-major, `kind` a GGML type name, `offset` its place in the source."""

    name: str
    shape: tuple[int, ...]
    source_kind: str
    kind: str
    offset: int
    size: int


def quantise_file(source: Path, target: Path, kind: str) -> dict[str, int]:
    """Write `target`; the result counts tensors by type. Raises Refused when `source` is quantised already."""
    reader = GGUFReader(source)
    tensors = _targets(reader, kind)
    architecture = str(reader.fields[Keys.General.ARCHITECTURE].contents())
    writer = GGUFWriter(target, architecture)
    replaced = {Keys.General.ARCHITECTURE, Keys.General.FILE_TYPE, Keys.General.QUANTIZATION_VERSION}
    for name, field in reader.fields.items():
        if name not in replaced and not name.startswith("GGUF."):
            sub_type = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=sub_type)
    writer.add_file_type(FILE_TYPES[kind])
    writer.add_quantization_version(QUANTISATION_VERSION)
    for tensor in tensors:
        raw = GGMLQuantizationType[tensor.kind]
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.size, raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    assert writer.fout is not None
    file = writer.fout[0]
    writer.write_padding(file, file.tell())
    library = _library()
    with source.open("rb") as opened:
        for tensor in tensors:
            for block in _blocks(tensor, FdSource(opened.fileno()), library):
                file.write(block)
            writer.write_padding(file, tensor.size)
    writer.close()
    kinds = [tensor.kind for tensor in tensors]
    return {name: kinds.count(name) for name in sorted(set(kinds))}


def _targets(reader: GGUFReader, kind: str) -> tuple[_Target, ...]:
    names = [tensor.name for tensor in reader.tensors]
    layers = 1 + max((int(match[1]) for name in names if (match := _BLOCK_NUMBER.match(name))), default=0)
    tied = "output.weight" not in names
    return tuple(_target(tensor, kind, layers, tied=tied) for tensor in reader.tensors)


def _target(tensor: ReaderTensor, kind: str, layers: int, *, tied: bool) -> _Target:
    source_kind = tensor.tensor_type.name
    if source_kind not in WIDTHS:
        raise Refused(f"{tensor.name} is {source_kind}: quantise from f32, f16 or bf16")
    shape = tuple(int(size) for size in reversed(tensor.shape))
    chosen = source_kind
    if len(shape) == 2 and tensor.name.endswith(".weight"):
        chosen = "Q8_0" if kind == "q8_0" else _mixed(tensor.name, layers, tied=tied)
        if shape[1] % GGML_QUANT_SIZES[GGMLQuantizationType[chosen]][0]:
            chosen = _NARROWER.get(chosen, chosen)
        if shape[1] % GGML_QUANT_SIZES[GGMLQuantizationType[chosen]][0]:
            chosen = source_kind
    per_block, width = GGML_QUANT_SIZES[GGMLQuantizationType[chosen]]
    size = int(np.prod(shape, dtype=np.int64)) // per_block * width
    return _Target(tensor.name, shape, source_kind, chosen, int(tensor.data_offset), size)


def _mixed(name: str, layers: int, *, tied: bool) -> str:
    """Q4_K_M: six bits for the output and for half of attn_v and ffn_down, four for the rest."""
    if name == "output.weight" or (tied and name == "token_embd.weight"):
        return "Q6_K"
    match = _BLOCK_NUMBER.match(name)
    if match and name.endswith(("attn_v.weight", "ffn_down.weight")):
        i, eighth = int(match[1]), layers // 8
        if i < eighth or i >= 7 * layers // 8 or (i - eighth) % 3 == 2:
            return "Q6_K"
    return "Q4_K"


def _blocks(tensor: _Target, source: FdSource, library: ctypes.CDLL) -> Iterator[bytes]:
    columns = tensor.shape[-1]
    rows = int(np.prod(tensor.shape[:-1], dtype=np.int64))
    per_block, width = GGML_QUANT_SIZES[GGMLQuantizationType[tensor.kind]]
    step = max(1, BLOCK_BYTES // (columns * 4))
    for start in range(0, rows, step):
        count = min(step, rows - start)
        row_bytes = columns * WIDTHS[tensor.source_kind]
        data = source.read(tensor.offset + start * row_bytes, count * row_bytes)
        if tensor.kind == tensor.source_kind:
            yield data
            continue
        floats = np.ascontiguousarray(as_float32(data, tensor.source_kind))
        out = ctypes.create_string_buffer(count * columns // per_block * width)
        written = library.ggml_quantize_chunk(
            int(GGMLQuantizationType[tensor.kind]),
            floats.ctypes.data_as(ctypes.POINTER(ctypes.c_float)),
            out,
            0,
            count,
            columns,
            None,
        )
        if written != len(out):
            raise Unavailable(f"llama.cpp quantised {written} bytes of {tensor.name}, expected {len(out)}")
        yield out.raw


def _library() -> ctypes.CDLL:
    spec = find_spec("xllamacpp")
    places = list(spec.submodule_search_locations or ()) if spec else []
    paths = [path for place in places for path in sorted(Path(place).glob("xllamacpp*.so"))]
    if not paths:
        raise Unavailable("xllamacpp is not installed: pip install 'steelyard[cpu]'")
    library = ctypes.CDLL(os.fspath(paths[0]))
    chunk = library.ggml_quantize_chunk
    floats = ctypes.POINTER(ctypes.c_float)
    chunk.argtypes = [ctypes.c_int, floats, ctypes.c_void_p, *[ctypes.c_int64] * 3, floats]
    chunk.restype = ctypes.c_size_t
    return library


def main() -> int:
    """The child's entry: answers with {"types": ...} or {"error", "refused"}."""
    source, target, kind = sys.argv[1:]
    answer: dict[str, object]
    try:
        answer = {"types": quantise_file(Path(source), Path(target), kind)}
    except OSError as error:
        answer = {"error": f"{error.filename or target}: {error.strerror}", "refused": False}
    except SteelyardError as error:
        answer = {"error": error.message, "refused": isinstance(error, Refused)}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
