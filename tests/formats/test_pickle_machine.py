"""The machine's short cuts change nothing: learned shapes, dropped contents, and pickles kept as data."""

import base64
import pickle
import pickletools
import random
import struct

import pytest

from steelyard.formats.base import BytesSource
from steelyard.formats.pickle_machine import MAX_DISCARDED, MAX_MARKS, run
from steelyard.formats.pickle_nested import pickles_in_text

INNER = b"cos\nsystem\n(S'true'\ntR."


def rows(count: int) -> list[dict[str, object]]:
    return [
        {"id": n, "name": f"w{n}", "at": (n % 7, 1.5), "tags": ["a", str(n), None, True]}
        for n in range(count)
    ]


def rules_of(data: bytes) -> list[str]:
    return [finding.rule for finding in run(BytesSource(data)).findings]


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("count", [10, 300, 5000])
def test_learned_shapes_count_the_opcodes_that_pickletools_counts(protocol, count):
    data = pickle.dumps(rows(count), protocol)
    outcome = run(BytesSource(data))
    assert (outcome.findings, outcome.end) == ([], len(data))
    assert outcome.opcodes == sum(1 for _ in pickletools.genops(data))


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_clean_verdict_on_damaged_records_is_one_that_loads(protocol):
    chance = random.Random(3)
    whole = pickle.dumps(rows(400), protocol)
    clean = 0
    for _ in range(400):
        damaged = bytearray(whole)
        damaged[chance.randrange(len(whole) // 2, len(whole))] = chance.randrange(256)
        outcome = run(BytesSource(bytes(damaged)))
        if not outcome.findings and not outcome.globals:
            clean += 1
            pickle.loads(bytes(damaged))
            assert outcome.opcodes == sum(1 for _ in pickletools.genops(bytes(damaged)))
    assert clean


@pytest.mark.parametrize("attack", [b"cposix\nsystem\n)R", b"\x8c\x05posix\x8c\x06system\x93)R"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_call_among_a_thousand_equal_records_refuses(attack, protocol):
    whole = pickle.dumps(rows(1000), protocol)
    place = whole.rindex(b"K\x06G")  # the first half of a tuple, deep in a late record
    assert "pickle/call" in rules_of(whole[:place] + attack + whole[place + 2 :])


def test_a_wrong_memo_number_in_a_learned_record_refuses():
    whole = bytearray(pickle.dumps(rows(1000), 2))
    place = whole.rindex(b"]r") + 2
    struct.pack_into("<I", whole, place, struct.unpack_from("<I", whole, place)[0] + 5000)
    assert "pickle/memo" in rules_of(bytes(whole))


@pytest.mark.parametrize("repeats", [0, 30_000])
def test_a_list_filled_after_it_was_placed_refuses_before_and_after_contents_are_dropped(repeats):
    filler = (b"](" + b"\x8c\x06abcdef\x94" * 10 + b"e") * repeats
    assert "pickle/cycle" in rules_of(b"\x80\x04]\x94](" + filler + b"h\x00e0h\x00h\x00a.")


def test_large_honest_data_is_clean_after_contents_are_dropped():
    value = {f"a{a}": {f"b{b}": [f"{a}-{b}-{c}" for c in range(30)] for b in range(60)} for a in range(60)}
    assert rules_of(pickle.dumps(value, 4)) == []


@pytest.mark.parametrize(("op", "limit"), [(b"]0", MAX_DISCARDED), (b"(", MAX_MARKS)])
def test_thrown_away_objects_and_open_marks_are_limited(op, limit):
    tail = b"N" * (1 << 20)  # counts are checked once a window
    assert "pickle/limit" not in rules_of(b"\x80\x04" + op * limit + b"N.")
    assert "pickle/limit" in rules_of(b"\x80\x04" + op * (limit + 1 + (1 << 18)) + tail + b"N.")


@pytest.mark.parametrize(
    "payload",
    [
        INNER,
        INNER.decode(),
        base64.b64encode(INNER).decode(),
        base64.b64encode(INNER),
        INNER.hex(),
        b"\x80\x04" + INNER,
    ],
    ids=["protocol 0 bytes", "protocol 0 text", "base64 text", "base64 bytes", "hex text", "binary"],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_kept_as_data_that_imports_refuses(payload, protocol):
    assert "pickle/nested" in rules_of(pickle.dumps({"payload": payload}, protocol))


def test_a_pickle_of_plain_data_kept_as_data_is_a_question():
    assert rules_of(pickle.dumps([pickle.dumps(rows(2), 4)], 4)) == ["pickle/inside"]
    assert rules_of(pickle.dumps([pickle.dumps(rows(2), 4) + b"and more"], 4)) == []
    assert rules_of(pickle.dumps([pickle.dumps(rows(2), 0)], 4)) == []  # text, that says no more than it is


def test_random_bytes_are_no_pickles():
    chance = random.Random(5)
    for _ in range(20_000):
        raw = chance.randbytes(chance.randrange(4, 200))
        assert not {"pickle/nested", "pickle/inside"} & set(rules_of(pickle.dumps(raw, 4)))
        assert not list(pickles_in_text(base64.b64encode(raw).decode() + " word"))
