"""torch.export archives that PyTorch writes are clean; what their loader would evaluate is checked."""

import io
import json
import zipfile

import pytest

torch = pytest.importorskip("torch")

from steelyard.formats.base import BytesSource  # noqa: E402
from steelyard.formats.pickled import FORMAT as PICKLE  # noqa: E402
from steelyard.formats.registry import Registry  # noqa: E402
from steelyard.formats.text import FORMAT as TEXT  # noqa: E402
from steelyard.formats.torch_export import _is_expression, _is_guard, _is_tree  # noqa: E402
from steelyard.formats.zip_archive import FORMAT  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")


class Tree(torch.nn.Module):
    def forward(self, x, named):
        return {"a": x + named["k"], "b": (x[1:], [x * 2])}


class Halves(torch.nn.Module):
    def forward(self, x):
        return x.reshape(x.shape[0] // 2, -1)


def saved(module: torch.nn.Module, *inputs: object, **options: object) -> bytes:
    out = io.BytesIO()
    torch.export.save(torch.export.export(module, inputs, **options), out)
    return out.getvalue()


LINEAR = saved(torch.nn.Linear(3, 4), torch.ones(2, 3))


def report_of(data: bytes):
    return Registry((FORMAT, PICKLE, TEXT)).read(BytesSource(data), "model.pt2")


def rules_of(data: bytes) -> set[str]:
    return {finding.rule for finding in report_of(data).findings}


def changed(change, data: bytes = LINEAR, **more: bytes) -> bytes:
    """The archive with its graph put through `change`, and members added."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("models/model.json"):
                graph = json.loads(content)
                change(graph)
                content = json.dumps(graph).encode()
            new.writestr(name, content)
        root = old.namelist()[0].partition("/")[0]
        for name, content in more.items():
            new.writestr(f"{root}/{name}", content)
    return out.getvalue()


def same(_graph: dict) -> None:
    """No change."""


def old_layout(graph: bytes) -> bytes:
    """The members of PyTorch 2.1 to 2.6."""
    nested = io.BytesIO()
    torch.save({}, nested)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("serialized_exported_program.json", graph)
        for part in ("state_dict", "constants", "example_inputs"):
            archive.writestr(f"serialized_{part}.pt", nested.getvalue())
        archive.writestr("version", "5.3")
    return out.getvalue()


def graph_of(data: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return next(archive.read(name) for name in archive.namelist() if name.endswith("models/model.json"))


def test_a_linear_layer_has_its_facts():
    report = report_of(LINEAR)
    assert (report.format, report.findings) == ("torch-export", ())
    assert report.facts["operators"] == ["aten::linear"]
    assert report.facts["weight_bytes"] == 64


@pytest.mark.parametrize(
    "make",
    [
        lambda: saved(torch.nn.LSTM(3, 4), torch.ones(2, 1, 3)),
        lambda: saved(Tree(), torch.ones(4), {"k": torch.ones(4)}),
        lambda: saved(Halves(), torch.ones(4, 6), dynamic_shapes=({0: 2 * torch.export.Dim("q")},)),
        lambda: old_layout(graph_of(LINEAR)),
        lambda: changed(same),
    ],
)
def test_what_pytorch_writes_is_clean(make):
    assert report_of(make()).findings == ()


def test_the_old_layout_is_read_too():
    graph = json.loads(graph_of(LINEAR))
    graph["graph_module"]["graph"]["nodes"][0]["target"] = "torch.hub.load"
    assert rules_of(old_layout(json.dumps(graph).encode())) == {"export/target"}


@pytest.mark.parametrize(
    "text",
    [
        "s0", "2*s0 + 1", "Symbol('s31', positive=True, integer=True)", "Max(1, s0//2)",
        "Pow(Integer(2), Integer(3))", "u0 <= 4",
    ],
)  # fmt: skip
def test_a_size_is_an_expression(text):
    assert _is_expression(text)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')", "s0.__class__", "eval('1')", "[s0]", "lambda: 1", "'os'", "9**9**9",
        "Pow(10, 10**9)", "f'{s0}'", "exec", "s0 if s1 else s2", "Symbol('__import__')", "(" * 2000 + ")" * 2000,
        "a;b", "",
    ],
)  # fmt: skip
def test_anything_else_is_no_expression(text):
    assert not _is_expression(text)


def test_a_guard_is_a_claim_about_sizes():
    assert _is_guard("((6*L['x'].size()[0]) % (L['x'].size()[0] // 2)) == 0")
    for text in (
        "__import__('os')",
        "L['x'].__class__",
        "L('x')",
        "L['x'].size('a')",
        "open",
        "max.__self__",
    ):
        assert not _is_guard(text)


def test_a_tree_specification_names_plain_containers():
    leaf = {"type": None, "context": None, "children_spec": []}
    tree = {"type": "builtins.dict", "context": '["k"]', "children_spec": [leaf]}
    assert _is_tree(json.dumps([1, tree]))
    factory = {"default_factory_module": "os", "default_factory_name": "system"}
    assert _is_tree(json.dumps([1, {**tree, "type": "transformers.modeling_outputs.BaseModelOutput"}]))
    for wrong in (
        {**tree, "context": json.dumps({"__enum__": True, "fqn": "os:abort", "name": "x"})},
        {**tree, "type": "os.system('true')"},
        {**tree, "type": "collections.defaultdict", "context": json.dumps(factory)},
        {**tree, "context": factory},
        {**tree, "context": json.dumps(factory)},
        {**tree, "more": 1},
    ):
        assert not _is_tree(json.dumps([1, wrong]))
