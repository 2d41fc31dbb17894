"""What a conversion to safetensors will write, before it writes anything: tensors, where they come from, shards."""

import hashlib
import json
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Protocol

from steelyard.digest import JSON, canonical_json
from steelyard.errors import Refused, WrongUsage
from steelyard.formats.safetensors import DTYPE_BITS

SHARD_BYTES = 5_000_000_000
MAX_TENSORS = 400_000
MAX_NAME_CHARS = 256
HEADER_ALIGNMENT = 8
ENTRY_BYTES = 512  # more than a header entry takes beside its name

Feed = Callable[[bytes], None]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of the result; `dtype` as safetensors writes it."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes. Raises ValueError for a dtype of less than a byte."""
        bits = DTYPE_BITS[self.dtype]
        if bits % 8:
            raise ValueError(f"{self.dtype} is packed; its tensors are not written")
        return prod(self.shape) * (bits // 8)


@dataclass(frozen=True, slots=True)
class Range:
    """Bytes of an input file that are a tensor as it stands."""

    offset: int
    size: int


class Source(Protocol):
    """Where the bytes of some tensors come from.

    `path` is relative to the model's folder and `reads` is what a run reads of it, in bytes. `ranges` has one entry
    for each tensor when all are plain copies, else none. `blocks` yields the tensors' bytes in order, and hands every
    byte of the file to `feed` in file order when `whole` says so.
    """

    @property
    def path(self) -> str: ...
    @property
    def tensors(self) -> tuple[Tensor, ...]: ...
    @property
    def reads(self) -> int: ...
    @property
    def whole(self) -> bool: ...
    @property
    def ranges(self) -> tuple[Range, ...]: ...
    def open(self) -> int: ...
    def blocks(self, descriptor: int, feed: Feed) -> Iterator[bytes]: ...


@dataclass(frozen=True, slots=True)
class Shard:
    """One output file: its header bytes, and what follows them."""

    name: str
    header: bytes
    sources: tuple[Source, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything a conversion will do, before it does anything."""

    shards: tuple[Shard, ...]
    bytes_in: int
    bytes_out: int
    parameters: int
    mode: str

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """In file order."""
        return tuple(tensor for shard in self.shards for source in shard.sources for tensor in source.tensors)

    @property
    def digest(self) -> str:
        """SHA-256 in hex over mode, shard names, headers and input paths: what the journal belongs to."""
        rows: list[JSON] = [
            [shard.name, hashlib.sha256(shard.header).hexdigest(), [s.path for s in shard.sources]]
            for shard in self.shards
        ]
        return hashlib.sha256(canonical_json({"mode": self.mode, "shards": rows})).hexdigest()


def plan_of(
    sources: Sequence[Source], *, mode: str, shard_bytes: int = SHARD_BYTES, metadata: Mapping[str, str] = {}
) -> Plan:
    """Fill shards of at most `shard_bytes` in order; a tensor larger than that gets a shard of its own.

    Raises Refused for names that are unsafe, equal or too many; WrongUsage when there is nothing to write.
    """
    _check_names([tensor.name for source in sources for tensor in source.tensors])
    groups: list[list[Source]] = []
    room = -1
    for source in sources:
        size = sum(tensor.size + ENTRY_BYTES + 4 * len(tensor.name) for tensor in source.tensors)
        if room < size or not groups:
            groups.append([])
            room = shard_bytes
        groups[-1].append(source)
        room -= size
    if not groups:
        raise WrongUsage("there is no tensor to write")
    shards = tuple(
        _shard(_name_of(number, len(groups)), tuple(sorted(group, key=_width, reverse=True)), metadata)
        for number, group in enumerate(groups, 1)
    )
    return Plan(
        shards,
        bytes_in=sum(source.reads for source in sources),
        bytes_out=sum(shard.size for shard in shards),
        parameters=sum(prod(t.shape) for source in sources for t in source.tensors if not _is_scale(t)),
        mode=mode,
    )


def _is_scale(tensor: Tensor) -> bool:
    return tensor.name.endswith(".w.scales")


def _check_names(names: list[str]) -> None:
    if len(names) > MAX_TENSORS:
        raise Refused(f"{len(names)} tensors; at most {MAX_TENSORS} are converted")
    for name in names:
        if not is_safe_name(name):
            raise Refused(
                f"the tensor name {name[:80]!a} is empty, too long, unprintable or reserved; rename it at the source"
            )
    if len(set(names)) != len(names):
        twice = min(name for name in set(names) if names.count(name) > 1)
        raise Refused(f"two tensors are named {twice!r}")


def is_safe_name(name: str) -> bool:
    """Printable, in one Unicode form, no spaces around it, and not the header's own key."""
    return (
        0 < len(name) <= MAX_NAME_CHARS
        and name.isprintable()
        and name == name.strip()
        and unicodedata.is_normalized("NFC", name)
        and name != "__metadata__"
    )


def _name_of(number: int, count: int) -> str:
    return "model.safetensors" if count == 1 else f"model-{number:05d}-of-{count:05d}.safetensors"


def _width(source: Source) -> int:
    """Widest elements first keep every tensor aligned to its own width, which torch's reader needs."""
    return max(DTYPE_BITS[tensor.dtype] for tensor in source.tensors)


def _shard(name: str, sources: tuple[Source, ...], metadata: Mapping[str, str]) -> Shard:
    entries: dict[str, JSON] = {}
    if metadata:
        entries["__metadata__"] = dict(sorted(metadata.items()))
    at = 0
    for source in sources:
        for tensor in source.tensors:
            if at % (DTYPE_BITS[tensor.dtype] // 8):
                raise Refused(
                    f"{tensor.name} would stand at {at}, which its {tensor.dtype} elements do not divide"
                )
            entries[tensor.name] = {
                "dtype": tensor.dtype,
                "shape": list(tensor.shape),
                "data_offsets": [at, at + tensor.size],
            }
            at += tensor.size
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT)
    header = len(text).to_bytes(8, "little") + text
    return Shard(name, header, sources, len(header) + at)
