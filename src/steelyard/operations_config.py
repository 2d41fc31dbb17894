"""How the gateway runs, from `[serve]` of steelyard.toml: workers, log, TLS, telemetry. Each has a safe default.

[serve]            workers = 1           log_level = "warning"
[serve.tls]        cert, key, client_ca  files, relative to the home
[serve.telemetry]  url, conventions, ca_file, headers
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from steelyard.errors import WrongUsage

LOG_LEVELS = ("debug", "info", "warning", "error")
KEYS = ("serve.workers", "serve.log_level", "serve.tls", "serve.telemetry")


@dataclass(frozen=True, slots=True)
class TlsTable:
    """client_ca: absent when callers need no certificate."""

    cert: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class TelemetryTable:
    """conventions: which version of the names, see serve/telemetry_otlp.py."""

    url: str
    conventions: str = "latest"
    ca_file: Path | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Operations:
    workers: int = 1
    log_level: str = "warning"
    tls: TlsTable | None = None
    telemetry: TelemetryTable | None = None

    @classmethod
    def take(cls, serve: dict[str, Any], home: Path) -> "Operations":
        """Take what is ours out of [serve], and leave the rest. Raises WrongUsage."""
        workers = serve.pop("workers", 1)
        if not isinstance(workers, int) or isinstance(workers, bool) or workers < 1:
            raise WrongUsage("serve.workers is a number, 1 or more")
        level = serve.pop("log_level", "warning")
        if level not in LOG_LEVELS:
            raise WrongUsage(f"serve.log_level is one of {', '.join(LOG_LEVELS)}")
        tls, telemetry = serve.pop("tls", None), serve.pop("telemetry", None)
        return cls(
            workers,
            level,
            None if tls is None else _tls(_table(tls, "serve.tls"), home),
            None if telemetry is None else _telemetry(_table(telemetry, "serve.telemetry"), home),
        )


def _tls(table: dict[str, Any], home: Path) -> TlsTable:
    cert, key, client_ca = (_path(table, "serve.tls", name, home) for name in ("cert", "key", "client_ca"))
    _end(table, "serve.tls", ("cert", "key", "client_ca"))
    if cert is None or key is None:
        raise WrongUsage("serve.tls names a cert and its key")
    return TlsTable(cert, key, client_ca)


def _telemetry(table: dict[str, Any], home: Path) -> TelemetryTable:
    url = _text(table, "serve.telemetry", "url")
    if url is None:
        raise WrongUsage("serve.telemetry has the url of a receiver, such as http://127.0.0.1:4318")
    conventions = _text(table, "serve.telemetry", "conventions") or "latest"
    ca_file = _path(table, "serve.telemetry", "ca_file", home)
    headers = _table(table.pop("headers", {}), "serve.telemetry.headers")
    if not all(isinstance(value, str) for value in headers.values()):
        raise WrongUsage("serve.telemetry.headers gives each name a text")
    _end(table, "serve.telemetry", ("url", "conventions", "ca_file", "headers"))
    return TelemetryTable(url, conventions, ca_file, headers)


def _table(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise WrongUsage(f"[{where}] is a table")
    return dict(value)


def _text(table: dict[str, Any], where: str, name: str) -> str | None:
    value = table.pop(name, None)
    if value is not None and (not isinstance(value, str) or not value):
        raise WrongUsage(f"{where}.{name} is a text")
    return value


def _path(table: dict[str, Any], where: str, name: str, home: Path) -> Path | None:
    value = _text(table, where, name)
    return None if value is None else home / value


def _end(table: dict[str, Any], where: str, known: tuple[str, ...]) -> None:
    if table:
        raise WrongUsage(f"unknown key '{where}.{min(table)}'; known keys are {', '.join(known)}")
