"""What /metrics says, read by Prometheus' own parsers; several workers' figures are one."""

import contextlib
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as read_open_metrics
from prometheus_client.parser import text_string_to_metric_families as read_text

from steelyard.errors import Malformed
from steelyard.serve import metrics as m
from steelyard.serve.metrics import Metrics, clear
from steelyard.serve.metrics_page import MAX_KEY_BYTES, PAGE_BYTES, Page, read_page

CHAT = "/v1/chat/completions"


def samples(metrics, accept=b""):
    """Every sample by name and labels, as an outside parser reads the page."""
    kind, body = metrics.render(accept)
    read = read_open_metrics if b"openmetrics" in kind else read_text
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in read(body.decode())
        for sample in family.samples
    }


@pytest.mark.parametrize("accept", [b"", b"application/openmetrics-text; version=1.0.0"])
def test_a_request_is_counted_where_prometheus_looks_for_it(tmp_path, accept):
    metrics = Metrics(tmp_path, version="0.1.0", build="abc")
    metrics.observe(CHAT, "gpt-4o", "claims", 200, 0.02, 0.002, 12, 5)
    metrics.observe(CHAT, "gpt-4o", "claims", 200, 200.0)
    metrics.refused(["scan-clean"])
    metrics.found({"iban": 2})
    metrics.exhausted("rpm")
    metrics.tick(in_flight=3, ledger_waiting=4, ledger_broken=True)
    found = samples(metrics, accept)
    route, alias = ("route", CHAT), ("alias", "gpt-4o")
    assert found["steelyard_requests_total", alias, route, ("status", "200")] == 2
    assert found["steelyard_tokens_total", alias, ("direction", "in"), ("team", "claims")] == 12
    assert found["steelyard_tokens_total", alias, ("direction", "out"), ("team", "claims")] == 5
    assert found["steelyard_request_duration_seconds_count", alias, route] == 2
    assert found["steelyard_request_duration_seconds_sum", alias, route] == 200.02
    assert found["steelyard_request_duration_seconds_bucket", alias, ("le", "0.01"), route] == 0
    assert found["steelyard_request_duration_seconds_bucket", alias, ("le", "0.025"), route] == 1
    assert found["steelyard_request_duration_seconds_bucket", alias, ("le", "120.0"), route] == 1
    assert found["steelyard_request_duration_seconds_bucket", alias, ("le", "+Inf"), route] == 2
    assert found["steelyard_first_chunk_seconds_count", alias, route] == 1
    assert found["steelyard_refusals_total", ("rule", "scan-clean")] == 1
    assert found["steelyard_pii_hits_total", ("class", "iban")] == 2
    assert found["steelyard_budget_exhausted_total", ("limit", "rpm")] == 1
    assert found["steelyard_in_flight",] == 3
    assert found["steelyard_ledger_waiting",] == 4
    assert found["steelyard_ledger_broken",] == 1
    assert found["steelyard_build_info", ("build", "abc"), ("version", "0.1.0")] == 1
    assert found["process_resident_memory_bytes", ("worker", "0")] > 1 << 20
    assert found["process_open_fds", ("worker", "0")] > 2


@given(st.text(), st.text(max_size=200))
def test_any_name_survives_the_exposition(tmp_path_factory, rule, other):
    metrics = Metrics(tmp_path_factory.mktemp("m"))
    # Carriage returns and lone surrogates are not names an operator can give: the store takes neither.
    rule = rule.encode("utf-8", "ignore").decode().replace("\r", "")[: m.MAX_LABEL_CHARS]
    metrics.add(m.REFUSALS, 1, rule)
    assert samples(metrics)["steelyard_refusals_total", ("rule", rule)] == 1
    metrics.close()


def test_figures_of_all_workers_are_summed_whoever_answers(tmp_path):
    first, second = Metrics(tmp_path, 0), Metrics(tmp_path, 1)
    for metrics, count in ((first, 2), (second, 3)):
        for _ in range(count):
            metrics.observe(CHAT, "gpt-4o", "", 200, 0.02)
        metrics.tick(in_flight=count, ledger_broken=count == 3)
        metrics.set(m.LEDGER_ENTRIES, 10 * count)
    for metrics in (first, second):
        found = samples(metrics)
        assert found["steelyard_requests_total", ("alias", "gpt-4o"), ("route", CHAT), ("status", "200")] == 5
        assert found["steelyard_in_flight",] == 5
        assert found["steelyard_ledger_entries",] == 30
        assert found["steelyard_ledger_broken",] == 1
        assert ("process_open_fds", ("worker", "1")) in found


def test_a_killed_workers_counts_stay_and_its_gauges_go(tmp_path):
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from steelyard.serve.metrics import Metrics\n"
        "metrics = Metrics(Path(sys.argv[1]), 1)\n"
        "metrics.observe('/r', 'a', '', 200, 0.1)\n"
        "metrics.tick(in_flight=7)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    survivor = Metrics(tmp_path, 0)
    survivor.tick(in_flight=1)
    found = samples(survivor)
    assert found["steelyard_requests_total", ("alias", "a"), ("route", "/r"), ("status", "200")] == 1
    assert found["steelyard_in_flight",] == 1
    assert ("process_open_fds", ("worker", "1")) not in found
    successor = Metrics(tmp_path, 1)
    successor.observe("/r", "a", "", 200, 0.1)
    found = samples(survivor)
    assert found["steelyard_requests_total", ("alias", "a"), ("route", "/r"), ("status", "200")] == 2
    assert found["steelyard_in_flight",] == 1


def test_a_new_run_begins_at_zero(tmp_path):
    Metrics(tmp_path).observe(CHAT, "gpt-4o", "", 200, 0.02)
    clear(tmp_path)
    assert not any(name == "steelyard_requests_total" for name, *_ in samples(Metrics(tmp_path)))


def test_a_flood_of_names_is_counted_as_other_and_takes_no_more_room(tmp_path):
    metrics = Metrics(tmp_path)
    for number in range(m.MAX_SERIES + 50):
        metrics.refused([f"rule-{number}"])
    found = samples(metrics)
    assert found["steelyard_refusals_total", ("rule", "other")] == 51  # the first of the places is its own
    assert found["steelyard_refusals_total", ("rule", "rule-0")] == 1
    assert sum(1 for name, *_ in found if name == "steelyard_refusals_total") == m.MAX_SERIES


def test_a_full_page_counts_as_other(tmp_path):
    page = Page(tmp_path / "1.metrics", os.getpid())
    number = 0
    while page.allot(b"%d" % number + b"x" * (MAX_KEY_BYTES - 8), 1) is not None:
        number += 1
    assert number > PAGE_BYTES // (MAX_KEY_BYTES + 32)
    assert page.allot(b"x" * (MAX_KEY_BYTES + 1), 1) is None
    assert len(read_page(tmp_path / "1.metrics")[1]) == number


def test_a_page_reopened_goes_on_where_it_was(tmp_path):
    first = Page(tmp_path / "p", 1)
    first.cells[first.allot(b"key", 2)] = 41.0
    again = Page(tmp_path / "p", 2)
    again.cells[again.allot(b"key", 2)] += 1
    assert read_page(tmp_path / "p") == (2, {b"key": (42.0, 0.0)})


@given(st.binary(max_size=200))
def test_bytes_that_are_no_page_are_malformed_or_read(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("p") / "p"
    for whole in (data, b"SYMETR1\0" + data, b"SYMETR1\0" + (80).to_bytes(8, "little") + data):
        path.write_bytes(whole)
        with contextlib.suppress(Malformed):
            read_page(path)


def test_a_broken_page_of_another_worker_is_left_out(tmp_path):
    (tmp_path / "7.metrics").write_bytes(b"nonsense")
    metrics = Metrics(tmp_path)
    metrics.refused(["r"])
    assert samples(metrics)["steelyard_refusals_total", ("rule", "r")] == 1
