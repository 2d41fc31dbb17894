"""Spans and metrics as a receiver of its own process decodes them; drops when it is away."""

import base64
import json
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from steelyard.errors import WrongUsage
from steelyard.serve.telemetry import MAX_WAITING, Telemetry, TelemetryConfig
from steelyard.serve.telemetry_otlp import Finished
from steelyard.serve.trace import Trace, begun

RECEIVER = Path(__file__).with_name("otlp_receiver.py")
END_NS = 1_795_000_000_000_000_000
TRACEPARENT = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa09a902b7-01"


@contextmanager
def receiver(status=200):
    process = subprocess.Popen(
        [sys.executable, str(RECEIVER), str(status)], stdout=subprocess.PIPE, text=True
    )
    try:
        yield process, int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def telemetry(port, *, conventions="latest", dial=None, **config):
    return Telemetry(
        TelemetryConfig(f"http://127.0.0.1:{port}", conventions, **config),
        dial or (lambda: socket.create_connection(("127.0.0.1", port))),
        clock_ns=lambda: END_NS,
        version="0.1.0",
        instance="worker-0",
        interval_s=0.05,
        metrics_interval_s=0.05,
    )


def chat(**changed):
    values = {
        "trace": begun(TRACEPARENT),
        "operation": "chat",
        "route": "/v1/chat/completions",
        "alias": "gpt-4o",
        "status": 200,
        "end_ns": END_NS,
        "duration_s": 0.25,
        "first_chunk_s": 0.03,
        "prompt_tokens": 12,
        "completion_tokens": 5,
        "finish_reason": "stop",
        "digest": "oms-sha256:5e",
        "receipt": "ab12",
    }
    return Finished(**values | changed)


def attributes(thing):
    return {one["key"]: next(iter(one["value"].values())) for one in thing["attributes"]}


def received(process, path):
    while True:
        line = json.loads(process.stdout.readline())
        if line["path"] == path and line["message"]:
            return line


def span_of(line):
    return line["message"]["resourceSpans"][0]["scopeSpans"][0]["spans"][0]


def test_a_request_arrives_as_a_span_in_the_callers_trace():
    request = chat()
    with receiver() as (process, port):
        sender = telemetry(port, headers={"x-token": "t"})
        sender.start()
        sender.finished(request)
        line = received(process, "/v1/traces")
        sender.close()
    span = span_of(line)
    assert base64.b64decode(span["traceId"]).hex() == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert base64.b64decode(span["parentSpanId"]).hex() == "00f067aa09a902b7"
    assert base64.b64decode(span["spanId"]) == request.trace.span_id
    assert (span["name"], span["kind"]) == ("chat gpt-4o", "SPAN_KIND_SERVER")
    assert int(span["endTimeUnixNano"]) - int(span["startTimeUnixNano"]) == 250_000_000
    assert line["headers"]["x-token"] == "t"
    assert line["headers"]["content-type"] == "application/x-protobuf"
    found = attributes(span)
    assert found["gen_ai.provider.name"] == "steelyard"
    assert found["gen_ai.usage.input_tokens"] == "12"
    assert found["gen_ai.response.finish_reasons"] == {"values": [{"stringValue": "stop"}]}
    assert found["steelyard.receipt"] == "ab12"
    assert found["steelyard.model.digest"] == "oms-sha256:5e"
    resource = attributes(line["message"]["resourceSpans"][0]["resource"])
    assert resource["service.instance.id"] == "worker-0"


@pytest.mark.parametrize(
    ("conventions", "provider", "duration"),
    [
        ("1.36", "gen_ai.system", "gen_ai.server.request.duration"),
        ("latest", "gen_ai.provider.name", "gen_ai.client.operation.duration"),
    ],
)
def test_names_follow_the_version_that_was_chosen(conventions, provider, duration):
    with receiver() as (process, port):
        sender = telemetry(port, conventions=conventions)
        sender.start()
        sender.finished(chat())
        span = span_of(received(process, "/v1/traces"))
        line = received(process, "/v1/metrics")
        sender.close()
    assert provider in attributes(span)
    metrics = line["message"]["resourceMetrics"][0]["scopeMetrics"][0]["metrics"]
    by_name = {metric["name"]: metric["histogram"]["dataPoints"] for metric in metrics}
    assert by_name[duration][0]["count"] == "1"
    assert by_name[duration][0]["sum"] == 0.25
    tokens = {
        attributes(point)["gen_ai.token.type"]: point["sum"] for point in by_name["gen_ai.client.token.usage"]
    }
    assert tokens == {"input": 12.0, "output": 5.0}


def test_a_refusal_is_an_error_type_and_a_failure_an_error_status():
    with receiver() as (process, port):
        sender = telemetry(port)
        sender.start()
        sender.finished(chat(status=503, digest="", receipt="", finish_reason=None))
        span = span_of(received(process, "/v1/traces"))
        sender.close()
    assert attributes(span)["error.type"] == "503"
    assert span["status"] == {"code": "STATUS_CODE_ERROR"}
    assert "steelyard.receipt" not in attributes(span)


def test_what_the_caller_does_not_sample_is_counted_but_no_span():
    with receiver() as (process, port):
        sender = telemetry(port)
        sender.start()
        sender.finished(chat(trace=Trace(b"\1" * 16, b"\2" * 8, b"", is_sampled=False)))
        traces = received(process, "/v1/traces")
        metrics = received(process, "/v1/metrics")
        sender.close()
    assert "spans" not in traces["message"]["resourceSpans"][0]["scopeSpans"][0]
    assert metrics["message"]["resourceMetrics"]


def test_close_sends_what_waits():
    with receiver() as (process, port):
        sender = telemetry(port)
        sender.finished(chat())
        sender.start()
        sender.close()
        assert sender.dropped == 0
        assert span_of(received(process, "/v1/traces"))["name"] == "chat gpt-4o"


def test_a_receiver_that_is_away_costs_drops_that_are_counted_and_never_a_wait():
    def nobody():
        raise ConnectionRefusedError

    sender = telemetry(9, dial=nobody)
    request = chat()
    began = time.perf_counter()
    for _ in range(MAX_WAITING + 10):
        sender.finished(request)
    assert time.perf_counter() - began < 2
    assert sender.dropped == 10
    sender.start()
    deadline = time.monotonic() + 5
    while sender.dropped == 10:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    sender.close()


def test_a_receiver_that_refuses_loses_its_batch():
    with receiver(503) as (process, port):
        sender = telemetry(port)
        sender.finished(chat())
        sender.start()
        received(process, "/v1/traces")
        sender.close()
    assert sender.dropped == 1


@pytest.mark.parametrize("url", ["ftp://x", "127.0.0.1:4318", "http://", "http://u:p@h", "http://h/?q=1"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(WrongUsage):
        TelemetryConfig(url)


def test_unknown_conventions_are_refused():
    with pytest.raises(WrongUsage, match="not one of"):
        TelemetryConfig("http://h", "2.0")


def test_the_address_joins_the_list_of_those_reached():
    assert TelemetryConfig("http://otel.internal:4318/x").target == ("tcp", "otel.internal", 4318)
    assert TelemetryConfig("https://otel.internal").target == ("tcp", "otel.internal", 443)
