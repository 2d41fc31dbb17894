"""Plain pickles: honest data is clean, our reading agrees with pickletools, damage is never clean."""

import datetime as dt
import decimal
import io
import pickle
import pickletools
from collections import Counter, OrderedDict, defaultdict, deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.formats.base import SNIFF_BYTES, BytesSource
from steelyard.formats.pickle_machine import MAX_DEPTH, MAX_INTEGER_BYTES, OPCODES, run
from steelyard.formats.pickled import FORMAT, RULES

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=300)
    | st.binary(max_size=300)
    | st.complex_numbers()
)
KEYS = st.text(max_size=8) | st.integers() | st.tuples(st.integers(), st.text(max_size=3))
PLAIN = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(KEYS, inner, max_size=5)
        | st.lists(inner, max_size=5).map(tuple)
        | st.sets(KEYS, max_size=5)
        | st.frozensets(KEYS, max_size=3)
        | st.binary(max_size=20).map(bytearray)
    ),
    max_leaves=25,
)
PROTOCOLS = st.integers(0, 5)


class RecordingSource:
    """Remembers where each read began. With a window of one byte that is every opcode."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)
        self.offsets: list[int] = []

    def read(self, offset: int, size: int) -> bytes:
        self.offsets.append(offset)
        return BytesSource(self.data).read(offset, size)


def rules_of(data: bytes) -> list[str]:
    report = FORMAT.read(BytesSource(data), "x.pkl")
    assert {finding.rule for finding in report.findings} <= set(RULES)
    return [finding.rule for finding in report.findings]


def python_pickle(value: object, protocol: int) -> bytes:
    """What the unpickler's Python twin writes: other opcodes than the C pickler in places."""
    out = io.BytesIO()
    pickle._Pickler(out, protocol).dump(value)
    return out.getvalue()


@given(PLAIN, PROTOCOLS, st.booleans())
def test_plain_data_of_every_protocol_and_pickler_is_clean(value, protocol, in_python):
    data = python_pickle(value, protocol) if in_python else pickle.dumps(value, protocol)
    assert rules_of(data) == []


@given(PLAIN, PROTOCOLS)
def test_optimised_pickles_are_clean(value, protocol):
    assert rules_of(pickletools.optimize(pickle.dumps(value, protocol))) == []


@given(PLAIN, PROTOCOLS)
def test_opcode_positions_and_count_agree_with_pickletools(value, protocol):
    data = pickle.dumps(value, protocol)
    ops = [position for _, _, position in pickletools.genops(data)]
    source = RecordingSource(data + bytes(2048))  # so that no window holds the end of the stream
    outcome = run(source, window=1, slack=600)
    assert outcome.opcodes == len(ops)
    assert outcome.end == len(data)
    assert set(ops) <= set(source.offsets)  # the other reads are arguments


@given(PLAIN, PROTOCOLS, st.integers(1, 4096))
def test_the_window_changes_nothing(value, protocol, window):
    data = pickle.dumps(value, protocol)
    whole, parts = run(BytesSource(data)), run(BytesSource(data), window=window, slack=600)
    assert (whole.opcodes, whole.end, whole.globals, whole.findings) == (
        parts.opcodes,
        parts.end,
        parts.globals,
        parts.findings,
    )


@given(PLAIN, PROTOCOLS, st.data())
def test_every_truncation_is_a_refusal(value, protocol, data):
    whole = pickle.dumps(value, protocol)
    assert rules_of(whole[: data.draw(st.integers(0, len(whole) - 1))])


@settings(max_examples=300)
@given(
    PLAIN,
    PROTOCOLS,
    st.lists(st.tuples(st.integers(0, 1 << 30), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_changed_bytes_never_crash(value, protocol, changes):
    data = bytearray(pickle.dumps(value, protocol))
    for place, byte in changes:
        data[place % len(data)] = byte
    rules_of(bytes(data))


@settings(max_examples=300)
@given(st.lists(st.sampled_from(sorted(OPCODES)) | st.integers(0, 255), max_size=60).map(bytes))
def test_opcode_soup_never_crashes(data):
    rules_of(data)


@given(st.lists(st.sampled_from(sorted(OPCODES)) | st.integers(0, 16), max_size=40).map(bytes))
def test_a_clean_soup_is_one_that_loads(data):
    """No stream that we call clean makes CPython stumble, but for a list inside a tuple used as a key."""
    soup = b"\x80\x04" + data + b"."
    outcome = run(BytesSource(soup))
    if not outcome.findings and not outcome.globals:
        try:
            pickle.loads(soup)
        except TypeError as error:
            if "unhashable" not in str(error):
                raise


def test_opcode_table_is_complete():
    assert {ord(op.code): op.name for op in pickletools.opcodes} == dict(OPCODES)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "value",
    [
        OrderedDict(a=1, b=[2]),
        Counter("aab"),
        defaultdict(list, {"a": [1]}),
        deque([1, 2, (3,)], maxlen=5),
        deque([1]),
        dt.datetime(2026, 11, 22, 1, 2, 3, 4, tzinfo=dt.UTC),
        dt.date(2026, 11, 22),
        dt.time(1, 2, 3),
        dt.timedelta(days=3),
        decimal.Decimal("-1.50E+7"),
        range(1, 10, 2),
        slice(1, None, 2),
        b"",
        bytearray(),
        b"\xff" * 100_000,
        "\u00e9" * 2_000_000,
        [float("inf"), float("-inf"), float("nan"), -0.0, 1e-300],
        [2**31, -(2**31), 2**63, -(2**200), 10**1000],
        [True, False, 1, 0],
        "\x80\x04 not a pickle",
        "\ud800 lone surrogate",
        [list(range(5000))] * 3,
    ],
    ids=lambda value: repr(value)[:24],
)
def test_listed_classes_are_clean(value, protocol):
    assert rules_of(pickle.dumps(value, protocol)) == []


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    "value",
    [
        np.arange(6, dtype="f4").reshape(2, 3),
        np.asfortranarray(np.ones((3, 2), dtype=">i8")),
        np.array(["ab", "c"]),
        np.array([b"ab", b"c"]),
        np.array([True, False]),
        np.array(["x", 1, None], dtype=object),
        np.zeros((0, 3)),
        np.float32(2.5),
        np.int64(7),
        np.dtype("f8"),
        np.array(["2026-11-22"], dtype="M8[ns]"),
        np.zeros(100_000, dtype="u1"),
    ],
    ids=lambda value: f"{value.dtype if hasattr(value, 'dtype') else value}",
)
def test_numpy_arrays_are_clean(value, protocol):
    assert rules_of(pickle.dumps(value, protocol)) == []


def test_facts_name_protocol_opcodes_and_imports():
    data = pickle.dumps(OrderedDict(a=1), 4)
    facts = FORMAT.read(BytesSource(data), "x.pkl").facts
    opcodes = sum(1 for _ in pickletools.genops(data))
    assert facts == {"protocol": 4, "opcodes": opcodes, "globals": ["collections.OrderedDict"]}


def test_a_finding_names_opcode_offset_and_call():
    data = b"cposix\nsystem\n(S'echo pwned'\ntR."
    findings = FORMAT.read(BytesSource(data), "x.pkl").findings
    assert [(f.rule, f.offset, f.message) for f in findings] == [
        ("pickle/global", 0, "GLOBAL at 0 would import posix.system, which is not listed"),
        ("pickle/call", 30, "REDUCE at 30 would call posix.system('echo pwned')"),
    ]


def test_messages_are_bounded_and_printable():
    data = (
        pickle.dumps(["\x1b[31m\n" * 90] * 50, 4)[:-1]
        + b"0cposix\nsystem\n("
        + b"X\x96\0\0\0"
        + b"\x1b\n" * 75
    )
    data += b"2" * 40 + b"tR."
    findings = run(BytesSource(data)).findings
    assert findings
    assert all(f.message.isprintable() and f.message.isascii() and len(f.message) < 600 for f in findings)


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("path", ["weights.bin", "model.safetensors", "no-suffix"])
def test_binary_protocols_are_claimed_by_content(protocol, path):
    assert FORMAT.sniff(pickle.dumps([1], protocol), path)


@pytest.mark.parametrize("value", [[1], {"a": 1}, (1,), None, True, 2.5, "x", 10**30, OrderedDict(), b"x"])
@pytest.mark.parametrize("protocol", [0, 1])
def test_text_protocols_are_claimed_by_name_and_first_opcode(value, protocol):
    data = pickle.dumps(value, protocol)
    assert FORMAT.sniff(data, "weights.PKL")
    assert not FORMAT.sniff(data, "notes.txt")


@pytest.mark.parametrize("length", [0x0280, 0x0480, 0x950480, 0x580280])
def test_a_safetensors_header_length_is_no_pickle(length):
    assert not FORMAT.sniff(length.to_bytes(8, "little") + b'{"a":1}', "model.bin")


@given(st.binary(max_size=SNIFF_BYTES))
def test_sniffing_never_crashes(head):
    FORMAT.sniff(head, "x.pkl")


def nested_lists(depth: int) -> bytes:
    return b"\x80\x04" + b"]" * depth + b"a" * (depth - 1) + b"."


def test_nesting_at_the_limit_and_one_past_it():
    assert rules_of(nested_lists(MAX_DEPTH)) == []
    assert rules_of(nested_lists(MAX_DEPTH + 1)) == ["pickle/nesting"]


def test_integer_length_at_the_limit_and_one_past_it():
    def integer(size: int) -> bytes:
        return b"\x80\x02\x8b" + size.to_bytes(4, "little") + b"\x01" * size + b"."

    assert rules_of(integer(MAX_INTEGER_BYTES)) == []
    assert rules_of(integer(MAX_INTEGER_BYTES + 1)) == ["pickle/length"]


def test_large_payloads_are_skipped_not_read():
    payload = 64 << 20
    head, tail = b"\x80\x04B" + payload.to_bytes(4, "little"), b"."

    class Sparse:
        size = len(head) + payload + len(tail)
        most = 0

        def read(self, offset: int, size: int) -> bytes:
            self.most = max(self.most, size)
            parts = bytearray(size)
            for start, part in ((0, head), (self.size - 1, tail)):
                for place, byte in enumerate(part):
                    if offset <= start + place < offset + size:
                        parts[start + place - offset] = byte
            return bytes(parts)

    source = Sparse()
    assert run(source).findings == []
    assert source.most < 2 << 20
