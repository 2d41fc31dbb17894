"""state_dicts to safetensors, against torch.load(weights_only=True): the same names, shapes, types and bits."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, load_model

from steelyard.admit.from_torch import DTYPES, is_torch, read_torch
from steelyard.admit.rules import registry
from steelyard.admit.scan import Verdict, scan
from steelyard.admit.to_safetensors_model import convert_to_safetensors
from steelyard.errors import Refused, WrongUsage

LEGACY = {"_use_new_zipfile_serialization": False}
NEWER = ("uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
         "float8_e8m0fnu")  # fmt: skip


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(3, 5) for _ in range(50)])
        self.head = torch.nn.Linear(3, 5)
        self.head.weight = self.layers[0].weight


def same(found, wanted):
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    bits = [tensor.flatten().repeat(1).view(torch.uint8) for tensor in (found, wanted)]
    assert torch.equal(*bits)


def converted(place, target, **options):
    job = read_torch(place, **options).job(shard_bytes=options.pop("shard_bytes", 5_000_000_000))
    convert_to_safetensors(job, target)
    found = {}
    for path in target.glob("*.safetensors"):
        found |= load_file(path)
    aliases = json.loads((target / "conversion.json").read_text())["aliases"]
    return {**found, **{alias: found[name] for alias, name in aliases.items()}}


def everything():
    state = dict(Tied().state_dict())
    big = torch.arange(24.0).reshape(4, 6)
    state["transposed"] = big.t()
    state["strided"] = big[1:3, ::2]
    state["permuted"] = torch.arange(60, dtype=torch.int16).reshape(3, 4, 5).permute(2, 0, 1)
    state["expanded"] = torch.ones(1).expand(4)
    state["empty"] = torch.zeros(0, 3)
    state["scalar"] = torch.tensor(7)
    return state


@pytest.mark.parametrize("how", [{}, LEGACY], ids=["zip", "legacy"])
@pytest.mark.parametrize("shared", ["alias", "copy"])
@pytest.mark.parametrize("kind", ["OrderedDict", "dict"])
def test_every_tensor_equals_what_torch_loads(how, shared, kind, tmp_path):
    """More names than the scan's symbols keep, views of all kinds, tied weights."""
    state = everything()
    if kind == "OrderedDict":
        state = Tied().state_dict() | state
    torch.save(state, tmp_path / "model.pt", **how)
    wanted = torch.load(tmp_path / "model.pt", weights_only=True)
    found = converted(tmp_path / "model.pt", tmp_path / "out", shared=shared)
    assert found.keys() == wanted.keys()
    assert len(found) > 100
    for name, tensor in wanted.items():
        same(found[name], tensor)


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_every_type_with_a_place_in_safetensors_is_kept(name, tmp_path):
    values = torch.tensor([0.0, 1.0, 2.0, 4.0]).to(getattr(torch, name))
    for how in ({}, LEGACY) if name not in NEWER else ({},):
        torch.save({"a": values}, tmp_path / "model.pt", **how)
        same(converted(tmp_path / "model.pt", tmp_path / f"out{len(how)}")["a"], values)


@pytest.mark.parametrize("name", ["complex128", "complex32"])
@pytest.mark.filterwarnings("ignore")
def test_a_type_without_a_place_is_refused_by_name(name, tmp_path):
    torch.save({"fine": torch.ones(1), "odd": torch.ones(2).to(getattr(torch, name))}, tmp_path / "model.pt")
    with pytest.raises(Refused, match=rf"odd is {name}"):
        read_torch(tmp_path / "model.pt")


ODD = {
    "sparse": lambda: torch.ones(2, 2).to_sparse(),
    "conjugate": lambda: torch.ones(2, dtype=torch.complex64).conj(),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8),
    "without storage": lambda: torch.ones(2, device="meta"),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.filterwarnings("ignore")
def test_a_tensor_that_is_no_dense_view_is_refused_by_name(kind, tmp_path):
    torch.save({"fine": torch.ones(1), "odd.one": ODD[kind]()}, tmp_path / "model.pt")
    with pytest.raises(Refused, match=r"odd\.one"):
        read_torch(tmp_path / "model.pt")


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.randoms(use_true_random=False),
    st.integers(1, 3),
    st.sampled_from([torch.int8, torch.int16, torch.float32, torch.int64]),
)
@settings(max_examples=30, deadline=None)
def test_any_strided_view_is_written_row_by_row(shape, random, step, dtype):
    import tempfile
    from pathlib import Path

    count = 1
    for size in shape:
        count *= size * step
    base = torch.arange(count).to(dtype).reshape([size * step for size in shape])
    view = base[tuple(slice(random.randrange(step), None, step) for _ in shape)]
    order = list(range(len(shape)))
    random.shuffle(order)
    view = view.permute(order)
    with tempfile.TemporaryDirectory() as name:
        torch.save({"view": view}, Path(name) / "model.pt")
        same(converted(Path(name) / "model.pt", Path(name) / "out")["view"], view)


def test_a_tied_weight_loads_through_its_alias(tmp_path):
    torch.manual_seed(0)
    torch.save(Tied().state_dict(), tmp_path / "model.pt")
    job = read_torch(tmp_path / "model.pt").job(shard_bytes=10**9)
    convert_to_safetensors(job, tmp_path / "out")
    assert len(load_file(tmp_path / "out" / "model.safetensors")) == len(Tied().state_dict()) - 1
    model = Tied()
    load_model(model, tmp_path / "out" / "model.safetensors")
    assert torch.equal(model.head.weight, torch.load(tmp_path / "model.pt", weights_only=True)["head.weight"])


def test_a_nested_checkpoint_asks_for_the_key_and_lists_them(tmp_path):
    state = Tied().state_dict()
    inner = {"ema": state, "step": 3}
    torch.save({"model": inner, "optimizer": {"lr": 0.1}, "epoch": 4}, tmp_path / "model.pt")
    with pytest.raises(
        WrongUsage, match=r"--key, out of: model \(0 tensors\), optimizer \(0 tensors\), epoch"
    ):
        read_torch(tmp_path / "model.pt")
    with pytest.raises(WrongUsage, match=r"out of: ema \(102 tensors\), step \(no tensor\)"):
        read_torch(tmp_path / "model.pt", key="model")
    with pytest.raises(WrongUsage, match=r"no key 'model\.none'"):
        read_torch(tmp_path / "model.pt", key="model.none")
    found = converted(tmp_path / "model.pt", tmp_path / "out", key="model.ema")
    assert found.keys() == state.keys()


def sharded(folder):
    folder.mkdir()
    state = everything()
    names = sorted(state)
    halves = {"pytorch_model-00001-of-00002.bin": names[:40], "pytorch_model-00002-of-00002.bin": names[40:]}
    for file, part in halves.items():
        torch.save({name: state[name].clone() for name in part}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, part in halves.items() for name in part}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "README.md").write_text("A card.")
    return state


def test_shards_with_an_index_become_shards_with_an_index(tmp_path):
    state = sharded(tmp_path / "model")
    job = read_torch(tmp_path / "model").job(shard_bytes=40_000)
    result = convert_to_safetensors(job, tmp_path / "out")
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "README.md", "conversion.json", "model.safetensors.index.json"} < files
    assert not any(name.startswith("pytorch") for name in files)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == state.keys()
    assert len(set(index["weight_map"].values())) > 1
    for name, file in index["weight_map"].items():
        same(load_file(tmp_path / "out" / file)[name], state[name])
    assert scan(tmp_path / "out", registry(())).verdict is Verdict.ADMIT
    assert {file.path for file in result.source.files} == {p.name for p in (tmp_path / "model").iterdir()}


def test_an_index_that_disagrees_is_refused(tmp_path):
    sharded(tmp_path / "model")
    path = tmp_path / "model" / "pytorch_model.bin.index.json"
    index = json.loads(path.read_text())
    del index["weight_map"]["scalar"]
    path.write_text(json.dumps(index))
    with pytest.raises(Refused, match="disagree about tensor 'scalar'"):
        read_torch(tmp_path / "model")


def test_an_index_and_a_single_file_are_refused(tmp_path):
    sharded(tmp_path / "model")
    torch.save({"a": torch.ones(1)}, tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(Refused, match="unclear which"):
        read_torch(tmp_path / "model")


def test_what_is_no_torch_model_is_not_taken_for_one(tmp_path):
    assert not is_torch(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert not is_torch(tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    assert is_torch(tmp_path)
    with pytest.raises(Refused, match=r"no file of torch\.save"):
        read_torch(tmp_path)
