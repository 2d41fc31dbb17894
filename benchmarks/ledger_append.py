"""Claims: an entry in the signed ledger costs at most 20 us of CPU more than one in a plain file, appended in groups
as they are under load; and an answer's entry, through the gateway's sequencer with 16 callers, at most 10 us more
than no ledger (relaxed), checkpoints included.

Baseline: the same bytes appended to a plain file, one write and one fdatasync a group, no tree and no signature.
Ours: TileLog.append a group, publish every `--every` groups. Interleaved, a fresh folder each round. CPU is user and
system time of this process, most of it the file system's (try --folder /dev/shm); wall time depends on the disk.
Verification of the whole ledger is timed too. `--callers` tasks each await entry after entry of a Sequencer, against
the same tasks awaiting a future of the loop's.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path

import cryptography

from steelyard.keys import generate
from steelyard.ledger_check import verify_log
from steelyard.sequencer import Durability, Sequencer
from steelyard.tiles import TileLog

SIGNER = generate("ed25519")


@dataclass(frozen=True, slots=True)
class Cost:
    """Microseconds an entry."""

    cpu_us: float
    wall_us: float


def plain_file(folder: Path, groups: list[list[bytes]]) -> None:
    with (folder / "plain").open("wb", buffering=0) as file:
        for group in groups:
            file.write(b"\n".join(group))
            os.fdatasync(file.fileno())


def ledger(folder: Path, groups: list[list[bytes]], every: int) -> TileLog:
    log = TileLog.open(folder / "log", origin="benchmark", signer=SIGNER)
    for number, group in enumerate(groups, 1):
        log.append(group)
        if number % every == 0:
            log.publish()
    log.close()
    return log


async def callers(count: int, each: int, put: Callable[[], "asyncio.Future[None]"]) -> None:
    async def caller() -> None:
        for _ in range(each):
            await put()

    await asyncio.gather(*[caller() for _ in range(count)])


def no_ledger(count: int, each: int) -> None:
    async def live() -> None:
        loop = asyncio.get_running_loop()

        def put() -> "asyncio.Future[None]":
            future = loop.create_future()
            loop.call_soon(future.set_result, None)
            return future

        await callers(count, each, put)

    run(live())


def sequenced(folder: Path, count: int, each: int, entry: bytes, durability: Durability) -> None:
    async def live() -> None:
        log = TileLog.open(folder / durability, origin="benchmark", signer=SIGNER)
        ledger = Sequencer(log, durability=durability)
        ledger.start()
        await callers(count, each, lambda: ledger.put(entry))
        await ledger.close()
        log.close()

    run(live())


def run(work: "Coroutine[None, None, None]") -> None:
    try:
        import uvloop
    except ImportError:
        asyncio.run(work)
        return
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=20_000)
    parser.add_argument(
        "--group", type=int, default=64, help="entries an append, as many requests are in flight"
    )
    parser.add_argument("--every", type=int, default=64, help="appends between two checkpoints")
    parser.add_argument("--bytes", type=int, default=600, help="bytes an entry")
    parser.add_argument("--callers", type=int, default=16, help="requests in flight at the sequencer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to write (default: the system's temporary folder)")
    args = parser.parse_args()
    entry = os.urandom(args.bytes)
    count = args.entries // args.group
    groups = [[entry] * args.group] * count
    costs: dict[str, list[Cost]] = {"plain file": [], "ledger": [], "verify": []}
    costs |= {"no ledger": [], "relaxed": [], "strict": []}
    each = args.entries // args.callers
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory(dir=args.folder) as name:
            folder = Path(name)
            total = count * args.group
            costs["plain file"].append(timed(lambda: plain_file(folder, groups), total))  # noqa: B023 - called at once
            costs["ledger"].append(timed(lambda: ledger(folder, groups, args.every), total))  # noqa: B023
            key = str(TileLog.open(folder / "log", origin="benchmark", signer=SIGNER).key)
            costs["verify"].append(timed(lambda: verify_log(folder / "log", key), total))  # noqa: B023
            served = each * args.callers
            costs["no ledger"].append(timed(lambda: no_ledger(args.callers, each), served))
            costs["relaxed"].append(
                timed(lambda: sequenced(folder, args.callers, each, entry, "relaxed"), served)  # noqa: B023
            )
            costs["strict"].append(
                timed(lambda: sequenced(folder, args.callers, each, entry, "strict"), served)  # noqa: B023
            )
    print(f"commit {commit()}, Python {sys.version.split()[0]}, cryptography {cryptography.__version__}")
    shape = f"{args.group} an append, a checkpoint each {args.every} appends"
    print(f"{count * args.group} entries of {args.bytes} bytes, {shape}")
    for what, found in costs.items():
        cpu, wall = [cost.cpu_us for cost in found], [cost.wall_us for cost in found]
        print(
            f"{what:<10}  CPU {statistics.median(cpu):6.2f} us an entry ({min(cpu):.2f} to {max(cpu):.2f}),"
            f"  wall {statistics.median(wall):7.2f} us ({min(wall):.2f} to {max(wall):.2f})"
        )
    over = statistics.median(
        ours.cpu_us - theirs.cpu_us for ours, theirs in zip(costs["ledger"], costs["plain file"], strict=True)
    )
    print(f"the tree, the tiles and the signatures cost {over:.2f} us of CPU an entry (claim: <= 20)")
    served_over = statistics.median(
        ours.cpu_us - none.cpu_us for ours, none in zip(costs["relaxed"], costs["no ledger"], strict=True)
    )
    print(
        f"an answer's entry costs {served_over:.2f} us of CPU with {args.callers} callers, relaxed (claim: <= 10)"
    )
    return 0 if over <= 20 and served_over <= 10 else 1


def timed(work: Callable[[], object], entries: int) -> Cost:
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return Cost((time.process_time() - cpu) / entries * 1e6, (time.perf_counter() - wall) / entries * 1e6)


def commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
