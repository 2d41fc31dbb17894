"""Docs tell the truth: generated pages are current, commands parse, the README shows code early."""

import argparse
import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from steelyard.cli.main import COMMANDS, module_of
from steelyard.config import KEYS

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


def generator():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# packages.md holds sizes on disk, which differ by platform.
@pytest.mark.parametrize("name", ["commands.md", "rules.md", "errors.md"])
def test_generated_page_is_current(name):
    assert (ROOT / "docs" / "reference" / name).read_text() == generator().PAGES[name](), "run: make docs"


def commands_in(page):
    for block in re.findall(r"^```(?:console|sh)?\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            for part in line.removeprefix("$ ").strip().split(" && "):
                if part.startswith("steelyard ") and "..." not in part and part.split()[1] in COMMANDS:
                    yield part.split("  #")[0].split(" | ")[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_a_page_parse(page):
    if page.name == "commands.md":  # usage lines, not commands
        return
    for line in commands_in(page):
        name, *rest = shlex.split(line)[1:]
        parser = argparse.ArgumentParser(exit_on_error=False)
        module_of(name).add_arguments(parser)
        try:
            parser.parse_args([word for word in rest if word not in ("--json", "--quiet")])
        except (SystemExit, argparse.ArgumentError) as error:
            pytest.fail(f"{page.name}: {line!r} does not parse: {error}")


def test_docs_show_commands_at_all():
    assert sum(1 for page in PAGES for _ in commands_in(page)) > 15


def test_readme_shows_code_within_90_words():
    words = (ROOT / "README.md").read_text().split("```")[0].split()
    assert 20 < len(words) <= 90


def test_every_configuration_key_is_documented():
    page = (ROOT / "docs" / "reference" / "configuration.md").read_text()
    assert [key for key in KEYS if key not in page] == []


def test_links_between_pages_hold():
    broken = [
        f"{page.relative_to(ROOT)}: {target}"
        for page in PAGES
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert broken == []
