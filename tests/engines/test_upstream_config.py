"""The tables of upstreams: what is taken, and what refuses."""

from pathlib import Path

import pytest

from steelyard.engines.upstream_config import MAX_KEY_BYTES, node_keys, parse_upstream
from steelyard.errors import Unavailable, WrongUsage
from steelyard.keys import new_key

TABLE = {"url": "http://10.0.0.5:8000", "serves": "m", "model": "there"}


def parsed(folder=Path("/nowhere"), **fields):
    return parse_upstream({**TABLE, **fields}, folder)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h:1", ("h", 1, "", False)),
        ("https://h", ("h", 443, "", True)),
        ("http://h/v1/", ("h", 80, "", False)),
        ("http://h/base/v1", ("h", 80, "/base", False)),
        ("http://[::1]:8000", ("::1", 8000, "", False)),
    ],
)
def test_a_url_is_host_port_prefix_and_scheme(url, expected):
    place = parsed(url=url).place
    assert (place.host, place.port, place.prefix, place.is_tls) == expected
    assert (place.identity, place.node) == ("asserted", None)


@pytest.mark.parametrize(
    "fields",
    [
        {"urll": "x"},
        {"url": 3},
        {"url": ""},
        {"serves": ""},
        {"url": "ftp://h"},
        {"url": "http://"},
        {"url": "http://user:secret@h"},
        {"url": "http://h?x=1"},
        {"url": "http://h:99999"},
        {"url": "http://h/a b"},
        {"answer_s": 0},
        {"answer_s": True},
        {"answer_s": "1"},
        {"node": "http://elsewhere:8471"},
        {"node": "http://10.0.0.5:8471/path"},
        {"node": "https://10.0.0.5:8471"},
    ],
    ids=str,
)
def test_a_table_that_is_wrong_refuses(fields):
    with pytest.raises(WrongUsage):
        parsed(**fields)


def test_a_node_is_a_place_on_the_same_host():
    node = parsed(node="http://10.0.0.5:8471").place.node
    assert (node.host, node.port, node.name) == ("10.0.0.5", 8471, "10.0.0.5:8000 node")


def test_a_key_comes_from_a_file(tmp_path):
    path = tmp_path / "key"
    path.write_text("k" * MAX_KEY_BYTES + "\r\n")
    assert parsed(tmp_path, api_key_file="key").place.api_key == "k" * MAX_KEY_BYTES
    for more in ("k", "\r\n" + "k"):
        path.write_text("k" * MAX_KEY_BYTES + more)
        with pytest.raises(WrongUsage):
            parsed(tmp_path, api_key_file="key")
    path.write_text("secret\n")
    assert parsed(tmp_path, api_key_file="key").place.api_key == "secret"
    path.write_text("two\r\nx-header: lines")
    with pytest.raises(WrongUsage):
        parsed(tmp_path, api_key_file="key")
    with pytest.raises(Unavailable):
        parsed(tmp_path, api_key_file="missing")


def test_the_keys_of_nodes_are_in_a_folder_of_their_own(tmp_path):
    assert node_keys(tmp_path) == ()
    signer = new_key(tmp_path / "trust" / "nodes" / "gpu.pem")
    assert [key.keyid for key in node_keys(tmp_path)] == [signer.public.keyid]
