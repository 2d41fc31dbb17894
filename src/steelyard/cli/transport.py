"""`steelyard model export | import | drop | gc`: models and their evidence between machines, and the store's copies."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from steelyard.cli.talk import Talk
from steelyard.digest import JSON

if TYPE_CHECKING:
    from steelyard.cli.installation import Installation
    from steelyard.model import Model


def add_verbs(add: Callable[..., argparse.ArgumentParser]) -> None:
    """`add` is the add_parser of the noun's verbs."""
    export = add("export", help="write a model with its evidence as one OCI layout, to carry over an air gap")
    export.add_argument("model", help="name or digest prefix")
    export.add_argument(
        "--out", type=Path, required=True, metavar="PATH", help="a folder, or a file ending in .tar"
    )
    take = add("import", help="take in a model and its evidence from an OCI layout, then decide")
    take.add_argument("path", type=Path, metavar="PATH", help="the layout: a folder or a .tar file")
    drop = add("drop", help="give up the store's copy of a model's weights; evidence and ledger stay")
    drop.add_argument("model", help="name or digest prefix")
    collect = add("gc", help="remove copied files that no model needs any more")
    collect.add_argument("--dry-run", action="store_true", help="say what would go")


def export_model(args: argparse.Namespace, talk: Talk) -> int:
    from steelyard.admit.bom import bill_of
    from steelyard.admit.oci_export import export_layout
    from steelyard.cli.installation import Installation

    home = Installation.open(args.home)
    model = home.store.model(args.model)
    evidence = home.store.evidence_for(model.digest.hex)
    with talk.bar(f"exporting {model.name}", model.size) as bar:
        source = Path(home.store.source(model.digest))
        digest = export_layout(bill_of(model, evidence), model, source, evidence, args.out, bar.advance)
    talk.data(
        f"{args.out}  {len(model.files)} files, {len(evidence)} statements\n{digest}",
        {"path": str(args.out), "manifest": digest, "digest": str(model.digest), "evidence": len(evidence)},
    )
    return 0


def import_model(args: argparse.Namespace, talk: Talk) -> int:
    from steelyard.admit.oci_import import import_layout
    from steelyard.blobs import Blobs
    from steelyard.cli.decisions import show_decision
    from steelyard.cli.installation import Installation, clock

    home = Installation.open(args.home)
    home.signer()  # a missing key is said before the weights are read
    with talk.bar(f"importing {args.path.name}", _size(args.path)) as bar:
        there = import_layout(args.path, Blobs(home.store.root), bar.advance)
    home.store.put_model(there.model, source=str(there.path))
    for item in there.evidence:
        home.store.put_evidence(item)
    now = clock()
    home.record(
        "import", now, model=str(there.model.digest), evidence=[str(item.id) for item in there.evidence]
    )
    decision = home.conclude(there.model, home.config.policy(), now, there.evidence)
    show_decision(decision, talk, there.model.name)
    return 0 if decision.allowed else 1


def drop_model(args: argparse.Namespace, talk: Talk) -> int:
    from steelyard.blobs import Blobs
    from steelyard.cli.installation import Installation
    from steelyard.errors import WrongUsage

    home = Installation.open(args.home)
    model = home.store.model(args.model)
    names = [name for name, digest in home.store.aliases().items() if digest == model.digest]
    if names:
        raise WrongUsage(
            f"{model.name} answers as {', '.join(sorted(names))}; point the alias elsewhere first"
        )
    Blobs(home.store.root).drop(model)
    talk.data(f"dropped the copy of {model.name}; run: steelyard model gc", {"digest": str(model.digest)})
    return 0


def collect(args: argparse.Namespace, talk: Talk) -> int:
    from steelyard.blobs import Blobs
    from steelyard.cli.installation import Installation

    blobs = Blobs(Installation.open(args.home).store.root)
    files = list(blobs.garbage())
    size = sum(count for _, count in files)
    if not args.dry_run:
        size = blobs.collect()
    verb = "would free" if args.dry_run else "freed"
    value: dict[str, JSON] = {"files": len(files), "bytes": size, "dry_run": args.dry_run}
    talk.data(f"{verb} {size:,} bytes in {len(files)} files", value)
    return 0


def keep_copy(home: "Installation", model: "Model", source: Path, talk: Talk) -> Path:
    """Copy an examined model into the store and let the store read it from there from now on."""
    from steelyard.blobs import Blobs

    blobs = Blobs(home.store.root)
    with talk.bar(f"copying {model.name}", model.size) as bar:
        kept = blobs.keep(model, source, bar.advance)
    home.store.put_model(model, source=str(kept))
    return kept


def _size(path: Path) -> int:
    if path.is_dir():
        return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())
    return path.stat().st_size if path.exists() else 0


VERBS = {"export": export_model, "import": import_model, "drop": drop_model, "gc": collect}
