"""What is told of a request, from the request as the HTTP layer leaves it."""

import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from steelyard.records import End
from steelyard.serve.auth import Caller
from steelyard.serve.message import Request
from steelyard.serve.metrics import Metrics
from steelyard.serve.routes import route_of
from steelyard.serve.telemetry import Telemetry, TelemetryConfig
from steelyard.serve.telemetry_otlp import _reasons
from steelyard.serve.watch import Watch

TRACEPARENT = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa09a902b7-01"


def asked(path=b"/v1/messages"):
    request = Request(route=route_of(path), alias="gpt-4o", receipt="ab", digest="oms-sha256:5e")
    request.caller = Caller("app", team="claims")
    request.end = End("complete", 12, 5, "stop", {"iban": 2})
    request.headers = {b"traceparent": TRACEPARENT}
    return request


def samples(metrics):
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(metrics.render()[1].decode())
        for sample in family.samples
    }


@pytest.fixture
def telemetry():
    """Not started: what it was told waits."""
    return Telemetry(
        TelemetryConfig("http://127.0.0.1:1"), lambda: None, clock_ns=time.time_ns, version="0", instance="0"
    )


def test_a_request_is_counted_with_its_team_tokens_and_classes(tmp_path):
    metrics = Metrics(tmp_path)
    watch = Watch(metrics)
    request = asked()
    assert watch.trace(request) is None
    watch.answered(request, 200, 0.2, 0.01)
    watch.answered(Request(), 404, 0.0)
    found = samples(metrics)
    assert found["steelyard_requests_total", "/v1/messages", "200", "gpt-4o"] == 1
    assert found["steelyard_requests_total", "", "", "404"] == 1
    assert found["steelyard_tokens_total", "claims", "gpt-4o", "in"] == 12
    assert found["steelyard_pii_hits_total", "iban"] == 2
    assert found["steelyard_first_chunk_seconds_count", "/v1/messages", "gpt-4o"] == 1


def test_telemetry_is_told_of_model_calls_alone(tmp_path, telemetry):
    watch = Watch(Metrics(tmp_path), telemetry, lambda: 7)
    request = asked()
    trace = watch.trace(request)
    watch.answered(request, 200, 0.2, 0.01, trace)
    models = asked(b"/v1/models")
    watch.answered(models, 200, 0.1, None, watch.trace(models))
    (told,) = telemetry._waiting
    assert told.trace.trace_id.hex() == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert (told.operation, told.alias, told.end_ns, told.duration_s) == ("chat", "gpt-4o", 7, 0.2)
    assert (told.finish_reason, told.receipt, told.digest) == ("stop", "ab", "oms-sha256:5e")


def test_drops_of_the_telemetry_are_counted_once(tmp_path, telemetry):
    metrics = Metrics(tmp_path)
    watch = Watch(metrics, telemetry)
    telemetry.dropped = 3
    watch.tick(in_flight=0)
    watch.tick(in_flight=0)
    assert samples(metrics)["steelyard_telemetry_dropped_total",] == 3


def test_an_upstreams_own_word_for_the_end_is_not_passed_on():
    assert _reasons("stop") == ["stop"]
    assert _reasons("the claimant's name") == ["other"]
    assert _reasons(None) is None
