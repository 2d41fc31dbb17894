import hashlib
import json
from dataclasses import dataclass

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load as load_numpy
from safetensors.numpy import save as save_numpy
from safetensors.torch import save as save_torch

from steelyard.errors import Malformed
from steelyard.formats.base import SNIFF_BYTES, BytesSource
from steelyard.formats.safetensors import DTYPE_BITS, FORMAT, MAX_HEADER_BYTES, RULES, header_of


def file_of(header: bytes, data: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def library_reads(data: bytes) -> list[tuple[str, str, tuple[int, ...], bytes]] | None:
    """What the safetensors library itself makes of a file, None if it refuses."""
    try:
        read = safetensors.deserialize(data)
    except safetensors.SafetensorError:
        return None
    return sorted((name, view["dtype"], tuple(view["shape"]), bytes(view["data"])) for name, view in read)


def we_read(data: bytes) -> list[tuple[str, str, tuple[int, ...], bytes]]:
    header = header_of(BytesSource(data))
    return sorted(
        (
            each.name,
            each.dtype,
            each.shape,
            data[header.data_start + each.begin : header.data_start + each.end],
        )
        for each in header.tensors
    )


def rule_broken_by(data: bytes) -> str | None:
    try:
        FORMAT.read(BytesSource(data), "x.safetensors")
    except Malformed as error:
        return error.rule
    return None


DTYPES = st.sampled_from(sorted(DTYPE_BITS))


@st.composite
def files(draw: st.DrawFn) -> bytes:
    names = draw(st.lists(st.text(st.characters(codec="utf-8"), max_size=12), unique=True, max_size=5))
    header: dict[str, object] = {}
    at = 0
    if draw(st.booleans()):
        texts = st.text(st.characters(codec="utf-8"), max_size=8)
        header["__metadata__"] = draw(st.dictionaries(texts, texts, max_size=3))
    for name in names:
        dtype = draw(DTYPES)
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        if DTYPE_BITS[dtype] < 8:
            shape = [8, *shape]
        size = int(np.prod(shape, dtype=np.int64)) * DTYPE_BITS[dtype] // 8
        if name != "__metadata__":
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
            at += size
    text = json.dumps(header, ensure_ascii=draw(st.booleans())).encode() + b" " * draw(st.integers(0, 9))
    return file_of(text, draw(st.binary(min_size=at, max_size=at)))


@settings(deadline=None)
@given(files())
def test_valid_file_reads_as_the_library_reads_it(data):
    assert we_read(data) == library_reads(data)


@settings(deadline=None)
@given(files(), st.data())
def test_what_the_library_refuses_after_a_changed_byte_we_refuse(data, draw):
    at = draw.draw(st.integers(0, min(len(data), 8 + int.from_bytes(data[:8], "little")) - 1))
    changed = bytearray(data)
    changed[at] = draw.draw(st.integers(0, 255))
    if library_reads(bytes(changed)) is None:
        with pytest.raises(Malformed):
            header_of(BytesSource(bytes(changed)))


def small_file() -> bytes:
    return save_numpy(
        {"a": np.arange(10, dtype=np.float32), "b": np.zeros((2, 3), dtype=np.int8)}, {"format": "np"}
    )


def test_every_single_byte_change_the_library_refuses_we_refuse_and_else_agree():
    data = small_file()
    for at in range(8 + int.from_bytes(data[:8], "little")):
        for value in b'\x00 -019aAb"\\,:.[]{}e\x7f\xff':
            changed = data[:at] + bytes([value]) + data[at + 1 :]
            if rule_broken_by(changed) is None:
                assert we_read(changed) == library_reads(changed)


def test_truncation_at_any_byte_refuses():
    data = small_file()
    for size in range(len(data)):
        with pytest.raises(Malformed):
            header_of(BytesSource(data[:size]))


@settings(deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_random_bytes_are_refused_or_read_and_never_crash(data, framed):
    assert rule_broken_by(file_of(data) if framed else data) in {None, *RULES}


def test_every_dtype_torch_can_save_is_read():
    byte = torch.zeros((2, 4), dtype=torch.uint8)
    floats = (
        "float8_e4m3fn",
        "float8_e5m2",
        "float8_e4m3fnuz",
        "float8_e5m2fnuz",
        "float8_e8m0fnu",
        "float4_e2m1fn_x2",
    )
    tensors = {name: byte.clone().view(getattr(torch, name)) for name in floats}
    for name in (
        "bool",
        "bfloat16",
        "float16",
        "float32",
        "float64",
        "complex64",
        "int64",
        "uint16",
        "uint32",
        "uint64",
    ):
        tensors[name] = torch.zeros((2, 3), dtype=getattr(torch, name))
    data = save_torch(tensors)
    assert we_read(data) == library_reads(data)
    assert FORMAT.read(BytesSource(data), "x").facts["dtypes"]["F4"] == 1


@pytest.mark.parametrize("dtype", sorted(DTYPE_BITS))
def test_size_table_agrees_with_the_library(dtype):
    size = DTYPE_BITS[dtype]
    header = json.dumps({"a": {"dtype": dtype, "shape": [8], "data_offsets": [0, size]}}).encode()
    assert library_reads(file_of(header, bytes(size))) == we_read(file_of(header, bytes(size)))


def test_facts_name_tensors_parameters_dtypes_and_metadata():
    facts = dict(FORMAT.read(BytesSource(small_file()), "model.safetensors").facts)
    names = sorted(load_numpy(small_file()))
    listed = "".join(f"{name}\n" for name in names).encode()
    assert facts.pop("tensor_names_sha256") == hashlib.sha256(listed).hexdigest()
    assert facts == {
        "tensors": 2,
        "parameters": 16,
        "dtypes": {"F32": 1, "I8": 1},
        "metadata": {"format": "np"},
    }


def test_file_of_no_tensors_reads():
    assert FORMAT.read(BytesSource(save_numpy({})), "x").facts["tensors"] == 0


def test_real_llama_saved_by_transformers_reads(tmp_path):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    reports = [FORMAT.read(BytesSource(shard.read_bytes()), shard.name) for shard in shards]
    assert all(report.findings == () for report in reports)
    assert sum(report.facts["parameters"] for report in reports) == model.num_parameters()


@dataclass
class Claimed:
    """A file that claims a header of `length` bytes and holds none of it."""

    length: int
    size: int = 100

    def read(self, offset: int, size: int) -> bytes:
        assert (offset, size) == (0, 8), "nothing is read after a refused length"
        return self.length.to_bytes(8, "little")


@pytest.mark.parametrize(
    ("length", "rule"),
    [(MAX_HEADER_BYTES, "truncated"), (MAX_HEADER_BYTES + 1, "header-length"), (1, "header-length")],
)
def test_header_length_is_bounded_before_it_is_read(length, rule):
    with pytest.raises(Malformed) as caught:
        header_of(Claimed(length))
    assert caught.value.rule == f"safetensors/{rule}"


@pytest.mark.parametrize(
    ("head", "path", "claimed"),
    [
        (small_file(), "model.bin", True),
        (b"12345678{ text with a brace", "notes.txt", False),
        (b"\xff" * 8 + b"{}", "model.safetensors", True),
        (b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c", "model.safetensors", False),
        (b"PK\x03\x04\x14\x00\x00\x00\x08\x00" + bytes(20), "model.safetensors", False),
        (b"GGUF\x03\x00\x00\x00" + bytes(16), "model.safetensors", False),
        (b"", "model.safetensors", False),
    ],
)
def test_content_decides_the_claim(head, path, claimed):
    assert FORMAT.sniff(head[:SNIFF_BYTES], path) is claimed
