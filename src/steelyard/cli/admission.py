"""What `scan`, `admit` and `model convert` share: examine a path, say what was found, sign it, decide."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from pathlib import Path

from steelyard.admit.examiners import Predicate, examine_all
from steelyard.admit.rules import TREE_RULES, registry, ruleset_of
from steelyard.admit.scan import Scan, Verdict, scan
from steelyard.cli.installation import Installation, subject_of
from steelyard.cli.talk import Talk
from steelyard.digest import Digest
from steelyard.errors import Malformed, Refused
from steelyard.evidence import PREDICATE_PREFIX, Evidence
from steelyard.formats.base import Severity
from steelyard.manifest import leaves_of
from steelyard.model import Model
from steelyard.policy import Decision, Policy

SHOWN = 20  # findings on a terminal; --json has all
_STYLE = {Severity.REJECT: "bad", Severity.REVIEW: "warn", Severity.NOTE: "dim"}
_VERDICT_STYLE = {Verdict.ADMIT: "good", Verdict.REVIEW: "warn", Verdict.REJECT: "bad"}


@dataclass(frozen=True, slots=True)
class Examination:
    """A scan of a tree that could be weighed. `model` carries the name the operator gave it."""

    model: Model
    scan: Scan


def scan_path(path: Path, plugins: tuple[str, ...], talk: Talk, *, name: str | None = None) -> Scan:
    """Scan behind a progress bar. Raises WrongUsage for a missing or empty path, Unavailable when unreadable."""
    try:
        total = sum(leaf.size for leaf in leaves_of(path))
    except Malformed:
        total = 0  # the scan reports what is wrong with the tree
    with talk.bar(f"weighing {path.name}", total) as bar:
        return scan(path, registry(plugins), name=name, progress=bar.advance, is_isolated=True)


def examine_path(path: Path, plugins: tuple[str, ...], talk: Talk, *, name: str | None = None) -> Examination:
    """As `scan_path`; raises Refused when the tree itself cannot be weighed, for then it has no digest to attest."""
    found = scan_path(path, plugins, talk, name=name)
    if found.model is None:
        rules = tuple(f"{finding.rule}: {finding.message}" for finding in found.tree)
        raise Refused(f"{path} cannot be weighed, so it cannot be admitted", rules)
    return Examination(found.model, found)


def sign_and_decide(
    home: Installation,
    examination: Examination,
    source: Path,
    policy: Policy,
    now: datetime,
    *,
    also: Iterable[Evidence] = (),
) -> Decision:
    """Attest every examiner's predicate, keep the manifest, decide, and enter the decision in the ledger."""
    predicates: Sequence[Predicate] = examine_all(examination.scan, now, home.config.plugins)
    subject = subject_of(examination.model)
    home.store.put_model(examination.model, source=str(source.resolve()))
    signed = [home.attest([subject], predicate.type, predicate.body) for predicate in predicates]
    return home.conclude(examination.model, policy, now, [*also, *signed])


def concerns_of(home: Installation, model: Model) -> tuple[str, ...]:
    """Why an admitted model should be looked at again: newer rules than its scan's, or a later advisory.

    Nothing of the model is read: the evidence says it.
    """
    newest: dict[str, Evidence] = {}
    for item in home.store.evidence_for(model.digest.hex):
        if any(subject.sha256 == model.digest.hex for subject in item.statement.subjects):
            newest[item.statement.predicate_type] = item
    concerns = []
    scanned = newest.get(f"{PREDICATE_PREFIX}scan:v1")
    if scanned and scanned.statement.predicate.get("ruleset") != str(current_ruleset(home.config.plugins)):
        concerns.append(
            f"scanned by other rules than today's; run: steelyard admit --again {model.digest.hex[:12]}"
        )
    advised = newest.get(f"{PREDICATE_PREFIX}advisories:v1")
    if advised and advised.statement.predicate.get("verdict") != "clear":
        count = len(advised.statement.predicate.get("matches", ()))
        concerns.append(
            f"{count} known vulnerabilities in what serves it; run: steelyard advisories check {model.name}"
        )
    return tuple(concerns)


@cache
def current_ruleset(plugins: tuple[str, ...]) -> Digest:
    """The digest of the rules and parsers that a scan would use now."""
    return ruleset_of({**registry(plugins).rules(), **TREE_RULES})


def scan_text(found: Scan, talk: Talk) -> str:
    """Verdict, digest, and each finding with its place, what it would do, and how to mend it."""
    lines = []
    findings = list(found.findings())
    for path, finding in findings[:SHOWN]:
        detail = found.finding_json(path, finding)
        severity = found.severity(finding)
        place = found.root.name if path == "." else path
        place += f" [{finding.member}]" if finding.member else ""
        place += f" at byte {finding.offset}" if finding.offset is not None else ""
        lines += [
            f"{talk.paint(severity.value, _STYLE[severity])}  {finding.rule}  {place}",
            f"    {finding.message}",
            f"    attack: {detail['attack']}",
            f"    mend:   {detail['mend']}",
        ]
    if len(findings) > SHOWN:
        lines.append(f"... and {len(findings) - SHOWN} more; --json lists them all")
    name = found.model.name if found.model else found.root.name
    digest = f"  {found.model.digest}" if found.model else ""
    size = sum(file.size for file in found.files)
    lines.append(f"{talk.paint(found.verdict.value, _VERDICT_STYLE[found.verdict])}  {name}{digest}")
    lines.append(f"    {len(found.files)} files, {size:,} bytes: {formats_text(found)}")
    return "\n".join(lines)


def formats_text(found: Scan) -> str:
    """`2 safetensors, 1 json`: how many files each format claimed."""
    names = [file.report.format for file in found.files]
    return ", ".join(f"{names.count(name)} {name}" for name in sorted(set(names))) or "nothing was read"
