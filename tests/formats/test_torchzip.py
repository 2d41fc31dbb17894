"""Files that the real torch.save writes are clean, with the right facts; altered ones are not."""

import io
import re
import zipfile

import pytest

torch = pytest.importorskip("torch")

from steelyard.formats.base import BytesSource  # noqa: E402
from steelyard.formats.jsonfile import FORMAT as JSON  # noqa: E402
from steelyard.formats.pickled import FORMAT as PICKLE  # noqa: E402
from steelyard.formats.registry import RULES as FILE_RULES  # noqa: E402
from steelyard.formats.registry import Registry  # noqa: E402
from steelyard.formats.zip_archive import FORMAT, RULES  # noqa: E402


def saved(value: object, **options: object) -> bytes:
    out = io.BytesIO()
    torch.save(value, out, **options)
    return out.getvalue()


def report_of(data: bytes):
    assert FORMAT.sniff(data[:4096], "model.pt")
    report = Registry((FORMAT, PICKLE, JSON)).read(BytesSource(data), "model.pt")
    assert {finding.rule for finding in report.findings} <= set(RULES) | set(FILE_RULES)
    return report


def rules_of(data: bytes) -> set[str]:
    return {finding.rule for finding in report_of(data).findings}


def repacked(data: bytes, change, **options) -> bytes:
    """The same archive by another writer. change(name, content) -> [(name, content)]."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", **options) as new:
        for name in old.namelist():
            for other, content in change(name, old.read(name)):
                new.writestr(other, content)
    return out.getvalue()


MODEL = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
STATE = saved(MODEL.state_dict())


def test_a_module_state_dict_has_its_facts():
    report = report_of(STATE)
    assert report.findings == ()
    assert report.format == "torch-zip"
    assert report.facts["tensors"] == 7
    assert report.facts["dtypes"] == {"float32": 6, "int64": 1}
    assert report.facts["storages"] == 7
    assert report.facts["storage_bytes"] == (12 + 4 * 5) * 4 + 8


@pytest.mark.parametrize(
    "dtype",
    [
        "float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "uint16", "uint32",
        "uint64", "bool", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2",
    ],
)  # fmt: skip
def test_every_dtype_is_clean_and_counted(dtype):
    tensor = torch.zeros(5, 3, dtype=getattr(torch, dtype))
    report = report_of(saved({"w": tensor, "view": tensor[1:, ::2]}))
    assert report.findings == ()
    assert report.facts["dtypes"] == {dtype: 2}
    assert report.facts["storages"] == 1
    assert report.facts["storage_bytes"] == tensor.untyped_storage().nbytes()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.nn.Parameter(torch.ones(2, 2)),
        lambda: torch.ones(2, 3).t(),
        lambda: torch.ones(()),
        lambda: torch.empty(0, 4),
        lambda: torch.ones(1).expand(4, 4),
        lambda: torch.ones(3, requires_grad=True),
        lambda: torch.ones(3, 3).to_sparse(),
        lambda: torch.ones(3, 3).to_sparse_csr(),
        lambda: torch.ones(2, device="meta"),
        lambda: torch.tensor([1 + 2j]).conj(),
        lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 2, torch.qint8),
        lambda: torch.quantize_per_channel(
            torch.ones(2, 2), torch.ones(2), torch.zeros(2, dtype=torch.long), 0, torch.quint8
        ),
        lambda: {
            "step": 3,
            "lr": 1e-3,
            "shape": torch.Size([2, 3]),
            "dtype": torch.bfloat16,
            "at": torch.device("cpu"),
        },
        lambda: torch.ones(4).untyped_storage(),
        lambda: torch.optim.Adam(MODEL.parameters()).state_dict(),
        lambda: [MODEL.state_dict(), MODEL.state_dict()],
    ],
)
def test_what_torch_writes_is_clean(make):
    assert report_of(saved(make())).findings == ()


def test_pickle_protocols_of_torch_are_clean():
    for protocol in (2, 3, 4, 5):
        assert rules_of(saved(MODEL.state_dict(), pickle_protocol=protocol)) == set()


def test_a_state_dict_after_training_steps_is_clean():
    model = torch.nn.Linear(2, 2)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimiser.step()
    assert (
        rules_of(saved({"model": model.state_dict(), "optimiser": optimiser.state_dict(), "epoch": 1}))
        == set()
    )


def test_a_module_of_torch_nn_is_clean():
    assert rules_of(saved(MODEL)) == set()


def test_a_module_with_a_hook_is_refused():
    model = torch.nn.Linear(2, 2)
    model.register_forward_hook(print)
    assert {"pickle/global-value", "pickle/build"} & rules_of(saved(model))


def test_another_zip_writer_is_clean():
    assert rules_of(repacked(STATE, lambda name, content: [(name, content)])) == set()


def test_a_storage_shorter_than_declared_is_refused():
    cut = repacked(
        STATE, lambda name, content: [(name, content[:-4] if name.endswith("data/0") else content)]
    )
    assert "torch/storage" in rules_of(cut)


def test_a_missing_storage_is_refused():
    cut = repacked(STATE, lambda name, content: [] if name.endswith("data/0") else [(name, content)])
    assert "torch/storage" in rules_of(cut)


def test_an_extra_storage_is_refused():
    fat = repacked(
        STATE,
        lambda name, c: [(name, c)] + ([("archive/data/99", b"x")] if name.endswith("/version") else []),
    )
    assert rules_of(fat) == {"torch/unreferenced"}


def test_an_extra_member_is_refused():
    fat = repacked(
        STATE, lambda name, c: [(name, c)] + ([("archive/run.py", b"x")] if name.endswith("/version") else [])
    )
    assert rules_of(fat) == {"torch/member"}


def test_a_big_endian_archive_is_refused():
    big = repacked(STATE, lambda name, content: [(name, b"big" if name.endswith("byteorder") else content)])
    assert rules_of(big) == {"torch/byteorder"}


def test_a_strange_version_is_refused():
    odd = repacked(STATE, lambda name, content: [(name, b"#!sh" if name.endswith("/version") else content)])
    assert rules_of(odd) == {"torch/member"}


def test_compressed_storages_are_refused():
    packed = repacked(STATE, lambda name, content: [(name, content)], compression=zipfile.ZIP_DEFLATED)
    assert rules_of(packed) == {"torch/member"}


def test_a_flipped_bit_in_a_small_storage_is_refused():
    place = STATE.index(b"data/0FB") + 150
    flipped = STATE[:place] + bytes([STATE[place] ^ 1]) + STATE[place + 1 :]
    assert rules_of(flipped) <= {"zip/crc", "zip/mismatch"} != set()
    assert rules_of(flipped)


def test_a_view_beyond_its_storage_is_refused():
    """A tensor whose strides leave its storage reads other memory where a loader does not check."""
    data = saved(torch.arange(6, dtype=torch.float32).reshape(2, 3))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        stream = archive.read("archive/data.pkl")
    assert stream.count(b"K\x02K\x03\x86") == 1
    wide = stream.replace(b"K\x02K\x03\x86", b"K\x02K\x05\x86")
    changed = repacked(data, lambda name, content: [(name, wide if name.endswith("data.pkl") else content)])
    assert rules_of(changed) == {"pickle/arguments"}


def test_backward_hooks_are_refused():
    data = saved(torch.ones(2))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        stream = archive.read("archive/data.pkl")
    hooks = re.sub(
        rb"ccollections\nOrderedDict\nq.\)Rq.", lambda hit: hit[0] + b"K\x01K\x02s", stream, flags=re.DOTALL
    )
    assert hooks != stream
    changed = repacked(data, lambda name, content: [(name, hooks if name.endswith("data.pkl") else content)])
    assert rules_of(changed) == {"pickle/arguments"}


def test_every_truncation_of_an_archive_is_refused():
    for size in range(4, len(STATE), 37):
        assert rules_of(STATE[:size])
