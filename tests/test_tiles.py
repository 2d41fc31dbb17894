"""The ledger on disk: what append acknowledged survives a kill before any change, a full disk and other writers."""

import errno
import os
import resource
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steelyard.disk import Disk
from steelyard.errors import Malformed, Unavailable, Untrusted
from steelyard.keys import generate
from steelyard.ledger import MAX_ENTRY_BYTES, Checkpoint, InclusionProof
from steelyard.ledger_check import verify_log
from steelyard.merkle import check_consistency
from steelyard.note import NoteSigner
from steelyard.tiles import TileLog
from steelyard.wal import decode_wal

ORIGIN = "steelyard.example/log"
SIGNER = generate("ed25519")
KEY = NoteSigner(ORIGIN, SIGNER).key


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: a kill and a full disk do not need a disk."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else tmp_path) as name:
        yield Path(name)


def log_at(root: Path, disk: Disk | None = None, renew_bytes: int = 100_000) -> TileLog:
    return TileLog.open(root, origin=ORIGIN, signer=SIGNER, disk=disk, renew_bytes=renew_bytes)


def entries_of(count: int, first: int = 0) -> list[bytes]:
    return [b"entry %d" % i for i in range(first, first + count)]


def assert_intact(log: TileLog, size: int) -> None:
    report = verify_log(log.root, str(log.key))
    assert report.fault is None
    assert (report.size, report.unpublished) == (size, 0)


def forked(work: Callable[..., None], *args: object) -> int:
    """Run `work(*args)` in a child; its process id."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work(*args)
            status = 0
        finally:
            os._exit(status)
    return pid


def status_of(pid: int) -> int:
    return os.waitpid(pid, 0)[1]


class DyingDisk(Disk):
    """Kills the process before change number `fatal`; a write it kills is half done."""

    def __init__(self, fatal: int) -> None:
        self.fatal = fatal
        self.count = 0

    def step(self, name: str) -> None:
        self.count += 1
        if self.count == self.fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def write(self, fd: int, data: bytes) -> None:
        if self.count + 1 == self.fatal:
            os.write(fd, data[: len(data) // 2])
        super().write(fd, data)


class FullDisk(Disk):
    """Refuses change number `fatal` as a full disk does, then works again."""

    def __init__(self, fatal: int) -> None:
        self.fatal = fatal
        self.count = 0
        self.steps: list[str] = []

    def step(self, name: str) -> None:
        self.count += 1
        self.steps.append(name)
        if self.count == self.fatal:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write(self, fd: int, data: bytes) -> None:
        if self.count + 1 == self.fatal:
            os.write(fd, data[: len(data) // 2])
        super().write(fd, data)


def life(root: Path, disk: Disk, acknowledge: Callable[[range], None]) -> None:
    """A ledger's life: every kind of change there is, the write-ahead file renewed and a tile filled among them."""
    log = log_at(root, disk)
    acknowledge(log.append(entries_of(3)))
    log.publish()
    acknowledge(log.append(entries_of(270, 3)))
    acknowledge(log.append([bytes(6_000)] * 19))
    log.publish()
    acknowledge(log.append(entries_of(2, 292)))
    log.publish()
    acknowledge(log.append([b"last"]))


WHOLE_LIFE = [*entries_of(273), *[bytes(6_000)] * 19, *entries_of(2, 292), b"last"]


def acknowledge_to(pipe: int, indices: range) -> None:
    os.write(pipe, b"%d," % indices.stop)


def steps_of_life(folder: Path) -> list[str]:
    disk = FullDisk(fatal=-1)
    life(folder / "counted", disk, lambda _: None)
    return disk.steps


def test_a_kill_before_any_change_loses_nothing_acknowledged(memory_path: Path) -> None:
    steps = steps_of_life(memory_path)
    assert {"write", "sync", "rename", "remove"} < set(steps)
    for fatal in range(1, len(steps) + 1):
        root = memory_path / str(fatal)
        told, tell = os.pipe()
        child = forked(life, root, DyingDisk(fatal), partial(acknowledge_to, tell))
        os.close(tell)
        assert os.WTERMSIG(status_of(child)) == signal.SIGKILL
        with os.fdopen(told, "rb") as pipe:
            acknowledged = max([int(part) for part in pipe.read().split(b",") if part], default=0)
        if (root / "checkpoint").exists():
            # Whatever the kill left is a sound ledger to an outsider, before anybody repairs it.
            assert verify_log(root, str(KEY)).fault is None
        log = log_at(root)
        found = list(log.entries())
        assert len(found) >= acknowledged
        assert found == WHOLE_LIFE[: len(found)]
        log.append([b"after"])
        log.publish()
        assert_intact(log, len(found) + 1)
        assert not list(root.rglob("*.tmp"))


def test_a_full_disk_at_any_change_is_unavailable_and_nothing_is_half_written(memory_path: Path) -> None:
    disk_steps = steps_of_life(memory_path)
    for fatal in range(1, len(disk_steps) + 1):
        root = memory_path / str(fatal)
        acknowledged: list[range] = []
        disk = FullDisk(fatal)
        # A partial tile that cannot be removed stays and does no harm; everything else is told.
        expected = (
            nullcontext()
            if disk_steps[fatal - 1] == "remove"
            else pytest.raises(Unavailable, match="No space")
        )
        with expected:
            life(root, disk, acknowledged.append)
        log = log_at(root)
        stop = acknowledged[-1].stop if acknowledged else 0
        assert list(log.entries()) == WHOLE_LIFE[:stop]
        log.append([b"after"])
        log.publish()
        assert_intact(log, stop + 1)
        assert not list(root.rglob("*.tmp"))


def test_an_append_the_disk_refused_can_be_tried_again_on_the_same_log(tmp_path: Path) -> None:
    disk = FullDisk(fatal=-1)
    log = log_at(tmp_path / "log", disk)
    log.append(entries_of(3))
    for change in (1, 2):  # the write, the sync
        disk.fatal = disk.count + change
        with pytest.raises(Unavailable, match="nothing was entered"):
            log.append(entries_of(5, 3))
    assert log.append([b"again"]) == range(3, 4)
    log.publish()
    assert list(log.entries()) == [*entries_of(3), b"again"]
    assert_intact(log, 4)


def test_a_real_size_limit_is_unavailable_and_the_log_stays_whole(tmp_path: Path) -> None:
    root = tmp_path / "log"

    def work() -> None:
        log = log_at(root)
        log.append(entries_of(10))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        with pytest.raises(Unavailable, match="nothing was entered"):
            log.append([bytes(60_000)])
        log.append(entries_of(10, 10))

    assert status_of(forked(work)) == 0
    log = log_at(root)
    assert list(log.entries()) == entries_of(20)
    log.publish()
    assert_intact(log, 20)


def test_several_processes_append_and_publish_and_all_is_there(tmp_path: Path) -> None:
    root = tmp_path / "log"
    log_at(root).close()

    def work(name: int) -> None:
        log = log_at(root)
        for i in range(25):
            (index,) = log.append([b"%d/%d" % (name, i)])
            assert log.read(index) == b"%d/%d" % (name, i)
            if i % 7 == name:
                log.publish()

    children = [forked(work, name) for name in range(4)]
    assert [status_of(child) for child in children] == [0] * 4
    log = log_at(root)
    assert sorted(log.entries()) == sorted(b"%d/%d" % (name, i) for name in range(4) for i in range(25))
    mine = [entry for entry in log.entries() if entry.startswith(b"2/")]
    assert mine == [b"2/%d" % i for i in range(25)]
    log.publish()
    assert_intact(log, 100)


def test_an_open_log_sees_what_another_published(tmp_path: Path) -> None:
    one, two = log_at(tmp_path / "log"), log_at(tmp_path / "log")
    one.append([bytes(60_000)] * 24)  # enough for a new write-ahead file
    one.publish()
    assert two.append([b"two"]) == range(24, 25)
    assert one.append([b"one"]) == range(25, 26)
    assert two.publish().size == one.publish().size == 26
    assert list(one.entries(23)) == [bytes(60_000), b"two", b"one"]
    assert_intact(one, 26)


def test_threads_that_wait_together_share_one_sync(tmp_path: Path) -> None:
    class SlowDisk(Disk):
        syncs = 0
        arrived = threading.Event()
        go = threading.Event()

        def sync(self, fd: int) -> None:
            SlowDisk.syncs += 1
            SlowDisk.arrived.set()
            assert SlowDisk.go.wait(10)
            super().sync(fd)

    disk = SlowDisk()
    disk.go.set()
    log = log_at(tmp_path / "log", disk)
    disk.go.clear()
    disk.arrived.clear()
    SlowDisk.syncs = 0
    found: dict[bytes, range] = {}

    def work(entry: bytes) -> None:
        found[entry] = log.append([entry])

    threads = [threading.Thread(target=work, args=(b"%d" % i,)) for i in range(9)]
    threads[0].start()
    assert disk.arrived.wait(10)
    for thread in threads[1:]:
        thread.start()
    while len(log._queue) < 8:
        pass
    disk.go.set()
    for thread in threads:
        thread.join()
    assert SlowDisk.syncs == 2
    assert sorted(index for indices in found.values() for index in indices) == list(range(9))
    assert all(log.read(indices[0]) == entry for entry, indices in found.items())


def test_reading_and_proving_across_the_checkpoint(tmp_path: Path) -> None:
    log = log_at(tmp_path / "log")
    log.append(entries_of(600))
    old = log.publish()
    log.append(entries_of(50, 600))
    assert list(log.entries(598, 603)) == entries_of(5, 598)
    assert list(log.entries(3, 5)) == entries_of(2, 3)
    assert log.read(0) == b"entry 0"
    assert log.read(649) == b"entry 649"
    with pytest.raises(ValueError, match="no entry 650"):
        log.read(650)
    assert log.checkpoint().size == 600
    proof = log.prove_inclusion(630)  # published on the way
    InclusionProof.parse(proof.to_text().encode()).check(log.key)
    new = log.checkpoint()
    check_consistency(old.size, old.root, new.size, new.root, log.prove_consistency(old.size))
    with pytest.raises(ValueError, match="650"):
        log.prove_inclusion(650)


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 400))
def test_a_write_ahead_file_cut_anywhere_keeps_a_prefix(tmp_path: Path, cut: int) -> None:
    root = tmp_path / f"log{cut}"
    if root.exists():
        return
    log = log_at(root)
    for i in range(10):
        log.append(entries_of(2, 2 * i))
    data = (root / "wal").read_bytes()
    (root / "wal").write_bytes(data[: max(16, len(data) - cut)])
    found = list(log_at(root).entries())
    assert found == entries_of(20)[: len(found)]
    assert len(found) % 2 == 0  # an append is there as a whole or not at all
    assert len(found) >= 20 - 2 * (1 + cut // 40)


def test_damage_before_the_last_append_is_malformed_not_cut(tmp_path: Path) -> None:
    root = tmp_path / "log"
    log = log_at(root)
    for i in range(3):
        log.append(entries_of(2, 2 * i))
    data = bytearray((root / "wal").read_bytes())
    place = data.index(b"entry 2")
    data[place] ^= 1
    (root / "wal").write_bytes(data)
    with pytest.raises(Malformed, match="entry 2") as caught:
        log_at(root)
    assert caught.value.rule == "ledger/wal"
    assert (root / "wal").read_bytes() == data


def test_a_missing_write_ahead_file_begins_anew_behind_the_checkpoint(tmp_path: Path) -> None:
    root = tmp_path / "log"
    log = log_at(root)
    log.append(entries_of(5))
    log.close()
    (root / "wal").unlink()
    again = log_at(root)
    assert again.append([b"next"]) == range(5, 6)
    assert decode_wal((root / "wal").read_bytes(), "wal").first == 5


def test_a_checkpoint_set_back_behind_the_write_ahead_file_is_untrusted(tmp_path: Path) -> None:
    root = tmp_path / "log"
    log = log_at(root)
    log.append(entries_of(2))
    log.publish()
    old = (root / "checkpoint").read_bytes()
    log.append([bytes(4_000)] * 300)
    log.close()
    (root / "checkpoint").write_bytes(old)
    with pytest.raises(Untrusted, match="set back"):
        log_at(root)


def test_a_ledger_without_its_checkpoint_is_not_begun_again(tmp_path: Path) -> None:
    root = tmp_path / "log"
    log = log_at(root)
    log.append(entries_of(2))
    log.close()
    (root / "checkpoint").unlink()
    with pytest.raises(Untrusted, match="checkpoint is missing"):
        log_at(root)


def test_another_key_or_origin_does_not_open_the_log(tmp_path: Path) -> None:
    root = tmp_path / "log"
    log_at(root).close()
    with pytest.raises(Untrusted):
        TileLog.open(root, origin=ORIGIN, signer=generate("ed25519"))
    with pytest.raises(Untrusted):
        TileLog.open(root, origin="steelyard.example/other", signer=SIGNER)


def test_tiles_changed_under_a_closed_log_are_untrusted_on_open(tmp_path: Path) -> None:
    for name in ("tile/0/000.p/5", "tile/entries/000.p/5"):
        root = tmp_path / name.replace("/", "-")
        log = log_at(root)
        log.append(entries_of(5))
        log.close()
        data = bytearray((root / name).read_bytes())
        data[-1] ^= 1
        (root / name).write_bytes(data)
        with pytest.raises(Untrusted):
            log_at(root)


def test_entries_of_the_limit_are_taken_and_longer_ones_are_the_callers_fault(tmp_path: Path) -> None:
    log = log_at(tmp_path / "log")
    assert log.append([bytes(MAX_ENTRY_BYTES)]) == range(1)
    with pytest.raises(ValueError, match="65535"):
        log.append([b"", bytes(MAX_ENTRY_BYTES + 1)])
    with pytest.raises(ValueError, match="in one append"):
        log.append([bytes(MAX_ENTRY_BYTES)] * 1025)
    assert log.size == 1
    assert log.append([]) == range(1, 1)


def test_partial_tiles_go_once_the_full_one_is_signed(tmp_path: Path) -> None:
    log = log_at(tmp_path / "log")
    for i in range(5):
        log.append(entries_of(60, 60 * i))
        log.publish()
    files = sorted(
        str(p.relative_to(log.root)) for p in log.root.rglob("*") if p.is_file() and "tile" in p.parts
    )
    assert files == [
        "tile/0/000",
        "tile/0/001.p/44",
        "tile/1/000.p/1",
        "tile/entries/000",
        "tile/entries/001.p/44",
    ]
    assert_intact(log, 300)


def test_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    os.umask(old := os.umask(0))
    try:
        os.umask(0)
        log = log_at(tmp_path / "log")
        log.append(entries_of(300))
        log.close()
    finally:
        os.umask(old)
    for path in (tmp_path / "log", *(tmp_path / "log").rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path


def test_publishing_nothing_signs_nothing_new(tmp_path: Path) -> None:
    log = log_at(tmp_path / "log")
    log.append([b"one"])
    first = log.publish()
    stamp = (log.root / "checkpoint").stat().st_mtime_ns
    assert log.publish() == first
    assert (log.root / "checkpoint").stat().st_mtime_ns == stamp
    assert Checkpoint.parse((log.root / "checkpoint").read_bytes()) == first


def test_a_folder_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="file"):
        log_at(tmp_path / "file" / "log")


def test_a_power_cut_may_take_every_tile_not_yet_synced(tmp_path: Path) -> None:
    """Tiles are synced when the write-ahead file is renewed; those after it are made from it again."""

    class PowerDisk(Disk):
        """Knows what is not on the disk yet."""

        def __init__(self) -> None:
            self.lost: set[Path] = set()

        def lay_all(self, files) -> None:
            super().lay_all(files)
            self.lost |= {path for path, _ in files}

        def sync_all(self, paths) -> None:
            super().sync_all(paths)
            self.lost -= set(paths)

    for damage in ("gone", "empty", "zeros", "old"):
        root, disk = tmp_path / damage, PowerDisk()
        log = log_at(root, disk, 1_000_000)
        renewals = 0
        for i in range(40):
            log.append([b"%d-%d-%s" % (i, j, bytes(600)) for j in range(97)])
            before = decode_wal((root / "wal").read_bytes(), "wal").first
            checkpoint = log.publish()
            renewals += decode_wal((root / "wal").read_bytes(), "wal").first != before
        assert renewals >= 1
        whole = list(log.entries())
        lost = [path for path in disk.lost if path.exists()]
        assert len(lost) > 4
        for path in lost:
            size = path.stat().st_size
            path.unlink()
            if damage != "gone":
                path.write_bytes({"empty": b"", "zeros": bytes(size), "old": os.urandom(size)}[damage])
        (root / "lock").write_bytes(b"")  # what the numbers said of the machine's last run is nothing now
        assert verify_log(root, str(KEY)).fault is not None
        again = log_at(root)
        assert verify_log(root, str(KEY), since=checkpoint).fault is None
        assert list(again.entries()) == whole
        again.append([b"after"])
        again.publish()
        assert_intact(again, len(whole) + 1)


def test_a_settled_tile_that_is_damaged_is_not_made_up(tmp_path: Path) -> None:
    root = tmp_path / "log"
    log = log_at(root)
    for i in range(40):
        log.append([b"%d-%d-%s" % (i, j, bytes(600)) for j in range(97)])
        log.publish()
    log.close()
    path = root / "tile/0/000"
    path.write_bytes(bytes(path.stat().st_size))
    (root / "lock").write_bytes(b"")
    log_at(root)
    fault = verify_log(root, str(KEY)).fault
    assert fault is not None
    assert fault.index == 0


def test_after_a_power_cut_what_follows_a_broken_batch_is_put_aside(tmp_path: Path) -> None:
    root = tmp_path / "log"
    log = log_at(root)
    for i in range(3):
        log.write(entries_of(2, 2 * i))
    data = bytearray((root / "wal").read_bytes())
    data[data.index(b"entry 2")] ^= 1  # a page that never reached the disk, before one that did
    (root / "wal").write_bytes(data)
    (root / "lock").write_bytes(b"")
    again = log_at(root)
    assert list(again.entries()) == entries_of(2)
    assert (root / "wal.cut-2").read_bytes() == data[data.index(b"SYB1", 40) :]
    again.append([b"next"])
    again.publish()
    assert_intact(again, 3)
