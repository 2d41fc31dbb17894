"""`[[serve.upstream]]` of steelyard.toml: the servers that answer for a model, and so the whole list of ways out.

[[serve.upstream]]
url = "http://10.0.0.5:8000"       # what stands before /v1
serves = "claims-llama"            # a model of the store: name, alias or digest
model = "/models/claims-llama"     # what the server calls it
api_key_file = "vllm.key"          # optional; sent as a bearer token
ca_file = "ca.pem"                 # optional; trusted for https instead of the system's
node = "http://10.0.0.5:8471"      # optional; `steelyard node` there says which bytes the server has
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from steelyard.engines.upstream_member import Place
from steelyard.errors import Unavailable, WrongUsage
from steelyard.evidence import PublicKey
from steelyard.keys import load_public

MAX_KEY_BYTES = 4096

_TEXTS = ("url", "serves", "model", "name", "api_key_file", "ca_file", "node")
_NUMBERS = ("max_connections", "connect_s", "answer_s", "chunk_s", "idle_s")
_KEY = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class Upstream:
    """A table of the configuration. serves: the model as the operator names it."""

    serves: str
    place: Place


def parse_upstream(table: Mapping[str, Any], folder: Path) -> Upstream:
    """Read one table. folder: what relative paths stand below. Raises WrongUsage, Unavailable for a missing file."""
    where = f"[[serve.upstream]] {table.get('url')!r}"
    unknown = sorted(set(table) - {*_TEXTS, *_NUMBERS})
    if unknown:
        raise WrongUsage(
            f"{where}: unknown key {unknown[0]!r}; known keys are {', '.join((*_TEXTS, *_NUMBERS))}"
        )
    for name in _TEXTS:
        if not isinstance(table.get(name, ""), str):
            raise WrongUsage(f"{where}: {name!r} is not text")
    for name in ("url", "serves", "model"):
        if not table.get(name):
            raise WrongUsage(f"{where}: {name!r} is missing")
    numbers = {name: table[name] for name in _NUMBERS if name in table}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise WrongUsage(f"{where}: {name!r} is not a number above 0")
    host, port, prefix, is_tls = _parts(str(table["url"]), where)
    name = table.get("name") or f"{host}:{port}"
    place = Place(
        name=name,
        host=host,
        port=port,
        model=table["model"],
        prefix=prefix,
        is_tls=is_tls,
        api_key=_key(folder / table["api_key_file"]) if "api_key_file" in table else None,
        ca_file=folder / table["ca_file"] if "ca_file" in table else None,
        node=_node(table["node"], name, host, where) if "node" in table else None,
        **numbers,
    )
    return Upstream(table["serves"], place)


def node_keys(home: Path) -> tuple[PublicKey, ...]:
    """The keys whose word counts for what an engine has loaded, and for nothing else: trust/nodes/*.pub."""
    return tuple(load_public(path) for path in sorted((home / "trust" / "nodes").glob("*.pub")))


def _node(url: str, name: str, host: str, where: str) -> Place:
    node_host, port, prefix, is_tls = _parts(url, where)
    if node_host != host:
        raise WrongUsage(f"{where}: the node is on {node_host}, so it cannot see a process on {host}")
    if prefix or is_tls:
        raise WrongUsage(f"{where}: the node's URL is http://HOST:PORT; what it says is signed")
    return Place(name=f"{name} node", host=node_host, port=port, model="")


def _parts(url: str, where: str) -> tuple[str, int, str, bool]:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise WrongUsage(f"{where}: not a URL") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise WrongUsage(f"{where}: the URL is not http://HOST:PORT or https://HOST:PORT")
    if parts.username or parts.query or parts.fragment:
        raise WrongUsage(f"{where}: the URL has more than a host, a port and a path; keys go to api_key_file")
    prefix = parts.path.rstrip("/").removesuffix("/v1")
    if not all("!" <= char <= "~" for char in prefix + parts.hostname):
        raise WrongUsage(f"{where}: the URL has characters that belong in none")
    is_tls = parts.scheme == "https"
    return parts.hostname, port or (443 if is_tls else 80), prefix, is_tls


def _key(path: Path) -> str:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_KEY_BYTES + 3).decode("ascii", "replace").strip()  # a line end behind it
    except OSError as error:
        raise Unavailable(f"{path}: {error.strerror}") from error
    if len(text) > MAX_KEY_BYTES or not _KEY.fullmatch(text):
        raise WrongUsage(f"{path}: not one key of at most {MAX_KEY_BYTES} printable characters")
    return text
