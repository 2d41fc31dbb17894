"""Write src/steelyard/data/licences/texts.json: hashes of standard licence texts, never their words.

    python recipes/licences/collect.py SPDX SCANCODE FOLDER... > src/steelyard/data/licences/texts.json

SPDX: the unpacked npm package `spdx-license-list`.  SCANCODE: `licensedcode/data/licenses` of the PyPI package
`scancode-toolkit`.  FOLDER: more texts, each file named by its licence id: Debian's common-licenses, and the
licences of github.com/meta-llama/llama3, databricks/dbrx and QwenLM/Qwen (research).
Where two sources word a licence differently, both wordings are kept.
"""

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from steelyard.formats.licence_text import (
    MAX_TITLE_WORDS,
    anchor_of,
    is_statement,
    packed,
    passage_digest,
    sketch_of,
    words_of,
)

READ = "2026-11-23"
_HEAD = re.compile(
    r"\W*(copyright|\(c\)|©|all rights reserved|<year>|\[year\]|https?:|<?https?:|spdx-|version \d|[^a-z]*$)"
    r"|.{0,60}\b(licen[cs]e|clause|version \d)[^a-z]{0,20}.{0,40}$",
    re.IGNORECASE,
)
_TAIL = re.compile(r"\b(appendix how to apply .*|how to apply these terms to your new .*)$")
_HOLE = re.compile(r" copyright (?:c )?(?:yyyy|year|19yy) .{0,60}?(?= licensed under | this | permission )")
# Licences that models carry and SPDX does not list: sketched like those the OSI approved.
_COMMUNITY = re.compile(
    r"llama-|gemma-|qwen|qianwen|deepseek|falcon|nvidia-open-model|stability-ai|open-rail|bigscience|exaone|hunyuan-3d"
    r"|databricks-open",
    re.IGNORECASE,
)
_SKETCHED = re.compile(
    r"CC-BY.*-4\.0$|CC0-1\.0$|OpenRAIL|CDLA-|ODbL|ODC-By|WTFPL|SSPL|BUSL|JSON$|PolyForm|HPND"
)
_OBSOLETE = re.compile(r"(A|L)?GPL-\d\.\d(\+|-or-later)?$|GFDL-.*")


@dataclass(frozen=True)
class Text:
    licence: str
    text: str
    is_osi: bool
    category: str = ""  # AboutCode's: Permissive, Copyleft, ...


def main(spdx: Path, scancode: Path, folders: list[Path]) -> None:
    texts = [*_spdx(spdx), *_scancode(scancode)]
    osi = {text.licence for text in texts if text.is_osi}
    categories = {text.licence: text.category for text in texts if text.category}
    for folder in folders:
        texts += [Text(p.name, p.read_text(), p.name in osi) for p in sorted(folder.iterdir())]
    passages: dict[str, list[object]] = {}
    sketches: dict[str, list[object]] = {}
    for text in sorted(texts, key=lambda t: (not t.is_osi, len(t.licence), t.licence)):
        body, tails = _parts(text.text)
        whole = words_of(text.text) if text.licence.startswith("LicenseRef") else []
        for words, name in [(body, text.licence), (whole, text.licence), *((tail, "+") for tail in tails)]:
            if len(words) >= 8:
                passages.setdefault(
                    passage_digest(words), [name, anchor_of(words), len(words), passage_digest(words)]
                )
        is_community = text.licence.startswith("LicenseRef") and _COMMUNITY.search(text.licence)
        if len(body) >= 40 and (text.is_osi or is_community or _SKETCHED.match(text.licence)):
            sketches.setdefault(text.licence, [text.licence, len(body), packed(sketch_of(body))])
    table = {
        "sources": {
            "spdx-license-list": json.loads((spdx / "package.json").read_text())["version"],
            "scancode-toolkit": _version(scancode),
            "read": READ,
        },
        "osi": {name: categories.get(name, "unknown") for name in sorted(osi)},
        "passages": sorted(passages.values(), key=str),
        "sketches": [sketches[name] for name in sorted(sketches)],
    }
    print(
        re.sub(
            r'\[\n\s+("[^"\n]*"),\n\s+(\d+),\n\s+(\d+),\n\s+("[0-9a-f]+")\n\s+\]',
            r"[\1,\2,\3,\4]",
            json.dumps(table, indent=0),
        )
    )


def _spdx(package: Path) -> Iterator[Text]:
    for path in sorted((package / "licenses").glob("*.json")):
        if not _OBSOLETE.fullmatch(path.stem):
            entry = json.loads(path.read_text())
            yield Text(path.stem, entry["licenseText"], bool(entry["osiApproved"]))


def _scancode(folder: Path) -> Iterator[Text]:
    """Its texts of SPDX licences (other wordings), and of the community licences."""
    for path in sorted(folder.glob("*.LICENSE")):
        _, head, text = (*path.read_text().split("---\n", 2), "")[:3]
        key = re.search(r"^spdx_license_key: (\S+)$", head, re.MULTILINE)
        is_wanted = key and (not key[1].startswith("LicenseRef") or _COMMUNITY.search(key[1]))
        if key and is_wanted and not _OBSOLETE.fullmatch(key[1]) and "is_exception: yes" not in head:
            category = re.search(r"^category: (.+)$", head, re.MULTILINE)
            yield Text(key[1], text, False, category[1] if category else "")


def _version(scancode: Path) -> str:
    (found,) = scancode.parents[2].glob("scancode_toolkit-*.dist-info")
    return found.name.split("-")[1].removesuffix(".dist")


def _parts(text: str) -> tuple[list[str], list[list[str]]]:
    """The words of the terms without title and copyright lines, and those of the appendix in front of and after
    the place where the holder is filled in. A head that says more than a title may say stays.
    """
    lines = text.strip().splitlines()
    start = 0
    while start < len(lines) - 1 and _HEAD.match(lines[start]):
        start += 1
    if is_statement(words_of("\n".join(lines[:start])), MAX_TITLE_WORDS):
        lines = lines[start:]
    words = " ".join(words_of("\n".join(lines)))
    tail = _TAIL.search(words)
    body = words[: tail.start()] if tail else words
    tails = _HOLE.split(f" {tail[0]} ") if tail else []
    return body.split(), [part.split() for part in tails]


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [Path(each) for each in sys.argv[3:]])
