"""Walking and weighing real trees, with OpenSSF model-signing as the oracle of the root digest."""

import os
import socket
import threading
from pathlib import Path

import model_signing.hashing
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_signing._signing.signing import Payload

from steelyard.errors import Malformed, Unavailable, WrongUsage
from steelyard.manifest import BUFFER_BYTES, MAX_DEPTH, leaves_of, manifest_of

NAMES = st.text("abAB01.-_", min_size=1, max_size=6).filter(lambda name: name.strip("."))
TREES = st.dictionaries(
    st.lists(NAMES, min_size=1, max_size=3).map("/".join), st.binary(max_size=64), min_size=1, max_size=6
)


def oms_root(path):
    manifest = model_signing.hashing.Config().hash(path)
    return Payload(manifest).statement.pb.subject[0].digest["sha256"]


def plant(root, tree):
    for path, content in tree.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)


@given(tree=TREES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_root_digest_equals_model_signings(tmp_path_factory, tree):
    root = tmp_path_factory.mktemp("model")
    try:
        plant(root, tree)
        model = manifest_of(root)
    except (OSError, Malformed):  # a file where a folder must be, or names that fold together
        return
    assert model.digest.hex == oms_root(root)


def test_root_digest_of_one_file_equals_model_signings(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" * 1000)
    assert manifest_of(path).digest.hex == oms_root(path)


def test_git_files_are_no_part_of_a_model(tmp_path):
    plant(tmp_path, {"config.json": b"{}", "sub/.gitattributes": b"kept"})
    before = manifest_of(tmp_path)
    plant(tmp_path, {".git/config": b"x", ".gitattributes": b"y", ".github/w.yml": b"z", ".gitignore": b"w"})
    assert manifest_of(tmp_path) == before
    assert before.digest.hex == oms_root(tmp_path)


def test_large_file_is_read_once_and_progress_adds_up(tmp_path):
    plant(tmp_path, {"a.bin": b"\x01" * (3 * BUFFER_BYTES + 17), "b.bin": b"\x02" * 5})
    seen = []
    model = manifest_of(tmp_path, progress=seen.append, threads=2)
    assert sum(seen) == model.size == 3 * BUFFER_BYTES + 22


def test_missing_path_is_wrong_usage(tmp_path):
    with pytest.raises(WrongUsage, match="no such file"):
        manifest_of(tmp_path / "absent")


def test_empty_directory_is_wrong_usage(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    with pytest.raises(WrongUsage, match="no files"):
        manifest_of(tmp_path)


def rule_of(path):
    with pytest.raises(Malformed) as caught:
        manifest_of(path)
    return caught.value.rule


def test_symlink_is_refused_wherever_it_points(tmp_path):
    plant(tmp_path, {"real": b"x"})
    (tmp_path / "link").symlink_to("real")
    assert rule_of(tmp_path) == "tree/symlink"


def test_symlinked_folder_is_refused(tmp_path):
    plant(tmp_path, {"real/x": b"x"})
    (tmp_path / "link").symlink_to(tmp_path / "real", target_is_directory=True)
    assert rule_of(tmp_path) == "tree/symlink"


def test_pipe_is_refused_without_blocking(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert rule_of(tmp_path) == "tree/special-file"


def test_socket_is_refused(tmp_path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        assert rule_of(tmp_path) == "tree/special-file"


def test_name_that_is_not_utf8_is_refused(tmp_path):
    with open(os.fsencode(tmp_path) + b"/bad\xff", "wb") as stream:
        stream.write(b"x")
    assert rule_of(tmp_path) == "tree/name-encoding"


def test_tree_one_too_deep_is_refused(tmp_path):
    path = tmp_path.joinpath(*["d"] * MAX_DEPTH)
    path.mkdir(parents=True)
    (path / "leaf").write_bytes(b"x")
    assert leaves_of(tmp_path)
    (path / "d").mkdir()
    (path / "d" / "leaf").write_bytes(b"x")
    assert rule_of(tmp_path) == "tree/too-deep"


def test_file_changed_while_reading_is_refused(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"\x00" * (8 * BUFFER_BYTES))
    begun = threading.Event()

    def grow(_count):
        if not begun.is_set():
            begun.set()
            with path.open("ab") as stream:
                stream.write(b"more")

    with pytest.raises(Malformed) as caught:
        manifest_of(tmp_path, progress=grow)
    assert caught.value.rule == "tree/changed-while-reading"


def test_file_rewritten_in_place_while_reading_is_refused(tmp_path):
    path = tmp_path / "weights"
    path.write_bytes(b"\x00" * (8 * BUFFER_BYTES))
    begun = threading.Event()

    def rewrite(_count):
        if not begun.is_set():
            begun.set()
            with path.open("r+b") as stream:
                stream.write(b"other")
            os.utime(path, ns=(10**18, 10**18))

    with pytest.raises(Malformed) as caught:
        manifest_of(tmp_path, progress=rewrite)
    assert caught.value.rule == "tree/changed-while-reading"


def test_file_that_cannot_be_read_is_unavailable():
    with pytest.raises(Unavailable, match="Input/output error"):
        manifest_of(Path("/proc/self/mem"))
