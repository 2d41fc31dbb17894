"""Light start-up: what must not be loaded is not loaded, and --help is answered without it."""

import subprocess
import sys

HEAVY = (
    "torch",
    "numpy",
    "httpx",
    "httpx2",
    "jinja2",
    "gguf",
    "xllamacpp",
    "openai",
    "cryptography",
    "sqlite3",
    "asyncio",
)


def modules_after(code):
    script = f"{code}\nimport sys\nprint(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split("\n")[-2].split())


def test_import_loads_nothing_heavy():
    assert modules_after("import steelyard").isdisjoint(HEAVY)


def test_help_loads_nothing_heavy():
    loaded = modules_after(
        "from steelyard.cli.main import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass"
    )
    assert loaded.isdisjoint(HEAVY)


def test_spine_loads_neither_numpy_nor_an_extra():
    nouns = ["errors", "digest", "model", "evidence", "policy", "ledger"]
    spine = [*nouns, "store", "tiles", "keys", "plugins", "config", "manifest"]
    loaded = modules_after("\n".join(f"import steelyard.{name}" for name in spine))
    assert loaded.isdisjoint(set(HEAVY) - {"cryptography", "sqlite3"})
