"""The Python environment that serves: what is installed, and what is there that no package put there.

  environment/start-up   a .pth file with a line that runs code at every start of Python
  environment/path       a .pth file that puts another folder on Python's path (an editable install does)
  environment/changed    a file whose bytes are not those its package recorded
  environment/missing    a file that its package recorded and that is gone
  environment/unowned    code (.py, .pyc without source, .so, .pth) that no package recorded
Compiled files in __pycache__ are left out when their source is there: Python rewrites them.

Source: the site module (.pth files); the core metadata's RECORD file (PEP 376, PEP 627).
"""

import base64
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import Distribution, distributions
from pathlib import Path

from steelyard.admit.advisories import Package
from steelyard.digest import JSON
from steelyard.errors import Unavailable
from steelyard.formats.base import Rule, Severity

_REINSTALL = "install the environment anew from the hash-locked requirements"
RULES: Mapping[str, Rule] = {
    "environment/start-up": Rule(
        "a .pth line that runs at every start of Python, before any check", _REINSTALL
    ),
    "environment/path": Rule(
        "code from a folder that nothing here vouches for", "install the package itself", Severity.REVIEW
    ),
    "environment/changed": Rule("a package that is not what was installed", _REINSTALL),
    "environment/missing": Rule("a package that is not what was installed", _REINSTALL),
    "environment/unowned": Rule("code that Python imports and no package brought", _REINSTALL),
    "environment/unrecorded": Rule(
        "a package whose files nothing vouches for", "install it from a wheel", Severity.REVIEW
    ),
}
_CODE = (".py", ".pyc", ".so", ".pyd", ".dll", ".dylib", ".pth")
# setuptools' own shim for distutils, the one start-up line that half of all environments have.
_KNOWN_LINES = frozenset(
    {
        "import os; var = 'SETUPTOOLS_USE_DISTUTILS'; enabled = os.environ.get(var, 'local') == 'local'; "
        "enabled and __import__('_distutils_hack').add_shim()",
    }
)
BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Irregular:
    """One thing in the environment that its packages do not explain."""

    rule: str
    path: str
    message: str

    def to_json(self) -> dict[str, JSON]:
        rule = RULES[self.rule]
        return {
            "rule": self.rule,
            "severity": rule.severity.value,
            "path": self.path,
            "message": self.message,
            "mend": rule.mend,
        }


def packages(paths: Iterable[str] | None = None) -> tuple[Package, ...]:
    """Every installed distribution. paths: where to look; default: this interpreter's own."""
    return tuple(
        Package(str(found.metadata["Name"]), found.version, "environment")
        for found in _distributions(paths)
        if found.metadata["Name"]
    )


def irregularities(site: Path, progress: Callable[[int], None] | None = None) -> tuple[Irregular, ...]:
    """What is wrong in one site-packages folder. Raises Unavailable when a file cannot be read.

    progress: packages read since the last call.
    """
    owned: set[Path] = set()
    found: list[Irregular] = []
    for distribution in _distributions([str(site)]):
        found += _of_distribution(distribution, site, owned)
        if progress:
            progress(1)
    for path in sorted(site.rglob("*")):
        if path.suffix in _CODE and path.is_file():
            if path.resolve() not in owned and not _is_cache(path):
                where = str(path.relative_to(site))
                found.append(Irregular("environment/unowned", where, "no package recorded this file"))
            if path.suffix == ".pth" and path.parent == site:
                found += _start_up(path)
    return tuple(sorted(found, key=lambda item: (item.path, item.rule)))


def _distributions(paths: Iterable[str] | None) -> list[Distribution]:
    return list(distributions(path=list(paths)) if paths is not None else distributions())


def _of_distribution(distribution: Distribution, site: Path, owned: set[Path]) -> Iterator[Irregular]:
    name = str(distribution.metadata["Name"])
    if distribution.files is None:
        yield Irregular("environment/unrecorded", name, "the package has no RECORD of its files")
        return
    for entry in distribution.files:
        path = Path(str(entry.locate())).resolve()
        owned.add(path)
        where = str(path.relative_to(site.resolve())) if path.is_relative_to(site.resolve()) else str(entry)
        if entry.hash is None or path.suffix == ".pyc":
            continue
        if not path.is_file():
            yield Irregular("environment/missing", where, f"{name} recorded it")
        elif _digest(path, entry.hash.mode) != entry.hash.value:
            yield Irregular("environment/changed", where, f"not the bytes that {name} recorded")


def _is_cache(path: Path) -> bool:
    """A compiled file beside its source: Python made it and checks it against the source."""
    return (
        path.parent.name == "__pycache__"
        and path.suffix == ".pyc"
        and (path.parent.parent / (path.name.partition(".")[0] + ".py")).is_file()
    )


def _start_up(path: Path) -> Iterator[Irregular]:
    for line in _read(path).decode("utf-8", "replace").splitlines():
        text = line.strip()
        if text.startswith(("import ", "import\t")):
            if text.rstrip("; ") not in _KNOWN_LINES:
                yield Irregular("environment/start-up", path.name, f"runs at start: {text[:120]}")
        elif text and not text.startswith("#"):
            yield Irregular("environment/path", path.name, f"puts {text[:120]} on the path")


def _digest(path: Path, algorithm: str) -> str:
    """As RECORD writes it: URL-safe base64 without padding."""
    hasher = hashlib.new(algorithm)
    try:
        with path.open("rb") as stream:
            while block := stream.read(BLOCK_BYTES):
                hasher.update(block)
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error
    return base64.urlsafe_b64encode(hasher.digest()).rstrip(b"=").decode()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error
