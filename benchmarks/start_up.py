"""Claim: `steelyard --help` answers in under 150 ms. Prints the median of fresh processes and bare Python beside it."""

import statistics
import subprocess
import sys
import time

ROUNDS = 15


def median_ms(argv: list[str]) -> float:
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


def main() -> int:
    bare = median_ms([sys.executable, "-c", "pass"])
    ours = median_ms([sys.executable, "-m", "steelyard", "--help"])
    print(
        f"Python {sys.version.split()[0]}: bare {bare:.0f} ms, steelyard --help {ours:.0f} ms (claim: < 150 ms)"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
