"""What a bill of materials says of a model: its files, licence, origin and card, all taken from signed evidence.

A field is there only if a statement says it. What nobody measured or declared is left out, never guessed.
`cyclonedx.py` and `spdx.py` write it down in the two standard forms.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from steelyard.digest import JSON
from steelyard.evidence import PREDICATE_PREFIX, Evidence
from steelyard.model import File, Model

MAX_TAGS = 50


@dataclass(frozen=True, slots=True)
class Ancestor:
    """A model this one was made from: a name, its digest where a lineage statement names one, and how it is known."""

    name: str
    sha256: str | None
    how: str


@dataclass(frozen=True, slots=True)
class Statement:
    """One piece of evidence: its id (SHA-256 in hex), predicate type and time."""

    id: str
    predicate_type: str
    issued_at: str


@dataclass(frozen=True, slots=True)
class Bill:
    """The content of a bill of materials. Empty or absent: nothing says it."""

    name: str
    digest: str
    files: tuple[File, ...]
    licence: str | None
    task: str | None
    family: str | None
    architecture: str | None
    datasets: tuple[str, ...]
    ancestors: tuple[Ancestor, ...]
    languages: tuple[str, ...]
    parameters: int | None
    templates: tuple[str, ...]
    missing: tuple[str, ...]
    verdict: str | None
    formats: Mapping[str, str]
    hyperparameters: Mapping[str, str]
    evidence: tuple[Statement, ...]


_HYPERPARAMETERS = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
    "vocab_size",
    "dtype",
)


def bill_of(model: Model, evidence: Iterable[Evidence]) -> Bill:
    """Draw the bill of `model` from the newest statement of each type."""
    newest = _newest(evidence)
    said: dict[str, Mapping[str, JSON]] = {k: item.statement.predicate for k, item in newest.items()}
    entries = _objects(said.get("formats", {}).get("files"))
    facts = [_object(entry.get("facts")) for entry in entries]
    card = next((card for fact in facts if (card := _object(fact.get("front_matter")))), {})
    config = next((fact for fact in facts if fact.get("kind") == "config.json"), {})
    return Bill(
        name=model.name,
        digest=model.digest.hex,
        files=model.files,
        licence=_text(said.get("licence", {}).get("expression")),
        task=_text(card.get("pipeline_tag")),
        family=_text(config.get("model_type")) or _first(facts, "architecture"),
        architecture=next(iter(_texts(config.get("architectures"))), None),
        datasets=_texts(card.get("datasets")),
        ancestors=(*_lineage(said.get("lineage", {})), *_declared(card)),
        languages=_texts(card.get("language")),
        parameters=_sum(facts, "parameters"),
        templates=tuple(sorted(_templates(facts))),
        missing=_texts(said.get("openness", {}).get("missing")),
        verdict=_text(said.get("scan", {}).get("verdict")),
        formats={str(entry.get("path")): str(entry.get("format")) for entry in entries},
        hyperparameters={name: str(config[name]) for name in _HYPERPARAMETERS if name in config},
        evidence=tuple(
            Statement(
                item.id.hex, item.statement.predicate_type, str(item.statement.predicate.get("issued_at"))
            )
            for _, item in sorted(newest.items())
        ),
    )


def _newest(evidence: Iterable[Evidence]) -> dict[str, Evidence]:
    """The newest statement of each of our types, by the short name of the type; decisions are not about the model."""
    found: dict[str, Evidence] = {}
    for item in sorted(evidence, key=lambda item: str(item.statement.predicate.get("issued_at"))):
        kind = item.statement.predicate_type.removeprefix(PREDICATE_PREFIX).partition(":")[0]
        if kind not in {"decision", "revocation"}:
            found[kind] = item
    return found


def _lineage(predicate: Mapping[str, JSON]) -> tuple[Ancestor, ...]:
    source = _object(predicate.get("source"))
    if not source:
        return ()
    sha256 = _text(_object(source.get("digest")).get("sha256"))
    return (Ancestor(str(source.get("name")), sha256, str(predicate.get("operation"))),)


def _declared(card: Mapping[str, JSON]) -> tuple[Ancestor, ...]:
    how = _text(card.get("base_model_relation")) or "base model, by its card"
    return tuple(Ancestor(name, None, how) for name in _texts(card.get("base_model")))


def _templates(facts: Iterable[Mapping[str, JSON]]) -> set[str]:
    """The SHA-256 of every chat template that a format reported, at any depth of one list."""
    found: set[str] = set()
    for fact in facts:
        for name, value in fact.items():
            if "template" in name:
                for entry in [value, *(value if isinstance(value, list) else [])]:
                    digest = entry.get("sha256") if isinstance(entry, Mapping) else entry
                    if isinstance(digest, str) and len(digest) == 64:
                        found.add(digest)
    return found


def _objects(value: object) -> list[Mapping[str, JSON]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _object(value: object) -> Mapping[str, JSON]:
    return value if isinstance(value, Mapping) else {}


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _texts(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    return (
        tuple(item for item in value if isinstance(item, str))[:MAX_TAGS] if isinstance(value, list) else ()
    )


def _first(facts: Iterable[Mapping[str, JSON]], name: str) -> str | None:
    return next((text for fact in facts if (text := _text(fact.get(name)))), None)


def _sum(facts: Iterable[Mapping[str, JSON]], name: str) -> int | None:
    counts = [value for fact in facts if isinstance(value := fact.get(name), int)]
    return sum(counts) or None
