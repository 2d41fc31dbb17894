"""The proof that an exact conversion lost nothing: rebuild the pickles' digests from the safetensors alone.

conversion.json names each original shard, its SHA-256 and what its framing depends on. The framing is written anew,
the payloads are read from the converted tensors, and the SHA-256 over both must be the original's.
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from steelyard.admit.to_safetensors import INDEX, RECORD, pieces
from steelyard.digest import JSON
from steelyard.errors import Malformed, Unavailable, Untrusted, WrongUsage
from steelyard.formats.grok import PLAIN_FLAGS
from steelyard.formats.grok_pickle import CORES, Sentence, framing_of
from steelyard.formats.jsonfile import parse
from steelyard.formats.safetensors import TensorInfo, header_of
from steelyard.model import File

MAX_JSON_BYTES = 64 << 20
_SHARD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}\.safetensors")


@dataclass(frozen=True, slots=True)
class Recorded:
    """One original shard as conversion.json states it."""

    file: File
    core: str
    flags: int
    tensors: tuple[str, ...]


def verify_exact(converted: Path, *, progress: Callable[[int], None] = lambda _: None) -> tuple[File, ...]:
    """The original files, each rebuilt from the tensors in `converted` and found equal to its recorded digest.

    Raises Untrusted naming the first file that comes out otherwise, WrongUsage when this is no exact conversion,
    Malformed, Unavailable.
    """
    recorded = _record(converted)
    with _tensors(converted) as tensors:
        for entry in recorded:
            rebuilt = _rebuild(entry, tensors, progress)
            if rebuilt != entry.file.sha256:
                raise Untrusted(
                    f"{entry.file.path}: the tensors rebuild {rebuilt}, the record says {entry.file.sha256}; "
                    "convert the checkpoint again"
                )
        named = {name for entry in recorded for name in entry.tensors}
        if odd := sorted(named ^ tensors.keys()):
            raise Untrusted(
                f"{len(odd)} tensors stand in the files or the record only, the first is {odd[0]!r}"
            )
    return tuple(entry.file for entry in recorded)


@dataclass(frozen=True, slots=True)
class _Place:
    descriptor: int
    offset: int
    info: TensorInfo


def _rebuild(entry: Recorded, tensors: Mapping[str, _Place], progress: Callable[[int], None]) -> str:
    missing = [name for name in entry.tensors if name not in tensors]
    if missing:
        raise Untrusted(f"{entry.file.path}: the tensor {missing[0]!r} is not there")
    places = [tensors[name] for name in entry.tensors]
    sentence = Sentence(
        entry.core, len(places) == 2, tuple(place.info.shape for place in places), entry.flags
    )
    hasher = hashlib.sha256()
    payloads = iter(places)
    for stretch in framing_of(sentence):
        hasher.update(stretch.framing)
        if stretch.payload_bytes is None:
            continue
        place = next(payloads)
        if place.info.dtype != stretch.dtype:
            raise Untrusted(f"{place.info.name} is {place.info.dtype}, the original is {stretch.dtype}")
        for block in pieces(place.descriptor, place.offset, stretch.payload_bytes):
            hasher.update(block)
            progress(len(block))
    return hasher.hexdigest()


def _load(path: Path) -> JSON:
    try:
        with path.open("rb") as file:
            return parse(file.read(MAX_JSON_BYTES + 1), max_bytes=MAX_JSON_BYTES)
    except OSError as error:
        raise Unavailable(f"cannot read {path}: {error.strerror}") from error


def _record(converted: Path) -> tuple[Recorded, ...]:
    path = converted / RECORD
    if not path.exists():
        raise WrongUsage(f"{converted} has no {RECORD}; only a conversion of Grok-1 can be verified")
    match _load(path):
        case {"conversion": "grok-1", "mode": "exact", "files": list(rows)} if rows:
            return tuple(_recorded(row) for row in rows)
        case {"mode": str(mode)} if mode != "exact":
            raise WrongUsage(f"{converted} was converted in mode {mode}, which cannot be undone")
    raise Malformed(f"{path} is no record of an exact conversion of Grok-1", rule="conversion/record")


def _recorded(row: JSON) -> Recorded:
    match row:
        case {
            "path": str(path),
            "size": int(size),
            "sha256": str(digest),
            "core": str(core),
            "flags": int(flags),
            "tensors": [str(first), *rest],
        } if core in CORES and flags & ~PLAIN_FLAGS == 0 and len(rest) <= 1:
            names = (first, *(str(name) for name in rest))
            if re.fullmatch(r"[0-9a-f]{64}", digest) and size >= 0:
                return Recorded(File(path, size, digest), core, flags, names)
    raise Malformed(f"{RECORD} has a row that is no shard of Grok-1", rule="conversion/record")


def _names(converted: Path) -> list[str]:
    index = converted / INDEX
    if not index.exists():
        return ["model.safetensors"]
    body = _load(index)
    weight_map = body.get("weight_map") if isinstance(body, dict) else None
    if not isinstance(weight_map, dict):
        raise Malformed(f"{index} has no weight_map", rule="conversion/record")
    names = sorted({name for name in weight_map.values() if isinstance(name, str)})
    if not all(_SHARD.fullmatch(name) for name in names):
        raise Malformed(f"{index} names a file outside its folder", rule="conversion/record")
    return names


@dataclass(frozen=True, slots=True)
class _Opened:
    """A ByteSource over a descriptor."""

    descriptor: int
    size: int

    def read(self, offset: int, size: int) -> bytes:
        data = os.pread(self.descriptor, size, offset)
        if len(data) != size:
            raise ValueError(f"read of {size} bytes at {offset} is outside {self.size} bytes")
        return data


@contextmanager
def _tensors(converted: Path) -> Iterator[dict[str, _Place]]:
    """Every tensor of the folder by name, its file open."""
    found: dict[str, _Place] = {}
    with ExitStack() as stack:
        for name in _names(converted):
            try:
                file = stack.enter_context((converted / name).open("rb"))
            except OSError as error:
                raise Unavailable(f"cannot read {converted / name}: {error.strerror}") from error
            descriptor = file.fileno()
            header = header_of(_Opened(descriptor, os.fstat(descriptor).st_size))
            for info in header.tensors:
                found[info.name] = _Place(descriptor, header.data_start + info.begin, info)
        yield found
