"""A request's place in a distributed trace, from the caller's `traceparent` to the upstream's.

    00-<trace id, 16 bytes hex>-<span id, 8 bytes hex>-<flags, 1 byte hex>

Source: W3C Trace Context, section 3.2.2. A broken value is none: a new trace begins.
"""

import os
import re
from dataclasses import dataclass

SAMPLED = 1

_FIELD = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


@dataclass(frozen=True, slots=True)
class Trace:
    """trace_id: 16 bytes.  span_id: ours, 8 bytes.  parent_id: the caller's span, empty without one."""

    trace_id: bytes
    span_id: bytes
    parent_id: bytes
    is_sampled: bool

    @property
    def traceparent(self) -> bytes:
        """The field for what this request asks of others."""
        flags = b"01" if self.is_sampled else b"00"
        return b"00-%b-%b-%b" % (self.trace_id.hex().encode(), self.span_id.hex().encode(), flags)


def begun(traceparent: bytes | None, *, is_sampled: bool = True) -> Trace:
    """A span of our own in the caller's trace, or in a new one. is_sampled: what holds for a new one."""
    noise = os.urandom(24)
    found = _FIELD.fullmatch(traceparent) if traceparent else None
    if found is not None:
        version, trace_id, parent_id = (
            found[1],
            bytes.fromhex(found[2].decode()),
            bytes.fromhex(found[3].decode()),
        )
        # Version 00 has four fields; later ones may have more; ff is none.
        is_known = version != b"ff" and not (version == b"00" and found[5])
        if is_known and any(trace_id) and any(parent_id):
            return Trace(trace_id, noise[:8], parent_id, bool(int(found[4], 16) & SAMPLED))
    return Trace(noise[8:], noise[:8], b"", is_sampled)
