"""The caller's traceparent, and ours."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.serve.trace import Trace, begun

# Of the form in W3C Trace Context, section 3.2.3.
EXAMPLE = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa09a902b7-01"


def test_a_callers_trace_is_continued_with_a_span_of_our_own():
    trace = begun(EXAMPLE)
    assert trace.trace_id.hex() == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert trace.parent_id.hex() == "00f067aa09a902b7"
    assert trace.is_sampled
    assert trace.span_id != trace.parent_id
    assert trace.traceparent == b"00-%b-%b-01" % (trace.trace_id.hex().encode(), trace.span_id.hex().encode())


@given(st.binary(min_size=16, max_size=16), st.binary(min_size=8, max_size=8), st.booleans())
def test_what_we_pass_on_is_understood(trace_id, span_id, is_sampled):
    if not any(trace_id) or not any(span_id):
        return
    passed = Trace(trace_id, span_id, b"", is_sampled)
    received = begun(passed.traceparent)
    assert (received.trace_id, received.parent_id, received.is_sampled) == (trace_id, span_id, is_sampled)


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        EXAMPLE.upper(),
        EXAMPLE + b"-more",
        b"ff" + EXAMPLE[2:],
        EXAMPLE.replace(b"4bf92f3577b34da6a3ce929d0e0e4736", b"0" * 32),
        EXAMPLE.replace(b"00f067aa09a902b7", b"0" * 16),
        EXAMPLE[:-1],
        b"x" * 55,
    ],
)
def test_a_broken_value_begins_a_new_trace(value):
    trace = begun(value, is_sampled=False)
    assert trace.parent_id == b""
    assert not trace.is_sampled
    assert any(trace.trace_id)


def test_a_later_version_may_have_more_fields():
    assert begun(b"01" + EXAMPLE[2:] + b"-what-comes").parent_id.hex() == "00f067aa09a902b7"
