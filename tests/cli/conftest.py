"""A home with a key, and the demonstration model in a folder of its own."""

import json
import shutil
from importlib import resources

import pytest

from steelyard.cli.main import main


class Shell:
    """Runs commands in one home and keeps what they printed."""

    def __init__(self, home, capsys):
        self.home = home
        self.capsys = capsys
        self.out = ""
        self.err = ""

    def __call__(self, *argv):
        self.capsys.readouterr()
        try:
            code = main([*map(str, argv), "--home", str(self.home)])
        except SystemExit as stopped:
            code = stopped.code
        captured = self.capsys.readouterr()
        self.out, self.err = captured.out, captured.err
        return code

    def json(self, *argv, code=0):
        assert self(*argv, "--json") == code, self.err
        return json.loads(self.out)


@pytest.fixture
def shell(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("STEELYARD_PASSPHRASE", raising=False)
    monkeypatch.delenv("STEELYARD_DEBUG", raising=False)
    return Shell(tmp_path / "home", capsys)


@pytest.fixture
def yard(shell):
    assert shell("key", "new") == 0
    return shell


@pytest.fixture
def helpdesk(tmp_path):
    folder = tmp_path / "helpdesk"
    with resources.as_file(resources.files("steelyard") / "data" / "helpdesk") as model:
        shutil.copytree(model, folder)
    return folder
