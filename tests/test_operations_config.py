"""[serve] of steelyard.toml: how the gateway runs."""

import pytest

from steelyard.config import load_config
from steelyard.errors import WrongUsage
from steelyard.operations_config import Operations, TelemetryTable, TlsTable


def read(home, text):
    (home / "steelyard.toml").write_text(text)
    return load_config(home).operations


def test_without_a_word_there_is_one_worker_no_tls_and_no_telemetry(tmp_path):
    assert load_config(tmp_path).operations == Operations(1, "warning", None, None)


def test_every_key_is_read_and_files_are_found_from_the_home(tmp_path):
    text = """
[serve]
workers = 4
log_level = "info"
[serve.tls]
cert = "tls/cert.pem"
key = "/etc/key.pem"
client_ca = "tls/clients.pem"
[serve.telemetry]
url = "http://127.0.0.1:4318"
conventions = "1.36"
ca_file = "otlp.pem"
headers = { x-token = "t" }
"""
    found = read(tmp_path, text)
    assert (found.workers, found.log_level) == (4, "info")
    assert found.tls is not None
    assert found.tls.key.as_posix() == "/etc/key.pem"
    assert found.tls == TlsTable(tmp_path / "tls/cert.pem", found.tls.key, tmp_path / "tls/clients.pem")
    assert found.telemetry == TelemetryTable(
        "http://127.0.0.1:4318", "1.36", tmp_path / "otlp.pem", {"x-token": "t"}
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[serve]\nworkers = 0", "1 or more"),
        ("[serve]\nworkers = true", "1 or more"),
        ('[serve]\nlog_level = "loud"', "one of debug"),
        ('[serve.tls]\ncert = "c"', "a cert and its key"),
        ('[serve.tls]\ncert = "c"\nkey = "k"\nca = "x"', "unknown key 'serve.tls.ca'"),
        ("[serve]\ntls = 1", r"\[serve.tls\] is a table"),
        ("[serve.telemetry]", "the url of a receiver"),
        ("[serve.telemetry]\nurl = 1", "is a text"),
        ('[serve.telemetry]\nurl = "u"\nheaders = { a = 1 }', "each name a text"),
    ],
)
def test_what_cannot_be_used_is_wrong_usage_and_names_the_file(tmp_path, text, message):
    with pytest.raises(WrongUsage, match=message) as raised:
        read(tmp_path, text)
    assert "steelyard.toml" in raised.value.message
