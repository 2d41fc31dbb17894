"""PyTorch state_dicts, zip or legacy, one file or sharded, as the input of a conversion. Nothing in them is executed.

The pickle machine follows the file as it does in a scan; here its calls also leave a table: name -> dtype, shape,
stride, offset and storage. Each storage is a range of bytes in the file. A view that is not contiguous is written
contiguous, through a memory map. Two names of one view become one tensor and an alias, or two tensors by choice.
The file is long because the table, the choice of the model in it and the sources share one set of symbols.
"""

import json
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final

import numpy as np

from steelyard.admit.to_safetensors import BLOCK_BYTES, open_input, pieces
from steelyard.admit.to_safetensors_model import Job
from steelyard.admit.to_safetensors_plan import Feed, Range, Tensor, is_safe_name, plan_of
from steelyard.digest import JSON
from steelyard.errors import Malformed, Refused, Unavailable, WrongUsage
from steelyard.formats.base import ByteSource, Finding, Format
from steelyard.formats.hf_config import is_inside
from steelyard.formats.jsonfile import parse
from steelyard.formats.pickle_machine import Broken, Outcome, Slice, run
from steelyard.formats.pickle_values import DictNode, Misfit, Node, Spec, Value
from steelyard.formats.pickled import LEGACY_TORCH
from steelyard.formats.pickled_globals import ALLOWED, ELEMENT_BYTES, Storage, items_of
from steelyard.formats.plain_pickle import read_plain
from steelyard.formats.torch_legacy import FORMAT as LEGACY
from steelyard.formats.torch_legacy import MAX_KEYS_BYTES
from steelyard.formats.torchzip import root_of, storage_of
from steelyard.formats.zip_archive import FORMAT as ZIP
from steelyard.formats.zipped import open_checked, read_archive

INDEX_NAME = "pytorch_model.bin.index.json"
SINGLE_NAMES = ("pytorch_model.bin", "consolidated.00.pth", "model.pt", "model.pth", "model.bin")
SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
MAX_INDEX_BYTES = 64 << 20
MAX_SHARDS = 4096
MAX_ITEMS = 2_000_000  # keys and values of all dicts in a file
MAX_UNFOLDING = 64  # bytes a view may become, for each byte of the file it is in
UNFOLDING_FLOOR = 1 << 20
SHARED = ("alias", "copy")

DTYPES: Final[Mapping[str, str]] = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint8": "U8", "uint16": "U16", "uint32": "U32", "uint64": "U64", "bool": "BOOL",
    "complex64": "C64", "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ", "float8_e8m0fnu": "F8_E8M0",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class View:
    """What a tensor shows of a storage; offset and stride in elements."""

    key: str
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def is_contiguous(self) -> bool:
        expected = 1
        for count, step in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if count != 1 and step != expected:
                return False
            expected *= count
        return True


class _Stored(Node):
    """A storage and its key."""

    kind = "storage"
    key: str = ""


class _Shown(Node):
    """A tensor. `odd` says why it cannot be written as one."""

    view: View | None = None
    odd: str = ""


class _Whole(DictNode):
    """A dict that keeps all its items. `room` is one number for all dicts of a run, in a list of its own."""

    room: ClassVar[list[int]] = [0]

    def keep(self, items: Sequence[Value]) -> None:
        self.count += len(items)
        self.room[0] -= len(items)
        if self.room[0] < 0:
            raise Broken("pickle/limit", f"the dicts hold more than {MAX_ITEMS} keys and values", 0)
        if self.kept is None:
            self.kept = []
        self.kept.extend(items)


_REBUILD = "torch._utils._rebuild_"
_VIEWS = frozenset({f"{_REBUILD}tensor", f"{_REBUILD}tensor_v2", f"{_REBUILD}tensor_v3"})
_WRAPS = frozenset({f"{_REBUILD}parameter", f"{_REBUILD}parameter_with_state"})
_ODD = frozenset(
    {f"{_REBUILD}{name}" for name in ("qtensor", "sparse_tensor", "meta_tensor_no_storage", "nested_tensor")}
)


def _names(module: str, name: str, whole: type[_Whole]) -> Spec | None:
    """The allow-list's own rules, whose results also remember what they were made from."""
    spec = ALLOWED.get((module, name))
    full = f"{module}.{name}"
    if spec is None or spec.call is None:
        return None
    call = spec.call
    if full in _VIEWS:
        return replace(spec, call=lambda args: _shown(call(args), args))
    if full in _WRAPS:
        return replace(spec, call=lambda args: _wrapped(call(args), args))
    if full in _ODD:
        return replace(spec, call=lambda args: _odd(call(args), name))
    if full == "collections.OrderedDict":
        return replace(spec, call=lambda args: _ordered(call(args), args, whole()))
    return None


def _copied(node: Node, like: Value) -> None:
    assert isinstance(like, Node)  # every rule wrapped here returns one
    node.kind, node.fact, node.weight, node.depth = like.kind, like.fact, like.weight, like.depth


def _shown(made: Value, args: Sequence[Value]) -> Value:
    shown = _Shown()
    _copied(shown, made)
    storage, offset = args[0], args[1]
    assert isinstance(storage, _Stored)  # the rule has checked both
    assert type(offset) is int
    shown.view = View(storage.key, str(shown.fact), offset, _sizes(args[2]), _sizes(args[3]))
    bits = args[-1]
    if isinstance(bits, DictNode) and bits.count:
        shown.odd = "a conjugate or negative view"
    return shown


def _sizes(value: Value) -> tuple[int, ...]:
    inner = value.fact if isinstance(value, Node) and value.kind == "Size" else value
    return tuple(size for size in items_of(inner, "a shape") if type(size) is int)


def _wrapped(made: Value, args: Sequence[Value]) -> Value:
    inner = args[0]
    shown = _Shown()
    _copied(shown, made)
    if isinstance(inner, _Shown):
        shown.view, shown.odd = inner.view, inner.odd
    return shown


def _odd(made: Value, name: str) -> Value:
    shown = _Shown()
    _copied(shown, made)
    shown.odd = f"built by {name}"
    return shown


def _ordered(made: Value, args: Sequence[Value], whole: _Whole) -> Value:
    _copied(whole, made)
    if args and isinstance(args[0], Node) and args[0].count:
        whole.fact = "pairs"  # written as one list of pairs, of which the machine keeps a few
    return whole


# One file


@dataclass(frozen=True, slots=True)
class Saved:
    """One torch file: its top value, and where each storage lies."""

    root: Path
    path: str
    size: int
    top: Value
    storages: Mapping[str, Range]


@dataclass(frozen=True, slots=True)
class _Opened:
    """A ByteSource over a descriptor."""

    descriptor: int
    size: int

    def read(self, offset: int, size: int) -> bytes:
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ValueError(f"read of {size} bytes at {offset} is outside {self.size} bytes")
        data = os.pread(self.descriptor, size, offset)
        if len(data) != size:
            raise Unavailable("a file became shorter while it was read")
        return data


def read_saved(root: Path, path: str) -> Saved:
    """Scan one file and read its table. Raises Refused with the scan's findings, Malformed, Unavailable."""
    file = root / path
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise Unavailable(f"cannot read {file}: {error.strerror}") from error
    try:
        source = _Opened(descriptor, os.fstat(descriptor).st_size)
        head = source.read(0, min(source.size, 4096))
        if LEGACY.sniff(head, path):
            _scan(LEGACY, source, path)
            top, storages = _legacy(source)
        elif ZIP.sniff(head, path):
            _scan(ZIP, source, path)
            top, storages = _zip(source, path)
        else:
            raise Refused(f"{path} is no file of torch.save")
    except Malformed as error:
        raise Refused(f"{path} is not converted", (f"{error.rule}: {error.message}",)) from error
    finally:
        os.close(descriptor)
    return Saved(root, path, source.size, top, storages)


def _scan(reader: Format, source: ByteSource, path: str) -> None:
    report = reader.read(source, path)
    if report.findings:
        raise Refused(f"{path} is not converted; scan it for the details", tuple(map(_line, report.findings)))
    if report.format not in {"torch-zip", "torch-legacy"}:
        raise Refused(f"{path} is {report.format}, expected a state_dict saved by torch.save")


def _line(finding: Finding) -> str:
    place = f" at byte {finding.offset}" if finding.offset is not None else ""
    return f"{finding.rule}{place}: {finding.message}"


def _run(content: ByteSource, storages: "_Storages") -> Outcome:
    """Follow a pickle whose scan was clean once more, this time for its table."""

    class Whole(_Whole):
        room: ClassVar[list[int]] = [MAX_ITEMS]

    outcome = run(
        content, storages=storages, names=lambda module, name: _names(module, name, Whole), dicts=Whole
    )
    found = [finding for finding in outcome.findings if finding.rule != "pickle/trailing"]
    if found or outcome.end is None:
        raise Refused("the file is not read as a state_dict", tuple(map(_line, found)))
    return outcome


class _Storages:
    """Persistent ids -> storage symbols that know their key. `used` by key."""

    def __init__(self) -> None:
        self.used: dict[str, Storage] = {}

    def __call__(self, wanted: Value) -> Node:
        key, storage = storage_of(items_of(wanted, "the persistent id"))
        if self.used.setdefault(key, storage).size_bytes != storage.size_bytes:
            raise Misfit(f"storage {key[:80]} has two sizes")
        node = _Stored()
        node.key, node.fact = key, storage
        return node


def _zip(source: ByteSource, path: str) -> tuple[Value, dict[str, Range]]:
    archive = read_archive(source)
    root = root_of({member.name for member in archive.members})
    members = {member.name.removeprefix(root or ""): member for member in archive.members}
    if "data.pkl" not in members:
        raise Refused(f"{path} holds no data.pkl: it is a program or another archive, not a state_dict")
    storages = _Storages()
    outcome = _run(open_checked(source, members["data.pkl"]), storages)
    places = {key: members[f"data/{key}"] for key in storages.used}
    return outcome.result, {key: Range(m.data_offset, m.size) for key, m in places.items()}


def _legacy(source: ByteSource) -> tuple[Value, dict[str, Range]]:
    found = LEGACY_TORCH.match(source.read(0, min(source.size, 4096)))
    assert found  # LEGACY.sniff claimed it
    at = found.end()
    for _ in range(2):
        _, at = read_plain(source, at, MAX_KEYS_BYTES)
    storages = _Storages()
    outcome = _run(Slice(source, at, source.size - at), storages)
    assert outcome.end is not None  # _run has looked
    keys, at = read_plain(source, at + outcome.end, MAX_KEYS_BYTES)
    places = {}
    for key in keys if isinstance(keys, list) else ():
        size = storages.used[str(key)].size_bytes
        places[str(key)] = Range(at + 8, size)
        at += 8 + size
    return outcome.result, places


# Choosing the model


def state_of(saved: Saved, key: str | None) -> dict[str, _Shown]:
    """Name -> tensor of the dict at the top, or at `key` (parts joined by dots).

    Raises WrongUsage naming the keys when the dict there is no plain mapping of names to tensors.
    """
    value, at = saved.top, []
    for part in key.split(".") if key else ():
        at.append(part)
        value = _items(value).get(part) if isinstance(value, Node) else None
        if value is None:
            raise WrongUsage(f"{saved.path} has no key {'.'.join(at)!r}; it has {_keys(saved.top)}")
    if isinstance(value, Node) and value.fact == "pairs":
        raise Refused(f"{saved.path} stores its dict as one list of pairs, which is not read")
    items = _items(value)
    tensors = {name: shown for name, shown in items.items() if isinstance(shown, _Shown)}
    if len(tensors) != len(items) or not items:
        there = f"key {key!r}" if key else "the top"
        raise WrongUsage(
            f"{saved.path}: {there} is no plain state_dict; "
            f"name the part that is one with --key, out of: {_keys(value)}"
        )
    return tensors


def _items(value: Value) -> dict[str, Value]:
    """A dict symbol as a dict of the items whose keys are text; others get a key that cannot be asked for."""
    if not isinstance(value, _Whole):
        return {}
    kept = value.kept or []
    pairs = zip(kept[0::2], kept[1::2], strict=True)
    return {key if isinstance(key, str) else f"\0{number}": item for number, (key, item) in enumerate(pairs)}


def _keys(value: Value) -> str:
    rows = [
        f"{key} ({sum(isinstance(inner, _Shown) for inner in _items(item).values())} tensors)"
        if isinstance(item, _Whole)
        else f"{key} ({'tensor' if isinstance(item, _Shown) else 'no tensor'})"
        for key, item in _items(value).items()
        if key.isprintable()
    ]
    return ", ".join(rows[:12]) + (f" and {len(rows) - 12} more" if len(rows) > 12 else "") or "none"


# Sources


@dataclass(frozen=True, slots=True)
class Viewed:
    """One tensor of a torch file."""

    saved: Saved
    name: str
    view: View

    @property
    def path(self) -> str:
        return self.saved.path

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (Tensor(self.name, DTYPES[self.view.dtype], self.view.shape),)

    @property
    def reads(self) -> int:
        return self.tensors[0].size

    @property
    def whole(self) -> bool:
        return False

    @property
    def ranges(self) -> tuple[Range, ...]:
        if not self.view.is_contiguous:
            return ()
        storage = self.saved.storages[self.view.key]
        return (Range(storage.offset + self.view.offset * ELEMENT_BYTES[self.view.dtype], self.reads),)

    def open(self) -> int:
        return open_input(self.saved.root / self.saved.path, self.saved.size)

    def blocks(self, descriptor: int, feed: Feed) -> Iterator[bytes]:  # noqa: ARG002 - never read whole
        if not self.reads:
            return
        if self.ranges:
            yield from pieces(descriptor, self.ranges[0].offset, self.reads)
        else:
            yield from self._gathered(descriptor)

    def _gathered(self, descriptor: int) -> Iterator[bytes]:
        """Elements of a strided view in row-major order, some rows of its first axis at a time."""
        width = ELEMENT_BYTES[self.view.dtype]
        start = self.saved.storages[self.view.key].offset + self.view.offset * width
        first = self.view.shape[0]
        step = max(1, BLOCK_BYTES // max(1, self.reads // first))
        with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as mapped:
            strided: np.ndarray[Any, np.dtype[np.void]] = np.ndarray(
                self.view.shape,
                dtype=f"V{width}",
                buffer=mapped,
                offset=start,
                strides=tuple(step * width for step in self.view.stride),
            )
            try:
                for row in range(0, first, step):
                    yield strided[row : row + step].tobytes()
            finally:
                del strided  # the map cannot be closed while an array looks into it


@dataclass(frozen=True, slots=True)
class Torch:
    """A torch model (a folder or a file) to convert: its files, a source for each tensor, and the names left out."""

    root: Path
    files: tuple[str, ...]
    sources: tuple[Viewed, ...]
    aliases: Mapping[str, str]

    def job(self, *, shard_bytes: int) -> Job:
        """The conversion, planned. Aliases stand in the header's own strings, where safetensors.torch looks."""
        aliases = dict(sorted(self.aliases.items()))
        metadata = {"format": "pt", **aliases}

        def record(digests: Mapping[str, str]) -> dict[str, JSON]:
            rows: list[JSON] = [{"path": path, "sha256": digests[path]} for path in self.files]
            return {"conversion": "torch", "mode": "exact", "files": rows, "aliases": {**aliases}}

        plan = plan_of(self.sources, mode="exact", shard_bytes=shard_bytes, metadata=metadata)
        return Job(self.root, "torch", plan, self.files, record)


def read_torch(place: Path, *, key: str | None = None, shared: str = "alias") -> Torch:
    """The state_dict in a file, or in a folder that holds one file or shards with an index.

    key: where the state_dict stands inside the file.  shared: `alias` writes a view that has several names once,
    `copy` once for each name.
    Raises WrongUsage, Refused (a finding, a dtype or name safetensors has no place for), Malformed, Unavailable.
    """
    if shared not in SHARED:
        raise ValueError(f"shared is {shared!r}, expected one of {', '.join(SHARED)}")
    folder = place if place.is_dir() else place.parent
    files = _files(place)
    sources: list[Viewed] = []
    aliases: dict[str, str] = {}
    for path, wanted in files.items():
        saved = read_saved(folder, path)
        tensors = state_of(saved, key)
        if wanted is not None and wanted != tensors.keys():
            odd = min(wanted ^ tensors.keys())
            raise Refused(f"{path} and {INDEX_NAME} disagree about tensor {odd!r}")
        found = [_viewed(saved, name, shown) for name, shown in sorted(tensors.items())]
        sources += _once(found, aliases) if shared == "alias" else found
    return Torch(place, tuple(files), tuple(sources), aliases)


def _once(found: list[Viewed], aliases: dict[str, str]) -> list[Viewed]:
    kept: dict[View, Viewed] = {}
    for one in found:
        if one.view in kept and one.reads:
            aliases[one.name] = kept[one.view].name
        else:
            kept.setdefault(one.view, one)
    return [one for one in found if one.name not in aliases]


def _viewed(saved: Saved, name: str, shown: _Shown) -> Viewed:
    if not is_safe_name(name):
        raise Refused(f"{saved.path}: the tensor name {name[:80]!a} is unsafe; rename it at the source")
    if shown.odd or shown.view is None:
        why = shown.odd or "no view of a storage"
        raise Refused(
            f"{saved.path}: {name} is {why}, which safetensors has no form for; make it dense first"
        )
    if shown.view.dtype not in DTYPES:
        raise Refused(
            f"{saved.path}: {name} is {shown.view.dtype}, which safetensors does not have; cast it first"
        )
    viewed = Viewed(saved, name, shown.view)
    if viewed.reads > MAX_UNFOLDING * saved.size + UNFOLDING_FLOOR:
        raise Refused(f"{saved.path}: {name} would unfold to {viewed.reads:,} bytes; store it as it is meant")
    return viewed


def is_torch(place: Path) -> bool:
    """Whether a path looks like a file of torch.save, or a folder with one or with an index of such shards."""
    if place.is_file():
        return place.suffix in SUFFIXES
    return (place / INDEX_NAME).is_file() or any((place / name).is_file() for name in SINGLE_NAMES)


def _files(place: Path) -> dict[str, frozenset[str] | None]:
    """File -> the names an index expects in it."""
    if place.is_file():
        return {place.name: None}
    index = place / INDEX_NAME
    singles = [name for name in SINGLE_NAMES if (place / name).is_file()]
    if not index.exists():
        if len(singles) != 1:
            raise WrongUsage(f"{place} holds {len(singles)} files of torch.save; name the file to convert")
        return {singles[0]: None}
    if singles:
        raise Refused(f"{place} holds an index and {singles[0]}: it is unclear which is the model")
    try:
        with index.open("rb") as file:
            body = parse(file.read(MAX_INDEX_BYTES + 1), max_bytes=MAX_INDEX_BYTES)
    except OSError as error:
        raise Unavailable(f"cannot read {index}: {error.strerror}") from error
    weight_map = body.get("weight_map") if isinstance(body, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise Malformed(f"{INDEX_NAME} has no weight_map", rule="config/shape")
    shards: dict[str, set[str]] = {}
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not is_inside(shard):
            raise Malformed(f"{INDEX_NAME} names {json.dumps(shard)[:80]}", rule="config/index-path")
        shards.setdefault(shard, set()).add(tensor)
    if len(shards) > MAX_SHARDS:
        raise Refused(f"{INDEX_NAME} names {len(shards)} shards; at most {MAX_SHARDS} are read")
    return {name: frozenset(shards[name]) for name in sorted(shards)}
