"""A whole model directory converted: weights by plan, the files beside them carried over, the source weighed."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from steelyard.admit.lineage import Conversion
from steelyard.admit.to_safetensors import RECORD, Progress, Written, write
from steelyard.admit.to_safetensors_plan import Plan
from steelyard.digest import JSON, canonical_json
from steelyard.errors import Untrusted, WrongUsage
from steelyard.manifest import Identity, identities_of, leaves_of, manifest_of
from steelyard.model import File, Model

CARRIED_SUFFIXES = frozenset({".json", ".txt", ".md", ".model", ".jinja"})
CARRIED_NAMES = frozenset({"LICENSE", "LICENCE", "NOTICE", "README"})
MAX_CARRIED_BYTES = 64 << 20
# Measured by benchmarks/grok_copy.py on two cores: bytes of output a second.
RATES: Mapping[str, float] = {"exact": 0.6e9, "bf16": 0.25e9}


@dataclass(frozen=True, slots=True)
class Job:
    """A conversion that has been planned and not begun.

    root: the source model, a folder or one file.  files: paths of its weights.  record: digests by path -> the
    conversion.json.  config: the config.json to write, absent to carry the source's.
    """

    root: Path
    kind: str
    plan: Plan
    files: tuple[str, ...]
    record: Callable[[Mapping[str, str]], dict[str, JSON]]
    config: Mapping[str, JSON] | None = None

    def to_json(self, target: Path) -> dict[str, JSON]:
        """The plan in figures; `target` names the disk whose free space counts."""
        plan = self.plan
        return {
            "format": self.kind,
            "mode": plan.mode,
            "files_in": len(self.files),
            "bytes_in": plan.bytes_in,
            "tensors": len(plan.tensors),
            "parameters": plan.parameters,
            "shards": len(plan.shards),
            "largest_shard_bytes": max(shard.size for shard in plan.shards),
            "bytes_out": plan.bytes_out,
            "bytes_free": free_at(target),
            "seconds": round(plan.bytes_out / RATES[plan.mode]),
        }

    def text(self, target: Path) -> str:
        """The same for a person."""
        found = self.to_json(target)
        minutes = plan_minutes(self.plan)
        lines = [
            f"{found['format']}, {found['mode']}: {found['parameters']:,} parameters in {found['tensors']:,} tensors",
            f"  in   {found['files_in']:>6,} files   {found['bytes_in']:>19,} bytes",
            f"  out  {found['shards']:>6,} shards  {found['bytes_out']:>19,} bytes, "
            f"the largest {found['largest_shard_bytes']:,}",
            f"  free {'':>6} at {str(target)!r}: {found['bytes_free']:,} bytes; about {minutes} on two cores",
        ]
        return "\n".join(lines)


def plan_minutes(plan: Plan) -> str:
    seconds = plan.bytes_out / RATES[plan.mode]
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def free_at(target: Path) -> int:
    """Bytes free on the disk that would hold `target`."""
    place = target.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


@dataclass(frozen=True, slots=True)
class Result:
    """What was written, the weighed source, and what the lineage says of it."""

    written: Written
    source: Model
    conversion: Conversion


def convert_to_safetensors(job: Job, target: Path, *, progress: Progress = lambda _: None) -> Result:
    """Do what `job` plans into the folder `target`; begun work there is taken up again.

    Raises as `to_safetensors.write`; Untrusted when the source changed meanwhile.
    """
    if target.absolute().is_relative_to(job.root.absolute()):
        raise WrongUsage(f"{target} lies inside the model that is converted; name another folder")
    before = identities_of(job.root)
    whole = all(source.whole for shard in job.plan.shards for source in shard.sources)
    weighed = None if whole else manifest_of(job.root)
    record = b""

    def extras(consumed: tuple[File, ...]) -> Mapping[str, bytes]:
        nonlocal record
        known = {file.path: file.sha256 for file in (weighed.files if weighed else consumed)}
        record = _json(job.record({path: known.get(path) or known["."] for path in job.files}))
        return {**_carried(job), RECORD: record}

    written = write(job.plan, target, extras=extras, progress=progress, begun_from=_state(job, before))
    if identities_of(job.root) != before:
        raise Untrusted(f"{job.root} changed while it was converted; remove {target} and convert it again")
    source = weighed or _weighed(job.root, written.consumed)
    parameters: dict[str, JSON] = {
        "format": job.kind,
        "mode": job.plan.mode,
        "tensors": len(job.plan.tensors),
        "shards": len(job.plan.shards),
        "mapping": {"sha256": sha256(record).hexdigest()},
    }
    return Result(written, source, Conversion("convert", target, parameters))


def _state(job: Job, found: Mapping[str, Identity]) -> str:
    """A digest of what the file system says of the weights: shards of two states never stand side by side."""
    rows: list[JSON] = [[path, *(found.get(path) or found["."])[1:]] for path in job.files]
    return sha256(canonical_json(rows)).hexdigest()


def _json(value: Mapping[str, JSON]) -> bytes:
    return json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"


def _carried(job: Job) -> dict[str, bytes]:
    """Configuration, tokenizer, card and licence from the source's top folder; weights and code stay behind."""
    found: dict[str, bytes] = {}
    if job.root.is_dir():
        for leaf in leaves_of(job.root):
            path = job.root / leaf.path
            named = path.suffix in CARRIED_SUFFIXES or path.stem in CARRIED_NAMES
            if (
                named
                and "/" not in leaf.path
                and leaf.size <= MAX_CARRIED_BYTES
                and leaf.path not in job.files
            ):
                found[leaf.path] = path.read_bytes()
    found = {
        name: data for name, data in found.items() if not name.endswith(".index.json") and name != RECORD
    }
    if job.config is not None:
        found["config.json"] = _json(job.config)
    return found


def _weighed(root: Path, consumed: tuple[File, ...]) -> Model:
    """The source's manifest: what the copy hashed, and the files it had no reason to read."""
    known = {file.path: file for file in consumed}
    files = []
    for leaf in leaves_of(root):
        file = known.get(leaf.path)
        if file is None:
            (single,) = manifest_of(root / leaf.path).files
            file = File(leaf.path, single.size, single.sha256)
        files.append(file)
    return Model(root.resolve().name, tuple(files))
