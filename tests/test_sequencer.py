"""The sequencer: what `append` returning means in each mode, bounds, healing, heartbeats and a clock that was set."""

import asyncio
import errno
import json
import os
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from steelyard.disk import Disk
from steelyard.errors import Unavailable
from steelyard.keys import generate
from steelyard.ledger import MAX_ENTRY_BYTES
from steelyard.ledger_check import verify_log
from steelyard.sequencer import LOSS_WINDOW_S, MAX_WAITING, MAX_WAITING_BYTES, Sequencer
from steelyard.tiles import TileLog
from steelyard.wal import decode_wal

ORIGIN = "steelyard.example/log"
SIGNER = generate("ed25519")
MODES = pytest.mark.parametrize("mode", ["relaxed", "strict"])


def log_at(root: Path, disk: Disk | None = None) -> TileLog:
    return TileLog.open(root, origin=ORIGIN, signer=SIGNER, disk=disk, renew_bytes=100_000)


class SickDisk(Disk):
    """Syncs fail while `fault` is set; they wait while `go` is not."""

    def __init__(self) -> None:
        self.fault: int | None = None
        self.go = threading.Event()
        self.go.set()
        self.syncs = 0

    def sync(self, fd: int) -> None:
        self.go.wait(10)
        self.syncs += 1
        if self.fault is not None:
            raise OSError(self.fault, os.strerror(self.fault))
        super().sync(fd)


@MODES
@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lanes=st.integers(1, 40), each=st.integers(1, 30), sizes=st.integers(0, 3000))
def test_everything_released_is_in_the_ledger_in_each_callers_order(
    tmp_path_factory, mode: str, lanes: int, each: int, sizes: int
) -> None:
    root = tmp_path_factory.mktemp("seq") / "log"

    async def live() -> None:
        log = log_at(root)
        ledger = Sequencer(log, 0.01, durability=mode)
        ledger.start()

        async def lane(name: int) -> None:
            for number in range(each):
                await ledger.append(b"%d/%d/%s" % (name, number, b"x" * (number * sizes % 3001)))
                found = decode_wal((root / "wal").read_bytes(), "wal").entries
                published = log.checkpoint().size  # what is released is in one of the two
                assert published + len(found) > 0

        await asyncio.gather(*[lane(name) for name in range(lanes)])
        await ledger.close()
        log.close()

    asyncio.run(live())
    log = log_at(root)
    entries = [entry.split(b"/")[:2] for entry in log.entries()]
    for name in range(lanes):
        assert [int(n) for lane, n in entries if int(lane) == name] == list(range(each))
    assert len(entries) == lanes * each
    assert verify_log(root, str(log.key)).size == lanes * each


async def test_relaxed_is_with_the_kernel_when_append_returns(tmp_path: Path) -> None:
    log = log_at(tmp_path / "log")
    ledger = Sequencer(log, 60, durability="relaxed")
    ledger.start()
    await ledger.append(b"one")
    # Another file description sees it: the process may die now.
    assert decode_wal((tmp_path / "log" / "wal").read_bytes(), "wal").entries == [b"one"]
    await ledger.close()


async def test_relaxed_syncs_within_the_window_and_strict_before_it_returns(tmp_path: Path) -> None:
    disk = SickDisk()
    log = log_at(tmp_path / "log", disk)
    ledger = Sequencer(log, 60, durability="relaxed")
    ledger.start()
    before = disk.syncs
    await ledger.append(b"one")
    assert disk.syncs == before
    began_s = time.monotonic()
    while disk.syncs == before:  # noqa: ASYNC110 - the disk knows no loop
        await asyncio.sleep(0.001)
    assert time.monotonic() - began_s < 5 * LOSS_WINDOW_S  # a busy machine may be late
    await ledger.close()
    strict = Sequencer(log, 60, durability="strict")
    strict.start()
    before = disk.syncs
    await strict.append(b"two")
    assert disk.syncs > before
    await strict.close()


async def test_a_disk_that_hangs_stops_answers_after_the_window(tmp_path: Path) -> None:
    disk = SickDisk()
    ledger = Sequencer(log_at(tmp_path / "log", disk), 60, durability="relaxed")
    ledger.start()
    disk.go.clear()
    await ledger.append(b"inside the window")
    await asyncio.sleep(2 * LOSS_WINDOW_S)
    late = ledger.put(b"behind it")
    await asyncio.sleep(LOSS_WINDOW_S)
    assert not late.done()
    disk.go.set()
    await late
    await ledger.close()


async def test_a_failed_sync_refuses_until_the_same_entries_are_in_a_new_file(tmp_path: Path) -> None:
    disk = SickDisk()
    log = log_at(tmp_path / "log", disk)
    ledger = Sequencer(log, 60, durability="relaxed")
    ledger.start()
    inode = (tmp_path / "log" / "wal").stat().st_ino
    disk.fault = errno.EIO
    await ledger.append(b"before")
    while not ledger.is_broken:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.01)
    with pytest.raises(Unavailable, match="nothing is answered"):
        await ledger.append(b"refused")
    await asyncio.sleep(0.3)
    assert ledger.is_broken
    disk.fault = None
    resumed = False
    while not resumed:
        await asyncio.sleep(0.02)
        try:
            await ledger.append(b"resumed")
            resumed = True
        except Unavailable:
            assert ledger.is_broken
    assert not ledger.is_broken
    # A second sync of the first file could say yes and mean nothing.
    assert (tmp_path / "log" / "wal").stat().st_ino != inode
    await ledger.close()
    assert list(log.entries()) == [b"before", b"resumed"]


@MODES
async def test_the_queue_is_bounded_in_entries_and_bytes(tmp_path: Path, mode: str) -> None:
    log = log_at(tmp_path / "log")
    ledger = Sequencer(log, 60, durability=mode)
    ledger.start()
    with log._lock.held():
        few = [ledger.put(bytes(MAX_ENTRY_BYTES)) for _ in range(MAX_WAITING_BYTES // MAX_ENTRY_BYTES)]
        with pytest.raises(Unavailable, match="wait"):
            ledger.put(bytes(MAX_ENTRY_BYTES))
    await asyncio.gather(*few)
    many = [ledger.put(b"") for _ in range(MAX_WAITING)]
    with pytest.raises(Unavailable, match="wait"):
        ledger.put(b"")
    await asyncio.gather(*many)
    with pytest.raises(ValueError, match="65535"):
        ledger.put(bytes(MAX_ENTRY_BYTES + 1))
    await ledger.close()
    assert log.size == len(few) + len(many)


@MODES
async def test_close_enters_what_waits_and_refuses_what_comes(tmp_path: Path, mode: str) -> None:
    log = log_at(tmp_path / "log")
    ledger = Sequencer(log, 60, durability=mode)
    with pytest.raises(Unavailable):
        ledger.put(b"too early")
    ledger.start()
    futures = [ledger.put(b"%d" % i) for i in range(50)]
    await ledger.close()
    assert all(future.result() is None for future in futures)
    assert log.checkpoint().size == 50
    with pytest.raises(Unavailable):
        ledger.put(b"too late")
    await ledger.close()


class Clock:
    def __init__(self) -> None:
        self.offset = timedelta()

    def __call__(self) -> datetime:
        return datetime(2026, 11, 22, 12, tzinfo=UTC) + timedelta(seconds=time.monotonic()) + self.offset


async def test_heartbeats_at_start_when_idle_and_at_the_end(tmp_path: Path) -> None:
    log = log_at(tmp_path / "log")
    ledger = Sequencer(log, 0.01, durability="relaxed", clock=Clock(), heartbeat_s=0.1)
    ledger.start()
    await asyncio.sleep(0.35)
    await ledger.close()
    records = [json.loads(entry) for entry in log.entries()]
    assert {record["kind"] for record in records} == {"heartbeat"}
    states = [record["state"] for record in records]
    assert states[0] == "start"
    assert states[-1] == "stop"
    assert 1 <= states.count("alive") <= 4
    assert states[1:-1] == ["alive"] * (len(states) - 2)


async def test_a_busy_ledger_needs_no_heartbeat(tmp_path: Path) -> None:
    log = log_at(tmp_path / "log")
    ledger = Sequencer(log, 0.01, durability="relaxed", clock=Clock(), heartbeat_s=0.2)
    ledger.start()
    for _ in range(30):
        await ledger.append(b'{"kind":"answer"}')
        await asyncio.sleep(0.01)
    await ledger.close()
    states = [json.loads(entry).get("state") for entry in log.entries()]
    assert [state for state in states if state] == ["start", "stop"]


@pytest.mark.parametrize("hours", [-3, 3])
async def test_a_clock_that_was_set_is_entered_and_the_sequence_goes_on(tmp_path: Path, hours: int) -> None:
    log = log_at(tmp_path / "log")
    clock = Clock()
    ledger = Sequencer(log, 0.01, durability="relaxed", clock=clock)
    ledger.start()
    await ledger.append(b'{"kind":"answer","n":1}')
    await asyncio.sleep(0.05)
    clock.offset = timedelta(hours=hours)
    await asyncio.sleep(0.1)
    await ledger.append(b'{"kind":"answer","n":2}')
    await ledger.close()
    records = [json.loads(entry) for entry in log.entries()]
    assert [record["kind"] for record in records] == ["heartbeat", "answer", "clock", "answer", "heartbeat"]
    at, expected = (datetime.fromisoformat(records[2][name]) for name in ("at", "expected"))
    assert abs(at - expected - timedelta(hours=hours)) < timedelta(seconds=2)
    log.close()
    assert verify_log(tmp_path / "log", str(log.key)).fault is None
