"""Attacks on a ledger that several processes share: kill -9 at any time, a full disk, races, an outsider's hands."""

import asyncio
import contextlib
import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from steelyard.errors import Unavailable, Untrusted
from steelyard.keys import load_signer, new_key
from steelyard.ledger import Checkpoint
from steelyard.ledger_check import verify_log
from steelyard.note import NoteSigner
from steelyard.sequencer import Sequencer
from steelyard.tiles import TileLog

ORIGIN = "steelyard.example/log"
SPAWN = multiprocessing.get_context("spawn")


def open_log(home: Path, renew_bytes: int = 200_000) -> TileLog:
    signer = load_signer(home / "ledger.pem")
    return TileLog.open(home / "log", origin=ORIGIN, signer=signer, renew_bytes=renew_bytes)


def vkey(home: Path) -> str:
    return str(NoteSigner(ORIGIN, load_signer(home / "ledger.pem")).key)


def worker(home: Path, name: int, mode: str, told: int) -> None:
    """Answers for ever: each entry is told to the parent once the sequencer has released it."""

    async def caller(ledger: Sequencer, lane: int) -> None:
        for number in range(1_000_000):
            entry = b'{"worker":%d,"lane":%d,"n":%d,"pad":"%s"}' % (name, lane, number, b"x" * 300)
            await ledger.append(entry)
            os.write(told, b"%d/%d/%d\n" % (name, lane, number))
            await asyncio.sleep(
                0.002
            )  # an answer takes some time; without it two cores do nothing but publish

    async def serve() -> None:
        ledger = Sequencer(open_log(home), 0.05, durability=mode)
        ledger.start()
        await asyncio.gather(*[caller(ledger, lane) for lane in range(8)])

    asyncio.run(serve())


def worker_main() -> None:
    home, name, mode = sys.argv[1:]
    worker(Path(home), int(name), mode, 1)


def started(home: Path, name: int, mode: str, out: Path):
    import subprocess

    with out.open("wb") as file:
        return subprocess.Popen([sys.executable, __file__, str(home), str(name), mode], stdout=file)


def lines_of(path: Path) -> set[str]:
    return {line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")}


def wait_for_words(path: Path) -> None:
    """Until the worker was told something by its ledger: nobody is shut out for ever."""
    end = time.monotonic() + 20
    while not path.stat().st_size:
        assert time.monotonic() < end, "a worker never got to write"
        time.sleep(0.01)


@pytest.mark.parametrize("mode", ["relaxed", "strict"])
def test_kill_9_of_any_worker_at_any_time_loses_nothing_acknowledged(tmp_path: Path, mode: str) -> None:
    new_key(tmp_path / "ledger.pem")
    open_log(tmp_path).close()
    chance = random.Random(7)
    outs: list[Path] = []

    def start(slot: int):
        outs.append(tmp_path / f"told-{len(outs)}")
        return started(tmp_path, len(outs) - 1, mode, outs[-1])

    running = [start(slot) for slot in range(3)]
    told = outs[:]  # of the running ones
    try:
        for _ in range(6):
            slot = chance.randrange(3)
            wait_for_words(told[slot])
            time.sleep(0.2 * chance.random())
            running[slot].send_signal(signal.SIGKILL)
            running[slot].wait()
            running[slot] = start(slot)
            told[slot] = outs[-1]
        for path in told:
            wait_for_words(path)
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert verify_log(tmp_path / "log", vkey(tmp_path)).fault is None  # before anybody repairs it
    log = open_log(tmp_path)
    entries = [json.loads(entry) for entry in log.entries()]
    log.close()
    found = [f"{entry['worker']}/{entry['lane']}/{entry['n']}\n" for entry in entries]
    acknowledged = set().union(*map(lines_of, outs))
    assert len(acknowledged) > 500
    assert len([out for out in outs if lines_of(out)]) == 9
    assert acknowledged <= set(found)
    assert len(found) == len(set(found))
    for name in {entry["worker"] for entry in entries}:
        for lane in range(8):  # what one caller entered stands in its order, without a gap
            mine = [e["n"] for e in entries if (e["worker"], e["lane"]) == (name, lane)]
            assert mine == list(range(len(mine)))
    report = verify_log(tmp_path / "log", vkey(tmp_path))
    assert (report.fault, report.size, report.unpublished) == (None, len(found), 0)


def test_a_kill_between_write_and_word_leaves_a_turn_the_next_one_takes(tmp_path: Path) -> None:
    new_key(tmp_path / "ledger.pem")
    one, two = open_log(tmp_path), open_log(tmp_path)
    one.append([b"one"])
    # What a writer that dies in the middle of its write leaves: an odd turn and half a batch.
    one._cells.values[0] |= 1
    with (tmp_path / "log" / "wal").open("ab") as file:
        file.write(b"SYB1\0\0\0")
    assert not two.try_write([b"two"])
    two.write([b"two"])
    assert one.append([b"three"]) == range(2, 3)
    assert list(two.entries()) == [b"one", b"two", b"three"]


def test_a_kill_after_the_new_write_ahead_file_is_in_place_forks_nothing(tmp_path: Path) -> None:
    new_key(tmp_path / "ledger.pem")
    one, two = open_log(tmp_path), open_log(tmp_path)
    one.append([b"one"])
    # Dies after the rename and before a word of it: the others still have the old file open.
    data = (tmp_path / "log" / "wal").read_bytes()
    (tmp_path / "log" / "new").write_bytes(data)
    (tmp_path / "log" / "new").rename(tmp_path / "log" / "wal")
    one._cells.values[0] |= 1
    two.write([b"two"])
    one.write([b"three"])
    assert list(two.entries()) == list(one.entries()) == [b"one", b"two", b"three"]


def test_a_write_ahead_file_replaced_by_somebody_else_is_not_published(tmp_path: Path) -> None:
    new_key(tmp_path / "ledger.pem")
    log = open_log(tmp_path)
    log.append([b"one"])
    path = tmp_path / "log" / "wal"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    with pytest.raises(Untrusted, match="from outside"):
        log.publish()


def test_a_write_ahead_file_cut_by_somebody_else_is_not_published(tmp_path: Path) -> None:
    new_key(tmp_path / "ledger.pem")
    log = open_log(tmp_path)
    log.append([b"one"])
    os.truncate(tmp_path / "log" / "wal", 20)
    with pytest.raises(Untrusted, match="cut short"):
        log.publish()


def test_a_fork_of_the_process_does_not_write_to_the_parents_ledger(tmp_path: Path) -> None:
    new_key(tmp_path / "ledger.pem")
    log = open_log(tmp_path)
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(ValueError):
            assert not log.try_write([b"child"])
            log.write([b"child"])
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert list(log.entries()) == []


def race(home: Path, name: int) -> None:
    log = open_log(home)
    for number in range(20):
        log.write([b"%d/%d" % (name, number)])
        log.publish()


def test_two_publishers_that_race_leave_one_history(tmp_path: Path) -> None:
    new_key(tmp_path / "ledger.pem")
    open_log(tmp_path).close()
    seen: list[Checkpoint] = []
    processes = [SPAWN.Process(target=race, args=(tmp_path, name)) for name in range(2)]
    for process in processes:
        process.start()
    while any(process.is_alive() for process in processes):
        seen.append(Checkpoint.parse((tmp_path / "log" / "checkpoint").read_bytes()))
        time.sleep(0.01)
    assert [process.exitcode for process in processes] == [0, 0]
    # Every tree head anybody saw is a prefix of the last one.
    report = verify_log(tmp_path / "log", vkey(tmp_path), since=seen)
    assert (report.fault, report.size) == (None, 40)
    assert len({checkpoint.size for checkpoint in seen}) > 2


@pytest.mark.parametrize("mode", ["relaxed", "strict"])
def test_a_real_full_disk_refuses_at_once_and_heals(tmp_path: Path, mode: str) -> None:
    new_key(tmp_path / "ledger.pem")

    async def fill() -> int:
        log = open_log(tmp_path, renew_bytes=1 << 20)
        ledger = Sequencer(log, 60, durability=mode)
        ledger.start()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
        entered = 0
        refused_s = None
        for _ in range(100):
            began_s = time.monotonic()
            try:
                await ledger.append(b"x" * 1000)
                entered += 1
            except Unavailable:
                refused_s = time.monotonic() - began_s
                break
        assert refused_s is not None
        assert refused_s < 1
        assert ledger.is_broken
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        await ledger.append(b"resumed")
        assert not ledger.is_broken
        await ledger.close()
        log.close()
        return entered

    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            count = asyncio.new_event_loop().run_until_complete(fill())
            (tmp_path / "entered").write_text(str(count))
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    log = open_log(tmp_path)
    assert list(log.entries()) == [b"x" * 1000] * int((tmp_path / "entered").read_text()) + [b"resumed"]
    log.close()
    assert verify_log(tmp_path / "log", vkey(tmp_path)).fault is None


def test_a_writer_stopped_with_the_lock_delays_and_never_blocks_the_loop(tmp_path: Path) -> None:
    new_key(tmp_path / "ledger.pem")
    holder, log = open_log(tmp_path), open_log(tmp_path)

    async def ask() -> float:
        ledger = Sequencer(log, 60, durability="relaxed")
        ledger.start()
        release = threading.Event()

        def hold() -> None:
            with holder._lock.held():
                taken.set()
                release.wait(10)

        taken = threading.Event()
        thread = threading.Thread(target=hold)
        thread.start()
        taken.wait(10)
        waiting = ledger.put(b"{}")
        longest_s = 0.0
        for _ in range(100):
            began_s = time.monotonic()
            await asyncio.sleep(0.001)
            longest_s = max(longest_s, time.monotonic() - began_s)
        assert not waiting.done()
        release.set()
        await waiting
        thread.join()
        await ledger.close()
        return longest_s

    assert asyncio.run(ask()) < 0.09  # the lock was held ten times as long
    log.close()


if __name__ == "__main__":
    worker_main()
