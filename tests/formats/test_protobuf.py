"""Laws of the protocol buffer reader: what a plain writer wrote is found again, and every limit holds."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.errors import Malformed
from steelyard.formats import protobuf
from steelyard.formats.base import BytesSource
from steelyard.formats.protobuf import PACKED, RUN, SINGLE, Reader, outline, rules_of, schema, signed

MESSAGES = schema(
    """
message Node
  1 name text; 2 child Node; 3 number varint; 4 numbers varint*; 5 floats fixed32*; 6 wide fixed64; 7 data bytes*
"""
)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def reader(data: bytes) -> Reader:
    return Reader(BytesSource(data), MESSAGES, "test")


def read(data: bytes) -> list[tuple[str, int, bytes]]:
    found = reader(data)
    return [
        (part.spec.name, part.value, data[part.begin : part.end])
        for part in found.parts("Node", 0, len(data), 0)
    ]


def rule_of(data: bytes, depth: int = 0) -> str:
    with pytest.raises(Malformed) as caught:
        reader(data).skim("Node", 0, len(data), depth)
    assert caught.value.rule in rules_of("test")
    return caught.value.rule


@given(st.lists(st.binary(max_size=300), max_size=40), st.integers(0, 2**64 - 1))
def test_written_fields_are_read_back(payloads, number):
    data = varint(3 << 3) + varint(number) + b"".join(field(7, payload) for payload in payloads)
    expected = [("number", number, b"")] + [("data", 0, payload) for payload in payloads]
    assert read(data) == expected


@settings(max_examples=20)
@given(st.integers(protobuf.WINDOW - 50, protobuf.WINDOW + 50), st.integers(0, 2**64 - 1))
def test_a_field_at_the_edge_of_the_window_is_read_whole(size, number):
    data = field(7, b"x" * size) + varint(3 << 3) + varint(number) + field(1, b"after")
    assert read(data)[1:] == [("number", number, b""), ("name", 0, b"after")]


@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=50))
def test_numbers_one_by_one_and_packed_are_the_same(numbers):
    single = b"".join(varint(4 << 3) + varint(number) for number in numbers)
    packed = field(4, b"".join(map(varint, numbers)))
    for data, form in ((single, RUN), (packed, PACKED)):
        found = reader(data)
        (part,) = found.parts("Node", 0, len(data), 0)
        assert part.form == form
        assert found.count(part) == len(numbers)
        assert found.numbers(part) == numbers


@given(st.lists(st.binary(max_size=127), max_size=20))
def test_the_fast_way_finds_what_the_slow_way_finds(payloads):
    data = b"".join(field(7, payload) for payload in payloads)
    plain = reader(data).plain(0, len(data), frozenset({7 << 3 | 2}))
    assert plain == [(7 << 3 | 2, payload) for payload in payloads]


@given(st.binary(max_size=200))
def test_any_bytes_end_in_fields_or_a_refusal(data):
    rules = set()
    try:
        reader(data).skim("Node", 0, len(data), 0)
    except Malformed as error:
        rules.add(error.rule)
    assert rules <= set(rules_of("test"))
    assert all(len(found.body) <= len(data) for found in outline(data))


@given(st.integers(-(2**63), 2**63 - 1))
def test_a_negative_number_is_ten_bytes(number):
    assert signed(number % (1 << 64)) == number


def test_a_single_number_and_fixed_bits_are_values():
    data = varint(3 << 3) + b"\x07" + varint(6 << 3 | 1) + (9).to_bytes(8, "little")
    found = list(reader(data).parts("Node", 0, len(data), 0))
    assert [(part.value, part.form) for part in found] == [(7, SINGLE), (9, SINGLE)]


def test_a_field_outside_the_table_refuses():
    assert rule_of(field(8, b"hidden")) == "test/field"
    assert rule_of(varint(1 << 3) + b"\0") == "test/field"  # a text as a number


def test_a_group_refuses():
    assert rule_of(varint(2 << 3 | 3) + varint(2 << 3 | 4)) == "test/field"


def test_a_single_field_twice_refuses():
    assert rule_of(field(1, b"shown") + field(1, b"used")) == "test/field"


def test_a_length_past_the_message_refuses():
    assert rule_of(b"\x0a\x05abc") == "test/truncated"
    assert rule_of(field(2, b"\x0a\x7fabc") + field(1, b"x" * 200)) == "test/truncated"  # inside the file


@pytest.mark.parametrize(
    "data", [b"\x18\x80", b"\x31\0\0", b"\x2d\0", b"\x2a\x03\0\0\0", b"\x22\x01\x80", b"\x20"]
)
def test_a_cut_number_refuses(data):
    assert rule_of(data) in {"test/truncated", "test/varint"}


def test_a_number_of_64_bits_is_read_and_one_of_65_refuses():
    assert read(b"\x18" + b"\xff" * 9 + b"\x01")[0][1] == 2**64 - 1
    assert rule_of(b"\x18" + b"\xff" * 9 + b"\x02") == "test/varint"
    assert rule_of(b"\x18" + b"\x80" * 10 + b"\0") == "test/varint"


def test_messages_nest_to_the_limit_and_not_past_it():
    data = b""
    for _ in range(protobuf.MAX_DEPTH):
        data = field(2, data)
    reader(data).skim("Node", 0, len(data), 0)
    assert rule_of(field(2, data)) == "test/depth"


def test_fields_are_counted_to_the_limit():
    data = field(7, b"") * 10
    found = reader(data)
    found.fields = protobuf.MAX_FIELDS - 10
    found.skim("Node", 0, len(data), 0)
    with pytest.raises(Malformed, match="fields"):
        found.skim("Node", 0, 2, 0)


def test_text_is_utf8_and_bounded():
    data = field(1, b"\xff")
    found = reader(data)
    (part,) = found.parts("Node", 0, len(data), 0)
    with pytest.raises(Malformed) as caught:
        found.text(part)
    assert caught.value.rule == "test/encoding"
    with pytest.raises(Malformed) as caught:
        found.raw(part, 0)
    assert caught.value.rule == "test/limit"
    assert found.raw(part, 1) == b"\xff"


def test_too_many_numbers_refuse():
    data = field(4, b"\1" * protobuf.MAX_NUMBERS)
    found = reader(data)
    (part,) = found.parts("Node", 0, len(data), 0)
    assert len(found.numbers(part)) == protobuf.MAX_NUMBERS
    data = field(4, b"\1" * (protobuf.MAX_NUMBERS + 1))
    found = reader(data)
    (part,) = found.parts("Node", 0, len(data), 0)
    assert found.count(part) == protobuf.MAX_NUMBERS + 1
    with pytest.raises(Malformed):
        found.numbers(part)
