"""A model with its evidence as one OCI image layout, a folder or a tar file: how it crosses an air gap.

    oci-layout, index.json          OCI image layout 1.0.0
    blobs/sha256/<hex>              each file of the model as it is, each document below

The model is a CNCF ModelPack artifact: one raw layer for each file, its path in org.cncf.model.filepath. Each piece of
evidence is an artifact of its own that refers to it (`subject`), found through the index and through the referrers
tag sha256-<hex>. Tools that know OCI (oras, skopeo, modctl) can push the folder to a registry.

The layout proves nothing: on import every blob is hashed, the model's digest is computed anew, and evidence counts only
if a key that the receiver trusts signed it. No key travels along.

Sources: opencontainers/image-spec 1.1 (image-layout, manifest, referrers), modelpack/model-spec.
"""

import hashlib
import os
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Protocol

from steelyard.admit.bom import Bill
from steelyard.blobs import Readable
from steelyard.digest import JSON, canonical_json, sha256
from steelyard.disk import unavailable
from steelyard.errors import Malformed, WrongUsage
from steelyard.evidence import Evidence
from steelyard.model import File, Model

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
MODEL = "application/vnd.cncf.model.manifest.v1+json"
CONFIG = "application/vnd.cncf.model.config.v1+json"
ENVELOPE = "application/vnd.dsse.envelope.v1+json"
FILEPATH = "org.cncf.model.filepath"
DIGEST = "steelyard.model.digest"
IS_FILE = "steelyard.model.is-file"  # the model is one file, not a folder that holds one
PREDICATE_TYPE = "in-toto.io/predicate-type"

REF = "org.opencontainers.image.ref.name"
_TITLE = "org.opencontainers.image.title"
_WEIGHTS = frozenset(
    {
        "safetensors", "gguf", "pickle", "torch-zip", "torch-legacy", "torchscript", "torch-export", "grok", "onnx",
        "raw-tensors", "hdf5", "keras-zip", "tensorflow", "tf-checkpoint", "tflite", "openvino", "npy", "npz",
        "msgpack", "xgboost", "lightgbm", "joblib",
    }
)  # fmt: skip
_KINDS = {"text": "doc", "image": "doc", "signature": "doc", "code": "code"}


def export_layout(
    bill: Bill,
    model: Model,
    source: Path,
    evidence: Iterable[Evidence],
    out: Path,
    progress: Callable[[int], None],
) -> str:
    """Write the layout to `out`, a tar file if its name ends in .tar, else a folder; return the manifest's digest.

    source: where the model's bytes lie (they are hashed again on the way out).  progress: bytes since the last call.
    Raises WrongUsage when `out` exists, Malformed when a file is not the model's, Unavailable.
    """
    if out.exists():
        raise WrongUsage(f"{out} exists; remove it first, or take another name")
    with _writer(out) as writer:
        for file in model.files:
            path = source if file.path == "." else source / file.path
            with unavailable(f"cannot read {path}"), path.open("rb") as stream:
                writer.blob(_Checked(stream, file, progress), file.sha256, file.size)
        subject = _document(writer, MANIFEST, _manifest(writer, bill, model, source))
        described: list[JSON] = [
            {**subject, "artifactType": MODEL, "annotations": {REF: model.name, DIGEST: str(model.digest)}}
        ]
        referrers = [_referrer(writer, item, subject) for item in evidence]
        described += referrers
        index: JSON = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [*referrers]}
        tag = str(subject["digest"]).replace(":", "-")
        described.append({**_document(writer, INDEX, index), "annotations": {REF: tag}})
        writer.file("oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        writer.file(
            "index.json", canonical_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": described})
        )
    return str(subject["digest"])


class _Writer(Protocol):
    def blob(self, stream: Readable, sha256_hex: str, size: int) -> None: ...

    def file(self, name: str, data: bytes) -> None: ...


class _FolderWriter:
    def __init__(self, root: Path) -> None:
        self._root = root
        (root / "blobs" / "sha256").mkdir(parents=True)

    def blob(self, stream: Readable, sha256_hex: str, size: int) -> None:  # noqa: ARG002
        path = self._root / "blobs" / "sha256" / sha256_hex
        with path.open("wb") as target:
            while block := stream.read(1 << 20):
                target.write(block)

    def file(self, name: str, data: bytes) -> None:
        (self._root / name).write_bytes(data)


class _TarWriter:
    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        self._seen: set[str] = set()

    def blob(self, stream: Readable, sha256_hex: str, size: int) -> None:
        if sha256_hex not in self._seen:  # equal files are one blob
            self._seen.add(sha256_hex)
            self._archive.addfile(_entry(f"blobs/sha256/{sha256_hex}", size), stream)  # type: ignore[arg-type]  # it reads only

    def file(self, name: str, data: bytes) -> None:
        self._archive.addfile(_entry(name, len(data)), BytesIO(data))


def _entry(name: str, size: int) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = size, 0o644, 0
    return entry


@contextmanager
def _writer(out: Path) -> Iterator[_Writer]:
    """The layout grows under another name and gets its own when it is whole."""
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        with unavailable(f"cannot write {out}"):
            if out.suffix == ".tar":
                with tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as archive:
                    yield _TarWriter(archive)
            else:
                yield _FolderWriter(partial)
            partial.rename(out)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        partial.unlink(missing_ok=True)


class _Checked:
    """A stream that refuses at its end when it was not the file it should be."""

    def __init__(self, stream: Readable, file: File, progress: Callable[[int], None]) -> None:
        self._stream, self._file, self._progress = stream, file, progress
        self._hasher, self._size = hashlib.sha256(), 0

    def read(self, size: int, /) -> bytes:
        block = self._stream.read(size)
        self._hasher.update(block)
        self._size += len(block)
        self._progress(len(block))
        is_end = not block or self._size >= self._file.size
        if is_end and (self._size != self._file.size or self._hasher.hexdigest() != self._file.sha256):
            raise Malformed(f"{self._file.path}: not the model's bytes any more", rule="oci/changed")
        return block


def _manifest(writer: _Writer, bill: Bill, model: Model, source: Path) -> dict[str, JSON]:
    layers: list[JSON] = [
        {
            "mediaType": f"application/vnd.cncf.model.{_kind(bill, file)}.v1.raw",
            "digest": f"sha256:{file.sha256}",
            "size": file.size,
            "annotations": {FILEPATH: source.name if file.path == "." else file.path},
        }
        for file in model.files
    ]
    descriptor: dict[str, JSON] = {"name": bill.name}
    if bill.family:
        descriptor["family"] = bill.family
    if bill.licence:
        descriptor["licenses"] = [bill.licence]
    formats = sorted({kind for kind in bill.formats.values() if kind in _WEIGHTS})
    config: dict[str, JSON] = {"format": formats[0]} if formats else {}
    body: dict[str, JSON] = {
        "descriptor": descriptor,
        "config": config,
        "modelfs": {"type": "layers", "diffIds": [f"sha256:{file.sha256}" for file in model.files]},
    }
    return {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": MODEL,
        "config": _document(writer, CONFIG, body),
        "layers": layers,
        "annotations": {_TITLE: model.name, DIGEST: str(model.digest), IS_FILE: _is_file(model)},
    }


def _is_file(model: Model) -> str:
    return "true" if [file.path for file in model.files] == ["."] else "false"


def _kind(bill: Bill, file: File) -> str:
    kind = bill.formats.get(file.path, "")
    return "weight" if kind in _WEIGHTS else _KINDS.get(kind, "weight.config")


def _referrer(writer: _Writer, item: Evidence, subject: Mapping[str, JSON]) -> dict[str, JSON]:
    data = item.to_json()
    layer = _blob(writer, ENVELOPE, data)
    annotations: dict[str, JSON] = {PREDICATE_TYPE: item.statement.predicate_type}
    manifest: dict[str, JSON] = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": ENVELOPE,
        "config": {**_blob(writer, EMPTY, b"{}"), "data": "e30="},
        "layers": [layer],
        "subject": dict(subject),
        "annotations": annotations,
    }
    return {**_document(writer, MANIFEST, manifest), "artifactType": ENVELOPE, "annotations": annotations}


def _document(writer: _Writer, media_type: str, body: JSON) -> dict[str, JSON]:
    return _blob(writer, media_type, canonical_json(body))


def _blob(writer: _Writer, media_type: str, data: bytes) -> dict[str, JSON]:
    digest = sha256(data)
    writer.blob(BytesIO(data), digest.hex, len(data))
    return {"mediaType": media_type, "digest": f"sha256:{digest.hex}", "size": len(data)}
