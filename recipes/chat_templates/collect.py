"""Writes src/steelyard/data/templates from folders of published chat templates.

    python recipes/chat_templates/collect.py NAME=FOLDER [NAME=FOLDER ...]

NAME: the release the folder was unpacked from, as "project version". Every *.jinja below it counts. Written are
digests only: one of each template, and one of each run of words that its literals hold.
"""

import csv
import sys
from pathlib import Path

from steelyard.errors import Malformed
from steelyard.formats.template_known import normalised_sha256
from steelyard.formats.template_prose import digest_of, literals, runs
from steelyard.formats.template_syntax import parse_template

DATA = Path(__file__).parents[2] / "src/steelyard/data/templates"


def main() -> None:
    published: dict[str, tuple[str, str]] = {}
    sentences: set[str] = set()
    for argument in sys.argv[1:]:
        source, _, folder = argument.partition("=")
        for path in sorted(Path(folder).rglob("*.jinja")):
            text = path.read_text()
            try:
                tree = parse_template(text)
            except Malformed as error:
                print(f"{path}: left out, {error.message}")
                continue
            published.setdefault(normalised_sha256(text), (path.stem, source))
            sentences |= {digest_of(run) for _, literal in literals(tree) for run in runs(literal)}
    with (DATA / "published.csv").open("w", newline="") as out:
        rows = csv.writer(out, lineterminator="\n")
        rows.writerow(("sha256", "name", "source"))
        rows.writerows(
            (digest, *entry) for digest, entry in sorted(published.items(), key=lambda each: each[1])
        )
    (DATA / "sentences.txt").write_text("\n".join(sorted(sentences)) + "\n")
    print(f"{len(published)} templates, {len(sentences)} runs of words")


if __name__ == "__main__":
    main()
