"""One tiny GGUF for all tests of the embedded engine, made by our own converter."""

import hashlib
import importlib.util
import struct
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


def _beside(name: str):
    path = Path(__file__).with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _converted(folder: Path, **settings) -> TinyGguf:
    source = _beside("tiny_model").write_tiny_model(folder / "source", **settings)
    path = folder / "tiny.gguf"
    convert(source, path, outtype="f16")
    return TinyGguf(path, hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture(scope="session")
def tiny_gguf(tmp_path_factory) -> TinyGguf:
    return _converted(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tool_template():
    return _beside("tool_template")


@pytest.fixture(scope="session")
def tool_gguf(tmp_path_factory, tool_template) -> TinyGguf:
    """A model whose template has role markers, tools and reasoning."""
    folder = tmp_path_factory.mktemp("tools")
    return _converted(folder, template=tool_template.TEMPLATE, context=2048, specials=tool_template.SPECIALS)


@pytest.fixture(scope="session")
def embedding_gguf(tmp_path_factory, tiny_gguf) -> TinyGguf:
    """The tiny model with a pooling type (3: the last token), which makes it an embedding model."""
    data = tiny_gguf.path.read_bytes()
    count = struct.unpack_from("<Q", data, 16)[0]
    key, padding = b"llama.pooling_type", b"pad.d"
    pooling = struct.pack("<Q", len(key)) + key + struct.pack("<II", 4, 3)
    # Text that brings the addition to 64 bytes: the tensors behind it stay aligned.
    text = b"x" * (64 - len(pooling) - 8 - len(padding) - 4 - 8)
    filler = struct.pack("<Q", len(padding)) + padding + struct.pack("<IQ", 8, len(text)) + text
    path = tmp_path_factory.mktemp("embedding") / "tiny.gguf"
    path.write_bytes(data[:16] + struct.pack("<Q", count + 2) + pooling + filler + data[24:])
    return TinyGguf(path, hashlib.sha256(path.read_bytes()).hexdigest())
