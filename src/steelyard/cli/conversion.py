"""Convert an admitted model to GGUF, examine the result, and sign where it came from."""

import shutil
import tempfile
from pathlib import Path

from steelyard.admit.to_gguf import Conversion, convert, lineage_predicate, quantise
from steelyard.cli.admission import examine_path, sign_and_decide
from steelyard.cli.installation import Installation, clock, subject_of
from steelyard.cli.talk import Talk
from steelyard.errors import Refused, Untrusted
from steelyard.manifest import identities_of, manifest_of
from steelyard.model import Model
from steelyard.policy import LINEAGE, Decision

GGUF_NAME = "model.gguf"


def convert_model(
    home: Installation, source: Model, talk: Talk, *, outtype: str, quantisation: str | None, name: str | None
) -> tuple[Model, Decision]:
    """Convert `source`, then quantise if asked. Each file written is a model of its own with lineage.

    Raises Refused when policy does not allow the source, Untrusted when its files are no longer what was admitted.
    """
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
