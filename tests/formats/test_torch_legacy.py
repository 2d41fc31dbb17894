"""Files that torch.save wrote before it wrote zip files: clean, with every byte accounted for."""

import io

import pytest

torch = pytest.importorskip("torch")

from steelyard.errors import Malformed  # noqa: E402
from steelyard.formats.base import BytesSource  # noqa: E402
from steelyard.formats.pickled import FORMAT as PICKLE  # noqa: E402
from steelyard.formats.torch_legacy import FORMAT, RULES  # noqa: E402

MODEL = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))


def saved(value: object, **options: object) -> bytes:
    out = io.BytesIO()
    torch.save(value, out, _use_new_zipfile_serialization=False, **options)
    return out.getvalue()


def report_of(data: bytes):
    assert FORMAT.sniff(data[:4096], "model.pt")
    assert not PICKLE.sniff(data[:4096], "model.pt")
    return FORMAT.read(BytesSource(data), "model.pt")


def rules_of(data: bytes) -> set[str]:
    try:
        rules = {finding.rule for finding in report_of(data).findings}
    except Malformed as bad:
        rules = {bad.rule}
    assert rules <= set(RULES)
    return rules


STATE = saved(MODEL.state_dict())


def test_a_state_dict_has_its_facts():
    report = report_of(STATE)
    assert report.findings == ()
    assert report.facts["dtypes"] == {"float32": 6, "int64": 1}
    assert report.facts["storage_bytes"] == (12 + 4 * 5) * 4 + 8


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_is_clean(protocol):
    assert rules_of(saved(MODEL.state_dict(), pickle_protocol=protocol)) == set()


@pytest.mark.parametrize(
    "make",
    [
        lambda: [torch.ones(10)[2:5], torch.ones(3).t()],
        lambda: torch.empty(0),
        lambda: {
            "epoch": 3,
            "model": MODEL.state_dict(),
            "optimiser": torch.optim.Adam(MODEL.parameters()).state_dict(),
        },
        lambda: torch.ones(2, dtype=torch.bfloat16),
        lambda: MODEL,
        lambda: {"nothing": 1},
    ],
)
def test_what_torch_writes_is_clean(make):
    assert rules_of(saved(make())) == set()


def test_many_storages_are_walked():
    assert rules_of(saved([torch.ones(2) for _ in range(1500)])) == set()


def test_every_truncation_is_refused():
    for size in range(64, len(STATE), 41):
        assert rules_of(STATE[:size])


def test_bytes_behind_the_storages_are_refused():
    assert rules_of(STATE + b"\x80\x02}.") == {"torch/trailing"}


def test_a_storage_with_another_count_is_refused():
    data = saved(torch.ones(3))
    count = (3).to_bytes(8, "little")
    assert data[-20:-12] == count
    assert rules_of(data[:-20] + (2).to_bytes(8, "little") + data[-12:]) == {"torch/size"}


def test_a_key_that_no_tensor_names_is_refused():
    data = saved({"w": torch.ones(2)})
    end = data.rindex(b"a.")  # APPEND, STOP of the list of keys
    start = data.rindex(b"\x80\x02]", 0, end)
    keys = b"\x80\x02](X\x01\x00\x00\x00aX\x01\x00\x00\x00be."
    assert rules_of(data[:start] + keys + data[end + 2 :]) == {"torch/keys"}


def test_code_in_the_list_of_keys_is_refused():
    data = saved({"w": torch.ones(2)})
    end = data.rindex(b"a.")
    start = data.rindex(b"\x80\x02]", 0, end)
    evil = b"\x80\x02cposix\nsystem\nX\x04\0\0\0true\x85R."
    assert rules_of(data[:start] + evil + data[end + 2 :]) == {"pickle/opcode"}


def test_big_endian_numbers_are_refused():
    place = STATE.index(b"little_endian") + len("little_endian")
    true = STATE.index(b"\x88", place)
    assert rules_of(STATE[:true] + b"\x89" + STATE[true + 1 :]) == {"torch/system"}


def test_code_in_the_object_is_refused():
    data = saved({"w": torch.ones(2)})
    evil = data.replace(b"ctorch\nFloatStorage\n", b"cposix\nsystem\n")
    assert evil != data
    assert "pickle/global" in rules_of(evil)
