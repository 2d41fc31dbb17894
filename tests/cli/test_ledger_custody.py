"""`steelyard ledger` where something leaves the house: readings entered, export, erase, hold, witness, receipts."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from steelyard.cli.installation import Installation
from steelyard.cli.main import main
from steelyard.digest import canonical_json
from steelyard.salts import salt_of
from steelyard.tile_reader import TileReader

DAY = "2026-11-20"
REQUEST, RESPONSE = b'{"messages":[]}', b'{"choices":[]}'
SECRET = b"s" * 32
RECEIPT = "00112233445566778899001122334455"  # digits only: it must not be taken for an index


def run(*words: object) -> int:
    return main(["ledger", *map(str, words)])


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with one answer, whose salt is of a day that is over."""
    home = tmp_path / "home"
    salt = salt_of(SECRET, RECEIPT)
    (home / "salts").mkdir(parents=True, mode=0o700)
    (home / "salts" / DAY).write_bytes(SECRET)
    record = {
        "kind": "answer",
        "receipt": RECEIPT,
        "salt": DAY,
        "request_sha256": hashlib.sha256(salt + REQUEST).hexdigest(),
        "response_sha256": hashlib.sha256(salt + RESPONSE).hexdigest(),
    }
    log = Installation.open(home).ledger()
    log.append([canonical_json(record)] + [b'{"kind":"filler","n":%d}' % n for n in range(300)])
    log.close()
    return home


def records(home: Path) -> list[dict]:
    log = Installation.open(home).ledger()
    try:
        return [json.loads(entry) for entry in log.entries(301)]
    finally:
        log.close()


def key_of(home: Path) -> str:
    return (home / "keys" / "ledger.vkey").read_text().strip()


def test_readings_of_the_homes_own_ledger_are_entered_first(home: Path, tmp_path: Path, capsys) -> None:
    assert run("show", "--last", 2, "--home", home) == 0
    assert run("show", home / "ledger", "--home", home) == 0  # the same ledger by its path
    assert run("prove", RECEIPT, "--home", home) == 0
    assert run("prove", 5, "--reveal", "--home", home) == 2  # it commits to nothing
    assert run("export", tmp_path / "out", "--home", home) == 0
    found = [(r["kind"], r["what"], r["first"], r["stop"]) for r in records(home)]
    assert found == [
        ("read", "show", 299, 301),
        ("read", "show", 282, 302),
        ("read", "prove", 0, 1),
        ("read", "reveal", 5, 6),
        ("export", "all", 0, 305),
    ]
    assert all(r["who"] and r["at"] for r in records(home))


def test_an_outsiders_copy_is_read_without_a_key(home: Path, tmp_path: Path, capsys) -> None:
    assert run("export", tmp_path / "out", "--home", home) == 0
    before = len(records(home))
    assert run("show", tmp_path / "out", "--home", home) == 0
    assert run("prove", RECEIPT, "--dir", tmp_path / "out", "--home", home) == 0
    (home / "keys" / "ledger.pem").unlink()
    assert run("show", "--home", home) != 0  # what cannot be entered is not shown
    assert run("show", "--outsider", "--home", home) == 0
    assert TileReader(home / "ledger").checkpoint().size == 301 + before


def verifier(folder: Path, *words: object) -> subprocess.CompletedProcess:
    # -I: neither this checkout nor anything of Steelyard's is on the path of the outsider's Python.
    code = (
        "import runpy,sys;sys.modules['steelyard']=None;sys.argv=sys.argv[1:];"
        "runpy.run_path(sys.argv[0],run_name='__main__')"
    )
    words = [sys.executable, "-I", "-c", code, str(folder / "verify.py"), *map(str, words)]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)


def test_the_bundle_verifies_without_steelyard(home: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert run("export", out, "--home", home) == 0
    done = verifier(out, out, "--key", key_of(home))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("intact  302 entries")
    assert run("verify", out, "--key", key_of(home)) == 0
    assert run("export", out, "--home", home) == 2  # never into a folder that holds something


def test_a_witness_finds_truncation_and_fork_of_who_holds_the_key(home: Path, tmp_path: Path, capsys) -> None:
    witness = ["--log", key_of(home), "--name", "audit.example/w1", "--signer", tmp_path / "w.pem",
               "--state", tmp_path / "state"]  # fmt: skip
    early = tmp_path / "early"
    assert run("export", early, "--home", home) == 0
    assert run("witness", home / "ledger", *witness) == 2  # not seen before: say so
    assert run("witness", home / "ledger", *witness, "--begin") == 0
    assert run("show", "--home", home) == 0
    # By files: what `request` prints travels, the cosigned checkpoint travels back.
    assert run("request", 302, "--home", home, "--out", tmp_path / "request") == 0
    capsys.readouterr()
    cosigned = tmp_path / "cosigned"
    assert run("witness", tmp_path / "request", *witness, "--out", cosigned, "--json") == 0
    vkey = json.loads(capsys.readouterr().out)["witness"]
    assert (
        run("witness", tmp_path / "request", *witness, "--out", cosigned) == 1
    )  # stale now: it has seen more
    assert run("verify", "--home", home, "--witness", vkey, "--cosigned", cosigned, "--json") == 0
    assert json.loads(capsys.readouterr().out)["witnesses"]["audit.example/w1"]["size"] == 303
    assert run("verify", early, "--key", key_of(home), "--witness", vkey, "--cosigned", cosigned) == 1
    assert "cut off" in capsys.readouterr().out
    assert run("witness", early, *witness) == 1
    assert "rollback" in capsys.readouterr().err
    # The whole way with a bundle, and a quorum that is not met.
    late = tmp_path / "late"
    (home / "ledger" / "witness" / "second").write_bytes(cosigned.read_bytes())
    assert run("export", late, "--home", home) == 0
    done = verifier(late, late, "--key", key_of(home), "--witness", vkey, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["witnesses"]["audit.example/w1"]["size"] == 303
    (early / "witness").mkdir(exist_ok=True)
    (early / "witness" / "late").write_bytes(cosigned.read_bytes())
    done = verifier(late, early, "--key", key_of(home), "--witness", vkey)
    assert (done.returncode, "cut off" in done.stdout) == (1, True)
    for path in (late / "witness").iterdir():
        path.unlink()
    assert verifier(late, late, "--key", key_of(home), "--witness", vkey).returncode == 1
    assert run("verify", late, "--key", key_of(home), "--witness", vkey) == 1
    assert run("verify", late, "--key", key_of(home), "--witness", vkey, "--quorum", 0) == 0
    assert run("verify", late, "--key", key_of(home), "--quorum", 1) == 2


def test_erasing_a_day_ends_the_commitments_and_leaves_every_proof(
    home: Path, tmp_path: Path, capsys
) -> None:
    assert run("prove", RECEIPT, "--reveal", "--home", home) == 0
    proof = tmp_path / "proof"
    proof.write_text(capsys.readouterr().out)
    request, response = tmp_path / "request", tmp_path / "response"
    request.write_bytes(REQUEST)
    response.write_bytes(RESPONSE)
    check = ["check-receipt", proof, "--key", key_of(home)]
    assert run(*check, "--request", request, "--response", response, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["request"], report["response"], report["entry"]["receipt"]) == (True, True, RECEIPT)
    response.write_bytes(RESPONSE + b" ")
    assert run(*check, "--response", response) == 1
    assert run(*check) == 0

    assert run("hold", DAY, "--reason", "claim 4711", "--home", home) == 0
    assert run("erase", DAY, "--home", home) == 1
    assert "claim 4711" in capsys.readouterr().err
    assert (home / "salts" / DAY).read_bytes() == SECRET
    assert run("hold", "--home", home, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {DAY: "claim 4711"}
    assert run("hold", DAY, "--release", "--home", home) == 0
    assert run("erase", DAY, "--home", home) == 0
    assert not (home / "salts" / DAY).exists()
    assert [(r["kind"], r.get("day")) for r in records(home)[1:]] == [
        ("hold", DAY),
        ("release", DAY),
        ("erase", DAY),
    ]

    assert run("prove", RECEIPT, "--reveal", "--home", home) == 2
    assert "erased" in capsys.readouterr().err
    assert run("erase", DAY, "--home", home) == 2
    assert run("prove", RECEIPT, "--home", home) == 0  # the proof itself still holds
    proof.write_text(capsys.readouterr().out)
    assert run(*check) == 0
    assert run(*check, "--request", request) == 2  # and there is nothing left to compare with
    assert run("verify", "--home", home) == 0


@pytest.mark.parametrize(
    "day", ["2999-01-01", "2026-11-19", "../../keys", "2026-13-01", "today", "2026-11-20.hold"]
)
def test_what_cannot_be_erased_exits_2_and_enters_nothing(home: Path, day: str) -> None:
    assert run("erase", day, "--home", home) == 2
    assert records(home) == []


@pytest.mark.parametrize(
    "words",
    [
        ["hold", DAY],
        ["hold", DAY, "--reason", " "],
        ["hold", DAY, "--release"],
        ["hold", "x", "--reason", "y"],
    ],
)
def test_a_hold_needs_a_day_and_a_reason(home: Path, words: list[str]) -> None:
    assert run(*words, "--home", home) == 2
    assert records(home) == []


def test_a_revealed_salt_opens_one_receipt_and_no_other(home: Path, capsys) -> None:
    assert run("prove", RECEIPT, "--reveal", "--home", home) == 0
    revealed = bytes.fromhex(json.loads(capsys.readouterr().out)["salt"])
    assert revealed == salt_of(SECRET, RECEIPT)
    assert revealed not in (SECRET, salt_of(SECRET, RECEIPT[::-1]))
