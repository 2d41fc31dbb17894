from pathlib import Path

import pytest

from steelyard.errors import Malformed
from steelyard.formats.base import BytesSource
from steelyard.formats.hdf5 import FORMAT
from steelyard.formats.hdf5_file import read_hdf5

DATA = Path(__file__).parents[1] / "data" / "hdf5"


def rules_of(raw: bytes) -> set[str]:
    try:
        return {finding.rule for finding in FORMAT.read(BytesSource(raw), "m.h5").findings}
    except Malformed as broken:
        return {broken.rule}


def honest(name: str = "earliest.h5") -> bytes:
    return (DATA / name).read_bytes()


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("external_data.h5", "hdf5/external"),  # CVE-2026-1669: a dataset that is /etc/passwd
        ("external_link.h5", "hdf5/external"),
        ("virtual.h5", "hdf5/external"),
        ("soft_link.h5", "hdf5/link"),
        ("cycle.h5", "hdf5/cycle"),
        ("huge.h5", "hdf5/storage"),
        ("committed.h5", "hdf5/unsupported"),
        ("pytables.h5", "hdf5/pytables"),
        ("deleted.h5", "hdf5/hidden"),
    ],
)
def test_way_out_of_the_file_refuses(name: str, rule: str) -> None:
    assert rules_of(honest(name)) == {rule}


def test_trailing_pickle_refuses() -> None:
    assert rules_of(honest() + b"\x80\x04N.") == {"hdf5/size"}


def test_user_block_before_the_file_refuses() -> None:
    raw = bytearray(honest())
    raw[24] = 1  # base address
    assert rules_of(bytes(raw)) == {"hdf5/superblock"}


def test_unknown_superblock_refuses() -> None:
    raw = bytearray(honest())
    raw[8] = 9
    assert rules_of(bytes(raw)) == {"hdf5/superblock"}


def test_file_left_open_by_its_writer_refuses() -> None:
    raw = bytearray(honest("latest.h5"))
    raw[11] = 1
    assert rules_of(bytes(raw)) & {"hdf5/superblock", "hdf5/checksum"}


def test_changed_metadata_refuses() -> None:
    raw = bytearray(honest("v110.h5"))
    raw[raw.index(b"OHDR") + 6] ^= 0xFF
    assert rules_of(bytes(raw)) == {"hdf5/checksum"}


def test_unknown_filter_refuses() -> None:
    raw = honest()
    at = raw.index(b"\x02\0\x08\0\x01\0\x01\0shuffle")  # filter 2 of the version 1 pipeline
    assert rules_of(raw[:at] + (32000).to_bytes(2, "little") + raw[at + 2 :]) == {"hdf5/filter"}


def test_group_address_outside_the_file_refuses() -> None:
    raw = bytearray(honest())
    raw[64:72] = (1 << 40).to_bytes(8, "little")  # the root's object header
    assert rules_of(bytes(raw)) == {"hdf5/offset"}


def test_two_datasets_on_the_same_bytes_refuse() -> None:
    raw = honest()
    # Layout version 3, contiguous, 24 bytes: the three kernels. The second is led to the first one's bytes.
    places = []
    at = raw.find(b"\x03\x01")
    while at >= 0:
        if int.from_bytes(raw[at + 10 : at + 18], "little") == 24 and raw[at - 8] == 8:
            places.append(at)
        at = raw.find(b"\x03\x01", at + 1)
    assert len(places) == 3
    moved = bytearray(raw)
    moved[places[1] + 2 : places[1] + 10] = raw[places[0] + 2 : places[0] + 10]
    assert rules_of(bytes(moved)) == {"hdf5/overlap"}
    short = bytearray(raw)
    short[places[0] + 10] = 20
    assert rules_of(bytes(short)) == {"hdf5/storage"}


def test_hidden_payload_between_structures_refuses() -> None:
    raw = bytearray(honest())
    begin, _end = read_hdf5(BytesSource(bytes(raw))).gaps[0]
    raw[begin : begin + 4] = b"evil"
    assert rules_of(bytes(raw)) == {"hdf5/hidden"}


def test_tree_that_is_no_tree_refuses() -> None:
    raw = bytearray(honest())
    at = raw.index(b"TREE")
    raw[at : at + 4] = b"EERT"
    assert rules_of(bytes(raw)) == {"hdf5/structure"}
