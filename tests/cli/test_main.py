"""The command line's own promises: exit codes, JSON errors, and talk kept apart from data."""

import io
import json

import pytest

from steelyard import __version__
from steelyard.cli.main import COMMANDS, main, module_of
from steelyard.cli.talk import Talk


def code_of(*argv):
    try:
        return main(list(argv))
    except SystemExit as stopped:
        return stopped.code


def test_no_arguments_prints_help(capsys):
    assert code_of() == 0
    assert "admit" in capsys.readouterr().out


def test_version(capsys):
    assert code_of("--version") == 0
    assert capsys.readouterr().out == f"steelyard {__version__}\n"


def test_unknown_command_is_wrong_usage():
    assert code_of("weigh") == 2


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    assert module_of(name).HELP
    assert code_of(name, "--help") == 0
    assert "--json" in capsys.readouterr().out


def test_unknown_option_is_wrong_usage():
    assert code_of("key", "show", "--colour") == 2


def test_wrong_usage_is_2_and_says_so_in_json(tmp_path, capsys):
    missing = tmp_path / "absent.toml"
    assert code_of("policy", "check", str(missing), "--json", "--home", str(tmp_path)) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["error"] == {
        "type": "WrongUsage",
        "message": f"{missing}: no such file",
        "exit_code": 2,
    }
    assert captured.err == f"error: {missing}: no such file\n"


def test_policy_with_an_unknown_key_is_2(tmp_path, capsys):
    (tmp_path / "policy.toml").write_text('version = 1\nname = "x"\nallow_everything = true\n')
    assert code_of("policy", "check", "--home", str(tmp_path)) == 2
    assert "unknown key 'allow_everything'" in capsys.readouterr().err


def test_unreadable_evidence_is_3(tmp_path, capsys):
    from steelyard.keys import new_key

    new_key(tmp_path / "keys" / "operator.pem")
    (tmp_path / "x.json").write_text("rubbish")
    assert code_of("evidence", "verify", str(tmp_path / "x.json"), "--home", str(tmp_path)) == 3
    assert "not one JSON value" in capsys.readouterr().err


def test_common_options_stand_anywhere(tmp_path, capsys):
    assert code_of("policy", "--json", "check", "--home", str(tmp_path)) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "default"


def test_defect_fails_closed(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("STEELYARD_DEBUG", raising=False)
    home = tmp_path / "home"
    home.write_text("a file where a folder must be")
    assert code_of("key", "new", "--home", str(home)) == 3
    assert "error" in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_colour_only_on_a_terminal(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert Talk(out=Terminal()).paint("x", "good") == "\x1b[32mx\x1b[0m"
    assert Talk(out=io.StringIO()).paint("x", "good") == "x"
    assert Talk(out=Terminal(), json=True).paint("x", "good") == "x"
    monkeypatch.setenv("NO_COLOR", "1")
    assert Talk(out=Terminal()).paint("x", "good") == "x"


def test_bar_draws_on_a_terminal_and_nowhere_else():
    screen, file = Terminal(), io.StringIO()
    for stream in (screen, file):
        with Talk(err=stream).bar("hashing", 10) as bar:
            bar._drawn_at -= 1
            bar.advance(5)
    assert "50%" in screen.getvalue()
    assert file.getvalue() == ""


def test_quiet_silences_talk_but_not_errors():
    screen = io.StringIO()
    talk = Talk(err=screen, quiet=True)
    talk.say("remark")
    talk.complain("error")
    assert screen.getvalue() == "error\n"
