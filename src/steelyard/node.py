"""What an agent on an engine's host can say of the engine: which process listens, and which bytes it has.

A statement of model identity, signed by the node: predicate urn:steelyard:node:v1 about the model's digest,
    {node, port, pid, boot, started, model, method, files: [{path, sha256}], issued_at, nonce}
`started` is the process's start in clock ticks since `boot` (proc(5), stat field 22), so a restart is another process.
method: `mapped`, every weight file of the model is open or mapped in the engine's processes and was hashed there;
`directory`, the engine let go of its files (it copied them to a GPU), and the directory it was given was hashed.
Either way no file may have changed after the engine began. None of this proves what computed an answer.

Linux only: /proc has what is asked here.
"""

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from steelyard.errors import Malformed, Unavailable, Untrusted
from steelyard.evidence import (
    PREDICATE_PREFIX,
    Evidence,
    PublicKey,
    Signer,
    Statement,
    Subject,
    attest,
    timestamp,
    verify,
)
from steelyard.manifest import leaves_of, open_file, weigh
from steelyard.model import Model

PREDICATE = PREDICATE_PREFIX + "node:v1"
MAX_AGE = timedelta(seconds=60)
MAX_SKEW = timedelta(seconds=30)
MAX_NONCE_CHARS = 64
MAX_MAPS_BYTES = 64 << 20
BLOCK_BYTES = 64 << 10
WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".npz", ".h5", ".onnx", ".msgpack", ".ckpt")

_PROC = Path("/proc")
_LISTENS = "0A"  # include/net/tcp_states.h


@dataclass(frozen=True, slots=True)
class Process:
    """A process as no later one can be it. started: clock ticks after boot."""

    pid: int
    boot: str
    started: int

    @classmethod
    def of(cls, pid: int, proc: Path = _PROC) -> "Process":
        """Raises Unavailable when there is none."""
        text = _read(proc / "sys/kernel/random/boot_id").strip()
        return cls(pid, text, int(_fields(pid, proc)[19]))

    def began_ns(self, proc: Path = _PROC) -> int:
        """When it began, in nanoseconds since 1970."""
        boot_s = next(
            int(line.split()[1]) for line in _read(proc / "stat").splitlines() if line[:6] == "btime "
        )
        return boot_s * 10**9 + self.started * 10**9 // os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Found:
    """The engine's processes (the listening one first) and how its files were read. hashed: path and SHA-256."""

    process: Process
    method: str
    hashed: tuple[tuple[str, str], ...]


class Hashes:
    """SHA-256 of files, computed again only when the file is another: device, inode, size, or either time."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int, int, int, int], str] = {}

    def of(self, path: Path) -> str:
        """Raises Malformed when it changes meanwhile, Unavailable when it cannot be read."""
        with open_file(path, is_root=True) as descriptor:
            status = os.fstat(descriptor)
            key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            found = self._known.get(key)
            if found is None:
                found = self._known[key] = weigh(descriptor, path, status.st_size)[1]
        return found


class Node:
    """Looks at one engine and signs what it saw.

    port: where the engine listens on this host.  directory: what is hashed when the engine holds no files open.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        port: int,
        signer: Signer,
        *,
        clock: Callable[[], datetime],
        directory: Path | None = None,
    ) -> None:
        self._name = name
        self._model = model
        self._port = port
        self._signer = signer
        self._clock = clock
        self._directory = directory
        self._hashes = Hashes()

    def look(self) -> Found:
        """Raises Untrusted when a file is not the model's, Unavailable when the engine or its files cannot be found."""
        pids = listeners_of(self._port)
        if not pids:
            raise Unavailable(f"no process that may be looked at listens on port {self._port}")
        process = Process.of(min(pids))
        held = list(held_files(descendants_of(pids)))
        hashed = {path: self._hashes.of(place) for path, place in held}
        known = {file.sha256 for file in self._model.files}
        for path, sha256 in hashed.items():
            if sha256 not in known:
                raise Untrusted(
                    f"the engine holds {path} ({sha256[:16]}...), which is not of {self._model.name}"
                )
        self._refuse_changed([place for _, place in held], process)
        weights = {f.sha256 for f in self._model.files if _is_weights(f.path) or f.path == "."}
        if weights and weights <= set(hashed.values()):
            return Found(process, "mapped", tuple(sorted(hashed.items())))
        if self._directory is None:
            raise Unavailable(
                f"the engine holds {len(hashed)} of {len(weights)} weight files open, which says too little; "
                "give the directory it was started with: --directory DIR"
            )
        return Found(process, "directory", self._hash_directory(self._directory, process))

    def state(self, nonce: str = "") -> Evidence:
        """A signed statement, fresh. nonce: whoever asks puts it there, so that it answers no one else. As `look`."""
        found = self.look()
        if Process.of(found.process.pid) != found.process:
            raise Unavailable("the engine restarted while it was looked at")
        predicate: dict[str, Any] = {
            "node": self._name,
            "port": self._port,
            "pid": found.process.pid,
            "boot": found.process.boot,
            "started": found.process.started,
            "model": str(self._model.digest),
            "method": found.method,
            "files": [{"path": path, "sha256": sha256} for path, sha256 in found.hashed],
            "issued_at": timestamp(self._clock()),
            "nonce": nonce,
        }
        subject = Subject(self._model.name, self._model.digest.hex)
        return attest(Statement((subject,), PREDICATE, predicate), self._signer)

    def _hash_directory(self, directory: Path, process: Process) -> tuple[tuple[str, str], ...]:
        wanted = {file.path: file.sha256 for file in self._model.files}
        places = {
            leaf.path: directory if leaf.path == "." else directory / leaf.path
            for leaf in leaves_of(directory)
        }
        found = {path: self._hashes.of(place) for path, place in places.items()}
        if found != wanted:
            wrong = sorted(path for path in {*found, *wanted} if found.get(path) != wanted.get(path))
            raise Untrusted(f"{directory} is not {self._model.name}: {', '.join(wrong[:3])}")
        self._refuse_changed(places.values(), process)
        return tuple(sorted(found.items()))

    def _refuse_changed(self, places: Iterable[Path], process: Process) -> None:
        # Times are those of the kernel: the owner of a file cannot set its change time back.
        began_ns = process.began_ns()
        for place in places:
            if os.stat(place).st_ctime_ns > began_ns + 10**9:  # the start is known to the second
                raise Untrusted(f"{place} was changed after the engine began; start the engine again")


def check(
    evidence: Evidence, keys: Iterable[PublicKey], model: str, port: int, nonce: str, now: datetime
) -> Process:
    """The process of which a trusted node says that it has the model (a digest as text).

    Attacks: a statement of a stranger, of another model or port, an old one, one that answered another question.
    Raises Untrusted, Malformed.
    """
    verify(evidence, keys)
    said = evidence.statement.predicate
    if evidence.statement.predicate_type != PREDICATE:
        raise Untrusted("not a node's statement")
    if said.get("model") != model or {s.sha256 for s in evidence.statement.subjects} != {
        model.partition(":")[2]
    }:
        raise Untrusted(f"the node speaks of another model, {str(said.get('model'))[:80]}")
    if said.get("port") != port:
        raise Untrusted(f"the node speaks of port {said.get('port')!r}, not {port}")
    if said.get("nonce") != nonce:
        raise Untrusted("the node's statement is not the answer to this question")
    try:
        issued = datetime.fromisoformat(said["issued_at"])
        process = Process(int(said["pid"]), str(said["boot"]), int(said["started"]))
        age = now - issued
    except (KeyError, ValueError, TypeError) as error:
        raise Malformed("the node's statement lacks a process or a time", rule="node/statement") from error
    if not -MAX_SKEW <= age <= MAX_AGE:
        raise Untrusted(f"the node's statement is of {said['issued_at']}, its clock or its age is wrong")
    return process


def listeners_of(port: int, proc: Path = _PROC) -> frozenset[int]:
    """The processes that have a listening TCP socket on `port`, as far as we may see."""
    inodes = set()
    for name in ("tcp", "tcp6"):
        if (proc / "net" / name).exists():
            for line in _read(proc / "net" / name).splitlines()[1:]:
                fields = line.split()
                if fields[3] == _LISTENS and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    if not inodes:
        return frozenset()
    return frozenset(
        pid for pid in _pids(proc) if any(target in inodes for _, target in _descriptors(pid, proc))
    )


def descendants_of(pids: Iterable[int], proc: Path = _PROC) -> frozenset[int]:
    """These processes and all that come from them: engines load weights in workers."""
    parents = {}
    for pid in _pids(proc):
        try:
            parents[pid] = int(_fields(pid, proc)[1])
        except Unavailable:
            continue  # gone meanwhile
    found = set(pids)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return frozenset(found)


def held_files(pids: Iterable[int], proc: Path = _PROC) -> Iterator[tuple[str, Path]]:
    """The weight files these processes have open or mapped: the path they know each by, and one that opens it."""
    seen = set()
    for pid in sorted(pids):
        for descriptor, target in _descriptors(pid, proc):
            if _is_weights(target.removesuffix(" (deleted)")):
                status = os.stat(descriptor)
                if stat.S_ISREG(status.st_mode) and (status.st_dev, status.st_ino) not in seen:
                    seen.add((status.st_dev, status.st_ino))
                    yield target, descriptor
        for device, inode, target in _mapped(pid, proc):
            if (device, inode) in seen:
                continue
            # Through the process's own root, so that a path in a container is that container's.
            place = proc / str(pid) / "root" / target.lstrip("/")
            try:
                status = os.stat(place)
            except OSError as error:
                raise Unavailable(
                    f"the engine has mapped {target}, which cannot be read: {error.strerror}"
                ) from error
            if (status.st_dev, status.st_ino) != (device, inode):
                raise Untrusted(f"the engine has mapped {target}, and another file is there now")
            seen.add((device, inode))
            yield target, place


def _mapped(pid: int, proc: Path) -> Iterator[tuple[int, int, str]]:
    """Device, inode and path of each weight file that is mapped. Source: proc(5), /proc/pid/maps."""
    for line in _read(proc / str(pid) / "maps").splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and _is_weights(fields[5].removesuffix(" (deleted)")):
            major, _, minor = fields[3].partition(":")
            yield os.makedev(int(major, 16), int(minor, 16)), int(fields[4]), fields[5]


def _descriptors(pid: int, proc: Path) -> Iterator[tuple[Path, str]]:
    folder = proc / str(pid) / "fd"
    try:
        names = os.listdir(folder)
    except OSError:
        return  # gone, or somebody else's: the caller counts what it found
    for name in names:
        try:
            yield folder / name, os.readlink(folder / name)
        except OSError:
            continue  # closed meanwhile


def _pids(proc: Path) -> list[int]:
    return [int(name) for name in os.listdir(proc) if name.isdigit()]


def _fields(pid: int, proc: Path) -> list[str]:
    """Of /proc/pid/stat, from `state` on: the name before it may hold anything."""
    return _read(proc / str(pid) / "stat").rpartition(")")[2].split()


def _is_weights(path: str) -> bool:
    return path.endswith(WEIGHTS)


def _read(path: Path) -> str:
    # In blocks: for a file of /proc the kernel makes a buffer as large as what is asked for.
    data = b""
    try:
        with path.open("rb", buffering=0) as file:
            while block := file.read(BLOCK_BYTES):
                data += block
                if len(data) > MAX_MAPS_BYTES:
                    raise Unavailable(f"{path}: more than {MAX_MAPS_BYTES} bytes")
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error
    return data.decode(errors="surrogateescape")
