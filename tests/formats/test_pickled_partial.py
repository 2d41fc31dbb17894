"""pandas 1.3 writes a block as `partial(new_block, ndim=n)(values, placement)`; no other partial is let through."""

import pytest

from steelyard.formats.base import BytesSource
from steelyard.formats.pickle_machine import run

PARTIAL = b"cfunctools\npartial\n"
BLOCK = b"cpandas.core.internals.blocks\nnew_block\n"
SYSTEM = b"cos\nsystem\n"


def partial(function: bytes, state_function: bytes, keywords: bytes = b"}X\x04\0\0\0ndimK\x02s") -> bytes:
    return b"\x80\x02" + PARTIAL + function + b"\x85R(" + state_function + b")" + keywords + b"Ntb"


def rules(raw: bytes) -> set[str]:
    outcome = run(BytesSource(raw))
    assert outcome.end == len(raw)
    return {finding.rule for finding in outcome.findings}


def test_the_partial_that_pandas_wrote_is_read() -> None:
    assert rules(partial(BLOCK, BLOCK) + b".") == set()


@pytest.mark.parametrize(
    ("raw", "rule"),
    [
        (partial(SYSTEM, SYSTEM), "pickle/arguments"),
        (partial(BLOCK, SYSTEM), "pickle/build"),
        (partial(BLOCK, BLOCK, b"}X\x04\0\0\0ndimK\x09s"), "pickle/build"),
        (partial(BLOCK, BLOCK, b"}X\x01\0\0\0xK\x02s"), "pickle/build"),
        (partial(BLOCK, BLOCK) + b"X\x04\0\0\0true\x85R", "pickle/arguments"),
        (partial(BLOCK, BLOCK) + b"K\x01K\x02\x86R", "pickle/arguments"),
        (b"\x80\x02" + BLOCK + b"K\x01K\x02\x86R", "pickle/call"),
    ],
)
def test_any_other_partial_is_refused(raw: bytes, rule: str) -> None:
    assert rule in rules(raw + b".")
