"""`steelyard ledger` as a person or a script meets it: text, JSON and exit codes, with no store and no secret."""

import json
from pathlib import Path

import pytest

from steelyard.cli.main import main
from steelyard.keys import generate
from steelyard.tiles import TileLog

RECORDS = [{"kind": "answer", "at": f"2026-11-22T12:00:{i:02d}Z", "receipt": f"r{i}"} for i in range(5)]


@pytest.fixture
def log(tmp_path: Path) -> TileLog:
    log = TileLog.open(tmp_path / "log", origin="steelyard.example/log", signer=generate("ed25519"))
    log.append([json.dumps(record).encode() for record in RECORDS])
    log.publish()
    (tmp_path / "log.vkey").write_text(f"{log.key}\n")
    return log


def run(*words: object) -> int:
    return main(["ledger", *map(str, words)])


def test_an_intact_ledger_exits_0(log: TileLog, tmp_path: Path, capsys) -> None:
    assert run("verify", log.root, "--key", tmp_path / "log.vkey") == 0
    assert "intact  5 entries of steelyard.example/log" in capsys.readouterr().out
    assert run("verify", log.root, "--key", log.key, "--json") == 0
    assert json.loads(capsys.readouterr().out)["intact"] is True


def test_a_tampered_ledger_exits_1_and_names_the_place(log: TileLog, capsys) -> None:
    path = log.root / "tile/entries/000.p/5"
    path.write_bytes(path.read_bytes().replace(b"r3", b"r9"))
    assert run("verify", log.root, "--key", log.key) == 1
    out = capsys.readouterr().out
    assert "tampered  tile/entries/000.p/5: entry 3" in out
    assert run("verify", log.root, "--key", log.key, "--json") == 1
    assert json.loads(capsys.readouterr().out)["fault"]["index"] == 3


def test_an_earlier_checkpoint_must_be_a_prefix(log: TileLog, tmp_path: Path, capsys) -> None:
    old = tmp_path / "old"
    old.write_bytes((log.root / "checkpoint").read_bytes())
    log.append([b"{}"])
    log.close()
    new = tmp_path / "new"
    new.write_bytes((log.root / "checkpoint").read_bytes())
    assert run("verify", log.root, "--key", log.key, "--since", old) == 0
    assert "continues the checkpoint of 5" in capsys.readouterr().out
    (log.root / "checkpoint").write_bytes(old.read_bytes())
    assert run("verify", log.root, "--key", log.key, "--since", new) == 1
    assert "cut off" in capsys.readouterr().out


@pytest.mark.parametrize("word", ["nowhere", "empty"])
def test_an_unreadable_ledger_exits_3(log: TileLog, tmp_path: Path, word: str, capsys) -> None:
    (tmp_path / "empty").mkdir()
    assert run("verify", tmp_path / word, "--key", log.key) == 3
    assert "no ledger at" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["verify", "{log}", "--key", "{tmp}/nothing.vkey"],
        ["verify", "{log}", "--key", "{key}", "--proof", "{tmp}/p"],
        ["prove", "--dir", "{log}"],
        ["prove", "1", "--receipt", "r1", "--dir", "{log}"],
        ["prove", "5", "--dir", "{log}"],
        ["prove", "-1", "--dir", "{log}"],
        ["prove", "--receipt", "r7", "--dir", "{log}"],
        ["show", "{log}", "--last", "-1"],
    ],
)
def test_wrong_words_exit_2(log: TileLog, tmp_path: Path, words: list[str]) -> None:
    assert run(*[word.format(log=log.root, tmp=tmp_path, key=log.key) for word in words]) == 2


def test_a_key_that_is_none_exits_3(log: TileLog) -> None:
    assert run("verify", log.root, "--key", "name+00000000+AAAA") == 3


def test_show_prints_the_last_entries(log: TileLog, capsys) -> None:
    assert run("show", log.root, "--last", 2) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["3", "4"]
    assert "2026-11-22T12:00:04Z  answer" in lines[1]
    assert run("show", log.root, "--last", 0, "--json") == 0
    assert json.loads(capsys.readouterr().out) == [{"index": i, "entry": r} for i, r in enumerate(RECORDS)]


def test_entries_cannot_steer_the_terminal(log: TileLog, capsys) -> None:
    log.append([b'{"kind":"\\u001b[2J\\u202e"}', b"\x1b]0;title\x07", b"[" * 60_000])
    log.close()
    assert run("show", log.root) == 0
    out = capsys.readouterr().out
    assert all(char.isprintable() or char == "\n" for char in out)
    assert len(out.splitlines()) == 8


@pytest.mark.parametrize("json_flag", [[], ["--json"]])
@pytest.mark.parametrize("which", [["2"], ["--receipt", "r2"]])
def test_a_proof_verifies_with_the_key_alone(
    log: TileLog, tmp_path: Path, which: list[str], json_flag: list[str], capsys
) -> None:
    assert run("prove", *which, "--dir", log.root, *json_flag) == 0
    proof = tmp_path / "proof"
    proof.write_text(capsys.readouterr().out)
    assert run("verify", "--proof", proof, "--key", log.key, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["index"], shown["size"], shown["entry"]) == (2, 5, RECORDS[2])
    other = TileLog.open(tmp_path / "other", origin="steelyard.example/log", signer=generate("ed25519"))
    assert run("verify", "--proof", proof, "--key", other.key) == 1
    proof.write_text(proof.read_text().replace("index 2", "index 3"))
    assert run("verify", "--proof", proof, "--key", log.key) == 1


@pytest.mark.parametrize("text", ["", "{", '{"proof": 1}', "{}", "c2sp.org/tlog-proof@v1\n"])
def test_a_file_that_is_no_proof_exits_3(log: TileLog, tmp_path: Path, text: str) -> None:
    (tmp_path / "proof").write_text(text)
    assert run("verify", "--proof", tmp_path / "proof", "--key", log.key) == 3


def test_folder_and_key_default_to_the_home(tmp_path: Path, capsys) -> None:
    from steelyard.cli.installation import Installation

    home = Installation.open(tmp_path)
    home.ledger().close()
    assert run("verify", "--home", tmp_path) == 0
    assert run("show", "--home", tmp_path) == 0
