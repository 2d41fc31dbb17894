"""Copies of weights named by their own digest: what was examined is what is served, whoever writes to the source.

    <store>/blobs/<sha256 hex>           one file's bytes, read-only
    <store>/models/<model hex>/<path>    the model as a folder: hard links to blobs

A blob appears whole or not at all, and only under the digest of the bytes that were written. On file systems that
share extents (XFS, Btrfs, APFS through cp) the copy costs no space; elsewhere it costs what the model weighs.
A blob is garbage when no model's folder links to it.
"""

import errno
import fcntl
import hashlib
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from io import FileIO
from pathlib import Path
from typing import Protocol

from steelyard.disk import TEMPORARY, unavailable
from steelyard.errors import Malformed, WrongUsage
from steelyard.model import File, Model

BLOCK_BYTES = 1 << 20
HEADROOM_BYTES = 64 << 20
_FICLONE = 0x40049409  # linux/fs.h
_NO_CLONE = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM})


class Readable(Protocol):
    """Gives bytes, at most `size` at a time, and none at its end."""

    def read(self, size: int, /) -> bytes: ...


class Blobs:
    """The blobs and model folders below one store."""

    def __init__(self, root: Path) -> None:
        self._blobs = root / "blobs"
        self._models = root / "models"

    def path(self, sha256: str) -> Path:
        """Where the blob of that digest lies, or would."""
        return self._blobs / sha256

    def folder(self, model: Model) -> Path:
        """Where the model's folder lies, or would."""
        return self._models / model.digest.hex

    def kept(self, model: Model) -> Path | None:
        """Where the model can be read (a folder, or its one file), absent when it is not all here.

        Sizes are compared; contents were when they were written.
        """
        folder = self.folder(model)
        if [file.path for file in model.files] == ["."]:
            names = os.listdir(folder) if folder.is_dir() else []
            path = folder / names[0] if len(names) == 1 else folder
            return path if _has(path, model.size) else None
        return folder if all(_has(folder / file.path, file.size) for file in model.files) else None

    def keep(self, model: Model, source: Path, progress: Callable[[int], None] | None = None) -> Path:
        """Copy the files of `model` from `source`; return where the copy is read: a folder, or its one file.

        progress: bytes copied since the last call.
        Raises Malformed (rule tree/changed-while-reading) when a file is not the one that was examined, WrongUsage
        when there is no room, Unavailable. What was copied before stays and is used next time.
        """
        here = self.kept(model)
        if here is not None:
            return here
        missing = {f.sha256: f for f in model.files if not self.path(f.sha256).exists()}
        self._check_room(sum(file.size for file in missing.values()))
        for file in missing.values():
            path = source if file.path == "." else source / file.path
            with unavailable(f"cannot read {path}"), open(path, "rb", buffering=0) as reader:
                self.put(reader, file, progress)
        # A model that is one file has one resource, named "." as model-signing names it; its name is its source's.
        places = [(f.sha256, source.name if f.path == "." else f.path) for f in model.files]
        self._link(self.folder(model), places)
        kept = self.kept(model)
        assert kept is not None
        return kept

    def put(self, reader: Readable, file: File, progress: Callable[[int], None] | None = None) -> Path:
        """Copy what `reader` gives to its end, which must have the digest of `file`. Raises as `keep`."""
        target = self.path(file.sha256)
        with unavailable(f"cannot write {target}"):
            self._blobs.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary = self._blobs / f".{file.sha256}.{os.getpid()}{TEMPORARY}"
            try:
                if _copy(reader, temporary, file.size, progress) != file.sha256:
                    what = f"{file.path}: not the bytes that were examined (SHA-256 {file.sha256[:16]}...)"
                    raise Malformed(what, rule="tree/changed-while-reading")
                os.chmod(temporary, 0o400)
                os.replace(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)
        return target

    def drop(self, model: Model) -> None:
        """Take the model's folder away; its blobs are garbage then, unless another model shares them."""
        folder = self.folder(model)
        with unavailable(f"cannot remove {folder}"):
            if folder.exists():
                shutil.rmtree(folder)

    def garbage(self) -> Iterator[tuple[Path, int]]:
        """Each file that no model needs, with its size: unlinked blobs, and what a killed process left."""
        if not self._blobs.is_dir():
            return
        for path in sorted(self._blobs.iterdir()):
            status = path.lstat()
            if path.name.endswith(TEMPORARY) or status.st_nlink == 1:
                yield path, status.st_size

    def collect(self) -> int:
        """Remove the garbage and return its bytes. The caller lets nobody admit meanwhile."""
        freed = 0
        for path, size in list(self.garbage()):
            with unavailable(f"cannot remove {path}"):
                path.unlink()
            freed += size
        return freed

    def _link(self, folder: Path, places: Iterable[tuple[str, str]]) -> None:
        """Build the folder beside its place and move it there, so that it is whole when it appears.

        places: the digest of each blob and its path in the folder.
        """
        growing = folder.with_name(f".{folder.name}.{os.getpid()}{TEMPORARY}")
        with unavailable(f"cannot write {folder}"):
            shutil.rmtree(growing, ignore_errors=True)
            for sha256, path in places:
                place = growing / path
                place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                os.link(self.path(sha256), place)
            if folder.exists():  # made by a conversion, or half gone: the links take its place
                shutil.rmtree(folder)
            os.rename(growing, folder)

    def _check_room(self, size_bytes: int) -> None:
        with unavailable(f"cannot write below {self._blobs.parent}"):
            self._blobs.mkdir(mode=0o700, parents=True, exist_ok=True)
            free = shutil.disk_usage(self._blobs).free
        if size_bytes + HEADROOM_BYTES > free:
            raise WrongUsage(
                f"the copy needs {size_bytes:,} bytes and {free:,} are free in {self._blobs}; make room, put the home "
                "on another disk (--home), or leave the weights where they are (--no-copy)"
            )


def _has(path: Path, size: int) -> bool:
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == size


def _copy(reader: Readable, target: Path, size: int, progress: Callable[[int], None] | None) -> str:
    """The SHA-256 in hex of what was written: the target is read, not the source, when extents were shared.

    Ends early, with another digest, at the first block past `size`: a source may be endless.
    """
    with open(target, "w+b", buffering=0) as writer:
        is_cloned = isinstance(reader, FileIO) and _clone(reader.fileno(), writer.fileno())
        hasher = hashlib.sha256()
        origin: Readable = writer if is_cloned else reader
        while size >= 0 and (block := origin.read(BLOCK_BYTES)):
            hasher.update(block)
            size -= len(block)
            if not is_cloned:
                _write(writer.fileno(), memoryview(block))
            if progress:
                progress(len(block))
        os.fsync(writer.fileno())
    return hasher.hexdigest()


def _clone(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno in _NO_CLONE:
            return False
        raise
    return True


def _write(target: int, view: memoryview) -> None:
    while view:
        view = view[os.write(target, view) :]
