"""Plugins are foreign code: none loads unless named, and one that cannot load is an error."""

import importlib

import pytest

from steelyard import plugins
from steelyard.errors import Unavailable, WrongUsage

MODULE = """
class Fish:
    name = "fish"
    rules = {}

    def sniff(self, head, path):
        return head.startswith(b"><>")


FORMAT = Fish()
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a distribution with one entry point on sys.path, as a wheel would."""

    def do(distribution, name="fish", target="fish_format:FORMAT", module=MODULE):
        folder = tmp_path / distribution
        info = folder / f"{distribution}-1.2.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[steelyard.formats]\n{name} = {target}\n")
        (folder / "fish_format.py").write_text(module)
        monkeypatch.syspath_prepend(str(folder))
        importlib.invalidate_caches()
        plugins._entries.cache_clear()

    yield do
    plugins._entries.cache_clear()


def test_built_ins_load_without_being_named():
    loaded = plugins.load("steelyard.formats")
    assert {"safetensors", "gguf", "pickled"} <= set(loaded)
    assert all(plugin.is_builtin for plugin in loaded.values())


def test_foreign_plugin_loads_only_when_named(install):
    install("aquarium")
    assert "fish" not in plugins.load("steelyard.formats")
    fish = plugins.load("steelyard.formats", ("fish",))["fish"]
    assert (fish.distribution, fish.version, fish.is_builtin) == ("aquarium", "1.2", False)
    assert fish.value.sniff(b"><>", "x")


def test_unnamed_plugin_is_not_even_imported(install, tmp_path):
    marker = tmp_path / "imported"
    install("aquarium", module=f"open({str(marker)!r}, 'w').close()\n" + MODULE)
    plugins.load("steelyard.formats")
    assert not marker.exists()


def test_named_plugin_that_does_not_import_is_an_error(install):
    install("aquarium", target="no_such_module:FORMAT")
    with pytest.raises(Unavailable, match="'fish' of aquarium does not load"):
        plugins.load("steelyard.formats", ("fish",))


def test_named_plugin_that_is_not_installed_is_wrong_usage():
    with pytest.raises(WrongUsage, match="'fish', which is not installed"):
        plugins.load("steelyard.formats", ("fish",))


def test_two_plugins_of_one_name_are_an_error(install):
    install("aquarium")
    install("pond")
    with pytest.raises(WrongUsage, match="'fish' is claimed by"):
        plugins.load("steelyard.formats", ("fish",))


def test_foreign_plugin_cannot_take_a_built_ins_name(install):
    install("aquarium", name="gguf")
    with pytest.raises(WrongUsage, match="'gguf' is claimed by"):
        plugins.load("steelyard.formats", ("gguf",))
    assert plugins.load("steelyard.formats")["gguf"].is_builtin
