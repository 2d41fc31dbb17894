"""Whole models of torch.nn in a pickle: clean as PyTorch writes them, refused when anything could be called later."""

import importlib
import io
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from steelyard.formats.base import BytesSource  # noqa: E402
from steelyard.formats.pickled_torch_modules import MODULES  # noqa: E402
from steelyard.formats.torch_legacy import FORMAT as LEGACY  # noqa: E402
from steelyard.formats.zip_archive import FORMAT  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
OLDER = Path(__file__).parent.parent / "data" / "torch"
nn = torch.nn


def rules_of(value: object) -> set[str]:
    out = io.BytesIO()
    torch.save(value, out)
    return {finding.rule for finding in FORMAT.read(BytesSource(out.getvalue()), "model.pt").findings}


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(
            nn.Embedding(5, 4), nn.Linear(4, 4), nn.GELU(), nn.BatchNorm1d(4), nn.Dropout(0.1)
        ),
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.ConvTranspose2d(4, 3, 2), nn.Upsample(scale_factor=2)
        ),
        lambda: nn.MultiheadAttention(4, 2),
        lambda: nn.utils.weight_norm(nn.Linear(2, 2)),
        lambda: nn.utils.spectral_norm(nn.Linear(2, 2)),
        lambda: nn.TransformerEncoderLayer(4, 2, 8, activation="gelu"),
        lambda: nn.Transformer(4, 2, 1, 1, 8),
        lambda: nn.GRU(3, 4, 2, bidirectional=True),
        lambda: nn.ModuleDict(
            {"a": nn.ModuleList([nn.PReLU()]), "b": nn.ParameterList([nn.Parameter(torch.ones(2))])}
        ),
        lambda: [nn.CrossEntropyLoss(torch.ones(3)), nn.PoissonNLLLoss()],
        lambda: torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(2, 2)), {nn.Linear}),
    ],
)
def test_a_model_of_listed_layers_is_clean(make):
    assert rules_of(make()) == set()


@pytest.mark.parametrize("path", sorted(OLDER.glob("[lms][eot][gda]*.pt")), ids=lambda path: path.name)
def test_models_of_older_versions_are_clean(path):
    data = path.read_bytes()
    known = LEGACY if path.name.startswith("legacy") else FORMAT
    assert known.sniff(data[:4096], path.name)
    assert known.read(BytesSource(data), path.name).findings == ()


class Own(nn.Module):
    pass


def test_a_class_of_its_own_is_refused():
    assert "pickle/global" in rules_of(Own())


@pytest.mark.parametrize(
    "register", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"]
)
def test_a_hook_is_refused(register):
    model = nn.Linear(2, 2)
    getattr(model, register)(torch.nn.functional.relu)
    assert "pickle/build" in rules_of(model)


def test_a_function_that_is_no_activation_is_refused():
    layer = nn.TransformerEncoderLayer(4, 2, 8, activation=torch.hub.load)
    assert "pickle/global" in rules_of(layer)


HOOKS = {
    "WeightNorm",
    "SpectralNorm",
    "SpectralNormStateDictHook",
    "SpectralNormLoadStateDictPreHook",
    "_WrappedHook",
}


def test_every_listed_class_of_this_version_is_a_module_and_most_exist():
    found = 0
    for module, name in MODULES:
        try:
            kind = getattr(importlib.import_module(module), name, None)
        except ImportError:
            continue  # of the older version
        if isinstance(kind, type) and name not in HOOKS and not issubclass(kind, torch.ScriptObject):
            assert issubclass(kind, nn.Module)
            found += 1
    assert found > 250


def test_a_hook_inside_a_norm_hook_is_refused():
    model = nn.utils.weight_norm(nn.Linear(2, 2))
    (hook,) = model._forward_pre_hooks.values()
    hook.name = model.register_forward_hook(print)
    assert "pickle/build" in rules_of(model)
