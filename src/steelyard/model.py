"""Model: the manifest of a set of weights, and the one digest that names it.

The root digest is the SHA-256 over the concatenated raw SHA-256 digests of the files, in path order, which is
what OpenSSF model-signing v1.0 puts in its statement's subject (method "files", hash "sha256"). Their signatures
therefore verify against ours with no second hash. A single file is one resource named ".".

Path order compares component by component, so "a/b" sorts before "a.b". Git's own files in the root
(.git, .github, .gitattributes, .gitignore) are no part of a model, as in model-signing's default.

Source: sigstore/model-transparency, model_signing 1.1.1.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from steelyard.digest import JSON, OMS_SHA256, Digest
from steelyard.errors import Malformed

IGNORED_ROOT_NAMES = frozenset({".git", ".github", ".gitattributes", ".gitignore"})
MAX_FILES = 100_000
MAX_PATH_CHARS = 1024

_SHA256_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class File:
    """One file of a model: path relative to its root with "/" between components, size in bytes, SHA-256 in hex."""

    path: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        if not _SHA256_HEX.fullmatch(self.sha256) or self.size < 0:
            raise ValueError(f"{self.path!r}: not a size and a SHA-256 in hex")


@dataclass(frozen=True, slots=True)
class Model:
    """A sorted manifest. `name` is for people: renaming the folder changes nothing else."""

    name: str
    files: tuple[File, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "files", tuple(sorted(self.files, key=lambda file: file.path.split("/"))))
        check_paths(file.path for file in self.files)

    @property
    def digest(self) -> Digest:
        """The root digest, equal to model-signing's for the same files."""
        raw = b"".join(bytes.fromhex(file.sha256) for file in self.files)
        return Digest(OMS_SHA256, hashlib.sha256(raw).hexdigest())

    @property
    def size(self) -> int:
        """Bytes in all files."""
        return sum(file.size for file in self.files)

    def to_json(self) -> dict[str, JSON]:
        files: list[JSON] = [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in self.files]
        return {"name": self.name, "digest": str(self.digest), "files": files}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Model":
        """Raises Malformed when `value` is not a manifest or its digest is not that of its files."""
        try:
            files = tuple(File(str(f["path"]), int(f["size"]), str(f["sha256"])) for f in value["files"])
            model = cls(str(value["name"]), files)
            stated = str(value["digest"])
        except (KeyError, TypeError, ValueError) as error:
            raise Malformed(f"not a model manifest: {error!r}", rule="model/manifest") from error
        if stated != str(model.digest):
            raise Malformed(
                f"the manifest says {stated}, its files give {model.digest}", rule="model/manifest"
            )
        return model


def check_paths(paths: Iterable[str]) -> None:
    """Refuse names that mean different files on different machines, or none at all.

    Stops: path traversal, names that a terminal or a log would render as something else, and two names that
    are one file where case or Unicode form is folded (one is scanned, the other is loaded).
    Raises Malformed with rule tree/name-unsafe, tree/case-collision or tree/too-many-files.
    """
    seen: dict[str, str] = {}
    for path in paths:
        if path != "." and not _is_safe(path):
            raise Malformed(f"file name {path!r} is not safe on every system", rule="tree/name-unsafe")
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFKC", path).casefold())
        if folded in seen:
            raise Malformed(
                f"{path!r} and {seen[folded]!r} are one file on a system that folds case or Unicode forms",
                rule="tree/case-collision",
            )
        seen[folded] = path
        if len(seen) > MAX_FILES:
            raise Malformed(f"more than {MAX_FILES} files", rule="tree/too-many-files")


def _is_safe(path: str) -> bool:
    if not path or len(path) > MAX_PATH_CHARS or "\\" in path:
        return False
    if any(unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp") for char in path):
        return False
    return all(part not in ("", ".", "..") for part in path.split("/"))
