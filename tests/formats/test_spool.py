"""Bytes come back as they were written, from memory and from the file."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.formats.spool import MAX_MEMORY_BYTES, FileSource, Spool


@given(st.lists(st.binary(max_size=50), max_size=6), st.booleans())
def test_what_was_written_is_read(parts, large):
    spool = Spool()
    written = [bytes(MAX_MEMORY_BYTES), *parts, b"end"] if large else parts
    for part in written:
        spool.write(part)
    source = spool.source()
    assert isinstance(source, FileSource) == large
    assert source.size == spool.size == sum(map(len, written))
    assert source.read(0, source.size) == b"".join(written)


def test_the_file_begins_one_byte_past_the_limit():
    for extra in (0, 1):
        spool = Spool()
        spool.write(bytes(MAX_MEMORY_BYTES + extra))
        assert isinstance(spool.source(), FileSource) == bool(extra)


def test_reading_outside_is_a_misuse():
    spool = Spool()
    spool.write(bytes(MAX_MEMORY_BYTES + 1))
    for offset, size in ((-1, 1), (0, -1), (MAX_MEMORY_BYTES, 2)):
        with pytest.raises(ValueError, match="outside"):
            spool.source().read(offset, size)
