"""Hostile checkpoints under conversion: nothing is executed, nothing is kept, and the refusal says where and why."""

import importlib.util
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from steelyard.admit.from_grok import exact_sources, grok_job, read_checkpoint
from steelyard.admit.from_grok_bf16 import sources as bf16_sources
from steelyard.admit.from_grok_rebuild import verify_exact
from steelyard.admit.from_torch import read_torch
from steelyard.admit.rules import registry
from steelyard.admit.to_safetensors import JOURNAL
from steelyard.admit.to_safetensors_model import convert_to_safetensors
from steelyard.errors import Malformed, Refused, SteelyardError, Unavailable, Untrusted, WrongUsage
from steelyard.formats.base import BytesSource
from steelyard.formats.grok import shard_of


def _miniature():
    path = Path(__file__).parents[1] / "admit" / "grok_miniature.py"
    spec = importlib.util.spec_from_file_location("grok_miniature", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


mini = _miniature()
CANARY = "steelyard-conversion-canary"


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return os.mkdir, (str(self.place),)


WEIGHT = np.arange(-48, 48, dtype=np.int8).reshape(2, 8, 6)
SCALES = np.ones((2, 2, 6), np.float32)


def good():
    return mini.pair(WEIGHT, SCALES)


def with_scales(bits):
    data = good()
    shard = shard_of(BytesSource(data))
    at = shard.scales.offset
    return data[:at] + bits.to_bytes(2, "little") + data[at + 2 :]


def fortran():
    data = good()
    at = shard_of(BytesSource(data)).weight.offset
    place = data.rindex(b"\x89", 0, at)  # the last False before the payload is the order
    return data[:place] + b"\x88" + data[place + 1 :]


def pair_of(weight, scales, **extra):
    value = mini.QuantizedWeight8bit(weight, scales)
    value.__dict__.update(extra)
    return mini.dumped(value)


ATTACKS = {
    "a command instead of the scales": (lambda place: pair_of(WEIGHT, Payload(place)), "grok/global"),
    "a command as a third attribute": (
        lambda place: pair_of(WEIGHT, mini.Bits(mini.to_bf16(SCALES)), extra=Payload(place)),
        "grok/global",
    ),
    "a command before the pair": (
        lambda place: good()[:-1] + pickle.dumps(Payload(place), 4)[11:-1] + b"0.",
        "grok/global",
    ),
    "a second pickle behind the first": (
        lambda place: good() + pickle.dumps(Payload(place), 4),
        "grok/trailing",
    ),
    "one byte behind the first": (lambda _: good() + b"\0", "grok/trailing"),
    "a third array": (
        lambda _: pair_of(WEIGHT, mini.Bits(mini.to_bf16(SCALES)), minima=WEIGHT),
        "grok/global",
    ),
    "float scales": (lambda _: pair_of(WEIGHT, SCALES), "grok/size"),
    "objects instead of numbers": (lambda _: pair_of(WEIGHT.astype(object), SCALES), "grok/global"),
    "wider weights": (lambda _: pair_of(WEIGHT.astype("i2"), SCALES), "grok/global"),
    "big-endian scales": (lambda _: good().replace(b"\x8c\x01<", b"\x8c\x01>"), "grok/global"),
    "Fortran order": (lambda _: fortran(), "grok/order"),
    "scales that do not divide the rows": (
        lambda _: mini.pair(WEIGHT, np.ones((2, 3, 6), "f4")),
        "grok/scales",
    ),
    "scales of other columns": (lambda _: mini.pair(WEIGHT, np.ones((2, 2, 5), "f4")), "grok/scales"),
    "a scale that is infinite": (lambda _: with_scales(0x7F80), "grok/scales"),
    "a scale that is no number": (lambda _: with_scales(0xFFC1), "grok/scales"),
    "a type flagged as holding references": (lambda _: good().replace(b"K\x40t", b"K\x41t"), "grok/grammar"),
    "the payload's length raised by one": (lambda _: good().replace(b"C\x60", b"C\x61"), None),
    "a shape of one row more": (
        lambda _: good().replace(b"K\x02K\x08K\x06\x87", b"K\x02K\x09K\x06\x87"),
        "grok/size",
    ),
    "a shape whose product leaves 64 bits": (
        lambda _: good().replace(b"K\x02K\x08K\x06\x87", b"J\xff\xff\xff\x7f" * 3 + b"\x87"),
        "grok/size",
    ),
    "cut in the middle": (lambda _: good()[:200], "grok/truncated"),
    "the memo read instead of a type": (lambda _: good().replace(b"\x8c\x02i1\x94", b"h\x00NN\x94"), None),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_poisoned_shard_is_refused_by_scan_and_by_conversion(attack, tmp_path):
    build, rule = ATTACKS[attack]
    canary = tmp_path / CANARY
    data = build(canary)
    report = registry(()).read(BytesSource(data), "ckpt-0/tensor00002_000")
    assert report.format == "grok"
    assert report.findings, "a scan lets it pass"
    if rule:
        assert report.findings[0].rule == rule
    assert report.findings[0].rule.startswith("grok/")
    assert report.findings[0].offset is not None
    mini.write_checkpoint(tmp_path / "source")
    shard = tmp_path / "source" / "ckpt-0" / "tensor00005_000"
    shard.write_bytes(data)
    with pytest.raises((Malformed, Refused)) as caught:
        convert(tmp_path / "source", tmp_path / "out")
    assert "tensor00005_000" in caught.value.message
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("*.json"))
    assert not canary.exists()


def convert(source, target, mode="exact"):
    checkpoint = read_checkpoint(source, mini.MINIATURE)
    sources = exact_sources(checkpoint) if mode == "exact" else bf16_sources(checkpoint)
    return convert_to_safetensors(grok_job(checkpoint, sources, mode=mode, shard_bytes=10**9), target)


@pytest.fixture
def source(tmp_path):
    mini.write_checkpoint(tmp_path / "source")
    return tmp_path / "source"


@pytest.mark.parametrize("mode", ["exact", "bf16"])
@pytest.mark.parametrize("bits", [0x7F80, 0xFF80, 0x7FC0])
def test_scales_that_are_not_finite_stop_the_copy(mode, bits, source, tmp_path):
    path = source / "ckpt-0" / "tensor00003_000"
    data = bytearray(path.read_bytes())
    at = shard_of(BytesSource(bytes(data))).scales.offset
    data[at + 6 : at + 8] = bits.to_bytes(2, "little")
    path.write_bytes(data)
    with pytest.raises(Malformed) as caught:
        convert(source, tmp_path / "out", mode)
    assert caught.value.rule == "grok/scales"
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_scales_whose_products_overflow_are_refused(source, tmp_path):
    path = source / "ckpt-0" / "tensor00003_000"
    data = bytearray(path.read_bytes())
    at = shard_of(BytesSource(bytes(data))).scales.offset
    data[at : at + 2] = (0x7F00).to_bytes(2, "little")
    path.write_bytes(data)
    with pytest.raises(Refused, match="overflow"):
        convert(source, tmp_path / "out", "bf16")


def test_a_missing_shard_is_refused(source, tmp_path):
    (source / "ckpt-0" / "tensor00049_000").unlink()
    with pytest.raises(Refused, match=r"1 of 50 shards are missing, the first is tensor00049_000"):
        convert(source, tmp_path / "out")


@pytest.mark.parametrize("name", ["tensor00050_000", "tensor00000_001", "tensor00000_000.bak", "evil.pkl"])
def test_an_extra_file_beside_the_shards_is_refused(name, source, tmp_path):
    shutil.copy(source / "ckpt-0" / "tensor00000_000", source / "ckpt-0" / name)
    with pytest.raises(Refused, match="no shard of this model"):
        convert(source, tmp_path / "out")


def test_shards_in_numeric_layer_order_are_refused_where_shapes_tell(source, tmp_path):
    """Two neighbours exchanged: names no longer fit shapes."""
    place = source / "ckpt-0"
    a, b = place / "tensor00002_000", place / "tensor00003_000"
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)
    with pytest.raises(Refused, match="out of order or of another model"):
        convert(source, tmp_path / "out")


def test_a_float_array_in_the_place_of_a_pair_is_refused(source, tmp_path):
    (source / "ckpt-0" / "tensor00002_000").write_bytes(mini.dumped(np.ones((4, 64, 96), "f4")))
    with pytest.raises(Refused, match="holds float32"):
        convert(source, tmp_path / "out")


def test_a_symbolic_link_to_a_shard_is_not_followed(source, tmp_path):
    shard = source / "ckpt-0" / "tensor00002_000"
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Unavailable):
        convert(source, tmp_path / "out")


@pytest.mark.parametrize("mode", ["exact", "bf16"])
def test_a_shard_exchanged_after_the_plan_is_noticed(mode, source, tmp_path):
    """The same size, another shape: the framing is compared once more while it is copied."""
    checkpoint = read_checkpoint(source, mini.MINIATURE)
    sources = exact_sources(checkpoint) if mode == "exact" else bf16_sources(checkpoint)
    job = grok_job(checkpoint, sources, mode=mode, shard_bytes=10**9)
    path = source / "ckpt-0" / "tensor00002_000"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"K\x04K\x40K\x60\x87", b"K\x04K\x60K\x40\x87"))
    assert path.stat().st_size == len(data)
    assert path.read_bytes() != data
    with pytest.raises(Untrusted, match="changed after the plan"):
        convert_to_safetensors(job, tmp_path / "out")


def test_a_source_touched_while_it_is_converted_is_noticed(source, tmp_path):
    checkpoint = read_checkpoint(source, mini.MINIATURE)
    job = grok_job(checkpoint, exact_sources(checkpoint), mode="exact", shard_bytes=10**9)
    (source / "NOTICE").write_text("one")

    def touch(_):
        (source / "NOTICE").write_text("two")

    with pytest.raises(Untrusted, match="changed while it was converted"):
        convert_to_safetensors(job, tmp_path / "out", progress=touch)


def test_work_begun_from_another_source_is_not_taken_up(source, tmp_path):
    """The same shapes, other weights: shards of two models would stand side by side."""
    checkpoint = read_checkpoint(source, mini.MINIATURE)
    job = grok_job(checkpoint, exact_sources(checkpoint), mode="exact", shard_bytes=100_000)

    class Stopped(Exception):
        pass

    def stop(_):
        if list((tmp_path / "out").glob("model-00001-*")):
            raise Stopped

    with pytest.raises(Stopped):
        convert_to_safetensors(job, tmp_path / "out", progress=stop)
    shutil.rmtree(source)
    mini.write_checkpoint(source, seed=1)
    with pytest.raises(WrongUsage, match="from other files"):
        convert_to_safetensors(job, tmp_path / "out")


def test_a_target_inside_the_source_is_refused(source):
    with pytest.raises(WrongUsage, match="inside the model"):
        convert(source, source / "out")


def test_a_journal_that_is_a_link_is_not_written_through(source, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / JOURNAL).symlink_to(victim)
    with pytest.raises(SteelyardError):
        convert(source, tmp_path / "out")
    assert victim.read_text() == "precious"


def test_one_bit_changed_in_a_converted_tensor_fails_the_rebuild(source, tmp_path):
    convert(source, tmp_path / "out")
    path = tmp_path / "out" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(Untrusted, match=r"tensor000\d\d_000: the tensors rebuild"):
        verify_exact(tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda record: record["files"].pop(), Untrusted),
        (lambda record: record["files"][2]["tensors"].pop(), Untrusted),
        (lambda record: record["files"][2].update(core="os.system"), Malformed),
        (lambda record: record["files"][2].update(flags=1), Malformed),
        (lambda record: record["files"][2].update(sha256="0" * 64), Untrusted),
        (lambda record: record.update(files=[]), Malformed),
        (lambda record: record.update(mode="bf16"), WrongUsage),
    ],
)
def test_a_record_that_was_tampered_with_fails_the_rebuild(change, error, source, tmp_path):
    convert(source, tmp_path / "out")
    path = tmp_path / "out" / "conversion.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    with pytest.raises(error):
        verify_exact(tmp_path / "out")


@pytest.mark.parametrize("how", [{}, {"_use_new_zipfile_serialization": False}], ids=["zip", "legacy"])
def test_a_poisoned_state_dict_is_refused_and_not_run(how, tmp_path):
    canary = tmp_path / CANARY
    torch.save({"a": torch.ones(2), "b": Payload(canary)}, tmp_path / "model.pt", **how)
    with pytest.raises(Refused) as caught:
        read_torch(tmp_path / "model.pt")
    assert any("pickle/global" in rule for rule in caught.value.rules)
    assert not canary.exists()


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_program_is_not_taken_for_weights(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "model.pt"))
    with pytest.raises(Refused):
        read_torch(tmp_path / "model.pt")


@pytest.mark.parametrize("name", ["__metadata__", "a\nb", "\u202egpj", ""])
def test_a_tensor_name_that_loaders_read_otherwise_is_refused(name, tmp_path):
    torch.save({"fine": torch.ones(1), name: torch.ones(2)}, tmp_path / "model.pt")
    with pytest.raises(Refused, match="tensor name"):
        read_torch(tmp_path / "model.pt")


@pytest.mark.parametrize("shard", ["../secret.bin", "/etc/passwd", "a\\b", 7])
def test_an_index_that_leaves_its_folder_is_refused(shard, tmp_path):
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(Malformed) as caught:
        read_torch(tmp_path)
    assert caught.value.rule == "config/index-path"


def test_a_long_name_for_a_tensor_is_refused(tmp_path):
    torch.save({"a" * 257: torch.ones(1)}, tmp_path / "model.pt")
    with pytest.raises((Refused, WrongUsage)):
        read_torch(tmp_path / "model.pt")


def test_a_view_that_unfolds_to_a_terabyte_is_refused(tmp_path):
    torch.save({"bomb": torch.ones(1).expand(1 << 20, 1 << 18)}, tmp_path / "model.pt")
    with pytest.raises(Refused, match="unfold"):
        read_torch(tmp_path / "model.pt")


def test_more_keys_than_any_model_has_are_refused(tmp_path):
    torch.save(dict.fromkeys(range(1_000_001)), tmp_path / "model.pt")
    with pytest.raises(Refused) as caught:
        read_torch(tmp_path / "model.pt")
    assert any("pickle/limit" in rule for rule in caught.value.rules)


def test_two_names_for_one_storage_of_two_sizes_are_refused(tmp_path):
    """The persistent id says more elements than the archive holds."""
    torch.save({"a": torch.arange(4.0)}, tmp_path / "model.pt")
    data = (tmp_path / "model.pt").read_bytes()
    assert data.count(b"K\x04t") == 1
    (tmp_path / "model.pt").write_bytes(data.replace(b"K\x04t", b"K\x05t"))
    with pytest.raises(Refused) as caught:
        read_torch(tmp_path / "model.pt")
    assert caught.value.rules
