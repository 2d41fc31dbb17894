"""Hostile safetensors files: each is a few hundred bytes, made here, and refused by the rule it breaks."""

import json

import pytest

from steelyard.errors import Malformed
from steelyard.formats.base import SNIFF_BYTES, BytesSource
from steelyard.formats.safetensors import FORMAT


def entry(
    dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8), **more: object
) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def file_of(
    header: object, data: bytes = bytes(8), *, length: int | None = None, padding: bytes = b""
) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += padding
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def two(first: tuple[int, int], second: tuple[int, int], size: int) -> bytes:
    spans = {"a": first, "b": second}
    return file_of(
        {name: entry("U8", [end - begin], [begin, end]) for name, (begin, end) in spans.items()}, bytes(size)
    )


ONE = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
DEEP = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"

ATTACKS = {
    "header_length_of_all_ones": ("safetensors/header-length", file_of({}, length=2**64 - 1)),
    "header_length_wraps_when_eight_is_added": ("safetensors/header-length", file_of({}, length=2**64 - 8)),
    "header_length_one_past_the_limit": ("safetensors/header-length", file_of({}, length=100_000_001)),
    "header_length_zero": ("safetensors/header-length", file_of(b"", b"{" + bytes(8))),
    "header_ends_after_the_file": ("safetensors/truncated", file_of({"a": entry()}, b"", length=1000)),
    "pickle_where_the_header_should_be": (
        "safetensors/header-start",
        file_of(b"\x80\x04\x8c\x02os\x8c\x06system\x93."),
    ),
    "white_space_before_the_brace": ("safetensors/header-start", file_of(b" " + ONE + b"}")),
    "array_as_header": ("safetensors/header-start", file_of(b"[]")),
    "payload_after_the_json": ("safetensors/header-padding", file_of({"a": entry()}, padding=b"#!/bin/sh")),
    "newlines_as_padding": ("safetensors/header-padding", file_of({"a": entry()}, padding=b"\n\n")),
    "second_object_after_the_first": ("json/syntax", file_of(ONE + b"}{}")),
    "tensor_name_twice": ("json/duplicate-key", file_of(ONE + b"," + ONE[1:] + b"}")),
    "tensor_name_twice_by_an_escape": ("json/duplicate-key", file_of(ONE + b',"\\u0061":' + ONE[5:] + b"}")),
    "dtype_twice_in_an_entry": (
        "json/duplicate-key",
        file_of(b'{"a":{"dtype":"U8","dtype":"F32","shape":[2],"data_offsets":[0,8]}}'),
    ),
    "metadata_twice": ("json/duplicate-key", file_of(b'{"__metadata__":{},"__metadata__":{}}', b"")),
    "header_nested_100000_deep": ("json/depth", file_of(DEEP)),
    "brackets_never_closed": ("json/syntax", file_of(b'{"a":' + b"[" * 3 + b"}")),
    "header_not_utf8": ("json/encoding", file_of(b'{"\xff":1}')),
    "lone_surrogate_in_a_name": (
        "json/surrogate",
        file_of(b'{"\\ud800":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}', b""),
    ),
    "not_a_number_in_a_shape": (
        "json/number",
        file_of(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}'),
    ),
    "shape_of_a_million_digits": (
        "json/number",
        file_of(b'{"a":{"dtype":"F32","shape":[' + b"9" * 10**6 + b'],"data_offsets":[0,8]}}'),
    ),
    "metadata_holds_an_object": ("safetensors/metadata", file_of({"__metadata__": {"x": {"y": "z"}}}, b"")),
    "metadata_is_a_list": ("safetensors/metadata", file_of({"__metadata__": []}, b"")),
    "unknown_dtype": ("safetensors/dtype", file_of({"a": entry("OBJECT")})),
    "entry_with_a_further_key": ("safetensors/entry", file_of({"a": entry(__reduce__="os.system")})),
    "entry_is_a_string": ("safetensors/entry", file_of({"a": "F32"})),
    "entry_without_shape": (
        "safetensors/entry",
        file_of({"a": {"dtype": "F32", "x": 1, "data_offsets": [0, 8]}}),
    ),
    "dtype_is_a_list": ("safetensors/entry", file_of({"a": entry(["F32"])})),
    "negative_dimension": ("safetensors/entry", file_of({"a": entry(shape=[-2])})),
    "fractional_dimension": ("safetensors/entry", file_of({"a": entry(shape=[2.0])})),
    "boolean_dimension": ("safetensors/entry", file_of({"a": entry("F64", [True])})),
    "minus_zero_offset": ("safetensors/entry", file_of(ONE.replace(b"[0,", b"[-0,") + b"}")),
    "negative_offset": ("safetensors/entry", file_of({"a": entry(offsets=[-8, 0])})),
    "offsets_reversed": ("safetensors/entry", file_of({"a": entry(offsets=[8, 0])})),
    "three_offsets": ("safetensors/entry", file_of({"a": entry(offsets=[0, 4, 8])})),
    "dimensions_wrap_to_a_small_product": (
        "safetensors/shape-overflow",
        file_of({"a": entry("U8", [2**32 + 1, 2**32])}),
    ),
    "size_in_bits_wraps": ("safetensors/shape-overflow", file_of({"a": entry("F64", [2**58 + 1])})),
    "zero_hides_an_impossible_dimension": (
        "safetensors/shape-overflow",
        file_of({"a": entry(shape=[0, 2**70], offsets=[0, 0])}, b""),
    ),
    "shape_larger_than_its_span": ("safetensors/shape-size", file_of({"a": entry(shape=[1000])})),
    "shape_smaller_than_its_span": ("safetensors/shape-size", file_of({"a": entry(shape=[1])})),
    "half_a_byte": ("safetensors/shape-size", file_of({"a": entry("F4", [3], [0, 1])}, bytes(1))),
    "two_tensors_over_the_same_bytes": ("safetensors/overlap", two((0, 8), (0, 8), 8)),
    "tensors_overlap_by_one_byte": ("safetensors/overlap", two((0, 8), (7, 16), 16)),
    "hole_between_tensors": ("safetensors/gap", two((0, 8), (16, 24), 24)),
    "hole_before_the_first_tensor": ("safetensors/gap", two((8, 16), (16, 24), 24)),
    "tensor_ends_after_the_file": ("safetensors/out-of-file", two((0, 8), (8, 24), 23)),
    "zip_after_the_last_tensor": ("safetensors/trailing", two((0, 8), (8, 16), 16) + b"PK\x03\x04"),
    "bytes_after_an_empty_header": ("safetensors/trailing", file_of({}, b"\x7fELF")),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_hostile_safetensors_is_refused_by_its_rule(name):
    rule, data = ATTACKS[name]
    assert FORMAT.sniff(data[:SNIFF_BYTES], "model.safetensors"), "claimed, so that the refusal can say why"
    with pytest.raises(Malformed) as caught:
        FORMAT.read(BytesSource(data), "model.safetensors")
    assert caught.value.rule == rule
    assert rule in FORMAT.rules


@pytest.mark.parametrize("name", ["a" * 4096, "../../etc/passwd", "\u202egnp.exe", "__class__"])
def test_a_strange_tensor_name_is_quoted_and_cut_in_the_message(name):
    with pytest.raises(Malformed) as caught:
        FORMAT.read(BytesSource(file_of({name: entry("OBJECT")})), "model.safetensors")
    assert caught.value.message.isascii()
    assert len(caught.value.message) < 400
