"""Templates that a project published, by digest: `data/templates/published.csv` (sha256, name, source).

The digest is taken over the text with line ends as \\n and without white space at both ends. The table is made by
`recipes/chat_templates/collect.py` from the projects' own releases and holds no text of theirs.
"""

import csv
import hashlib
from functools import cache
from importlib.resources import files


def normalised_sha256(text: str) -> str:
    """The digest that `published.csv` holds, hex."""
    return hashlib.sha256(text.replace("\r\n", "\n").strip().encode(errors="surrogatepass")).hexdigest()


def published_as(text: str) -> str | None:
    """Under which name a project published this very template; absent when none of those listed did."""
    return _published().get(normalised_sha256(text))


@cache
def _published() -> dict[str, str]:
    table = files("steelyard").joinpath("data/templates/published.csv").read_text()
    return {row["sha256"]: row["name"] for row in csv.DictReader(table.splitlines())}
