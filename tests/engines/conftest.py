"""One tiny GGUF for all tests of the embedded engine, made by our own converter."""

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

import pytest

from steelyard.admit.to_gguf import convert
from steelyard.digest import Digest
from steelyard.engines.embedded import EmbeddedEngine


@dataclass(frozen=True)
class TinyGguf:
    path: Path
    sha256: str

    def engine(self, *, slots: int = 1, context: int | None = 256) -> EmbeddedEngine:
        digest = Digest("sha256", self.sha256)
        return EmbeddedEngine(
            self.path, digest, file_sha256=self.sha256, context=context, slots=slots, threads=1
        )


def _tiny_model():
    path = Path(__file__).with_name("tiny_model.py")
    spec = importlib.util.spec_from_file_location("tiny_model", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory) -> TinyGguf:
    folder = tmp_path_factory.mktemp("tiny")
    source = _tiny_model().write_tiny_model(folder / "source")
    path = folder / "tiny.gguf"
    convert(source, path, outtype="f16")
    return TinyGguf(path, hashlib.sha256(path.read_bytes()).hexdigest())
