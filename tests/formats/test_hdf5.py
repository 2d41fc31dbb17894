from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from steelyard.errors import Malformed
from steelyard.formats.base import BytesSource
from steelyard.formats.hdf5 import FORMAT
from steelyard.formats.hdf5_dense import checksum
from steelyard.formats.hdf5_file import read_hdf5

DATA = Path(__file__).parents[1] / "data"
HONEST = ("hdf5/earliest.h5", "hdf5/v110.h5", "hdf5/latest.h5")


@pytest.mark.parametrize(
    "name", [*HONEST, "hdf5/dense.h5", "keras/nested_3_15.h5", "keras/sequential_2_15.h5"]
)
def test_honest_file_is_clean(name: str) -> None:
    assert FORMAT.read(BytesSource((DATA / name).read_bytes()), name).findings == ()


@pytest.mark.parametrize("name", HONEST)
def test_every_library_setting_shows_the_same_objects(name: str) -> None:
    file = read_hdf5(BytesSource((DATA / name).read_bytes()))
    assert sorted(file.groups) == ["", "/layer_0", "/layer_1", "/layer_2", "/many"]
    assert len(file.datasets) == 29
    assert file.datasets["/packed"].shape == (40, 10)
    assert file.datasets["/packed"].size_bytes == 3200
    assert file.groups[""]["texts"].texts == ("aa", "bbb")
    assert file.groups[""]["layer_names"].texts == ("dense", "dense_1")
    assert file.text("keras_version") == "2.15.0"


def test_dense_links_and_attributes_are_followed() -> None:
    file = read_hdf5(BytesSource((DATA / "hdf5/dense.h5").read_bytes()))
    assert set(file.groups) == {"", *(f"/g{index}" for index in range(60))}
    assert file.groups[""]["a59"].texts == ("x" * 59,)


def test_architecture_of_keras_2_is_in_the_facts() -> None:
    report = FORMAT.read(BytesSource((DATA / "keras/sequential_2_15.h5").read_bytes()), "m.h5")
    assert report.facts["keras_version"] == "2.15.0"
    assert report.facts["model"] == {"class": "Sequential", "name": "sequential_1", "layers": 4}


@pytest.mark.parametrize(
    ("text", "known"), [(b"", 0xDEADBEEF), (b"Four score and seven years ago", 0x17770551)]
)
def test_checksum_gives_the_published_answers(text: bytes, known: int) -> None:
    """Bob Jenkins, lookup3.c, driver5: hashlittle of both texts with seed 0."""
    assert checksum(text) == known


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_flipped_bit_ends_in_a_report(data: st.DataObject) -> None:
    raw = bytearray((DATA / "hdf5/v110.h5").read_bytes())
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= 1 << data.draw(st.integers(0, 7))
    try:
        found = {finding.rule for finding in FORMAT.read(BytesSource(bytes(raw)), "m.h5").findings}
    except Malformed as broken:
        found = {broken.rule}
    assert found <= set(FORMAT.rules)


@pytest.mark.parametrize("name", HONEST)
def test_every_truncation_refuses(name: str) -> None:
    raw = (DATA / name).read_bytes()
    for size in range(8, len(raw), 997):
        with pytest.raises(Malformed):
            FORMAT.read(BytesSource(raw[:size]), "m.h5")
