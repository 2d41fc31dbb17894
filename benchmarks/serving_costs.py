"""What telling of a request costs the serving process: metrics, metrics with telemetry, access log.

python benchmarks/serving_costs.py    microseconds of CPU each, best of some rounds, interleaved
"""

import platform
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from steelyard.records import End
from steelyard.serve.access_log import AccessLog
from steelyard.serve.auth import Caller
from steelyard.serve.message import Request
from steelyard.serve.metrics import Metrics
from steelyard.serve.routes import route_of
from steelyard.serve.telemetry import Telemetry, TelemetryConfig
from steelyard.serve.watch import Watch

TIMES, ROUNDS = 20_000, 7


def request():
    made = Request(method=b"POST", route=route_of(b"/v1/chat/completions"), alias="gpt-4o", receipt="ab" * 16)
    made.digest, made.end = "oms-sha256:" + "5e" * 32, End("complete", 120, 40, "stop")
    made.caller = Caller("app", team="claims")
    made.headers = {b"traceparent": b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa09a902b7-01"}
    return made


def main():
    asked = request()
    with tempfile.TemporaryDirectory() as folder:
        metrics = Metrics(Path(folder))
        telemetry = Telemetry(
            TelemetryConfig("http://127.0.0.1:1"),
            lambda: None,
            clock_ns=time.time_ns,
            version="0",
            instance="0",
        )
        plain, told = Watch(metrics), Watch(metrics, telemetry, time.time_ns)
        log = AccessLog(lambda _text: None, lambda: datetime.now(UTC))
        subjects = {
            "nothing": lambda: None,
            "metrics": lambda: plain.answered(asked, 200, 0.0123),
            "metrics and telemetry": lambda: told.answered(asked, 200, 0.0123, None, told.trace(asked)),
            "access log": lambda: log.add(asked, 200, 812, 0.0123),
        }
        best = dict.fromkeys(subjects, float("inf"))
        for _ in range(ROUNDS):
            for name, subject in subjects.items():
                began = time.process_time()
                for _ in range(TIMES):
                    subject()
                best[name] = min(best[name], (time.process_time() - began) / TIMES * 1e6)
        print(platform.platform(), platform.python_version())
        for name, cost_us in best.items():
            print(f"{name:<24} {cost_us:6.2f} us")


if __name__ == "__main__":
    main()
