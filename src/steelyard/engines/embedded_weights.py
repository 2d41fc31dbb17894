"""The weights of the embedded engine: one open file, hashed and read through the descriptor it is loaded from."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from steelyard.engines.embedded_markers import markers_of
from steelyard.engines.embedded_prompt import Traits
from steelyard.engines.embedded_vocabulary import vocabulary_of
from steelyard.errors import Malformed, Untrusted
from steelyard.formats.gguf import metadata_of

DEFAULT_CONTEXT = 4096
BLOCK_BYTES = 1 << 20
EMBEDDING_POOLINGS = (1, 2, 3)  # mean, first token, last token; a generating model has none
NORMALISER_KEY = "steelyard.tokenizer.normaliser"  # written by our converter; llama.cpp does not normalise


@dataclass(frozen=True, slots=True)
class Stamp:
    """What the kernel changes when a file's bytes or name change."""

    device: int
    inode: int
    size: int
    modified_ns: int
    changed_ns: int

    @classmethod
    def of(cls, fd: int) -> "Stamp":
        stat = os.fstat(fd)
        return cls(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class _OpenFile:
    """A ByteSource over the descriptor that is hashed and loaded."""

    fd: int

    @property
    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def read(self, offset: int, size: int) -> bytes:
        data = os.pread(self.fd, size, offset)
        if len(data) != size:
            raise ValueError(f"read of {size} bytes at {offset} found {len(data)}")
        return data


@dataclass(frozen=True, slots=True)
class Verified:
    """A file whose hash was right, and what its header says. `context`: what the model was made for."""

    stamp: Stamp
    context: int
    traits: Traits


def verified(fd: int, path: Path, file_sha256: str, *, context: int | None, slots: int) -> Verified:
    """Hash and read an open GGUF. Raises Untrusted when the hash is another, Malformed when it is no GGUF."""
    stamp = Stamp.of(fd)
    hasher = hashlib.sha256()
    offset = 0
    while block := os.pread(fd, BLOCK_BYTES, offset):
        hasher.update(block)
        offset += len(block)
    if hasher.hexdigest() != file_sha256:
        raise Untrusted(
            f"{path} has sha256 {hasher.hexdigest()}, expected {file_sha256}: admit the file again"
        )
    file = _OpenFile(fd)
    metadata = metadata_of(file)
    architecture = metadata.get("general.architecture")
    trained = metadata.get(f"{architecture}.context_length")
    if not isinstance(trained, int) or trained < 1:
        raise Malformed(f"{path} names no context length", rule="gguf/context")
    vocabulary = vocabulary_of(file)
    template = str(metadata.get("tokenizer.chat_template", ""))
    markers = markers_of(vocabulary.control, vocabulary.defined, template)
    traits = Traits(
        context=context or min(trained, DEFAULT_CONTEXT),
        slots=slots,
        composes=metadata.get(NORMALISER_KEY) == "NFC",
        embeds=metadata.get(f"{architecture}.pooling_type") in EMBEDDING_POOLINGS,
        tools="tool" in template,
        tokens=vocabulary.size,
        markers=markers[0],
        own_markers=markers[1],
    )
    return Verified(stamp, trained, traits)
