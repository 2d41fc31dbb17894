"""The connection to a store's server, and its head: the number that changes with every change, kept without asking.

A thread listens for the notices that changes send, and looks itself each second. What it last heard is old after
STALE_S; then nobody knows whether something was revoked.
"""

import threading
import time
from typing import Any

from steelyard.errors import WrongUsage

try:
    import psycopg
except ImportError as error:
    raise WrongUsage("a store in PostgreSQL needs an extra; run: pip install steelyard[postgres]") from error

STALE_S = 3.0
LOOK_S = 1.0
CONNECT_LIMIT_S = 5
STATEMENT_LIMIT_MS = 5000
CHANNEL = "steelyard_head"

Connection = psycopg.Connection[tuple[Any, ...]]
ServerError = psycopg.Error


class HeadListener:
    """Keeps the head's last value, in a thread. value: absent when the server was not heard from for STALE_S."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._value: int = 0
        self._heard_at = -STALE_S
        self._lock = threading.Lock()
        self._first = threading.Event()
        self._stopped = threading.Event()
        threading.Thread(target=self._run, name="store head", daemon=True).start()
        self._first.wait(CONNECT_LIMIT_S)

    @property
    def value(self) -> int | None:
        return self._value if time.monotonic() - self._heard_at < STALE_S else None

    def hear(self, value: int, asked_at: float | None = None) -> None:
        """What the head is. asked_at: when it was asked for; without, it is a notice."""
        now = time.monotonic()
        with self._lock:
            # An answer that was on its way while a newer notice came is old; a lower one else is a restored server.
            if value >= self._value or (asked_at is not None and asked_at > self._heard_at):
                self._value = value
            self._heard_at = now if asked_at is None else max(self._heard_at, asked_at)
        self._first.set()

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                self._listen()
            except psycopg.Error:
                self._stopped.wait(LOOK_S / 2)  # `value` says how long nothing was heard

    def _listen(self) -> None:
        with connect(self._url) as connection:
            connection.execute(f"LISTEN {CHANNEL}")
            while not self._stopped.is_set():
                asked_at = time.monotonic()
                row = connection.execute("SELECT value FROM steelyard.head").fetchone()
                assert row is not None
                self.hear(row[0], asked_at)
                for notice in connection.notifies(timeout=LOOK_S):
                    self.hear(int(notice.payload))


def connect(url: str) -> Connection:
    """Each statement is a transaction of its own. Raises psycopg.Error."""
    options = f"-c statement_timeout={STATEMENT_LIMIT_MS} -c timezone=UTC"
    # A server that was unplugged says nothing: the kernel gives up after these, not after two hours.
    return psycopg.connect(
        url,
        autocommit=True,
        connect_timeout=CONNECT_LIMIT_S,
        options=options,
        application_name="steelyard",
        keepalives_idle=2,
        keepalives_interval=1,
        keepalives_count=3,
        tcp_user_timeout=STATEMENT_LIMIT_MS,
    )
