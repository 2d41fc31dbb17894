"""Write the reference pages that are facts of the code: commands, rules, locked packages. `make docs` runs it;
tests/docs checks that what is committed is what it would write."""

import argparse
import importlib.metadata
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from steelyard import errors
from steelyard.admit.rules import all_rules
from steelyard.cli import main as command_line
from steelyard.formats.base import Rule

ROOT = Path(__file__).parent.parent
REFERENCE = ROOT / "docs" / "reference"
WIDTH = 100


def commands_page() -> str:
    """Every command with its arguments, as --help says it."""
    parts = [
        "# Commands\n",
        "Written by `make docs` from the parsers themselves.\n",
        command_line.COMMON + "\n",
    ]
    for name in command_line.COMMANDS:
        module = command_line.module_of(name)
        parser = argparse.ArgumentParser(prog=f"steelyard {name}", formatter_class=_formatter, add_help=False)
        module.add_arguments(parser)
        parts.append(f"## steelyard {name}\n\n{module.HELP}\n")
        parts.extend(f"```\n{usage.strip()}\n```\n" for usage in _usages(parser))
    return "\n".join(parts)


def rules_page() -> str:
    """Every rule a scan can name: what it stops, what an owner of an honest file does."""
    rows = ["# Rules\n", "Written by `make docs` from the parsers' own tables.\n"]
    group = ""
    for name, rule in sorted(all_rules().items()):
        if name.split("/")[0] != group:
            group = name.split("/")[0]
            rows.append(
                f"\n## {group}\n\n| rule | severity | what it stops | what to do |\n|---|---|---|---|"
            )
        rows.append(_row(name, rule))
    return "\n".join(rows) + "\n"


def packages_page() -> str:
    """Every package that `make setup` installs."""
    rows = [
        "# Locked packages\n",
        "Written by `make docs` from `requirements/runtime.txt` and the installed metadata.\n",
        "| package | version | MB | licence |\n|---|---|---|---|",
    ]
    for name, version in _locked():
        package = importlib.metadata.distribution(name)
        files = [path for item in package.files or [] if (path := Path(str(item.locate()))).exists()]
        size_mb = sum(path.stat().st_size for path in files) / 1e6
        rows.append(f"| {name} | {version} | {size_mb:.1f} | {_licence(package)} |")
    return "\n".join(rows) + "\n"


def errors_page() -> str:
    """Every error class with its exit code."""
    kinds: list[type[errors.SteelyardError]] = [
        errors.SteelyardError,
        *errors.SteelyardError.__subclasses__(),
    ]
    rows = [
        "# Errors and exit codes\n",
        "Written by `make docs` from `errors.py`. 0: yes. 1: a decided no. 2: wrong usage. 3: could not decide.\n",
    ]
    rows.extend(f"## {k.__name__}\n\nExit code {k.exit_code}. {(k.__doc__ or '').strip()}\n" for k in kinds)
    return "\n".join(rows)


PAGES = {
    "errors.md": errors_page,
    "commands.md": commands_page,
    "rules.md": rules_page,
    "packages.md": packages_page,
}


def _formatter(prog: str) -> argparse.HelpFormatter:
    return argparse.HelpFormatter(prog, width=WIDTH)


def _usages(parser: argparse.ArgumentParser) -> Iterator[str]:
    nouns = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not nouns:
        yield parser.format_help()
    for action in nouns:
        for verb in action.choices.values():
            verb.formatter_class = _formatter
            yield verb.format_help()


def _row(name: str, rule: Rule) -> str:
    cells = (f"`{name}`", rule.severity.value, rule.attack, rule.mend)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _locked() -> Iterator[tuple[str, str]]:
    text = (ROOT / "requirements" / "runtime.txt").read_text()
    for name, version in re.findall(r"^([a-z0-9-]+)==([^ \\]+)", text, re.MULTILINE):
        try:
            if importlib.metadata.version(name) == version:
                yield name, version
        except importlib.metadata.PackageNotFoundError:
            continue  # locked for another platform or Python


def _licence(package: importlib.metadata.Distribution) -> str:
    metadata = package.metadata
    stated = [metadata[name].split("\n")[0] for name in ("License-Expression", "License") if name in metadata]
    classifiers = [
        c.split(" :: ")[-1] for c in metadata.get_all("Classifier") or () if c.startswith("License ::")
    ]
    return (stated or classifiers or ["not stated"])[0]


def main() -> int:
    """Write every page."""
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (REFERENCE / name).write_text(page())
        print(f"docs/reference/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
