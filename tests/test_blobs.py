"""Copies by digest: what was examined is what is kept, shared files are kept once, nothing half appears."""

import hashlib
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.blobs import Blobs
from steelyard.errors import Malformed, SteelyardError
from steelyard.manifest import manifest_of


def tree(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "c/d", "c/e", "c.f"]), st.binary(max_size=40), min_size=1, max_size=5
    )
)
def test_copy_has_the_digest_of_the_source(tmp_path_factory, files):
    root = tmp_path_factory.mktemp("m")
    model = manifest_of(tree(root / "source", files))
    blobs = Blobs(root / "store")
    copy = blobs.keep(model, root / "source")
    assert manifest_of(copy).digest == model.digest
    assert blobs.keep(model, root / "gone") == copy  # whole already: the source is not needed
    distinct = {hashlib.sha256(data).hexdigest() for data in files.values()}
    assert {p.name for p in (root / "store" / "blobs").iterdir()} == distinct


def test_single_file_keeps_its_name_and_digest(tmp_path):
    source = tmp_path / "weights.gguf"
    source.write_bytes(b"GGUF")
    model = manifest_of(source)
    copy = Blobs(tmp_path / "store").keep(model, source)
    assert copy.name == "weights.gguf"
    assert manifest_of(copy).digest == model.digest


def test_copy_does_not_follow_later_writes_to_the_source(tmp_path):
    source = tree(tmp_path / "source", {"w": b"examined"})
    model = manifest_of(source)
    copy = Blobs(tmp_path / "store").keep(model, source)
    (source / "w").write_bytes(b"poisoned")
    assert (copy / "w").read_bytes() == b"examined"
    assert stat.S_IMODE((copy / "w").stat().st_mode) == 0o400


def test_hard_link_of_the_source_is_no_way_in(tmp_path):
    source = tree(tmp_path / "source", {"w": b"examined"})
    os.link(source / "w", tmp_path / "elsewhere")
    model = manifest_of(source)
    copy = Blobs(tmp_path / "store").keep(model, source)
    (tmp_path / "elsewhere").write_bytes(b"poisoned")
    assert (copy / "w").read_bytes() == b"examined"


@pytest.mark.parametrize("swap", ["content", "longer", "link"])
def test_file_swapped_after_the_scan_refuses_and_leaves_nothing(tmp_path, swap):
    source = tree(tmp_path / "source", {"w": b"examined", "x": b"other"})
    model = manifest_of(source)
    if swap == "content":
        (source / "w").write_bytes(b"poisoned")
    elif swap == "longer":
        (source / "w").write_bytes(b"examined and more")
    else:
        (source / "w").unlink()
        (source / "w").symlink_to("x")
    blobs = Blobs(tmp_path / "store")
    with pytest.raises(SteelyardError) as caught:
        blobs.keep(model, source)
    assert isinstance(caught.value, Malformed)
    assert caught.value.rule == "tree/changed-while-reading"
    assert blobs.kept(model) is None
    assert not blobs.folder(model).exists()
    assert not any(p.name.startswith(".") for p in (tmp_path / "store" / "blobs").iterdir())


def test_models_share_what_is_equal_and_garbage_is_what_none_needs(tmp_path):
    blobs = Blobs(tmp_path / "store")
    one = manifest_of(tree(tmp_path / "one", {"shared": b"s" * 100, "own": b"1"}))
    two = manifest_of(tree(tmp_path / "two", {"shared": b"s" * 100, "own": b"2"}))
    blobs.keep(one, tmp_path / "one")
    blobs.keep(two, tmp_path / "two")
    assert len(list((tmp_path / "store" / "blobs").iterdir())) == 3
    assert list(blobs.garbage()) == []
    blobs.drop(one)
    assert [size for _, size in blobs.garbage()] == [1]
    assert blobs.collect() == 1
    assert manifest_of(blobs.folder(two)).digest == two.digest
    (tmp_path / "store" / "blobs" / ".abc.1.tmp").write_bytes(b"half")
    assert blobs.collect() == 4


def test_copy_goes_on_where_it_broke_off(tmp_path):
    source = tree(tmp_path / "source", {"a": b"1", "b": b"2"})
    model = manifest_of(source)
    (source / "b").rename(tmp_path / "b")
    blobs = Blobs(tmp_path / "store")
    with pytest.raises(SteelyardError):
        blobs.keep(model, source)
    kept = blobs.path(hashlib.sha256(b"1").hexdigest())
    before = kept.stat().st_ino
    (tmp_path / "b").rename(source / "b")
    blobs.keep(model, source)
    assert kept.stat().st_ino == before


def test_damaged_folder_is_built_anew(tmp_path):
    source = tree(tmp_path / "source", {"a": b"1", "b": b"22"})
    model = manifest_of(source)
    blobs = Blobs(tmp_path / "store")
    copy = blobs.keep(model, source)
    (copy / "b").unlink()
    assert blobs.kept(model) is None
    assert manifest_of(blobs.keep(model, source)).digest == model.digest
