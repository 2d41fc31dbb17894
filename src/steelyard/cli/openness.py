"""`steelyard openness`: how open a release is: a folder, a known model, or a name in the dated register."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from steelyard.cli.talk import Talk
from steelyard.digest import JSON
from steelyard.errors import WrongUsage

HELP = (
    "Say how open a release is: weights, licence, reproducibility, Model Openness Framework class, OSAID. "
    "Exit 0 if weights are available under an open licence, 1 if not, 2 for an unknown name."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name_or_dir",
        metavar="NAME_OR_DIR",
        help="a directory or file, a known model, or a release or service by name",
    )


def run(args: argparse.Namespace, talk: Talk) -> int:
    if Path(args.name_or_dir).exists():
        return _scanned(Path(args.name_or_dir), args, talk)
    if (known := _known(args)) is not None:
        return _said(*known, talk)
    return _registered(args.name_or_dir, talk)


def _scanned(path: Path, args: argparse.Namespace, talk: Talk) -> int:
    from steelyard.admit.licences import licence_of
    from steelyard.admit.openness import openness_of
    from steelyard.cli.admission import scan_path
    from steelyard.config import load_config

    found = scan_path(path, load_config(args.home).plugins, talk)
    licence = licence_of(found)
    name = found.model.name if found.model else path.name
    digest = str(found.model.digest) if found.model else None
    return _said(name, digest, openness_of(found, licence).to_json(), licence.to_json(), talk)


def _known(args: argparse.Namespace) -> tuple[str, str | None, dict[str, Any], dict[str, Any]] | None:
    """What the newest evidence says of an examined model; None when there is no such model or evidence."""
    from steelyard.cli.installation import Installation
    from steelyard.config import load_config
    from steelyard.evidence import PREDICATE_PREFIX

    if not (load_config(args.home).home / "store").is_dir():
        return None
    store = Installation.open(args.home).store
    try:
        model = store.model(args.name_or_dir)
    except WrongUsage:
        return None
    said: dict[str, dict[str, Any]] = {}
    for item in sorted(
        store.evidence_for(model.digest.hex), key=lambda e: str(e.statement.predicate.get("issued_at"))
    ):
        said[item.statement.predicate_type] = dict(item.statement.predicate)
    openness = said.get(f"{PREDICATE_PREFIX}openness:v1")
    licence = said.get(f"{PREDICATE_PREFIX}licence:v1")
    return (model.name, str(model.digest), openness, licence) if openness and licence else None


def _said(
    name: str, digest: str | None, openness: Mapping[str, Any], licence: Mapping[str, Any], talk: Talk
) -> int:
    is_open = openness["weights"] == "available" and openness["licence"] == "open"
    value: dict[str, JSON] = {
        "name": name,
        "digest": digest,
        "about": "release",
        "is_open": is_open,
        "openness": dict(openness),
        "licence": dict(licence),
    }
    talk.data("\n".join(_lines(name, openness, licence, talk)), value)
    return 0 if is_open else 1


def _lines(name: str, openness: Mapping[str, Any], licence: Mapping[str, Any], talk: Talk) -> list[str]:
    stated = licence.get("expression") or (
        "its sources disagree" if licence.get("conflict") else "none that is known"
    )
    lines = [
        name,
        f"  weights       {_painted(openness['weights'], 'available', talk)}",
        f"  licence       {_painted(openness['licence'], 'open', talk)}: {stated}",
        *_conflicts(licence),
        *_limits(licence.get("terms") or {}),
        f"  reproducible  {openness['reproducible']}",
    ]
    mof, osaid = openness.get("mof"), openness.get("osaid")
    if mof and osaid:
        lines.append(f"  MOF class     {mof['class']}")
        if mof["next"]:
            wanted = [
                *mof["missing"],
                *(f"{name} under an open licence" for name in mof["without_open_licence"]),
            ]
            lines.append(f"    for {mof['next']}: {', '.join(wanted)}")
        lines.append(f"  OSAID 1.0     {osaid['verdict']}")
        lines += [f"    {item}" for item in osaid["missing"]]
    return lines


def _conflicts(licence: Mapping[str, Any]) -> list[str]:
    if not licence.get("conflict"):
        return []
    claims = [f"    {c['path']}: {c['stated']}" for c in licence["sources"]]
    bases = [
        f"    {i['path']}: made from {i['base_model']}, {i['expression'] or 'licence unknown'}"
        for i in licence.get("inherited", ())
    ]
    return [*claims, *bases]


def _limits(terms: Mapping[str, Any]) -> list[str]:
    """The terms that limit something."""
    free = {"commercial": "yes", "training_others": "yes", "share_alike": "no"}
    said = [
        f"    {field.replace('_', ' ')}: {terms[field]}"
        for field in ("commercial", "training_others", "naming", "use_policy", "regions", "share_alike")
        if field in terms and terms[field] != free.get(field, "none")
    ]
    return [*said, f"    {terms['commercial_threshold']}"] if terms.get("commercial_threshold") else said


def _registered(name: str, talk: Talk) -> int:
    from steelyard.admit.openness_register import near, release_named

    release = release_named(name)
    if release is None:
        hint = f"; near it: {', '.join(close)}" if (close := near(name)) else ""
        raise WrongUsage(f"{name[:80]!r} is no path, no known model and no name in the register{hint}")
    is_open = release.weights == "published" and release.openness == "open"
    entry = release.to_json()
    value: dict[str, JSON] = {"name": name, "about": "register", "is_open": is_open, "register": entry}
    lines = [f"{release.name} ({release.maker}), by the register of {release.read}"]
    if release.weights == "none":
        lines.append(
            f"  {talk.paint('not admissible', 'bad')}: no weights are published, so nothing can be examined or served"
        )
    else:
        lines += [
            "  weights       published",
            f"  licence       {_painted(release.openness, 'open', talk)}: {release.licence}",
            *_limits(_fields(entry["terms"])),
            f"  training data {release.training_data}",
            "  A hint about the release. For a verdict on a copy: steelyard openness DIR",
        ]
    lines.append(f"  source: {release.source}")
    talk.data("\n".join(lines), value)
    return 0 if is_open else 1


def _fields(value: JSON) -> Mapping[str, JSON]:
    return value if isinstance(value, dict) else {}


def _painted(value: str, good: str, talk: Talk) -> str:
    return talk.paint(value, "good" if value == good else "warn")
