"""/healthz and /readyz: one word a check, and no word of ours names a path."""

import json

from steelyard.errors import Unavailable
from steelyard.serve.readiness import health, readiness


def away():
    raise Unavailable("/srv/steelyard/store: no such file")


def test_all_well_is_ready():
    is_ready, body = readiness({"store": lambda: None, "ledger": lambda: None})
    assert is_ready
    assert json.loads(body) == {"ready": True, "checks": {"store": "ok", "ledger": "ok"}}


def test_one_check_that_fails_says_why_and_all_are_shown():
    is_ready, body = readiness({"keys": lambda: "none yet", "store": away, "ledger": lambda: None})
    assert not is_ready
    assert json.loads(body)["checks"] == {"keys": "none yet", "store": "does not answer", "ledger": "ok"}
    assert b"/srv" not in body


def test_alive_is_alive():
    assert json.loads(health()) == {"status": "ok"}
