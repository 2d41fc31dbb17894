"""TLS at the listening socket: what is spoken, who gets in, and what a reload changes."""

import asyncio
import contextlib
import socket
import ssl

import pytest
import trustme

from steelyard.errors import Unavailable, WrongUsage
from steelyard.serve.tls import Tls, TlsFiles


@pytest.fixture
def ca():
    return trustme.CA()


@pytest.fixture
def files(tmp_path, ca):
    return furnished(tmp_path, ca)


def furnished(folder, ca, client_ca=None):
    """Certificate and key of localhost in `folder`, and the CA of clients if there is one."""
    leaf = ca.issue_cert("localhost")
    leaf.private_key_pem.write_to_path(folder / "key.pem")
    leaf.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    for more in leaf.cert_chain_pems[1:]:
        more.write_to_path(folder / "cert.pem", append=True)
    if client_ca is not None:
        client_ca.cert_pem.write_to_path(folder / "clients.pem")
    return TlsFiles(
        folder / "cert.pem", folder / "key.pem", None if client_ca is None else folder / "clients.pem"
    )


@contextlib.asynccontextmanager
async def listening(tls):
    class Echo(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport = transport

        def data_received(self, data):
            self.transport.write(data)

    server = await asyncio.get_running_loop().create_server(Echo, "127.0.0.1", 0, ssl=tls.context)
    yield server.sockets[0].getsockname()[1]
    server.close()


def client(ca, **options):
    context = ssl.create_default_context()
    ca.configure_trust(context)
    for name, value in options.items():
        setattr(context, name, value)
    return context


async def shaken(port, context, server_hostname="localhost"):
    """One echo over a fresh connection: (version, cipher, issuing common name of the server's certificate)."""

    def talk():
        with (
            socket.create_connection(("127.0.0.1", port), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname=server_hostname) as one,
        ):
            one.sendall(b"hello")
            assert one.recv(5) == b"hello"
            return one.version(), one.cipher()[0], one.getpeercert(binary_form=True)

    return await asyncio.to_thread(talk)


async def test_it_speaks_1_3_and_1_2_with_forward_secrecy(files, ca):
    async with listening(Tls(files)) as port:
        assert (await shaken(port, client(ca)))[0] == "TLSv1.3"
        version, cipher, _ = await shaken(port, client(ca, maximum_version=ssl.TLSVersion.TLSv1_2))
    assert version == "TLSv1.2"
    assert cipher.startswith("ECDHE-")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
async def test_it_does_not_speak_1_1_nor_ciphers_without_forward_secrecy(files, ca):
    old = client(ca)
    old.minimum_version = ssl.TLSVersion.TLSv1
    old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    plain_rsa = client(ca, maximum_version=ssl.TLSVersion.TLSv1_2)
    plain_rsa.set_ciphers("AES256-GCM-SHA384:@SECLEVEL=0")
    async with listening(Tls(files)) as port:
        for context in (old, plain_rsa):
            with pytest.raises((ssl.SSLError, ConnectionResetError)):
                await shaken(port, context)


async def test_a_new_certificate_counts_for_the_next_handshake(tmp_path, files, ca):
    tls = Tls(files)
    async with listening(tls) as port:
        before = (await shaken(port, client(ca)))[2]
        furnished(tmp_path, ca)
        tls.load()()
        assert (await shaken(port, client(ca)))[2] != before


async def test_a_broken_new_key_leaves_the_old_certificate(tmp_path, files, ca):
    tls = Tls(files)
    ca.issue_cert("localhost").private_key_pem.write_to_path(files.key)
    with pytest.raises(WrongUsage, match="no certificate with its key"):
        tls.load()
    async with listening(tls) as port:
        assert (await shaken(port, client(ca)))[0] == "TLSv1.3"


async def test_callers_need_a_certificate_of_the_client_ca(tmp_path, ca):
    clients = trustme.CA()
    tls = Tls(furnished(tmp_path, ca, clients))
    member, stranger = client(ca), client(ca)
    clients.issue_cert("member").configure_cert(member)
    trustme.CA().issue_cert("stranger").configure_cert(stranger)
    async with listening(tls) as port:
        await shaken(port, member)
        for context in (client(ca), stranger):
            with pytest.raises((ssl.SSLError, ConnectionResetError, AssertionError)):
                await shaken(port, context)


async def test_a_changed_client_ca_shuts_out_who_was_let_in_before(tmp_path, ca):
    first, second = trustme.CA(), trustme.CA()
    tls = Tls(furnished(tmp_path, ca, first))
    old, new = client(ca), client(ca)
    first.issue_cert("member").configure_cert(old)
    second.issue_cert("member").configure_cert(new)
    async with listening(tls) as port:
        await shaken(port, old)
        second.cert_pem.write_to_path(tmp_path / "clients.pem")
        tls.load()()
        await shaken(port, new)
        with pytest.raises((ssl.SSLError, ConnectionResetError, AssertionError)):
            await shaken(port, old)


async def test_a_client_that_names_no_host_gets_the_present_certificate_too(tmp_path, files, ca):
    tls = Tls(files)
    nameless = client(ca)
    nameless.check_hostname = False
    async with listening(tls) as port:
        before = (await shaken(port, nameless, None))[2]
        furnished(tmp_path, ca)
        tls.load()()
        assert (await shaken(port, nameless, None))[2] != before


def test_files_that_are_not_there_are_said_to_be(tmp_path):
    with pytest.raises(Unavailable, match="cannot read"):
        Tls(TlsFiles(tmp_path / "no.pem", tmp_path / "no.key"))
