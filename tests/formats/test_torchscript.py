"""TorchScript archives that PyTorch writes are clean, with the operators they call."""

import io
from pathlib import Path
from typing import NamedTuple

import pytest

torch = pytest.importorskip("torch")

from steelyard.formats.base import BytesSource  # noqa: E402
from steelyard.formats.jsonfile import FORMAT as JSON  # noqa: E402
from steelyard.formats.pickled import FORMAT as PICKLE  # noqa: E402
from steelyard.formats.registry import Registry  # noqa: E402
from steelyard.formats.torch_operators import OPERATORS  # noqa: E402
from steelyard.formats.torchscript_code import Program  # noqa: E402
from steelyard.formats.zip_archive import FORMAT  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
OLDER = Path(__file__).parent.parent / "data" / "torch"


class Pair(NamedTuple):
    a: torch.Tensor
    b: int


class Branches(torch.nn.Module):
    table: dict[str, int]

    def __init__(self) -> None:
        super().__init__()
        self.table = {"a": 1}
        self.linear = torch.nn.Linear(2, 2)
        self.parts = [torch.ones(2)]
        self.plain = (1, "x", 2.5)

    def forward(self, x: torch.Tensor, names: list[str], flag: bool = True) -> dict[str, torch.Tensor]:
        out: dict[str, torch.Tensor] = {}
        i = 0
        while i < len(names):
            out[names[i]] = self.linear(x) + self.parts[0]
            i += 1
        assert flag, "no"
        if torch.isnan(x).any():
            raise ValueError(f"nan {i}")
        pair = Pair(x[:, ::2, None] if x.dim() > 1 else x, self.table["a"])
        out["pair"] = pair.a * pair.b * float("inf")
        return out


def saved(module: object, **options: object) -> bytes:
    out = io.BytesIO()
    torch.jit.save(module, out, **options)
    return out.getvalue()


def report_of(data: bytes):
    return Registry((FORMAT, PICKLE, JSON)).read(BytesSource(data), "model.pt")


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.jit.script(torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))),
        lambda: torch.jit.trace(
            torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.GELU()), torch.ones(1, 3, 8, 8)
        ),
        lambda: torch.jit.freeze(torch.jit.script(torch.nn.Linear(3, 4).eval())),
        lambda: torch.jit.script(torch.nn.LSTM(3, 4, 2)),
        lambda: torch.jit.script(torch.nn.MultiheadAttention(4, 2)),
        lambda: torch.jit.script(Branches()),
        lambda: torch.jit.trace(lambda x: x.sort()[0][1:], torch.ones(3)),
    ],
)
def test_what_pytorch_writes_is_clean(make):
    report = report_of(saved(make()))
    assert report.findings == ()
    assert report.format == "torchscript"


def test_the_operators_are_facts():
    report = report_of(saved(torch.jit.script(torch.nn.Linear(3, 4))))
    assert report.facts["operators"] == ["aten::linear"]
    assert report.facts["dtypes"] == {"float32": 2}


def test_files_of_the_author_are_read_as_files():
    module = torch.jit.script(torch.nn.Linear(3, 4))
    good = report_of(saved(module, _extra_files={"notes.json": b'{"a": 1}'}))
    assert (good.findings, good.facts["members"]) == ((), {"json": 1})
    bad = report_of(saved(module, _extra_files={"run.sh": b"#!/bin/sh\nrm -r x\n"}))
    assert {finding.rule for finding in bad.findings} == {"file/unclaimed"}


@pytest.mark.parametrize("path", sorted(OLDER.glob("script_*.pt")), ids=lambda path: path.name)
def test_what_older_versions_wrote_is_clean(path):
    assert report_of(path.read_bytes()).findings == ()


def test_there_are_files_of_older_versions():
    assert len(list(OLDER.glob("script_*.pt"))) >= 3


def test_every_listed_operator_of_the_core_is_one_of_pytorch_or_of_the_older_version():
    """The allow-list is data: a misspelt name would never match. 1.13 had operators that are gone by now."""
    known = {schema.name for schema in torch._C._jit_get_all_schemas()}
    aten = {f"aten::{name}" for name in OPERATORS["aten"]}
    assert len(aten - known) < 60
    assert not aten & {"aten::save", "aten::from_file", "aten::to_here"}
    assert len(aten) > 1500


def test_a_name_is_found_where_it_is_defined():
    program = Program()
    program.read("code/__torch__/a.py", b"def f(x: Tensor) -> Tensor:\n  return torch.add(x, 1)\n")
    program.read(
        "code/__torch__.py", b"def g(x: Tensor) -> Tensor:\n  _0 = __torch__.a.f\n  return _0(x, )\n"
    )
    program.close()
    assert (program.findings, program.operators) == ([], {"aten::add"})
