"""One TOML file, one loader, unknown keys refuse. Everything has a safe default, so the file may be absent."""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from steelyard import operations_config
from steelyard.access_config import Access
from steelyard.errors import Unavailable, WrongUsage
from steelyard.evidence import PublicKey
from steelyard.keys import load_public
from steelyard.operations_config import Operations
from steelyard.policy import Policy

MAX_CONFIG_BYTES = 1 << 20
DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 8470
KEYS = (
    *(
        "access",
        "plugins",
        "prices",
        "privacy",
        "serve.host",
        "serve.port",
        "serve.stand_ins",
        "serve.upstream",
    ),
    *operations_config.KEYS,
    "store.url",
)


@dataclass(frozen=True, slots=True)
class Config:
    """Where this installation keeps its state, and the few choices that two users make differently.

    plugins: foreign plugins allowed to load.  host, port: where `serve` listens.  upstreams: the tables of
    [[serve.upstream]], read by engines.upstream_config.  stand_ins: models that may answer for an alias whose own
    engines are down.  access: the tables [access] and [prices].  operations: workers, log, TLS and telemetry.
    privacy: the table [privacy], read by privacy.settings; absent when personal data is not looked for.
    store_url: of a PostgreSQL server that several machines share; absent for files in the home.
    """

    home: Path
    plugins: tuple[str, ...] = ()
    host: str = DEFAULT_HOST
    port: int = DEFAULT_PORT
    upstreams: tuple[Mapping[str, Any], ...] = ()
    stand_ins: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    access: Access = field(default_factory=Access)
    operations: Operations = field(default_factory=Operations)
    store_url: str | None = None
    privacy: Mapping[str, Any] | None = None

    @property
    def operator_key(self) -> Path:
        return self.home / "keys" / "operator.pem"

    @property
    def ledger_key(self) -> Path:
        return self.home / "keys" / "ledger.pem"

    @property
    def ledger(self) -> Path:
        return self.home / "ledger"

    @property
    def accounts(self) -> Path:
        return self.home / "accounts"

    def policy(self, path: Path | None = None) -> Policy:
        """The policy in `path`, else policy.toml in the home, else the one that ships."""
        own = self.home / "policy.toml"
        source = path or (own if own.exists() else None)
        if source is None:
            return Policy.parse(default_policy_text())
        text = _text(source)
        try:
            return Policy.parse(text)
        except WrongUsage as error:
            raise WrongUsage(f"{source}: {error.message}") from error

    def trusted_keys(self) -> tuple[PublicKey, ...]:
        """The operator's public key and every *.pub in the home's trust folder."""
        paths = [self.operator_key.with_suffix(".pub"), *sorted((self.home / "trust").glob("*.pub"))]
        return tuple(load_public(path) for path in paths if path.exists())


def default_home() -> Path:
    """$STEELYARD_HOME, else ~/.steelyard."""
    return Path(os.environ.get("STEELYARD_HOME") or Path.home() / ".steelyard")


def default_policy_text() -> str:
    """The TOML of the shipped policy."""
    return resources.files("steelyard").joinpath("data/policies/default.toml").read_text()


def load_config(home: Path | None = None) -> Config:
    """Read steelyard.toml from `home` (default: default_home()). Raises WrongUsage for unknown keys or types."""
    home = home or default_home()
    path = home / "steelyard.toml"
    if not path.exists():
        return Config(home)
    try:
        table = tomllib.loads(_text(path))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise WrongUsage(f"{path}: not TOML: {error}") from error
    serve = table.pop("serve", {})
    try:
        access = Access.parse(table.pop("access", {}), table.pop("prices", {}), home)
    except WrongUsage as error:
        raise WrongUsage(f"{path}: {error.message}") from error
    plugins = _take(path, table, "plugins", list, [])
    if not isinstance(serve, dict) or not all(isinstance(name, str) for name in plugins):
        raise WrongUsage(f"{path}: [serve] is a table and plugins a list of names")
    try:
        operations = Operations.take(serve, home)
    except WrongUsage as error:
        raise WrongUsage(f"{path}: {error.message}") from error
    host = _take(path, serve, "host", str, DEFAULT_HOST)
    port = _take(path, serve, "port", int, DEFAULT_PORT)
    upstreams = _take(path, serve, "upstream", list, [])
    store = _take(path, table, "store", dict, {})
    store_url = _take(path, store, "url", str, "")
    privacy = _take(path, table, "privacy", dict, None)
    stand_ins = _take(path, serve, "stand_ins", dict, {})
    if not all(isinstance(upstream, dict) for upstream in upstreams):
        raise WrongUsage(f"{path}: an upstream is a table: [[serve.upstream]]")
    if not all(
        isinstance(some, list) and all(isinstance(n, str) for n in some) for some in stand_ins.values()
    ):
        raise WrongUsage(f"{path}: serve.stand_ins gives each alias a list of models")
    unknown = sorted([*table, *(f"serve.{key}" for key in serve), *(f"store.{key}" for key in store)])
    if unknown:
        raise WrongUsage(f"{path}: unknown key {unknown[0]!r}; known keys are {', '.join(KEYS)}")
    if not 0 <= port <= 65535:
        raise WrongUsage(f"{path}: port {port} is not between 0 and 65535")
    return Config(
        home,
        tuple(plugins),
        host,
        port,
        tuple(upstreams),
        {alias: tuple(names) for alias, names in stand_ins.items()},
        access=access,
        operations=operations,
        store_url=store_url or None,
        privacy=privacy,
    )


def _take(path: Path, table: dict[str, Any], key: str, kind: type, default: Any) -> Any:  # noqa: ANN401 - TOML border
    value = table.pop(key, default)
    if value is default:
        return value
    if not isinstance(value, kind) or isinstance(value, bool):
        raise WrongUsage(f"{path}: {key!r} is not of type {kind.__name__}")
    return value


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise WrongUsage(f"{path}: more than {MAX_CONFIG_BYTES} bytes")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise WrongUsage(f"{path}: no such file") from error
    except UnicodeDecodeError as error:
        raise WrongUsage(f"{path}: not UTF-8") from error
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error
