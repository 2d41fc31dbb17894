"""Memory of one gateway worker over many requests, everything on, through an upstream.

The first tenth of the requests warms it up. Figures are proportional set size of the worker with its dialler.

python benchmarks/soak.py [--requests 1000000] [--nginx BIN]
"""

import argparse
import os
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from gateway import (
    TASKS,
    UPSTREAM_CORE,
    measure,
    memory_mb,
    nginx_upstream,
    ours,
    stop,
    wait_for,
)

PARTS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000)
    parser.add_argument("--nginx", default=shutil.which("nginx") or "/usr/sbin/nginx")
    args = parser.parse_args()
    os.sched_setaffinity(0, UPSTREAM_CORE)
    with tempfile.TemporaryDirectory(prefix="steelyard-bench-") as name:
        upstream, port = nginx_upstream(args.nginx, Path(name) / "upstream")
        wait_for(port, "the upstream")
        system = ours(Path(name) / "ours", port, pii=False)
        wait_for(system.port, "ours")
        try:
            task = replace(TASKS["whole"], count=args.requests // PARTS)
            sizes = []
            for part in range(PARTS):
                measure(system, task)
                sizes.append(memory_mb(system.process.pid))
                print(f"{(part + 1) * task.count:>9} requests: {sizes[-1]:6.1f} MB", flush=True)
        finally:
            stop(system.process)
            stop(upstream)
    print(
        f"growth after the first tenth: {sizes[-1] - sizes[0]:.1f} MB over {args.requests - task.count} requests"
    )


if __name__ == "__main__":
    main()
