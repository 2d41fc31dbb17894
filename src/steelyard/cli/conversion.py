"""Convert a model, examine the result, and sign where it came from.

Admitted safetensors become GGUF. A checkpoint of pickles (torch.save, Grok-1) becomes safetensors: it is only read,
never executed, so it need not be admitted first; its digest is recorded, and the result is admitted like any other.
"""

import shutil
import tempfile
from pathlib import Path

from steelyard.admit.from_grok import exact_sources, grok_job, is_checkpoint, read_checkpoint
from steelyard.admit.from_grok_rebuild import verify_exact
from steelyard.admit.lineage import Conversion, lineage_predicate
from steelyard.admit.to_safetensors_model import Job, convert_to_safetensors
from steelyard.cli.admission import examine_path, sign_and_decide
from steelyard.cli.installation import Installation, clock, subject_of
from steelyard.cli.talk import Talk
from steelyard.errors import Refused, Untrusted, WrongUsage
from steelyard.manifest import identities_of, manifest_of
from steelyard.model import Model
from steelyard.policy import LINEAGE, Decision

GGUF_NAME = "model.gguf"
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "MIB": 1 << 20, "GIB": 1 << 30}


def convert_model(
    home: Installation, source: Model, talk: Talk, *, outtype: str, quantisation: str | None, name: str | None
) -> tuple[Model, Decision]:
    """Convert `source`, then quantise if asked. Each file written is a model of its own with lineage.

    Raises Refused when policy does not allow the source, Untrusted when its files are no longer what was admitted.
    """
    from steelyard.admit.to_gguf import convert, quantise

    policy = home.config.policy()
    decision = home.decide(source.digest, policy, clock())
    if not decision.allowed:
        rules = tuple(f"{rule.id}: {rule.reason}" for rule in decision.rules if rule.supply)
        raise Refused(
            f"{source.name} is not allowed by policy {policy.name!r}, so it is not converted", rules
        )
    folder = Path(home.store.source(source.digest))
    before = identities_of(folder)
    _check_weight(folder, source, talk)
    name = name or f"{source.name}-gguf"
    with tempfile.TemporaryDirectory(dir=_workshop(home)) as workshop:
        target = Path(workshop) / GGUF_NAME
        with talk.bar(f"converting {source.name}", source.size) as bar:
            conversion = convert(folder, target, outtype=outtype, progress=bar.advance)
        if identities_of(folder) != before:
            raise Untrusted(f"{folder} changed while it was converted; nothing was kept")
        model, decision = _keep(home, source, conversion, target, name, talk)
        if quantisation:
            smaller = Path(workshop) / f"{quantisation}.gguf"
            conversion = quantise(home.store.model_dir(model.digest) / GGUF_NAME, smaller, quantisation)
            model, decision = _keep(home, model, conversion, smaller, f"{name}-{quantisation}", talk)
    return model, decision


def is_checkpoint_path(place: Path) -> bool:
    """Whether `place` holds pickled weights that `job_of` can plan."""
    if place.is_dir() and is_checkpoint(place):
        return True  # without numpy, which the torch reader needs
    from steelyard.admit.from_torch import is_torch

    return is_torch(place)


def job_of(place: Path, *, mode: str, shard_bytes: int, key: str | None, shared: str) -> Job:
    """The conversion of a Grok-1 or torch checkpoint, planned: every header is read, nothing is written."""
    if place.is_dir() and is_checkpoint(place):
        if key is not None:
            raise WrongUsage("--key chooses a part of a torch file; Grok-1 has no parts")
        checkpoint = read_checkpoint(place)
        sources = exact_sources(checkpoint)
        if mode == "bf16":
            from steelyard.admit.from_grok_bf16 import sources as products

            sources = products(checkpoint)
        return grok_job(checkpoint, sources, mode=mode, shard_bytes=shard_bytes)
    from steelyard.admit.from_torch import read_torch

    if mode != "exact":
        raise WrongUsage("torch weights are copied as they are; --mode bf16 is for Grok-1")
    return read_torch(place, key=key, shared=shared).job(shard_bytes=shard_bytes)


def convert_checkpoint(
    home: Installation, job: Job, talk: Talk, *, out: Path | None, name: str | None
) -> tuple[Model, Decision]:
    """Write the safetensors, examine them, and sign their lineage. out: default, in the store.

    Work that was cut short is taken up where it stopped when the same command runs again.
    """
    home.signer()  # a missing key is said before the weights are read
    target = out or _workshop(home) / f"converting-{job.plan.digest[:16]}"
    talk.say(job.text(target))
    with talk.bar(f"converting {job.root.name}", job.plan.bytes_out) as bar:
        result = convert_to_safetensors(job, target, progress=bar.advance)
    if result.written.resumed:
        talk.say(f"{result.written.resumed} shards of an earlier run were weighed again and kept")
    name = name or f"{job.root.resolve().name}-safetensors"
    examination = examine_path(target, home.config.plugins, talk, name=name)
    model = examination.model
    if out is None:
        folder = home.store.model_dir(model.digest)
        if folder.exists():
            shutil.rmtree(target)  # the same bytes are there already
        else:
            target.rename(folder)
        target = folder
    now = clock()
    # Policy follows the lineage to the source; once its manifest is known, `steelyard admit` takes it by name.
    home.store.put_model(result.source, source=str(job.root.resolve()))
    lineage = home.attest(
        [subject_of(model)], LINEAGE, lineage_predicate(result.conversion, result.source, now)
    )
    return model, sign_and_decide(home, examination, target, home.config.policy(), now, also=[lineage])


def verify_conversion(place: Path, talk: Talk) -> None:
    """Rebuild the original shards' digests from an exact conversion and print them. Raises Untrusted."""
    total = sum(path.stat().st_size for path in place.glob("*.safetensors"))
    with talk.bar(f"rebuilding {place.name}", total) as bar:
        files = verify_exact(place, progress=bar.advance)
    lines = [f"{len(files)} original files rebuilt, every digest equal"]
    lines += [f"  {file.sha256}  {file.size:>14,}  {file.path}" for file in files]
    talk.data("\n".join(lines), [{"path": f.path, "size": f.size, "sha256": f.sha256} for f in files])


def bytes_of(text: str) -> int:
    """`5GB`, `500 MB`, `1GiB` or a number of bytes. Raises WrongUsage."""
    digits = text.rstrip("bBkKmMgGiI ")
    unit = text[len(digits) :].strip().upper() or "B"
    if not digits.isdecimal() or unit not in _UNITS or int(digits) * _UNITS[unit] < 1:
        raise WrongUsage(f"--shard-size is {text!r}, expected a size such as 5GB")
    return int(digits) * _UNITS[unit]


def _check_weight(folder: Path, source: Model, talk: Talk) -> None:
    with talk.bar(f"weighing {source.name}", source.size) as bar:
        found = manifest_of(folder, progress=bar.advance)
    if found.digest != source.digest:
        raise Untrusted(
            f"{folder}: now weighs {found.digest}, {source.digest} was admitted; run: steelyard admit {folder}"
        )


def _keep(
    home: Installation, source: Model, conversion: Conversion, target: Path, name: str, talk: Talk
) -> tuple[Model, Decision]:
    examination = examine_path(target, home.config.plugins, talk, name=name)
    folder = home.store.model_dir(examination.model.digest)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    target.chmod(0o400)
    shutil.move(target, folder / GGUF_NAME)
    now = clock()
    lineage = home.attest(
        [subject_of(examination.model)], LINEAGE, lineage_predicate(conversion, source, now)
    )
    decision = sign_and_decide(
        home, examination, folder / GGUF_NAME, home.config.policy(), now, also=[lineage]
    )
    return examination.model, decision


def _workshop(home: Installation) -> Path:
    # Beside the models, so that the finished file moves by rename.
    folder = home.config.home / "store" / "models"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder
