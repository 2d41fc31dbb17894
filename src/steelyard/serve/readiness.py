"""/healthz says that the process lives; /readyz whether it can answer, and if not, why: one word for each check.

Anybody may read them, so a reason is a word of ours, never a path, a name or an error's text.
"""

import json
from collections.abc import Callable, Mapping

from steelyard.errors import SteelyardError

OK = "ok"

Check = Callable[[], str | None]  # what is wrong, absent when nothing is


def health() -> bytes:
    """The body of /healthz."""
    return b'{"status":"ok"}'


def readiness(checks: Mapping[str, Check]) -> tuple[bool, bytes]:
    """Whether all is well, and the body of /readyz: {"ready", "checks": {name: "ok" | word}}."""
    found = {name: _said(check) for name, check in checks.items()}
    is_ready = all(word == OK for word in found.values())
    return is_ready, json.dumps({"ready": is_ready, "checks": found}).encode()


def _said(check: Check) -> str:
    try:
        return check() or OK
    except SteelyardError:
        return "does not answer"
