import tempfile
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.errors import Malformed
from steelyard.formats.base import BytesSource
from steelyard.formats.gguf import FORMAT, RULES, header_of, metadata_of
from steelyard.formats.gguf_header import MAX_ALIGNMENT, MAX_ARRAY_ELEMENTS, TENSOR_TYPES, GgufHeader

RNG = np.random.default_rng(7)


def written(fill, architecture: str = "llama") -> bytes:
    """The bytes GGUFWriter writes after `fill(writer)`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        fill(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path.read_bytes()


def small(writer: gguf.GGUFWriter) -> None:
    writer.add_name("Small")
    writer.add_license("apache-2.0")
    writer.add_context_length(128)
    writer.add_block_count(1)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b", "ab", "<é>"])
    writer.add_token_scores([0.0, -1.0, -2.0, -3.0])
    writer.add_token_types([1, 1, 1, 3])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(3)
    writer.add_bool("llama.flag", True)
    writer.add_float64("llama.ratio", 0.5)
    writer.add_uint64("llama.large", 2**63)
    writer.add_tensor("token_embd.weight", RNG.standard_normal((4, 64)).astype(np.float32))
    quantised = gguf.quants.quantize(
        RNG.standard_normal((3, 64)).astype(np.float32), GGMLQuantizationType.Q8_0
    )
    writer.add_tensor("blk.0.attn_q.weight", quantised, raw_dtype=GGMLQuantizationType.Q8_0)
    writer.add_tensor("output_norm.weight", np.ones(5, dtype=np.float16))


SMALL = written(small)


def rules_broken_by(data: bytes) -> set[str]:
    try:
        return {finding.rule for finding in FORMAT.read(BytesSource(data), "x.gguf").findings}
    except Malformed as error:
        return {error.rule}


def library_reads(data: bytes) -> list[tuple[str, str, tuple[int, ...], int, int]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        path.write_bytes(data)
        return [
            (
                each.name,
                each.tensor_type.name,
                tuple(map(int, each.shape)),
                int(each.data_offset),
                int(each.n_bytes),
            )
            for each in gguf.GGUFReader(path).tensors
        ]


def we_read(header: GgufHeader) -> list[tuple[str, str, tuple[int, ...], int, int]]:
    return [
        (each.name, each.type.name, each.shape, header.data_start + each.offset, each.size)
        for each in header.tensors
    ]


def test_tensor_types_are_those_of_the_gguf_package():
    assert {code: (kind.name, kind.block, kind.size) for code, kind in TENSOR_TYPES.items()} == {
        int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()
    }


def test_file_of_the_gguf_writer_reads_as_its_reader_reads_it():
    assert we_read(header_of(BytesSource(SMALL))) == library_reads(SMALL)


def test_facts_say_what_the_file_is():
    report = FORMAT.read(BytesSource(SMALL), "model.gguf")
    assert report.findings == ()
    assert report.facts == {
        "version": 3,
        "architecture": "llama",
        "tensors": 3,
        "parameters": 4 * 64 + 3 * 64 + 5,
        "types": {"F16": 1, "F32": 1, "Q8_0": 1},
        "keys": 14,
        "alignment": 32,
        "context_length": 128,
        "block_count": 1,
        "tokenizer": "gpt2",
        "name": "Small",
        "licence": "apache-2.0",
        "vocabulary": 4,
    }


def test_metadata_holds_scalars_and_strings_and_no_arrays():
    metadata = metadata_of(BytesSource(SMALL))
    assert metadata["general.license"] == "apache-2.0"
    assert metadata["llama.flag"] is True
    assert metadata["llama.ratio"] == 0.5
    assert metadata["llama.large"] == 2**63
    assert "tokenizer.ggml.tokens" not in metadata
    assert header_of(BytesSource(SMALL)).arrays["tokenizer.ggml.tokens"] == ("string", 4)


SCALARS = {
    "add_uint8": st.integers(0, 255),
    "add_int8": st.integers(-128, 127),
    "add_uint16": st.integers(0, 2**16 - 1),
    "add_int16": st.integers(-(2**15), 2**15 - 1),
    "add_uint32": st.integers(0, 2**32 - 1),
    "add_int32": st.integers(-(2**31), 2**31 - 1),
    "add_uint64": st.integers(0, 2**64 - 1),
    "add_int64": st.integers(-(2**63), 2**63 - 1),
    "add_float32": st.floats(width=32, allow_nan=False, allow_infinity=False),
    "add_float64": st.floats(allow_nan=False, allow_infinity=False),
    "add_bool": st.booleans(),
    "add_string": st.text(st.characters(codec="utf-8"), min_size=1, max_size=40),
}
ENTRIES = st.sampled_from(sorted(SCALARS)).flatmap(lambda kind: st.tuples(st.just(kind), SCALARS[kind]))
ARRAYS = st.one_of(
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=8),
    st.lists(st.text(st.characters(codec="utf-8"), max_size=9), min_size=1, max_size=8),
    st.lists(st.booleans(), min_size=1, max_size=8),
)
TENSORS = st.lists(
    st.tuples(
        st.sampled_from([np.float32, np.float16, np.int8, np.int32, np.float64]),
        st.lists(st.integers(1, 5), min_size=1, max_size=4),
    ),
    max_size=5,
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(ENTRIES, max_size=6), st.lists(ARRAYS, max_size=3), TENSORS, st.sampled_from([None, 8, 64, 4096])
)
def test_any_written_file_is_clean_and_reads_as_written(entries, arrays, tensors, alignment):
    def fill(writer: gguf.GGUFWriter) -> None:
        if alignment is not None:
            writer.add_custom_alignment(alignment)
        for number, (kind, value) in enumerate(entries):
            getattr(writer, kind)(f"scalar.{number}", value)
        for number, array in enumerate(arrays):
            writer.add_array(f"array.{number}", array)
        for number, (dtype, shape) in enumerate(tensors):
            writer.add_tensor(f"tensor.{number}", np.ones(shape, dtype=dtype))

    data = written(fill)
    header = header_of(BytesSource(data))
    assert [header.metadata[f"scalar.{number}"] for number in range(len(entries))] == [
        value for _, value in entries
    ]
    assert [header.arrays[f"array.{number}"].length for number in range(len(arrays))] == [
        len(each) for each in arrays
    ]
    assert we_read(header) == library_reads(data)
    assert FORMAT.read(BytesSource(data), "x.gguf").findings == ()


def test_truncation_at_any_byte_of_the_data_refuses():
    padded = len(SMALL) - 22  # the last tensor is five halves, padded to 32 bytes
    for size in range(padded):
        with pytest.raises(Malformed):
            header_of(BytesSource(SMALL[:size]))
    assert header_of(BytesSource(SMALL[:padded])).tensors == header_of(BytesSource(SMALL)).tensors


@settings(deadline=None)
@given(st.integers(0, len(SMALL) - 1), st.integers(0, 255))
def test_a_changed_byte_is_refused_or_read_and_never_crashes(at, value):
    data = SMALL[:at] + bytes([value]) + SMALL[at + 1 :]
    assert rules_broken_by(data) <= set(RULES)


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_after_the_magic_never_crash(data):
    with pytest.raises(Malformed) as caught:
        FORMAT.read(BytesSource(b"GGUF\x03\0\0\0" + data), "x.gguf")
    assert caught.value.rule in RULES


@pytest.mark.parametrize("alignment", [8, MAX_ALIGNMENT])
def test_alignments_at_the_limits_are_read(alignment):
    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_custom_alignment(alignment)
        writer.add_tensor("a", np.ones(3, dtype=np.float32))
        writer.add_tensor("b", np.ones(3, dtype=np.float32))

    assert header_of(BytesSource(written(fill))).alignment == alignment


def test_array_one_past_the_limit_refuses_by_its_count_alone():
    data = written(lambda writer: writer.add_array("big", [True]))
    at = data.index(b"big") + 3 + 4 + 4
    for count, rule in ((MAX_ARRAY_ELEMENTS + 1, "gguf/array-length"), (2**64 - 1, "gguf/array-length")):
        changed = data[:at] + count.to_bytes(8, "little") + data[at + 8 :]
        with pytest.raises(Malformed) as caught:
            header_of(BytesSource(changed + bytes(MAX_ARRAY_ELEMENTS + 64)))
        assert caught.value.rule == rule


def test_vocabulary_larger_than_one_chunk_is_read_across_its_edges():
    tokens = [f"token-{number}-" + "é" * (number % 7) for number in range(60_000)]
    data = written(lambda writer: writer.add_token_list(tokens))
    assert len(data) > 1 << 20
    assert FORMAT.read(BytesSource(data), "x").facts["vocabulary"] == len(tokens)


def test_named_chat_templates_are_examined_and_the_finding_names_the_key():
    evil = "{{ ''.__class__.__mro__ }}"
    for key in ("tokenizer.chat_template", "tokenizer.chat_template.tool_use"):
        data = written(lambda writer, key=key: writer.add_string(key, evil))
        findings = FORMAT.read(BytesSource(data), "x.gguf").findings
        assert findings
        assert {finding.member for finding in findings} == {key}


def test_plain_chat_template_is_clean():
    template = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
    data = written(lambda writer: writer.add_chat_template(template))
    assert FORMAT.read(BytesSource(data), "x.gguf").findings == ()


def test_another_magic_refuses_a_direct_reader():
    with pytest.raises(Malformed) as caught:
        header_of(BytesSource(b"GGML" + SMALL[4:]))
    assert caught.value.rule == "gguf/version"


def test_only_the_magic_is_claimed():
    assert FORMAT.sniff(SMALL[:64], "weights.bin")
    assert not FORMAT.sniff(b"PK\x03\x04", "model.gguf")
