"""The store on disk: kills, full disks, other processes, damaged files and a damaged index."""

import errno
import gc
import os
import signal
import sqlite3
import threading
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest

from steelyard.access import ApiKey
from steelyard.disk import Disk
from steelyard.errors import Malformed, Unavailable
from steelyard.evidence import Evidence, Statement, Subject, attest
from steelyard.keys import generate
from steelyard.model import File, Model
from steelyard.store import Store

SIGNER = generate("ed25519")
OTHER = generate("ed25519")
NOW = "2026-11-22T12:00:00Z"
SUBJECT = "ab" * 32
MODEL = Model("m", (File("weights", 1, "cd" * 32),))


def statement(number: int) -> Statement:
    return Statement((Subject("m", SUBJECT),), "urn:steelyard:scan:v1", {"issued_at": f"{number:06d}"})


ITEMS = [attest(statement(i), SIGNER) for i in range(60)]
JOINED = attest(statement(0), OTHER)


class Steps(Disk):
    """Counts the changes; before number `fatal` it does `act`."""

    def __init__(self, fatal: int = -1, act: Callable[[], None] = lambda: None) -> None:
        self.fatal = fatal
        self.act = act
        self.names: list[str] = []

    def step(self, name: str) -> None:
        self.names.append(name)
        if len(self.names) == self.fatal:
            self.act()

    def write(self, fd: int, data: bytes) -> None:
        if len(self.names) + 1 == self.fatal:
            os.write(fd, data[: len(data) // 2])
        super().write(fd, data)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fill() -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def life(home: Path, disk: Disk, acknowledge: Callable[[str], None]) -> None:
    """Every kind of change there is."""
    store = Store.open(home, disk=disk)
    for name, change in CHANGES.items():
        change(store)
        acknowledge(name)


CHANGES: dict[str, Callable[[Store], object]] = {
    "first": lambda store: store.put_evidence(ITEMS[0]),
    "second": lambda store: store.put_evidence(ITEMS[1]),
    "joined": lambda store: store.put_evidence(JOINED),
    "model": lambda store: store.put_model(MODEL, source="/old"),
    "renamed": lambda store: store.put_model(Model("n", MODEL.files), source="/new"),
    "alias": lambda store: store.set_alias("gpt-4o", MODEL.digest),
    "key": lambda store: store.add_api_key(ApiKey("k", "ef" * 32, NOW)),
    "unkey": lambda store: store.remove_api_key("k"),
}
# What must hold once a change is acknowledged, until a later change of the same thing begins.
KEPT: dict[str, Callable[[Store], object]] = {
    "first": lambda store: ITEMS[0].id in [item.id for item in store.evidence_for(SUBJECT)],
    "second": lambda store: ITEMS[1] in store.evidence_for(SUBJECT),
    "joined": lambda store: len(store.evidence(ITEMS[0].id).signatures) == 2,
    "model": lambda store: store.model(MODEL.digest.hex).files == MODEL.files,
    "renamed": lambda store: store.model("n").name == "n" and store.source(MODEL.digest) == "/new",
    "alias": lambda store: store.model("gpt-4o").digest == MODEL.digest,
    "key": lambda store: True,
    "unkey": lambda store: store.api_keys() == [],
}


def acknowledge_to(pipe: int, name: str) -> None:
    os.write(pipe, f"{name},".encode())


def forked(work: Callable[..., None], *args: object) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work(*args)
            status = 0
        finally:
            os._exit(status)
    return pid


def assert_whole(home: Path, acknowledged: list[str]) -> None:
    store = Store.open(home)
    assert [name for name in acknowledged if not KEPT[name](store)] == []
    assert store.head() % 2 == 0
    on_disk = {path.stem for path in (home / "store" / "evidence").iterdir()}
    assert {item.id.hex for item in store.list_evidence()} == on_disk
    assert not list(home.rglob("*.tmp"))
    store.put_evidence(ITEMS[2])
    assert ITEMS[2] in store.evidence_for(SUBJECT)


def steps_of_life(home: Path) -> list[str]:
    disk = Steps()
    life(home, disk, lambda _: None)
    return disk.names


def test_a_kill_before_any_change_loses_nothing_acknowledged(tmp_path: Path) -> None:
    names = steps_of_life(tmp_path / "counted")
    assert {"head odd", "write", "rename", "commit index", "head even"} < set(names)
    for fatal in range(1, len(names) + 1):
        home = tmp_path / str(fatal)
        told, tell = os.pipe()
        child = forked(life, home, Steps(fatal, die), partial(acknowledge_to, tell))
        os.close(tell)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        with os.fdopen(told) as pipe:
            assert_whole(home, [name for name in pipe.read().split(",") if name])


def test_a_full_disk_at_any_change_is_unavailable_and_nothing_is_half_written(tmp_path: Path) -> None:
    names = steps_of_life(tmp_path / "counted")
    for fatal, name in enumerate(names, 1):
        if name in ("head odd", "head even"):  # memory, allocated when the store was opened
            continue
        home = tmp_path / str(fatal)
        acknowledged: list[str] = []
        with pytest.raises((Unavailable, OSError), match="No space"):
            life(home, Steps(fatal, fill), acknowledged.append)
        assert_whole(home, acknowledged)


def test_the_same_store_goes_on_after_a_full_disk(tmp_path: Path) -> None:
    disk = Steps()
    store = Store.open(tmp_path, disk=disk)
    for change in ("write", "rename", "commit index"):
        before = len(store.list_evidence())
        counted = Steps()
        Store.open(tmp_path / change, disk=counted).put_evidence(ITEMS[5])
        first = counted.names.index("head odd")
        disk.fatal = len(disk.names) + counted.names.index(change, first) - first + 1
        disk.act = fill
        with pytest.raises((Unavailable, OSError), match="No space"):
            store.put_evidence(ITEMS[before])
        assert len(store.list_evidence()) == before
        store.put_evidence(ITEMS[before])
        assert len(store.list_evidence()) == before + 1
        assert store.head() % 2 == 0


def test_a_living_process_finishes_what_a_killed_one_left(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    names = Steps()
    Store.open(tmp_path / "counted", disk=names).put_evidence(ITEMS[0])
    opening = names.names.index("head odd")
    for offset in range(len(names.names) - opening):
        before = store.head()

        def work(offset: int = offset) -> None:
            disk = Steps()
            other = Store.open(tmp_path, disk=disk)
            disk.fatal, disk.act = len(disk.names) + offset + 1, die
            other.put_evidence(ITEMS[10 + offset])

        os.waitpid(forked(work), 0)
        listed = {item.id.hex for item in store.list_evidence()}
        assert listed == {path.stem for path in (tmp_path / "store" / "evidence").iterdir()}
        assert store.head() % 2 == 0
        assert (store.head() == before) == (offset == 0)  # killed before anything moved


def test_head_shows_another_process_at_work_and_its_change(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    before = store.head()
    ready, go = os.pipe(), os.pipe()

    def wait() -> None:
        os.write(ready[1], b".")
        os.read(go[0], 1)

    def work() -> None:
        disk = Steps()
        other = Store.open(tmp_path, disk=disk)
        counted = Steps()
        Store.open(tmp_path / "counted", disk=counted).put_evidence(ITEMS[0])
        first = counted.names.index("head odd")
        disk.fatal = len(disk.names) + counted.names.index("commit index", first) - first + 1
        disk.act = wait
        other.put_evidence(ITEMS[0])

    child = forked(work)
    os.read(ready[0], 1)
    assert store.head() == before + 1  # odd: somebody is at work, and holds the lock
    assert store.evidence_for(SUBJECT) == []
    os.write(go[1], b".")
    assert os.waitpid(child, 0)[1] == 0
    assert store.head() == before + 2
    assert store.evidence_for(SUBJECT) == [ITEMS[0]]


def test_several_processes_and_threads_write_at_once_and_all_is_there(tmp_path: Path) -> None:
    Store.open(tmp_path).close()

    def work(part: int) -> None:
        store = Store.open(tmp_path)
        threads = [
            threading.Thread(
                target=lambda items=ITEMS[part + 3 * k :: 6]: [store.put_evidence(i) for i in items]
            )
            for k in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {item.id for item in ITEMS[part::3]} <= {item.id for item in store.evidence_for(SUBJECT)}

    children = [forked(work, part) for part in range(3)]
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 3
    store = Store.open(tmp_path)
    assert store.evidence_for(SUBJECT) == ITEMS
    assert store.head() % 2 == 0


def evidence_file(home: Path, item: Evidence) -> Path:
    return home / "store" / "evidence" / f"{item.id.hex}.json"


@pytest.mark.parametrize("content", [b"", b"{}", b"not JSON", ITEMS[1].to_json()])
def test_a_damaged_evidence_file_is_malformed_and_named(tmp_path: Path, content: bytes) -> None:
    store = Store.open(tmp_path)
    store.put_evidence(ITEMS[0])
    path = evidence_file(tmp_path, ITEMS[0])
    path.write_bytes(content)
    for question in (
        lambda: store.evidence_for(SUBJECT),
        store.list_evidence,
        lambda: store.evidence(ITEMS[0].id),
        store.reindex,
    ):
        with pytest.raises(Malformed, match=path.name):
            question()


def test_a_flipped_bit_in_an_envelope_is_malformed_or_untrusted_never_another_statement(
    tmp_path: Path,
) -> None:
    store = Store.open(tmp_path)
    store.put_evidence(ITEMS[0])
    path = evidence_file(tmp_path, ITEMS[0])
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        with (
            nullcontext()
            if _is_payload_kept(path.read_bytes())
            else pytest.raises(Malformed, match=path.name)
        ):
            store.evidence_for(SUBJECT)


def _is_payload_kept(data: bytes) -> bool:
    try:
        return Evidence.parse(data).payload == ITEMS[0].payload
    except Malformed:
        return False


def test_an_evidence_file_that_is_gone_is_malformed_and_named(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    store.put_evidence(ITEMS[0])
    evidence_file(tmp_path, ITEMS[0]).unlink()
    for opened in (store, Store.open(tmp_path)):
        with pytest.raises(Malformed, match=f"{ITEMS[0].id.hex}.json is gone"):
            opened.evidence_for(SUBJECT)
    store.reindex()
    assert store.evidence_for(SUBJECT) == []


def test_files_restored_by_hand_are_found_on_open(tmp_path: Path) -> None:
    Store.open(tmp_path).put_evidence(ITEMS[0])
    evidence_file(tmp_path, ITEMS[1]).write_bytes(ITEMS[1].to_json())
    assert Store.open(tmp_path).evidence_for(SUBJECT) == ITEMS[:2]


@pytest.mark.parametrize("damage", ["zeroes", "text", "cut", "gone", "other schema", "flipped page"])
def test_a_damaged_index_is_built_anew_from_the_files(tmp_path: Path, damage: str, caplog) -> None:
    store = Store.open(tmp_path)
    for item in ITEMS[:20]:
        store.put_evidence(item)
    store.put_model(MODEL, source="/weights")
    store.close()
    path = tmp_path / "store" / "index.db"
    size = path.stat().st_size
    if damage == "zeroes":
        path.write_bytes(bytes(size))
    elif damage == "text":
        path.write_bytes(b"this is not a database, and it is long enough to be read as one" * 99)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[: size // 2])
    elif damage == "gone":
        path.unlink()
    elif damage == "other schema":
        with sqlite3.connect(path) as db:
            db.execute("PRAGMA user_version = 99")
    else:
        data = bytearray(path.read_bytes())
        data[4096 : 2 * 4096] = b"\xff" * 4096
        path.write_bytes(data)
    again = Store.open(tmp_path)
    assert again.evidence_for(SUBJECT) == ITEMS[:20]
    assert again.model("m") == MODEL
    assert bool(caplog.records) == (damage != "gone")


def test_an_index_damaged_under_an_open_store_is_built_anew(tmp_path: Path) -> None:
    store, other = Store.open(tmp_path), Store.open(tmp_path)
    for item in ITEMS[:20]:
        store.put_evidence(item)
    other.reindex()
    assert store.evidence_for(SUBJECT) == ITEMS[:20]
    other.put_evidence(ITEMS[20])
    assert store.evidence_for(SUBJECT) == ITEMS[:21]
    store.put_evidence(ITEMS[21])
    assert other.evidence_for(SUBJECT) == ITEMS[:22]


def test_a_damaged_manifest_or_name_file_is_malformed_and_named(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    store.put_model(MODEL, source="x")
    store.set_alias("gpt-4o", MODEL.digest)
    store.add_api_key(ApiKey("k", "ef" * 32, NOW))
    manifest = tmp_path / "store" / "manifests" / f"{MODEL.digest.hex}.json"
    for path, question in (
        (manifest, store.models),
        (tmp_path / "store" / "api_keys.json", store.api_keys),
        (tmp_path / "store" / "aliases.json", store.aliases),
    ):
        for content in (b"[1]", b'{"a":"b"}', b"{"):
            path.write_bytes(content)
            with pytest.raises(Malformed, match=path.name):
                question()


def test_a_manifest_under_another_models_name_is_malformed(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    other = Model("other", (File("weights", 1, "00" * 32),))
    store.put_model(MODEL, source="x")
    store.put_model(other, source="y")
    folder = tmp_path / "store" / "manifests"
    (folder / f"{MODEL.digest.hex}.json").write_bytes((folder / f"{other.digest.hex}.json").read_bytes())
    with pytest.raises(Malformed, match=MODEL.digest.hex):
        store.model(MODEL.digest.hex)


def test_files_and_folders_are_for_their_owner_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        life(tmp_path / "home", Disk(), lambda _: None)
    finally:
        os.umask(old)
    gc.collect()  # closes what `life` left open, so that SQLite removes its files now and not while we look
    for path in (tmp_path / "home", *(tmp_path / "home").rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_home_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="file"):
        Store.open(tmp_path / "file")
