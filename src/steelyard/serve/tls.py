"""TLS for the listening socket: 1.2 and later, forward secrecy only, client certificates if asked for.

A changed certificate, key or client CA counts for the next handshake; connections keep what they began with. The
listening socket holds one context for good; at each hello it hands the connection to the present one.
"""

import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from steelyard.errors import Unavailable, WrongUsage

# TLS 1.3's own suites are all fine and not chosen here. RFC 9325, section 4.2.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """client_ca: whose certificates callers must have; absent when callers need none."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


class Tls:
    """The certificate in force. name, paths, load: as `reload.Watched` wants them. Raises WrongUsage, Unavailable."""

    name = "tls"

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        self._present = _context(files)
        self.context = _context(files)  # for the listening socket
        self.context.sni_callback = self._hand_over

    def paths(self) -> Iterable[Path]:
        files = (self._files.certificate, self._files.key, self._files.client_ca)
        return [path for path in files if path is not None]

    def load(self) -> Callable[[], None]:
        present = _context(self._files)

        def into_force() -> None:
            self._present = present

        return into_force

    def _hand_over(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        connection.context = self._present


def _context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(CIPHERS)
    context.set_alpn_protocols(["http/1.1"])
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.options |= ssl.OP_NO_TICKET  # a ticket would outlive the client CA it was given under
    context.num_tickets = 0
    try:
        context.load_cert_chain(files.certificate, files.key, password=_no_passphrase)
        if files.client_ca is not None:
            context.load_verify_locations(files.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
    except ssl.SSLError as error:
        raise WrongUsage(
            f"{files.certificate} and {files.key} are no certificate with its key: {error.reason}"
        ) from error
    except OSError as error:
        raise Unavailable(f"cannot read {', '.join(map(str, _given(files)))}: {error.strerror}") from error
    return context


def _given(files: TlsFiles) -> list[Path]:
    return [path for path in (files.certificate, files.key, files.client_ca) if path is not None]


def _no_passphrase() -> str:
    raise WrongUsage(
        "the TLS key has a passphrase; the gateway takes one without, readable by its user alone"
    )
