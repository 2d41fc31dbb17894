"""Scan a file or directory: weigh it, let exactly one format read each file, and give a verdict. Executes nothing.

Each file is opened once; one confined process parses and hashes it (`worker`, `pool`), several files at a time.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from steelyard.admit.examined import Examined
from steelyard.admit.pool import Answer, Job, Pool
from steelyard.admit.relations import relate
from steelyard.admit.rules import TREE_RULES, ruleset_of
from steelyard.admit.worker import examine
from steelyard.digest import JSON, Digest
from steelyard.errors import Malformed
from steelyard.formats.base import Finding, Rule, Severity
from steelyard.formats.registry import Registry
from steelyard.manifest import identities_of, leaves_of, open_file, weigh
from steelyard.model import File, Model

CHANGED = "tree/changed-while-reading"


class Verdict(StrEnum):
    """`admit`: every file was understood and is clean. `review`: a person must answer. `reject`: the door is shut."""

    ADMIT = "admit"
    REVIEW = "review"
    REJECT = "reject"


@dataclass(frozen=True, slots=True)
class Scan:
    """What was found. `model` is absent when the tree itself could not be weighed (`tree` then says why)."""

    root: Path
    model: Model | None
    files: tuple[Examined, ...]
    tree: tuple[Finding, ...]
    rules: Mapping[str, Rule]
    confinement: Mapping[str, JSON] | None = None  # of the processes that parsed; absent when this one did

    @property
    def verdict(self) -> Verdict:
        worst = {self.severity(finding) for _, finding in self.findings()}
        if Severity.REJECT in worst:
            return Verdict.REJECT
        return Verdict.REVIEW if Severity.REVIEW in worst else Verdict.ADMIT

    @property
    def ruleset(self) -> Digest:
        """Names the rules and the parsers that were applied, so that newer ones can ask for another scan."""
        return ruleset_of(self.rules)

    def findings(self) -> Iterator[tuple[str, Finding]]:
        """Every finding with the path of its file, in path order; those on the tree first."""
        for finding in self.tree:
            yield ".", finding
        for file in self.files:
            for finding in file.report.findings:
                yield file.path, finding

    def severity(self, finding: Finding) -> Severity:
        """A rule that no table lists is a refusal: doubt is."""
        rule = self.rules.get(finding.rule)
        return rule.severity if rule else Severity.REJECT

    def finding_json(self, path: str, finding: Finding) -> dict[str, JSON]:
        rule = self.rules.get(finding.rule)
        return {
            "rule": finding.rule,
            "severity": self.severity(finding).value,
            "path": path,
            "offset": finding.offset,
            "member": finding.member,
            "message": finding.message,
            "attack": rule.attack if rule else "a rule without a description",
            "mend": rule.mend if rule else "report this as a defect of Steelyard",
        }


def scan(
    root: Path,
    registry: Registry,
    *,
    name: str | None = None,
    progress: Callable[[int], None] | None = None,
    is_isolated: bool = False,
) -> Scan:
    """Weigh and examine everything below `root`, or the one file it is.

    name: what to call the model (default: the folder's or file's name).  progress: bytes hashed since the last call.
    is_isolated: parse in confined processes, which are forked: for a caller without threads.
    Raises WrongUsage for a missing or empty path, Unavailable for a file that cannot be read.
    """
    rules = {**registry.rules(), **TREE_RULES}
    try:
        before = identities_of(root)
        answers, confinement = _examine(root, registry, progress, is_isolated)
        model = Model(
            root.resolve().name, tuple(File(a.job.path, a.job.size, _known(a, root)) for a in answers)
        )
    except Malformed as error:
        return Scan(root, None, (), (Finding(error.rule, error.message, error.offset),), rules)
    reports = {answer.job.path: answer.report for answer in answers}
    # The parsers must have seen the bytes that were hashed.
    changed = tuple(
        Finding(CHANGED, f"{path}: changed while it was examined")
        for path in sorted({path for path, _ in before.items() ^ identities_of(root).items()})
    )
    files = tuple(Examined(f.path, f.size, f.sha256, reports[f.path]) for f in model.files)
    related = relate(root, files)
    return Scan(
        root,
        Model(name or model.name, model.files),
        related.files,
        (*changed, *related.tree),
        rules,
        confinement,
    )


def _examine(
    root: Path, registry: Registry, progress: Callable[[int], None] | None, is_isolated: bool
) -> tuple[list[Answer], Mapping[str, JSON] | None]:
    """Every file of the tree, largest first, in this process or in confined ones."""
    leaves = sorted(leaves_of(root), key=lambda leaf: leaf.size, reverse=True)
    jobs = [Job(str(root), f.path, root.name if f.path == "." else f.path, f.size) for f in leaves]
    if is_isolated:
        with Pool(registry) as pool:
            return pool.run(jobs, progress), pool.confinement
    answers = []
    for job in jobs:
        place = root if job.path == "." else root / job.path
        found = examine(registry, place, job.name, job.size, is_root=job.path == ".", progress=progress)
        answers.append(Answer(job, *found))
    return answers, None


def _known(answer: Answer, root: Path) -> str:
    """The file's SHA-256; weighed here when its worker was lost."""
    if answer.sha256 is not None:
        return answer.sha256
    path = root if answer.job.path == "." else root / answer.job.path
    with open_file(path, is_root=answer.job.path == ".") as descriptor:
        return weigh(descriptor, path, answer.job.size)[1]
