"""Log lines: one JSON object each, one schema, no payload, whatever a name or an exception holds."""

import io
import json
import logging
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.records import End
from steelyard.serve import access_log
from steelyard.serve.access_log import AccessLog
from steelyard.serve.json_log import MAX_MESSAGE_CHARS, JsonLines
from steelyard.serve.message import Request
from steelyard.serve.routes import route_of

CANARY = "canary-77aa"
AT = datetime(2026, 11, 23, 5, 0, 0, 123_000, UTC)
FIELDS = ["at", "level", "event", "receipt", "status", "sent_bytes", "ms", "prompt_tokens", "completion_tokens",
          "left", "method", "route", "key", "alias", "model"]  # fmt: skip


class Key:
    def __init__(self, key):
        self.key = key


def asked(alias="gpt-4o", key="app"):
    request = Request()
    request.method, request.route, request.alias = b"POST", route_of(b"/v1/chat/completions"), alias
    request.receipt, request.digest = "ab" * 16, "oms-sha256:5e"
    request.caller, request.end = Key(key), End("complete", 12, 5)
    request.body = CANARY.encode()
    return request


def lines(log):
    text = []
    log._write = text.append
    import asyncio

    asyncio.run(log.close())
    return [json.loads(line) for line in "".join(text).splitlines()]


def test_a_request_is_one_line_of_the_schema():
    log = AccessLog(print, lambda: AT)
    log.add(asked(), 200, 812, 0.01234)
    (line,) = lines(log)
    assert list(line) == FIELDS
    assert line["at"].startswith("2026-11-23T05:00:00.")
    assert line["at"].endswith("Z")
    assert (line["status"], line["sent_bytes"], line["ms"]) == (200, 812, 12.34)
    assert (line["prompt_tokens"], line["completion_tokens"], line["left"]) == (12, 5, False)
    assert (line["method"], line["route"], line["key"]) == ("POST", "/v1/chat/completions", "app")


def test_a_request_that_got_nowhere_is_a_line_too():
    log = AccessLog(print, lambda: AT)
    log.add(Request(), 400, 0, 0.0)
    (line,) = lines(log)
    assert list(line) == FIELDS
    assert (line["route"], line["key"], line["prompt_tokens"]) == (None, None, None)


@given(st.text(), st.text())
def test_any_name_is_escaped(alias, key):
    log = AccessLog(print, lambda: AT)
    log.add(asked(alias, key), 200, 1, 0.1)
    (line,) = lines(log)
    assert (line["alias"], line["key"]) == (alias, key)


def test_the_oldest_lines_go_first_and_are_counted():
    log = AccessLog(print, lambda: AT)
    for number in range(access_log.MAX_LINES + 3):
        log.add(asked(), 200, number, 0.1)
    first, second, *_ = found = lines(log)
    assert (first["event"], first["lines"]) == ("dropped", 3)
    assert second["sent_bytes"] == 3
    assert len(found) == access_log.MAX_LINES + 1


def test_many_names_take_bounded_room():
    log = AccessLog(print, lambda: AT)
    for number in range(access_log.MAX_KNOWN + 5):
        log.add(asked(f"m{number}"), 200, 1, 0.1)
    assert len(log._known) <= access_log.MAX_KNOWN
    assert lines(log)[-1]["alias"] == f"m{access_log.MAX_KNOWN + 4}"


@pytest.mark.parametrize(
    "say", [lambda log: log.warning("down: %s", "x"), lambda log: log.warning("down: x")]
)
def test_other_lines_have_the_same_first_fields(say):
    out = io.StringIO()
    log = logging.Logger("steelyard.serve.workers")  # noqa: LOG001 - one that no other test hears
    handler = logging.StreamHandler(out)
    handler.setFormatter(JsonLines())
    log.addHandler(handler)
    say(log)
    line = json.loads(out.getvalue())
    assert list(line) == ["at", "level", "event", "message"]
    assert (line["level"], line["event"], line["message"]) == ("warning", "workers", "down: x")


def test_an_exceptions_text_stays_out():
    out = io.StringIO()
    log = logging.Logger("x")  # noqa: LOG001
    handler = logging.StreamHandler(out)
    handler.setFormatter(JsonLines())
    log.addHandler(handler)
    try:
        json.loads(CANARY)
    except ValueError as error:
        error.add_note(CANARY)
        log.exception("it failed")
    log.error("m" * (MAX_MESSAGE_CHARS + 1))
    first, second = map(json.loads, out.getvalue().splitlines())
    assert CANARY not in out.getvalue()
    assert first["exception"] == "JSONDecodeError"
    assert first["place"].startswith("decoder.py:")
    assert len(second["message"]) == MAX_MESSAGE_CHARS
