"""Read an OCI image layout that holds a model and its evidence (see oci_export.py). Every byte is hashed again."""

import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from steelyard.admit.oci_export import DIGEST, ENVELOPE, FILEPATH, IS_FILE, MANIFEST, MODEL, REF
from steelyard.blobs import Blobs
from steelyard.digest import sha256
from steelyard.disk import unavailable
from steelyard.errors import Malformed
from steelyard.evidence import MAX_ENVELOPE_BYTES, PREDICATE_PREFIX, Evidence
from steelyard.model import File, Model

MAX_DOCUMENT_BYTES = 64 << 20
MAX_EVIDENCE = 10_000

_BLOB = re.compile(r"(?:\./)?blobs/sha256/([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class Imported:
    """A model whose bytes are in the store now, and the evidence that came with it, not yet believed."""

    model: Model
    path: Path
    evidence: tuple[Evidence, ...]


def import_layout(path: Path, blobs: Blobs, progress: Callable[[int], None]) -> Imported:
    """Copy the one model of a layout into `blobs`, every byte hashed. Raises Malformed (rule oci/...), Unavailable."""
    with _reader(path) as reader:
        manifest, described = _model_manifest(reader)
        layers = [_layer(layer) for layer in _objects(manifest, "layers")]
        model = _model(manifest, described, layers, path.stem)
        for file in model.files:
            if not blobs.path(file.sha256).exists():
                with reader.open(file.sha256) as stream:
                    blobs.put(stream, file, progress)
        evidence = tuple(_evidence(reader, str(described["digest"])))
        _check_names(model, evidence)
        kept = blobs.keep(model, Path(layers[0][0]))
    return Imported(model, kept, evidence)


class _Reader(Protocol):
    def open(self, sha256_hex: str) -> IO[bytes]: ...

    def index(self) -> bytes: ...


class _FolderReader:
    def __init__(self, root: Path) -> None:
        self._root = root

    def open(self, sha256_hex: str) -> IO[bytes]:
        return _raw(self._root / "blobs" / "sha256" / sha256_hex)

    def index(self) -> bytes:
        with _raw(self._root / "index.json") as stream:
            return _bounded(stream, MAX_DOCUMENT_BYTES)


class _TarReader:
    """Regular files of the names a layout has; anything else in the archive is a refusal."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        self._blobs: dict[str, tarfile.TarInfo] = {}
        self._index: tarfile.TarInfo | None = None
        for entry in archive:
            name = entry.name.removeprefix("./")
            blob = _BLOB.fullmatch(entry.name)
            if entry.isdir() or (entry.isreg() and name == "oci-layout"):
                continue
            if not entry.isreg() or not (blob or name == "index.json"):
                raise Malformed(f"{entry.name!a} has no place in an OCI layout", rule="oci/layout")
            if blob:
                self._blobs[blob[1]] = entry
            else:
                self._index = entry

    def open(self, sha256_hex: str) -> IO[bytes]:
        entry = self._blobs.get(sha256_hex)
        if entry is None:
            raise Malformed(
                f"the layout names the blob {sha256_hex} and does not hold it", rule="oci/missing"
            )
        return self._extract(entry)

    def index(self) -> bytes:
        if self._index is None:
            raise Malformed("no index.json: not an OCI layout", rule="oci/layout")
        with self._extract(self._index) as stream:
            return _bounded(stream, MAX_DOCUMENT_BYTES)

    def _extract(self, entry: tarfile.TarInfo) -> IO[bytes]:
        stream = self._archive.extractfile(entry)
        assert stream is not None  # regular files only
        return stream


@contextmanager
def _reader(path: Path) -> Iterator[_Reader]:
    if path.is_dir():
        yield _FolderReader(path)
        return
    try:
        with unavailable(f"cannot read {path}"), tarfile.open(path, "r:") as archive:
            yield _TarReader(archive)
    except tarfile.TarError as error:
        raise Malformed(
            f"{path}: neither a folder nor a plain tar file: {error}", rule="oci/layout"
        ) from error


def _raw(path: Path) -> IO[bytes]:
    if path.is_symlink() or not path.is_file():
        raise Malformed(f"the layout names {path.name} and does not hold it", rule="oci/missing")
    with unavailable(f"cannot read {path}"):
        return path.open("rb", buffering=0)


def _bounded(stream: IO[bytes], limit: int) -> bytes:
    parts = []
    left = limit + 1
    while left > 0 and (block := stream.read(min(left, 1 << 20))):
        parts.append(block)
        left -= len(block)
    if left <= 0:
        raise Malformed(f"a document of more than {limit} bytes", rule="oci/size")
    return b"".join(parts)


def _fetch(reader: _Reader, digest: object, limit: int = MAX_DOCUMENT_BYTES) -> bytes:
    """A document by its digest, which it must have."""
    hex_ = _hex(digest)
    with reader.open(hex_) as stream:
        data = _bounded(stream, limit)
    if sha256(data).hex != hex_:
        raise Malformed(f"the blob {hex_} holds other bytes", rule="oci/changed")
    return data


def _model_manifest(reader: _Reader) -> tuple[dict[str, object], dict[str, object]]:
    """The manifest of the one model in the layout, and its descriptor in the index."""
    found = [
        (manifest, entry)
        for entry in _objects(_parse(reader.index()), "manifests")
        if entry.get("mediaType") == MANIFEST and entry.get("artifactType") in {MODEL, None}
        if (manifest := _parse(_fetch(reader, entry.get("digest")))).get("artifactType") == MODEL
    ]
    if len(found) != 1:
        raise Malformed(f"{len(found)} models in the layout, expected one", rule="oci/layout")
    return found[0]


def _evidence(reader: _Reader, subject: str) -> Iterator[Evidence]:
    entries = _objects(_parse(reader.index()), "manifests")
    if len(entries) > MAX_EVIDENCE:
        raise Malformed(f"{len(entries)} manifests; at most {MAX_EVIDENCE} are read", rule="oci/size")
    for entry in entries:
        if entry.get("mediaType") != MANIFEST or entry.get("artifactType") != ENVELOPE:
            continue
        manifest = _parse(_fetch(reader, entry.get("digest")))
        about = manifest.get("subject")
        if isinstance(about, dict) and about.get("digest") == subject:
            for layer in _objects(manifest, "layers"):
                yield Evidence.parse(_fetch(reader, layer.get("digest"), MAX_ENVELOPE_BYTES))


def _model(
    manifest: Mapping[str, object],
    described: Mapping[str, object],
    layers: list[tuple[str, int, str]],
    name: str,
) -> Model:
    """The model of these layers, with the digest that the layout states, if it states one."""
    if not layers:
        raise Malformed("a model without files", rule="oci/layout")
    notes = _annotations(manifest)
    is_file = notes.get(IS_FILE) == "true" and len(layers) == 1
    files = tuple(File("." if is_file else path, size, digest) for path, size, digest in layers)
    model = Model(str(_annotations(described).get(REF, name)), files)
    stated = notes.get(DIGEST, str(model.digest))
    if stated != str(model.digest):
        raise Malformed(f"the layout says {stated}, its files give {model.digest}", rule="oci/digest")
    return model


def _check_names(model: Model, evidence: Iterable[Evidence]) -> None:
    """The digest covers contents, not names: evidence about these bytes under other names is about another model."""
    here = {(file.path, file.size, file.sha256) for file in model.files}
    for item in evidence:
        statement = item.statement
        if statement.predicate_type == f"{PREDICATE_PREFIX}manifest:v1":
            listed = statement.predicate.get("files")
            there = {
                (f.get("path"), f.get("size"), f.get("sha256"))
                for f in (listed if isinstance(listed, list) else [])
                if isinstance(f, dict)
            }
            if statement.subjects[0].sha256 == model.digest.hex and there != here:
                raise Malformed(
                    "the files have other names than the signed manifest gives them", rule="oci/names"
                )


def _layer(layer: Mapping[str, object]) -> tuple[str, int, str]:
    kind, path, size = layer.get("mediaType"), _annotations(layer).get(FILEPATH), layer.get("size")
    if not isinstance(kind, str) or not kind.endswith(".raw"):
        raise Malformed(
            f"a layer of type {kind!r}; only raw layers, one for each file, are read", rule="oci/layer"
        )
    if not isinstance(path, str) or not isinstance(size, int) or size < 0:
        raise Malformed("a layer without a path or size", rule="oci/layer")
    return path, size, _hex(layer.get("digest"))


def _hex(digest: object) -> str:
    if not isinstance(digest, str) or not re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
        raise Malformed(f"{digest!r} is no SHA-256 digest", rule="oci/digest")
    return digest.removeprefix("sha256:")


def _annotations(entry: Mapping[str, object]) -> dict[str, object]:
    value = entry.get("annotations")
    return value if isinstance(value, dict) else {}


def _objects(document: Mapping[str, object], name: str) -> list[dict[str, object]]:
    value = document.get(name)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise Malformed(f"{name} is not a list of objects", rule="oci/document")
    return value


def _parse(data: bytes) -> dict[str, object]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"not JSON: {error}", rule="oci/document") from error
    if not isinstance(value, dict):
        raise Malformed("the document is not an object", rule="oci/document")
    return value
