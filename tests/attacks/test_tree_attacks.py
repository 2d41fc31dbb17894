"""Attacks by the tree itself: links, pipes, names, swaps, empty and stray files."""

import os
import socket
import threading

import pytest

from steelyard.admit.rules import registry
from steelyard.admit.scan import Verdict, scan


def rules_of(path):
    found = scan(path, registry())
    assert found.verdict is Verdict.REJECT
    return {finding.rule for _, finding in found.findings()}


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "model"
    root.mkdir()
    (root / "README.md").write_text("A model.\n")
    return root


def test_link_out_of_the_tree_is_refused(tree, tmp_path):
    (tmp_path / "secret").write_text("x")
    (tree / "LICENSE").symlink_to(tmp_path / "secret")
    assert rules_of(tree) == {"tree/symlink"}


def test_link_to_a_folder_is_refused(tree, tmp_path):
    (tree / "sub").symlink_to(tmp_path)
    assert rules_of(tree) == {"tree/symlink"}


def test_link_within_the_tree_is_refused(tree):
    (tree / "LICENSE").symlink_to("README.md")
    assert rules_of(tree) == {"tree/symlink"}


def test_named_pipe_is_refused_and_never_opened(tree):
    os.mkfifo(tree / "weights.bin")
    assert rules_of(tree) == {"tree/special-file"}


def test_socket_is_refused(tree):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.path.relpath(tree / "s"))
        assert rules_of(tree) == {"tree/special-file"}


@pytest.mark.parametrize("name", ["a\u202eb.md", "a\nb.md", "a\\b.md", "a\u200bb.md", "\x1b[2Jb.md"])
def test_name_that_a_terminal_shows_as_another_is_refused(tree, name):
    (tree / name).write_text("x")
    assert rules_of(tree) == {"tree/name-unsafe"}


def test_name_that_is_not_utf8_is_refused(tree):
    (tree / os.fsdecode(b"\xff.md")).write_text("x")
    assert rules_of(tree) == {"tree/name-encoding"}


def test_names_that_fold_to_one_are_refused(tree):
    (tree / "readme.MD").write_text("x")
    assert rules_of(tree) == {"tree/case-collision"}


def test_tree_too_deep_is_refused(tree):
    deep = tree
    for _ in range(70):
        deep = deep / "d"
    deep.mkdir(parents=True)
    (deep / "a.md").write_text("x")
    assert rules_of(tree) == {"tree/too-deep"}


def test_empty_file_is_refused(tree):
    (tree / "model.safetensors").touch()
    assert rules_of(tree) == {"file/empty"}


def test_stray_file_is_refused(tree):
    (tree / "blob").write_bytes(b"\xf0\x9f\x00\x01" * 8)
    assert rules_of(tree) == {"file/unclaimed"}


def test_one_bad_file_among_good_ones_refuses_the_tree(tree):
    (tree / "NOTICE").write_text("Ours.\n")
    (tree / "chat_template.jinja").write_text("{{ x.__class__ }}")
    assert rules_of(tree) == {"template/attribute"}


def test_file_swapped_after_it_was_hashed_is_found(tree):
    path = tree / "README.md"
    swapped = threading.Event()

    def swap(_count):
        path.with_name("new").write_text("Other words.\n")
        os.replace(path.with_name("new"), path)
        swapped.set()

    found = scan(tree, registry(), progress=swap)
    assert swapped.is_set()
    assert found.verdict is Verdict.REJECT
    assert {finding.rule for _, finding in found.findings()} == {"tree/changed-while-reading"}
