"""Model: laws of the manifest and its root digest. Equality with model-signing stands in test_manifest.py."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelyard.errors import Malformed
from steelyard.model import MAX_PATH_CHARS, File, Model

NAMES = st.text("abcdefgh0123.-_", min_size=1, max_size=8).filter(lambda name: name not in (".", ".."))
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)


def file(path: str, content: bytes = b"") -> File:
    return File(path, len(content), hashlib.sha256(content).hexdigest())


FILES = st.dictionaries(PATHS, st.binary(max_size=8), min_size=1, max_size=6).map(
    lambda tree: [file(path, content) for path, content in tree.items()]
)


@given(FILES, st.randoms(use_true_random=False))
def test_order_of_files_does_not_matter(files, rng):
    shuffled = list(files)
    rng.shuffle(shuffled)
    assert Model("m", tuple(shuffled)) == Model("m", tuple(files))


@given(FILES)
def test_renaming_the_folder_changes_nothing(files):
    assert Model("here", tuple(files)).digest == Model("there", tuple(files)).digest


@given(FILES)
def test_json_round_trip(files):
    model = Model("m", tuple(files))
    assert Model.from_json(model.to_json()) == model


@given(FILES, st.data())
def test_another_byte_in_any_file_gives_another_digest(files, data):
    index = data.draw(st.integers(0, len(files) - 1))
    changed = list(files)
    changed[index] = File(files[index].path, files[index].size, hashlib.sha256(b"another").hexdigest())
    assert Model("m", tuple(changed)).digest != Model("m", tuple(files)).digest


def test_components_sort_before_punctuation():
    assert [f.path for f in Model("m", (file("a.b"), file("a/b"))).files] == ["a/b", "a.b"]


def test_manifest_with_a_foreign_digest_is_malformed():
    stated = dict(Model("m", (file("a"),)).to_json(), digest="oms-sha256:" + "0" * 64)
    with pytest.raises(Malformed, match="its files give"):
        Model.from_json(stated)


@pytest.mark.parametrize(
    "path",
    [
        "../up",
        "a/../b",
        "/etc/passwd",
        "a//b",
        "",
        "a\\b",
        "a\x00b",
        "new\nline",
        "right\u202eleft",
        "a/./b",
        "x" * (MAX_PATH_CHARS + 1),
    ],
)
def test_unsafe_name_is_refused(path):
    with pytest.raises(Malformed) as caught:
        Model("m", (file(path),))
    assert caught.value.rule == "tree/name-unsafe"


def test_longest_name_is_accepted():
    assert Model("m", (file("x" * MAX_PATH_CHARS),)).files


@pytest.mark.parametrize(
    ("one", "other"), [("Model.bin", "model.bin"), ("caf\u00e9", "cafe\u0301"), ("\ufb01", "fi")]
)
def test_names_that_fold_together_are_refused(one, other):
    with pytest.raises(Malformed) as caught:
        Model("m", (file(one), file(other)))
    assert caught.value.rule == "tree/case-collision"
