"""Hostile GGUF files: each is a few hundred bytes, made here, and refused by the rule it breaks."""

from struct import pack

import pytest

from steelyard.errors import Malformed
from steelyard.formats.base import BytesSource
from steelyard.formats.gguf import FORMAT

U8, U16, U32, I32, F32, BOOL, STRING, ARRAY, U64 = 0, 2, 4, 5, 6, 7, 8, 9, 10


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return pack("<Q", len(data)) + data


def key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return text(name) + pack("<I", kind) + value


def array(kind: int, items: list[bytes], count: int | None = None) -> bytes:
    return pack("<IQ", kind, len(items) if count is None else count) + b"".join(items)


def tensor(name: str | bytes = "t", shape: tuple[int, ...] = (8,), kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + pack("<I", len(shape)) + pack(f"<{len(shape)}Q", *shape) + pack("<IQ", kind, offset)


ARCHITECTURE = key("general.architecture", STRING, text("llama"))
TENSOR = tensor()


def gguf(
    keys: list[bytes] = (ARCHITECTURE,),
    tensors: list[bytes] = (TENSOR,),
    data: bytes = bytes(32),
    *,
    version: bytes = pack("<I", 3),
    key_count: int | None = None,
    tensor_count: int | None = None,
    padding: bytes = b"\0",
) -> bytes:
    counts = (
        len(tensors) if tensor_count is None else tensor_count,
        len(keys) if key_count is None else key_count,
    )
    head = b"GGUF" + version + pack("<QQ", *counts) + b"".join(keys) + b"".join(tensors)
    return head + padding * (-len(head) % 32) + data


def with_key(name: str | bytes, kind: int, value: bytes) -> bytes:
    return gguf([ARCHITECTURE, key(name, kind, value)])


def with_tensors(*tensors: bytes, data: bytes = bytes(32)) -> bytes:
    return gguf(tensors=list(tensors), data=data)


TOKENS = key("tokenizer.ggml.tokens", ARRAY, array(STRING, [text("a"), text("b")]))

ATTACKS = {
    "head_cut_short": ("gguf/truncated", b"GGUF\x03\0\0\0"),
    "version_0": ("gguf/version", gguf(version=pack("<I", 0))),
    "version_1_with_32_bit_lengths": ("gguf/version", gguf(version=pack("<I", 1))),
    "version_from_the_future": ("gguf/version", gguf(version=pack("<I", 4))),
    "version_dead_beef": ("gguf/version", gguf(version=pack("<I", 0xDEADBEEF))),
    "big_endian": ("gguf/big-endian", gguf(version=pack(">I", 3))),
    "key_count_overflows_an_allocation": ("gguf/key-count", gguf(key_count=2**62)),
    "key_count_beyond_the_file": ("gguf/key-count", gguf(key_count=60)),
    "one_key_more_than_there_is": ("gguf/key-name", gguf(tensors=[], data=b"\xff" * 64, key_count=2)),
    "tensor_count_overflows_an_allocation": ("gguf/tensor-count", gguf(tensor_count=2**60)),
    "tensor_count_wraps_times_overhead_cve_2026_27940": (
        "gguf/tensor-count",
        gguf(tensor_count=2**64 // 368 + 1),
    ),
    "key_length_overflow": ("gguf/string-length", gguf([pack("<Q", 2**63) + b"general.architecture"])),
    "key_length_of_all_ones": ("gguf/string-length", gguf([pack("<Q", 2**64 - 1) + b"x" * 32])),
    "key_one_past_the_limit": ("gguf/string-length", with_key("k" * 65_536, U8, b"\1")),
    "string_length_of_all_ones": ("gguf/string-length", with_key("a", STRING, pack("<Q", 2**64 - 1) + b"x")),
    "string_past_the_end": ("gguf/string-length", with_key("a", STRING, pack("<Q", 4096) + b"x")),
    "element_past_the_end": (
        "gguf/string-length",
        with_key("a", ARRAY, array(STRING, [text("a"), pack("<Q", 2**40)])),
    ),
    "scalar_past_the_end": ("gguf/truncated", gguf([ARCHITECTURE, key("a", U64, b"")], [], b"", padding=b"")),
    "key_not_utf8": ("gguf/encoding", with_key(b"a\xff", U8, b"\1")),
    "string_not_utf8": ("gguf/encoding", with_key("a", STRING, text(b"\xc0\xaf"))),
    "token_not_utf8": ("gguf/encoding", with_key("a", ARRAY, array(STRING, [text(b"\xed\xa0\x80")]))),
    "key_with_a_line_break": ("gguf/key-name", with_key("a\nlog: admitted", U8, b"\1")),
    "empty_key": ("gguf/key-name", with_key("", U8, b"\1")),
    "key_twice": ("gguf/duplicate-key", gguf([ARCHITECTURE, key("a", U8, b"\1"), key("a", U8, b"\2")])),
    "architecture_twice": ("gguf/duplicate-key", gguf([ARCHITECTURE, ARCHITECTURE])),
    "scalar_and_array_of_one_name": (
        "gguf/duplicate-key",
        gguf([ARCHITECTURE, TOKENS, key("tokenizer.ggml.tokens", U8, b"\1")]),
    ),
    "unknown_value_type": ("gguf/value-type", with_key("a", 13, bytes(8))),
    "value_type_of_all_ones": ("gguf/value-type", with_key("a", 2**32 - 1, bytes(8))),
    "unknown_element_type": ("gguf/value-type", with_key("a", ARRAY, array(99, [], 1))),
    "boolean_of_two": ("gguf/bool", with_key("a", BOOL, b"\2")),
    "boolean_of_two_in_an_array": ("gguf/bool", with_key("a", ARRAY, array(BOOL, [b"\0", b"\2", b"\1"]))),
    "array_in_an_array": ("gguf/nested-array", with_key("a", ARRAY, array(ARRAY, [array(U8, [b"\1"])]))),
    "arrays_nested_10000_deep": ("gguf/nested-array", with_key("a", ARRAY, array(ARRAY, [], 1) * 10_000)),
    "array_count_wraps_times_size": ("gguf/array-length", with_key("a", ARRAY, array(U64, [], 2**61 + 1))),
    "array_count_beyond_the_file": ("gguf/array-length", with_key("a", ARRAY, array(U8, [], 4096))),
    "string_array_count_beyond_the_file": (
        "gguf/array-length",
        with_key("a", ARRAY, array(STRING, [text("")], 1000)),
    ),
    "alignment_zero": ("gguf/alignment", with_key("general.alignment", U32, pack("<I", 0))),
    "alignment_no_power_of_two": ("gguf/alignment", with_key("general.alignment", U32, pack("<I", 33))),
    "alignment_of_four": ("gguf/alignment", with_key("general.alignment", U32, pack("<I", 4))),
    "alignment_of_two_gibibytes": ("gguf/alignment", with_key("general.alignment", U32, pack("<I", 2**31))),
    "alignment_of_another_type": ("gguf/alignment", with_key("general.alignment", STRING, text("32"))),
    "no_architecture": ("gguf/architecture", gguf([key("general.name", STRING, text("x"))])),
    "architecture_is_a_number": (
        "gguf/architecture",
        gguf([key("general.architecture", U32, pack("<I", 1))]),
    ),
    "tensor_name_over_its_buffer": ("gguf/tensor-name", with_tensors(tensor("t" * 64))),
    "tensor_name_of_4096": ("gguf/tensor-name", with_tensors(tensor("t" * 4096))),
    "tensor_name_with_a_zero_byte": ("gguf/tensor-name", with_tensors(tensor("t\0hidden"))),
    "tensor_name_empty": ("gguf/tensor-name", with_tensors(tensor(""))),
    "tensor_twice": (
        "gguf/duplicate-tensor",
        with_tensors(tensor("t"), tensor("t", offset=32), data=bytes(64)),
    ),
    "five_dimensions_cve_2024_21802": ("gguf/dimensions", with_tensors(tensor(shape=(1, 1, 1, 1, 8)))),
    "a_million_dimensions": ("gguf/dimensions", with_tensors(text("t") + pack("<I", 10**6))),
    "no_dimension": ("gguf/dimensions", with_tensors(tensor(shape=()))),
    "empty_dimension": ("gguf/dimensions", with_tensors(tensor(shape=(0,)))),
    "dimensions_wrap_cve_2026_33298": ("gguf/shape-overflow", with_tensors(tensor(shape=(2**32, 2**32)))),
    "dimensions_wrap_to_eight": ("gguf/shape-overflow", with_tensors(tensor(shape=(2**32 + 8, 2**32)))),
    "dimension_is_negative_as_signed": ("gguf/shape-overflow", with_tensors(tensor(shape=(2**63,)))),
    "elements_wrap_though_the_packed_size_does_not": (
        "gguf/shape-overflow",
        with_tensors(tensor(shape=(2**32, 2**32), kind=34)),
    ),
    "sum_of_sizes_wraps_cve_2025_53630": (
        "gguf/shape-overflow",
        with_tensors(tensor(shape=(2**60,), offset=2**63 - 32)),
    ),
    "tensor_type_unknown": ("gguf/tensor-type", with_tensors(tensor(kind=999))),
    "tensor_type_removed": ("gguf/tensor-type", with_tensors(tensor(kind=4))),
    "row_not_whole_blocks": ("gguf/block-size", with_tensors(tensor(shape=(33,), kind=8))),
    "offset_unaligned": ("gguf/offset-alignment", with_tensors(tensor(offset=1))),
    "tensors_over_the_same_bytes": ("gguf/overlap", with_tensors(tensor("a"), tensor("b"))),
    "tensors_overlap": (
        "gguf/overlap",
        with_tensors(tensor("a", (16,)), tensor("b", offset=32), data=bytes(64)),
    ),
    "hole_between_tensors": ("gguf/gap", with_tensors(tensor("a"), tensor("b", offset=96), data=bytes(128))),
    "hole_before_the_first_tensor": ("gguf/gap", with_tensors(tensor(offset=64), data=bytes(96))),
    "offset_far_outside": ("gguf/gap", with_tensors(tensor(offset=2**40))),
    "over_read_cve_2026_7482": ("gguf/out-of-file", with_tensors(tensor(shape=(2**20,)))),
    "ends_one_byte_short": ("gguf/out-of-file", with_tensors(TENSOR, data=bytes(31))),
    "payload_in_the_padding_of_the_head": ("gguf/padding", gguf(padding=b"\x90")),
    "payload_in_the_padding_of_a_tensor": (
        "gguf/padding",
        with_tensors(tensor("a", (1,)), tensor("b", offset=32), data=b"\1" * 64),
    ),
    "payload_in_the_last_padding": (
        "gguf/padding",
        with_tensors(tensor(shape=(1,)), data=bytes(4) + b"evil" * 7),
    ),
    "elf_after_the_last_tensor": ("gguf/trailing", with_tensors(TENSOR, data=bytes(32) + b"\x7fELF")),
    "zip_after_metadata_without_tensors": ("gguf/trailing", gguf(tensors=[], data=b"PK\x05\x06" + bytes(18))),
}

FINDINGS = {
    "fewer_scores_than_tokens": (
        "gguf/vocabulary",
        gguf([ARCHITECTURE, TOKENS, key("tokenizer.ggml.scores", ARRAY, array(F32, [bytes(4)]))]),
    ),
    "fewer_types_than_tokens": (
        "gguf/vocabulary",
        gguf([ARCHITECTURE, TOKENS, key("tokenizer.ggml.token_type", ARRAY, array(I32, []))]),
    ),
    "scores_as_bytes": (
        "gguf/vocabulary",
        gguf([ARCHITECTURE, TOKENS, key("tokenizer.ggml.scores", ARRAY, array(U8, [b"\0", b"\0"]))]),
    ),
    "scores_are_one_number": (
        "gguf/vocabulary",
        gguf([ARCHITECTURE, TOKENS, key("tokenizer.ggml.scores", F32, bytes(4))]),
    ),
    "tokens_are_numbers": (
        "gguf/vocabulary",
        gguf([ARCHITECTURE, key("tokenizer.ggml.tokens", ARRAY, array(U8, [b"\0"]))]),
    ),
    "end_token_outside_the_vocabulary": (
        "gguf/token-id",
        gguf([ARCHITECTURE, TOKENS, key("tokenizer.ggml.eos_token_id", U32, pack("<I", 2))]),
    ),
    "chat_template_is_an_array": (
        "gguf/template-type",
        with_key("tokenizer.chat_template", ARRAY, array(STRING, [text("{{ x }}")])),
    ),
    "link_to_a_local_file": ("gguf/link", with_key("general.source.url", STRING, text("file:///etc/passwd"))),
    "link_that_runs": ("gguf/link", with_key("general.license.link", STRING, text("JavaScript:alert(1)"))),
    "sixty_thousand_parts": ("gguf/split", with_key("split.count", U16, pack("<H", 65_535))),
    "part_outside_the_count": (
        "gguf/split",
        gguf([ARCHITECTURE, key("split.no", U16, pack("<H", 2)), key("split.count", U16, pack("<H", 2))]),
    ),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_hostile_gguf_is_refused_by_its_rule(name):
    rule, data = ATTACKS[name]
    assert FORMAT.sniff(data[:64], "model.gguf")
    with pytest.raises(Malformed) as caught:
        FORMAT.read(BytesSource(data), "model.gguf")
    assert caught.value.rule == rule
    assert rule in FORMAT.rules


@pytest.mark.parametrize("name", FINDINGS)
def test_hostile_gguf_metadata_is_a_finding_of_its_rule(name):
    rule, data = FINDINGS[name]
    assert [finding.rule for finding in FORMAT.read(BytesSource(data), "model.gguf").findings] == [rule]


def test_the_file_the_attacks_start_from_is_clean():
    assert FORMAT.read(BytesSource(gguf([ARCHITECTURE, TOKENS])), "model.gguf").findings == ()


@pytest.mark.parametrize("size", [63, 65_535])
def test_names_and_keys_at_their_limits_are_read(size):
    data = with_tensors(tensor("t" * size)) if size == 63 else with_key("k" * size, U8, b"\1")
    assert FORMAT.read(BytesSource(data), "model.gguf").findings == ()
